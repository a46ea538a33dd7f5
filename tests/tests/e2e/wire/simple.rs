//! Corner cases B7, B16, B19 and B31 of the protocol: COPY, several statements in one text, half-closed connections, odd
//! texts.

use helios_tests::raw::{message, query};

use super::write::*;
use super::{Case, End, Step};

/// B7, B16, B19, B31: COPY, multi-statements, half-close, odd texts.
pub(super) fn simple() -> Vec<Case> {
    let copy = query("copy copy_target from stdin");
    let data = |text: &str| message(b'd', text.as_bytes());
    let done = || message(b'c', b"");
    let two = "copy copy_target from stdin; copy copy_target from stdin; select 7";
    let mut cases = vec![
        alive("B7", "COPY", join(&[copy.clone(), data("1\n"), data("2\n"), done()])),
        alive(
            "B7",
            "bad row, the rest is swallowed",
            join(&[
                copy.clone(),
                data("x\n"),
                data("2\n"),
                done(),
                data("3\n"),
                message(b'f', b"x\0"),
                query("select 1"),
            ]),
        ),
        alive("B7", "CopyFail (63)", join(&[copy.clone(), data("1\n"), message(b'f', b"no\0")])),
        alive(
            "B7",
            "Sync and Flush inside COPY",
            join(&[copy.clone(), data("1\n"), sync(), flush(), data("2\n"), done()]),
        ),
        alive("B7", "two COPYs in one Query", join(&[query(two), data("1\n"), done(), data("2\n"), done()])),
        alive("B7", "COPY fails at once", join(&[query("copy nosuch from stdin"), data("1\n"), done()])),
        alive("B7", "COPY OUT", query("copy (select generate_series(1, 3)) to stdout")),
        alive(
            "B7",
            "COPY by the extended protocol",
            join(&[
                parse("", "copy copy_target from stdin"),
                bind("", ""),
                execute("", 0),
                data("1\n"),
                done(),
                sync(),
            ]),
        ),
        fatal("B7", "Query inside COPY (61)", join(&[copy.clone(), data("1\n"), query("select 1")])),
        fatal("B7", "unknown type inside COPY", join(&[copy, message(b'z', b"")])),
        alive("B16", "begin and a row", join(&[query("begin; select 1"), query("rollback")])),
        alive("B16", "commit, then an error", query("select 1; commit; select 1/0")),
        alive("B16", "begin, commit, then an error", query("begin; select 1; commit; select 1/0")),
        alive(
            "B16",
            "failed transaction",
            join(&[query("begin"), query("select 1/0"), query("select 2"), query("commit")]),
        ),
        alive("B16", "rollback of nothing", query("rollback")),
        alive("B16", "begin twice", join(&[query("begin"), query("begin"), query("commit")])),
        alive(
            "B16",
            "savepoint",
            join(&[
                query("begin; savepoint a"),
                query("select 1/0"),
                query("rollback to a"),
                query("select 1"),
                query("commit and chain"),
                query("commit"),
            ]),
        ),
        alive("B16", "vacuum in a multi-statement", query("select 1; vacuum copy_target")),
        case(
            "B19",
            "half-close",
            vec![Step::Login("app"), Step::Send(query("select 1 from pg_sleep(0.2)")), Step::HalfClose],
            End::Closed,
        ),
        case("B19", "half-close of an idle session", vec![Step::Login("app"), Step::HalfClose], End::Closed),
        fatal(
            "B19",
            "queries, then Terminate",
            join(&[query("select 1"), query("select 2"), message(b'X', b"")]),
        ),
        alive("B31", "empty", query("")),
        alive("B31", "semicolons", query(";;")),
        alive("B31", "comment", query("/* nothing */ -- at all")),
        alive("B31", "empty, extended", join(&[unnamed(""), sync()])),
        alive("B31", "NUL inside", message(b'Q', b"select 1; \0 select 2\0")),
        alive("B31", "not UTF-8", message(b'Q', b"select '\xff\xfe'\0")),
        alive("B31", "not UTF-8, extended", join(&[message(b'P', b"\0select '\xff'\0\0\0"), sync()])),
        alive("B31", "syntax error", query("selec 1")),
        alive("B31", "notice", query("do $$ begin raise notice 'a'; raise warning 'b'; end $$")),
        alive("B31", "long row", query("select repeat('x', 300000), 1")),
        alive("B31", "many rows", query("select generate_series(1, 5000) % 2 = 3")),
    ];
    let two = vec![
        Step::Login("app"),
        Step::Send(query("begin")),
        Step::Ready(1),
        Step::Send(query("select 1/0")),
        Step::Ready(1),
        Step::Send(query("rollback")),
    ];
    cases.push(case("B16", "states one by one", two, End::Probe));
    cases
}
