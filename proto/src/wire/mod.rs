//! The gRPC contract `helios.v1`: generated types, and their conversions from and to the [model](crate::model). Generated
//! types stop here: who receives one converts it, or refuses it with a reason. Never does input or output.

mod accept;
mod check;
mod delta;
mod mirror;
mod send;
#[cfg(test)]
mod tests;
mod words;

pub use accept::{Accepted, Refused, accept, accept_topology};
pub use delta::{Changes, Configuration, Misfit, apply, diff};
pub use mirror::{Mirror, Verdict};
pub use send::{full, hash, ops, topology};
pub use words::{
    evidence, evidence_kind, health, pool_mode, role, strategy, to_health, to_pool_mode, to_role,
};

/// Generated from `proto/helios/v1`; documented there.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic, clippy::as_conversions)]
pub mod v1 {
    tonic::include_proto!("helios.v1");

    /// The encoded descriptor set, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/helios.v1.bin"));
}
