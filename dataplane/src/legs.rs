//! TLS as the two sections say: towards clients ([`client`]) and towards servers ([`server`]). Never reads a message of
//! PostgreSQL's protocol beyond the one byte that answers a request for TLS.

pub mod client;
pub mod server;

pub use client::{ClientLeg, Sealed};
pub use server::{Sealing, SecureError, ServerLeg, shown};
