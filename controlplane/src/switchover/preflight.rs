//! Whether a switchover can be done, as far as the snapshot and the data planes show: pure. What only the servers know
//! is asked in `sql`.

use std::time::Duration;

use helios_proto::model::{Health, Node, NodeName, NodeState, Role, Snapshot};
use std::sync::Arc;

use crate::fleet::Dataplane;

/// A standby further behind would keep everybody waiting, in bytes of WAL.
const MOST_LAG: u64 = 16 << 20;
/// A data plane that has been gone for longer is not coming back.
const MISSED: Duration = Duration::from_secs(60);

/// Who hands over to whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The primary of now.
    pub from: Arc<Node>,
    /// The next one.
    pub to: Arc<Node>,
    /// Data planes that take part, by name.
    pub dataplanes: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// The same about nodes that somebody has to point at the new primary.
    pub left: Option<String>,
}

/// The plan, or every reason against it.
pub fn plan(snapshot: &Snapshot, fleet: &[Dataplane], to: &str) -> Result<Plan, Vec<String>> {
    let Some(from) = snapshot.primary() else {
        return Err(vec!["there is no primary: wait for a failover, or promote a standby".to_owned()]);
    };
    let to = chosen(snapshot, to).map_err(|why| vec![why])?;
    let mut problems = against(from, to);
    if snapshot.hold.is_some() {
        problems.push("another switchover is on its way".to_owned());
    }
    let connected = || fleet.iter().filter(|dataplane| dataplane.connected);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut notes: Vec<String> = fleet
        .iter()
        .filter(|dataplane| !dataplane.connected && dataplane.since.elapsed() < MISSED)
        .map(|d| format!("data plane {} is not connected: its transactions may be cut", d.identity.id))
        .collect();
    if connected().next().is_none() {
        notes.push("no data plane is connected".to_owned());
    }
    let others: Vec<&str> = snapshot
        .nodes
        .iter()
        .map(|state| &state.node.name)
        .filter(|name| **name != from.node.name && **name != to.node.name)
        .map(NodeName::as_str)
        .collect();
    let left = (!others.is_empty()).then(|| {
        let (others, old, new) = (others.join(", "), &from.node.name, &to.node.name);
        format!("if {others} streams from {old}, point it at {new} afterwards, or it is not used any more")
    });
    let dataplanes = connected().map(|dataplane| dataplane.identity.id.clone()).collect();
    Ok(Plan { from: Arc::clone(&from.node), to: Arc::clone(&to.node), dataplanes, notes, left })
}

/// The node of this name; without one, the only standby that is up.
fn chosen<'a>(snapshot: &'a Snapshot, to: &str) -> Result<&'a NodeState, String> {
    let primary = snapshot.primary().map(|state| &state.node.name);
    if !to.is_empty() {
        let found = snapshot.nodes.iter().find(|state| state.node.name.as_str() == to);
        return found.ok_or_else(|| format!("there is no node {to:?}"));
    }
    let fits = |state: &&NodeState| {
        Some(&state.node.name) != primary && state.node.role != Role::Replica && state.health == Health::Up
    };
    let mut all = snapshot.nodes.iter().filter(fits);
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err("no standby is up; a node of role replica is never promoted".to_owned()),
        (Some(_), Some(_)) => Err("several standbys are up: say which one, with --to".to_owned()),
    }
}

fn against(from: &NodeState, to: &NodeState) -> Vec<String> {
    let name = &to.node.name;
    let mut problems = Vec::new();
    let mut refuse = |wrong: bool, text: String| problems.extend(wrong.then_some(text));
    refuse(from.node.name == to.node.name, format!("node {name} is the primary already"));
    refuse(to.node.role == Role::Replica, format!("node {name} has the role replica: it is never promoted"));
    let error = to.last_error.as_deref().unwrap_or("it has not passed its health checks");
    refuse(to.health != Health::Up, format!("node {name} is not up: {error}"));
    refuse(to.ops.drained || to.ops.paused, format!("node {name} is drained or paused"));
    refuse(from.ops.paused, format!("the pool of {} is paused: resume it first", from.node.name));
    problems
}

/// What the servers themselves say against it.
pub fn servers(plan: &Plan, seen: &Seen, patience: Duration) -> Result<(), String> {
    let Seen { lag, streams, oldest } = *seen;
    let (from, to) = (&plan.from.name, &plan.to.name);
    if !streams {
        return Err(format!("node {to} does not stream from a primary"));
    }
    if lag > MOST_LAG {
        return Err(format!("node {to} is {lag} bytes behind, more than {MOST_LAG}"));
    }
    if oldest > patience {
        let (oldest, patience) = (oldest.as_secs(), patience.as_secs());
        return Err(format!(
            "a transaction on {from} is {oldest} s old, more than the drain timeout of {patience} s"
        ));
    }
    Ok(())
}

/// What the servers say before anything is done.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Bytes of WAL that the next primary has not replayed.
    pub lag: u64,
    /// It streams.
    pub streams: bool,
    /// Age of the oldest open transaction on the primary.
    pub oldest: Duration,
}

/// What still runs on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Running {
    /// Data planes that have not yet said that they hold new work back.
    pub unheard: u32,
    /// Server connections with something running, or being opened.
    pub busy: u32,
    /// Server connections of sessions that rest on them.
    pub resting: u32,
}

