//! Changes of the configuration as deltas: from a real control plane, to a data plane that stands still, is left behind and
//! comes back; and from a control plane that is played, with what a real one never sends.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use helios_proto::config;
use helios_proto::model::{Health, NodeOps, NodeState, Role, Snapshot};
use helios_proto::wire::v1::discovery_server::{Discovery, DiscoveryServer};
use helios_proto::wire::v1::resource::Body;
use helios_proto::wire::v1::{self, cp_msg, dp_msg};
use helios_proto::wire::{self, Configuration};
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::guard::signal;
use helios_tests::{Cluster, Config, ControlPlane, Operator, Proxy, eventually, free_port};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

const LONG: Duration = Duration::from_secs(30);

fn dataplane(name: &str, discovery: u16) -> String {
    let token = token("dataplane");
    format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\ntoken = \"{token}\"\n"
    )
}

fn nodes(proxy: &Proxy) -> serde_json::Value {
    serde_json::from_str(&proxy.get("/nodes").body).unwrap()
}

/// Names of the nodes, with a star at those that are drained.
fn shown(proxy: &Proxy) -> Vec<String> {
    let all = nodes(proxy);
    let name = |node: &serde_json::Value| {
        let star = if node["drained"] == true { "*" } else { "" };
        format!("{}{star}", node["name"].as_str().unwrap())
    };
    all["nodes"].as_array().unwrap().iter().map(name).collect()
}

/// Waits until every pool is of this size: pools follow within moments after a snapshot is in force.
fn sized(proxy: &Proxy, size: u32) {
    let size = format!("\"max\":{size}");
    eventually(LONG, "the pools have that size", || proxy.get("/pool/stats").body.contains(&size));
}

/// Messages of this kind that the data plane got.
fn got(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metrics().sum("heliosproxy_control_messages_total", &[("kind", kind)]).unwrap()
}

fn counter(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("heliosproxy_{name}"), &[]).unwrap()
}

fn drain(operator: &mut Operator, drained: bool, wait: Option<v1::Wait>) -> v1::ChangeReply {
    let (name, drained) = ("replica-1".to_owned(), Some(drained));
    let request = v1::SetNodeRequest { name, drained, wait, ..v1::SetNodeRequest::default() };
    operator.call(async |client| client.set_node(request).await).unwrap()
}

fn add(operator: &mut Operator, name: &str, wait: Option<v1::Wait>) -> v1::ChangeReply {
    let request = v1::AddNodeRequest {
        name: name.to_owned(),
        host: "127.0.0.1".to_owned(),
        port: free_port().into(),
        role: v1::Role::Replica.into(),
        wait,
        ..v1::AddNodeRequest::default()
    };
    operator.call(async |client| client.add_node(request).await).unwrap()
}

fn remove(operator: &mut Operator, name: &str, wait: Option<v1::Wait>) -> v1::ChangeReply {
    let request = v1::RemoveNodeRequest { name: name.to_owned(), wait, ..v1::RemoveNodeRequest::default() };
    operator.call(async |client| client.remove_node(request).await).unwrap()
}

fn resize(operator: &mut Operator, size: u32, wait: Option<v1::Wait>) -> v1::ChangeReply {
    let held = operator.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
    let line = held.text.lines().find(|line| line.starts_with("max_pool_size")).unwrap();
    let text = held.text.replace(line, &format!("max_pool_size = {size}"));
    let expected_revision = Some(held.revision.unwrap().revision);
    let request =
        v1::ApplyConfigRequest { text, expected_revision, wait, ..v1::ApplyConfigRequest::default() };
    operator.call(async |client| client.apply_config(request).await).unwrap()
}

const WAIT: Option<v1::Wait> = Some(v1::Wait { timeout_ms: 10_000 });

