//! Clients that write and read through proxies all the time, and a checker of what they went through: no acknowledged
//! write may be missing, nothing that was refused may be there, every answer must be that of its own request. They stop
//! when dropped, also when the test panics. Never retries a write, never judges a code: that is the test's business.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::types::Type;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cluster::Node;
use crate::proxy::Proxy;
use crate::{Cluster, eventually};

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(60);
/// Pause of a client between two requests: the load shows faults, it need not burn the machine.
const PAUSE: Duration = Duration::from_millis(2);
/// Requests of one load at most: more than an hour's.
const MOST: i64 = 50_000_000;
/// Failures remembered at most; a client that cannot connect fails all the time.
const REMEMBERED: usize = 50_000;

/// What a client was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Logging in.
    Connect,
    /// A statement that writes, by itself.
    Single,
    /// Opening a transaction.
    Begin,
    /// Inside a transaction.
    Inside,
    /// Ending it.
    Commit,
    /// A statement that reads.
    Read,
}

/// Something that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which of the clients; client `i` uses proxy `i % proxies`.
    pub client: usize,
    /// What it was doing.
    pub step: Step,
    /// The id of its request.
    pub id: i64,
    /// What the server said; `closed`: the connection was lost.
    pub code: String,
    /// In words.
    pub text: String,
    /// When.
    pub at: Instant,
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicI64,
    /// Requests of each client that went well.
    good: Vec<AtomicUsize>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    acknowledged: Vec<i64>,
    failures: Vec<Failure>,
    foreign: Vec<String>,
    longest: Duration,
    /// Longest time without an acknowledged write, and when the last one was.
    gap: Duration,
    last: Option<Instant>,
}

/// What clients went through.
pub struct Outcome {
    /// Ids of writes that were acknowledged.
    pub acknowledged: Vec<i64>,
    /// What failed.
    pub failures: Vec<Failure>,
    /// Answers that were not those of their requests.
    pub foreign: Vec<String>,
    /// Requests that went well.
    pub good: usize,
    /// The slowest request, good or bad.
    pub longest: Duration,
    /// The longest time without an acknowledged write.
    pub gap: Duration,
}

/// The foreign answer, if it was one.
type Done = Result<Option<String>, (Step, postgres::Error)>;

impl Load {
    /// Makes the table that it writes into.
    pub fn prepare(cluster: &Cluster) {
        cluster.execute("create table written (i bigint primary key); grant all on written to public");
    }

    /// Starts clients, spread over these proxies in turn.
    #[must_use]
    pub fn start(clients: usize, proxies: &[&Proxy]) -> Self {
        Self::with(clients, &proxies.iter().map(|proxy| proxy.config("app")).collect::<Vec<_>>())
    }

    /// The same by the settings of connections.
    #[must_use]
    pub fn with(clients: usize, to: &[postgres::Config]) -> Self {
        let good = (0..clients).map(|_| AtomicUsize::new(0)).collect();
        let shared = Arc::new(Shared { good, ..Shared::default() });
        let start = |i: usize| {
            let (shared, config) = (Arc::clone(&shared), to[i % to.len()].clone());
            std::thread::spawn(move || shared.run(i, &config))
        };
        let threads = (0..clients).map(start).collect();
        Self { shared, threads }
    }

    /// Waits until every client has had this many more good answers.
    #[track_caller]
    pub fn go_on(&self, more: usize) {
        self.go_on_of(more, |_| true);
    }

