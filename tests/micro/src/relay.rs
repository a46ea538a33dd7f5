//! Whole statements through the session core: what the client sends, what the server answers, and the way back to rest.
//! The pool and the sockets are left out.

use crate::Work;
use helios_pgwire::backend::{TxStatus, ready_for_query};
use helios_proto::model::PoolMode;
use heliosdb_proxy::route::{NoFunctions, VerdictCache};
use heliosdb_proxy::session::core::{ClientStep, Core, ServerOutcome};
use heliosdb_proxy::session::run::Judge;
use heliosdb_proxy::statements::{Interner, Prepared, Scope};
use std::hint::black_box;

const SQL: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;";

/// Appends a message.
fn put(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend_from_slice(body);
}

/// One field of a RowDescription: `abalance`, int4 as text.
fn description() -> Vec<u8> {
    [&b"\0\x01abalance\0"[..], &[0; 6], &[0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, 0]].concat()
}

fn row(size: usize) -> Vec<u8> {
    [&b"\0\x01"[..], &u32::try_from(size).unwrap().to_be_bytes(), &vec![b'7'; size]].concat()
}

/// The answer to a simple query: so many rows of so many bytes.
pub fn answer(rows: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'T', &description());
    for _ in 0..rows {
        put(&mut out, b'D', &row(size));
    }
    put(&mut out, b'C', b"SELECT 1\0");
    ready_for_query(&mut out, TxStatus::Idle);
    out
}

/// A session and what its worker lends it.
struct Session {
    core: Core,
    cache: VerdictCache,
    statements: Interner,
    edit: Vec<u8>,
    out: Vec<u8>,
    prepared: Option<Prepared>,
}

impl Session {
    fn new() -> Self {
        Self {
            core: Core::new(PoolMode::Transaction),
            cache: VerdictCache::new(),
            statements: Interner::new(Scope::new([5; 16])),
            edit: Vec::new(),
            out: Vec::new(),
            prepared: Some(Prepared::default()),
        }
    }

    /// Sends these messages, hears this answer, gives the server back.
    fn exchange(&mut self, mut sent: &[u8], mut said: &[u8]) {
        while !sent.is_empty() {
            let mut judge = Judge {
                cache: &mut self.cache,
                standard_strings: true,
                known: &NoFunctions,
                readable: true,
                statements: &mut self.statements,
                watching: &mut (),
                edit: &mut self.edit,
            };
            match self.core.client(black_box(sent), &mut judge, &mut self.out) {
                ClientStep::Acquire => self.core.bind(false, self.prepared.take().unwrap()),
                ClientStep::Forward(n) | ClientStep::Rewritten(n) | ClientStep::Consume(n) => {
                    sent = &sent[n..]
                }
                other @ (ClientStep::Wait | ClientStep::Stall | ClientStep::Close(_)) => panic!("{other:?}"),
            }
        }
        while !said.is_empty() {
            let step = self.core.server(black_box(said), &[]);
            assert!(
                matches!(step.outcome, ServerOutcome::More | ServerOutcome::Settled),
                "{:?}",
                step.outcome
            );
            said = &said[step.forward..];
        }
        assert!(self.core.may_release());
        self.prepared = Some(self.core.released());
        self.out.clear();
    }
}

fn work(sent: Vec<u8>, said: Vec<u8>) -> Work {
    let mut session = Session::new();
    Box::new(move || session.exchange(&sent, &said))
}

/// `pgbench -S -M simple`.
pub fn simple() -> Work {
    let mut sent = Vec::new();
    put(&mut sent, b'Q', &[SQL, b"\0"].concat());
    work(sent, answer(1, 5))
}

/// 10,000 rows of 100 bytes.
pub fn rows() -> Work {
    let mut sent = Vec::new();
    put(&mut sent, b'Q', &[SQL, b"\0"].concat());
    work(sent, answer(10_000, 100))
}

/// The messages of one extended statement, and their answers, without Sync.
fn statement(sent: &mut Vec<u8>, said: &mut Vec<u8>, parse: bool, name: &[u8]) {
    if parse {
        put(sent, b'P', &[name, b"\0", SQL, b"\0\0\0"].concat());
        put(said, b'1', b"");
    }
    put(sent, b'B', &[&b"\0"[..], name, b"\0\0\0\0\0\0\0"].concat());
    put(sent, b'D', b"P\0");
    put(sent, b'E', b"\0\0\0\0\0");
    put(said, b'2', b"");
    put(said, b'T', &description());
    put(said, b'D', &row(5));
    put(said, b'C', b"SELECT 1\0");
}

fn sync(sent: &mut Vec<u8>, said: &mut Vec<u8>) {
    put(sent, b'S', b"");
    ready_for_query(said, TxStatus::Idle);
}

/// `pgbench -S -M extended`.
pub fn extended() -> Work {
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    statement(&mut sent, &mut said, true, b"");
    sync(&mut sent, &mut said);
    work(sent, said)
}

/// Ten statements before one Sync.
pub fn pipeline() -> Work {
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        statement(&mut sent, &mut said, true, b"");
    }
    sync(&mut sent, &mut said);
    work(sent, said)
}

/// `pgbench -S -M prepared`, once the statement is there.
pub fn prepared() -> Work {
    let mut session = Session::new();
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    put(&mut sent, b'P', &[b"P0\0", SQL, b"\0\0\0"].concat());
    put(&mut said, b'1', b"");
    sync(&mut sent, &mut said);
    session.exchange(&sent, &said);
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    statement(&mut sent, &mut said, false, b"P0");
    sync(&mut sent, &mut said);
    Box::new(move || session.exchange(&sent, &said))
}
