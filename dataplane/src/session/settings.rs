//! Settings that a session has made with plain SET statements, followed by what the server answered, so that the next server
//! connection gets the same statements and the session need not keep this one. What cannot be followed exactly is left to a
//! pin: [`Followed::Lost`]. Pure.

use crate::route::lexer::{Lexer, TokenKind};
use crate::server::settings::Texts;
use std::hash::BuildHasher as _;
use std::sync::Arc;

/// Most settings of one session that are followed, and the longest statement, in bytes.
const MOST: usize = 32;
const LONGEST: usize = 1024;

/// What one statement does to the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `SET name = value`, as it was written.
    Set(Vec<u8>, Vec<u8>),
    /// `RESET name`, or `SET name TO DEFAULT`.
    Reset(Vec<u8>),
    /// `RESET ALL`
    ResetAll,
}

/// What became of following.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// The settings are known.
    Known,
    /// They are not known any more.
    Lost,
}

/// How the transaction in which something was set has ended, as far as it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
}

/// The settings of one session.
#[derive(Debug, Default)]
pub struct Settings {
    /// Set and committed; `None`: as the connection was opened.
    in_force: Option<Arc<Texts>>,
    /// Tells these settings from others; 0: none.
    salt: u64,
    /// Set in the transaction that is open.
    open: Vec<Change>,
    /// Sent, not answered.
    awaited: Option<Sent>,
    /// What the server has reported of settings as the answer to a statement that is followed.
    reported: Vec<(Vec<u8>, Vec<u8>)>,
    /// How the transaction in which something was set has ended, as far as it was said since the last ReadyForQuery.
    end: Option<End>,
    /// Since the last ReadyForQuery a statement that is followed was completed.
    completed: bool,
    /// An error came since the last ReadyForQuery.
    failed: bool,
    /// The transaction in which something was set is an explicit block.
    block: bool,
}

/// A statement that changes a setting, and how many statements of its text come before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What it does.
    pub change: Change,
    /// Statements before it.
    pub before: u32,
}

