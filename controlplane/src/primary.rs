//! Who is the primary: from what probes and connections showed, never from WAL positions or node order. Pure.
//! Admits doubt: "nobody" is an answer, and writes wait for a better one.

use helios_proto::model::Role;

use crate::health::Facts;

/// What is known about one node when the primary is decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    /// Configured role, a constraint: a replica is never promoted.
    pub role: Role,
    pub down: bool,
    /// Whether the node was probed at all.
    pub probed: bool,
    /// What a probe that logged in saw.
    pub facts: Option<&'a Facts>,
    /// What the last probe or connection showed.
    pub hot_standby: Option<bool>,
    /// It was quarantined, and no probe has seen it otherwise since.
    pub barred: bool,
    /// A standby that probe after probe was seen on an older timeline than that of the last primary.
    pub left_behind: bool,
}

/// What was decided before; never forgotten while the process lives and a node remains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The last primary, also while it is down.
    pub primary: Option<usize>,
    /// The cluster's system identifier.
    pub system: Option<u64>,
    /// Highest timeline that took writes; 0: none seen.
    pub timeline: u32,
    /// Every node that may be the primary has been probed since the start.
    pub looked: bool,
    /// The last decision was that several nodes, or a copy, take writes: without facts nobody is believed.
    pub contested: bool,
    /// What an authority outside says.
    pub lock: Lock,
    /// Whom an operator vouches for.
    pub vouched: Option<Vouched>,
}

/// An operator's word for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub index: usize,
    /// The node shows what it showed when the word was given.
    pub shown: bool,
    /// Timelines up to this one were known then: nobody else is believed on them.
    pub ceiling: u32,
}

/// What an authority outside says of who may take writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Lock {
    /// There is no such authority: probes decide.
    #[default]
    None,
    /// It has not answered yet.
    Unheard,
    /// It does not answer, and never has in this life.
    Unknown,
    /// It does not answer, or what it said last may be out of date: this node, or none of them.
    Stale(Option<usize>),
    /// Nobody may, or somebody who is none of the nodes.
    Free,
    /// This node may, and no other.
    Held(usize),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Primary(usize),
    Nobody(Doubt),
}

/// Why nobody takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The first probes are still out.
    Waiting,
    /// No node qualifies.
    NoneFit,
    /// Several nodes take writes and nothing tells them apart.
    Split,
    /// A node takes writes on the old primary's timeline: it was not promoted but copied.
    Unpromoted,
    /// The authority outside names nobody, or none of the nodes.
    LockFree,
    /// What the node that the authority names shows speaks against it.
    Contradicted,
    /// The authority does not answer, and the last primary is not fit or not the only one.
    NoWord,
}

/// Why a node that answers is not used all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quarantine {
    OtherCluster,
    WritableReplica,
    OldTimeline,
    SecondWriter,
    /// A standby that does not follow the primary's timeline.
    LeftBehind,
    /// It takes writes, and the authority outside says that it may not.
    NoLock,
}

