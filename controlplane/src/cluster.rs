//! The whole state of the control plane: nodes, verdicts, roles, the primary. Owner: the coordinator's loop.
//! [`Cluster::apply`] is synchronous and does no IO; time is passed in, so tests drive it without a runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{
    Authority, Evidence, Health, Hold, HoldOrder, Node, NodeName, NodeState, Role, Snapshot, Spec,
    TopologyKey,
};
use tracing::{error, info, warn};

use crate::authority::{Told, Word};
use crate::health::{Facts, Failure, FailureKind, Reply};
use crate::lag::Ring;
use crate::member::{Member, Outline, shown};
use crate::primary::{self, Claim, Decision, Doubt, Known, Lock, Quarantine, Vouched};
use crate::store::Latch;

pub(crate) use vouch::Objection;

/// Positions of two nodes are compared only if they were read within this time of each other.
const SAME_ROUND: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A probe ended. The node is the one probed: results of replaced nodes are ignored.
    Probed { node: Arc<Node>, outcome: Result<Reply, Failure> },
    /// A data plane saw something on its connections.
    Evidence { node: NodeName, evidence: Evidence },
    /// The configuration changed.
    Reload(Spec),
    /// A data plane holds this: an earlier life of this control plane was further, or the data plane went on alone.
    Held(Held),
    /// The store, which other control planes write as well, holds this.
    Latched(Latch),
    /// The authority outside was asked then, and this came of it.
    Told { asked: Instant, told: Told },
    /// An operator wants result caches emptied; when, in milliseconds since 1970.
    FlushCaches(u64),
}

/// What a data plane holds of the topology.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Revision of its snapshot.
    pub revision: u64,
    /// How far it is.
    pub key: TopologyKey,
    /// The last node that took writes.
    pub last_primary: Option<NodeName>,
    /// System identifier of the cluster.
    pub system: Option<u64>,
}

/// What an event changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    Nothing,
    /// Latency, lag or the time of a probe: may be published later.
    Measures,
    /// Something that routing obeys: published at once.
    State,
}

/// The state.
pub(crate) struct Cluster {
    spec: Spec,
    members: Vec<Member>,
    primary: Option<usize>,
    /// Name of the last primary, also while there is none.
    last_primary: Option<NodeName>,
    system: Option<u64>,
    /// Never goes back.
    key: TopologyKey,
    /// Every node that may be the primary has been probed, in this life or the one that this goes on from.
    looked: bool,
    doubt: Option<Doubt>,
    ring: Ring,
    /// Over at the latest when another node becomes the primary.
    hold: Option<Hold>,
    /// The order that it comes from, or came from.
    obeyed: Option<HoldOrder>,
    /// What the authority outside has said, where the configuration has one.
    word: Word,
    /// The pause between two questions to it if it should be asked often.
    asked_often: Option<Duration>,
    /// The last order to empty result caches.
    cache_flush: u64,
}

impl Cluster {
    /// A cluster of which nothing is known but its configuration, and what was latched in an earlier life.
    pub fn new(spec: Spec, latch: &Latch) -> Self {
        let members = spec.nodes.iter().map(|node| Member::new(Arc::clone(node), &spec.ops)).collect();
        let Latch { epoch, timeline, incarnation, .. } = *latch;
        let mut cluster = Self {
            spec,
            members,
            primary: None,
            last_primary: latch.primary.as_deref().map(NodeName::new),
            system: latch.system,
            key: TopologyKey { incarnation, timeline, epoch },
            looked: false,
            doubt: None,
            ring: Ring::default(),
            hold: None,
            obeyed: None,
            word: Word::default(),
            asked_often: None,
            cache_flush: 0,
        };
        let now = Instant::now();
        cluster.obey_hold(now);
        cluster.settle(now);
        cluster
    }