    /// The same for some of the clients only.
    #[track_caller]
    pub fn go_on_of(&self, more: usize, which: impl Fn(usize) -> bool) {
        let good = || {
            let clients = self.shared.good.iter().enumerate().filter(|(i, _)| which(*i));
            clients.map(|(_, good)| good.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        let before = good();
        eventually(LONG, "the load goes on", || {
            good().iter().zip(&before).all(|(now, then)| *now >= then + more)
        });
    }

    /// The next id: every request from now on has this one or a higher one.
    #[must_use]
    pub fn issued(&self) -> i64 {
        self.shared.next.load(Ordering::SeqCst)
    }

    /// What has failed so far.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.shared.seen().failures.clone()
    }

    /// When a write was acknowledged last.
    #[must_use]
    pub fn last_write(&self) -> Option<Instant> {
        self.shared.seen().last
    }

    /// Ends the clients after their request.
    ///
    /// # Panics
    /// When one is stuck, or has panicked.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        eventually(LONG, "every client gets its last answer", || {
            self.threads.iter().all(JoinHandle::is_finished)
        });
        for thread in self.threads.drain(..) {
            thread.join().expect("a client panicked");
        }
        let seen = std::mem::take(&mut *self.shared.seen());
        let Seen { acknowledged, failures, foreign, longest, gap, .. } = seen;
        let good = self.shared.good.iter().map(|good| good.load(Ordering::Relaxed)).sum();
        Outcome { acknowledged, failures, foreign, good, longest, gap }
    }
}

impl Drop for Load {
    /// Does not wait: a client may hang at what the test has broken, and ends with it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failures = &self.shared.seen().failures;
            eprintln!(
                "the load: {} failures, the last: {:#?}",
                failures.len(),
                failures.iter().rev().take(3).collect::<Vec<_>>()
            );
        }
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn run(&self, number: usize, config: &postgres::Config) {
        let mut open: Option<Client> = None;
        while !self.stopped() {
            let id = self.next.fetch_add(1, Ordering::SeqCst);
            assert!(id < MOST, "a load that nobody ends");
            let Some(mut client) = open.take().or_else(|| self.connect(number, id, config)) else { continue };
            let began = Instant::now();
            let done = match id % 3 {
                0 => single(&mut client, id),
                1 => transaction(&mut client, id),
                _ => read(&mut client, id),
            };
            self.note(number, id, began, done);
            if !client.is_closed() {
                open = Some(client);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn connect(&self, number: usize, id: i64, config: &postgres::Config) -> Option<Client> {
        let began = Instant::now();
        match config.connect(NoTls) {
            Ok(client) => Some(client),
            Err(error) => {
                self.note(number, id, began, Err((Step::Connect, error)));
                std::thread::sleep(PAUSE * 10);
                None
            }
        }
    }

    fn note(&self, client: usize, id: i64, began: Instant, done: Done) {
        let mut seen = self.seen();
        let at = Instant::now();
        seen.longest = seen.longest.max(at - began);
        match done {
            Ok(foreign) => {
                if let Some(answer) = foreign {
                    seen.foreign.push(format!("request {id} of client {client} got {answer}"));
                }
                if id % 3 != 2 {
                    seen.acknowledged.push(id);
                    let gap = seen.last.map_or(Duration::ZERO, |last| at - last);
                    seen.gap = seen.gap.max(gap);
                    seen.last = Some(at);
                }
                self.good[client].fetch_add(1, Ordering::Relaxed);
            }
            Err((step, error)) if seen.failures.len() < REMEMBERED => {
                let code = error.code().map_or("closed", |code| code.code()).to_owned();
                let text = format!("{error}: {:?}", error.as_db_error().map(|e| e.message().to_owned()));
                seen.failures.push(Failure { client, step, id, code, text, at });
            }
            Err(_) => {}
        }
    }
}

/// One statement that writes and answers with its id.
fn single(client: &mut Client, id: i64) -> Done {
    let sql = format!("insert into written values ({id}) returning i");
    simple(client, &sql, id).map_err(|error| (Step::Single, error))
}

/// Runs a simple query whose only value has to be this.
fn simple(client: &mut Client, sql: &str, id: i64) -> Result<Option<String>, postgres::Error> {
    let answer = client.simple_query(sql)?;
    let rows: Vec<Option<String>> = answer
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })
        .collect();
    Ok((rows != [Some(id.to_string())]).then(|| format!("{answer:?}")))
}

