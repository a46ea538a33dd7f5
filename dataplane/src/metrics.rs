//! Counters of the data plane and their Prometheus text. Each worker counts in its own cells, so that counting is a
//! plain add; a scrape sums them. Never a label from outside: nodes, reasons and pins only.

use crate::control::{Link, Messages};
use crate::pool::View;
use crate::pool::node::Standing;
use crate::route::{Pins, Reason};
use helios_proto::model::Health;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, in microseconds. The guide's 0.001, 0.01 and 0.1 s are among them.
const BOUNDS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    10_000_000,
];

/// A histogram of durations.
#[derive(Default)]
pub struct Latencies {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

/// How often something began, and how often it goes on now.
#[derive(Default)]
pub struct Held {
    /// Times that it began.
    pub begun: AtomicU64,
    /// Those that go on.
    pub now: AtomicU64,
}

/// Counts of one worker.
#[derive(Default)]
pub struct Counters {
    /// Statements that were plain reads.
    pub reads: AtomicU64,
    /// All other statements.
    pub writes: AtomicU64,
    /// From a run's first byte to the server until its last owed answer.
    pub query: Latencies,
    /// From the need of a server connection until it was there.
    pub acquire: Latencies,
    /// Acquire timeouts.
    pub acquire_timeouts: AtomicU64,
    /// Routing decisions by reason, in the order of [`Reason::ALL`].
    pub reasons: [AtomicU64; Reason::ALL.len()],
    /// Statements sent once more, to another node or over another connection.
    pub replays: AtomicU64,
    /// Sessions that became pinned.
    pub pinned: AtomicU64,
    /// The same by reason, in the order of [`Pins::WORDS`].
    pub pins: [Held; Pins::WORDS.len()],
    /// Hints that mean nothing.
    pub unknown_hints: AtomicU64,
    /// Client connections accepted.
    pub clients: AtomicU64,
    /// Logins refused.
    pub logins_refused: AtomicU64,
    /// Logins passed on to a server, whose sessions share no connection.
    pub logins_relayed: AtomicU64,
    /// Sessions open.
    pub sessions: AtomicU64,
    /// Sessions that went to another worker.
    pub moved: AtomicU64,
}

/// Adds one.
pub fn count(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}

impl Latencies {
    /// Counts a duration.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) =
            BOUNDS.iter().position(|&bound| micros <= bound).and_then(|at| self.buckets.get(at))
        {
            count(bucket);
        }
        count(&self.count);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Counters {
    /// Counts a routing decision.
    pub fn reason(&self, reason: Reason) {
        if let Some(at) = Reason::ALL.iter().position(|&known| known == reason) {
            self.reasons.get(at).into_iter().for_each(count);
        }
    }
}

/// The Prometheus text of a data plane; `more` is what others have to say.
#[must_use]
pub fn render(
    workers: &[Arc<Counters>],
    serving: usize,
    view: &View,
    link: &Link,
    more: Vec<MetricFamily>,
) -> Vec<u8> {
    let mut families = Vec::new();
    pools(&mut families, view);
    queries(&mut families, workers);
    nodes(&mut families, view);
    own(&mut families, workers, serving, view);
    control(&mut families, link);
    families.extend(more);
    let mut text = Vec::new();
    // Writing to memory does not fail; a family without samples is left out beforehand.
    families.retain(|family| !family.get_metric().is_empty());
    let _ = TextEncoder::new().encode(&families, &mut text);
    text
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(crate) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("heliosproxy_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

pub(crate) fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut cell = Gauge::default();
    cell.set_value(value);
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(|(n, v)| label(n, v)).collect());
    metric.set_gauge(cell);
    metric
}

pub(crate) fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut cell = Counter::default();
    cell.set_value(float(value));
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(|(n, v)| label(n, v)).collect());
    metric.set_counter(cell);
    metric
}

