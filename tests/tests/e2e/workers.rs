//! Sessions on several worker threads. The proxy runs inside the test, to ask for what otherwise only load brings about.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use helios_tests::cluster::{client_config, password};
use helios_tests::{Cluster, Config, http};
use postgres::{Client, NoTls, SimpleQueryMessage};

/// Statements that a session may run before it has moved at last: it is asked anew before each.
const MOST: usize = 2_000;

fn value(client: &mut Client, statement: &str) -> String {
    let rows = client.simple_query(statement).unwrap();
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap()
}

#[test]
fn a_session_moves_to_another_worker_between_transactions_only() {
    let text = Config { pool: 2, ..Config::primary_only(Cluster::shared()) }.text();
    let config = helios_proto::config::parse(&format!("workers = 2\n{text}"), "test", &|_| None).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let app = runtime.block_on(heliosdb_proxy::app::start(config)).unwrap();
    let moved = || {
        let answer = http::get(app.admin, "/metrics").unwrap();
        http::Metrics::parse(&answer.body).sum("heliosproxy_sessions_moved_total", &[]).unwrap()
    };
    // Asks the first worker to hand over its session at its next rest.
    let ask = || app.lanes().even_out(2, &[1, 0]);
    let mut client = client_config(app.listen.port(), "app").connect(NoTls).unwrap();

    client.batch_execute("begin").unwrap();
    client.batch_execute("create temp table kept (x int) on commit drop").unwrap();
    for _ in 0..50 {
        ask();
        client.batch_execute("insert into kept values (1)").unwrap();
    }
    assert_eq!(value(&mut client, "select count(*) from kept"), "50");
    assert!(moved() < 1.0, "moved inside a transaction");
    client.batch_execute("rollback").unwrap();

    let went = (0..MOST).find(|i| {
        ask();
        assert_eq!(value(&mut client, &format!("select {i}")), i.to_string());
        moved() > 0.0
    });
    assert!(went.is_some(), "never moved");
    assert_eq!(value(&mut client, "select 'still here'"), "still here");
    drop(client);
    runtime.block_on(app.stop(std::future::pending()));
}

#[test]
fn a_session_moves_with_its_tls() {
    let text = Config { pool: 2, ..Config::primary_only(Cluster::shared()) }.text();
    let config = helios_proto::config::parse(&format!("workers = 2\n{text}"), "test", &|_| None).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let app = runtime.block_on(heliosdb_proxy::app::start(config)).unwrap();
    let target =
        format!("host=127.0.0.1 port={} user=app dbname=postgres sslmode=require", app.listen.port());
    let mut child = Command::new("psql")
        .args(["-X", "-A", "-t", "-q", "-f", "-", &target])
        .env("PGPASSWORD", password("app"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let moved = || {
        let answer = http::get(app.admin, "/metrics").unwrap();
        http::Metrics::parse(&answer.body).sum("heliosproxy_sessions_moved_total", &[]).unwrap()
    };
    let went = (0..MOST).find(|i| {
        let (open, shed) = if i % 2 == 0 { (2, [1, 0]) } else { (1, [0, 1]) };
        app.lanes().even_out(open, &shed);
        writeln!(input, "select repeat('{i} ', 5000);").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{i} ").repeat(5000) + "\n");
        moved() > 3.0
    });
    assert!(went.is_some(), "never moved");
    drop(input);
    assert!(child.wait().unwrap().success());
    runtime.block_on(app.stop(std::future::pending()));
}
