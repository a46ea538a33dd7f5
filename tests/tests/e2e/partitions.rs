//! Networks that are cut without a reset: a data plane in a network namespace of its own, links to it cut one by one.
//! Needs root; says so loudly where namespaces cannot be made. Times are printed, never asserted.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use helios_tests::cluster::password;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::load::ids;
use helios_tests::{Cluster, Config, ControlPlane, Load, Net, Proxy, Role, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);
const CLIENTS: usize = 6;
/// Addresses of the host, one for each server.
const PRIMARY: u8 = 10;
const STANDBY: u8 = 11;
const REPLICA: u8 = 12;
const PLANE: u8 = 13;

/// Where a data plane of the host listens.
const LISTEN: &str = "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n";

/// Servers on the host, each at an address of its own.
struct Site {
    net: Net,
    cluster: Cluster,
    /// A configuration with these addresses.
    text: String,
}

impl Site {
    /// `None`: this machine has no namespaces, and the test says that it was not run.
    fn new(test: &str) -> Option<Self> {
        let net = match Net::new(&[PRIMARY, STANDBY, REPLICA, PLANE]) {
            Ok(net) => net,
            Err(why) => {
                eprintln!("SKIPPED {test}: no network namespaces here: {why}");
                return None;
            }
        };
        let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
        Load::prepare(&cluster);
        cluster.primary().restart_with("alter system set listen_addresses = '*'");
        for node in &cluster.nodes[1..] {
            node.restart_with("alter system set listen_addresses = '*'");
            node.catch_up(cluster.primary());
        }
        // A listed password: a login from another host is not checked in the clear.
        let secret = format!("password = \"{}\"", password("app"));
        let mut config =
            Config { balancer: "slow_start_secs = 0", ..Config::new(&cluster) }.user("app", &secret);
        config.more = config.more.replace("[health]", "[health]\ncheck_timeout_secs = 0.5");
        let mut text = config.text().replacen("listen_address", "write_timeout_secs = 3\nlisten_address", 1);
        for (node, host) in cluster.nodes.iter().zip([PRIMARY, STANDBY, REPLICA]) {
            let at = |host: &str| format!("host = \"{host}\"\nport = {}\n", node.port);
            text = text.replace(&at("127.0.0.1"), &at(&net.at(host).to_string()));
        }
        Some(Self { net, cluster, text })
    }

    /// Commits wait for the standby.
    fn synchronous(&self) {
        self.cluster.execute("alter system set synchronous_standby_names = 'standby'");
        self.cluster.execute("select pg_reload_conf()");
    }

    /// Where a data plane in the network listens.
    fn listen(&self) -> String {
        let inside = self.net.inside();
        format!("listen_address = \"{inside}:0\"\nadmin_address = \"{inside}:0\"\n")
    }

    /// A control plane, a data plane in the network, which knows it by an address of its own, and one beside it.
    fn fleet(&self) -> Fleet {
        let (port, store) = (free_port(), directory("store"));
        let everywhere = format!("0.0.0.0:{port}");
        let sections = sections(&store, port).replace(&format!("127.0.0.1:{port}"), &everywhere);
        let plane = ControlPlane::start(&(self.text.clone() + &sections));
        let file = |listen: &str, name: &str, at: Ipv4Addr| {
            let token = token("dataplane");
            format!(
                "{listen}[control_plane]\nendpoints = [\"{at}:{port}\"]\ntoken = \"{token}\"\nname = \"{name}\"\n"
            )
        };
        let inside = Proxy::start_in(&self.net, &file(&self.listen(), "dp-1", self.net.at(PLANE))).ready();
        let outside = Proxy::start(&file(LISTEN, "dp-2", Ipv4Addr::LOCALHOST)).ready();
        Fleet { inside, outside, plane, store }
    }
}

/// Two data planes; a network can be cut between everybody and the first one.
struct Fleet {
    inside: Proxy,
    outside: Proxy,
    plane: ControlPlane,
    store: String,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.store);
    }
}

fn gauge(proxy: &Proxy, name: &str) -> Option<f64> {
    proxy.metrics().sum(&format!("heliosproxy_{name}"), &[])
}

fn primary_is(proxy: &Proxy, name: &str) -> bool {
    let nodes: serde_json::Value = serde_json::from_str(&proxy.get("/nodes").body).unwrap();
    nodes["nodes"].as_array().unwrap().iter().any(|node| node["name"] == name && node["primary"] == true)
}

