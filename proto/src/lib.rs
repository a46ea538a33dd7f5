//! The contract of HeliosProxy's programs: the domain model that control plane, data planes and tools share, the
//! configuration file that feeds it, and (feature `grpc`) what they say to each other.
//! Owns no sockets and no tasks; never talks to PostgreSQL.

pub mod config;
pub mod model;
#[cfg(feature = "grpc")]
pub mod wire;
