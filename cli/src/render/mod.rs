//! Replies as tables and lists for people. Pure; never prints, never asks.

pub mod caches;
pub mod fleet;
pub mod nodes;
pub mod records;
pub mod status;
