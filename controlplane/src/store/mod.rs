//! Where the configuration, its history, operators' marks, the latched topology and the audit log are kept: in memory
//! ([`Memory`]) or in a directory ([`Directory`]). Synchronous and short; who calls it keeps it off the event loops.
//! Never judges a configuration: texts are checked before they come here.

mod directory;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use helios_proto::model::{NodeName, NodeOps};
use serde::{Deserialize, Serialize};

pub use directory::Directory;
pub use memory::Memory;

/// Revisions kept; older ones are removed.
const KEPT: usize = 500;

/// What operators have set on nodes.
pub type Ops = BTreeMap<NodeName, NodeOps>;

/// A revision, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// From 1, without gaps.
    pub revision: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Who made it.
    pub actor: String,
    /// Why.
    pub comment: String,
}

/// A revision.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// What is known about it.
    pub meta: Meta,
    /// TOML, checked; holds secrets.
    pub text: String,
}

/// What must not be forgotten about the cluster when the control plane restarts, so that nothing goes back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latch {
    /// A revision of a snapshot that was reached.
    pub snapshot: u64,
    /// Changes of primary.
    pub epoch: u64,
    /// Highest timeline of a primary.
    pub timeline: u32,
    /// Grows when the cluster is another one.
    pub incarnation: u32,
    /// System identifier of the cluster.
    pub system: Option<u64>,
    /// Last primary.
    pub primary: Option<String>,
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Name of the token.
    pub actor: String,
    /// Its role.
    pub role: String,
    /// Address of the peer.
    pub from: String,
    /// Such as `SetNode`.
    pub verb: String,
    /// What, in words; holds no secret.
    pub detail: String,
    /// `ok`, or the error.
    pub outcome: String,
    /// Revision of the configuration afterwards.
    pub config_revision: u64,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Somebody was faster.
    #[error("the configuration is at revision {current}, not at {expected}")]
    Conflict {
        /// Where it should have been.
        expected: u64,
        /// Where it is.
        current: u64,
    },
    /// A file is not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A store. Every change is durable when the call returns, as far as the store is durable at all.
pub trait Store: Send + Sync {
    /// Whether it outlives the process.
    fn is_durable(&self) -> bool;

    /// The revision in force; `None` if the store is empty.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn current(&self) -> Result<Option<Document>, StoreError>;

    /// A revision; `None` if it never was, or has been removed.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn read(&self, revision: u64) -> Result<Option<Document>, StoreError>;

    /// Puts `text` in force as the revision after `expected` (0: the store is empty).
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another revision is in force; or it cannot be written.
    fn append(&self, expected: u64, actor: &str, comment: &str, text: &str) -> Result<Meta, StoreError>;

    /// Revisions, newest first.
    ///
    /// # Errors
    /// They cannot be read.
    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError>;

    /// What operators have set on nodes.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn ops(&self) -> Result<Ops, StoreError>;

    /// Keeps what operators have set on nodes.
    ///
    /// # Errors
    /// It cannot be written.
    fn save_ops(&self, ops: &Ops) -> Result<(), StoreError>;

    /// The latched topology.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn latch(&self) -> Result<Latch, StoreError>;

    /// Keeps the latched topology.
    ///
    /// # Errors
    /// It cannot be written.
    fn save_latch(&self, latch: &Latch) -> Result<(), StoreError>;

    /// Adds to the audit log.
    ///
    /// # Errors
    /// It cannot be written.
    fn audit(&self, record: &Record) -> Result<(), StoreError>;

    /// The audit log, newest first; only of `actor` unless that is empty.
    ///
    /// # Errors
    /// It cannot be read.
    fn audited(&self, limit: usize, actor: &str) -> Result<Vec<Record>, StoreError>;
}

/// Milliseconds since 1970, for people; nothing is decided by it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
