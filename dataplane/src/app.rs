//! Wiring: binds, spawns, returns the bound addresses, and stops in order: readiness off, grace, no more clients, sessions
//! end at their next rest, deadline, workers end. No policy lives here.

use crate::auth::Auth;
use crate::cache::{self, Cache};
use crate::console;
use crate::console::{Desk, Obey, Reload};
use crate::control::{self, Link, Remote, StatusOf};
use crate::http::{self, Shim};
use crate::lanes::{Arrival, Lanes};
use crate::legs::{ClientLeg, ServerLeg};
use crate::limits::Clients;
use crate::listener::{self, WorkerThread, start_worker};
use crate::pool::node::Source;
use crate::pool::{Identities, Pools, catalog, sweep};
use crate::registry::{self, Registry};
use crate::spans::Tracer;
use crate::standalone::{self, Standalone};
use crate::statements::Scope;
use crate::worker::{Shared, TellEvidence};
use helios_proto::config::Config;
use helios_proto::model::Snapshot;
use helios_tls::live::Live;
use helios_tls::postgres::{Accepting, Dialling, ToServers};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Clients that the kernel may hold for us before we accept them.
const BACKLOG: u32 = 4096;
/// How often a drain looks whether everybody has left.
const DRAIN_TICK: Duration = Duration::from_millis(20);
/// How long sessions that are closed may take to tell their clients.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A data plane that runs.
pub struct App {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the HTTP shim listens.
    pub admin: SocketAddr,
    /// Where operators connect to a standalone proxy; `None`: nowhere.
    pub management: Option<SocketAddr>,
    /// Clients of the console who ask for the configuration to be read again.
    pub reloads: mpsc::Receiver<Reload>,
    control: Control,
    shared: Arc<Shared>,
    workers: Arc<Vec<WorkerThread>>,
    draining: Arc<AtomicBool>,
    accepting: CancellationToken,
    running: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
    drain_timeout: Duration,
}

/// Where snapshots come from.
enum Control {
    Standalone(Standalone),
    Remote(Remote),
}

/// Says that a snapshot is in force.
type Applied = Box<dyn Fn(&Snapshot) + Send>;

