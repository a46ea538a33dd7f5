//! Who is the primary, as tables: what each node shows, what was known, and the answer.

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
