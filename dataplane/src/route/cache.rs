//! Verdicts by text, so that a statement seen before costs one hash and one comparison.
//! Owner: one worker. Never grows past its slots, never trusts a hash alone, and allocates nothing on a hit.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::classify::classify;
use super::functions::KnownFunctions;
use super::verdict::{Class, Verdict};

/// Slots of the cache; a power of two.
const SLOTS: usize = 1024;
/// A longer text is judged each time: it is rare, and keeping it would cost more memory than time.
const LONGEST: usize = 2048;
/// Texts remembered as writes because a standby refused them.
const LEARNED: usize = 256;

/// A direct-mapped cache of verdicts. Per worker, at most 2 KiB of text a slot.
pub struct VerdictCache {
    hasher: foldhash::fast::RandomState,
    slots: Vec<Slot>,
    /// The verdict of a text that is not cached.
    uncached: Verdict,
    learned: Learned,
}

struct Slot {
    hash: u64,
    standard_strings: bool,
    /// Which functions were known.
    known: u64,
    /// Empty in an unused slot; no text that is cached is empty.
    text: Vec<u8>,
    verdict: Verdict,
}

/// Hashes of texts that a standby refused, oldest first. Under a key of its own, and 64 bits wide: the worst that a
/// collision does is to send one read to the primary.
struct Learned {
    hasher: RandomState,
    hashes: VecDeque<u64>,
}

// === impl VerdictCache ===

impl VerdictCache {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        let empty = || Slot {
            hash: 0,
            standard_strings: true,
            known: 0,
            text: Vec::new(),
            verdict: Verdict::in_doubt(),
        };
        Self {
            hasher: foldhash::fast::RandomState::default(),
            slots: std::iter::repeat_with(empty).take(SLOTS).collect(),
            uncached: Verdict::in_doubt(),
            learned: Learned { hasher: RandomState::new(), hashes: VecDeque::new() },
        }
    }

    /// The verdict of `sql`, judged now if it is not at hand.
    pub fn get_or_classify(
        &mut self,
        sql: &[u8],
        standard_strings: bool,
        known: &dyn KnownFunctions,
    ) -> &Verdict {
        if sql.is_empty() || sql.len() > LONGEST {
            self.uncached = self.learned.judge(sql, standard_strings, known);
            return &self.uncached;
        }
        let hash = self.hasher.hash_one(sql);
        let Some(slot) = self.slots.get_mut(place(hash)) else { return &self.uncached };
        let rules = (slot.standard_strings, slot.known) == (standard_strings, known.id());
        let hit = slot.hash == hash && rules && slot.text == sql;
        if !hit {
            // Asked first: what becomes known from here on is another number.
            slot.known = known.id();
            slot.verdict = self.learned.judge(sql, standard_strings, known);
            slot.hash = hash;
            slot.standard_strings = standard_strings;
            slot.text.clear();
            slot.text.extend_from_slice(sql);
        }
        &slot.verdict
    }

    /// From now on exactly this text is a write: a standby answered 25006 to it.
    pub fn learn_write(&mut self, sql: &[u8]) {
        self.learned.add(sql);
        let hash = self.hasher.hash_one(sql);
        if let Some(slot) = self.slots.get_mut(place(hash))
            && slot.text == sql
        {
            as_write(&mut slot.verdict);
        }
    }
}

impl Default for VerdictCache {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Learned ===

impl Learned {
    fn judge(&self, sql: &[u8], standard_strings: bool, known: &dyn KnownFunctions) -> Verdict {
        let mut verdict = classify(sql, standard_strings, known);
        if !self.hashes.is_empty() && self.hashes.contains(&self.hasher.hash_one(sql)) {
            as_write(&mut verdict);
        }
        verdict
    }

    fn add(&mut self, sql: &[u8]) {
        let hash = self.hasher.hash_one(sql);
        self.hashes.retain(|h| *h != hash);
        if self.hashes.len() >= LEARNED {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
    }
}

fn as_write(verdict: &mut Verdict) {
    verdict.class = Class::Write;
    verdict.may_write = true;
}

fn place(hash: u64) -> usize {
    usize::try_from(hash).unwrap_or_default() & SLOTS.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::functions::{NoFunctions, UserFunctions};

    fn class(cache: &mut VerdictCache, sql: &str) -> Class {
        cache.get_or_classify(sql.as_bytes(), true, &NoFunctions).class
    }

    /// Takes every slot.
    fn flood(cache: &mut VerdictCache) {
        for i in 0..20_000 {
            assert_eq!(class(cache, &format!("select {i} as flood")), Class::Read);
        }
    }

    #[test]
    fn the_same_text_means_something_else_under_other_string_rules() {
        let mut cache = VerdictCache::new();
        let sql = br"select '\'; insert into t values (1); --'";
        for _ in 0..2 {
            assert_eq!(cache.get_or_classify(sql, true, &NoFunctions).class, Class::Write);
            assert_eq!(cache.get_or_classify(sql, false, &NoFunctions).class, Class::Read);
        }
    }

    #[test]
    fn a_text_that_a_standby_refused_stays_a_write_after_eviction() {
        let mut cache = VerdictCache::new();
        assert_eq!(class(&mut cache, "select * from v"), Class::Read);
        cache.learn_write(b"select * from v");
        assert_eq!(class(&mut cache, "select * from v"), Class::Write);
        assert_eq!(class(&mut cache, "select * from v "), Class::Read);
        flood(&mut cache);
        assert_eq!(class(&mut cache, "select * from v"), Class::Write);
        for i in 0..LEARNED {
            cache.learn_write(format!("select {i}").as_bytes());
        }
        flood(&mut cache);
        assert_eq!(class(&mut cache, "select * from v"), Class::Read, "the oldest is forgotten");
    }

    #[test]
    fn what_becomes_known_of_functions_counts_at_once_and_for_its_database_only() {
        let mut cache = VerdictCache::new();
        let (here, there) = (UserFunctions::default(), UserFunctions::default());
        let mut class = |known: &UserFunctions| cache.get_or_classify(b"select f()", true, known).class;
        assert_eq!((class(&here), class(&there)), (Class::VolatileFunction, Class::VolatileFunction));
        here.set([(b"f"[..].into(), true)]);
        assert_eq!((class(&here), class(&there)), (Class::Read, Class::VolatileFunction));
        here.set([(b"f"[..].into(), false)]);
        assert_eq!((class(&here), class(&there)), (Class::VolatileFunction, Class::VolatileFunction));
    }

    #[test]
    fn empty_and_long_texts_are_judged_each_time() {
        let mut cache = VerdictCache::new();
        assert_eq!(class(&mut cache, ""), Class::Empty);
        let long = format!("select '{}'", "x".repeat(LONGEST));
        assert_eq!(class(&mut cache, &long), Class::Read);
        cache.learn_write(long.as_bytes());
        assert_eq!(class(&mut cache, &long), Class::Write);
        assert!(cache.slots.iter().all(|s| s.text.is_empty()));
    }
}
