//! Each process of a fleet dies or freezes in turn, under a load that checks every answer: what clients see is what the
//! documents say (`docs/faults.md`), and nothing acknowledged is lost. Each test has a fleet of its own. Times are
//! printed, never asserted. The death of etcd is in `etcd.rs`.

use std::time::{Duration, Instant};

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::guard::{children, signal};
use helios_tests::load::{Failure, Step, ids};
use helios_tests::{Cluster, Config, ControlPlane, Load, Node, Proxy, Role, eventually, free_port};
use postgres::Client;

const LONG: Duration = Duration::from_secs(60);
/// Clients of the load: half of them at each data plane.
const CLIENTS: usize = 8;
/// Clients that do nothing while something fails.
const IDLE: usize = 5;

/// PostgreSQL with a standby that commits wait for and a replica, a control plane, two data planes.
struct Fleet {
    one: Proxy,
    two: Proxy,
    plane: ControlPlane,
    text: String,
    first: String,
    store: String,
    cluster: Cluster,
}

impl Fleet {
    fn start() -> Self {
        let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
        Load::prepare(&cluster);
        // Without it a crash may lose what PostgreSQL has acknowledged.
        cluster.execute("alter system set synchronous_standby_names = 'standby'");
        cluster.execute("select pg_reload_conf()");
        // A standby that lost its primary asks again after 5 s otherwise, and commits would wait for it that long.
        for node in &cluster.nodes[1..] {
            let mut superuser = node.superuser();
            superuser.batch_execute("alter system set wal_retrieve_retry_interval = '100ms'").unwrap();
            superuser.batch_execute("select pg_reload_conf()").unwrap();
        }
        let (discovery, store) = (free_port(), directory("store"));
        let mut config = Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) };
        config.more = config.more.replace("[health]", "[health]\ncheck_timeout_secs = 0.5");
        let text = config.text() + &sections(&store, discovery);
        let plane = ControlPlane::start(&text);
        let dataplane = |name: &str| {
            format!(
                "listen_address = \"127.0.0.1:{}\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
                 endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{}\"\n",
                free_port(),
                token("dataplane")
            )
        };
        let first = dataplane("dp-1");
        let (one, two) = (Proxy::start(&first).ready(), Proxy::start(&dataplane("dp-2")).ready());
        Self { one, two, plane, text, first, store, cluster }
    }

    fn load(&self) -> Load {
        let load = Load::start(CLIENTS, &[&self.one, &self.two]);
        load.go_on(20);
        load
    }

    /// Logged in, served once, and silent since.
    fn idle(&self) -> Vec<Client> {
        let mut clients: Vec<Client> = (0..IDLE).map(|_| self.one.connect("app")).collect();
        clients.iter_mut().for_each(|client| client.batch_execute("select 1").unwrap());
        clients
    }

    fn primary_is(&self, name: &str) -> bool {
        [&self.one, &self.two].iter().all(|proxy| {
            let nodes: serde_json::Value = serde_json::from_str(&proxy.get("/nodes").body).unwrap();
            let nodes = nodes["nodes"].as_array().unwrap();
            nodes.iter().any(|node| node["name"] == name && node["primary"] == true)
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.store);
    }
}

fn epoch(proxy: &Proxy) -> Option<f64> {
    proxy.metrics().sum("heliosproxy_topology_epoch", &[])
}

/// Each of these clients was not cut, and writes.
fn all_live(idle: &mut [Client]) {
    for client in idle {
        client
            .batch_execute("update counter set n = n + 1 where id = 1")
            .expect("an idle client notices nothing");
    }
}

/// Promotes, and says when the server had left recovery.
fn promote(standby: &Node) -> Instant {
    let mut client = standby.superuser();
    client.batch_execute("select pg_promote(false)").unwrap();
    eventually(LONG, "the standby is promoted", || {
        !client.query_one("select pg_is_in_recovery()", &[]).unwrap().get::<_, bool>(0)
    });
    Instant::now()
}

/// Waits for the first acknowledged write after this moment, and says how long it took.
fn first_write(load: &Load, since: Instant) -> Duration {
    eventually(LONG, "writes go on", || load.last_write().is_some_and(|at| at > since));
    load.last_write().unwrap() - since
}

/// Stops processes, and lets them go on also when the test fails: what is frozen cannot be cleaned up.
struct Frozen(Vec<u32>);

