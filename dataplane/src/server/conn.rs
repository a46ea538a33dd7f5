//! A logged-in server connection and who owns its slot. Closing is dropping: the slot goes back to the node's
//! pool whatever happened. Never knows which session uses it.

use crate::legs::Sealing;
use crate::pool::identity::Greeting;
use crate::pool::{Identity, Slot};
use crate::server::settings::Texts;
use crate::statements::Prepared;
use crate::stream::Stream;
use helios_pgwire::frontend;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A connection that idled longer is asked for its state at checkout; below that its last use just proved it.
const FRESH: Duration = Duration::from_millis(1);

/// What a cancel request must name, and what an operator is shown. Has no Debug: its key is a secret.
pub struct ServerIdent {
    /// Unique in this process.
    pub id: u64,
    /// Address that the connection really has.
    pub addr: SocketAddr,
    /// Our end of it.
    pub local: Option<SocketAddr>,
    /// When it was opened.
    pub since: Instant,
    /// Process id of the backend.
    pub pid: u32,
    /// Secret of the backend.
    pub key: Vec<u8>,
    /// The TLS that the connection has.
    pub sealing: Option<Sealing>,
    /// The same in words; empty: none.
    pub tls: String,
}

/// Numbers for [`ServerIdent`].
static IDENTS: AtomicU64 = AtomicU64::new(1);

impl ServerIdent {
    /// A connection to this address that has just logged in.
    #[must_use]
    pub fn new(
        (addr, io): (SocketAddr, Option<&Stream>),
        (pid, key): (u32, Vec<u8>),
        sealing: Option<Sealing>,
    ) -> Self {
        let local = io.and_then(|io| io.tcp().local_addr().ok());
        let tls = io.map(Stream::tls_words).unwrap_or_default();
        let id = IDENTS.fetch_add(1, Ordering::Relaxed);
        Self { id, addr, local, since: Instant::now(), pid, key, sealing, tls }
    }
}

/// A logged-in server connection.
pub struct ServerConn {
    /// The socket, registered with the worker `worker`.
    pub io: Stream,
    /// For cancel requests.
    pub ident: Arc<ServerIdent>,
    /// Pool key: whose connection this is.
    pub identity: Arc<Identity>,
    /// Worker whose reactor the socket is registered with.
    pub worker: usize,
    /// Closed at the first idle moment after this.
    pub expires: Option<Instant>,
    /// When it last became idle.
    pub idle_since: Instant,
    /// Session state may have changed: the reset query must run before another session gets it.
    pub needs_reset: bool,
    /// Settings that its last session has left; `None`: as it was opened.
    pub settings: Option<Arc<Texts>>,
    /// Statements that it has prepared; with the session while one uses it.
    pub prepared: Prepared,
    /// What the backend said at login.
    pub greeting: Arc<Greeting>,
    /// Its place in the node's pool. Last, so that the socket is closed before the place is given away.
    pub slot: Slot,
}

impl ServerConn {
    /// Whether an idle connection is still there and silent. Any byte or an end of file means it must go
    /// (`reliability.md` B22).
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        self.idle_since.elapsed() < FRESH || self.io.is_silent()
    }

    /// Moves the socket to the reactor of the worker that runs this.
    ///
    /// # Errors
    /// What the system says; the connection is gone then.
    pub fn adopt(mut self: Box<Self>, worker: usize) -> io::Result<Box<Self>> {
        if self.worker == worker {
            return Ok(self);
        }
        let this = *self;
        let io = this.io.settle()?;
        self = Box::new(Self { io, worker, ..this });
        Ok(self)
    }

    /// Says goodbye as well as that goes without waiting, and closes.
    #[allow(clippy::boxed_local)] // callers hold it boxed; unboxing only to drop it would move 200 bytes
    pub fn close(mut self: Box<Self>) {
        let mut bytes = Vec::new();
        frontend::terminate(&mut bytes);
        self.io.send_last(&bytes);
    }
}
