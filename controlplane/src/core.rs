//! The control plane without its listeners: store, keeper, the coordinator's loop, the fleet and the feed, started
//! together. The same in `helios-controlplane` and inside a standalone proxy.

use std::sync::Arc;
use std::time::Duration;

use helios_proto::model::{NodeName, Snapshot};
use helios_tls::postgres::ToServers;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::leading::Budgets;
use crate::cluster::Cluster;
use crate::coordinator::{self, Handle};
use crate::counts::Counts;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::keeper::{self, Keeper, Refusal};
use crate::store::{Latch, Store, Versioned, View};

/// Pause before a latch that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(200);
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
    /// Whether data planes may be told; false while a change of primary cannot be latched.
    pub leading: watch::Receiver<bool>,
    /// Who may hold how many server connections.
    pub budgets: Arc<Budgets>,
    /// What went to data planes and came from them.
    pub counts: Arc<Counts>,
    /// TLS towards PostgreSQL.
    pub servers: Arc<ToServers>,
}

impl Core {
    /// Starts with what `store` holds, or with the configuration text `file`; see [`keeper::open`] for `follow`. Call
    /// inside a tokio runtime. All its tasks run on `tracker` and end soon after `stop`.
    ///
    /// # Errors
    /// The store cannot be used, or what it holds is no valid configuration.
    pub fn start(
        (store, servers): (Arc<dyn Store>, Arc<ToServers>),
        (file, follow): (&str, bool),
        stop: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, Refusal> {
        let empty = store.current()?.is_none();
        let (desired, latch) = keeper::open(store.as_ref(), file, follow)?;
        let cluster = Cluster::new(desired.spec.clone(), &latch.value);
        let shared = store.shared();
        let gate = shared.is_some().then(|| latch.value.clone());
        let reached = latch.value.snapshot;
        let handle =
            coordinator::start((cluster, Arc::clone(&servers)), reached, gate, stop.clone(), tracker);
        let Handle { snapshots, events, leading, wanted } = handle;
        let keeper = Arc::new(Keeper::new(store, desired, events));
        // Several control planes may have found it empty.
        let budgets = Budgets::new(Arc::clone(&keeper), empty && keeper.is_durable() && shared.is_none());
        let feed = Feed::new();
        tracker.spawn(Arc::clone(&feed).follow(snapshots.clone(), stop.clone()));
        let latching =
            Latching { keeper: Arc::clone(&keeper), latch, snapshots: snapshots.clone(), warned: false };
        match shared {
            Some(view) => {
                let keeper = Arc::clone(&keeper);
                tracker.spawn(until(stop.clone(), follow_store(keeper, view.clone())));
                tracker.spawn(until(stop.clone(), latching.share(wanted, view)));
            }
            None if keeper.is_durable() => {
                tracker.spawn(until(stop.clone(), latching.keep()));
            }
            None => {}
        }
        let (fleet, counts) = (Fleet::new(Arc::clone(&feed)), Arc::default());
        Ok(Self { keeper, fleet, feed, snapshots, leading, budgets, counts, servers })
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Takes up what other control planes write.
async fn follow_store(keeper: Arc<Keeper>, mut view: watch::Receiver<Arc<View>>) {
    view.mark_changed();
    while view.changed().await.is_ok() {
        let seen = Arc::clone(&view.borrow_and_update());
        if seen.up {
            keeper.follow(&seen).await;
        }
    }
}

/// Latches what must not go back.
struct Latching {
    keeper: Arc<Keeper>,
    /// What the store holds, as far as is known here.
    latch: Versioned<Latch>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// It has been said that it cannot be written.
    warned: bool,
}

impl Latching {
    /// The latch with revisions enough ahead.
    fn ahead(&self, topology: Latch) -> Latch {
        let (reached, latched) = (self.snapshots.borrow().revision, self.latch.value.snapshot);
        let enough = latched >= reached.saturating_add(AHEAD / 10);
        Latch { snapshot: if enough { latched } else { reached.saturating_add(AHEAD) }, ..topology }
    }

    /// For a store of this process alone: what is published is latched as well.
    async fn keep(mut self) {
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            let next = self.ahead(Latch {
                snapshot: 0,
                epoch: snapshot.epoch,
                timeline: snapshot.timeline,
                incarnation: snapshot.incarnation,
                system: snapshot.system,
                primary: snapshot.last_primary.as_ref().map(NodeName::to_string),
            });
            if next != self.latch.value {
                match self.keeper.latch(self.latch.clone(), next.clone()).await {
                    Ok(version) => self.latch = Versioned { value: next, version },
                    Err(error) => tracing::error!(%error, "the topology cannot be latched"),
                }
            }
            if self.snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    /// For a store that others write as well: what is wanted is latched, then told; what others latch is told.
    async fn share(mut self, mut wanted: watch::Receiver<Latch>, mut view: watch::Receiver<Arc<View>>) {
        loop {
            let seen = view.borrow_and_update().latch.clone();
            if seen.version > self.latch.version {
                self.learn(seen).await;
            }
            // The core has heard of the latch, so that this follows from it.
            let next = self.ahead(wanted.borrow_and_update().clone());
            let failed = next != self.latch.value && !self.write(next).await;
            self.snapshots.mark_unchanged();
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                changed = view.changed() => if changed.is_err() { return },
                changed = self.snapshots.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    async fn learn(&mut self, latch: Versioned<Latch>) {
        self.latch = latch;
        self.keeper.events().latched(self.latch.value.clone()).await;
    }

    /// Writes the latch, and tells the core what the store holds then; false: it has to be tried again.
    async fn write(&mut self, next: Latch) -> bool {
        match self.keeper.latch(self.latch.clone(), next.clone()).await {
            Ok(version) => {
                self.warned = false;
                self.learn(Versioned { value: next, version }).await;
            }
            Err(refusal) => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(error = %refusal, "the topology is not latched yet");
                }
                // Somebody was faster, or nobody knows: what is there now counts.
                let Ok(found) = self.keeper.latched().await else { return false };
                let same = found.version == self.latch.version;
                self.learn(found).await;
                return !same;
            }
        }
        true
    }
}