#[test]
fn a_change_travels_as_a_delta_and_reports_beside_the_stream() {
    let (discovery, store) = (free_port(), directory("store"));
    let text = Config::new(Cluster::shared()).text() + &sections(&store, discovery);
    let plane = ControlPlane::start(&text);
    let proxies = ["dp-1", "dp-2"].map(|name| Proxy::start(&dataplane(name, discovery)).ready());
    let mut admin = plane.operator("admin");
    let before = shown(&proxies[0]);
    drain(&mut admin, true, WAIT);
    add(&mut admin, "more", WAIT);
    resize(&mut admin, 11, WAIT);
    remove(&mut admin, "replica-2", WAIT);
    let reply = drain(&mut admin, false, WAIT);
    assert_eq!((reply.dataplanes, reply.acknowledged), (2, 2), "{reply:?}");
    let mut expected: Vec<String> = before.into_iter().filter(|name| name != "replica-2").collect();
    expected.push("more".to_owned());
    for proxy in &proxies {
        assert_eq!(shown(proxy), expected);
        sized(proxy, 11);
        assert_eq!((got(proxy, "full"), got(proxy, "delta")), (1.0, 5.0));
        assert_eq!(counter(proxy, "control_resyncs_total"), 0.0);
        assert_eq!(counter(proxy, "control_reports_dropped_total"), 0.0);
    }
    let of_plane = |name: &str, label: (&str, &str)| plane.metric(name, &[label]).unwrap();
    assert_eq!(of_plane("heliosproxy_cp_messages_total", ("kind", "delta")), 10.0);
    assert_eq!(of_plane("heliosproxy_cp_messages_total", ("kind", "full")), 2.0);
    let reports = |service| of_plane("heliosproxy_cp_reports_total", ("service", service));
    eventually(LONG, "both report", || reports("report") >= 4.0);
    assert_eq!(reports("discovery"), 0.0, "nothing over the stream");
    eventually(LONG, "the reports are shown", || {
        let list = admin.call(async |c| c.list_pools(v1::ListPoolsRequest {}).await).unwrap();
        list.pools.len() == 2 * expected.len()
            && list.pools.iter().all(|pool| pool.status.as_ref().unwrap().max == 11)
    });
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn a_data_plane_that_was_cut_off_comes_back_to_the_right_state() {
    let (discovery, store) = (free_port(), directory("store"));
    let text = Config::new(Cluster::shared()).text() + &sections(&store, discovery);
    let plane = ControlPlane::start(&text);
    let proxy = Proxy::start(&dataplane("dp-1", discovery)).ready();
    let mut admin = plane.operator("admin");
    let before = shown(&proxy);
    let acknowledged = |admin: &mut Operator| {
        let list = admin.call(async |c| c.list_dataplanes(v1::ListDataplanesRequest {}).await).unwrap();
        list.dataplanes[0].connected && list.dataplanes[0].revision == list.revision
    };

    // It stands still for a moment: what was sent meanwhile fits, one after the other or some at once.
    signal("STOP", &[proxy.pid]);
    drain(&mut admin, true, None);
    add(&mut admin, "more", None);
    resize(&mut admin, 12, None);
    signal("CONT", &[proxy.pid]);
    eventually(LONG, "it has caught up", || acknowledged(&mut admin));
    let with = |star: &str| {
        let starred =
            |name: &String| if name == "replica-1" { format!("{name}{star}") } else { name.clone() };
        before.iter().map(starred).chain(["more".to_owned()]).collect::<Vec<_>>()
    };
    assert_eq!(shown(&proxy), with("*"));
    sized(&proxy, 12);
    let deltas = got(&proxy, "delta");
    assert!(got(&proxy, "full") == 1.0 && (1.0..=3.0).contains(&deltas), "{deltas}");

    // For longer: it is given up, and gets everything when it is back.
    signal("STOP", &[proxy.pid]);
    eventually(LONG, "it is given up", || plane.health("dataplanes") == 0);
    // The operator's connection, which nobody drove meanwhile, has been given up as well.
    let mut admin = plane.operator("admin");
    drain(&mut admin, false, None);
    resize(&mut admin, 13, None);
    signal("CONT", &[proxy.pid]);
    eventually(LONG, "it is back", || acknowledged(&mut admin));
    assert_eq!(shown(&proxy), with(""));
    sized(&proxy, 13);
    assert!(got(&proxy, "full") >= 2.0);
    assert_eq!(got(&proxy, "delta"), deltas);
    remove(&mut admin, "more", WAIT);
    assert_eq!(shown(&proxy), before);
    assert_eq!((got(&proxy, "delta"), counter(&proxy, "control_resyncs_total")), (deltas + 1.0, 0.0));
    let _ = std::fs::remove_dir_all(store);
}

type Messages = Pin<Box<dyn Stream<Item = Result<v1::CpMsg, Status>> + Send>>;

/// A control plane that says what a test tells it to, to one data plane; like an older one, it offers no Report.
struct Played {
    to: Arc<Mutex<Option<tokio::sync::mpsc::UnboundedReceiver<v1::CpMsg>>>>,
    heard: mpsc::Sender<dp_msg::Msg>,
}

#[tonic::async_trait]
impl Discovery for Played {
    type StreamStream = Messages;

    async fn stream(&self, request: Request<Streaming<v1::DpMsg>>) -> Result<Response<Messages>, Status> {
        let to = self.to.lock().unwrap().take();
        let to = to.ok_or_else(|| Status::unavailable("one stream only"))?;
        let (mut from, heard) = (request.into_inner(), self.heard.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = from.message().await {
                let _ = heard.send(message.msg.unwrap());
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(to).map(Ok))))
    }
}

