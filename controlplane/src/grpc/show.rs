//! What operators see: from snapshot, fleet and store to replies. Pure. No reply holds a secret.

use std::time::{Duration, Instant};

use helios_proto::config::Problem;
use helios_proto::model::{Authority, Health, NodeState, PoolMode, Snapshot};
use helios_proto::wire::{self, v1};

use crate::fleet::Dataplane;
use crate::keeper::{self, Refusal, Standing};
use crate::store::{Meta, Record, StoreError};

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn nodes(snapshot: &Snapshot, fleet: &[Dataplane], now: Instant) -> v1::ListNodesReply {
    let primary = snapshot.primary;
    let nodes = snapshot.nodes.iter().enumerate();
    let nodes = nodes.map(|(at, state)| node(state, primary == Some(at), fleet, now)).collect();
    v1::ListNodesReply { revision: snapshot.revision, nodes }
}

/// Server connections to a node over all data planes: open, busy, and sessions waiting.
pub(super) fn load(name: &str, fleet: &[Dataplane]) -> (u32, u32, u32) {
    let pools = fleet.iter().flat_map(|dataplane| &dataplane.status.pools).filter(|pool| pool.node == name);
    pools.fold((0, 0, 0), |(total, active, waiting), pool| {
        (
            pool.total.saturating_add(total),
            pool.active.saturating_add(active),
            pool.waiting.saturating_add(waiting),
        )
    })
}

fn node(state: &NodeState, primary: bool, fleet: &[Dataplane], now: Instant) -> v1::NodeInfo {
    let (connections, active, waiting) = load(state.node.name.as_str(), fleet);
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    v1::NodeInfo {
        name: state.node.name.to_string(),
        host: state.node.host.clone(),
        port: state.node.port.into(),
        configured_role: wire::role(state.node.role).into(),
        role: wire::role(state.role).into(),
        primary,
        health: wire::health(state.health).into(),
        configured_weight: state.node.weight,
        weight: state.weight(),
        ops: Some(wire::ops(state.ops)),
        latency_ms: state.latency.map(ms),
        lag_bytes: state.lag_bytes,
        lag_ms: state.lag.map(ms),
        probed_ms_ago: state.probed_at.map(|at| millis(now.saturating_duration_since(at))),
        last_error: state.last_error.as_deref().unwrap_or_default().to_owned(),
        connections,
        active,
        waiting,
        max_connections: state.node.max_connections.unwrap_or(0),
        granted: granted(state.node.name.as_str(), fleet),
    }
}

/// What data planes have been granted of a node's budget.
fn granted(name: &str, fleet: &[Dataplane]) -> u32 {
    let pools = fleet.iter().flat_map(|dataplane| &dataplane.status.pools);
    pools.filter(|pool| pool.node == name).filter_map(|pool| pool.granted).fold(0, u32::saturating_add)
}

pub(super) fn pools(snapshot: &Snapshot, fleet: &[Dataplane]) -> v1::ListPoolsReply {
    let mode: PoolMode = snapshot.settings.pool.mode;
    let state = |name: &str| snapshot.nodes.iter().find(|state| state.node.name.as_str() == name);
    let pools = fleet.iter().flat_map(|dataplane| {
        dataplane.status.pools.iter().map(|pool| v1::PoolInfo {
            dataplane: dataplane.identity.id.clone(),
            mode: wire::pool_mode(mode).into(),
            paused: state(&pool.node).is_some_and(|state| state.ops.paused),
            drained: state(&pool.node).is_some_and(|state| state.ops.drained),
            status: Some(pool.clone()),
        })
    });
    v1::ListPoolsReply { pools: pools.collect() }
}

pub(super) fn caches(fleet: &[Dataplane]) -> v1::ListCachesReply {
    let connected = fleet.iter().filter(|dataplane| dataplane.connected);
    let info = |dataplane: &Dataplane| v1::CacheInfo {
        dataplane: dataplane.identity.id.clone(),
        status: dataplane.status.cache.clone(),
    };
    v1::ListCachesReply { caches: connected.map(info).collect() }
}

pub(super) fn is_synced(dataplane: &Dataplane, revision: u64) -> bool {
    dataplane.connected && dataplane.revision >= revision && dataplane.refused.is_empty()
}

pub(super) fn refusals(dataplane: &Dataplane) -> impl Iterator<Item = v1::Refusal> {
    dataplane.refused.iter().map(|refused| v1::Refusal {
        dataplane: dataplane.identity.id.clone(),
        resource: refused.name.clone(),
        reason: refused.reason.clone(),
    })
}

