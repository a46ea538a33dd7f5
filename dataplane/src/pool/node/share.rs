//! How a pool keeps within its share of a node's budget: it closes what is idle beyond it, lets busy connections end by
//! themselves, and cuts them when the time is up.

use super::NodePool;
use super::budget::Granted;
use super::inner::Inner;
use crate::pool::identity::Identity;
use crate::server::ServerConn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pause between two cuts of what is overdue.
const BETWEEN_CUTS: Duration = Duration::from_secs(1);

/// How a pool stands with its node's budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The share in force; `None`: the node has no budget, or nothing is granted yet.
    pub granted: Option<u32>,
    /// What of it stays when the control plane is away.
    pub floor: u32,
    /// The budget of all data planes; 0: none.
    pub limit: u32,
}

impl NodePool {
    /// How the pool stands with its node's budget.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let inner = self.lock();
        let budget = &inner.budget;
        let granted = budget.granted(Instant::now());
        Standing {
            granted: granted.map(|(share, _)| share),
            floor: granted.map_or(0, |(_, floor)| floor),
            limit: budget.limit().unwrap_or(0),
        }
    }

    /// Another share is granted.
    pub fn set_share(self: &Arc<Self>, granted: Granted) {
        self.lock().budget.grant(granted);
        self.keep_within(Instant::now());
    }

    /// Most connections now.
    pub(super) fn allowed(&self, inner: &Inner) -> u32 {
        let size = self.most();
        if !self.is_budgeted() {
            return size;
        }
        inner.budget.share(Instant::now()).map_or(size, |share| share.min(size))
    }

    /// How many connections have to go, apart from those that go already.
    pub(super) fn excess(&self, inner: &Inner, now: Instant) -> u32 {
        let keeps = if self.is_budgeted() { inner.budget.keeps(now) } else { None };
        let most = keeps.map_or(self.most(), |keeps| keeps.min(self.most()));
        inner.total.saturating_sub(inner.leaving).saturating_sub(most)
    }

    /// Whether the node has a budget.
    pub(super) fn is_budgeted(&self) -> bool {
        self.budgeted.load(Ordering::Relaxed)
    }

    /// The node's budget is this now.
    pub(super) fn set_budget(&self, inner: &mut Inner, limit: Option<u32>) {
        inner.budget.configure(limit, Instant::now());
        self.budgeted.store(limit.is_some(), Ordering::Relaxed);
    }

    /// Keeps within the share, which may have changed with time.
    pub(in crate::pool) fn keep_within(self: &Arc<Self>, now: Instant) {
        if !self.is_budgeted() {
            return;
        }
        let mut inner = self.lock();
        let excess = self.excess(&inner, now);
        let closing: Vec<Box<ServerConn>> = (0..excess).map_while(|_| inner.take_oldest(|_| true)).collect();
        self.note(&inner);
        let kept = inner.total.saturating_sub(inner.leaving).saturating_sub(inner.budget.floor());
        let overdue = inner.budget.is_overdue(now) && kept > 0 && inner.cut.is_none_or(|at| at <= now);
        if overdue {
            inner.cut = now.checked_add(BETWEEN_CUTS);
        }
        let waiting = !inner.queue.is_empty() && !self.paused();
        drop(inner);
        closing.into_iter().for_each(ServerConn::close);
        if overdue && excess > 0 {
            tracing::warn!(node = %self.node.name, connections = excess, "the lease of these connections has ended");
            self.cords.cut_some(excess);
        }
        if waiting {
            self.serve_queue(false);
        }
    }

    /// A connection begins to end.
    pub(super) fn leaves(&self) {
        let mut inner = self.lock();
        inner.leaving = inner.leaving.saturating_add(1);
    }

    /// It has ended.
    pub(super) fn left(self: &Arc<Self>, identity: &Arc<Identity>) {
        let mut inner = self.lock();
        inner.leaving = inner.leaving.saturating_sub(1);
        drop(inner);
        self.freed(identity, true);
    }
}
