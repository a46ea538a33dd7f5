//! The embedded control plane: the same core as `helios-controlplane`, inside this process, fed by the file. The only
//! module that imports it.

use crate::worker::TellEvidence;
use helios_controlplane::Handle;
use helios_proto::model::{Snapshot, Spec};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A control plane in this process.
pub struct Standalone {
    handle: Handle,
}

impl Standalone {
    /// Starts its tasks on the runtime that runs this.
    #[must_use]
    pub fn start(spec: Spec, stop: CancellationToken, tracker: &TaskTracker) -> Self {
        Self { handle: helios_controlplane::start(spec, stop, tracker) }
    }

    /// Snapshots as they are published; the first is there already.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.handle.snapshots.clone()
    }

    /// Puts a new configuration in force.
    pub fn reload(&self, spec: Spec) {
        self.handle.events.reload(spec);
    }

    /// Where sessions report what they saw of a node; never waits.
    #[must_use]
    pub fn evidence(&self) -> TellEvidence {
        let events = self.handle.events.clone();
        Box::new(move |node, evidence| events.evidence(node.clone(), evidence))
    }
}
