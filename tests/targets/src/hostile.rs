//! The session core between two strangers: any bytes from the client and any from the server, in any order. It never
//! panics, never consumes or forwards what is not there, ends, and never calls a connection clean while the ledger says
//! that something is owed.

use crate::source::Source;
use helios_pgwire::PgError;
use helios_pgwire::frame::put;
use helios_proto::model::PoolMode;
use heliosdb_proxy::route::{NoFunctions, VerdictCache};
use heliosdb_proxy::session::core::{ClientStep, Core, ServerOutcome};
use heliosdb_proxy::session::run::Judge;
use heliosdb_proxy::statements::{Interner, Prepared, Scope};

/// Steps of the core on the same bytes at most.
const MOST: usize = 10_000;

struct Play {
    core: Core,
    cache: VerdictCache,
    statements: Interner,
    edit: Vec<u8>,
    client: Vec<u8>,
    server: Vec<u8>,
    over: bool,
}

impl Play {
    fn client(&mut self, standby: bool) {
        let mut out = Vec::new();
        for _ in 0..MOST {
            let mut judge = Judge {
                cache: &mut self.cache,
                standard_strings: true,
                known: &NoFunctions,
                readable: true,
                statements: &mut self.statements,
                watching: &mut (),
                edit: &mut self.edit,
            };
            let before = out.len();
            match self.core.client(&self.client, &mut judge, &mut out) {
                ClientStep::Wait | ClientStep::Stall => return,
                ClientStep::Close(_) => {
                    self.over = true;
                    return;
                }
                ClientStep::Acquire => self.core.bind(standby, Prepared::default()),
                ClientStep::Consume(0) if out.len() == before => return,
                ClientStep::Consume(n) | ClientStep::Forward(n) | ClientStep::Rewritten(n) => {
                    assert!(n <= self.client.len(), "{n} of {}", self.client.len());
                    self.client.drain(..n);
                }
            }
        }
        panic!("the core does not end with {:?}", self.client);
    }

    fn server(&mut self) {
        for _ in 0..MOST {
            let step = self.core.server(&self.server, &[]);
            assert!(step.forward <= self.server.len());
            match step.outcome {
                ServerOutcome::Cut(cut) => {
                    let end = cut.at.saturating_add(cut.len);
                    assert!(end <= self.server.len() || cut.at <= self.server.len());
                    let end = end.min(self.server.len());
                    self.server.splice(cut.at..end, cut.insert);
                }
                ServerOutcome::Refused | ServerOutcome::Fatal => {
                    self.server.clear();
                    let mut out = Vec::new();
                    if self.core.replayable() {
                        self.core.abandon();
                        self.core.replay();
                    } else if !self.core.lost(
                        &PgError::error("40003", "lost"),
                        !self.client.is_empty(),
                        &mut out,
                    ) {
                        self.over = true;
                    }
                    return;
                }
                ServerOutcome::More | ServerOutcome::Settled => {
                    self.server.drain(..step.forward);
                    let settled = self.core.ledger().settled();
                    assert!(step.outcome != ServerOutcome::Settled || settled, "settled, and owed");
                    if self.core.may_release() {
                        assert!(settled && !self.core.half_sent() && self.core.at_rest());
                        if self.server.is_empty() {
                            drop(self.core.released());
                        }
                    }
                    return;
                }
            }
        }
        panic!("the core does not end with {:?}", self.server);
    }
}

/// Bytes of a peer: whole messages with any body, or anything.
fn bytes(source: &mut Source<'_>, tags: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if source.one_in(5) {
        out.extend_from_slice(source.bytes(12));
        return out;
    }
    let (tag, status) = (*source.pick(tags), *source.pick(b"IITE"));
    let body = source.bytes(30);
    put(&mut out, tag, |to| {
        to.extend_from_slice(if tag == b'Z' { std::slice::from_ref(&status) } else { body })
    });
    if source.one_in(8) {
        out.truncate(source.below(out.len()));
    }
    out
}

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mode = *source.pick(&[PoolMode::Transaction, PoolMode::Statement, PoolMode::Session]);
    let mut play = Play {
        core: Core::new(mode),
        cache: VerdictCache::new(),
        statements: Interner::new(Scope::new([0; 16])),
        edit: Vec::new(),
        client: Vec::new(),
        server: Vec::new(),
        over: false,
    };
    while !source.is_empty() && !play.over {
        if source.one_in(2) {
            let more = bytes(&mut source, b"QPBDESHCFXdcfp");
            play.client.extend(more);
        } else {
            let more = bytes(&mut source, b"123CDTZEAGHNSWnstIVKZ");
            play.server.extend(more);
            play.server();
        }
        if !play.over {
            play.client(source.one_in(3));
        }
    }
}
