//! Health checks: one task per node that probes it in every round, and often while something is wrong.
//! Owner of the tasks: the coordinator, which takes their results as events. No task judges its node.

use std::sync::Arc;
use std::time::Duration;

use helios_proto::model::{HealthSettings, Node};
use helios_tls::postgres::ToServers;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cluster::Event;
use probe::Prober;

mod probe;
mod verdict;

pub(crate) use verdict::Verdict;

/// What a probe that logged in saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub in_recovery: bool,
    /// The cluster's system identifier.
    pub system: u64,
    /// Timeline of a node that takes writes; 0 if it has none or is in recovery.
    pub timeline: u32,
    /// Timeline that a node in recovery follows; `None`: not in recovery, or the login may not see it.
    pub follows: Option<u32>,
    /// It has a receiver, which says so; else that is the least, and it may be further.
    pub streams: bool,
    /// WAL position written (in recovery: received), in bytes.
    pub wal: Option<u64>,
    /// WAL position replayed, in bytes; only in recovery.
    pub replayed: Option<u64>,
}

/// A good probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Round trip on a connection that is already open, or of connecting and knocking.
    pub latency: Duration,
    /// `None` without a login.
    pub facts: Option<Facts>,
}

/// A failed probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    /// For an operator; names no user and no SQL.
    pub text: Arc<str>,
}

/// What a failed probe says about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Refused, reset, no route, no such name, or not PostgreSQL.
    Unreachable,
    /// Nothing came in time: a frozen server, or a black hole.
    NoAnswer,
    /// The server lives but does not serve.
    NotReady,
    /// The server serves, but has no connection left for the probe.
    Full,
    /// The server serves, but the probe's login or query is wrong.
    Misconfigured,
}

/// A node's probe task; ends when dropped.
pub(crate) struct Task {
    pub node: Arc<Node>,
    hunt: watch::Sender<Option<Duration>>,
    _stop: DropGuard,
}

/// What a probe task waits for.
struct Wake {
    rounds: watch::Receiver<u64>,
    hunt: watch::Receiver<Option<Duration>>,
    stop: CancellationToken,
}

/// Why a wait ended.
enum Next {
    /// It is time to probe.
    Round,
    /// A hunt begins: something is wrong, here or elsewhere.
    Hunt,
    Stop,
}

impl FailureKind {
    /// Whether the server itself serves: no reason to take it out.
    pub const fn serves(self) -> bool {
        match self {
            Self::Full | Self::Misconfigured => true,
            Self::Unreachable | Self::NoAnswer | Self::NotReady => false,
        }
    }
}

impl Failure {
    fn new(kind: FailureKind, text: String) -> Self {
        Self { kind, text: text.into() }
    }
}

impl Task {
    /// Starts probing: at once, in every round, and while hunting. Results go to `events`.
    pub fn start(
        (node, servers): (Arc<Node>, &Arc<ToServers>),
        settings: &HealthSettings,
        rounds: watch::Receiver<u64>,
        events: mpsc::Sender<Event>,
        (stop, tracker): (&CancellationToken, &TaskTracker),
    ) -> Self {
        let stop = stop.child_token();
        let (hunt, hunted) = watch::channel(None);
        let prober = Prober::new(
            (Arc::clone(&node), Arc::clone(servers)),
            settings.credential.clone(),
            settings.check_timeout,
        );
        let wake = Wake { rounds, hunt: hunted, stop: stop.clone() };
        tracker.spawn(run(Arc::clone(&node), prober, wake, events));
        Self { node, hunt, _stop: stop.drop_guard() }
    }

    /// Probes at once and with this pause, or only once per round again.
    pub fn hunt(&self, pause: Option<Duration>) {
        self.hunt.send_if_modified(|now| std::mem::replace(now, pause) != pause);
    }
}

async fn run(node: Arc<Node>, mut prober: Prober, mut wake: Wake, events: mpsc::Sender<Event>) {
    loop {
        let outcome = tokio::select! {
            biased;
            () = wake.stop.cancelled() => return,
            outcome = prober.probe() => outcome,
        };
        let event = Event::Probed { node: Arc::clone(&node), outcome };
        if events.send(event).await.is_err() {
            return;
        }
        match wake.wait().await {
            Next::Stop => return,
            Next::Round => {}
            Next::Hunt => prober.doubt(),
        }
    }
}

impl Wake {
    /// Waits until it is time to probe, or to stop.
    async fn wait(&mut self) -> Next {
        let probed = Instant::now();
        let mut hunting = *self.hunt.borrow_and_update();
        loop {
            let next = hunting.map(|pause| probed + pause);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Next::Stop,
                round = self.rounds.changed() => return if round.is_ok() { Next::Round } else { Next::Stop },
                flag = self.hunt.changed() => {
                    let before = hunting;
                    hunting = *self.hunt.borrow_and_update();
                    if flag.is_err() {
                        return Next::Stop;
                    }
                    if hunting.is_some() && before.is_none() {
                        return Next::Hunt;
                    }
                }
                () = sleep_until(next.unwrap_or(probed)), if next.is_some() => return Next::Round,
            }
        }
    }
}
