//! Looks at the catalog of every database in use, on its primary: every few seconds at its fingerprint, and where that has
//! changed at all of it. Another catalog may mean other rows for the same text: everything is thrown away. One task.

use super::facts::{CATALOG, FINGERPRINT, Facts, TOLD, told};
use super::{Cache, Database, Seen};
use crate::pool::{Identities, Identity, Pools, catalog};
use helios_proto::config::Logical;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How often it looks at what is in doubt.
const TICK: Duration = Duration::from_secs(1);
/// How often it looks at what is not.
const REFRESH: Duration = Duration::from_secs(5);
/// Longest look at one database.
const LONGEST: Duration = Duration::from_secs(2);

/// Runs until stopped.
pub(super) async fn run(cache: Arc<Cache>, pools: (Arc<Pools>, Arc<Identities>), stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (pools, identities) = pools;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let mut looked: Vec<Vec<u8>> = Vec::new();
        for identity in identities.live() {
            let database = cache.database(&identity.database);
            if looked.contains(&database.name) || !is_due(&database) {
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                found = timeout(LONGEST, look(&cache, &database, &pools, &identity)) => {
                    if matches!(found, Ok(Some(()))) {
                        looked.push(database.name.clone());
                    } else {
                        tracing::debug!("the catalog of a database could not be looked at: nothing of it is kept");
                    }
                }
            }
        }
    }
}

fn is_due(database: &Database) -> bool {
    let seen = database.facts.load();
    seen.as_ref().is_none_or(|seen| {
        seen.at.elapsed() >= REFRESH || seen.doubts != database.doubts.load(Ordering::SeqCst)
    })
}

async fn look(cache: &Cache, database: &Database, pools: &Pools, identity: &Arc<Identity>) -> Option<()> {
    // Asked first: what is changed from here on is in doubt again.
    let (mut doubts, at) = (database.doubts.load(Ordering::SeqCst), Instant::now());
    let rows = catalog::rows(pools, identity, FINGERPRINT, true).await?;
    let mut fingerprint = rows.into_iter().next()?.into_iter().next()??;
    let told = match &cache.settings.logical {
        Some(Logical { publication, .. }) => {
            let rows = catalog::rows(pools, identity, &TOLD.replace('$', publication), true).await?;
            let list = rows.into_iter().next()?.into_iter().next()?.unwrap_or_default();
            fingerprint.push(b'|');
            fingerprint.extend_from_slice(&list);
            Some(told(&list)?)
        }
        None => None,
    };
    // The fingerprint may not tell everything: after a doubt all of it is read.
    let same = |seen: &Arc<Seen>| seen.facts.fingerprint == fingerprint && seen.doubts == doubts;
    let known = database.facts.load_full().filter(same);
    let mut other = false;
    let facts = match known {
        Some(seen) => Arc::clone(&seen.facts),
        None => {
            let rows = catalog::rows(pools, identity, CATALOG, true).await?;
            let facts = Facts::read(fingerprint, rows)?;
            let facts = Arc::new(match &told {
                Some(told) => facts.only(told),
                None => facts,
            });
            // It may have been another one for as long as it was not looked at.
            other = database
                .facts
                .load()
                .as_ref()
                .is_some_and(|seen| seen.facts.fingerprint != facts.fingerprint);
            facts
        }
    };
    if other {
        // What sessions have judged by the old one counts no more.
        database.doubt();
        doubts = doubts.saturating_add(1);
    }
    database.stamps.retain(|table| facts.has(table));
    database.facts.store(Some(Arc::new(Seen { facts, at, doubts })));
    if other {
        cache.flush();
    }
    Some(())
}
