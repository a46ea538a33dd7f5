//! One party stops: a single backend, a client that reads no more, a client whose machine is gone. What it held is freed by a
//! limit, nobody else waits for it, and the proxy's memory stays what it was. Never freezes more than one process, and only one
//! of its own cluster. Times are printed, never asserted.

use std::time::{Duration, Instant};

use helios_tests::cluster::password;
use helios_tests::guard::signal;
use helios_tests::raw::{Next, query, startup};
use helios_tests::{Cluster, Config, Load, Net, Node, Proxy, Raw, eventually};

const LONG: Duration = Duration::from_secs(60);
/// What the proxy may hold for a client that does not read, in KiB: what it reads at once, twice, and slack of the allocator.
const HELD: u64 = 256;

/// A stopped process that goes on when dropped, also when the test fails.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Self {
        signal("STOP", &[pid]);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("CONT", &[self.0]);
    }
}

fn metric(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("heliosproxy_{name}"), &[]).unwrap()
}

#[test]
fn a_backend_that_hangs_holds_its_own_client_only_and_that_for_as_long_as_the_limit_says() {
    let cluster = Cluster::start(&[]);
    Load::prepare(&cluster);
    let mut config = Config { pool: 3, acquire_timeout: 60, ..Config::primary_only(&cluster) };
    config.more += "\n[limits]\nquery_timeout_secs = 1\n";
    let mut proxy = config.start().ready();
    let (mut stuck, _) = proxy.raw("app");
    stuck.query("begin");
    let pid =
        stuck.query("select pg_backend_pid()").iter().find(|m| m.tag == b'D').unwrap().fields()[0].clone();
    let frozen = Stopped::new(pid.parse().unwrap());
    let since = Instant::now();
    stuck.send(&query("select 'stuck'"));
    let load = Load::start(4, &[&proxy]);
    let mut cut = None;
    while cut.is_none() {
        load.go_on(1);
        assert!(since.elapsed() < LONG, "it is cut");
        cut = match stuck.next(Duration::from_millis(1)) {
            Next::Message(message) => Some(message),
            Next::Closed => panic!("closed without a word"),
            Next::Silence => None,
        };
    }
    let cut = cut.unwrap();
    println!("a stopped backend: its client was told {} after {:?}", cut.sqlstate(), since.elapsed());
    assert_eq!((cut.tag, cut.sqlstate().as_str()), (b'E', "57014"));
    assert_eq!(cut.error().0, "FATAL");
    // The place that it had in the pool is free again, while the backend still hangs.
    let mut open: Vec<Raw> = Vec::new();
    let outcome = load.finish();
    eventually(LONG, "its place is free", || metric(&proxy, "pool_connections_active") == 0.0);
    for _ in 0..3 {
        let (mut client, _) = proxy.raw("app");
        assert!(client.query("begin").iter().any(|m| m.tag == b'C'));
        open.push(client);
    }
    println!("a stopped backend: three connections of three serve after {:?}", since.elapsed());
    assert_eq!(metric(&proxy, "node_healthy"), 1.0, "that is no reason to give the node up");
    drop(frozen);
    outcome.check(cluster.primary());
    outcome.nothing_failed();
    assert!(proxy.alive());
}

/// Statements of this kind that run, or wait for somebody to read.
fn running(node: &Node, mark: &str) -> i64 {
    let sql =
        "select count(*) from pg_stat_activity where usename = 'app' and state = 'active' and query like $1";
    node.superuser().query_one(sql, &[&format!("%{mark}%")]).unwrap().get(0)
}

#[test]
fn clients_that_read_no_more_fill_no_memory_and_lose_their_servers() {
    const MANY: usize = 30;
    let cluster = Cluster::start(&[]);
    Load::prepare(&cluster);
    let mut config = Config { pool: 40, ..Config::primary_only(&cluster) };
    config.more += "\n[limits]\nquery_timeout_secs = 1\n";
    let mut proxy = config.start().ready();
    let mut clients: Vec<Raw> = (0..MANY).map(|_| proxy.raw("app").0).collect();
    clients.iter_mut().for_each(|client| drop(client.query("select 1")));
    let load = Load::start(4, &[&proxy]);
    load.go_on(20);
    let before = proxy.rss_kib();
    // A gigabyte each, in rows of a megabyte.
    let since = Instant::now();
    for client in &mut clients {
        client.send(&query("select repeat('unread', 170000) from generate_series(1, 1000)"));
    }
    let primary = cluster.primary();
    let mut most = 0;
    eventually(LONG, "all of them run", || {
        most = most.max(proxy.rss_kib());
        running(primary, "unread") == i64::try_from(MANY).unwrap()
    });
    eventually(LONG, "the servers are free", || {
        most = most.max(proxy.rss_kib());
        running(primary, "unread") == 0
    });
    println!(
        "{MANY} clients that read nothing of 1 GB each: free after {:?}, memory {before}, at most {most} KiB",
        since.elapsed()
    );
    assert!(most < before + HELD * MANY as u64, "{before} to {most} KiB");
    load.go_on(20);
    let outcome = load.finish();
    outcome.check(primary);
    outcome.nothing_failed();
    assert!(proxy.alive());
}

/// Address of the host at which PostgreSQL is.
const SERVER: u8 = 10;
/// Address of the host that clients come from.
const CLIENT: u8 = 1;

#[test]
fn a_client_whose_machine_is_gone_keeps_no_transaction() {
    let net = match Net::new(&[SERVER]) {
        Ok(net) => net,
        Err(why) => {
            return eprintln!("SKIPPED a client whose machine is gone: no network namespaces here: {why}");
        }
    };
    let cluster = Cluster::start(&[]);
    cluster.primary().restart_with("alter system set listen_addresses = '*'");
    let mut config =
        Config::primary_only(&cluster).user("app", &format!("password = \"{}\"", password("app")));
    config.more += "\n[limits]\nidle_in_transaction_timeout_secs = 2\n";
    let inside = net.inside();
    let text = config
        .text()
        .replace("host = \"127.0.0.1\"", &format!("host = \"{}\"", net.at(SERVER)))
        .replace("127.0.0.1:0", &format!("{inside}:0"));
    let proxy = Proxy::start_in(&net, &text).ready();
    let login = || {
        let mut raw = Raw::connect_to(proxy.address);
        raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
        raw.finish_login("app", "app-secret").expect("let in");
        raw
    };
    let mut gone = login();
    gone.query("begin");
    gone.query("update counter set n = n + 1 where id = 1");
    let held =
        "select count(*) from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 'counter'";
    let mut superuser = cluster.primary().superuser();
    let mut locks = || superuser.query_one(held, &[]).unwrap().get::<_, i64>(0);
    assert!(locks() > 0);
    // Nothing of the proxy's reaches it any more, and it says nothing: no FIN, no reset.
    net.mute(CLIENT);
    let since = Instant::now();
    eventually(LONG, "its transaction is gone", || locks() == 0);
    println!("a client that is gone without a FIN: its transaction was gone after {:?}", since.elapsed());
    net.unmute(CLIENT);
    let mut next = login();
    let row = next.query("update counter set n = n + 1 where id = 1 returning n");
    assert_eq!(row.iter().find(|m| m.tag == b'D').unwrap().fields(), ["1"], "rolled back");
}
