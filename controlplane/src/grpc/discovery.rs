//! The stream to a data plane: the whole snapshot first, then each change at once, always the latest. One task per data
//! plane writes, one reads; a data plane that reads slowly skips, one that is silent is let go. Never queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{NodeName, NodeState, Snapshot, TopologyKey};
use helios_proto::wire::v1::discovery_server::Discovery;
use helios_proto::wire::v1::{self, cp_msg, dp_msg};
use helios_proto::wire::{self, Refused};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::auth::Caller;
use crate::budget::Who;
use crate::budget::leading::Budgets;
use crate::cluster::Held;
use crate::coordinator::Events;
use crate::core::Core;
use crate::fleet::{Ack, Identity, Seat};
use crate::keeper::Refusal;
use crate::peers::{Numbered, Peers};

/// Longest wait for the first message of a data plane.
const HELLO: Duration = Duration::from_secs(5);
/// Pause between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// A data plane that says nothing, or takes nothing, for this long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest name of a data plane.
const LONGEST_NAME: usize = 200;
/// An epoch or revision beyond this was never reached by counting.
const ABSURD: u64 = 1 << 62;
/// More promotions than a data plane can have seen alone.
const LONGEST_LEAP: u32 = 1_000;
/// Longest wait of a stream for a change of primary to be latched.
const LATCH: Duration = Duration::from_secs(1);
/// Longest wait of a stream for the store to say whether a data plane knows more.
const ASK: Duration = Duration::from_secs(2);
/// Longest wait of a stream for the first look at the nodes; a data plane waits 4 s for the answer to its call.
const LOOK: Duration = Duration::from_secs(3);

/// The service.
pub struct Service {
    /// Name of the fleet.
    pub cluster: String,
    /// What runs.
    pub core: Core,
    /// Who takes cancel requests.
    pub peers: Arc<Peers>,
    /// Ends every stream.
    pub stop: CancellationToken,
    /// Runs the streams.
    pub tracker: TaskTracker,
}

/// A message sent and not yet acknowledged.
#[derive(Clone, Copy)]
struct Sent {
    nonce: u64,
    config_revision: u64,
    at: Instant,
}

type Outcome = Result<v1::CpMsg, Status>;

