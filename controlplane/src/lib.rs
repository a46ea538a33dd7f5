//! temporary
#![allow(missing_docs)]
use helios_proto::model::*; use std::sync::Arc; use tokio::sync::watch; use tokio_util::{sync::CancellationToken, task::TaskTracker};
pub struct Handle { pub snapshots: watch::Receiver<Arc<Snapshot>>, pub events: Events }
#[derive(Clone)] pub struct Events(Arc<watch::Sender<Arc<Snapshot>>>);
impl Events { pub fn reload(&self, _s: Spec) {} pub fn evidence(&self, _n: NodeName, _e: Evidence) { let _ = self.0.receiver_count(); } }
pub fn start(spec: Spec, _stop: CancellationToken, _t: &TaskTracker) -> Handle {
    let nodes: Vec<_> = spec.nodes.iter().map(|n| NodeState{node: n.clone(), role: n.role, health: Health::Up, recovered_at: None, latency: None, lag_bytes: None, lag: None, probed_at: None, last_error: None}).collect();
    let primary = nodes.iter().position(|n| n.role==Role::Primary);
    let (tx, rx) = watch::channel(Arc::new(Snapshot{revision:1, epoch:1, settings: spec.settings, nodes, primary}));
    Handle { snapshots: rx, events: Events(Arc::new(tx)) }
}
