//! A run: the client messages that must go to one server together, from the first that needs a server up to the
//! next point where it could change: a whole Query or FunctionCall, or extended messages up to their Sync. Judged
//! while it is put together; pure.

use super::core::begins;
use super::names::{Named, Names, named};
use super::settings::{self, Sent};
use crate::route::{Class, KnownFunctions, Pins, Verdict, VerdictCache};
use crate::statements::Interner;
use helios_pgwire::PgError;
use helios_pgwire::frame::Header;
use helios_pgwire::frontend::{parse_text, query_text};
use helios_proto::model::PoolMode;

/// What a text is judged with.
pub struct Judge<'a> {
    /// Verdicts by text.
    pub cache: &'a mut VerdictCache,
    /// The session's `standard_conforming_strings`.
    pub standard_strings: bool,
    /// Functions of the database known not to be volatile.
    pub known: &'a dyn KnownFunctions,
    /// The session's client encoding can be cut into tokens byte by byte.
    pub readable: bool,
    /// Statements that the worker's clients have prepared.
    pub statements: &'a mut Interner,
    /// Hears of writes.
    pub watching: &'a mut dyn Watching,
    /// Bytes for the server in place of the client's own, for [`ClientStep::Rewritten`](super::core::ClientStep).
    pub edit: &'a mut Vec<u8>,
}

/// Hears of what may write, as it is judged; most of it is sent then.
pub trait Watching {
    /// This text may write, under the session's `standard_conforming_strings`.
    fn wrote(&mut self, sql: &[u8], standard_strings: bool);

    /// Something that cannot be read may write anything.
    fn wrote_anything(&mut self);
}

/// Nobody hears.
impl Watching for () {
    fn wrote(&mut self, _: &[u8], _: bool) {}

    fn wrote_anything(&mut self) {}
}

/// Messages at the front of the client's bytes that go to one server together.
#[derive(Debug)]
pub struct Run {
    len: usize,
    first: u8,
    end: End,
    verdict: Verdict,
    judged: bool,
    /// Statements are named that are known by these names: on the way to a server they are replaced.
    named: bool,
    /// A statement is prepared that outlives the run, under a name that goes to the server as it is.
    kept: bool,
    /// Something in it runs, or is prepared for this run only.
    acts: bool,
    /// An unnamed statement was parsed and not bound yet.
    unbound: bool,
    /// An unnamed statement was parsed in this run.
    parsed: bool,
    /// The one text of the run changes a setting, and does nothing else.
    change: Option<Sent>,
    /// It ends with a Query that is a `DISCARD ALL`.
    discards: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More messages belong to it.
    Growing,
    /// Whole: after its answer the session is between statements again.
    Closed,
    /// Cut off before its end: what follows belongs to it too.
    Open,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            len: 0,
            first: 0,
            end: End::Growing,
            verdict: nothing(),
            judged: false,
            named: false,
            kept: false,
            acts: false,
            unbound: false,
            parsed: false,
            change: None,
            discards: false,
        }
    }
}

/// The refusal of a transaction block in statement mode.
#[must_use]
pub fn no_blocks() -> PgError {
    PgError::error("0A000", "transaction blocks are not supported in statement pooling mode")
        .hint("Use pool mode \"transaction\" or \"session\" for this user or database.")
}

/// The refusal of an unnamed statement that this session has not parsed on this server connection.
#[must_use]
pub fn no_unnamed() -> PgError {
    PgError::error("26000", "unnamed prepared statement does not exist")
        .hint("In transaction and statement pooling the unnamed statement lives until the next Sync.")
}

/// The verdict of a FunctionCall message. Drivers use it for large objects, whose functions leave nothing behind
/// outside a transaction; any other function may leave any state behind.
#[must_use]
pub fn function_call(message: &[u8]) -> Verdict {
    let oid = message.get(5..).and_then(<[u8]>::first_chunk).map(|oid| u32::from_be_bytes(*oid));
    let large_objects = matches!(oid, Some(715 | 764 | 767 | 952..=958 | 964 | 1004 | 3170..=3172));
    let pins = if large_objects { Pins::NONE } else { Pins::SETTING };
    Verdict { pins, sets: !large_objects, ..Verdict::in_doubt() }
}

