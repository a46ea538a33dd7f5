//! The renaming of prepared statements: what goes to a server means the same as what the client sent, under names of
//! ours, with exact lengths, and every message is counted in the ledger.

use crate::source::Source;
use helios_pgwire::frame::{Header, put, take_cstr};
use helios_pgwire::frontend::max_len;
use heliosdb_proxy::server::Ledger;
use heliosdb_proxy::session::names::{Named, Names, Rewriter, named};
use heliosdb_proxy::statements::{Interner, NAME, PREFIX, Prepared, Scope};
use std::collections::HashMap;

/// A message of the client, whole and with any body, or one that drivers send.
fn message(source: &mut Source<'_>) -> Vec<u8> {
    let names: [&[u8]; 4] = [b"", b"a", b"hp_1", b"a name of some length"];
    let texts: [&[u8]; 3] = [b"select 1", b"select $1, 'a'", b""];
    let tag = *source.pick(b"PPBBDCCES");
    let mut out = Vec::new();
    let any = source.one_in(4);
    put(&mut out, tag, |body| {
        let cstr = |body: &mut Vec<u8>, text: &[u8]| {
            body.extend_from_slice(text);
            body.push(0);
        };
        match tag {
            _ if any => body.extend_from_slice(source.bytes(24)),
            b'P' => {
                cstr(body, source.pick::<&[u8]>(&names));
                cstr(body, source.pick::<&[u8]>(&texts));
                body.extend_from_slice(&[0, 0]);
            }
            b'B' => {
                cstr(body, source.pick::<&[u8]>(&names));
                cstr(body, source.pick::<&[u8]>(&names));
                body.extend_from_slice(source.bytes(8));
            }
            b'D' | b'C' => {
                body.push(*source.pick(b"SSP"));
                cstr(body, source.pick::<&[u8]>(&names));
            }
            _ => body.extend_from_slice(&[0; 5]),
        }
    });
    out
}

/// The name in a message replaced by `name`.
fn with_name(message: &[u8], name: &[u8]) -> Vec<u8> {
    let body = &message[5..];
    let (head, rest) = match message[0] {
        b'B' => {
            let (portal, rest) = take_cstr(body).unwrap();
            (&body[..=portal.len()], take_cstr(rest).unwrap().1)
        }
        b'P' => (&body[..0], take_cstr(body).unwrap().1),
        _ => (&body[..1], take_cstr(&body[1..]).unwrap().1),
    };
    let mut out = Vec::new();
    put(&mut out, message[0], |to| {
        [head, name, b"\0", rest].into_iter().for_each(|p| to.extend_from_slice(p))
    });
    out
}

fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let header = Header::parse(bytes, max_len).unwrap().expect("a whole header");
        let (message, rest) = bytes.split_at_checked(header.size).expect("a whole message");
        out.push(message);
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
    let mut interner = Interner::new(Scope::new([3; 16]));
    let (mut names, mut prepared, mut ledger) = (Names::default(), Prepared::default(), Ledger::new());
    // What a name of ours stands for, whoever says so.
    let mut meaning: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut asked = 0_u32;
    while !source.is_empty() {
        let message = message(&mut source);
        let mut out = Vec::new();
        let mut to =
            Rewriter { interner: &mut interner, prepared: &mut prepared, ledger: &mut ledger, out: &mut out };
        names.rewrite(&message, &mut to);
        let sent = split(&out);
        for part in &sent {
            asked += u32::from(matches!(part[0], b'P' | b'B' | b'D' | b'E' | b'C'));
            if let (b'P', Named::Yes(name)) = (part[0], named(b'P', part))
                && name.starts_with(PREFIX)
                && name.len() == NAME
            {
                let tail = part[5 + name.len()..].to_vec();
                assert_eq!(meaning.entry(name.to_vec()).or_insert_with(|| tail.clone()), &tail);
            }
        }
        assert_eq!(ledger.asked(), asked, "every message is counted");
        let last = *sent.last().expect("a message stays a message");
        let tag = message[0];
        if last != message.as_slice() {
            let Named::Yes(theirs) = named(tag, &message) else { panic!("changed without a name") };
            let Named::Yes(ours) = named(tag, last) else { panic!("the name is gone: {last:?}") };
            assert!(ours.starts_with(PREFIX) && ours.len() == NAME);
            let same = with_name(&message, ours) == last;
            assert!(same || tag == b'P', "{theirs:?}: {message:?} became {last:?}");
            if tag != b'P' {
                let tail = meaning.get(ours).expect("prepared before it is used");
                assert_eq!(names.sql(theirs), tail[1..].split(|byte| *byte == 0).next());
            }
        }
        while source.one_in(3) && ledger.done() < ledger.asked() {
            ledger.received(b'3', None);
            let _ = names.answered(ledger.done(), false);
        }
    }
}
