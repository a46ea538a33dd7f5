//! What bytes of the client mean: runs for which a server connection is needed, and messages for the one that is held.
//! Never looks at a parameter.

use super::{Bound, ClientStep, Core, Ending, RUN_MAX, TEXT_MAX, begins};
use crate::route::{Class, Pins, TxWord, Verdict};
use crate::session::names::{Named, Rewriter, named};
use crate::session::run::{Judge, no_blocks, no_unnamed};
use crate::session::settings::Sent;
use crate::statements::{self, Deallocate};
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::frame::{FrameError, Header, put, put_cstr};
use helios_pgwire::frontend::query_text;
use helios_pgwire::{PgError, Severity, frontend};
use helios_proto::model::PoolMode;

impl Core {
    /// Looks at bytes of the client, from the front of what was not consumed yet.
    pub fn client(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        self.waits_for_name = false;
        if self.discard > 0 {
            let n = self.discard.min(buf.len());
            self.discard = self.discard.saturating_sub(n);
            return if n > 0 { ClientStep::Consume(n) } else { ClientStep::Wait };
        }
        // What is prepared while something is set and not committed is for nobody else.
        let passing = self.settings.follows() || self.sets;
        let salt = if passing { judge.statements.once() } else { self.settings.salt() };
        judge.statements.under(salt);
        match self.bound {
            _ if self.skip_to_sync => self.skip(buf, out),
            None if self.run.is_finished() => self.finished(buf, judge, out),
            None => self.unbound(buf, judge, out),
            Some(bound) => self.forward(buf, bound, judge, out),
        }
    }

    fn unbound(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        loop {
            let rest = buf.get(self.run.len()..).unwrap_or_default();
            let header = match Header::parse(rest, frontend::max_len) {
                Ok(Some(header)) => header,
                Ok(None) => return self.wait_or_acquire(buf, judge, out),
                Err(error) => return ClientStep::Close(Ending::from(error)),
            };
            if self.run.is_empty()
                && let Some(step) = self.local(header, rest, out)
            {
                return step;
            }
            if header.tag == b'X' {
                return ClientStep::Close(Ending::Terminate);
            }
            let here = rest.get(..header.size).unwrap_or(rest);
            let unclear = header.tag == b'B' && named(b'B', here) == Named::Unclear && here.len() < RUN_MAX;
            if here.len() < header.size && (header.size <= held_whole(header.tag) || unclear) {
                return self.wait_or_acquire(buf, judge, out);
            }
            self.client_skip = header.size.saturating_sub(here.len());
            if let Err(error) = self.run.add(header, here, self.mode, &self.names, judge) {
                self.fail(&error, out);
                return ClientStep::Consume(0);
            }
            self.ledger.sent(header.tag);
            self.note_unnamed(here);
            if self.run.is_finished() {
                if self.primary_only {
                    self.run.ask_for_primary();
                }
                return self.finished(buf, judge, out);
            }
        }
    }

    /// A run is ready for a server, or needs none.
    fn finished(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        match self.doom {
            Some(doom) => self.doomed_run(doom, buf, judge, out),
            None => ClientStep::Acquire,
        }
    }

    fn wait_or_acquire(&mut self, buf: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        if !self.run.is_empty() && buf.len() >= RUN_MAX {
            self.run.finish_open();
            return self.finished(buf, judge, out);
        }
        ClientStep::Wait
    }

