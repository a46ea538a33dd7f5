//! A worker: one thread, one current-thread runtime, and the sessions that live on it. What a poll of a session
//! needs (buffers, verdicts, the strategy's state) belongs to the worker, so an idle session owns none of it.

use crate::auth::Auth;
use crate::cache::{Cache as Answers, Readings};
use crate::console::Desk;
use crate::lanes::Lanes;
use crate::legs::ClientLeg;
use crate::metrics::Counters;
use crate::pool::{Identities, Pools, View};
use crate::registry::Registry;
use crate::route::{Picker, VerdictCache};
use crate::spans::Tracer;
use crate::statements::{Interner, Scope};
use arc_swap::{ArcSwap, Cache};
use helios_proto::model::{Evidence, NodeName};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::task::TaskTracker;

/// Bytes read from a socket at once.
pub const CHUNK: usize = 64 * 1024;

/// Where evidence goes.
pub type TellEvidence = Box<dyn Fn(&NodeName, Evidence) + Send + Sync>;

/// What all workers share.
pub struct Shared {
    /// Pools and the view in force.
    pub pools: Arc<Pools>,
    /// Pool keys in use.
    pub identities: Arc<Identities>,
    /// The way to the workers.
    pub lanes: Arc<Lanes>,
    /// Prepared statements that clients share.
    pub statements: Arc<Scope>,
    /// Answers that are kept.
    pub answers: Option<Arc<Answers>>,
    /// Where spans go; `None`: nowhere.
    pub tracer: Option<Arc<Tracer>>,
    /// Sessions by cancel key.
    pub registry: Arc<Registry>,
    /// Who may log in.
    pub auth: Auth,
    /// TLS towards clients.
    pub client_leg: ClientLeg,
    /// Tells the control plane what was seen of a node; never waits.
    pub evidence: TellEvidence,
    /// Client counts by user, database and address.
    pub clients: Arc<crate::limits::Clients>,
    /// For clients of the admin console.
    pub console: Arc<Desk>,
    /// Tasks that outlive their session: clean-ups.
    pub cleanups: TaskTracker,
}

/// One worker, as its sessions see it.
pub struct Worker {
    /// Number of the worker.
    pub id: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's counts.
    pub counters: Arc<Counters>,
    bench: Mutex<Bench>,
}

/// The worker's tools, held for the length of one poll.
pub struct Bench {
    /// Bytes just read.
    pub scratch: Vec<u8>,
    /// Everything but the scratch buffer.
    pub tools: Tools,
}

/// What routing needs.
pub struct Tools {
    /// Verdicts by text.
    pub verdicts: VerdictCache,
    /// What texts do to the cache.
    pub readings: Readings,
    /// State of the read strategies.
    pub picker: Picker,
    /// Statements that clients have prepared by name.
    pub statements: Interner,
    /// Messages for a server with names replaced.
    pub edit: Vec<u8>,
    view: Cache<Arc<ArcSwap<View>>, Arc<View>>,
}

impl Worker {
    /// A worker with empty caches.
    #[must_use]
    pub fn new(id: usize, shared: Arc<Shared>, counters: Arc<Counters>) -> Arc<Self> {
        let tools = Tools {
            verdicts: VerdictCache::new(),
            readings: Readings::empty(),
            picker: Picker::new(),
            statements: Interner::new(Arc::clone(&shared.statements)),
            edit: Vec::new(),
            view: Cache::new(shared.pools.shared()),
        };
        let bench = Mutex::new(Bench { scratch: vec![0; CHUNK], tools });
        Arc::new(Self { id, shared, counters, bench })
    }

    /// The tools; never held across an await. Uncontended: only this worker's thread asks.
    pub fn bench(&self) -> MutexGuard<'_, Bench> {
        self.bench.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tools {
    /// Revision of the view in force.
    pub fn revision(&mut self) -> u64 {
        self.view.load().snapshot.revision
    }

    /// The view in force: one atomic load when nothing has changed.
    pub fn view(&mut self) -> Arc<View> {
        Arc::clone(self.view.load())
    }
}
