//! One statement, token by token: collects the facts by which it is judged when it is over.
//! Keeps a fixed amount of state however deep the parentheses; what it cannot keep track of counts as doubt.

use crate::route::functions::{KnownFunctions, is_any_keyword, is_builtin_safe};
use crate::route::lexer::TokenKind;
use crate::route::verdict::{Class, Pins};
use crate::route::words::{Kw, Lower, is_node_local, keyword};

/// What stood before a token.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Prev<'a> {
    #[default]
    Start,
    /// An unquoted word that stands alone.
    Word(Kw, &'a [u8]),
    /// A name in quotes, or one after a dot.
    Name,
    Dot,
    Open,
    Close,
    Comma,
    /// Inside a function's body in standard SQL.
    Semicolon,
    /// `::`
    Cast,
    Other,
}

/// The name just read, which a parenthesis may turn into a call.
#[derive(Clone, Copy, Default)]
struct Name<'a> {
    text: &'a [u8],
    quoted: bool,
    /// The part before the dot.
    qualifier: Option<&'a [u8]>,
    /// What stood before the whole name.
    before: Prev<'a>,
}

/// The facts about one statement.
#[derive(Default)]
pub(super) struct Statement<'a> {
    /// First word, or `Select` for a parenthesis.
    pub(super) verb: Option<Kw>,
    pub(super) second: Kw,
    /// Words so far, names included; stops at 255.
    pub(super) words: u8,
    /// As far as queries inside it go.
    pub(super) class: Class,
    pub(super) may_write: bool,
    pub(super) pins: Pins,
    /// PostgreSQL will refuse it, or we lost track of it.
    pub(super) doubt: bool,
    pub(super) explained: Option<Kw>,
    pub(super) analyzes: bool,
    pub(super) into: bool,
    pub(super) to: bool,
    pub(super) to_stdout: bool,
    pub(super) from: bool,
    pub(super) hold: bool,
    pub(super) temporary: bool,
    pub(super) drops_at_commit: bool,
    pub(super) read_only: bool,
    pub(super) read_write: bool,
    pub(super) serializable: bool,
    pub(super) chain: bool,
    /// Names the view `pg_settings`.
    pub(super) settings: bool,
    depth: u32,
    /// `CREATE FUNCTION` or `PROCEDURE`.
    routine: bool,
    /// Open `BEGIN ATOMIC` and `CASE` of a function's body in standard SQL.
    body_depth: u32,
    /// By depth: inside the list of a WITH, where a name before a parenthesis is a query's name.
    with_lists: u64,
    /// By depth: the parenthesis belongs to `DISTINCT ON` or `OPERATOR`, so that an expression follows it.
    expression_follows: u64,
    prev: Prev<'a>,
    name: Name<'a>,
}

// === impl Statement ===

impl<'a> Statement<'a> {
    /// Whether a semicolon here ends the statement.
    pub(super) const fn is_over(&self) -> bool {
        self.depth == 0 && self.body_depth == 0
    }

    /// Takes the next token; comments are not passed.
    pub(super) fn token(&mut self, kind: TokenKind, bytes: &'a [u8], known: &dyn KnownFunctions) {
        if self.verb.is_none() {
            let kw = if kind == TokenKind::Word { keyword(bytes) } else { Kw::None };
            self.verb = Some(if kind == TokenKind::Punct(b'(') { Kw::Select } else { kw });
        }
        self.prev = match kind {
            TokenKind::Word => self.word(bytes),
            TokenKind::QuotedIdent => {
                self.take_name(bytes, true);
                Prev::Name
            }
            TokenKind::Punct(b'(') => self.open(known),
            TokenKind::Punct(b')') => self.close(),
            TokenKind::Punct(b',') => Prev::Comma,
            TokenKind::Punct(b'.') => {
                // `SET local.x`: a setting's name, not SET LOCAL.
                self.second = if self.words == 2 { Kw::None } else { self.second };
                Prev::Dot
            }
            TokenKind::Punct(b';') => {
                self.doubt |= self.verb != Some(Kw::Create);
                Prev::Semicolon
            }
            TokenKind::Op if bytes == b"::" => Prev::Cast,
            TokenKind::Other => {
                self.doubt = true;
                Prev::Other
            }
            _ => Prev::Other,
        };
    }

    fn raise(&mut self, class: Class, may_write: bool) {
        self.class = self.class.worse(class);
        self.may_write |= may_write;
    }

    fn bit(depth: u32) -> u64 {
        1_u64.checked_shl(depth).unwrap_or(0)
    }

    fn take_name(&mut self, text: &'a [u8], quoted: bool) {
        self.words = self.words.saturating_add(1);
        self.name = match self.prev {
            Prev::Dot => Name { text, quoted, qualifier: Some(self.name.text), before: self.name.before },
            before => Name { text, quoted, qualifier: None, before },
        };
        // Most names are told by their first letter.
        if quoted || matches!(text.first().map(|b| b | 0x20), Some(b'p' | b't' | b'd' | b'i')) {
            self.look_at_name(text, quoted);
        }
    }

