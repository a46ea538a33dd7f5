//! Tables of the allocator. Histories with data planes that get lost stand beside the data plane's half.

use super::*;

/// An allocator whose time is told, and data planes that report to it.
struct Stage {
    allocator: Allocator,
    now: Instant,
}

/// A data plane that holds what it wants as far as it may.
struct Dataplane {
    who: Who,
    wants: u32,
    held: u32,
    share: (u32, u32),
    of: u64,
    number: u64,
}

fn dataplane(id: &str, wants: u32) -> Dataplane {
    let who = Who { id: id.to_owned(), boot: "1".to_owned() };
    Dataplane { who, wants, held: 0, share: (0, 0), of: 0, number: 0 }
}

impl Stage {
    fn new(limit: u32, first: bool) -> Self {
        let now = Instant::now();
        let mut allocator = Allocator::new(1, first, now);
        allocator.configure([("n", limit)].into_iter());
        Self { allocator, now }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// One report and its answer.
    fn beat(&mut self, dataplane: &mut Dataplane) {
        let usage = Usage {
            node: "n".to_owned(),
            held: dataplane.held,
            wanted: dataplane.wants,
            size: 100,
            granted: dataplane.share.0,
            floor: dataplane.share.1,
        };
        let report = Report { beat: 1, of: dataplane.of, number: dataplane.number, usages: vec![usage] };
        let grants = self.allocator.answer(&dataplane.who, &report, self.now);
        if let [share] = &grants.shares[..] {
            (dataplane.of, dataplane.number) = (grants.of, grants.number);
            dataplane.share = (share.most, share.floor);
            dataplane.held = dataplane.wants.min(share.most);
        }
    }

    /// So many seconds in which all report.
    fn run(&mut self, seconds: u64, dataplanes: &mut [&mut Dataplane]) {
        for _ in 0..seconds {
            self.pass(1);
            dataplanes.iter_mut().for_each(|dataplane| self.beat(dataplane));
        }
    }

    fn free(&self) -> u32 {
        self.allocator.standings(self.now)[0].free
    }
}

#[test]
fn shares_are_max_min_fair() {
    for (all, needs, shares) in [
        (12, vec![3, 3, 3], vec![3, 3, 3]),
        (12, vec![20, 1, 3], vec![8, 1, 3]),
        (11, vec![10, 10, 10], vec![3, 4, 4]),
        (2, vec![1, 1, 1], vec![0, 1, 1]),
        (0, vec![5], vec![0]),
        (9, vec![], vec![]),
    ] {
        assert_eq!(fair(all, &needs), shares, "{all} among {needs:?}");
    }
}

#[test]
fn who_needs_more_gets_more_and_what_is_given_back_moves_on() {
    let mut stage = Stage::new(100, true);
    let (mut busy, mut calm) = (dataplane("busy", 90), dataplane("calm", 10));
    stage.beat(&mut busy);
    stage.beat(&mut calm);
    assert!(calm.share.0 >= calm.share.1 && calm.share.1 == 3, "its floor at once: {:?}", calm.share);
    stage.run(3, &mut [&mut busy, &mut calm]);
    assert_eq!((busy.share, calm.share), ((86, 3), (11, 3)), "a floor is left for the next");
    (busy.wants, calm.wants) = (0, 90);
    stage.run(15, &mut [&mut busy, &mut calm]);
    assert_eq!((busy.share, calm.share), ((3, 3), (94, 3)));
    assert_eq!(stage.free(), 3);
}

#[test]
fn a_connection_that_is_still_held_is_not_given_to_another() {
    let mut stage = Stage::new(40, true);
    let (mut old, mut new) = (dataplane("old", 40), dataplane("new", 40));
    stage.run(2, &mut [&mut old]);
    let before = old.share.0;
    assert_eq!(before, 39);
    stage.beat(&mut new);
    assert_eq!(new.share, (1, 1));
    for _ in 0..5 {
        stage.pass(1);
        stage.beat(&mut old);
        old.held = before;
        stage.beat(&mut new);
        assert_eq!((old.share.0, new.share.0), (20, 1), "asked for, not given back");
    }
    stage.run(2, &mut [&mut old, &mut new]);
    assert_eq!((old.share.0, new.share.0), (20, 19));
}

#[test]
fn the_share_of_a_silent_data_plane_is_free_after_its_lease_and_its_floor_when_it_is_forgotten() {
    let mut stage = Stage::new(40, true);
    let (mut gone, mut here) = (dataplane("gone", 30), dataplane("here", 40));
    stage.run(3, &mut [&mut gone, &mut here]);
    let left = gone.share.0;
    assert!(left > 10);
    stage.run(40, &mut [&mut here]);
    assert!(here.share.0 <= 40 - left, "{:?} beside {left}", here.share);
    stage.run(3, &mut [&mut here]);
    assert_eq!(here.share.0, 40 - 1 - 1, "all but the floor of one and the spare");
    assert_eq!(stage.free(), 1);
    stage.run(600, &mut [&mut here]);
    assert_eq!(stage.free(), 2, "one more for here would not be worth it");
}

#[test]
fn a_new_start_of_a_data_plane_does_not_get_what_the_old_one_may_hold() {
    let mut stage = Stage::new(40, true);
    let mut old = dataplane("a", 40);
    stage.run(3, &mut [&mut old]);
    let mut new = dataplane("a", 40);
    new.who.boot = "2".to_owned();
    stage.run(30, &mut [&mut new]);
    assert_eq!(new.share.0, 1);
    stage.run(15, &mut [&mut new]);
    assert_eq!(new.share.0, 39, "and no floor for the old one");
}

#[test]
fn after_a_start_shares_are_handed_back_as_they_are_until_every_lease_has_ended() {
    let mut stage = Stage::new(100, false);
    let (mut known, mut stranger) = (dataplane("known", 80), dataplane("stranger", 80));
    (known.of, known.number, known.share, known.held) = (7, 99, (50, 3), 50);
    stage.run(40, &mut [&mut known, &mut stranger]);
    assert_eq!((known.share, stranger.share), ((50, 3), (0, 0)), "who had nothing gets nothing yet");
    assert_eq!(stage.free(), 0);
    stage.run(4, &mut [&mut known, &mut stranger]);
    let total = known.share.0 + stranger.share.0;
    assert!(stranger.share.0 > 20 && total <= 100 - 24, "floors of who was never heard are kept: {total}");
    stage.run(650, &mut [&mut known, &mut stranger]);
    assert_eq!(known.share.0 + stranger.share.0, 97);
}

#[test]
fn a_smaller_budget_is_asked_back() {
    let mut stage = Stage::new(100, true);
    let (mut a, mut b) = (dataplane("a", 90), dataplane("b", 90));
    stage.run(3, &mut [&mut a, &mut b]);
    stage.allocator.configure([("n", 20)].into_iter());
    stage.run(2, &mut [&mut a, &mut b]);
    assert_eq!((a.share.0 + b.share.0, stage.free()), (19, 1));
    stage.allocator.configure([].into_iter());
    stage.run(1, &mut [&mut a]);
    assert!(stage.allocator.standings(stage.now).is_empty());
}
