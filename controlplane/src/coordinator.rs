//! The one loop that owns the cluster: event -> apply -> publish. Also keeps the clock of the probe rounds and
//! one probe task per node. Never does IO itself, so that nothing can hold it up.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{Acceptance, Evidence, HealthSettings, NodeName, Snapshot, Spec};
use helios_tls::postgres::ToServers;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::ask::Asker;
use crate::cluster::{Change, Cluster, Event, Held, Objection};
use crate::gate::{Gate, Pass};
use crate::health::Task;
use crate::publish::Publisher;
use crate::store::{Latch, unix_ms};

/// Events that may wait; evidence beyond that is dropped, probes wait.
const QUEUE: usize = 1024;
/// Orders that may wait; who gives more waits.
const ORDERS: usize = 16;

/// A running control plane core.
#[derive(Debug)]
pub struct Handle {
    /// The current snapshot, and notice of the next. Closed once the core has stopped.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where to say what changed and what was seen.
    pub events: Events,
    /// Whether data planes may be told; see [`Gate`].
    pub leading: watch::Receiver<bool>,
    /// What should be latched; moves only where there is a gate.
    pub(crate) wanted: watch::Receiver<Latch>,
}

/// Tells the core what changed and what was seen. Never blocks.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    orders: mpsc::Sender<Order>,
}

/// What is not an observation.
enum Order {
    /// Another configuration; the answer is the revision of the snapshot that holds it.
    Reload(Spec, oneshot::Sender<u64>),
    /// Result caches are to be emptied; the answer is the same.
    FlushCaches(u64, oneshot::Sender<u64>),
    /// A data plane holds this; answered once it is taken into account.
    Held(Held, oneshot::Sender<()>),
    /// The store holds this latch.
    Latched(Latch, oneshot::Sender<()>),
    /// May an operator vouch for this node?
    Judge(String, oneshot::Sender<Result<Acceptance, Objection>>),
}

/// The loop's own state.
struct Coordinator {
    cluster: Cluster,
    /// TLS towards nodes.
    servers: Arc<ToServers>,
    publisher: Publisher,
    gate: Gate,
    tasks: Vec<Task>,
    /// Asks the authority outside, where the configuration has one.
    asker: Option<Asker>,
    /// The health settings that the tasks were started with.
    health: HealthSettings,
    rounds: watch::Sender<u64>,
    queue: mpsc::Sender<Event>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// Starts the core; its first snapshot is the one after `reached`. Call inside a tokio runtime. All its tasks run on
/// `tracker` and end soon after `stop`.
/// `gate`: what the store that others share has latched; nothing else is told to data planes.
pub(crate) fn start(
    (cluster, servers): (Cluster, Arc<ToServers>),
    reached: u64,
    gate: Option<Latch>,
    stop: CancellationToken,
    tracker: &TaskTracker,
) -> Handle {
    let (queue, events) = mpsc::channel(QUEUE);
    let (orders, ordered) = mpsc::channel(ORDERS);
    let health = cluster.spec().health.clone();
    let (publisher, snapshots) = Publisher::new(&cluster, reached, Instant::now());
    let (gate, leading, wanted) = Gate::new(gate);
    let (rounds, _) = watch::channel(0);
    let tracker_of_tasks = tracker.clone();
    let mut coordinator = Coordinator {
        cluster,
        servers,
        publisher,
        gate,
        tasks: Vec::new(),
        asker: None,
        health,
        rounds,
        queue: queue.clone(),
        stop,
        tracker: tracker_of_tasks,
    };
    coordinator.start_tasks();
    coordinator.start_asker();
    coordinator.gate.pass(&coordinator.cluster, Instant::now());
    tracker.spawn(coordinator.run(events, ordered));
    Handle { snapshots, events: Events { queue, orders }, leading, wanted }
}

/// Goes on from a snapshot without the control plane that made it: the same loop, without a store and without orders.
#[must_use]
pub fn go_on(
    from: &Snapshot,
    servers: Arc<ToServers>,
    stop: CancellationToken,
    tracker: &TaskTracker,
) -> Handle {
    start((Cluster::resume(from), servers), from.revision, None, stop, tracker)
}

impl Events {
    /// Replaces the configuration. The revision of the snapshot that holds it; `None`: the core has stopped.
    pub async fn reload(&self, spec: Spec) -> Option<u64> {
        let (answer, published) = oneshot::channel();
        self.orders.send(Order::Reload(spec, answer)).await.ok()?;
        published.await.ok()
    }

