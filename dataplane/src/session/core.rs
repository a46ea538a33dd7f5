//! The session core: bytes arrived -> what to do with them. Sans-IO: it never calls a socket, never waits, and is
//! driven the same by tokio, by property tests and by fuzzers. Owner: one session. Forwards messages untouched and
//! looks only at headers, at statement texts, and at the few replies that decide when a server connection is free.

mod client;
mod doomed;
mod server;

use doomed::Doom;

use super::names::Names;
use super::run::Run;
use super::settings::{Followed, Settings};
use crate::server::Ledger;
use crate::statements::Prepared;
use helios_pgwire::PgError;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::frame::FrameError;
use helios_proto::model::PoolMode;

use crate::route::{Class, Pins, TxWord, Verdict};

/// A statement text up to this long is held until it is whole and can be judged, in bytes. A longer one counts as
/// a write that may leave any state behind.
pub const TEXT_MAX: usize = 256 * 1024;
/// An extended-protocol run without its Sync is held up to this long before it goes to the primary, in bytes.
const RUN_MAX: usize = 64 * 1024;
/// Replies are held back up to this long while the run may still be replayed on another node, in bytes.
const HOLD_MAX: usize = 16 * 1024;
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
    /// Send the bytes in [`Judge::edit`](super::run::Judge) to the server in place of this many from the front.
    Rewritten(usize),
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
    /// Put other bytes in place of some, then look at the bytes again.
    Cut(Cut),
}

/// Bytes of the server that the client gets in another form.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// Offset from the front.
    pub at: usize,
    /// Length of what goes, in bytes.
    pub len: usize,
    /// What comes.
    pub insert: Vec<u8>,
}

