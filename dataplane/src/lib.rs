//! HeliosProxy's data plane. A statement's walk: socket -> [`listener`] -> [`session`] (`startup`, `login`, then the
//! relay) -> the current snapshot in [`pool::View`] -> [`route`] names a node and a reason -> [`pool`] lends a server
//! connection -> frames are relayed untouched both ways until every ReadyForQuery owed has come -> the mode says
//! release -> clean: back to the pool, else closed.
//!
//! [`app`] wires it, [`standalone`] embeds the control plane or [`control`] follows one elsewhere, [`http`] serves /health
//! and /metrics, [`console`] operators who come as PgBouncer's.

pub mod app;
pub mod auth;
#[cfg_attr(not(feature = "distribcache"), path = "cache_off.rs")]
pub mod cache;
pub mod cli;
pub mod console;
pub mod control;
pub mod descriptors;
pub mod http;
pub mod lanes;
pub mod legs;
pub mod limits;
pub mod listener;
pub mod logging;
pub mod metrics;
pub mod pool;
pub mod registry;
pub mod route;
pub mod server;
pub mod session;
pub mod spans;
pub mod spread;
pub mod standalone;
pub mod statements;
pub mod stream;
pub mod worker;