/// The test's side of it.
struct Stage {
    say: tokio::sync::mpsc::UnboundedSender<v1::CpMsg>,
    heard: mpsc::Receiver<dp_msg::Msg>,
    nonce: u64,
    _runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn start(port: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (say, to) = tokio::sync::mpsc::unbounded_channel();
        let (tell, heard) = mpsc::channel();
        let played = Played { to: Arc::new(Mutex::new(Some(to))), heard: tell };
        let _context = runtime.enter();
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        runtime
            .spawn(Server::builder().add_service(DiscoveryServer::new(played)).serve_with_incoming(incoming));
        // A control plane that is silent is sought elsewhere; what says nothing is of a newer version.
        let alive = say.clone();
        runtime.spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_secs(1));
            while alive.send(v1::CpMsg::default()).is_ok() {
                beat.tick().await;
            }
        });
        Self { say, heard, nonce: 0, _runtime: runtime }
    }

    fn say(&mut self, msg: cp_msg::Msg) -> u64 {
        self.nonce += 1;
        self.say.send(v1::CpMsg { nonce: self.nonce, msg: Some(msg) }).unwrap();
        self.nonce
    }

    /// What the data plane answers; statuses and evidence are not answers.
    fn answer(&self) -> dp_msg::Msg {
        let end = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < end, "no answer came");
            match self.heard.recv_timeout(LONG) {
                Ok(dp_msg::Msg::Status(_) | dp_msg::Msg::Evidence(_) | dp_msg::Msg::Hello(_)) => {}
                Ok(answer) => return answer,
                Err(_) => panic!("no answer came"),
            }
        }
    }

    fn ack(&self, nonce: u64) -> v1::Ack {
        let answer = self.answer();
        let dp_msg::Msg::Ack(ack) = answer else { panic!("not an acknowledgement: {answer:?}") };
        assert_eq!(ack.nonce, nonce);
        ack
    }
}

/// What the cluster is like, as a control plane would say it.
fn snapshot(revision: u64, text: &str) -> Snapshot {
    let spec = config::parse(text, "test", &|_| None).unwrap().spec;
    let state = |node: &Arc<helios_proto::model::Node>| NodeState {
        node: Arc::clone(node),
        ops: NodeOps::default(),
        role: node.role,
        health: Health::Up,
        recovered_at: None,
        latency: None,
        lag_bytes: Some(0),
        lag: None,
        probed_at: None,
        last_error: None,
    };
    Snapshot {
        revision,
        config_revision: revision,
        epoch: 1,
        timeline: 1,
        incarnation: 0,
        system: None,
        last_primary: None,
        settings: Arc::clone(&spec.settings),
        health: Arc::new(spec.health),
        primary: spec.nodes.iter().position(|node| node.role == Role::Primary),
        nodes: spec.nodes.iter().map(state).collect(),
        hold: None,
        authority: None,
        cache_flush: 0,
    }
}

fn damaged(snapshot: &Snapshot, name: &str) -> Configuration {
    let mut full = wire::full(snapshot, Instant::now());
    let resource = full.resources.iter_mut().find(|resource| resource.name == name).unwrap();
    let Some(Body::Node(node)) = &mut resource.body else { panic!("a node") };
    node.port = 70_000;
    full.sha256 = wire::hash(&full.resources);
    Configuration::sent(&full)
}

fn delta(base: &Configuration, new: &Configuration, snapshot: &Snapshot) -> v1::Delta {
    let topology = Some(wire::topology(snapshot, Instant::now()));
    v1::Delta { topology, ..new.delta(base).unwrap() }
}

