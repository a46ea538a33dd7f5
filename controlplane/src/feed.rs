//! What happens, for whoever watches: a bounded ring that forgets what a slow watcher did not read, and says so; and the
//! last events for whoever asks later.
//! One task turns differences between snapshots into words. Never holds a secret.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use helios_proto::model::{NodeState, Snapshot};
use helios_proto::wire::v1;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::store::unix_ms;

pub use v1::event::Kind;

/// Events that a watcher may be behind.
const RING: usize = 1024;
/// Past events remembered.
const REMEMBERED: usize = 1000;

/// Events as they happen.
pub struct Feed {
    events: broadcast::Sender<v1::Event>,
    /// The last ones, oldest first; held while sending, so that past and future meet without gap or repetition.
    past: Mutex<VecDeque<v1::Event>>,
    /// Of the snapshot that was current last.
    revision: AtomicU64,
}

impl Feed {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let (events, past) = (broadcast::Sender::new(RING), Mutex::default());
        Arc::new(Self { events, past, revision: AtomicU64::new(0) })
    }

    fn past(&self) -> MutexGuard<'_, VecDeque<v1::Event>> {
        // Events are whole, whoever panicked.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Past events, at most `limit`, oldest first.
    #[must_use]
    pub fn recent(&self, limit: usize) -> Vec<v1::Event> {
        last(&self.past(), limit)
    }

    /// Past events, at most `recent`, and what happens from then on.
    #[must_use]
    pub fn subscribe(&self, recent: usize) -> (Vec<v1::Event>, broadcast::Receiver<v1::Event>) {
        let past = self.past();
        (last(&past, recent), self.events.subscribe())
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

    /// Tells whoever listens, and whoever asks later.
    pub fn tell(&self, kind: Kind, subject: &str, text: &str) {
        let event = self.event(kind, subject, text);
        let mut past = self.past();
        if past.len() >= REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // An error says that nobody listens.
        let _ = self.events.send(event);
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

fn last(past: &VecDeque<v1::Event>, most: usize) -> Vec<v1::Event> {
    past.iter().skip(past.len().saturating_sub(most)).cloned().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_bounded_and_meets_what_comes() {
        let feed = Feed::new();
        for i in 0..=REMEMBERED {
            feed.tell(Kind::Change, "", &i.to_string());
        }
        let texts = |events: Vec<v1::Event>| events.into_iter().map(|event| event.text).collect::<Vec<_>>();
        assert_eq!(feed.recent(usize::MAX).len(), REMEMBERED);
        assert_eq!(texts(feed.recent(2)), ["999", "1000"]);
        let (past, mut coming) = feed.subscribe(1);
        feed.tell(Kind::Change, "", "next");
        assert_eq!(
            (texts(past), coming.try_recv().unwrap().text),
            (vec!["1000".to_owned()], "next".to_owned())
        );
        assert!(coming.try_recv().is_err());
        assert!(feed.recent(0).is_empty());
    }
}
