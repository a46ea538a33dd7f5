//! What a text names: its words that could be tables or functions, and what else decides whether its answer may be kept and
//! what it may change. Linear, by PostgreSQL's lexical rules; never looks anything up, and in doubt says so.

use crate::route::lexer::{Lexer, TokenKind};

/// PostgreSQL cuts longer names.
const LONGEST_NAME: usize = 63;
/// A text with more names is in doubt.
const MOST_NAMES: usize = 256;

/// First words of statements that change at most the rows of tables that they name, or that only steer.
const PLAIN: &[&[u8]] = &[
    b"select",
    b"with",
    b"values",
    b"table",
    b"insert",
    b"update",
    b"delete",
    b"merge",
    b"copy",
    b"fetch",
    b"move",
    b"declare",
    b"close",
    b"begin",
    b"start",
    b"commit",
    b"end",
    b"rollback",
    b"abort",
    b"savepoint",
    b"release",
    b"set",
    b"reset",
    b"show",
    b"listen",
    b"unlisten",
    b"notify",
    b"explain",
    b"deallocate",
    b"discard",
    b"lock",
    b"analyze",
    b"vacuum",
];

/// First words of statements whose rows may be kept.
const QUERIES: [&[u8]; 4] = [b"select", b"with", b"values", b"table"];

/// Words whose value is another one each time, or another one for each user, and columns that PostgreSQL changes by itself.
const FICKLE: &[&[u8]] = &[
    b"current_timestamp",
    b"current_date",
    b"current_time",
    b"localtime",
    b"localtimestamp",
    b"current_user",
    b"session_user",
    b"current_role",
    b"user",
    b"system_user",
    b"current_catalog",
    b"current_schema",
    b"tablesample",
    b"ctid",
    b"xmin",
    b"xmax",
    b"cmin",
    b"cmax",
    b"tableoid",
    b"information_schema",
];

/// Inside a literal or a parameter, each stands for a time when it becomes one.
const TIMES: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];

/// What a text names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Words and quoted names that could be tables, as PostgreSQL stores them; each once.
    pub names: Vec<Box<[u8]>>,
    /// Of these, those before a parenthesis: functions, tables with a list of columns, or keywords.
    pub calls: Vec<Box<[u8]>>,
    /// Every statement begins with a word of [`PLAIN`], and none is about a prepared transaction.
    pub plain: bool,
    /// Every statement begins with SELECT, WITH, VALUES or TABLE.
    pub query: bool,
    /// Something in it has another value each time.
    pub fickle: bool,
    /// Its names cannot be told.
    pub doubt: bool,
}

/// Reads a text under the session's `standard_conforming_strings`.
#[must_use]
pub fn read(sql: &[u8], standard_strings: bool) -> Reading {
    let mut reading = Reading { plain: true, query: true, ..Reading::default() };
    let mut lexer = Lexer::new(sql, standard_strings);
    let (mut last, mut first) = (None, true);
    while let Some(token) = lexer.next() {
        let bytes = lexer.bytes(&token);
        match token.kind {
            TokenKind::BlockComment | TokenKind::LineComment => continue,
            TokenKind::Punct(b'(') => {
                if let Some(name) = last.take() {
                    reading.call(name);
                }
                continue;
            }
            _ => last = None,
        }
        match token.kind {
            TokenKind::Word => {
                let name: Box<[u8]> = bytes.to_ascii_lowercase().into();
                reading.plain &= !first || PLAIN.contains(&&*name);
                reading.query &= !first || QUERIES.contains(&&*name);
                // Of a prepared transaction; a COPY from a program; what was prepared by SQL.
                reading.plain &= ![&b"prepared"[..], b"program", b"execute"].contains(&&*name);
                reading.doubt |= !bytes.is_ascii();
                last = reading.name(name);
            }
            TokenKind::QuotedIdent => {
                let name = bytes.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
                // Doubled quotes and escapes are rare.
                let simple = name.filter(|name| name.is_ascii() && !name.contains(&b'"'));
                reading.doubt |= simple.is_none();
                last = simple.and_then(|name| reading.name(name.into()));
            }
            // In escapes a word may hide.
            TokenKind::String => reading.fickle |= names_a_time(bytes) || bytes.contains(&b'\\'),
            TokenKind::Other => reading.doubt = true,
            _ => {}
        }
        first = token.kind == TokenKind::Punct(b';');
    }
    reading.doubt |= lexer.unterminated();
    // SELECT INTO makes a table.
    let has = |word: &[u8]| reading.names.iter().any(|name| **name == *word);
    let makes = has(b"into") && !has(b"insert") && !has(b"merge");
    reading.plain &= !makes;
    reading
}

