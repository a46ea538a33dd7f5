//! The time limits of `[limits]`, where it is not plain from when on they count. Never judges how precise they are.

use std::time::Duration;

use helios_tests::raw::{Next, query};
use helios_tests::{Cluster, Config, eventually};

const LONG: Duration = Duration::from_secs(30);

#[test]
fn the_limit_of_a_statement_is_one_of_each_statement_of_a_pipeline() {
    let mut config = Config::primary_only(Cluster::shared());
    config.more += "\n[limits]\nquery_timeout_secs = 2\n";
    let proxy = config.start().ready();
    let (mut raw, _) = proxy.raw("app");
    let nap = query("select pg_sleep(0.3)");
    raw.send(&nap);
    // Two are on their way at any time, and all of them take longer than one may.
    for n in 0..12 {
        raw.send(&nap);
        let got = raw.until_ready(1);
        assert!(got.iter().all(|m| m.tag != b'E'), "statement {n}: {got:?}");
    }
    raw.until_ready(1);
    raw.send(&[query("select 1"), query("select pg_sleep(60)")].concat());
    let told: Vec<_> = raw.until_ready(2).iter().filter(|m| m.tag == b'E').map(|m| m.sqlstate()).collect();
    assert_eq!(told, ["57014"]);
}

#[test]
fn the_limit_of_a_pause_counts_from_the_answer_also_if_that_is_the_proxys_own() {
    let mut config = Config { pool: 1, acquire_timeout: 3, ..Config::primary_only(Cluster::shared()) };
    config.more += "\n[limits]\nclient_idle_timeout_secs = 2\n";
    let proxy = config.start().ready();
    let (mut holder, _) = proxy.raw("app");
    let (mut raw, _) = proxy.raw("app");
    holder.query("begin");
    let failed = raw.query("select 1");
    assert_eq!(failed.first().map(helios_tests::raw::Message::sqlstate).as_deref(), Some("53300"));
    holder.query("commit");
    let answer = raw.query("select 2");
    assert!(answer.iter().any(|m| m.tag == b'D' && m.fields() == ["2"]), "{answer:?}");
    let mut told = String::new();
    eventually(LONG, "the pause ends", || match raw.next(LONG) {
        Next::Message(message) => {
            told = message.sqlstate();
            false
        }
        Next::Closed => true,
        Next::Silence => false,
    });
    assert_eq!(told, "57P05");
}
