//! Wiring of `helios-controlplane`: opens the store, binds, spawns, returns the bound addresses, and stops in order:
//! streams end, open calls get a moment, tasks end, the store is closed. No policy lives here.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::config::{Access, Config, StoreSettings, Token};
use helios_tls::ServerSide;
use helios_tls::live::{Expires, Live};
use helios_tls::postgres::{Dialling, ToServers};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::Core;
use crate::grpc::auth::Door;
use crate::grpc::management::About;
use crate::grpc::{self, discovery, management, secure};
use crate::http;
use crate::keeper::Refusal;
use crate::peers::{self, Peers};
use crate::store::{self, Store};
use crate::switchover::Desk;

/// Pause before what a shared store holds is read again, if it could not be used.
const AGAIN: Duration = Duration::from_secs(1);

/// A control plane that runs.
pub struct App {
    /// Where data planes connect.
    pub discovery: SocketAddr,
    /// Where operators connect; `None`: it is turned off.
    pub management: Option<SocketAddr>,
    /// Where /health and /metrics are.
    pub admin: SocketAddr,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// A listener, and how it encrypts if it does.
type Side = (TcpListener, Option<Arc<ServerSide>>);

/// What is needed to serve once the store has answered.
struct Opening {
    config: Config,
    store: Arc<dyn Store>,
    servers: Arc<ToServers>,
    streams: Side,
    operators: Option<Side>,
    ready: watch::Sender<Option<Core>>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// Starts a control plane; its file seeds an empty store. A store that is shared may be away: nobody is served until it
/// answers. Needs a runtime.
///
/// # Errors
/// The store cannot be used, or an address cannot be bound.
pub async fn start(config: &Config) -> io::Result<App> {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let streams = grpc::bind(config.discovery.listen, "discovery").await?;
    let operators = match config.management.enabled {
        true => Some(grpc::bind(config.management.listen, "management").await?),
        false => None,
    };
    let admin = http::bind(config.admin).await?;
    let (discovery, admin_address) = (streams.local_addr()?, admin.local_addr()?);
    let management = operators.as_ref().map(TcpListener::local_addr).transpose()?;
    let of_discovery = secure::open(config.discovery.tls.as_ref(), &stop, &tracker)?;
    secure::warn_of_plain_text(config.discovery.listen, of_discovery.as_ref(), "discovery");
    let mut of_management = None;
    if config.management.enabled {
        of_management = secure::open(config.management.tls.as_ref(), &stop, &tracker)?;
        secure::warn_of_plain_text(config.management.listen, of_management.as_ref(), "management");
    }
    let servers = Arc::new(ToServers::open(&config.server_tls).map_err(io::Error::other)?);
    let listening = [&of_discovery, &of_management].into_iter().flatten();
    let mut sides: Vec<Arc<dyn Expires>> =
        listening.map(|side| -> Arc<dyn Expires> { Arc::<ServerSide>::clone(side) }).collect();
    if let Some(live) = &servers.live {
        sides.push(Arc::<Live<Dialling>>::clone(live));
        tracker.spawn(Arc::clone(live).follow(stop.clone()));
    }
    let store = store::open(config, &name(discovery.port())).map_err(described)?;
    let (ready, core) = watch::channel(None);
    tracker.spawn(http::serve(admin, core, sides, stop.clone()));
    let opening = Opening {
        config: config.clone(),
        store: Arc::clone(&store),
        servers,
        streams: (streams, of_discovery),
        operators: operators.map(|listener| (listener, of_management)),
        ready,
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    if store.shared().is_some() {
        tracker.spawn(opening.wait_and_serve());
    } else {
        let core = opening.open().await.map_err(described)?;
        opening.serve(core).await?;
    }
    Ok(App { discovery, management, admin: admin_address, store, stop, tracker })
}

/// Where the numbers of data planes are kept: with a store of one process beside it, else nowhere.
fn peers_file(config: &Config) -> Option<PathBuf> {
    match &config.store {
        Some(StoreSettings::Embedded(directory)) => Some(directory.join(peers::FILE)),
        Some(StoreSettings::Etcd(_)) | None => None,
    }
}

/// How other control planes see this one.
fn name(port: u16) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}:{port}", if host.is_empty() { "helios-controlplane" } else { host })
}

impl Opening {
    /// Starts the core with what the store holds.
    async fn open(&self) -> Result<Core, Refusal> {
        let (store, text) = (Arc::clone(&self.store), self.config.text.clone());
        let (stop, tracker) = (self.stop.clone(), self.tracker.clone());
        let servers = Arc::clone(&self.servers);
        let start = move || Core::start((store, servers), (text.expose(), false), &stop, &tracker);
        tokio::task::spawn_blocking(start).await.map_err(|_| Refusal::Stopping)?
    }

    /// Waits for a shared store, then serves.
    async fn wait_and_serve(self) {
        let turned_away = async {
            match &self.operators {
                Some((operators, _)) => drop(tokio::join!(turn_away(&self.streams.0), turn_away(operators))),
                None => turn_away(&self.streams.0).await,
            }
        };
        let core = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            core = self.open_in_the_end() => core,
            () = turned_away => return,
        };
        tracing::info!("ready");
        if let Err(error) = self.serve(core).await {
            tracing::error!(%error, "cannot serve");
        }
    }

    async fn open_in_the_end(&self) -> Core {
        let mut said = String::new();
        loop {
            if let Some(mut view) = self.store.shared() {
                // An error says that the process is stopping.
                let _ = view.wait_for(|view| view.up).await;
            }
            match self.open().await {
                Ok(core) => return core,
                Err(refusal) => {
                    let why = described(refusal).to_string();
                    if why != said {
                        tracing::error!(error = %why, "cannot start with what the store holds; trying again");
                        said = why;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn serve(self, core: Core) -> io::Result<()> {
        let Self { config, streams, operators, ready, stop, tracker, .. } = self;
        let peers = Peers::open(peers_file(&config));
        let service = discovery::Service::new(&config.discovery.cluster, &core, peers, (&stop, &tracker));
        // Each listener knows only the tokens that are meant for it.
        let (of_dataplanes, of_operators): (Vec<Token>, Vec<Token>) =
            config.management.tokens.iter().cloned().partition(|token| token.access == Access::Dataplane);
        let routes = grpc::discovery_routes(service).await;
        tracker.spawn(logged(grpc::serve(streams, routes, Door::new(&of_dataplanes, false), stop.clone())));
        if let Some(listener) = operators {
            let about = About {
                cluster: config.discovery.cluster.clone(),
                program: "helios-controlplane",
                version: env!("CARGO_PKG_VERSION"),
                standalone: false,
                started: Instant::now(),
            };
            let desk = Desk::new(&core, config.switchover.clone());
            let service = management::Service::new(&core, about, (None, desk), stop.clone(), tracker.clone());
            let routes = grpc::management_routes(service).await?;
            tracker.spawn(logged(grpc::serve(listener, routes, Door::new(&of_operators, false), stop)));
        }
        ready.send_replace(Some(core));
        Ok(())
    }
}

/// Ends every connection at once: who comes now had better try elsewhere.
async fn turn_away(listener: &TcpListener) {
    loop {
        if listener.accept().await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// An error with its causes, as one text.
fn described(error: impl std::error::Error) -> io::Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    io::Error::other(text)
}

async fn logged(serving: impl Future<Output = io::Result<()>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "a listener failed");
    }
}

impl App {
    /// Stops: streams end, open calls get a moment.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        let store = self.store;
        // An error says that closing has panicked, which has been told.
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}
