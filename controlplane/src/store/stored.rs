//! How marks are written down, the same in every store. Pure.

use std::collections::BTreeMap;

use helios_proto::model::{Acceptance, HoldOrder, NodeName, NodeOps};
use serde::{Deserialize, Serialize};

use super::Ops;

/// [`Acceptance`] as written: incarnation and timeline before, the same after, system identifier.
type StoredAcceptance = ((u32, u32), (u32, u32), u64);

/// [`NodeOps`] as written.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredOps {
    drained: bool,
    weight: Option<u32>,
    paused: bool,
    pool_size: Option<u32>,
    reconnect: u64,
    /// When it was given, and for how long.
    hold: Option<(u64, u64)>,
    accepted: Option<StoredAcceptance>,
}

pub(super) fn ops_to_json(ops: &Ops) -> serde_json::Result<String> {
    let stored = |ops: &NodeOps| {
        let NodeOps { drained, weight, paused, pool_size, reconnect, hold, accepted } = *ops;
        let hold = hold.map(|HoldOrder { given, for_ms }| (given, for_ms));
        let accepted = accepted.map(|Acceptance { from, to, system }| (from, to, system));
        StoredOps { drained, weight, paused, pool_size, reconnect, hold, accepted }
    };
    let all: BTreeMap<&str, StoredOps> = ops.iter().map(|(name, ops)| (name.as_str(), stored(ops))).collect();
    serde_json::to_string_pretty(&all)
}

pub(super) fn ops_from_json(text: &str) -> serde_json::Result<Ops> {
    let stored: BTreeMap<String, StoredOps> = serde_json::from_str(text)?;
    let ops = |stored| {
        let StoredOps { drained, weight, paused, pool_size, reconnect, hold, accepted } = stored;
        let hold = hold.map(|(given, for_ms)| HoldOrder { given, for_ms });
        let accepted = accepted.map(|(from, to, system)| Acceptance { from, to, system });
        NodeOps { drained, weight, paused, pool_size, reconnect, hold, accepted }
    };
    Ok(stored.into_iter().map(|(name, stored)| (NodeName::new(&name), ops(stored))).collect())
}
