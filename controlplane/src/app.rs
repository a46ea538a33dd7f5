//! Wiring of `helios-controlplane`: opens the store, binds, spawns, returns the bound addresses, and stops in order:
//! streams end, open calls get a moment, tasks end. No policy lives here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use helios_proto::config::{Access, Config, Token};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::Core;
use crate::grpc::auth::Door;
use crate::grpc::management::About;
use crate::grpc::{self, discovery, management, secure};
use crate::http;
use crate::peers::{self, Peers};
use crate::store::Directory;
use crate::switchover::Desk;

/// A control plane that runs.
pub struct App {
    /// Where data planes connect.
    pub discovery: SocketAddr,
    /// Where operators connect; `None`: it is turned off.
    pub management: Option<SocketAddr>,
    /// Where /health and /metrics are.
    pub admin: SocketAddr,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// Starts a control plane; `text` seeds an empty store. Needs a runtime.
///
/// # Errors
/// The store cannot be used, or an address cannot be bound.
pub async fn start(config: &Config) -> io::Result<App> {
    let directory = config.store.as_ref().map(|store| store.directory.clone()).unwrap_or_default();
    let store = Arc::new(Directory::open(&directory).map_err(described)?);
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let streams = grpc::bind(config.discovery.listen, "discovery").await?;
    let operators = match config.management.enabled {
        true => Some(grpc::bind(config.management.listen, "management").await?),
        false => None,
    };
    let admin = http::bind(config.admin).await?;
    let addresses = (streams.local_addr()?, admin.local_addr()?);
    let management = operators.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?;
    let of_discovery = secure::open(config.discovery.tls.as_ref(), &stop, &tracker)?;
    secure::warn_of_plain_text(config.discovery.listen, of_discovery.as_ref(), "discovery");
    let mut of_management = None;
    if config.management.enabled {
        of_management = secure::open(config.management.tls.as_ref(), &stop, &tracker)?;
        secure::warn_of_plain_text(config.management.listen, of_management.as_ref(), "management");
    }
    let sides: Vec<_> = [&of_discovery, &of_management].into_iter().flatten().map(Arc::clone).collect();
    let core = Core::start(store, (config.text.expose(), false), &stop, &tracker).map_err(described)?;
    let started = Instant::now();
    let service = discovery::Service {
        cluster: config.discovery.cluster.clone(),
        snapshots: core.snapshots.clone(),
        events: core.keeper.events().clone(),
        fleet: Arc::clone(&core.fleet),
        peers: Peers::open(config.store.as_ref().map(|store| store.directory.join(peers::FILE))),
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    // Each listener knows only the tokens that are meant for it.
    let (of_dataplanes, of_operators): (Vec<Token>, Vec<Token>) =
        config.management.tokens.iter().cloned().partition(|token| token.access == Access::Dataplane);
    let routes = grpc::discovery_routes(service).await;
    tracker.spawn(logged(grpc::serve(
        (streams, of_discovery),
        routes,
        Door::new(&of_dataplanes, false),
        stop.clone(),
    )));
    if let Some(listener) = operators {
        let about = About {
            cluster: config.discovery.cluster.clone(),
            program: "helios-controlplane",
            version: env!("CARGO_PKG_VERSION"),
            standalone: false,
            started,
        };
        let desk = Desk::new(&core, config.switchover.clone());
        let service = management::Service::new(&core, about, (None, desk), stop.clone(), tracker.clone());
        let routes = grpc::management_routes(service).await?;
        tracker.spawn(logged(grpc::serve(
            (listener, of_management),
            routes,
            Door::new(&of_operators, false),
            stop.clone(),
        )));
    }
    tracker.spawn(http::serve(admin, core, sides, stop.clone()));
    Ok(App { discovery: addresses.0, management, admin: addresses.1, stop, tracker })
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
    }
}
