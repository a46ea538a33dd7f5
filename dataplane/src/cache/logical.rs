//! Writes that no proxy sees: the primary's logical replication stream says which tables each committed transaction has
//! changed. One task and two connections for each database in use: one hears the stream, the other asks how far the server
//! is and which transactions can be seen. Where the stream is lost or behind, nothing of its database is answered. Its slot
//! is a temporary one, which ends with the connection.

use super::pgoutput::{Commit, Decoder, Heard};
use super::stamps::Touched;
use super::{Cache, Database};
use crate::pool::{Identities, NodePool, Pools};
use crate::server::Credential;
use crate::server::ask::{ask, refused};
use crate::server::dial::{Who, dial};
use crate::stream::Stream;
use helios_pgwire::frame::put;
use helios_pgwire::frontend;
use helios_proto::config::Logical;
use helios_proto::model::TopologyKey;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// How often databases come and go, and the server is asked how far it is.
const BEAT: Duration = Duration::from_secs(1);
/// What is heard within this time is told at once, and how often it is asked whether a transaction can be seen that could not.
const GATHER: Duration = Duration::from_millis(10);
/// Longest time that the stream may be behind the server, and an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest pause after a failure; the first is a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Most bytes read at once.
const CHUNK: usize = 64 * 1024;

type Wires = (Arc<Pools>, Arc<Identities>);

/// One follower for each database in use.
pub(super) struct Followers {
    cache: Arc<Cache>,
    settings: Arc<Logical>,
    credential: Arc<Credential>,
    wires: Wires,
    tasks: TaskTracker,
    running: HashMap<Vec<u8>, DropGuard>,
}

impl Followers {
    /// None runs yet.
    pub fn new(cache: Arc<Cache>, settings: &Logical, wires: Wires, tasks: TaskTracker) -> Self {
        let credential = Arc::new(Credential::configured(settings.password.as_ref()));
        let settings = Arc::new(settings.clone());
        Self { cache, settings, credential, wires, tasks, running: HashMap::new() }
    }

    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = beat.tick() => self.come_and_go(&stop),
            }
        }
    }

    fn come_and_go(&mut self, stop: &CancellationToken) {
        let live: HashSet<Vec<u8>> =
            self.wires.1.live().into_iter().map(|identity| identity.database.clone()).collect();
        // Whoever is not in use any more ends as its guard is dropped.
        self.running.retain(|name, _| live.contains(name));
        for name in live {
            let Self { cache, settings, credential, wires: (pools, _), tasks, running } = self;
            running.entry(name).or_insert_with_key(|name| {
                let own = stop.child_token();
                let follower = Follower {
                    database: cache.database(name),
                    cache: Arc::clone(cache),
                    settings: Arc::clone(settings),
                    credential: Arc::clone(credential),
                    pools: Arc::clone(pools),
                };
                tasks.spawn(follower.run(own.clone()));
                own.drop_guard()
            });
        }
    }
}

/// Follows one database.
struct Follower {
    cache: Arc<Cache>,
    database: Arc<Database>,
    settings: Arc<Logical>,
    credential: Arc<Credential>,
    pools: Arc<Pools>,
}