/// Counters beyond 2^53 lose their last digits, as in every Prometheus client.
pub(crate) fn float(value: u64) -> f64 {
    let high = u32::try_from(value >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

fn sum<'a>(workers: &'a [Arc<Counters>], of: impl Fn(&'a Counters) -> &'a AtomicU64) -> u64 {
    workers.iter().map(|worker| of(worker).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
}

fn histogram<'a>(workers: &'a [Arc<Counters>], of: impl Fn(&'a Counters) -> &'a Latencies) -> Vec<Metric> {
    let mut cell = Histogram::default();
    let mut below = 0u64;
    let mut buckets = Vec::new();
    for (at, &bound) in BOUNDS.iter().enumerate() {
        let here = workers.iter().filter_map(|w| of(w).buckets.get(at)).map(|b| b.load(Ordering::Relaxed));
        below = here.fold(below, u64::wrapping_add);
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(float(bound) / 1e6);
        bucket.set_cumulative_count(below);
        buckets.push(bucket);
    }
    cell.set_bucket(buckets);
    cell.set_sample_count(sum(workers, |w| &of(w).count));
    cell.set_sample_sum(float(sum(workers, |w| &of(w).micros)) / 1e6);
    let mut metric = Metric::default();
    metric.set_histogram(cell);
    vec![metric]
}

fn pools(families: &mut Vec<MetricFamily>, view: &View) {
    let each = |of: fn(crate::pool::node::Counts) -> u32| {
        view.pools
            .iter()
            .map(|p| gauge(&[("node", p.node.name.as_str())], f64::from(of(p.counts()))))
            .collect()
    };
    let kind = MetricType::GAUGE;
    let help = "Server connections open or being opened.";
    families.push(family("pool_connections_total", help, kind, each(|c| c.total)));
    families.push(family(
        "pool_connections_active",
        "Server connections lent to sessions.",
        kind,
        each(|c| c.active),
    ));
    families.push(family("pool_connections_idle", "Server connections at rest.", kind, each(|c| c.idle)));
    let waiting = each(|c| u32::try_from(c.waiting).unwrap_or(u32::MAX));
    families.push(family("pool_waiting", "Sessions that wait for a server connection.", kind, waiting));
    let standings: Vec<_> =
        view.pools.iter().map(|pool| (pool.node.name.as_str(), pool.standing())).collect();
    let shares = |of: fn(Standing) -> Option<u32>| -> Vec<Metric> {
        let one = |(node, standing): &(&str, Standing)| {
            (standing.limit > 0)
                .then(|| of(*standing))
                .flatten()
                .map(|n| gauge(&[("node", node)], f64::from(n)))
        };
        standings.iter().filter_map(one).collect()
    };
    let help = "Server connections that this data plane may have, of the node's budget.";
    families.push(family("budget_granted", help, kind, shares(|standing| standing.granted)));
    let help = "The node's budget: most server connections of all data planes together.";
    families.push(family("budget_limit", help, kind, shares(|standing| Some(standing.limit))));
}

fn queries(families: &mut Vec<MetricFamily>, workers: &[Arc<Counters>]) {
    let by_type = vec![
        counter(&[("type", "read")], sum(workers, |w| &w.reads)),
        counter(&[("type", "write")], sum(workers, |w| &w.writes)),
    ];
    families.push(family("queries_total", "Statements, by what they do.", MetricType::COUNTER, by_type));
    let help = "From a statement's first byte to the server until its last answer.";
    let metrics = histogram(workers, |w| &w.query);
    families.push(family("query_duration_seconds", help, MetricType::HISTOGRAM, metrics));
    let help = "From the need of a server connection until it was there.";
    let metrics = histogram(workers, |w| &w.acquire);
    families.push(family("pool_acquire_duration_seconds", help, MetricType::HISTOGRAM, metrics));
}

fn nodes(families: &mut Vec<MetricFamily>, view: &View) {
    let nodes = &view.snapshot.nodes;
    let name = |i: usize| view.name(i);
    let healthy = nodes
        .iter()
        .enumerate()
        .map(|(i, n)| gauge(&[("node", name(i))], if n.health == Health::Up { 1.0 } else { 0.0 }));
    families.push(family(
        "node_healthy",
        "1 if the health checks say up.",
        MetricType::GAUGE,
        healthy.collect(),
    ));
    let primary = view.snapshot.primary;
    let primary = (0..nodes.len())
        .map(|i| gauge(&[("node", name(i))], if primary == Some(i) { 1.0 } else { 0.0 }))
        .collect();
    let help = "1 if writes go to it; 0 everywhere while no node qualifies.";
    families.push(family("node_primary", help, MetricType::GAUGE, primary));
    let latency = nodes
        .iter()
        .enumerate()
        .filter_map(|(i, n)| n.latency.map(|latency| gauge(&[("node", name(i))], latency.as_secs_f64())));
    families.push(family(
        "node_latency_seconds",
        "Last probe's round trip.",
        MetricType::GAUGE,
        latency.collect(),
    ));
    let lag = nodes
        .iter()
        .enumerate()
        .filter_map(|(i, n)| n.lag_bytes.map(|lag| gauge(&[("node", name(i))], float(lag))));
    families.push(family(
        "node_lag_bytes",
        "Replay lag behind the primary.",
        MetricType::GAUGE,
        lag.collect(),
    ));
}

fn control(families: &mut Vec<MetricFamily>, link: &Link) {
    let refused = vec![counter(&[], link.refused.load(Ordering::Relaxed))];
    let help = "Snapshots of the control plane that were refused as a whole.";
    families.push(family("snapshots_refused_total", help, MetricType::COUNTER, refused));
    let Messages { full, delta, topology, resyncs } = &link.messages;
    let kinds = [("full", full), ("delta", delta), ("topology", topology)];
    let messages = kinds.map(|(kind, count)| counter(&[("kind", kind)], count.load(Ordering::Relaxed)));
    let help =
        "Snapshots that came from the control plane: whole, as a change, or what is known about nodes.";
    families.push(family("control_messages_total", help, MetricType::COUNTER, messages.into()));
    let resyncs = vec![counter(&[], resyncs.load(Ordering::Relaxed))];
    let help = "Changes of the control plane that did not fit what is held; all of it was asked for.";
    families.push(family("control_resyncs_total", help, MetricType::COUNTER, resyncs));
    let dropped = vec![counter(&[], link.reports_dropped.load(Ordering::Relaxed))];
    let help = "Reports that did not fit the way to the control plane.";
    families.push(family("control_reports_dropped_total", help, MetricType::COUNTER, dropped));
    let connected = vec![gauge(&[], if link.connected() { 1.0 } else { 0.0 })];
    families.push(family(
        "control_connected",
        "1 if the control plane answers.",
        MetricType::GAUGE,
        connected,
    ));
    let alone = vec![gauge(&[], if link.alone() { 1.0 } else { 0.0 })];
    let help = "1 if the control plane is away and this process probes the nodes itself.";
    families.push(family("autonomous", help, MetricType::GAUGE, alone));
    let age = vec![gauge(&[], link.age().as_secs_f64())];
    let help = "Since the control plane confirmed what is in force.";
    families.push(family("snapshot_age_seconds", help, MetricType::GAUGE, age));
    tls(families, link);
}

/// Certificates of every leg; the label is the section of the file.
fn tls(families: &mut Vec<MetricFamily>, link: &Link) {
    let sides = link.tls();
    let seconds = |at: i64| float(u64::try_from(at).unwrap_or(0));
    let expiry =
        sides.iter().filter_map(|s| Some(gauge(&[("section", s.name())], seconds(s.not_after()?)))).collect();
    let help = "When the certificate in force expires, in seconds since 1970.";
    families.push(family("tls_not_after_seconds", help, MetricType::GAUGE, expiry));
    let failures = sides.iter().map(|s| counter(&[("section", s.name())], s.failures())).collect();
    let help = "New certificate files that were refused.";
    families.push(family("tls_reload_failures_total", help, MetricType::COUNTER, failures));
}

fn own(families: &mut Vec<MetricFamily>, workers: &[Arc<Counters>], serving: usize, view: &View) {
    let mut plain = |name: &str, help: &str, value: u64| {
        families.push(family(name, help, MetricType::COUNTER, vec![counter(&[], value)]));
    };
    plain("acquire_timeouts_total", "Waits that ended in 53300.", sum(workers, |w| &w.acquire_timeouts));
    plain(
        "replays_total",
        "Statements sent once more, to another node or over another connection.",
        sum(workers, |w| &w.replays),
    );
    plain("pinned_total", "Times a session became tied to its server.", sum(workers, |w| &w.pinned));
    plain("unknown_hints_total", "Hints that mean nothing.", sum(workers, |w| &w.unknown_hints));
    plain("client_connections_total", "Client connections accepted.", sum(workers, |w| &w.clients));
    plain("sessions_moved_total", "Sessions that went to another worker.", sum(workers, |w| &w.moved));
    plain("logins_refused_total", "Logins refused.", sum(workers, |w| &w.logins_refused));
    plain("logins_relayed_total", "Logins passed on to a server.", sum(workers, |w| &w.logins_relayed));
    let reasons = Reason::ALL.iter().enumerate().map(|(at, reason)| {
        let each = workers.iter().filter_map(|w| w.reasons.get(at)).map(|cell| cell.load(Ordering::Relaxed));
        counter(&[("reason", reason.word())], each.fold(0, u64::wrapping_add))
    });
    let pins = |of: fn(&Held) -> &AtomicU64| {
        Pins::WORDS.iter().enumerate().map(move |(at, (_, word))| {
            let each =
                workers.iter().filter_map(|w| w.pins.get(at)).map(|held| of(held).load(Ordering::Relaxed));
            (*word, each.fold(0, u64::wrapping_add))
        })
    };
    let begun = pins(|held| &held.begun).map(|(word, n)| counter(&[("reason", word)], n)).collect();
    let now = pins(|held| &held.now).map(|(word, n)| gauge(&[("reason", word)], float(n))).collect();
    let help = "Routing decisions, by reason.";
    families.push(family("routing_decisions_total", help, MetricType::COUNTER, reasons.collect()));
    let help = "Reasons that began to tie a session to its server.";
    families.push(family("pins_total", help, MetricType::COUNTER, begun));
    let help = "Sessions tied to their server now, by reason.";
    families.push(family("sessions_pinned", help, MetricType::GAUGE, now));
    let mut gauge_of = |name: &str, help: &str, value: u64| {
        families.push(family(name, help, MetricType::GAUGE, vec![gauge(&[], float(value))]));
    };
    gauge_of("sessions", "Client sessions open.", sum(workers, |w| &w.sessions));
    let serving = u64::try_from(serving).unwrap_or(u64::MAX);
    gauge_of("workers_serving", "Workers that get sessions now.", serving);
    gauge_of("snapshot_revision", "Revision of the snapshot in force.", view.snapshot.revision);
    gauge_of("topology_epoch", "Changes of primary so far.", view.snapshot.epoch);
    if let Some(authority) = &view.snapshot.authority {
        let help = "1 if Patroni, which says who may be the primary, answers.";
        gauge_of("topology_provider_up", help, u64::from(authority.up));
    }
}