    /// A name that might be one of those which mean something of their own; not inlined, since few are.
    #[inline(never)]
    fn look_at_name(&mut self, text: &[u8], quoted: bool) {
        let inner = if quoted { unquote(text) } else { text };
        // A name written in escapes could be the schema of temporary objects.
        let escaped = quoted && text.first() != Some(&b'"');
        self.schema_of_temporaries(if escaped { b"pg_temp" } else { inner });
        if inner.len() > 7 && Lower::new(inner).is_some_and(|n| is_node_local(n.get())) {
            self.raise(Class::VolatileFunction, false);
        }
        self.settings |= inner.eq_ignore_ascii_case(b"pg_settings");
    }

    fn schema_of_temporaries(&mut self, name: &[u8]) {
        if name.get(..7).is_some_and(|n| n.eq_ignore_ascii_case(b"pg_temp")) {
            self.temporary = true;
            self.pins = if self.into { self.pins.union(Pins::TEMP_TABLE) } else { self.pins };
        }
    }

    fn word(&mut self, bytes: &'a [u8]) -> Prev<'a> {
        let qualified = self.prev == Prev::Dot;
        let kw = keyword(bytes);
        self.take_name(bytes, false);
        if qualified {
            return Prev::Name;
        }
        if self.words == 2 {
            self.second = kw;
        }
        if kw != Kw::None {
            self.keyword(kw);
        }
        Prev::Word(kw, bytes)
    }

    fn keyword(&mut self, kw: Kw) {
        let before = if let Prev::Word(kw, _) = self.prev { kw } else { Kw::None };
        let opened = matches!(self.prev, Prev::Start | Prev::Open);
        if opened && self.verb == Some(Kw::Explain) && self.explained.is_none() && kw.begins_query() {
            self.explained = Some(kw);
        }
        let begins = self.begins_explained(kw) || opened;
        match (before, kw) {
            (Kw::For, Kw::Update | Kw::No | Kw::Share | Kw::Key) => self.raise(Class::Write, false),
            (Kw::As, Kw::Insert | Kw::Update | Kw::Delete | Kw::Merge) => {}
            (_, Kw::Insert | Kw::Update | Kw::Delete | Kw::Merge) => self.raise(Class::Write, true),
            (_, Kw::Into) => {
                self.into |= !before.changes_rows();
                self.raise(Class::Write, true);
            }
            (Kw::Into, Kw::Temp) => self.pins = self.pins.union(Pins::TEMP_TABLE),
            (Kw::Local | Kw::Global, Kw::Temp) if self.into => self.pins = self.pins.union(Pins::TEMP_TABLE),
            (Kw::Create | Kw::Replace | Kw::Local | Kw::Global, Kw::Temp) => self.temporary = true,
            (Kw::Commit, Kw::Drop) => self.drops_at_commit = true,
            (Kw::Read, Kw::Only) => self.read_only = true,
            (Kw::Read, Kw::Write) => self.read_write = true,
            (_, Kw::Serializable) => self.serializable = true,
            (Kw::And, Kw::Chain) => self.chain = true,
            (Kw::With, Kw::Hold) => self.hold = true,
            (Kw::To, Kw::Stdout) if self.depth == 0 => self.to_stdout = true,
            (_, Kw::To) if self.depth == 0 => self.to = true,
            (_, Kw::From) if self.depth == 0 => self.from = true,
            _ => {}
        }
        if self.prev == Prev::Semicolon && !kw.begins_query() && !kw.changes_rows() && kw != Kw::End {
            // No body has such a statement: its end was missed, and this one may leave any state behind.
            self.pins = self.pins.union(Pins::SETTING);
        }
        match kw {
            Kw::With if begins => self.with_lists |= Self::bit(self.depth),
            Kw::Select | Kw::Values | Kw::Table | Kw::Insert | Kw::Update | Kw::Delete | Kw::Merge => {
                self.with_lists &= !Self::bit(self.depth);
            }
            Kw::Routine if matches!(before, Kw::Create | Kw::Replace) => self.routine = true,
            Kw::Atomic if before == Kw::Begin && self.routine => self.body_depth = 1,
            Kw::Case if self.body_depth > 0 => self.body_depth = self.body_depth.saturating_add(1),
            Kw::End => self.body_depth = self.body_depth.saturating_sub(1),
            _ => {}
        }
    }

    /// Whether this is the verb of the statement that an EXPLAIN explains; takes EXPLAIN's own options before it.
    fn begins_explained(&mut self, kw: Kw) -> bool {
        if self.verb != Some(Kw::Explain) || self.explained.is_some() {
            return false;
        }
        match kw {
            Kw::Explain | Kw::Verbose => {}
            Kw::Analyze => self.analyzes = true,
            _ if self.depth == 0 => self.explained = Some(kw),
            _ => {}
        }
        self.explained.is_some()
    }

    fn open(&mut self, known: &dyn KnownFunctions) -> Prev<'a> {
        let here = Self::bit(self.depth);
        let before = if let Prev::Word(kw, _) = self.prev { kw } else { Kw::None };
        let name = matches!(self.prev, Prev::Word(..) | Prev::Name);
        if name && !self.is_construct(before) && !self.is_no_call() {
            self.call(known);
        }
        if !name || !matches!(before, Kw::As | Kw::Materialized | Kw::None) {
            self.with_lists &= !here; // the main query of a WITH, in parentheses
        }
        self.depth = self.depth.saturating_add(1);
        let inside = Self::bit(self.depth);
        self.with_lists &= !inside;
        self.expression_follows &= !inside;
        let on = before == Kw::On && matches!(self.name.before, Prev::Word(Kw::Distinct, _));
        if on || before == Kw::Operator {
            self.expression_follows |= inside;
            self.doubt |= inside == 0;
        }
        Prev::Open
    }

