//! Without its control plane a data plane goes on by its own evidence: an arbiter, the same core that runs in the control
//! plane, probes the nodes, follows a higher timeline and never goes back; when the control plane speaks again it is let
//! go. Owner of one task, which sleeps while the control plane answers. Never publishes while the control plane leads.

use super::Link;
use super::last_good::Kept;
use helios_proto::model::{Evidence, NodeName, Snapshot};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A control plane that is away for less is waited for, unless a node fails meanwhile: in seconds to seconds, at random,
/// so that not every data plane of a fleet starts to probe in the same moment.
const GRACE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));

/// An arbiter at work; ends when dropped.
pub struct Arbiter {
    /// Its snapshots; the first is there already.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where to tell it what sessions saw.
    pub tell: Box<dyn Fn(NodeName, Evidence) + Send + Sync>,
    /// Ends it.
    pub stop: DropGuard,
}

/// Starts an arbiter that goes on from a snapshot.
pub type StartArbiter = Box<dyn Fn(&Snapshot) -> Arbiter + Send + Sync>;

/// The task.
pub struct Guard {
    /// Starts the arbiter.
    pub start: StartArbiter,
    /// What is in force, and where what is found goes.
    pub publish: Arc<watch::Sender<Arc<Snapshot>>>,
    /// Where snapshots worth keeping go.
    pub keep: Arc<watch::Sender<Kept>>,
    /// What sessions saw.
    pub evidence: mpsc::Receiver<(NodeName, Evidence)>,
    /// Who leads.
    pub link: Arc<Link>,
}

impl Guard {
    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&mut self) {
        let mut led = self.link.leadership();
        loop {
            // Neither can fail: the link lives as long as this task.
            let _ = led.wait_for(|led| !led).await;
            if !self.is_needed(&mut led).await {
                continue;
            }
            let from = Arc::clone(&self.publish.borrow());
            tracing::warn!(
                revision = from.revision,
                epoch = from.epoch,
                timeline = from.timeline,
                "the control plane is away: probing the nodes from here"
            );
            let arbiter = (self.start)(&from);
            self.link.set_alone(true);
            self.follow(arbiter, &mut led).await;
            self.link.set_alone(false);
            tracing::info!("the control plane leads again");
        }
    }

    /// Waits for trouble with a node, or for so long that the control plane is really away; false: it is back.
    async fn is_needed(&mut self, led: &mut watch::Receiver<bool>) -> bool {
        let deadline = Instant::now() + GRACE.0 + (GRACE.1 - GRACE.0).mul_f64(random());
        loop {
            tokio::select! {
                biased;
                _ = led.wait_for(|led| *led) => return false,
                // Without nodes there is nothing to look at.
                () = sleep_until(deadline) => return !self.publish.borrow().nodes.is_empty(),
                Some((_, seen)) = self.evidence.recv() => {
                    let trouble = !matches!(seen, Evidence::InHotStandby(true));
                    if trouble && !self.publish.borrow().nodes.is_empty() {
                        return true;
                    }
                }
            }
        }
    }

    /// Puts in force what the arbiter finds out, until the control plane leads.
    async fn follow(&mut self, mut arbiter: Arbiter, led: &mut watch::Receiver<bool>) {
        loop {
            tokio::select! {
                biased;
                _ = led.wait_for(|led| *led) => return,
                changed = arbiter.snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&arbiter.snapshots.borrow_and_update());
                    self.put_in_force(&snapshot);
                }
                Some((node, seen)) = self.evidence.recv() => (arbiter.tell)(node, seen),
            }
        }
    }

    fn put_in_force(&self, snapshot: &Arc<Snapshot>) {
        let mut moved = false;
        // Under the lock of what is in force: whoever comes second sees what the first has done.
        self.publish.send_if_modified(|held| {
            let newer = snapshot.revision > held.revision && snapshot.key() >= held.key();
            if !newer || self.link.is_led() {
                return false;
            }
            moved = (held.key(), held.primary) != (snapshot.key(), snapshot.primary);
            *held = Arc::clone(snapshot);
            true
        });
        if moved {
            self.keep.send_modify(|kept| {
                let hash = kept.take().map(|(_, hash)| hash).unwrap_or_default();
                *kept = Some((Arc::clone(snapshot), hash));
            });
        }
    }
}

/// From 0 to 1; for jitter only.
fn random() -> f64 {
    let random = RandomState::new().hash_one(Instant::now()) % 1_000;
    u16::try_from(random).map_or(0.5, |random| f64::from(random) / 1_000.0)
}
