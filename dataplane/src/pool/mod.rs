//! Pools of server connections: who owns a connection, one pool per node with its limits and its queue, and the
//! view that binds the current snapshot to its pools. Two tasks: `sweep` expires waits and closes what is old, `catalog`
//! looks at the users' functions.
//! Never parses SQL; never waits while holding a lock.

pub mod catalog;
pub mod database;
pub mod identity;
pub mod node;
pub mod sweep;
pub mod view;
pub mod wait;

pub use identity::{Identities, Identity};
pub use node::{Checkout, NodePool, Slot};
pub use view::{Pools, View};
pub use wait::{Grant, Outcome, Waiter, wait};
