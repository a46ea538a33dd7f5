//! What went to data planes and what came from them, counted for /metrics. Never decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a message to a data plane carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Full,
    /// What changed of the configuration.
    Delta,
    /// What is known about the nodes.
    Topology,
}

/// Where a data plane reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In calls of their own.
    Report,
    /// On the stream, as older data planes do.
    Discovery,
}

/// The counters; each only grows.
#[derive(Debug, Default)]
pub struct Counts {
    messages: [AtomicU64; 3],
    reports: [AtomicU64; 2],
    /// Messages made; each is sent to many.
    pub encoded: AtomicU64,
    /// Deltas that did not fit what a data plane holds.
    pub resyncs: AtomicU64,
    /// Reports that had to wait, because one data plane sent too many.
    pub slowed: AtomicU64,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Full, Self::Delta, Self::Topology];

    /// As a label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
            Self::Topology => "topology",
        }
    }
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 2] = [Self::Report, Self::Discovery];

    /// As a label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Discovery => "discovery",
        }
    }
}

impl Counts {
    /// Counts a message that is about to be sent.
    pub fn message(&self, kind: Kind) {
        let [full, delta, topology] = &self.messages;
        add(match kind {
            Kind::Full => full,
            Kind::Delta => delta,
            Kind::Topology => topology,
        });
    }

    /// Counts a report.
    pub fn report(&self, way: Way) {
        let [report, discovery] = &self.reports;
        add(match way {
            Way::Report => report,
            Way::Discovery => discovery,
        });
    }

    /// Messages sent so far, by kind.
    pub fn messages(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Kind::ALL.iter().zip(&self.messages).map(|(kind, count)| (kind.word(), count.load(Ordering::Relaxed)))
    }

    /// Reports taken so far, by way.
    pub fn reports(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Way::ALL.iter().zip(&self.reports).map(|(way, count)| (way.word(), count.load(Ordering::Relaxed)))
    }
}

/// One more.
pub fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
