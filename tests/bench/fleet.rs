//! How fast a change reaches every data plane of a large fleet: `bench-fleet [--topology N] [--config N] [--rounds N]`.
//! A real control plane and a real cluster; the data planes are simulated, each a gRPC stream on a connection of its own
//! that acknowledges what it gets and says every second how it is. Prints figures; judges nothing: this machine is noisy.
// A program for people: a broken assumption stops it, loudly.
#![allow(clippy::unwrap_used, clippy::as_conversions)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use helios_proto::wire::v1::discovery_client::DiscoveryClient;
use helios_proto::wire::v1::{self, cp_msg, dp_msg};
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Cluster, Config, ControlPlane, Operator, Role, eventually, free_port, raise_file_limit};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Endpoint;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause of a data plane before it connects again.
const AGAIN: Duration = Duration::from_millis(100);

/// What all data planes have got, and when.
#[derive(Default)]
struct Board {
    /// The revision that each one holds, and when it came.
    held: Vec<(u64, Option<Instant>)>,
    /// Streams that have brought a whole snapshot since the last [`Board::forget`].
    full: usize,
    connected: usize,
}

type Shared = Arc<Mutex<Board>>;

/// Simulated data planes; they end with it.
struct Simulated {
    board: Shared,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Simulated {
    fn start(count: usize, address: SocketAddr) -> Self {
        let board = Shared::default();
        board.lock().unwrap().held = vec![(0, None); count];
        // One thread: what is measured is the control plane.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for number in 0..count {
            runtime.spawn(dataplane(number, address, Arc::clone(&board)));
        }
        Self { board, runtime: Some(runtime) }
    }

    /// Waits until each holds this revision or a later one, and says when the last one got it.
    fn all_hold(&self, revision: u64) -> Instant {
        let all = || self.board.lock().unwrap().held.iter().all(|(held, _)| *held >= revision);
        eventually(PATIENCE, "every data plane has the change", all);
        self.board.lock().unwrap().held.iter().filter_map(|(_, at)| *at).max().unwrap()
    }

    /// Waits until each has got a whole snapshot.
    fn all_full(&self) {
        eventually(PATIENCE, "every data plane has a whole snapshot", || {
            let board = self.board.lock().unwrap();
            board.full >= board.held.len() && board.connected == board.held.len()
        });
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn dataplane(number: usize, address: SocketAddr, board: Shared) {
    let mut hello = v1::Hello {
        cluster: "helios".to_owned(),
        dp_id: format!("dp-{number}"),
        boot_id: "1".to_owned(),
        version: "1".to_owned(),
        ..v1::Hello::default()
    };
    // Not all at once: a fleet starts over some time.
    tokio::time::sleep(Duration::from_millis((number % 100) as u64)).await;
    loop {
        let mut counted = false;
        if let Err(status) = stream(number, address, &mut hello, (&board, &mut counted)).await
            && !matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown)
        {
            eprintln!("dp-{number}: {status}");
        }
        if counted {
            board.lock().unwrap().connected -= 1;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One stream from connecting to its end.
async fn stream(
    number: usize,
    address: SocketAddr,
    hello: &mut v1::Hello,
    (board, counted): (&Shared, &mut bool),
) -> Result<(), tonic::Status> {
    let lost = |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(lost)?.tcp_nodelay(true);
    let mut client = DiscoveryClient::new(endpoint.connect().await.map_err(lost)?);
    let (outgoing, messages) = mpsc::channel(64);
    let send = |msg| outgoing.try_send(v1::DpMsg { msg: Some(msg) }).is_ok();
    send(dp_msg::Msg::Hello(hello.clone()));
    let mut request = Request::new(ReceiverStream::new(messages));
    request.metadata_mut().insert("authorization", format!("Bearer {}", token("dataplane")).parse().unwrap());
    let mut incoming = client.stream(request).await?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?,
            _ = beat.tick() => {
                send(dp_msg::Msg::Status(v1::Status { revision: hello.revision, ..v1::Status::default() }));
                continue;
            }
        };
        let Some(v1::CpMsg { nonce, msg }) = message else { return Ok(()) };
        let topology = match msg {
            Some(cp_msg::Msg::Full(full)) => {
                (hello.config_revision, hello.sha256) = (full.config_revision, full.sha256);
                let mut board = board.lock().unwrap();
                board.full += 1;
                board.connected += usize::from(!*counted);
                *counted = true;
                full.topology.unwrap_or_default()
            }
            Some(cp_msg::Msg::Topology(topology)) => topology,
            _ => continue,
        };
        let revision = topology.revision;
        (hello.revision, hello.epoch, hello.timeline) = (revision, topology.epoch, topology.timeline);
        (hello.incarnation, hello.last_primary) = (topology.incarnation, topology.last_primary);
        hello.system = topology.system;
        send(dp_msg::Msg::Ack(v1::Ack { nonce, revision, rejected: Vec::new() }));
        board.lock().unwrap().held[number] = (revision, Some(Instant::now()));
    }
}

/// CPU time of a process so far, in milliseconds, and its resident memory in MiB.
fn used(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    (ticks * 10, rss.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024)
}

/// A control plane in front of a cluster, and how to start it again.
struct Site {
    plane: ControlPlane,
    text: String,
    store: String,
    _cluster: Cluster,
}

impl Site {
    fn start() -> Self {
        let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
        let (store, port) = (directory("store"), free_port());
        let text = Config::new(&cluster).text().replace("check_interval_secs = 1", "check_interval_secs = 5")
            + &sections(&store, port);
        Self { plane: ControlPlane::start(&text), text, store, _cluster: cluster }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.store);
    }
}

/// Median, 99th percentile and worst of durations.
fn show(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share).ceil() as usize];
    println!("{what}: p50 {:.1?}, p99 {:.1?}, max {:.1?}", at(0.5), at(0.99), at(1.0));
}

