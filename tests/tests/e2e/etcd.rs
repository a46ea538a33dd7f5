//! Several control planes over a real etcd: what reaches whom, and who notices what when one of them, a member of etcd, or
//! all of etcd is killed, frozen or comes back. Times are never asserted, but for how long something stays frozen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use helios_proto::wire::v1;
use helios_tests::controlplane::{sections_with, token};
use helios_tests::{Cluster, Config, ControlPlane, Etcd, Operator, Proxy, Role, eventually, free_port, http};
use postgres::NoTls;
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);
const WRITE: &str = "update counter set n = n + 1 where id = 1";

/// A control plane over etcd, not yet waited for.
fn plane(config: &Config, etcd: &Etcd, discovery: u16) -> ControlPlane {
    plane_of(config, &etcd.endpoints(), discovery)
}

/// One that knows these members of etcd only.
fn plane_of(config: &Config, endpoints: &str, discovery: u16) -> ControlPlane {
    let store = format!("kind = \"etcd\"\nendpoints = {endpoints}");
    ControlPlane::start(&(config.text() + &sections_with(&store, discovery)))
}

/// A data plane that knows these control planes.
fn dataplane(name: &str, discovery: &[u16]) -> Proxy {
    let endpoints: Vec<String> = discovery.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    Proxy::start(&format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [{}]\nname = \"{name}\"\ntoken = \"{}\"\n",
        endpoints.join(", "),
        token("dataplane")
    ))
    .ready()
}

fn drained(proxy: &Proxy, name: &str) -> Option<bool> {
    let shown: serde_json::Value = serde_json::from_str(&proxy.get("/nodes").body).unwrap();
    let node = shown["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name)?;
    node["drained"].as_bool()
}

fn gauge(proxy: &Proxy, name: &str) -> Option<f64> {
    proxy.metrics().sum(&format!("heliosproxy_{name}"), &[])
}

fn drain(plane: &ControlPlane, name: &str, drained: bool) -> Result<v1::ChangeReply, tonic::Status> {
    let request = v1::SetNodeRequest {
        name: name.to_owned(),
        drained: Some(drained),
        wait: Some(v1::Wait { timeout_ms: 10_000 }),
        ..v1::SetNodeRequest::default()
    };
    plane.operator("admin").call(async |client| client.set_node(request).await)
}

fn text_of(plane: &ControlPlane) -> (u64, String) {
    let mut admin = plane.operator("admin");
    let got = admin.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
    (got.revision.unwrap().revision, got.text)
}

fn apply(operator: &mut Operator, text: String, expected: u64) -> Result<v1::ChangeReply, tonic::Status> {
    let request = v1::ApplyConfigRequest {
        text,
        expected_revision: Some(expected),
        wait: Some(v1::Wait { timeout_ms: 10_000 }),
        ..v1::ApplyConfigRequest::default()
    };
    operator.call(async |client| client.apply_config(request).await)
}

/// The configuration in force with another pool size.
fn with_pool(plane: &ControlPlane, size: u32) -> (u64, String) {
    let (revision, text) = text_of(plane);
    let line = text.lines().find(|line| line.starts_with("max_pool_size")).unwrap().to_owned();
    (revision, text.replace(&line, &format!("max_pool_size = {size}")))
}

fn status(plane: &ControlPlane) -> v1::StatusReply {
    plane.operator("viewer").call(async |c| c.status(v1::StatusRequest {}).await).unwrap()
}

fn is_leader(plane: &ControlPlane) -> bool {
    plane.health("leader") == true
}

/// A client that writes and reads without a pause, and counts what fails.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(proxy: &Proxy) -> Self {
        let (stop, done, failed) = (Arc::default(), Arc::default(), Arc::default());
        let load = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
        let mut client = proxy.connect("app");
        let thread = std::thread::spawn(move || {
            let (stop, done, failed): (Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicU32>) = load;
            while !stop.load(Ordering::Relaxed) {
                for sql in [WRITE, "select n from counter where id = 1"] {
                    match client.batch_execute(sql) {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            }
        });
        Self { stop, done, failed, thread: Some(thread) }
    }

    /// Goes on for a while, so that what has just happened would show.
    fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually(LONG, "the load goes on", || self.done.load(Ordering::Relaxed) > before + 200);
    }

    /// Ends; how many statements failed.
    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.failed.load(Ordering::Relaxed)
    }
}

