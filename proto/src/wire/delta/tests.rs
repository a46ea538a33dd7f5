//! Properties over random lists of resources: what is applied gives what was compared, hashes agree, and a delta that is
//! damaged, or meets another base, never passes for what it is not.

use super::*;
use crate::wire::v1::resource::Body;

/// Numbers that a seed determines (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

fn resource(number: usize, value: usize) -> Resource {
    let name = format!("h{value}");
    let node = v1::Node { name, port: u32::try_from(value).unwrap(), ..v1::Node::default() };
    Resource { name: format!("node/{number}"), body: Some(Body::Node(node)) }
}

/// Some of ten names, in any order.
fn list(rng: &mut Rng) -> Vec<Resource> {
    let mut numbers: Vec<usize> = (0..10).collect();
    for at in (1..numbers.len()).rev() {
        numbers.swap(at, rng.below(at + 1));
    }
    numbers.truncate(rng.below(11));
    numbers.into_iter().map(|number| resource(number, rng.below(2))).collect()
}

/// A few edits of a list.
fn edited(rng: &mut Rng, base: &[Resource]) -> Vec<Resource> {
    let mut out = base.to_vec();
    for _ in 0..rng.below(4) {
        let at = rng.below(out.len() + 1);
        match rng.below(4) {
            0 if at < out.len() => drop(out.remove(at)),
            1 if at < out.len() => {
                let moved = out.remove(at);
                let to = rng.below(out.len() + 1);
                out.insert(to, moved);
            }
            2 if at < out.len() => {
                out[at].body = Some(Body::Database(v1::Database::default()));
            }
            _ => out.insert(at, resource(100 + usize::try_from(rng.next() % 1_000_000).unwrap(), 1)),
        }
    }
    out
}

fn configuration(revision: u64, resources: Vec<Resource>) -> Configuration {
    Configuration { revision, sha256: send::hash(&resources), resources }
}

#[test]
fn what_is_applied_gives_what_was_compared() {
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let base = list(&mut rng);
        let new = if seed % 2 == 0 { list(&mut rng) } else { edited(&mut rng, &base) };
        let out = apply(&base, diff(&base, &new));
        assert_eq!(out.as_ref(), Some(&new), "seed {seed}");
        assert_eq!(send::hash(&out.unwrap()), send::hash(&new));
    }
}

#[test]
fn what_did_not_change_is_not_sent() {
    for seed in 0..2_000 {
        let mut rng = Rng(seed);
        let base = list(&mut rng);
        let same = diff(&base, &base);
        assert!(same.removed.is_empty() && same.changed.is_empty(), "seed {seed}");
        let Some(last) = base.len().checked_sub(1) else { continue };
        let mut new = base.clone();
        let at = rng.below(last + 1);
        new[at].body = None;
        let one = diff(&base, &new);
        assert!(one.removed.is_empty() && one.changed.len() == 1, "seed {seed}");
        assert_eq!(usize::try_from(one.changed[0].at).unwrap(), at);
        let gone = new.remove(at);
        assert!(diff(&base, &new) == Changes { removed: vec![gone.name], changed: Vec::new() });
    }
}

#[test]
fn a_delta_that_is_damaged_or_meets_another_base_is_a_misfit_or_right() {
    let (mut misfits, mut right) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let base = configuration(1, list(&mut rng));
        let new = configuration(2, edited(&mut rng, &base.resources));
        let Some(mut delta) = new.delta(&base) else { continue };
        delta.topology = Some(v1::Topology::default());
        assert!(base.with(delta.clone()).is_ok_and(|full| full == new.full(v1::Topology::default())));
        let mut other = base.clone();
        match rng.below(5) {
            0 => other = configuration(1, edited(&mut rng, &base.resources)),
            1 => drop(delta.removed.pop()),
            2 => drop(delta.changed.pop()),
            3 => delta.changed.reverse(),
            _ => {
                if let Some(placed) = delta.changed.first_mut() {
                    placed.at = placed.at.wrapping_sub(1);
                }
            }
        }
        match other.with(delta) {
            Ok(full) => {
                assert!(full == new.full(v1::Topology::default()), "seed {seed}");
                right += 1;
            }
            Err(_) => misfits += 1,
        }
    }
    assert!(misfits > 1_000 && right > 100, "{misfits} misfits, {right} right: the test tests nothing");
}

#[test]
fn places_beyond_any_list_cost_nothing() {
    let base = list(&mut Rng(1));
    let far = Placed { at: u32::MAX, resource: Some(resource(200, 1)) };
    assert_eq!(apply(&base, Changes { removed: Vec::new(), changed: vec![far] }), None);
    let empty = Placed { at: 0, resource: None };
    assert_eq!(apply(&base, Changes { removed: Vec::new(), changed: vec![empty] }), None);
}
