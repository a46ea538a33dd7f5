//! Where the configuration, its history, operators' marks, the latched topology and the audit log are kept: in memory
//! ([`Memory`]), in a directory ([`Directory`]), or in etcd, which several control planes share. Synchronous and
//! bounded in time; who calls it keeps it off the event loops. Every change names what it was made from, and is refused
//! if that is not in force any more. Never judges a configuration: texts are checked before they come here.

mod directory;
#[cfg(feature = "etcd")]
mod etcd;
mod memory;
#[cfg(not(feature = "etcd"))]
mod no_etcd;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use helios_proto::config::{Config, StoreSettings};
use helios_proto::model::{NodeName, NodeOps, TopologyKey};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use directory::Directory;
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
pub use memory::Memory;
#[cfg(not(feature = "etcd"))]
pub use no_etcd::Etcd;

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

impl Latch {
    /// How far the topology is.
    #[must_use]
    pub const fn key(&self) -> TopologyKey {
        let Self { incarnation, timeline, epoch, .. } = *self;
        TopologyKey { incarnation, timeline, epoch }
    }

    /// Whether the two say the same of the topology, whatever revisions were reached.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        let Self { snapshot: _, epoch: _, timeline: _, incarnation: _, system, primary } = self;
        self.key() == other.key() && (system, primary) == (&other.system, &other.primary)
    }
}

/// Something, and which writing of it this is: a change has to name the one that it was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versioned<T> {
    /// What it is.
    pub value: T,
    /// Grows with each change; 0: never written.
    pub version: u64,
}

/// A new configuration.
#[derive(Clone, Default)]
pub struct Append {
    /// Revision that has to be in force; 0: the store has to be empty.
    pub expected: u64,
    /// Who.
    pub actor: String,
    /// Why.
    pub comment: String,
    /// TOML, checked; holds secrets.
    pub text: String,
    /// For the audit log; its revision is filled in.
    pub record: Option<Record>,
}

/// What is in a store that several control planes share, as far as it has been heard.
#[derive(Clone, Default)]
pub struct View {
    /// The store answers.
    pub up: bool,
    /// The configuration in force; `None`: none yet.
    pub document: Option<Arc<Document>>,
    /// Operators' marks.
    pub ops: Versioned<Ops>,
    /// The latched topology.
    pub latch: Versioned<Latch>,
    /// Name of the leader, with the lease that makes it one.
    pub leader: Option<(String, i64)>,
    /// Names of the control planes there.
    pub members: Vec<String>,
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
    /// Another revision is in force.
    #[error("the configuration is at revision {current}, not at {expected}")]
    Conflict {
        /// Where it should have been.
        expected: u64,
        /// Where it is.
        current: u64,
    },
    /// Somebody else was faster.
    #[error("another control plane changed it meanwhile; try again")]
    Stale,
    /// A latch that would go back.
    #[error("the topology would go back")]
    Backwards,
    /// What is stored is not what was written.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The file or key.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It does not answer, and was not asked to change anything.
    #[error("the store cannot be reached, nothing was changed: {0}")]
    Unreachable(String),
    /// It did not answer a change.
    #[error("the store did not confirm the change: {0}; look whether it was made before you try again")]
    Uncertain(String),
    /// It does not take this.
    #[error("the store refuses the change: {0}")]
    Refused(String),
}

/// A store. Every change is durable when the call returns, as far as the store is durable at all.
pub trait Store: Send + Sync {
    /// Whether it outlives the process.
    fn is_durable(&self) -> bool;

    /// What it is called where operators see it.
    fn kind(&self) -> &'static str;

    /// What other control planes do with it, as it happens; `None`: there are no others.
    fn shared(&self) -> Option<watch::Receiver<Arc<View>>> {
        None
    }

    /// Whether this process is the one that does what only one may do.
    fn leads(&self) -> bool {
        true
    }

    /// Gives up what others wait for, before the process ends.
    fn close(&self) {}

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

    /// Puts a text in force as the revision after the one expected, with its line in the audit log.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another revision is in force; or it cannot be written.
    fn append(&self, change: &Append) -> Result<Meta, StoreError>;

    /// Revisions, newest first.
    ///
    /// # Errors
    /// They cannot be read.
    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError>;

    /// What operators have set on nodes.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn ops(&self) -> Result<Versioned<Ops>, StoreError>;

    /// Keeps what operators have set on nodes instead of version `expected`, with its line in the audit log; the new
    /// version.
    ///
    /// # Errors
    /// [`StoreError::Stale`] if another version is there; or it cannot be written.
    fn save_ops(&self, expected: u64, ops: &Ops, record: Option<&Record>) -> Result<u64, StoreError>;

    /// The latched topology.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn latch(&self) -> Result<Versioned<Latch>, StoreError>;

    /// Keeps the latched topology instead of `before`; the new version.
    ///
    /// # Errors
    /// [`StoreError::Stale`] if `before` is not what is there, [`StoreError::Backwards`] if it is and the new one is older;
    /// or it cannot be written.
    fn save_latch(&self, before: &Versioned<Latch>, latch: &Latch) -> Result<u64, StoreError>;

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

/// Opens the store of a control plane; `name` is how others see this process. One that is shared may answer later.
///
/// # Errors
/// It cannot be used, or this program was built without it.
pub fn open(config: &Config, name: &str) -> Result<Arc<dyn Store>, StoreError> {
    match &config.store {
        Some(StoreSettings::Etcd(settings)) => {
            Ok(Arc::new(Etcd::start(settings, &config.discovery.cluster, name)?))
        }
        Some(StoreSettings::Embedded(directory)) => Ok(Arc::new(Directory::open(directory)?)),
        None => Ok(Arc::new(Memory::default())),
    }
}

/// Milliseconds since 1970, for people; nothing is decided by it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
