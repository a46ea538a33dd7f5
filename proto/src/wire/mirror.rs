//! What a data plane holds of its control plane's configuration, as it was sent: takes a whole snapshot, a delta or a
//! topology, and says what follows. Pure; the time is passed in. After a delta that does not fit it takes nothing but a
//! whole snapshot, so that nothing is put on top of what the control plane does not know.

use std::time::Instant;

use super::accept::{Accepted, Refused, accept, accept_topology};
use super::delta::{Configuration, Misfit};
use super::v1;
use crate::model::Snapshot;

/// What is held.
#[derive(Default)]
pub struct Mirror {
    /// Hash of the resources in force, as they were sent; empty: not from a control plane.
    sha256: Vec<u8>,
    /// The resources, once this stream has brought them.
    held: Option<Configuration>,
    /// A whole snapshot has been asked for.
    waits: bool,
}

/// What follows from a message.
pub enum Verdict {
    /// Put this in force, and acknowledge.
    Take(Box<Accepted>),
    /// It is in force already: acknowledge.
    Same,
    /// Acknowledge what is in force, with this reason.
    Refuse(Refused),
    /// Ask for a whole snapshot.
    Resync(Misfit),
    /// A whole snapshot is on its way.
    Ignore,
}

impl Mirror {
    /// Holds what has this hash, of an earlier life.
    #[must_use]
    pub const fn new(sha256: Vec<u8>) -> Self {
        Self { sha256, held: None, waits: false }
    }

    /// Hash of the resources in force, as they were sent.
    #[must_use]
    pub fn sha256(&self) -> &[u8] {
        &self.sha256
    }

    /// Another stream: it begins with a whole snapshot.
    pub fn begin(&mut self) {
        (self.held, self.waits) = (None, false);
    }

    /// A whole snapshot has come; `force` is in force.
    pub fn full(&mut self, full: v1::Full, force: &Snapshot, now: Instant) -> Verdict {
        self.waits = false;
        let sent = Configuration::sent(&full);
        let revision = full.topology.as_ref().map_or(0, |topology| topology.revision);
        if !self.sha256.is_empty() && revision == force.revision && sent.sha256 == self.sha256 {
            self.held = Some(sent);
            return Verdict::Same;
        }
        self.judge((full, sent), force, now)
    }

    /// A change of the configuration has come.
    pub fn delta(&mut self, delta: v1::Delta, force: &Snapshot, now: Instant) -> Verdict {
        if self.waits {
            return Verdict::Ignore;
        }
        let made = self.held.as_ref().ok_or(Misfit::Base).and_then(|held| held.with(delta));
        match made {
            Ok(full) => {
                let sent = Configuration::sent(&full);
                self.judge((full, sent), force, now)
            }
            Err(misfit) => {
                self.waits = true;
                Verdict::Resync(misfit)
            }
        }
    }

    /// What is known about the nodes has come.
    #[must_use]
    pub fn topology(&self, sent: &v1::Topology, force: &Snapshot, now: Instant) -> Verdict {
        if self.waits {
            return Verdict::Ignore;
        }
        match accept_topology(sent, force, now) {
            Ok(snapshot) => Verdict::Take(Box::new(Accepted { snapshot, rejected: Vec::new() })),
            Err(refused) => Verdict::Refuse(refused),
        }
    }

    /// What is refused as a whole leaves everything as it is: the next delta will not fit, and ask for all.
    fn judge(&mut self, (full, sent): (v1::Full, Configuration), force: &Snapshot, now: Instant) -> Verdict {
        match accept(full, Some(force), now) {
            Ok(accepted) => {
                self.sha256.clone_from(&sent.sha256);
                self.held = Some(sent);
                Verdict::Take(Box::new(accepted))
            }
            Err(refused) => Verdict::Refuse(refused),
        }
    }
}
