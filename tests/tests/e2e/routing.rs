//! Where statements go: reads, writes, hints, read-only transactions, and the log line that says so.

use helios_tests::{Cluster, Config, Proxy, eventually};
use postgres::{Client, SimpleQueryMessage};
use std::time::Duration;

/// Names the server without calling a function that a router might not know.
const PORT: &str = "select setting from pg_settings where name = 'port'";

/// The node that answered the last row of `sql`, asked by the simple protocol.
fn node(cluster: &Cluster, client: &mut Client, sql: &str) -> String {
    let rows = client.simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let row = rows.iter().rev().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    by_port(cluster, &row.unwrap())
}

/// The node that answered `sql`, asked by the extended protocol.
fn node_extended(cluster: &Cluster, client: &mut Client, sql: &str) -> String {
    by_port(cluster, client.query_typed(sql, &[]).unwrap()[0].get(0))
}

fn by_port(cluster: &Cluster, port: &str) -> String {
    cluster.nodes.iter().find(|n| n.port.to_string() == port).unwrap().name.clone()
}

/// Waits for a routing line with these two fields.
#[track_caller]
fn logged(proxy: &Proxy, node: &str, reason: &str) {
    let text = format!("Routing query to node={node} reason={reason}");
    eventually(Duration::from_secs(10), &text, || proxy.logged(&text).iter().any(|l| l.contains("DEBUG")));
}

#[test]
fn reads_go_to_replicas_and_writes_to_the_primary() {
    let cluster = Cluster::shared();
    for strategy in ["round_robin", "weighted_round_robin", "least_connections", "latency_based", "random"] {
        let proxy = Config { strategy, ..Config::new(cluster) }.start().ready();
        let mut client = proxy.connect("app");
        for _ in 0..5 {
            let read = node(cluster, &mut client, PORT);
            assert_ne!(read, "primary", "{strategy}");
            logged(&proxy, &read, "read_query");
            assert_ne!(node_extended(cluster, &mut client, PORT), "primary", "{strategy}");
            client.batch_execute("update counter set n = n + 1 where id = 2").unwrap();
            logged(&proxy, "primary", "write_query");
        }
    }
}

#[test]
fn reads_are_spread_over_all_replicas() {
    let cluster = Cluster::shared();
    let proxy = Config { strategy: "round_robin", balancer: "slow_start_secs = 0", ..Config::new(cluster) };
    let proxy = proxy.start().ready();
    let mut client = proxy.connect("app");
    let mut seen = std::collections::HashSet::new();
    eventually(Duration::from_secs(30), "every replica answers", || {
        seen.insert(node(cluster, &mut client, PORT));
        seen.len() == 3
    });
    assert!(!seen.contains("primary"));
}

#[test]
fn without_the_split_everything_goes_to_the_primary() {
    let cluster = Cluster::shared();
    let proxy = Config { split: false, ..Config::new(cluster) }.start().ready();
    let mut client = proxy.connect("app");
    for _ in 0..10 {
        assert_eq!(node(cluster, &mut client, PORT), "primary");
    }
}

#[test]
fn the_hints_of_the_guide() {
    let cluster = Cluster::shared();
    cluster.execute(
        "create table accounts as select 1 as id, 100 as balance; create table analytics_data as select 1 as a; \
         create table live_metrics as select 1 as m; create table events as select 1 as e; \
         grant select on accounts, analytics_data, live_metrics, events to public",
    );
    cluster.nodes.iter().filter(|n| n.name != "primary").for_each(|n| n.catch_up(cluster.primary()));
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    // As written in the guide, each by both protocols; only the log tells where it went.
    for (sql, primary, reason) in [
        ("SELECT /* helios:route=primary */ balance FROM accounts WHERE id = 1", true, "hint"),
        ("SELECT /* helios:route=standby */ * FROM analytics_data", false, "hint"),
        ("SELECT /* helios:cache=skip */ * FROM live_metrics", false, "read_query"),
        ("SELECT /* helios:route=standby helios:cache=skip */ * FROM events", false, "hint"),
        ("/* helios:route=primary */ SELECT balance FROM accounts WHERE id = 1", true, "hint"),
        ("/* helios:route=standby */ SELECT balance FROM accounts WHERE id = 1", false, "hint"),
    ] {
        for extended in [false, true] {
            let before = proxy.logged("Routing query to").len();
            if extended {
                client.query_typed(sql, &[]).unwrap();
            } else {
                client.batch_execute(sql).unwrap();
            }
            // A driver sends more than the statement (it closes what it prepared): one line is the statement's.
            eventually(Duration::from_secs(10), sql, || {
                let mut lines = proxy.logged("Routing query to").into_iter().skip(before);
                lines.any(|l| {
                    l.contains("node=primary ") == primary && l.contains(&format!("reason={reason}"))
                })
            });
        }
    }
}