fn nothing() -> Verdict {
    Verdict { class: Class::Empty, may_write: false, statements: 0, sets: false, ..Verdict::in_doubt() }
}

impl Run {
    /// Bytes of the run so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a run has begun and was not sent.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.len > 0
    }

    /// Whether it is ready for a server.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.end != End::Growing
    }

    /// Whether nothing that follows belongs to it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.end == End::Closed
    }

    /// Whether it is a Query or a FunctionCall.
    #[must_use]
    pub fn is_simple(&self) -> bool {
        matches!(self.first, b'Q' | b'F')
    }

    /// Type of its first message.
    #[must_use]
    pub fn first(&self) -> u8 {
        self.first
    }

    /// Whether it leaves a prepared statement on the server that only this session can use.
    #[must_use]
    pub fn prepares(&self) -> bool {
        self.kept || self.unbound
    }

    /// Whether it does anything beyond preparing statements by name.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.acts
    }

    /// Whether statements are named in it that are known by these names.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Judgement of all its texts together.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Whether after it the unnamed statement on its server is this session's own, or gone.
    #[must_use]
    pub fn owns_unnamed(&self) -> bool {
        self.parsed || self.first == b'Q'
    }

    /// Whether it ends with a Query that is a `DISCARD ALL`.
    #[must_use]
    pub fn discards(&self) -> bool {
        self.discards
    }

    /// Reads of this session cannot run on a standby.
    pub fn ask_for_primary(&mut self) {
        self.verdict.hint.route = Some(crate::route::RouteHint::Primary);
    }

    /// Ends it where it is, as one whose end is not known: it goes to the primary.
    pub fn finish_open(&mut self) {
        self.end = End::Open;
        self.verdict.class = Class::Write;
    }

    /// Forgets it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Its length, once: it goes to the server now.
    pub fn take_len(&mut self) -> usize {
        let len = self.len;
        if len > 0 {
            self.clear();
        }
        len
    }

    /// Adds a message, of which `here` is there.
    ///
    /// # Errors
    /// What the session may not send: the run is refused as a whole.
    pub fn add(
        &mut self,
        header: Header,
        here: &[u8],
        mode: PoolMode,
        names: &Names,
        judge: &mut Judge<'_>,
    ) -> Result<(), Box<PgError>> {
        let partial = here.len() < header.size;
        if self.len == 0 {
            self.first = header.tag;
        }
        self.len = self.len.saturating_add(here.len());
        self.acts |= matches!(header.tag, b'Q' | b'F' | b'B');
        match header.tag {
            b'Q' | b'P' => self.add_text(header.tag, (!partial).then_some(here), mode, names, judge)?,
            b'F' => self.merge(&judge.function(here)),
            b'B' | b'D' | b'C' => self.add_use((header.tag, partial), here, mode, names, judge)?,
            _ => {}
        }
        match header.tag {
            b'Q' => {
                // The server drops the unnamed statement before it.
                self.unbound = false;
                self.close();
            }
            b'F' | b'S' => self.close(),
            b'H' => self.finish_open(),
            _ if partial => self.finish_open(),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self) {
        self.end = End::Closed;
        if !self.judged || self.prepares() {
            self.verdict.class = Class::Write;
        }
    }

    fn add_text(
        &mut self,
        tag: u8,
        message: Option<&[u8]>,
        mode: PoolMode,
        names: &Names,
        judge: &mut Judge<'_>,
    ) -> Result<(), Box<PgError>> {
        if tag == b'P' {
            let name = message.and_then(parse_text).map_or(&b"?"[..], |(name, _)| name);
            let tracked = message.is_some() && mode != PoolMode::Session && names.has_room();
            self.named |= !name.is_empty() && tracked;
            self.named |=
                mode != PoolMode::Session && message.is_some_and(|m| names.deallocated(m).is_some());
            self.kept |= !name.is_empty() && !tracked;
            self.acts |= name.is_empty() || !tracked;
            self.unbound |= name.is_empty();
            self.parsed |= name.is_empty();
        }
        let verdict = judge.message(tag, message);
        if mode == PoolMode::Statement && begins(&verdict) {
            return Err(Box::new(no_blocks()));
        }
        let change = judge.change(tag, message, &verdict).filter(|_| !self.judged && !self.named);
        self.discards = tag == b'Q' && verdict.is_discard_all;
        self.merge(&verdict);
        self.change = change;
        Ok(())
    }

    /// What the run does to a setting, if that is all it does; once.
    pub fn take_change(&mut self) -> Option<Sent> {
        self.change.take()
    }

    /// Bind, Describe or Close: of the unnamed statement only if this run has parsed it, for on a shared server it might
    /// be another client's.
    fn add_use(
        &mut self,
        (tag, partial): (u8, bool),
        here: &[u8],
        mode: PoolMode,
        names: &Names,
        judge: &mut Judge<'_>,
    ) -> Result<(), Box<PgError>> {
        let about = named(tag, here);
        if let Named::Yes(name) = about
            && mode != PoolMode::Session
        {
            match names.sql(name) {
                Some(sql) if tag != b'C' => {
                    let verdict = judge.text(sql);
                    if mode == PoolMode::Statement && begins(&verdict) {
                        return Err(Box::new(no_blocks()));
                    }
                    self.merge(&verdict);
                }
                None if tag == b'B' && !self.named => {
                    judge.watching.wrote_anything();
                    self.merge(&Verdict::in_doubt());
                }
                _ => {}
            }
            self.named = true;
            return Ok(());
        }
        if about == Named::Unclear && partial && mode != PoolMode::Session {
            return Err(Box::new(no_unnamed()));
        }
        let unnamed = tag != b'C' && about == Named::Unnamed;
        if unnamed && !self.parsed {
            return Err(Box::new(no_unnamed()));
        }
        if unnamed && tag == b'B' {
            self.unbound = false;
        }
        Ok(())
    }

    fn merge(&mut self, verdict: &Verdict) {
        self.change = None;
        if !self.judged {
            self.verdict = verdict.clone();
            self.judged = true;
            return;
        }
        let all = &mut self.verdict;
        all.class = all.class.worse(verdict.class);
        all.may_write |= verdict.may_write;
        all.pins = all.pins.union(verdict.pins);
        all.is_discard_all = false;
        all.sets |= verdict.sets;
        all.statements = all.statements.saturating_add(verdict.statements);
        if verdict.tx != all.tx {
            all.tx = crate::route::TxWord::Mixed;
            all.class = Class::Write;
        }
        if verdict.hint != all.hint {
            all.hint.route = Some(crate::route::RouteHint::Primary);
        }
    }
}

