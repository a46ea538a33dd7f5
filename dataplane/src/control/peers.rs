//! Cancel requests across the fleet: what came here and is another data plane's goes there, what another hands over is
//! dealt with here. At most one hop, bounded in number, rate and time; who cannot be reached, and a number that nobody
//! has, is dropped in silence, as PostgreSQL does. Goes on with what is known when the control plane is away. Owner of two
//! tasks. Never logs a secret.

use crate::registry::{Registry, Stranger};
use helios_proto::config::{ControlPlane, PeerSettings};
use helios_proto::model::Secret;
use helios_proto::wire::v1;
use helios_proto::wire::v1::peer_client::PeerClient;
use helios_proto::wire::v1::peer_server::{Peer, PeerServer};
use helios_tls::dial::Secured;
use helios_tls::{ClientSide, ServerSide, connect, incoming};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// Cancel requests that may wait to be forwarded, and that may be on their way; more are dropped.
const QUEUE: usize = 64;
const MOST: usize = 32;
/// Cancel requests forwarded in a second; more are dropped.
const PER_SECOND: u32 = 100;
/// Longest time that a request may take, on either side.
const LIMIT: Duration = Duration::from_secs(1);
/// Most data planes with a number, and longest address of one.
const MOST_ENTRIES: usize = 8191;
const LONGEST_ADDRESS: usize = 200;
/// Largest message, and most calls at once on one connection.
const LARGEST: usize = 1024;
const CALLS: u32 = 16;

/// The other data planes.
pub struct Peers {
    /// Where others reach this one.
    pub address: String,
    /// This one's number; 0: none. Kept on disk by who shares it.
    pub number: Arc<AtomicU32>,
    registry: Arc<Registry>,
    known: Mutex<HashMap<u32, String>>,
    settings: PeerSettings,
    token: Option<Secret>,
    tls: Option<Arc<ClientSide>>,
}

