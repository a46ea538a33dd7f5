//! What a pool owns and who waits for it, under the pool's lock: places, idle connections, the queue, and who comes next.
//! Pure but for the connections it moves; never dials, never closes, never wakes anybody.

use super::budget::{Budget, Source};
use super::doors::{Answer, Doors, Limit};
use super::{Caps, Request};
use crate::pool::identity::Identity;
use crate::pool::wait::{Outcome, Ticket, Waiter};
use crate::server::ServerConn;
use crate::server::settings::{Texts, same};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time that a waiter of another worker is passed over.
const MIGRATE_AFTER: Duration = Duration::from_millis(1);
/// Longest time that a waiter of another identity is passed over.
const SWITCH_AFTER: Duration = Duration::from_millis(10);
/// How far down the queue a better match is looked for.
const LOOK_AHEAD: usize = 64;

/// What is under the lock.
pub(super) struct Inner {
    /// Connections open or being opened.
    pub total: u32,
    /// Of these, idle.
    pub idle_count: u32,
    /// Idle connections by identity, the one that came back last at the end.
    pub idle: HashMap<u64, Vec<Box<ServerConn>>, foldhash::fast::RandomState>,
    per_user: HashMap<Vec<u8>, u32>,
    per_database: HashMap<Vec<u8>, u32>,
    /// Who waits, oldest first.
    pub queue: VecDeque<Queued>,
    /// The share of the node's budget.
    pub budget: Budget,
    /// Of `total`, connections whose server has not ended yet.
    pub leaving: u32,
    /// When connections may be cut again.
    pub cut: Option<Instant>,
    /// What the server refuses.
    pub doors: Doors,
}

/// A session in the queue.
pub(super) struct Queued {
    pub waiter: Arc<Waiter>,
    ticket: Ticket,
    pub identity: Arc<Identity>,
    pub caps: Caps,
    pub since: Instant,
    pub deadline: Instant,
}

impl Queued {
    /// The database is paused: others in the queue come first.
    pub fn is_paused(&self) -> bool {
        self.identity.state.paused()
    }

    /// Ends the wait. The outcome comes back if the session has given up in the meantime.
    #[must_use]
    pub fn finish(&self, outcome: Outcome) -> Option<Outcome> {
        self.waiter.finish(self.ticket, outcome)
    }
}

/// How old an idle connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Age {
    Young,
    /// Past its idle timeout.
    Unused,
    /// Past its lifetime.
    Expired,
}

/// Who gets a connection that came back.
pub(super) enum Pick {
    /// The waiter at this index gets the connection.
    Same(usize),
    /// The oldest waiter is of another identity: the connection closes and its place goes on.
    Other,
    Nobody,
}

impl Inner {
    /// Nothing yet.
    pub fn new(source: Source) -> Self {
        Self {
            total: 0,
            idle_count: 0,
            idle: HashMap::default(),
            per_user: HashMap::new(),
            per_database: HashMap::new(),
            queue: VecDeque::new(),
            budget: Budget::new(source),
            leaving: 0,
            cut: None,
            doors: Doors::default(),
        }
    }

    /// An idle connection of an identity, rather one with these settings, and one of this worker.
    pub fn take_idle(
        &mut self,
        id: u64,
        worker: usize,
        settings: Option<&Arc<Texts>>,
    ) -> Option<Box<ServerConn>> {
        let conns = self.idle.get_mut(&id)?;
        let fits = |conn: &ServerConn| same(conn.settings.as_ref(), settings);
        let local = conns.iter().rposition(|conn| conn.worker == worker && fits(conn));
        let near = local.or_else(|| conns.iter().rposition(|conn| fits(conn)));
        let conn = match near.or_else(|| conns.iter().rposition(|conn| conn.worker == worker)) {
            Some(at) => conns.remove(at),
            None => conns.pop()?,
        };
        self.idle_count = self.idle_count.saturating_sub(1);
        Some(conn)
    }

    fn user_full(&self, identity: &Identity, caps: Caps) -> bool {
        caps.user.is_some_and(|cap| self.per_user.get(&identity.user).is_some_and(|n| *n >= cap))
    }

    fn database_full(&self, identity: &Identity, caps: Caps) -> bool {
        caps.database.is_some_and(|cap| self.per_database.get(&identity.database).is_some_and(|n| *n >= cap))
    }

    /// Whether an identity may have one more connection.
    pub fn has_room(&self, max: u32, identity: &Identity, caps: Caps) -> bool {
        self.total < max && !self.user_full(identity, caps) && !self.database_full(identity, caps)
    }

    /// Takes out the idle connection that rested longest among those whose end makes room for `identity`.
    pub fn evict_for(&mut self, max: u32, identity: &Identity, caps: Caps) -> Option<Box<ServerConn>> {
        let (user_full, database_full) = (self.user_full(identity, caps), self.database_full(identity, caps));
        if self.total > max {
            return None;
        }
        let fits = |conn: &ServerConn| {
            (!user_full || conn.identity.user == identity.user)
                && (!database_full || conn.identity.database == identity.database)
        };
        self.take_oldest(fits)
    }

