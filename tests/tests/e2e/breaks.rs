//! Server connections break at any byte, in either direction, under clients that send pipelines of many kinds: every answer
//! is that of its own statement, what was acknowledged is there once, what was said not to have happened is not there, and
//! what is in doubt happened once at most. The breaks come from a relay in front of PostgreSQL. Never measures a time.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use helios_tests::cluster::password;
use helios_tests::dice::Dice;
use helios_tests::raw::{Message, Next, PATIENCE, Raw, call, extended, message, parse, query, startup, sync};
use helios_tests::relay::{self, Between};
use helios_tests::{Cluster, Config, Proxy, Role, loudly};

const CLIENTS: u64 = 8;
const ROUNDS: u64 = 150;
/// A connection lasts for so many bytes of answers, or of statements, at most.
const ANSWERS: usize = 6000;
const STATEMENTS: usize = 3000;

/// Ends a connection somewhere, unless it is a probe's.
fn break_off(Between { mut near, mut far, probe, .. }: Between, mut dice: Dice) {
    let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    // What a login takes differs by a little: some break in it, many right behind it.
    let forever = End::After(usize::MAX);
    let (up, down) = match dice.roll(10) {
        _ if probe => (forever, forever),
        0 => (forever, End::After(300 + dice.roll(200))),
        1 | 2 => (forever, End::Login),
        3..7 => (forever, End::After(420 + dice.roll(ANSWERS))),
        _ => (End::After(130 + dice.roll(STATEMENTS)), forever),
    };
    let up = std::thread::spawn(move || {
        pass(&mut near, &mut far, up);
        // Of a socket that is closed with bytes unread the other side hears by a reset, else by an end.
        let _ = far.shutdown(Shutdown::Both);
    });
    pass(&mut answers, &mut back, down);
    let _ = answers.shutdown(Shutdown::Both);
    let _ = back.shutdown(Shutdown::Both);
    let _ = up.join();
}

/// When a direction ends.
#[derive(Clone, Copy)]
enum End {
    /// Behind so many bytes.
    After(usize),
    /// Behind the first ReadyForQuery.
    Login,
}

/// Passes bytes on up to the end.
fn pass(from: &mut TcpStream, to: &mut TcpStream, end: End) {
    let mut buf = [0; 4096];
    let mut left = if let End::After(bytes) = end { bytes } else { usize::MAX };
    while left > 0 {
        let most = buf.len().min(left);
        let Ok(n @ 1..) = from.read(&mut buf[..most]) else { return };
        let over = matches!(end, End::Login) && buf[..n].ends_with(b"Z\0\0\0\x05I");
        if to.write_all(&buf[..n]).is_err() || over {
            return;
        }
        left -= n;
    }
}

/// What a client knows of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    There,
    NotThere,
    Doubt,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Begin,
    Insert(i64),
    Copy(i64),
    Read(i64),
    Commit,
    Rollback,
}

#[derive(Default)]
struct Shared {
    next: AtomicI64,
    fates: Mutex<HashMap<i64, Fate>>,
    reads: AtomicU64,
    closed: AtomicU64,
}

struct Client<'a> {
    proxy: &'a Proxy,
    raw: Raw,
    dice: Dice,
    shared: &'a Shared,
    /// It may open transaction blocks.
    blocks: bool,
    /// `ins` was parsed in this session.
    prepared: bool,
    /// Rows of the transaction that is open.
    open: Vec<i64>,
}

impl<'a> Client<'a> {
    fn new(proxy: &'a Proxy, dice: Dice, blocks: bool, shared: &'a Shared) -> Self {
        Self { proxy, raw: Self::login(proxy), dice, shared, blocks, prepared: false, open: Vec::new() }
    }

    /// Logs in; a server whose connection breaks cannot judge the login, which is to be tried again then.
    fn login(proxy: &Proxy) -> Raw {
        for _ in 0..100 {
            let mut raw = Raw::connect(proxy.port());
            raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
            match raw.finish_login("app", &password("app")) {
                Ok(_) => return raw,
                Err(error) => assert_eq!(error.sqlstate(), "57P03", "{:?}", error.error()),
            }
        }
        panic!("a hundred logins failed");
    }

    fn id(&self) -> i64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    fn insert(&mut self) -> (Part, Vec<u8>) {
        let id = self.id();
        let sql = format!("insert into broken values ({id}) returning id");
        let bytes = match self.dice.roll(3) {
            0 => query(&sql),
            1 => extended(&sql, &[]),
            _ => {
                let text = "insert into broken values ($1::text::bigint) returning id";
                let head = if self.prepared { Vec::new() } else { parse("ins", text) };
                self.prepared = true;
                [head, call("ins", &[&id.to_string()]), sync()].concat()
            }
        };
        (Part::Insert(id), bytes)
    }