    /// Goes on from a snapshot that somebody else made: what it says of the nodes counts until a probe says more.
    pub fn resume(snapshot: &Snapshot) -> Self {
        let of = |state: &NodeState| (state.node.name.clone(), state.ops);
        let mut cluster = Self {
            spec: Spec {
                settings: Arc::clone(&snapshot.settings),
                health: snapshot.health.as_ref().clone(),
                nodes: snapshot.nodes.iter().map(|state| Arc::clone(&state.node)).collect(),
                ops: snapshot.nodes.iter().map(of).collect(),
                revision: snapshot.config_revision,
            },
            members: snapshot.nodes.iter().map(Member::resume).collect(),
            primary: snapshot.primary,
            last_primary: snapshot.last_primary.clone(),
            system: snapshot.system,
            key: snapshot.key(),
            looked: snapshot.primary.is_some(),
            doubt: None,
            ring: Ring::default(),
            hold: snapshot.hold.clone(),
            obeyed: None,
            word: Word::default(),
            asked_often: None,
            cache_flush: snapshot.cache_flush,
        };
        if snapshot.primary.is_none() {
            // Why there was none is not known here: everybody has to be asked first.
            cluster.members.iter_mut().for_each(|member| member.state.probed_at = None);
        }
        cluster.settle(Instant::now());
        cluster
    }

    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Index of the node that takes writes.
    pub const fn primary(&self) -> Option<usize> {
        self.primary
    }

    /// How far the topology is; never goes back.
    pub const fn key(&self) -> TopologyKey {
        self.key
    }

    /// The last node that took writes, also while there is none.
    pub const fn last_primary(&self) -> Option<&NodeName> {
        self.last_primary.as_ref()
    }

    /// System identifier of the cluster, once known.
    pub const fn system(&self) -> Option<u64> {
        self.system
    }

    /// When result caches were last ordered to be emptied.
    pub const fn cache_flush(&self) -> u64 {
        self.cache_flush
    }

    /// Work that waits for a switchover.
    pub const fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// What the authority outside has said; `None`: the configuration has none.
    pub fn authority(&self) -> Option<Authority> {
        self.spec.health.patroni.as_ref().map(|_| self.word.shown())
    }

    /// The nodes in configuration order, as data planes see them.
    pub fn states(&self) -> impl Iterator<Item = &NodeState> {
        self.members.iter().map(|member| &member.state)
    }

    /// Takes an event into account.
    pub fn apply(&mut self, event: Event, now: Instant) -> Change {
        let before = self.outline();
        let (least, probed) = match event {
            Event::Probed { node, outcome } => match self.probed(&node, outcome, now) {
                Some(index) => (Change::Measures, Some(index)),
                None => (Change::Nothing, None),
            },
            Event::Evidence { node, evidence } => {
                self.evidence(&node, evidence);
                (Change::Nothing, None)
            }
            Event::Reload(spec) => (self.reload(spec, now), None),
            Event::Held(held) => {
                self.learn(&held);
                (Change::State, None)
            }
            Event::Latched(latch) => {
                self.obey(&latch);
                (Change::Nothing, None)
            }
            Event::Told { asked, told } => {
                if self.spec.health.patroni.is_some() {
                    self.word.hear(asked, told);
                }
                (Change::Nothing, None)
            }
            Event::FlushCaches(at) => {
                // Another number than before, whatever the clock says.
                self.cache_flush = at.max(self.cache_flush.saturating_add(1));
                (Change::State, None)
            }
        };
        self.settle(now);
        if let Some(index) = probed {
            self.measure_lag(index, now);
        }
        if self.outline() == before { least } else { Change::State }
    }

    /// The pause between two probes of each node that should be probed often now, in configuration order.
    pub fn hunted(&self) -> impl Iterator<Item = Option<Duration>> {
        self.members.iter().map(|member| member.hunted)
    }

    /// The pause between two questions to the authority outside if it should be asked often now.
    pub const fn asked_often(&self) -> Option<Duration> {
        self.asked_often
    }

