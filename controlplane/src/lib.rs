//! HeliosProxy's control plane core: probes the nodes, decides which one is the primary, publishes snapshots.
//! Owns its tasks (one loop, one probe per node); never sees a client or a statement, never writes to a node.
//!
//! The walk: `health` probes -> [`Event`](cluster::Event) -> `coordinator` (the one loop) -> `Cluster::apply`
//! (verdicts, `primary`, `lag`) -> `publish` -> a `watch` channel that data planes read.

mod cluster;
mod coordinator;
mod health;
mod lag;
mod member;
mod primary;
mod publish;

pub use coordinator::{Events, Handle, start};
