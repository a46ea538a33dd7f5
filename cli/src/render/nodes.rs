//! Nodes: the list, one of them, the topology. Pure.

use helios_proto::wire::v1;

use crate::table::{Cell, Table, Tone, cell, pairs, toned};
use crate::words;

/// A table of nodes without rows.
#[must_use]
pub fn header(wide: bool) -> Table {
    let narrow =
        ["NAME", "ROLE", "HEALTH", "ADDRESS", ">WEIGHT", ">CONNS", ">IN USE", ">WAITING", ">LAG", "NOTE"];
    if !wide {
        return Table::new(&narrow);
    }
    Table::new(&[
        "NAME",
        "ROLE",
        "CONFIGURED",
        "HEALTH",
        "ADDRESS",
        ">WEIGHT",
        ">POOL",
        ">BUDGET",
        ">CONNS",
        ">IN USE",
        ">WAITING",
        ">LAG",
        ">LATENCY",
        ">PROBED",
        "NOTE",
    ])
}

fn health(node: &v1::NodeInfo) -> Cell {
    let tone = match v1::Health::try_from(node.health) {
        Ok(v1::Health::Up) => Tone::Good,
        Ok(v1::Health::Down) => Tone::Bad,
        _ => Tone::Warn,
    };
    toned(words::health(node.health), tone)
}

fn lag(node: &v1::NodeInfo) -> String {
    match (node.primary, node.lag_bytes, node.lag_ms) {
        (true, ..) | (_, None, None) => "-".to_owned(),
        (_, Some(bytes), None) => words::size(bytes),
        (_, None, Some(ms)) => words::millis(ms),
        (_, Some(bytes), Some(ms)) => format!("{} / {}", words::size(bytes), words::millis(ms)),
    }
}

/// What is unusual about a node.
fn notes(node: &v1::NodeInfo) -> Cell {
    let ops = node.ops.unwrap_or_default();
    let mut notes = Vec::new();
    if ops.drained {
        notes.push("drained".to_owned());
    }
    if ops.paused {
        notes.push("paused".to_owned());
    }
    if node.role == i32::from(v1::Role::Primary) && !node.primary {
        notes.push("takes writes, gets none".to_owned());
    }
    if node.role != node.configured_role {
        notes.push(format!("configured as {}", words::role(node.configured_role)));
    }
    if ops.weight.is_some() {
        notes.push(format!("weight set, {} configured", node.configured_weight));
    }
    if let Some(size) = ops.pool_size {
        notes.push(format!("pool {size}"));
    }
    if !node.last_error.is_empty() {
        notes.push(node.last_error.clone());
    }
    let tone = if node.last_error.is_empty() { Tone::Warn } else { Tone::Bad };
    toned(notes.join(", "), tone)
}

/// A row for [`header`].
#[must_use]
pub fn row(node: &v1::NodeInfo, wide: bool) -> Vec<Cell> {
    let role =
        if node.primary { toned(words::role(node.role), Tone::Bold) } else { cell(words::role(node.role)) };
    let waiting = if node.waiting > 0 { toned(node.waiting, Tone::Warn) } else { cell(0) };
    let mut row = vec![cell(&node.name), role];
    if wide {
        row.push(cell(words::role(node.configured_role)));
    }
    row.extend([health(node), cell(address(node)), cell(node.weight)]);
    if wide {
        let size = node.ops.unwrap_or_default().pool_size;
        row.push(cell(size.map_or("-".to_owned(), |size| size.to_string())));
        row.push(cell(words::budget(node.granted, node.max_connections)));
    }
    row.extend([cell(node.connections), cell(node.active), waiting, cell(lag(node))]);
    if wide {
        row.push(cell(node.latency_ms.map_or("-".to_owned(), words::millis)));
        let ago = node.probed_ms_ago.map(|ms| format!("{} ago", words::span(ms)));
        row.push(cell(ago.unwrap_or_else(|| "never".to_owned())));
    }
    row.push(notes(node));
    row
}

fn address(node: &v1::NodeInfo) -> String {
    if node.host.contains(':') {
        return format!("[{}]:{}", node.host, node.port);
    }
    format!("{}:{}", node.host, node.port)
}

/// Many nodes.
#[must_use]
pub fn table(nodes: &[v1::NodeInfo], wide: bool) -> Table {
    let mut table = header(wide);
    nodes.iter().for_each(|node| table.row(row(node, wide)));
    table
}

/// One node.
#[must_use]
pub fn one(node: &v1::NodeInfo, color: bool) -> String {
    let ops = node.ops.unwrap_or_default();
    let role =
        if node.primary { "primary, takes the writes".to_owned() } else { words::role(node.role).to_owned() };
    let weight = match ops.weight {
        Some(weight) => format!("{weight} (configured: {})", node.configured_weight),
        None => node.weight.to_string(),
    };
    let yes = |is: bool| if is { toned("yes", Tone::Warn) } else { cell("no") };
    let ago = node.probed_ms_ago.map(|ms| format!("{} ago", words::span(ms)));
    pairs(
        &[
            ("name", cell(&node.name)),
            ("address", cell(address(node))),
            ("role", cell(role)),
            ("configured role", cell(words::role(node.configured_role))),
            ("health", health(node)),
            ("last error", toned(&node.last_error, Tone::Bad)),
            ("probed", cell(ago.unwrap_or_else(|| "never".to_owned()))),
            ("latency", cell(node.latency_ms.map_or("-".to_owned(), words::millis))),
            ("lag", cell(lag(node))),
            ("weight", cell(weight)),
            ("drained", yes(ops.drained)),
            ("paused", yes(ops.paused)),
            ("pool size", cell(ops.pool_size.map_or("as configured".to_owned(), |size| size.to_string()))),
            ("budget", cell(words::budget(node.granted, node.max_connections))),
            ("connections", cell(format!("{}, {} in use", node.connections, node.active))),
            ("waiting", cell(node.waiting)),
        ],
        color,
    )
}