    /// Takes out the idle connection that rested longest among those whose end makes the server take one of `request`.
    pub fn evict_barred(&mut self, request: &Request<'_>) -> Option<Box<ServerConn>> {
        let identity = request.identity;
        match self.doors.limit(identity) {
            Limit::Server => self.take_oldest(|_| true),
            Limit::Role => self.take_oldest(|conn| conn.identity.user == identity.user),
            Limit::Database => self.take_oldest(|conn| conn.identity.database == identity.database),
        }
    }

    /// Whether the server may be asked for one more connection of an identity.
    pub fn ask(&self, identity: &Identity) -> Answer {
        if self.doors.all_open() { Answer::Open } else { self.doors.ask(identity, Instant::now()) }
    }

    /// Whether a session in the queue may try.
    pub fn admits(&self, identity: &Identity) -> bool {
        self.doors.all_open() || self.doors.admits(identity, Instant::now())
    }

    /// Takes out the idle connection that rested longest among those that fit.
    pub fn take_oldest(&mut self, fits: impl Fn(&ServerConn) -> bool) -> Option<Box<ServerConn>> {
        let oldest = self
            .idle
            .values()
            .flatten()
            .filter(|conn| fits(conn))
            .map(|c| (c.idle_since, c.identity.id))
            .min()?;
        let conns = self.idle.get_mut(&oldest.1)?;
        let at = conns.iter().position(|conn| conn.idle_since == oldest.0)?;
        let conn = conns.remove(at);
        if conns.is_empty() {
            self.idle.remove(&oldest.1);
        }
        self.idle_count = self.idle_count.saturating_sub(1);
        Some(conn)
    }

    /// Takes out all idle connections of the identities that are meant.
    pub fn take_idle_where(&mut self, meant: impl Fn(&[Box<ServerConn>]) -> bool) -> Vec<Box<ServerConn>> {
        let mut taken = Vec::new();
        self.idle.retain(|_, conns| {
            let meant = meant(conns);
            if meant {
                taken.append(conns);
            }
            !meant
        });
        self.idle_count = self.idle_count.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        taken
    }

    /// Puts a session at the end of the queue.
    pub fn enqueue(&mut self, request: &Request<'_>) {
        let ticket = request.waiter.enqueue();
        let since = Instant::now();
        self.queue.push_back(Queued {
            waiter: Arc::clone(request.waiter),
            ticket,
            identity: Arc::clone(request.identity),
            caps: request.caps,
            since,
            deadline: since.checked_add(request.timeout).unwrap_or(since),
        });
    }

    /// Counts a connection of an identity in.
    pub fn take_place(&mut self, identity: &Identity) {
        self.total = self.total.saturating_add(1);
        if !self.doors.all_open() {
            self.doors.attempt(identity, Instant::now());
        }
        let add = |map: &mut HashMap<Vec<u8>, u32>, name: &Vec<u8>| match map.get_mut(name) {
            Some(n) => *n = n.saturating_add(1),
            None => {
                map.insert(name.clone(), 1);
            }
        };
        add(&mut self.per_user, &identity.user);
        add(&mut self.per_database, &identity.database);
    }

    /// Counts a connection of an identity out.
    pub fn give_place(&mut self, identity: &Identity) {
        self.total = self.total.saturating_sub(1);
        let sub = |map: &mut HashMap<Vec<u8>, u32>, name: &Vec<u8>| {
            let left = map.get_mut(name).map(|n| {
                *n = n.saturating_sub(1);
                *n
            });
            if left == Some(0) {
                map.remove(name);
            }
        };
        sub(&mut self.per_user, &identity.user);
        sub(&mut self.per_database, &identity.database);
    }

    /// Who gets a connection that came back.
    pub fn pick(&self, conn: &ServerConn, now: Instant) -> Pick {
        let waits = |queued: &Queued| !queued.is_paused();
        let Some(first) = self.queue.iter().position(waits) else { return Pick::Nobody };
        let Some(front) = self.queue.get(first) else { return Pick::Nobody };
        let age = now.saturating_duration_since(front.since);
        let same = |queued: &Queued| queued.identity.id == conn.identity.id;
        let local = |queued: &Queued| queued.waiter.worker == conn.worker;
        if same(front) && (local(front) || age >= MIGRATE_AFTER) {
            return Pick::Same(first);
        }
        let near = || self.queue.iter().take(LOOK_AHEAD);
        if !same(front) && age >= SWITCH_AFTER {
            return Pick::Other;
        }
        near()
            .position(|q| same(q) && local(q))
            .or_else(|| near().position(same))
            .map_or(Pick::Other, Pick::Same)
    }
}
