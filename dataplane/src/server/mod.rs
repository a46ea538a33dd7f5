//! Server connections: dialling and logging in, the logged-in connection, its reply ledger, cancel and clean-up.
//! Never decides where a statement goes or who gets a connection next.

pub mod ask;
pub mod clean;
pub mod conn;
pub mod credential;
pub mod dial;
pub mod ledger;
pub mod settings;

pub use conn::{ServerConn, ServerIdent};
pub use credential::Credential;
pub use ledger::Ledger;