impl Frozen {
    fn new(node: &Node, children_too: bool) -> Self {
        let mut frozen = Self(vec![node.pid()]);
        signal("STOP", &frozen.0);
        if children_too {
            frozen.0.extend(children(node.pid()));
            signal("STOP", &frozen.0);
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("CONT", &self.0);
    }
}

#[test]
fn the_death_of_the_control_plane_a_replica_or_a_data_plane_stays_where_it_is() {
    let mut fleet = Fleet::start();
    let load = fleet.load();

    // The control plane: nobody notices, neither when it goes nor when it is back.
    fleet.plane.kill();
    load.go_on(40);
    fleet.plane = ControlPlane::start(&fleet.text);
    let connected = |proxy: &Proxy| proxy.metrics().sum("heliosproxy_control_connected", &[]) == Some(1.0);
    eventually(LONG, "both are back", || connected(&fleet.one) && connected(&fleet.two));
    load.go_on(20);
    assert!(load.failures().is_empty(), "{:?}", load.failures());

    // A replica: a read whose rows were on their way may fail, nothing else, and reads go on.
    let replica = fleet.cluster.node("replica-1");
    replica.kill();
    load.go_on(40);
    replica.start();
    load.go_on(20);
    let failed = load.failures();
    assert!(failed.len() <= CLIENTS && failed.iter().all(|f| f.step == Step::Read), "{failed:?}");
    println!("a killed replica: {} reads failed", failed.len());

    // A data plane: its clients are cut, its transactions rolled back, the other one's clients notice nothing.
    let mut open = fleet.one.connect("app");
    open.batch_execute("begin; insert into counter values (77, 0)").unwrap();
    let held = "select count(*) from pg_locks l join pg_class c on c.oid = l.relation \
                where c.relname = 'counter' and l.mode = 'RowExclusiveLock'";
    let mut superuser = fleet.cluster.primary().superuser();
    let mut transactions = || superuser.query_one(held, &[]).unwrap().get::<_, i64>(0);
    assert_eq!(transactions(), 1);
    signal("KILL", &[fleet.one.pid]);
    let killed = Instant::now();
    eventually(LONG, "its transaction is gone", || transactions() == 0);
    println!("a killed data plane: its transactions were gone from PostgreSQL after {:?}", killed.elapsed());
    load.go_on_of(40, |client| client % 2 == 1);
    fleet.one = Proxy::start(&fleet.first).ready();
    println!("a killed data plane: it served again {:?} after it was killed", killed.elapsed());
    load.go_on(20);
    assert!(open.batch_execute("commit").is_err(), "its client was cut");
    let outcome = load.finish();
    outcome.check(fleet.cluster.primary());
    let elsewhere = |f: &&Failure| f.client % 2 == 1 && f.step != Step::Read;
    let other: Vec<_> = outcome.failures.iter().filter(elsewhere).collect();
    assert!(other.is_empty(), "{other:?}");
    let cut = outcome.failures.iter().filter(|f| f.step != Step::Read && f.code != "closed").count();
    assert_eq!(cut, 0, "clients of the dead one were cut: {:?}", outcome.codes());
}

#[test]
fn the_crash_of_a_backend_costs_what_was_in_flight_and_no_idle_client() {
    let fleet = Fleet::start();
    let mut idle = fleet.idle();
    let load = fleet.load();
    let primary = fleet.cluster.primary();
    let backend = "select pid from pg_stat_activity where usename = 'app' and backend_type = 'client backend' \
                   and application_name <> 'helios-probe' limit 1";
    for _ in 0..2 {
        let pid: i32 = primary.superuser().query_one(backend, &[]).unwrap().get(0);
        // PostgreSQL ends every other backend (57P02), recovers (57P03), and takes connections again.
        let crashes = || primary.log().matches("terminated by signal 9").count();
        let before = crashes();
        signal("KILL", &[u32::try_from(pid).unwrap()]);
        eventually(LONG, "the crash shows", || crashes() > before);
        load.go_on(40);
    }
    all_live(&mut idle);
    let outcome = load.finish();
    outcome.check(primary);
    outcome.codes_of_a_lost_primary(|_| true);
    assert!(fleet.primary_is("primary"), "no failover");
}

#[test]
fn with_synchronous_replication_a_killed_primary_and_a_promotion_lose_nothing() {
    let fleet = Fleet::start();
    let mut idle = fleet.idle();
    let load = fleet.load();
    let standby = fleet.cluster.node("standby");
    fleet.cluster.primary().kill();
    let promoted = promote(standby);
    println!("promotion to the next write: {:?}", first_write(&load, promoted));
    load.go_on(40);
    all_live(&mut idle);
    let outcome = load.finish();
    outcome.check(standby);
    outcome.codes_of_a_lost_primary(|_| true);
    assert!(fleet.primary_is("standby"));
}

#[test]
fn a_smart_shutdown_of_the_primary_ends_with_its_transactions_and_writes_go_on_at_the_standby() {
    let fleet = Fleet::start();
    let mut idle = fleet.idle();
    let load = fleet.load();
    let (primary, standby) = (fleet.cluster.primary(), fleet.cluster.node("standby"));
    let mut open = fleet.one.connect("app");
    open.batch_execute("begin; update counter set n = n + 100 where id = 2").unwrap();
    let since = Instant::now();
    std::thread::scope(|s| {
        let stopped = s.spawn(|| primary.stop("smart"));
        let down = |proxy: &Proxy| {
            proxy.metrics().sum("heliosproxy_node_healthy", &[("node", "primary")]) == Some(0.0)
        };
        eventually(LONG, "it is seen to stop", || down(&fleet.one) && down(&fleet.two));
        println!("a smart shutdown: noticed after {:?}", since.elapsed());
        assert!(!stopped.is_finished(), "a transaction is open");
        open.batch_execute("update counter set n = n + 1 where id = 2; commit").expect("it may end");
        stopped.join().expect("nothing of the proxy's holds it up");
        println!("a smart shutdown: ended after {:?}", since.elapsed());
    });
    let promoted = promote(standby);
    println!("a smart shutdown: promotion to the next write {:?}", first_write(&load, promoted));
    eventually(LONG, "everybody follows", || fleet.primary_is("standby"));
    load.go_on(40);
    all_live(&mut idle);
    let n: i32 = open.query_one("select n from counter where id = 2", &[]).unwrap().get(0);
    assert_eq!(n, 101, "what was committed is there");
    let outcome = load.finish();
    outcome.check(standby);
    let failed: Vec<_> = outcome.failures.iter().filter(|f| f.code != "57P03").collect();
    assert!(failed.is_empty(), "what had begun came to its end: {failed:?}");
}

#[test]
fn a_frozen_postmaster_costs_nothing_and_is_no_reason_for_a_failover() {
    let fleet = Fleet::start();
    let before = epoch(&fleet.one);
    // As many connections as the load ever needs are open before.
    let load = fleet.load();
    load.go_on(100);
    let frozen = Frozen::new(fleet.cluster.primary(), false);
    let since = Instant::now();
    // Longer than it takes to find a silent node dead.
    while since.elapsed() < Duration::from_secs(5) {
        load.go_on(20);
    }
    let failed = load.failures();
    assert!(failed.is_empty(), "traffic of open connections goes on: {failed:?}");
    assert!(fleet.primary_is("primary"));
    drop(frozen);
    load.go_on(20);
    assert_eq!(epoch(&fleet.one), before, "no failover");
    let outcome = load.finish();
    outcome.check(fleet.cluster.primary());
    outcome.nothing_failed();
}

#[test]
fn a_frozen_primary_that_thaws_after_a_promotion_gets_no_statement() {
    let fleet = Fleet::start();
    let mut idle = fleet.idle();
    let load = fleet.load();
    let (primary, standby) = (fleet.cluster.primary(), fleet.cluster.node("standby"));
    let frozen = Frozen::new(primary, true);
    let promoted = promote(standby);
    println!("frozen primary: promotion to the next write {:?}", first_write(&load, promoted));
    eventually(LONG, "everybody follows", || fleet.primary_is("standby"));
    load.go_on(20);
    let followed = load.issued();
    drop(frozen);
    let zombie =
        |proxy: &Proxy| proxy.get("/nodes").body.contains("not used: it takes writes on an old timeline");
    eventually(LONG, "the zombie is seen", || zombie(&fleet.one) && zombie(&fleet.two));
    load.go_on(40);
    all_live(&mut idle);
    let outcome = load.finish();
    outcome.check(standby);
    outcome.codes_of_a_lost_primary(|_| true);
    let late: Vec<_> = ids(primary).into_iter().filter(|id| *id >= followed).collect();
    assert!(late.is_empty(), "the zombie got writes: {late:?}");
}
