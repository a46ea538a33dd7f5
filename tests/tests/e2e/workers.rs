//! Sessions on several worker threads. The proxy runs inside the test, to ask for what otherwise only load brings about.

use helios_tests::cluster::client_config;
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
    runtime.block_on(app.stop());
}
