//! The names that a client has given to its prepared statements, and what is on its way about them. Replaces names in
//! Parse, Bind, Describe and Close on their way to a server, adds what this server does not have yet, and says which
//! replies the client must not see. Sans-IO; owner: one session.

mod gone;

use crate::server::Ledger;
use crate::statements::{self, Deallocate, Has, Id, Interner, NAME, PREFIX, Prepared, Statement, name_of};
use helios_pgwire::frame::{put_cstr, take_cstr};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Statements that one client may have; beyond that the session keeps its server, and the server the statements.
const MOST: usize = 20_000;
/// Bytes of names, texts and types that these may have together; the same beyond that.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Names of failed statements that are remembered for error messages.
const MOST_VOID: usize = 64;

/// Replies on their way that are looked through for a name.
const MOST_LOOKED_AT: usize = 64;

/// A session's named statements.
#[derive(Default)]
pub struct Names {
    known: HashMap<Box<[u8]>, Known>,
    /// Bytes of names, texts and types of what is known.
    bytes: usize,
    /// What replies on their way decide, by the message that they answer.
    pending: VecDeque<(u32, Effect)>,
    /// What replies have decided that are held back: undone if the run is replayed.
    held: Vec<(u32, Effect)>,
    /// How many of these decide whether names are gone.
    closing: usize,
    /// Names of statements that turned out to be none, while messages that use them may be on their way.
    void: VecDeque<(Box<[u8]>, Id)>,
}

/// A statement, and when this client has parsed it.
#[derive(Clone)]
struct Known {
    statement: Arc<Statement>,
    since: u64,
}

impl Known {
    /// Bytes that it costs its client under this name.
    fn size(&self, name: &[u8]) -> usize {
        name.len().saturating_add(self.statement.size())
    }
}

enum Effect {
    /// A Parse of ours: the client must not see the reply.
    Prepares(Id),
    /// A Close of ours: the client must not see the reply.
    Drops(Id),
    /// A message of ours about no statement of a client: the client must not see the reply.
    Ours,
    /// The client's own Parse.
    Parsed(Box<[u8]>, Id),
    /// The client's Close, or its DEALLOCATE.
    Closed(Box<[u8]>, Known),
    /// The client's DEALLOCATE ALL.
    ClosedAll(HashMap<Box<[u8]>, Known>),
}

impl Effect {
    /// Whether names are gone if the reply is a good one.
    fn closes(&self) -> bool {
        matches!(self, Self::Closed(..) | Self::ClosedAll(_))
    }
}

/// The prepared statement that a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// None.
    No,
    /// The one without a name.
    Unnamed,
    /// This one.
    Yes(&'a [u8]),
    /// More bytes are needed to know.
    Unclear,
}

/// Where rewritten messages go.
pub struct Rewriter<'a> {
    /// Statements of the worker.
    pub interner: &'a mut Interner,
    /// Statements of the server connection.
    pub prepared: &'a mut Prepared,
    /// The server connection's ledger.
    pub ledger: &'a mut Ledger,
    /// Bytes for the server.
    pub out: &'a mut Vec<u8>,
}

/// The prepared statement that a message, of which at least the header is there, is about.
#[must_use]
pub fn named(tag: u8, message: &[u8]) -> Named<'_> {
    let body = message.get(5..).unwrap_or_default();
    let name = match tag {
        b'P' => take_cstr(body),
        b'B' => take_cstr(body).and_then(|(_, rest)| take_cstr(rest)),
        b'D' | b'C' => match body.split_first() {
            // With more behind the name it is malformed: the server says so.
            Some((b'S', rest)) if take_cstr(rest).is_some_and(|(_, more)| !more.is_empty()) => {
                return Named::No;
            }
            Some((b'S', rest)) => take_cstr(rest),
            Some(_) => return Named::No,
            None => None,
        },
        _ => return Named::No,
    };
    match name {
        Some((b"", _)) => Named::Unnamed,
        Some((name, _)) => Named::Yes(name),
        None => Named::Unclear,
    }
}

impl Names {
    /// SQL text of a statement.
    #[must_use]
    pub fn sql(&self, name: &[u8]) -> Option<&[u8]> {
        self.known.get(name).map(|known| known.statement.sql())
    }

