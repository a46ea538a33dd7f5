//! A data plane that stops, and clients that always have more than one statement on their way: each of these was answered, or
//! was not executed. Never judges how long it takes, but that it ends before the limit.

use std::net::TcpStream;
use std::time::Duration;

use helios_tests::raw::{Next, PATIENCE, Raw, call, message, parse, query};
use helios_tests::{Cluster, Config, Proxy, eventually};

/// So many are on their way at any time.
const DEPTH: usize = 10;

/// How a client asks for the insertion of one row.
#[derive(Debug, Clone, Copy)]
enum Form {
    Simple,
    Extended,
    Block,
}

impl Form {
    const ALL: [Self; 3] = [Self::Simple, Self::Extended, Self::Block];

    fn bytes(self, table: &str, n: usize) -> Vec<u8> {
        let sql = format!("insert into {table} select {n} from pg_sleep(0.02)");
        match self {
            Self::Simple => query(&sql),
            Self::Extended => [parse("", &sql), call("", &[]), message(b'S', b"")].concat(),
            Self::Block => [query("begin"), query(&sql), query("commit")].concat(),
        }
    }

    /// ReadyForQuery messages of one.
    const fn readies(self) -> usize {
        match self {
            Self::Simple | Self::Extended => 1,
            Self::Block => 3,
        }
    }
}

/// Reads the whole answer to one; `None`: the session was ended with 57P01 before anything of it.
fn answered(raw: &mut Raw, form: Form) -> Option<()> {
    let mut left = form.readies();
    while left > 0 {
        match raw.next(PATIENCE) {
            Next::Message(m) if m.tag == b'Z' => left -= 1,
            Next::Message(m) if m.tag == b'E' => {
                assert_eq!((m.sqlstate().as_str(), left), ("57P01", form.readies()), "{form:?}");
                assert_eq!(raw.next(PATIENCE), Next::Closed, "{form:?}: nothing after it");
                return None;
            }
            Next::Message(_) => {}
            other => panic!("{form:?}: {other:?} with {left} answers missing"),
        }
    }
    Some(())
}

/// Keeps many on their way until the session is ended: how many were answered.
fn pipeline(mut raw: Raw, form: Form, table: &str) -> usize {
    raw.send(&(0..DEPTH).flat_map(|n| form.bytes(table, n)).collect::<Vec<_>>());
    for n in 0.. {
        raw.send(&form.bytes(table, n + DEPTH));
        if answered(&mut raw, form).is_none() {
            return n;
        }
    }
    unreachable!("it ends")
}

#[test]
fn a_client_that_pipelines_without_a_pause_is_told_between_two_statements() {
    let cluster = Cluster::shared();
    for mode in ["transaction", "session"] {
        let config = Config { mode, ..Config::primary_only(cluster) };
        let text = format!("shutdown_drain_timeout_secs = 15\n{}", config.text());
        let mut proxy = Proxy::start(&text).ready();
        std::thread::scope(|s| {
            let clients = Form::ALL.map(|form| {
                let table = format!("piped_{mode}_{form:?}").to_lowercase();
                cluster.execute(&format!("create table {table} (i int); grant all on {table} to app"));
                let (raw, _) = proxy.raw("app");
                (form, table.clone(), s.spawn(move || pipeline(raw, form, &table)))
            });
            proxy.terminate();
            for (form, table, client) in clients {
                let answered = client.join().unwrap();
                let sql = format!("select count(*), count(distinct i), coalesce(max(i), -1) from {table}");
                let row = cluster.primary().superuser().query_one(&sql, &[]).unwrap();
                let (count, distinct, last): (i64, i64, i32) = (row.get(0), row.get(1), row.get(2));
                println!("{mode}, {form:?}: {answered} answered, {count} executed");
                let expected = i64::try_from(answered).unwrap();
                assert_eq!(
                    (count, distinct, i64::from(last)),
                    (expected, expected, expected - 1),
                    "{form:?}"
                );
                assert!(answered > 0);
            }
        });
        assert!(proxy.wait(PATIENCE).success());
        assert!(proxy.logged("drain timeout").is_empty(), "{mode}");
    }
}