#[test]
fn a_change_through_any_control_plane_reaches_the_data_planes_of_all() {
    let (cluster, etcd, ports) = (Cluster::shared(), Etcd::start(1), [free_port(), free_port()]);
    let config = Config::new(cluster);
    // Both at once, over an empty store: one seeds it.
    let planes = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    let proxies = [dataplane("dp-1", &ports[..1]), dataplane("dp-2", &ports[1..])];
    for plane in &planes {
        let status = status(plane);
        assert_eq!((status.store.as_str(), status.store_up, status.config_revision), ("etcd", true, 1));
        eventually(LONG, "all know all", || {
            let status = self::status(plane);
            status.control_planes.len() == 2 && status.control_planes.contains(&status.leader)
        });
    }
    assert_eq!(planes.iter().filter(|plane| is_leader(plane)).count(), 1);
    let metrics = http::get(planes[0].admin, "/metrics").unwrap().body;
    assert!(metrics.contains("heliosproxy_cp_store_up 1") && metrics.contains("heliosproxy_cp_leader "));

    // A mark: the own data plane has it when the call returns, the other one soon.
    let reply = drain(&planes[0], "replica-1", true).unwrap();
    assert_eq!((reply.dataplanes, reply.acknowledged, reply.changed), (1, 1, true), "{reply:?}");
    assert_eq!(drained(&proxies[0], "replica-1"), Some(true));
    eventually(LONG, "the mark reaches the other", || drained(&proxies[1], "replica-1") == Some(true));
    // And from the other side, beside the first mark.
    drain(&planes[1], "replica-2", true).unwrap();
    eventually(LONG, "the second mark as well", || {
        drained(&proxies[0], "replica-2") == Some(true) && drained(&proxies[0], "replica-1") == Some(true)
    });

    // A configuration; and two at once, made from the same one: one wins.
    let (revision, text) = with_pool(&planes[1], 11);
    assert_eq!(apply(&mut planes[1].operator("admin"), text, revision).unwrap().config_revision, 2);
    eventually(LONG, "it reaches the other", || proxies[0].get("/pool/stats").body.contains("\"max\":11"));
    let writers: Vec<_> = planes
        .iter()
        .zip([12, 13])
        .map(|(plane, size)| {
            let ((_, text), mut operator) = (with_pool(plane, size), plane.operator("admin"));
            std::thread::spawn(move || apply(&mut operator, text, 2).map_err(|status| status.code()))
        })
        .collect();
    let results: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert!(results.iter().any(|result| matches!(result, Err(Code::Aborted))), "{results:?}");
    eventually(LONG, "both hold the same", || text_of(&planes[0]) == text_of(&planes[1]));
    let mut admin = planes[0].operator("admin");
    let audit = admin.call(async |c| c.audit(v1::AuditRequest::default()).await).unwrap();
    let made = audit.entries.iter().filter(|entry| entry.outcome == "ok").count();
    assert_eq!(made, 4, "two marks and two configurations: {:#?}", audit.entries);
}

#[test]
fn a_data_plane_moves_to_another_control_plane_and_everything_starts_again_where_it_was() {
    let (cluster, mut etcd, ports) = (Cluster::shared(), Etcd::start(1), [free_port(), free_port()]);
    let config = Config::new(cluster);
    let mut planes = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    let proxy = dataplane("dp-1", &ports);
    let load = Load::start(&proxy);
    eventually(LONG, "one leads", || planes.iter().any(is_leader));
    // There and back: each time the one that it is on is killed.
    for drain_it in [true, false] {
        let on = planes.iter().position(|plane| plane.health("dataplanes") == 1).expect("it is on one");
        let other = 1 - on;
        planes[on].kill();
        eventually(LONG, "it moves", || planes[other].health("dataplanes") == 1);
        let reply = drain(&planes[other], "replica-1", drain_it).unwrap();
        assert_eq!((reply.dataplanes, reply.acknowledged, reply.changed), (1, 1, true), "{reply:?}");
        assert_eq!(drained(&proxy, "replica-1"), Some(drain_it));
        load.goes_on();
        eventually(LONG, "the survivor leads", || is_leader(&planes[other]));
        planes[on] = plane(&config, &etcd, ports[on]).ready();
    }
    assert_eq!(load.end(), 0, "no client noticed");
    let refused = proxy.logged("from the control plane is refused");
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(gauge(&proxy, "control_connected"), Some(1.0));

    // All of it, from etcd on: the state is the same.
    drain(&planes[0], "replica-2", true).unwrap();
    let (revision, text) = with_pool(&planes[0], 11);
    apply(&mut planes[0].operator("admin"), text, revision).unwrap();
    let before = text_of(&planes[0]);
    planes.iter_mut().for_each(ControlPlane::kill);
    etcd.kill(0);
    etcd.launch(0);
    let planes = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    assert_eq!(text_of(&planes[0]), before);
    eventually(LONG, "the data plane is back", || planes.iter().any(|plane| plane.health("dataplanes") == 1));
    assert_eq!(drained(&proxy, "replica-2"), Some(true));
    let on = planes.iter().find(|plane| plane.health("dataplanes") == 1).unwrap();
    assert_eq!(drain(on, "replica-2", false).unwrap().acknowledged, 1);
    assert!(proxy.logged("from the control plane is refused").is_empty());
}

