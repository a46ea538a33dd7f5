//! The session core: bytes arrived -> what to do with them. Sans-IO: it never calls a socket, never waits, and is
//! driven the same by tokio, by property tests and by fuzzers. Owner: one session. Forwards messages untouched and
//! looks only at headers, at statement texts, and at the few replies that decide when a server connection is free.

use super::run::{Judge, Run, function_call, no_unnamed, used_statement};
use crate::server::Ledger;
use helios_pgwire::backend::{self, TxStatus, parameter_status_fields};
use helios_pgwire::frame::{FrameError, Header};
use helios_pgwire::frontend;
use helios_pgwire::{ErrorFields, PgError, Severity};
use helios_proto::model::PoolMode;

use crate::route::{Class, Pins, TxWord, Verdict};

/// A statement text up to this long is held until it is whole and can be judged, in bytes. A longer one counts as
/// a write that may leave any state behind.
pub const TEXT_MAX: usize = 256 * 1024;
/// An extended-protocol run without its Sync is held up to this long before it goes to the primary, in bytes.
const RUN_MAX: usize = 64 * 1024;
/// Replies are held back up to this long while the run may still be replayed on another node, in bytes.
const HOLD_MAX: usize = 16 * 1024;
/// The shortest Describe of a statement, in bytes.
const SHORTEST_USE: usize = 7;
/// A backend message up to this long is read whole if its contents matter, in bytes.
const SMALL: usize = 64 * 1024;

/// What to do with bytes of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Nothing before more bytes come.
    Wait,
    /// Nothing before the server has answered: leave further bytes alone.
    Stall,
    /// A server connection is needed: for [`Core::run`].
    Acquire,
    /// Send this many bytes from the front to the server and drop them.
    Forward(usize),
    /// Drop this many bytes; the reply, if any, has been appended.
    Consume(usize),
    /// The session ends: because the client says so, or with an error, or cut without a word.
    Close(Ending),
}

/// How a client ends its session.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Terminate.
    Terminate,
    /// A length that the protocol does not allow: closed without a message, as PostgreSQL does.
    Cut,
    /// Told, then closed.
    Error(Box<PgError>),
}

/// What to do with bytes of the server: forward this many from the front and drop them, then look at the outcome.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerStep {
    /// Bytes for the client.
    pub forward: usize,
    /// What else happened.
    pub outcome: ServerOutcome,
}

/// What else happened on the server's side.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerOutcome {
    /// Nothing: more is owed.
    More,
    /// Everything owed has come.
    Settled,
    /// A standby refused the run as a write (25006): nothing was forwarded, replay it on the primary.
    Refused,
    /// The server ends the connection. Its message is not among the forwarded bytes.
    Fatal,
}

/// One session's protocol state.
pub struct Core {
    mode: PoolMode,
    ledger: Ledger,
    run: Run,
    /// The server connection held is to a standby. `None`: no server connection.
    bound: Option<Bound>,
    /// Rest of a client message that is being forwarded.
    client_skip: usize,
    /// Rest of a client message that is being thrown away.
    discard: usize,
    /// An error of ours was sent for an extended-protocol run: drop everything up to its Sync.
    skip_to_sync: bool,
    /// Rest of a server message that is being forwarded.
    server_skip: usize,
    /// Server bytes at the front that were looked at and are held back.
    held: usize,
    pins: Pins,
    /// Reported settings that differ from what the connection was opened with.
    changed: Vec<Vec<u8>>,
    /// A `DISCARD ALL` is on its way and has not failed.
    discarding: bool,
    /// Whether something since the last release may have written.
    wrote: bool,
    /// What the server last said of being a standby, if it said anything.
    hot_standby: Option<bool>,
    /// The unnamed statement on the server connection held is this session's, or there is none.
    owns_unnamed: bool,
    /// A standby has refused what this session does: its isolation, or a write that could not be replayed.
    primary_only: bool,
    counts: Counts,
}

/// Statements by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plain reads.
    pub reads: u32,
    /// Everything else.
    pub writes: u32,
}

