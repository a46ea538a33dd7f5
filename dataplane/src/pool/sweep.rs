//! The pools' one task: expires waits, closes connections that are old, unused or to an address
//! that the node has left, and keeps `min_idle` open.
//! Runs on the control runtime, so that no worker pays for it. Never touches a connection that is lent.

use super::node::{Age, NodePool, Slot};
use super::{Identities, Pools, View};
use crate::legs::Sealing;
use crate::server::dial::{self, Who};
use crate::server::{ServerConn, ServerIdent};
use crate::statements::Prepared;
use crate::stream::Stream;
use helios_tls::names;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often waits are checked against their deadline: the precision of `acquire_timeout_secs`.
const TICK: Duration = Duration::from_millis(50);
/// Ticks between two looks at idle connections.
const TRIM_EVERY: u32 = 20;
/// Worker number of connections that no worker has taken yet.
pub const NO_WORKER: usize = usize::MAX;

/// Runs until stopped.
pub async fn run(
    pools: Arc<Pools>,
    identities: Arc<Identities>,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks = 0u32;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let view = pools.view();
        let now = Instant::now();
        for pool in &view.pools {
            pool.expire(now);
            pool.keep_within(now);
            pool.knock(now);
        }
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TRIM_EVERY) {
            for pool in &view.pools {
                pool.follow_name(names::departures(&pool.node.host));
                trim(pool, &view, now);
            }
            prewarm(&view, &identities, &tracker);
        }
    }
}

fn trim(pool: &NodePool, view: &View, now: Instant) {
    let settings = &view.settings().pool;
    let age = |conn: &ServerConn| {
        if conn.expires.is_some_and(|at| at <= now) {
            return Age::Expired;
        }
        let idle = now.saturating_duration_since(conn.idle_since);
        if settings.idle_timeout.is_some_and(|limit| idle >= limit) { Age::Unused } else { Age::Young }
    };
    pool.take_old(settings.min_idle, age).into_iter().for_each(ServerConn::close);
}

fn prewarm(view: &View, identities: &Identities, tracker: &TaskTracker) {
    let least = view.settings().pool.min_idle;
    if least == 0 {
        return;
    }
    for identity in identities.live() {
        for pool in &view.pools {
            if let Some(slot) = pool.reserve(&identity, least, view.caps(&identity)) {
                let lifetime = view.settings().pool.max_lifetime;
                tracker.spawn(async move {
                    match open(slot, NO_WORKER, lifetime).await {
                        Ok(conn) => conn.slot.pool().clone().put_back(conn),
                        Err(error) => tracing::debug!(%error, "could not open an idle server connection"),
                    }
                });
            }
        }
    }
}

/// Opens the connection that a slot is for.
///
/// # Errors
/// See [`dial::DialError`].
pub async fn open(
    slot: Slot,
    worker: usize,
    lifetime: Option<Duration>,
) -> Result<Box<ServerConn>, dial::DialError> {
    let identity = Arc::clone(slot.identity());
    let who = Who { user: &identity.user, database: &identity.database, params: &identity.params };
    let (node, leg) = (&slot.pool().node, &slot.pool().leg);
    let opened = tokio::select! {
        biased;
        opened = dial::dial((node, leg), who, &identity.credential) => opened,
        // A frozen server would hold whoever waits for it until the timeout.
        () = slot.cut() => {
            let source = std::io::Error::other("another node has become the primary");
            Err(dial::DialError::Io { host: node.host.clone(), port: node.port, source })
        }
    };
    let (io, welcome) = opened.inspect_err(|error| {
        if let Some(refused) = error.refused() {
            slot.refuse(refused);
        }
    })?;
    Ok(established(io, &welcome, slot, worker, lifetime))
}

/// Wraps a connection that has just logged in.
#[must_use]
pub fn established(
    (io, sealing): (Stream, Option<Sealing>),
    welcome: &helios_pgwire::login::Welcome,
    mut slot: Slot,
    worker: usize,
    lifetime: Option<Duration>,
) -> Box<ServerConn> {
    let identity = Arc::clone(slot.identity());
    let greeting = identity.greet(welcome);
    slot.hold(io.tcp());
    slot.admit();
    let addr = io.tcp().peer_addr().unwrap_or_else(|_| ([0, 0, 0, 0], 0).into());
    let now = Instant::now();
    let ident = ServerIdent::new((addr, Some(&io)), (welcome.pid, welcome.key.clone()), sealing);
    Box::new(ServerConn {
        io,
        ident: Arc::new(ident),
        identity,
        worker,
        expires: lifetime.and_then(|limit| now.checked_add(jitter(limit, welcome.pid))),
        idle_since: now,
        needs_reset: false,
        settings: None,
        prepared: Prepared::default(),
        greeting,
        slot,
    })
}

/// Up to 10 % less than the limit, so that connections opened together do not close together.
fn jitter(limit: Duration, seed: u32) -> Duration {
    let tenth = limit / 10;
    limit.saturating_sub(tenth.mul_f64(f64::from(seed % 100) / 100.0))
}