#[test]
fn a_cut_between_control_plane_and_data_plane_costs_nothing_and_decides_nothing() {
    let Some(site) = Site::new("a cut between control plane and data plane") else { return };
    let fleet = site.fleet();
    let Fleet { inside, outside, plane, .. } = &fleet;
    let epochs = || (gauge(inside, "topology_epoch"), gauge(outside, "topology_epoch"));
    let before = epochs();
    let load = Load::start(CLIENTS, &[inside, outside]);
    load.go_on(20);
    // The data plane is not heard, though it hears; then neither.
    site.net.mute(PLANE);
    let dataplanes = || plane.health("dataplanes").as_u64().unwrap();
    eventually(LONG, "the control plane notices", || dataplanes() == 1);
    site.net.unmute(PLANE);
    eventually(LONG, "it is back", || dataplanes() == 2 && gauge(inside, "control_connected") == Some(1.0));
    site.net.cut(PLANE);
    let cut = Instant::now();
    eventually(LONG, "the data plane notices", || gauge(inside, "control_connected") == Some(0.0));
    println!("a cut control plane: noticed after {:?}", cut.elapsed());
    eventually(LONG, "it goes on alone", || gauge(inside, "autonomous") == Some(1.0));
    load.go_on(100);
    site.net.heal(PLANE);
    eventually(LONG, "it is led again", || {
        gauge(inside, "control_connected") == Some(1.0) && gauge(inside, "autonomous") == Some(0.0)
    });
    load.go_on(20);
    assert_eq!(epochs(), before, "no failover");
    let outcome = load.finish();
    outcome.check(site.cluster.primary());
    outcome.nothing_failed();
}

#[test]
fn a_primary_behind_a_black_hole_ends_what_was_sent_and_reads_go_on() {
    let Some(site) = Site::new("a primary behind a black hole") else { return };
    let text = site.text.replace(LISTEN, &site.listen());
    let proxy = Proxy::start_in(&site.net, &text).ready();
    let mut idle = proxy.connect("app");
    idle.batch_execute("select 1").unwrap();
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(40);
    site.net.cut(PRIMARY);
    let cut = Instant::now();
    eventually(LONG, "writes are refused", || load.failures().iter().any(|f| f.code == "57P03"));
    println!("a black hole: the first 57P03 after {:?}", cut.elapsed());
    // Reads are answered elsewhere while the primary is away.
    let mut reader = proxy.connect("app");
    for _ in 0..20 {
        reader.query_typed("select 1", &[]).unwrap();
    }
    // What was sent is unacknowledged, and TCP gives up (TCP_USER_TIMEOUT, 30 s).
    let told = || (0..CLIENTS).filter(|client| load.failures().iter().any(|f| f.client == *client)).count();
    eventually(LONG, "what was sent ends as well", || told() == CLIENTS);
    println!("a black hole: every client was told after {:?}", cut.elapsed());
    site.net.heal(PRIMARY);
    load.go_on(40);
    idle.batch_execute("update counter set n = n + 1 where id = 1").expect("an idle client notices nothing");
    let outcome = load.finish();
    outcome.check(site.cluster.primary());
    outcome.codes_of_a_lost_primary(|_| true);
}

#[test]
fn a_data_plane_left_with_the_old_primary_writes_there_only_until_it_sees_the_new_one() {
    let Some(site) = Site::new("a data plane left with the old primary") else { return };
    site.synchronous();
    let fleet = site.fleet();
    let Fleet { inside, outside, .. } = &fleet;
    let load = Load::start(CLIENTS, &[inside, outside]);
    load.go_on(20);
    // The data plane inside and the old primary are together; everybody else is on the other side.
    site.net.cut(PLANE);
    site.net.mute(STANDBY);
    site.net.mute(REPLICA);
    let standby = site.cluster.node("standby");
    standby.superuser().batch_execute("select pg_promote(true)").unwrap();
    let promoted = Instant::now();
    eventually(LONG, "the other side follows", || primary_is(outside, "standby"));
    println!("the other side followed after {:?}", promoted.elapsed());
    load.go_on_of(40, |client| client % 2 == 1);
    eventually(LONG, "it goes on alone", || gauge(inside, "autonomous") == Some(1.0));
    assert!(primary_is(inside, "primary"), "nobody has told it");
    site.net.heal(PLANE);
    site.net.unmute(STANDBY);
    site.net.unmute(REPLICA);
    let healed = Instant::now();
    eventually(LONG, "it follows as well", || primary_is(inside, "standby"));
    println!("the isolated data plane followed {:?} after the network was whole", healed.elapsed());
    let followed = load.issued();
    load.go_on(40);
    let outcome = load.finish();
    // The old primary could not commit without its standby: what it took was never acknowledged.
    outcome.check(standby);
    outcome.codes_of_a_lost_primary(|_| true);
    let old = ids(site.cluster.primary());
    let late: Vec<_> = old.iter().filter(|id| **id >= followed).collect();
    assert!(late.is_empty(), "writes reached the old primary: {late:?}");
}