/// A server connection is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    standby: bool,
    /// Nothing of the run's answer was forwarded: it can be replayed elsewhere.
    replayable: bool,
}

impl Core {
    /// A session that has just logged in.
    #[must_use]
    pub fn new(mode: PoolMode) -> Self {
        Self {
            mode,
            ledger: Ledger::new(),
            run: Run::default(),
            bound: None,
            client_skip: 0,
            discard: 0,
            skip_to_sync: false,
            server_skip: 0,
            held: 0,
            pins: Pins::NONE,
            changed: Vec::new(),
            discarding: false,
            wrote: false,
            hot_standby: None,
            owns_unnamed: false,
            primary_only: false,
            counts: Counts::default(),
        }
    }

    /// Pool mode in force; takes effect when no server connection is held.
    pub fn set_mode(&mut self, mode: PoolMode) {
        if self.bound.is_none() {
            self.mode = mode;
        }
    }

    /// Pool mode in force.
    #[must_use]
    pub fn mode(&self) -> PoolMode {
        self.mode
    }

    /// The run that waits for a server connection.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Why the session is tied to its server connection.
    #[must_use]
    pub fn pins(&self) -> Pins {
        if self.changed.is_empty() { self.pins } else { self.pins.union(Pins::SETTING) }
    }

    /// Whether a setting that decides how a text is read has changed since the connection was opened.
    #[must_use]
    pub fn reads_differently(&self) -> bool {
        let decides = |name: &Vec<u8>| name == b"client_encoding" || name == b"standard_conforming_strings";
        self.changed.iter().any(decides)
    }

    /// Statements judged since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Server bytes at the front of the buffer that were already looked at.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether a client message stands half forwarded.
    #[must_use]
    pub fn half_sent(&self) -> bool {
        self.client_skip > 0
    }