#[test]
fn one_bad_resource_of_a_delta_leaves_the_rest_and_what_does_not_fit_is_sent_whole() {
    let port = free_port();
    let mut stage = Stage::start(port);
    let config = Config::new(Cluster::shared());
    let text = config.text();
    let first = snapshot(10, &text);
    let proxy = Proxy::start(&dataplane("dp-1", port));
    let nonce = stage.say(cp_msg::Msg::Full(wire::full(&first, Instant::now())));
    assert_eq!(stage.ack(nonce).revision, 10);

    // A node with a port that is none, and a setting that is good.
    let second = snapshot(11, &text.replace("max_pool_size = 10", "max_pool_size = 14"));
    let (base, bad) = (Configuration::of(&first), damaged(&second, "node/replica-1"));
    let nonce = stage.say(cp_msg::Msg::Delta(delta(&base, &bad, &second)));
    let ack = stage.ack(nonce);
    assert_eq!((ack.revision, ack.rejected.len()), (11, 1), "{ack:?}");
    assert_eq!(ack.rejected[0].name, "node/replica-1");
    assert!(ack.rejected[0].reason.contains("70000"), "{ack:?}");
    let proxy = proxy.ready();
    assert_eq!(shown(&proxy).len(), config.nodes.len(), "the version held stays");
    sized(&proxy, 14);
    proxy.connect("app").batch_execute("select 1").unwrap();

    // Another change leaves the bad one as it is: refused again, by name.
    let third = snapshot(12, &text.replace("max_pool_size = 10", "max_pool_size = 15"));
    let still = damaged(&third, "node/replica-1");
    let change = delta(&bad, &still, &third);
    assert_eq!(change.changed.len(), 1, "the settings only");
    let nonce = stage.say(cp_msg::Msg::Delta(change));
    let ack = stage.ack(nonce);
    assert_eq!((ack.revision, ack.rejected.len()), (12, 1), "{ack:?}");

    // Against something that is not held: asked for as a whole, and nothing else is taken until it is there.
    let fourth = snapshot(13, &text.replace("max_pool_size = 10", "max_pool_size = 16"));
    let good = Configuration::of(&fourth);
    let nonce = stage.say(cp_msg::Msg::Delta(delta(&base, &good, &fourth)));
    let asked = stage.answer();
    let dp_msg::Msg::Resync(resync) = asked else { panic!("not asked for: {asked:?}") };
    assert_eq!((resync.nonce, resync.reason.contains("another configuration")), (nonce, true), "{resync:?}");
    stage.say(cp_msg::Msg::Topology(wire::topology(
        &Snapshot { revision: 14, ..fourth.clone() },
        Instant::now(),
    )));
    let last = Snapshot { revision: 14, ..fourth };
    let nonce = stage.say(cp_msg::Msg::Full(wire::full(&last, Instant::now())));
    let ack = stage.ack(nonce);
    assert_eq!((ack.revision, ack.rejected), (14, Vec::new()));
    sized(&proxy, 16);

    // A hash that says something else.
    let fifth = snapshot(15, &text.replace("max_pool_size = 10", "max_pool_size = 17"));
    let mut lie = delta(&good, &Configuration::of(&fifth), &fifth);
    lie.sha256.reverse();
    let nonce = stage.say(cp_msg::Msg::Delta(lie));
    let asked = stage.answer();
    assert!(matches!(&asked, dp_msg::Msg::Resync(resync) if resync.nonce == nonce), "{asked:?}");
    assert!(proxy.get("/pool/stats").body.contains("\"max\":16"), "nothing of it is in force");
    assert_eq!((got(&proxy, "delta"), counter(&proxy, "control_resyncs_total")), (4.0, 2.0));
    // An older control plane hears of the data plane on the stream.
    let status = |msg| matches!(msg, dp_msg::Msg::Status(_));
    eventually(LONG, "it reports on the stream", || stage.heard.try_iter().any(status));
}

/// A whole snapshot, and what is done to it; its resources are hashed afterwards, so that only the hash that is itself
/// damaged does not fit.
fn spoiled(snapshot: &Snapshot, spoil: impl FnOnce(&mut v1::Full)) -> v1::Full {
    let mut full = wire::full(snapshot, Instant::now());
    spoil(&mut full);
    full.sha256 = wire::hash(&full.resources);
    full
}

