//! The pool of one node: its connections, its limits, its queue. Owner: the view; sessions borrow connections.
//! Every method is short and synchronous. Never dials: it hands out the right to.
//!
//! Order in the queue is first come, first served, with two bounded exceptions that spare work: for a millisecond or ten
//! a connection stays with its worker, and with its identity (`inner`).

mod budget;
mod cords;
mod doors;
mod inner;
mod knock;
mod leave;
mod ops;
mod share;
#[cfg(test)]
mod tests;

pub use budget::{Granted, Source};
pub use doors::Refused;
pub(super) use inner::Age;
pub use share::Standing;

use self::doors::Answer;
use self::inner::{Inner, Pick, Queued};
use super::identity::Identity;
use super::wait::{Grant, Outcome, Waiter};
use crate::legs::ServerLeg;
use crate::server::ServerConn;
use crate::server::settings::Texts;
use helios_proto::model::Node;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a node is avoided after it refused a connection.
const SUSPECT_FOR: Duration = Duration::from_secs(1);

/// Server connections to one node.
pub struct NodePool {
    /// The node.
    pub node: Arc<Node>,
    /// TLS towards it.
    pub leg: ServerLeg,
    max: AtomicU32,
    busy: AtomicU32,
    /// Connections held by sessions that rest.
    resting: AtomicU32,
    retired: AtomicBool,
    /// The node has a budget, of which this is a share.
    budgeted: AtomicBool,
    orders: ops::Orders,
    cords: cords::Cords,
    /// Milliseconds since `born` until which the node is avoided.
    suspect_until: AtomicU64,
    /// Health checks say that the node is down.
    down: AtomicBool,
    born: Instant,
    inner: Mutex<Inner>,
}

/// Limits below `max_pool_size` for one identity on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// Most connections of the user.
    pub user: Option<u32>,
    /// Most connections to the database.
    pub database: Option<u32>,
}

/// What a session asks a pool for.
pub struct Request<'a> {
    /// Whose connection.
    pub identity: &'a Arc<Identity>,
    /// The session's place in the queue, should it have to wait.
    pub waiter: &'a Arc<Waiter>,
    /// Settings that the session has made: a connection that has them already is rather taken.
    pub settings: Option<&'a Arc<Texts>>,
    /// Limits of this identity.
    pub caps: Caps,
    /// Longest wait.
    pub timeout: Duration,
}

/// What a pool answers.
pub enum Checkout {
    /// A connection, idle and clean.
    Ready(Box<ServerConn>),
    /// The right to open one.
    Dial(Slot),
    /// Queued: poll the waiter.
    Wait,
    /// The server lets nobody in now: it starts, stops or recovers.
    Away,
    /// The node left the configuration.
    Retired,
}

/// One place among a node's `max_pool_size`. Dropping it frees the place.
pub struct Slot {
    pool: Arc<NodePool>,
    identity: Arc<Identity>,
    /// Of the orders to reconnect for the node and for the database, when the place was taken.
    generation: (u64, u64),
    /// How often the pool's connections had been cut when the place was taken.
    cuts: u64,
    /// The pool's own handle on the connection.
    cord: Option<u64>,
    /// The session that has the connection rests.
    resting: bool,
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Connections open or being opened.
    pub total: u32,
    /// Of these, lent or being opened.
    pub active: u32,
    /// Of these, idle.
    pub idle: u32,
    /// Sessions in the queue.
    pub waiting: usize,
}