/// What has ended on the server's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Answers that are complete, up to their ReadyForQuery.
    pub answers: u32,
    /// Of these, those after which there is no transaction.
    pub transactions: u32,
    /// SQLSTATE of the last error among them.
    pub code: Option<[u8; 5]>,
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
    changed: Vec<(Vec<u8>, Vec<u8>)>,
    /// A `DISCARD ALL` is on its way and has not failed.
    discarding: bool,
    /// Whether something since the last release may have written.
    wrote: bool,
    /// The transaction that is open may have written.
    dirty: bool,
    /// What the server last said of being a standby, if it said anything.
    hot_standby: Option<bool>,
    /// The server connection of an open transaction was lost, and the client has not ended the transaction yet.
    doom: Option<Doom>,
    /// Something that ends a transaction is on its way, perhaps with more behind it.
    leaving: bool,
    /// A Flush went out since the last ReadyForQuery: nothing is owed for it, and yet something may come.
    loose: bool,
    /// A BEGIN is on its way, perhaps with more behind it.
    entering: bool,
    /// The unnamed statement on the server connection held is this session's, or there is none.
    owns_unnamed: bool,
    /// Number of the Parse of it in the ledger.
    unnamed: u32,
    /// A standby has refused what this session does: its isolation, or a write that could not be replayed.
    primary_only: bool,
    counts: Counts,
    /// What plain SET statements have set.
    settings: Settings,
    /// Something was set in the transaction that is open, `SET LOCAL` included.
    sets: bool,
    names: Names,
    /// A message of the client stands still until a reply says what its name means.
    waits_for_name: bool,
    /// What the server connection held has prepared.
    prepared: Prepared,
    /// What has ended since it was last asked for.
    ended: Ended,
    /// A CommandComplete or a ReadyForQuery came since it was last asked for.
    told: bool,
    /// A run is sent only when everything before it is answered: the session is to end between two of them.
    one_by_one: bool,
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
            dirty: false,
            hot_standby: None,
            doom: None,
            leaving: false,
            entering: false,
            loose: false,
            owns_unnamed: false,
            unnamed: 0,
            primary_only: false,
            counts: Counts::default(),
            settings: Settings::default(),
            sets: false,
            names: Names::default(),
            waits_for_name: false,
            prepared: Prepared::default(),
            ended: Ended::default(),
            told: false,
            one_by_one: false,
        }
    }

    /// From now on a run is sent only when everything before it is answered.
    pub fn go_one_by_one(&mut self) {
        self.one_by_one = true;
    }

    /// Pool mode in force; takes effect when no server connection is held.
    pub fn set_mode(&mut self, mode: PoolMode) {
        // In session mode servers do not know the names that they have been given until then.
        let names = mode == PoolMode::Session && !self.names.is_empty();
        if self.bound.is_none() && !names {
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
        let unknown = self.changed.iter().any(|(name, value)| !self.settings.explains(name, value));
        if unknown { self.pins.union(Pins::SETTING) } else { self.pins }
    }

    /// What plain SET statements have set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A reply was looked at for what it says of settings.
    fn follow(&mut self, followed: Followed) {
        if followed == Followed::Lost {
            self.distrust();
        }
    }

    /// Whether a setting that decides how a text is read has changed since the connection was opened.
    #[must_use]
    pub fn reads_differently(&self) -> bool {
        let decides = |name: &[u8]| name == b"client_encoding" || name == b"standard_conforming_strings";
        self.changed.iter().any(|(name, _)| decides(name))
    }

    /// Statements judged since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Whether a standby cannot serve what this session does.
    #[must_use]
    pub fn primary_only(&self) -> bool {
        self.primary_only
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

    /// Whether something may come that is not owed: the answer to a malformed Flush.
    #[must_use]
    pub fn is_loose(&self) -> bool {
        self.loose
    }

    /// Whether the client has got the front of a message of which the rest has not come: nothing else may be said to it.
    #[must_use]
    pub fn half_answered(&self) -> bool {
        self.server_skip > 0 && self.held == 0
    }

    /// What has ended since the last call.
    pub fn take_ended(&mut self) -> Ended {
        // The error of an answer often comes before the rest of it.
        if self.ended.answers == 0 { Ended::default() } else { std::mem::take(&mut self.ended) }
    }

    /// Whether the client's bytes are to be looked at again with the server's next answer, whatever it is.
    #[must_use]
    pub fn waits_for_name(&self) -> bool {
        self.waits_for_name
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

    /// Whether everything that the client has asked is answered, outside of any transaction: what it sends next is new.
    #[must_use]
    pub fn between_runs(&self) -> bool {
        self.at_rest() && !self.skip_to_sync && self.doom.is_none()
    }

    /// Whether the server says nothing more before the client has sent more.
    #[must_use]
    pub fn waits_for_client(&self) -> bool {
        (self.ledger.unsynced() && !self.ledger.flushes()) || self.ledger.copy_in()
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
            && !self.ledger.doubtful()
            && !self.loose
            && self.server_skip == 0
            && !self.keeps_server()
            && self.pins().is_empty()
    }

    /// In session mode the server connection stays; one to a standby was taken because there was no primary, and goes back
    /// so that writes are possible again.
    fn keeps_server(&self) -> bool {
        self.mode == PoolMode::Session && self.bound.is_none_or(|bound| !bound.standby)
    }

    /// SQL text of a statement that the client has prepared by name.
    #[must_use]
    pub fn sql_of(&self, name: &[u8]) -> Option<&[u8]> {
        self.names.sql(name)
    }

    /// SQL text, NUL and types of a statement that the client has prepared by name.
    #[must_use]
    pub fn tail_of(&self, name: &[u8]) -> Option<&[u8]> {
        self.names.tail(name)
    }

    /// Whether the run that waits for a server may be answered without one: it is whole, and leaves nothing behind.
    #[must_use]
    pub fn may_be_answered(&self) -> bool {
        self.bound.is_none() && self.mode != PoolMode::Session && self.run.is_closed() && !self.run.prepares()
    }

    /// The answer to the run that waits is to come from the primary.
    pub fn ask_for_primary(&mut self) {
        self.run.ask_for_primary();
    }

    /// The run was answered without a server: it is dropped.
    pub fn answered(&mut self) {
        self.counts.reads = self.counts.reads.saturating_add(1);
        self.ledger.reset();
        self.discard = self.run.len().saturating_add(std::mem::take(&mut self.client_skip));
        self.run.clear();
    }

    /// Whether the server has said since the last call that a statement, or a transaction, is done.
    pub fn take_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// A server connection was acquired for the run, which has these statements prepared.
    pub fn bind(&mut self, standby: bool, prepared: Prepared) {
        self.prepared = prepared;
        self.server_skip = 0;
        self.held = 0;
        let (tag, verdict, change) = (self.run.first(), self.run.verdict().clone(), self.run.take_change());
        (self.leaving, self.entering, self.loose) = (false, false, !self.run.is_closed());
        // On a primary, what has no effect: a read, or a BEGIN.
        let harmless = verdict.class == Class::Read && !verdict.may_write || is_begin(&verdict);
        let closed = self.run.is_closed();
        self.bound = Some(Bound { standby, replayable: closed && (standby || harmless) });
        if self.run.acts() {
            // Nothing is on its way before it.
            self.note(tag, &verdict, change.filter(|_| closed), true);
        }
        if self.run.discards() {
            self.prepared.doubt_all();
            self.discarding = true;
        }
        self.owns_unnamed = self.run.owns_unnamed();
        if self.run.prepares() {
            self.pins = self.pins.union(Pins::PREPARE);
        }
    }

    /// A server connection that the session has from the start, and to which no other comes: nothing is run again.
    pub fn bind_for_good(&mut self, prepared: Prepared) {
        self.prepared = prepared;
        self.bound = Some(Bound { standby: false, replayable: false });
    }

    /// What the run does is not known after all: it may leave any state behind.
    pub fn distrust(&mut self) {
        self.pins = self.pins.union(Pins::SETTING);
    }

    /// The server connection was given back clean: what it has prepared.
    #[must_use]
    pub fn released(&mut self) -> Prepared {
        self.bound = None;
        self.ledger.reset();
        self.changed.clear();
        std::mem::take(&mut self.prepared)
    }

    /// The server connection is given up in whatever state it is: takes its ledger, the unread rest of a message, and
    /// what it has prepared.
    pub fn abandon(&mut self) -> (Ledger, usize, Prepared) {
        self.bound = None;
        self.pins = Pins::NONE;
        self.changed.clear();
        self.settings.abandon();
        self.forget_pending();
        let prepared = std::mem::take(&mut self.prepared);
        (std::mem::take(&mut self.ledger), std::mem::take(&mut self.server_skip), prepared)
    }

    /// Nothing that is on its way will be answered.
    fn forget_pending(&mut self) {
        self.discarding = false;
        self.ended = Ended::default();
        self.names.failed(u32::MAX, &mut self.prepared);
    }

    /// The run could not be served; its server connection, if there was one, is gone. Its bytes are to be offered
    /// again, from the front.
    pub fn replay(&mut self) {
        self.forget_pending();
        self.settings.abandon();
        self.changed.clear();
        self.bound = None;
        self.held = 0;
        self.server_skip = 0;
        self.ledger.reset();
        self.run.clear();
    }

    /// Whether a server connection is held of which the run has nothing yet.
    #[must_use]
    pub fn unsent(&self) -> bool {
        self.bound.is_some() && self.run.pending()
    }

    /// The run is not to go to the server connection that is held: everything is as it was before [`Core::bind`].
    pub fn unbind(&mut self) {
        self.bound = None;
        self.forget_pending();
        self.settings.abandon();
        self.changed.clear();
        self.pins = Pins::NONE;
        self.counts = Counts::default();
        (self.wrote, self.dirty, self.sets) = (false, false, false);
        (self.leaving, self.entering) = (false, false);
    }

    /// The same; the run is put together anew from its bytes, which are to be offered again, from the front.
    pub fn take_back(&mut self) {
        self.unbind();
        self.ledger.reset();
        self.run.clear();
        self.client_skip = 0;
    }

    /// The run got no server connection: appends the error and drops the run, up to its Sync if it is extended.
    pub fn fail(&mut self, error: &PgError, out: &mut Vec<u8>) {
        error.encode(out);
        self.ledger.reset();
        if self.run.is_simple() {
            backend::ready_for_query(out, self.resting());
            self.discard = self.run.len().saturating_add(std::mem::take(&mut self.client_skip));
        } else {
            self.skip_to_sync = true;
            self.client_skip = 0;
        }
        self.run.clear();
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

/// Whether a verdict is that of one BEGIN and nothing else.
fn is_begin(verdict: &Verdict) -> bool {
    matches!(verdict.tx, TxWord::Begin { .. }) && verdict.statements == 1
}
