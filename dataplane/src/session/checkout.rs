//! Getting a server connection within a poll: one at hand, or a place in the queue of a node's pool that the session's
//! own poll watches. What must be dialled, or waited for outside a queue, is left to `acquire`. Never awaits.

use super::acquire::timed_out;
use super::core::Ending;
use super::drive::{Session, Step};
use crate::metrics::count;
use crate::pool::identity::Greeting;
use crate::pool::node::Request;
use crate::pool::{Checkout, Grant, NodePool, Outcome, Slot, View, Waiter};
use crate::route::{Choice, Query, Reason, SessionFacts, choose};
use crate::server::ServerConn;
use crate::server::settings::same;
use crate::worker::Tools;
use helios_pgwire::{PgError, Severity};
use helios_proto::model::{PoolMode, ReadYourWrites};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::ReadBuf;

/// What a poll found out for the search that goes on outside it.
pub struct Lead {
    /// When the run began to look for a server connection.
    pub since: Instant,
    /// The choice that was made and reported: revision of the snapshot, and the node if there was one.
    pub choice: Option<(u64, Option<usize>)>,
    /// The right to open a connection to it.
    pub slot: Option<Slot>,
    /// A connection to it that has other settings than the session.
    pub conn: Option<Box<ServerConn>>,
}

impl Lead {
    /// Nothing was found out, but that the search goes on since then.
    const fn since(since: Instant) -> Self {
        Self { since, choice: None, slot: None, conn: None }
    }
}

/// Whether a connection to a node that was chosen under an older snapshot still leads there, and the node plays the same part.
pub(super) fn is_still_meant(view: &View, (node, standby): (usize, bool), conn: &ServerConn) -> bool {
    let there = view.pools.get(node).is_some_and(|pool| Arc::ptr_eq(pool, conn.slot.pool()));
    there && standby == (view.snapshot.primary != Some(node))
}

/// The session's place in the queue of a node's pool; dropping it gives it up.
pub struct Place {
    pool: Arc<NodePool>,
    waiter: Arc<Waiter>,
    node: usize,
    /// The node chosen was no primary.
    standby: bool,
    revision: u64,
    since: Instant,
    over: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.over {
            self.pool.abandon(&self.waiter);
        }
    }
}

impl Session {
    /// A server connection for the core's run, if one is at hand: `true`. Otherwise the session stands in a queue.
    pub(super) fn take_server(&mut self, tools: &mut Tools) -> Result<bool, Step> {
        let since = Instant::now();
        let view = tools.view();
        self.refresh(&view);
        if self.alone {
            let error = PgError::fatal("08006", "connection to the server was lost");
            return Err(Step::Ended(Ending::Error(Box::new(error))));
        }
        let choice = self.choose(&view, tools);
        let revision = view.snapshot.revision;
        let lead = Lead { choice: Some((revision, choice.node)), ..Lead::since(since) };
        let Some((node, pool)) = choice.node.and_then(|i| Some((i, view.pools.get(i)?))) else {
            return self.leave_to_acquire(lead);
        };
        if pool.is_suspect() {
            return self.leave_to_acquire(lead);
        }
        let request = Request {
            identity: &self.identity,
            waiter: &self.waiter,
            settings: self.core.settings().in_force(),
            caps: view.caps(&self.identity),
            timeout: view.settings().pool.acquire_timeout,
        };
        match pool.checkout(&request) {
            Checkout::Ready(conn) => match conn.adopt(self.worker.id) {
                Ok(conn) if self.is_dressed(&conn) => {
                    self.worker.counters.acquire.observe(Duration::ZERO);
                    self.bind(conn, node, &view);
                    Ok(true)
                }
                Ok(conn) => self.leave_to_acquire(Lead { conn: Some(conn), ..lead }),
                Err(_) => self.leave_to_acquire(lead),
            },
            Checkout::Dial(slot) => self.leave_to_acquire(Lead { slot: Some(slot), ..lead }),
            Checkout::Away | Checkout::Retired => self.leave_to_acquire(lead),
            Checkout::Wait => {
                self.handle.set_queued(true);
                let (pool, waiter) = (Arc::clone(pool), Arc::clone(&self.waiter));
                let standby = view.snapshot.primary != Some(node);
                self.place = Some(Place { pool, waiter, node, standby, revision, since, over: false });
                Ok(false)
            }
        }
    }

