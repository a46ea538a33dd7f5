//! Planned changes of primary: under load nobody notices, whatever cannot be done changes nothing. Each test has a cluster
//! of its own. Times are printed, never asserted.

use std::net::SocketAddr;
use std::time::Duration;

use helios_tests::controlplane::{directory, sections, sections_with, token};
use helios_tests::{
    Cluster, Config, ControlPlane, Etcd, Heliosctl, Load, Node, Proxy, Role, eventually, free_port,
};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(60);
/// Clients that write all the time.
const WRITERS: usize = 8;
/// The login of `[switchover]` in these tests.
const LOGIN: &str = "user = \"boss\"\npassword = \"boss-secret\"\n";

/// A cluster with a login that may promote, and a table to write into.
fn cluster(roles: &[Role]) -> Cluster {
    let cluster = Cluster::start(roles);
    cluster.execute(
        "create role boss superuser login password 'boss-secret'; \
         create table written (i bigint primary key); grant all on written to public",
    );
    cluster
}

/// A standalone proxy with this in `[switchover]`, and a shell beside it.
fn standalone(cluster: &Cluster, switchover: &str) -> (Proxy, Heliosctl) {
    let port = free_port();
    let text = Config { balancer: "slow_start_secs = 0", ..Config::new(cluster) }.text();
    let more =
        format!("[management]\nlisten_address = \"127.0.0.1:{port}\"\n[switchover]\n{LOGIN}{switchover}\n");
    let proxy = Proxy::start(&format!("{text}\n{more}")).ready();
    (proxy, Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port))))
}

/// A data plane of this control plane.
fn dataplane(name: &str, discovery: u16) -> Proxy {
    Proxy::start(&format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{}\"\n",
        token("dataplane")
    ))
    .ready()
}

/// Runs clients on these proxies while `during` runs; nothing may have gone wrong, and nothing be lost.
fn over(proxies: &[&Proxy], during: impl FnOnce(&Load), primary: &Node) {
    let load = Load::start(WRITERS, proxies);
    during(&load);
    let outcome = load.finish();
    outcome.check(primary);
    outcome.nothing_failed();
}

