//! The result cache, `[cache]`: answers of plain reads, kept until something that they depend on is written, or for their
//! life. Never answers what it is not sure of: in doubt the statement goes to PostgreSQL, and a write changes everything.
//!
//! The walk of a read: `session` has a run that needs a server -> [`Desk::look_up`] (`shape`, `reading`, `facts`, `stamps`) ->
//! an answer that is good, or `level2` is asked, or another session's answer is awaited -> else the primary answers, what it
//! says is recorded (`answer`) and kept, if nothing was written meanwhile.
//! The walk of a write: its text is judged -> what it may change gathers at the session's [`Desk`] -> before the client gets
//! a word of the answer, every table has a new number (`stamps`) -> answers begun before that number are good no more, here at
//! once, on other data planes as soon as Redis has told them.

mod answer;
mod ask;
mod desk;
mod facts;
mod level2;
mod logical;
mod look;
mod metrics;
mod pgoutput;
mod reading;
mod shape;
mod stamps;

pub use ask::{Asker, Found};
pub use desk::{Desk, Readings, Watch};
pub use metrics::families;

use answer::Terms;
use arc_swap::ArcSwapOption;
use facts::Facts;
use helios_proto::config::{CacheSettings, Config};
use helios_proto::model::{Snapshot, TopologyKey};
use helios_proto::wire::v1::CacheStatus;
use level2::{Level2, Word};
use shape::Key;
use stamps::{Stamps, Touched};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What was seen of a catalog is believed for so long.
const BELIEVED: Duration = Duration::from_secs(15);
/// How long nothing is kept from tables of which it is not known whether a write to them takes effect.
const UNKNOWN: Duration = Duration::from_secs(60);
/// What an entry costs beside its bytes.
const OVERHEAD: usize = 200;

/// Answers, and what is known about them; one for the process.
pub struct Cache {
    settings: CacheSettings,
    answers: moka::sync::Cache<Key, Arc<Entry>>,
    databases: Mutex<HashMap<Vec<u8>, Arc<Database>>>,
    /// Reads on their way whose answer others wait for.
    flights: Mutex<HashMap<Key, watch::Sender<()>>>,
    /// The last number that was given, or heard of.
    sequence: AtomicU64,
    /// Nothing that was begun before this number is good.
    floor: AtomicU64,
    /// Grows when everything is thrown away.
    era: AtomicU64,
    level2: Option<Level2>,
    counts: Counts,
    /// The last order of an operator's to throw everything away; [`UNHEARD`]: of none is known, not even of no order.
    ordered: AtomicU64,
}

/// No snapshot of a control plane has been seen.
const UNHEARD: u64 = u64::MAX;

/// One database, by its name: all of them are one cluster's.
pub struct Database {
    name: Vec<u8>,
    facts: ArcSwapOption<Seen>,
    stamps: Stamps,
    /// Counts what may have changed the catalog.
    doubts: AtomicU64,
    /// Every write of the primary of this topology is heard of; only with `invalidation = "logical"`.
    followed: ArcSwapOption<TopologyKey>,
    /// It is in use, so that it should be followed.
    wanted: AtomicBool,
}

/// A look at a catalog.
struct Seen {
    facts: Arc<Facts>,
    at: Instant,
    /// `doubts` when the look began.
    doubts: u64,
}

struct Entry {
    bytes: Arc<[u8]>,
    terms: Terms,
    expires: Instant,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// This process.
    Process,
    /// Redis.
    Shared,
}

/// For metrics.
#[derive(Default)]
pub struct Counts {
    /// Answers of this process's own.
    pub hits: AtomicU64,
    /// Answers from Redis.
    pub shared_hits: AtomicU64,
    /// Reads that could have been answered and were not.
    pub misses: AtomicU64,
    /// Answers kept.
    pub fills: AtomicU64,
    /// Changes of tables that made answers bad.
    pub invalidations: AtomicU64,
    /// Times that everything was thrown away.
    pub flushes: AtomicU64,
}