#[test]
fn without_etcd_everything_serves_and_nothing_changes_until_it_is_back() {
    let (cluster, mut etcd, ports) = (Cluster::shared(), Etcd::start(1), [free_port(), free_port()]);
    let config = Config::new(cluster);
    let first = plane(&config, &etcd, ports[0]).ready();
    let proxy = dataplane("dp-1", &ports[..1]);
    drain(&first, "replica-1", true).unwrap();
    let load = Load::start(&proxy);
    etcd.kill(0);
    eventually(LONG, "the loss shows", || first.health("store_up") == false);
    assert_eq!(first.health("status"), "degraded");
    let shown = status(&first);
    assert!(shown.problems.iter().any(|p| p.contains("store cannot be reached")), "{:?}", shown.problems);
    assert!(http::get(first.admin, "/metrics").unwrap().body.contains("heliosproxy_cp_store_up 0"));
    let refused = drain(&first, "replica-1", false).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("nothing was changed"), "{refused}");
    assert_eq!(text_of(&first).0, 1, "what is in force can be read");
    assert_eq!(drained(&proxy, "replica-1"), Some(true));

    // One that starts now waits, and says so.
    let mut second = plane(&config, &etcd, ports[1]);
    eventually(LONG, "it says so", || !second.logged("the store cannot be reached").is_empty());
    assert_eq!(http::get(second.admin, "/health/ready").unwrap().status, 503);
    assert_eq!(http::get(second.admin, "/health/live").unwrap().status, 200);
    assert!(second.runs());
    load.goes_on();
    assert_eq!(gauge(&proxy, "control_connected"), Some(1.0));

    etcd.launch(0);
    let second = second.ready();
    eventually(LONG, "it heals", || first.health("store_up") == true);
    drain(&second, "replica-1", false).unwrap();
    eventually(LONG, "changes reach it again", || drained(&proxy, "replica-1") == Some(false));
    assert_eq!(load.end(), 0, "no client noticed");
}

#[test]
fn a_slow_etcd_costs_no_client_anything_and_what_is_said_of_a_change_is_true() {
    /// Shorter and longer than the store is waited for.
    const FROZEN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(6)];
    let (cluster, etcd, ports) = (Cluster::shared(), Etcd::start(1), [free_port(), free_port()]);
    let config = Config::new(cluster);
    let planes = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    let proxies = [dataplane("dp-1", &ports[..1]), dataplane("dp-2", &ports[1..])];
    let load = Load::start(&proxies[0]);
    for (frozen, marker) in FROZEN.into_iter().zip([true, false]) {
        etcd.signal("STOP", 0);
        let since = Instant::now();
        let answers = std::thread::scope(|s| {
            let change = |plane| s.spawn(move || drain(plane, "replica-1", true));
            let changes = [change(&planes[0]), change(&planes[1])];
            while since.elapsed() < frozen {
                load.goes_on();
                assert!(planes.iter().filter(|plane| is_leader(plane)).count() < 2, "one leads at most");
            }
            etcd.signal("CONT", 0);
            changes.map(|change| change.join().unwrap())
        });
        println!("etcd slow for {frozen:?}: {:?}", answers.each_ref().map(|a| a.as_ref().map(|_| "made")));
        eventually(LONG, "it heals", || {
            planes.iter().all(|plane| plane.health("store_up") == true)
                && planes.iter().filter(|plane| is_leader(plane)).count() == 1
        });
        // A change after those shows that they have arrived, or never will.
        eventually(LONG, "changes are made", || drain(&planes[1], "replica-2", marker).is_ok());
        let arrived = |proxy: &Proxy| drained(proxy, "replica-2") == Some(marker);
        eventually(LONG, "they arrive", || proxies.iter().all(arrived));
        let made = answers.iter().any(Result::is_ok);
        for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            assert!(matches!(refused.code(), Code::Unavailable | Code::Aborted), "{refused}");
        }
        let untold = answers.iter().any(|answer| {
            answer.as_ref().is_err_and(|refused| !refused.message().contains("nothing was changed"))
        });
        for proxy in &proxies {
            let there = drained(proxy, "replica-1") == Some(true);
            assert!(there == made || untold, "told {answers:?}, and it is {there}");
        }
        eventually(LONG, "as before", || drain(&planes[0], "replica-1", false).is_ok());
    }
    load.goes_on();
    assert_eq!(load.end(), 0, "no client noticed");
}

