//! The contract of HeliosProxy's programs: the domain model that control plane, data planes and tools share,
//! and the configuration file that feeds it. Owns no sockets and no tasks; never talks to PostgreSQL.

pub mod config;
pub mod model;
