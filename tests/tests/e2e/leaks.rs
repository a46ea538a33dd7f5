//! What one client leaves behind on a server connection that another client of the same role gets next: in texts that
//! hide it from a reader (bodies, escaped names, names that are keywords), in function calls without a text, and in the
//! unnamed statement. Never relies on privileges: both clients are the same role.

use helios_pgwire::frame::put;
use helios_tests::raw::{message, query};
use helios_tests::{Cluster, Config, Message, Proxy, Raw, eventually};
use std::time::Duration;

/// OID of `pg_advisory_lock(bigint)`.
const PG_ADVISORY_LOCK: u32 = 2880;

fn proxy() -> Proxy {
    Config { pool: 1, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

/// First field of the first row, or the error's SQLSTATE.
fn answer(messages: &[Message]) -> String {
    let found = messages.iter().find(|m| matches!(m.tag, b'D' | b'E')).unwrap();
    if found.tag == b'E' { found.sqlstate() } else { found.fields().concat() }
}

fn look(proxy: &Proxy, sql: &str) -> String {
    answer(&proxy.raw("app").0.query(sql))
}

fn call(oid: u32, argument: i64) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 1, 0, 1, 0, 1, 0, 0, 0, 8]);
    body.extend_from_slice(&argument.to_be_bytes());
    body.extend_from_slice(&[0, 1]);
    message(b'F', &body)
}

#[test]
fn nothing_hidden_in_a_text_is_left_for_the_next_client() {
    let proxy = proxy();
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4720 and pid = pg_backend_pid()";
    let path = "select current_setting('search_path')";
    for (leave, see, want) in [
        ("do $$ begin perform set_config('search_path', 'evil', false); end $$", path, "\"$user\", public"),
        ("do $$ begin create temp table hidden (i int); end $$", "select * from hidden", "42P01"),
        ("do $$ begin perform pg_advisory_lock(4720); end $$", locks, "0"),
        ("do $$ begin listen hidden; end $$", "select count(*) from pg_listening_channels()", "0"),
        ("do $$ begin execute 'prepare hidden as select 5'; end $$", "execute hidden", "26000"),
        ("set local.x = 'hidden'", "show local.x", "42704"),
        ("set transaction.x = 'hidden'", "show transaction.x", "42704"),
        ("set constraints.x = 'hidden'", "show constraints.x", "42704"),
        ("prepare transaction as select 7", "execute transaction", "26000"),
        ("create table U&\"pg\\005ftemp\".hidden (i int)", "select * from hidden", "42P01"),
        (
            "create or replace function hidden() returns int begin atomic select 1 as case; end; \
             set search_path = 'evil'",
            path,
            "\"$user\", public",
        ),
    ] {
        let (mut client, _) = proxy.raw("app");
        let left = client.query(leave);
        assert!(left.iter().all(|m| m.tag != b'E'), "{leave}: {left:?}");
        drop(client);
        assert_eq!(look(&proxy, see), want, "{leave}");
    }
}

#[test]
fn a_lock_taken_by_a_function_call_ends_with_its_client() {
    let proxy = proxy();
    for before in [vec![], query("discard all")] {
        let (mut client, _) = proxy.raw("app");
        let answers = 1 + usize::from(!before.is_empty());
        client.send(&[before, call(PG_ADVISORY_LOCK, 4721)].concat());
        client.until_ready(answers);
        drop(client);
        let locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4721";
        // A backend ends, and its locks with it, after its connection is closed.
        eventually(helios_tests::raw::PATIENCE, "the lock is free", || look(&proxy, locks) == "0");
    }
}

#[test]
fn the_unnamed_statement_of_another_client_is_out_of_reach() {
    let proxy = proxy();
    let (mut first, _) = proxy.raw("app");
    let mut second: Raw = proxy.raw("app").0;
    let mut secret = Vec::new();
    put(&mut secret, b'P', |b| b.extend_from_slice(b"\0select 'of another client'\0\0\0"));
    let run = [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', b"")].concat();
    first.send(&[secret, run.clone()].concat());
    assert_eq!(answer(&first.until_ready(1)), "of another client");
    second.send(&[message(b'C', b"Sx\0"), message(b'H', b""), run].concat());
    let (said, _) = second.rest(helios_tests::raw::PATIENCE);
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("26000") && !said.contains("another"), "{said:?}");
}

#[test]
fn a_role_that_is_serializable_by_default_is_served() {
    let proxy = Config::new(Cluster::shared()).start().ready();
    let mut config = proxy.config("app");
    let mut client =
        config.options("-c default_transaction_isolation=serializable").connect(postgres::NoTls).unwrap();
    for sql in ["select count(*) from pg_class", "select 1", "select 2"] {
        assert_eq!(client.simple_query(sql).unwrap().len(), 3, "{sql}");
    }
    client.batch_execute("begin read only; select 3; commit").unwrap();
    for sql in ["begin read only", "select 4", "commit"] {
        client.batch_execute(sql).unwrap();
    }
}

#[test]
fn settings_of_a_role_that_change_reach_an_old_client_and_are_not_left_to_the_next() {
    let cluster = Cluster::shared();
    let mut admin = cluster.primary().superuser();
    admin
        .batch_execute("drop role if exists moody; create role moody login password 'moody-secret'")
        .unwrap();
    admin.batch_execute("alter role moody set standard_conforming_strings = off").unwrap();
    let proxy = Config { pool: 1, ..Config::primary_only(cluster) }.start().ready();
    let mut old = Raw::login(proxy.port(), "moody", "moody-secret").0;
    old.query("select 1");
    admin.batch_execute("alter role moody reset all; alter role moody set timezone = 'Asia/Tokyo'").unwrap();
    eventually(Duration::from_secs(10), "the backend ends", || {
        let ended = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'moody'";
        admin.simple_query(ended).unwrap();
        admin.query("select from pg_stat_activity where usename = 'moody'", &[]).unwrap().is_empty()
    });
    // Read by the old rules this is one string; by the new ones a SET stands behind it.
    let answers = old.query(r"select '\'; set my.leak = 5; --'");
    let told = |name: &str| {
        answers.iter().any(|m| m.tag == b'S' && m.body.starts_with(format!("{name}\0").as_bytes()))
    };
    assert!(told("TimeZone") && told("standard_conforming_strings"), "{answers:?}");
    old.send(&message(b'X', b""));
    let mut next = Raw::login(proxy.port(), "moody", "moody-secret").0;
    assert_eq!(answer(&next.query("select current_setting('my.leak', true)")), "null");
}
