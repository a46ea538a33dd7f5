//! Connections to a service, plain or TLS, as the stream that tonic serves. Bounded: connections in all, handshakes in all
//! and of one address, the time of a handshake, the time until the first byte. Who is slow, or speaks no TLS, holds up
//! nobody else. Owner of one accepting task, and one task per handshake.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use crate::dial::in_words;
use crate::files;
use crate::live::{Expires as _, ServerSide};

/// Most connections; more are closed at once.
const MOST: usize = 8192;
/// Most handshakes in flight, in all and of one address; more are closed at once.
const MOST_HANDSHAKES: usize = 512;
const MOST_HANDSHAKES_OF_ONE: usize = 128;
/// Longest handshake, and longest wait for the first byte after it.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that may wait for the server to take them.
const READY: usize = 16;
/// Pause after an accept failed, as it does without file descriptors.
const PAUSE: Duration = Duration::from_millis(10);
/// Failed handshakes are told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Who is at the other end.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Names in its certificate, which has been verified; empty: it showed none.
    pub names: Arc<[String]>,
}

/// A connection.
pub struct Conn {
    io: Transport,
    peer: Peer,
    /// Runs until the first byte is there.
    first: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Accepts until stopped. `tls`: `None` is plain text.
#[must_use]
pub fn incoming(
    listener: TcpListener,
    tls: Option<Arc<ServerSide>>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Conn>> {
    let (ready, accepted) = mpsc::channel(READY);
    let door = Arc::new(Door { tls, ready, shaking: Mutex::default(), told: Mutex::new(None) });
    let tasks = TaskTracker::new();
    let own = tasks.clone();
    tasks.spawn(accept(listener, door, stop, own));
    ReceiverStream::new(accepted)
}

struct Door {
    tls: Option<Arc<ServerSide>>,
    ready: mpsc::Sender<io::Result<Conn>>,
    shaking: Mutex<HashMap<IpAddr, usize>>,
    told: Mutex<Option<Instant>>,
}

async fn accept(listener: TcpListener, door: Arc<Door>, stop: CancellationToken, tasks: TaskTracker) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (io, address) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        // A connection that cannot be told to be quick is slow, no more.
        let _ = io.set_nodelay(true);
        let Some(tls) = &door.tls else {
            let peer = Peer { address: Some(address), names: Arc::default() };
            if door.ready.send(Ok(Conn::new(Transport::Plain(io), peer, place))).await.is_err() {
                return;
            }
            continue;
        };
        let Some(shaking) = Shaking::start(&door, address.ip()) else { continue };
        let acceptor = TlsAcceptor::from(tls.current());
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shake(acceptor, io, address, (shaking, place)) => {}
            }
        });
    }
}

/// One handshake.
async fn shake(
    acceptor: TlsAcceptor,
    io: TcpStream,
    address: SocketAddr,
    (shaking, place): (Shaking, OwnedSemaphorePermit),
) {
    let why = match timeout(HANDSHAKE, acceptor.accept(io)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let names = shown.map(files::names).unwrap_or_default();
            let peer = Peer { address: Some(address), names: names.into() };
            let door = Arc::clone(&shaking.door);
            drop(shaking);
            // Nobody takes it: the server has ended.
            let _ = door.ready.send(Ok(Conn::new(Transport::Tls(Box::new(stream)), peer, place))).await;
            return;
        }
        Ok(Err(error)) => in_words(&error, None),
        Err(_) => format!("it takes longer than {HANDSHAKE:?}"),
    };
    shaking.door.tell(address, &why);
}

impl Door {
    fn tell(&self, from: SocketAddr, why: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            *told = Some(Instant::now());
            let section = self.tls.as_ref().map_or("", |tls| tls.name());
            tracing::warn!(%from, section, "TLS handshake failed: {why}");
        }
    }
}

/// A handshake in flight. Counted out however it ends.
struct Shaking {
    door: Arc<Door>,
    address: IpAddr,
}

impl Shaking {
    /// `None`: there are too many already.
    fn start(door: &Arc<Door>, address: IpAddr) -> Option<Self> {
        let mut shaking = door.shaking.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = shaking.values().sum();
        let of_one = shaking.get(&address).copied().unwrap_or(0);
        if all >= MOST_HANDSHAKES || of_one >= MOST_HANDSHAKES_OF_ONE {
            return None;
        }
        shaking.insert(address, of_one.saturating_add(1));
        Some(Self { door: Arc::clone(door), address })
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        let mut shaking = self.door.shaking.lock().unwrap_or_else(PoisonError::into_inner);
        match shaking.get(&self.address).copied() {
            Some(count) if count > 1 => drop(shaking.insert(self.address, count - 1)),
            _ => drop(shaking.remove(&self.address)),
        }
    }
}

impl Conn {
    fn new(io: Transport, peer: Peer, place: OwnedSemaphorePermit) -> Self {
        Self { io, peer, first: Some(Box::pin(sleep(HANDSHAKE))), _place: place }
    }
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = match &mut self.io {
            Transport::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Transport::Tls(io) => Pin::new(io).poll_read(cx, buf),
        };
        if read.is_ready() {
            self.first = None;
        } else if let Some(first) = &mut self.first
            && first.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Transport::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Transport::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Transport::Plain(io) => Pin::new(io).poll_flush(cx),
            Transport::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Transport::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Transport::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Transport::Plain(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Transport::Tls(io) => Pin::new(io).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Transport::Plain(io) => io.is_write_vectored(),
            Transport::Tls(io) => io.is_write_vectored(),
        }
    }
}
