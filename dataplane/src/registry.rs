//! Every session of this data plane by its cancel key: cancel requests, drain and kill reach a session through here.
//! Keys are our own, so a cancel reaches only what this client runs now. In a fleet the process id names the data plane,
//! and what is another's is handed over. Never holds a lock while it waits.

use crate::pool::Identity;
use crate::server::{ServerIdent, clean};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

/// Bits of a process id that tell this data plane's sessions apart; the 13 above tell the data planes apart.
const SLOT_BITS: u32 = 18;
const SLOTS: u32 = 1 << SLOT_BITS;
/// Process ids are positive as 32-bit integers.
const POSITIVE: u32 = 0x7fff_ffff;
/// Instead of a number: cancel requests go nowhere else, process ids are any.
const ALONE: u32 = u32::MAX;

/// How long a data plane that stops waits for a pause of a client that sends one statement after the other.
const BUSY: Duration = Duration::from_secs(1);

/// Most cancel requests on their way for one session: more say nothing new, and each is a connection to the server.
const MOST_CANCELS: u32 = 2;

/// What others may ask of a session, and what they need to know of it.
pub struct SessionHandle {
    /// Our process id in BackendKeyData.
    pub pid: u32,
    /// Our secret in BackendKeyData: 4 bytes up to protocol 3.1, 32 from 3.2 on.
    pub key: Vec<u8>,
    waker: Mutex<Option<Waker>>,
    draining: Arc<OnceLock<Instant>>,
    cancelled: AtomicBool,
    /// An operator ends the session.
    killed: AtomicBool,
    client: OnceLock<ClientFacts>,
    /// When the client last asked for something, in microseconds after `client` was set.
    asked: AtomicU64,
    target: Mutex<Target>,
}

#[derive(Default)]
struct Target {
    server: Option<Arc<ServerIdent>>,
    /// Cancel requests on their way to `server`.
    in_flight: u32,
    /// Since when the session waits for a server connection.
    queued: Option<Instant>,
}

/// Who a session's client is; said once, when it has logged in.
pub struct ClientFacts {
    /// Its user, database and startup parameters.
    pub identity: Arc<Identity>,
    /// What it is to the data plane.
    pub kind: ClientKind,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Our end of the connection.
    pub local: Option<SocketAddr>,
    /// Its TLS in words; empty: none.
    pub tls: String,
    /// When it logged in.
    pub since: Instant,
}

/// What a client is to the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// It uses server connections of the pools.
    Pooled,
    /// It has a server connection of its own, for replication.
    Replication,
    /// It uses the admin console.
    Console,
}

/// A session as an operator is shown it.
pub struct Seen {
    /// The session.
    pub handle: Arc<SessionHandle>,
    /// The server connection that it holds.
    pub server: Option<Arc<ServerIdent>>,
    /// Since when it waits for one.
    pub queued: Option<Instant>,
}

/// Sessions by process id.
pub struct Registry {
    sessions: Mutex<HashMap<u32, Arc<SessionHandle>>>,
    draining: Arc<OnceLock<Instant>>,
    /// Of this data plane in its fleet; 0: it has none yet.
    number: AtomicU32,
    elsewhere: OnceLock<mpsc::Sender<Stranger>>,
}

/// A cancel request for a session of another data plane.
pub struct Stranger {
    /// Process id.
    pub pid: u32,
    /// Secret.
    pub key: Zeroizing<Vec<u8>>,
    /// Dropped when the request has been dealt with.
    pub done: oneshot::Sender<()>,
}

impl Stranger {
    /// Number of the data plane that it is for.
    #[must_use]
    pub const fn owner(&self) -> u32 {
        self.pid >> SLOT_BITS
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            draining: Arc::default(),
            number: AtomicU32::new(ALONE),
            elsewhere: OnceLock::new(),
        }
    }
}

/// Takes the session out of the registry when it ends.
pub struct Registered {
    registry: Arc<Registry>,
    /// The session.
    pub handle: Arc<SessionHandle>,
}

/// Random bytes for secrets.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's generator does not fail once the system is up; a known key only exposes this session to cancels.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

impl Registry {
    /// Registers a session with a fresh key.
    pub fn register(self: &Arc<Self>, protocol: u32) -> Registered {
        let key = if protocol >= 0x0003_0002 { random::<32>().to_vec() } else { random::<4>().to_vec() };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = self.free_pid(&sessions);
        let handle = Arc::new(SessionHandle {
            pid,
            key,
            waker: Mutex::new(None),
            draining: Arc::clone(&self.draining),
            cancelled: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            client: OnceLock::new(),
            asked: AtomicU64::new(0),
            target: Mutex::default(),
        });
        sessions.insert(pid, Arc::clone(&handle));
        Registered { registry: Arc::clone(self), handle }
    }

