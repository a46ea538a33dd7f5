//! Messages are made once; and whatever a network does to them, a data plane ends with what the control plane has.
//! The data plane is the real one's [`Mirror`]; the network loses, repeats and swaps, as a seed says.

use super::*;
use crate::dice::Dice;
use helios_proto::config;
use helios_proto::model::{Health, NodeOps, Role};
use helios_proto::wire::{Mirror, Verdict};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// A configuration by a few random choices.
fn text(rng: &mut Dice) -> String {
    let mut text = format!("[pool_mode]\nmax_pool_size = {}\n", 10 + rng.below(3));
    for user in 0..rng.below(5) {
        text += &format!("[[users]]\nname = \"u{user}\"\npassword = \"p{}\"\n", rng.below(2));
    }
    text += "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    for node in 0..rng.below(5) {
        let name = rng.below(2) * 5 + node;
        text += &format!(
            "[[nodes]]\nname = \"r{name}\"\nhost = \"h{name}{}\"\nrole = \"replica\"\n",
            rng.below(2)
        );
    }
    text
}

/// What the control plane has at first.
fn first() -> Snapshot {
    let spec =
        config::parse("[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n", "test", &|_| None).unwrap().spec;
    let mut first = Snapshot {
        revision: 1,
        config_revision: 1,
        epoch: 1,
        timeline: 1,
        incarnation: 0,
        system: None,
        last_primary: None,
        settings: spec.settings,
        health: Arc::new(spec.health),
        nodes: Vec::new(),
        primary: Some(0),
        hold: None,
        authority: None,
        cache_flush: 0,
    };
    first.nodes = spec.nodes.iter().map(state).collect();
    first
}

fn state(node: &Arc<helios_proto::model::Node>) -> NodeState {
    NodeState::unknown(Arc::clone(node), NodeOps::default())
}

/// The next snapshot: another configuration, a mark on a node, or a node's health.
fn next(rng: &mut Dice, before: &Snapshot) -> Snapshot {
    let mut next = before.clone();
    next.revision += 1;
    match rng.below(3) {
        0 => {
            let spec = config::parse(&text(rng), "test", &|_| None).unwrap().spec;
            next.config_revision += 1;
            (next.settings, next.health) = (spec.settings, Arc::new(spec.health));
            next.nodes = spec.nodes.iter().map(state).collect();
            next.primary = next.nodes.iter().position(|node| node.role == Role::Primary);
        }
        1 => {
            let at = usize::try_from(rng.below(10)).unwrap() % next.nodes.len();
            next.nodes[at].ops.weight = Some(u32::try_from(rng.below(3)).unwrap());
        }
        _ => {
            let at = usize::try_from(rng.below(10)).unwrap() % next.nodes.len();
            next.nodes[at].health = if rng.one_in(2) { Health::Up } else { Health::Down };
        }
    }
    next
}

/// One data plane, its stream, and the control plane's side of it.
struct World {
    fanout: Arc<Fanout>,
    now: Arc<Snapshot>,
    last: Option<(u64, Arc<Configuration>)>,
    wire: VecDeque<v1::CpMsg>,
    mirror: Mirror,
    force: Snapshot,
    strange: u32,
    rng: Dice,
    resyncs: u32,
    again: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut force = first();
        force.revision = 0;
        Self {
            fanout: Fanout::new(Arc::default()),
            now: Arc::new(first()),
            last: None,
            wire: VecDeque::new(),
            mirror: Mirror::default(),
            force,
            strange: 0,
            rng: Dice(seed),
            resyncs: 0,
            again: 0,
        }
    }

    fn send(&mut self) {
        let last = self.last.as_ref().map(|(_, last)| last);
        let message = self.fanout.message(&self.now, (last, true), Instant::now());
        self.last = Some((message.snapshot.revision, message.configuration));
        self.wire.push_back(v1::CpMsg::decode(message.bytes).unwrap());
    }

    fn beat(&mut self) {
        let Some((revision, last)) = &self.last else { return };
        let beat = v1::Heartbeat { revision: *revision, sha256: last.sha256.clone() };
        self.wire.push_back(v1::CpMsg { nonce: 0, msg: Some(cp_msg::Msg::Heartbeat(beat)) });
    }

    /// What a network does that is not TCP.
    fn harm(&mut self) {
        let Some(at) = usize::try_from(self.rng.below(8)).ok().filter(|at| *at < self.wire.len()) else {
            return;
        };
        match self.rng.below(3) {
            0 => drop(self.wire.remove(at)),
            1 => self.wire.insert(at, self.wire[at].clone()),
            _ => self.wire.swap(0, at),
        }
    }

    /// The data plane takes the next message.
    fn take(&mut self) {
        let Some(v1::CpMsg { msg: Some(msg), .. }) = self.wire.pop_front() else { return };
        let now = Instant::now();
        let verdict = match msg {
            cp_msg::Msg::Full(full) => self.mirror.full(full, &self.force, now),
            cp_msg::Msg::Delta(delta) => self.mirror.delta(delta, &self.force, now),
            cp_msg::Msg::Topology(topology) => self.mirror.topology(&topology, &self.force, now),
            cp_msg::Msg::Heartbeat(beat) => return self.compare(&beat),
            cp_msg::Msg::Peers(_) | cp_msg::Msg::Grants(_) => return,
        };
        match verdict {
            Verdict::Take(accepted) => self.force = accepted.snapshot,
            Verdict::Resync(_) => {
                self.resyncs += 1;
                self.last = None;
                self.send();
            }
            Verdict::Same | Verdict::Refuse(_) | Verdict::Ignore => {}
        }
    }

    fn compare(&mut self, beat: &v1::Heartbeat) {
        let agrees = beat.revision == self.force.revision && beat.sha256 == self.mirror.sha256();
        self.strange = if agrees { 0 } else { self.strange + 1 };
        if self.strange >= 3 {
            self.again += 1;
            self.strange = 0;
            self.wire.clear();
            self.mirror.begin();
            self.last = None;
            // As the core does when a data plane is as far as it is itself.
            if self.force.revision >= self.now.revision {
                let revision = self.force.revision + 1;
                self.now = Arc::new(Snapshot { revision, ..self.now.as_ref().clone() });
            }
            self.send();
        }
    }

    fn assert_same(&self, seed: u64) {
        let (here, there) = (Configuration::of(&self.now), Configuration::of(&self.force));
        assert!(here.sha256 == there.sha256 && here.sha256 == self.mirror.sha256(), "seed {seed}");
        assert_eq!(here.revision, there.revision, "seed {seed}");
        assert_eq!(self.force.revision, self.now.revision, "seed {seed}");
        let health = |snapshot: &Snapshot| snapshot.nodes.iter().map(|n| n.health).collect::<Vec<_>>();
        assert_eq!(health(&self.force), health(&self.now), "seed {seed}");
        assert_eq!(self.force.settings, self.now.settings, "seed {seed}");
    }
}

