//! The proxy's operator sees: HTTP, metrics, the check of a configuration, reload, drain. And cancel requests.

use std::process::Command;
use std::time::Duration;

use helios_tests::guard::signal;
use helios_tests::http;
use helios_tests::proxy::check;
use helios_tests::raw::{packet, query};
use helios_tests::{Cluster, Config, Raw, eventually};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(30);
const PORT: &str = "select setting from pg_settings where name = 'port'";

/// The guide's first configuration, as written.
const GUIDE_QUICK_START: &str = r#"
listen_address = "127.0.0.1:5433"
admin_address = "127.0.0.1:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 100
[load_balancer]
read_write_split = true
read_strategy = "least_connections"
[[nodes]]
host = "127.0.0.1"
port = 5432
role = "primary"
"#;

/// The guide's high-availability configuration, as written.
const GUIDE_HIGH_AVAILABILITY: &str = r#"
listen_address = "0.0.0.0:5433"
admin_address = "0.0.0.0:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 50
[load_balancer]
read_write_split = true
read_strategy = "least_connections"
[health]
check_interval_secs = 5
failure_threshold = 3
# Primary node
[[nodes]]
host = "db-primary.internal"
port = 5432
role = "primary"
# Sync standby for failover
[[nodes]]
host = "db-standby.internal"
port = 5432
role = "standby"
# Read replicas for scaling
[[nodes]]
host = "db-replica-1.internal"
port = 5432
role = "replica"
weight = 100
[[nodes]]
host = "db-replica-2.internal"
port = 5432
role = "replica"
weight = 100
"#;

/// The guide's Kubernetes ConfigMap, as written.
const GUIDE_KUBERNETES: &str = r#"
listen_address = "0.0.0.0:5433"
admin_address = "0.0.0.0:9090"
[pool_mode]
mode = "transaction"
max_pool_size = 100
[[nodes]]
host = "heliosdb-primary.default.svc.cluster.local"
port = 5432
role = "primary"
[[nodes]]
host = "heliosdb-standby.default.svc.cluster.local"
port = 5432
role = "standby"
"#;

#[test]
fn the_configurations_of_the_guide_pass_the_check() {
    for text in [GUIDE_QUICK_START, GUIDE_HIGH_AVAILABILITY, GUIDE_KUBERNETES] {
        let output = check(text);
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_broken_configuration_is_refused_with_line_and_key() {
    // What to change in the guide's first configuration, and what the message has to name.
    for (from, to, named) in [
        ("max_pool_size", "max_pool_sizes", &["max_pool_sizes", "max_pool_size", "6"][..]),
        ("\"transaction\"", "\"transactions\"", &["transactions", "mode", "5"]),
        ("port = 5432", "port = 99999", &["port", "12"]),
        ("port = 5432", "port = \"x\"", &["port", "12"]),
        ("role = \"primary\"", "role = \"master\"", &["master", "role", "13"]),
        ("read_strategy = \"least_connections\"", "read_strategy = 3", &["read_strategy", "9"]),
        ("[load_balancer]", "[load_balancers]", &["load_balancers", "load_balancer", "7"]),
        ("max_pool_size = 100", "max_pool_size = 0", &["max_pool_size", "6"]),
        ("127.0.0.1:5433", "nowhere", &["listen_address", "2"]),
        ("[[nodes]]", "[[nodes", &["10"]),
    ] {
        assert!(GUIDE_QUICK_START.contains(from));
        let output = check(&GUIDE_QUICK_START.replacen(from, to, 1));
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{to} passed: {told}");
        named.iter().for_each(|name| assert!(told.contains(name), "{to}: no {name} in: {told}"));
    }
    let both = GUIDE_QUICK_START.replace("max_pool_size", "pool_max").replace("5432", "0");
    let output = check(&both);
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success());
    assert!(told.contains("pool_max") && told.contains("port"), "one report for both: {told}");
}

#[test]
fn health_says_that_the_proxy_serves() {
    let proxy = Config::new(Cluster::shared()).start().ready();
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(proxy.get(path).status, 200, "{path}");
    }
    let status = || {
        let health: serde_json::Value = serde_json::from_str(&proxy.get("/health").body).unwrap();
        health["status"].as_str().unwrap_or_default().to_owned()
    };
    eventually(LONG, "every node is up and the primary is known", || status() == "ok");
}