    fn free_pid(&self, sessions: &HashMap<u32, Arc<SessionHandle>>) -> u32 {
        let is_free = |pid: &u32| *pid != 0 && !sessions.contains_key(pid);
        let number = self.number.load(Ordering::Relaxed);
        if number != ALONE {
            let first = u32::from_be_bytes(random());
            let slots = (0..SLOTS).map(|step| first.wrapping_add(step) % SLOTS);
            let mut pids = slots.map(|slot| (number << SLOT_BITS) | slot);
            if let Some(pid) = pids.find(is_free) {
                return pid;
            }
        }
        // In a fleet: no slot is left, and this session can be cancelled here only.
        loop {
            let pid = u32::from_be_bytes(random()) & POSITIVE;
            if is_free(&pid) {
                return pid;
            }
        }
    }

    /// Part of a fleet from now on: what is not for a session of this data plane goes there.
    pub fn hand_over(&self, elsewhere: mpsc::Sender<Stranger>, number: u32) {
        // The first one stays: there is one fleet.
        let _ = self.elsewhere.set(elsewhere);
        self.set_number(number);
    }

    /// The number of this data plane in process ids from now on; sessions keep theirs.
    pub fn set_number(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// Cancels what the session with this key runs now, here or at the data plane that it belongs to; nothing if the key
    /// is wrong.
    pub async fn cancel(&self, pid: u32, key: &[u8]) {
        if self.cancel_here(pid, key).await {
            return;
        }
        let Some(elsewhere) = self.elsewhere.get() else { return };
        let (done, answered) = oneshot::channel();
        let stranger = Stranger { pid, key: Zeroizing::new(key.to_vec()), done };
        if stranger.owner() == 0 || pid > POSITIVE || stranger.owner() == self.number.load(Ordering::Relaxed)
        {
            return;
        }
        if elsewhere.try_send(stranger).is_ok() {
            // Clients wait for the end of the connection as for the end of the cancel.
            let _ = answered.await;
        }
    }

    /// Cancels what the session with this key runs now, if it is one of this data plane; whether the process id is.
    pub async fn cancel_here(&self, pid: u32, key: &[u8]) -> bool {
        let handle = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned();
        let Some(handle) = handle else { return false };
        if bool::from(handle.key.as_slice().ct_eq(key)) {
            handle.cancel().await;
        }
        true
    }

    /// Tells every session to end at its next rest.
    pub fn drain(&self) {
        let _ = self.draining.set(Instant::now());
        self.wake_all();
    }

    /// Every session ends now, whatever it does.
    pub fn kill(&self) {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.values().for_each(|session| session.kill());
    }

    /// Every session is to look around: something has changed for its server connection.
    pub fn wake_all(&self) {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.values().for_each(|session| session.wake());
    }

    /// Sessions now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Every session whose client has logged in.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let handles: Vec<_> =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let known = handles.into_iter().filter(|handle| handle.client().is_some());
        known
            .map(|handle| {
                let target = handle.target.lock().unwrap_or_else(PoisonError::into_inner);
                let (server, queued) = (target.server.clone(), target.queued);
                drop(target);
                Seen { handle, server, queued }
            })
            .collect()
    }