/// Makes the same kind of change over and over; prints how long it took to the last receipt and to the reply.
fn rounds(
    what: &str,
    rounds: usize,
    (site, fleet): (&Site, &Simulated),
    change: impl Fn(&mut Operator, usize) -> v1::ChangeReply,
) {
    let count = fleet.board.lock().unwrap().held.len();
    let mut admin = site.plane.operator("admin");
    change(&mut admin, 1);
    let (mut receipts, mut replies) = (Vec::new(), Vec::new());
    let (before, _) = used(site.plane.pid);
    for round in 0..rounds {
        thread::sleep(Duration::from_millis(230));
        let began = Instant::now();
        let reply = change(&mut admin, round);
        replies.push(began.elapsed());
        assert_eq!((reply.dataplanes as usize, reply.acknowledged as usize), (count, count), "{reply:?}");
        receipts.push(fleet.all_hold(reply.revision).saturating_duration_since(began));
    }
    let cpu = (used(site.plane.pid).0 - before) as usize / rounds;
    show(&format!("{what}, {count} data planes: last receipt"), receipts);
    show(&format!("{what}, {count} data planes: last acknowledgement, seen by the operator"), replies);
    println!(
        "{what}, {count} data planes: control plane {cpu} ms of CPU a round, with what a second costs it"
    );
}

const fn wait() -> Option<v1::Wait> {
    Some(v1::Wait { timeout_ms: 30_000 })
}

fn drain(operator: &mut Operator, round: usize) -> v1::ChangeReply {
    let request = v1::SetNodeRequest {
        name: "replica-1".to_owned(),
        drained: Some(round.is_multiple_of(2)),
        wait: wait(),
        ..v1::SetNodeRequest::default()
    };
    operator.call(async |client| client.set_node(request).await).unwrap()
}

fn resize(operator: &mut Operator, round: usize) -> v1::ChangeReply {
    let held = operator.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
    let line = held.text.lines().find(|line| line.starts_with("max_pool_size")).unwrap();
    let text = held.text.replace(line, &format!("max_pool_size = {}", 10 + round % 2));
    let expected_revision = Some(held.revision.unwrap().revision);
    let request =
        v1::ApplyConfigRequest { text, expected_revision, wait: wait(), ..v1::ApplyConfigRequest::default() };
    operator.call(async |client| client.apply_config(request).await).unwrap()
}

fn restart(site: &mut Site, fleet: &Simulated) {
    site.plane.kill();
    eventually(PATIENCE, "the loss is seen", || fleet.board.lock().unwrap().connected == 0);
    fleet.board.lock().unwrap().full = 0;
    let began = Instant::now();
    site.plane = ControlPlane::start(&site.text);
    let listens = began.elapsed();
    fleet.all_full();
    let back = began.elapsed();
    let (cpu, rss) = used(site.plane.pid);
    println!(
        "restart: listens after {listens:.1?}, every data plane has a whole snapshot after {back:.1?}; {cpu} ms of CPU, \
         {rss} MiB"
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str, default: usize| {
        let given = args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
        given.map_or(default, |number| number.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
    };
    raise_file_limit();
    let (topology, config) = (value("--topology", 1_000).max(1), value("--config", 100).max(1));
    let times = value("--rounds", 20).max(1);
    let mut site = Site::start();
    {
        let fleet = Simulated::start(config, site.plane.discovery);
        fleet.all_full();
        rounds("configuration change", times, (&site, &fleet), resize);
    }
    let (_, alone) = used(site.plane.pid);
    let fleet = Simulated::start(topology, site.plane.discovery);
    fleet.all_full();
    // Those of before have gone.
    let dataplanes = || site.plane.health("dataplanes") == topology;
    eventually(PATIENCE, "the control plane counts them", dataplanes);
    rounds("topology change", times, (&site, &fleet), drain);
    let (before, rss) = used(site.plane.pid);
    thread::sleep(Duration::from_secs(5));
    let cpu = (used(site.plane.pid).0 - before) / 5;
    println!(
        "at rest, {topology} data planes: {cpu} ms of CPU a second, {rss} MiB ({alone} MiB without them)"
    );
    restart(&mut site, &fleet);
}
