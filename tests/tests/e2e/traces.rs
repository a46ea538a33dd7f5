//! Spans of statements, as a real collector gets them.

use std::time::Duration;

use helios_tests::{Cluster, Collector, Config, Proxy, Role, eventually};

const LONG: Duration = Duration::from_secs(30);

fn proxy(cluster: &Cluster, collector: &str, more: &str) -> Proxy {
    let text = Config::new(cluster).text();
    Proxy::start(&format!("{text}\n[tracing]\notlp_endpoint = \"{collector}\"\n{more}")).ready()
}

/// A parent of a trace of this number, and whether its maker wants to see more.
fn parent(number: u32, sampled: bool) -> String {
    format!("/*traceparent='00-{number:032x}-{number:016x}-0{}'*/", u8::from(sampled))
}

#[test]
fn a_statement_is_a_span_of_the_trace_that_its_comment_names() {
    let Some(collector) = Collector::start() else { return };
    let cluster = Cluster::start(&[Role::Replica]);
    cluster.execute("create table traced (n int); grant all on traced to public");
    let proxy = proxy(&cluster, &collector.url(), "sample_one_in = 1000000\nservice_name = \"shop\"\n");
    let mut client = proxy.connect("app");
    for (number, sql) in [
        (0xa1, "select 1"),
        (0xa2, "insert into traced values (1)"),
        (0xa3, "select 1/0"),
        (0xa4, "select 'a secret of the client'"),
    ] {
        let done = client.batch_execute(&format!("{sql} {}", parent(number, true)));
        assert_eq!(done.is_err(), number == 0xa3);
    }
    // In a transaction, by the extended protocol, and one that nobody wants to see.
    let mut transaction = client.transaction().unwrap();
    let _ = transaction.query_typed(&format!("select 2 {}", parent(0xa5, true)), &[]).unwrap();
    transaction.commit().unwrap();
    client.batch_execute(&format!("select 3 {}", parent(0xa6, false))).unwrap();
    client.batch_execute(&format!("select 4 {}", parent(0xa7, true))).unwrap();
    eventually(LONG, "the last one is there", || collector.span(0xa7).is_some());
    let span = |number| collector.span(number).unwrap_or_else(|| panic!("{number:x}: {}", collector.said()));
    let port = |name: &str| cluster.node(name).port.to_string();
    for (number, name, node) in [
        (0xa1, "read", "replica-1"),
        (0xa2, "write", "primary"),
        (0xa4, "read", "replica-1"),
        (0xa5, "read", "primary"),
    ] {
        let span = span(number);
        assert_eq!(span.name, name, "{span:#?}");
        assert_eq!(span.parent, format!("{number:016x}"), "{span:#?}");
        for (key, value) in [
            ("db.system.name", "postgresql"),
            ("db.namespace", "postgres"),
            ("heliosproxy.user", "app"),
            ("heliosproxy.node", node),
            ("server.address", "127.0.0.1"),
            ("server.port", &port(node)),
        ] {
            assert!(span.has(key, value), "{key} = {value}: {span:#?}");
        }
        assert!(!span.text.contains("db.response.status_code"), "{span:#?}");
    }
    let failed = span(0xa3);
    assert!(failed.has("db.response.status_code", "22012"), "{failed:#?}");
    assert!(collector.span(0xa6).is_none(), "nobody wants to see it");
    let said = collector.said();
    assert!(said.contains("shop") && !said.contains("secret of the client"), "{said}");
    let sent =
        |outcome: &str| proxy.metrics().sum("heliosproxy_spans_total", &[("outcome", outcome)]).unwrap();
    // The collector shows them before it has answered.
    eventually(LONG, "they are counted", || sent("sent") >= 6.0);
    assert!(sent("failed") == 0.0 && sent("lost") == 0.0);
}

#[test]
fn spans_are_sampled_and_a_collector_that_is_away_disturbs_nobody() {
    let Some(mut collector) = Collector::start() else { return };
    let cluster = Cluster::start(&[]);
    let every = proxy(&cluster, &collector.url(), "sample_one_in = 1\n");
    let few = proxy(&cluster, &collector.url(), "sample_one_in = 1000\n");
    for proxy in [&every, &few] {
        let mut client = proxy.connect("app");
        (0..500).for_each(|_| client.batch_execute("select 1").unwrap());
    }
    let of = |proxy: &Proxy, outcome| {
        proxy.metrics().sum("heliosproxy_spans_total", &[("outcome", outcome)]).unwrap()
    };
    eventually(LONG, "all of one", || of(&every, "sent") >= 500.0);
    assert!(of(&few, "sent") < 100.0, "few of the other");
    collector.stop();
    let mut client = every.connect("app");
    (0..100).for_each(|_| client.batch_execute("select 1").unwrap());
    eventually(LONG, "it is noticed", || of(&every, "failed") >= 100.0);
    let _ = every.said("the collector takes no spans, they are lost");
    // More than what may wait: nobody waits for it.
    (0..9000).for_each(|_| client.batch_execute("").unwrap());
    collector.launch();
    let before = of(&every, "sent");
    eventually(LONG, "it gets spans again", || {
        client.batch_execute("select 1").unwrap();
        of(&every, "sent") > before
    });
    let _ = every.said("the collector takes spans again");
}

#[test]
fn what_waits_is_sent_at_the_end_and_what_gets_no_server_says_so() {
    let Some(collector) = Collector::start() else { return };
    let cluster = Cluster::start(&[]);
    let config = Config { pool: 1, acquire_timeout: 1, ..Config::primary_only(&cluster) };
    let more = format!("[tracing]\notlp_endpoint = \"{}\"\n", collector.url());
    let proxy = Proxy::start(&format!("{}\n{more}", config.text())).ready();
    let mut holder = proxy.connect("app");
    let mut other = proxy.connect("app");
    holder.batch_execute("begin").unwrap();
    let error = other.batch_execute(&format!("select 1 {}", parent(0xb1, true))).unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("53300"));
    holder.batch_execute(&format!("commit {}", parent(0xb2, true))).unwrap();
    drop((holder, other));
    proxy.terminate();
    eventually(LONG, "it is there", || collector.span(0xb2).is_some());
    let span = collector.span(0xb1).unwrap();
    assert!(span.has("db.response.status_code", "53300"), "{span:#?}");
    assert!(!span.text.contains("heliosproxy.node"), "{span:#?}");
}