impl Judge<'_> {
    /// The verdict of a FunctionCall message.
    pub fn function(&mut self, message: &[u8]) -> Verdict {
        let verdict = function_call(message);
        if verdict.sets {
            self.watching.wrote_anything();
        }
        verdict
    }

    /// The verdict of a Query or Parse message; `None` for one that is too long to be read.
    pub fn message(&mut self, tag: u8, message: Option<&[u8]>) -> Verdict {
        let text = message.and_then(|message| match tag {
            b'Q' => query_text(message),
            _ => parse_text(message).map(|(_, text)| text),
        });
        match (message, text) {
            (Some(_), Some(text)) => self.text(text),
            (Some(_), None) if self.readable => {
                self.watching.wrote_anything();
                Verdict::in_doubt()
            }
            // What cannot be read may leave any state behind.
            _ => {
                self.watching.wrote_anything();
                Verdict { pins: Pins::SETTING, ..Verdict::in_doubt() }
            }
        }
    }

    /// What a Query or Parse message does to a setting, if that is all it does.
    pub fn change(&self, tag: u8, message: Option<&[u8]>, verdict: &Verdict) -> Option<Sent> {
        if !self.readable || verdict.pins != Pins::SETTING || !verdict.sets {
            return None;
        }
        let message = message?;
        let text = if tag == b'Q' { query_text(message) } else { parse_text(message).map(|(_, text)| text) };
        settings::change(text?, self.standard_strings)
    }

    /// The verdict of a text.
    pub fn text(&mut self, sql: &[u8]) -> Verdict {
        if self.readable {
            let verdict = self.cache.get_or_classify(sql, self.standard_strings, self.known);
            // A cursor changes nothing by itself: its FETCH may.
            if verdict.may_write || verdict.class == Class::Write {
                self.watching.wrote(sql, self.standard_strings);
            }
            return verdict.clone();
        }
        self.watching.wrote_anything();
        Verdict { pins: Pins::SETTING, ..Verdict::in_doubt() }
    }
}