impl Reading {
    /// Notes a name; what it is if a parenthesis follows.
    fn name(&mut self, name: Box<[u8]>) -> Option<Box<[u8]>> {
        self.doubt |= name.len() > LONGEST_NAME || self.names.len() >= MOST_NAMES;
        self.fickle |= FICKLE.contains(&&*name) || name.starts_with(b"pg_");
        if !self.doubt && !self.names.contains(&name) {
            self.names.push(name.clone());
        }
        Some(name)
    }

    fn call(&mut self, name: Box<[u8]>) {
        // As with names: a text in doubt is not looked at any closer, however long it is.
        if !self.doubt && !self.calls.contains(&name) {
            self.calls.push(name);
        }
    }
}

/// Whether bytes hold a word that PostgreSQL reads as a time of now.
#[must_use]
pub fn names_a_time(bytes: &[u8]) -> bool {
    let here = |at: &[u8], word: &[u8]| at.get(..word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word));
    (0..bytes.len()).any(|at| {
        let rest = bytes.get(at..).unwrap_or_default();
        matches!(rest.first().map(|b| b | 0x20), Some(b'n' | b't' | b'y'))
            && TIMES.iter().any(|word| here(rest, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[Box<[u8]>]) -> Vec<&str> {
        list.iter().map(|name| std::str::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn names_and_calls() {
        let reading = read(
            b"SELECT a.Id, count(*), lower(\"Name\") /* t9 */ FROM public.Accounts a -- t8\nWHERE x = 't7'",
            true,
        );
        assert_eq!(
            words(&reading.names),
            ["select", "a", "id", "count", "lower", "Name", "from", "public", "accounts", "where", "x"]
        );
        assert_eq!(words(&reading.calls), ["count", "lower"]);
        assert!(!read(b"copy t from program 'x'", true).plain);
        assert!(reading.plain && !reading.fickle && !reading.doubt);
        let reading =
            read(b"insert into t (a, b) values (f(1), coalesce(2, 3)) on conflict (a) do nothing", true);
        assert_eq!(words(&reading.calls), ["t", "values", "f", "coalesce", "conflict"]);
    }

    #[test]
    fn what_is_plain() {
        for (sql, plain) in [
            ("select 1", true),
            ("(select 1)", true),
            ("; ;delete from t", true),
            ("begin; update t set a = 1; commit", true),
            ("update t set a = 1; drop table t", false),
            ("grant select on t to a", false),
            ("truncate t", false),
            ("commit prepared 'x'", false),
            ("explain analyze execute s", false),
            ("select * into n from t", false),
            ("insert into t select 1", true),
            ("discard all", true),
            ("execute s", false),
            ("do $$ begin end $$", false),
            ("call p()", false),
            ("refresh materialized view v", false),
        ] {
            assert_eq!(read(sql.as_bytes(), true).plain, plain, "{sql}");
        }
    }

    #[test]
    fn what_is_fickle_or_in_doubt() {
        for (sql, fickle, doubt) in [
            ("select now() from t", false, false),
            ("select current_date from t", true, false),
            ("select 'NOW'::timestamptz from t", true, false),
            ("select E'n\\x6fw'::timestamptz from t", true, false),
            ("select $$ tomorrow $$::date from t", true, false),
            ("select * from t tablesample system (1)", true, false),
            ("select ctid from t", true, false),
            ("select pg_sleep(1) from t", true, false),
            ("select * from \"we\"\"ird\"", false, true),
            ("select * from U&\"t\\0041\"", false, true),
            ("select * from täble", false, true),
            ("select 'open", false, true),
            ("select nothing from t", false, false),
        ] {
            let reading = read(sql.as_bytes(), true);
            assert_eq!((reading.fickle, reading.doubt), (fickle, doubt), "{sql}");
        }
        let many: String = (0..5_000).map(|i| format!("f{i}(1), ")).collect();
        let reading = read(format!("select {many} 1").as_bytes(), true);
        assert!(reading.doubt && reading.names.len() <= MOST_NAMES && reading.calls.len() <= MOST_NAMES);
        let long = format!("select * from {}", "x".repeat(64));
        assert!(read(long.as_bytes(), true).doubt);
        assert!(names_a_time(b"\0\0\x03nOw\0") && !names_a_time(b"no w"));
    }
}