    /// Takes over what a data plane knows of the topology, if that is newer. It is believed about what has been, not
    /// about what is: who takes writes now is for probes to say.
    fn learn(&mut self, held: &Held) {
        let Held { key, last_primary, system, .. } = held;
        let other = |own: u64| system.is_some_and(|system| system != own);
        if *key <= self.key || key.incarnation == self.key.incarnation && self.system.is_some_and(other) {
            return;
        }
        if key.incarnation > self.key.incarnation {
            self.system = *system;
        }
        self.system = self.system.or(*system);
        self.key = TopologyKey { epoch: key.epoch.max(self.key.epoch), ..*key };
        if let Some(name) = last_primary
            && self.members.iter().any(|member| member.state.node.name == *name)
        {
            self.last_primary = Some(name.clone());
        }
    }

    /// What must not be forgotten.
    pub fn latch(&self) -> Latch {
        let TopologyKey { incarnation, timeline, epoch } = self.key;
        let primary = self.last_primary.as_ref().map(NodeName::to_string);
        Latch { snapshot: 0, epoch, timeline, incarnation, system: self.system, primary }
    }

    /// Takes over what is latched, unless this control plane is further: that has to be latched first. As far as it is
    /// believed, so far everybody is; who takes writes now is for probes to say.
    fn obey(&mut self, latch: &Latch) {
        if latch.key() < self.key {
            return;
        }
        self.key = latch.key();
        self.system = latch.system;
        self.last_primary = latch.primary.as_deref().map(NodeName::new);
    }

    fn outline(&self) -> (Option<usize>, TopologyKey, Vec<Outline>, Option<Authority>) {
        (self.primary, self.key, self.members.iter().map(Member::outline).collect(), self.authority())
    }

    /// Takes a probe into account; the index of its node, `None` if it is not this cluster's any more.
    fn probed(&mut self, node: &Node, outcome: Result<Reply, Failure>, now: Instant) -> Option<usize> {
        let index = self.members.iter().position(|member| member.is_same_server(node))?;
        let expected = self.primary == Some(index) || self.lock() == Lock::Held(index);
        let member = self.members.get_mut(index)?;
        let was = member.verdict.health();
        if let Err(failure) = &outcome
            && failure.kind == FailureKind::Misconfigured
            && member.state.last_error.as_ref() != Some(&failure.text)
        {
            warn!(node = %member.state.node.name, error = %failure.text, "probe is misconfigured");
        }
        let wrote = member.takes_writes();
        member.observe(outcome, &self.spec.health, now);
        if !wrote && member.takes_writes() && !expected {
            // Who was promoted meanwhile may hold the lock by now.
            self.word.doubt(now);
        }
        member.count_behind(self.key.timeline, now);
        let name = &member.state.node.name;
        match (was, member.verdict.health()) {
            (Health::Unknown | Health::Down, Health::Up) => info!(node = %name, "node is up"),
            (Health::Unknown | Health::Up, Health::Down) => {
                let error = member.state.last_error.as_deref().unwrap_or_default();
                warn!(node = %name, error, "node is down");
            }
            _ => {}
        }
        Some(index)
    }

    fn evidence(&mut self, name: &NodeName, evidence: Evidence) {
        let goal = self.spec.health.success_threshold;
        let Some(index) = self.members.iter().position(|member| member.state.node.name == *name) else {
            return;
        };
        let concerns_roles = match evidence {
            Evidence::ConnectFailed | Evidence::ConnectionLost => self.primary == Some(index),
            Evidence::InHotStandby(standby) => {
                let Some(member) = self.members.get_mut(index) else { return };
                let news = member.hot_standby != Some(standby);
                if member.facts.is_none() {
                    member.hot_standby = Some(standby);
                }
                if !news {
                    return;
                }
                true
            }
        };
        // When the primary is in doubt the next one is sought on the others.
        for (i, member) in self.members.iter_mut().enumerate() {
            if i == index || (concerns_roles && member.state.node.role != Role::Replica) {
                member.suspect = goal;
            }
        }
    }