/// A transaction that writes, and reads what it has written.
fn transaction(client: &mut Client, id: i64) -> Done {
    client.batch_execute("begin").map_err(|error| (Step::Begin, error))?;
    let inside = |client: &mut Client| -> Result<Option<String>, postgres::Error> {
        let insert = "insert into written values ($1) returning i";
        let written = client.query_typed(insert, &[(&id, Type::INT8)])?;
        let read = client.query_typed("select i from written where i = $1", &[(&id, Type::INT8)])?;
        Ok(foreign(&written, id).or_else(|| foreign(&read, id)))
    };
    match inside(client) {
        Ok(answer) => client.batch_execute("commit").map(|()| answer).map_err(|error| (Step::Commit, error)),
        Err(error) => {
            let _ = client.batch_execute("rollback");
            Err((Step::Inside, error))
        }
    }
}

/// A statement that any node may answer; by the simple protocol and the extended one in turn.
fn read(client: &mut Client, id: i64) -> Done {
    let done = if id % 2 == 0 {
        simple(client, &format!("select {id}::bigint from (values (1)) as a where {id} > 0"), id)
    } else {
        client.query_typed("select $1::bigint", &[(&id, Type::INT8)]).map(|rows| foreign(&rows, id))
    };
    done.map_err(|error| (Step::Read, error))
}

/// The rows, unless they are the one of this request.
fn foreign(rows: &[postgres::Row], id: i64) -> Option<String> {
    let values: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    (values != [id]).then(|| format!("{values:?}"))
}

impl Outcome {
    /// Panics unless every answer was its request's, every acknowledged write is on this node, and no write is there
    /// whose client was told that it had not happened. Prints what there was.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn check(&self, node: &Node) {
        println!("{}", self.summary());
        let closed: Vec<_> =
            self.failures.iter().filter(|failure| failure.code == "closed").take(5).collect();
        println!("closed: {closed:?}");
        assert!(self.foreign.is_empty(), "{} foreign answers: {:?}", self.foreign.len(), self.foreign);
        let there = ids(node);
        let missing: Vec<_> = self.acknowledged.iter().filter(|id| !there.contains(id)).collect();
        assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
        let denied = |failure: &&Failure| matches!(failure.code.as_str(), "40001" | "57P03" | "53300");
        let ghosts: Vec<_> =
            self.failures.iter().filter(denied).filter(|failure| there.contains(&failure.id)).collect();
        assert!(ghosts.is_empty(), "said not to have happened, and did: {ghosts:?}");
    }

    /// Panics when anything failed.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn nothing_failed(&self) {
        let first = self.failures.first();
        assert!(first.is_none(), "{} failures, the first: {first:?}", self.failures.len());
    }

    /// How often each step failed with each code.
    #[must_use]
    pub fn codes(&self) -> BTreeMap<(Step, &str), usize> {
        let mut codes = BTreeMap::new();
        for failure in &self.failures {
            *codes.entry((failure.step, failure.code.as_str())).or_default() += 1;
        }
        codes
    }

    /// Panics when a request of some clients failed with a code that its step may not get when a primary is lost:
    /// before it was sent 57P03, inside a transaction 40001, a write by itself 40003, a COMMIT 08007 or 40001.
    ///
    /// # Panics
    /// See above.
    #[track_caller]
    pub fn codes_of_a_lost_primary(&self, which: impl Fn(&Failure) -> bool) {
        let allowed = |failure: &&Failure| {
            matches!(
                (failure.step, failure.code.as_str()),
                (Step::Single | Step::Begin, "57P03" | "40003")
                    | (Step::Inside, "40001" | "57P03")
                    | (Step::Begin, "40001")
                    | (Step::Commit, "08007" | "40001")
                    | (Step::Read, "40003")
            )
        };
        let wrong = self.failures.iter().filter(|failure| which(failure) && !allowed(failure));
        let wrong: Vec<_> = wrong.take(5).collect();
        assert!(wrong.is_empty(), "codes that no rule has: {wrong:#?}");
    }

    /// In one line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} good answers, {} writes acknowledged, longest request {:?}, longest time without a write {:?}, \
             failures {:?}",
            self.good,
            self.acknowledged.len(),
            self.longest,
            self.gap,
            self.codes()
        )
    }
}

/// Every id that is on a node.
#[must_use]
pub fn ids(node: &Node) -> HashSet<i64> {
    let rows = node.superuser().query("select i from written", &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
