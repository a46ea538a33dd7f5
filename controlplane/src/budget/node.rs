//! One node's budget: what each data plane may hold of it, and what it gets next. The sum over data planes of what they may
//! hold, and what is free, is the budget, always. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::{ENDED, FORGET, MOST, PEAK, PRESENT, ROUND, Usage, Who};

/// Floors are as small as if there were at least so many data planes.
const FEWEST: u32 = 8;
/// Grants remembered one by one, if they are not confirmed.
const MOST_SENT: usize = 16;
/// Changes of no more than so many connections, or a tenth, are not worth it.
const SMALL: u32 = 2;

/// A node's budget.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Most connections of all data planes together.
    pub limit: u32,
    holders: BTreeMap<Who, Holder>,
    /// When needs were last counted.
    counted: Option<Instant>,
    /// Floor of each data plane.
    floor: u32,
}

/// Grants that a data plane may have in force.
#[derive(Debug)]
struct Sent {
    /// Number of the first ones like this.
    first: u64,
    most: u32,
    floor: u32,
}

/// A data plane.
#[derive(Debug)]
struct Holder {
    /// When it reported last.
    seen: Instant,
    /// What it has in force from another life, or without any grant: share and floor.
    claim: Option<(u32, u32)>,
    /// The grant it has confirmed, and those after it, oldest first.
    sent: VecDeque<Sent>,
    /// Floor that an earlier life granted it.
    inherited: u32,
    /// Connections that it held as it reported last.
    held: u32,
    /// From then on it holds no more than its floor, if nothing more is heard of it.
    until: Instant,
    /// What it wanted, by when.
    wants: VecDeque<(Instant, u32)>,
    size: u32,
    /// What it should have.
    target: u32,
}

impl Holder {
    fn new(now: Instant) -> Self {
        Self {
            seen: now,
            claim: None,
            sent: VecDeque::new(),
            inherited: 0,
            held: 0,
            until: now + ENDED,
            wants: VecDeque::new(),
            size: 0,
            target: 0,
        }
    }

    /// Most connections that it may hold now, as far as can be known.
    fn bound(&self, now: Instant) -> u32 {
        if now >= self.until {
            return self.floor();
        }
        let sent = self.sent.iter().map(|sent| sent.most).max().unwrap_or(0);
        sent.max(self.claim.map_or(0, |(granted, _)| granted)).max(self.held)
    }

    /// Most connections that it may keep without any word from here.
    fn floor(&self) -> u32 {
        let sent = self.sent.iter().map(|sent| sent.floor).max().unwrap_or(0);
        sent.max(self.claim.map_or(0, |(_, floor)| floor))
    }

    /// What it has, or is about to have.
    fn current(&self) -> Option<(u32, u32)> {
        self.sent.back().map(|sent| (sent.most, sent.floor)).or(self.claim)
    }

    /// Takes a report into account; `confirmed`: the last grants of this life that are in force there; `earlier`: those
    /// in force are of an earlier life.
    fn hear(&mut self, usage: &Usage, (confirmed, earlier): (u64, bool), now: Instant) {
        self.seen = now;
        if now >= self.until {
            // What it had beyond its floor is somebody else's by now.
            self.sent.iter_mut().for_each(|sent| sent.most = sent.floor);
        }
        if earlier {
            self.inherited = self.inherited.max(usage.floor);
        }
        self.held = usage.held;
        self.size = usage.size;
        // A grant stays in force until a later one is: those in between may not have named this node.
        match self.sent.iter().rposition(|sent| sent.first <= confirmed) {
            Some(in_force) => {
                self.sent.drain(..in_force);
                self.claim = None;
            }
            None => self.claim = Some((usage.granted, usage.floor)),
        }
        // A grant of another life ends by the same clock.
        self.until = self.until.max(now + ENDED);
        self.wants.retain(|(at, wanted)| now.saturating_duration_since(*at) < PEAK && *wanted > usage.wanted);
        self.wants.push_back((now, usage.wanted));
    }

    /// The highest need of late, and a tenth more; no more than its pool takes.
    fn need(&self) -> u32 {
        let peak = self.wants.iter().map(|(_, wanted)| *wanted).max().unwrap_or(0);
        peak.saturating_add(peak.div_ceil(10)).min(self.size)
    }

    fn is_present(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen) < PRESENT
    }
}

impl Budget {
    /// Takes a report into account; false: there are too many data planes.
    pub fn hear(&mut self, who: &Who, usage: &Usage, confirmed: (u64, bool), now: Instant) -> bool {
        if !self.holders.contains_key(who) {
            if self.holders.len() >= MOST {
                return false;
            }
            self.counted = None;
        }
        self.holders.entry(who.clone()).or_insert_with(|| Holder::new(now)).hear(usage, confirmed, now);
        true
    }

    /// What a data plane had before this life: it keeps that. `None`: it had nothing; what it has helped itself to is not part
    /// of the budget.
    pub fn hand_back(&self, who: &Who) -> Option<(u32, u32)> {
        let holder = self.holders.get(who)?;
        holder.current().filter(|current| *current != (0, 0) || !holder.sent.is_empty())
    }

