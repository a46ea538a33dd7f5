//! What one session has to do with the cache: the answer that it asks for, the one that it records, and the tables that its
//! writes may have changed. Never awaits but in [`Desk::fetch`].

use super::answer::{Recorded, Recording, Terms};
use super::ask::{Asker, Found};
use super::facts::{Effect, Facts, concerns_all};
use super::reading;
use super::shape::{Key, Shape, shape};
use super::stamps::Touched;
use super::{Cache, Database, Level};
use crate::route::{Class, RouteHint, TxWord, Verdict};
use crate::session::run::Watching;
use helios_proto::model::Snapshot;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest wait for the answer to another session's same read.
const LONGEST: Duration = Duration::from_secs(1);
/// Slots for what texts do, per worker; a power of two.
const SLOTS: usize = 512;
/// A longer text is read each time.
const LONGEST_TEXT: usize = 2048;

/// One session's.
#[derive(Default)]
pub struct Desk {
    link: Option<Link>,
    touched: Touched,
    /// What was written may have changed the catalog.
    doubts: bool,
    /// It may have changed what all databases share.
    everywhere: bool,
    flying: Flying,
    /// Doubts about the catalog when the first of it was judged.
    judged: u64,
    fill: Option<Box<Fill>>,
}

/// What may be changed by what is on its way to a server, or has not been answered: a commit can be seen before its answer is
/// here. Nothing of it is answered or kept until it is over, or the session is.
#[derive(Default)]
struct Flying {
    touched: Touched,
    database: Option<Arc<Database>>,
}

impl Flying {
    fn add(&mut self, database: &Arc<Database>, touched: &Touched) {
        let mut all = self.touched.clone();
        all.add(touched);
        if all != self.touched {
            database.stamps.fly(&all);
            self.land();
            *self = Self { touched: all, database: Some(Arc::clone(database)) };
        }
    }

    fn land(&mut self) {
        if let Some(database) = self.database.take() {
            database.stamps.land(&std::mem::take(&mut self.touched));
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.land();
    }
}

#[derive(Clone)]
struct Link {
    cache: Arc<Cache>,
    database: Arc<Database>,
}

/// A read whose answer is wanted.
struct Fill {
    link: Link,
    terms: Terms,
    stage: Stage,
    /// Others wait for it.
    flight: bool,
}

enum Stage {
    /// Another session asks the same.
    Behind(watch::Receiver<()>),
    /// Redis may have it.
    Shared,
    /// PostgreSQL is asked.
    Recording(Recording),
}

impl Drop for Fill {
    fn drop(&mut self) {
        if self.flight {
            self.link.cache.land(&self.terms.key);
        }
    }
}

impl Desk {
    /// Of a session on this database.
    #[must_use]
    pub fn new(cache: Option<&Arc<Cache>>, database: &[u8]) -> Self {
        let link = |cache: &Arc<Cache>| Link { cache: Arc::clone(cache), database: cache.database(database) };
        Self { link: cache.map(link), ..Self::default() }
    }

    /// Whether there is a cache.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.link.is_some()
    }

