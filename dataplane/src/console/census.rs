//! What is there at one moment: clients, server connections, pools by database and user. Taken from the registry and the
//! pools in short looks, one lock at a time, so that the numbers of two places may be a moment apart. Never waits.

use crate::pool::{Identity, View};
use crate::registry::{ClientKind, Seen};
use crate::server::ServerIdent;
use crate::worker::Shared;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What is there.
pub struct Census {
    /// When.
    pub now: Instant,
    wall: SystemTime,
    /// The snapshot with its pools.
    pub view: Arc<View>,
    /// Clients that have logged in, the oldest first.
    pub clients: Vec<Seen>,
    /// Server connections that rest in a pool.
    pub idle: Vec<(Arc<ServerIdent>, Arc<Identity>, Instant)>,
    identities: Vec<Arc<Identity>>,
}

/// Database and user.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Connections of one database and user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pool {
    /// Clients that do not wait.
    pub active: u32,
    /// Clients that wait for a server connection.
    pub waiting: u32,
    /// Server connections that sessions hold.
    pub held: u32,
    /// Server connections that rest.
    pub idle: u32,
    /// Places of server connections, whatever they do.
    places: u32,
    /// The longest wait.
    pub longest: Duration,
}

impl Pool {
    /// Server connections that are being opened, or cleaned for their next session.
    pub const fn others(&self) -> u32 {
        self.places.saturating_sub(self.held).saturating_sub(self.idle)
    }

    /// Server connections in all.
    pub fn servers(&self) -> u32 {
        self.places.max(self.held.saturating_add(self.idle))
    }
}

impl Census {
    /// Looks around.
    pub fn take(shared: &Shared) -> Self {
        let view = shared.pools.view();
        let mut clients = shared.registry.seen();
        clients.sort_by_key(|seen| seen.handle.client().map(|client| client.since));
        let mut idle: Vec<_> = view.pools.iter().flat_map(|pool| pool.idle_servers()).collect();
        idle.sort_by_key(|(ident, ..)| ident.id);
        let identities = shared.identities.in_use();
        Self { now: Instant::now(), wall: SystemTime::now(), view, clients, idle, identities }
    }

    /// A moment of the process by the clock on the wall.
    pub fn at(&self, moment: Instant) -> SystemTime {
        let ago = self.now.saturating_duration_since(moment);
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }

    /// Clients that use the pools, the replication protocol or the console.
    pub fn count(&self, kind: ClientKind) -> usize {
        self.clients.iter().filter(|seen| seen.handle.client().is_some_and(|c| c.kind == kind)).count()
    }

    /// Pools by database and user.
    pub fn pools(&self) -> BTreeMap<Pair, Pool> {
        let mut pools: BTreeMap<Pair, Pool> = BTreeMap::new();
        let key = |identity: &Identity| (identity.database.clone(), identity.user.clone());
        let add = |n: &mut u32, more: u32| *n = n.saturating_add(more);
        for seen in &self.clients {
            let Some(client) = seen.handle.client().filter(|c| c.kind == ClientKind::Pooled) else {
                continue;
            };
            let pool = pools.entry(key(&client.identity)).or_default();
            match seen.queued {
                Some(since) => {
                    add(&mut pool.waiting, 1);
                    pool.longest = pool.longest.max(self.now.saturating_duration_since(since));
                }
                None => add(&mut pool.active, 1),
            }
            add(&mut pool.held, seen.server.is_some().into());
        }
        for (_, identity, _) in &self.idle {
            add(&mut pools.entry(key(identity)).or_default().idle, 1);
        }
        for identity in self.identities.iter().filter(|identity| identity.places() > 0) {
            add(&mut pools.entry(key(identity)).or_default().places, identity.places());
        }
        pools
    }
}
