//! Replicas that a promotion left behind: they follow the old primary, or nobody, and their data grow old. Each test has a
//! cluster of its own to break.

use std::net::SocketAddr;
use std::time::Duration;

use helios_tests::{Cluster, Config, Heliosctl, Node, Proxy, Role, eventually, free_port};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(60);
const PORT: &str = "select setting from pg_settings where name = 'port'";
const WHY: &str = "not used: it follows an old timeline, not that of the primary; point it at the primary";

/// A standalone proxy that probes as `probe`, and a shell beside it.
fn standalone(cluster: &Cluster, probe: &str) -> (Proxy, Heliosctl) {
    let port = free_port();
    let config = Config { balancer: "slow_start_secs = 0", ..Config::new(cluster) };
    let text = config.text().replace("user = \"app\"\npassword = \"app-secret\"", probe);
    assert!(text.contains(probe), "{text}");
    let more = format!("\n[management]\nlisten_address = \"127.0.0.1:{port}\"\n");
    let proxy = Proxy::start(&(text + &more)).ready();
    (proxy, Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Ports of the nodes that some reads landed on.
fn read_at(proxy: &Proxy) -> Vec<u16> {
    let mut client = proxy.connect("app");
    let mut ports: Vec<u16> = (0..12)
        .map(|_| client.query_typed(PORT, &[]).unwrap()[0].get::<_, String>(0).parse().unwrap())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn note(ctl: &Heliosctl, node: &str) -> String {
    ctl.run(&["node", "get", node, "-o", "json"]).json()["last_error"].as_str().unwrap().to_owned()
}

fn point_at(replica: &Node, primary: &Node) {
    let mut client = replica.superuser();
    let sql =
        format!("alter system set primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", primary.port);
    client.batch_execute(&sql).unwrap();
    client.batch_execute("select pg_reload_conf()").unwrap();
}

#[test]
fn a_replica_of_the_old_primary_takes_no_reads_until_it_follows_the_new_one() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    cluster.execute("create role watcher login password 'watcher-secret' in role pg_monitor");
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let replica = cluster.node("replica-1");
    let (proxy, ctl) = standalone(&cluster, "user = \"watcher\"\npassword = \"watcher-secret\"");
    eventually(LONG, "both take reads", || read_at(&proxy).len() == 2);
    // Promoted while the old primary lives on, with its replica.
    standby.catch_up(primary);
    standby.promote();
    eventually(LONG, "the replica is left out", || note(&ctl, "replica-1") == WHY);
    assert_eq!(read_at(&proxy), [standby.port], "reads are at the primary");
    let wide = ctl.run(&["node", "list", "-o", "wide"]).code(0);
    assert!(wide.out.contains(WHY), "{wide:?}");
    assert!(proxy.get("/nodes").body.contains(WHY));
    let _ = proxy.said("node is quarantined node=replica-1");
    assert_eq!(proxy.logged("node is quarantined node=replica-1").len(), 1);
    // The old primary goes: the replica follows nobody, and is as old as before.
    primary.stop("immediate");
    let mut client = proxy.connect("app");
    for _ in 0..3 {
        client.batch_execute("update counter set n = n + 1 where id = 1").unwrap();
    }
    assert_eq!((note(&ctl, "replica-1"), read_at(&proxy)), (WHY.to_owned(), vec![standby.port]));

    point_at(replica, standby);
    eventually(LONG, "the replica follows", || note(&ctl, "replica-1").is_empty());
    replica.catch_up(standby);
    eventually(LONG, "the replica takes reads", || read_at(&proxy).contains(&replica.port));
}

#[test]
fn without_a_primary_old_data_are_better_than_none() {
    let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let replica = cluster.node("replica-1");
    // A login that may not see what a receiver says.
    let (proxy, ctl) = standalone(&cluster, "user = \"app\"\npassword = \"app-secret\"");
    standby.catch_up(primary);
    primary.stop("immediate");
    standby.promote();
    eventually(LONG, "a replica without a receiver shows how far it is", || note(&ctl, "replica-1") == WHY);
    standby.stop("immediate");
    eventually(LONG, "reads go on", || {
        // A login is checked on a server, and that may be the one that has just gone.
        let Ok(mut client) = proxy.config("app").connect(NoTls) else { return false };
        let row = client.query_typed(PORT, &[]);
        row.is_ok_and(|row| row[0].get::<_, String>(0) == replica.port.to_string())
    });
    standby.start();
    eventually(LONG, "the primary is back, and has the reads", || {
        note(&ctl, "replica-1") == WHY && read_at(&proxy) == [standby.port]
    });
}

#[test]
fn a_session_in_session_mode_that_began_without_a_primary_moves_to_it_when_it_is_back() {
    let cluster = Cluster::start(&[Role::Standby]);
    cluster.execute("create table kept (i int); grant all on kept to app");
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    standby.catch_up(primary);
    let proxy = Config { mode: "session", ..Config::new(&cluster) }.start().ready();
    primary.stop("immediate");
    let port = |client: &mut postgres::Client| -> Option<String> {
        client.query_typed(PORT, &[]).ok().map(|row| row[0].get::<_, String>(0))
    };
    let mut clients = Vec::new();
    eventually(LONG, "reads go on at the standby", || {
        clients.clear();
        for _ in 0..2 {
            let Ok(mut client) = proxy.config("app").connect(NoTls) else { return false };
            if port(&mut client) != Some(standby.port.to_string()) {
                return false;
            }
            clients.push(client);
        }
        true
    });
    let [free, tied] = &mut clients[..] else { panic!() };
    // What is prepared in session mode is on that server only.
    tied.batch_execute("begin read only").unwrap();
    let statement = tied.prepare("select setting from pg_settings where name = $1").unwrap();
    tied.batch_execute("commit").unwrap();
    primary.start();
    eventually(LONG, "the session writes", || free.batch_execute("insert into kept values (1)").is_ok());
    assert_eq!(port(free), Some(primary.port.to_string()), "and reads there");
    let rows = tied.query(&statement, &[&"port"]).expect("what it has prepared is there");
    assert_eq!(rows[0].get::<_, String>(0), standby.port.to_string());
    let error = tied.batch_execute("insert into kept values (2)").unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("25006"), "{error}");
}
