//! PostgreSQL's wire protocol as bytes and types: framing, the first packet of a connection, error messages,
//! SCRAM and MD5, and the login on a backend as a state machine. Sources: the protocol chapters of the PostgreSQL
//! manual ("Frontend/Backend Protocol", "Message Formats", "SASL Authentication") and RFC 5802.
//!
//! Never opens a socket, never waits, knows nothing of pools or routing. Every length is checked before it is
//! widened or used; nothing here can panic on bytes from a peer.

pub mod backend;
pub mod error;
pub mod frame;
pub mod frontend;
pub mod login;
pub mod md5;
pub mod scram;
pub mod startup;

pub use error::{ErrorFields, PgError, Severity};
pub use frame::{FrameError, Header, MAX_LARGE, MAX_SMALL};
