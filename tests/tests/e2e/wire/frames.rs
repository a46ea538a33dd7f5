//! Rows 40 to 46, 57 and 60 of the bad-input table: frames after the login.

use helios_tests::raw::{message, query, startup};

use super::write::*;
use super::{Case, End, Step};

/// Rows 40 to 46, 57 and 60: frames after the login.
pub(super) fn frames() -> Vec<Case> {
    let unknown = |what, tag: u8| fatal("40", what, message(tag, b"x\0"));
    let types: Vec<u8> = [&[0, 0, 0xff, 0xff][..], &[0; 4 * 0xffff]].concat();
    let mut many = b"s\0select 1\0".to_vec();
    many.extend_from_slice(&types[2..]);
    let mut cases = vec![
        unknown("type z", b'z'),
        unknown("type q", b'q'),
        unknown("type NUL", 0),
        unknown("type p", b'p'),
        unknown("type R", b'R'),
        fatal("40", "SSLRequest after login", SSL.to_vec()),
        fatal("40", "startup after login", startup(V3, &APP)),
        alive("42", "Query of length 4", message(b'Q', b"")),
        alive("42", "Query without NUL", message(b'Q', b"select 1")),
        alive("42", "Query with bytes after NUL", message(b'Q', b"select 1\0x")),
        alive("42", "Query with a second NUL", message(b'Q', b"select 1\0\0")),
        alive("43", "Sync with a body", message(b'S', b"x")),
        alive("43", "Flush with a body", message(b'H', b"x")),
        fatal("43", "Sync of length 10,001", message(b'S', &[0; 9_997])),
        case("44", "half a Terminate", vec![Step::Login("app"), Step::Send(b"X\0\0".to_vec())], End::Silent),
        case(
            "45",
            "Query of 100 bytes, 8 sent, then gone",
            vec![Step::Login("app"), Step::Send(lying(Some(b'Q'), 100, b"sel")), Step::HalfClose],
            End::Closed,
        ),
        alive("46", "Parse too short", message(b'P', b"\0select 1\0\0")),
        alive("46", "Parse without types", message(b'P', b"\0select 1\0")),
        alive("46", "Parse of 65,535 types that are not there", message(b'P', b"s\0select 1\0\xff\xff")),
        alive("46", "Parse of 65,535 types", message(b'P', &many)),
        alive("46", "Parse without NUL", message(b'P', b"\0select 1")),
        alive("46", "Parse with a name without NUL", message(b'P', b"name")),
        alive("46", "Parse of nothing", message(b'P', b"")),
        alive("46", "Parse with bytes after it", message(b'P', b"\0select 1\0\0\0x")),
        alive("57", "Sync x 1,000", sync().repeat(1000)),
        alive("60", "CopyData outside COPY", message(b'd', b"1\n")),
        alive("60", "CopyDone outside COPY", message(b'c', b"")),
        alive("60", "CopyFail outside COPY", message(b'f', b"x\0")),
        alive(
            "60",
            "all three, then a query",
            join(&[message(b'd', b"1\n"), message(b'c', b""), message(b'f', b"x\0"), query("select 1")]),
        ),
    ];
    for (what, len) in [("0", 0), ("3", 3), ("0x40000000", 0x4000_0000), ("0xffffffff", u32::MAX)] {
        cases.push(fatal("41", what, lying(Some(b'Q'), len, b"select 1\0")));
    }
    cases
}
