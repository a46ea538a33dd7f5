//! Servers of another cluster stand behind names of this one: by a mistake in the file, or because an address was given to
//! another machine. They have the same roles and tables, so that every statement that reached one would succeed there. None
//! may, once a probe has seen it. Each test has two clusters of its own. Never makes two clusters share a data directory.

use std::time::Duration;

use helios_tests::{Cluster, Config, Proxy, Role, eventually};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(60);
const WHY: &str = "it belongs to another cluster (system identifier differs)";

/// A cluster whose every server says whose it is.
fn marked(whose: &str) -> Cluster {
    let cluster = Cluster::start(&[Role::Replica]);
    let sql = format!("create table marker as select '{whose}'::text as x; grant all on marker to public");
    cluster.execute(&sql);
    cluster
}

/// Whether `/nodes` says of this node that it belongs to another cluster.
fn refused(proxy: &Proxy, name: &str) -> bool {
    let nodes: serde_json::Value = serde_json::from_str(&proxy.get("/nodes").body).unwrap();
    let node = nodes["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name);
    node.is_some_and(|node| node.to_string().contains(WHY))
}

/// Reads and writes in new sessions, all of which have to be at home.
fn all_at_home(proxy: &Proxy, rounds: usize) {
    for round in 0..rounds {
        let mut client = proxy.connect("app");
        let rows = client.query_typed("select x from marker", &[]).unwrap();
        assert_eq!(rows[0].get::<_, &str>(0), "ours", "read {round}");
        let row = client.query_one("update marker set x = x returning x", &[]).unwrap();
        assert_eq!(row.get::<_, &str>(0), "ours", "write {round}");
    }
}

#[test]
fn servers_of_another_cluster_get_no_statement_whatever_name_they_stand_behind() {
    let (ours, theirs) = (marked("ours"), marked("theirs"));
    let mut config =
        Config { balancer: "slow_start_secs = 0", strategy: "round_robin", ..Config::new(&ours) };
    // What opens connections here opens them there.
    config = config.user("app", "password = \"app-secret\"");
    // A writer in line for a failover, and a replica.
    config.nodes.push(("standby".to_owned(), Role::Standby, theirs.primary().port));
    config.nodes.push(("replica-2".to_owned(), Role::Replica, theirs.node("replica-1").port));
    let text = config.text().replacen("listen_address", "write_timeout_secs = 2\nlisten_address", 1);
    let proxy = Proxy::start(&text);
    eventually(LONG, "both are found out", || refused(&proxy, "standby") && refused(&proxy, "replica-2"));
    eventually(LONG, "it serves", || proxy.config("app").connect(NoTls).is_ok());
    all_at_home(&proxy, 40);

    // Their writer is the only one left: nobody writes.
    ours.primary().kill();
    let mut client = proxy.connect("app");
    for _ in 0..2 {
        let error = client.batch_execute("update marker set x = 'lost'").expect_err("no primary");
        assert_eq!(error.code().map(|code| code.code()), Some("57P03"), "{error}");
        let rows = client.query_typed("select x from marker", &[]).unwrap();
        assert_eq!(rows[0].get::<_, &str>(0), "ours", "the replica reads");
    }
    ours.primary().start();
    eventually(LONG, "writes go on", || client.batch_execute("update marker set x = x").is_ok());

    // The address behind a name that was good is given to another machine.
    config.nodes.retain(|(name, ..)| name != "replica-2");
    let replica = config.nodes.iter_mut().find(|(name, ..)| name == "replica-1").unwrap();
    replica.2 = theirs.node("replica-1").port;
    proxy.rewrite(&config.text());
    proxy.reload();
    eventually(LONG, "it is found out", || refused(&proxy, "replica-1"));
    all_at_home(&proxy, 20);
    let mut theirs = theirs.primary().superuser();
    let whose: String = theirs.query_one("select x from marker", &[]).unwrap().get(0);
    assert_eq!(whose, "theirs");
}
