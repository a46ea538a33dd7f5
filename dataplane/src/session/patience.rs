//! Waiting while no node gives a connection: longer and longer pauses, which a newer snapshot ends. Never decides how long
//! in all: whoever waits has its own bound.

use crate::pool::{Pools, View};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First pause before a node that gave no connection is asked again; doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a node is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Since when somebody waits, and for how long at a time.
pub struct Patience {
    started: Instant,
    pause: Duration,
    /// Revision of the snapshot looked at last.
    seen: u64,
}

impl Patience {
    /// Of a search that began at this time.
    #[must_use]
    pub const fn since(started: Instant) -> Self {
        Self { started, pause: PAUSE, seen: 0 }
    }

    /// How long it has been.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The snapshot in force; only a newer one ends the next pause.
    pub fn look(&mut self, pools: &Pools) -> Arc<View> {
        let view = pools.view();
        self.seen = view.snapshot.revision;
        view
    }

    /// A pause, which a newer snapshot ends: it may name another node.
    pub async fn rest(&mut self, pools: &Pools) {
        tokio::select! {
            biased;
            () = pools.newer_than(self.seen) => {}
            () = tokio::time::sleep(self.pause) => self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE),
        }
    }
}
