//! The primary fails and a standby is promoted: what a proxy does, alone and in a fleet whose control plane is gone. Each
//! test has a cluster of its own to break. Times are printed, never asserted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::guard::{children, signal};
use helios_tests::{Cluster, Config, ControlPlane, Node, Proxy, Role, eventually, free_port};
use postgres::{Client, NoTls};

const LONG: Duration = Duration::from_secs(60);
const WRITE: &str = "update counter set n = n + 1 where id = 1";
const PORT: &str = "select setting from pg_settings where name = 'port'";

fn connected(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_control_connected", &[]) == Some(1.0)
}

fn gauge(proxy: &Proxy, name: &str) -> Option<f64> {
    proxy.metrics().sum(&format!("heliosproxy_{name}"), &[])
}

fn nodes(proxy: &Proxy) -> serde_json::Value {
    serde_json::from_str(&proxy.get("/nodes").body).unwrap()
}

/// Where a write lands, in a session of its own.
fn writes_at(proxy: &Proxy) -> Option<String> {
    let mut client = proxy.config("app").connect(NoTls).ok()?;
    client.batch_execute(WRITE).ok()?;
    // A transaction that may write is the primary's, whatever it reads.
    let mut transaction = client.transaction().ok()?;
    Some(transaction.query_typed(PORT, &[]).ok()?.first()?.get(0))
}

/// A proxy's file that takes everything from the control plane.
fn dataplane(name: &str, discovery: u16, state: &str) -> String {
    format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{}\"\nstate_dir = \"{state}\"\n",
        token("dataplane")
    )
}