#[test]
fn a_member_of_etcd_may_die_or_freeze_but_not_the_majority() {
    let (cluster, mut etcd, port) = (Cluster::shared(), Etcd::start(3), free_port());
    let plane = plane(&Config::new(cluster), &etcd, port).ready();
    let proxy = dataplane("dp-1", &[port]);
    let toggles = |wanted: bool| {
        eventually(LONG, "changes are made", || drain(&plane, "replica-1", wanted).is_ok());
        eventually(LONG, "they arrive", || drained(&proxy, "replica-1") == Some(wanted));
    };
    toggles(true);
    for member in 0..3 {
        etcd.kill(member);
        toggles(false);
        etcd.launch(member);
        etcd.serves();
        etcd.signal("STOP", member);
        toggles(true);
        etcd.signal("CONT", member);
        etcd.serves();
    }
    etcd.kill(0);
    etcd.kill(1);
    eventually(LONG, "the majority is missed", || plane.health("store_up") == false);
    assert_eq!(drain(&plane, "replica-1", false).unwrap_err().code(), Code::Unavailable);
    proxy.connect("app").batch_execute(WRITE).unwrap();
    etcd.launch(0);
    etcd.launch(1);
    eventually(LONG, "it heals", || plane.health("store_up") == true && is_leader(&plane));
    toggles(false);
    assert!(proxy.logged("from the control plane is refused").is_empty());
}

#[test]
fn a_control_plane_that_was_frozen_writes_nothing_late_and_catches_up_over_a_compaction() {
    let (cluster, etcd, ports) = (Cluster::shared(), Etcd::start(1), [free_port(), free_port()]);
    let config = Config::new(cluster);
    let frozen = plane(&config, &etcd, ports[0]).ready();
    eventually(LONG, "the first leads", || is_leader(&frozen));
    let other = plane(&config, &etcd, ports[1]).ready();
    let proxy = dataplane("dp-1", &ports[..1]);
    let load = Load::start(&proxy);
    let (revision, late) = with_pool(&frozen, 77);
    let mut operator = frozen.operator("admin");
    // The connection is there before the freeze; the request comes into it.
    operator.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
    frozen.signal("STOP");
    let late = std::thread::spawn(move || apply(&mut operator, late, revision));
    for size in 20..60 {
        let (revision, text) = with_pool(&other, size);
        apply(&mut other.operator("admin"), text, revision).unwrap();
    }
    etcd.compact();
    // Longer than its lease, and than data planes wait for a word.
    std::thread::sleep(Duration::from_secs(10));
    eventually(LONG, "the other one leads", || is_leader(&other));
    frozen.signal("CONT");
    let late = late.join().unwrap().expect_err("made from what is not in force any more");
    assert!(matches!(late.code(), Code::Aborted | Code::Unavailable), "{late}");
    assert!(text_of(&other).1.contains("max_pool_size = 59"));
    eventually(LONG, "it catches up", || text_of(&frozen) == text_of(&other));
    assert!(!is_leader(&frozen) && is_leader(&other));
    eventually(LONG, "its data plane as well", || proxy.get("/pool/stats").body.contains("\"max\":59"));
    assert_eq!(load.end(), 0, "no client noticed");
    assert!(proxy.logged("from the control plane is refused").is_empty());
}

