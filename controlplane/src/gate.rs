//! Between the cluster and the publisher: where several control planes share a store, a change of primary is latched there
//! before any data plane hears of it, so that no two of them tell different stories. What cannot be latched in time is
//! not told: data planes are sent away, to a control plane that can, or to their own probes. Owner: the coordinator.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::store::Latch;

/// Data planes wait this long for a change to be latched; then they are better off without this control plane.
const PATIENCE: Duration = Duration::from_millis(500);

/// The gate.
pub(crate) struct Gate {
    /// What the store has; `None`: no gate.
    latched: Option<Latch>,
    wanted: watch::Sender<Latch>,
    leading: watch::Sender<bool>,
    /// Since when something waits to be latched.
    since: Option<Instant>,
}

/// Whether something may be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It may.
    Open,
    /// It may, and so may what was held back.
    Opened,
    /// It has to wait.
    Shut,
}

impl Gate {
    /// A gate, and what others see of it: whether data planes may be told, and what should be latched.
    pub fn new(latched: Option<Latch>) -> (Self, watch::Receiver<bool>, watch::Receiver<Latch>) {
        let (leading, led) = watch::channel(latched.is_none());
        let (wanted, wants) = watch::channel(latched.clone().unwrap_or_default());
        (Self { latched, wanted, leading, since: None }, led, wants)
    }

    /// Whether nothing waits to be latched.
    pub const fn is_open(&self) -> bool {
        self.since.is_none()
    }

    /// When patience ends.
    pub fn due(&self) -> Option<Instant> {
        self.since.filter(|_| *self.leading.borrow()).map(|since| since + PATIENCE)
    }

    /// The store has this now.
    pub fn latched(&mut self, latch: Latch) {
        if self.latched.is_some() {
            self.latched = Some(latch);
        }
    }

    /// Asks for what has to be latched, if anything, and says whether the cluster may be shown.
    pub fn pass(&mut self, cluster: &Cluster, now: Instant) -> Pass {
        let Some(latched) = &self.latched else { return Pass::Open };
        let latch = cluster.latch();
        let agrees = latch.agrees(latched);
        self.wanted.send_if_modified(|wanted| {
            let news = *wanted != latch;
            *wanted = latch;
            news
        });
        if agrees {
            self.leading.send_if_modified(|leading| !std::mem::replace(leading, true));
            return if self.since.take().is_some() { Pass::Opened } else { Pass::Open };
        }
        self.since.get_or_insert(now);
        Pass::Shut
    }

    /// Patience has ended: data planes are sent away.
    pub fn give_up(&mut self) {
        tracing::error!(
            "the store does not take a change of primary: data planes are on their own until it does"
        );
        self.leading.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Event;
    use helios_proto::config;

    const TEXT: &str =
        "[[nodes]]\nhost = \"a\"\nrole = \"primary\"\n[[nodes]]\nhost = \"b\"\nrole = \"standby\"\n";

    #[test]
    fn a_change_is_shown_once_it_is_latched_and_what_others_latch_overrules() {
        let spec = config::parse(TEXT, "test", &|_| None).unwrap().spec;
        let (mut cluster, now) = (Cluster::new(spec, &Latch::default()), Instant::now());
        let (mut gate, leading, wanted) = Gate::new(Some(Latch::default()));
        assert_eq!(gate.pass(&cluster, now), Pass::Shut);
        assert!(!*leading.borrow() && gate.due().is_none(), "nobody was told anything yet");
        let ours = wanted.borrow().clone();
        assert_eq!((ours.epoch, ours.primary.as_deref()), (1, Some("primary")));
        gate.latched(ours.clone());
        assert_eq!([gate.pass(&cluster, now), gate.pass(&cluster, now)], [Pass::Opened, Pass::Open]);
        assert!(*leading.borrow());

        // Another control plane was faster.
        let theirs = Latch { epoch: 2, primary: Some("standby".to_owned()), ..ours.clone() };
        gate.latched(theirs.clone());
        let _ = cluster.apply(Event::Latched(theirs.clone()), now);
        assert_eq!((gate.pass(&cluster, now), cluster.latch()), (Pass::Open, theirs.clone()));

        // A store that went back: nothing is told until it is where this control plane is.
        gate.latched(ours.clone());
        let _ = cluster.apply(Event::Latched(ours), now);
        assert_eq!((gate.pass(&cluster, now), cluster.latch()), (Pass::Shut, theirs.clone()));
        assert_eq!((gate.due(), wanted.borrow().clone()), (Some(now + PATIENCE), theirs));
        gate.give_up();
        assert!(!*leading.borrow() && gate.due().is_none() && !gate.is_open());
    }
}