    /// The connection that the login was passed on to is the session's, before any statement.
    pub(super) fn bind_for_good(&mut self, mut conn: Box<ServerConn>) {
        self.handle.set_server(&conn.ident);
        let prepared = std::mem::take(&mut conn.prepared);
        self.server = Some(conn);
        self.core.bind_for_good(prepared);
    }

    fn leave_to_acquire(&mut self, lead: Lead) -> Result<bool, Step> {
        self.lead = Some(lead);
        Err(Step::Acquire)
    }

    /// Looks after the session's place in a queue: whether it is over.
    pub(super) fn poll_place(&mut self, cx: &mut Context<'_>, tools: &mut Tools) -> Result<bool, Step> {
        let Some(place) = &mut self.place else { return Ok(false) };
        let Poll::Ready(outcome) = place.waiter.poll(cx) else {
            if self.handle.take_cancelled() {
                self.fail_place(&PgError::error("57014", "canceling statement due to user request"));
                return Ok(true);
            }
            return if self.client_left(cx) { Err(Step::ClientGone) } else { Ok(false) };
        };
        place.over = true;
        let (since, revision, node, standby) = (place.since, place.revision, place.node, place.standby);
        let choice = Some((revision, Some(node)));
        match outcome {
            Outcome::Granted(Grant::Conn(conn)) => {
                self.leave_queue();
                self.take_granted(conn, node, standby, since, tools)?;
            }
            Outcome::Granted(Grant::Dial(slot)) => {
                self.leave_queue();
                self.leave_to_acquire(Lead { choice, slot: Some(slot), ..Lead::since(since) })?;
            }
            Outcome::Retired => {
                self.leave_queue();
                self.leave_to_acquire(Lead::since(since))?;
            }
            Outcome::Expired => {
                count(&self.worker.counters.acquire_timeouts);
                self.fail_place(&timed_out(Severity::Error));
            }
        }
        Ok(true)
    }

    /// A connection that was waited for. A newer snapshot sends the run elsewhere only if its node plays another part.
    fn take_granted(
        &mut self,
        conn: Box<ServerConn>,
        node: usize,
        standby: bool,
        since: Instant,
        tools: &mut Tools,
    ) -> Result<(), Step> {
        let view = tools.view();
        if !is_still_meant(&view, (node, standby), &conn) {
            let pool = Arc::clone(conn.slot.pool());
            pool.put_back(conn);
            return self.leave_to_acquire(Lead::since(since)).map(drop);
        }
        self.refresh(&view);
        match conn.adopt(self.worker.id) {
            Ok(conn) if self.is_dressed(&conn) => {
                self.note_wait(since.elapsed());
                self.bind(conn, node, &view);
                Ok(())
            }
            Ok(conn) => {
                let choice = Some((view.snapshot.revision, Some(node)));
                self.leave_to_acquire(Lead { choice, conn: Some(conn), ..Lead::since(since) }).map(drop)
            }
            Err(_) => self.leave_to_acquire(Lead::since(since)).map(drop),
        }
    }

    /// Counts a wait for a server connection.
    pub(super) fn note_wait(&self, waited: Duration) {
        self.worker.counters.acquire.observe(waited);
        self.tally.waited(waited);
    }

    /// Whether a connection has the settings of this session.
    fn is_dressed(&self, conn: &ServerConn) -> bool {
        same(conn.settings.as_ref(), self.core.settings().in_force())
    }

    fn leave_queue(&mut self) {
        self.place = None;
        self.handle.set_queued(false);
    }