/// Who is the primary, and what each node is.
#[must_use]
pub fn topology(status: &v1::StatusReply, nodes: &[v1::NodeInfo], color: bool) -> String {
    let (primary, tone) = match status.primary.as_str() {
        "" => ("none: writes wait", Tone::Bad),
        name => (name, Tone::Good),
    };
    let head = format!(
        "primary {}   epoch {}   timeline {}   revision {}",
        tone.paint(&crate::failure::clean(primary), color),
        status.epoch,
        status.timeline,
        status.revision
    );
    let mut table = Table::new(&["NAME", "ROLE", "CONFIGURED", "HEALTH", ">LAG", "NOTE"]);
    for node in nodes {
        let role = cell(words::role(node.role));
        let configured = cell(words::role(node.configured_role));
        table.row(vec![cell(&node.name), role, configured, health(node), cell(lag(node)), notes(node)]);
    }
    format!("{head}\n\n{}", table.render(color))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A primary, a drained replica, and one that is down.
    pub(crate) fn nodes() -> Vec<v1::NodeInfo> {
        let node = |name: &str, role: v1::Role, health: v1::Health| v1::NodeInfo {
            name: name.to_owned(),
            host: format!("db-{name}"),
            port: 5432,
            configured_role: role.into(),
            role: role.into(),
            health: health.into(),
            configured_weight: 100,
            weight: 100,
            ops: Some(v1::NodeOps::default()),
            latency_ms: Some(0.41),
            probed_ms_ago: Some(1200),
            connections: 12,
            active: 3,
            ..v1::NodeInfo::default()
        };
        let primary = v1::NodeInfo {
            primary: true,
            waiting: 2,
            granted: 14,
            max_connections: 90,
            ..node("a", v1::Role::Primary, v1::Health::Up)
        };
        let drained = v1::NodeInfo {
            ops: Some(v1::NodeOps { drained: true, weight: Some(5), ..v1::NodeOps::default() }),
            weight: 5,
            lag_bytes: Some(65_536),
            lag_ms: Some(12.3),
            connections: 0,
            active: 0,
            ..node("bravo", v1::Role::Replica, v1::Health::Up)
        };
        let down = v1::NodeInfo {
            configured_role: v1::Role::Primary.into(),
            last_error: "connection refused".to_owned(),
            latency_ms: None,
            probed_ms_ago: None,
            connections: 0,
            active: 0,
            ..node("c", v1::Role::Standby, v1::Health::Down)
        };
        vec![primary, drained, down]
    }

    #[test]
    fn the_list() {
        let expected = "\
NAME   ROLE     HEALTH  ADDRESS        WEIGHT  CONNS  IN USE  WAITING            LAG  NOTE
a      primary  up      db-a:5432         100     12       3        2              -
bravo  replica  up      db-bravo:5432       5      0       0        0  64 kB / 12 ms  drained, weight set, 100 configured
c      standby  down    db-c:5432         100      0       0        0              -  configured as primary, connection refused";
        assert_eq!(table(&nodes(), false).render(false), expected);
    }

    #[test]
    fn the_wide_list() {
        let expected = "\
NAME   ROLE     CONFIGURED  HEALTH  ADDRESS        WEIGHT  POOL  BUDGET  CONNS  IN USE  WAITING            LAG  LATENCY  PROBED  NOTE
a      primary  primary     up      db-a:5432         100     -   14/90     12       3        2              -   0.4 ms  1s ago
bravo  replica  replica     up      db-bravo:5432       5     -       -      0       0        0  64 kB / 12 ms   0.4 ms  1s ago  drained, weight set, 100 configured
c      standby  primary     down    db-c:5432         100     -       -      0       0        0              -        -   never  configured as primary, connection refused";
        assert_eq!(table(&nodes(), true).render(false), expected);
    }

    #[test]
    fn one_node() {
        let all = nodes();
        let shown = one(&all[1], false);
        for line in ["weight           5 (configured: 100)", "drained          yes", "last error       -"] {
            assert!(shown.lines().any(|l| l == line), "{line} in\n{shown}");
        }
    }

    #[test]
    fn a_topology_without_a_primary_says_so() {
        let status = v1::StatusReply { epoch: 4, timeline: 2, revision: 9, ..v1::StatusReply::default() };
        let expected = "\
primary none: writes wait   epoch 4   timeline 2   revision 9

NAME  ROLE     CONFIGURED  HEALTH  LAG  NOTE
c     standby  primary     down      -  configured as primary, connection refused";
        assert_eq!(topology(&status, &nodes()[2..], false), expected);
    }
}
