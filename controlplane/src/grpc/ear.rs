//! What data planes say of themselves, whichever way it comes: on the stream, or in a call of its own. Each stream has one
//! ear, found by the name and the start of its data plane; it takes statuses in their order, and passes evidence on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use helios_proto::model::{NodeName, Snapshot};
use helios_proto::wire;
use helios_proto::wire::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::budget::Who;
use crate::budget::leading::Budgets;
use crate::coordinator::Events;
use crate::counts::{Counts, Way};
use crate::fleet::Seat;

/// Hears one data plane.
pub(super) struct Ear {
    pub seat: Seat,
    pub who: Who,
    pub events: Events,
    pub budgets: Arc<Budgets>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub counts: Arc<Counts>,
    /// To the writer: the latest counts.
    pub grant: watch::Sender<Option<v1::Grants>>,
    /// Cancelled: the stream ends, and who reports beside it.
    pub done: CancellationToken,
    pub heard: Mutex<Heard>,
}

/// What was heard last.
pub(super) struct Heard {
    at: Instant,
    beat: u64,
    /// Of the call that reports.
    turn: CancellationToken,
}

impl Default for Heard {
    fn default() -> Self {
        Self { at: Instant::now(), beat: 0, turn: CancellationToken::new() }
    }
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Each change is whole, whoever panicked.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long nothing has been heard.
    pub fn quiet(&self) -> Duration {
        self.heard().at.elapsed()
    }

    /// How the data plane is doing.
    pub fn status(&self, status: v1::Status, way: Way) {
        self.counts.report(way);
        let mut heard = self.heard();
        heard.at = Instant::now();
        // Two ways: what was said first may come last, and must not be taken for news.
        if status.beat != 0 && status.beat <= heard.beat {
            return;
        }
        heard.beat = status.beat;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        if let Some(grants) = self.budgets.answer(&self.who, &status, &snapshot) {
            self.grant.send_replace(Some(grants));
        } else if self.budgets.elsewhere(&snapshot).is_some() {
            self.done.cancel();
        }
        self.seat.status(status);
    }

    /// What was seen on connections to a node.
    pub fn evidence(&self, evidence: &v1::Evidence, way: Way) {
        self.counts.report(way);
        self.heard().at = Instant::now();
        if let Some(kind) = wire::evidence(evidence.kind) {
            self.events.evidence(NodeName::new(&evidence.node), kind);
        }
    }

    /// A call begins to report: an older one of the same stream has to end.
    pub fn turn(&self) -> CancellationToken {
        let turn = CancellationToken::new();
        std::mem::replace(&mut self.heard().turn, turn.clone()).cancel();
        turn
    }
}

/// The ears of all streams that are open.
#[derive(Default)]
pub(super) struct Ears(Mutex<HashMap<String, Weak<Ear>>>);

/// An ear that is open; closed when dropped.
pub(super) struct Open {
    ears: Arc<Ears>,
    pub ear: Arc<Ear>,
}

impl Ears {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<Ear>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one, in place of an older one of the same data plane.
    pub fn open(self: &Arc<Self>, ear: Ear) -> Open {
        let ear = Arc::new(ear);
        self.lock().insert(ear.who.id.clone(), Arc::downgrade(&ear));
        Open { ears: Arc::clone(self), ear }
    }

    /// Of this data plane since this start.
    pub fn find(&self, id: &str, boot: &str) -> Option<Arc<Ear>> {
        self.lock().get(id).and_then(Weak::upgrade).filter(|ear| ear.who.boot == boot)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut ears = self.ears.lock();
        let id = &self.ear.who.id;
        if ears.get(id).is_some_and(|held| held.as_ptr() == Arc::as_ptr(&self.ear)) {
            ears.remove(id);
        }
    }
}
