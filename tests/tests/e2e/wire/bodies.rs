//! Rows 47 to 56, 59, 62 and 75 of the bad-input table: what is wrong within messages of the extended protocol, calls of
//! functions, and much data after an error.

use helios_tests::raw::{message, query};

use super::Case;
use super::write::*;

/// Rows 47, 48, 53 to 55.
pub(super) fn statements() -> Vec<Case> {
    let mut many: Vec<u8> =
        (0..10_000).flat_map(|i| parse(&format!("s{i}"), &format!("select {i}"))).collect();
    many.extend(join(&[sync(), bind("", "s0"), execute("", 0), bind("", "s9999"), execute("", 0), sync()]));
    many.extend(join(&[close('S', "s0"), bind("", "s0"), execute("", 0), sync()]));
    let internal = "hp_00000000000000000000000000000000";
    vec![
        alive("47", "Parse of two statements", join(&[unnamed("select 1; select 2"), sync()])),
        alive(
            "47",
            "Parse of two statements, by name",
            join(&[parse("n", "select 1; select 2"), bind("", "n"), sync()]),
        ),
        alive(
            "48",
            "the same name twice",
            join(&[
                parse("n", "select 1"),
                parse("n", "select 2"),
                sync(),
                bind("", "n"),
                execute("", 0),
                sync(),
            ]),
        ),
        alive(
            "48",
            "the unnamed one twice",
            join(&[parse("", "select 1"), parse("", "select 2"), bind("", ""), execute("", 0), sync()]),
        ),
        alive("53", "Execute of a missing portal", join(&[execute("nosuch", 0), sync()])),
        alive("53", "Execute of the unnamed portal that is not there", join(&[execute("", 0), sync()])),
        alive(
            "53",
            "Execute with max -1",
            join(&[
                parse("", "select generate_series(1, 3)"),
                bind("", ""),
                message(b'E', b"\0\xff\xff\xff\xff"),
                sync(),
            ]),
        ),
        alive(
            "53",
            "Execute without max",
            join(&[parse("", "select 1"), bind("", ""), message(b'E', b"\0"), sync()]),
        ),
        alive("54", "10,000 named statements", many),
        alive(
            "55",
            "a name of the proxy's kind",
            join(&[
                parse(internal, "select 5"),
                sync(),
                bind("", internal),
                execute("", 0),
                sync(),
                close('S', internal),
                bind("", internal),
                sync(),
            ]),
        ),
        alive(
            "55",
            "a name of the proxy's kind that is not there",
            join(&[bind("", internal), sync(), describe_of('S', "hp_deallocated"), sync()]),
        ),
        alive(
            "55",
            "SQL DEALLOCATE by the extended protocol",
            join(&[
                parse("d1", "select 1"),
                sync(),
                unnamed("deallocate d1"),
                sync(),
                bind("", "d1"),
                sync(),
                unnamed("deallocate d1"),
                sync(),
            ]),
        ),
        alive(
            "55",
            "SQL DEALLOCATE ALL by the extended protocol",
            join(&[
                parse("d1", "select 1"),
                sync(),
                unnamed("deallocate all"),
                sync(),
                bind("", "d1"),
                sync(),
                parse("d1", "select 2"),
                bind("", "d1"),
                execute("", 0),
                sync(),
            ]),
        ),
        alive(
            "55",
            "SQL DEALLOCATE in a failed transaction",
            join(&[
                parse("d1", "select 1"),
                sync(),
                query("begin"),
                unnamed("select 1/0"),
                sync(),
                unnamed("deallocate d1"),
                sync(),
                query("rollback"),
                bind("", "d1"),
                execute("", 0),
                sync(),
                unnamed("deallocate d1"),
                sync(),
                unnamed("deallocate d1"),
                sync(),
            ]),
        ),
        alive(
            "55",
            "SQL DEALLOCATE among other statements",
            join(&[
                parse("d1", "select 1"),
                sync(),
                unnamed("deallocate d1"),
                unnamed("select 2"),
                parse("d1", "select 3"),
                bind("", "d1"),
                execute("", 0),
                sync(),
            ]),
        ),
        alive(
            "55",
            "SQL DEALLOCATE behind an error",
            join(&[
                parse("d1", "select 1"),
                sync(),
                unnamed("select 1/0"),
                unnamed("deallocate d1"),
                sync(),
                bind("", "d1"),
                execute("", 0),
                sync(),
            ]),
        ),
    ]
}

