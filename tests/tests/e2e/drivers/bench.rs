//! pgbench through the proxy in every mode, with many more clients than servers.

use std::process::Command;
use std::sync::OnceLock;

use helios_tests::cluster::password;
use helios_tests::{Cluster, Config, Proxy};

use super::MODES;

/// A database with pgbench's tables, made once.
fn bench_database() -> &'static Cluster {
    static DONE: OnceLock<()> = OnceLock::new();
    let cluster = Cluster::shared();
    DONE.get_or_init(|| {
        cluster.execute("create database bench owner app");
        let port = cluster.primary().port;
        let output = pgbench(port, &["-i", "-q", "-s", "5"]);
        assert!(output.0, "{}", output.1);
        cluster.execute("select 1");
    });
    cluster
}

/// Runs pgbench as `app`; whether it ended well, and all that it printed.
fn pgbench(port: u16, args: &[&str]) -> (bool, String) {
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 65536 2>/dev/null || ulimit -n \"$(ulimit -Hn)\"; exec pgbench \"$@\"",
            "pgbench",
        ])
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "app"])
        .args(args)
        .arg("bench")
        .env("PGPASSWORD", password("app"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

/// Runs pgbench through the proxy; every one of its transactions has to succeed.
#[track_caller]
fn all_succeed(proxy: &Proxy, args: &[&str], transactions: usize) {
    let (good, text) = pgbench(proxy.port(), args);
    assert!(good, "{args:?}: {text}");
    let processed = format!("number of transactions actually processed: {transactions}/{transactions}");
    assert!(text.contains(&processed), "{args:?}: {text}");
    assert!(text.contains("number of failed transactions: 0 "), "{args:?}: {text}");
    assert!(!text.contains("ERROR") && !text.contains("aborted"), "{args:?}: {text}");
}

#[test]
fn pgbench_works_in_every_mode() {
    let cluster = bench_database();
    for mode in MODES {
        // A session keeps its server; transactions and statements of 50 clients share eight.
        let pool = if mode == "session" { 55 } else { 8 };
        let proxy = Config { mode, pool, acquire_timeout: 30, ..Config::new(cluster) }.start().ready();
        for protocol in ["simple", "extended", "prepared"] {
            let args = ["-n", "-S", "-M", protocol, "-c", "50", "-j", "2", "-t", "100"];
            all_succeed(&proxy, &args, 5000);
        }
        if mode == "statement" {
            continue; // TPC-B has transaction blocks, which this mode refuses.
        }
        for protocol in ["simple", "extended", "prepared"] {
            // pgbench prepares with a call that blocks its thread: the other clients of that thread hold their
            // servers meanwhile, and with fewer servers than clients nobody goes on. So a thread for each.
            let threads = if protocol == "prepared" { "50" } else { "2" };
            let args = ["-n", "-M", protocol, "-c", "50", "-j", threads, "-t", "10"];
            all_succeed(&proxy, &args, 500);
        }
    }
    let sql = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
               (select count(*) from pgbench_history)";
    let direct = helios_tests::cluster::client_config(cluster.primary().port, "app").dbname("bench").clone();
    let row = direct.connect(postgres::NoTls).unwrap().query_one(sql, &[]).unwrap();
    assert!(row.get::<_, bool>(0), "every acknowledged change is there, once");
    assert_eq!(row.get::<_, i64>(1), 2 * 3 * 500);
}

#[test]
fn few_servers_carry_two_thousand_clients() {
    let cluster = bench_database();
    let proxy = Config { pool: 20, acquire_timeout: 60, ..Config::primary_only(cluster) }.start().ready();
    // The first login teaches the proxy the role's keys; so nobody derives them 2,000 times.
    proxy.connect("app").batch_execute("select 1").unwrap();
    all_succeed(&proxy, &["-n", "-S", "-c", "2000", "-j", "2", "-t", "2"], 4000);
    let total = proxy.metrics().sum("heliosproxy_pool_connections_total", &[("node", "primary")]).unwrap();
    assert!(total <= 20.0, "{total} server connections");
}
