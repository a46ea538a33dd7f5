//! One node inside the cluster: what its probes and connections showed, and its state as data planes see it.
//! Owner: `Cluster`. Knows nothing about the other nodes, except what it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{Health, HealthSettings, Node, NodeName, NodeOps, NodeState, Role};
use tracing::{error, info, warn};

use crate::health::{Facts, Failure, Reply, Verdict};
use crate::primary::{Claim, Quarantine};

/// Pause between two probes of a node while it is hunted.
const HUNT_PAUSE: Duration = Duration::from_millis(50);
/// A hunt that has not settled by then goes on at the usual pace.
const LONGEST_HUNT: Duration = Duration::from_secs(30);
/// Pause after that if there is no primary: writes wait for one.
const SEEK_PAUSE: Duration = Duration::from_millis(250);

/// One node.
pub(crate) struct Member {
    /// As data planes see it.
    pub state: NodeState,
    pub verdict: Verdict,
    /// What the last probe that logged in saw; kept over a few failures, not while the node is down.
    pub facts: Option<Facts>,
    /// What the last probe or connection showed; forgotten when the node goes down.
    pub hot_standby: Option<bool>,
    /// Good probes still needed to dispel the suspicion of a data plane.
    pub suspect: u32,
    /// The pause between two probes if the node should be probed often.
    pub hunted: Option<Duration>,
    /// Newest timeline that it was seen to follow, since it was last down or took writes.
    follows: Option<u32>,
    /// Good probes in a row that saw it on a timeline older than the last primary's.
    behind: u32,
    /// Probes in a row without facts.
    without_facts: u32,
    facts_at: Option<Instant>,
    lag_at: Option<Instant>,
    unused: Option<Quarantine>,
    unsettled_since: Option<Instant>,
}

/// What routing obeys of a node; a change of it is published at once.
pub(crate) type Outline = (Arc<Node>, Role, Health, Option<Instant>);

/// What operators have set on a node, as data planes see it: a hold is not the node's, but the snapshot's.
pub(crate) fn shown(ops: &BTreeMap<NodeName, NodeOps>, name: &NodeName) -> NodeOps {
    NodeOps { hold: None, ..ops.get(name).copied().unwrap_or_default() }
}

impl Member {
    pub fn new(node: Arc<Node>, ops: &BTreeMap<NodeName, NodeOps>) -> Self {
        let ops = shown(ops, &node.name);
        Self {
            state: NodeState::unknown(node, ops),
            verdict: Verdict::new(),
            facts: None,
            hot_standby: None,
            suspect: 0,
            hunted: None,
            follows: None,
            behind: 0,
            without_facts: 0,
            facts_at: None,
            lag_at: None,
            unused: None,
            unsettled_since: None,
        }
    }

    /// A node of which somebody else has told the state.
    pub fn resume(state: &NodeState) -> Self {
        let demoted = state.node.role == Role::Primary && state.role == Role::Standby;
        let unused = state.last_error.as_deref().and_then(Quarantine::from_words);
        Self {
            state: state.clone(),
            verdict: Verdict::resume(state.health),
            hot_standby: (demoted || unused == Some(Quarantine::LeftBehind)).then_some(true),
            behind: if unused == Some(Quarantine::LeftBehind) { u32::MAX } else { 0 },
            unused,
            ..Self::new(Arc::clone(&state.node), &BTreeMap::new())
        }
    }

    /// Why the node was quarantined, as long as no probe has seen it otherwise: that it is back does not mean that it
    /// follows. Of one that was left behind the count says it.
    pub fn quarantine_kept(&self) -> Option<Quarantine> {
        self.unused.filter(|why| self.facts.is_none() && *why != Quarantine::LeftBehind)
    }

    /// Whether it was last seen to take writes.
    pub fn takes_writes(&self) -> bool {
        self.facts.is_some_and(|facts| !facts.in_recovery)
    }

    /// Whether the last that was heard of it was bad.
    pub const fn is_doubted(&self) -> bool {
        self.suspect > 0 || !self.verdict.is_settled()
    }

    /// Whether a configured node is this server under this name.
    pub fn is_same_server(&self, node: &Node) -> bool {
        let own = &self.state.node;
        own.name == node.name && own.host == node.host && own.port == node.port
    }

    pub fn outline(&self) -> Outline {
        let NodeState { node, role, health, recovered_at, .. } = &self.state;
        (Arc::clone(node), *role, *health, *recovered_at)
    }