#[test]
fn hints_move_reads_and_nothing_else() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    let from = "setting from pg_settings where name = 'port'";
    for _ in 0..4 {
        let mut at = |sql: &str| node(cluster, &mut client, sql);
        assert_eq!(at(&format!("select /* helios:route=primary */ {from}")), "primary");
        assert_ne!(at(&format!("select /* helios:route=standby */ {from}")), "primary");
        assert_eq!(at(&format!("select /* helios:node=replica-2 */ {from}")), "replica-2");
        // Text, not comments.
        assert_ne!(at(&format!("select setting, '/* helios:route=primary */' from ({PORT}) s")), "primary");
        assert_ne!(
            at(&format!("select setting, $a$/* helios:route=primary */$a$ from ({PORT}) s")),
            "primary"
        );
        assert_ne!(
            at(&format!("select setting as \"/* helios:route=primary */\" from ({PORT}) s")),
            "primary"
        );
        // Comments, not hints.
        assert_ne!(at(&format!("select /* a /* helios:route=primary */ b */ {from}")), "primary");
        assert_ne!(at(&format!("select /*+ x helios:route=primary */ {from}")), "primary");
    }
    client.batch_execute("/* helios:route=standby */ update counter set n = n + 1 where id = 2").unwrap();
    client.batch_execute("/* helios:route=standby */ select * from counter where id = 2 for update").unwrap();
    client
        .batch_execute("/* helios:route=standby */ select 1; update counter set n = n + 1 where id = 2")
        .unwrap();
    let writing = "/* helios:route=standby */ with w as (update counter set n = n + 1 where id = 2 returning n) select n from w";
    client.batch_execute(writing).unwrap();
    client.query_one(writing, &[]).unwrap();
}

#[test]
fn what_is_not_plainly_a_read_goes_to_the_primary() {
    let cluster = Cluster::shared();
    cluster.execute(
        "create sequence routed; grant all on sequence routed to public; \
         create function routed_write() returns int language sql volatile as \
         'update counter set n = n + 1 where id = 2 returning n'",
    );
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    for _ in 0..5 {
        for sql in [
            "select nextval('routed')",
            "select routed_write()",
            "select * from counter where id = 2 for update",
            "select n into temp routed_into from counter; drop table routed_into",
            "with w as (update counter set n = n + 1 where id = 2 returning n) select n from w",
            "explain analyze update counter set n = n where id = 2",
            "do $$ begin perform routed_write(); end $$",
            "select 1; update counter set n = n where id = 2",
            "create temp table routed_temp (i int); drop table routed_temp",
        ] {
            client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }
}

#[test]
fn reads_that_call_stable_functions_of_the_user_leave_the_primary() {
    let cluster = Cluster::shared();
    let body = "select setting from pg_settings where name = 'port'";
    cluster.execute(&format!(
        "create schema own; grant usage on schema own to public; \
         create function own.port_stable() returns text stable language sql as $$ {body} $$; \
         create function own.port_volatile() returns text volatile language sql as $$ {body} $$; \
         create function own.port_both() returns text stable language sql as $$ {body} $$; \
         create function own.port_both(int) returns text volatile language sql as $$ {body} $$; \
         create function own.step(text, text) returns text volatile language sql as $$ {body} $$; \
         create aggregate own.port_of_steps(text) (sfunc = own.step, stype = text)"
    ));
    cluster.nodes.iter().filter(|n| n.name != "primary").for_each(|n| n.catch_up(cluster.primary()));
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    eventually(Duration::from_secs(30), "what is stable is known", || {
        node(cluster, &mut client, "select own.port_stable()") != "primary"
    });
    for _ in 0..5 {
        assert_ne!(node_extended(cluster, &mut client, "select own.port_stable()"), "primary");
        let on_primary = [
            "own.port_volatile()",
            "own.port_both()",
            "own.port_stable(), own.port_volatile()",
            "own.port_of_steps('')",
        ];
        for call in on_primary {
            assert_eq!(node(cluster, &mut client, &format!("select {call}")), "primary", "{call}");
        }
    }
    logged(&proxy, "primary", "volatile_function");
    cluster.execute("drop schema own cascade");
}

#[test]
fn a_read_only_transaction_goes_to_a_replica_as_a_whole() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    for begin in
        ["BEGIN READ ONLY", "start transaction read only", "begin isolation level repeatable read, read only"]
    {
        client.batch_execute(begin).unwrap();
        let first = node(cluster, &mut client, PORT);
        assert_ne!(first, "primary", "{begin}");
        for _ in 0..5 {
            assert_eq!(node(cluster, &mut client, PORT), first);
            assert_eq!(node_extended(cluster, &mut client, PORT), first);
        }
        client.batch_execute("commit").unwrap();
    }
}

#[test]
fn any_other_transaction_goes_to_the_primary() {
    let cluster = Cluster::shared();
    let proxy = Config::new(cluster).start().ready();
    let mut client = proxy.connect("app");
    for begin in ["begin", "BEGIN READ WRITE", "begin isolation level serializable", "start transaction"] {
        client.batch_execute(begin).unwrap();
        for _ in 0..3 {
            assert_eq!(node(cluster, &mut client, PORT), "primary", "{begin}");
            assert_eq!(node(cluster, &mut client, &format!("/* helios:route=standby */ {PORT}")), "primary");
        }
        client.batch_execute("rollback").unwrap();
    }
}
