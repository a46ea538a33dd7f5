//! Rows 32 to 39 of the bad-input table: passwords of wrong lengths, and what is wrong within SCRAM.

use helios_pgwire::scram::{Channel, ClientFirst};
use helios_tests::cluster::password;
use helios_tests::raw::{Next, PATIENCE, Raw, message, startup};

use super::write::*;
use super::{Case, End, Step};

/// A SASLInitialResponse whose inner length is what it should be, or this.
fn initial(mechanism: &str, first: &[u8], length: Option<u32>) -> Vec<u8> {
    let mut body = mechanism.as_bytes().to_vec();
    body.push(0);
    let there = u32::try_from(first.len()).unwrap_or(u32::MAX);
    body.extend_from_slice(&length.unwrap_or(there).to_be_bytes());
    body.extend_from_slice(first);
    message(b'p', &body)
}

/// A StartupMessage of `user`; once it is asked for a credential, these bytes.
fn asked(row: &'static str, what: &'static str, user: &str, bytes: Vec<u8>) -> Case {
    let begin = Step::Send(startup(V3, &[("user", user), ("database", "postgres")]));
    case(row, what, vec![begin, Step::Asked, Step::Send(bytes)], End::Closed)
}

/// Rows 32 and 33.
pub(super) fn passwords() -> Vec<Case> {
    let wrong = |row, what, user: &str| {
        let begin = Step::Send(startup(V3, &[("user", user), ("database", "postgres")]));
        case(row, what, vec![begin, Step::Authenticate(user.into(), "wrong".into())], End::Closed)
    };
    vec![
        asked("32", "password of length 3", "clear", lying(Some(b'p'), 3, b"")),
        asked(
            "32",
            "password of 70,000 bytes",
            "clear",
            message(b'p', &[&[b'x'; 70_000][..], &[0]].concat()),
        ),
        asked("32", "password of 10 MB", "clear", lying(Some(b'p'), 10_000_000, &[b'x'; 100])),
        asked("32", "password of 0xffffffff", "clear", lying(Some(b'p'), u32::MAX, b"x")),
        asked("32", "SASL response of 0xffffffff", "app", lying(Some(b'p'), u32::MAX, b"x")),
        wrong("33", "unknown role", "nobody-knows-me"),
        wrong("33", "wrong password", "app"),
    ]
}

/// Rows 34 to 39; `tls`: inside TLS, where the server offers channel binding.
pub(super) fn exchanges(tls: bool) -> Vec<Case> {
    let plain = "SCRAM-SHA-256";
    let good = b"n,,n=,r=abcdefghijklmnopqrstuvwx";
    let first = |text: &str| initial(plain, text.as_bytes(), None);
    let nonce = |nonce: &str| first(&format!("n,,n=,r={nonce}"));
    let mut cases = vec![
        asked("34", "unknown mechanism", "app", initial("SCRAM-SHA-1", good, None)),
        asked("34", "no mechanism", "app", initial("", good, None)),
        asked("34", "PLUS with gs2 n", "app", initial("SCRAM-SHA-256-PLUS", good, None)),
        asked(
            "34",
            "PLUS of an unknown kind",
            "app",
            initial("SCRAM-SHA-256-PLUS", b"p=tls-unique,,n=,r=abcdefghijkl", None),
        ),
        asked("35", "inner length 500", "app", initial(plain, good, Some(500))),
        asked("35", "inner length 0xfffffff0", "app", initial(plain, good, Some(0xffff_fff0))),
        asked("35", "inner length too small", "app", initial(plain, good, Some(3))),
        asked("35", "nothing behind the mechanism", "app", message(b'p', b"SCRAM-SHA-256\0")),
        asked("35", "mechanism without its end", "app", message(b'p', b"SCRAM-SHA-256")),
        asked("35", "NUL inside", "app", first("n,,n=,r=abc\0defghijklmnop")),
        asked("36", "nonce that cannot be printed", "app", nonce("abc\u{7f}defghijklmnop")),
        asked("36", "nonce not ASCII", "app", nonce("abc\u{e9}defghijklmnop")),
        asked("36", "empty message", "app", first("")),
        asked("37", "gs2 with an authorization identity", "app", first("n,a=other,n=,r=abcdefghijklmnop")),
        asked("37", "mandatory extension", "app", first("n,,m=x,n=,r=abcdefghijklmnop")),
        asked("37", "gs2 garbage", "app", first("x,,n=,r=abcdefghijklmnop")),
        asked("37", "gs2 cut off", "app", first("n")),
        asked("37", "no user name", "app", first("n,,r=abcdefghijklmnop")),
        asked("37", "no nonce", "app", first("n,,n=")),
        asked("38", "gs2 p without PLUS", "app", first("p=tls-server-end-point,,n=,r=abcdefghijklmnop")),
    ];
    let mut second = |row, what, first: Vec<u8>, bytes: &[u8]| {
        let mut case = asked(row, what, "app", first);
        case.steps.extend([Step::Asked, Step::Send(message(b'p', bytes))]);
        cases.push(case);
    };
    // Without TLS there is nothing to bind to, and the exchange goes on.
    second(
        "38",
        "gs2 y",
        first("y,,n=,r=abcdefghijklmnop"),
        b"c=eSws,r=other,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    );
    second("36", "nonce of 2,000 bytes", nonce(&"n".repeat(2000)), b"c=biws,r=x,p=x");
    second(
        "39",
        "another nonce",
        first("n,,n=,r=abcdefghijklmnop"),
        b"c=biws,r=other,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    );
    second("39", "last message without a proof", first("n,,n=,r=abcdefghijklmnop"), b"c=biws,r=other");
    second("39", "empty last message", first("n,,n=,r=abcdefghijklmnop"), b"");
    second(
        "38",
        "channel binding in the last message",
        first("n,,n=,r=abcdefghijklmnop"),
        b"c=eSws,r=other,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
    );
    if tls {
        for case in &mut cases {
            case.steps.splice(0..0, [Step::Send(SSL.to_vec()), Step::Byte, Step::Tls(&[])]);
        }
        return cases;
    }
    cases.push(case("39", "last message of another session", vec![Step::Replayed], End::Closed));
    cases
}

/// The next authentication request's data.
fn challenge(raw: &mut Raw) -> Vec<u8> {
    match raw.next(PATIENCE) {
        Next::Message(m) if m.tag == b'R' => m.body[4..].to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Two logins with the same first message; what answers the first one's challenge goes to the second.
pub(super) fn replay(raw: &mut Raw, port: u16) {
    let client = ClientFirst::new(Channel::Plain);
    let begin = [startup(V3, &APP), initial("SCRAM-SHA-256", &client.message(), None)];
    let mut other = Raw::connect(port);
    for raw in [&mut *raw, &mut other] {
        raw.send(&begin[0]);
        challenge(raw);
        raw.send(&begin[1]);
    }
    challenge(raw);
    let asked = client.challenge(&challenge(&mut other)).unwrap();
    let keys = helios_pgwire::scram::Keys::derive(password("app").as_bytes(), &asked.salt, asked.iterations);
    let (answer, _) = asked.answer(&keys);
    raw.send(&message(b'p', &answer));
}