    /// SQL text, NUL and types of a statement.
    #[must_use]
    pub fn tail(&self, name: &[u8]) -> Option<&[u8]> {
        self.known.get(name).map(|known| known.statement.tail())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether one more statement can be kept.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.known.len() < MOST && self.bytes < MOST_BYTES
    }

    fn insert(&mut self, name: Box<[u8]>, known: Known) {
        self.bytes = self.bytes.saturating_add(known.size(&name));
        if let Some(before) = self.known.insert(name.clone(), known) {
            self.bytes = self.bytes.saturating_sub(before.size(&name));
        }
    }

    fn take(&mut self, name: &[u8]) -> Option<Known> {
        let known = self.known.remove(name)?;
        self.bytes = self.bytes.saturating_sub(known.size(name));
        Some(known)
    }

    /// Forgets one statement; whether there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.take(name).is_some()
    }

    /// Forgets all statements.
    pub fn clear(&mut self) {
        self.known = HashMap::new();
        self.bytes = 0;
    }

    /// The whole of a message, or its front with the name in it, for the server, with what it needs before it.
    pub fn rewrite(&mut self, message: &[u8], to: &mut Rewriter<'_>) {
        let tag = message.first().copied().unwrap_or_default();
        if !to.ledger.listens() {
            return to.raw(message);
        }
        match self.deallocated(message) {
            Some(Deallocate::One(name)) => return self.deallocate(name.into(), to),
            Some(Deallocate::All) => {
                to.raw(message);
                let all = std::mem::take(&mut self.known);
                self.clear();
                return self.expect(to, Effect::ClosedAll(all));
            }
            None => {}
        }
        let Named::Yes(name) = named(tag, message) else { return to.raw(message) };
        if to.ledger.settled() {
            self.void.clear();
        }
        match tag {
            b'P' => self.parse(name, message, to),
            b'C' => {
                to.raw(message);
                if let Some(known) = self.take(name) {
                    self.expect(to, Effect::Closed(name.into(), known));
                }
            }
            _ => {
                let Some(known) = self.known.get(name).cloned() else { return to.raw(message) };
                self.ensure(&known, to);
                to.renamed(message, name, known.statement.name());
            }
        }
    }

    /// The message that was just sent decides something.
    fn expect(&mut self, to: &Rewriter<'_>, effect: Effect) {
        self.closing = self.closing.saturating_add(usize::from(effect.closes()));
        self.pending.push_back((to.ledger.asked(), effect));
    }

    /// A Parse that is answered without a server.
    pub fn note(&mut self, message: &[u8], interner: &mut Interner) {
        if let Named::Yes(name) = named(b'P', message)
            && !self.known.contains_key(name)
        {
            let tail = message.get(name.len().saturating_add(6)..).unwrap_or_default();
            let (statement, since) = (interner.intern(tail), interner.parsed());
            self.insert(name.into(), Known { statement, since });
        }
    }

    fn parse(&mut self, name: &[u8], message: &[u8], to: &mut Rewriter<'_>) {
        let tail = message.get(name.len().saturating_add(6)..).unwrap_or_default();
        if let Some(taken) = self.known.get(name).cloned() {
            // The server refuses the second one of this name (42P05).
            self.ensure(&taken, to);
            to.ledger.sent(b'P');
            return taken.statement.parse(to.out);
        }
        let (statement, since) = (to.interner.intern(tail), to.interner.parsed());
        let id = statement.id();
        // Parsed anew even if the server has it: the client may do so because the tables have changed.
        let has = to.prepared.look(id, since);
        self.prepare(&statement, has, to);
        self.expect(to, Effect::Parsed(name.into(), id));
        self.insert(name.into(), Known { statement, since });
    }

    /// Sees to it that the server has the statement.
    fn ensure(&mut self, known: &Known, to: &mut Rewriter<'_>) {
        let id = known.statement.id();
        let has = to.prepared.look(id, known.since);
        if has != Has::Fresh {
            self.prepare(&known.statement, has, to);
            self.expect(to, Effect::Prepares(id));
        }
    }

    fn prepare(&mut self, statement: &Statement, has: Has, to: &mut Rewriter<'_>) {
        let id = statement.id();
        if let Some(goes) = if has == Has::Nothing { to.prepared.evict() } else { Some(id) } {
            to.ledger.sent(b'C');
            statements::close(to.out, &name_of(goes));
            self.expect(to, Effect::Drops(goes));
        }
        to.ledger.sent(b'P');
        statement.parse(to.out);
        to.prepared.add(id, to.interner.now());
    }

    /// Whether replies that are on their way, up to the one with this number, decide what a message about this name
    /// means: what was assumed of them would be wrong if they fail.
    #[must_use]
    pub fn undecided(&self, name: &[u8], synced: u32) -> bool {
        if self.pending.front().is_none_or(|(of, _)| *of > synced) {
            return false;
        }
        let ours = self.known.get(name).map(|known| known.statement.id());
        let about = |effect: &Effect| match effect {
            Effect::Prepares(id) | Effect::Drops(id) => ours == Some(*id),
            Effect::Parsed(of, id) => &**of == name || ours == Some(*id),
            Effect::Closed(of, _) => &**of == name,
            Effect::ClosedAll(_) => true,
            Effect::Ours => false,
        };
        // With many on their way looking costs more than waiting.
        self.pending.len() > MOST_LOOKED_AT
            || self.pending.iter().take_while(|(of, _)| *of <= synced).any(|(_, effect)| about(effect))
    }

    // === replies ===

    /// Whether replies on their way decide anything.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The reply to the message with this number came: whether the client is not to see it.
    pub fn answered(&mut self, number: u32, held: bool) -> bool {
        let effect = self.pending.pop_front_if(|(of, _)| *of == number);
        let closed = effect.as_ref().is_some_and(|(_, effect)| effect.closes());
        self.closing = self.closing.saturating_sub(usize::from(closed));
        let ours = matches!(effect, Some((_, Effect::Prepares(_) | Effect::Drops(_) | Effect::Ours)));
        self.held.extend(effect.filter(|_| held));
        ours
    }

    /// What was held back has gone to the client.
    pub fn told(&mut self) {
        self.held.clear();
    }

    /// Messages up to this number have failed or were skipped.
    pub fn failed(&mut self, number: u32, prepared: &mut Prepared) {
        let count = self.pending.iter().take_while(|(of, _)| *of <= number).count();
        let held: Vec<_> = std::mem::take(&mut self.held);
        let undone: Vec<_> = self.pending.drain(..count).collect();
        let closing = undone.iter().filter(|(_, effect)| effect.closes()).count();
        self.closing = self.closing.saturating_sub(closing);
        for (_, effect) in held.into_iter().chain(undone).rev() {
            match effect {
                Effect::Ours => {}
                Effect::Prepares(id) | Effect::Drops(id) => prepared.doubt(id),
                Effect::Parsed(name, id) => {
                    prepared.doubt(id);
                    self.take(&name);
                    self.void.push_back((name, id));
                    if self.void.len() > MOST_VOID {
                        self.void.pop_front();
                    }
                }
                Effect::Closed(name, known) => self.insert(name, known),
                Effect::ClosedAll(all) => all.into_iter().for_each(|(name, known)| self.insert(name, known)),
            }
        }
    }

    /// An error message of the server with the client's name in place of ours, if it names a statement of ours.
    #[must_use]
    pub fn in_clients_words(&self, error: &[u8]) -> Option<Vec<u8>> {
        let at = error.windows(PREFIX.len()).position(|window| window == PREFIX)?;
        let end = at.checked_add(NAME)?;
        let ours = error.get(at..end)?;
        let known = self.known.iter().find(|(_, known)| known.statement.name() == ours).map(|(name, _)| name);
        let void = || self.void.iter().find(|(_, id)| name_of(*id) == ours).map(|(name, _)| name);
        // Sent behind what failed, a Close has taken the name already.
        let closed = || {
            self.pending.iter().find_map(|(_, effect)| match effect {
                Effect::Closed(name, known) if known.statement.name() == ours => Some(name),
                _ => None,
            })
        };
        let theirs = known.or_else(closed).or_else(void)?;
        let mut out = error.get(..at)?.to_vec();
        out.extend_from_slice(theirs);
        out.extend_from_slice(error.get(end..)?);
        let len = u32::try_from(out.len().saturating_sub(1)).ok()?;
        out.get_mut(1..5)?.copy_from_slice(&len.to_be_bytes());
        Some(out)
    }
}

