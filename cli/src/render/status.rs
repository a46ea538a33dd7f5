//! One screen: status, the checks, and the frames of `top`. Pure.

use helios_proto::wire::v1;

use super::{fleet, nodes};
use crate::failure::clean;
use crate::table::{Cell, Table, Tone, cell, pairs, toned};
use crate::words::{count, span};

/// Everything about a fleet at one moment.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The whole.
    pub status: v1::StatusReply,
    /// Its nodes.
    pub nodes: Vec<v1::NodeInfo>,
    /// Its data planes.
    pub dataplanes: Vec<v1::DataplaneInfo>,
}

/// `status`.
#[must_use]
pub fn status(status: &v1::StatusReply, nodes: &[v1::NodeInfo], color: bool) -> String {
    let who = if status.standalone { "standalone".to_owned() } else { format!("cluster {}", status.cluster) };
    let (primary, tone) = match status.primary.as_str() {
        "" => ("none, writes wait".to_owned(), Tone::Bad),
        name => (format!("{name} (epoch {}, timeline {})", status.epoch, status.timeline), Tone::Good),
    };
    let v1::StatusReply { nodes_up, nodes_down, nodes_drained, dataplanes, dataplanes_synced, .. } = status;
    let drained = if *nodes_drained > 0 { format!(", {nodes_drained} drained") } else { String::new() };
    let step = if dataplanes_synced == dataplanes { Tone::Plain } else { Tone::Warn };
    let mut lines = vec![
        (
            "answers",
            cell(format!("{} {}, {who}, up {}", status.program, status.version, span(status.uptime_ms))),
        ),
        ("configuration", cell(format!("{} (revision {})", status.config_revision, status.revision))),
        ("primary", toned(primary, tone)),
        ("nodes", cell(format!("{}: {nodes_up} up, {nodes_down} down{drained}", status.nodes))),
        ("data planes", toned(format!("{dataplanes}, {dataplanes_synced} with the newest revision"), step)),
        (
            "clients",
            cell(format!(
                "{}; server connections: {} in use, {} idle; {} waiting",
                status.clients, status.active, status.idle, status.waiting
            )),
        ),
    ];
    lines.extend(control_planes(status).map(|cell| ("control planes", cell)));
    let head = pairs(&lines, color);
    let verdict = if status.problems.is_empty() {
        Tone::Good.paint("all is well", color)
    } else {
        let lines: Vec<String> = status.problems.iter().map(|text| format!("! {}", clean(text))).collect();
        Tone::Bad.paint(&lines.join("\n"), color)
    };
    format!("{head}\n\n{}\n\n{verdict}", nodes::table(nodes, false).render(color))
}

