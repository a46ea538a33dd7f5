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
mod tests {
    use super::*;

    const OURS: u64 = 7;

    fn facts(in_recovery: bool, timeline: u32) -> Facts {
        Facts {
            in_recovery,
            system: OURS,
            timeline,
            follows: None,
            streams: false,
            wal: Some(1),
            replayed: Some(1),
        }
    }

    /// `P1` configured primary writable on timeline 1, `Sr` standby in recovery, `R` replica; without facts:
    /// `?` nothing known, `w` evidence of writable, `h` evidence of hot standby, `x` down, `n` not probed;
    /// `b` a standby left behind; `!` after a timeline: another system.
    fn decided(nodes: &str, known: Known, asks: bool) -> (Decision, Vec<Option<Quarantine>>) {
        let parsed: Vec<(Role, char, Option<Facts>)> = nodes
            .split(' ')
            .map(|text| {
                let mut chars = text.chars();
                let role = match chars.next() {
                    Some('P') => Role::Primary,
                    Some('S') => Role::Standby,
                    _ => Role::Replica,
                };
                let what = chars.next().expect("a state");
                let mut seen = match what {
                    'r' | 'b' => Some(facts(true, 0)),
                    digit => digit.to_digit(10).map(|timeline| facts(false, timeline)),
                };
                if let (Some('!'), Some(facts)) = (chars.next(), seen.as_mut()) {
                    facts.system = 99;
                }
                (role, what, seen)
            })
            .collect();
        let claims: Vec<Claim<'_>> = parsed
            .iter()
            .map(|(role, what, facts)| Claim {
                role: *role,
                down: *what == 'x',
                probed: *what != 'n',
                facts: facts.as_ref(),
                hot_standby: match what {
                    'w' => Some(false),
                    'h' => Some(true),
                    _ => facts.as_ref().map(|facts| facts.in_recovery),
                },
                barred: false,
                left_behind: *what == 'b',
            })
            .collect();
        let decision = decide(&claims, &known, asks);
        let after = if known.system.is_none() { Known { system: Some(OURS), ..known } } else { known };
        let mut unused: Vec<_> =
            claims.iter().enumerate().map(|(i, claim)| quarantine(i, claim, &after, &decision)).collect();
        let behind = left_behind(&claims, &decision, &unused);
        for (unused, _) in unused.iter_mut().zip(behind).filter(|(_, behind)| *behind) {
            *unused = unused.or(Some(Quarantine::LeftBehind));
        }
        (decision, unused)
    }

    const fn known(primary: usize, timeline: u32) -> Known {
        Known {
            primary: Some(primary),
            system: Some(OURS),
            timeline,
            looked: true,
            contested: false,
            lock: Lock::None,
            vouched: None,
        }
    }

    #[test]
    fn probes_that_log_in_decide_by_timeline() {
        use Decision::{Nobody, Primary};
        use Doubt::{NoneFit, Split, Unpromoted, Waiting};
        let nothing = Known::default();
        for (nodes, known, expected) in [
            ("P1 Sr Rr", nothing, Primary(0)),
            ("Pr S1 Rr", nothing, Primary(1)),
            ("Pn Sr", nothing, Nobody(Waiting)),
            ("P1 Sn", nothing, Nobody(Waiting)),
            ("P1 Sr Rn", nothing, Primary(0)),
            ("Px Sr", nothing, Nobody(NoneFit)),
            ("P? Sr", nothing, Primary(0)),
            ("P1 S2", nothing, Primary(1)),
            ("P1 S2 S3", known(0, 1), Primary(2)),
            ("Px S2 Rr", known(0, 1), Primary(1)),
            ("P1 S2 Rr", known(1, 2), Primary(1)),
            ("P1 Sx Rr", known(1, 2), Nobody(NoneFit)),
            ("P1 Sr", known(1, 2), Nobody(NoneFit)),
            ("P3 Sr", known(1, 2), Primary(0)),
            ("Px Sr R2", known(0, 1), Nobody(NoneFit)),
            ("P1 S1", known(0, 1), Nobody(Split)),
            ("Px S2 S2", known(0, 1), Nobody(Split)),
            ("Px S1", known(0, 1), Nobody(Unpromoted)),
            ("Px S2!", known(0, 1), Nobody(NoneFit)),
            ("P1 S2!", nothing, Primary(0)),
            ("Sr S1 S2!", nothing, Nobody(Split)),
            ("Pr Sr", known(0, 1), Nobody(NoneFit)),
            ("P? Sr", known(0, 1), Primary(0)),
            ("P? S2", known(0, 1), Primary(1)),
            ("Sr Sr", nothing, Nobody(NoneFit)),
        ] {
            assert_eq!(decided(nodes, known, true).0, expected, "{nodes} {known:?}");
        }
    }