    /// Takes a new configuration; a node with the same name and address keeps what is known about it.
    fn reload(&mut self, spec: Spec, now: Instant) -> Change {
        if spec == self.spec {
            return Change::Nothing;
        }
        if spec.health.patroni != self.spec.health.patroni {
            self.word = Word::default();
        }
        let forget = spec.health.credential.is_none() && self.spec.health.credential.is_some();
        let mut old = std::mem::take(&mut self.members);
        for node in &spec.nodes {
            let kept = old.iter().position(|member| member.is_same_server(node)).map(|i| old.swap_remove(i));
            let mut member = kept.unwrap_or_else(|| Member::new(Arc::clone(node), &spec.ops));
            member.state.node = Arc::clone(node);
            member.state.ops = shown(&spec.ops, &node.name);
            if forget {
                member.facts = None;
            }
            self.members.push(member);
        }
        self.spec = spec;
        self.obey_hold(now);
        // The index may mean another node now; `settle` finds the primary again.
        self.primary = None;
        if self.index_of_last_primary().is_none() {
            self.last_primary = None;
        }
        if self.members.iter().all(|member| member.state.probed_at.is_none()) {
            // Another cluster: its timelines have nothing to do with those of the old one.
            (self.system, self.key.timeline, self.looked) = (None, 0, false);
            self.key.incarnation = self.key.incarnation.saturating_add(1);
        }
        info!(nodes = self.members.len(), "configuration reloaded");
        Change::State
    }

    /// New work for a node waits if a mark says so, for as long as it says from when it was first heard.
    fn obey_hold(&mut self, now: Instant) {
        let mut orders = self.spec.ops.iter().filter_map(|(name, ops)| Some((name, ops.hold?)));
        let Some((name, order)) = orders.next() else {
            self.hold = None;
            return;
        };
        if self.obeyed != Some(order) {
            self.obeyed = Some(order);
            self.hold = Some(Hold { node: name.clone(), until: now + Duration::from_millis(order.for_ms) });
        }
    }

    fn index_of_last_primary(&self) -> Option<usize> {
        let name = self.last_primary.as_ref()?;
        self.members.iter().position(|member| member.state.node.name == *name)
    }

    /// Decides anew who is the primary, and brings every node's role, health and hunting up to date.
    fn settle(&mut self, now: Instant) {
        let threshold = self.spec.health.failure_threshold;
        let claims: Vec<Claim<'_>> = self.members.iter().map(|member| member.claim(threshold)).collect();
        let lock = self.lock();
        let probed = claims.iter().all(|claim| claim.role == Role::Replica || claim.probed);
        self.looked |= probed && lock != Lock::Unheard;
        let vouched = self.vouched();
        let known = Known {
            vouched: vouched.map(|(vouched, _)| vouched),
            lock,
            primary: self.index_of_last_primary(),
            system: self.system,
            timeline: self.key.timeline,
            looked: self.looked,
            contested: matches!(self.doubt, Some(Doubt::Split | Doubt::Unpromoted)),
        };
        let asks = self.spec.health.credential.is_some();
        let decision = primary::decide(&claims, &known, asks);
        if let Some((Vouched { index, shown: true, .. }, accepted)) = vouched
            && decision == Decision::Primary(index)
            && accepted.to.0 > self.key.incarnation
        {
            // What was known before has nothing to do with what is now.
            (self.key.incarnation, self.key.timeline) = accepted.to;
            self.system = Some(accepted.system);
        }
        let facts: Option<Facts> = match decision {
            Decision::Primary(i) => claims.get(i).and_then(|claim| claim.facts.copied()),
            Decision::Nobody(_) => None,
        };
        if let Some(facts) = facts {
            self.system.get_or_insert(facts.system);
            self.key.timeline = self.key.timeline.max(facts.timeline);
        }
        let known = Known { system: self.system, timeline: self.key.timeline, ..known };
        let mut unused: Vec<_> = claims
            .iter()
            .enumerate()
            .zip(&self.members)
            .map(|((i, claim), member)| {
                let kept = || member.quarantine_kept().filter(|_| asks && decision != Decision::Primary(i));
                primary::quarantine(i, claim, &known, &decision).or_else(kept)
            })
            .collect();
        let behind = primary::left_behind(&claims, &decision, &unused);
        for (unused, _) in unused.iter_mut().zip(behind).filter(|(_, behind)| *behind) {
            *unused = unused.or(Some(Quarantine::LeftBehind));
        }
        self.take(&decision);
        let in_force = self.primary.and_then(|i| self.members.get(i));
        // A primary in doubt: the next one is sought before the verdict is spoken.
        let seek = in_force.is_none_or(Member::is_doubted);
        let superseded = self.primary.is_some();
        self.asked_often =
            if self.spec.health.patroni.is_some() { self.word.hunted(seek, now) } else { None };
        for (i, (member, unused)) in self.members.iter_mut().zip(unused).enumerate() {
            member.settle(self.primary == Some(i), superseded, unused, now);
            member.settle_hunt(seek, now);
        }
    }

