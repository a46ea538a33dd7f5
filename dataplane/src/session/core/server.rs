//! What bytes of the server mean: replies that settle what is owed, and the few that decide something.

use super::{Core, Cut, HOLD_MAX, SMALL, ServerOutcome, ServerStep};
use helios_pgwire::ErrorFields;
use helios_pgwire::backend::{self, TxStatus, parameter_status_fields};
use helios_pgwire::frame::{Header, take_cstr};

impl Core {
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
            if matches!(tag, b'D' | b'd') {
                // A row settles nothing that is owed, and is never cut; there are many of them.
                self.stay();
                at = self.step_over(at, size, rest.len());
                continue;
            }
            let whole = rest.get(..size);
            if whole.is_none() && size <= SMALL && matches!(tag, b'Z' | b'E' | b'S' | b'C') {
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
            // What a client has broken, also by what it sent ahead of a COPY, is the server's to answer.
            let clients = self.ledger.broken() || (tag == b'G' && !self.ledger.settled());
            self.receive(tag, whole, baseline);
            if self.ledger.broken() && !clients {
                // Nothing that it says can be told apart any more.
                outcome = ServerOutcome::Fatal;
                break;
            }
            if let Some(cut) = self.cut(tag, at, whole) {
                self.held = at.saturating_add(cut.insert.len());
                return ServerStep { forward: 0, outcome: ServerOutcome::Cut(cut) };
            }
            at = self.step_over(at, size, rest.len());
        }
        self.finish_server(at, outcome)
    }

    /// Where the message behind this one begins; what of this one has not come is skipped when it does.
    fn step_over(&mut self, at: usize, size: usize, come: usize) -> usize {
        self.server_skip = size.saturating_sub(come);
        at.saturating_add(size.min(come))
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
                if at > 0 {
                    // The client has something of it.
                    self.stay();
                }
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

    /// What the client must not see of a message that just came, or must see in other words.
    fn cut(&mut self, tag: u8, at: usize, whole: Option<&[u8]>) -> Option<Cut> {
        let done = self.ledger.done();
        if tag == b'E' {
            self.names.failed(done, &mut self.prepared);
            let message = whole?;
            let fields = ErrorFields::parse(message.get(5..).unwrap_or_default());
            if fields.is("0A000") || fields.is("26000") {
                // A cached plan whose result has changed, or a copy that somebody has deallocated.
                self.prepared.doubt_all();
            }
            let insert = self.names.in_clients_words(message)?;
            return Some(Cut { at, len: message.len(), insert });
        }
        let ours = matches!(tag, b'1' | b'3')
            && self.names.pending()
            && self.names.answered(done, self.replayable());
        ours.then(|| Cut { at, len: whole.map_or(5, <[u8]>::len), insert: Vec::new() })
    }

    fn receive(&mut self, tag: u8, whole: Option<&[u8]>, baseline: &[(Vec<u8>, Vec<u8>)]) {
        let body = whole.and_then(|message| message.get(5..)).unwrap_or_default();
        let status = body.first().copied().and_then(TxStatus::from_byte).filter(|_| tag == b'Z');
        let answered = self.ledger.done();
        self.ledger.received(tag, status);
        let skipped = tag == b'E' && self.unnamed > answered && self.unnamed <= self.ledger.done();
        if skipped && self.mode != helios_proto::model::PoolMode::Session {
            self.owns_unnamed = false;
        }
        match tag {
            // Replies that come before anything of the statement has run.
            b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'N' => {}
            b'S' => self.reported(body, baseline),
            b'C' => {
                self.told = true;
                self.stay();
                if self.settings.follows() {
                    let words = whole.and_then(|_| take_cstr(body)).map(|(words, _)| words);
                    let followed = self.settings.completed(words.unwrap_or_default());
                    self.follow(followed);
                }
                if matches!(body, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0") {
                    // However it was asked for: what clients share on this server is gone too.
                    self.names.all_dropped();
                    self.prepared.doubt_all();
                }
                if body == b"DISCARD ALL\0" {
                    // It runs outside of any transaction only, so that nothing undoes it.
                    self.settings.clear();
                }
            }
            b'E' => {
                self.ended.code = ErrorFields::parse(body).code.and_then(|code| code.try_into().ok());
                self.settings.failed();
                // Nothing is sent behind it before its answer: with more owed, this is the error of something before it.
                self.discarding &= self.ledger.readies() > 1;
                self.stay();
            }
            b'Z' => {
                self.told = true;
                self.loose = false;
                self.ended.answers = self.ended.answers.saturating_add(1);
                if status == Some(TxStatus::Idle) {
                    self.dirty = false;
                    self.ended.transactions = self.ended.transactions.saturating_add(1);
                }
                self.stay();
                self.sets &= status != Some(TxStatus::Idle);
                if self.settings.follows() {
                    let followed = self.settings.ready(status == Some(TxStatus::Idle));
                    self.follow(followed);
                }
                if self.discarding && self.ledger.settled() && self.ledger.status() == TxStatus::Idle {
                    self.discarding = false;
                    // A placeholder of a custom setting survives DISCARD ALL, and so does a loaded library (B13).
                    self.pins = self.pins.kept_by_discard();
                    self.names.clear();
                    self.settings.clear();
                    self.prepared.clear();
                    self.changed.clear();
                }
            }
            _ => self.stay(),
        }
    }

    /// The run stays where it is: it is not run again.
    pub(super) fn stay(&mut self) {
        if let Some(bound) = &mut self.bound
            && bound.replayable
        {
            bound.replayable = false;
            self.names.told();
        }
    }

    fn reported(&mut self, body: &[u8], baseline: &[(Vec<u8>, Vec<u8>)]) {
        let Some((name, value)) = parameter_status_fields(body) else { return };
        if name == b"in_hot_standby" {
            self.hot_standby = Some(value == b"on");
            return;
        }
        self.settings.report(name, value);
        self.changed.retain(|(known, _)| known != name);
        let differs = !baseline.iter().any(|(n, v)| n == name && v == value);
        if differs {
            self.changed.push((name.to_vec(), value.to_vec()));
        }
    }
}

/// Whether a standby refused a statement because the transaction is serializable, by default or by declaration. Told
/// by the routine that raises it (`predicate.c`): the code alone stands for much else, and the text is localised.
fn is_isolation_refusal(fields: &ErrorFields<'_>, whole: Option<&[u8]>) -> bool {
    let routine = b"\0RGetSerializableTransactionSnapshot\0";
    fields.is("0A000") && whole.is_some_and(|m| m.windows(routine.len()).any(|part| part == routine))
}
