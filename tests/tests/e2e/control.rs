//! The control plane: one process, several data planes, real PostgreSQL; and the same service in a standalone proxy.

use std::time::Duration;

use helios_proto::wire::v1::{self, pool_op_request::Op};
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, Config, ControlPlane, Operator, Proxy, eventually, free_port, http};
use tonic::Code;

const LONG: Duration = Duration::from_secs(30);
const PORT: &str = "select setting from pg_settings where name = 'port'";

/// A proxy's file that takes everything from the control plane.
fn dataplane(name: &str, discovery: u16, more: &str) -> String {
    format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\n{more}\n"
    )
}

fn with_token(role: &str) -> String {
    format!("token = \"{}\"", token(role))
}

const fn wait() -> Option<v1::Wait> {
    Some(v1::Wait { timeout_ms: 10_000 })
}

fn nodes(proxy: &Proxy) -> serde_json::Value {
    serde_json::from_str(&proxy.get("/nodes").body).unwrap()
}

/// Whether `/nodes` shows `drained` for a node; `None`: there is no such node.
fn drained(proxy: &Proxy, name: &str) -> Option<bool> {
    let shown = nodes(proxy);
    let node = shown["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name)?;
    node["drained"].as_bool()
}

fn set_node(operator: &mut Operator, name: &str, drained: bool) -> Result<v1::ChangeReply, tonic::Status> {
    let request = v1::SetNodeRequest {
        name: name.to_owned(),
        drained: Some(drained),
        wait: wait(),
        ..v1::SetNodeRequest::default()
    };
    operator.call(async |client| client.set_node(request).await)
}

fn pool_op(operator: &mut Operator, op: Op, node: &str, size: Option<u32>) -> v1::ChangeReply {
    let request = v1::PoolOpRequest { op: op.into(), node: node.to_owned(), size, wait: wait() };
    operator.call(async |client| client.pool_op(request).await).unwrap()
}

/// Which servers answer plain reads, over a few of them.
fn readers(proxy: &Proxy) -> Vec<u16> {
    let mut client = proxy.connect("app");
    let mut ports: Vec<u16> = (0..24)
        .map(|_| client.query_typed(PORT, &[]).unwrap()[0].get::<_, String>(0).parse().unwrap())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn connected(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_control_connected", &[]) == Some(1.0)
}

#[test]
fn a_change_reaches_every_data_plane_and_they_outlive_the_control_plane() {
    let cluster = Cluster::shared();
    let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
    let mut config = Config::new(cluster);
    config.strategy = "round_robin";
    let late = config.nodes.pop().unwrap();
    let text = config.text() + &sections(&store, discovery);
    let mut plane = ControlPlane::start(&text);
    let state_dir = format!("state_dir = \"{state}\"\n{}", with_token("dataplane"));
    let first = Proxy::start(&dataplane("dp-1", discovery, &state_dir)).ready();
    let second = Proxy::start(&dataplane("dp-2", discovery, &with_token("dataplane"))).ready();
    let mut admin = plane.operator("admin");

    // A node more: both data planes have it when the call returns.
    let (name, _, port) = late;
    let request = v1::AddNodeRequest {
        name: name.clone(),
        host: "127.0.0.1".to_owned(),
        port: port.into(),
        role: v1::Role::Replica.into(),
        wait: wait(),
        ..v1::AddNodeRequest::default()
    };
    let added = admin.call(async |client| client.add_node(request).await).unwrap();
    assert_eq!((added.config_revision, added.dataplanes, added.acknowledged), (2, 2, 2), "{added:?}");
    for proxy in [&first, &second] {
        assert_eq!(drained(proxy, &name), Some(false));
        eventually(LONG, "the new node takes reads", || readers(proxy).contains(&port));
    }

    // Drained: no read goes there any more.
    let reply = set_node(&mut plane.operator("operator"), "replica-1", true).unwrap();
    assert_eq!((reply.config_revision, reply.acknowledged, reply.changed), (2, 2, true), "{reply:?}");
    let replica = cluster.node("replica-1").port;
    for proxy in [&first, &second] {
        assert_eq!(drained(proxy, "replica-1"), Some(true));
        assert!(!readers(proxy).contains(&replica));
    }
    let refused = set_node(&mut admin, "primary", true).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    // A new configuration leaves the drain, and reaches both.
    let old = admin.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
    assert!(!old.text.contains("-secret") && old.text.contains("password = \"******\""), "{}", old.text);
    let request = v1::ApplyConfigRequest {
        text: old.text.replace("max_pool_size = 10", "max_pool_size = 11"),
        expected_revision: Some(2),
        wait: wait(),
        ..v1::ApplyConfigRequest::default()
    };
    let applied = admin.call(async |client| client.apply_config(request.clone()).await).unwrap();
    assert_eq!((applied.config_revision, applied.acknowledged), (3, 2), "{applied:?}");
    assert!(first.get("/pool/stats").body.contains("\"max\":11"));
    assert_eq!(drained(&first, "replica-1"), Some(true));
    let late = admin.call(async |client| client.apply_config(request).await).unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    eventually(LONG, "the data planes tell how they are", || {
        let list = admin.call(async |c| c.list_pools(v1::ListPoolsRequest {}).await).unwrap();
        list.pools.len() == 8 && list.pools.iter().all(|pool| pool.status.as_ref().unwrap().max == 11)
    });

    // Killed: the data planes go on, and one that starts anew starts from its file.
    plane.kill();
    eventually(LONG, "the loss is seen", || !connected(&first) && !connected(&second));
    assert_eq!(second.get("/health").status, 200);
    assert!(!readers(&second).contains(&replica));
    // The file follows within a second.
    eventually(LONG, "what was set is on disk", || {
        drained(&Proxy::start(&dataplane("dp-1", discovery, &state_dir)), "replica-1") == Some(true)
    });
    drop(first);
    let again = Proxy::start(&dataplane("dp-1", discovery, &state_dir));
    let _ = again.said("last good snapshot");
    assert_eq!(again.get("/health/ready").status, 200);
    assert_eq!(drained(&again, "replica-1"), Some(true));
    assert!(!readers(&again).contains(&replica));
    again.connect("app").batch_execute("update counter set n = n + 1 where id = 1").unwrap();
    let held = nodes(&again)["revision"].as_u64().unwrap();

    // Back again: from its store, with nothing lost, and it goes on where it was.
    let mut plane = ControlPlane::start(&text);
    eventually(LONG, "the data planes are back", || connected(&again) && connected(&second));
    let reply = set_node(&mut plane.operator("operator"), "replica-1", false).unwrap();
    assert_eq!((reply.config_revision, reply.acknowledged), (3, 2), "{reply:?}");
    assert!(nodes(&again)["revision"].as_u64().unwrap() > held);
    assert_eq!(drained(&again, "replica-1"), Some(false));
    assert!(plane.terminate().success());
    let _ = std::fs::remove_dir_all(store);
    let _ = std::fs::remove_dir_all(state);
}

#[test]
fn whoever_may_not_is_refused() {
    let cluster = Cluster::shared();
    let (discovery, store) = (free_port(), directory("store"));
    let plane = ControlPlane::start(&(Config::primary_only(cluster).text() + &sections(&store, discovery)));
    for wrong in ["", "token = \"a-token-that-is-wrong\"", &with_token("admin")] {
        let proxy = Proxy::start(&dataplane("stranger", discovery, wrong));
        eventually(LONG, "the refusal is logged", || {
            !proxy.logged("control plane does not answer").is_empty()
        });
        assert_eq!(proxy.get("/health").status, 503, "nothing to serve from");
        assert_eq!(proxy.get("/health/live").status, 200);
        assert!(!connected(&proxy));
    }
    let other = format!("cluster = \"another\"\n{}", with_token("dataplane"));
    let proxy = Proxy::start(&dataplane("stranger", discovery, &other));
    eventually(LONG, "another fleet's data plane is refused", || !proxy.logged("not of").is_empty());

    let set = |operator: &mut Operator| set_node(operator, "primary", false).map_err(|status| status.code());
    assert_eq!(set(&mut Operator::new(plane.management, None)), Err(Code::Unauthenticated));
    assert_eq!(set(&mut Operator::new(plane.management, Some("wrong"))), Err(Code::Unauthenticated));
    assert_eq!(set(&mut plane.operator("viewer")), Err(Code::PermissionDenied));
    assert_eq!(
        set(&mut plane.operator("dataplane")),
        Err(Code::Unauthenticated),
        "known on the other port only"
    );
    assert!(!set(&mut plane.operator("operator")).unwrap().changed);
    let entries = plane
        .operator("admin")
        .call(async |client| client.audit(v1::AuditRequest::default()).await)
        .unwrap()
        .entries;
    assert!(entries.is_empty(), "nothing was changed: {entries:?}");
    let explain = v1::ExplainRequest { sql: "select 1".to_owned(), ..v1::ExplainRequest::default() };
    let refused = plane.operator("viewer").call(async |client| client.explain(explain).await).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let health = http::get(plane.admin, "/health").unwrap();
    assert!(health.status == 200 && health.body.contains("\"dataplanes\":0"), "{}", health.body);
    assert!(http::get(plane.admin, "/metrics").unwrap().body.contains("heliosproxy_cp_dataplanes 0"));
    let _ = std::fs::remove_dir_all(store);
}

/// A standalone proxy with the service for operators on a port of its own.
fn standalone(config: Config) -> (Proxy, Operator) {
    let proxy = standalone_text(&config.text(), free_port());
    let address = proxy.said("management address=");
    let address = address.split_once("management address=").unwrap().1.trim().parse().unwrap();
    (proxy, Operator::new(address, None))
}

fn standalone_text(text: &str, port: u16) -> Proxy {
    Proxy::start(&format!("{text}\n[management]\nlisten_address = \"127.0.0.1:{port}\"\n")).ready()
}

#[test]
fn a_standalone_proxy_serves_operators_on_loopback() {
    let (proxy, mut operator) = standalone(Config::new(Cluster::shared()));
    let status = operator.call(async |c| c.status(v1::StatusRequest {}).await).unwrap();
    assert!(status.standalone && status.primary == "primary" && status.nodes == 4, "{status:?}");
    let reply = set_node(&mut operator, "replica-1", true).unwrap();
    assert_eq!((reply.dataplanes, reply.acknowledged), (1, 1));
    assert!(reply.warnings[0].contains("no [store]"), "{reply:?}");
    assert_eq!(drained(&proxy, "replica-1"), Some(true));
    let mut explain = |sql: &str| {
        let request = v1::ExplainRequest { sql: sql.to_owned(), ..v1::ExplainRequest::default() };
        let reply = operator.call(async |client| client.explain(request).await).unwrap();
        (reply.node, reply.reason)
    };
    assert_eq!(explain("delete from counter"), ("primary".to_owned(), "write_query".to_owned()));
    assert_ne!(explain("select 1").0, "primary");
    let audit = operator.call(async |c| c.audit(v1::AuditRequest::default()).await).unwrap();
    let entry = &audit.entries[0];
    assert_eq!(
        (entry.actor.as_str(), entry.from.as_str(), entry.verb.as_str(), entry.detail.as_str()),
        ("local", "127.0.0.1", "SetNode", "replica-1 drain")
    );
}

#[test]
fn a_request_that_no_configuration_needs_is_refused() {
    let (_proxy, mut operator) = standalone(Config::primary_only(Cluster::shared()));
    let mut validate = |size: usize| {
        let request = v1::ValidateConfigRequest { text: "#".repeat(size) };
        operator.call(async |client| client.validate_config(request).await)
    };
    assert_eq!(validate(5 << 20).unwrap_err().code(), Code::OutOfRange);
    // As large as a file may be: read, and found to have no nodes.
    assert_eq!(validate(4 << 20).unwrap().problems.len(), 1);
}

#[test]
fn a_paused_pool_makes_statements_wait_and_a_resumed_one_serves_them() {
    let (proxy, mut operator) = standalone(Config::primary_only(Cluster::shared()));
    let mut client = proxy.connect("app");
    client.batch_execute("select 1").unwrap();
    pool_op(&mut operator, Op::Pause, "", None);
    let waiting = std::thread::spawn(move || client.batch_execute("select 2").map(|()| client));
    let waits = || proxy.metrics().sum("heliosproxy_pool_waiting", &[]) == Some(1.0);
    eventually(LONG, "the statement waits", waits);
    // Longer than the acquire timeout would be: a pause is no sign of too small a pool.
    std::thread::sleep(Duration::from_secs(6));
    assert!(waits() && !waiting.is_finished());
    pool_op(&mut operator, Op::Resume, "primary", None);
    let mut client = waiting.join().unwrap().expect("served");

    // Reconnect: the next statement has another server process, and a transaction keeps its own.
    let pid = |client: &mut postgres::Client| -> i32 {
        client.query_typed("select pg_backend_pid()", &[]).unwrap()[0].get(0)
    };
    let before = pid(&mut client);
    assert_eq!(pid(&mut client), before);
    client.batch_execute("begin").unwrap();
    let inside = pid(&mut client);
    pool_op(&mut operator, Op::Reconnect, "primary", None);
    assert_eq!(pid(&mut client), inside);
    client.batch_execute("commit").unwrap();
    assert_ne!(pid(&mut client), inside);

    // Resize, and back.
    pool_op(&mut operator, Op::Resize, "primary", Some(3));
    assert!(proxy.get("/pool/stats").body.contains("\"max\":3"));
    pool_op(&mut operator, Op::Resize, "", None);
    assert!(proxy.get("/pool/stats").body.contains("\"max\":10"));
}

#[test]
fn a_taken_management_port_stops_only_who_asked_for_it() {
    let config = Config::primary_only(Cluster::shared());
    let port = free_port();
    let _first = standalone_text(&config.text(), port);
    let second = std::panic::catch_unwind(|| standalone_text(&config.text(), port));
    assert!(second.is_err(), "asked for in the file: refused");
    let (_a, _b) = (config.start().ready(), config.start().ready());
}