/// A Bind of the unnamed statement with these parts behind the names.
fn raw_bind(rest: &[u8]) -> Vec<u8> {
    message(b'B', &[b"\0\0", rest].concat())
}

/// Rows 49 to 52.
pub(super) fn binds() -> Vec<Case> {
    let text = |what, row, rest: &[u8]| {
        alive(row, what, join(&[parse("", "select $1::text"), raw_bind(rest), execute("", 0), sync()]))
    };
    vec![
        alive("49", "Bind to nothing", join(&[bind("", "nosuch"), sync()])),
        text("one parameter as text", "50", b"\0\0\0\x01\0\0\0\x01a\0\0"),
        text("two parameters for one", "50", b"\0\0\0\x02\0\0\0\x01a\0\0\0\x01b\0\0"),
        text("no parameter for one", "50", b"\0\0\0\0\0\0"),
        text("length -2", "50", b"\0\0\0\x01\xff\xff\xff\xfea\0\0"),
        text("length past the end", "50", b"\0\0\0\x01\0\0\x01\0a\0\0"),
        text("length 0x7fffffff", "50", b"\0\0\0\x01\x7f\xff\xff\xffa\0\0"),
        text("NULL", "50", b"\0\0\0\x01\xff\xff\xff\xff\0\0"),
        text("format 7", "50", b"\0\x01\0\x07\0\x01\0\0\0\x01a\0\0"),
        text("three formats", "50", b"\0\x03\0\0\0\0\0\0\0\x01\0\0\0\x01a\0\0"),
        text("three result formats", "50", b"\0\0\0\x01\0\0\0\x01a\0\x03\0\0\0\0\0\0"),
        text("result format 7", "50", b"\0\0\0\x01\0\0\0\x01a\0\x01\0\x07"),
        text("65,535 parameters that are not there", "50", b"\0\0\xff\xff\0\0"),
        text("bytes behind it", "50", b"\0\0\0\x01\0\0\0\x01a\0\0x"),
        text("nothing behind the names", "50", b""),
        alive("50", "names without an end", join(&[parse("", "select 1"), message(b'B', b"xyz"), sync()])),
        alive("50", "nothing at all", join(&[parse("", "select 1"), message(b'B', b""), sync()])),
        text("NUL in a text", "51", b"\0\0\0\x01\0\0\0\x03a\0b\0\0"),
        text("not UTF-8", "51", b"\0\0\0\x01\0\0\0\x02\xff\xfe\0\0"),
        alive("52", "Describe of kind X", join(&[describe_of('X', "n"), sync()])),
        alive("52", "Close of kind Z", join(&[close('Z', "n"), sync()])),
        alive("52", "Describe of nothing", join(&[message(b'D', b""), sync()])),
        alive("52", "Close of nothing", join(&[message(b'C', b""), sync()])),
        alive("52", "Describe without an end", join(&[message(b'D', b"Sabc"), sync()])),
        alive("52", "Describe with bytes behind it", join(&[message(b'D', b"S\0x"), sync()])),
    ]
}

/// Rows 59 and 62; 56, 58, 61 and 63 are among the corner cases of the protocol.
pub(super) fn others() -> Vec<Case> {
    let call = |rest: &[u8]| message(b'F', rest);
    let data = message(b'd', &[b'1', b'\n'].repeat(32 * 1024));
    let copy = join(&[
        query("copy copy_target from stdin"),
        message(b'd', b"x\n"),
        data.repeat(300),
        message(b'c', b""),
        query("select 2"),
    ]);
    vec![
        alive("59", "FunctionCall of OID 0", call(b"\0\0\0\0\0\0\0\0\0\0")),
        alive("59", "FunctionCall too short", call(b"\0\0")),
        alive("59", "FunctionCall of nothing", call(b"")),
        alive(
            "59",
            "FunctionCall with a length past its end",
            call(b"\0\0\x05\x20\0\0\0\x01\x7f\xff\xff\xff\0\0"),
        ),
        alive("62", "bad row, then 20 MB", copy),
        alive(
            "75",
            "10,000 parentheses",
            query(&format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000))),
        ),
        alive("75", "20,000 comments", query(&format!("select {} 1", "/**/".repeat(20_000)))),
    ]
}
