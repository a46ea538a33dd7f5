//! Strategies: one of several nodes that may all serve a read. Owner: one worker.
//! Knows nothing of SQL and of roles; never keeps more than a few numbers a node.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use helios_proto::model::{NodeName, NodeState, ReadStrategy, Snapshot};

/// What a data plane itself sees of the nodes of its snapshot, by index.
pub trait Loads {
    /// Server connections to the node that are busy now.
    fn busy(&self, node: usize) -> u32;

    /// Whether this data plane has just seen the node fail, whatever the health checks say.
    fn suspect(&self, node: usize) -> bool;
}

/// State of the strategies: counters and a small random generator.
#[derive(Debug)]
pub struct Picker {
    turn: usize,
    /// Smooth weighted round robin: what each node is owed, by name since indexes change with the snapshot.
    credit: Vec<(NodeName, i64)>,
    random: u64,
}

/// What every strategy looks at.
pub(super) struct Choosing<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) loads: &'a dyn Loads,
    pub(super) now: Instant,
}

/// Weights are scaled by this, so that a slow start has steps even for weight 1.
const SCALE: u64 = 1000;
/// A node in its slow start gets at least this part of its weight: one in a hundred.
const SLOWEST: u64 = 10;
/// Entries of `credit`; more than this are forgotten, which only starts the turns anew.
const MOST_CREDITS: usize = 4096;

// === impl Choosing ===

impl Choosing<'_> {
    fn node(&self, index: usize) -> Option<&NodeState> {
        self.snapshot.nodes.get(index)
    }

    /// How much of its weight a node gets, in thousandths.
    fn start(&self, index: usize) -> u64 {
        let slow = self.snapshot.settings.balancer.slow_start;
        let Some(since) = self.node(index).and_then(|n| n.recovered_at) else { return SCALE };
        let elapsed = self.now.saturating_duration_since(since);
        if elapsed >= slow {
            return SCALE;
        }
        let part = u128::from(SCALE).saturating_mul(elapsed.as_nanos()).checked_div(slow.as_nanos());
        part.and_then(|p| u64::try_from(p).ok()).unwrap_or(SCALE).clamp(SLOWEST, SCALE)
    }

    /// Weight times slow start, at least 1: nodes of weight 0 come here only if there are no others.
    fn weight(&self, index: usize) -> u64 {
        let configured = self.node(index).map_or(1, NodeState::weight).max(1);
        u64::from(configured).saturating_mul(self.start(index))
    }
}

// === impl Picker ===

impl Picker {
    /// Starts at a random point, so that the workers and data planes of a fleet do not go in step.
    #[must_use]
    pub fn new() -> Self {
        Self::seeded(RandomState::new().hash_one(0_u8))
    }

