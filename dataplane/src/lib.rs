//! .
pub mod route;