/// Many changes, with or without harm, some taken late; then rest.
fn run(seed: u64, harm: bool) -> World {
    let mut world = World::new(seed);
    world.send();
    for _ in 0..60 {
        if world.rng.one_in(2) {
            world.now = Arc::new(next(&mut world.rng, &world.now));
            // Otherwise the data plane reads slowly: the next message spans both.
            if world.rng.one_in(2) {
                world.send();
            }
        }
        if world.rng.one_in(4) {
            world.beat();
        }
        if harm && world.rng.one_in(3) {
            world.harm();
        }
        if world.rng.one_in(2) {
            world.take();
        }
    }
    if world.last.as_ref().is_none_or(|(revision, _)| *revision < world.now.revision) {
        world.send();
    }
    for _ in 0..40 {
        world.beat();
        while !world.wire.is_empty() {
            world.take();
        }
    }
    world
}

#[test]
fn whatever_is_lost_repeated_or_swapped_a_data_plane_ends_with_the_right_state() {
    let (mut resyncs, mut again, mut deltas) = (0, 0, 0);
    for seed in 0..3_000 {
        let world = run(seed, true);
        world.assert_same(seed);
        (resyncs, again) = (resyncs + world.resyncs, again + world.again);
        deltas += world.fanout.counts.messages().find(|(kind, _)| *kind == "delta").unwrap().1;
    }
    assert!(
        resyncs > 500 && again > 500 && deltas > 10_000,
        "{resyncs} {again} {deltas}: nothing was tested"
    );
}

#[test]
fn over_a_good_connection_everything_fits_and_a_slow_reader_skips() {
    for seed in 0..1_000 {
        let world = run(seed, false);
        world.assert_same(seed);
        assert_eq!((world.resyncs, world.again), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_message_is_made_once_for_all_who_need_the_same() {
    let counts = Arc::<Counts>::default();
    let (fanout, at) = (Fanout::new(Arc::clone(&counts)), Instant::now());
    let encoded = || counts.encoded.load(Ordering::Relaxed);
    let one = Arc::new(first());
    let held: Vec<_> = (0..100).map(|_| fanout.message(&one, (None, true), at).configuration).collect();
    assert_eq!(encoded(), 1);
    let mut drained = Snapshot { revision: 2, ..one.as_ref().clone() };
    drained.nodes[0].ops.drained = true;
    let two = Arc::new(drained);
    let bytes: Vec<_> = held.iter().map(|held| fanout.message(&two, (Some(held), true), at).bytes).collect();
    assert!(bytes.iter().all(|each| each.as_ptr() == bytes[0].as_ptr()), "the same bytes, not copies");
    assert_eq!(encoded(), 2);
    // An older data plane gets all of it, and an older look at the state does not go back.
    let old = fanout.message(&one, (held.first(), false), at);
    assert_eq!(old.snapshot.revision, 2);
    let full = v1::CpMsg::decode(old.bytes).unwrap();
    assert!(matches!(full.msg, Some(cp_msg::Msg::Full(_))));
    // Ages must not be those of long ago.
    fanout.message(&two, (held.first(), true), at + FRESH);
    assert_eq!(encoded(), 4);
    let mut all: Vec<(&str, u64)> = counts.messages().collect();
    all.sort_unstable();
    assert_eq!(all, [("delta", 101), ("full", 101), ("topology", 0)]);
}