#[test]
fn a_data_plane_without_its_control_plane_follows_a_promotion_and_never_goes_back() {
    let cluster = Cluster::start(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
    let text = Config::new(&cluster).text() + &sections(&store, discovery);
    let mut plane = ControlPlane::start(&text);
    let proxy = Proxy::start(&dataplane("dp-1", discovery, &state)).ready();
    assert_eq!(writes_at(&proxy), Some(primary.port.to_string()));
    assert_eq!(gauge(&proxy, "autonomous"), Some(0.0));
    let epoch = gauge(&proxy, "topology_epoch");
    standby.catch_up(primary);

    plane.kill();
    eventually(LONG, "the loss is seen", || !connected(&proxy));
    primary.kill();
    standby.promote();
    let promoted = Instant::now();
    eventually(LONG, "writes work again", || writes_at(&proxy) == Some(standby.port.to_string()));
    println!("promotion to first write without a control plane: {:?}", promoted.elapsed());
    assert_eq!(gauge(&proxy, "autonomous"), Some(1.0));
    assert!(gauge(&proxy, "topology_epoch") > epoch);

    // The old primary comes back and takes writes, on its old timeline: none goes there.
    primary.start();
    eventually(LONG, "the old primary is quarantined", || {
        nodes(&proxy).to_string().contains("not used: it takes writes on an old timeline")
    });

    // A data plane that starts now knows from its file what was found out without a control plane.
    eventually(LONG, "what was found is on disk", || {
        let alone = Proxy::start(&dataplane("dp-1", discovery, &state));
        nodes(&alone)["nodes"][1]["primary"] == true
    });
    let held = nodes(&proxy)["revision"].as_u64();

    // The control plane comes back and last knew another primary: it learns, and nothing goes back.
    let plane = ControlPlane::start(&text);
    eventually(LONG, "the control plane leads again", || {
        connected(&proxy) && gauge(&proxy, "autonomous") == Some(0.0)
    });
    for _ in 0..20 {
        assert_eq!(writes_at(&proxy), Some(standby.port.to_string()));
    }
    let mut viewer = plane.operator("viewer");
    let status = viewer.call(async |c| c.status(helios_proto::wire::v1::StatusRequest {}).await).unwrap();
    assert_eq!(status.primary, "standby", "{status:?}");
    assert!(nodes(&proxy)["revision"].as_u64() > held);
    let refused = proxy.logged("from the control plane is refused");
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(rows_of(&mut primary.superuser()), 1, "no write has reached the old primary");
    let _ = std::fs::remove_dir_all(store);
    let _ = std::fs::remove_dir_all(state);
}

fn rows_of(client: &mut Client) -> i32 {
    client.query_one("select n from counter where id = 1", &[]).unwrap().get(0)
}

/// Ends a freeze also when the test fails: a frozen server cannot be cleaned up.
struct Frozen(Vec<u32>);

impl Frozen {
    /// The postmaster alone, or with all its children.
    fn new(node: &Node, children_too: bool) -> Self {
        let mut pids = vec![node.pid()];
        signal("STOP", &pids);
        if children_too {
            pids.extend(children(node.pid()));
            signal("STOP", &pids);
        }
        Self(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("CONT", &self.0);
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

fn quarantined(proxy: &Proxy, why: &str) -> bool {
    nodes(proxy).to_string().contains(why)
}

/// One failover under a client that writes all the time; the time from the promotion to its first good write.
fn one_failover(stop: &str) -> (Duration, usize) {
    let cluster = Cluster::start(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let proxy = Config::new(&cluster).start().ready();
    let mut idle = proxy.connect("app");
    idle.batch_execute("select 1").unwrap();
    let (done, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let good: Mutex<Vec<Instant>> = Mutex::default();
    let took = std::thread::scope(|s| {
        s.spawn(|| {
            let mut client = proxy.connect("app");
            while !done.load(Ordering::Relaxed) {
                if client.batch_execute(WRITE).is_ok() {
                    good.lock().unwrap().push(Instant::now());
                } else {
                    failed.fetch_add(1, Ordering::Relaxed);
                    if client.is_closed() {
                        client = proxy.connect("app");
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let _stop = Stop(&done);
        eventually(LONG, "it writes", || good.lock().unwrap().len() > 20);
        standby.catch_up(primary);
        if stop == "kill" {
            primary.kill()
        } else {
            primary.stop(stop)
        }
        let stopped = Instant::now();
        let promoted = promote(standby);
        let first = || good.lock().unwrap().iter().copied().find(|at| *at > stopped);
        eventually(LONG, "writes work again", || first().is_some());
        let now_ms = ms_of_day();
        let decided = decided(&proxy, standby) - now_ms + promoted.elapsed().as_secs_f64() * 1e3;
        println!("{stop}: decided {decided:.0} ms after the promotion");
        first().unwrap().saturating_duration_since(promoted)
    });
    idle.batch_execute(WRITE).expect("an idle client notices nothing");
    (took, failed.load(Ordering::Relaxed))
}

/// When the proxy decided that this node is the primary, in milliseconds of the day.
fn decided(proxy: &Proxy, node: &Node) -> f64 {
    let line = proxy.said(&format!("node is the primary node={}", node.name));
    let time = line.split_once('T').unwrap().1.split_once('Z').unwrap().0;
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap()) * 1e3
}

fn ms_of_day() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs_f64() % 86_400.0 * 1e3
}

/// Ends the writer, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn writes_go_on_after_a_stop_and_a_promotion() {
    let mut all = Vec::new();
    for stop in ["fast", "immediate", "kill", "fast", "immediate", "kill"] {
        let (took, failed) = one_failover(stop);
        println!("{stop}: promotion to first write {took:?}, {failed} statements failed");
        assert!(failed <= 1, "only the statement in flight may fail: {failed}");
        all.push(took);
    }
    all.sort();
    println!("promotion to first write: median {:?}, worst {:?}", all[all.len() / 2], all[all.len() - 1]);
}

#[test]
fn a_frozen_primary_is_left_for_the_promoted_standby_and_fenced_when_it_thaws() {
    let cluster = Cluster::start(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let mut config = Config::new(&cluster);
    config.more =
        config.more.replace("check_interval_secs = 1", "check_interval_secs = 1\ncheck_timeout_secs = 0.5");
    let proxy = config.start().ready();
    assert_eq!(writes_at(&proxy), Some(primary.port.to_string()));
    let mut hanging = proxy.connect("app");
    hanging.batch_execute(&format!("begin; {WRITE}")).unwrap();
    standby.catch_up(primary);
    let frozen = Frozen::new(primary, true);
    let promoted = promote(standby);
    eventually(LONG, "writes work again", || writes_at(&proxy) == Some(standby.port.to_string()));
    println!("frozen primary: promotion to first write in a new session {:?}", promoted.elapsed());
    drop(frozen);
    eventually(LONG, "the thawed primary is quarantined", || {
        quarantined(&proxy, "not used: it takes writes on an old timeline")
    });
    assert!(hanging.batch_execute("commit").is_err(), "what was open there is lost, and said to be");
    assert_eq!(rows_of(&mut primary.superuser()), 1, "nothing was written there");
    assert_eq!(writes_at(&proxy), Some(standby.port.to_string()));
}

#[test]
fn a_zombie_gets_no_write_and_its_connections_are_closed() {
    let cluster = Cluster::start(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let proxy = Config::new(&cluster).start().ready();
    let (mut open, mut idle) = (proxy.connect("app"), proxy.connect("app"));
    idle.batch_execute(WRITE).unwrap();
    open.batch_execute(&format!("begin; {WRITE}")).unwrap();
    // Promoted while the old primary lives on and takes writes.
    let _ = promote(standby);
    eventually(LONG, "the old primary is quarantined", || {
        quarantined(&proxy, "not used: it takes writes on an old timeline")
    });
    assert!(open.batch_execute("commit").is_err(), "the transaction on the old primary cannot commit");
    for _ in 0..20 {
        idle.batch_execute(WRITE).unwrap();
    }
    let left =
        "select count(*) from pg_stat_activity where usename = 'app' and application_name <> 'helios-probe'";
    eventually(LONG, "no connection of a client is left there", || {
        primary.superuser().query_one(left, &[]).unwrap().get::<_, i64>(0) == 0
    });
    assert_eq!(rows_of(&mut primary.superuser()), 1);
    assert_eq!(rows_of(&mut standby.superuser()), 21);
    // Restarted, it is still the one that nobody may write to.
    primary.stop("immediate");
    primary.start();
    eventually(LONG, "it is quarantined again", || {
        quarantined(&proxy, "not used: it takes writes on an old timeline")
    });
    for _ in 0..20 {
        idle.batch_execute(WRITE).unwrap();
    }
    assert_eq!(rows_of(&mut primary.superuser()), 1);
}

#[test]
fn two_writable_nodes_on_one_timeline_get_no_write_until_one_is_gone() {
    let cluster = Cluster::start(&[Role::Standby, Role::Standby]);
    let (primary, first) = (cluster.primary(), &cluster.nodes[1]);
    let second = &cluster.nodes[2];
    let text =
        Config::new(&cluster).text().replacen("listen_address", "write_timeout_secs = 1\nlisten_address", 1);
    let proxy = Proxy::start(&text).ready();
    assert_eq!(writes_at(&proxy), Some(primary.port.to_string()));
    first.catch_up(primary);
    second.catch_up(primary);
    primary.kill();
    // Both leave recovery on timeline 2, neither knowing of the other.
    let frozen = Frozen::new(second, true);
    let _ = promote(first);
    drop(frozen);
    let _ = promote(second);
    eventually(LONG, "it is seen", || {
        !proxy.logged("several nodes take writes on the same timeline").is_empty()
    });
    let before: i32 = [first, second].iter().map(|node| rows_of(&mut node.superuser())).sum();
    let error = proxy.connect("app").batch_execute(WRITE).unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("57P03"), "{error:?}");
    let after: i32 = [first, second].iter().map(|node| rows_of(&mut node.superuser())).sum();
    assert_eq!(before, after, "nobody was written to");
    // One of them may have been the primary for a moment, and may have what clients wrote: without it nobody is.
    let taken = !proxy.logged("node is the primary node=standby-2").is_empty();
    let (gone, left) = if taken { (first, second) } else { (second, first) };
    gone.kill();
    eventually(LONG, "the one that is left takes writes", || {
        writes_at(&proxy) == Some(left.port.to_string())
    });
}

#[test]
fn a_replica_whose_replay_is_paused_leaves_the_reads_and_comes_back() {
    let cluster = Cluster::start(&[Role::Replica]);
    let (primary, replica) = (cluster.primary(), cluster.node("replica-1"));
    let balancer = "slow_start_secs = 0\nmax_lag_ms = 500";
    let proxy = Config { balancer, ..Config::new(&cluster) }.start().ready();
    let reads_at = || -> u16 {
        let row = proxy.connect("app").query_typed(PORT, &[]).unwrap();
        row[0].get::<_, String>(0).parse().unwrap()
    };
    eventually(LONG, "the replica takes reads", || reads_at() == replica.port);
    replica.superuser().batch_execute("select pg_wal_replay_pause()").unwrap();
    let mut writer = proxy.connect("app");
    eventually(LONG, "the paused replica takes no reads", || {
        writer.batch_execute(WRITE).unwrap();
        reads_at() == primary.port
    });
    replica.superuser().batch_execute("select pg_wal_replay_resume()").unwrap();
    eventually(LONG, "it takes reads again", || reads_at() == replica.port);
}