/// A change to a whole snapshot that makes it a bad one.
type Spoil = fn(&mut v1::Full);

/// Bad snapshots (fault F10), with what is said of each.
const BAD: [(&str, Spoil); 8] = [
    ("is not newer than 20", |full| full.topology.as_mut().unwrap().revision = 20),
    ("is older than the one in force", |full| full.topology.as_mut().unwrap().epoch = 4),
    ("is older than the one in force", |full| full.topology.as_mut().unwrap().timeline = 2),
    ("no topology", |full| full.topology = None),
    ("no usable settings", |full| full.resources.clear()),
    ("no usable node", |full| full.resources.retain(|resource| !resource.name.starts_with("node/"))),
    ("is none of its nodes", |full| full.topology.as_mut().unwrap().primary = "nobody".to_owned()),
    ("unknown role", |full| full.topology.as_mut().unwrap().nodes[0].role = 77),
];

#[test]
fn snapshots_that_are_bad_as_a_whole_change_nothing() {
    let (port, state) = (free_port(), directory("state"));
    let mut stage = Stage::start(port);
    let text = Config::new(Cluster::shared()).text();
    let held = |revision| Snapshot { epoch: 5, timeline: 3, ..snapshot(revision, &text) };
    let keeps = format!("{}state_dir = \"{state}\"\n", dataplane("dp-1", port));
    let proxy = Proxy::start(&keeps);
    let nonce = stage.say(cp_msg::Msg::Full(wire::full(&held(20), Instant::now())));
    assert_eq!(stage.ack(nonce).revision, 20);
    let proxy = proxy.ready();
    let kept = || std::fs::read(format!("{state}/last-good-snapshot")).unwrap_or_default();
    eventually(LONG, "it is kept", || !kept().is_empty());
    let (file, view) = (kept(), nodes(&proxy));
    let mut client = proxy.connect("app");
    let mut nothing_changed = || {
        client.batch_execute("update counter set n = n + 1 where id = 1; select 1").unwrap();
        for key in ["revision", "epoch", "timeline", "primary"] {
            assert_eq!(nodes(&proxy)[key], view[key], "{key}");
        }
        assert!(kept() == file, "the file is the same");
    };
    for (refused, (reason, spoil)) in BAD.into_iter().enumerate() {
        let mut changed = held(21);
        changed.settings = snapshot(21, &text.replace("max_pool_size = 10", "max_pool_size = 9")).settings;
        let nonce = stage.say(cp_msg::Msg::Full(spoiled(&changed, spoil)));
        let ack = stage.ack(nonce);
        assert_eq!((ack.revision, ack.rejected.len()), (20, 1), "{reason}: {ack:?}");
        assert_eq!(ack.rejected[0].name, "snapshot", "{ack:?}");
        assert!(ack.rejected[0].reason.contains(reason), "{reason}: {ack:?}");
        assert_eq!(counter(&proxy, "snapshots_refused_total"), (refused + 1) as f64);
        nothing_changed();
    }
    let mut damaged = wire::full(&held(22), Instant::now());
    damaged.sha256.reverse();
    let nonce = stage.say(cp_msg::Msg::Full(damaged));
    let ack = stage.ack(nonce);
    assert!(ack.rejected[0].reason.contains("hash does not match"), "{ack:?}");
    nothing_changed();
    // A good one is still taken.
    let nonce = stage.say(cp_msg::Msg::Full(wire::full(&held(23), Instant::now())));
    assert_eq!(stage.ack(nonce), v1::Ack { nonce, revision: 23, rejected: Vec::new() });
    // A hundred megabytes end the stream, and no more than that.
    let resident = || std::fs::read_to_string(format!("/proc/{}/statm", proxy.pid)).unwrap();
    let pages = || resident().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let before = pages();
    stage.say(cp_msg::Msg::Full(spoiled(&held(24), |full| full.resources[0].name = "x".repeat(100 << 20))));
    eventually(LONG, "the stream is given up", || counter(&proxy, "control_connected") == 0.0);
    assert!(pages() < before + (32 << 20) / 4096, "{} pages before, {} after", before, pages());
    assert_eq!(nodes(&proxy)["revision"], 23);
    proxy.connect("app").batch_execute("update counter set n = n + 1 where id = 1; select 1").unwrap();
    assert_eq!(proxy.get("/health/ready").status, 200);
    let _ = std::fs::remove_dir_all(state);
}