impl Cache {
    /// `None` if it is not enabled.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn new(config: &Config) -> io::Result<Option<Arc<Self>>> {
        let settings = config.cache.clone();
        if !settings.enabled {
            return Ok(None);
        }
        let weigh = |_: &Key, entry: &Arc<Entry>| {
            u32::try_from(entry.bytes.len().saturating_add(OVERHEAD)).unwrap_or(u32::MAX)
        };
        let answers = moka::sync::Cache::builder()
            .max_capacity(settings.max_bytes)
            .weigher(weigh)
            .time_to_live(settings.ttl)
            .build();
        let level2 =
            settings.redis.as_ref().map(|url| Level2::new(url.expose(), &settings.namespace)).transpose()?;
        Ok(Some(Arc::new(Self {
            settings,
            answers,
            databases: Mutex::default(),
            flights: Mutex::default(),
            sequence: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            era: AtomicU64::new(0),
            level2,
            counts: Counts::default(),
            ordered: AtomicU64::new(UNHEARD),
        })))
    }

    /// What an operator is told.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        let Counts { hits, shared_hits, misses, fills, invalidations, flushes } = &self.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (entries, bytes) = self.size();
        CacheStatus {
            up: self.is_up(),
            shared: self.is_shared(),
            hits: read(hits),
            shared_hits: read(shared_hits),
            misses: read(misses),
            fills: read(fills),
            invalidations: read(invalidations),
            flushes: read(flushes),
            entries,
            bytes,
            max_bytes: self.settings.max_bytes,
            unfollowed: self
                .streams()
                .into_iter()
                .filter(|(_, followed)| !followed)
                .map(|(name, _)| name)
                .collect(),
        }
    }

    /// Databases in use whose logical replication stream should be followed, and whether it is.
    fn streams(&self) -> Vec<(String, bool)> {
        if self.settings.logical.is_none() {
            return Vec::new();
        }
        let one = |database: &Arc<Database>| {
            (String::from_utf8_lossy(&database.name).into_owned(), database.followed.load().is_some())
        };
        let wanted = |database: &&Arc<Database>| database.wanted.load(Ordering::Relaxed);
        lock(&self.databases).values().filter(wanted).map(one).collect()
    }

    /// Throws everything away, here and in Redis, if a snapshot has another order to do so than the last one had. What the
    /// first one has was ordered before this process was there.
    pub fn obey(&self, snapshot: &Snapshot) {
        if snapshot.revision == 0 {
            return;
        }
        let order = snapshot.cache_flush;
        let last = self.ordered.swap(order, Ordering::SeqCst);
        if last == UNHEARD || order == 0 || order == last {
            return;
        }
        tracing::info!("the cache is emptied, as ordered");
        self.empty();
    }

    /// Throws everything away, on every data plane, and believes no catalog any more.
    fn empty(&self) {
        let databases = lock(&self.databases);
        let Some(level2) = &self.level2 else {
            databases.values().for_each(|database| database.doubt());
            drop(databases);
            return self.flush();
        };
        // Nothing is answered until every data plane hears it.
        databases.values().for_each(|database| database.stamps.begin(&Touched::All));
        drop(databases);
        level2.tell(Word::everything());
    }

    /// Answers kept, and their bytes.
    fn size(&self) -> (u64, u64) {
        self.answers.run_pending_tasks();
        (self.answers.entry_count(), self.answers.weighted_size())
    }

    /// Whether anything is answered now: without Redis, where it is configured, writes of others are not heard of.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.level2.as_ref().is_none_or(Level2::is_up)
    }

    /// Whether answers are shared.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.level2.is_some()
    }

    /// The database of this name.
    fn database(&self, name: &[u8]) -> Arc<Database> {
        let mut databases = lock(&self.databases);
        if let Some(database) = databases.get(name) {
            return Arc::clone(database);
        }
        let stamps = Stamps::from(self.floor.load(Ordering::SeqCst));
        let (facts, doubts) = (ArcSwapOption::empty(), AtomicU64::new(0));
        let (followed, wanted) = (ArcSwapOption::empty(), AtomicBool::new(false));
        let database = Arc::new(Database { name: name.to_vec(), facts, stamps, doubts, followed, wanted });
        databases.insert(name.to_vec(), Arc::clone(&database));
        database
    }

    /// Throws everything away, here.
    pub fn flush(&self) {
        let _ = self.era.fetch_add(1, Ordering::SeqCst);
        self.answers.invalidate_all();
        self.counts.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// A write that may have changed these tables is done; the client has not been told.
    fn touch(&self, database: &Database, touched: &Touched, certain: bool, doubts: bool) {
        self.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        if !certain {
            database.stamps.close(touched, closing());
        }
        if doubts {
            database.doubt();
        }
        let Some(level2) = &self.level2 else {
            let number = self.sequence.fetch_add(1, Ordering::SeqCst).saturating_add(1);
            return database.stamps.end(touched, number, false);
        };
        database.stamps.begin(touched);
        level2.tell(Word::new(&database.name, touched, certain, doubts));
    }

    /// A word that every data plane hears, in the same order; `own`: this one has said it.
    fn heard(&self, word: &Word, number: u64, own: bool) {
        self.sequence.store(number, Ordering::SeqCst);
        let Some(name) = &word.database else { return };
        let database = self.database(name);
        if !own {
            if word.doubts {
                database.doubt();
            }
            if !word.certain {
                database.stamps.close(&word.touched, closing());
            }
        }
        database.stamps.end(&word.touched, number, own);
    }

    /// The numbers begin anew.
    fn start_over(&self, number: u64) {
        let databases = lock(&self.databases);
        self.floor.store(number, Ordering::SeqCst);
        self.sequence.store(number, Ordering::SeqCst);
        for database in databases.values() {
            database.stamps.reset(number);
            database.doubt();
        }
        drop(databases);
        self.flush();
    }

    /// The answer of this key, if it is good.
    fn get(&self, database: &Database, key: &Key, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.answers.get(key)?;
        if entry.expires > now && self.is_good(database, &entry.terms, now) {
            return Some(entry);
        }
        self.answers.invalidate(key);
        None
    }

    fn is_good(&self, database: &Database, terms: &Terms, now: Instant) -> bool {
        terms.era == self.era.load(Ordering::SeqCst)
            && database.stamps.are_good(&terms.tables, terms.since, now)
    }

    /// Keeps an answer, unless it is bad already.
    fn keep(&self, database: &Database, terms: Terms, bytes: Vec<u8>, own: bool) {
        let now = Instant::now();
        if !self.is_up() || !self.is_good(database, &terms, now) {
            return;
        }
        let Some(expires) = terms.asked.checked_add(terms.life) else { return };
        let bytes: Arc<[u8]> = bytes.into();
        if own {
            self.counts.fills.fetch_add(1, Ordering::Relaxed);
            if let Some(level2) = &self.level2 {
                level2.put(&terms, Arc::clone(&bytes));
            }
        }
        self.answers.insert(terms.key, Arc::new(Entry { bytes, terms, expires }));
    }

    /// The right to ask for this key; `Err`: somebody has it, wait for its end.
    fn take_off(&self, key: &Key) -> Result<(), watch::Receiver<()>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(key) {
            return Err(flight.subscribe());
        }
        flights.insert(*key, watch::Sender::new(()));
        Ok(())
    }

    /// Whoever waits looks again.
    fn land(&self, key: &Key) {
        drop(lock(&self.flights).remove(key));
    }

    /// Longest life of answers from a table.
    fn life(&self, table: &[u8]) -> Duration {
        let own = self.settings.tables.iter().find(|(name, _)| name.as_bytes() == table);
        own.map_or(self.settings.ttl, |(_, life)| *life)
    }
}

