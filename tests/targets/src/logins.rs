//! SCRAM in both roles and the login on a backend, against messages from strangers: never panics, never accepts a proof
//! or a signature that was not made for this exchange, never gets past a step that the other side has left out.

use crate::source::Source;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::login::{Answer, Login, Need};
use helios_pgwire::scram::{Channel, ClientFirst, Keys, MAX_ITERATIONS, Offer, ServerFirst, Verifier};
use std::sync::OnceLock;

const SALT: &[u8] = b"salt of the test";

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::derive(b"pencil", SALT, 1))
}

fn verifier() -> Verifier {
    keys().verifier(SALT.to_vec(), 1)
}

/// A message with bytes of the input in the place of some of its own.
fn bent(message: &[u8], source: &mut Source<'_>) -> Vec<u8> {
    let mut out = message.to_vec();
    for _ in 0..source.below(3) {
        let at = source.below(out.len());
        let end = at.saturating_add(source.below(5)).min(out.len());
        let insert = source.bytes(8).to_vec();
        out.splice(at..end, insert);
    }
    out
}

/// Both roles talk to each other over a channel that changes messages.
fn talk(source: &mut Source<'_>) {
    let hash = b"hash of a certificate".to_vec();
    let (channel, offer) = match source.below(3) {
        0 => (Channel::Plain, Offer::default()),
        1 => (Channel::Unbound, Offer::default()),
        _ => (Channel::Bound(hash.clone()), Offer { end_point: Some(&hash), chosen: true }),
    };
    let client = ClientFirst::new(channel);
    let first = client.message();
    let first_sent = bent(&first, source);
    let Ok(server) = ServerFirst::new(&first_sent, verifier(), offer) else {
        assert_ne!(first, first_sent, "an honest client is understood");
        return;
    };
    let challenge = server.message().to_vec();
    let challenge_sent = bent(&challenge, source);
    let Ok(asked) = client.challenge(&challenge_sent) else {
        assert!(challenge != challenge_sent || first != first_sent, "an honest server is understood");
        return;
    };
    assert!((1..=MAX_ITERATIONS).contains(&asked.iterations));
    let (last, expected) = asked.answer(keys());
    let last_sent = bent(&last, source);
    let honest = (&first, &challenge) == (&first_sent, &challenge_sent);
    match server.prove(&last_sent) {
        Ok(proved) => {
            assert!(honest, "a proof of another exchange was accepted");
            assert!(verifier().admits(&proved.keys), "the keys of a proof open the door");
            let signed = bent(&proved.server_final, source);
            let accepted = expected.check(&signed).is_ok();
            assert!(accepted || signed != proved.server_final, "an honest signature is accepted");
        }
        Err(_) => assert!(!honest || last != last_sent, "an honest proof is accepted"),
    }
}

/// The target for SCRAM.
///
/// # Panics
/// When a rule is broken.
pub fn scram(data: &[u8]) {
    let mut source = Source::new(data);
    match source.below(4) {
        0 => {
            if let Ok(server) = ServerFirst::new(source.bytes(200), verifier(), Offer::default()) {
                assert!(server.prove(source.all()).is_err(), "a proof without the password");
            }
        }
        1 => {
            if let Ok(challenge) = ClientFirst::new(Channel::Plain).challenge(source.bytes(200)) {
                let (_, expected) = challenge.answer(keys());
                assert!(expected.check(source.all()).is_err(), "a signature without the password");
            }
        }
        2 => {
            let Ok(text) = std::str::from_utf8(source.all()) else { return };
            if let Some(verifier) = Verifier::parse(text) {
                assert!((1..=MAX_ITERATIONS).contains(&verifier.iterations));
                assert!(!verifier.salt.is_empty() && !verifier.admits(keys()));
            }
        }
        _ => talk(&mut source),
    }
}

/// The target for the login on a backend: its messages in pieces, honest ones mixed with anything.
///
/// # Panics
/// When a rule is broken.
pub fn login(data: &[u8]) {
    let mut source = Source::new(data);
    let over_tls = source.one_in(2);
    let mut login = if over_tls { Login::over_tls(Some(vec![7; 32])) } else { Login::new() };
    let (mut buf, mut said_ok, mut scram) = (Vec::new(), false, false);
    for _ in 0..64 {
        match source.below(9) {
            0 => {
                backend::auth(&mut buf, 0, b"");
                said_ok = true;
            }
            1 => backend::auth(&mut buf, 3, b""),
            2 => backend::auth(&mut buf, 5, source.bytes(4)),
            3 => backend::auth(&mut buf, 10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
            4 => backend::auth(&mut buf, 11, source.bytes(100)),
            5 => backend::auth(&mut buf, 12, source.bytes(60)),
            6 => backend::parameter_status(&mut buf, source.bytes(8), source.bytes(8)),
            7 => backend::ready_for_query(&mut buf, TxStatus::Idle),
            _ => {
                let bytes = source.bytes(40);
                // Bytes of a stranger may say so as well.
                said_ok |= bytes.contains(&b'R');
                buf.extend_from_slice(bytes);
            }
        }
        match login.advance(&mut buf) {
            Ok(Need::Bytes) => {}
            Ok(Need::Credential(_)) if source.one_in(4) => {
                if login.passes(source.bytes(20)).is_err() {
                    return;
                }
            }
            Ok(Need::Credential(_)) => {
                let answer = match source.below(3) {
                    0 => Answer::Scram,
                    1 => Answer::Cleartext(b"p"),
                    _ => Answer::Md5(b"md5"),
                };
                scram |= matches!(answer, Answer::Scram);
                if login.credential(answer).is_err() {
                    return;
                }
            }
            Ok(Need::Keys { iterations, .. }) => {
                assert!((1..=MAX_ITERATIONS).contains(&iterations));
                if login.keys(keys()).is_err() {
                    return;
                }
            }
            Ok(Need::Show { message, last }) => {
                let code = if last { 12 } else { 11 };
                assert!(message[0] == b'R' && message[5..9] == u32::to_be_bytes(code), "out of order");
                if !last && login.passes(source.bytes(20)).is_err() {
                    return;
                }
            }
            Ok(Need::Done(_)) => {
                assert!(said_ok && !scram, "logged in without being let in, or without the server's proof");
                return;
            }
            Err(_) => return,
        }
        if source.is_empty() {
            return;
        }
    }
}
