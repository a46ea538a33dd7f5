//! The stream to a data plane: the whole snapshot first, then each change at once, always the latest. The connection's
//! own task writes (see [`writer`](super::writer)), one task per data plane reads; a data plane that reads slowly skips,
//! one that is silent, or takes nothing, is let go. Never queues.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use helios_proto::model::{NodeName, NodeState, TopologyKey};
use helios_proto::wire::Refused;
use helios_proto::wire::v1::{self, dp_msg};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::auth::Caller;
use super::ear::{Ear, Ears, Open};
use super::writer::{BEAT, Outgoing, Pulse, Sent, Sources};
use crate::budget::Who;
use crate::cluster::Held;
use crate::core::Core;
use crate::counts::{Counts, Way, add};
use crate::fanout::Fanout;
use crate::fleet::{Ack, Identity, Seat};
use crate::keeper::Refusal;
use crate::peers::Peers;

/// Longest wait for the first message of a data plane.
pub(super) const HELLO: Duration = Duration::from_secs(5);
/// A data plane that says nothing, or takes nothing, for this long is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
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
    cluster: String,
    /// What runs.
    core: Core,
    /// Who takes cancel requests.
    peers: Arc<Peers>,
    /// Makes what is sent.
    fanout: Arc<Fanout>,
    /// Who can be heard.
    pub(super) ears: Arc<Ears>,
    /// Ends every stream.
    stop: CancellationToken,
    /// Runs the streams.
    tracker: TaskTracker,
}

impl Service {
    /// For the fleet of this name. `stop` ends every stream; they run on `tracker`.
    #[must_use]
    pub fn new(
        cluster: &str,
        core: &Core,
        peers: Arc<Peers>,
        (stop, tracker): (&CancellationToken, &TaskTracker),
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            core: core.clone(),
            peers,
            fanout: Fanout::new(Arc::clone(&core.counts)),
            ears: Arc::default(),
            stop: stop.clone(),
            tracker: tracker.clone(),
        }
    }

    /// What is counted.
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.core.counts)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// It does not begin with a Hello of this fleet, or nobody may be told anything now.
    pub(super) async fn stream(
        &self,
        request: Request<Streaming<v1::DpMsg>>,
    ) -> Result<Response<Outgoing>, Status> {
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
        self.compare(&hello, &held);
        self.core.keeper.events().held(held).await;
        self.looked().await;
        let (grant, grants) = watch::channel(None);
        let (again, asked) = watch::channel(0);
        let done = self.stop.child_token();
        let sources = Sources {
            snapshots: self.core.snapshots.clone(),
            fanout: Arc::clone(&self.fanout),
            numbered,
            grants,
            again: asked,
            done: done.clone(),
        };
        let (outgoing, acknowledged, pulse) = Outgoing::new(sources, hello.deltas);
        let open = self.ears.open(Ear {
            seat,
            who: Who { id: hello.dp_id, boot: hello.boot_id },
            events: self.core.keeper.events().clone(),
            budgets: Arc::clone(&self.core.budgets),
            snapshots: self.core.snapshots.clone(),
            counts: Arc::clone(&self.core.counts),
            grant,
            done,
            heard: Mutex::default(),
        });
        let reader = Reader { open, acknowledged, pulse, again };
        self.tracker.spawn(reader.run(messages, self.core.leading.clone()));
        Ok(Response::new(outgoing))
    }

    /// Says so if a data plane is further than this control plane.
    fn compare(&self, hello: &v1::Hello, held: &Held) {
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
    }

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

/// Hears one data plane, and ends its stream.
struct Reader {
    open: Open,
    acknowledged: watch::Receiver<Option<Sent>>,
    pulse: Arc<Pulse>,
    /// To the writer: everything is asked for.
    again: watch::Sender<u64>,
}

impl Reader {
    async fn run(self, messages: Streaming<v1::DpMsg>, mut leading: watch::Receiver<bool>) {
        let ear = &self.open.ear;
        tokio::select! {
            biased;
            () = ear.done.cancelled() => {}
            () = ear.seat.leave.cancelled() => {}
            _ = leading.wait_for(|leading| !leading) => {}
            () = self.listen(messages) => {}
        }
        ear.done.cancel();
    }

    async fn listen(&self, mut messages: Streaming<v1::DpMsg>) {
        // One that takes nothing gets no heartbeats either.
        while self.pulse.age() < SILENCE {
            // What it says in reports counts.
            let patience = SILENCE.saturating_sub(self.open.ear.quiet()).max(BEAT);
            match timeout(patience, messages.message()).await {
                Ok(Ok(Some(message))) => self.hear(message),
                Ok(Ok(None) | Err(_)) => return,
                Err(_) if self.open.ear.quiet() < SILENCE => {}
                Err(_) => return,
            }
        }
    }

    fn hear(&self, message: v1::DpMsg) {
        match message.msg {
            Some(dp_msg::Msg::Ack(ack)) => self.ack(ack),
            Some(dp_msg::Msg::Evidence(evidence)) => self.open.ear.evidence(&evidence, Way::Discovery),
            Some(dp_msg::Msg::Status(status)) => self.open.ear.status(status, Way::Discovery),
            Some(dp_msg::Msg::Resync(resync)) => self.resync(&resync),
            // Said once already; or said by a newer version.
            Some(dp_msg::Msg::Hello(_)) | None => {}
        }
    }

    fn resync(&self, v1::Resync { nonce, reason }: &v1::Resync) {
        let ear = &self.open.ear;
        add(&ear.counts.resyncs);
        let reason: String = reason.chars().take(LONGEST_NAME).collect();
        tracing::warn!(dataplane = %ear.who.id, nonce, ?reason, "a delta did not fit; sending everything");
        self.again.send_modify(|asked| *asked = asked.wrapping_add(1));
    }

    fn ack(&self, ack: v1::Ack) {
        let sent = *self.acknowledged.borrow();
        // Of an older message: the next one is on its way.
        let Some(sent) = sent.filter(|sent| sent.nonce == ack.nonce) else { return };
        let refused = ack.rejected.into_iter().map(|v1::Rejected { name, reason }| Refused { name, reason });
        self.open.ear.seat.ack(Ack {
            revision: ack.revision,
            config_revision: sent.config_revision,
            refused: refused.collect(),
            took: Some(sent.at.elapsed()),
        });
    }
}