    #[test]
    fn where_an_authority_has_the_say_only_its_holder_may_be_the_primary() {
        use Decision::{Nobody, Primary};
        use Doubt::{Contradicted, LockFree, NoWord, NoneFit, Waiting};
        use Lock::{Free, Held, Stale, Unheard, Unknown};
        let nothing = Known::default();
        for (nodes, before, lock, expected) in [
            ("P1 Sr Rr", nothing, Held(0), Primary(0)),
            ("P1 Sn Rn", nothing, Held(0), Primary(0)),
            ("P1 Sr Rr", nothing, Held(1), Nobody(Contradicted)),
            ("P1 S2 Rr", known(0, 1), Held(0), Primary(0)),
            ("P1 S2 Rr", known(0, 1), Held(1), Primary(1)),
            ("P1 S2 Rr", known(1, 2), Held(0), Nobody(Contradicted)),
            // What nothing else tells apart, it does.
            ("P1 S1", known(0, 1), Held(0), Primary(0)),
            ("Px S2 S2", known(0, 1), Held(2), Primary(2)),
            ("Px S1", known(0, 1), Held(1), Primary(1)),
            ("Px Sr", known(0, 1), Held(0), Nobody(NoneFit)),
            ("Px Sr R2", known(0, 1), Held(2), Nobody(Contradicted)),
            ("P1 S2!", known(0, 1), Held(1), Nobody(Contradicted)),
            ("P? Sr", known(0, 1), Held(0), Primary(0)),
            ("Ph Sr", known(0, 1), Held(0), Nobody(Contradicted)),
            ("P? S?", known(0, 1), Held(1), Nobody(NoneFit)),
            ("P1 Sr", known(0, 1), Held(9), Nobody(LockFree)),
            ("P1 Sr", known(0, 1), Free, Nobody(LockFree)),
            ("P1 S2", known(0, 1), Free, Nobody(LockFree)),
            // Without its word nobody is promoted, and a rival stops writes.
            ("P1 Sr Rr", known(0, 1), Unknown, Primary(0)),
            ("P? Sr Rr", known(0, 1), Unknown, Primary(0)),
            ("P1 S2 Rr", known(0, 1), Unknown, Nobody(NoWord)),
            ("P? S1 Rr", known(0, 1), Unknown, Nobody(NoWord)),
            ("P2 S1 Rr", known(0, 2), Unknown, Primary(0)),
            ("P1 S2! Rr", known(0, 1), Unknown, Primary(0)),
            ("Px S2 Rr", known(0, 1), Unknown, Nobody(NoWord)),
            ("Pr S2 Rr", known(0, 1), Unknown, Nobody(NoWord)),
            ("P1 Sr Rr", nothing, Unknown, Nobody(NoWord)),
            ("P1 Sr Rr", known(0, 1), Stale(Some(0)), Primary(0)),
            ("P1 S2 Rr", known(0, 1), Stale(Some(0)), Nobody(NoWord)),
            ("P1 Sr Rr", known(0, 1), Stale(Some(1)), Nobody(NoWord)),
            ("P1 S2 Rr", known(0, 1), Stale(Some(1)), Nobody(NoWord)),
            ("P1 Sr Rr", known(0, 1), Stale(None), Nobody(NoWord)),
            ("P1 Sr Rr", nothing, Unheard, Nobody(Waiting)),
            ("P1 Sr Rr", known(0, 1), Unheard, Primary(0)),
        ] {
            let known = Known { lock, ..before };
            assert_eq!(decided(nodes, known, true).0, expected, "{nodes} {known:?}");
        }
    }

    #[test]
    fn an_operators_word_decides_what_nothing_else_does() {
        use Decision::{Nobody, Primary};
        use Doubt::NoneFit;
        let by = |index, shown, ceiling| Some(Vouched { index, shown, ceiling });
        for (nodes, before, vouched, expected) in [
            ("Px S2 S2", known(0, 1), by(2, true, 2), Primary(2)),
            ("P1 S1", known(0, 1), by(1, true, 1), Primary(1)),
            ("Px S1", known(0, 1), by(1, true, 1), Primary(1)),
            // An older timeline, or another cluster.
            ("P1 Sx", known(1, 2), by(0, true, 2), Primary(0)),
            ("P1! Sx", known(1, 2), by(0, true, 2), Primary(0)),
            // Who was lost then and comes back has not been promoted from the one that was vouched for.
            ("P1 S2", known(0, 1), by(0, true, 2), Primary(0)),
            ("Px S2", known(0, 1), by(0, false, 2), Nobody(NoneFit)),
            ("P1 S3", known(0, 1), by(0, true, 2), Primary(1)),
            ("P1 Sr", known(0, 1), by(0, false, 1), Nobody(NoneFit)),
        ] {
            let known = Known { vouched, ..before };
            assert_eq!(decided(nodes, known, true).0, expected, "{nodes} {known:?}");
        }
    }

