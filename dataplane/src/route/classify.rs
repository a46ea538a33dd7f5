//! Judges a whole text: every statement of it, and in doubt as a write.
//! Never parses into a tree and never allocates, but for the name in a `node=` hint.

mod scan;

use super::functions::KnownFunctions;
use super::hint::Hint;
use super::lexer::{Lexer, TokenKind};
use super::verdict::{Class, Pins, TxWord, Verdict};
use super::words::Kw;
use scan::Statement;

/// Judges `sql` under the session's `standard_conforming_strings`.
#[must_use]
pub fn classify(sql: &[u8], standard_strings: bool, known: &dyn KnownFunctions) -> Verdict {
    let mut text = Text::default();
    let mut statement = Statement::default();
    let mut lexer = Lexer::new(sql, standard_strings);
    while let Some(token) = lexer.next() {
        match token.kind {
            TokenKind::BlockComment => text.hint.read(lexer.bytes(&token)),
            TokenKind::LineComment => {}
            TokenKind::Punct(b';') if statement.is_over() => {
                text.add(&statement);
                statement = Statement::default();
            }
            kind => statement.token(kind, lexer.bytes(&token), known),
        }
    }
    text.add(&statement);
    text.finish(lexer.unterminated())
}

/// What one finished statement amounts to.
struct Judged {
    class: Class,
    may_write: bool,
    tx: TxWord,
    pins: Pins,
}

/// The sum over the statements so far.
#[derive(Default)]
struct Text {
    class: Option<Class>,
    may_write: bool,
    tx: Option<TxWord>,
    pins: Pins,
    hint: Hint,
    statements: u16,
    discards_all: bool,
    sets: bool,
}

// === impl Text ===

impl Text {
    fn add(&mut self, statement: &Statement<'_>) {
        let Some(verb) = statement.verb else { return };
        let judged = judge(statement, verb);
        self.class = Some(self.class.unwrap_or(Class::Empty).worse(judged.class));
        self.may_write |= judged.may_write;
        self.pins = self.pins.union(judged.pins).union(statement.pins);
        self.sets |= matches!(verb, Kw::Set | Kw::Reset);
        if statement.settings && judged.class == Class::Write {
            // An UPDATE of the view sets them.
            self.pins = self.pins.union(Pins::SETTING);
        }
        self.statements = self.statements.saturating_add(1);
        self.discards_all = verb == Kw::Discard && statement.second == Kw::All && statement.words == 2;
        if judged.tx != TxWord::None || self.tx.is_some() {
            self.tx = Some(if self.statements == 1 { judged.tx } else { TxWord::Mixed });
        }
    }

    fn finish(self, unterminated: bool) -> Verdict {
        let tx = self.tx.unwrap_or(TxWord::None);
        let class = self.class.unwrap_or(Class::Empty);
        Verdict {
            class: if unterminated || tx == TxWord::Mixed { Class::Write } else { class },
            may_write: self.may_write || unterminated,
            tx,
            pins: self.pins,
            hint: self.hint,
            statements: self.statements,
            is_discard_all: self.discards_all && self.statements == 1,
            sets: self.sets,
        }
    }
}

// === impl Judged ===

impl Judged {
    const fn write() -> Self {
        Self { class: Class::Write, may_write: true, tx: TxWord::None, pins: Pins::NONE }
    }

    /// For the primary, but changes no data.
    const fn steer() -> Self {
        Self { may_write: false, ..Self::write() }
    }

    const fn pin(pins: Pins) -> Self {
        Self { pins, ..Self::steer() }
    }

    const fn read(class: Class, may_write: bool) -> Self {
        Self { class, may_write, tx: TxWord::None, pins: Pins::NONE }
    }

    fn body(s: &Statement<'_>) -> Self {
        Self::read(s.class.worse(Class::Read), s.may_write)
    }
}

fn judge(s: &Statement<'_>, verb: Kw) -> Judged {
    if s.doubt {
        return Judged::write();
    }
    match verb {
        Kw::Select | Kw::Values | Kw::Table | Kw::With => Judged::body(s),
        Kw::Show => Judged { may_write: false, ..Judged::body(s) },
        Kw::Explain => explain(s),
        Kw::Copy if s.to_stdout && !s.from => Judged::body(s),
        Kw::Begin => begin(s),
        Kw::Start if s.second == Kw::Transaction => begin(s),
        Kw::Commit | Kw::End | Kw::Rollback | Kw::Abort => end(s),
        // Two words alone: `PREPARE transaction AS ...` makes a statement of that name.
        Kw::Prepare if s.second == Kw::Transaction && s.words == 2 => {
            Judged { tx: TxWord::End, ..Judged::write() }
        }
        Kw::Prepare => Judged::pin(Pins::PREPARE),
        Kw::Set if matches!(s.second, Kw::Local | Kw::Transaction | Kw::Constraints) => Judged::steer(),
        Kw::Set | Kw::Reset => Judged::pin(Pins::SETTING),
        Kw::Listen => Judged::pin(Pins::LISTEN),
        Kw::Load => Judged::pin(Pins::LOAD),
        // Its body may leave any state behind.
        Kw::Do => Judged { pins: Pins::SETTING, ..Judged::write() },
        Kw::Declare if s.hold => Judged::pin(Pins::HOLD_CURSOR),
        Kw::Declare | Kw::Discard | Kw::Steer => Judged::steer(),
        Kw::Create | Kw::Alter if s.temporary && !s.drops_at_commit => {
            Judged { pins: Pins::TEMP_TABLE, ..Judged::write() }
        }
        _ => Judged::write(),
    }
}

/// Without ANALYZE nothing runs, so a plan of any query or change may come from a standby.
fn explain(s: &Statement<'_>) -> Judged {
    let Some(inner) = s.explained else { return Judged::write() };
    if s.analyzes {
        return if inner.begins_query() { Judged::body(s) } else { Judged::write() };
    }
    if (inner.begins_query() || inner.changes_rows()) && !s.into {
        return Judged::read(Class::Read, false);
    }
    Judged::write()
}

fn begin(s: &Statement<'_>) -> Judged {
    let read_only = s.read_only && !s.read_write && !s.serializable;
    let class = if read_only { Class::Read } else { Class::Write };
    Judged { tx: TxWord::Begin { read_only }, ..Judged::read(class, false) }
}

/// An end runs where its transaction runs, and does nothing elsewhere.
fn end(s: &Statement<'_>) -> Judged {
    if s.second == Kw::Prepared {
        return Judged::write();
    }
    if s.to {
        return Judged::steer();
    }
    if s.chain {
        return Judged { tx: TxWord::Mixed, ..Judged::steer() };
    }
    Judged { tx: TxWord::End, ..Judged::read(Class::Read, false) }
}
