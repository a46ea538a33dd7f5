//! Which runs may be answered from the cache, and under which key. A run is one Query, or Bind, Describe, Execute and Sync of
//! one statement, with or without its Parse: anything else is left alone. Pure.

use super::ask::Prepared;
use super::reading::names_a_time;
use crate::session::names::{Named, named};
use helios_pgwire::frame::{Header, take_cstr};
use helios_pgwire::frontend::{max_len, parse_text, query_text};
use sha2::{Digest as _, Sha256};

/// Longest run that is looked up, in bytes.
const LONGEST: usize = 64 * 1024;

/// Names an answer: everything that it may depend on, hashed.
pub type Key = [u8; 32];

/// A run that may be answered from the cache, if its text says so.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape<'a> {
    /// The text.
    pub sql: &'a [u8],
    messages: Vec<(u8, &'a [u8])>,
}

/// The shape of a run; `prepared` knows the named statements.
#[must_use]
pub fn shape<'a>(run: &'a [u8], prepared: Prepared<'a>) -> Option<Shape<'a>> {
    if run.len() > LONGEST {
        return None;
    }
    let (mut rest, mut tags, mut messages, mut text) = (run, Vec::new(), Vec::new(), None);
    while !rest.is_empty() {
        let Header { tag, size } = Header::parse(rest, max_len).ok()??;
        let message = rest.get(..size)?;
        rest = rest.get(size..)?;
        match tag {
            b'Q' => text = Some(query_text(message)?),
            b'P' => {
                let (name, sql) = parse_text(message)?;
                if !name.is_empty() {
                    return None;
                }
                text = Some(sql);
            }
            b'B' if names_a_time(message) => return None,
            b'B' | b'D' => {
                if let Named::Yes(name) = named(tag, message) {
                    let tail = prepared(name)?;
                    let (sql, _) = take_cstr(tail)?;
                    if text.is_some_and(|text| text != sql) {
                        return None;
                    }
                    text = Some(sql);
                    messages.push((b'p', tail));
                }
            }
            // Of the unnamed portal, all rows.
            b'E' if message.get(5..) != Some(&[0; 5]) => return None,
            _ => {}
        }
        messages.push((tag, nameless(tag, message)?));
        tags.push(tag);
    }
    let known = matches!(&*tags, b"Q" | b"PBDES" | b"PDBES" | b"PBES" | b"BDES" | b"DBES" | b"BES");
    known.then_some(())?;
    Some(Shape { sql: text?, messages })
}

/// A message without the name of its statement, and without its length; `None` for one of a named portal.
fn nameless(tag: u8, message: &[u8]) -> Option<&[u8]> {
    let body = message.get(5..)?;
    match tag {
        b'B' => {
            let (portal, rest) = take_cstr(body)?;
            portal.is_empty().then_some(())?;
            take_cstr(rest).map(|(_, rest)| rest)
        }
        b'D' => match body.split_first()? {
            (b'S', _) => Some(b"S"),
            (b'P', rest) => (rest == b"\0").then_some(b"P"),
            _ => None,
        },
        _ => Some(body),
    }
}