pub(super) fn dataplanes(revision: u64, fleet: &[Dataplane], now: Instant) -> v1::ListDataplanesReply {
    let info = |dataplane: &Dataplane| {
        let Dataplane { identity, status, .. } = dataplane;
        v1::DataplaneInfo {
            id: identity.id.clone(),
            boot_id: identity.boot_id.clone(),
            version: identity.version.clone(),
            address: identity.address.clone(),
            connected: dataplane.connected,
            since_ms: millis(now.saturating_duration_since(dataplane.since)),
            revision: dataplane.revision,
            config_revision: dataplane.config_revision,
            synced: is_synced(dataplane, revision),
            ack_us: dataplane.ack.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            refused: refusals(dataplane).collect(),
            clients: status.clients,
            active: status.active,
            idle: status.idle,
            waiting: status.waiting,
            reads: status.reads,
            writes: status.writes,
            draining: status.draining,
        }
    };
    v1::ListDataplanesReply { revision, dataplanes: fleet.iter().map(info).collect() }
}

/// Names of nodes that come and that go from one text to another; none where a text cannot be read.
pub(super) fn node_changes(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
    let names = |text: &str| -> Option<Vec<String>> {
        let nodes = keeper::read(text).ok()?.spec.nodes;
        Some(nodes.iter().map(|node| node.name.to_string()).collect())
    };
    let (Some(old), Some(new)) = (names(old), names(new)) else { return Default::default() };
    let only = |of: &[String], other: &[String]| -> Vec<String> {
        of.iter().filter(|name| !other.contains(name)).cloned().collect()
    };
    (only(&new, &old), only(&old, &new))
}

/// What is wrong, a sentence each.
pub(super) fn problems(snapshot: &Snapshot, fleet: &[Dataplane], standalone: bool) -> Vec<String> {
    let mut found = Vec::new();
    if snapshot.primary.is_none() {
        found.push("There is no primary; writes wait.".to_owned());
    }
    match &snapshot.authority {
        Some(Authority { up: false, .. }) => {
            found
                .push("Patroni does not answer; until it does no other node becomes the primary.".to_owned());
        }
        Some(Authority { holder: None, .. }) => {
            found.push("Nobody holds Patroni's leader lock.".to_owned());
        }
        Some(_) | None => {}
    }
    for state in snapshot.nodes.iter().filter(|state| state.health == Health::Down) {
        let why = state.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        found.push(format!("Node {} is down{why}.", state.node.name));
    }
    for state in snapshot.nodes.iter().filter(|state| state.ops.paused) {
        found.push(format!("The pool of node {} is paused.", state.node.name));
    }
    for dataplane in fleet.iter().filter(|dataplane| !dataplane.refused.is_empty()) {
        found.push(format!("Data plane {} refused a part of the configuration.", dataplane.identity.id));
    }
    if !standalone && !fleet.iter().any(|dataplane| dataplane.connected) {
        found.push("No data plane is connected.".to_owned());
    }
    found
}

/// What is wrong with the store, a sentence each.
pub(super) fn problems_of_store(standing: &Standing, leading: bool) -> Vec<String> {
    let mut found = Vec::new();
    if !standing.up {
        found.push("The store cannot be reached; nothing can be changed.".to_owned());
    } else if standing.leader.is_none() && !standing.members.is_empty() {
        found.push("The control planes have no leader.".to_owned());
    }
    if !leading {
        found.push("A change of primary waits for the store; data planes are on their own.".to_owned());
    }
    found
}

pub(super) fn revision(meta: Meta, current: u64) -> v1::Revision {
    let Meta { revision, at_unix_ms, actor, comment } = meta;
    v1::Revision { revision, at_unix_ms, actor, comment, current: revision == current }
}

pub(super) fn audit(record: Record) -> v1::AuditEntry {
    let Record { at_unix_ms, actor, role, from, verb, detail, outcome, config_revision } = record;
    v1::AuditEntry { at_unix_ms, actor, role, from, verb, detail, outcome, config_revision }
}

pub(super) fn problem(problem: &Problem) -> v1::Problem {
    let line = problem.line.and_then(|line| u64::try_from(line).ok()).unwrap_or(0);
    v1::Problem { line, text: problem.text.clone() }
}

/// The problems of a configuration, or the error if it is another kind of refusal.
pub(super) fn invalid(refusal: Refusal) -> Result<Vec<v1::Problem>, tonic::Status> {
    match refusal {
        Refusal::Invalid(problems) => Ok(problems.iter().map(problem).collect()),
        Refusal::Wrong(text) => Ok(vec![v1::Problem { line: 0, text }]),
        other => Err(status(&other)),
    }
}

/// A refusal as operators get it.
pub(super) fn status(refusal: &Refusal) -> tonic::Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid(_) | Refusal::Wrong(_) => tonic::Status::invalid_argument(text),
        Refusal::NotFound(_) => tonic::Status::not_found(text),
        Refusal::Exists(_) => tonic::Status::already_exists(text),
        Refusal::NotNow(_) => tonic::Status::failed_precondition(text),
        Refusal::Conflict { .. } => tonic::Status::aborted(text),
        Refusal::Store(StoreError::Stale) => tonic::Status::aborted(text),
        Refusal::Store(StoreError::Refused(_)) => tonic::Status::failed_precondition(text),
        Refusal::Store(error) => {
            tracing::error!(%error, "the store failed");
            tonic::Status::unavailable(text)
        }
        Refusal::Stopping => tonic::Status::unavailable(text),
    }
}
