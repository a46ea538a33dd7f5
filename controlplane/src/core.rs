//! The control plane without its listeners: store, keeper, the coordinator's loop, the fleet and the feed, started
//! together. The same in `helios-controlplane` and inside a standalone proxy.

use std::sync::Arc;

use helios_proto::model::{NodeName, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;
use crate::coordinator;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::keeper::{self, Keeper, Refusal};
use crate::store::{Latch, Store};

/// Snapshot revisions that are latched ahead, so that the next life starts beyond all that this one publishes.
const AHEAD: u64 = 1_000;

/// A running core.
#[derive(Clone)]
pub struct Core {
    /// What is wanted.
    pub keeper: Arc<Keeper>,
    /// Who is there.
    pub fleet: Arc<Fleet>,
    /// What happens.
    pub feed: Arc<Feed>,
    /// What is. Closed once the core has stopped.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Core {
    /// Starts with what `store` holds, or with the configuration text `file`; see [`keeper::open`] for `follow`. Call
    /// inside a tokio runtime. All its tasks run on `tracker` and end soon after `stop`.
    ///
    /// # Errors
    /// The store cannot be used, or what it holds is no valid configuration.
    pub fn start(
        store: Arc<dyn Store>,
        (file, follow): (&str, bool),
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, Refusal> {
        let (desired, latch) = keeper::open(store.as_ref(), file, follow)?;
        let cluster = Cluster::new(desired.spec.clone(), &latch);
        let handle = coordinator::start(cluster, latch.snapshot, stop.clone(), tracker);
        let keeper = Arc::new(Keeper::new(store, desired, handle.events));
        let (feed, snapshots) = (Feed::new(), handle.snapshots);
        tracker.spawn(Arc::clone(&feed).follow(snapshots.clone(), stop.clone()));
        if keeper.is_durable() {
            tracker.spawn(keep_latch(Arc::clone(&keeper), latch, snapshots.clone(), stop.clone()));
        }
        Ok(Self { keeper, fleet: Fleet::new(Arc::clone(&feed)), feed, snapshots })
    }
}

/// Latches what must not go back.
async fn keep_latch(
    keeper: Arc<Keeper>,
    mut latched: Latch,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) {
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let mut next = Latch {
            snapshot: latched.snapshot,
            epoch: snapshot.epoch,
            timeline: snapshot.timeline,
            incarnation: snapshot.incarnation,
            system: snapshot.system,
            primary: snapshot.last_primary.as_ref().map(NodeName::to_string),
        };
        if next.snapshot < snapshot.revision.saturating_add(AHEAD / 10) {
            next.snapshot = snapshot.revision.saturating_add(AHEAD);
        }
        if next != latched {
            keeper.latch(next.clone()).await;
            latched = next;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}