impl Database {
    /// What is known of the catalog, if it can be believed.
    fn facts(&self, now: Instant) -> Option<Arc<Facts>> {
        let seen = self.facts.load();
        let seen = seen.as_ref()?;
        let fresh = now.saturating_duration_since(seen.at) < BELIEVED;
        (fresh && seen.doubts == self.doubts.load(Ordering::SeqCst)).then(|| Arc::clone(&seen.facts))
    }

    /// Whether every write is heard of now.
    fn is_followed(&self, key: TopologyKey) -> bool {
        self.followed.load().as_deref() == Some(&key)
    }

    /// The catalog may have changed.
    fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::SeqCst);
    }
}

/// Until when nothing is kept after a write whose end is not known.
fn closing() -> Instant {
    let now = Instant::now();
    now.checked_add(UNKNOWN).unwrap_or(now)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows catalogs, and what other data planes say, until stopped.
pub fn start(
    cache: &Arc<Cache>,
    shared: &Arc<crate::worker::Shared>,
    stop: &tokio_util::sync::CancellationToken,
    tasks: &tokio_util::task::TaskTracker,
) {
    let pools = (Arc::clone(&shared.pools), Arc::clone(&shared.identities));
    tasks.spawn(look::run(Arc::clone(cache), pools, stop.clone()));
    if let Some(settings) = &cache.settings.logical {
        let pools = (Arc::clone(&shared.pools), Arc::clone(&shared.identities));
        let followers = logical::Followers::new(Arc::clone(cache), settings, pools, tasks.clone());
        tasks.spawn(followers.run(stop.clone()));
    }
    if cache.level2.is_some() {
        tasks.spawn(level2::run(Arc::clone(cache), stop.clone()));
    }
}