#[test]
fn a_control_plane_that_knows_less_and_cannot_ask_takes_no_data_plane() {
    let (cluster, etcd, ports) = (Cluster::shared(), Etcd::start(3), [free_port(), free_port()]);
    let config = Config::new(cluster);
    let of = |members: &[usize]| {
        let urls: Vec<String> = members.iter().map(|i| format!("\"{}\"", etcd.urls()[*i])).collect();
        format!("[{}]", urls.join(", "))
    };
    let mut first = plane_of(&config, &of(&[0, 1]), ports[0]).ready();
    let second = plane_of(&config, &of(&[2]), ports[1]).ready();
    etcd.signal("STOP", 2);
    eventually(LONG, "the second is cut off", || second.health("store_up") == false);
    let (revision, text) = with_pool(&first, 11);
    apply(&mut first.operator("admin"), text, revision).unwrap();
    // It may start with the second, which is as good for who knows nothing; then it has to move once.
    second.signal("STOP");
    let moving = dataplane("dp-1", &ports);
    eventually(LONG, "it is on the first", || first.health("dataplanes") == 1);
    second.signal("CONT");
    let load = Load::start(&moving);
    assert!(moving.get("/pool/stats").body.contains("\"max\":11"));
    first.kill();
    eventually(LONG, "it is refused", || !moving.logged("is older than").is_empty());
    assert!(moving.get("/pool/stats").body.contains("\"max\":11"), "nothing goes back");
    load.goes_on();
    etcd.signal("CONT", 2);
    eventually(LONG, "the second has caught up", || text_of(&second).0 == 2);
    eventually(LONG, "and is taken", || second.health("dataplanes") == 1);
    eventually(LONG, "with what is in force", || moving.get("/pool/stats").body.contains("\"max\":11"));
    assert_eq!(load.end(), 0, "no client noticed");
    assert!(moving.logged("from the control plane is refused").is_empty());
}

/// Where a write lands, in a session of its own.
fn writes_at(proxy: &Proxy) -> Option<String> {
    let mut client = proxy.config("app").connect(NoTls).ok()?;
    client.batch_execute(WRITE).ok()?;
    let mut transaction = client.transaction().ok()?;
    let port = "select setting from pg_settings where name = 'port'";
    Some(transaction.query_typed(port, &[]).ok()?.first()?.get(0))
}

#[test]
fn a_control_plane_that_slept_through_a_promotion_wakes_up_to_what_is_latched() {
    let (cluster, etcd, ports) =
        (Cluster::start(&[Role::Standby]), Etcd::start(1), [free_port(), free_port()]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let config = Config::new(&cluster);
    let [frozen, other] = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    let proxy = dataplane("dp-1", &ports);
    assert_eq!(writes_at(&proxy), Some(primary.port.to_string()));
    standby.catch_up(primary);
    frozen.signal("STOP");
    primary.kill();
    standby.promote();
    eventually(LONG, "writes work again", || writes_at(&proxy) == Some(standby.port.to_string()));
    eventually(LONG, "the other one leads it", || other.health("dataplanes") == 1);
    frozen.signal("CONT");
    eventually(LONG, "the sleeper knows", || frozen.health("primary") == "standby");
    eventually(LONG, "both tell the same", || status(&frozen).epoch == status(&other).epoch);
    assert_eq!(status(&frozen).epoch, 2, "one promotion is one change of primary");
    assert!(proxy.logged("from the control plane is refused").is_empty());
}

#[test]
fn a_change_of_primary_that_cannot_be_latched_is_not_told_and_data_planes_follow_it_alone() {
    let (cluster, mut etcd, ports) =
        (Cluster::start(&[Role::Standby]), Etcd::start(1), [free_port(), free_port()]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let config = Config::new(&cluster);
    let planes = ports.map(|port| plane(&config, &etcd, port)).map(ControlPlane::ready);
    let proxy = dataplane("dp-1", &ports);
    assert_eq!(writes_at(&proxy), Some(primary.port.to_string()));
    standby.catch_up(primary);
    let epochs = || planes.each_ref().map(|plane| status(plane).epoch);
    assert_eq!(epochs(), [1, 1]);

    etcd.kill(0);
    eventually(LONG, "the loss shows", || planes.iter().all(|plane| plane.health("store_up") == false));
    primary.kill();
    standby.promote();
    let there = Some(standby.port.to_string());
    eventually(LONG, "writes work without control plane and store", || writes_at(&proxy) == there);
    eventually(LONG, "no control plane tells what is not latched", || {
        planes.iter().all(|plane| plane.health("topology_latched") == false)
    });
    assert_eq!(gauge(&proxy, "autonomous"), Some(1.0));
    assert_eq!(epochs(), [1, 1]);

    etcd.launch(0);
    eventually(LONG, "a control plane leads again", || {
        gauge(&proxy, "autonomous") == Some(0.0) && gauge(&proxy, "control_connected") == Some(1.0)
    });
    eventually(LONG, "both tell the same", || epochs() == [2, 2]);
    assert_eq!(writes_at(&proxy), there);
    assert!(proxy.logged("from the control plane is refused").is_empty());
}
