//! Prepared statements across servers: one shared name per statement, whoever prepared it, and which of them a server
//! connection has. A statement is its SQL text and its parameter types; the connection's identity (user, database, startup
//! parameters) is part of the pool, and settings that a session has made are part of the name, so that neither `search_path`
//! nor a role ever mixes. Never talks to a server: `session` sends what is missing.

use helios_pgwire::frame::{put, put_cstr};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Statements that one server connection keeps; the least recently used goes when another is needed.
pub const COPIES: usize = 500;
/// What the names on servers begin with.
pub const PREFIX: &[u8] = b"hp_";
/// Length of a name on a server: prefix and 128 bits in hexadecimal digits.
pub const NAME: usize = 35;
/// What tells statements apart: a keyed hash of SQL text and parameter types.
pub type Id = u128;

/// A statement that some client has prepared.
#[derive(Debug)]
pub struct Statement {
    id: Id,
    /// Its name on servers.
    name: Vec<u8>,
    /// Everything behind the name in its Parse message: SQL text, NUL, parameter types.
    tail: Box<[u8]>,
}

/// What all workers share, as they share the server connections.
pub struct Scope {
    /// Makes names on servers unguessable.
    key: [u8; 16],
    /// Counts the clients' Parse messages.
    parses: AtomicU64,
}

/// Statements of a worker's clients, each kept once.
pub struct Interner {
    scope: Arc<Scope>,
    known: HashMap<Id, Weak<Statement>>,
    sweep_at: usize,
    /// Tells apart the settings under which statements are prepared; 0: none.
    salt: u64,
}

/// Statements that a server connection has.
#[derive(Debug, Default)]
pub struct Prepared {
    copies: HashMap<Id, Copy>,
    clock: u64,
}

#[derive(Debug)]
struct Copy {
    used: u64,
    /// The clients' Parse messages up to the moment in which it was prepared.
    made: u64,
    /// It may be gone or outdated: close it before it is prepared again.
    stale: bool,
}

/// What a server connection has of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// A usable copy.
    Fresh,
    /// A copy that may be gone or outdated.
    Stale,
    /// None.
    Nothing,
}

/// The name of a statement on servers.
#[must_use]
pub fn name_of(id: Id) -> Vec<u8> {
    format!("hp_{id:032x}").into_bytes()
}

impl Statement {
    /// What tells it apart.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its name on servers.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Bytes of its text and types.
    #[must_use]
    pub fn size(&self) -> usize {
        self.tail.len()
    }

    /// Its SQL text.
    #[must_use]
    pub fn sql(&self) -> &[u8] {
        self.tail.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Its SQL text, NUL, and its types.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Appends the Parse message that prepares it under its name on servers.
    pub fn parse(&self, out: &mut Vec<u8>) {
        put(out, b'P', |body| {
            put_cstr(body, &self.name);
            body.extend_from_slice(&self.tail);
        });
    }
}

/// Appends a Close message for a prepared statement.
pub fn close(out: &mut Vec<u8>, name: &[u8]) {
    put(out, b'C', |body| {
        body.push(b'S');
        put_cstr(body, name);
    });
}

impl Scope {
    /// One with this key.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Arc<Self> {
        Arc::new(Self { key, parses: AtomicU64::new(0) })
    }
}

impl Interner {
    /// An empty one.
    #[must_use]
    pub fn new(scope: Arc<Scope>) -> Self {
        Self { scope, known: HashMap::new(), sweep_at: 1024, salt: 0 }
    }

    /// What is interned from now on is prepared under the settings that `salt` stands for.
    pub fn under(&mut self, salt: u64) {
        self.salt = salt;
    }

    /// A salt that no settings have.
    #[must_use]
    pub fn once(&self) -> u64 {
        foldhash::fast::FixedState::with_seed(0x0ce).hash_one(self.parsed()).max(1)
    }

    /// A client parses a statement now: the number of that moment.
    #[must_use]
    pub fn parsed(&self) -> u64 {
        self.scope.parses.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// The number of this moment.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.scope.parses.load(Ordering::Relaxed)
    }

    /// The statement with this Parse tail.
    pub fn intern(&mut self, tail: &[u8]) -> Arc<Statement> {
        let key = (self.scope.key, self.salt.to_be_bytes());
        let hash = Sha256::new().chain_update(key.0).chain_update(key.1).chain_update(tail).finalize();
        let id = hash.iter().take(16).fold(0u128, |id, byte| (id << 8) | u128::from(*byte));
        if let Some(statement) = self.known.get(&id).and_then(Weak::upgrade) {
            return statement;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at = self.known.len().saturating_mul(2).max(1024);
        }
        let statement = Arc::new(Statement { id, name: name_of(id), tail: tail.into() });
        self.known.insert(id, Arc::downgrade(&statement));
        statement
    }
}

impl Prepared {
    /// What the connection has of a statement, which is about to be used by a client that parsed it at `since`. A copy
    /// from before that may be from before a change of the tables, which the client's own Parse came after.
    pub fn look(&mut self, id: Id, since: u64) -> Has {
        self.clock = self.clock.saturating_add(1);
        match self.copies.get_mut(&id) {
            Some(copy) => {
                copy.used = self.clock;
                if copy.stale || copy.made < since { Has::Stale } else { Has::Fresh }
            }
            None => Has::Nothing,
        }
    }

    /// A statement is on its way to the connection, at the moment `made`.
    pub fn add(&mut self, id: Id, made: u64) {
        self.copies.insert(id, Copy { used: self.clock, made, stale: false });
    }