    fn fail_place(&mut self, error: &PgError) {
        if let Some(place) = &self.place {
            self.note_wait(place.since.elapsed());
        }
        self.leave_queue();
        self.fail(error);
    }

    /// Whether the client has gone while it waits; one that only sends no more still waits for its answer (B19). Costs a
    /// system call only when something came from it.
    fn client_left(&self, cx: &mut Context<'_>) -> bool {
        let mut byte = [0u8; 1];
        matches!(self.client.tcp().poll_peek(cx, &mut ReadBuf::new(&mut byte)), Poll::Ready(Err(_)))
    }

    /// Holds this server connection from now on.
    pub(super) fn bind(&mut self, mut conn: Box<ServerConn>, node: usize, view: &View) {
        let standby = view.snapshot.primary != Some(node);
        self.handle.set_server(&conn.ident);
        let prepared = std::mem::take(&mut conn.prepared);
        if !Arc::ptr_eq(&conn.greeting, &self.greeting) && !self.greeting.agrees(&conn.greeting) {
            // The answer is another one than the session has looked for.
            self.desk.give_up();
        }
        self.greet_again(&conn.greeting);
        self.server = Some(conn);
        self.to_server.clear();
        self.fresh = true;
        self.desk.bound(standby);
        self.core.bind(standby, prepared);
        self.count_pin();
        self.look = true;
    }

    /// Counts the moment in which the session becomes tied to its server connection.
    pub(super) fn count_pin(&mut self) {
        self.tied.set(self.core.pins());
    }

    /// The server connection may have been opened under other settings of the role or the database than the last one:
    /// the client is told, and a text that was read by other rules is not trusted.
    fn greet_again(&mut self, greeting: &Arc<Greeting>) {
        if Arc::ptr_eq(greeting, &self.greeting) {
            return;
        }
        let changes = self.greeting.changes_to(greeting);
        self.to_client.push(&changes);
        let rules = |greeting: &Greeting| (greeting.standard_strings, greeting.readable);
        if rules(greeting) != rules(&self.greeting) {
            self.core.distrust();
        }
        self.greeting = Arc::clone(greeting);
    }

    /// Where the core's run goes; one log line and one count per decision.
    pub(super) fn choose(&self, view: &View, tools: &mut Tools) -> Choice {
        let verdict = self.core.run().verdict();
        let now = Instant::now();
        let settings = view.settings();
        let read_your_writes = match settings.balancer.read_your_writes {
            ReadYourWrites::Off => false,
            ReadYourWrites::Time(window) => {
                self.last_write.is_some_and(|at| now.saturating_duration_since(at) < window)
            }
        };
        let session = SessionFacts {
            in_transaction: false,
            pinned: false,
            bound: None,
            read_your_writes,
            read_write_split: settings.balancer.read_write_split,
            mode: self.core.mode(),
        };
        let query = Query { verdict, session, snapshot: &view.snapshot, loads: view, now };
        let choice = choose(&query, &mut tools.picker);
        self.report(choice.node.map_or("none", |node| view.name(node)), choice.reason);
        if verdict.hint.unknown > 0 {
            let unknown = u64::from(verdict.hint.unknown);
            self.worker.counters.unknown_hints.fetch_add(unknown, Ordering::Relaxed);
        }
        choice
    }

    pub(super) fn report(&self, node: &str, reason: Reason) {
        tracing::debug!(target: "heliosdb_proxy", node = %node, reason = %reason, "Routing query to");
        self.worker.counters.reason(reason);
    }

    /// Takes over the settings of a newer snapshot.
    pub(super) fn refresh(&mut self, view: &View) {
        if self.settings_of != view.snapshot.revision {
            self.settings = view.session_settings(&self.identity.user, &self.identity.database);
            self.settings_of = view.snapshot.revision;
            if self.alone {
                self.settings.mode = PoolMode::Session;
            }
            self.core.set_mode(self.settings.mode);
        }
    }
}
