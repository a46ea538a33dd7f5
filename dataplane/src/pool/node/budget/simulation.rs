//! Both halves of a budget against thousands of made-up histories: the control plane's allocator and the shares of data
//! planes that start, die, are cut off for longer than their lease, report late or never, and do not give back; the
//! control plane restarts. After every step the sum of what data planes may hold is at most the budget, and what they hold
//! is at most what they may. A failure names its seed, which replays it.

use super::*;
use helios_controlplane::budget::{Allocator, Grants, LEASE, Report, Usage, Who};
use std::collections::VecDeque;

const SEEDS: u64 = 3_000;
const STEPS: u32 = 400;
const MOST: usize = 6;
/// The control plane knows who is cut off for at most so long over one restart.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(700);
const LONGEST_CUT: u64 = 400;

/// Numbers that a seed determines (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn number(&mut self, limit: u32) -> u32 {
        u32::try_from(self.below(limit.into())).unwrap()
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// A process with a pool.
struct Dataplane {
    who: Who,
    budget: Budget,
    wants: u32,
    held: u32,
    beat: u64,
    sent: Vec<(u64, Instant)>,
    in_force: (u64, u64),
    next_beat: Instant,
    cut_until: Instant,
    /// On their way, oldest first: reports to the control plane, grants from it.
    up: VecDeque<(Instant, Report)>,
    down: VecDeque<(Instant, Grants)>,
}

struct World {
    dice: Dice,
    now: Instant,
    limit: u32,
    allocator: Allocator,
    restarted: Instant,
    lives: u64,
    boots: u64,
    dataplanes: Vec<Dataplane>,
    granted: u64,
}

impl Dataplane {
    fn new(name: u64, boot: u64, limit: u32, now: Instant) -> Self {
        let mut budget = Budget::new(Source::Leased);
        budget.configure(Some(limit), now);
        Self {
            who: Who { id: format!("dp-{name}"), boot: boot.to_string() },
            budget,
            wants: 0,
            held: 0,
            beat: 0,
            sent: Vec::new(),
            in_force: (0, 0),
            next_beat: now,
            cut_until: now,
            up: VecDeque::new(),
            down: VecDeque::new(),
        }
    }

    /// What it may hold. Who was never granted anything holds nothing here: what it helps itself to is the one exception.
    fn may_hold(&self, now: Instant) -> u32 {
        let share = self.budget.granted.and_then(|_| self.budget.share(now)).unwrap_or(0);
        share.max(self.held)
    }

    fn report(&mut self, now: Instant, delay: Duration) {
        self.beat += 1;
        self.sent.push((self.beat, now));
        let (granted, floor) = self.budget.granted(now).unwrap_or_default();
        let usage =
            Usage { node: "n".to_owned(), held: self.held, wanted: self.wants, size: 50, granted, floor };
        let (of, number) = self.in_force;
        let report = Report { beat: self.beat, of, number, usages: vec![usage] };
        self.up.push_back((now + delay, report));
        self.next_beat = now + Duration::from_secs(1);
    }

    fn take(&mut self, grants: &Grants) {
        let Some((_, sent)) = self.sent.iter().find(|(beat, _)| *beat == grants.beat) else { return };
        self.in_force = (grants.of, grants.number);
        for share in &grants.shares {
            self.budget.grant(Granted { most: share.most, floor: share.floor, until: *sent + LEASE });
        }
    }

    /// Lets go of everything on its way: the stream is a new one from here on.
    fn disconnect(&mut self) {
        self.up.clear();
        self.down.clear();
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let (mut dice, now) = (Dice(seed), Instant::now());
        let limit = 60 + dice.number(140);
        let first = dice.one_in(2);
        let mut world = Self {
            dice,
            now,
            limit,
            allocator: Allocator::new(1, first, now),
            restarted: now,
            lives: 1,
            boots: 0,
            dataplanes: Vec::new(),
            granted: 0,
        };
        world.allocator.configure([("n", limit)].into_iter());
        world
    }

    fn is_cut(&self) -> bool {
        self.dataplanes.iter().any(|dataplane| dataplane.cut_until > self.now)
    }

