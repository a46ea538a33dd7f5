//! placeholder
pub mod auth;
pub mod limits;
pub mod metrics;
pub mod pool;
pub mod registry;
pub mod route;
pub mod server;
pub mod session;
pub mod worker;