fn primary_of(ctl: &Heliosctl) -> String {
    ctl.run(&["status", "-o", "json"]).json()["primary"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn nobody_notices_a_switchover_by_sql() {
    let cluster = cluster(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let (proxy, ctl) = standalone(&cluster, "");
    let mut idle = proxy.connect("app");
    idle.batch_execute("select 1").unwrap();
    let dry = ctl.run(&["switchover", "--dry-run"]).code(0);
    assert!(dry.out.contains("standby could take over from primary"), "{dry:?}");
    assert_eq!(primary_of(&ctl), "primary");
    let during = |load: &Load| {
        load.go_on(30);
        let done = ctl.run(&["switchover", "--to", "standby", "--yes"]).code(0);
        println!("{}{}", done.err, done.out);
        assert!(done.out.starts_with("standby is the primary, new work waited "), "{done:?}");
        load.go_on(30);
    };
    over(&[&proxy], during, standby);
    idle.batch_execute("insert into written values (-1)").unwrap();
    assert_eq!(primary_of(&ctl), "standby");
    // The old one takes no writes, and is not used.
    let error = primary.superuser().batch_execute("insert into written values (-2)").unwrap_err();
    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("25006"), "{error}");
    let nodes = ctl.run(&["node", "get", "primary", "-o", "json"]).json();
    eventually(LONG, "it is quarantined", || {
        ctl.run(&["node", "get", "primary", "-o", "json"]).json()["health"] == "down"
    });
    assert_eq!(nodes["primary"], false);
    let audit = ctl.run(&["audit", "-o", "json"]).json();
    let entry = &audit["entries"][0];
    assert_eq!((&entry["verb"], &entry["outcome"]), (&"Switchover".into(), &"ok".into()), "{audit:#}");
}

#[test]
fn with_commands_the_old_primary_comes_back_as_a_standby_and_takes_over_again() {
    let cluster = cluster(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    let data = |node: &Node| node.shell("", "DATA").rsplit_once(' ').unwrap().1.to_owned();
    let case = |what: &dyn Fn(&Node) -> String| {
        let one = |node: &Node| format!("{}) {} ;;", node.name, what(node));
        format!("case $HELIOS_OLD_NODE in {} {} esac", one(primary), one(standby))
    };
    let stop = case(&|node| node.shell("pg_ctl", "stop -w -s -m fast -D DATA"));
    let rejoin = case(&|node| {
        let to = "host=127.0.0.1 port=$HELIOS_NEW_PORT user=postgres";
        let data = data(node);
        let start = node.shell("pg_ctl", "start -w -s -D DATA -l DATA/server.log");
        format!(
            "echo \"primary_conninfo = '{to}'\" >> {data}/postgresql.auto.conf && touch {data}/standby.signal && {start} > /dev/null 2>&1 < /dev/null"
        )
    });
    let text = format!("stop_command = '''{stop}'''\nrejoin_command = '''{rejoin}'''");
    let (proxy, ctl) = standalone(&cluster, &text);
    let during = |load: &Load| {
        for to in ["standby", "primary"] {
            load.go_on(30);
            let done = ctl.run(&["switchover", "--to", to, "--yes"]).code(0);
            println!("{}{}", done.err, done.out);
            assert_eq!(primary_of(&ctl), to);
            let old = if to == "standby" { "primary" } else { "standby" };
            eventually(LONG, "the old primary is a standby", || {
                let node = ctl.run(&["node", "get", old, "-o", "json"]).json();
                (&node["role"], &node["health"], &node["lag_bytes"])
                    == (&"standby".into(), &"up".into(), &0.into())
                    || node["lag_bytes"].as_u64().is_some_and(|lag| lag < 1 << 20)
                        && node["role"] == "standby"
            });
        }
        load.go_on(30);
    };
    over(&[&proxy], during, primary);
}

#[test]
fn a_whole_fleet_is_held_and_goes_on() {
    let cluster = cluster(&[Role::Standby, Role::Replica]);
    let standby = cluster.node("standby");
    let (discovery, store) = (free_port(), directory("store"));
    let text = Config::new(&cluster).text() + &sections(&store, discovery) + "\n[switchover]\n" + LOGIN;
    let plane = ControlPlane::start(&text);
    let (one, two) = (dataplane("dp-1", discovery), dataplane("dp-2", discovery));
    let ctl = Heliosctl::at(plane.management).role("operator");
    let denied = Heliosctl::at(plane.management).role("viewer").run(&["switchover", "--yes"]);
    assert_eq!(denied.code, 6, "{denied:?}");
    let during = |load: &Load| {
        load.go_on(30);
        let done = ctl.run(&["switchover", "--to", "standby", "--yes", "-o", "json"]).code(0);
        println!("{}", done.err);
        let last: serde_json::Value = serde_json::from_str(done.out.lines().last().unwrap()).unwrap();
        let result = &last["result"];
        assert_eq!((&result["ok"], &result["to"]), (&true.into(), &"standby".into()), "{last:#}");
        assert!(done.err.contains("2 data planes in"), "{}", done.err);
        load.go_on(30);
    };
    over(&[&one, &two], during, standby);
    // The replica followed the old primary and is not thrown away.
    assert_eq!(primary_of(&ctl), "standby");
}

#[test]
fn data_planes_of_other_control_planes_are_held_as_well() {
    let cluster = cluster(&[Role::Standby]);
    let etcd = Etcd::start(1);
    let (first, second) = (free_port(), free_port());
    let plane = |discovery: u16| {
        let store = format!("kind = \"etcd\"\nendpoints = {}", etcd.endpoints());
        let text =
            Config::new(&cluster).text() + &sections_with(&store, discovery) + "\n[switchover]\n" + LOGIN;
        ControlPlane::start(&text)
    };
    let (asked, _other) = (plane(first), plane(second));
    let (one, two) = (dataplane("dp-1", first), dataplane("dp-2", second));
    let ctl = Heliosctl::at(asked.management).role("operator");
    let during = |load: &Load| {
        load.go_on(30);
        let done = ctl.run(&["switchover", "--to", "standby", "--yes"]).code(0);
        println!("{}{}", done.err, done.out);
        load.go_on(30);
    };
    over(&[&one, &two], during, cluster.node("standby"));
    assert_eq!(primary_of(&ctl), "standby");
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let cluster = cluster(&[Role::Standby, Role::Replica]);
    let (proxy, ctl) =
        standalone(&cluster, "driver = \"exec\"\npromote_command = \"echo no luck >&2; exit 1\"");
    let mut client = proxy.connect("app");
    for (to, why) in [("replica-1", "never promoted"), ("primary", "primary already"), ("nobody", "no node")]
    {
        let refused = ctl.run(&["switchover", "--to", to, "--yes"]).code(7);
        assert!(refused.err.contains(why), "{refused:?}");
    }
    let usage = ctl.run(&["switchover"]).code(2);
    assert!(usage.err.contains("--yes"), "{usage:?}");

    // A transaction that does not end: everything goes on as it was, the transaction too.
    client.batch_execute("begin; insert into written values (1)").unwrap();
    let late = ctl.run(&["switchover", "--to", "standby", "--drain-timeout", "500ms", "--yes"]).code(7);
    assert!(late.err.contains("1 server connections to primary are in use"), "{late:?}");
    client.batch_execute("insert into written values (2); commit").unwrap();
    proxy.connect("app").batch_execute("insert into written values (3)").unwrap();

    // A promotion that fails.
    let failed = ctl.run(&["switchover", "--to", "standby", "--yes"]).code(7);
    assert!(failed.err.contains("no luck"), "{failed:?}");
    client.batch_execute("insert into written values (4)").unwrap();
    assert_eq!(primary_of(&ctl), "primary");
    let rows = cluster.primary().superuser().query_one("select count(*) from written", &[]).unwrap();
    assert_eq!(rows.get::<_, i64>(0), 4);
}

#[test]
fn a_session_tied_to_its_server_waits_and_is_ended_only_by_the_promotion() {
    let cluster = cluster(&[Role::Standby]);
    let (proxy, ctl) = standalone(&cluster, "");
    let mut tied = proxy.connect("app");
    tied.batch_execute("listen news").unwrap();
    let mut other = proxy.connect("app");
    let done = ctl.run(&["switchover", "--to", "standby", "--yes"]).code(0);
    assert!(done.err.contains("1 sessions are tied to their server connection"), "{done:?}");
    assert!(tied.batch_execute("select 1").is_err(), "its notifications went with the old primary");
    other.batch_execute("insert into written values (1)").unwrap();
    let mut again = proxy.config("app").connect(NoTls).unwrap();
    again.batch_execute("listen news; insert into written values (2)").unwrap();
}
