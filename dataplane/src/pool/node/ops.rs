//! What operators order for a node's pool: its size, a pause, a fresh start of its connections. Orders are state, taken
//! from the snapshot; giving the same one again does nothing.

use super::inner::{Inner, Queued};
use super::{NodePool, Slot};
use crate::pool::identity::Identity;
use crate::pool::wait::Grant;
use crate::server::{ServerConn, ServerIdent};
use helios_proto::model::{NodeOps, Settings};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Orders in force.
#[derive(Default)]
pub(super) struct Orders {
    paused: AtomicBool,
    /// The node is about to hand its part over.
    held: AtomicBool,
    /// Longest wait while paused, in milliseconds.
    hold: AtomicU64,
    /// The last order to reconnect.
    reconnect: AtomicU64,
    /// Addresses that the node's name has given up, and 1 more.
    departures: AtomicU64,
    /// Grows with each order to reconnect, and when the node's name gives an address up.
    generation: AtomicU64,
}

impl Orders {
    /// Nobody gets a connection now.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) || self.held()
    }

    /// Nor may sessions that rest use the one they have.
    pub fn held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Connections opened under another generation close as they come back.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// When a wait ends: later while paused, since that is no sign of too small a pool.
    pub fn deadline(&self, queued: &Queued) -> Instant {
        if !self.paused() && !queued.is_paused() {
            return queued.deadline;
        }
        let hold = Duration::from_millis(self.hold.load(Ordering::Relaxed));
        queued.since.checked_add(hold).map_or(queued.deadline, |held| held.max(queued.deadline))
    }
}

impl NodePool {
    /// Puts the orders of a snapshot in force; `held`: the node is about to hand its part over. `budget`: most
    /// connections of all data planes.
    pub fn obey(self: &Arc<Self>, ops: &NodeOps, held: bool, budget: Option<u32>, settings: &Settings) {
        let size = ops.pool_size.unwrap_or(settings.pool.max_pool_size);
        let grown = size > self.max.swap(size, Ordering::Relaxed);
        let hold = settings.write_timeout.as_millis();
        self.orders.hold.store(u64::try_from(hold).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut inner = self.lock();
        self.set_budget(&mut inner, budget);
        let waited = self.orders.paused();
        self.orders.paused.store(ops.paused, Ordering::Relaxed);
        self.orders.held.store(held, Ordering::Relaxed);
        let resumed = waited && !self.orders.paused();
        let renewed = self.orders.reconnect.swap(ops.reconnect, Ordering::Relaxed) != ops.reconnect;
        drop(inner);
        if renewed {
            self.renew();
        }
        if resumed || grown {
            self.serve_queue(resumed);
        }
    }

    /// Takes how many addresses the node's name has given up: connections to them close as they come back, and since none
    /// says which those are, all do.
    pub fn follow_name(&self, departures: u64) {
        // 0: none was told yet.
        let told = departures.saturating_add(1);
        let before = self.orders.departures.swap(told, Ordering::Relaxed);
        if before != 0 && before < told {
            tracing::info!(node = %self.node.name, host = self.node.host, "host has a new address, connections are made anew");
            self.renew();
        }
    }

    /// Connections close as they come back, idle ones at once.
    fn renew(&self) {
        let _ = self.orders.generation.fetch_add(1, Ordering::Relaxed);
        self.flush_idle();
    }

    /// Of the orders to reconnect that a connection of this identity is opened under.
    pub(super) fn generation(&self, identity: &Identity) -> (u64, u64) {
        (self.orders.generation(), identity.state.generation())
    }

    /// Closes the idle connections to a database.
    pub fn flush_database(&self, database: &[u8]) {
        let mut inner = self.lock();
        let ours = |conns: &[Box<ServerConn>]| conns.first().is_some_and(|c| c.identity.database == database);
        let closing = inner.take_idle_where(ours);
        self.note(&inner);
        drop(inner);
        closing.into_iter().for_each(ServerConn::close);
    }

    /// Idle connections: which, whose, and since when.
    #[must_use]
    pub fn idle_servers(&self) -> Vec<(Arc<ServerIdent>, Arc<Identity>, Instant)> {
        let inner = self.lock();
        let idle = inner.idle.values().flatten();
        idle.map(|conn| (Arc::clone(&conn.ident), Arc::clone(&conn.identity), conn.idle_since)).collect()
    }

    /// Whether nobody gets a connection now.
    pub(super) fn paused(&self) -> bool {
        self.orders.paused()
    }

    /// Whether the node is about to hand its part over: nobody begins anything on it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.orders.held()
    }

    /// What was held goes on; whether anything was.
    pub fn release_hold(self: &Arc<Self>) -> bool {
        let inner = self.lock();
        let held = self.orders.held.swap(false, Ordering::Relaxed);
        drop(inner);
        if held && !self.orders.paused() {
            self.serve_queue(true);
        }
        held
    }

    /// Most connections, whatever the node's budget is.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// Serves whoever waits and can be served now; `anew`: the others wait as if they had just come.
    pub fn serve_queue(self: &Arc<Self>, anew: bool) {
        let now = Instant::now();
        if anew {
            for queued in &mut self.lock().queue {
                let patience = queued.deadline.saturating_duration_since(queued.since);
                queued.deadline = now.checked_add(patience).unwrap_or(queued.deadline);
            }
        }
        loop {
            let mut inner = self.lock();
            let Some(at) = inner.queue.iter().position(|queued| !queued.is_paused()) else { return };
            let Some(queued) = inner.queue.remove(at) else { return };
            let idle = inner.idle.get(&queued.identity.id).is_some_and(|conns| !conns.is_empty());
            if self.is_budgeted()
                && !idle
                && !inner.has_room(self.allowed(&inner), &queued.identity, queued.caps)
                || !idle && !inner.admits(&queued.identity)
            {
                // The next place that is free is its own.
                inner.queue.insert(at, queued);
                return;
            }
            let Some((grant, evicted)) = self.grant(&mut inner, &queued) else {
                inner.queue.insert(at, queued);
                return;
            };
            self.note(&inner);
            drop(inner);
            if let Some(conn) = evicted {
                conn.close();
            }
            self.hand(&queued, grant);
        }
    }

    pub(super) fn grant(
        self: &Arc<Self>,
        inner: &mut Inner,
        queued: &Queued,
    ) -> Option<(Grant, Option<Box<ServerConn>>)> {
        let Queued { identity, waiter, caps, .. } = queued;
        let mut idle = inner.take_idle(identity.id, waiter.worker, None);
        if let Some(conn) = idle.take_if(|conn| conn.is_alive()) {
            return Some((Grant::Conn(conn), None));
        }
        // One that died in the meantime leaves its place to a new one.
        let mut evicted = idle;
        let max = self.allowed(inner);
        if evicted.is_none() && !inner.has_room(max, identity, *caps) {
            evicted = Some(inner.evict_for(max, identity, *caps)?);
        }
        inner.take_place(identity);
        Some((Grant::Dial(Slot::new(self, identity)), evicted))
    }
}
