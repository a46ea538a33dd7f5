//! placeholder
pub mod pool;
pub mod server;