    /// What needs no server: leftovers of a failed run, stray COPY data, a Sync or Flush with nothing before it.
    fn local(&mut self, header: Header, rest: &[u8], out: &mut Vec<u8>) -> Option<ClientStep> {
        let Header { tag, size } = header;
        let there = rest.len();
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
                backend::ready_for_query(out, self.resting());
                Some(ClientStep::Consume(size))
            }
            _ if self.skip_to_sync => throw(self),
            b'd' | b'c' | b'f' => throw(self),
            b'H' if size == 5 => throw(self),
            b'Q' if self.doom.is_none() => {
                self.deallocate(rest.get(..size)?, TxStatus::Idle, out).then_some(ClientStep::Consume(size))
            }
            _ => None,
        }
    }

    /// With a server connection: messages go on as they come, in slices if they are long.
    fn forward(&mut self, buf: &[u8], bound: Bound, judge: &mut Judge<'_>, out: &mut Vec<u8>) -> ClientStep {
        let mut edited = self.run.is_named();
        let mut at = self.run.take_len();
        judge.edit.clear();
        if edited {
            self.ledger.reset();
            self.rewrite_run(buf.get(..at).unwrap_or(buf), judge);
        }
        loop {
            let skip = self.client_skip.min(buf.len().saturating_sub(at));
            self.client_skip = self.client_skip.saturating_sub(skip);
            if edited {
                judge.edit.extend_from_slice(buf.get(at..at.saturating_add(skip)).unwrap_or_default());
            }
            at = at.saturating_add(skip);
            let rest = buf.get(at..).unwrap_or_default();
            let (size, stop) = match Header::parse(rest, frontend::max_len) {
                // What comes next may be answered here: what stands before it goes first.
                _ if at > 0 && self.ledger.settled() => (0, Some(ClientStep::Wait)),
                Ok(Some(header)) => (header.size, self.forward_one(header, rest, bound, judge, out)),
                Ok(None) => (0, Some(ClientStep::Wait)),
                Err(error) if at == 0 => (0, Some(self.bad_header(error, rest, out))),
                Err(_) => (0, Some(ClientStep::Stall)),
            };
            match stop {
                Some(_) if at > 0 && edited => return ClientStep::Rewritten(at),
                Some(_) if at > 0 => return ClientStep::Forward(at),
                Some(stop) => return stop,
                None => {}
            }
            let here = rest.get(..size).unwrap_or(rest);
            if !edited && self.is_renamed(here) {
                edited = true;
                judge.edit.extend_from_slice(buf.get(..at).unwrap_or_default());
            }
            if edited {
                self.rewrite(here, judge);
            } else {
                self.ledger.sent(here.first().copied().unwrap_or_default());
            }
            self.note_unnamed(here);
            at = at.saturating_add(here.len());
            self.client_skip = size.saturating_sub(here.len());
        }
    }

    /// Remembers which reply decides whether the unnamed statement is this session's: that of its last Parse.
    fn note_unnamed(&mut self, sent: &[u8]) {
        // A Query drops it, unless what stands before it in the same batch fails.
        let query = sent.first() == Some(&b'Q') && self.ledger.asked() != self.ledger.synced();
        if query || (sent.first() == Some(&b'P') && named(b'P', sent) == Named::Unnamed) {
            self.unnamed = self.ledger.asked();
        }
    }

    /// Whether the Parse of the unnamed statement stands before a Sync and is not answered: if it fails, another client's
    /// is still there.
    fn unnamed_is_undecided(&self) -> bool {
        self.unnamed > self.ledger.done() && self.unnamed <= self.ledger.synced()
    }

    /// Whether a message names a statement whose name is another one on servers.
    fn is_renamed(&self, message: &[u8]) -> bool {
        let tag = message.first().copied().unwrap_or_default();
        matches!(tag, b'P' | b'B' | b'D' | b'C')
            && self.mode != PoolMode::Session
            && (matches!(named(tag, message), Named::Yes(_)) || self.names.deallocated(message).is_some())
    }

    fn rewrite_run(&mut self, mut run: &[u8], judge: &mut Judge<'_>) {
        while let Ok(Some(header)) = Header::parse(run, frontend::max_len) {
            let (message, rest) = run.split_at_checked(header.size).unwrap_or((run, &[]));
            self.rewrite(message, judge);
            self.note_unnamed(message);
            run = rest;
        }
    }

    /// One message, or the front of one, for the server, into `judge.edit`.
    fn rewrite(&mut self, message: &[u8], judge: &mut Judge<'_>) {
        let tracked = self.is_tracked(message);
        let stays = !tracked && message.first() == Some(&b'P') && named(b'P', message) != Named::Unnamed;
        if stays && !self.ledger.skips() {
            self.pins = self.pins.union(Pins::PREPARE);
        }
        let mut to = Rewriter {
            interner: judge.statements,
            prepared: &mut self.prepared,
            ledger: &mut self.ledger,
            out: judge.edit,
        };
        if tracked { self.names.rewrite(message, &mut to) } else { to.raw(message) }
    }

    /// Whether a message may name a statement of which we keep track. A Parse that is not there as a whole is not.
    fn is_tracked(&self, message: &[u8]) -> bool {
        let whole =
            || matches!(Header::parse(message, frontend::max_len), Ok(Some(h)) if h.size <= message.len());
        let fits = message.first() != Some(&b'P') || (whole() && self.names.has_room());
        self.mode != PoolMode::Session && fits
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
        let tag = header.tag;
        if tag == b'X' {
            // What was asked before is answered first, as PostgreSQL does; what cannot end is not waited for.
            let ends = self.ledger.settled() || self.waits_for_client();
            return Some(if ends { ClientStep::Close(Ending::Terminate) } else { ClientStep::Stall });
        }
        if self.must_wait(bound) {
            return Some(ClientStep::Stall);
        }
        if let Named::Yes(name) = named(tag, rest.get(..header.size).unwrap_or(rest))
            && self.names.undecided(name, self.ledger.synced())
        {
            self.waits_for_name = true;
            return Some(ClientStep::Stall);
        }
        // If it has a body, it gets an error.
        self.loose |= tag == b'H';
        let stop = match tag {
            // The server throws it away, so it does nothing.
            _ if self.ledger.skips() => None,
            b'Q' | b'P' => self.forward_text(header, rest, judge, out),
            b'B' | b'D' | b'C' => self.forward_use(header, rest, judge, out),
            // The function's OID decides.
            b'F' if rest.len() < header.size.min(9) => Some(ClientStep::Wait),
            b'F' => {
                let verdict = judge.function(rest);
                self.note(tag, &verdict, None, false);
                None
            }
            _ => None,
        };
        if stop.is_none() {
            self.stay();
        }
        stop
    }

    /// A Query or Parse for the server connection held.
    fn forward_text(
        &mut self,
        header: Header,
        rest: &[u8],
        judge: &mut Judge<'_>,
        out: &mut Vec<u8>,
    ) -> Option<ClientStep> {
        let Header { tag, size } = header;
        if rest.len() < size && size <= TEXT_MAX {
            return Some(ClientStep::Wait);
        }
        let message = rest.get(..size);
        if tag == b'Q'
            && self.ledger.settled()
            && self.ledger.status() != TxStatus::Failed
            && message.is_some_and(|message| self.deallocate(message, self.ledger.status(), out))
        {
            return Some(ClientStep::Consume(size));
        }
        let verdict = judge.message(tag, message);
        let change = judge.change(tag, message, &verdict);
        let named = tag == b'P' && named(tag, message.unwrap_or(rest)) != Named::Unnamed;
        if named && (self.settings.follows() || self.sets) {
            self.distrust();
        }
        if named && message.is_some_and(|message| self.is_tracked(message)) {
            // What it does, it does when it is bound.
            return None;
        }
        self.note(tag, &verdict, change.filter(|_| !named), self.ledger.settled());
        if self.mode == PoolMode::Statement && begins(&verdict) {
            return Some(self.refuse_block(tag, size, rest.len(), out));
        }
        if named {
            self.pins = self.pins.union(Pins::PREPARE);
        } else {
            self.owns_unnamed = true;
        }
        None
    }

    /// A Bind, Describe or Close for the server connection held: it goes on once its name is there, and a statement that
    /// was prepared by name does now what its text says.
    fn forward_use(
        &mut self,
        Header { tag, size }: Header,
        rest: &[u8],
        judge: &mut Judge<'_>,
        out: &mut Vec<u8>,
    ) -> Option<ClientStep> {
        let here = rest.get(..size).unwrap_or(rest);
        match named(tag, here) {
            // Another client's may still be there. No driver asks for this, so the session may end.
            Named::Unnamed if tag != b'C' && !self.owns_unnamed => {
                let error = PgError { severity: Severity::Fatal, ..no_unnamed() };
                Some(ClientStep::Close(Ending::Error(Box::new(error))))
            }
            Named::Unnamed if tag != b'C' && self.unnamed_is_undecided() => {
                self.waits_for_name = true;
                Some(ClientStep::Stall)
            }
            Named::Unclear if here.len() < size.min(RUN_MAX) => Some(ClientStep::Wait),
            // It might be another client's.
            Named::Unclear if here.len() < size && self.mode != PoolMode::Session => {
                let error = PgError { severity: Severity::Fatal, ..no_unnamed() };
                Some(ClientStep::Close(Ending::Error(Box::new(error))))
            }
            Named::Yes(name) if tag == b'B' => {
                let verdict = self.names.sql(name).map_or_else(Verdict::in_doubt, |sql| judge.text(sql));
                self.note(tag, &verdict, None, false);
                let refused = self.mode == PoolMode::Statement && begins(&verdict);
                refused.then(|| self.refuse_block(b'P', size, rest.len(), out))
            }
            _ => None,
        }
    }

    /// A plain `DEALLOCATE` of what was prepared through the protocol, answered here: the copies on servers are shared.
    fn deallocate(&mut self, message: &[u8], status: TxStatus, out: &mut Vec<u8>) -> bool {
        if self.mode == PoolMode::Session {
            return false;
        }
        let tag = match query_text(message).and_then(statements::deallocate) {
            Some(Deallocate::One(name)) if self.names.remove(&name) => "DEALLOCATE",
            Some(Deallocate::All) => {
                self.names.clear();
                if !self.pins.is_empty() {
                    // The server has more of them, and drops ours with them.
                    self.prepared.doubt_all();
                    return false;
                }
                "DEALLOCATE ALL"
            }
            _ => return false,
        };
        put(out, b'C', |body| put_cstr(body, tag.as_bytes()));
        backend::ready_for_query(out, status);
        true
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

    /// A new run behind an unanswered one waits where it might have to go elsewhere, or be refused, and where its names
    /// may be gone: behind a `DISCARD ALL`, for one. In a session that is to end, always.
    fn must_wait(&self, bound: Bound) -> bool {
        let between = !self.ledger.unsynced() && !self.ledger.copy_in();
        if between && (self.discarding || self.one_by_one) && !self.ledger.settled() {
            return true;
        }
        let free = self.ledger.settled() || self.ledger.status() != TxStatus::Idle;
        let elsewhere = self.mode == PoolMode::Statement || (bound.standby && self.pins().is_empty());
        between && ((!free && elsewhere) || (!self.ledger.settled() && self.names.closing()))
    }

    /// Statement mode on a pinned connection: the block is refused here, up to its Sync if it is extended.
    fn refuse_block(&mut self, tag: u8, size: usize, there: usize, out: &mut Vec<u8>) -> ClientStep {
        if !self.ledger.settled() {
            // In the middle of a run there is no place for an answer of ours.
            let error = PgError { severity: Severity::Fatal, ..no_blocks() };
            return ClientStep::Close(Ending::Error(Box::new(error)));
        }
        no_blocks().encode(out);
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
            Ok(Some(header)) => self.local(header, buf, out).unwrap_or(ClientStep::Wait),
            Ok(None) => ClientStep::Wait,
            Err(error) => ClientStep::Close(Ending::from(error)),
        }
    }

    /// What a statement leaves behind, whichever way it went to the server.
    /// `change`: what it does to a setting, if that is all it does; `quiet`: no answer is owed to anything before it.
    pub(super) fn note(&mut self, tag: u8, verdict: &Verdict, change: Option<Sent>, quiet: bool) {
        let ends = matches!(verdict.tx, TxWord::End | TxWord::Mixed);
        self.dirty |= verdict.may_write;
        // What was written before shows from its commit on.
        self.wrote |= verdict.may_write || (ends && self.dirty);
        self.sets |= verdict.sets;
        match verdict.class {
            Class::Empty | Class::Read => self.counts.reads = self.counts.reads.saturating_add(1),
            Class::VolatileFunction | Class::Write => {
                self.counts.writes = self.counts.writes.saturating_add(1)
            }
        }
        let on_their_way = !self.ledger.settled();
        self.leaving = ends || (self.leaving && on_their_way);
        let begins = matches!(verdict.tx, TxWord::Begin { .. });
        self.entering = begins || (self.entering && on_their_way && !ends);
        self.discarding = tag == b'Q' && verdict.is_discard_all && self.ledger.listens();
        if verdict.is_discard_all {
            // Whatever of it is answered, and however it goes to the server.
            self.prepared.doubt_all();
        }
        // What was prepared by name stands under the settings of that moment, so these must not change.
        let change = change.filter(|_| quiet && self.mode != PoolMode::Session && self.names.is_empty());
        let Some(change) = change else {
            self.pins = self.pins.union(verdict.pins);
            return;
        };
        let block = self.ledger.status() != TxStatus::Idle;
        let followed = self.settings.sent(change, block);
        self.follow(followed);
    }
}

/// How long a message of this type may be to be held until it is whole.
const fn held_whole(tag: u8) -> usize {
    match tag {
        b'Q' | b'P' => TEXT_MAX,
        _ => RUN_MAX,
    }
}