    /// A picker whose choices can be foretold, for tests and simulation.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { turn: usize::try_from(seed >> 33).unwrap_or_default(), credit: Vec::new(), random: seed | 1 }
    }

    /// One of `candidates`; `None` only if there are none.
    pub(super) fn pick(&mut self, of: &Choosing<'_>, candidates: Candidates) -> Option<usize> {
        if candidates.count() < 2 {
            return candidates.iter().next();
        }
        match of.snapshot.settings.balancer.read_strategy {
            ReadStrategy::RoundRobin => self.round_robin(of, candidates),
            ReadStrategy::WeightedRoundRobin => self.weighted_round_robin(of, candidates),
            ReadStrategy::LeastConnections => self.lowest(of, candidates, |i| u64::from(of.loads.busy(i))),
            ReadStrategy::LatencyBased => {
                let median = median_latency(of, candidates);
                let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX).max(1);
                self.lowest(of, candidates, |i| {
                    nanos(of.node(i).and_then(|n| n.latency).or(median).unwrap_or(Duration::from_millis(1)))
                })
            }
            ReadStrategy::Random => self.random(of, candidates),
        }
    }

    /// xorshift64*: fast, and far from secret.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d).checked_rem(bound).unwrap_or(0)
    }

    /// Each in turn; a node in its slow start is passed over as often as its start is short of whole.
    fn round_robin(&mut self, of: &Choosing<'_>, candidates: Candidates) -> Option<usize> {
        for _ in 0..candidates.count() {
            self.turn = self.turn.wrapping_add(1);
            let at = self.turn.checked_rem(candidates.count())?;
            let index = candidates.iter().nth(at)?;
            if self.below(SCALE) < of.start(index) {
                return Some(index);
            }
        }
        candidates.iter().max_by_key(|i| of.start(*i))
    }

    /// Smooth: weights 5, 1, 1 give a a b a c a a, not five in a row.
    fn weighted_round_robin(&mut self, of: &Choosing<'_>, candidates: Candidates) -> Option<usize> {
        if self.credit.len() > MOST_CREDITS {
            self.credit.clear();
        }
        let mut total = 0_i64;
        let mut best: Option<(usize, usize, i64)> = None;
        for index in candidates.iter() {
            let name = &of.node(index)?.node.name;
            let weight = i64::try_from(of.weight(index)).unwrap_or(i64::MAX);
            total = total.saturating_add(weight);
            let at = self.credit_of(name, index);
            let credit = self.credit.get_mut(at)?;
            credit.1 = credit.1.saturating_add(weight);
            if best.is_none_or(|(_, _, most)| credit.1 > most) {
                best = Some((index, at, credit.1));
            }
        }
        let (index, at, _) = best?;
        let credit = self.credit.get_mut(at)?;
        credit.1 = credit.1.saturating_sub(total);
        Some(index)
    }

    /// Where the credit of a node is kept: mostly at its own index.
    fn credit_of(&mut self, name: &NodeName, index: usize) -> usize {
        if self.credit.get(index).is_some_and(|(n, _)| n == name) {
            return index;
        }
        if let Some(at) = self.credit.iter().position(|(n, _)| n == name) {
            return at;
        }
        self.credit.push((name.clone(), 0));
        self.credit.len().saturating_sub(1)
    }

    /// The lowest cost relative to weight; ties at random, in proportion to weight.
    fn lowest(
        &mut self,
        of: &Choosing<'_>,
        candidates: Candidates,
        cost: impl Fn(usize) -> u64,
    ) -> Option<usize> {
        let mut best: Option<(usize, u128, u128)> = None;
        let mut tied = 0_u64;
        for index in candidates.iter() {
            let share = of.weight(index);
            let (cost, weight) = (u128::from(cost(index)), u128::from(share));
            let order = best.map(|(_, c, w)| cost.saturating_mul(w).cmp(&c.saturating_mul(weight)));
            match order {
                None | Some(std::cmp::Ordering::Less) => {
                    tied = share;
                    best = Some((index, cost, weight));
                }
                Some(std::cmp::Ordering::Equal) => {
                    tied = tied.saturating_add(share);
                    if self.below(tied) < share {
                        best = Some((index, cost, weight));
                    }
                }
                Some(std::cmp::Ordering::Greater) => {}
            }
        }
        best.map(|(index, _, _)| index)
    }

    fn random(&mut self, of: &Choosing<'_>, candidates: Candidates) -> Option<usize> {
        let total = candidates.iter().fold(0_u64, |sum, i| sum.saturating_add(of.weight(i)));
        let mut left = self.below(total);
        for index in candidates.iter() {
            let weight = of.weight(index);
            if left < weight {
                return Some(index);
            }
            left = left.saturating_sub(weight);
        }
        candidates.iter().next()
    }
}

impl Default for Picker {
    fn default() -> Self {
        Self::new()
    }
}

/// What a node of unknown latency is taken for: the median of the known ones.
fn median_latency(of: &Choosing<'_>, candidates: Candidates) -> Option<Duration> {
    let known = || candidates.iter().filter_map(|i| of.node(i).and_then(|n| n.latency));
    let count = known().count();
    // The median is the value with at most half below it; quadratic, for a handful of nodes, to keep off the heap.
    known().filter(|d| known().filter(|e| e < d).count().saturating_mul(2) <= count).max()
}

/// A set of node indexes, the first 128 of a snapshot, on the stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Candidates(u128);

// === impl Candidates ===

impl Candidates {
    /// More nodes than this take no reads.
    pub(super) const MOST: usize = 128;

    pub(super) fn add(&mut self, index: usize) {
        self.0 |= Self::bit(index);
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn count(self) -> usize {
        usize::try_from(self.0.count_ones()).unwrap_or_default()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let index = usize::try_from(left.trailing_zeros()).ok().filter(|_| left != 0);
            left &= left.wrapping_sub(1);
            index
        })
    }

    fn bit(index: usize) -> u128 {
        u32::try_from(index).ok().and_then(|i| 1_u128.checked_shl(i)).unwrap_or(0)
    }
}
