//! Clients behind session cores that share a few servers, against the same clients directly in front of a server each:
//! whatever the bytes are cut into and in whichever order they come, every client gets the same answers.
//! On the way: a server goes back only when it is clean, statements of one name have one text, and everything ends.

use crate::model::Server;
use crate::script::Script;
use crate::source::Source;
use helios_pgwire::frame::{Header, take_cstr};
use helios_pgwire::frontend::{max_len, parse_text};
use helios_proto::model::PoolMode;
use heliosdb_proxy::route::{Class, NoFunctions, RouteHint, VerdictCache};
use heliosdb_proxy::session::core::{ClientStep, Core, ServerOutcome};
use heliosdb_proxy::session::run::Judge;
use heliosdb_proxy::statements::{Interner, Prepared, Scope};

const CLIENTS: usize = 2;
const SERVERS: usize = 3;
/// Rounds of one scenario at most.
const MOST: usize = 20_000;

/// A server connection, and what it has said that nobody has read.
struct Backend {
    server: Server,
    said: Vec<u8>,
    prepared: Prepared,
    standby: bool,
}

impl Backend {
    fn new(standby: bool) -> Self {
        Self { server: Server::new(standby), said: Vec::new(), prepared: Prepared::default(), standby }
    }
}

struct Client {
    core: Core,
    /// All that it sends, and how much of it is on its way.
    script: Vec<u8>,
    sent: usize,
    /// Bytes that the session holds of the client, and of the server.
    inbox: Vec<u8>,
    unread: Vec<u8>,
    /// The run as sent, while it may be replayed.
    replay: Vec<u8>,
    got: Vec<u8>,
    server: Option<Backend>,
    /// Look at the inbox (again).
    look: bool,
}

struct World {
    idle: Vec<Backend>,
    cache: VerdictCache,
    statements: Interner,
    edit: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let idle = (0..SERVERS).map(|i| Backend::new(i == 0)).collect();
        let statements = Interner::new(Scope::new([5; 16]));
        Self { idle, cache: VerdictCache::new(), statements, edit: Vec::new() }
    }

    /// A server for a run: any for a read, else one that writes; a new one if there is none.
    fn acquire(&mut self, core: &Core, any: usize) -> Backend {
        let verdict = core.run().verdict();
        let read = core.mode() != PoolMode::Session
            && verdict.class == Class::Read
            && verdict.hint.route != Some(RouteHint::Primary);
        let fits = |backend: &Backend| !backend.standby || (read && !core.primary_only());
        let found: Vec<_> = (0..self.idle.len()).filter(|i| fits(&self.idle[*i])).collect();
        match found.get(any.checked_rem(found.len()).unwrap_or(0)) {
            Some(&at) => self.idle.swap_remove(at),
            None => Backend::new(false),
        }
    }
}

impl Client {
    fn new(mode: PoolMode, script: Vec<u8>) -> Self {
        Self {
            core: Core::new(mode),
            script,
            sent: 0,
            inbox: Vec::new(),
            unread: Vec::new(),
            replay: Vec::new(),
            got: Vec::new(),
            server: None,
            look: true,
        }
    }

    /// Looks at the inbox, as the driver of a session does.
    fn look(&mut self, world: &mut World, any: usize) {
        self.look = false;
        for _ in 0..MOST {
            let mut judge = Judge {
                cache: &mut world.cache,
                standard_strings: true,
                known: &NoFunctions,
                readable: true,
                statements: &mut world.statements,
                watching: &mut (),
                edit: &mut world.edit,
            };
            let before = self.got.len();
            match self.core.client(&self.inbox, &mut judge, &mut self.got) {
                ClientStep::Wait | ClientStep::Stall => return,
                ClientStep::Close(ending) => panic!("the session ends with {ending:?}"),
                ClientStep::Consume(n) => {
                    self.inbox.drain(..n);
                    if n == 0 && self.got.len() == before {
                        return;
                    }
                }
                ClientStep::Acquire => {
                    let mut backend = world.acquire(&self.core, any);
                    assert!(backend.server.is_clean() && backend.said.is_empty(), "lent unclean");
                    self.core.bind(backend.standby, std::mem::take(&mut backend.prepared));
                    self.server = Some(backend);
                }
                ClientStep::Forward(n) => {
                    let bytes = self.inbox[..n].to_vec();
                    self.forward(n, &bytes);
                }
                ClientStep::Rewritten(n) => {
                    let bytes = world.edit.clone();
                    self.forward(n, &bytes);
                }
            }
        }
        panic!("the core does not end with {:?}", self.inbox);
    }

    fn forward(&mut self, n: usize, bytes: &[u8]) {
        let theirs: Vec<u8> = self.inbox.drain(..n).collect();
        if self.core.replayable() {
            self.replay = theirs;
        }
        let backend = self.server.as_mut().expect("forwarded to no server");
        backend.server.feed(bytes, &mut backend.said);
    }

    /// Takes up to `n` bytes of what the server has said.
    fn hear(&mut self, world: &mut World, n: usize) {
        let Some(backend) = &mut self.server else { return };
        let n = n.min(backend.said.len());
        self.unread.extend(backend.said.drain(..n));
        for _ in 0..MOST {
            let step = self.core.server(&self.unread, &[]);
            match step.outcome {
                ServerOutcome::Cut(cut) => {
                    let end = cut.at.saturating_add(cut.len).min(self.unread.len());
                    self.unread.splice(cut.at..end, cut.insert);
                }
                ServerOutcome::Refused => return self.refused(world),
                ServerOutcome::Fatal => panic!("fatal: {:?}", self.unread),
                ServerOutcome::More | ServerOutcome::Settled => {
                    self.got.extend(self.unread.drain(..step.forward));
                    return self.after(world);
                }
            }
        }
        panic!("the core does not end with {:?}", self.unread);
    }