impl Follower {
    async fn run(self, stop: CancellationToken) {
        self.database.wanted.store(true, Ordering::Relaxed);
        let (mut complained, mut pause) = (false, BEAT);
        let name = String::from_utf8_lossy(&self.database.name).into_owned();
        loop {
            let why = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Err(why) = self.converse(&mut complained) => why,
            };
            let was = self.database.followed.swap(None).is_some();
            if was || !complained {
                complained = true;
                tracing::warn!(
                    database = name,
                    "the logical replication stream is not followed, nothing of the database is answered from the cache: {why}"
                );
            }
            pause = if was { BEAT } else { pause };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
            }
            pause = LONGEST_PAUSE.min(pause.saturating_mul(2));
        }
        self.database.followed.store(None);
        self.database.wanted.store(false, Ordering::Relaxed);
    }

    async fn dial(&self, node: &NodePool, replication: bool) -> io::Result<Stream> {
        let text = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let mut params = vec![text("application_name", "helios-cache")];
        if replication {
            params.push(text("replication", "database"));
        }
        params.push(text("search_path", "pg_catalog"));
        let who = Who { user: self.settings.user.as_bytes(), database: &self.database.name, params: &params };
        let ((io, _), _) =
            dial((&node.node, &node.leg), who, &self.credential).await.map_err(io::Error::other)?;
        Ok(io)
    }

    /// One stream, from its beginning to its end.
    async fn converse(&self, complained: &mut bool) -> io::Result<Infallible> {
        while !self.cache.is_up() {
            sleep(BEAT).await;
        }
        let view = self.pools.view();
        let node = view.snapshot.primary.and_then(|primary| view.pools.get(primary));
        let node = Arc::clone(node.ok_or_else(|| io::Error::other("there is no primary"))?);
        let topology = view.snapshot.key();
        drop(view);
        let (mut ear, mut mouth) = (self.dial(&node, true).await?, self.dial(&node, false).await?);
        let source = self.source(&mut ear, &mut mouth).await?;
        let slot = format!("helios_{:016x}", RandomState::new().hash_one(Instant::now()));
        let start = self.make(&mut ear, &slot, topology, complained).await?;
        let mut message = Vec::new();
        // A name that is not quoted would be folded to lower case.
        let options = format!("proto_version '1', publication_names '\"{}\"'", self.settings.publication);
        frontend::query(&mut message, &format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})"));
        ear.write_all(&message).await?;
        ear.flush().await?;
        let mut talk = Talk {
            follower: self,
            source,
            topology,
            mouth,
            told: start,
            heard: start,
            goal: None,
            pending: Vec::new(),
            late: Vec::new(),
            unheard: Vec::new(),
        };
        // A number of its own, given and done with: every transaction that began before is below what is seen as running then.
        drop(ask(&mut talk.mouth, "select txid_current()").await?);
        talk.unheard = talk.look().await?.running.list;
        // What was kept before may be old.
        talk.tell(start, &Touched::All).await?;
        talk.listen(ear, complained).await
    }

    /// What its positions belong to: those of one run of one server on one timeline compare with each other. Whether the stream
    /// can be of use is looked at first.
    async fn source(&self, ear: &mut Stream, mouth: &mut Stream) -> io::Result<String> {
        let publication = &self.settings.publication;
        let sql = format!(
            "select exists (select from pg_publication where pubname = '{publication}')::text, \
             extract(epoch from pg_postmaster_start_time())::text"
        );
        let rows = ask(mouth, &sql).await?;
        if column(rows.clone(), 0)? != "true" {
            return Err(io::Error::other(format!("there is no publication \"{publication}\"")));
        }
        let system = ask(ear, "IDENTIFY_SYSTEM").await?;
        Ok(format!("{}.{}.{}", column(system.clone(), 0)?, column(system, 1)?, column(rows, 1)?))
    }

    /// Makes the slot, which waits for every transaction that writes now; where it begins.
    async fn make(
        &self,
        ear: &mut Stream,
        slot: &str,
        topology: TopologyKey,
        complained: &mut bool,
    ) -> io::Result<u64> {
        let create = format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
        let mut made = std::pin::pin!(ask(ear, &create));
        let since = Instant::now();
        loop {
            tokio::select! {
                made = &mut made => return position(&column(made?, 1)?),
                () = sleep(BEAT) => self.is_still(topology)?,
            }
            if since.elapsed() > PATIENCE && !*complained {
                *complained = true;
                tracing::warn!(
                    database = %String::from_utf8_lossy(&self.database.name),
                    "the logical replication stream waits for open transactions to end, nothing of the database is answered from the cache"
                );
            }
        }
    }

    /// The primary is the one of this topology, and the cache is in use.
    fn is_still(&self, topology: TopologyKey) -> io::Result<()> {
        let view = self.pools.view();
        if view.snapshot.key() != topology || view.snapshot.primary.is_none() {
            return Err(io::Error::other("the primary may be another one"));
        }
        if !self.cache.is_up() {
            return Err(io::Error::other("Redis is away"));
        }
        Ok(())
    }
}

/// One stream under way.
struct Talk<'a> {
    follower: &'a Follower,
    source: String,
    topology: TopologyKey,
    /// The connection that asks.
    mouth: Stream,
    /// Everything of the tables before this is told.
    told: u64,
    /// Everything before this is heard.
    heard: u64,
    /// Where the stream has to be soon, and when that was asked.
    goal: Option<(u64, Instant)>,
    /// Heard and not told.
    pending: Vec<Commit>,
    /// Told, but not to be seen yet: whoever reads meanwhile reads what was before.
    late: Vec<Commit>,
    /// Transactions that ran when the stream began, which may have committed before its beginning without having ended.
    unheard: Vec<u64>,
}

