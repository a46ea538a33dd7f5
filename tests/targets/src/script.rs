//! What a client may send, made from bytes: whole messages, with COPY data where the server reads it. A client that
//! follows the protocol but waits for nothing. Never makes what the proxy is documented to refuse: an unnamed statement
//! that this run has not parsed, or `DISCARD ALL` with anything beside it.

use crate::model::Server;
use crate::source::Source;
use helios_pgwire::frame::{put, put_cstr};

/// Statements of any kind; `#` becomes a token that is the client's alone.
const TEXTS: [&str; 22] = [
    "select #",
    "select # from many",
    "select # noisy",
    "insert into t values (#)",
    "select writes() #",
    "select 1/0 #",
    "bad syntax",
    "begin",
    "commit",
    "rollback",
    "",
    "copy t from stdin",
    "copy t to stdout",
    "insert into deferred values (#)",
    "begin; select #",
    "select #; select 1/0; select #",
    "commit; select #",
    "copy t from stdin; select #",
    "listen a",
    "set application_name = '#'",
    "create temp table a (i int)",
    "select #; insert into deferred values (#)",
];
/// Texts that several clients prepare, and which the extended protocol takes.
const SHARED: [&str; 7] = [
    "select 1",
    "select 2 from many",
    "insert into t values (1)",
    "copy t from stdin",
    "bad syntax",
    "begin",
    "commit",
];
const NAMES: [&str; 4] = ["a", "b", "c", "hp_none"];
const PORTALS: [&str; 3] = ["", "", "p"];

/// A client's messages, one after the other.
pub struct Script<'s, 'd> {
    source: &'s mut Source<'d>,
    client: usize,
    token: usize,
    /// An unnamed statement was parsed in this run.
    parsed: bool,
    /// A session keeps its server: the unnamed statement lives on.
    session: bool,
    calm: bool,
    /// The judge: what the client would get without a proxy.
    pub direct: Server,
    /// What the judge has said.
    pub wanted: Vec<u8>,
    /// All that the client sends.
    pub sent: Vec<u8>,
}

impl<'s, 'd> Script<'s, 'd> {
    /// For client number `client`, which keeps its server if `session`.
    #[must_use]
    pub fn new(source: &'s mut Source<'d>, client: usize, session: bool) -> Self {
        let calm = source.one_in(2);
        let (direct, wanted, sent) = (Server::new(false), Vec::new(), Vec::new());
        Self { source, client, token: 0, parsed: false, session, calm, direct, wanted, sent }
    }

    /// This many steps, and what it takes to come to rest.
    pub fn write(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.direct.copies() {
                self.copy_data();
            } else {
                self.step();
            }
        }
        if self.direct.copies() {
            self.add(b'c', |_| {});
        }
        // A Sync that a COPY has eaten is sent again, as drivers do.
        if self.direct.waits_for_sync() {
            self.add(b'S', |_| {});
        }
    }

    fn add(&mut self, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
        let at = self.sent.len();
        put(&mut self.sent, tag, body);
        self.direct.feed(&self.sent[at..], &mut self.wanted);
        if matches!(tag, b'S' | b'Q') && !self.session {
            self.parsed = false;
        }
    }

    fn text(&mut self) -> String {
        self.token += 1;
        let token = format!("{}0{}", self.client, self.token);
        // The front of the list is harmless: deep states need many steps that do not end in an error.
        let choice = if self.calm { &TEXTS[..4] } else { &TEXTS[..] };
        self.source.pick(choice).replace('#', &token)
    }

    fn copy_data(&mut self) {
        match self.source.below(6) {
            0 | 1 => self.add(b'd', |body| body.extend_from_slice(b"1\n")),
            2 => self.add(b'S', |_| {}),
            3 => self.add(b'H', |_| {}),
            4 => self.add(b'f', |body| put_cstr(body, b"no")),
            _ => self.add(b'c', |_| {}),
        }
    }

    fn parse(&mut self, name: &str, sql: &str) {
        self.parsed |= name.is_empty();
        self.add(b'P', |body| {
            put_cstr(body, name.as_bytes());
            put_cstr(body, sql.as_bytes());
            body.extend_from_slice(&[0, 0]);
        });
    }

    fn parse_unnamed(&mut self) {
        let whole = self.text();
        let first = whole.split(';').next().unwrap_or_default().to_owned();
        self.parse("", &first);
    }

    fn bind(&mut self, portal: &str, name: &str) {
        self.add(b'B', |body| {
            put_cstr(body, portal.as_bytes());
            put_cstr(body, name.as_bytes());
            body.extend_from_slice(&[0; 6]);
        });
    }

    fn execute(&mut self, portal: &str, limit: u8) {
        self.add(b'E', |body| {
            put_cstr(body, portal.as_bytes());
            body.extend_from_slice(&[0, 0, 0, limit]);
        });
    }

    fn about(&mut self, tag: u8, kind: u8, name: &str) {
        self.add(tag, |body| {
            body.push(kind);
            put_cstr(body, name.as_bytes());
        });
    }

    fn step(&mut self) {
        let name = *self.source.pick(&NAMES);
        let portal = *self.source.pick(&PORTALS);
        match self.source.below(20) {
            0..=2 => {
                let sql = self.text();
                self.add(b'Q', |body| put_cstr(body, sql.as_bytes()));
            }
            3 | 4 => {
                self.parse_unnamed();
                self.run_portal("", "", true);
            }
            5 | 6 => {
                let sql = *self.source.pick(&SHARED);
                // A name that is taken is an error, but which one the server finds first depends on the text.
                let sql = self.direct.text_of(name).unwrap_or(sql).to_owned();
                self.parse(name, &sql);
            }
            7 | 8 => self.run_portal(portal, name, false),
            9 => {
                self.run_portal(portal, name, true);
            }
            // In a failed transaction a server that lacks the statement cannot be given it: another error, but an error.
            10 if self.direct.is_failed() => self.add(b'S', |_| {}),
            10 => self.about(b'D', b'S', name),
            11 => self.about(b'C', b'S', name),
            12 => {
                let tag = *self.source.pick(b"DC");
                self.about(tag, b'P', portal);
            }
            13 => self.add(b'H', |_| {}),
            14 | 15 => self.add(b'S', |_| {}),
            16 => self.add(b'F', |body| {
                // lo_open, which leaves nothing behind.
                body.extend_from_slice(&952_u32.to_be_bytes());
                body.extend_from_slice(&[0; 6]);
            }),
            17 => {
                let limit = u8::try_from(self.source.below(4)).unwrap();
                self.execute(portal, limit);
            }
            18 if self.parsed && (!self.session || self.direct.text_of("").is_some()) => {
                self.bind(portal, "")
            }
            18 => self.add(b'Q', |body| put_cstr(body, b"discard all")),
            _ => match self.source.below(4) {
                0 => self.add(b'd', |body| body.extend_from_slice(b"1\n")),
                1 => self.add(b'f', |body| put_cstr(body, b"no")),
                2 => self.add(b'c', |_| {}),
                _ => self.parse_unnamed(),
            },
        }
    }

    /// Bind, perhaps Describe, Execute, perhaps Sync.
    fn run_portal(&mut self, portal: &str, name: &str, sync: bool) {
        self.bind(portal, name);
        if self.source.one_in(3) {
            self.about(b'D', b'P', portal);
        }
        let limit = if self.source.one_in(4) { 2 } else { 0 };
        self.execute(portal, limit);
        if sync && !self.direct.copies() {
            self.add(b'S', |_| {});
        }
    }
}
