//! Planned work under a load that checks every answer: data planes are restarted one after the other, with their control plane
//! and without it; a node leaves the configuration and the pool shrinks. No transaction is aborted and nothing is lost. Each
//! test has a cluster of its own. Never kills a data plane: what that costs is in `faults.rs`. Times are printed, never asserted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use helios_tests::cluster::password;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::load::{Step, ids};
use helios_tests::{Cluster, Config, ControlPlane, Load, Proxy, Role, eventually, free_port};
use postgres::Client;

const LONG: Duration = Duration::from_secs(60);
const CLIENTS: usize = 8;
const PORT: &str = "select setting from pg_settings where name = 'port'";

/// A cluster, a control plane, and two data planes that keep what they are told.
struct Fleet {
    planes: Vec<Proxy>,
    texts: Vec<String>,
    plane: ControlPlane,
    directories: Vec<String>,
    cluster: Cluster,
}

impl Fleet {
    fn start() -> Self {
        let cluster = Cluster::start(&[Role::Replica]);
        Load::prepare(&cluster);
        let (discovery, store) = (free_port(), directory("store"));
        let config = Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) };
        let plane = ControlPlane::start(&(config.text() + &sections(&store, discovery)));
        let mut directories = vec![store];
        let dataplane = |name: &str| {
            let state = directory("state");
            let text = format!(
                "listen_address = \"127.0.0.1:{}\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
                 endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\nstate_dir = \"{state}\"\ntoken = \"{}\"\n",
                free_port(),
                token("dataplane")
            );
            directories.push(state);
            text
        };
        let texts: Vec<String> = ["dp-1", "dp-2"].map(dataplane).to_vec();
        let planes = texts.iter().map(|text| Proxy::start(text).ready()).collect();
        Self { planes, texts, plane, directories, cluster }
    }

    /// Clients that know both data planes, and go to the other one when theirs is away.
    fn load(&self) -> Load {
        let ports: Vec<u16> = self.planes.iter().map(Proxy::port).collect();
        let both = [[ports[0], ports[1]], [ports[1], ports[0]]].map(|[first, second]| {
            let mut both = postgres::Config::new();
            both.user("app").password(password("app")).dbname("postgres").connect_timeout(LONG);
            both.host("127.0.0.1").port(first).host("127.0.0.1").port(second);
            both
        });
        let load = Load::with(CLIENTS, &both);
        load.go_on(20);
        load
    }

    /// Stops and starts a data plane, as an upgrade does, once its clients have left.
    fn restart(&mut self, at: usize, load: &Load) {
        let mut old = self.planes.remove(at);
        let asked = Instant::now();
        old.terminate();
        let status = old.wait(LONG);
        assert!(status.success(), "{status}");
        assert!(old.logged("drain timeout").is_empty(), "everybody left by himself: {:#?}", old.tail());
        let left = asked.elapsed();
        load.go_on(10);
        self.planes.insert(at, Proxy::start(&self.texts[at]).ready());
        println!(
            "data plane {}: its clients had left after {left:?}, back after {:?}",
            at + 1,
            asked.elapsed()
        );
        load.go_on(10);
    }

    /// Nothing was aborted: who was cut was told so before his statement was sent, or between two statements.
    fn check(&self, load: Load, restarts: usize) {
        let outcome = load.finish();
        outcome.check(self.cluster.primary());
        let mut cuts = BTreeMap::<usize, usize>::new();
        let there = ids(self.cluster.primary());
        for failure in &outcome.failures {
            let between = matches!(failure.step, Step::Single | Step::Begin | Step::Read);
            let told = matches!(failure.code.as_str(), "57P01" | "closed");
            assert!(between && told && !there.contains(&failure.id), "{failure:?}");
            *cuts.entry(failure.client).or_default() += 1;
        }
        let most = cuts.values().max().copied().unwrap_or_default();
        // A driver that was told may notice only with its next request that the connection is closed.
        assert!(most <= 2 * restarts, "{restarts} restarts, and so many failures of each client: {cuts:?}");
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.planes.clear();
        for directory in &self.directories {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

#[test]
fn a_rolling_restart_aborts_no_transaction() {
    let mut fleet = Fleet::start();
    let load = fleet.load();
    for round in 0..2 {
        for at in 0..2 {
            fleet.restart(at, &load);
        }
        println!("round {} is through", round + 1);
    }
    fleet.check(load, 4);
}

#[test]
fn without_the_control_plane_everything_serves_and_restarts_for_as_long_as_it_is_away() {
    let mut fleet = Fleet::start();
    let load = fleet.load();
    for name in ["dp-1", "dp-2"] {
        let kept = format!("{}/last-good-snapshot", fleet.directories[usize::from(name == "dp-2") + 1]);
        eventually(LONG, "what is in force is kept", || std::fs::exists(&kept).unwrap());
    }
    let before = load.issued();
    fleet.plane.kill();
    let since = Instant::now();
    // HELIOS_AWAY_SECONDS=3600 makes it the hour of the fault table.
    let away = std::env::var("HELIOS_AWAY_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    load.go_on(200);
    while since.elapsed() < Duration::from_secs(away) {
        std::thread::sleep(
            Duration::from_secs(1).min(Duration::from_secs(away).saturating_sub(since.elapsed())),
        );
        assert!(load.failures().is_empty(), "after {:?}: {:?}", since.elapsed(), load.failures());
    }
    assert!(load.failures().is_empty(), "{:?}", load.failures());
    println!(
        "without a control plane: {} requests in {:?}, none failed",
        load.issued() - before,
        since.elapsed()
    );
    for at in 0..2 {
        fleet.restart(at, &load);
        let proxy = &fleet.planes[at];
        let _ = proxy.said("last good snapshot");
        assert_eq!(proxy.metrics().sum("heliosproxy_control_connected", &[]), Some(0.0));
    }
    load.go_on(50);
    fleet.check(load, 2);
}

/// Reads for a while: which server has answered.
fn slow(mut client: Client) -> String {
    let sql = format!("{PORT} and (select count(*) from generate_series(1, 4000000)) > 0");
    client.query_typed(&sql, &[]).unwrap()[0].get(0)
}

#[test]
fn a_node_that_leaves_and_a_pool_that_shrinks_abort_nothing() {
    let cluster = Cluster::start(&[Role::Replica, Role::Replica]);
    Load::prepare(&cluster);
    // Long enough for two connections to serve everybody on a slow machine.
    let config =
        Config { balancer: "slow_start_secs = 0", acquire_timeout: 60, pool: 10, ..Config::new(&cluster) };
    let proxy = Proxy::start(&config.text()).ready();
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    let leaving = cluster.node("replica-1").port;
    let fewer = {
        let mut config = Config { pool: 2, ..config.clone() };
        config.nodes.retain(|(name, ..)| name != "replica-1");
        config
    };
    let stats = |name: &str| {
        let name = format!("heliosproxy_pool_connections_{name}");
        proxy.metrics().0.iter().filter(|s| s.name == name).map(|s| s.value).collect::<Vec<_>>()
    };
    for round in 0..3 {
        // Reads that run there on, and transactions that stay open over the change.
        let mut open: Vec<_> = (0..4).map(|_| proxy.connect("app")).collect();
        for client in &mut open {
            client.batch_execute("begin; update counter set n = n where id = 3").unwrap();
        }
        let readers: Vec<_> = (0..6).map(|_| proxy.connect("app")).collect();
        let readers: Vec<_> =
            readers.into_iter().map(|client| std::thread::spawn(move || slow(client))).collect();
        let mut there = cluster.node("replica-1").superuser();
        let running = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active' and query like '%series%'";
        eventually(LONG, "reads run there", || there.query_one(running, &[]).unwrap().get::<_, i64>(0) > 0);
        let changed = Instant::now();
        proxy.rewrite(&fewer.text());
        proxy.reload();
        eventually(LONG, "the node is gone", || !proxy.get("/nodes").body.contains("replica-1"));
        for client in &mut open {
            client.batch_execute("select 1; commit").expect("an open transaction ends as it likes");
        }
        drop(open);
        let read: Vec<_> =
            readers.into_iter().map(|reader| reader.join().expect("a read that runs ends")).collect();
        assert!(read.contains(&leaving.to_string()), "reads ran at the node that left: {read:?}");
        eventually(LONG, "the pools are as small", || stats("total").iter().all(|total| *total <= 2.0));
        println!("round {}: as small as it has to be after {:?}", round + 1, changed.elapsed());
        load.go_on(20);
        assert!(stats("total").iter().all(|total| *total <= 2.0), "and stays so: {:?}", stats("total"));
        proxy.rewrite(&config.text());
        proxy.reload();
        eventually(LONG, "the node is back", || proxy.get("/nodes").body.contains("replica-1"));
        load.go_on(20);
    }
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
}