impl Shape<'_> {
    /// The key of its answer. `scope`: whose answer it is, and under which settings.
    #[must_use]
    pub fn key<'s>(&self, scope: impl Iterator<Item = &'s [u8]>) -> Key {
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(bytes);
        };
        scope.for_each(&mut put);
        put(self.sql);
        for (tag, body) in &self.messages {
            put(&[*tag]);
            put(body);
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_pgwire::frame::{put, put_cstr};

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, tag, |to| to.extend_from_slice(body));
        out
    }

    fn query(sql: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, b'Q', |to| put_cstr(to, sql.as_bytes()));
        out
    }

    fn run(messages: &[(u8, &[u8])]) -> Vec<u8> {
        messages.iter().flat_map(|(tag, body)| message(*tag, body)).collect()
    }

    const PARSE: (u8, &[u8]) = (b'P', b"\0select 1\0\0\0");
    const BIND: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\0");
    const NAMED: (u8, &[u8]) = (b'B', b"\0s\0\0\0\0\x01\0\0\0\x01x\0\0");
    const DESCRIBE: (u8, &[u8]) = (b'D', b"P\0");
    const EXECUTE: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
    const SYNC: (u8, &[u8]) = (b'S', b"");

    fn shaped(bytes: &[u8]) -> Option<(Vec<u8>, Key)> {
        let prepared = |name: &[u8]| (name == b"s").then_some(&b"select 1\0\0\0"[..]);
        shape(bytes, &prepared).map(|shape| (shape.sql.to_vec(), shape.key([&b"scope"[..]].into_iter())))
    }

    #[test]
    fn what_has_a_shape() {
        let of = |messages: &[(u8, &[u8])]| shaped(&run(messages)).map(|(sql, _)| sql);
        assert_eq!(shaped(&query("select 1")).unwrap().0, b"select 1");
        for good in [
            &[PARSE, BIND, DESCRIBE, EXECUTE, SYNC][..],
            &[PARSE, (b'D', b"S\0"), BIND, EXECUTE, SYNC],
            &[PARSE, BIND, EXECUTE, SYNC],
            &[NAMED, DESCRIBE, EXECUTE, SYNC],
            &[NAMED, EXECUTE, SYNC],
        ] {
            assert_eq!(of(good).as_deref(), Some(&b"select 1"[..]), "{good:?}");
        }
        for bad in [
            &[PARSE, SYNC][..],
            &[(b'P', b"n\0select 1\0\0\0"), BIND, EXECUTE, SYNC],
            &[PARSE, BIND, (b'E', b"\0\0\0\0\x05"), SYNC],
            &[PARSE, (b'B', b"p\0\0\0\0\0\0\0\0"), EXECUTE, SYNC],
            &[PARSE, BIND, EXECUTE, BIND, EXECUTE, SYNC],
            &[PARSE, (b'B', b"\0\0\0\0\0\x01\0\0\0\x03now\0\0"), EXECUTE, SYNC],
            &[(b'B', b"\0unknown\0\0\0\0\0\0\0"), EXECUTE, SYNC],
            &[PARSE, BIND, EXECUTE, (b'H', b""), SYNC],
        ] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(shaped(&[query("a"), query("b")].concat()), None);
        assert_eq!(shaped(&query(&"x".repeat(LONGEST))), None);
    }

    #[test]
    fn keys_tell_apart_what_answers_differ_by() {
        let mut keys = vec![
            shaped(&query("select 1")).unwrap().1,
            shaped(&query("select 1 ")).unwrap().1,
            shaped(&run(&[PARSE, BIND, DESCRIBE, EXECUTE, SYNC])).unwrap().1,
            shaped(&run(&[PARSE, BIND, EXECUTE, SYNC])).unwrap().1,
            shaped(&run(&[NAMED, EXECUTE, SYNC])).unwrap().1,
            // Other parameters, other types, another format.
            shaped(&run(&[PARSE, (b'B', b"\0\0\0\0\0\x01\0\0\0\x01y\0\0"), EXECUTE, SYNC])).unwrap().1,
            shaped(&run(&[(b'P', b"\0select 1\0\0\x01\0\0\0\x17"), BIND, EXECUTE, SYNC])).unwrap().1,
            shaped(&run(&[PARSE, (b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\x01\0\x01"), EXECUTE, SYNC]))
                .unwrap()
                .1,
        ];
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn the_scope_is_part_of_the_key_and_cannot_be_moved_into_its_neighbour() {
        let bytes = query("select 1");
        let of = |scope: &[&[u8]]| shape(&bytes, &|_| None).unwrap().key(scope.iter().copied());
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a", b""]), of(&[b"a"]));
    }
}
