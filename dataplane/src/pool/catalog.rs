//! Looks at `pg_proc` of every database in use, so that reads that call the user's own immutable or stable functions may
//! leave the primary. One task, on the control runtime; it borrows a server connection as a session would. Only
//! `pg_catalog` is named in what it asks, so that no search_path has a say. Never writes.

use super::identity::Identities;
use super::node::Request;
use super::sweep::{NO_WORKER, open};
use super::{Checkout, Grant, Identity, NodePool, Outcome, Pools, Waiter, wait};
use crate::server::ServerConn;
use crate::server::ask::{Row, ask};
use helios_proto::model::PoolMode;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How often new databases are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long what was seen is believed.
const REFRESH: Duration = Duration::from_secs(60);
/// Longest look at one database.
const LONGEST: Duration = Duration::from_secs(5);
/// A database with more names is not remembered: its functions count as volatile.
const MOST_NAMES: usize = 50_000;

/// Functions, aggregates and window functions that are not PostgreSQL's own, by name: whether all are safe. An aggregate
/// is what its parts are.
const FUNCTIONS: &str = "select p.proname, pg_catalog.bool_and(p.provolatile operator(pg_catalog.<>) 'v' \
     and p.prokind operator(pg_catalog.<>) 'p' and not exists (select from pg_catalog.pg_aggregate a, pg_catalog.pg_proc f \
     where a.aggfnoid operator(pg_catalog.=) p.oid and f.provolatile operator(pg_catalog.=) 'v' \
     and (f.oid operator(pg_catalog.=) a.aggtransfn or f.oid operator(pg_catalog.=) a.aggfinalfn \
     or f.oid operator(pg_catalog.=) a.aggcombinefn))) \
     from pg_catalog.pg_proc p where p.oid operator(pg_catalog.>=) 16384 group by p.proname limit 50001";

/// Runs until stopped.
pub async fn run(pools: Arc<Pools>, identities: Arc<Identities>, stop: CancellationToken) {
    let mut seen: HashMap<Vec<u8>, Instant> = HashMap::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let view = pools.view();
        if !view.settings().balancer.read_write_split {
            continue;
        }
        let mut live = identities.live();
        // In session mode every statement stays where the session is.
        live.retain(|i| view.session_settings(&i.user, &i.database).mode != PoolMode::Session);
        for identity in due(&live, &mut seen) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = look(&pools, &identity) => {}
            }
        }
    }
}

/// One identity for each database that has to be looked at, which is noted as done; databases out of use are forgotten.
fn due(live: &[Arc<Identity>], seen: &mut HashMap<Vec<u8>, Instant>) -> Vec<Arc<Identity>> {
    seen.retain(|database, at| at.elapsed() < REFRESH && live.iter().any(|i| i.database == *database));
    let mut due = Vec::new();
    for identity in live {
        if !seen.contains_key(&identity.database) {
            seen.insert(identity.database.clone(), Instant::now());
            due.push(Arc::clone(identity));
        }
    }
    due
}

/// Looks at the database of an identity; what cannot be seen now stays as it was.
async fn look(pools: &Pools, identity: &Arc<Identity>) {
    let rows = match timeout(LONGEST, rows(pools, identity, FUNCTIONS, false)).await {
        Ok(Some(rows)) => rows,
        Ok(None) | Err(_) => return tracing::debug!("the functions of a database could not be looked at"),
    };
    let most = rows.len() <= MOST_NAMES;
    if !most {
        tracing::warn!(most = MOST_NAMES, "a database has too many functions: all count as volatile");
    }
    let names = rows.into_iter().filter(|_| most).filter_map(named);
    if identity.functions.set(names) {
        tracing::debug!(names = identity.functions.len(), "the functions of a database have changed");
    }
}

/// The name of a function, and whether it is safe.
fn named(row: Row) -> Option<(Box<[u8]>, bool)> {
    let [name, safe]: [_; 2] = row.try_into().ok()?;
    Some((name?.into(), safe.as_deref() == Some(b"t")))
}

/// What a query of the catalog says, on the primary or on any node that can be asked; `None`: nothing now.
pub(crate) async fn rows(
    pools: &Pools,
    identity: &Arc<Identity>,
    sql: &str,
    on_primary: bool,
) -> Option<Vec<Row>> {
    let view = pools.view();
    let node = if on_primary { view.snapshot.primary } else { view.askable().next() };
    let pool = view.pools.get(node?)?;
    let waiter = Waiter::new(NO_WORKER);
    let request =
        Request { identity, waiter: &waiter, settings: None, caps: view.caps(identity), timeout: LONGEST };
    let lifetime = view.settings().pool.max_lifetime;
    let mut conn = match pool.checkout(&request) {
        Checkout::Ready(conn) => conn.adopt(NO_WORKER).ok()?,
        Checkout::Dial(slot) => open(slot, NO_WORKER, lifetime).await.ok()?,
        Checkout::Away | Checkout::Retired => return None,
        Checkout::Wait => match wait(pool, &waiter).await {
            Outcome::Granted(Grant::Conn(conn)) => conn.adopt(NO_WORKER).ok()?,
            Outcome::Granted(Grant::Dial(slot)) => open(slot, NO_WORKER, lifetime).await.ok()?,
            Outcome::Expired | Outcome::Retired => return None,
        },
    };
    let rows = ask(&mut conn.io, sql).await;
    give_back(pool, conn, rows)
}

/// After an answer the connection goes on; without one it is closed.
fn give_back<T>(pool: &Arc<NodePool>, conn: Box<ServerConn>, answer: std::io::Result<T>) -> Option<T> {
    match answer {
        Ok(answer) => {
            pool.put_back(conn);
            Some(answer)
        }
        Err(error) => {
            tracing::debug!(node = %pool.node.name, %error, "a look at a catalog failed");
            conn.close();
            None
        }
    }
}