impl Rewriter<'_> {
    /// A message as it is.
    pub fn raw(&mut self, message: &[u8]) {
        self.ledger.sent(message.first().copied().unwrap_or_default());
        self.out.extend_from_slice(message);
    }

    /// A Bind or Describe with the name on servers in place of the client's.
    fn renamed(&mut self, message: &[u8], name: &[u8], ours: &[u8]) {
        self.ledger.sent(message.first().copied().unwrap_or_default());
        // The name is the last thing in front of its own end: in a Bind the portal comes first.
        let portal = match message {
            [b'B', _, _, _, _, body @ ..] => {
                take_cstr(body).map_or(0, |(portal, _)| portal.len().saturating_add(1))
            }
            _ => 1,
        };
        let start = portal.saturating_add(5);
        let rest = message.get(start.saturating_add(name.len()).saturating_add(1)..).unwrap_or_default();
        let theirs = message.get(1..5).and_then(|len| len.try_into().ok()).map_or(0, u32::from_be_bytes);
        let grown = i64::from(theirs)
            .saturating_add(i64::try_from(ours.len()).unwrap_or(0))
            .saturating_sub(i64::try_from(name.len()).unwrap_or(0));
        self.out.extend_from_slice(message.get(..1).unwrap_or_default());
        self.out.extend_from_slice(&u32::try_from(grown).unwrap_or(0).to_be_bytes());
        self.out.extend_from_slice(message.get(5..start).unwrap_or_default());
        put_cstr(self.out, ours);
        self.out.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statements::Scope;
    use helios_pgwire::frame::put;

    fn parse(name: &str, sql: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, b'P', |body| body.extend_from_slice(format!("{name}\0{sql}\0\0\0").as_bytes()));
        out
    }

    #[test]
    fn the_statement_that_a_message_is_about() {
        for (tag, body, expected) in [
            (b'P', &b"s\0select 1\0\0\0"[..], Named::Yes(b"s")),
            (b'P', b"\0select 1\0\0\0", Named::Unnamed),
            (b'P', b"s", Named::Unclear),
            (b'B', b"portal\0s\0", Named::Yes(b"s")),
            (b'B', b"portal\0\0", Named::Unnamed),
            (b'B', b"portal\0s", Named::Unclear),
            (b'D', b"Ss\0", Named::Yes(b"s")),
            (b'D', b"S\0", Named::Unnamed),
            (b'D', b"Slong na", Named::Unclear),
            (b'D', b"", Named::Unclear),
            (b'D', b"Ps\0", Named::No),
            (b'C', b"Ss\0", Named::Yes(b"s")),
            (b'E', b"s\0", Named::No),
        ] {
            let message = [&[tag, 0, 0, 0, 0], body].concat();
            assert_eq!(named(tag, &message), expected, "{tag} {body:?}");
        }
    }

    #[test]
    fn what_one_client_keeps_is_bounded_in_bytes_and_given_back() {
        let mut names = Names::default();
        let mut interner = Interner::new(Scope::new([0; 16]));
        let text = "x".repeat(256 * 1024);
        let mut kept = 0;
        while names.has_room() {
            names.note(&parse(&format!("s{kept}"), &text), &mut interner);
            kept += 1;
        }
        assert!((60..=64).contains(&kept), "{kept}");
        (0..kept).for_each(|i| assert!(names.remove(format!("s{i}").as_bytes())));
        assert_eq!((names.bytes, names.has_room()), (0, true));
        let mut prepared = Prepared::default();
        names.pending.extend((0..1000).map(|i| (i, Effect::Parsed(Box::from(&b"s"[..]), 0))));
        names.failed(u32::MAX, &mut prepared);
        assert_eq!(names.void.len(), MOST_VOID);
    }
}