/// Control planes that share a store; `None`: there is only one.
fn control_planes(status: &v1::StatusReply) -> Option<Cell> {
    let v1::StatusReply { control_planes, leader, store, store_up, .. } = status;
    let names = control_planes.iter().map(|name| {
        let mark = if name == leader { " (leader)" } else { "" };
        format!("{}{mark}", clean(name))
    });
    let names: Vec<String> = names.collect();
    let (state, tone) = if *store_up { ("reachable", Tone::Plain) } else { ("not reachable", Tone::Bad) };
    let text = format!("{}; {} {state}", names.join(", "), clean(store));
    (!names.is_empty()).then(|| toned(text, tone))
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Result {
    /// Well.
    Ok,
    /// Worth a look.
    Warning,
    /// Not well.
    Failed,
}

impl Result {
    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Warning => Tone::Warn,
            Self::Failed => Tone::Bad,
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub result: Result,
    /// What was seen.
    pub detail: String,
}

/// Every check over a picture.
#[must_use]
pub fn checks(picture: &Picture) -> Vec<Check> {
    let Picture { status, nodes, dataplanes } = picture;
    let mut checks = Vec::new();
    let mut check = |name, bad: Result, wrong: Vec<String>, good: String| {
        let result = if wrong.is_empty() { Result::Ok } else { bad };
        let detail = if wrong.is_empty() { good } else { wrong.join("; ") };
        checks.push(Check { name, result, detail });
    };
    let some = |is: bool, text: &str| if is { vec![text.to_owned()] } else { Vec::new() };
    let of_nodes = |which: &dyn Fn(&v1::NodeInfo) -> bool,
                    say: &dyn Fn(&v1::NodeInfo) -> String|
     -> Vec<String> { nodes.iter().filter(|node| which(node)).map(say).collect() };
    let name = |node: &v1::NodeInfo| node.name.clone();
    let ops = |node: &v1::NodeInfo| node.ops.unwrap_or_default();
    let is = |node: &v1::NodeInfo, health: v1::Health| node.health == i32::from(health);

    let none = some(status.primary.is_empty(), "there is none: writes wait");
    check("primary", Result::Failed, none, format!("{}, epoch {}", status.primary, status.epoch));
    let down = of_nodes(&|n| is(n, v1::Health::Down), &|n| format!("{} is down: {}", n.name, n.last_error));
    check("nodes up", Result::Failed, down, count(status.nodes_up, "node"));
    let unknown = of_nodes(&|n| is(n, v1::Health::Unknown), &|n| format!("{} is not probed yet", n.name));
    check("nodes probed", Result::Warning, unknown, "all of them".to_owned());
    let other = of_nodes(&|n| n.role != n.configured_role, &|n| {
        let (is, should) = (crate::words::role(n.role), crate::words::role(n.configured_role));
        format!("{} is {is}, configured as {should}", n.name)
    });
    check("roles as configured", Result::Warning, other, "all of them".to_owned());
    let drained = of_nodes(&|n| ops(n).drained, &name);
    check("nothing drained", Result::Warning, drained, "no node is drained".to_owned());
    let paused = of_nodes(&|n| ops(n).paused, &name);
    check("nothing paused", Result::Failed, paused, "no pool is paused".to_owned());
    let readers = nodes.iter().any(|n| !n.primary && is(n, v1::Health::Up) && !ops(n).drained);
    let lonely = some(!readers && nodes.len() > 1, "no node but the primary serves reads");
    check("readers", Result::Warning, lonely, "as configured".to_owned());

    let connected = some(!dataplanes.iter().any(|d| d.connected), "none is connected");
    check("data planes", Result::Failed, connected, count(status.dataplanes, "data plane"));
    let of_planes = |which: &dyn Fn(&v1::DataplaneInfo) -> bool| -> Vec<String> {
        dataplanes.iter().filter(|d| which(d)).map(|d| d.id.clone()).collect()
    };
    let lost = of_planes(&|d| !d.connected);
    check("none lost", Result::Warning, lost, "every one that was seen is connected".to_owned());
    let refused = of_planes(&|d| !d.refused.is_empty());
    check("nothing refused", Result::Failed, refused, "every piece was accepted".to_owned());
    let behind = of_planes(&|d| d.connected && !d.synced && d.refused.is_empty());
    check("in step", Result::Warning, behind, format!("all hold revision {}", status.revision));
    let version = of_planes(&|d| d.connected && d.version != status.version);
    check("versions", Result::Warning, version, format!("all {}", status.version));
    let waiting = some(status.waiting > 0, &format!("{} waiting", count(status.waiting, "session")));
    check("nobody waits", Result::Warning, waiting, "no session waits for a connection".to_owned());
    checks
}

/// `check`.
#[must_use]
pub fn check_table(checks: &[Check]) -> Table {
    let mut table = Table::new(&["CHECK", "RESULT", "DETAIL"]);
    for Check { name, result, detail } in checks {
        table.row(vec![cell(name), toned(result.word(), result.tone()), cell(detail)]);
    }
    table
}

/// Statements a second between two pictures: reads, writes.
#[must_use]
pub fn rates(before: &Picture, now: &Picture, seconds: f64) -> (f64, f64) {
    let grown = |of: fn(&v1::DataplaneInfo) -> u64| -> f64 {
        let each = now.dataplanes.iter().filter_map(|d| {
            let was = before.dataplanes.iter().find(|was| was.id == d.id && was.boot_id == d.boot_id)?;
            u32::try_from(of(d).saturating_sub(of(was))).ok()
        });
        each.map(f64::from).sum::<f64>() / seconds.max(0.001)
    };
    (grown(|d| d.reads), grown(|d| d.writes))
}

/// A frame of `top`.
#[must_use]
pub fn frame(picture: &Picture, (reads, writes): (f64, f64), color: bool) -> String {
    let Picture { status: s, nodes, dataplanes } = picture;
    let who = if s.standalone { s.program.clone() } else { format!("cluster {}", s.cluster) };
    let primary = if s.primary.is_empty() { "none" } else { &s.primary };
    let head = clean(&format!(
        "{who}   primary {primary}   epoch {}   configuration {}   revision {}\n\
         clients {}   in use {}   idle {}   waiting {}   reads/s {reads:.0}   writes/s {writes:.0}",
        s.epoch, s.config_revision, s.revision, s.clients, s.active, s.idle, s.waiting
    ));
    let problems: Vec<String> = s.problems.iter().map(|text| format!("! {}", clean(text))).collect();
    // Line by line: the screen ends colours at each line's end.
    let paint = |tone: Tone, lines: &mut dyn Iterator<Item = &str>| {
        lines.map(|line| tone.paint(line, color)).collect::<Vec<_>>().join("\n")
    };
    let mut parts = vec![paint(Tone::Bold, &mut head.lines())];
    if !problems.is_empty() {
        parts.push(paint(Tone::Bad, &mut problems.iter().map(String::as_str)));
    }
    parts.push(nodes::table(nodes, false).render(color));
    parts.push(fleet::dataplanes(dataplanes, false).render(color));
    parts.join("\n\n")
}

/// `top` in a line, for a log.
#[must_use]
pub fn line(picture: &Picture, (reads, writes): (f64, f64)) -> String {
    let s = &picture.status;
    let primary = if s.primary.is_empty() { "none" } else { &s.primary };
    clean(&format!(
        "primary={primary} epoch={} revision={} nodes_up={}/{} dataplanes={} clients={} in_use={} idle={} waiting={} \
         reads_per_s={reads:.0} writes_per_s={writes:.0} problems={}",
        s.epoch,
        s.revision,
        s.nodes_up,
        s.nodes,
        s.dataplanes,
        s.clients,
        s.active,
        s.idle,
        s.waiting,
        s.problems.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let status = v1::StatusReply {
            program: "heliosdb-proxy".to_owned(),
            version: "1.0.0".to_owned(),
            standalone: true,
            config_revision: 1,
            revision: 7,
            epoch: 1,
            timeline: 1,
            primary: "a".to_owned(),
            nodes: 1,
            nodes_up: 1,
            dataplanes: 1,
            dataplanes_synced: 1,
            clients: 3,
            active: 1,
            idle: 2,
            uptime_ms: 185_000,
            ..v1::StatusReply::default()
        };
        let dataplane = v1::DataplaneInfo {
            id: "dp".to_owned(),
            version: "1.0.0".to_owned(),
            connected: true,
            synced: true,
            revision: 7,
            ..v1::DataplaneInfo::default()
        };
        let mut node = nodes::tests::nodes().remove(0);
        node.waiting = 0;
        Picture { status, nodes: vec![node], dataplanes: vec![dataplane] }
    }

    #[test]
    fn a_screen() {
        let mut it = picture();
        let expected = "\
answers        heliosdb-proxy 1.0.0, standalone, up 3m05s
configuration  1 (revision 7)
primary        a (epoch 1, timeline 1)
nodes          1: 1 up, 0 down
data planes    1, 1 with the newest revision
clients        3; server connections: 1 in use, 2 idle; 0 waiting

NAME  ROLE     HEALTH  ADDRESS    WEIGHT  CONNS  IN USE  WAITING  LAG  NOTE
a     primary  up      db-a:5432     100     12       3        0    -

all is well";
        assert_eq!(status(&it.status, &it.nodes, false), expected);
        it.status.store = "etcd".to_owned();
        it.status.control_planes = vec!["cp-1".to_owned(), "cp-2".to_owned()];
        it.status.leader = "cp-2".to_owned();
        let shown = status(&it.status, &it.nodes, false);
        assert!(shown.contains("\ncontrol planes  cp-1, cp-2 (leader); etcd not reachable\n"), "{shown}");
        it.status.problems = vec!["Node x is down.".to_owned()];
        assert!(status(&it.status, &it.nodes, false).ends_with("\n\n! Node x is down."));
    }

    #[test]
    fn checks_find_what_is_wrong() {
        let mut it = picture();
        assert!(checks(&it).iter().all(|check| check.result == Result::Ok), "{:#?}", checks(&it));
        it.nodes = nodes::tests::nodes();
        it.dataplanes[0].connected = false;
        it.status.waiting = 1;
        let found = checks(&it);
        let bad: Vec<_> =
            found.iter().filter(|c| c.result != Result::Ok).map(|c| (c.name, c.result.word())).collect();
        assert_eq!(
            bad,
            [
                ("nodes up", "failed"),
                ("roles as configured", "warning"),
                ("nothing drained", "warning"),
                ("readers", "warning"),
                ("data planes", "failed"),
                ("none lost", "warning"),
                ("nobody waits", "warning"),
            ]
        );
    }

    #[test]
    fn rates_count_only_who_lived_on() {
        let (mut before, mut now) = (picture(), picture());
        (before.dataplanes[0].reads, now.dataplanes[0].reads, now.dataplanes[0].writes) = (100, 300, 50);
        assert_eq!(rates(&before, &now, 2.0), (100.0, 25.0));
        now.dataplanes[0].boot_id = "another".to_owned();
        assert_eq!(rates(&before, &now, 2.0), (0.0, 0.0));
        assert!(line(&now, (1.0, 2.0)).contains("nodes_up=1/1 dataplanes=1 clients=3"));
        assert!(frame(&now, (1.0, 2.0), false).contains("reads/s 1   writes/s 2\n\nNAME"));
    }
}