/// What the server says of itself.
struct Look {
    running: Running,
    /// How far its WAL is on disk.
    at: u64,
}

impl Talk<'_> {
    async fn listen(&mut self, mut ear: Stream, complained: &mut bool) -> io::Result<Infallible> {
        let (mut decoder, mut chunk) = (Decoder::default(), vec![0; CHUNK]);
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<Instant> = None;
        loop {
            while let Some(heard) = decoder.next().map_err(io::Error::other)? {
                match heard {
                    Heard::Position(at) => self.heard = self.heard.max(at),
                    Heard::Asked(at) => {
                        self.heard = self.heard.max(at);
                        self.report(&mut ear, false).await?;
                    }
                    Heard::Commit(commit) => self.pending.push(commit),
                    Heard::Refused(message) => return Err(refused(&message)),
                }
            }
            if self.pending.is_empty() && self.goal.is_some_and(|(goal, _)| self.heard >= goal) {
                self.goal = None;
                self.follow(complained);
            }
            if due.is_none() && !(self.pending.is_empty() && self.late.is_empty()) {
                due = Instant::now().checked_add(GATHER);
            }
            tokio::select! {
                read = ear.read(&mut chunk) => {
                    let read = chunk.get(..read?).filter(|read| !read.is_empty());
                    decoder.feed(read.ok_or(io::ErrorKind::UnexpectedEof)?);
                }
                _ = beat.tick() => {
                    self.check()?;
                    let Look { running, at } = self.look().await?;
                    let ended = self.unheard.extract_if(.., |xid| !running.has(*xid)).count();
                    if ended > 0 {
                        self.tell_again(&Touched::All);
                    }
                    self.goal.get_or_insert((at, Instant::now()));
                    self.report(&mut ear, true).await?;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    due = None;
                    self.settle().await?;
                }
            }
        }
    }

    /// Answers may be given from now on.
    fn follow(&self, complained: &mut bool) {
        let Database { followed, name, .. } = self.follower.database.as_ref();
        if followed.swap(Some(Arc::new(self.topology))).is_none() {
            *complained = false;
            tracing::info!(database = %String::from_utf8_lossy(name), "the logical replication stream is followed");
        }
    }

    /// Whether the stream is still the right one, and in time.
    fn check(&self) -> io::Result<()> {
        self.follower.is_still(self.topology)?;
        match self.goal {
            Some((_, asked)) if asked.elapsed() > PATIENCE => Err(io::Error::other("it is behind")),
            _ => Ok(()),
        }
    }

    /// Which transactions run, and how far the server is. A cache must never be what a COMMIT waits for.
    async fn look(&mut self) -> io::Result<Look> {
        let sql = "select txid_current_snapshot()::text, pg_current_wal_flush_lsn()::text, \
                   current_setting('synchronous_standby_names')";
        let rows =
            timeout(PATIENCE, ask(&mut self.mouth, sql)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if column(rows.clone(), 2)?.contains('*') {
            return Err(io::Error::other(
                "synchronous_standby_names has *, which counts it as a standby that every COMMIT waits for: name the standbys",
            ));
        }
        let running = Running::parse(&column(rows.clone(), 0)?).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Look { running, at: position(&column(rows, 1)?)? })
    }

    /// Tells what was heard, and again what can be seen only now.
    async fn settle(&mut self) -> io::Result<()> {
        let Look { running, .. } = self.look().await?;
        let seen: Vec<Commit> = self.late.extract_if(.., |commit| !running.is_running(commit.xid)).collect();
        let (mut touched, mut end) = (self.touched(&seen), self.told);
        if !touched.is_nothing() {
            self.tell_again(&touched);
        }
        let pending = std::mem::take(&mut self.pending);
        touched = self.touched(&pending);
        for commit in pending {
            end = end.max(commit.end);
            if running.is_running(commit.xid) {
                self.late.push(commit);
            }
        }
        self.heard = self.heard.max(end);
        if touched.is_nothing() { Ok(()) } else { self.tell(end, &touched).await }
    }

    /// What these have changed.
    fn touched(&self, commits: &[Commit]) -> Touched {
        let tables: HashSet<u32> = commits.iter().flat_map(|commit| &commit.tables).copied().collect();
        if tables.is_empty() {
            return Touched::Nothing;
        }
        let seen = self.follower.database.facts.load();
        seen.as_ref().map_or(Touched::All, |seen| seen.facts.changed(&tables))
    }

    /// Everything before `end` is told: these tables have changed.
    async fn tell(&mut self, end: u64, touched: &Touched) -> io::Result<()> {
        let Follower { cache, database, .. } = self.follower;
        let number = match &cache.level2 {
            None => cache.sequence.fetch_add(1, Ordering::SeqCst).saturating_add(1),
            Some(level2) => {
                let said = level2.tell_once(&self.source, (self.told, end), (&database.name, touched));
                let said = timeout(PATIENCE, said).await.map_err(|_| io::ErrorKind::TimedOut)?;
                said.map_err(io::Error::other)?
            }
        };
        cache.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        database.stamps.end(touched, number, false);
        self.told = end;
        Ok(())
    }

    /// The same for what was told before, or was never heard.
    fn tell_again(&self, touched: &Touched) {
        let Follower { cache, database, .. } = self.follower;
        cache.touch(database, touched, true, false);
    }

    /// Says how far this is; `ask`: the server is to say so as well. What is not said keeps WAL on the server.
    async fn report(&self, ear: &mut Stream, ask: bool) -> io::Result<()> {
        let done = if self.pending.is_empty() { self.heard } else { self.told };
        let mut message = Vec::new();
        put(&mut message, b'd', |body| {
            body.push(b'r');
            for at in [done, done, done, 0] {
                body.extend_from_slice(&at.to_be_bytes());
            }
            body.push(u8::from(ask));
        });
        ear.write_all(&message).await?;
        ear.flush().await
    }
}