#[test]
fn a_client_that_reads_no_more_gets_all_its_answers_before_it_is_told() {
    const ROWS: usize = 200;
    let mut proxy = Config::primary_only(Cluster::shared()).start().ready();
    let (mut raw, _) = proxy.raw("app");
    // More than the sockets hold, so that answers are still on their way when the session ends.
    let large = query(&format!("select repeat('x', 10000) from generate_series(1, {ROWS})"));
    raw.send(&large.repeat(10));
    let first = raw.until_ready(1);
    assert_eq!(first.iter().filter(|m| m.tag == b'D').count(), ROWS);
    proxy.terminate();
    // Overdue.
    std::thread::sleep(Duration::from_secs(2));
    raw.send(&large);
    let (mut rows, mut readies) = (0, 0);
    let told = loop {
        match raw.next(PATIENCE) {
            Next::Message(m) if m.tag == b'D' => rows += 1,
            Next::Message(m) if m.tag == b'Z' => readies += 1,
            Next::Message(m) if m.tag == b'E' => break m.sqlstate(),
            Next::Message(_) => {}
            other => panic!("{other:?} after {rows} rows"),
        }
    };
    assert_eq!((told.as_str(), rows), ("57P01", readies * ROWS));
    assert_eq!(raw.next(PATIENCE), Next::Closed);
    assert!(proxy.wait(PATIENCE).success());
}

/// A proxy that has been told to stop and says so, with this `shutdown_grace_secs`, and a session of it in a transaction.
fn stopping(grace: &str, table: &str) -> (Proxy, postgres::Client) {
    let cluster = Cluster::shared();
    cluster.execute(&format!("create table {table} (i int); grant all on {table} to app"));
    let text = Config::primary_only(cluster).text();
    let proxy = Proxy::start(&format!("shutdown_grace_secs = {grace}\n{text}")).ready();
    let mut client = proxy.connect("app");
    client.batch_execute(&format!("begin; insert into {table} values (1)")).unwrap();
    proxy.terminate();
    eventually(PATIENCE, "readiness goes", || proxy.get("/health/ready").status == 503);
    (proxy, client)
}

#[test]
fn in_the_grace_of_a_shutdown_clients_are_still_let_in_and_served() {
    // So long that it is not over before the test is.
    let (proxy, mut before) = stopping("3600", "grace_serves");
    let health = proxy.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.body.contains("\"draining\""), "{}", health.body);
    assert_eq!(proxy.get("/health/live").status, 200);
    let mut after = proxy.connect("app");
    assert_eq!(after.query_one("select count(*) from grace_serves", &[]).unwrap().get::<_, i64>(0), 0);
    before.batch_execute("insert into grace_serves values (2); commit").unwrap();
    // Both go on after their transactions, as nobody has been told to leave.
    for client in [&mut before, &mut after] {
        assert_eq!(client.query_one("select sum(i) from grace_serves", &[]).unwrap().get::<_, i64>(0), 3);
    }
}

#[test]
fn after_the_grace_nobody_is_let_in_and_nothing_is_lost() {
    let (mut proxy, mut client) = stopping("0.5", "grace_ends");
    eventually(PATIENCE, "new clients are refused", || TcpStream::connect(proxy.address).is_err());
    // What was begun before goes on to its end, and then the session has ended.
    client.batch_execute("insert into grace_ends values (2)").unwrap();
    client.batch_execute("commit").unwrap();
    assert!(proxy.wait(PATIENCE).success());
    assert!(client.simple_query("select 1").is_err());
    let rows = Cluster::shared().primary().superuser().query_one("select sum(i) from grace_ends", &[]);
    assert_eq!(rows.unwrap().get::<_, i64>(0), 3);
    assert!(proxy.logged("drain timeout").is_empty());
}

#[test]
fn a_second_signal_waits_for_nobody() {
    let (mut proxy, client) = stopping("3600", "grace_hurried");
    let (mut idle, _) = proxy.raw("app");
    let (mut open, _) = proxy.raw("app");
    open.query("begin");
    proxy.terminate();
    for raw in [&mut idle, &mut open] {
        let told = raw.next(PATIENCE);
        let Next::Message(told) = told else { panic!("{told:?}") };
        assert_eq!((told.tag, told.sqlstate().as_str()), (b'E', "57P01"));
        assert_eq!(raw.next(PATIENCE), Next::Closed);
    }
    assert!(proxy.wait(PATIENCE).success());
    assert!(
        !proxy.logged("told to stop a second time: closing sessions sessions=3").is_empty(),
        "{:?}",
        proxy.tail()
    );
    drop(client);
    let rows = Cluster::shared().primary().superuser().query_one("select count(*) from grace_hurried", &[]);
    assert_eq!(rows.unwrap().get::<_, i64>(0), 0, "what was open is rolled back");
}