#[test]
fn stats_and_nodes_are_json_without_secrets_and_users() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).user("clear", "password = \"clear-secret\"").start().ready();
    proxy.connect("app").batch_execute("select 1 as statement_text").unwrap();
    for path in ["/pool/stats", "/nodes"] {
        let answer = proxy.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.to_lowercase().contains("application/json"), "{path}: {}", answer.head);
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap();
        for node in &cluster.nodes {
            assert!(answer.body.contains(&format!("\"{}\"", node.name)), "{path}: {}", answer.body);
        }
    }
    for path in ["/pool/stats", "/nodes", "/metrics", "/health"] {
        let body = proxy.get(path).body;
        for secret in ["-secret", "\"app\"", "\"clear\"", "statement_text"] {
            assert!(!body.contains(secret), "{path} shows {secret}");
        }
    }
}

#[test]
fn bad_requests_get_their_status_and_the_port_serves_on() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let status = |request: &str| http::exchange(proxy.admin, request.as_bytes()).unwrap().status;
    assert_eq!(status("GET /nosuch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 404);
    assert_eq!(status("GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 404);
    assert_eq!(
        status("POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        405
    );
    let long = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    // Refused before all of it has been read: the answer may be lost to the reset.
    let refused = http::exchange(proxy.admin, long.as_bytes()).map_or(0, |a| a.status);
    assert!([0, 431].contains(&refused), "{refused}");
    assert_eq!(proxy.get("/health").status, 200);
}

#[test]
fn every_metric_of_the_guide_is_there_and_counts() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    for _ in 0..5 {
        client.batch_execute("select n from counter where id = 2").unwrap();
    }
    for _ in 0..3 {
        client.batch_execute("update counter set n = n + 1 where id = 2").unwrap();
    }
    let sum = |name: &str, labels: &[(&str, &str)]| {
        proxy.metrics().sum(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?}"))
    };
    // A statement is counted when its answer is complete, which the client may see first.
    eventually(LONG, "queries are counted by kind", || {
        sum("heliosproxy_queries_total", &[("type", "read")]) == 5.0
            && sum("heliosproxy_queries_total", &[("type", "write")]) == 3.0
    });
    for node in cluster.nodes.iter().map(|n| n.name.as_str()) {
        let at = [("node", node)];
        let pool = |kind: &str| sum(&format!("heliosproxy_pool_connections_{kind}"), &at);
        assert_eq!(pool("total"), pool("active") + pool("idle"), "{node}");
        assert_eq!(sum("heliosproxy_node_healthy", &at), 1.0, "{node}");
        let latency = sum("heliosproxy_node_latency_seconds", &at);
        assert!(latency > 0.0 && latency < 5.0, "{node}: {latency}");
    }
    assert_eq!(sum("heliosproxy_pool_connections_total", &[("node", "primary")]), 1.0);
    for (name, bounds) in [
        ("heliosproxy_pool_acquire_duration_seconds", &["0.001", "0.01", "0.1", "+Inf"][..]),
        ("heliosproxy_query_duration_seconds", &["0.001", "0.01", "+Inf"]),
    ] {
        let counts: Vec<f64> =
            bounds.iter().map(|le| sum(&format!("{name}_bucket"), &[("le", le)])).collect();
        assert!(counts.is_sorted(), "{name}: {counts:?}");
        assert_eq!(*counts.last().unwrap(), 8.0, "{name}: one for each statement");
        assert_eq!(sum(&format!("{name}_count"), &[]), 8.0);
        assert!(sum(&format!("{name}_sum"), &[]) > 0.0);
    }
    let text = proxy.get("/metrics").body;
    for (name, kind) in [
        ("heliosproxy_pool_connections_total", "gauge"),
        ("heliosproxy_pool_acquire_duration_seconds", "histogram"),
        ("heliosproxy_queries_total", "counter"),
        ("heliosproxy_query_duration_seconds", "histogram"),
        ("heliosproxy_node_healthy", "gauge"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}")), "{name}");
    }
    // The proxy's own metrics carry its prefix; those of the process and runtime may have theirs.
    let ours = |name: &str| name.starts_with("heliosproxy_") || name.starts_with("process_");
    let foreign: Vec<String> = proxy.metrics().0.into_iter().map(|s| s.name).filter(|n| !ours(n)).collect();
    assert_eq!(foreign, Vec::<String>::new());
}

#[test]
fn gauges_follow_connections_in_use() {
    let proxy = Config::primary_only(Cluster::shared()).start().ready();
    let gauge = |kind: &str| {
        let name = format!("heliosproxy_pool_connections_{kind}");
        proxy.metrics().sum(&name, &[("node", "primary")]).unwrap()
    };
    let (mut a, mut b) = (proxy.connect("app"), proxy.connect("app"));
    a.batch_execute("begin").unwrap();
    b.batch_execute("begin").unwrap();
    eventually(LONG, "two in use", || (gauge("active"), gauge("total")) == (2.0, 2.0));
    a.batch_execute("commit").unwrap();
    eventually(LONG, "one in use", || (gauge("active"), gauge("idle")) == (1.0, 1.0));
    b.batch_execute("commit").unwrap();
    eventually(LONG, "none in use", || (gauge("active"), gauge("idle")) == (0.0, 2.0));
}

#[test]
fn reload_takes_a_good_file_and_keeps_the_old_one_when_it_is_broken() {
    let cluster = Cluster::shared();
    let mut proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    let mut at_primary = || {
        let port: String = client.query_typed(PORT, &[]).unwrap()[0].get(0);
        port == cluster.primary().port.to_string()
    };
    assert!(!at_primary(), "reads go to replicas");
    let text = Config::new(cluster).text();
    proxy.rewrite(&text.replace("read_strategy", "read_strategi"));
    proxy.reload();
    eventually(LONG, "the log names the key", || !proxy.logged("read_strategi").is_empty());
    assert!(!at_primary(), "as before");
    assert_eq!(proxy.get("/health").status, 200);
    assert!(proxy.alive());
    proxy.rewrite(&text.replace("read_write_split = true", "read_write_split = false"));
    proxy.reload();
    eventually(LONG, "the new file is in force for sessions that are there", at_primary);
}

#[test]
fn a_session_obeys_another_mode_from_its_next_statement_on() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).start().ready();
    let (mut client, _) = proxy.raw("app");
    let begin = |client: &mut Raw| {
        let answer = client.query("begin");
        client.query("rollback");
        answer.iter().find(|m| m.tag == b'E').map(|m| m.sqlstate())
    };
    assert_eq!(begin(&mut client), None);
    let text = Config::new(cluster).text();
    let reloads = proxy.logged("configuration reloaded").len();
    proxy.rewrite(&text.replace("mode = \"transaction\"", "mode = \"statement\""));
    proxy.reload();
    eventually(LONG, "reloaded", || proxy.logged("configuration reloaded").len() > reloads);
    // The snapshot follows the log line.
    eventually(LONG, "a new session is refused", || {
        begin(&mut proxy.raw("app").0).as_deref() == Some("0A000")
    });
    assert_eq!(begin(&mut client).as_deref(), Some("0A000"), "the first statement after the reload");
}

#[test]
fn terminate_drains() {
    let cluster = Cluster::shared();
    cluster.execute("create table drained (i int); grant all on drained to public");
    let mut proxy = Config::primary_only(cluster).start().ready();
    let mut busy = proxy.connect("app");
    let (mut idle, _) = proxy.raw("app");
    idle.query("select 1");
    busy.batch_execute("begin; insert into drained values (1)").unwrap();
    let (admin, port) = (proxy.admin, proxy.port());
    proxy.terminate();
    eventually(LONG, "not ready any more", || {
        http::get(admin, "/health/ready").is_ok_and(|a| a.status == 503)
    });
    let told = idle.next(LONG);
    let helios_tests::raw::Next::Message(told) = told else { panic!("{told:?}") };
    assert_eq!((told.tag, told.sqlstate().as_str()), (b'E', "57P01"));
    eventually(LONG, "new connections are refused", || {
        helios_tests::cluster::client_config(port, "app").connect(NoTls).is_err()
    });
    busy.batch_execute("insert into drained values (2)").unwrap();
    busy.batch_execute("commit").unwrap();
    let status = proxy.wait(LONG);
    assert!(status.success(), "{status}");
    let rows = cluster.primary().connect("app").query_one("select count(*) from drained", &[]).unwrap();
    assert_eq!(rows.get::<_, i64>(0), 2);
}

#[test]
fn terminate_without_clients_ends_with_zero() {
    let mut proxy = Config::primary_only(Cluster::shared()).start().ready();
    signal("TERM", &[proxy.pid]);
    assert!(proxy.wait(LONG).success());
}

fn cancel(port: u16, pid: u32, key: &[u8]) {
    let mut raw = Raw::connect(port);
    raw.send(&packet(&[&[4, 210, 22, 46][..], &pid.to_be_bytes(), key].concat()));
    let (bytes, closed) = raw.rest(LONG);
    assert!(bytes.is_empty() && closed, "a cancel request gets no answer");
}

#[test]
fn cancel_reaches_the_running_statement_and_only_with_the_right_key() {
    let cluster = Cluster::shared();
    let proxy = Config::primary_only(cluster).start().ready();
    let (mut raw, hello) = proxy.raw("app");
    let mut direct = cluster.primary().superuser();
    let mut running = move |text: &str| {
        let sql = "select count(*) from pg_stat_activity where state = 'active' and query = $1";
        direct.query_one(sql, &[&text]).unwrap().get::<_, i64>(0) == 1
    };
    for round in 0..3 {
        let sql = format!("select pg_sleep(600), 'cancelled {round}'");
        raw.send(&query(&sql));
        eventually(LONG, "the statement runs", || running(&sql));
        for wrong in 1..=50 {
            let mut key = hello.key.clone();
            key[0] ^= wrong;
            cancel(proxy.port(), hello.pid, &key);
        }
        assert!(running(&sql), "wrong keys cancel nothing");
        cancel(proxy.port(), hello.pid, &hello.key);
        let answer = raw.until_ready(1);
        let error = answer.iter().find(|m| m.tag == b'E').unwrap();
        assert_eq!(error.sqlstate(), "57014");
        assert_eq!(raw.query("select 7")[1].fields(), ["7"]);
    }
    // Nothing runs: a cancel must not hit the next statement, of this session or of another on the same server.
    for _ in 0..20 {
        cancel(proxy.port(), hello.pid, &hello.key);
        assert!(raw.query("select 8").iter().all(|m| m.tag != b'E'));
    }
}

#[test]
fn without_descriptors_the_operators_port_answers_and_clients_come_back_later() {
    let cluster = Cluster::shared();
    let mut proxy = Config::primary_only(cluster).start().ready();
    let mut client = proxy.connect("app");
    client.batch_execute("select 1").unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid)).unwrap().count();
    let limit = |limit: &str| {
        let pid = proxy.pid.to_string();
        assert!(Command::new("prlimit").args(["--pid", &pid, limit]).status().unwrap().success());
    };
    limit(&format!("--nofile={}:{}", open + 5, open + 2000));
    let crowd: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(proxy.address).unwrap()).collect();
    eventually(LONG, "it says so", || !proxy.logged("could not accept a client").is_empty());
    for _ in 0..20 {
        assert_eq!(proxy.get("/health").status, 200);
    }
    client.batch_execute("select 1").unwrap();
    assert!(proxy.logged("node is down").is_empty());
    drop(crowd);
    eventually(LONG, "clients are accepted again", || {
        helios_tests::cluster::client_config(proxy.port(), "app").connect(NoTls).is_ok()
    });
    limit(&format!("--nofile={}:{}", open + 2000, open + 2000));
    assert!(proxy.alive());
}
