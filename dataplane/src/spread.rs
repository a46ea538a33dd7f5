//! How many workers serve, and which sessions move between them: pure. Few busy threads cost less than many that wake
//! for one statement each, so sessions share a worker until it is loaded. Never touches a thread or a session.

/// A worker is loaded above this, in thousandths of a core.
const LOADED: u32 = 600;
/// A worker too many is given up when the rest would stay below this, in thousandths of a core.
const SPARE: u32 = 400;
/// Windows of spare capacity before a worker is given up.
const CALM: u32 = 30;
/// Loads further than this above the mean are evened out, in thousandths of a core.
const UNEVEN: u32 = 150;
/// Windows after a change before the next: its effect must be measured first.
const SETTLE: u32 = 2;

/// What one worker did in the last window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Time on a core, in thousandths of the window. Time spent waiting for a core does not count: on a full machine
    /// another thread gets one only from somebody who needs it as much.
    pub ran: u32,
    /// Sessions that ran a statement or came.
    pub active: u32,
}

/// The state of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    open: usize,
    calm: u32,
    settle: u32,
}

impl Default for Spread {
    fn default() -> Self {
        Self { open: 1, calm: 0, settle: 0 }
    }
}

impl Spread {
    /// How many workers serve, the first ones.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// Looks at the last window of all workers: how many sessions each should hand to others at their next rest.
    pub fn step(&mut self, samples: &[Sample]) -> Vec<u32> {
        let total: u32 = samples.iter().map(|sample| sample.ran).fold(0, u32::saturating_add);
        let active: u32 = samples.iter().map(|sample| sample.active).fold(0, u32::saturating_add);
        if self.settle > 0 {
            self.settle = self.settle.saturating_sub(1);
            return vec![0; samples.len()];
        }
        let open = u32::try_from(self.open).unwrap_or(u32::MAX).max(1);
        let spare = total < SPARE.saturating_mul(open.saturating_sub(1));
        self.calm = if spare { self.calm.saturating_add(1) } else { 0 };
        if total / open > LOADED && self.open < samples.len() && active > open {
            self.open = self.open.saturating_add(1);
        } else if self.calm >= CALM {
            self.open = self.open.saturating_sub(1).max(1);
            self.calm = 0;
        }
        let mean = total / u32::try_from(self.open).unwrap_or(u32::MAX).max(1);
        let shed: Vec<u32> =
            samples.iter().enumerate().map(|(at, sample)| self.shed(at, *sample, mean)).collect();
        if shed.iter().any(|&sessions| sessions > 0) {
            self.settle = SETTLE;
        }
        shed
    }

    fn shed(&self, at: usize, sample: Sample, mean: u32) -> u32 {
        let load = sample.ran;
        if at >= self.open {
            return sample.active;
        }
        if self.open < 2 || sample.active < 2 || load <= mean.saturating_add(UNEVEN) {
            return 0;
        }
        let share = u64::from(sample.active).saturating_mul(u64::from(load.saturating_sub(mean)));
        let sessions = share.checked_div(u64::from(load)).unwrap_or(0);
        u32::try_from(sessions).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ran: u32, active: u32) -> Sample {
        Sample { ran, active }
    }

    /// Runs the same window until the policy rests: workers in use and everything shed.
    fn settle(spread: &mut Spread, samples: &[Sample], windows: u32) -> u32 {
        (0..windows).map(|_| spread.step(samples).iter().sum::<u32>()).sum()
    }

    #[test]
    fn one_worker_serves_until_it_is_loaded() {
        for (name, samples, open) in [
            ("idle", [sample(0, 0), sample(0, 0)], 1),
            ("half a core", [sample(500, 16), sample(0, 0)], 1),
            ("loaded", [sample(700, 16), sample(0, 0)], 2),
            ("one heavy session cannot be divided", [sample(900, 1), sample(0, 0)], 1),
        ] {
            let mut spread = Spread::default();
            spread.step(&samples);
            assert_eq!(spread.open(), open, "{name}");
        }
    }

    #[test]
    fn a_new_worker_gets_its_share_of_the_active_sessions() {
        let mut spread = Spread::default();
        assert_eq!(spread.step(&[sample(800, 64), sample(0, 0)]), [32, 0]);
        assert_eq!(spread.step(&[sample(800, 64), sample(0, 0)]), [0, 0], "the effect is measured first");
        assert_eq!(spread.step(&[sample(800, 64), sample(0, 0)]), [0, 0]);
        assert_eq!(spread.step(&[sample(420, 32), sample(400, 32)]), [0, 0], "even enough");
        assert_eq!(spread.step(&[sample(700, 40), sample(300, 24)]), [11, 0]);
    }

    #[test]
    fn a_worker_too_many_is_given_up_after_a_calm_while() {
        let mut spread = Spread { open: 2, calm: 0, settle: 0 };
        let quiet = [sample(150, 8), sample(150, 8)];
        assert_eq!(settle(&mut spread, &quiet, CALM - 1), 0);
        assert_eq!((spread.open(), spread.step(&quiet)), (2, vec![0, 8]));
        assert_eq!(spread.open(), 1);
        let mut busy = Spread { open: 2, calm: CALM - 1, settle: 0 };
        busy.step(&[sample(300, 8), sample(150, 8)]);
        assert_eq!((busy.open(), busy.calm), (2, 0));
    }

    #[test]
    fn never_more_workers_than_there_are_and_never_none() {
        let mut spread = Spread::default();
        settle(&mut spread, &[sample(1000, 99), sample(1000, 99)], 50);
        assert_eq!(spread.open(), 2);
        settle(&mut spread, &[Sample::default(); 2], 500);
        assert_eq!(spread.open(), 1);
        assert_eq!(Spread::default().step(&[]), Vec::<u32>::new());
    }
}
