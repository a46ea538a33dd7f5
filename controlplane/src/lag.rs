//! How far a standby is behind, in time, without a clock on any server: the primary's WAL positions of the past
//! and when we saw them. Pure: the time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Samples kept: an hour at the default interval.
const SAMPLES: usize = 720;

/// WAL positions of the primary, oldest first, both columns growing.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    samples: VecDeque<(u64, Instant)>,
    /// Samples have been dropped: the oldest one left is not the first.
    dropped: bool,
}

impl Ring {
    /// Notes the primary's position. A position that goes back (another primary) starts anew.
    pub fn note(&mut self, wal: u64, now: Instant) {
        match self.samples.back_mut() {
            Some((newest, _)) if wal < *newest => self.clear(),
            Some((newest, seen)) if wal == *newest => {
                *seen = now;
                return;
            }
            _ => {}
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
            self.dropped = true;
        }
        self.samples.push_back((wal, now));
    }

    /// Forgets everything; for a change of primary.
    pub fn clear(&mut self) {
        self.samples.clear();
        self.dropped = false;
    }

    /// The newest position, and when it was seen.
    pub fn newest(&self) -> Option<(u64, Instant)> {
        self.samples.back().copied()
    }

    /// How long ago the primary was where a standby that replayed up to `replayed` is at `now`: zero if it has all
    /// we know of; `None` if it is further behind than we have watched.
    pub fn behind(&self, replayed: u64, now: Instant) -> Option<Duration> {
        let (newest, _) = self.newest()?;
        if replayed >= newest {
            return Some(Duration::ZERO);
        }
        let passed = self.samples.iter().rev().find(|(wal, _)| *wal <= replayed);
        let oldest = self.samples.front().filter(|_| self.dropped);
        passed.or(oldest).map(|(_, seen)| now.saturating_duration_since(*seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn time_lag_is_the_age_of_the_newest_position_reached() {
        let start = Instant::now();
        let mut ring = Ring::default();
        assert_eq!(ring.behind(5, start), None);
        for (at, wal) in [(0, 100), (5, 200), (10, 300), (15, 300)] {
            ring.note(wal, start + secs(at));
        }
        for (replayed, lag) in [
            (50, None),
            (100, Some(20)),
            (150, Some(20)),
            (200, Some(15)),
            (299, Some(15)),
            (300, Some(0)),
            (301, Some(0)),
        ] {
            assert_eq!(ring.behind(replayed, start + secs(20)), lag.map(secs), "{replayed}");
        }
        assert_eq!(ring.newest(), Some((300, start + secs(15))), "an idle primary stays fresh");
    }

    #[test]
    fn memory_is_bounded_and_a_position_that_goes_back_starts_anew() {
        let start = Instant::now();
        let mut ring = Ring::default();
        for wal in 1..=2_000 {
            ring.note(wal, start + secs(wal));
        }
        assert_eq!(ring.samples.len(), SAMPLES);
        assert_eq!(ring.behind(1, start + secs(2_000)), Some(secs(719)), "at least this much");
        ring.note(7, start + secs(2_001));
        assert_eq!(ring.samples.len(), 1);
        assert_eq!(ring.behind(1, start + secs(2_001)), None);
    }
}