    /// Data behind their COPY at once: if that fails, they are thrown away.
    fn copy(&self) -> (Part, Vec<u8>) {
        let id = self.id();
        let data = message(b'd', format!("{id}\n").as_bytes());
        (Part::Copy(id), [query("copy broken from stdin"), data, message(b'c', b"")].concat())
    }

    fn read(&mut self) -> (Part, Vec<u8>) {
        let id = self.id();
        let bytes = match self.dice.roll(3) {
            0 => query(&format!("select {id}")),
            1 => extended("select $1::text", &[&id.to_string()]),
            _ => query(&format!("select {id}, repeat('x', 3000)")),
        };
        (Part::Read(id), bytes)
    }

    fn transaction(&mut self) -> Vec<(Part, Vec<u8>)> {
        let mut parts = vec![(Part::Begin, query("begin"))];
        for _ in 0..=self.dice.roll(2) {
            let inside = match self.dice.roll(6) {
                0 | 1 => self.read(),
                2 => self.copy(),
                _ => self.insert(),
            };
            parts.push(inside);
        }
        let end = match self.dice.roll(4) {
            0 => (Part::Rollback, query("rollback")),
            1 => (Part::Commit, extended("commit", &[])),
            _ => (Part::Commit, query("commit")),
        };
        parts.push(end);
        parts
    }

    fn round(&mut self) {
        let mut parts = Vec::new();
        for _ in 0..=self.dice.roll(4) {
            match self.dice.roll(9) {
                0 | 1 if self.blocks => parts.append(&mut self.transaction()),
                0..4 => parts.push(self.read()),
                4 => parts.push(self.copy()),
                _ => parts.push(self.insert()),
            }
        }
        if self.dice.roll(2) == 0 {
            self.send(&parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
            self.take(parts.iter().map(|(part, _)| *part));
        } else {
            for at in 0..parts.len() {
                let (part, bytes) = &parts[at];
                self.send(bytes);
                if !self.take([*part].into_iter()) {
                    let unsent = parts[at + 1..].iter().map(|(part, _)| *part);
                    unsent.for_each(|part| self.decide(part, Fate::NotThere));
                    return;
                }
            }
        }
    }

    /// Sends, in pieces now and then.
    fn send(&mut self, bytes: &[u8]) {
        let cut = if self.dice.roll(3) == 0 { self.dice.roll(bytes.len()) } else { 0 };
        self.raw.send(&bytes[..cut]);
        self.raw.send(&bytes[cut..]);
    }

    fn decide(&self, part: Part, fate: Fate) {
        if let Part::Insert(id) | Part::Copy(id) = part {
            self.settle(id, fate);
        }
    }

    fn settle(&self, id: i64, fate: Fate) {
        assert_eq!(self.shared.fates.lock().unwrap().insert(id, fate), None, "{id} is decided once");
    }

    fn settle_open(&mut self, fate: Fate) {
        for id in std::mem::take(&mut self.open) {
            self.settle(id, fate);
        }
    }

    /// Takes the answers to these; `false`: the session has ended, and there is another one.
    fn take(&mut self, mut parts: impl Iterator<Item = Part>) -> bool {
        while let Some(part) = parts.next() {
            let mut answer = Vec::new();
            loop {
                match self.raw.next(PATIENCE) {
                    Next::Message(message) => {
                        let ready = message.tag == b'Z';
                        answer.push(message);
                        if ready {
                            break;
                        }
                    }
                    Next::Closed => {
                        self.decide(part, Fate::Doubt);
                        parts.for_each(|part| self.decide(part, Fate::Doubt));
                        self.settle_open(Fate::Doubt);
                        self.shared.closed.fetch_add(1, Ordering::Relaxed);
                        self.raw = Self::login(self.proxy);
                        self.prepared = false;
                        return false;
                    }
                    Next::Silence => panic!("no answer to {part:?}, only {answer:?}"),
                }
            }
            self.judge(part, &answer);
        }
        true
    }

    /// One whole answer.
    fn judge(&mut self, part: Part, answer: &[Message]) {
        let has = |tag: u8| answer.iter().find(|message| message.tag == tag);
        let status = char::from(answer.last().unwrap().body[0]);
        if let Some(error) = has(b'E') {
            return self.judge_error(part, &error.sqlstate(), status);
        }
        let words = has(b'C').map(|m| String::from_utf8_lossy(&m.body).trim_end_matches('\0').to_owned());
        let words = words.unwrap_or_else(|| panic!("{part:?}: {answer:?}"));
        let row = has(b'D').map(|message| message.fields()[0].clone());
        match part {
            Part::Insert(id) => {
                assert_eq!((row, words.as_str()), (Some(id.to_string()), "INSERT 0 1"), "{answer:?}");
                self.executed(id, status);
            }
            Part::Copy(id) => {
                assert_eq!(words, "COPY 1", "{answer:?}");
                self.executed(id, status);
            }
            Part::Read(id) => {
                assert_eq!((row, words.as_str()), (Some(id.to_string()), "SELECT 1"), "{answer:?}");
                self.shared.reads.fetch_add(1, Ordering::Relaxed);
            }
            Part::Begin => assert_eq!((words.as_str(), status), ("BEGIN", 'T'), "{answer:?}"),
            Part::Commit | Part::Rollback => {
                assert!(matches!(words.as_str(), "COMMIT" | "ROLLBACK") && status == 'I', "{answer:?}");
                self.settle_open(if words == "COMMIT" { Fate::There } else { Fate::NotThere });
            }
        }
    }

    fn executed(&mut self, id: i64, status: char) {
        if status == 'I' {
            self.settle(id, Fate::There);
        } else {
            self.open.push(id);
        }
    }

    fn judge_error(&mut self, part: Part, code: &str, status: char) {
        assert_ne!(status, 'T', "{part:?} failed with {code}");
        let fate = match code {
            "40001" | "25P02" | "08006" | "57P03" | "53300" | "26000" => Fate::NotThere,
            "40003" | "08007" => Fate::Doubt,
            _ => panic!("{part:?} failed with {code}: no rule has this"),
        };
        // It may be that no server has heard of it.
        self.prepared &= code != "26000";
        self.decide(part, fate);
        if status == 'I' {
            self.settle_open(fate);
        }
    }
}

/// Has clients work through relays in front of every node.
fn run(cluster: &Cluster, config: &Config, seed: u64) {
    let mut text = config.text();
    for (number, node) in (1..).zip(&cluster.nodes) {
        let seed = (seed * 10 + number) * 1_000_003;
        let port = relay::start(node.port, move |between| {
            let dice = Dice(seed + between.number);
            break_off(between, dice);
        });
        text = text.replace(&format!("port = {}", node.port), &format!("port = {port}"));
    }
    let proxy = Proxy::start(&text).ready();
    let shared = Shared::default();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (proxy, shared) = (&proxy, &shared);
            scope.spawn(move || {
                let blocks = config.mode != "statement";
                let mut client = Client::new(proxy, Dice(seed * 100 + number), blocks, shared);
                (0..ROUNDS).for_each(|_| client.round());
            });
        }
    });
    check(cluster, &shared);
}