    /// Has every result cache emptied. The revision of the snapshot that says so; `None`: the core has stopped.
    pub(crate) async fn flush_caches(&self) -> Option<u64> {
        let (answer, published) = oneshot::channel();
        self.orders.send(Order::FlushCaches(unix_ms(), answer)).await.ok()?;
        published.await.ok()
    }

    /// Says what a data plane holds, perhaps of an earlier life: what is published from now on goes on from there.
    pub async fn held(&self, held: Held) {
        let (answer, done) = oneshot::channel();
        // An error says that the core has stopped.
        if self.orders.send(Order::Held(held, answer)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Says what the store has latched; once taken into account, what should be latched follows from it.
    pub(crate) async fn latched(&self, latch: Latch) {
        let (answer, done) = oneshot::channel();
        // An error says that the core has stopped.
        if self.orders.send(Order::Latched(latch, answer)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// What an operator says who vouches for this node; `None`: the core has stopped.
    pub(crate) async fn acceptance(&self, node: &str) -> Option<Result<Acceptance, Objection>> {
        let (answer, judged) = oneshot::channel();
        self.orders.send(Order::Judge(node.to_owned(), answer)).await.ok()?;
        judged.await.ok()
    }

    /// Passes on what a data plane saw. Dropped when the core cannot keep up: there will be more.
    pub fn evidence(&self, node: NodeName, evidence: Evidence) {
        drop(self.queue.try_send(Event::Evidence { node, evidence }));
    }
}

impl Coordinator {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut orders: mpsc::Receiver<Order>) {
        let mut next_round = Instant::now() + self.pause();
        loop {
            let (due, late) = (self.publisher.due().filter(|_| self.gate.is_open()), self.gate.due());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(order) = orders.recv() => {
                    self.obey(order);
                    next_round = next_round.min(Instant::now() + self.pause());
                }
                () = sleep_until(next_round.into()) => {
                    self.rounds.send_modify(|round| *round = round.wrapping_add(1));
                    next_round = Instant::now() + self.pause();
                }
                () = sleep_until(due.unwrap_or(next_round).into()), if due.is_some() => {
                    self.publisher.publish(&self.cluster, Instant::now());
                }
                () = sleep_until(late.unwrap_or(next_round).into()), if late.is_some() => self.gate.give_up(),
                // Cannot end: the loop holds a sender for new tasks.
                Some(event) = events.recv() => self.handle(event),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Reload(spec, answer) => {
                self.handle(Event::Reload(spec));
                self.start_tasks();
                self.start_asker();
                self.answer(answer);
            }
            Order::FlushCaches(at, answer) => {
                self.handle(Event::FlushCaches(at));
                self.answer(answer);
            }
            Order::Held(held, answer) => {
                let revision = held.revision;
                // The same number may be another control plane's.
                let strange = revision > 0 && revision >= self.publisher.revision();
                if strange || held.key > self.cluster.key() {
                    self.publisher.reach(revision);
                    self.handle(Event::Held(held));
                }
                let _ = answer.send(());
            }
            Order::Judge(node, answer) => {
                let _ = answer.send(self.cluster.acceptance(&node));
            }
            Order::Latched(latch, answer) => {
                self.gate.latched(latch.clone());
                self.handle(Event::Latched(latch));
                let _ = answer.send(());
            }
        }
    }

    /// The revision that holds, or will hold, what was just handled.
    fn answer(&self, answer: oneshot::Sender<u64>) {
        let open = self.gate.is_open();
        // Nobody may wait for it any more.
        let _ = answer.send(if open { self.publisher.revision() } else { self.publisher.next() });
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let change: Change = self.cluster.apply(event, now);
        match self.gate.pass(&self.cluster, now) {
            Pass::Open => self.publisher.note(change, &self.cluster, now),
            Pass::Opened => self.publisher.note(Change::State, &self.cluster, now),
            Pass::Shut => {}
        }
        self.hunt();
    }

    fn hunt(&self) {
        for (task, pause) in self.tasks.iter().zip(self.cluster.hunted()) {
            task.hunt(pause);
        }
        if let Some(asker) = &self.asker {
            asker.hunt(self.cluster.asked_often());
        }
    }

    /// One task that asks the authority outside, as long as the configuration has one.
    fn start_asker(&mut self) {
        let wanted = self.cluster.spec().health.patroni.as_ref();
        if self.asker.as_ref().map(|asker| &asker.settings) == wanted {
            return;
        }
        let wires = (&self.stop, &self.tracker);
        self.asker = wanted.map(|settings| Asker::start(Arc::clone(settings), self.queue.clone(), wires));
    }

    /// One probe task per node, in configuration order: starts the new ones, drops those without a node, and
    /// replaces those whose address, login or timeout changed.
    fn start_tasks(&mut self) {
        let spec = self.cluster.spec();
        let HealthSettings { credential, check_timeout, .. } = &spec.health;
        let same = (credential, check_timeout) == (&self.health.credential, &self.health.check_timeout);
        let mut old = if same { std::mem::take(&mut self.tasks) } else { Vec::new() };
        self.health = spec.health.clone();
        self.tasks = spec
            .nodes
            .iter()
            .map(|node| {
                let kept = old.iter().position(|task| {
                    task.node.name == node.name && task.node.host == node.host && task.node.port == node.port
                });
                kept.map(|i| old.swap_remove(i)).unwrap_or_else(|| {
                    let wires = (&self.stop, &self.tracker);
                    Task::start(
                        (Arc::clone(node), &self.servers),
                        &self.health,
                        self.rounds.subscribe(),
                        self.queue.clone(),
                        wires,
                    )
                })
            })
            .collect();
    }

    /// The time to the next round: the interval, 10 % more or less.
    fn pause(&self) -> Duration {
        let random = u16::try_from(RandomState::new().hash_one(Instant::now()) % 1_000).unwrap_or(0);
        self.cluster.spec().health.check_interval.mul_f64(0.9 + f64::from(random) / 5_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::config;
    use helios_proto::model::{Health, TopologyKey};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    /// A server that answers TLS requests as long as its task lives.
    async fn server() -> (u16, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut request = [0; 8];
                client.read_exact(&mut request).await.unwrap();
                client.write_all(b"N").await.unwrap();
            }
        });
        (port, task)
    }

    fn spec(nodes: &[(u16, &str)]) -> Spec {
        // Rounds are too rare to matter: what happens here happens by hunting.
        let mut text = "[health]\ncheck_interval_secs = 3600\n".to_owned();
        for (port, role) in nodes {
            text += &format!("[[nodes]]\nhost = \"127.0.0.1\"\nport = {port}\nrole = \"{role}\"\n");
        }
        config::parse(&text, "test", &|_| None).unwrap().spec
    }

    async fn until(handle: &mut Handle, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let wait = handle.snapshots.wait_for(|snapshot| what(snapshot));
        Arc::clone(&*timeout(Duration::from_secs(10), wait).await.expect("in time").expect("alive"))
    }

    #[tokio::test]
    async fn a_lost_server_is_found_by_evidence_and_a_reload_replaces_it() {
        let (port, server_task) = server().await;
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let cluster = Cluster::new(spec(&[(port, "primary")]), &Latch::default());
        let mut handle = start((cluster, Arc::default()), 0, None, stop.clone(), &tracker);
        assert_eq!(handle.snapshots.borrow().revision, 1);
        let up = until(&mut handle, |s| s.nodes[0].health == Health::Up).await;
        assert!(up.revision > 1 && up.primary == Some(0) && up.nodes[0].latency.is_some());

        server_task.abort();
        drop(server_task.await);
        handle.events.evidence(NodeName::new("primary"), Evidence::ConnectFailed);
        let down = until(&mut handle, |s| s.nodes[0].health == Health::Down).await;
        assert!(down.primary.is_none() && down.revision > up.revision);

        let (standby, _task) = server().await;
        let revision = handle.events.reload(spec(&[(port, "primary"), (standby, "standby")])).await;
        assert!(revision > Some(down.revision));
        until(&mut handle, |s| s.nodes.len() == 2 && s.nodes[1].health == Health::Up).await;
        handle.events.evidence(NodeName::new("standby"), Evidence::InHotStandby(false));
        let moved = until(&mut handle, |s| s.primary == Some(1)).await;
        assert_eq!(moved.epoch, 2);

        let (revision, epoch) = (moved.revision + 1_000, moved.epoch + 7);
        let key = TopologyKey { epoch, ..moved.key() };
        handle.events.held(Held { revision, key, ..Held::default() }).await;
        let raised = until(&mut handle, |s| s.revision > revision).await;
        assert_eq!((raised.epoch, raised.primary), (epoch, Some(1)), "goes on where an earlier life was");

        // The same number of another control plane is not the same snapshot.
        let revision = handle.snapshots.borrow().revision;
        handle.events.held(Held { revision, key, ..Held::default() }).await;
        assert!(handle.snapshots.borrow().revision > revision);

        stop.cancel();
        tracker.close();
        timeout(Duration::from_secs(5), tracker.wait()).await.expect("every task ends");
        assert!(handle.snapshots.changed().await.is_err() || handle.snapshots.has_changed().is_err());
        handle.events.evidence(NodeName::new("standby"), Evidence::ConnectFailed);
    }
}
