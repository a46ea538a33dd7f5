//! What one client does on a server connection is out of the reach of the next one, and its answers are its own: also where a
//! message is too long to be read, where the server skips it, and where a COPY fails. Each was a fault once. Never measures
//! a time.

use std::time::Duration;

use helios_tests::raw::{Message, Next, PATIENCE, Raw, message, query, sync};
use helios_tests::{Cluster, Config, Proxy, cluster, eventually};

use super::lost::{ask, extended, one_shot, seen};

/// With one server connection, for which nobody waits long.
fn one() -> Proxy {
    Config { pool: 1, acquire_timeout: 1, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

fn pair(proxy: &Proxy) -> (Raw, Raw) {
    (proxy.raw("app").0, proxy.raw("app").0)
}

/// Everything up to the answer to the Query that was sent last, with this value.
fn until(raw: &mut Raw, value: &str) -> Vec<String> {
    let mut all: Vec<Message> = Vec::new();
    loop {
        let Next::Message(message) = raw.next(PATIENCE) else { panic!("{:?}", seen(&all)) };
        let over = message.tag == b'Z' && seen(&all).contains(&format!("D:{value}"));
        all.push(message);
        if over {
            return seen(&all);
        }
    }
}

/// Another client gets no connection while this one is tied to it, and once this one has gone finds nothing of it.
#[track_caller]
fn nothing_is_left(first: Raw, second: &mut Raw, run: &[u8], expected: &[&str]) {
    assert_eq!(ask(second, run, 1), ["E:53300", "Z:I"], "the first one is tied");
    drop(first);
    eventually(PATIENCE, "it is free again", || ask(second, &query("select 1"), 1)[0] == "D:1");
    assert_eq!(ask(second, run, 1), expected);
}

#[test]
fn a_copy_that_fails_gives_its_answers_to_nobody_else() {
    Cluster::shared().execute(
        "create table slow_copy (x int);
         create function slow_copy() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.3); raise exception 'no'; end $$;
         create trigger slow_copy before insert on slow_copy for each statement execute function slow_copy();
         grant all on slow_copy to app",
    );
    let proxy = Config { pool: 1, acquire_timeout: 60, ..Config::primary_only(Cluster::shared()) };
    let proxy = proxy.start().ready();
    let copy = one_shot("copy slow_copy from stdin");
    let line = message(b'd', b"1\n");
    for round in 0..12usize {
        let mut a = proxy.raw("app").0;
        let mut others: Vec<Raw> = (0..3).map(|_| proxy.raw("app").0).collect();
        let data = line.repeat([1, 200, 1000, 10_000][round / 2 % 4]);
        // The server may come to a Sync as part of the COPY, or after it has failed.
        let (begin, rest) = match round % 2 {
            0 => (copy.clone(), [data, message(b'c', b""), sync()].concat()),
            _ => (query("copy slow_copy from stdin"), [data, sync(), message(b'c', b"")].concat()),
        };
        a.send(&begin);
        while !matches!(a.next(PATIENCE), Next::Message(message) if message.tag == b'G') {}
        a.send(&rest);
        for (n, other) in others.iter_mut().enumerate() {
            other.send(&query(&format!("select 'of client {n}'")));
        }
        let failed = seen(&a.until_ready(1));
        assert_eq!(failed[0], "E:P0001", "{failed:?}");
        a.send(&query("select 'again'"));
        let again = until(&mut a, "again");
        assert!(again.iter().all(|m| matches!(m.as_str(), "Z:I" | "D:again" | "C:SELECT 1")), "{again:?}");
        for (n, other) in others.iter_mut().enumerate() {
            let expected = [format!("D:of client {n}"), "C:SELECT 1".to_owned(), "Z:I".to_owned()];
            assert_eq!(seen(&other.until_ready(1)), expected, "round {round}");
        }
    }
}

#[test]
fn a_copy_that_ends_before_its_data_is_answered_as_postgresql_does() {
    Cluster::shared().execute("create view no_copy as select 1 as x; grant all on no_copy to app");
    let run = one_shot("copy no_copy from stdin");
    let primary = Cluster::shared().primary();
    let (mut direct, _) = Raw::login(primary.port, "app", &cluster::password("app"));
    let proxy = one();
    let (mut raw, _) = proxy.raw("app");
    let expected = ask(&mut direct, &run, 1);
    assert_eq!(ask(&mut raw, &run, 1), expected);
    assert_eq!(ask(&mut raw, &query("select 1"), 1), ["D:1", "C:SELECT 1", "Z:I"]);
}

#[test]
fn a_copy_that_failed_keeps_no_server_connection_while_its_client_is_idle() {
    Cluster::shared().execute("create table ints (x int); grant all on ints to app");
    let proxy = one();
    let (mut a, mut b) = pair(&proxy);
    a.send(&query("copy ints from stdin"));
    let Next::Message(begun) = a.next(PATIENCE) else { panic!() };
    assert_eq!(begun.tag, b'G');
    let more = message(b'd', &[b'1'; 10_000]);
    a.send(&[&message(b'd', b"x\n")[..], &more[..5000]].concat());
    assert_eq!(seen(&a.until_ready(1)), ["E:22P02", "Z:I"]);
    a.send(&[&more[5000..], &message(b'c', b"")].concat());
    eventually(PATIENCE, "it is free", || ask(&mut b, &query("select 1"), 1)[0] == "D:1");
}

#[test]
fn a_setting_in_a_text_too_long_to_be_read_stays_with_its_session() {
    let proxy = one();
    let (mut a, mut b) = pair(&proxy);
    let show = query("show search_path");
    let before = ask(&mut b, &show, 1);
    a.query("begin");
    let sql = format!("set search_path to pg_temp, pg_catalog /* {} */", "x".repeat(300_000));
    assert_eq!(ask(&mut a, &one_shot(&sql), 1).last().unwrap(), "Z:T");
    a.query("commit");
    nothing_is_left(a, &mut b, &show, &before.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_name_of_a_text_too_long_to_be_read_stays_with_its_session() {
    let proxy = one();
    let (mut a, mut b) = pair(&proxy);
    a.query("begin");
    let parse = [b"mine\0select 'secret of a' /*", &[b'x'; 300_000][..], b"*/\0\0\0"].concat();
    assert_eq!(ask(&mut a, &extended(&[(b'P', &parse), (b'S', b"")]), 1), ["1", "Z:T"]);
    a.query("commit");
    let run = extended(&[(b'B', b"\0mine\0\0\0\0\0\0\0"), (b'E', &[0; 5]), (b'S', b"")]);
    nothing_is_left(a, &mut b, &run, &["E:26000", "Z:I"]);
}

#[test]
fn the_unnamed_statement_of_another_client_is_reached_by_no_trick() {
    let proxy = one();
    // A portal name that is longer than what is read of a message; PostgreSQL cuts it.
    let bind = [&[b'p'; 70_000][..], &[0; 8]].concat();
    let execute = [&[b'p'; 63][..], &[0; 5]].concat();
    let long = extended(&[(b'B', &bind), (b'E', &execute), (b'S', b"")]);
    // A Query that the server skips does not drop it.
    let begun = extended(&[(b'C', b"Sx\0"), (b'H', b""), (b'B', b"\0missing\0\0\0\0\0\0\0")]);
    let used = extended(&[(b'S', b""), (b'B', &[0; 8]), (b'E', &[0; 5]), (b'S', b"")]);
    let skipped = [begun, query("select 1"), used].concat();
    for run in [long, skipped] {
        let (mut a, mut b) = pair(&proxy);
        assert!(ask(&mut a, &one_shot("select 'secret of a'"), 1).contains(&"D:secret of a".to_owned()));
        b.send(&run);
        let mut got = Vec::new();
        while let Next::Message(message) = b.next(Duration::from_secs(2)) {
            got.push(message);
        }
        let got = seen(&got);
        assert!(got.contains(&"E:26000".to_owned()) && !got.iter().any(|m| m.contains("secret")), "{got:?}");
    }
}

#[test]
fn an_answer_of_the_proxys_own_behind_a_flush_is_given() {
    let flush = message(b'H', b"");
    let proxy = one();
    let (mut a, _) = proxy.raw("app");
    a.query("begin");
    ask(&mut a, &extended(&[(b'P', b"s\0select 1\0\0\0"), (b'S', b"")]), 1);
    let deallocate = [flush.clone(), query("deallocate s")].concat();
    assert_eq!(ask(&mut a, &deallocate, 1), ["C:DEALLOCATE", "Z:T"]);
    let config = Config { mode: "statement", pool: 5, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.start().ready();
    let (mut a, _) = proxy.raw("app");
    a.query("create temp table mine (x int)");
    for begin in [one_shot("begin"), [flush, one_shot("begin")].concat()] {
        assert_eq!(ask(&mut a, &begin, 1), ["E:0A000", "Z:I"]);
    }
}

#[test]
fn a_flush_alone_is_no_statement_that_runs() {
    let mut config = Config { pool: 5, ..Config::primary_only(Cluster::shared()) };
    config.more.push_str("\n[limits]\nquery_timeout_secs = 0.2\n");
    let proxy = config.start().ready();
    let (mut a, _) = proxy.raw("app");
    a.query("begin");
    a.send(&message(b'H', b""));
    // Longer than the limit, and than what a statement that was cancelled may take to end.
    assert_eq!(a.next(Duration::from_secs(7)), Next::Silence);
    assert_eq!(ask(&mut a, &query("select 1"), 1), ["D:1", "C:SELECT 1", "Z:T"]);
}

#[test]
fn a_client_that_flushes_and_sends_no_more_gets_its_answer() {
    let sql = b"\0select 'flushed' from pg_sleep(0.3)\0\0\0";
    let run = extended(&[(b'P', sql), (b'B', &[0; 8]), (b'E', &[0; 5]), (b'H', b"")]);
    let primary = Cluster::shared().primary();
    let (direct, _) = Raw::login(primary.port, "app", &cluster::password("app"));
    let proxy = one();
    let mut got = [direct, proxy.raw("app").0].map(|mut raw| {
        raw.send(&run);
        raw.half_close();
        let mut messages = Vec::new();
        while let Next::Message(message) = raw.next(PATIENCE) {
            messages.push(message);
        }
        seen(&messages)
    });
    let through = std::mem::take(&mut got[1]);
    assert_eq!(through, got[0]);
    assert!(through.contains(&"D:flushed".to_owned()), "{through:?}");
}

#[test]
fn a_prepared_statement_outlives_a_reload_to_session_mode() {
    let config = Config { pool: 5, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.start().ready();
    let (mut a, _) = proxy.raw("app");
    ask(&mut a, &extended(&[(b'P', b"s\0select 1\0\0\0"), (b'S', b"")]), 1);
    let run = extended(&[(b'B', b"\0s\0\0\0\0\0\0\0"), (b'E', &[0; 5]), (b'S', b"")]);
    let expected = ["2", "D:1", "C:SELECT 1", "Z:I"];
    assert_eq!(ask(&mut a, &run, 1), expected);
    proxy.rewrite(&Config { mode: "session", ..config }.text());
    proxy.reload();
    let _ = proxy.said("configuration reloaded");
    for _ in 0..3 {
        assert_eq!(ask(&mut a, &run, 1), expected);
    }
}