    /// Something happens, or nothing.
    fn event(&mut self) {
        let at = usize::try_from(self.dice.below(6)).unwrap();
        let there = at < self.dataplanes.len();
        match self.dice.below(40) {
            0 if self.dataplanes.len() < MOST => {
                self.boots += 1;
                self.dataplanes.push(Dataplane::new(self.boots, self.boots, self.limit, self.now));
            }
            1 if there && self.dice.one_in(4) => drop(self.dataplanes.swap_remove(at)),
            2 if there && self.dice.one_in(4) => {
                self.boots += 1;
                let name = self.dataplanes[at].who.id.clone();
                self.dataplanes[at] = Dataplane::new(0, self.boots, self.limit, self.now);
                self.dataplanes[at].who.id = name;
            }
            3 | 4 if there => {
                let longest = if self.dice.one_in(2) { 20 } else { LONGEST_CUT };
                let cut = Duration::from_millis(self.dice.below(longest * 1_000));
                let until = &mut self.dataplanes[at].cut_until;
                if *until <= self.now {
                    *until = self.now + cut;
                }
                self.dataplanes[at].disconnect();
            }
            5 if !self.is_cut() || self.now >= self.restarted + BETWEEN_RESTARTS => self.restart(),
            6..=12 if there => self.dataplanes[at].wants = self.dice.number(60),
            _ => {}
        }
    }

    fn restart(&mut self) {
        self.lives += 1;
        self.restarted = self.now;
        self.allocator = Allocator::new(self.lives, false, self.now);
        self.allocator.configure([("n", self.limit)].into_iter());
        self.dataplanes.iter_mut().for_each(Dataplane::disconnect);
    }

    /// A moment passes: messages arrive, connections open and close.
    fn pass(&mut self) {
        self.now += Duration::from_millis(self.dice.below(900));
        let now = self.now;
        for dataplane in &mut self.dataplanes {
            // The time is up: what is overdue is cut.
            if dataplane.budget.is_overdue(now) {
                dataplane.held = dataplane.held.min(dataplane.budget.floor());
            }
            if dataplane.cut_until <= now {
                if dataplane.next_beat <= now {
                    let delay = if self.dice.one_in(10) { 4_000 } else { 100 };
                    dataplane.report(now, Duration::from_millis(self.dice.below(delay)));
                }
                while dataplane.up.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, report) = dataplane.up.pop_front().unwrap();
                    let grants = self.allocator.answer(&dataplane.who, &report, now);
                    // The latest counts: a slow reader gets no other.
                    if self.dice.one_in(5) {
                        dataplane.down.pop_back();
                    }
                    let delay = Duration::from_millis(self.dice.below(300));
                    dataplane.down.push_back((now + delay, grants));
                }
                while dataplane.down.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, grants) = dataplane.down.pop_front().unwrap();
                    dataplane.take(&grants);
                    self.granted += 1;
                }
            }
            let share = dataplane.may_hold(now).min(dataplane.budget.share(now).unwrap_or(0));
            let wants = dataplane.wants.min(share);
            if dataplane.budget.granted.is_none() {
                dataplane.held = 0;
            } else if wants > dataplane.held {
                dataplane.held += self.dice.number(wants - dataplane.held + 1);
            } else if !self.dice.one_in(3) {
                // Busy ones end when they end.
                dataplane.held -= self.dice.number(dataplane.held - wants + 1);
            }
        }
    }

    fn check(&self) {
        let all: u32 = self.dataplanes.iter().map(|dataplane| dataplane.may_hold(self.now)).sum();
        let each: Vec<_> = self
            .dataplanes
            .iter()
            .map(|d| {
                let silent = d.sent.last().map(|(_, at)| (self.now - *at).as_secs());
                let share = d.budget.share(self.now);
                (&d.who.id, d.held, share, d.budget.floor(), d.in_force, d.cut_until > self.now, silent)
            })
            .collect();
        let since = (self.now - self.restarted).as_secs();
        assert!(
            all <= self.limit,
            "{all} of {} {since} s after the start of life {}: {each:?}",
            self.limit,
            self.lives
        );
    }
}

#[test]
fn together_data_planes_never_may_hold_more_than_the_budget() {
    let mut granted = 0;
    for seed in 0..SEEDS {
        let history = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.event();
                world.pass();
                world.check();
            }
            world.granted
        });
        granted += history.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(granted > SEEDS * 50, "{granted} grants in {SEEDS} histories");
}

#[test]
fn in_calm_times_everybody_gets_what_is_fair() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        for name in 1..=4 {
            world.dataplanes.push(Dataplane::new(name, name, world.limit, world.now));
        }
        for (dataplane, wants) in world.dataplanes.iter_mut().zip([50, 50, 3, 0]) {
            dataplane.wants = wants;
        }
        // Long enough for a control plane that has to learn and to forget.
        for _ in 0..1_800 {
            world.pass();
            world.check();
        }
        let shares: Vec<_> = world.dataplanes.iter().map(|d| d.budget.share(world.now).unwrap()).collect();
        let busy = shares[0] + shares[1];
        assert!(shares[0].abs_diff(shares[1]) <= 2 + busy / 20 && shares[2] >= 3, "seed {seed}: {shares:?}");
        assert!(busy >= 90.min(world.limit * 2 / 3), "seed {seed}: {shares:?} of {}", world.limit);
    }
}