    /// Looks a run up.
    pub fn look_up<'a>(
        &mut self,
        run: &'a [u8],
        verdict: &Verdict,
        asker: &Asker<'a>,
        readings: &mut Readings,
    ) -> Found {
        self.fill = None;
        let Some(link) = self.link.clone().filter(|link| is_wanted(verdict) && link.cache.is_up()) else {
            return Found::Nothing;
        };
        if link.cache.settings.logical.is_some() && !link.database.is_followed(asker.snapshot.key()) {
            return Found::Nothing;
        }
        let now = Instant::now();
        // First of all: what is thrown away from here on counts for this answer.
        let era = link.cache.era.load(Ordering::SeqCst);
        let Some(facts) = link.database.facts(now) else { return Found::Nothing };
        let Some(shape) = shape(run, asker.prepared) else { return Found::Nothing };
        let effect = readings.effect(shape.sql, asker.greeting.standard_strings, &facts, &link.cache);
        let Some((tables, life)) = &effect.reads else { return Found::Nothing };
        let key = scoped(asker, &shape, &facts.fingerprint);
        if let Some(entry) = link.cache.get(&link.database, &key, now) {
            link.cache.count_hit(Level::Process);
            return Found::Answer(Arc::clone(&entry.bytes));
        }
        link.cache.counts.misses.fetch_add(1, Ordering::Relaxed);
        // A replica may not have what was written before the number that the answer would be kept under.
        if verdict.hint.node.is_some() || !matches!(verdict.hint.route, None | Some(RouteHint::Primary)) {
            return Found::Nothing;
        }
        let life = verdict.hint.ttl.map_or(*life, |hint| hint.min(*life));
        let since = link.cache.sequence.load(Ordering::SeqCst);
        let terms = Terms { key, tables: Arc::clone(tables), since, era, asked: now, life };
        let (stage, flight) = match link.cache.take_off(&key) {
            Err(flight) => (Stage::Behind(flight), false),
            Ok(()) if link.cache.is_shared() => (Stage::Shared, true),
            Ok(()) => (Stage::Recording(Recording::default()), true),
        };
        let asked = matches!(stage, Stage::Recording(_));
        self.fill = Some(Box::new(Fill { link, terms, stage, flight }));
        if asked { Found::Primary } else { Found::Fetch }
    }

    /// Waits for who asks the same, or asks Redis. Without an answer the primary is to be asked.
    pub async fn fetch(&mut self) -> Option<Arc<[u8]>> {
        let fill = self.fill.as_mut()?;
        let Link { cache, database } = &fill.link;
        if cache.settings.logical.is_some() && database.followed.load().is_none() {
            fill.stage = Stage::Recording(Recording::default());
            return None;
        }
        let found = match &mut fill.stage {
            Stage::Recording(_) => return None,
            Stage::Behind(flight) => {
                // Its end shows as an error: the sender is gone.
                drop(timeout(LONGEST, flight.changed()).await);
                let entry = cache.get(database, &fill.terms.key, Instant::now());
                entry.map(|entry| (Level::Process, Arc::clone(&entry.bytes)))
            }
            Stage::Shared => {
                let stored = match &cache.level2 {
                    Some(level2) => level2.get(&fill.terms).await,
                    None => None,
                };
                stored.and_then(|(terms, bytes)| {
                    let good = cache.is_up() && cache.is_good(database, &terms, Instant::now());
                    good.then(|| {
                        let answer: Arc<[u8]> = bytes.as_slice().into();
                        cache.keep(database, terms, bytes, false);
                        (Level::Shared, answer)
                    })
                })
            }
        };
        if let Some((level, answer)) = found {
            cache.count_hit(level);
            cache.counts.misses.fetch_sub(1, Ordering::Relaxed);
            self.fill = None;
            return Some(answer);
        }
        fill.stage = Stage::Recording(Recording::default());
        None
    }

    /// The run goes to this kind of node.
    pub fn bound(&mut self, standby: bool) {
        if standby {
            self.fill = None;
        }
    }

    /// Whatever was wanted is not any more.
    pub fn give_up(&mut self) {
        self.fill = None;
    }

    /// Bytes that the client gets next.
    pub fn record(&mut self, bytes: &[u8]) {
        let Some(fill) = &mut self.fill else { return };
        let Stage::Recording(recording) = &mut fill.stage else { return };
        match recording.take(bytes, fill.link.cache.settings.max_entry_bytes) {
            Recorded::More => {}
            Recorded::Spoiled => self.fill = None,
            Recorded::Whole => {
                let bytes = std::mem::take(recording).into_bytes();
                fill.link.cache.keep(&fill.link.database, fill.terms.clone(), bytes, true);
                self.fill = None;
            }
        }
    }

    /// The client is about to be told something that may have been committed.
    pub fn told(&mut self) {
        self.touch(true);
    }

    /// Everything is answered, outside of any transaction, and nothing of it goes on.
    pub fn rested(&mut self) {
        self.landed();
        (self.touched, self.doubts) = (Touched::Nothing, false);
    }

    /// Everything is answered, outside of any transaction.
    pub fn landed(&mut self) {
        self.flying.land();
        self.everywhere = false;
    }

    /// The server connection is lost or given up in the middle: what was written may still be committed.
    pub fn lost(&mut self) {
        self.fill = None;
        self.touch(false);
        self.rested();
    }

    /// Remembers under which catalog the first of what is written is judged.
    fn judge(&mut self, database: &Database) {
        if self.touched.is_nothing() {
            self.judged = database.doubts.load(Ordering::SeqCst);
        }
    }

    fn touch(&self, certain: bool) {
        if let Some(link) = &self.link
            && !self.touched.is_nothing()
        {
            // Judged by another catalog, it may have done more.
            let other = link.database.doubts.load(Ordering::SeqCst) != self.judged;
            let touched = if other { &Touched::All } else { &self.touched };
            link.cache.touch(&link.database, touched, certain, self.doubts);
            if self.everywhere {
                link.cache.empty();
            }
        }
    }
}

