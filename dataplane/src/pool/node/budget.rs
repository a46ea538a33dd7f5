//! This process's share of a node's budget: how many server connections it may have now, from what it was granted, when,
//! and for how long. Pure: the time is passed in. Never more than the control plane counts with, whatever gets lost.

use std::time::{Duration, Instant};

/// How long after its lease busy connections may end by themselves; the control plane waits as long.
const GRACE: Duration = Duration::from_secs(30);
/// Who was never granted anything waits this long for it before it helps itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// What it helps itself to.
const EMERGENCY: u32 = 2;

/// A share, as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Most connections.
    pub most: u32,
    /// What stays after the lease.
    pub floor: u32,
    /// End of the lease.
    pub until: Instant,
}

/// Where a share comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This process is the only data plane.
    Alone,
    /// From a control plane.
    Leased,
}

/// A node's budget, as this process knows it.
#[derive(Debug)]
pub(super) struct Budget {
    source: Source,
    /// The budget of all data planes, and since when it is known; `None`: there is none.
    limit: Option<(u32, Instant)>,
    granted: Option<Granted>,
}

impl Budget {
    /// No budget yet.
    pub const fn new(source: Source) -> Self {
        Self { source, limit: None, granted: None }
    }

    /// The node's budget is this, or it has none.
    pub fn configure(&mut self, limit: Option<u32>, now: Instant) {
        let Some(limit) = limit else {
            (self.limit, self.granted) = (None, None);
            return;
        };
        let since = self.limit.map_or(now, |(_, since)| since);
        self.limit = Some((limit, since));
    }

    /// A share is granted.
    pub const fn grant(&mut self, granted: Granted) {
        self.granted = Some(granted);
    }

    /// The budget of all data planes.
    pub fn limit(&self) -> Option<u32> {
        self.limit.map(|(limit, _)| limit)
    }

    /// Most connections now; `None`: the node has no budget.
    pub fn share(&self, now: Instant) -> Option<u32> {
        let (limit, since) = self.limit?;
        let share = match (self.source, &self.granted) {
            (Source::Alone, _) => limit,
            (Source::Leased, Some(granted)) if now < granted.until => granted.most,
            (Source::Leased, Some(granted)) => granted.floor,
            (Source::Leased, None) if now.saturating_duration_since(since) < PATIENCE => 0,
            (Source::Leased, None) => EMERGENCY,
        };
        Some(share.min(limit))
    }

    /// What was granted, now and after the lease; `None`: nothing yet, for what a process helps itself to is no grant.
    pub fn granted(&self, now: Instant) -> Option<(u32, u32)> {
        let is_granted = self.source == Source::Alone || self.granted.is_some();
        self.share(now).filter(|_| is_granted).map(|share| (share, self.floor()))
    }

    /// How many may stay open. More than the share only while the budget is new: what is held then is known soon.
    pub fn keeps(&self, now: Instant) -> Option<u32> {
        let (_, since) = self.limit?;
        let fresh = self.source == Source::Leased
            && self.granted.is_none()
            && now.saturating_duration_since(since) < PATIENCE;
        if fresh { None } else { self.share(now) }
    }

    /// What stays without any word from the control plane.
    pub fn floor(&self) -> u32 {
        let Some((limit, _)) = self.limit else { return 0 };
        let floor = match (self.source, &self.granted) {
            (Source::Alone, _) => limit,
            (Source::Leased, Some(granted)) => granted.floor,
            (Source::Leased, None) => EMERGENCY,
        };
        floor.min(limit)
    }

    /// Whether the time is up for busy connections beyond the floor.
    pub fn is_overdue(&self, now: Instant) -> bool {
        let leased = self.limit.is_some() && self.source == Source::Leased;
        leased && self.granted.is_some_and(|granted| now >= granted.until + GRACE)
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_holds_for_its_lease_and_then_the_floor_does() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let mut budget = Budget::new(Source::Leased);
        assert_eq!((budget.share(start), budget.keeps(start), budget.floor()), (None, None, 0), "no budget");
        budget.configure(Some(12), start);
        assert_eq!(
            (budget.share(start), budget.keeps(start)),
            (Some(0), None),
            "new: nothing is opened or closed"
        );
        let late = start + s(3);
        assert_eq!((budget.share(late), budget.keeps(late)), (Some(2), Some(2)), "nobody answers");
        budget.grant(Granted { most: 7, floor: 1, until: late + s(10) });
        for (after, share, overdue) in
            [(0, 7, false), (9, 7, false), (10, 1, false), (39, 1, false), (40, 1, true)]
        {
            let at = late + s(after);
            assert_eq!((budget.share(at), budget.is_overdue(at)), (Some(share), overdue), "after {after} s");
        }
        budget.configure(Some(5), late);
        assert_eq!(budget.share(late), Some(5), "a smaller budget is obeyed at once");
        budget.configure(None, late);
        assert_eq!((budget.share(late), budget.is_overdue(late + s(99))), (None, false));
    }

    #[test]
    fn one_that_is_alone_has_the_whole_budget() {
        let now = Instant::now();
        let mut budget = Budget::new(Source::Alone);
        budget.configure(Some(4), now);
        let later = now + Duration::from_secs(1_000);
        assert_eq!((budget.share(later), budget.floor(), budget.is_overdue(later)), (Some(4), 4, false));
    }
}