#[tonic::async_trait]
impl Discovery for Service {
    type StreamStream = ReceiverStream<Outcome>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::DpMsg>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let from = request.extensions().get::<Caller>().map(|c| c.from.clone()).unwrap_or_default();
        let mut messages = request.into_inner();
        let first = timeout(HELLO, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(v1::DpMsg { msg: Some(dp_msg::Msg::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        self.check(&hello)?;
        self.may_tell().await?;
        self.catch_up(&hello).await?;
        let seat = self.admit(hello.clone(), from);
        let v1::Hello { dp_id, cancel_id, peer_address, .. } = &hello;
        let numbered = (!peer_address.is_empty()).then(|| self.peers.join(dp_id, *cancel_id, peer_address));
        let held = held(&hello);
        let snapshots = &self.core.snapshots;
        let (revision, key) = (snapshots.borrow().revision, snapshots.borrow().key());
        if (revision < held.revision && !self.is_shared()) || key < held.key {
            tracing::warn!(
                dataplane = %hello.dp_id, revision = hello.revision, ours = revision,
                epoch = hello.epoch, timeline = hello.timeline,
                "a data plane is further than this control plane: it went on alone, the store was lost, or there are \
                 others; going on from there"
            );
        }
        self.core.keeper.events().held(held).await;
        self.looked().await;
        let (to_dataplane, outgoing) = mpsc::channel(1);
        let (sent, acknowledged) = watch::channel(None);
        let stop = self.stop.child_token();
        let snapshots = snapshots.clone();
        let (grant, grants) = watch::channel(None);
        let reader = Reader {
            seat,
            acknowledged,
            events: self.core.keeper.events().clone(),
            who: Who { id: hello.dp_id, boot: hello.boot_id },
            budgets: Arc::clone(&self.core.budgets),
            snapshots: snapshots.clone(),
            grant,
        };
        let writer = Writer { snapshots, numbered, grants, to_dataplane, sent, nonce: 0, last: None };
        let mut leading = self.core.leading.clone();
        self.tracker.spawn(async move {
            let leave = reader.seat.leave.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = leave.cancelled() => {}
                _ = leading.wait_for(|leading| !leading) => {}
                () = writer.run() => {}
                () = reader.run(messages) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

impl Service {
    /// Just started, this control plane says nothing before it has looked at the nodes: data planes know more.
    async fn looked(&self) {
        let looked = |state: &NodeState| state.probed_at.is_some();
        let mut snapshots = self.core.snapshots.clone();
        let wait = snapshots.wait_for(|snapshot| snapshot.nodes.iter().all(looked));
        // Late or stopping: the stream shows what there is.
        let _ = timeout(LOOK, wait).await;
    }

    fn is_shared(&self) -> bool {
        self.core.keeper.store().shared().is_some()
    }

    /// Nobody is told anything while a change of primary cannot be latched.
    async fn may_tell(&self) -> Result<(), Status> {
        let mut leading = self.core.leading.clone();
        match timeout(LATCH, leading.wait_for(|leading| *leading)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                return Err(Status::unavailable("a change of primary waits for the store"));
            }
        }
        match self.core.budgets.elsewhere(&self.core.snapshots.borrow()) {
            Some(leader) => {
                Err(Status::unavailable(format!("connection budgets are shared out by {leader}")))
            }
            None => Ok(()),
        }
    }

    /// A data plane may come from a control plane that knew more: the store says whether that is so.
    async fn catch_up(&self, hello: &v1::Hello) -> Result<(), Status> {
        let ours = self.core.snapshots.borrow().config_revision;
        if hello.config_revision <= ours || !self.is_shared() {
            return Ok(());
        }
        match timeout(ASK, self.core.keeper.refresh()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Refusal::Stopping)) => Err(Status::unavailable("the control plane is stopping")),
            Ok(Err(_)) | Err(_) => Err(Status::unavailable(format!(
                "the store cannot be reached, and revision {} of the configuration is older than {}",
                ours, hello.config_revision
            ))),
        }
    }

    fn check(&self, hello: &v1::Hello) -> Result<(), Status> {
        let v1::Hello { cluster, dp_id, boot_id, version, revision, epoch, peer_address, .. } = hello;
        if *cluster != self.cluster {
            let text = format!("this is the control plane of {:?}, not of {cluster:?}", self.cluster);
            return Err(Status::failed_precondition(text));
        }
        if [dp_id, boot_id, version, peer_address].iter().any(|text| text.len() > LONGEST_NAME)
            || dp_id.is_empty()
        {
            return Err(Status::invalid_argument("dp_id is empty, or a name is too long"));
        }
        let ours = self.core.snapshots.borrow().timeline;
        let leap = ours > 0 && hello.timeline > ours.saturating_add(LONGEST_LEAP);
        if *revision > ABSURD || *epoch > ABSURD || leap {
            return Err(Status::invalid_argument("revision, epoch or timeline is out of range"));
        }
        Ok(())
    }

    fn admit(&self, hello: v1::Hello, address: String) -> Seat {
        let v1::Hello { dp_id: id, boot_id, version, .. } = hello;
        tracing::info!(dataplane = %id, from = %address, %version, "data plane connected");
        self.core.fleet.join(Identity { id, boot_id, version, address })
    }
}

/// What a data plane holds.
fn held(hello: &v1::Hello) -> Held {
    let v1::Hello { revision, epoch, timeline, incarnation, last_primary, system, .. } = hello;
    Held {
        revision: *revision,
        key: TopologyKey { incarnation: *incarnation, timeline: *timeline, epoch: *epoch },
        last_primary: Some(last_primary).filter(|name| !name.is_empty()).map(|name| NodeName::new(name)),
        system: *system,
    }
}

/// Sends to one data plane.
struct Writer {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// `None`: it takes no cancel requests.
    numbered: Option<Numbered>,
    grants: watch::Receiver<Option<v1::Grants>>,
    to_dataplane: mpsc::Sender<Outcome>,
    sent: watch::Sender<Option<Sent>>,
    nonce: u64,
    last: Option<(Arc<Snapshot>, Vec<u8>)>,
}

impl Writer {
    async fn run(mut self) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.snapshots.mark_changed();
        let mut peers = self.numbered.as_ref().map(Numbered::list);
        loop {
            let alive = tokio::select! {
                biased;
                changed = self.snapshots.changed() => changed.is_ok() && self.snapshot().await,
                Ok(()) = self.grants.changed() => self.grants().await,
                Some(entries) = changed(&mut peers) => self.peers(&entries).await,
                _ = beat.tick() => self.heartbeat().await,
            };
            if !alive {
                return;
            }
        }
    }

    /// Sends the snapshot of this moment, or of it only what is known about the nodes if the rest has been sent.
    async fn snapshot(&mut self) -> bool {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let now = Instant::now();
        let msg = match &self.last {
            Some((last, sha256)) if same_configuration(last, &snapshot) => {
                let sha256 = sha256.clone();
                self.last = Some((Arc::clone(&snapshot), sha256));
                cp_msg::Msg::Topology(wire::topology(&snapshot, now))
            }
            _ => {
                let full = wire::full(&snapshot, now);
                self.last = Some((Arc::clone(&snapshot), full.sha256.clone()));
                cp_msg::Msg::Full(full)
            }
        };
        let sent = Sent { nonce: self.nonce + 1, config_revision: snapshot.config_revision, at: now };
        self.sent.send_replace(Some(sent));
        self.send(msg).await
    }

    async fn peers(&mut self, entries: &[v1::PeerEntry]) -> bool {
        let Some(numbered) = &self.numbered else { return true };
        let message = numbered.message(entries);
        self.send(cp_msg::Msg::Peers(message)).await
    }

    async fn grants(&mut self) -> bool {
        let grants = self.grants.borrow_and_update().clone();
        match grants {
            Some(grants) => self.send(cp_msg::Msg::Grants(grants)).await,
            None => true,
        }
    }

    async fn heartbeat(&mut self) -> bool {
        let Some((last, sha256)) = &self.last else { return true };
        let (revision, sha256) = (last.revision, sha256.clone());
        self.send(cp_msg::Msg::Heartbeat(v1::Heartbeat { revision, sha256 })).await
    }

    /// False: the data plane is gone, or takes nothing any more.
    async fn send(&mut self, msg: cp_msg::Msg) -> bool {
        self.nonce += 1;
        let message = v1::CpMsg { nonce: self.nonce, msg: Some(msg) };
        matches!(timeout(SILENCE, self.to_dataplane.send(Ok(message))).await, Ok(Ok(())))
    }
}

/// The list of peers once it has changed; never for who takes no cancel requests.
async fn changed(
    peers: &mut Option<watch::Receiver<Arc<Vec<v1::PeerEntry>>>>,
) -> Option<Arc<Vec<v1::PeerEntry>>> {
    let Some(peers) = peers else { return std::future::pending().await };
    peers.changed().await.ok()?;
    Some(Arc::clone(&peers.borrow_and_update()))
}

/// Whether two snapshots differ in nothing but what is known about the nodes.
fn same_configuration(a: &Snapshot, b: &Snapshot) -> bool {
    let nodes = |(a, b): (&NodeState, &NodeState)| a.node == b.node && a.ops == b.ops;
    a.config_revision == b.config_revision
        && Arc::ptr_eq(&a.settings, &b.settings)
        && a.nodes.len() == b.nodes.len()
        && a.nodes.iter().zip(&b.nodes).all(nodes)
}

/// Hears one data plane.
struct Reader {
    seat: Seat,
    acknowledged: watch::Receiver<Option<Sent>>,
    events: Events,
    who: Who,
    budgets: Arc<Budgets>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// To the writer: the latest counts.
    grant: watch::Sender<Option<v1::Grants>>,
}

impl Reader {
    async fn run(&self, mut messages: Streaming<v1::DpMsg>) {
        while let Ok(Ok(Some(message))) = timeout(SILENCE, messages.message()).await {
            match message.msg {
                Some(dp_msg::Msg::Ack(ack)) => self.ack(ack),
                Some(dp_msg::Msg::Evidence(evidence)) => self.evidence(&evidence),
                Some(dp_msg::Msg::Status(status)) => {
                    let snapshot = Arc::clone(&self.snapshots.borrow());
                    if let Some(grants) = self.budgets.answer(&self.who, &status, &snapshot) {
                        self.grant.send_replace(Some(grants));
                    } else if self.budgets.elsewhere(&snapshot).is_some() {
                        return;
                    }
                    self.seat.status(status);
                }
                // Said once already; or said by a newer version.
                Some(dp_msg::Msg::Hello(_)) | None => {}
            }
        }
    }

    fn ack(&self, ack: v1::Ack) {
        let sent = *self.acknowledged.borrow();
        // Of an older message: the next one is on its way.
        let Some(sent) = sent.filter(|sent| sent.nonce == ack.nonce) else { return };
        let refused = ack.rejected.into_iter().map(|v1::Rejected { name, reason }| Refused { name, reason });
        self.seat.ack(Ack {
            revision: ack.revision,
            config_revision: sent.config_revision,
            refused: refused.collect(),
            took: Some(sent.at.elapsed()),
        });
    }

    fn evidence(&self, evidence: &v1::Evidence) {
        if let Some(kind) = wire::evidence(evidence.kind) {
            self.events.evidence(NodeName::new(&evidence.node), kind);
        }
    }
}