    /// Notes what a data plane is about to get.
    pub fn sent(&mut self, who: &Who, number: u64, (most, floor): (u32, u32), now: Instant) {
        let Some(holder) = self.holders.get_mut(who) else { return };
        holder.until = now + ENDED;
        match holder.sent.back() {
            Some(last) if (last.most, last.floor) == (most, floor) => {}
            _ => holder.sent.push_back(Sent { first: number, most, floor }),
        }
        if holder.sent.len() > MOST_SENT
            && let Some(oldest) = holder.sent.pop_front()
            && let Some(next) = holder.sent.front_mut()
        {
            next.first = oldest.first;
            next.most = next.most.max(oldest.most);
            next.floor = next.floor.max(oldest.floor);
        }
    }

    /// A part of the budget that is never granted to one data plane but as floors.
    fn reserve(&self) -> u32 {
        self.limit / 10 * 3 + self.limit % 10 * 3 / 10
    }

    fn floors(&self) -> u32 {
        self.holders.values().map(Holder::floor).fold(0, u32::saturating_add)
    }

    /// What data planes may hold, of which nothing has been heard in this life: their floors came out of the reserve.
    fn unheard(&self, unknown: bool) -> u32 {
        let inherited = self.holders.values().map(|holder| holder.inherited).fold(0, u32::saturating_add);
        if unknown { self.reserve().saturating_sub(inherited) } else { 0 }
    }

    /// What nobody may hold.
    pub fn free(&self, unknown: bool, now: Instant) -> u32 {
        self.spoken_for(unknown, now).map_or(0, |taken| self.limit - taken)
    }

    /// What is somebody's; `None`: more than there is.
    fn spoken_for(&self, unknown: bool, now: Instant) -> Option<u32> {
        let bounds = self.holders.values().map(|holder| holder.bound(now)).fold(0, u32::saturating_add);
        Some(bounds.saturating_add(self.unheard(unknown))).filter(|taken| *taken <= self.limit)
    }

    /// Counts needs, and what each data plane should have: max-min fair, its floor at least, and a floor more for each tenth
    /// data plane that may come.
    pub fn count(&mut self, unknown: bool, now: Instant) {
        if self.counted.is_some_and(|at| now.saturating_duration_since(at) < ROUND) {
            return;
        }
        self.counted = Some(now);
        self.forget(now);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let registered = number(self.holders.len());
        let spare = registered.div_ceil(10).max(1);
        let floor = (self.reserve() / registered.saturating_add(spare).max(FEWEST)).max(1);
        self.floor = floor;
        let absent = self.holders.values().filter(|holder| !holder.is_present(now));
        let kept = absent.map(|holder| holder.bound(now)).fold(self.unheard(unknown), u32::saturating_add);
        let mut present: Vec<_> = self.holders.values_mut().filter(|holder| holder.is_present(now)).collect();
        let left = self.limit.saturating_sub(kept);
        let least = number(present.len()).saturating_mul(floor);
        let spare = spare.saturating_mul(floor).min(left.saturating_sub(least));
        let needs: Vec<u32> = present.iter().map(|holder| holder.need().max(floor)).collect();
        for (holder, target) in present.iter_mut().zip(fair(left - spare, &needs)) {
            holder.target = target;
        }
    }

    /// Forgets who has been silent for too long, and who has been replaced by a new start of the same data plane.
    fn forget(&mut self, now: Instant) {
        let gone = |who: &Who, holder: &Holder| {
            let replaced =
                || self.holders.iter().any(|(other, h)| other.id == who.id && h.seen > holder.seen);
            now >= holder.until && (now.saturating_duration_since(holder.seen) >= FORGET || replaced())
        };
        let gone: Vec<Who> = self
            .holders
            .iter()
            .filter(|(who, holder)| gone(who, holder))
            .map(|(who, _)| who.clone())
            .collect();
        for who in gone {
            self.holders.remove(&who);
        }
    }

    /// What a data plane gets now: what it should have, as far as it is free.
    pub fn allot(&self, who: &Who, unknown: bool, now: Instant) -> (u32, u32) {
        let Some(holder) = self.holders.get(who) else { return (0, 0) };
        let (current, _) = holder.current().unwrap_or((0, 0));
        let (target, bound) = (holder.target, holder.bound(now));
        let scarce = self.free(unknown, now) < self.floor;
        let wanted = if worth(current, target, scarce) || current < self.floor { target } else { current };
        let most = match wanted.checked_sub(bound) {
            Some(more) => bound + more.min(self.free(unknown, now)),
            None => wanted,
        };
        // Floors come out of the reserve; but everybody has one.
        let others = self.floors().saturating_sub(holder.floor()).saturating_add(self.unheard(unknown));
        let floor = self.floor.min(self.reserve().saturating_sub(others)).max(1);
        (most, floor.min(most))
    }
}

/// Whether a change is worth it; `scarce`: the least that can be given back is.
fn worth(current: u32, target: u32, scarce: bool) -> bool {
    let change = current.abs_diff(target);
    change > SMALL || change.saturating_mul(10) > current || (scarce && target < current)
}

/// Shares out `all` max-min fair: nobody gets more than its need, and nobody could get more without taking from one who
/// has less.
#[must_use]
pub fn fair(all: u32, needs: &[u32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|at| needs.get(*at).copied());
    let mut shares = vec![0; needs.len()];
    let mut left = all;
    let mut waiting = u32::try_from(needs.len()).unwrap_or(u32::MAX);
    for at in order {
        let (Some(need), Some(share)) = (needs.get(at), shares.get_mut(at)) else { continue };
        *share = (*need).min(left / waiting.max(1));
        left -= *share;
        waiting = waiting.saturating_sub(1);
    }
    shares
}