    /// `threshold`: so many probes in a row make it certain that it was left behind.
    pub fn claim(&self, threshold: u32) -> Claim<'_> {
        Claim {
            role: self.state.node.role,
            down: self.verdict.health() == Health::Down,
            probed: self.state.probed_at.is_some(),
            facts: self.facts.as_ref(),
            hot_standby: self.hot_standby,
            barred: self.quarantine_kept().is_some(),
            left_behind: self.behind >= threshold,
        }
    }

    /// Counts the probes in a row that saw a standby on an older timeline than `timeline`, the last primary's. A standby
    /// follows a promotion a moment later than the promotion itself; one that was left behind does not.
    pub fn count_behind(&mut self, timeline: u32, now: Instant) {
        if self.sampled(now).is_some() || self.verdict.health() == Health::Down {
            let behind = self.follows.is_some_and(|follows| follows < timeline);
            self.behind = if behind { self.behind.saturating_add(1) } else { 0 };
        }
    }

    /// Takes a probe into account.
    pub fn observe(&mut self, outcome: Result<Reply, Failure>, settings: &HealthSettings, now: Instant) {
        self.state.probed_at = Some(now);
        let (serves, facts) = match outcome {
            Ok(reply) => {
                self.state.latency = Some(reply.latency);
                self.state.last_error = None;
                (true, reply.facts)
            }
            Err(failure) => {
                self.state.last_error = Some(failure.text);
                (failure.kind.serves(), None)
            }
        };
        self.verdict.observe(serves, settings);
        if let Some(facts) = facts {
            self.facts = Some(facts);
            self.facts_at = Some(now);
            self.hot_standby = Some(facts.in_recovery);
            self.without_facts = 0;
            self.follows = match (facts.in_recovery, facts.streams) {
                (false, _) => None,
                (true, true) => facts.follows,
                (true, false) => self.follows.max(facts.follows),
            };
        } else {
            self.without_facts = self.without_facts.saturating_add(1);
        }
        let down = self.verdict.health() == Health::Down;
        if down || self.without_facts >= settings.failure_threshold {
            self.facts = None;
        }
        if down {
            (self.hot_standby, self.follows) = (None, None);
        }
        self.suspect = if down || !serves { 0 } else { self.suspect.saturating_sub(1) };
    }

    /// The facts, if they were read just now.
    pub fn sampled(&self, now: Instant) -> Option<&Facts> {
        self.facts.as_ref().filter(|_| self.facts_at == Some(now))
    }

    /// The position replayed, and when it was read.
    pub fn replayed(&self) -> Option<(u64, Instant)> {
        let facts = self.facts.as_ref().filter(|facts| facts.in_recovery)?;
        facts.replayed.zip(self.facts_at)
    }

    /// Sets the lag; without a position it is kept for a while, then unknown. A primary has none.
    pub fn set_lag(
        &mut self,
        position: Option<(u64, Option<Duration>)>,
        primary: bool,
        stale: Duration,
        now: Instant,
    ) {
        if let Some((bytes, time)) = position {
            (self.state.lag_bytes, self.state.lag, self.lag_at) = (Some(bytes), time, Some(now));
        } else if primary || self.lag_at.is_none_or(|at| now.saturating_duration_since(at) >= stale) {
            (self.state.lag_bytes, self.state.lag, self.lag_at) = (None, None, None);
        }
    }

    /// Brings role and health up to date. `primary`: this node is the one; `superseded`: there is one.
    pub fn settle(&mut self, primary: bool, superseded: bool, unused: Option<Quarantine>, now: Instant) {
        let name = &self.state.node.name;
        let role = match self.state.node.role {
            _ if primary => Role::Primary,
            Role::Primary if superseded || self.hot_standby == Some(true) => Role::Standby,
            configured => configured,
        };
        if role != self.state.role {
            info!(node = %name, from = %self.state.role, to = %role, "role changed");
            self.state.role = role;
        }
        if unused != self.unused {
            match unused {
                Some(Quarantine::LeftBehind) => {
                    warn!(node = %name, reason = Quarantine::LeftBehind.words(), "node is quarantined");
                }
                Some(why) => error!(node = %name, reason = why.words(), "node is quarantined"),
                None => info!(node = %name, "node is no longer quarantined"),
            }
            if unused.is_none() && self.state.last_error.as_deref() == self.unused.map(Quarantine::words) {
                self.state.last_error = None;
            }
            self.unused = unused;
        }
        if let Some(why) = unused
            && self.state.last_error.is_none()
        {
            self.state.last_error = Some(why.words().into());
        }
        let health = if unused.is_some() { Health::Down } else { self.verdict.health() };
        if self.state.health == Health::Down && health == Health::Up {
            self.state.recovered_at = Some(now);
        }
        self.state.health = health;
    }

    /// Decides whether the node should be probed often. `seek`: there is no primary, or it is in doubt.
    pub fn settle_hunt(&mut self, seek: bool, now: Instant) {
        let probed = self.state.probed_at.is_some();
        let sought = seek && probed && self.state.node.role != Role::Replica;
        if sought || self.is_doubted() {
            let since = *self.unsettled_since.get_or_insert(now);
            let young = now.saturating_duration_since(since) < LONGEST_HUNT;
            self.hunted = if young { Some(HUNT_PAUSE) } else { sought.then_some(SEEK_PAUSE) };
        } else {
            self.unsettled_since = None;
            self.hunted = None;
        }
    }
}
