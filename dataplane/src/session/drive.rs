//! The tokio driver of a session: one `poll_fn` that writes before it waits, reads into the worker's buffer, asks the
//! core what the bytes mean, and does that. Two receives and two sends per statement; no lock is held across an await.

use super::checkout::{Lead, Place};
use super::core::{ClientStep, Core, Counts, Cut, Ending, ServerOutcome, ServerStep};
use super::leg::{KEEP, Leg};
use super::run::Judge;
use super::tied::Tied;
use super::traced::Traced;
use crate::cache::{Desk, Watch};
use crate::pool::database::Tally;
use crate::pool::view::SessionSettings;
use crate::pool::{Identity, View, Waiter};
use crate::registry::SessionHandle;
use crate::route::{Loads, Reason};
use crate::server::ServerConn;
use crate::stream::Stream;
use crate::worker::{Bench, Tools, Worker};
use helios_pgwire::PgError;
use helios_pgwire::backend::TxStatus;
use helios_proto::model::{Evidence, PoolMode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

/// What a session cannot do within a poll.
pub enum Step {
    /// A server connection for the core's run must be waited for or dialled.
    Acquire,
    /// The server connection broke, or its server said that it ends; the message, if one came.
    ServerLost(Option<Vec<u8>>),
    /// A standby refused the run as a write.
    Refused,
    /// The client ends the session.
    Ended(Ending),
    /// The client went away.
    ClientGone,
    /// Another worker is to have the session.
    Move,
}

/// A logged-in client.
pub struct Session {
    pub(super) worker: Arc<Worker>,
    pub(super) handle: Arc<SessionHandle>,
    pub(super) identity: Arc<Identity>,
    pub(super) waiter: Arc<Waiter>,
    pub(super) settings: SessionSettings,
    pub(super) settings_of: u64,
    pub(super) client: Stream,
    pub(super) to_client: Leg,
    pub(super) server: Option<Box<ServerConn>>,
    /// The login was passed on: the session has that server connection from the start, and can have no other.
    pub(super) alone: bool,
    pub(super) to_server: Leg,
    pub(super) core: Core,
    /// What it has to do with the cache.
    pub(super) desk: Desk,
    /// What its spans need to know.
    pub(super) traced: Traced,
    /// The run as sent, while it may be replayed on another node.
    pub(super) sent: Vec<u8>,
    /// The server connection was bound for a run whose choice has been reported.
    pub(super) fresh: bool,
    /// The session's place in the queue of a node's pool.
    pub(super) place: Option<Place>,
    /// What the last poll found out for [`Step::Acquire`].
    pub(super) lead: Option<Lead>,
    /// Settings that the server connections were opened with.
    pub(super) greeting: Arc<crate::pool::identity::Greeting>,
    /// The client has sent its last byte.
    pub(super) eof: bool,
    /// The inbox of the client has to be looked at (again).
    pub(super) look: bool,
    /// When the statement that runs now was sent.
    pub(super) started: Option<Instant>,
    /// When the transaction that goes on now began.
    pub(super) began: Option<Instant>,
    /// Where the worker counts for the session's database.
    pub(super) tally: Arc<Tally>,
    /// When the session last waited for its client.
    pub(super) rested: Instant,
    pub(super) last_write: Option<Instant>,
    /// How often the run that goes on now was replayed.
    pub(super) replays: u32,
    /// The session is tied to its server connection, and was counted so.
    pub(super) tied: Tied,
    /// The window in which the worker last heard of this session.
    pub(super) window: u32,
    /// The worker wants to be rid of the session.
    pub(super) shed: bool,
}

/// Whether a poll got anywhere.
type Progress = Result<bool, Step>;

impl Loads for View {
    fn busy(&self, node: usize) -> u32 {
        self.pools.get(node).map_or(0, |pool| pool.busy())
    }

    fn suspect(&self, node: usize) -> bool {
        self.pools.get(node).is_some_and(|pool| pool.is_suspect())
    }
}

impl Session {
    /// Relays until something must be waited for off the hot path.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let worker = Arc::clone(&self.worker);
        let mut bench = worker.bench();
        loop {
            let mut progress = false;
            for side in [Self::poll_server, Self::poll_client] {
                match side(self, cx, &mut bench) {
                    Ok(moved) => progress |= moved,
                    Err(step) => return Poll::Ready(step),
                }
            }
            if !progress {
                let moves = std::mem::take(&mut self.shed) && self.may_move();
                return if moves { Poll::Ready(Step::Move) } else { Poll::Pending };
            }
        }
    }

    /// Whether the session holds nothing that belongs to its worker, and another worker would take it.
    fn may_move(&self) -> bool {
        self.server.is_none()
            && self.place.is_none()
            && self.core.at_rest()
            && self.to_client.inbox.is_empty()
            && !self.to_client.blocked()
            && self.worker.shared.lanes.elsewhere(self.worker.id)
    }

    // === server -> client ===

    fn poll_server(&mut self, cx: &mut Context<'_>, bench: &mut Bench) -> Progress {
        if self.to_client.blocked() {
            match self.to_client.flush(&mut self.client, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(Step::ClientGone),
                Poll::Pending => return Ok(false),
            }
        }
        let Some(server) = &mut self.server else { return Ok(false) };
        if self.core.replayable() && server.slot.pool().is_down() {
            return Err(Step::ServerLost(None));
        }
        let n = match server.io.poll_read(cx, &mut bench.scratch) {
            Poll::Ready(Ok(n)) if n > 0 => n,
            Poll::Ready(_) => return Err(Step::ServerLost(None)),
            Poll::Pending => return Ok(false),
        };
        self.tally.sent(n);
        let fresh = bench.scratch.get(..n).unwrap_or_default();
        if self.to_server.inbox.is_empty() {
            let consumed = self.take_from_server(cx, fresh)?;
            self.to_server.inbox.extend_from_slice(fresh.get(consumed..).unwrap_or_default());
        } else {
            let mut whole = std::mem::take(&mut self.to_server.inbox);
            whole.extend_from_slice(fresh);
            let step = self.core.server(&whole, &self.greeting.baseline);
            if let ServerOutcome::Cut(cut) = step.outcome {
                self.take_cut(cx, whole, cut)?;
            } else {
                let consumed = self.take_step(cx, &whole, step)?;
                self.to_server.inbox = whole;
                self.to_server.consume(consumed);
            }
        }
        self.after_server();
        Ok(true)
    }

    /// Bytes of the server: how many were consumed.
    fn take_from_server(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<usize, Step> {
        let step = self.core.server(bytes, &self.greeting.baseline);
        if let ServerOutcome::Cut(cut) = step.outcome {
            return self.take_cut(cx, bytes.to_vec(), cut).map(|()| bytes.len());
        }
        self.take_step(cx, bytes, step)
    }

    /// How many bytes were consumed; on an error the rest is kept here for the clean-up.
    fn take_step(&mut self, cx: &mut Context<'_>, bytes: &[u8], step: ServerStep) -> Result<usize, Step> {
        let forward = bytes.get(..step.forward).unwrap_or_default();
        if self.core.take_told() {
            // Before the client knows.
            self.desk.told();
        }
        self.desk.record(forward);
        if !forward.is_empty() && self.to_client.send(&mut self.client, cx, forward).is_err() {
            self.to_server.inbox = bytes.get(step.forward..).unwrap_or_default().to_vec();
            return Err(Step::ClientGone);
        }
        match step.outcome {
            ServerOutcome::More | ServerOutcome::Settled | ServerOutcome::Cut(_) => Ok(step.forward),
            ServerOutcome::Refused => {
                self.to_server.inbox = bytes.get(self.core.held()..).unwrap_or_default().to_vec();
                Err(Step::Refused)
            }
            ServerOutcome::Fatal => {
                let message = bytes.get(step.forward..).filter(|m| m.first() == Some(&b'E'));
                Err(Step::ServerLost(message.map(<[u8]>::to_vec)))
            }
        }
    }

    /// Bytes of the server of which some change on their way: all are consumed, what must wait is kept here.
    fn take_cut(&mut self, cx: &mut Context<'_>, mut bytes: Vec<u8>, first: Cut) -> Result<(), Step> {
        let mut next = Some(first);
        while let Some(Cut { at, len, insert }) = next.take() {
            let end = at.saturating_add(len).min(bytes.len());
            bytes.splice(at.min(end)..end, insert);
            let step = self.core.server(&bytes, &self.greeting.baseline);
            match step.outcome {
                ServerOutcome::Cut(cut) => next = Some(cut),
                _ => {
                    let consumed = self.take_step(cx, &bytes, step)?;
                    bytes.drain(..consumed.min(bytes.len()));
                }
            }
        }
        self.to_server.inbox = bytes;
        Ok(())
    }

    /// The server has said something: perhaps the statement is over, perhaps the connection is free.
    fn after_server(&mut self) {
        if let Some(standby) = self.core.take_hot_standby()
            && let Some(server) = &self.server
        {
            (self.worker.shared.evidence)(&server.slot.pool().node.name, Evidence::InHotStandby(standby));
        }
        // What the client sent ahead may mean something else now: after an answer, when the server reads COPY data, or when it
        // skips up to a Sync.
        let ledger = self.core.ledger();
        self.look |= ledger.settled() || ledger.copy_in() || ledger.unsynced() || self.core.waits_for_name();
        let (ended, settled) = (self.core.take_ended(), self.core.ledger().settled());
        if ended.answers == 0 && !settled {
            return;
        }
        let now = Instant::now();
        if let Some(started) = self.started.take() {
            let took = now.saturating_duration_since(started);
            self.worker.counters.query.observe(took);
            self.tally.answered(ended.answers, took);
            self.traced.answered(self.server.as_ref().map(|server| &server.slot.pool().node), ended.code);
        }
        if ended.transactions > 0
            && let Some(began) = self.began.take()
        {
            self.tally.ended(ended.transactions, now.saturating_duration_since(began));
        }
        if !settled {
            // The next of a pipeline has its own time.
            self.started = Some(now);
            self.began.get_or_insert(now);
            return;
        }
        if self.core.ledger().status() == TxStatus::Idle {
            self.desk.landed();
        }
        self.rested = now;
        self.replays = 0;
        self.count_pin();
        if self.sent.capacity() > KEEP {
            self.sent = Vec::new();
        }
        if self.core.take_wrote() {
            self.last_write = Some(now);
        }
        if let Some(lane) = self.worker.shared.lanes.lane(self.worker.id) {
            self.shed |= lane.pulse.beat(&mut self.window);
        }
        if self.core.may_release() && self.to_server.inbox.is_empty() && !self.to_server.blocked() {
            self.release();
        } else if self.core.at_rest()
            && let Some(server) = &mut self.server
        {
            server.slot.set_resting(true);
        }
    }

    /// What has gone out was the rest of something that the server throws away: no answer will let the connection go.
    fn release_if_over(&mut self) {
        if self.core.may_release() && self.to_server.inbox.is_empty() && !self.to_server.blocked() {
            self.started = None;
            self.release();
        }
    }

    /// Gives the clean server connection back.
    fn release(&mut self) {
        self.desk.rested();
        if self.core.mode() == PoolMode::Session {
            // Its client counts on more than pins tell of.
            return self.hand_over();
        }
        let prepared = self.core.released();
        let Some(mut server) = self.server.take() else { return };
        server.prepared = prepared;
        server.settings = self.core.settings().in_force().map(Arc::clone);
        if self.handle.clear_server() {
            let pool = Arc::clone(server.slot.pool());
            pool.put_back(server);
        } else {
            // A cancel is on its way to it and might hit the next session's statement.
            server.close();
        }
    }

    /// Counts what was just judged; a statement that had no choice of node is reported here.
    pub(super) fn note_counts(&mut self) -> Counts {
        let counts = self.core.take_counts();
        self.worker.counters.reads.fetch_add(u64::from(counts.reads), Ordering::Relaxed);
        self.worker.counters.writes.fetch_add(u64::from(counts.writes), Ordering::Relaxed);
        let chosen = u32::from(std::mem::take(&mut self.fresh));
        let Some(server) = &self.server else { return counts };
        for _ in chosen..counts.reads.saturating_add(counts.writes) {
            let pinned = !self.core.pins().is_empty() || self.core.mode() == PoolMode::Session;
            let reason = if pinned { Reason::Pinned } else { Reason::InTransaction };
            self.report(server.slot.pool().node.name.as_str(), reason);
        }
        counts
    }

    // === client -> server ===

    fn poll_client(&mut self, cx: &mut Context<'_>, bench: &mut Bench) -> Progress {
        if self.place.is_some() {
            return self.poll_place(cx, &mut bench.tools);
        }
        if self.is_held() || self.is_choked() {
            return Ok(false);
        }
        if self.to_server.blocked()
            && let Some(server) = &mut self.server
        {
            match self.to_server.flush(&mut server.io, cx) {
                Poll::Ready(Ok(())) => self.release_if_over(),
                Poll::Ready(Err(_)) => return Err(Step::ServerLost(None)),
                Poll::Pending => return Ok(false),
            }
        }
        if self.handle.overdue() {
            self.core.go_one_by_one();
            if !self.to_client.inbox.is_empty() && self.core.between_runs() {
                return self.leave();
            }
        }
        // Where nothing came of it, the rest of a message is missing, and the socket has to be asked for it.
        if self.look && !self.to_client.inbox.is_empty() && self.look_again(cx, &mut bench.tools)? {
            return Ok(true);
        }
        self.look = false;
        if self.eof {
            return self.at_eof();
        }
        if self.stalled() {
            return Ok(false);
        }
        let n = match self.read_client(cx, &mut bench.scratch) {
            Poll::Ready(Ok(0)) => {
                self.eof = true;
                return Ok(true);
            }
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Err(Step::ClientGone),
            Poll::Pending => return Ok(false),
        };
        if self.handle.overdue() && self.core.between_runs() {
            return self.leave();
        }
        let Bench { scratch, tools } = bench;
        let fresh = scratch.get(..n).unwrap_or_default();
        if !self.to_client.inbox.is_empty() {
            self.to_client.inbox.extend_from_slice(fresh);
            // Whatever came of it, the socket has to be asked again: only then is the next byte noticed.
            self.look_again(cx, tools)?;
            return Ok(true);
        }
        match self.take_from_client(cx, fresh, tools) {
            Ok(consumed) => {
                self.to_client.inbox.extend_from_slice(fresh.get(consumed..).unwrap_or_default());
                Ok(true)
            }
            Err((consumed, step)) => {
                self.to_client.inbox.extend_from_slice(fresh.get(consumed..).unwrap_or_default());
                Err(step)
            }
        }
    }

    /// Reads from the client, and counts what came.
    fn read_client(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<std::io::Result<usize>> {
        let read = self.client.poll_read(cx, into);
        if let Poll::Ready(Ok(n)) = &read {
            self.tally.received(*n);
        }
        read
    }

    /// The client sends no more: what can end is waited for, what needs more of it cannot.
    fn at_eof(&self) -> Progress {
        let over = self.core.ledger().settled() || self.core.waits_for_client() || self.core.half_sent();
        let over = over && !self.core.waits_for_name();
        if over && !self.to_client.blocked() { Err(Step::ClientGone) } else { Ok(false) }
    }

    /// The session rests on a server connection whose node is about to hand its part over: nothing new begins there. It is
    /// woken when that is over.
    fn is_held(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.slot.pool().is_held()) && self.core.at_rest()
    }

    /// The data plane stops, and the client begins something new instead of a pause. Once it has taken its answers it is told
    /// that in place of another, so that it is sure that the statement was not executed.
    fn leave(&self) -> Progress {
        if self.to_client.blocked() {
            return Ok(false);
        }
        Err(Step::Ended(Ending::Error(Box::new(stops()))))
    }

    /// Bytes of the client wait for the server's answer, or for the client to read ours: read no more of them.
    fn stalled(&self) -> bool {
        let waits =
            !self.to_client.inbox.is_empty() && !self.core.ledger().settled() && self.server.is_some();
        (waits && self.core.replayable()) || self.to_client.blocked() || self.to_client.inbox.len() > STALL_AT
    }

    fn look_again(&mut self, cx: &mut Context<'_>, tools: &mut Tools) -> Progress {
        self.look = false;
        let whole = std::mem::take(&mut self.to_client.inbox);
        let result = self.take_from_client(cx, &whole, tools);
        self.to_client.inbox = whole;
        match result {
            Ok(consumed) => {
                self.to_client.consume(consumed);
                Ok(consumed > 0 || self.place.is_some())
            }
            Err((consumed, step)) => {
                self.to_client.consume(consumed);
                Err(step)
            }
        }
    }

    /// Bytes of the client: how many were consumed.
    fn take_from_client(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        tools: &mut Tools,
    ) -> Result<usize, (usize, Step)> {
        let mut at = 0usize;
        if self.server.is_none() && self.settings_of != tools.revision() {
            // Another mode counts from the first message of a run on.
            self.refresh(&tools.view());
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let mut reply = Vec::new();
            let mut watch = Watch::new(&mut self.desk, &mut tools.readings);
            let mut judge = Judge {
                cache: &mut tools.verdicts,
                standard_strings: self.greeting.standard_strings,
                known: self.identity.functions.as_ref(),
                readable: self.greeting.readable && !self.core.reads_differently(),
                statements: &mut tools.statements,
                watching: &mut watch,
                edit: &mut tools.edit,
            };
            match self.core.client(rest, &mut judge, &mut reply) {
                ClientStep::Wait | ClientStep::Stall => return Ok(at),
                ClientStep::Close(ending) => {
                    self.to_client.push(&reply);
                    return Err((at, Step::Ended(ending)));
                }
                ClientStep::Consume(n) => {
                    at = at.saturating_add(n);
                    if !reply.is_empty() {
                        self.rested = Instant::now();
                    }
                    self.to_client.send(&mut self.client, cx, &reply).map_err(|_| (at, Step::ClientGone))?;
                    if n == 0 && reply.is_empty() {
                        return Ok(at);
                    }
                }
                ClientStep::Acquire => {
                    if !self.find_answer(cx, rest, tools).map_err(|step| (at, step))? || self.is_choked() {
                        return Ok(at);
                    }
                }
                ClientStep::Forward(n) => {
                    let bytes = rest.get(..n).unwrap_or_default();
                    // Sent or not: the core has these bytes behind it, and what is replayed is `sent`.
                    at = at.saturating_add(n);
                    self.forward(cx, bytes, bytes).map_err(|step| (at, step))?;
                    if self.to_server.blocked() {
                        return Ok(at);
                    }
                }
                ClientStep::Rewritten(n) => {
                    let bytes = rest.get(..n).unwrap_or_default();
                    let sent = self.forward(cx, bytes, &tools.edit);
                    if tools.edit.capacity() > crate::worker::CHUNK {
                        tools.edit = Vec::new();
                    }
                    at = at.saturating_add(n);
                    sent.map_err(|step| (at, step))?;
                    if self.to_server.blocked() {
                        return Ok(at);
                    }
                }
            }
        }
    }

    /// Bytes of the client, and what the server gets for them.
    fn forward(&mut self, cx: &mut Context<'_>, theirs: &[u8], bytes: &[u8]) -> Result<(), Step> {
        if self.core.replayable() {
            self.sent.clear();
            self.sent.extend_from_slice(theirs);
        }
        let counts = self.note_counts();
        // What owes no answer runs for no time.
        if self.started.is_none() && !self.core.ledger().settled() {
            self.traced.sent(theirs, counts.writes > 0);
            let now = Instant::now();
            self.started = Some(now);
            self.began.get_or_insert(now);
            self.handle.note_request(now);
        }
        let Some(server) = &mut self.server else { return Ok(()) };
        server.slot.set_resting(false);
        let sent = self.to_server.send(&mut server.io, cx, bytes);
        // What is behind them is looked at once they are gone.
        self.look |= self.to_server.blocked();
        sent.map_err(|_| Step::ServerLost(None))?;
        self.release_if_over();
        Ok(())
    }
}

/// What a client is told when the data plane stops.
pub(super) fn stops() -> PgError {
    PgError::fatal("57P01", "terminating connection due to administrator command")
}

/// Bytes of the client that wait for a server before no more are read.
const STALL_AT: usize = super::core::TEXT_MAX + crate::worker::CHUNK;
