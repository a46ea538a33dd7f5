//! Replicas that die and come back while statements run. Each test has a cluster of its own to break.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use helios_tests::{Cluster, Config, Proxy, Role, eventually};
use postgres::NoTls;

const PORT: &str = "select setting from pg_settings where name = 'port'";
const LONG: Duration = Duration::from_secs(60);
/// Clients of the load, each with one statement in flight.
const CLIENTS: usize = 4;

/// Statements that succeeded and failed, counted by clients that read all the time.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    good: AtomicUsize,
    bad: AtomicUsize,
}

/// Ends the load, also when the test fails: its threads would be waited for.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Load {
    fn run(&self, proxy: &Proxy) {
        let mut client = proxy.connect("app");
        while !self.stop.load(Ordering::Relaxed) {
            if client.query_typed(PORT, &[]).is_ok() {
                self.good.fetch_add(1, Ordering::Relaxed);
            } else {
                self.bad.fetch_add(1, Ordering::Relaxed);
                if client.is_closed()
                    && let Ok(again) = proxy.config("app").connect(NoTls)
                {
                    client = again;
                }
            }
        }
    }

    /// Waits for so many more good statements.
    fn more(&self, count: usize) {
        let goal = self.good.load(Ordering::Relaxed) + count;
        eventually(LONG, "the load goes on", || self.good.load(Ordering::Relaxed) >= goal);
    }
}

fn config(cluster: &Cluster) -> Config {
    Config { balancer: "slow_start_secs = 0", strategy: "round_robin", ..Config::new(cluster) }
}

/// Which node a new session reads from.
fn reads_at(cluster: &Cluster, proxy: &Proxy) -> Option<String> {
    let mut client = proxy.config("app").connect(NoTls).ok()?;
    let port: String = client.query_typed(PORT, &[]).ok()?.first()?.get(0);
    cluster.nodes.iter().find(|n| n.port.to_string() == port).map(|n| n.name.clone())
}

#[test]
fn killed_replicas_cost_only_the_statements_in_flight_and_take_reads_again_when_back() {
    let cluster = Cluster::start(&[Role::Replica, Role::Replica]);
    let proxy = config(&cluster).start().ready();
    let load = Load::default();
    std::thread::scope(|s| {
        let _stop = Stop(&load);
        for _ in 0..CLIENTS {
            s.spawn(|| load.run(&proxy));
        }
        let mut writer = proxy.connect("app");
        let mut write = || writer.batch_execute("update counter set n = n + 1 where id = 1").unwrap();
        load.more(200);
        for dead in ["replica-1", "replica-2"] {
            let before = load.bad.load(Ordering::Relaxed);
            cluster.node(dead).kill();
            load.more(500);
            let failed = load.bad.load(Ordering::Relaxed) - before;
            assert!(failed <= CLIENTS, "{failed} statements failed when {dead} was killed");
            write();
        }
        assert_eq!(reads_at(&cluster, &proxy).as_deref(), Some("primary"));
        for back in ["replica-1", "replica-2"] {
            let before = load.bad.load(Ordering::Relaxed);
            cluster.node(back).start();
            eventually(LONG, "the replica takes reads again", || {
                reads_at(&cluster, &proxy).as_deref() == Some(back)
            });
            load.more(100);
            assert_eq!(load.bad.load(Ordering::Relaxed), before, "a replica that comes back costs nothing");
            write();
        }
    });
}

#[test]
fn a_stopped_replica_is_shown_as_such_and_the_proxy_stays_healthy() {
    let cluster = Cluster::start(&[Role::Replica]);
    let proxy = config(&cluster).start().ready();
    let healthy = |node: &str| proxy.metrics().sum("heliosproxy_node_healthy", &[("node", node)]);
    eventually(LONG, "both are healthy", || {
        healthy("primary") == Some(1.0) && healthy("replica-1") == Some(1.0)
    });
    cluster.node("replica-1").stop("fast");
    eventually(LONG, "the replica is down", || healthy("replica-1") == Some(0.0));
    assert_eq!(healthy("primary"), Some(1.0));
    assert_eq!(proxy.get("/health").status, 200);
    assert_eq!(reads_at(&cluster, &proxy).as_deref(), Some("primary"));
    cluster.node("replica-1").start();
    eventually(LONG, "the replica is up", || healthy("replica-1") == Some(1.0));
}

#[test]
fn the_proxy_outlives_its_only_database() {
    let cluster = Cluster::start(&[]);
    let mut proxy = config(&cluster).start().ready();
    proxy.connect("app").batch_execute("select 1").unwrap();
    cluster.primary().kill();
    assert!(proxy.config("app").connect(NoTls).and_then(|mut c| c.batch_execute("select 1")).is_err());
    assert_eq!(proxy.get("/health/live").status, 200);
    cluster.primary().start();
    let works = || proxy.config("app").connect(NoTls).and_then(|mut c| c.batch_execute("select 1")).is_ok();
    eventually(LONG, "the database is back", works);
    assert!(proxy.alive());
}
