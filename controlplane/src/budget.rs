//! Connection budgets: who of the data planes may hold how many server connections to a node, so that together they
//! never hold more than its `max_connections`. Pure and synchronous: reports in, grants out, the time passed in; one of the
//! control planes allocates at a time ([`leading`] sees to that). Never sends, never waits, never reads a clock.
//!
//! What is taken from one data plane is given to another only after the first has confirmed that it holds it no more, or
//! after its lease and the time that busy connections get to end. See `node` for the arithmetic of one budget.

pub mod leading;
mod node;
#[cfg(test)]
mod tests;

pub use node::fair;

use node::Budget;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a grant holds, from when the report was sent that it answers.
pub const LEASE: Duration = Duration::from_secs(10);
/// How long after its lease a data plane lets busy connections end.
pub const GRACE: Duration = Duration::from_secs(30);
/// Added here to what a data plane counts.
const SKEW: Duration = Duration::from_secs(1);
/// From the answer to a report until nothing but the floor that it granted is held.
const ENDED: Duration = LEASE.saturating_add(SKEW).saturating_add(GRACE);
/// A data plane that is silent for longer takes no part in the sharing out; what it may hold stays its own.
const PRESENT: Duration = Duration::from_secs(3);
/// What a data plane wanted at most in this time counts as its need.
const PEAK: Duration = Duration::from_secs(10);
/// A data plane that is silent for longer is forgotten, with its floor.
const FORGET: Duration = Duration::from_secs(600);
/// Needs are counted no more often than this.
const ROUND: Duration = Duration::from_millis(500);
/// Data planes remembered; more are granted nothing.
const MOST: usize = 10_000;

/// A process that holds connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Name of the data plane.
    pub id: String,
    /// Another one after each start.
    pub boot: String,
}

/// How a data plane uses a node.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Name of the node.
    pub node: String,
    /// Connections open, being opened or being closed.
    pub held: u32,
    /// Connections in use, and sessions that wait for one.
    pub wanted: u32,
    /// Size of its pool, whatever is granted.
    pub size: u32,
    /// The share in force there; 0: it was granted none.
    pub granted: u32,
    /// What of it stays after the lease.
    pub floor: u32,
}

/// What a data plane says.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Counts its reports.
    pub beat: u64,
    /// Whose grants it obeys; 0: none.
    pub of: u64,
    /// The last ones of these that are in force there.
    pub number: u64,
    /// Its pools.
    pub usages: Vec<Usage>,
}

/// What a data plane gets of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Name of the node.
    pub node: String,
    /// Most connections.
    pub most: u32,
    /// What stays after the lease.
    pub floor: u32,
}

/// The answer to a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    /// Whose grants these are.
    pub of: u64,
    /// Grows.
    pub number: u64,
    /// The report's.
    pub beat: u64,
    /// Nodes that are missing stay as they are.
    pub shares: Vec<Share>,
}

/// How a budget stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Name of the node.
    pub node: String,
    /// The budget.
    pub limit: u32,
    /// What nobody may hold now.
    pub free: u32,
}

/// Shares out the budgets of all nodes.
#[derive(Debug)]
pub struct Allocator {
    of: u64,
    number: u64,
    /// Grants of earlier lives have ended; before that shares are handed back as they are.
    learned: Instant,
    /// Floors of earlier lives, whose holders may be silent, are forgotten.
    remembered: Instant,
    nodes: BTreeMap<String, Budget>,
}

impl Allocator {
    /// Nothing granted yet. `of`: this life, unlike any other. `first`: there was none before it; else it begins by learning
    /// what others have granted.
    #[must_use]
    pub fn new(of: u64, first: bool, now: Instant) -> Self {
        let after = |time| if first { now } else { now + time };
        let (learned, remembered) = (after(ENDED), after(FORGET + ENDED));
        Self { of, number: 0, learned, remembered, nodes: BTreeMap::new() }
    }

    /// The budgets as configured.
    pub fn configure<'a>(&mut self, limits: impl Iterator<Item = (&'a str, u32)>) {
        let mut before = std::mem::take(&mut self.nodes);
        for (name, limit) in limits {
            let mut budget = before.remove(name).unwrap_or_default();
            budget.limit = limit;
            self.nodes.insert(name.to_owned(), budget);
        }
    }

    /// Takes a report into account and answers it.
    pub fn answer(&mut self, who: &Who, report: &Report, now: Instant) -> Grants {
        self.number += 1;
        let confirmed = if report.of == self.of { report.number } else { 0 };
        let earlier = report.of != 0 && report.of != self.of;
        let (learning, unknown) = (now < self.learned, now < self.remembered);
        let mut shares = Vec::new();
        for usage in &report.usages {
            let Some(budget) = self.nodes.get_mut(&usage.node) else { continue };
            if !budget.hear(who, usage, (confirmed, earlier), now) {
                continue;
            }
            let share = if learning {
                budget.hand_back(who)
            } else {
                budget.count(unknown, now);
                Some(budget.allot(who, unknown, now))
            };
            let Some((most, floor)) = share else { continue };
            budget.sent(who, self.number, (most, floor), now);
            shares.push(Share { node: usage.node.clone(), most, floor });
        }
        Grants { of: self.of, number: self.number, beat: report.beat, shares }
    }

    /// How the budgets stand.
    #[must_use]
    pub fn standings(&self, now: Instant) -> Vec<Standing> {
        let unknown = now < self.remembered;
        let standing = |(node, budget): (&String, &Budget)| Standing {
            node: node.clone(),
            limit: budget.limit,
            free: if now < self.learned { 0 } else { budget.free(unknown, now) },
        };
        self.nodes.iter().map(standing).collect()
    }
}
