//! The current snapshot bound to the pools of its nodes. Replaced whole, forward only; a node that stays keeps its
//! pool and its connections.

use super::Identity;
use super::node::{Caps, Granted, NodePool, Source};
use crate::legs::ServerLeg;
use arc_swap::ArcSwap;
use helios_proto::model::{Health, NodeState, Overrides, PoolMode, Role, Settings, Snapshot};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A snapshot with the pool of each node, in the same order.
pub struct View {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// One pool per node of the snapshot.
    pub pools: Vec<Arc<NodePool>>,
}

/// Settings of one session: the general ones with its user's and database's instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// Pool mode.
    pub mode: PoolMode,
    /// Longest statement.
    pub query_timeout: Option<Duration>,
    /// Longest pause in a transaction.
    pub idle_in_transaction_timeout: Option<Duration>,
    /// Longest pause outside a transaction.
    pub client_idle_timeout: Option<Duration>,
    /// Limits of the session's identity on each node.
    pub caps: Caps,
}

/// The view in force. Readers never lock.
pub struct Pools {
    current: Arc<ArcSwap<View>>,
    /// Where shares of the nodes' budgets come from.
    source: Source,
    /// TLS towards servers.
    leg: ServerLeg,
    change: Mutex<()>,
    /// Revision in force, for those who wait for the next.
    revision: watch::Sender<u64>,
}

impl View {
    /// The general settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.snapshot.settings
    }

    /// The settings for one user and database.
    #[must_use]
    pub fn session_settings(&self, user: &[u8], database: &[u8]) -> SessionSettings {
        let settings = self.settings();
        let none = Overrides::default();
        let of_user =
            settings.users.iter().find(|u| u.name.as_bytes() == user).map_or(&none, |u| &u.overrides);
        let of_db =
            settings.databases.iter().find(|d| d.name.as_bytes() == database).map_or(&none, |d| &d.overrides);
        SessionSettings {
            mode: of_user.mode.or(of_db.mode).unwrap_or(settings.pool.mode),
            query_timeout: of_user
                .query_timeout
                .or(of_db.query_timeout)
                .unwrap_or(settings.limits.query_timeout),
            idle_in_transaction_timeout: of_user
                .idle_in_transaction_timeout
                .or(of_db.idle_in_transaction_timeout)
                .unwrap_or(settings.limits.idle_in_transaction_timeout),
            client_idle_timeout: settings.limits.client_idle_timeout,
            caps: Caps { user: of_user.pool_size, database: of_db.pool_size },
        }
    }

    /// Limits of an identity on each node.
    #[must_use]
    pub fn caps(&self, identity: &Identity) -> Caps {
        self.session_settings(&identity.user, &identity.database).caps
    }

    /// Nodes that may be asked what each of them knows: the primary, then the others that are up. One that no probe has seen
    /// may be another cluster's.
    pub fn askable(&self) -> impl Iterator<Item = usize> {
        let primary = self.snapshot.primary;
        let nodes = self.snapshot.nodes.iter().enumerate();
        let others = nodes.filter(move |(i, node)| Some(*i) != primary && node.health == Health::Up);
        primary.into_iter().chain(others.map(|(i, _)| i))
    }

    /// Name of a node.
    #[must_use]
    pub fn name(&self, node: usize) -> &str {
        self.snapshot.nodes.get(node).map_or("none", |state| state.node.name.as_str())
    }
}

impl Pools {
    /// Pools for a first snapshot.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, source: Source, leg: ServerLeg) -> Self {
        let revision = watch::Sender::new(snapshot.revision);
        let view = bind(snapshot, &[], (source, &leg));
        let (current, change) = (Arc::new(ArcSwap::from_pointee(view)), Mutex::new(()));
        Self { current, source, leg, change, revision }
    }

    /// A share of a node's budget is granted; one of a node that is not known here yet will come again.
    pub fn grant(&self, node: &str, granted: Granted) {
        if let Some(pool) = self.view().pools.iter().find(|pool| pool.node.name.as_str() == node) {
            pool.set_share(granted);
        }
    }

    /// Where readers that look often keep their own cached copy of the view.
    #[must_use]
    pub fn shared(&self) -> Arc<ArcSwap<View>> {
        Arc::clone(&self.current)
    }

    /// The view in force.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// What waits for a switchover goes on, since its time is up; whether anything did.
    pub fn release_holds(&self) -> bool {
        self.view().pools.iter().filter(|pool| pool.release_hold()).count() > 0
    }

    /// Ends when a snapshot after this revision is in force.
    pub async fn newer_than(&self, revision: u64) {
        // It cannot be closed: the sender is here.
        let _ = self.revision.subscribe().wait_for(|now| *now > revision).await;
    }

    /// Puts a newer snapshot in force; an older one is ignored. Whether sessions have to look at their server connections:
    /// a node went down, or a hold began or ended.
    pub fn apply(&self, snapshot: Arc<Snapshot>) -> bool {
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.view();
        if snapshot.revision <= old.snapshot.revision {
            return false;
        }
        let view = Arc::new(bind(snapshot, &old.pools, (self.source, &self.leg)));
        self.current.store(Arc::clone(&view));
        for pool in &old.pools {
            if !view.pools.iter().any(|kept| Arc::ptr_eq(kept, pool)) {
                pool.retire();
            }
        }
        let mut look = flush_failed(&old, &view);
        cut_superseded(&old, &view);
        look |= old.snapshot.hold != view.snapshot.hold;
        self.revision.send_replace(view.snapshot.revision);
        look
    }
}

/// A node that went down, or stopped being the primary, keeps no idle connections from before. Whether one went down.
fn flush_failed(old: &View, new: &View) -> bool {
    let mut any = false;
    for (state, pool) in new.snapshot.nodes.iter().zip(&new.pools) {
        let failed = pool.set_down(state.health == Health::Down);
        any |= failed;
        let before = old.snapshot.nodes.iter().find(|before| before.node == state.node);
        let demoted = before.is_some_and(|b| b.role == Role::Primary && state.role != Role::Primary);
        if failed || demoted {
            pool.flush_idle();
        }
    }
    any
}

/// When another node has become the primary, every connection to the old one ends now: what is open there may still
/// look well, and would be lost.
fn cut_superseded(old: &View, new: &View) {
    let Some(before) = old.snapshot.last_primary.as_ref() else { return };
    if new.snapshot.last_primary.as_ref() == Some(before) {
        return;
    }
    if let Some(pool) = new.pools.iter().find(|pool| pool.node.name == *before) {
        tracing::info!(node = %before, "another node is the primary: cutting the connections to this one");
        pool.cut();
    }
}

fn bind(snapshot: Arc<Snapshot>, old: &[Arc<NodePool>], (source, leg): (Source, &ServerLeg)) -> View {
    let (settings, now) = (&snapshot.settings, Instant::now());
    let pool = |state: &NodeState| {
        let node = &state.node;
        let same = |pool: &&Arc<NodePool>| {
            (&pool.node.name, &pool.node.host, pool.node.port) == (&node.name, &node.host, node.port)
        };
        let pool = match old.iter().find(same) {
            Some(pool) => Arc::clone(pool),
            None => NodePool::new(Arc::clone(node), settings.pool.max_pool_size, (source, leg)),
        };
        let held = snapshot.hold.as_ref().is_some_and(|hold| hold.node == node.name && hold.until > now);
        pool.obey(&state.ops, held, node.max_connections, settings);
        pool
    };
    let pools = snapshot.nodes.iter().map(pool).collect();
    View { snapshot, pools }
}
