//! How fast a change reaches every data plane of a large fleet: `bench-fleet [--topology N] [--config N] [--rounds N]`.
//! A real control plane (of HELIOS_PROXY_BIN's directory) and a real cluster; the data planes are simulated, see
//! `dataplanes`, and share the machine with what is measured. Prints figures; judges nothing: machines are noisy.
// A program for people: a broken assumption stops it, loudly.
#![allow(clippy::unwrap_used, clippy::as_conversions)]

mod dataplanes;

use std::thread;
use std::time::{Duration, Instant};

use dataplanes::Simulated;
use helios_proto::wire::v1;
use helios_tests::controlplane::{directory, sections};
use helios_tests::{Cluster, Config, ControlPlane, Operator, Role, eventually, free_port, raise_file_limit};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

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
    cluster: Cluster,
}

impl Site {
    fn start() -> Self {
        let cluster = Cluster::start(&[Role::Standby, Role::Replica]);
        let (store, port) = (directory("store"), free_port());
        let text = Config::new(&cluster).text().replace("check_interval_secs = 1", "check_interval_secs = 5")
            + &sections(&store, port);
        Self { plane: ControlPlane::start(&text), text, store, cluster }
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

/// Makes the same kind of change over and over; prints how long it took to each receipt, to the last one of a round, and
/// to the reply.
fn rounds(
    what: &str,
    rounds: usize,
    (site, fleet): (&Site, &Simulated),
    change: impl Fn(&mut Operator, usize) -> v1::ChangeReply,
) {
    let count = fleet.count();
    let mut admin = site.plane.operator("admin");
    change(&mut admin, 1);
    let (mut receipts, mut last, mut replies) = (Vec::new(), Vec::new(), Vec::new());
    let cpu = || (used(site.plane.pid).0, used(std::process::id()).0);
    let before = cpu();
    for round in 0..rounds {
        thread::sleep(Duration::from_millis(230));
        let began = Instant::now();
        let reply = change(&mut admin, round);
        replies.push(began.elapsed());
        assert_eq!((reply.dataplanes as usize, reply.acknowledged as usize), (count, count), "{reply:?}");
        let took = fleet.all_hold(reply.revision).into_iter().map(|at| at.saturating_duration_since(began));
        let took: Vec<Duration> = took.collect();
        last.push(took.iter().copied().max().unwrap());
        receipts.extend(took);
    }
    let after = cpu();
    let what = format!("{what}, {count} data planes");
    show(&format!("{what}: each receipt"), receipts);
    show(&format!("{what}: last receipt of a round"), last);
    show(&format!("{what}: last acknowledgement, seen by the operator"), replies);
    let [of_plane, of_fleet] = [after.0 - before.0, after.1 - before.1].map(|spent| spent as usize / rounds);
    println!(
        "{what}: control plane {of_plane} ms of CPU a round, data planes {of_fleet} ms, with what a quarter of a second \
         costs them"
    );
}

/// The primary dies and the standby is promoted: when the first and the last data plane know.
fn promotion(site: &Site, fleet: &Simulated) {
    fleet.board.lock().unwrap().moved.fill(None);
    site.cluster.primary().kill();
    let began = Instant::now();
    site.cluster.node("standby").promote();
    let promoted = began.elapsed();
    let mut all = fleet.all_moved();
    all.sort_unstable();
    let (first, count) = (all[0], all.len());
    println!(
        "promotion: pg_ctl took {promoted:.1?}; the first data plane knew {:.1?} after it began",
        first.saturating_duration_since(began)
    );
    let after = all.into_iter().map(|at| at.saturating_duration_since(first)).collect();
    show(&format!("promotion, {count} data planes: each receipt, from the first one"), after);
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
    promotion(&site, &fleet);
    let [full, delta, topology] = fleet.board.lock().unwrap().kinds;
    println!(
        "{topology} data planes were sent a topology, {delta} a delta, {full} all of it; over the whole run"
    );
}