/// Compares what clients know with what is there.
fn check(cluster: &Cluster, shared: &Shared) {
    let rows =
        cluster.primary().superuser().query("select id, count(*) from broken group by id", &[]).unwrap();
    let there: HashMap<i64, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let fates = shared.fates.lock().unwrap();
    let count = |of: Fate| fates.values().filter(|fate| **fate == of).count();
    loudly(&format!(
        "rows there {}, not there {}, in doubt {}; reads {}, sessions ended {}",
        count(Fate::There),
        count(Fate::NotThere),
        count(Fate::Doubt),
        shared.reads.load(Ordering::Relaxed),
        shared.closed.load(Ordering::Relaxed)
    ));
    let wrong: Vec<_> = fates
        .iter()
        .map(|(id, fate)| (id, fate, there.get(id).copied().unwrap_or_default()))
        .filter(|(_, fate, count)| match fate {
            Fate::There => *count != 1,
            Fate::NotThere => *count != 0,
            Fate::Doubt => *count > 1,
        })
        .collect();
    assert!(wrong.is_empty(), "row, what its client knows, how often it is there: {wrong:?}");
    let strangers: Vec<_> = there.keys().filter(|id| !fates.contains_key(id)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!([Fate::There, Fate::NotThere, Fate::Doubt].into_iter().all(|fate| count(fate) > 0));
}

#[test]
fn connections_that_break_at_any_byte_lose_and_double_nothing() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    for (seed, mode) in (1..).zip(["transaction", "session", "statement"]) {
        cluster.execute(
            "drop table if exists broken; create table broken (id bigint); grant all on broken to app",
        );
        run(&cluster, &Config { pool: 3, mode, acquire_timeout: 60, ..Config::new(&cluster) }, seed);
    }
}