/// Starts a data plane; needs a runtime for the control tasks.
///
/// # Errors
/// An address that cannot be bound, or no threads.
pub async fn start(config: Config) -> io::Result<App> {
    let (listener, admin_listener) = (bind(config.listen)?, bind(config.admin)?);
    let (listen, admin) = (listener.local_addr()?, admin_listener.local_addr()?);
    let (accepting, running, tasks) =
        (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let registry = Arc::new(Registry::default());
    let servers = Arc::new(ToServers::open(&config.server_tls).map_err(io::Error::other)?);
    let control = Control::start(&config, (&registry, &servers), &running, &tasks)?;
    let snapshots = control.snapshots();
    let first = Arc::clone(&snapshots.borrow());
    let client_leg = secure(&config, (&servers, &control.link()), &running, &tasks)?;
    let (reload, reloads) = mpsc::channel(1);
    let desk = Arc::new(Desk::new(control.obey(), reload, listen));
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let (lanes, inboxes) = Lanes::new(config.workers.unwrap_or_else(cores).max(1));
    let shared = Arc::new(Shared {
        lanes: Arc::new(lanes),
        pools: Arc::new(Pools::new(first, control.source(), ServerLeg::new(servers))),
        identities: Arc::default(),
        statements: Scope::new(registry::random()),
        answers: Cache::new(&config)?,
        tracer: Tracer::new(config.tracing.as_ref(), control::default_name(listen.port()))?,
        registry,
        auth: Auth::default(),
        client_leg,
        evidence: control.evidence(),
        clients: Arc::new(Clients::default()),
        console: Arc::clone(&desk),
        cleanups: TaskTracker::new(),
    });
    let workers = Arc::new(spawn_workers(inboxes, &shared, &running)?);
    if workers.len() > 1 {
        tasks.spawn(Arc::clone(&shared.lanes).balance(running.clone()));
    }
    let draining = Arc::new(AtomicBool::new(false));
    let management = control.serve(&config, &shared, &workers, (&draining, &running, &tasks)).await?;
    tasks.spawn(follow(Arc::clone(&shared), snapshots, control.applied(), running.clone()));
    tasks.spawn(desk.follow(Arc::clone(&shared.identities), running.clone()));
    look_after(&shared, &running, &tasks);
    tasks.spawn(listener::accept(listener, Arc::clone(&shared), accepting.clone()));
    let (link, on) = (control.link(), Arc::clone(&shared));
    let shim = Shim { shared: on, workers: Arc::clone(&workers), draining: Arc::clone(&draining), link };
    tasks.spawn(http::serve(admin_listener, Arc::new(shim), running.clone()));
    let Config { grace, drain_timeout, .. } = config;
    Ok(App {
        listen,
        admin,
        management,
        reloads,
        control,
        shared,
        workers,
        draining,
        accepting,
        running,
        tasks,
        grace,
        drain_timeout,
    })
}

/// What goes on beside the sessions: old connections close, catalogs are looked at.
fn look_after(shared: &Arc<Shared>, stop: &CancellationToken, tasks: &TaskTracker) {
    let both = || (Arc::clone(&shared.pools), Arc::<Identities>::clone(&shared.identities));
    let (pools, identities) = both();
    tasks.spawn(sweep::run(pools, identities, stop.clone(), shared.cleanups.clone()));
    let (pools, identities) = both();
    tasks.spawn(catalog::run(pools, identities, stop.clone()));
    if let Some(answers) = &shared.answers {
        cache::start(answers, shared, stop, tasks);
    }
    if let Some(tracer) = &shared.tracer {
        tasks.spawn(Arc::clone(tracer).run(stop.clone()));
    }
}

/// TLS towards clients; its files and those towards servers are followed from now on.
fn secure(
    config: &Config,
    (servers, link): (&ToServers, &Link),
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<ClientLeg> {
    let client = ClientLeg::open(&config.client_tls).map_err(io::Error::other)?;
    if let Some(live) = client.live() {
        link.add_tls(Arc::<Live<Accepting>>::clone(live));
        tasks.spawn(Arc::clone(live).follow(stop.clone()));
    }
    if let Some(live) = &servers.live {
        link.add_tls(Arc::<Live<Dialling>>::clone(live));
        tasks.spawn(Arc::clone(live).follow(stop.clone()));
    }
    Ok(client)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)
}

fn spawn_workers(
    inboxes: Vec<UnboundedReceiver<Arrival>>,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
) -> io::Result<Vec<WorkerThread>> {
    let start = |(id, inbox)| start_worker(id, shared, inbox, stop.clone());
    inboxes.into_iter().enumerate().map(start).collect()
}

/// Puts each snapshot in force.
async fn follow(
    shared: Arc<Shared>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    applied: Applied,
    stop: CancellationToken,
) {
    in_force(&shared, &applied);
    let mut hold: Option<Instant> = None;
    loop {
        let over = tokio::time::sleep_until(hold.unwrap_or_else(Instant::now).into());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
            () = over, if hold.is_some() => {
                hold = None;
                if shared.pools.release_holds() {
                    tracing::warn!("a switchover did not end in time: work goes on where it was");
                    shared.registry.wake_all();
                }
                continue;
            }
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        hold = snapshot.hold.as_ref().map(|hold| hold.until);
        if shared.pools.apply(snapshot) {
            shared.registry.wake_all();
        }
        in_force(&shared, &applied);
    }
}

/// What the snapshot in force wants of others than the pools.
fn in_force(shared: &Shared, applied: &Applied) {
    let view = shared.pools.view();
    if let Some(answers) = &shared.answers {
        answers.obey(&view.snapshot);
    }
    applied(&view.snapshot);
}

impl Control {
    fn start(
        config: &Config,
        (registry, servers): (&Arc<Registry>, &Arc<ToServers>),
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        match &config.control_plane {
            Some(plane) => {
                let arbiter = standalone::arbiter(servers, stop, tasks);
                Remote::start(config, plane, (arbiter, registry), stop.clone(), tasks).map(Self::Remote)
            }
            None => Standalone::start(config, servers, stop, tasks).map(Self::Standalone),
        }
    }

    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        match self {
            Self::Standalone(control) => control.snapshots(),
            Self::Remote(control) => control.snapshots(),
        }
    }

    fn evidence(&self) -> TellEvidence {
        match self {
            Self::Standalone(control) => control.evidence(),
            Self::Remote(control) => control.evidence(),
        }
    }

    /// Where shares of the nodes' budgets come from.
    const fn source(&self) -> Source {
        match self {
            Self::Standalone(_) => Source::Alone,
            Self::Remote(_) => Source::Leased,
        }
    }

    fn link(&self) -> Arc<Link> {
        match self {
            Self::Standalone(control) => control.link(),
            Self::Remote(control) => control.link(),
        }
    }

    /// Where orders of the console go.
    fn obey(&self) -> Obey {
        match self {
            Self::Standalone(control) => control.obey(),
            Self::Remote(_) => Box::new(|_| Box::pin(async { Err(Box::new(console::of_a_fleet())) })),
        }
    }

    fn applied(&self) -> Applied {
        match self {
            Self::Standalone(control) => Box::new(control.applied()),
            // The stream acknowledges what it has published.
            Self::Remote(_) => Box::new(|_| {}),
        }
    }

    /// Reports how the data plane is doing, and serves operators where that is this process's job.
    async fn serve(
        &self,
        config: &Config,
        shared: &Arc<Shared>,
        workers: &Arc<Vec<WorkerThread>>,
        (draining, stop, tasks): (&Arc<AtomicBool>, &CancellationToken, &TaskTracker),
    ) -> io::Result<Option<SocketAddr>> {
        let (of, on, off) = (Arc::clone(shared), Arc::clone(workers), Arc::clone(draining));
        let status: StatusOf = Box::new(move || control::status(&of, &on, off.load(Ordering::Relaxed)));
        match self {
            Self::Standalone(control) => {
                control.report(status, stop.clone(), tasks);
                control.serve(config, shared, (stop, tasks)).await
            }
            Self::Remote(control) => {
                let pools = Arc::clone(&shared.pools);
                control.report(status, Box::new(move |node, granted| pools.grant(node, granted)));
                Ok(None)
            }
        }
    }
}

