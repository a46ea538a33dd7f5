//! The operator's tool: the command line, one gRPC client, and replies as tables, JSON or YAML. Owns no state but the file
//! of contexts. Generated types of the contract stop at the rendering. Never talks to PostgreSQL.

pub mod args;
pub mod client;
pub mod commands;
pub mod contexts;
pub mod failure;
pub mod out;
pub mod pgbouncer;
#[cfg(test)]
mod reference;
pub mod render;
pub mod secure;
pub mod table;
pub mod tree;
pub mod verbs;
pub mod words;
