//! One client: from the accepted socket to the last byte. `startup` and `login` before the session, `core` its
//! protocol without sockets, `drive` the thin driver that connects the core to tokio, `acquire` the waits off the hot
//! path. Owner: a worker. Never touches another session.

pub mod acquire;
pub mod cached;
pub mod checkout;
pub mod console;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod drive;
pub mod judge;
pub mod leg;
pub mod login;
pub mod names;
pub mod patience;
pub mod replication;
pub mod run;
pub mod serve;
pub mod settings;
pub mod startup;
pub mod tied;
pub mod traced;

pub use serve::{Moving, resume, serve};