/// Transactions that cannot be seen yet, as `txid_current_snapshot()` has them.
struct Running {
    /// All from here on.
    from: u64,
    list: Vec<u64>,
}

impl Running {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (_, from, list) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        let list = list.split(',').filter(|xid| !xid.is_empty()).map(str::parse);
        Some(Self { from, list: list.collect::<Result<_, _>>().ok()? })
    }

    /// Whether this one runs, which ran before.
    fn has(&self, xid: u64) -> bool {
        self.list.contains(&xid)
    }

    /// Whether this one runs, of which only the lower half is known.
    fn is_running(&self, xid: u32) -> bool {
        let low = |xid: u64| u32::try_from(xid & u64::from(u32::MAX)).unwrap_or_default();
        // Later ones are less than half the circle ahead.
        let ahead = xid.wrapping_sub(low(self.from)) < u32::MAX / 2;
        ahead || self.list.iter().any(|running| low(*running) == xid)
    }
}

/// A column of the only row, as text.
fn column(rows: Vec<Vec<Option<Vec<u8>>>>, at: usize) -> io::Result<String> {
    let value = rows.into_iter().next().and_then(|row| row.into_iter().nth(at)).flatten();
    value.and_then(|value| String::from_utf8(value).ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A position in the WAL, `16/B374D848`.
fn position(text: &str) -> io::Result<u64> {
    let part = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
    let both = text.split_once('/').and_then(|(high, low)| Some((part(high)?, part(low)?)));
    let (high, low) = both.ok_or(io::ErrorKind::InvalidData)?;
    Ok(high << 32 | low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        assert_eq!(position("16/B374D848").unwrap(), 0x16_B374_D848);
        assert_eq!(position("0/0").unwrap(), 0);
        for bad in ["", "/", "1", "x/1", "1/100000000", "1/2/3"] {
            assert!(position(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_runs() {
        let epoch = 3u64 << 32;
        let text = format!("{}:{}:{},{}", epoch + 5, epoch + 10, epoch + 5, epoch + 7);
        let running = Running::parse(&text).unwrap();
        let all: Vec<u32> = (3..13).filter(|xid| running.is_running(*xid)).collect();
        assert_eq!(all, [5, 7, 10, 11, 12]);
        // Around the end of the circle.
        let running = Running::parse(&format!("{0}:{0}:", epoch + 2)).unwrap();
        assert!(!running.is_running(u32::MAX) && !running.is_running(1) && running.is_running(2));
        for bad in ["", "1", "1:2", "a:b:", "1:2:x"] {
            assert!(Running::parse(bad).is_none(), "{bad}");
        }
    }
}
