//! When each table of a database was last changed, in numbers of the cache's sequence, and what must not be answered now.
//! An answer that was begun at some number is good while nothing that it depends on has a later one. Pure but for the clock
//! that callers hand in; short locks only.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Tables, by their object identifiers, that something changes or may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Touched {
    /// None.
    #[default]
    Nothing,
    /// These; sorted, each once.
    Tables(Vec<u32>),
    /// Any.
    All,
}

impl Touched {
    /// These as well.
    pub fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::All, _) | (_, Self::Nothing) => {}
            (_, Self::All) => *self = Self::All,
            (Self::Nothing, Self::Tables(_)) => *self = other.clone(),
            (Self::Tables(ours), Self::Tables(theirs)) => {
                ours.extend_from_slice(theirs);
                ours.sort_unstable();
                ours.dedup();
            }
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// Of one database.
#[derive(Debug, Default)]
pub struct Stamps(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tables: HashMap<u32, Stamp>,
    all: Stamp,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stamp {
    /// Number of the last change.
    changed: u64,
    /// Changes of this process whose numbers are not known yet.
    pending: u32,
    /// Writes of this process that are on their way: whether they are committed is not known.
    flying: u32,
    /// Until then nothing is good: it is not known when a change takes effect.
    closed: Option<Instant>,
}

impl Stamp {
    fn is_good(&self, since: u64, now: Instant) -> bool {
        self.changed <= since
            && self.pending == 0
            && self.flying == 0
            && self.closed.is_none_or(|until| until <= now)
    }
}

impl Stamps {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an answer begun at `since` from these tables is good.
    #[must_use]
    pub fn are_good(&self, tables: &[u32], since: u64, now: Instant) -> bool {
        let inner = self.lock();
        let table = |table| inner.tables.get(table).is_none_or(|stamp| stamp.is_good(since, now));
        inner.all.is_good(since, now) && tables.iter().all(table)
    }

    /// A write is on its way.
    pub fn fly(&self, touched: &Touched) {
        self.lock().each(touched, |stamp| stamp.flying = stamp.flying.saturating_add(1));
    }

    /// It is over.
    pub fn land(&self, touched: &Touched) {
        self.lock().each(touched, |stamp| stamp.flying = stamp.flying.saturating_sub(1));
    }

    /// Forgets tables that are not there any more.
    pub fn retain(&self, is_there: impl Fn(u32) -> bool) {
        self.lock().tables.retain(|table, stamp| stamp.pending > 0 || stamp.flying > 0 || is_there(*table));
    }

    /// A change whose number is not known yet.
    pub fn begin(&self, touched: &Touched) {
        self.lock().each(touched, |stamp| stamp.pending = stamp.pending.saturating_add(1));
    }

    /// A change has this number; `own`: it was begun here.
    pub fn end(&self, touched: &Touched, number: u64, own: bool) {
        self.lock().each(touched, |stamp| {
            stamp.changed = stamp.changed.max(number);
            stamp.pending = stamp.pending.saturating_sub(u32::from(own));
        });
    }

    /// Something may change until then.
    pub fn close(&self, touched: &Touched, until: Instant) {
        self.lock().each(touched, |stamp| stamp.closed = stamp.closed.max(Some(until)));
    }

    /// What was begun before this number is good no more.
    #[must_use]
    pub fn from(number: u64) -> Self {
        let all = Stamp { changed: number, ..Stamp::default() };
        Self(Mutex::new(Inner { all, ..Inner::default() }))
    }

    /// The same, and nothing is pending any more.
    pub fn reset(&self, number: u64) {
        let mut inner = self.lock();
        let closed = inner.tables.values().filter_map(|stamp| stamp.closed).chain(inner.all.closed).max();
        // What is on its way is on its way all the same.
        let flying = |flying| Stamp { flying, ..Stamp::default() };
        let tables = inner.tables.iter().filter(|(_, stamp)| stamp.flying > 0);
        let tables = tables.map(|(table, stamp)| (*table, flying(stamp.flying))).collect();
        let all = Stamp { closed, changed: number, ..flying(inner.all.flying) };
        *inner = Inner { all, tables };
    }
}

impl Inner {
    fn each(&mut self, touched: &Touched, change: impl Fn(&mut Stamp)) {
        match touched {
            Touched::Nothing => {}
            Touched::All => change(&mut self.all),
            Touched::Tables(tables) => tables.iter().for_each(|t| change(self.tables.entry(*t).or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn tables(list: &[u32]) -> Touched {
        Touched::Tables(list.to_vec())
    }

    #[test]
    fn sets_add_up() {
        let mut touched = Touched::default();
        touched.add(&Touched::Nothing);
        assert!(touched.is_nothing());
        touched.add(&tables(&[3, 5]));
        touched.add(&tables(&[1, 5]));
        assert_eq!(touched, tables(&[1, 3, 5]));
        touched.add(&Touched::All);
        touched.add(&tables(&[7]));
        assert_eq!(touched, Touched::All);
    }

    #[test]
    fn an_answer_is_good_until_something_it_depends_on_changes() {
        let (stamps, now) = (Stamps::default(), Instant::now());
        let good = |list: &[u32], since| stamps.are_good(list, since, now);
        assert!(good(&[1, 2], 0));
        stamps.end(&tables(&[2]), 5, false);
        assert!(good(&[1], 4) && !good(&[1, 2], 4) && good(&[1, 2], 5));
        // Pending: nothing is good, whenever it was begun.
        stamps.begin(&tables(&[1]));
        stamps.begin(&tables(&[1]));
        stamps.end(&tables(&[1]), 6, true);
        assert!(!good(&[1], 9) && good(&[2], 9));
        stamps.end(&tables(&[1]), 7, true);
        assert!(good(&[1], 7) && !good(&[1], 6));
        stamps.end(&Touched::All, 9, false);
        assert!(!good(&[3], 8) && !good(&[], 8) && good(&[3], 9));
    }

    #[test]
    fn what_is_closed_opens_by_itself_and_outlives_a_reset() {
        let (stamps, now) = (Stamps::default(), Instant::now());
        let later = now + Duration::from_secs(60);
        stamps.close(&tables(&[1]), later);
        stamps.close(&tables(&[1]), now);
        assert!(!stamps.are_good(&[1], 9, now) && stamps.are_good(&[2], 9, now));
        assert!(stamps.are_good(&[1], 9, later));
        stamps.begin(&Touched::All);
        stamps.reset(7);
        assert!(!stamps.are_good(&[2], 9, now), "which tables it were is forgotten");
        assert!(stamps.are_good(&[1, 2], 7, later) && !stamps.are_good(&[1], 6, later));
        let fresh = Stamps::from(3);
        assert!(fresh.are_good(&[1], 3, now) && !fresh.are_good(&[1], 2, now));
    }

    #[test]
    fn nothing_is_good_while_a_write_is_on_its_way_whatever_is_reset() {
        let (stamps, now) = (Stamps::default(), Instant::now());
        let good = |list: &[u32]| stamps.are_good(list, 9, now);
        stamps.fly(&tables(&[1]));
        stamps.fly(&tables(&[1, 2]));
        assert!(!good(&[1]) && !good(&[2]) && good(&[3]));
        stamps.reset(7);
        stamps.retain(|_| false);
        stamps.land(&tables(&[1]));
        assert!(!good(&[1]) && !good(&[2]) && good(&[3]));
        stamps.land(&tables(&[1, 2]));
        assert!(good(&[1, 2]));
        stamps.fly(&Touched::All);
        stamps.reset(8);
        assert!(!good(&[3]));
        stamps.land(&Touched::All);
        assert!(good(&[3]));
        stamps.end(&tables(&[1, 2]), 8, false);
        stamps.retain(|table| table == 2);
        assert_eq!(stamps.lock().tables.keys().copied().collect::<Vec<_>>(), [2]);
    }
}