    /// The statement that has to go to make room for another one; forgotten with this call.
    pub fn evict(&mut self) -> Option<Id> {
        if self.copies.len() < COPIES {
            return None;
        }
        let (&id, _) = self.copies.iter().min_by_key(|(_, copy)| copy.used)?;
        self.copies.remove(&id);
        Some(id)
    }

    /// The connection may have lost its copy, or the copy is outdated.
    pub fn doubt(&mut self, id: Id) {
        let used = self.clock;
        self.copies.entry(id).or_insert(Copy { used, made: 0, stale: true }).stale = true;
    }

    /// The connection may have lost any of its copies.
    pub fn doubt_all(&mut self) {
        self.copies.values_mut().for_each(|copy| copy.stale = true);
    }

    /// The connection has none any more.
    pub fn clear(&mut self) {
        self.copies.clear();
    }
}

/// What a `DEALLOCATE` statement names.
#[derive(Debug, PartialEq, Eq)]
pub enum Deallocate {
    /// One statement.
    One(Vec<u8>),
    /// All of them.
    All,
}

/// Reads a text that is one plain `DEALLOCATE [PREPARE] { name | ALL }`; anything more elaborate goes to the server.
#[must_use]
pub fn deallocate(sql: &[u8]) -> Option<Deallocate> {
    let sql = sql.trim_ascii_start();
    // Nearly every statement is something else.
    if !matches!(sql.first(), Some(b'd' | b'D')) {
        return None;
    }
    let sql = sql.trim_ascii_end();
    let sql = sql.strip_suffix(b";").unwrap_or(sql).trim_ascii();
    let rest = keyword(sql, b"deallocate")?;
    let rest = keyword(rest, b"prepare").unwrap_or(rest);
    if let Some(quoted) = rest.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        let plain = !quoted.is_empty() && !quoted.contains(&b'"');
        return plain.then(|| Deallocate::One(quoted.to_vec()));
    }
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
    if rest.is_empty() || !rest.iter().all(word) || rest.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let name = rest.to_ascii_lowercase();
    Some(if name == b"all" { Deallocate::All } else { Deallocate::One(name) })
}

/// What follows a keyword and white space.
fn keyword<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let parted = rest.first().is_some_and(u8::is_ascii_whitespace);
    (head.eq_ignore_ascii_case(word) && parted).then(|| rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_are_one_and_others_are_not() {
        let mut interner = Interner::new(Scope::new([7; 16]));
        let one = interner.intern(b"select $1\0\0\0");
        assert!(Arc::ptr_eq(&one, &interner.intern(b"select $1\0\0\0")));
        for other in [&b"select $2\0\0\0"[..], b"select $1\0\0\x01\0\0\0\x17"] {
            assert_ne!(one.id(), interner.intern(other).id());
        }
        assert_ne!(
            one.id(),
            Interner::new(Scope::new([8; 16])).intern(b"select $1\0\0\0").id(),
            "names cannot be guessed"
        );
        assert_eq!((one.sql(), name_of(one.id()).len()), (&b"select $1"[..], NAME));
    }

    #[test]
    fn statements_that_nobody_has_are_forgotten() {
        let mut interner = Interner::new(Scope::new([0; 16]));
        for i in 0..5000 {
            interner.intern(format!("select {i}\0\0\0").as_bytes());
        }
        assert!(interner.known.len() <= 1024, "{}", interner.known.len());
    }

    #[test]
    fn the_least_recently_used_copy_goes() {
        let mut prepared = Prepared::default();
        for id in 0..u128::try_from(COPIES).unwrap() {
            assert_eq!((prepared.look(id, 0), prepared.evict()), (Has::Nothing, None));
            prepared.add(id, 0);
        }
        assert_eq!(prepared.look(0, 0), Has::Fresh);
        assert_eq!((prepared.look(9999, 0), prepared.evict()), (Has::Nothing, Some(1)));
    }

    #[test]
    fn a_copy_serves_until_it_is_in_doubt_or_older_than_the_clients_parse() {
        let mut prepared = Prepared::default();
        prepared.add(1, 5);
        assert_eq!([4, 5, 6].map(|since| prepared.look(1, since)), [Has::Fresh, Has::Fresh, Has::Stale]);
        prepared.add(1, 6);
        assert_eq!(prepared.look(1, 6), Has::Fresh);
        prepared.doubt(1);
        assert_eq!(prepared.look(1, 0), Has::Stale);
        prepared.add(1, 7);
        prepared.doubt_all();
        assert_eq!(prepared.look(1, 0), Has::Stale);
        prepared.clear();
        assert_eq!(prepared.look(1, 0), Has::Nothing);
    }

    #[test]
    fn deallocate_texts() {
        let one = |name: &str| Some(Deallocate::One(name.as_bytes().to_vec()));
        for (sql, expected) in [
            ("DEALLOCATE a1", one("a1")),
            (" deallocate prepare Abc ; ", one("abc")),
            ("DEALLOCATE \"_pg3_0\"", one("_pg3_0")),
            ("DEALLOCATE \"MiXed\"", one("MiXed")),
            ("deallocate\tALL;", Some(Deallocate::All)),
            ("DEALLOCATE PREPARE ALL", Some(Deallocate::All)),
            ("DEALLOCATE", None),
            ("DEALLOCATE a; select 1", None),
            ("DEALLOCATE a /* x */", None),
            ("DEALLOCATE \"a\"\"b\"", None),
            ("DEALLOCATE 1", None),
            ("deallocated x", None),
            ("select 1", None),
        ] {
            assert_eq!(deallocate(sql.as_bytes()), expected, "{sql}");
        }
    }
}