/// What still runs on a node, of data planes that obey `revision`. `Err`: this data plane was there and is gone.
pub fn running(plan: &Plan, fleet: &[Dataplane], revision: u64) -> Result<Running, String> {
    let mut all = Running::default();
    for id in &plan.dataplanes {
        let connected = fleet.iter().find(|d| d.identity.id == *id && d.connected);
        let dataplane = connected.ok_or_else(|| id.clone())?;
        if dataplane.status.revision < revision {
            all.unheard = all.unheard.saturating_add(1);
            continue;
        }
        let pool = dataplane.status.pools.iter().find(|pool| pool.node == plan.from.name.as_str());
        let (active, resting) = pool.map_or((0, 0), |pool| (pool.active, pool.resting));
        all.busy = all.busy.saturating_add(active.saturating_sub(resting));
        all.resting = all.resting.saturating_add(resting.min(active));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::feed::Feed;
    use crate::fleet::{Fleet, Identity};
    use crate::publish::Publisher;
    use crate::store::Latch;
    use helios_proto::wire::v1;
    use std::time::Instant;

    /// A primary `a`, standbys `b` and `c`, a replica `d`, all well.
    fn snapshot() -> Snapshot {
        let text: String = [("a", "primary"), ("b", "standby"), ("c", "standby"), ("d", "replica")]
            .map(|(name, role)| {
                format!("[[nodes]]\nname = \"{name}\"\nhost = \"{name}\"\nrole = \"{role}\"\n")
            })
            .concat();
        let spec = helios_proto::config::parse(&text, "test", &|_| None).unwrap().spec;
        let (_, snapshots) = Publisher::new(&Cluster::new(spec, &Latch::default()), 0, Instant::now());
        let mut snapshot = snapshots.borrow().as_ref().clone();
        snapshot.primary = Some(0);
        for node in &mut snapshot.nodes {
            node.health = Health::Up;
        }
        snapshot
    }

    #[test]
    fn what_stands_in_the_way() {
        let name =
            |snapshot: &Snapshot, to: &str| plan(snapshot, &[], to).map(|plan| plan.to.name.to_string());
        let why = |change: &dyn Fn(&mut Snapshot), to: &str| {
            let mut snapshot = snapshot();
            change(&mut snapshot);
            name(&snapshot, to).unwrap_err().join("; ")
        };
        assert_eq!(name(&snapshot(), "b").unwrap(), "b");
        assert!(why(&|_| {}, "").contains("several standbys"));
        let mut one = snapshot();
        one.nodes[2].health = Health::Down;
        assert_eq!(name(&one, "").unwrap(), "b", "the only one that can");
        assert!(why(&|_| {}, "x").contains("no node \"x\""));
        assert!(why(&|_| {}, "a").contains("primary already"));
        assert!(why(&|_| {}, "d").contains("role replica"));
        assert!(why(&|s| s.primary = None, "b").contains("no primary"));
        assert!(why(&|s| s.nodes[1].health = Health::Down, "b").contains("not up"));
        assert!(why(&|s| s.nodes[1].ops.drained = true, "b").contains("drained"));
        assert!(why(&|s| s.nodes[0].ops.paused = true, "b").contains("paused"));
        let until = Instant::now();
        let hold = |s: &mut Snapshot| {
            s.hold = Some(helios_proto::model::Hold { node: s.nodes[0].node.name.clone(), until });
        };
        assert!(why(&hold, "b").contains("on its way"));
    }

    #[test]
    fn what_the_servers_say_against_it() {
        let plan = plan(&snapshot(), &[], "b").unwrap();
        let second = Duration::from_secs(1);
        let well = Seen { lag: MOST_LAG, streams: true, oldest: second };
        let why = |seen: Seen| servers(&plan, &seen, second).err().unwrap_or_default();
        assert_eq!(why(well), "");
        assert!(why(Seen { lag: MOST_LAG + 1, ..well }).contains("behind"));
        assert!(why(Seen { streams: false, ..well }).contains("does not stream"));
        assert!(why(Seen { oldest: second * 2, ..well }).contains("2 s old"));
    }

    #[test]
    fn what_still_runs_is_counted_once_every_data_plane_has_spoken() {
        let fleet = Fleet::new(Feed::new());
        let join = |id: &str| {
            let (boot_id, version) = ("1".to_owned(), "1".to_owned());
            fleet.join(Identity { id: id.to_owned(), boot_id, version, address: String::new() })
        };
        let (one, two) = (join("one"), join("two"));
        let plan = plan(&snapshot(), &fleet.list(), "b").unwrap();
        assert_eq!(plan.dataplanes, ["one", "two"]);
        let status = |revision, active, resting| v1::Status {
            revision,
            pools: vec![v1::PoolStatus {
                node: "a".to_owned(),
                active,
                resting,
                ..v1::PoolStatus::default()
            }],
            ..v1::Status::default()
        };
        one.status(status(7, 5, 2));
        two.status(status(6, 9, 0));
        let running = || running(&plan, &fleet.list(), 7);
        assert_eq!(running().unwrap(), Running { unheard: 1, busy: 3, resting: 2 });
        two.status(status(8, 0, 0));
        one.status(status(8, 2, 2));
        assert_eq!(running().unwrap(), Running { unheard: 0, busy: 0, resting: 2 });
        drop(two);
        assert_eq!(running().unwrap_err(), "two");
    }
}
