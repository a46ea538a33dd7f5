//! HeliosProxy's control plane: keeps the configuration, probes the nodes, decides which one is the primary, streams
//! snapshots to data planes and serves operators. Never sees a client or a statement, never writes to a node.
//!
//! The walk of an observation: `health` probes, or a data plane's evidence -> `Event` -> `coordinator` (the one loop) ->
//! `Cluster::apply` (verdicts, `primary`, `lag`) -> `publish` -> a `watch` channel -> [`grpc::discovery`] -> `fanout`
//! (the bytes, made once for all).
//! The walk of Patroni's word, where it has the say: `authority` asks -> `Event` -> the same loop.
//! The walk of a change: [`grpc::management`] -> [`keeper`] -> [`store`] -> `coordinator` -> the same channel -> the
//! [`fleet`]'s acknowledgements -> the answer.
//!
//! The walk of a connection budget: a data plane's status -> [`budget`] -> grants, on its stream.
//!
//! The walk of a switchover: [`switchover`], which holds the fleet back through the same channel.
//!
//! [`core`] starts all of it without listeners, as a standalone proxy needs it; [`go_on`] only the loop and its probes, as
//! a data plane needs it that lost its control plane; [`app`] is the program.

pub mod app;
mod authority;
pub mod budget;
mod cluster;
mod coordinator;
pub mod core;
mod counts;
#[cfg(test)]
mod dice;
mod document;
mod fanout;
pub mod feed;
pub mod fleet;
mod gate;
pub mod grpc;
mod health;
mod http;
pub mod keeper;
mod lag;
mod member;
pub mod peers;
mod primary;
mod publish;
mod servers;
pub mod store;
pub mod switchover;

pub use cluster::Held;
pub use coordinator::{Events, Handle, go_on};
