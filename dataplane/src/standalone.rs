//! The embedded control plane: the same core as `helios-controlplane`, inside this process, fed by the file; and the same
//! service for operators, on a loopback address. Also its core alone, for a data plane that lost its control plane. The
//! only module that starts either.

mod explain;
mod orders;

use self::explain::explain;
use crate::console::Obey;
use crate::control::alone::{Arbiter, StartArbiter};
use crate::control::{self, BEAT, Link, QUICK_BEAT, StatusOf};
use crate::worker::{Shared, TellEvidence};
use helios_controlplane::Handle;
use helios_controlplane::core::Core;
use helios_controlplane::fleet::{Ack, Identity, Seat};
use helios_controlplane::grpc::auth::Door;
use helios_controlplane::grpc::management::{About, Service};
use helios_controlplane::grpc::{self, secure};
use helios_controlplane::keeper::Refusal;
use helios_controlplane::store::{Directory, Memory, Store};
use helios_controlplane::switchover::Desk;
use helios_proto::config::{Config, StoreSettings};
use helios_proto::model::Snapshot;
use helios_tls::ServerSide;
use helios_tls::postgres::ToServers;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A control plane in this process.
pub struct Standalone {
    core: Core,
    /// Its place among the data planes: the only one.
    seat: Arc<Seat>,
    started: Instant,
    link: Arc<Link>,
}

/// Starts the core that goes on from a snapshot: it probes, decides and tells, and takes no orders.
#[must_use]
pub fn arbiter(servers: &Arc<ToServers>, stop: &CancellationToken, tracker: &TaskTracker) -> StartArbiter {
    let (servers, stop, tracker) = (Arc::clone(servers), stop.clone(), tracker.clone());
    Box::new(move |from| {
        let own = stop.child_token();
        let handle = helios_controlplane::go_on(from, Arc::clone(&servers), own.clone(), &tracker);
        let Handle { snapshots, events, .. } = handle;
        let tell = Box::new(move |node, seen| events.evidence(node, seen));
        Arbiter { snapshots, tell, stop: own.drop_guard() }
    })
}

impl Standalone {
    /// Starts its tasks on the runtime that runs this.
    ///
    /// # Errors
    /// The store cannot be used, or what it holds is no valid configuration.
    pub fn start(
        config: &Config,
        servers: &Arc<ToServers>,
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> io::Result<Self> {
        let store: Arc<dyn Store> = match &config.store {
            Some(StoreSettings::Embedded(path)) => Arc::new(Directory::open(path).map_err(io::Error::other)?),
            Some(StoreSettings::Etcd(_)) => {
                return Err(io::Error::other("kind = \"etcd\" in [store] is for helios-controlplane only"));
            }
            None => Arc::new(Memory::default()),
        };
        let file = (config.text.expose(), true);
        let core =
            Core::start((store, Arc::clone(servers)), file, stop, tracker).map_err(io::Error::other)?;
        let identity = Identity {
            id: control::default_name(config.listen.port()),
            boot_id: control::boot_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: String::new(),
        };
        let seat = Arc::new(core.fleet.join(identity));
        Ok(Self { core, seat, started: Instant::now(), link: Link::new(true) })
    }

    /// Snapshots as they are published; the first is there already.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.core.snapshots.clone()
    }

    /// Puts what a file says in force.
    ///
    /// # Errors
    /// It is no valid configuration, or cannot be stored.
    pub async fn reload(&self, text: &str) -> Result<(), Refusal> {
        self.core.keeper.apply_file(text).await.map(|_| ())
    }

    /// Carries out orders of the console, as those of `heliosctl`.
    #[must_use]
    pub fn obey(&self) -> Obey {
        let (keeper, feed) = (Arc::clone(&self.core.keeper), Arc::clone(&self.core.feed));
        Box::new(move |ordered| {
            let (keeper, feed) = (Arc::clone(&keeper), Arc::clone(&feed));
            Box::pin(async move { orders::obey(&keeper, &feed, ordered).await })
        })
    }

    /// Where sessions report what they saw of a node; never waits.
    #[must_use]
    pub fn evidence(&self) -> TellEvidence {
        let events = self.core.keeper.events().clone();
        Box::new(move |node, evidence| events.evidence(node.clone(), evidence))
    }

    /// A link that cannot break.
    #[must_use]
    pub fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    /// Says which snapshot is in force.
    pub fn applied(&self) -> impl Fn(&Snapshot) + Send + 'static {
        let seat = Arc::clone(&self.seat);
        move |snapshot| {
            let Snapshot { revision, config_revision, .. } = *snapshot;
            seat.ack(Ack { revision, config_revision, ..Ack::default() });
        }
    }

    /// Reports how the data plane is doing, until stopped.
    pub fn report(&self, status: StatusOf, stop: CancellationToken, tracker: &TaskTracker) {
        let (seat, mut snapshots) = (Arc::clone(&self.seat), self.core.snapshots.clone());
        tracker.spawn(async move {
            let mut beat = tokio::time::interval(BEAT);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    changed = snapshots.changed() => if changed.is_err() { return },
                    _ = beat.tick() => seat.status(status()),
                }
                if snapshots.borrow_and_update().hold.is_some() {
                    beat.reset_after(QUICK_BEAT);
                }
            }
        });
    }

    /// Serves operators, unless that is turned off; where. An address that nobody chose and that is taken is no error.
    ///
    /// # Errors
    /// The address of the file cannot be bound.
    pub async fn serve(
        &self,
        config: &Config,
        shared: &Arc<Shared>,
        (stop, tracker): (&CancellationToken, &TaskTracker),
    ) -> io::Result<Option<SocketAddr>> {
        let management = &config.management;
        if !management.enabled {
            return Ok(None);
        }
        let listener: TcpListener = match grpc::bind(management.listen, "management").await {
            Ok(listener) => listener,
            Err(error) if management.explicit => return Err(error),
            Err(error) => {
                tracing::warn!("{error}; heliosctl cannot reach this proxy, give it another address");
                return Ok(None);
            }
        };
        let address = listener.local_addr()?;
        let tls = secure::open(management.tls.as_ref(), stop, tracker)?;
        secure::warn_of_plain_text(address, tls.as_ref(), "management");
        if let Some(side) = &tls {
            self.link.add_tls(Arc::<ServerSide>::clone(side));
        }
        let about = About {
            cluster: String::new(),
            program: "heliosdb-proxy",
            version: env!("CARGO_PKG_VERSION"),
            standalone: true,
            started: self.started,
        };
        let of = Arc::clone(shared);
        let explain = Arc::new(move |sql: &str, user: &str, database: &str| {
            explain(&of.pools, &of.identities, sql, user, database)
        });
        let desk = Desk::new(&self.core, config.switchover.clone());
        let service = Service::new(&self.core, about, (Some(explain), desk), stop.clone(), tracker.clone());
        let routes = grpc::management_routes(service).await?;
        let door = Door::new(&management.tokens, true);
        let serving = grpc::serve((listener, tls), routes, door, stop.clone());
        tracker.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "management failed");
            }
        });
        Ok(Some(address))
    }
}