impl Peers {
    /// Binds and serves the listener, and forwards from now on.
    ///
    /// # Errors
    /// The address cannot be bound, or the certificate files are not good.
    pub fn start(
        plane: &ControlPlane,
        (settings, tls): (&PeerSettings, Option<Arc<ClientSide>>),
        (registry, number): (&Arc<Registry>, &Arc<AtomicU32>),
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> io::Result<Arc<Self>> {
        let named = |error: io::Error| {
            let text = format!("cannot listen on {} (peer_listen_address): {error}", settings.listen);
            io::Error::new(error.kind(), text)
        };
        let listener = std::net::TcpListener::bind(settings.listen).map_err(named)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        let side = match plane.peer_tls() {
            Some(files) => {
                let side =
                    ServerSide::open(helios_tls::Files::of_server(&files)).map_err(io::Error::other)?;
                tracker.spawn(Arc::clone(&side).follow(stop.clone()));
                Some(side)
            }
            None => None,
        };
        if side.is_none() && !local.ip().is_loopback() {
            tracing::warn!(address = %local, "peer_listen_address is not encrypted: the token can be read on the network");
        }
        // With certificates on both sides no token is shown.
        let token = plane.token.clone().filter(|_| side.is_none());
        let service =
            Service { registry: Arc::clone(registry), token: token.clone(), places: Semaphore::new(MOST) };
        tracker.spawn(serve(listener, side, service, stop.clone()));
        let (way, strangers) = mpsc::channel(QUEUE);
        registry.hand_over(way, number.load(Ordering::Relaxed));
        let peers = Arc::new(Self {
            address: settings.advertise.clone().unwrap_or_else(|| local.to_string()),
            number: Arc::clone(number),
            registry: Arc::clone(registry),
            known: Mutex::default(),
            settings: settings.clone(),
            token,
            tls,
        });
        tracing::info!(address = %local, "peers");
        tracker.spawn(Arc::clone(&peers).forward(strangers, stop.clone()));
        Ok(peers)
    }

    /// What the control plane says. Whether this data plane's own number is another one than before.
    pub fn learn(&self, list: v1::Peers) -> bool {
        let v1::Peers { cancel_id, entries } = list;
        let right = |entry: &v1::PeerEntry| {
            usize::try_from(entry.cancel_id).is_ok_and(|id| (1..=MOST_ENTRIES).contains(&id))
                && entry.address.len() <= LONGEST_ADDRESS
        };
        if usize::try_from(cancel_id).is_ok_and(|id| id > MOST_ENTRIES)
            || entries.len() > MOST_ENTRIES
            || !entries.iter().all(right)
        {
            tracing::error!("the list of peers from the control plane is refused: out of range");
            return false;
        }
        let known = entries.into_iter().map(|v1::PeerEntry { cancel_id, address }| (cancel_id, address));
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known.collect();
        self.registry.set_number(cancel_id);
        self.number.swap(cancel_id, Ordering::Relaxed) != cancel_id
    }

    async fn forward(self: Arc<Self>, mut strangers: mpsc::Receiver<Stranger>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MOST));
        let tasks = TaskTracker::new();
        let (mut since, mut count) = (Instant::now(), 0u32);
        loop {
            let stranger = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                stranger = strangers.recv() => stranger,
            };
            let Some(stranger) = stranger else { return };
            if since.elapsed() >= Duration::from_secs(1) {
                (since, count) = (Instant::now(), 0);
            }
            count = count.saturating_add(1);
            let address =
                self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&stranger.owner()).cloned();
            let (Some(address), Ok(place)) = (address, Arc::clone(&places).try_acquire_owned()) else {
                continue;
            };
            if count > PER_SECOND {
                continue;
            }
            let peers = Arc::clone(&self);
            tasks.spawn(async move {
                match timeout(LIMIT, peers.deliver(&address, &stranger)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => tracing::debug!(%address, %why, "a cancel request was not delivered"),
                    Err(_) => tracing::debug!(%address, "a cancel request was not delivered in time"),
                }
                drop(place);
            });
        }
    }

    async fn deliver(&self, address: &str, stranger: &Stranger) -> Result<(), String> {
        let secured = self
            .tls
            .as_ref()
            .map(|side| Secured { config: side.current(), name: self.settings.server_name.clone() });
        let scheme = if secured.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| e.to_string())?;
        let channel = connect(endpoint.connect_timeout(LIMIT), secured).await.map_err(|e| e.to_string())?;
        let request = v1::CancelRequest { pid: stranger.pid, secret: stranger.key.to_vec(), hops: 1 };
        let mut request = Request::new(request);
        if let Some(token) = &self.token {
            let bearer =
                super::stream::bearer(token.expose()).map_err(|status| status.message().to_owned())?;
            request.metadata_mut().insert("authorization", bearer);
        }
        let said = PeerClient::new(channel).cancel(request).await;
        said.map(drop).map_err(|status| status.message().to_owned())
    }
}

/// What others may ask.
struct Service {
    registry: Arc<Registry>,
    /// `None`: the certificate has said enough.
    token: Option<Secret>,
    places: Semaphore,
}

#[tonic::async_trait]
impl Peer for Service {
    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        if let Some(token) = &self.token {
            let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
            if !bool::from(shown.as_bytes().ct_eq(token.expose().as_bytes())) {
                return Err(Status::unauthenticated("the token is not this data plane's"));
            }
        }
        let v1::CancelRequest { pid, secret, hops } = request.into_inner();
        if hops > 1 || !(4..=256).contains(&secret.len()) {
            return Err(Status::invalid_argument("hops or secret is out of range"));
        }
        let busy = |_| Status::resource_exhausted("too many cancel requests");
        let _place = self.places.try_acquire().map_err(busy)?;
        // Unknown, or late: nothing to say in either case.
        let _ = timeout(LIMIT, self.registry.cancel_here(pid, &secret)).await;
        Ok(Response::new(v1::CancelReply {}))
    }
}

async fn serve(
    listener: TcpListener,
    side: Option<Arc<ServerSide>>,
    service: Service,
    stop: CancellationToken,
) {
    let served = Server::builder()
        .max_concurrent_streams(Some(CALLS))
        .timeout(LIMIT * 2)
        .max_connection_age(Duration::from_secs(60))
        .add_service(PeerServer::new(service).max_decoding_message_size(LARGEST))
        .serve_with_incoming(incoming(listener, side, stop.clone()));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        ended = served => if let Err(error) = ended {
            tracing::error!(%error, "the listener for peers failed");
        },
    }
}