impl App {
    /// Puts a new configuration in force, without its addresses and workers: those need a restart.
    ///
    /// # Errors
    /// Why it stays as it is, in words for an operator.
    pub async fn reload(&self, config: &Config) -> Result<(), String> {
        match &self.control {
            Control::Standalone(control) => {
                control.reload(config.text.expose()).await.map_err(|refusal| refusal.to_string())
            }
            Control::Remote(_) => {
                Err("the control plane has the configuration; use heliosctl config apply".to_owned())
            }
        }
    }

    /// The way to the workers.
    #[must_use]
    pub fn lanes(&self) -> &Arc<Lanes> {
        &self.shared.lanes
    }

    /// Drains and stops; waits for nobody any more once `hurry` is over.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        self.draining.store(true, Ordering::Relaxed);
        let why = tokio::select! {
            biased;
            () = hurry => "told to stop a second time",
            () = self.drain() => "drain timeout",
        };
        self.accepting.cancel();
        let left = self.shared.registry.len();
        if left > 0 {
            tracing::warn!(sessions = left, "{why}: closing sessions");
            self.shared.registry.kill();
            self.wait_for_sessions(Instant::now().checked_add(LAST_WORDS)).await;
        }
        self.shared.cleanups.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.shared.cleanups.wait()).await;
        self.running.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(workers) = Arc::get_mut(&mut self.workers) {
            workers.iter_mut().for_each(WorkerThread::join);
        }
    }

    /// Whoever sends clients here sees the readiness go, and has the grace to send them elsewhere; then sessions end at their
    /// rests, until the timeout.
    async fn drain(&self) {
        if !self.grace.is_zero() {
            tracing::info!(
                seconds = self.grace.as_secs_f64(),
                "grace: not ready any more, clients are still let in"
            );
            tokio::time::sleep(self.grace).await;
        }
        self.accepting.cancel();
        self.shared.registry.drain();
        self.wait_for_sessions(Instant::now().checked_add(self.drain_timeout)).await;
    }

    async fn wait_for_sessions(&self, deadline: Option<Instant>) {
        while !self.shared.registry.is_empty() && deadline.is_none_or(|at| Instant::now() < at) {
            tokio::time::sleep(DRAIN_TICK).await;
        }
    }
}