/// Decides. `asks` says whether probes log in, so that facts can be expected.
pub(crate) fn decide(claims: &[Claim<'_>], known: &Known, asks: bool) -> Decision {
    let waiting = claims.iter().any(|claim| claim.role != Role::Replica && !claim.probed);
    match known.lock {
        Lock::None => {}
        Lock::Unheard if !known.looked => return Decision::Nobody(Doubt::Waiting),
        Lock::Unheard | Lock::Unknown => return kept(claims, known, known.primary),
        Lock::Stale(last) => return kept(claims, known, known.primary.filter(|own| Some(*own) == last)),
        Lock::Free => return Decision::Nobody(Doubt::LockFree),
        Lock::Held(index) => return held(claims, known, index),
    }
    if asks && !known.looked && waiting {
        return Decision::Nobody(Doubt::Waiting);
    }
    let system =
        known.system.or_else(|| configured(claims).and_then(|(_, claim)| claim.facts.map(|f| f.system)));
    let writable: Vec<(usize, &Facts)> = claims
        .iter()
        .enumerate()
        .filter(|(_, claim)| claim.role != Role::Replica && !claim.down)
        .filter_map(|(i, claim)| claim.facts.map(|facts| (i, facts)))
        .filter(|(_, facts)| !facts.in_recovery)
        .filter(|(i, facts)| match known.vouched {
            Some(vouched) if vouched.index == *i && vouched.shown => true,
            Some(vouched) if facts.timeline <= vouched.ceiling => false,
            Some(_) | None => {
                facts.timeline >= known.timeline && system.is_none_or(|system| facts.system == system)
            }
        })
        .collect();
    let Some((best, facts)) = writable.iter().max_by_key(|(_, facts)| facts.timeline) else {
        return by_evidence(claims, known, asks);
    };
    let equals = writable.iter().filter(|(_, other)| other.timeline == facts.timeline).count();
    if equals > 1 || writable.iter().any(|(_, other)| other.system != facts.system) {
        return Decision::Nobody(Doubt::Split);
    }
    let vouched = known.vouched.is_some_and(|vouched| vouched.index == *best && vouched.shown);
    let moved = known.primary.is_some_and(|primary| primary != *best) && !vouched;
    if moved && facts.timeline == known.timeline && known.timeline > 0 {
        return Decision::Nobody(Doubt::Unpromoted);
    }
    Decision::Primary(*best)
}

/// The node that holds the lock, unless what it shows speaks against it. Who was not the primary has to show itself.
fn held(claims: &[Claim<'_>], known: &Known, index: usize) -> Decision {
    let Some(claim) = claims.get(index) else { return Decision::Nobody(Doubt::LockFree) };
    if claim.down {
        return Decision::Nobody(Doubt::NoneFit);
    }
    let fits = match claim.facts {
        _ if claim.role == Role::Replica => false,
        Some(facts) => takes_writes(facts, known),
        None if known.primary != Some(index) => return Decision::Nobody(Doubt::NoneFit),
        None => claim.hot_standby != Some(true) && !claim.barred,
    };
    if fits { Decision::Primary(index) } else { Decision::Nobody(Doubt::Contradicted) }
}

/// Without the authority's word: the last primary, if it may go on at all, does so as long as nobody else looks as if it
/// had been promoted.
fn kept(claims: &[Claim<'_>], known: &Known, primary: Option<usize>) -> Decision {
    let Some(index) = primary else { return Decision::Nobody(Doubt::NoWord) };
    let own = claims.get(index).and_then(|claim| claim.facts).map_or(known.timeline, |facts| facts.timeline);
    let rival = claims.iter().enumerate().any(|(i, claim)| {
        let facts = claim.facts.filter(|facts| takes_writes(facts, known) && facts.timeline >= own);
        i != index && !claim.down && facts.is_some()
    });
    match held(claims, known, index) {
        Decision::Primary(_) if !rival => Decision::Primary(index),
        Decision::Primary(_) | Decision::Nobody(_) => Decision::Nobody(Doubt::NoWord),
    }
}

/// Not in recovery, of this cluster, and not on an older timeline.
fn takes_writes(facts: &Facts, known: &Known) -> bool {
    let ours = known.system.is_none_or(|system| facts.system == system);
    ours && !facts.in_recovery && facts.timeline >= known.timeline
}

/// Without facts: the last or configured primary until it fails or reports itself a standby; then the one
/// node that reports itself writable. Where timelines have been seen, only the last primary is believed without: an
/// old one that was started again takes writes as well.
fn by_evidence(claims: &[Claim<'_>], known: &Known, asks: bool) -> Decision {
    let ordered = asks && known.timeline > 0;
    let last = known.primary.filter(|_| !(asks && known.contested));
    let current = last.or_else(|| configured(claims).map(|(i, _)| i).filter(|_| !ordered));
    let blind = |claim: &Claim<'_>| !claim.down && claim.facts.is_none() && !(asks && claim.barred);
    if let Some((i, claim)) = current.and_then(|i| claims.get(i).map(|claim| (i, claim)))
        && blind(claim)
        && claim.hot_standby != Some(true)
    {
        return Decision::Primary(i);
    }
    if ordered {
        return Decision::Nobody(Doubt::NoneFit);
    }
    let mut writable = claims
        .iter()
        .enumerate()
        .filter(|(_, claim)| claim.role != Role::Replica && blind(claim) && claim.hot_standby == Some(false));
    match (writable.next(), writable.next()) {
        (Some((i, _)), None) => Decision::Primary(i),
        (Some(_), Some(_)) => Decision::Nobody(Doubt::Split),
        (None, _) => Decision::Nobody(Doubt::NoneFit),
    }
}

fn configured<'c, 'a>(claims: &'c [Claim<'a>]) -> Option<(usize, &'c Claim<'a>)> {
    claims.iter().enumerate().find(|(_, claim)| claim.role == Role::Primary)
}

/// Whether a node must not be used though it may answer; `known` as it is after the decision.
pub(crate) fn quarantine(
    index: usize,
    claim: &Claim<'_>,
    known: &Known,
    decision: &Decision,
) -> Option<Quarantine> {
    if *decision == Decision::Primary(index) {
        return None;
    }
    let foreign = claim.facts.is_some_and(|facts| known.system.is_some_and(|system| facts.system != system));
    if foreign {
        return Some(Quarantine::OtherCluster);
    }
    if claim.hot_standby != Some(false) {
        return None;
    }
    if claim.role == Role::Replica {
        return Some(Quarantine::WritableReplica);
    }
    if claim.facts.is_some_and(|facts| facts.timeline < known.timeline) {
        return Some(Quarantine::OldTimeline);
    }
    if known.lock == Lock::Free || matches!(known.lock, Lock::Held(holder) if holder != index) {
        return Some(Quarantine::NoLock);
    }
    matches!(decision, Decision::Primary(_) | Decision::Nobody(Doubt::Unpromoted))
        .then_some(Quarantine::SecondWriter)
}

/// Standbys whose data grow old, since they were left behind by a promotion: not used as long as somebody else can serve
/// reads, the primary or a standby that follows. `unused`: what else speaks against each node.
pub(crate) fn left_behind(
    claims: &[Claim<'_>],
    decision: &Decision,
    unused: &[Option<Quarantine>],
) -> Vec<bool> {
    let stands_by = |claim: &Claim<'_>| !claim.down && claim.hot_standby != Some(false);
    let mut others = claims
        .iter()
        .zip(unused)
        .filter(|(claim, unused)| stands_by(claim) && claim.probed && !claim.left_behind && unused.is_none());
    let served = matches!(decision, Decision::Primary(_)) || others.next().is_some();
    claims.iter().map(|claim| served && claim.left_behind && claim.hot_standby == Some(true)).collect()
}

impl Quarantine {
    const ALL: [Self; 6] = [
        Self::OtherCluster,
        Self::WritableReplica,
        Self::OldTimeline,
        Self::SecondWriter,
        Self::LeftBehind,
        Self::NoLock,
    ];

    /// What [`words`](Self::words) says, back again.
    pub fn from_words(words: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quarantine| quarantine.words() == words)
    }

    /// For an operator.
    pub const fn words(self) -> &'static str {
        match self {
            Self::OtherCluster => "not used: it belongs to another cluster (system identifier differs)",
            Self::WritableReplica => "not used: it takes writes but is configured as a replica",
            Self::OldTimeline => "not used: it takes writes on an old timeline",
            Self::SecondWriter => "not used: it takes writes but is not the primary",
            Self::NoLock => "not used: it takes writes but does not hold Patroni's leader lock",
            Self::LeftBehind => {
                "not used: it follows an old timeline, not that of the primary; point it at the primary"
            }
        }
    }
}

#[cfg(test)]
mod tests;