/// Reads a text that is one plain SET or RESET of a setting that can be followed, or what asyncpg sends when a connection goes
/// back to its pool. Not these: what decides how texts are read, roles, and names with a dot, whose placeholders outlive every
/// RESET (`reliability.md` B13).
#[must_use]
pub fn change(sql: &[u8], standard_strings: bool) -> Option<Sent> {
    if sql.len() > LONGEST {
        return None;
    }
    let mut lexer = Lexer::new(sql, standard_strings);
    let mut tokens = Vec::new();
    for token in lexer.by_ref() {
        match token.kind {
            TokenKind::BlockComment | TokenKind::LineComment => {}
            kind => tokens.push((kind, lexed(sql, &token.range))),
        }
    }
    if lexer.unterminated() {
        return None;
    }
    let is_end = |token: &Lexed<'_>| token.0 == TokenKind::Punct(b';');
    let mut statements: Vec<&[Lexed<'_>]> =
        tokens.split(is_end).filter(|tokens| !tokens.is_empty()).collect();
    let last = statements.pop()?;
    if !statements.iter().all(|statement| is_harmless(statement)) {
        return None;
    }
    let before = u32::try_from(statements.len()).ok()?;
    let change = one(last, sql)?;
    // Several statements are a transaction of their own: only what undoes everything is clear.
    (before == 0 || change == Change::ResetAll).then_some(Sent { change, before })
}

/// Whether a statement leaves every setting as it is.
fn is_harmless(tokens: &[Lexed<'_>]) -> bool {
    let is = |wanted: &[&[u8]]| {
        let same = tokens.iter().zip(wanted).all(|((_, text), word)| text.eq_ignore_ascii_case(word));
        tokens.len() == wanted.len() && same
    };
    is(&[b"select", b"pg_advisory_unlock_all", b"(", b")"])
        || is(&[b"close", b"all"])
        || is(&[b"unlisten", b"*"])
}

fn one(tokens: &[Lexed<'_>], sql: &[u8]) -> Option<Change> {
    let (verb, mut rest) = tokens.split_first()?;
    let is_zone = |time: &Lexed<'_>, zone: &Lexed<'_>| word(time, b"time") && word(zone, b"zone");
    if word(verb, b"reset") {
        return match rest {
            [one] if word(one, b"all") => Some(Change::ResetAll),
            [one] => followed(one).map(Change::Reset),
            [time, zone] if is_zone(time, zone) => Some(Change::Reset(b"timezone".to_vec())),
            _ => None,
        };
    }
    if !word(verb, b"set") {
        return None;
    }
    if let [session, tail @ ..] = rest
        && word(session, b"session")
    {
        rest = tail;
    }
    let (name, value, zone) = match rest {
        [time, zone, value @ ..] if is_zone(time, zone) => (b"timezone".to_vec(), value, true),
        [name, (TokenKind::Op, b"="), value @ ..] => (followed(name)?, value, false),
        [name, to, value @ ..] if word(to, b"to") => (followed(name)?, value, false),
        _ => return None,
    };
    match value {
        [] => None,
        [one] if word(one, b"default") || (zone && word(one, b"local")) => Some(Change::Reset(name)),
        _ if name == b"datestyle" && !is_whole_datestyle(value) => None,
        // A table that is made then is a temporary one, whatever its statement says: the next session must not find it.
        _ if name == b"search_path" && value.iter().any(names_temporary) => None,
        value if value.iter().all(is_value) => Some(Change::Set(name, sql.to_vec())),
        _ => None,
    }
}

/// Whether a value names a schema of temporary tables.
fn names_temporary((_, text): &Lexed<'_>) -> bool {
    text.windows(7).any(|part| part.eq_ignore_ascii_case(b"pg_temp"))
}

/// Whether a DateStyle says both style and order: one alone leaves the other as it was.
fn is_whole_datestyle(value: &[Lexed<'_>]) -> bool {
    let text: Vec<u8> = value.iter().flat_map(|(_, text)| text.to_ascii_lowercase()).collect();
    let parts = |byte: &u8| matches!(byte, b',' | b' ' | b'\'' | b'"');
    let mut words = text.split(parts).filter(|word| !word.is_empty());
    let style = |word: &[u8]| matches!(word, b"iso" | b"sql" | b"postgres" | b"german");
    let order = |word: &[u8]| matches!(word, b"mdy" | b"dmy" | b"ymd");
    match (words.next(), words.next(), words.next()) {
        (Some(a), Some(b), None) => style(a) && order(b) || order(a) && style(b),
        _ => false,
    }
}

type Lexed<'a> = (TokenKind, &'a [u8]);

fn lexed<'a>(sql: &'a [u8], range: &std::ops::Range<usize>) -> &'a [u8] {
    sql.get(range.clone()).unwrap_or_default()
}

fn word((kind, text): &Lexed<'_>, wanted: &[u8]) -> bool {
    *kind == TokenKind::Word && text.eq_ignore_ascii_case(wanted)
}

/// The name of a setting that is followed, in lower case.
fn followed((kind, text): &Lexed<'_>) -> Option<Vec<u8>> {
    let name = (*kind == TokenKind::Word).then(|| text.to_ascii_lowercase())?;
    let other = matches!(
        name.as_slice(),
        b"local"
            | b"session"
            | b"role"
            | b"transaction"
            | b"constraints"
            | b"names"
            | b"time"
            | b"xml"
            | b"all"
            | b"schema"
            | b"catalog"
            | b"seed"
            | b"client_encoding"
            | b"standard_conforming_strings"
            | b"session_authorization"
            | b"transaction_isolation"
            | b"transaction_read_only"
            | b"transaction_deferrable"
            | b"backslash_quote"
            // Checked against search_path; ends who waits for nothing; old names of others.
            | b"default_text_search_config"
            | b"idle_session_timeout"
            | b"sort_mem"
            | b"vacuum_mem"
            | b"escape_string_warning"
            | b"session_replication_role"
    );
    (!other).then_some(name)
}

/// Whether a token may stand in a value: nothing that could be a statement of its own or be computed.
fn is_value((kind, text): &Lexed<'_>) -> bool {
    match kind {
        TokenKind::String | TokenKind::Number | TokenKind::Word | TokenKind::QuotedIdent => true,
        TokenKind::Punct(byte) => *byte == b',' || *byte == b'.',
        TokenKind::Op => matches!(*text, b"-" | b"+"),
        _ => false,
    }
}

impl Settings {
    /// Statements that a server connection has to have run for this session.
    #[must_use]
    pub fn in_force(&self) -> Option<&Arc<Texts>> {
        self.in_force.as_ref()
    }

    /// Tells these settings from others; 0: there are none.
    #[must_use]
    pub const fn salt(&self) -> u64 {
        self.salt
    }

    /// Whether replies have to be looked at.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.awaited.is_some() || !self.open.is_empty()
    }

    /// Whether the server connection held is not as it was opened.
    #[must_use]
    pub fn touches(&self) -> bool {
        self.in_force.is_some() || self.follows()
    }

    /// What is left on the server connection held when it is given up in whatever state it is: something that no session
    /// wants, so that it is reset.
    #[must_use]
    pub fn left(&self) -> Option<Arc<Texts>> {
        self.touches().then(|| Arc::new(vec![(Vec::new(), Vec::new())]))
    }

    /// Whether the server may say this of a setting: it is what a statement that is followed has made of it.
    #[must_use]
    pub fn explains(&self, name: &[u8], value: &[u8]) -> bool {
        self.reported.iter().any(|(known, said)| known == name && said == value)
    }

    /// The server reports a setting.
    pub fn report(&mut self, name: &[u8], value: &[u8]) {
        let undone = self.end == Some(End::Rollback) && !self.open.is_empty();
        if self.completed || undone {
            self.reported.retain(|(known, _)| known != name);
            self.reported.push((name.to_vec(), value.to_vec()));
        }
    }

    /// A statement was sent, with nothing before it that is not answered. `block`: inside an explicit transaction block.
    pub fn sent(&mut self, sent: Sent, block: bool) -> Followed {
        self.block |= block;
        if self.awaited.is_some() {
            return Followed::Lost;
        }
        self.awaited = Some(sent);
        Followed::Known
    }

    /// A CommandComplete came with this tag.
    pub fn completed(&mut self, tag: &[u8]) -> Followed {
        if let Some(Sent { change, before }) = self.awaited.take() {
            if let Some(before) = before.checked_sub(1) {
                self.awaited = Some(Sent { change, before });
                return Followed::Known;
            }
            if !matches!(tag, b"SET" | b"RESET") {
                return Followed::Lost;
            }
            self.open.push(change);
            self.completed = true;
            return Followed::Known;
        }
        let end = match tag {
            b"COMMIT" => End::Commit,
            b"ROLLBACK" => End::Rollback,
            b"PREPARE TRANSACTION" => return Followed::Lost,
            // What is reported next may be the work of this one.
            _ if self.completed => return Followed::Lost,
            _ => return Followed::Known,
        };
        // Of two ends the first one counts, and what was set in between has ended with the second.
        if self.end.replace(end).is_some() { Followed::Lost } else { Followed::Known }
    }

    /// An error came.
    pub fn failed(&mut self) {
        self.awaited = None;
        self.failed = true;
        if !self.block {
            // What was set in the same implicit transaction is undone with it.
            self.open.clear();
        }
    }

    /// ReadyForQuery came; `idle`: outside any transaction.
    pub fn ready(&mut self, idle: bool) -> Followed {
        let (end, failed) = (self.end.take(), std::mem::take(&mut self.failed));
        self.completed = false;
        if self.awaited.is_some() {
            // Parsed, not run: it may run later.
            return Followed::Lost;
        }
        if !idle {
            self.block = true;
            // To a savepoint, or with a new transaction behind it.
            return if end.is_some() { Followed::Lost } else { Followed::Known };
        }
        match (end, std::mem::take(&mut self.block)) {
            (Some(End::Rollback), _) => self.open.clear(),
            (Some(End::Commit), _) | (None, false) => return self.commit(),
            // A COMMIT that failed.
            (None, true) if failed => self.open.clear(),
            (None, true) => return Followed::Lost,
        }
        Followed::Known
    }

    fn commit(&mut self) -> Followed {
        let mut texts = self.in_force.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        for change in self.open.drain(..) {
            match change {
                Change::Set(name, text) => {
                    texts.retain(|(known, _)| *known != name);
                    texts.push((name, text));
                }
                Change::Reset(name) => texts.retain(|(known, _)| *known != name),
                Change::ResetAll => texts.clear(),
            }
        }
        let lost = texts.len() > MOST;
        self.salt = if texts.is_empty() { 0 } else { salt(&texts) };
        self.in_force = (!texts.is_empty()).then(|| Arc::new(texts));
        if lost { Followed::Lost } else { Followed::Known }
    }

    /// The server connection is gone, and what was open on it.
    pub fn abandon(&mut self) {
        (self.awaited, self.end) = (None, None);
        (self.block, self.failed, self.completed) = (false, false, false);
        self.open.clear();
    }

    /// All settings are as they were when the connection was opened.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The same for equal settings, in every session of this process.
fn salt(texts: &Texts) -> u64 {
    let salt = foldhash::fast::FixedState::with_seed(0x5e77).hash_one(texts);
    salt.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, text: &str) -> Option<Sent> {
        sent(Change::Set(name.into(), text.into()))
    }

    fn sent(change: Change) -> Option<Sent> {
        Some(Sent { change, before: 0 })
    }

    fn all() -> Sent {
        Sent { change: Change::ResetAll, before: 0 }
    }

    #[test]
    fn only_plain_statements_of_plain_settings_are_followed() {
        for (sql, name) in [
            ("SET statement_timeout = '5s'", "statement_timeout"),
            ("set session Search_Path to \"a\", b ;", "search_path"),
            ("SET extra_float_digits = 3", "extra_float_digits"),
            ("set time zone 'UTC'", "timezone"),
            ("SET TIME ZONE -7", "timezone"),
            ("set datestyle to iso, mdy", "datestyle"),
            ("set application_name='x;y' -- why", "application_name"),
        ] {
            assert_eq!(change(sql.as_bytes(), true), set(name, sql), "{sql}");
        }
        for (sql, wanted) in [
            ("RESET ALL", Change::ResetAll),
            ("reset DateStyle;", Change::Reset(b"datestyle".to_vec())),
            ("set work_mem to default", Change::Reset(b"work_mem".to_vec())),
            ("set time zone local", Change::Reset(b"timezone".to_vec())),
            ("reset time zone", Change::Reset(b"timezone".to_vec())),
            (
                "set synchronous_commit to local",
                Change::Set(b"synchronous_commit".to_vec(), b"set synchronous_commit to local".to_vec()),
            ),
        ] {
            assert_eq!(change(sql.as_bytes(), true), sent(wanted), "{sql}");
        }
        for sql in [
            "set local x = 1",
            "set app.tenant = '1'",
            "set role x",
            "set session authorization x",
            "set session characteristics as transaction read only",
            "set transaction read only",
            "set names 'latin1'",
            "set client_encoding to 'SJIS'",
            "set standard_conforming_strings = off",
            "set constraints all deferred",
            "set x = 1; select 1",
            "set x = (select 1)",
            "set x = 'a",
            "set x",
            "set x =",
            "set x from current",
            "set search_path = pg_temp, public",
            "set search_path to 'public, PG_TEMP'",
            "set \"x\" = 1",
            "set synchronous_commit to local; select 1",
            "set datestyle = 'German'",
            "set datestyle to dmy",
            "set default_text_search_config = 'english'",
            "select 1; reset all",
            "unlisten *; set x = 1",
            "reset role",
            "reset session authorization",
            "select 1",
            "",
        ] {
            assert_eq!(change(sql.as_bytes(), true), None, "{sql}");
        }
    }

    fn texts(settings: &Settings) -> Vec<String> {
        let texts = settings.in_force().map(|texts| texts.to_vec()).unwrap_or_default();
        texts.into_iter().map(|(_, text)| String::from_utf8(text).unwrap()).collect()
    }

    /// Sends a statement that succeeds; `idle`: how its ReadyForQuery is.
    fn run(settings: &mut Settings, sql: &str, tag: &str, idle: bool) -> bool {
        let sent = change(sql.as_bytes(), true).map(|sent| settings.sent(sent, false));
        let done = settings.completed(tag.as_bytes());
        let ready = settings.ready(idle);
        ![sent.unwrap_or(Followed::Known), done, ready].contains(&Followed::Lost)
    }

    #[test]
    fn what_is_committed_counts_and_what_is_rolled_back_does_not() {
        let mut s = Settings::default();
        assert!(run(&mut s, "set a = 1", "SET", true) && run(&mut s, "set b = 2", "SET", true));
        let before = s.salt();
        assert!(run(&mut s, "begin", "BEGIN", false) && run(&mut s, "set a = 3", "SET", false));
        assert_eq!(texts(&s), ["set a = 1", "set b = 2"], "not yet");
        assert!(run(&mut s, "rollback", "ROLLBACK", true));
        assert_eq!((texts(&s), s.salt()), (vec!["set a = 1".to_owned(), "set b = 2".to_owned()], before));
        assert!(run(&mut s, "begin", "BEGIN", false) && run(&mut s, "set a = 3", "SET", false));
        assert!(run(&mut s, "commit", "COMMIT", true));
        assert_eq!(texts(&s), ["set b = 2", "set a = 3"]);
        assert_ne!(s.salt(), before);
        assert!(run(&mut s, "reset b", "RESET", true));
        assert_eq!(texts(&s), ["set a = 3"]);
        assert!(run(&mut s, "reset all", "RESET", true));
        assert_eq!((s.in_force(), s.salt(), s.touches()), (None, 0, false));
    }

    #[test]
    fn what_cannot_be_followed_is_lost() {
        let begun = || {
            let mut s = Settings::default();
            assert!(run(&mut s, "set a = 1", "SET", false));
            s
        };
        assert!(!run(&mut begun(), "rollback to s", "ROLLBACK", false), "to a savepoint");
        assert!(!run(&mut begun(), "commit and chain", "COMMIT", false));
        assert!(!run(&mut begun(), "prepare transaction 'x'", "PREPARE TRANSACTION", true));
        let mut parsed = Settings::default();
        assert_eq!(parsed.sent(all(), false), Followed::Known);
        assert_eq!(parsed.sent(all(), false), Followed::Lost);
        let mut parsed = Settings::default();
        parsed.sent(all(), false);
        assert_eq!(parsed.ready(true), Followed::Lost, "parsed, not run");
        let mut other = Settings::default();
        other.sent(all(), false);
        assert_eq!(other.completed(b"SELECT 1"), Followed::Lost);
    }

    #[test]
    fn what_asyncpg_sends_between_two_owners_is_followed() {
        let text = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
        assert_eq!(change(text.as_bytes(), true), Some(Sent { change: Change::ResetAll, before: 3 }));
        let mut s = Settings::default();
        assert!(run(&mut s, "set a = 1", "SET", true));
        s.sent(change(text.as_bytes(), true).unwrap(), false);
        for tag in ["SELECT 1", "CLOSE CURSOR ALL", "UNLISTEN", "RESET"] {
            assert_eq!(s.completed(tag.as_bytes()), Followed::Known);
        }
        assert_eq!((s.ready(true), s.in_force()), (Followed::Known, None));
    }

    #[test]
    fn of_several_ends_none_is_believed() {
        for tags in [["COMMIT", "ROLLBACK"], ["ROLLBACK", "COMMIT"]] {
            let mut s = Settings::default();
            assert!(run(&mut s, "set a = 1", "SET", false));
            let each = tags.map(|tag| s.completed(tag.as_bytes()));
            assert!(each.contains(&Followed::Lost), "{tags:?}");
        }
    }

    #[test]
    fn what_the_server_reports_is_explained_by_what_was_followed() {
        let mut s = Settings::default();
        s.sent(change(b"set timezone = 'UTC'", true).unwrap(), false);
        s.completed(b"SET");
        s.report(b"TimeZone", b"UTC");
        s.ready(true);
        assert!(s.explains(b"TimeZone", b"UTC") && !s.explains(b"TimeZone", b"GMT"));
        // A function did it.
        s.report(b"TimeZone", b"GMT");
        assert!(!s.explains(b"TimeZone", b"GMT"));
    }

    #[test]
    fn an_error_undoes_what_it_undoes() {
        let mut s = Settings::default();
        s.sent(change(b"set a = 1", true).unwrap(), false);
        s.failed();
        assert_eq!((s.ready(true), s.touches()), (Followed::Known, false));
        // In a block the transaction decides.
        assert!(run(&mut s, "set a = 1", "SET", false));
        s.failed();
        assert_eq!((s.ready(false), s.follows()), (Followed::Known, true));
        assert!(run(&mut s, "rollback", "ROLLBACK", true));
        assert!(!s.touches());
        // A COMMIT that fails.
        assert!(run(&mut s, "set a = 1", "SET", false));
        s.failed();
        assert_eq!((s.ready(true), s.touches()), (Followed::Known, false));
    }
}
