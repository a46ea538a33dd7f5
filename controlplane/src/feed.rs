//! What happens, for whoever watches: a bounded ring that forgets what a slow watcher did not read, and says so.
//! One task turns differences between snapshots into words. Never holds a secret.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use helios_proto::model::{NodeState, Snapshot};
use helios_proto::wire::v1;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::store::unix_ms;

pub use v1::event::Kind;

/// Events that a watcher may be behind.
const RING: usize = 1024;

/// Events as they happen.
pub struct Feed {
    events: broadcast::Sender<v1::Event>,
    /// Of the snapshot that was current last.
    revision: AtomicU64,
}

impl Feed {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { events: broadcast::Sender::new(RING), revision: AtomicU64::new(0) })
    }

    /// What happens from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<v1::Event> {
        self.events.subscribe()
    }

    /// An event that happens now.
    #[must_use]
    pub fn event(&self, kind: Kind, subject: &str, text: &str) -> v1::Event {
        v1::Event {
            at_unix_ms: unix_ms(),
            kind: kind.into(),
            subject: subject.to_owned(),
            text: text.to_owned(),
            revision: self.revision.load(Ordering::Relaxed),
        }
    }

    /// Tells whoever listens.
    pub fn tell(&self, kind: Kind, subject: &str, text: &str) {
        // An error says that nobody listens.
        let _ = self.events.send(self.event(kind, subject, text));
    }

    /// Tells the differences from snapshot to snapshot.
    pub async fn follow(
        self: Arc<Self>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        stop: CancellationToken,
    ) {
        let mut before = Arc::clone(&snapshots.borrow_and_update());
        loop {
            self.revision.store(before.revision, Ordering::Relaxed);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
            }
            let now = Arc::clone(&snapshots.borrow_and_update());
            self.revision.store(now.revision, Ordering::Relaxed);
            for (kind, subject, text) in differences(&before, &now) {
                self.tell(kind, &subject, &text);
            }
            before = now;
        }
    }
}

fn differences(before: &Snapshot, now: &Snapshot) -> Vec<(Kind, String, String)> {
    let mut found = Vec::new();
    let name = |snapshot: &Snapshot| snapshot.primary().map(|node| node.node.name.clone());
    let (old, new) = (name(before), name(now));
    if old != new {
        found.push(match &new {
            Some(name) => (Kind::Topology, name.to_string(), format!("is the primary, epoch {}", now.epoch)),
            None => (Kind::Topology, String::new(), "no primary: writes wait".to_owned()),
        });
    }
    for state in &now.nodes {
        let was = before.nodes.iter().find(|was| was.node.name == state.node.name);
        found.extend(was.map(|was| changes(was, state)).unwrap_or_else(|| {
            vec![(Kind::Change, state.node.name.to_string(), format!("added as {}", state.node.role))]
        }));
    }
    let gone = |was: &&NodeState| now.nodes.iter().all(|state| state.node.name != was.node.name);
    let removed = before.nodes.iter().filter(gone);
    found.extend(removed.map(|was| (Kind::Change, was.node.name.to_string(), "removed".to_owned())));
    found
}

fn changes(was: &NodeState, state: &NodeState) -> Vec<(Kind, String, String)> {
    let mut found = Vec::new();
    let mut tell = |kind, text: String| found.push((kind, state.node.name.to_string(), text));
    if was.role != state.role {
        tell(Kind::Topology, format!("role {} -> {}", was.role, state.role));
    }
    if was.health != state.health {
        let why = state.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        tell(Kind::Health, format!("{} -> {}{why}", was.health, state.health));
    }
    found
}
