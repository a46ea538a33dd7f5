//! Where streams bring reports and get grants. Sees to it that one control plane allocates: the only one, or the leader.
//! One that does not lead grants nothing, and sends data planes to the leader while there is one. Owner of the
//! allocator, which lives as long as this process leads without a break.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use helios_proto::model::Snapshot;
use helios_proto::wire::v1;

use super::{Allocator, Grants, LEASE, Report, Standing, Usage, Who};
use crate::keeper::Keeper;

/// The budgets of all nodes.
pub struct Budgets {
    keeper: Arc<Keeper>,
    inner: Mutex<Inner>,
}

struct Inner {
    allocator: Option<Allocator>,
    /// Nothing can have been granted before.
    first: bool,
}

impl Budgets {
    /// `first`: the store is new, so that no control plane has granted anything before.
    #[must_use]
    pub fn new(keeper: Arc<Keeper>, first: bool) -> Arc<Self> {
        Arc::new(Self { keeper, inner: Mutex::new(Inner { allocator: None, first }) })
    }

    /// Whether this process may allocate.
    fn leads(&self) -> bool {
        let store = self.keeper.store();
        store.leads() && store.shared().is_none_or(|view| view.borrow().up)
    }

    /// The leader, if it is another process and has budgets to share out: data planes are better off there.
    #[must_use]
    pub fn elsewhere(&self, snapshot: &Snapshot) -> Option<String> {
        if limits(snapshot).next().is_none() || self.leads() {
            return None;
        }
        let view = self.keeper.store().shared()?;
        let view = view.borrow();
        view.leader.as_ref().filter(|_| view.up).map(|(name, _)| name.clone())
    }

    /// Answers a report; `None`: there is nothing to grant, or nobody here who may.
    pub fn answer(&self, who: &Who, status: &v1::Status, snapshot: &Snapshot) -> Option<v1::Grants> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.leads() {
            inner.allocator = None;
            return None;
        }
        if status.beat == 0 || limits(snapshot).next().is_none() {
            return None;
        }
        let now = Instant::now();
        let first = std::mem::replace(&mut inner.first, false);
        let allocator = inner.allocator.get_or_insert_with(|| {
            if !first {
                tracing::info!("connection budgets: learning for a while what data planes hold");
            }
            Allocator::new(RandomState::new().hash_one(now).max(1), first, now)
        });
        allocator.configure(limits(snapshot));
        Some(sent(allocator.answer(who, &report(status), now)))
    }

    /// How the budgets stand; none where this process does not allocate.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let allocator = inner.allocator.as_ref().filter(|_| self.leads());
        allocator.map(|allocator| allocator.standings(Instant::now())).unwrap_or_default()
    }
}

fn limits(snapshot: &Snapshot) -> impl Iterator<Item = (&str, u32)> {
    snapshot.nodes.iter().filter_map(|state| Some((state.node.name.as_str(), state.node.max_connections?)))
}

fn report(status: &v1::Status) -> Report {
    let usage = |pool: &v1::PoolStatus| Usage {
        node: pool.node.clone(),
        held: pool.total,
        wanted: pool.active.saturating_add(pool.waiting),
        size: pool.max,
        granted: pool.granted.unwrap_or(0),
        floor: pool.floor,
    };
    Report {
        beat: status.beat,
        of: status.grants_of,
        number: status.grants,
        usages: status.pools.iter().map(usage).collect(),
    }
}

fn sent(grants: Grants) -> v1::Grants {
    let Grants { of, number, beat, shares } = grants;
    let grants =
        shares.into_iter().map(|share| v1::Grant { node: share.node, most: share.most, floor: share.floor });
    let lease_us = u64::try_from(LEASE.as_micros()).unwrap_or(0);
    v1::Grants { of, number, beat, lease_us, grants: grants.collect() }
}