impl Cache {
    fn count_hit(&self, level: Level) {
        let hits = if level == Level::Process { &self.counts.hits } else { &self.counts.shared_hits };
        hits.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a run of this verdict may be answered from the cache at all.
fn is_wanted(verdict: &Verdict) -> bool {
    verdict.class == Class::Read
        && !verdict.may_write
        && !verdict.sets
        && verdict.statements == 1
        && verdict.tx == TxWord::None
        && verdict.pins.is_empty()
        && !verdict.hint.cache_skip
}

/// Everything beside the run that its answer depends on.
fn scoped(asker: &Asker<'_>, shape: &Shape<'_>, catalog: &[u8]) -> Key {
    let Snapshot { incarnation, timeline, epoch, system, .. } = asker.snapshot;
    let mut place = Vec::new();
    place.extend_from_slice(&incarnation.to_be_bytes());
    place.extend_from_slice(&timeline.to_be_bytes());
    place.extend_from_slice(&epoch.to_be_bytes());
    place.extend_from_slice(&system.unwrap_or(0).to_be_bytes());
    let identity = asker.identity;
    let pairs = |list: &'_ [(Vec<u8>, Vec<u8>)]| list.len().to_be_bytes();
    let settings = asker.settings.map(|settings| settings.as_slice()).unwrap_or_default();
    let reported = &asker.greeting.baseline;
    let (made, given, told) = (pairs(&identity.params), pairs(settings), pairs(reported));
    // No setting, and another one on replicas.
    let reported = reported.iter().filter(|(name, _)| name != b"in_hot_standby");
    let all = identity.params.iter().chain(settings).chain(reported);
    let texts = all.flat_map(|(name, value)| [name.as_slice(), value.as_slice()]);
    let fixed = [place.as_slice(), catalog, &identity.database, &identity.user, &made, &given, &told];
    shape.key(fixed.into_iter().chain(texts))
}

/// What texts do, by text; one for each worker.
pub struct Readings {
    hasher: foldhash::fast::RandomState,
    slots: Vec<Option<Slot>>,
}

struct Slot {
    text: Vec<u8>,
    standard_strings: bool,
    facts: Arc<Facts>,
    effect: Arc<Effect>,
}

impl Readings {
    /// Of a worker that has seen no text yet.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            hasher: foldhash::fast::RandomState::default(),
            slots: std::iter::repeat_with(|| None).take(SLOTS).collect(),
        }
    }

    fn effect(
        &mut self,
        sql: &[u8],
        standard_strings: bool,
        facts: &Arc<Facts>,
        cache: &Cache,
    ) -> Arc<Effect> {
        let read =
            || Arc::new(facts.effect(&reading::read(sql, standard_strings), |table| cache.life(table)));
        if sql.len() > LONGEST_TEXT {
            return read();
        }
        let place = usize::try_from(self.hasher.hash_one(sql)).unwrap_or_default() & SLOTS.saturating_sub(1);
        let Some(slot) = self.slots.get_mut(place) else { return read() };
        if let Some(slot) = slot
            && slot.standard_strings == standard_strings
            && Arc::ptr_eq(&slot.facts, facts)
            && slot.text == sql
        {
            return Arc::clone(&slot.effect);
        }
        let effect = read();
        let (text, facts) = (sql.to_vec(), Arc::clone(facts));
        *slot = Some(Slot { text, standard_strings, facts, effect: Arc::clone(&effect) });
        effect
    }
}

/// Hears of writes for a session, and notes what they may change.
pub struct Watch<'a>(Option<(&'a mut Desk, &'a mut Readings)>);

impl<'a> Watch<'a> {
    /// For this session.
    pub fn new(desk: &'a mut Desk, readings: &'a mut Readings) -> Self {
        Self(desk.is_open().then_some((desk, readings)))
    }
}

impl Watching for Watch<'_> {
    fn wrote(&mut self, sql: &[u8], standard_strings: bool) {
        let Some((desk, readings)) = &mut self.0 else { return };
        let Some(Link { cache, database }) = desk.link.clone() else { return };
        desk.judge(&database);
        match database.facts(Instant::now()) {
            Some(facts) => {
                let effect = readings.effect(sql, standard_strings, &facts, &cache);
                desk.touched.add(&effect.touches);
                desk.doubts |= effect.doubts;
                desk.everywhere |= effect.everywhere;
                desk.flying.add(&database, &effect.touches);
            }
            None => {
                let reading = reading::read(sql, standard_strings);
                desk.touched = Touched::All;
                desk.doubts |= reading.doubt || !reading.plain;
                desk.everywhere |= concerns_all(&reading);
                desk.flying.add(&database, &Touched::All);
            }
        }
    }

    fn wrote_anything(&mut self) {
        if let Some((desk, _)) = &mut self.0 {
            if let Some(link) = desk.link.clone() {
                desk.judge(&link.database);
                desk.flying.add(&link.database, &Touched::All);
            }
            (desk.touched, desk.doubts) = (Touched::All, true);
        }
    }
}