impl NodePool {
    /// An empty pool.
    #[must_use]
    pub fn new(node: Arc<Node>, max: u32, (source, leg): (Source, &ServerLeg)) -> Arc<Self> {
        Arc::new(Self {
            node,
            leg: leg.clone(),
            max: AtomicU32::new(max),
            busy: AtomicU32::new(0),
            resting: AtomicU32::new(0),
            retired: AtomicBool::new(false),
            budgeted: AtomicBool::new(false),
            orders: ops::Orders::default(),
            cords: cords::Cords::default(),
            suspect_until: AtomicU64::new(0),
            down: AtomicBool::new(false),
            born: Instant::now(),
            inner: Mutex::new(Inner::new(source)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections lent or being opened.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Connections held by sessions that rest: tied to them, outside any transaction.
    #[must_use]
    pub fn resting(&self) -> u32 {
        self.resting.load(Ordering::Relaxed)
    }

    /// Counts for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        let active = inner.total.saturating_sub(inner.idle_count);
        Counts { total: inner.total, active, idle: inner.idle_count, waiting: inner.queue.len() }
    }

    /// Avoid this node for a moment: it just refused or lost a connection.
    pub fn suspect(&self) {
        let until = self.born.elapsed().saturating_add(SUSPECT_FOR);
        self.suspect_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The node works: stop avoiding it.
    pub fn trust(&self) {
        self.suspect_until.store(0, Ordering::Relaxed);
    }

    /// Whether the node is being avoided.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        let until = self.suspect_until.load(Ordering::Relaxed);
        until != 0 && u128::from(until) > self.born.elapsed().as_millis()
    }

    /// Gives a connection, the right to open one, or a place in the queue.
    pub fn checkout(self: &Arc<Self>, request: &Request<'_>) -> Checkout {
        loop {
            match self.try_checkout(request) {
                Checkout::Ready(mut conn) => {
                    if conn.is_alive() {
                        return Checkout::Ready(conn);
                    }
                    tracing::debug!(node = %self.node.name, "idle server connection was gone");
                    drop(conn);
                }
                other => return other,
            }
        }
    }

    fn try_checkout(self: &Arc<Self>, request: &Request<'_>) -> Checkout {
        if self.retired.load(Ordering::Relaxed) {
            return Checkout::Retired;
        }
        let mut inner = self.lock();
        if self.orders.paused() || request.identity.state.paused() {
            inner.enqueue(request);
            return Checkout::Wait;
        }
        if let Some(conn) = inner.take_idle(request.identity.id, request.waiter.worker, request.settings) {
            self.note(&inner);
            return Checkout::Ready(conn);
        }
        let barred = match inner.ask(request.identity) {
            Answer::Open => false,
            // Who has waited longer tries first.
            Answer::Turn => !inner.queue.is_empty(),
            Answer::Full => true,
            Answer::Away => return Checkout::Away,
        };
        let mut evicted = None;
        let most = self.allowed(&inner);
        if barred || !inner.has_room(most, request.identity, request.caps) {
            evicted = if barred {
                inner.evict_barred(request)
            } else {
                inner.evict_for(most, request.identity, request.caps)
            };
            if evicted.is_none() || self.is_budgeted() || barred {
                // Within a budget, or at a full server, a place is free once its server has ended, not before.
                inner.enqueue(request);
                self.note(&inner);
                drop(inner);
                evicted.into_iter().for_each(ServerConn::close);
                return Checkout::Wait;
            }
        }
        inner.take_place(request.identity);
        self.note(&inner);
        drop(inner);
        // The evicted connection gives its own place back, which was counted twice for this moment.
        if let Some(conn) = evicted {
            conn.close();
        }
        Checkout::Dial(Slot::new(self, request.identity))
    }

    /// Takes back a clean connection: to the next in the queue, or to rest.
    pub fn put_back(self: &Arc<Self>, mut conn: Box<ServerConn>) {
        let now = Instant::now();
        conn.idle_since = now;
        conn.slot.set_resting(false);
        let expired = conn.expires.is_some_and(|at| at <= now);
        let mut inner = self.lock();
        let over = self.excess(&inner, now) > 0;
        let old = conn.slot.generation != self.generation(&conn.identity);
        // A server that is told to stop waits for the last of its connections.
        if expired || over || old || self.is_down() || self.retired.load(Ordering::Relaxed) {
            drop(inner);
            return conn.close();
        }
        let nobody = inner.queue.is_empty() || self.orders.paused() || conn.identity.state.paused();
        let pick = if nobody { Pick::Nobody } else { inner.pick(&conn, now) };
        match pick {
            Pick::Same(at) => {
                let queued = inner.queue.remove(at);
                drop(inner);
                if let Some(queued) = queued {
                    self.hand(&queued, Grant::Conn(conn));
                }
            }
            Pick::Other => {
                drop(inner);
                conn.close();
            }
            Pick::Nobody => {
                inner.idle_count = inner.idle_count.saturating_add(1);
                inner.idle.entry(conn.identity.id).or_default().push(conn);
                self.note(&inner);
            }
        }
    }

    /// Gives to who stood in the queue. One that has given up since takes nothing: it goes on to the next.
    fn hand(self: &Arc<Self>, queued: &Queued, grant: Grant) {
        if let Some(Outcome::Granted(Grant::Conn(conn))) = queued.finish(Outcome::Granted(grant)) {
            self.put_back(conn);
        }
    }

    /// A session gives up its place in the queue; what it was granted in that moment goes back.
    pub fn abandon(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        let mut inner = self.lock();
        inner.queue.retain(|queued| !Arc::ptr_eq(&queued.waiter, waiter));
        drop(inner);
        if let Some(Outcome::Granted(Grant::Conn(conn))) = waiter.abandon() {
            self.put_back(conn);
        }
    }

    /// The node left the configuration: nobody waits for it, and connections close as they come back.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        let mut inner = self.lock();
        let idle = std::mem::take(&mut inner.idle);
        let queue = std::mem::take(&mut inner.queue);
        inner.idle_count = 0;
        drop(inner);
        idle.into_values().flatten().for_each(ServerConn::close);
        queue.into_iter().for_each(|queued| drop(queued.finish(Outcome::Retired)));
    }

    /// Takes over what health checks say: whether the node has just gone down.
    pub fn set_down(&self, down: bool) -> bool {
        let was = self.down.swap(down, Ordering::AcqRel);
        if was && !down {
            self.lock().doors.back();
        }
        !was && down
    }

    /// Whether health checks say that the node is down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Closes every idle connection: they were opened to a server that has since failed.
    pub fn flush_idle(&self) {
        let mut inner = self.lock();
        let idle = std::mem::take(&mut inner.idle);
        inner.idle_count = 0;
        self.note(&inner);
        drop(inner);
        idle.into_values().flatten().for_each(ServerConn::close);
    }

    /// Cuts every connection, idle or in use: the node was the primary, and another one is. Who waits for one chooses
    /// anew.
    pub fn cut(&self) {
        self.cords.cut();
        self.flush_idle();
        let queue = std::mem::take(&mut self.lock().queue);
        queue.into_iter().for_each(|queued| drop(queued.finish(Outcome::Retired)));
    }

    /// Fails the waits that have passed their deadline.
    pub(super) fn expire(&self, now: Instant) {
        let mut inner = self.lock();
        if inner.queue.iter().all(|queued| self.orders.deadline(queued) > now) {
            return;
        }
        let (late, queue): (Vec<_>, Vec<_>) = std::mem::take(&mut inner.queue)
            .into_iter()
            .partition(|queued| self.orders.deadline(queued) <= now);
        inner.queue = queue.into();
        drop(inner);
        late.into_iter().for_each(|queued: Queued| drop(queued.finish(Outcome::Expired)));
    }

    /// Takes idle connections that `old` names, except that `keep` of an identity stay.
    pub(super) fn take_old(&self, keep: u32, old: impl Fn(&ServerConn) -> Age) -> Vec<Box<ServerConn>> {
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let mut taken = Vec::new();
        let mut inner = self.lock();
        for conns in inner.idle.values_mut() {
            let mut spare = conns.len().saturating_sub(keep);
            let mut at = 0;
            while let Some(conn) = conns.get(at) {
                let age = old(conn);
                if age == Age::Expired || (age == Age::Unused && spare > 0) {
                    taken.push(conns.remove(at));
                    spare = spare.saturating_sub(1);
                } else {
                    at = at.saturating_add(1);
                }
            }
        }
        inner.idle.retain(|_, conns| !conns.is_empty());
        inner.idle_count = inner.idle_count.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        self.note(&inner);
        taken
    }

    /// A place for one more connection of an identity that has fewer than `least` idle, if there is room.
    pub(super) fn reserve(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        least: u32,
        caps: Caps,
    ) -> Option<Slot> {
        let mut inner = self.lock();
        let idle = inner.idle.get(&identity.id).map_or(0, Vec::len);
        let enough = idle >= usize::try_from(least).unwrap_or(usize::MAX);
        if enough
            || self.orders.paused()
            || identity.state.paused()
            || !inner.has_room(self.allowed(&inner), identity, caps)
            || self.is_suspect()
            || inner.ask(identity) != Answer::Open
        {
            return None;
        }
        inner.take_place(identity);
        self.note(&inner);
        Some(Slot::new(self, identity))
    }

    /// A connection, or an attempt to open one, has ended: its place goes to the first in the queue that may have it.
    fn freed(self: &Arc<Self>, identity: &Arc<Identity>, was_open: bool) {
        let mut inner = self.lock();
        inner.give_place(identity);
        if was_open && !inner.doors.all_open() {
            inner.doors.ended(identity, Instant::now());
        }
        let max = self.allowed(&inner);
        let room = |queued: &Queued| {
            !queued.is_paused()
                && inner.has_room(max, &queued.identity, queued.caps)
                && inner.admits(&queued.identity)
        };
        let next = inner.queue.iter().position(room).filter(|_| !self.orders.paused());
        let granted = next.and_then(|at| inner.queue.remove(at));
        if let Some(queued) = &granted {
            inner.take_place(&queued.identity);
        }
        self.note(&inner);
        drop(inner);
        if let Some(queued) = granted {
            let slot = Slot::new(self, &queued.identity);
            self.hand(&queued, Grant::Dial(slot));
        }
    }

    fn note(&self, inner: &Inner) {
        self.busy.store(inner.total.saturating_sub(inner.idle_count), Ordering::Relaxed);
    }
}

impl Slot {
    /// A place for a connection of this identity, just taken.
    pub(super) fn new(pool: &Arc<NodePool>, identity: &Arc<Identity>) -> Self {
        let (generation, cuts) = (pool.generation(identity), pool.cords.cuts());
        identity.take_place();
        Self {
            pool: Arc::clone(pool),
            identity: Arc::clone(identity),
            generation,
            cuts,
            cord: None,
            resting: false,
        }
    }

    /// Waits until the pool's connections are cut, or have been since the place was taken.
    pub async fn cut(&self) {
        self.pool.cords.wait_for_cut(self.cuts).await;
    }

    /// Lets the pool cut this connection, which has just been opened for this place.
    pub fn hold(&mut self, io: &tokio::net::TcpStream) {
        self.cord = self.pool.cords.hold(io, self.cuts);
    }

    /// The session that has the connection rests, or no longer.
    pub fn set_resting(&mut self, resting: bool) {
        if self.resting != resting {
            self.resting = resting;
            match resting {
                true => self.pool.resting.fetch_add(1, Ordering::Relaxed),
                false => self.pool.resting.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }

    /// The pool to which the place belongs.
    #[must_use]
    pub fn pool(&self) -> &Arc<NodePool> {
        &self.pool
    }

    /// For whom the place was taken.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.set_resting(false);
        self.identity.give_place();
        let socket = self.cord.and_then(|cord| self.pool.cords.release(cord));
        match socket {
            Some(socket) if self.pool.is_budgeted() => leave::see_off(&self.pool, &self.identity, socket),
            socket => {
                let was_open = socket.is_some();
                drop(socket);
                self.pool.freed(&self.identity, was_open);
            }
        }
    }
}
