//! Probes cannot tell which of two writers is the primary: an operator says it. A fleet with a cluster of its own to break.

use std::time::Duration;

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, Config, ControlPlane, Heliosctl, Node, Proxy, Role, eventually, free_port};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(60);
const WRITE: &str = "update counter set n = n + 1 where id = 1";

fn writes(proxy: &Proxy) -> Result<(), String> {
    let words =
        |error: postgres::Error| error.code().map_or(error.to_string(), |code| code.code().to_owned());
    let mut client = proxy.config("app").connect(NoTls).map_err(words)?;
    client.batch_execute(WRITE).map_err(words)
}

fn written(node: &Node) -> i32 {
    node.superuser().query_one("select n from counter where id = 1", &[]).unwrap().get(0)
}

fn primary_of(ctl: &Heliosctl) -> String {
    ctl.run(&["status", "-o", "json"]).json()["primary"].as_str().unwrap().to_owned()
}

#[test]
fn an_operator_says_which_of_two_writers_is_the_primary() {
    let cluster = Cluster::start(&[Role::Standby, Role::Standby, Role::Replica]);
    let (primary, first, second) = (cluster.primary(), &cluster.nodes[1], &cluster.nodes[2]);
    let (discovery, store) = (free_port(), directory("store"));
    let text = Config::new(&cluster).text() + &sections(&store, discovery);
    let text = format!("write_timeout_secs = 1\n{text}");
    let mut plane = ControlPlane::start(&text);
    let dataplane = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\ntoken = \"{}\"\n",
        token("dataplane")
    );
    let proxy = Proxy::start(&dataplane).ready();
    eventually(LONG, "it writes", || writes(&proxy).is_ok());
    let admin = Heliosctl::at(plane.management).role("admin");
    let accept = ["topology", "accept", "--node", "standby", "--yes"];
    let needless = admin.run(&accept).code(4);
    assert!(needless.err.contains("primary is the primary"), "{needless:?}");

    // Both standbys are promoted, neither knowing of the other, while nobody looks.
    first.catch_up(primary);
    second.catch_up(primary);
    plane.kill();
    drop(proxy);
    primary.kill();
    first.promote();
    second.promote();
    let mut plane = ControlPlane::start(&text);
    let proxy = Proxy::start(&dataplane);
    eventually(LONG, "writes wait", || writes(&proxy) == Err("57P03".to_owned()));
    let admin = Heliosctl::at(plane.management).role("admin");
    eventually(LONG, "the two are seen", || {
        !plane.logged("several nodes take writes on the same timeline").is_empty()
    });
    let operator = Heliosctl::at(plane.management).role("operator").run(&accept).code(6);
    assert!(operator.err.contains("AcceptPrimary needs the role admin"), "{operator:?}");
    for (node, code, why) in [
        ("nobody", 3, "there is no node"),
        ("replica-1", 4, "configured as a replica"),
        ("primary", 4, "nothing is known of it"),
    ] {
        let refused = admin.run(&["topology", "accept", "--node", node, "--yes"]).code(code);
        assert!(refused.err.contains(why), "{node}: {refused:?}");
    }
    let unsure = admin.run(&["topology", "accept", "--node", "standby-2"]).code(2);
    assert!(unsure.err.contains("--yes"), "{unsure:?}");
    let before = (written(first), written(second));

    let done = admin.run(&["topology", "accept", "--node", "standby-2", "--yes"]).code(0);
    assert!(done.out.starts_with("node standby-2 accepted as the primary"), "{done:?}");
    assert_eq!(primary_of(&admin), "standby-2");
    eventually(LONG, "writes go on", || writes(&proxy).is_ok());
    for _ in 0..10 {
        writes(&proxy).unwrap();
    }
    assert_eq!(written(first), before.0, "the other one gets nothing");
    assert!(written(second) >= before.1 + 10);
    let nodes = admin.run(&["node", "list", "-o", "wide"]).code(0);
    assert!(nodes.out.contains("not used: it takes writes but is not the primary"), "{nodes:?}");
    let audit = admin.run(&["audit", "-o", "json"]).json();
    let entry = audit["entries"].as_array().unwrap().iter().find(|e| e["outcome"] == "ok").unwrap().clone();
    assert_eq!(
        (&entry["verb"], &entry["detail"], &entry["actor"]),
        (&"AcceptPrimary".into(), &"standby-2".into(), &"admin".into())
    );

    // The word is kept: by a control plane that restarts, and by a data plane that is alone meanwhile.
    plane.kill();
    eventually(LONG, "the data plane is alone", || {
        proxy.metrics().sum("heliosproxy_autonomous", &[]) == Some(1.0)
    });
    writes(&proxy).unwrap();
    let plane = ControlPlane::start(&text);
    let admin = Heliosctl::at(plane.management).role("admin");
    eventually(LONG, "the same one is the primary", || primary_of(&admin) == "standby-2");
    eventually(LONG, "it writes", || writes(&proxy).is_ok());
    assert_eq!(written(first), before.0);
    let _ = std::fs::remove_dir_all(store);
}
