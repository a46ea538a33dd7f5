//! From the cluster's state to revisioned snapshots on a `watch` channel: a change of state at once, measures
//! at most once per probe interval. Owner: the coordinator. Never waits for a reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::Snapshot;
use tokio::sync::watch;

use crate::cluster::{Change, Cluster};

/// Measures wait this long, so that the answers of one round go out together.
const GATHER: Duration = Duration::from_millis(100);

/// Publishes snapshots.
pub(crate) struct Publisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    published: Instant,
    /// The next revision is beyond this.
    reached: u64,
    /// When waiting measures are due.
    due: Option<Instant>,
}

impl Publisher {
    /// Publishes the revision after `reached`.
    pub fn new(cluster: &Cluster, reached: u64, now: Instant) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let (snapshots, receiver) = watch::channel(Arc::new(snapshot(cluster, reached.saturating_add(1))));
        (Self { snapshots, published: now, reached, due: None }, receiver)
    }

    /// Notes a change.
    pub fn note(&mut self, change: Change, cluster: &Cluster, now: Instant) {
        match change {
            Change::Nothing => {}
            Change::Measures => {
                // A little less than the interval, so that jitter does not skip a round.
                let earliest = self.published + cluster.spec().health.check_interval.mul_f64(0.8);
                self.due.get_or_insert(earliest.max(now + GATHER));
            }
            Change::State => self.publish(cluster, now),
        }
    }

    /// When [`publish`](Self::publish) should be called though nothing happens.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The revision published last.
    pub fn revision(&self) -> u64 {
        self.snapshots.borrow().revision
    }

    /// The revision published next.
    pub fn next(&self) -> u64 {
        self.revision().max(self.reached).saturating_add(1)
    }

    /// Somebody holds a revision that is not of here: the next one is beyond it.
    pub fn reach(&mut self, revision: u64) {
        self.reached = self.reached.max(revision);
    }

    /// Publishes the next revision.
    pub fn publish(&mut self, cluster: &Cluster, now: Instant) {
        let revision = self.next();
        self.snapshots.send_replace(Arc::new(snapshot(cluster, revision)));
        self.published = now;
        self.due = None;
    }
}

fn snapshot(cluster: &Cluster, revision: u64) -> Snapshot {
    let key = cluster.key();
    Snapshot {
        revision,
        config_revision: cluster.spec().revision,
        epoch: key.epoch,
        timeline: key.timeline,
        incarnation: key.incarnation,
        system: cluster.system(),
        last_primary: cluster.last_primary().cloned(),
        settings: Arc::clone(&cluster.spec().settings),
        health: Arc::new(cluster.spec().health.clone()),
        nodes: cluster.states().cloned().collect(),
        primary: cluster.primary(),
        hold: cluster.hold().cloned(),
        authority: cluster.authority(),
        cache_flush: cluster.cache_flush(),
    }
}
