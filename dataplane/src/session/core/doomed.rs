//! A transaction whose server connection was lost: the session lives, and behaves as in a failed transaction until the
//! client ends it. What was lost was rolled back, or nobody knows: the client is told which. Never sends anything again.
//!
//! SQLSTATEs: 40001 for an open transaction, which every framework knows to retry; 08007 for a COMMIT on its way; 40003
//! for a write on its way; 08006 for a read (manual, appendix A).

use super::{ClientStep, Core};
use crate::route::TxWord;
use crate::session::names::{Named, named};
use crate::session::run::Judge;
use helios_pgwire::PgError;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::frame::{Header, put, put_cstr};
use helios_pgwire::frontend::{max_len, parse_text, query_text};

/// What the client knows of its lost transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// Nothing yet.
    Untold,
    /// It was told with an error.
    Told,
}

/// How a transaction was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Commit,
    Rollback,
}

/// The error of a transaction that was lost with its server.
#[must_use]
pub fn rolled_back() -> PgError {
    PgError::error("40001", "the transaction was rolled back because the connection to the server was lost")
        .hint("Retry the transaction.")
}

fn aborted() -> PgError {
    PgError::error("25P02", "current transaction is aborted, commands ignored until end of transaction block")
}

impl Core {
    /// Transaction status that the client is to be told while no server connection is held.
    pub(super) fn resting(&self) -> TxStatus {
        if self.doom.is_some() { TxStatus::Failed } else { TxStatus::Idle }
    }

    /// The server connection broke while `error` describes what was on its way. Appends what the client gets instead of
    /// its answers, and the session lives: `true`. Otherwise the session must end: something stands half way, or state was
    /// lost with the server that the session cannot do without.
    /// `more`: the client has sent more than was passed on.
    pub fn lost(&mut self, error: &PgError, more: bool, out: &mut Vec<u8>) -> bool {
        let movable = self.mode != super::PoolMode::Session && self.pins().is_empty();
        let whole = self.server_skip == 0 && self.client_skip == 0 && !self.ledger.broken();
        if !movable || !whole {
            return false;
        }
        self.forget_pending();
        self.settings.abandon();
        self.changed.clear();
        let open = self.ledger.status() != TxStatus::Idle;
        let readies = self.ledger.readies();
        let unsynced = self.ledger.unsynced();
        let (leaving, entering) = (self.leaving, self.entering);
        self.dirty = false;
        self.bound = None;
        self.held = 0;
        self.ledger.reset();
        self.run.clear();
        if readies == 0 && !unsynced {
            self.doom = open.then_some(Doom::Untold);
            return true;
        }
        // What the client has sent behind a BEGIN must not run outside of it.
        let inside = entering && (more || readies > 1);
        let (error, doomed) = match (open, leaving) {
            (true, false) => (rolled_back(), true),
            (true, true) => (in_doubt(), inside),
            (false, _) => (error.clone(), inside),
        };
        self.doom = doomed.then_some(Doom::Told);
        for _ in 0..readies {
            error.encode(out);
            backend::ready_for_query(out, self.resting());
        }
        if unsynced {
            error.encode(out);
            self.skip_to_sync = true;
        }
        true
    }

    /// The run gets no server connection, and the client has sent more behind it: behind a BEGIN that must not run outside
    /// of it.
    pub fn doom_what_follows(&mut self) {
        if self.doom.is_none() && matches!(self.run.verdict().tx, TxWord::Begin { .. }) {
            self.doom = Some(Doom::Told);
        }
    }

    /// A whole run of a client whose transaction was lost: answered without a server.
    pub(super) fn doomed_run(
        &mut self,
        doom: Doom,
        buf: &[u8],
        judge: &mut Judge<'_>,
        out: &mut Vec<u8>,
    ) -> ClientStep {
        let len = self.run.len().min(buf.len());
        let run = buf.get(..len).unwrap_or(buf);
        let exit = if self.run.is_closed() && self.client_skip == 0 { self.exit(run) } else { None };
        match (exit, doom) {
            (Some(Exit::Commit), Doom::Untold) => {
                self.doom = None;
                self.fail(&rolled_back(), out);
            }
            (Some(_), _) => {
                self.doom = None;
                self.answer_exit(run, judge, out);
                self.ledger.reset();
                self.run.clear();
                return ClientStep::Consume(len);
            }
            (None, Doom::Untold) => {
                self.doom = Some(Doom::Told);
                self.fail(&rolled_back(), out);
            }
            (None, Doom::Told) => self.fail(&aborted(), out),
        }
        ClientStep::Consume(0)
    }

    /// Whether a run does nothing but end the transaction.
    fn exit(&self, mut run: &[u8]) -> Option<Exit> {
        let verdict = self.run.verdict();
        if verdict.tx != TxWord::End || verdict.statements != 1 {
            return None;
        }
        while let Ok(Some(Header { tag, size })) = Header::parse(run, max_len) {
            let message = run.get(..size)?;
            let text = match tag {
                b'Q' => query_text(message),
                b'P' => parse_text(message).map(|(_, text)| text),
                b'B' => match named(tag, message) {
                    Named::Yes(name) => self.names.sql(name),
                    Named::No | Named::Unnamed | Named::Unclear => None,
                },
                _ => None,
            };
            if let Some(text) = text {
                return exit_word(text);
            }
            run = run.get(size..)?;
        }
        None
    }

    /// What PostgreSQL answers to a run that ends a failed transaction.
    fn answer_exit(&mut self, mut run: &[u8], judge: &mut Judge<'_>, out: &mut Vec<u8>) {
        while let Ok(Some(Header { tag, size })) = Header::parse(run, max_len) {
            let Some(message) = run.get(..size) else { return };
            let done = |out: &mut Vec<u8>| put(out, b'C', |body| put_cstr(body, b"ROLLBACK"));
            match tag {
                b'P' => {
                    self.names.note(message, judge.statements);
                    put(out, b'1', |_| {});
                }
                b'B' => put(out, b'2', |_| {}),
                b'C' => put(out, b'3', |_| {}),
                b'D' => {
                    if message.get(5) == Some(&b'S') {
                        put(out, b't', |body| body.extend_from_slice(&[0, 0]));
                    }
                    put(out, b'n', |_| {});
                }
                b'E' => done(out),
                b'Q' => {
                    done(out);
                    backend::ready_for_query(out, TxStatus::Idle);
                }
                b'S' => backend::ready_for_query(out, TxStatus::Idle),
                _ => {}
            }
            run = run.get(size..).unwrap_or_default();
        }
    }
}

/// A COMMIT was on its way.
fn in_doubt() -> PgError {
    PgError::error(
        "08007",
        "connection to the server was lost; it is unknown whether the transaction was committed",
    )
}

fn exit_word(text: &[u8]) -> Option<Exit> {
    let text = text.trim_ascii_start();
    let word = text.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    let is = |words: &[&[u8]]| words.iter().any(|known| word.eq_ignore_ascii_case(known));
    if is(&[b"commit", b"end"]) {
        Some(Exit::Commit)
    } else if is(&[b"rollback", b"abort"]) {
        Some(Exit::Rollback)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_end_a_transaction() {
        for (sql, expected) in [
            ("commit", Some(Exit::Commit)),
            (" END;", Some(Exit::Commit)),
            ("Rollback", Some(Exit::Rollback)),
            ("ABORT work", Some(Exit::Rollback)),
            ("prepare transaction 'x'", None),
            ("committed", None),
            ("", None),
        ] {
            assert_eq!(exit_word(sql.as_bytes()), expected, "{sql}");
        }
    }
}
