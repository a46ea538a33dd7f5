//! The talk with one member of etcd after another: load, watch from there, keep the lease. Owner of one task. Whatever
//! breaks or stays silent ends the talk, and the next one starts from a fresh load, with another member.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, DeleteOptions, GetOptions, WatchOptions, WatchStream};
use helios_proto::config::EtcdSettings;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::super::KEPT;
use super::Shared;
use super::hold::{Keeping, bounded};
use super::keys::Seen;

/// Pauses between rounds of members that do not answer grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Pause between two renewals of the lease.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Pause between two prunings.
const PRUNE: Duration = Duration::from_secs(10);
/// Lines of the audit log kept, and how many more may gather before the oldest go.
const RECORDS: (i64, i64) = (10_000, 1_000);

/// A talk that goes on.
struct Talk {
    client: Client,
    changes: WatchStream,
    keeping: Keeping,
    seen: Seen,
    pruned: Option<Instant>,
}

/// Talks until stopped, then gives up the lease.
pub(super) async fn run(shared: Arc<Shared>, settings: EtcdSettings, stop: CancellationToken) {
    let (mut pause, mut silent) = (PAUSES.0, 0);
    for endpoint in settings.endpoints.iter().cycle() {
        let began = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            began = begin(&shared, endpoint, &settings) => began,
        };
        let why = match began {
            Err(why) => why,
            Ok(mut talk) => {
                (pause, silent) = (PAUSES.0, 0);
                let ended = tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    why = talk.go_on(&shared) => Some(why),
                };
                shared.link.send_replace(None);
                let Some(why) = ended else {
                    shared.hold.give_back(&mut talk.client).await;
                    return;
                };
                tracing::info!(%endpoint, reason = %why, "etcd: looking for another member");
                continue;
            }
        };
        silent += 1;
        tracing::debug!(%endpoint, reason = %why, "etcd: a member does not answer");
        if silent >= settings.endpoints.len() {
            shared.lost(&why);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            (pause, silent) = (pause.mul_f64(1.6).min(PAUSES.1), 0);
        }
    }
}

/// Connects, loads, and watches from there.
async fn begin(shared: &Shared, endpoint: &str, settings: &EtcdSettings) -> Result<Talk, String> {
    let address = endpoint.trim_start_matches("http://");
    // The client hides why it cannot connect, and for how long.
    let reached = tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect(address)).await;
    reached
        .map_err(|_| format!("{address}: no connection"))?
        .map_err(|error| format!("{address}: {error}"))?;
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(BEAT, BEAT * 2)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    let options = match &settings.login {
        Some((user, password)) => options.with_user(user, password.expose()),
        None => options,
    };
    let mut client = bounded("the login", Box::pin(Client::connect([endpoint], Some(options)))).await?;
    let keys = &shared.keys;
    let loaded =
        bounded("the first read", client.get(keys.live(), Some(GetOptions::new().with_prefix()))).await?;
    let revision = loaded.header().map_or(0, etcd_client::ResponseHeader::revision);
    let seen = Seen::load(keys, loaded.kvs()).map_err(|error| error.to_string())?;
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1).with_progress_notify();
    let changes = bounded("the watch", client.watch(keys.live(), Some(options))).await?;
    let keeping = shared.hold.take(&mut client, keys, &shared.name).await?;
    shared.show(&seen);
    shared.link.send_replace(Some(client.clone()));
    tracing::info!(%endpoint, revision, "etcd: connected");
    Ok(Talk { client, changes, keeping, seen, pruned: None })
}

impl Talk {
    /// Goes on until something breaks; what.
    async fn go_on(&mut self, shared: &Shared) -> String {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let went = tokio::select! {
                biased;
                () = shared.doubt.notified() => Err("a call was not answered".to_owned()),
                message = self.changes.message() => self.hear(shared, message).await,
                _ = beat.tick() => self.beat(shared).await,
            };
            if let Err(why) = went {
                return why;
            }
        }
    }

    async fn hear(
        &mut self,
        shared: &Shared,
        message: Result<Option<etcd_client::WatchResponse>, etcd_client::Error>,
    ) -> Result<(), String> {
        let changes = match message {
            Ok(Some(changes)) => changes,
            Ok(None) => return Err("the watch ended".to_owned()),
            Err(error) => return Err(super::words(&error)),
        };
        if changes.compact_revision() > 0 {
            return Err("what was not heard yet is compacted".to_owned());
        }
        if changes.canceled() {
            return Err(format!("the watch was cancelled: {}", changes.cancel_reason()));
        }
        if changes.events().is_empty() {
            return Ok(());
        }
        self.seen.apply(&shared.keys, &changes).map_err(|error| error.to_string())?;
        shared.show(&self.seen);
        self.campaign(shared).await
    }

    async fn campaign(&mut self, shared: &Shared) -> Result<(), String> {
        match self.seen.view.leader {
            Some(_) => Ok(()),
            None => shared.hold.campaign(&mut self.client, &shared.keys, &shared.name).await,
        }
    }

    async fn beat(&mut self, shared: &Shared) -> Result<(), String> {
        shared.hold.renew(&mut self.keeping).await?;
        self.campaign(shared).await?;
        if shared.leads() && self.pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
            self.pruned = Some(Instant::now());
            self.prune(shared).await?;
        }
        Ok(())
    }

    /// Removes what is beyond the revisions and lines kept.
    async fn prune(&mut self, shared: &Shared) -> Result<(), String> {
        let (keys, kept) = (&shared.keys, u64::try_from(KEPT).unwrap_or(u64::MAX));
        let current = self.seen.view.document.as_ref().map_or(0, |document| document.meta.revision);
        if let Some(first) = current.checked_sub(kept).filter(|first| *first > 0) {
            for (from, to) in
                [(keys.history(0), keys.history(first + 1)), (keys.meta(0), keys.meta(first + 1))]
            {
                let range = DeleteOptions::new().with_range(to);
                bounded("the pruning", self.client.delete(from, Some(range))).await?;
            }
        }
        let all = GetOptions::new().with_prefix();
        let counted = self.client.get(keys.audit(), Some(all.clone().with_count_only()));
        let spare = bounded("the pruning", counted).await?.count() - RECORDS.0;
        if spare > RECORDS.1 {
            let oldest = self.client.get(keys.audit(), Some(all.with_keys_only().with_limit(spare)));
            let oldest = bounded("the pruning", oldest).await?;
            if let Some(last) = oldest.kvs().last() {
                let range = DeleteOptions::new().with_range(last.key());
                bounded("the pruning", self.client.delete(keys.audit(), Some(range))).await?;
            }
        }
        Ok(())
    }
}