    /// Whether something since the last call may have written.
    pub fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote)
    }

    /// What the server said of being a standby since the last call.
    pub fn take_hot_standby(&mut self) -> Option<bool> {
        self.hot_standby.take()
    }

    /// The reply ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the session waits for its client, outside of any transaction and any half-sent message.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        self.ledger.settled()
            && self.ledger.status() == TxStatus::Idle
            && !self.run.pending()
            && self.client_skip == 0
            && self.discard == 0
    }

    /// Whether the session is inside a transaction block, with nothing owed by the server.
    #[must_use]
    pub fn idle_in_transaction(&self) -> bool {
        self.bound.is_some() && self.ledger.settled() && self.ledger.status() != TxStatus::Idle
    }

    /// Whether the server connection held may go back now: clean, and the mode says so.
    #[must_use]
    pub fn may_release(&self) -> bool {
        self.bound.is_some()
            && self.at_rest()
            && self.server_skip == 0
            && self.mode != PoolMode::Session
            && self.pins().is_empty()
    }

    /// A server connection was acquired for the run.
    pub fn bind(&mut self, standby: bool) {
        self.server_skip = 0;
        self.held = 0;
        self.bound = Some(Bound { standby, replayable: standby && self.run.is_closed() });
        let (tag, verdict) = (self.run.first(), self.run.verdict().clone());
        self.note(tag, &verdict);
        self.owns_unnamed = self.run.owns_unnamed();
        if self.run.prepares() {
            self.pins = self.pins.union(Pins::PREPARE);
        }
    }

    /// The server connection was given back clean.
    pub fn released(&mut self) {
        self.bound = None;
        self.ledger.reset();
        self.changed.clear();
    }

    /// The server connection is given up in whatever state it is: takes its ledger and the unread rest of a message.
    pub fn abandon(&mut self) -> (Ledger, usize) {
        self.bound = None;
        self.pins = Pins::NONE;
        self.changed.clear();
        (std::mem::take(&mut self.ledger), std::mem::take(&mut self.server_skip))
    }

    /// The run could not be served; its server connection, if there was one, is gone. Its bytes are to be offered
    /// again, from the front.
    pub fn replay(&mut self) {
        self.bound = None;
        self.held = 0;
        self.server_skip = 0;
        self.ledger.reset();
        self.run.clear();
    }

    /// The run got no server connection: appends the error and drops the run, up to its Sync if it is extended.
    pub fn fail(&mut self, error: &PgError, out: &mut Vec<u8>) {
        error.encode(out);
        self.ledger.reset();
        if self.run.is_simple() {
            backend::ready_for_query(out, TxStatus::Idle);
            self.discard = self.run.len().saturating_add(std::mem::take(&mut self.client_skip));
        } else {
            self.skip_to_sync = true;
            self.client_skip = 0;
        }
        self.run.clear();
    }

    /// The server connection broke. If nothing stands half way, appends the error for the one statement in flight and
    /// the session lives: `true`. Otherwise the session must end.
    pub fn lost(&mut self, error: &PgError, out: &mut Vec<u8>) -> bool {
        let whole = self.server_skip == 0 && self.client_skip == 0 && self.pins().is_empty();
        let simple = self.ledger.status() == TxStatus::Idle && self.ledger.owes_one_ready() && whole;
        self.bound = None;
        self.held = 0;
        if simple && self.mode != PoolMode::Session {
            error.encode(out);
            backend::ready_for_query(out, TxStatus::Idle);
            self.ledger.reset();
            return true;
        }
        false
    }

    // === bytes of the client ===

    /// Looks at bytes of the client, from the front of what was not consumed yet.
    pub fn client(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        if self.discard > 0 {
            let n = self.discard.min(buf.len());
            self.discard = self.discard.saturating_sub(n);
            return if n > 0 { ClientStep::Consume(n) } else { ClientStep::Wait };
        }
        match self.bound {
            _ if self.skip_to_sync => self.skip(buf, out),
            None if self.run.is_finished() => ClientStep::Acquire,
            None => self.unbound(buf, judge, out),
            Some(bound) => self.forward(buf, bound, judge, out),
        }
    }

    fn unbound(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        loop {
            let rest = buf.get(self.run.len()..).unwrap_or_default();
            let header = match Header::parse(rest, frontend::max_len) {
                Ok(Some(header)) => header,
                Ok(None) => return self.wait_or_acquire(buf.len()),
                Err(error) => return ClientStep::Close(Ending::from(error)),
            };
            if self.run.is_empty()
                && let Some(step) = self.local(header, rest.len(), out)
            {
                return step;
            }
            if header.tag == b'X' {
                return ClientStep::Close(Ending::Terminate);
            }
            let here = rest.get(..header.size).unwrap_or(rest);
            let names = header.tag != b'B' || used_statement(b'B', here).is_some() || here.len() >= RUN_MAX;
            if here.len() < header.size && (header.size <= held_whole(header.tag) || !names) {
                return self.wait_or_acquire(buf.len());
            }
            self.client_skip = header.size.saturating_sub(here.len());
            if let Err(error) = self.run.add(header, here, self.mode, judge) {
                self.fail(&error, out);
                return ClientStep::Consume(0);
            }
            self.ledger.sent(header.tag);
            if self.run.is_finished() {
                if self.primary_only {
                    self.run.ask_for_primary();
                }
                return ClientStep::Acquire;
            }
        }
    }

    fn wait_or_acquire(&mut self, buffered: usize) -> ClientStep {
        if !self.run.is_empty() && buffered >= RUN_MAX {
            self.run.finish_open();
            return ClientStep::Acquire;
        }
        ClientStep::Wait
    }

    /// What needs no server: leftovers of a failed run, stray COPY data, a Sync or Flush with nothing before it.
    fn local(&mut self, header: Header, there: usize, out: &mut Vec<u8>) -> Option<ClientStep> {
        let Header { tag, size } = header;
        let throw = |this: &mut Self| {
            this.discard = size.saturating_sub(there);
            Some(ClientStep::Consume(size.min(there)))
        };
        match tag {
            b'X' => Some(ClientStep::Close(Ending::Terminate)),
            b'S' if size == 5 || self.skip_to_sync => {
                if there < size {
                    return Some(ClientStep::Wait);
                }
                self.skip_to_sync = false;
                backend::ready_for_query(out, TxStatus::Idle);
                Some(ClientStep::Consume(size))
            }
            _ if self.skip_to_sync => throw(self),
            b'd' | b'c' | b'f' => throw(self),
            b'H' if size == 5 => throw(self),
            _ => None,
        }
    }

    /// With a server connection: messages go on as they come, in slices if they are long.
    fn forward(&mut self, buf: &[u8], bound: Bound, judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        let mut at = self.run.take_len();
        loop {
            let skip = self.client_skip.min(buf.len().saturating_sub(at));
            self.client_skip = self.client_skip.saturating_sub(skip);
            at = at.saturating_add(skip);
            let rest = buf.get(at..).unwrap_or_default();
            let (size, stop) = match Header::parse(rest, frontend::max_len) {
                Ok(Some(header)) => (header.size, self.forward_one(header, rest, bound, judge, out)),
                Ok(None) => (0, Some(ClientStep::Wait)),
                Err(error) if at == 0 => (0, Some(self.bad_header(error, rest, out))),
                Err(_) => (0, Some(ClientStep::Stall)),
            };
            match stop {
                Some(_) if at > 0 => return ClientStep::Forward(at),
                Some(stop) => return stop,
                None => {}
            }
            at = at.saturating_add(size.min(rest.len()));
            self.client_skip = size.saturating_sub(size.min(rest.len()));
        }
    }

    /// One message for the server connection held; `Some` if it may not go yet.
    fn forward_one(
        &mut self,
        header: Header,
        rest: &[u8],
        bound: Bound,
        judge: &mut Judge<'_>,
        out: &mut Vec<u8>,
    ) -> Option<ClientStep> {
        let Header { tag, size } = header;
        if tag == b'X' {
            // What was asked before is answered first, as PostgreSQL does; what cannot end is not waited for.
            let ends = self.ledger.settled() || self.ledger.unsynced() || self.ledger.copy_in();
            return Some(if ends { ClientStep::Close(Ending::Terminate) } else { ClientStep::Stall });
        }
        if self.must_wait(bound) {
            return Some(ClientStep::Stall);
        }
        if matches!(tag, b'Q' | b'P') {
            if rest.len() < size && size <= TEXT_MAX {
                return Some(ClientStep::Wait);
            }
            let verdict = judge.message(tag, rest.get(..size));
            self.note(tag, &verdict);
            if self.mode == PoolMode::Statement && begins(&verdict) {
                if self.ledger.settled() {
                    return Some(self.refuse_block(tag, size, rest.len(), out));
                }
                // In the middle of a run there is no place for an answer of ours.
                let error = PgError { severity: Severity::Fatal, ..super::run::no_blocks() };
                return Some(ClientStep::Close(Ending::Error(Box::new(error))));
            }
            if tag == b'P' && Run::is_named(rest) {
                self.pins = self.pins.union(Pins::PREPARE);
            } else {
                self.owns_unnamed = true;
            }
        }
        if let Some(stop) = self.forward_use(header, rest) {
            return Some(stop);
        }
        self.ledger.sent(tag);
        self.bound = Some(Bound { replayable: false, ..bound });
        None
    }

    /// A message that runs what was prepared before, or a function: its text is not there to be judged.
    fn forward_use(&mut self, Header { tag, size }: Header, rest: &[u8]) -> Option<ClientStep> {
        match (tag, used_statement(tag, rest)) {
            (b'F', _) => self.note(tag, &function_call(rest)),
            // Another client's may still be there. No driver asks for this, so the session may end.
            (b'B' | b'D', Some(b"")) if !self.owns_unnamed => {
                let error = PgError { severity: Severity::Fatal, ..no_unnamed() };
                return Some(ClientStep::Close(Ending::Error(Box::new(error))));
            }
            (b'B', None) if rest.len() < size.min(RUN_MAX) => return Some(ClientStep::Wait),
            (b'D', None) if rest.len() < size.min(SHORTEST_USE) => return Some(ClientStep::Wait),
            (b'B', Some(name)) => self.wrote |= !name.is_empty(),
            _ => {}
        }
        None
    }

    /// A header that the protocol does not allow: what was asked before is answered first.
    fn bad_header(&mut self, error: FrameError, rest: &[u8], out: &mut Vec<u8>) -> ClientStep {
        if self.ledger.copy_in() {
            let tag = rest.first().copied().unwrap_or_default();
            let text = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
            PgError::error("08P01", text).encode(out);
        } else if !self.ledger.settled() && !self.ledger.unsynced() {
            return ClientStep::Stall;
        }
        ClientStep::Close(Ending::from(error))
    }

    /// A new run behind an unanswered one waits where it might have to go elsewhere, or be refused.
    fn must_wait(&self, bound: Bound) -> bool {
        let between = !self.ledger.unsynced() && !self.ledger.copy_in();
        let free = self.ledger.settled() || self.ledger.status() != TxStatus::Idle;
        between && !free && (self.mode == PoolMode::Statement || (bound.standby && self.pins().is_empty()))
    }

    /// Statement mode on a pinned connection: the block is refused here, up to its Sync if it is extended.
    fn refuse_block(&mut self, tag: u8, size: usize, there: usize, out: &mut Vec<u8>) -> ClientStep {
        super::run::no_blocks().encode(out);
        if tag == b'P' {
            self.skip_to_sync = true;
            return ClientStep::Consume(0);
        }
        backend::ready_for_query(out, TxStatus::Idle);
        self.discard = size.saturating_sub(there);
        ClientStep::Consume(size.min(there))
    }

    /// Drops what follows an error of ours, up to the Sync that ends it.
    fn skip(&mut self, buf: &[u8], out: &mut Vec<u8>) -> ClientStep {
        match Header::parse(buf, frontend::max_len) {
            Ok(Some(header)) => self.local(header, buf.len(), out).unwrap_or(ClientStep::Wait),
            Ok(None) => ClientStep::Wait,
            Err(error) => ClientStep::Close(Ending::from(error)),
        }
    }

    /// What a statement leaves behind, whichever way it went to the server.
    fn note(&mut self, tag: u8, verdict: &Verdict) {
        self.wrote |= verdict.may_write;
        match verdict.class {
            Class::Empty | Class::Read => self.counts.reads = self.counts.reads.saturating_add(1),
            Class::VolatileFunction | Class::Write => {
                self.counts.writes = self.counts.writes.saturating_add(1)
            }
        }
        self.discarding = tag == b'Q' && verdict.is_discard_all;
        self.pins = self.pins.union(verdict.pins);
    }

    // === bytes of the server ===

    /// Looks at bytes of the server, from the front of what was not dropped yet. `baseline` are the settings that the
    /// connection was opened with.
    pub fn server(&mut self, buf: &[u8], baseline: &[(Vec<u8>, Vec<u8>)]) -> ServerStep {
        let mut at = self.held;
        let mut outcome = ServerOutcome::More;
        loop {
            let skip = self.server_skip.min(buf.len().saturating_sub(at));
            self.server_skip = self.server_skip.saturating_sub(skip);
            at = at.saturating_add(skip);
            let rest = buf.get(at..).unwrap_or_default();
            let Ok(header) = Header::parse(rest, backend::max_len) else {
                outcome = ServerOutcome::Fatal;
                break;
            };
            let Some(Header { tag, size }) = header else { break };
            let whole = rest.get(..size);
            if whole.is_none() && size <= SMALL && matches!(tag, b'Z' | b'E' | b'S') {
                break;
            }
            if tag == b'E' {
                let fields = ErrorFields::parse(whole.and_then(|m| m.get(5..)).unwrap_or_default());
                if fields.is_fatal() {
                    outcome = ServerOutcome::Fatal;
                    break;
                }
                let isolation = is_isolation_refusal(&fields, whole);
                self.primary_only |= isolation || self.write_found_late(&fields);
                if (fields.is("25006") || isolation) && self.replayable() {
                    outcome = ServerOutcome::Refused;
                    break;
                }
            }
            self.receive(tag, whole, baseline);
            at = at.saturating_add(size.min(rest.len()));
            self.server_skip = size.saturating_sub(size.min(rest.len()));
        }
        self.finish_server(at, outcome)
    }

    /// A standby refused a write outside a transaction, too late for a replay: the session's next try must do better.
    fn write_found_late(&self, fields: &ErrorFields<'_>) -> bool {
        let on_standby = self.bound.is_some_and(|bound| bound.standby && !bound.replayable);
        on_standby && fields.is("25006") && self.ledger.status() == TxStatus::Idle
    }

    fn finish_server(&mut self, at: usize, outcome: ServerOutcome) -> ServerStep {
        match outcome {
            ServerOutcome::Refused => {
                self.held = at;
                ServerStep { forward: 0, outcome }
            }
            ServerOutcome::More if self.replayable() && at < HOLD_MAX => {
                self.held = at;
                ServerStep { forward: 0, outcome }
            }
            ServerOutcome::Fatal if self.replayable() => ServerStep { forward: 0, outcome },
            _ => {
                self.held = 0;
                let settled =
                    outcome == ServerOutcome::More && self.ledger.settled() && self.server_skip == 0;
                ServerStep { forward: at, outcome: if settled { ServerOutcome::Settled } else { outcome } }
            }
        }
    }

    /// Whether the run can still be replayed on another node.
    #[must_use]
    pub fn replayable(&self) -> bool {
        self.bound.is_some_and(|bound| bound.replayable)
    }

    fn receive(&mut self, tag: u8, whole: Option<&[u8]>, baseline: &[(Vec<u8>, Vec<u8>)]) {
        let body = whole.and_then(|message| message.get(5..)).unwrap_or_default();
        let status = body.first().copied().and_then(TxStatus::from_byte).filter(|_| tag == b'Z');
        self.ledger.received(tag, status);
        match tag {
            // Replies that come before anything of the statement has run.
            b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'N' => {}
            b'S' => self.reported(body, baseline),
            b'E' => {
                self.discarding = false;
                self.final_reply();
            }
            b'Z' => {
                self.final_reply();
                if self.discarding && self.ledger.settled() && self.ledger.status() == TxStatus::Idle {
                    self.discarding = false;
                    // A placeholder of a custom setting survives DISCARD ALL, and so does a loaded library (B13).
                    self.pins = self.pins.kept_by_discard();
                    self.changed.clear();
                }
            }
            _ => self.final_reply(),
        }
    }

    fn final_reply(&mut self) {
        if let Some(bound) = &mut self.bound {
            bound.replayable = false;
        }
    }

    fn reported(&mut self, body: &[u8], baseline: &[(Vec<u8>, Vec<u8>)]) {
        let Some((name, value)) = parameter_status_fields(body) else { return };
        if name == b"in_hot_standby" {
            self.hot_standby = Some(value == b"on");
            return;
        }
        self.changed.retain(|known| known != name);
        let differs = !baseline.iter().any(|(n, v)| n == name && v == value);
        if differs {
            self.changed.push(name.to_vec());
        }
    }
}

/// Whether a standby refused a statement because the transaction is serializable, by default or by declaration. Told
/// by the routine that raises it (`predicate.c`): the code alone stands for much else, and the text is localised.
fn is_isolation_refusal(fields: &ErrorFields<'_>, whole: Option<&[u8]>) -> bool {
    let routine = b"\0RGetSerializableTransactionSnapshot\0";
    fields.is("0A000") && whole.is_some_and(|m| m.windows(routine.len()).any(|part| part == routine))
}

/// How long a message of this type may be to be held until it is whole.
const fn held_whole(tag: u8) -> usize {
    match tag {
        b'Q' | b'P' => TEXT_MAX,
        _ => RUN_MAX,
    }
}

impl From<FrameError> for Ending {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Length(_) => Self::Cut,
            FrameError::UnknownType(tag) => {
                Self::Error(Box::new(PgError::fatal("08P01", format!("invalid frontend message type {tag}"))))
            }
        }
    }
}

/// Whether a verdict opens an explicit transaction block.
#[must_use]
pub fn begins(verdict: &Verdict) -> bool {
    matches!(verdict.tx, TxWord::Begin { .. } | TxWord::Mixed)
}