    fn after(&mut self, world: &mut World) {
        let ledger = self.core.ledger();
        assert!(!ledger.broken(), "an honest server broke the protocol");
        self.look |= ledger.settled() || ledger.copy_in() || ledger.unsynced() || self.core.waits_for_name();
        if ledger.settled() && self.core.may_release() && self.unread.is_empty() {
            let mut backend = self.server.take().expect("a server to give back");
            assert!(backend.server.is_clean() && backend.said.is_empty(), "given back unclean");
            backend.prepared = self.core.released();
            world.idle.push(backend);
        }
    }

    /// A standby refused a write: once more on a primary, as the driver does.
    fn refused(&mut self, world: &mut World) {
        if !self.core.primary_only() {
            let mut rest = self.replay.as_slice();
            while let Ok(Some(Header { tag, size })) = Header::parse(rest, max_len) {
                let message = &rest[..size];
                let text = match tag {
                    b'Q' => take_cstr(&message[5..]).map(|(text, _)| text),
                    b'P' => parse_text(message).map(|(_, text)| text),
                    b'B' => take_cstr(&message[5..])
                        .and_then(|(_, rest)| take_cstr(rest))
                        .and_then(|(name, _)| self.core.sql_of(name)),
                    _ => None,
                };
                if let Some(text) = text {
                    world.cache.learn_write(text);
                }
                rest = &rest[size..];
            }
        }
        drop(self.core.abandon());
        self.core.replay();
        self.server = None;
        self.unread.clear();
        world.idle.push(Backend::new(true));
        let sent = std::mem::take(&mut self.replay);
        self.inbox.splice(0..0, sent);
        self.look = true;
    }

    fn send(&mut self, n: usize) {
        let end = self.sent.saturating_add(n).min(self.script.len());
        self.inbox.extend_from_slice(&self.script[self.sent..end]);
        self.look |= end > self.sent;
        self.sent = end;
    }

    fn is_quiet(&self) -> bool {
        let silent = self.server.as_ref().is_none_or(|backend| backend.said.is_empty());
        self.sent == self.script.len() && silent && !self.look
    }
}

/// Messages in a form that a human can read.
#[must_use]
pub fn shown(mut bytes: &[u8]) -> String {
    let mut out = String::new();
    while let Ok(Some(Header { tag, size })) = Header::parse(bytes, |_| Ok(1 << 20)) {
        let (message, rest) = bytes.split_at_checked(size).unwrap_or((bytes, &[]));
        let body = String::from_utf8_lossy(message.get(5..).unwrap_or_default()).replace(['\0', '\n'], " ");
        out += &format!("{} {}\n", char::from(tag), body.trim());
        bytes = rest;
    }
    out
}

/// The messages, without the names of statements in errors: of two names for one text the proxy may name either.
fn without_names(mut bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while let Ok(Some(Header { size, .. })) = Header::parse(bytes, |_| Ok(1 << 20)) {
        let (message, rest) = bytes.split_at_checked(size).expect("a whole message");
        let text = String::from_utf8_lossy(&message[5..]);
        let named = message[0] == b'E' && text.contains("statement \"");
        out.push(match text.split_once("statement \"").filter(|_| named) {
            Some((head, tail)) => {
                let (name, tail) = tail.split_once('"').expect("a quoted name");
                assert!(name.len() < 35, "a name of ours: {name}");
                format!("E{head}?{tail}")
            }
            None => format!("{:?}", message),
        });
        bytes = rest;
    }
    out
}

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mode = *source.pick(&[PoolMode::Transaction, PoolMode::Transaction, PoolMode::Session]);
    let chunk = *source.pick(&[1_usize, 7, 40, 1000]);
    let mut world = World::new();
    let (mut clients, mut wanted) = (Vec::new(), Vec::new());
    for number in 1..=CLIENTS {
        let steps = 2 + source.below(14);
        let mut script = Script::new(&mut source, number, mode == PoolMode::Session);
        script.write(steps);
        wanted.push(script.wanted);
        clients.push(Client::new(mode, script.sent));
    }
    for round in 0..MOST {
        let any = source.below(8);
        // With the input used up: everybody in turn.
        let turn = if source.is_empty() { round } else { source.below(16) };
        let size = if source.is_empty() { 1000 } else { 1 + source.below(chunk) };
        let client = &mut clients[turn % CLIENTS];
        match (turn / CLIENTS) % 2 {
            0 => client.send(size),
            _ => client.hear(&mut world, size),
        }
        if client.look {
            client.look(&mut world, any);
        }
        if source.is_empty() && clients.iter().all(Client::is_quiet) {
            break;
        }
    }
    for (client, wanted) in clients.iter().zip(&wanted) {
        assert!(client.is_quiet(), "does not come to an end");
        assert!(
            without_names(&client.got) == without_names(wanted),
            "{mode}\nclient sent:\n{}\ngot:\n{}\ndirectly:\n{}",
            shown(&client.script),
            shown(&client.got),
            shown(wanted)
        );
        let rests = client.inbox.is_empty() && client.core.ledger().settled();
        assert!(rests, "not at rest: {:?}\n{}", client.core.ledger(), shown(&client.script));
    }
}