    #[test]
    fn a_writer_without_the_lock_is_not_used_once_that_is_certain() {
        use Quarantine::{NoLock, OldTimeline, WritableReplica};
        for (nodes, before, lock, expected) in [
            ("P1 S2 Rr", known(0, 1), Lock::Held(0), vec![None, Some(NoLock), None]),
            ("P1 Sr R2", known(0, 1), Lock::Held(1), vec![Some(NoLock), None, Some(WritableReplica)]),
            ("P1 Sr Rr", known(0, 1), Lock::Free, vec![Some(NoLock), None, None]),
            ("P1 S2 Rr", known(0, 1), Lock::Unknown, vec![None, None, None]),
            ("P1 S2 Rr", known(1, 2), Lock::Unknown, vec![Some(OldTimeline), None, None]),
        ] {
            let known = Known { lock, ..before };
            assert_eq!(decided(nodes, known, true).1, expected, "{nodes} {known:?}");
        }
    }

    #[test]
    fn without_login_configuration_decides_amended_by_evidence() {
        use Decision::{Nobody, Primary};
        use Doubt::{NoneFit, Split};
        let nothing = Known::default();
        let last = |primary| Known {
            primary: Some(primary),
            system: None,
            timeline: 0,
            looked: true,
            contested: false,
            lock: Lock::None,
            vouched: None,
        };
        for (nodes, known, expected) in [
            ("Pn Sn", nothing, Primary(0)),
            ("P? S?", nothing, Primary(0)),
            ("Px S?", last(0), Nobody(NoneFit)),
            ("Px Sw", last(0), Primary(1)),
            ("Px Sw Sw", last(0), Nobody(Split)),
            ("Px S? Rw", last(0), Nobody(NoneFit)),
            ("Ph Sw", last(0), Primary(1)),
            ("Ph Sh", last(0), Nobody(NoneFit)),
            ("P? Sw", last(0), Primary(0)),
            ("P? S?", last(1), Primary(1)),
            ("Pw S?", last(1), Primary(1)),
            ("Pw Sx", last(1), Primary(0)),
            ("P? Sx", last(1), Nobody(NoneFit)),
            ("P? S?", last(0), Primary(0)),
            ("S? S?", nothing, Nobody(NoneFit)),
        ] {
            assert_eq!(decided(nodes, known, false).0, expected, "{nodes} {known:?}");
        }
    }

    #[test]
    fn standbys_left_behind_are_not_used_while_somebody_else_can_serve() {
        use Quarantine::{LeftBehind, OldTimeline};
        for (nodes, known, expected) in [
            ("P2 Sr Rb", known(0, 2), vec![None, None, Some(LeftBehind)]),
            ("P2 Sb Rb", known(0, 2), vec![None, Some(LeftBehind), Some(LeftBehind)]),
            ("P1 S2 Rb", known(1, 2), vec![Some(OldTimeline), None, Some(LeftBehind)]),
            // Nobody takes writes: reads stay at those that follow, and if there is none, at those that do not.
            ("Px Sr Rb", known(0, 2), vec![None, None, Some(LeftBehind)]),
            ("Px Sb Rb", known(0, 2), vec![None, None, None]),
            ("Px Sx Rb", known(0, 2), vec![None, None, None]),
            ("Px Sn Rb", known(0, 2), vec![None, None, None]),
            ("P1 Sr! Rb", known(1, 2), vec![Some(OldTimeline), Some(Quarantine::OtherCluster), None]),
        ] {
            assert_eq!(decided(nodes, known, true).1, expected, "{nodes}");
        }
    }

    #[test]
    fn writers_that_are_not_the_primary_are_not_used() {
        use Quarantine::{OldTimeline, OtherCluster, SecondWriter, WritableReplica};
        for (nodes, known, expected) in [
            ("P1 Sr Rr", known(0, 1), vec![None, None, None]),
            ("P1 S2 Rr", known(1, 2), vec![Some(OldTimeline), None, None]),
            ("P1 Sr R2", known(0, 1), vec![None, None, Some(WritableReplica)]),
            ("P1 Sr! R2!", known(0, 1), vec![None, Some(OtherCluster), Some(OtherCluster)]),
            ("Px S1 Rr", known(0, 1), vec![None, Some(SecondWriter), None]),
            ("P1 S1 Rr", known(0, 1), vec![None, None, None]),
            ("Pw S? Rw", known(1, 0), vec![Some(SecondWriter), None, Some(WritableReplica)]),
        ] {
            assert_eq!(decided(nodes, known, true).1, expected, "{nodes}");
        }
    }
}
