//! Bytes that come in many pieces, and clients that leave (with a FIN) in every state of the protocol: nothing waits for
//! ever, and no server connection stays with a session that has nobody.

use std::time::Duration;

use helios_tests::raw::{Next, PATIENCE, message, query};
use helios_tests::{Cluster, Config, Proxy, Raw, eventually};

fn proxy(pool: u32) -> Proxy {
    Config { pool, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

fn parse(sql: &str) -> Vec<u8> {
    message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}

fn run(sql: &str) -> Vec<u8> {
    [parse(sql), message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat()
}

#[test]
fn a_message_in_many_pieces_is_answered() {
    let proxy = proxy(2);
    let sync = message(b'S', b"");
    for bytes in [query("select 7"), [run("select 7"), sync].concat()] {
        let (mut raw, _) = proxy.raw("app");
        for byte in bytes.chunks(1) {
            raw.send(byte);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(raw.until_ready(1).iter().any(|m| m.tag == b'D' && m.fields() == ["7"]));
    }
    // Longer than what is read at once, shorter than what is judged.
    for length in [70_000, 150_000, 200_000, 250_000] {
        let (mut raw, _) = proxy.raw("app");
        let answer = raw.query(&format!("select length('{}')", "x".repeat(length)));
        assert!(answer.iter().any(|m| m.tag == b'D' && m.fields() == [length.to_string()]), "{length}");
    }
}

#[test]
fn a_client_that_leaves_in_any_state_leaves_nothing() {
    Cluster::shared().execute("create table if not exists ends (i int); grant all on ends to app");
    let proxy = proxy(2);
    let copy = query("copy ends from stdin");
    let large = query(&format!("select '{}'", "x".repeat(600_000)));
    let data = message(b'd', &b"1\n".repeat(50_000));
    // What is sent before, the message that the client waits for, and its last bytes.
    let states = [
        ("copy in", copy.clone(), Some(b'G'), message(b'd', b"1\n")),
        ("half of copy data", copy, Some(b'G'), data[..70_000].to_vec()),
        ("parse", vec![], None, parse("select 1")),
        ("parse in a transaction", query("begin"), Some(b'Z'), parse("select 1")),
        ("flush", [run("select 1"), message(b'H', b"")].concat(), Some(b'C'), vec![]),
        ("half of a query", vec![], None, large[..400_000].to_vec()),
        ("half of a query in a transaction", query("begin"), Some(b'Z'), large[..400_000].to_vec()),
        ("half of a bind", parse("select $1"), None, message(b'B', &[0; 200_000])[..100_000].to_vec()),
    ];
    for (name, before, until, then) in states {
        let (mut raw, _) = proxy.raw("app");
        raw.send(&before);
        while let Some(tag) = until {
            match raw.next(PATIENCE) {
                Next::Message(m) if m.tag == tag => break,
                Next::Message(_) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        raw.send(&then);
        raw.half_close();
        eventually(Duration::from_secs(10), name, || {
            let metrics = proxy.metrics();
            let is = |n: &str| metrics.0.iter().filter(|s| s.name == n).all(|s| s.value < 0.5);
            is("heliosproxy_sessions") && is("heliosproxy_pool_connections_active")
        });
    }
}

#[test]
fn a_half_closed_client_that_waits_for_a_server_is_answered() {
    let proxy = proxy(1);
    let (mut holder, _) = proxy.raw("app");
    let mut waiter: Raw = proxy.raw("app").0;
    holder.query("begin");
    waiter.send(&query("select 41"));
    waiter.half_close();
    eventually(Duration::from_secs(10), "it waits", || {
        proxy.metrics().0.iter().any(|s| s.name == "heliosproxy_pool_waiting" && s.value > 0.5)
    });
    holder.query("commit");
    assert!(waiter.until_ready(1).iter().any(|m| m.tag == b'D' && m.fields() == ["41"]));
}

#[test]
fn what_a_client_that_was_cut_off_has_running_ends_with_it() {
    let cluster = Cluster::shared();
    let proxy = proxy(1);
    let mut direct = cluster.primary().superuser();
    let runs =
        "select count(*) from pg_stat_activity where query like 'select repeat%' and wait_event = 'PgSleep'";
    let mut runs = move || direct.query_one(runs, &[]).unwrap().get::<_, i64>(0) > 0;
    // On connections that are cleaned for the next session, and on one that is closed.
    for before in ["select 1", "select pg_advisory_lock(4740)", "set my.state = 'any'"] {
        let (mut raw, _) = proxy.raw("app");
        raw.query(before);
        raw.send(&query("select repeat('x', 100000); select pg_sleep(600)"));
        raw.next(PATIENCE);
        eventually(PATIENCE, "the statement runs", &mut runs);
        // With bytes unread: the system resets the connection.
        drop(raw);
        eventually(PATIENCE, before, || !runs());
    }
    // Behind a Flush nobody can say Sync any more.
    let (mut raw, _) = proxy.raw("app");
    let all = [run("select repeat('x', 100000)"), run("select pg_sleep(600)"), message(b'H', b"")].concat();
    raw.send(&all);
    raw.next(PATIENCE);
    let mut direct = cluster.primary().superuser();
    let sleeps = "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and wait_event = 'PgSleep'";
    let mut sleeps = move || direct.query_one(sleeps, &[]).unwrap().get::<_, i64>(0) > 0;
    eventually(PATIENCE, "the statement runs", &mut sleeps);
    drop(raw);
    eventually(PATIENCE, "unsynced", || !sleeps());
}