    /// What the authority outside says of the nodes.
    fn lock(&self) -> Lock {
        if self.spec.health.patroni.is_none() {
            return Lock::None;
        }
        let nodes: Vec<&Node> = self.members.iter().map(|member| member.state.node.as_ref()).collect();
        self.word.lock(&nodes)
    }

    /// Makes the decision the one in force.
    fn take(&mut self, decision: &Decision) {
        match decision {
            Decision::Primary(i) => {
                self.doubt = None;
                self.primary = Some(*i);
                let name = self.members.get(*i).map(|member| member.state.node.name.clone());
                if self.last_primary != name {
                    self.key.epoch = self.key.epoch.saturating_add(1);
                    self.hold = None;
                    self.ring.clear();
                    if let Some(name) = &name {
                        let TopologyKey { epoch, timeline, .. } = self.key;
                        info!(node = %name, epoch, timeline, "node is the primary");
                    }
                    self.last_primary = name;
                }
            }
            Decision::Nobody(doubt) => {
                self.primary = None;
                if self.doubt != Some(*doubt) {
                    self.doubt = Some(*doubt);
                    log_doubt(*doubt);
                }
            }
        }
    }

    /// Brings the lag up to date after a probe of this node: of all standbys if it is the primary.
    fn measure_lag(&mut self, index: usize, now: Instant) {
        let stale = self.spec.health.check_interval * 3;
        if self.primary == Some(index) {
            let wal =
                self.members.get(index).and_then(|member| member.sampled(now)).and_then(|facts| facts.wal);
            if let Some(wal) = wal {
                self.ring.note(wal, now);
            }
        }
        let newest = self.ring.newest();
        let primary = self.primary;
        for (i, member) in self.members.iter_mut().enumerate() {
            if i != index && primary != Some(index) {
                continue;
            }
            let position = newest.filter(|_| primary != Some(i)).and_then(|(wal, seen)| {
                let (replayed, read) = member.replayed()?;
                let apart = seen.max(read).saturating_duration_since(seen.min(read));
                (apart <= SAME_ROUND)
                    .then(|| (wal.saturating_sub(replayed), self.ring.behind(replayed, read)))
            });
            member.set_lag(position, primary == Some(i), stale, now);
        }
    }
}

fn log_doubt(doubt: Doubt) {
    match doubt {
        Doubt::Waiting => {}
        Doubt::NoneFit => warn!("no primary: no node qualifies, writes wait"),
        Doubt::LockFree => warn!("no primary: no node holds Patroni's leader lock, writes wait"),
        Doubt::Contradicted => {
            warn!(
                "no primary: the node that holds Patroni's leader lock is in recovery, on an old timeline, of another \
                 cluster, or configured as a replica; writes wait"
            );
        }
        Doubt::NoWord => error!("no primary: Patroni has to say who it is and does not answer, writes wait"),
        Doubt::Split => error!("no primary: several nodes take writes on the same timeline, writes wait"),
        Doubt::Unpromoted => {
            error!(
                "no primary: a node takes writes on the old primary's timeline without a promotion, writes wait"
            );
        }
    }
}

mod vouch;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
