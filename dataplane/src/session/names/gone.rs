//! DEALLOCATE by the extended protocol, and what drops all statements of a server at once. The client's names go when the
//! server has answered, and a statement that clients share stays: the server drops one of ours in its place.

use super::{Effect, Names, Rewriter};
use crate::statements::{self, Deallocate};
use helios_pgwire::frame::{Header, put, put_cstr};
use helios_pgwire::frontend::{self, parse_text};

/// What a server deallocates in place of a statement that clients share.
const STAND_IN: &[u8] = b"hp_deallocated";

impl Names {
    /// Which statements of this client an unnamed Parse is going to deallocate, as psycopg 3 does it.
    #[must_use]
    pub fn deallocated(&self, message: &[u8]) -> Option<Deallocate> {
        // Whole and without parameter types: it is replaced as it stands.
        let whole =
            matches!(Header::parse(message, frontend::max_len), Ok(Some(h)) if h.size == message.len());
        if !whole || message.first() != Some(&b'P') {
            return None;
        }
        let (_, sql) = parse_text(message).filter(|(name, _)| name.is_empty())?;
        if message.len() != sql.len().saturating_add(9) || !message.ends_with(&[0, 0]) {
            return None;
        }
        statements::deallocate(sql).filter(|what| match what {
            Deallocate::One(name) => self.known.contains_key(&**name),
            Deallocate::All => true,
        })
    }

    /// Whether it is not known yet if names of this client are gone: what names statements has to wait.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.closing > 0
    }

    /// The client's name is gone; the server, where others may use the statement, deallocates one of ours.
    pub(super) fn deallocate(&mut self, name: Box<[u8]>, to: &mut Rewriter<'_>) {
        let Some(known) = self.take(&name) else { return };
        // One may be left that a failed transaction has prepared.
        to.ledger.sent(b'C');
        statements::close(to.out, STAND_IN);
        self.expect(to, Effect::Ours);
        to.parse(STAND_IN, b"");
        self.expect(to, Effect::Ours);
        to.parse(b"", &[b"DEALLOCATE ", STAND_IN].concat());
        self.expect(to, Effect::Closed(name, known));
    }

    /// The server has dropped all that was prepared before what is still on its way.
    pub fn all_dropped(&mut self) {
        let parsed: Vec<_> = self
            .pending
            .iter()
            .filter_map(|(_, effect)| match effect {
                Effect::Parsed(name, _) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let mut all = std::mem::take(&mut self.known);
        self.clear();
        for name in parsed {
            if let Some(known) = all.remove(&name) {
                self.insert(name, known);
            }
        }
    }
}

impl Rewriter<'_> {
    /// A Parse of ours, without parameter types.
    fn parse(&mut self, name: &[u8], sql: &[u8]) {
        self.ledger.sent(b'P');
        put(self.out, b'P', |body| {
            put_cstr(body, name);
            put_cstr(body, sql);
            body.extend_from_slice(&[0, 0]);
        });
    }
}