    fn close(&mut self) -> Prev<'a> {
        self.doubt |= self.depth == 0;
        let follows = self.expression_follows & Self::bit(self.depth) != 0;
        self.depth = self.depth.saturating_sub(1);
        if follows { Prev::Other } else { Prev::Close }
    }

    /// Whether the keyword before this parenthesis makes it something else than a call.
    const fn is_construct(&self, kw: Kw) -> bool {
        match kw {
            Kw::Over | Kw::Filter | Kw::Within => matches!(self.name.before, Prev::Close),
            Kw::By => matches!(self.name.before, Prev::Word(Kw::Group | Kw::Order | Kw::Partition, _)),
            Kw::Copy => matches!(self.name.before, Prev::Start),
            kw => kw.opens_construct(),
        }
    }

    /// Whether the name before this parenthesis is an alias, a query's name, a type or a table.
    fn is_no_call(&self) -> bool {
        if self.verb == Some(Kw::Copy) && self.to {
            return true; // options
        }
        match self.name.before {
            Prev::Cast | Prev::Name | Prev::Close => true,
            Prev::Word(Kw::As | Kw::Ordinality | Kw::Tablesample, _) => true,
            Prev::Word(Kw::Copy, _) => true,
            Prev::Word(Kw::With | Kw::Recursive, _) | Prev::Comma => {
                self.with_lists & Self::bit(self.depth) != 0 && self.name.qualifier.is_none()
            }
            Prev::Word(Kw::None, text) => Lower::new(text).is_none_or(|word| !is_any_keyword(word.get())),
            _ => false,
        }
    }

    fn call(&mut self, known: &dyn KnownFunctions) {
        let name = self.name;
        let lower = if name.quoted { Lower::exact(unquote(name.text)) } else { Lower::new(name.text) };
        let Some(lower) = lower else { return self.raise(Class::VolatileFunction, true) };
        let function = lower.get();
        let pins = pins_of(function, name.quoted && name.text.first() != Some(&b'"'));
        self.pins = self.pins.union(pins);
        let catalog = match name.qualifier {
            None => true,
            Some(schema) => unquote(schema).eq_ignore_ascii_case(b"pg_catalog"),
        };
        let of_the_user = name.qualifier.is_none() || !catalog;
        let safe = (catalog && is_builtin_safe(function)) || (of_the_user && known.is_safe(function));
        if !safe || (of_the_user && known.is_volatile(function)) {
            self.raise(Class::VolatileFunction, pins.is_empty());
        }
    }
}

/// The state that a function leaves in the session; a name written in escapes could be any of them.
fn pins_of(function: &[u8], escaped: bool) -> Pins {
    if escaped {
        return Pins::SETTING.union(Pins::ADVISORY_LOCK);
    }
    match function {
        // The latter run a text of their own.
        b"set_config"
        | b"setseed"
        | b"query_to_xml"
        | b"query_to_xmlschema"
        | b"query_to_xml_and_xmlschema"
        | b"cursor_to_xml"
        | b"cursor_to_xmlschema"
        | b"ts_stat"
        | b"ts_rewrite"
        | b"pg_replication_origin_session_setup" => Pins::SETTING,
        b"pg_advisory_lock"
        | b"pg_advisory_lock_shared"
        | b"pg_try_advisory_lock"
        | b"pg_try_advisory_lock_shared" => Pins::ADVISORY_LOCK,
        _ => Pins::NONE,
    }
}

/// A quoted name without its quotes; doubled ones and escapes stay as they are, and match nothing.
fn unquote(text: &[u8]) -> &[u8] {
    let Some(open) = text.iter().position(|b| *b == b'"') else { return text };
    let inner = text.get(open.saturating_add(1)..).unwrap_or_default();
    inner.strip_suffix(b"\"").unwrap_or(inner)
}
