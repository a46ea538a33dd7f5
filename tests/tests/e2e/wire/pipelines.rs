//! Corner cases B1 and B3 to B6 of the protocol: the extended protocol.

use helios_tests::raw::query;

use super::Case;
use super::write::*;

/// B1, B3 to B6: the extended protocol.
pub(super) fn pipelines() -> Vec<Case> {
    let insert = "insert into copy_target values (-1)";
    let count = query("select count(*) from copy_target where i = -1");
    vec![
        alive(
            "B1",
            "error half-way",
            join(&[unnamed("select 1"), unnamed("select 1/0"), unnamed("select 3"), sync()]),
        ),
        alive(
            "B1",
            "earlier insert is undone",
            join(&[unnamed(insert), unnamed("select 1/0"), sync(), count]),
        ),
        alive(
            "B1",
            "queries are dropped up to Sync",
            join(&[unnamed("select 1/0"), query("select 2"), query("select 3"), sync(), query("select 4")]),
        ),
        alive("B1", "two blocks", join(&[unnamed("select 1/0"), sync(), unnamed("select 2"), sync()])),
        alive("B1", "parse error", join(&[unnamed("selec 1"), unnamed("select 2"), sync()])),
        alive(
            "B3",
            "Query after un-Synced messages",
            join(&[unnamed("select 1"), query("select 2"), sync()]),
        ),
        alive("B3", "Query after a Parse (58)", join(&[parse("", "select 1"), query("select 2"), sync()])),
        alive(
            "B3",
            "Query after a failed extended part (56)",
            join(&[parse("", "select 1"), bind("", "nosuch"), query("select 2"), sync(), query("select 3")]),
        ),
        alive(
            "B3",
            "Query that fails after un-Synced messages",
            join(&[unnamed("select 1"), query("select 1/0"), unnamed("select 2"), sync()]),
        ),
        alive(
            "B4",
            "several Syncs",
            join(&[
                unnamed("select 1"),
                sync(),
                unnamed("select 2"),
                sync(),
                sync(),
                query("select 3"),
                sync(),
            ]),
        ),
        alive(
            "B4",
            "a transaction in several blocks",
            join(&[
                unnamed("begin"),
                sync(),
                unnamed("select 1/0"),
                sync(),
                unnamed("select 2"),
                sync(),
                unnamed("rollback"),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal kept over Flush",
            join(&[
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                flush(),
                execute("c", 2),
                flush(),
                execute("c", 2),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal gone after Sync",
            join(&[
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                sync(),
                execute("c", 2),
                sync(),
            ]),
        ),
        alive(
            "B5",
            "portal lives in a transaction",
            join(&[
                query("begin"),
                parse("", "select generate_series(1, 5)"),
                bind("c", ""),
                execute("c", 2),
                sync(),
                execute("c", 2),
                sync(),
                query("commit"),
            ]),
        ),
        alive("B6", "Close of nothing", join(&[close('S', "nosuch"), close('P', "nosuch"), sync()])),
        alive("B6", "Describe of a missing statement", join(&[describe_of('S', "nosuch"), sync()])),
        alive("B6", "Describe of a missing portal", join(&[describe_of('P', "nosuch"), sync()])),
        alive(
            "B6",
            "closing a portal keeps the statement",
            join(&[
                parse("n", "select 1"),
                bind("n", "n"),
                close('P', "n"),
                describe_of('S', "n"),
                bind("", "n"),
                execute("", 0),
                sync(),
            ]),
        ),
        alive(
            "B6",
            "closing a statement closes its portal",
            join(&[parse("n", "select 1"), bind("n", "n"), close('S', "n"), execute("n", 0), sync()]),
        ),
        alive(
            "B6",
            "describe statement without rows",
            join(&[parse("", "begin"), describe_of('S', ""), sync()]),
        ),
        alive(
            "B6",
            "describe statement with a parameter",
            join(&[parse("", "select $1::int"), describe_of('S', ""), sync()]),
        ),
        alive(
            "B6",
            "Describe of kind X, Close of kind Z (52)",
            join(&[describe_of('X', ""), sync(), close('Z', ""), sync()]),
        ),
    ]
}