    /// Whether there is no session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SessionHandle {
    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The session's task, for wake-ups.
    pub fn set_waker(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    /// Says who the client is; once.
    pub fn describe(&self, facts: ClientFacts) {
        let _ = self.client.set(facts);
    }

    /// Who the client is; `None`: it is still logging in.
    #[must_use]
    pub fn client(&self) -> Option<&ClientFacts> {
        self.client.get()
    }

    /// The client asks for something now.
    pub fn note_request(&self, now: Instant) {
        if let Some(client) = self.client.get() {
            let after = now.saturating_duration_since(client.since).as_micros();
            self.asked.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// When the client last asked for something, since it logged in.
    #[must_use]
    pub fn last_request(&self) -> Duration {
        Duration::from_micros(self.asked.load(Ordering::Relaxed))
    }

    /// Ends the session at once, whatever it does.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether an operator ends the session.
    #[must_use]
    pub fn killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// Whether the data plane stops.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// Whether it has been stopping for so long that a client which never pauses is not waited for any more.
    #[must_use]
    pub fn overdue(&self) -> bool {
        self.draining.get().is_some_and(|since| since.elapsed() >= BUSY)
    }

    /// Whether the client cancelled the statement that waits for a server connection.
    pub fn take_cancelled(&self) -> bool {
        self.cancelled.swap(false, Ordering::AcqRel)
    }

    /// The session waits for a server connection, or no longer.
    pub fn set_queued(&self, queued: bool) {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).queued = queued.then(Instant::now);
        if !queued {
            self.cancelled.store(false, Ordering::Release);
        }
    }

    /// The session holds this server connection now.
    pub fn set_server(&self, server: &Arc<ServerIdent>) {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).server = Some(Arc::clone(server));
    }

    /// The session gives its server connection up. Whether no cancel is on its way to it: else it must be closed.
    pub fn clear_server(&self) -> bool {
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.server = None;
        target.in_flight == 0
    }

    async fn cancel(&self) {
        let server = {
            let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(server) = target.server.clone() else {
                if target.queued.is_some() {
                    self.cancelled.store(true, Ordering::Release);
                    drop(target);
                    self.wake();
                }
                return;
            };
            if target.in_flight >= MOST_CANCELS {
                return;
            }
            target.in_flight = target.in_flight.saturating_add(1);
            server
        };
        let _counted = InFlight(self);
        if let Err(error) = clean::cancel(&server).await {
            tracing::debug!(%error, "could not deliver a cancel request");
        }
    }

    /// Cancels what this session runs, for the session's own timeouts.
    pub async fn cancel_own(self: Arc<Self>) {
        self.cancel().await;
    }
}

/// A cancel request on its way. Counted out however it ends: the login timeout may drop it half way.
struct InFlight<'a>(&'a SessionHandle);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut target = self.0.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.in_flight = target.in_flight.saturating_sub(1);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.handle.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::Context;

    #[tokio::test]
    async fn a_process_id_names_its_data_plane_and_strangers_are_handed_over() {
        let registry = Arc::new(Registry::default());
        let (way, mut strangers) = mpsc::channel(1);
        registry.hand_over(way, 0);
        let early = registry.register(0x0003_0000);
        assert!(early.handle.pid < SLOTS, "no number yet");
        registry.set_number(8191);
        let ours = registry.register(0x0003_0002);
        assert_eq!((ours.handle.pid >> SLOT_BITS, ours.handle.pid > POSITIVE), (8191, false));
        // Ours, nobody's, and out of range: nothing is handed over, known or not.
        for pid in [ours.handle.pid, early.handle.pid, (8191 << SLOT_BITS) | 1, 7, u32::MAX] {
            registry.cancel(pid, b"wrong").await;
        }
        assert!(strangers.try_recv().is_err());
        let asking = registry.cancel((5 << SLOT_BITS) | 9, b"key!");
        let answering = async {
            let stranger = strangers.recv().await.unwrap();
            (stranger.owner(), stranger.pid, stranger.key.to_vec())
        };
        assert_eq!(tokio::join!(asking, answering).1, (5, (5 << SLOT_BITS) | 9, b"key!".to_vec()));
    }

    #[test]
    fn who_never_pauses_is_waited_for_a_while_when_the_data_plane_stops() {
        let registry = Arc::new(Registry::default());
        let session = registry.register(0x0003_0000);
        assert!(!session.handle.draining() && !session.handle.overdue());
        registry.drain();
        assert!(session.handle.draining() && !session.handle.overdue());
        let late = Arc::new(Registry::default());
        late.draining.set(Instant::now().checked_sub(BUSY).unwrap()).unwrap();
        assert!(late.register(0x0003_0000).handle.overdue());
    }

    #[tokio::test]
    async fn cancels_on_their_way_are_few_and_counted_out_when_dropped() {
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let registered = Arc::new(Registry::default()).register(0x0003_0000);
        let addr = silent.local_addr().unwrap();
        registered.handle.set_server(&Arc::new(ServerIdent::new((addr, None), (1, vec![0; 4]), None)));
        let count = || registered.handle.target.lock().unwrap().in_flight;
        {
            let mut context = Context::from_waker(Waker::noop());
            let (mut first, mut second) =
                (pin!(registered.handle.cancel()), pin!(registered.handle.cancel()));
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(second.as_mut().poll(&mut context).is_pending());
            registered.handle.cancel().await;
            assert_eq!(count(), MOST_CANCELS);
        }
        assert_eq!(count(), 0);
        assert!(registered.handle.clear_server());
    }
}
