//! The data plane's side of a control plane elsewhere: takes snapshots from its stream, keeps the last good one on disk,
//! and goes on alone for as long as nobody answers. The only user of generated types here. Owner of one task for the
//! stream, one for the file and one that takes over. Never waits for a session, never takes a snapshot that goes back.

pub mod alone;
mod last_good;
mod peers;
mod reports;
mod stream;

use crate::listener::WorkerThread;
use crate::pool::node::Granted;
use crate::registry::Registry;
use crate::worker::{Shared, TellEvidence};
use alone::StartArbiter;
use helios_proto::config::{Config, ControlPlane};
use helios_proto::model::{Evidence, NodeName, NodeOps, NodeState, Role, Snapshot, Spec};
use helios_proto::wire::{Mirror, v1};
use helios_tls::live::Expires;
use helios_tls::{ClientSide, Files};
use peers::Peers;
use reports::Reports;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Evidence that may wait for the stream; more is dropped: there will be more.
const QUEUE: usize = 256;

/// Says how the data plane is doing; there once it has started.
pub type StatusOf = Box<dyn Fn() -> v1::Status + Send + Sync>;

/// Takes a share of a node's budget.
pub type TakeGrant = Box<dyn Fn(&str, Granted) + Send + Sync>;

/// The data plane as its control plane sees it; there once it has started.
pub struct Face {
    /// How it is doing.
    pub status: StatusOf,
    /// What it is granted.
    pub grant: TakeGrant,
}

/// What is known about the way to the control plane, for metrics and /health.
pub struct Link {
    connected: AtomicBool,
    /// What is in force comes from the control plane, on a stream that lives.
    led: watch::Sender<bool>,
    /// This process probes the nodes itself.
    alone: AtomicBool,
    /// Snapshots refused as a whole.
    pub refused: AtomicU64,
    /// What came.
    pub messages: Messages,
    /// Reports that did not fit the way to the control plane.
    pub reports_dropped: AtomicU64,
    /// When the control plane last confirmed what is in force.
    confirmed: Mutex<Instant>,
    /// The control plane is in this process.
    local: bool,
    /// TLS of this process's gRPC legs.
    tls: Mutex<Vec<Arc<dyn Expires>>>,
}

/// What came from the control plane, counted.
#[derive(Default)]
pub struct Messages {
    /// Whole snapshots.
    pub full: AtomicU64,
    /// Changes of the configuration.
    pub delta: AtomicU64,
    /// What is known about the nodes.
    pub topology: AtomicU64,
    /// Changes that did not fit.
    pub resyncs: AtomicU64,
}

/// A control plane elsewhere.
pub struct Remote {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// For the control plane, and for who takes its place.
    evidence: [mpsc::Sender<(NodeName, Evidence)>; 2],
    link: Arc<Link>,
    face: Arc<OnceLock<Face>>,
}

impl Link {
    /// A link that is not there yet; `local`: one that cannot break.
    #[must_use]
    pub fn new(local: bool) -> Arc<Self> {
        Arc::new(Self {
            connected: AtomicBool::new(local),
            led: watch::channel(local).0,
            alone: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            messages: Messages::default(),
            reports_dropped: AtomicU64::new(0),
            confirmed: Mutex::new(Instant::now()),
            local,
            tls: Mutex::default(),
        })
    }

    /// Whether the control plane answers.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How long ago the control plane confirmed what is in force; since the start if it never did.
    #[must_use]
    pub fn age(&self) -> Duration {
        if self.local {
            return Duration::ZERO;
        }
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether this process probes the nodes itself because the control plane is away.
    #[must_use]
    pub fn alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    /// Certificates to report on.
    #[must_use]
    pub fn tls(&self) -> Vec<Arc<dyn Expires>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reports on these certificates from now on.
    pub fn add_tls(&self, side: Arc<dyn Expires>) {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).push(side);
    }

    fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Relaxed);
    }

    /// Whether the control plane leads, and notice when that changes.
    fn leadership(&self) -> watch::Receiver<bool> {
        self.led.subscribe()
    }

    fn is_led(&self) -> bool {
        *self.led.borrow()
    }

    fn set_led(&self, led: bool) {
        self.led.send_if_modified(|now| std::mem::replace(now, led) != led);
    }

    fn confirm(&self) {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Remote {
    /// Starts with the last good snapshot, else with what the file says, and looks for the control plane.
    ///
    /// # Errors
    /// The address for peers cannot be bound, or certificate files are not good.
    pub fn start(
        config: &Config,
        plane: &ControlPlane,
        (arbiter, registry): (StartArbiter, &Arc<Registry>),
        stop: CancellationToken,
        tracker: &TaskTracker,
    ) -> io::Result<Self> {
        let number = Arc::default();
        let file = plane.state_dir.as_deref();
        let file = file.map(|directory| last_good::Place::new(directory, &plane.cluster, &number));
        let (first, held_hash) = match file.as_ref().and_then(last_good::Place::load) {
            Some((snapshot, hash)) => {
                let revision = snapshot.revision;
                tracing::info!(
                    revision,
                    "starting with the last good snapshot, until the control plane answers"
                );
                (snapshot, hash)
            }
            None => (seed(&config.spec), Vec::new()),
        };
        let (publish, snapshots) = watch::channel(Arc::new(first));
        let (evidence, seen) = mpsc::channel(QUEUE);
        let (evidence_alone, seen_alone) = mpsc::channel(QUEUE);
        let (keep, kept) = watch::channel(None);
        let (publish, keep) = (Arc::new(publish), Arc::new(keep));
        let (link, face) = (Link::new(false), Arc::new(OnceLock::new()));
        let tls = follow_tls(plane, &link, &stop, tracker)?;
        let peers = plane.peers.as_ref().map(|settings| {
            Peers::start(plane, (settings, tls.clone()), (registry, &number), &stop, tracker)
        });
        let guard = alone::Guard {
            start: arbiter,
            publish: Arc::clone(&publish),
            keep: Arc::clone(&keep),
            evidence: seen_alone,
            link: Arc::clone(&link),
        };
        let client = stream::Client {
            name: plane.name.clone().unwrap_or_else(|| default_name(config.listen.port())),
            plane: plane.clone(),
            tls,
            peers: peers.transpose()?,
            boot_id: boot_id(),
            publish,
            mirror: Mirror::new(held_hash),
            keep,
            evidence: seen,
            link: Arc::clone(&link),
            reports: Reports::new(Arc::clone(&face), Arc::clone(&link)),
        };
        tracker.spawn(client.run(stop.clone()));
        tracker.spawn(guard.run(stop.clone()));
        if let Some(place) = file {
            tracker.spawn(place.run(kept, stop));
        }
        Ok(Self { snapshots, evidence: [evidence, evidence_alone], link, face })
    }

    /// Snapshots as they come; the first is there already.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Where sessions report what they saw of a node; never waits.
    #[must_use]
    pub fn evidence(&self) -> TellEvidence {
        let (queues, link) = (self.evidence.clone(), self.link());
        Box::new(move |node, evidence| {
            let [stream, alone] = &queues;
            // Dropped when nobody can keep up: there will be more.
            let queue = if link.is_led() { stream } else { alone };
            drop(queue.try_send((node.clone(), evidence)));
        })
    }

    /// The state of the link.
    #[must_use]
    pub fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    /// Sends this status from now on, and gives away what is granted.
    pub fn report(&self, status: StatusOf, grant: TakeGrant) {
        // The first one stays: there is one data plane.
        let _ = self.face.set(Face { status, grant });
    }
}

/// TLS towards the control plane, if the file asks for it.
fn follow_tls(
    plane: &ControlPlane,
    link: &Arc<Link>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> io::Result<Option<Arc<ClientSide>>> {
    let Some(tls) = &plane.tls else { return Ok(None) };
    let side = ClientSide::open(Files::of_client(tls)).map_err(io::Error::other)?;
    tracker.spawn(Arc::clone(&side).follow(stop.clone()));
    link.add_tls(Arc::<ClientSide>::clone(&side));
    Ok(Some(side))
}

/// A snapshot of what the file says, older than any from a control plane.
fn seed(spec: &Spec) -> Snapshot {
    let state = |node: &Arc<_>| NodeState::unknown(Arc::clone(node), NodeOps::default());
    Snapshot {
        revision: 0,
        config_revision: 0,
        epoch: 0,
        timeline: 0,
        incarnation: 0,
        system: None,
        last_primary: None,
        settings: Arc::clone(&spec.settings),
        health: Arc::new(spec.health.clone()),
        nodes: spec.nodes.iter().map(state).collect(),
        primary: spec.nodes.iter().position(|node| node.role == Role::Primary),
        hold: None,
        authority: None,
        cache_flush: 0,
    }
}

/// Pause between two reports.
pub const BEAT: Duration = Duration::from_secs(1);
/// The same while the control plane waits for what runs here to end.
pub const QUICK_BEAT: Duration = Duration::from_millis(20);

/// How the data plane is doing.
#[must_use]
pub fn status(shared: &Shared, workers: &[WorkerThread], draining: bool) -> v1::Status {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let view = shared.pools.view();
    let pools: Vec<v1::PoolStatus> = view
        .pools
        .iter()
        .map(|pool| {
            let (standing, counts) = (pool.standing(), pool.counts());
            v1::PoolStatus {
                node: pool.node.name.to_string(),
                total: counts.total,
                active: counts.active,
                idle: counts.idle,
                waiting: number(counts.waiting),
                max: pool.most(),
                resting: pool.resting(),
                granted: standing.granted,
                floor: standing.floor,
                limit: standing.limit,
            }
        })
        .collect();
    let sum = |of: fn(&v1::PoolStatus) -> u32| pools.iter().map(of).fold(0, u32::saturating_add);
    let counted = |of: fn(&crate::metrics::Counters) -> &AtomicU64| {
        workers.iter().map(|w| of(&w.counters).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    };
    v1::Status {
        clients: number(shared.registry.len()),
        active: sum(|pool| pool.active),
        idle: sum(|pool| pool.idle),
        waiting: sum(|pool| pool.waiting),
        reads: counted(|counters| &counters.reads),
        writes: counted(|counters| &counters.writes),
        draining,
        pools,
        revision: view.snapshot.revision,
        cache: shared.answers.as_ref().map(|answers| answers.status()),
        // Of the stream.
        ..v1::Status::default()
    }
}

/// Host name and port: the same over restarts.
#[must_use]
pub fn default_name(port: u16) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "heliosdb-proxy" } else { host };
    format!("{host}-{port}")
}

/// Another text at each start.
#[must_use]
pub fn boot_id() -> String {
    let mut bytes = [0; 8];
    // Without randomness the text is the same at each start, which only makes a take-over look like a reconnect.
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
