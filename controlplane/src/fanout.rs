//! From a snapshot to the bytes that data planes get: made once, and sent to all who need the same. What a data plane needs
//! follows from what it got last: nothing yet, all of it; another configuration, the difference; the same one, only what
//! is known about the nodes. Synchronous; the time is passed in. Never sends, never queues.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use helios_proto::model::{NodeState, Snapshot};
use helios_proto::wire::v1::{self, cp_msg};
use helios_proto::wire::{self, Configuration};
use prost::Message as _;

use crate::counts::{Counts, Kind, add};

/// Ages in a message are those of when it was made: an older one is made anew.
const FRESH: Duration = Duration::from_millis(100);
/// Configurations from which the difference is remembered. Data planes that are further behind have it made for each.
const BASES: usize = 8;

/// Makes messages.
pub struct Fanout {
    now: Mutex<Option<Now>>,
    counts: Arc<Counts>,
}

/// The newest snapshot that was asked for, and what was made of it.
struct Now {
    snapshot: Arc<Snapshot>,
    configuration: Arc<Configuration>,
    made: Vec<Made>,
}

struct Made {
    step: Step,
    at: Instant,
    kind: Kind,
    bytes: Bytes,
}

/// What leads from what a data plane has to what is now.
#[derive(Clone)]
enum Step {
    Full,
    Topology,
    /// From this configuration.
    Delta(Arc<Configuration>),
}

/// What a data plane gets, and what it holds then.
pub struct Message {
    /// A `CpMsg` without its nonce.
    pub bytes: Bytes,
    /// What it shows.
    pub snapshot: Arc<Snapshot>,
    /// Of that snapshot: the same object for as long as nothing of it changes.
    pub configuration: Arc<Configuration>,
}

impl Fanout {
    /// Nothing made yet.
    #[must_use]
    pub fn new(counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self { now: Mutex::default(), counts })
    }

    /// What leads from the configuration that a data plane got last, if any, to this snapshot or a newer one.
    pub fn message(
        &self,
        snapshot: &Arc<Snapshot>,
        (last, deltas): (Option<&Arc<Configuration>>, bool),
        at: Instant,
    ) -> Message {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match now.as_mut() {
            Some(now) => {
                now.advance(snapshot);
                now
            }
            None => now.insert(Now::at(snapshot)),
        };
        let step = match last {
            Some(last) if Arc::ptr_eq(last, &now.configuration) => Step::Topology,
            Some(last) if deltas => Step::Delta(Arc::clone(last)),
            Some(_) | None => Step::Full,
        };
        let (kind, bytes) = now.get(&step, at, &self.counts);
        self.counts.message(kind);
        let (snapshot, configuration) = (Arc::clone(&now.snapshot), Arc::clone(&now.configuration));
        Message { bytes, snapshot, configuration }
    }
}

impl Now {
    fn at(snapshot: &Arc<Snapshot>) -> Self {
        let configuration = Arc::new(Configuration::of(snapshot));
        Self { snapshot: Arc::clone(snapshot), configuration, made: Vec::new() }
    }

    /// Somebody may still look at an older snapshot: what is newer counts.
    fn advance(&mut self, snapshot: &Arc<Snapshot>) {
        if snapshot.revision <= self.snapshot.revision {
            return;
        }
        self.made.clear();
        if !same_configuration(&self.snapshot, snapshot) {
            self.configuration = Arc::new(Configuration::of(snapshot));
        }
        self.snapshot = Arc::clone(snapshot);
    }

    fn get(&mut self, step: &Step, at: Instant, counts: &Counts) -> (Kind, Bytes) {
        self.made.retain(|made| at.saturating_duration_since(made.at) < FRESH);
        if let Some(made) = self.made.iter().find(|made| made.step.same(step)) {
            return (made.kind, made.bytes.clone());
        }
        let (kind, msg) = self.make(step, at);
        let bytes = encode(msg);
        add(&counts.encoded);
        if self.made.len() < BASES {
            self.made.push(Made { step: step.clone(), at, kind, bytes: bytes.clone() });
        }
        (kind, bytes)
    }

    fn make(&self, step: &Step, at: Instant) -> (Kind, cp_msg::Msg) {
        let topology = wire::topology(&self.snapshot, at);
        let full = |topology| (Kind::Full, cp_msg::Msg::Full(self.configuration.full(topology)));
        match step {
            Step::Topology => (Kind::Topology, cp_msg::Msg::Topology(topology)),
            Step::Full => full(topology),
            Step::Delta(base) => match self.configuration.delta(base) {
                Some(delta) => {
                    let delta = v1::Delta { topology: Some(topology), ..delta };
                    (Kind::Delta, cp_msg::Msg::Delta(delta))
                }
                None => full(topology),
            },
        }
    }
}

impl Step {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Full, Self::Full) | (Self::Topology, Self::Topology) => true,
            (Self::Delta(a), Self::Delta(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A message as it is sent, but for the nonce, which every stream counts for itself.
#[must_use]
pub fn encode(msg: cp_msg::Msg) -> Bytes {
    v1::CpMsg { nonce: 0, msg: Some(msg) }.encode_to_vec().into()
}

/// Whether two snapshots differ in nothing but what is known about the nodes.
fn same_configuration(a: &Snapshot, b: &Snapshot) -> bool {
    let nodes = |(a, b): (&NodeState, &NodeState)| a.node == b.node && a.ops == b.ops;
    a.config_revision == b.config_revision
        && Arc::ptr_eq(&a.settings, &b.settings)
        && a.nodes.len() == b.nodes.len()
        && a.nodes.iter().zip(&b.nodes).all(nodes)
}

#[cfg(test)]
mod tests;
