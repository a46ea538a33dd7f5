//! The core against thousands of made-up histories: servers die, are promoted, come back as they were or rewound, cannot be
//! reached, are full, are replaced by strangers; probes arrive late and out of order between nodes; connections tell true
//! and false tales; the control plane restarts, and a data plane goes on alone and comes back. In every second history
//! Patroni has the say: its lock moves, its answers come late, out of order or not at all. In some of the others operators
//! vouch for nodes, wisely or not. After every step what must
//! always hold is checked. A failure names its seed, which replays it.

use super::*;
use crate::authority::Holder;
use crate::dice::Dice;
use crate::health::FailureKind;
use helios_proto::config;
use std::collections::VecDeque;

const TEXT: &str = "[health]\nuser = \"probe\"\n[[nodes]]\nhost = \"a\"\nrole = \"primary\"\n[[nodes]]\nhost = \"b\"\n\
    role = \"standby\"\n[[nodes]]\nhost = \"c\"\nrole = \"standby\"\n[[nodes]]\nhost = \"d\"\nrole = \"replica\"\n";
const PATRONI: &str = "[topology]\nprovider = \"patroni\"\npatroni_endpoints = [\"http://a:8008\"]\n";
const OURS: u64 = 7;
const SEEDS: u64 = 4_000;
const STEPS: u32 = 150;
/// Rounds of probes after which a lone primary must be known: a node that was down needs two good ones.
const ROUNDS: u32 = 4;

/// A server as it really is.
#[derive(Debug, Clone, Copy)]
struct Server {
    alive: bool,
    reachable: bool,
    full: bool,
    in_recovery: bool,
    timeline: u32,
    system: u64,
}

type Outcome = Result<Reply, Failure>;

/// An arbiter: the control plane's, or that of a data plane that is alone.
struct Arbiter {
    cluster: Cluster,
    /// What the last probe that was delivered of each node showed; `None`: nothing since it was down.
    seen: [Option<Facts>; 4],
    /// On an old timeline when last looked at, and not seen to follow since.
    zombies: [bool; 4],
    /// Looks in a row at a standby on an old timeline.
    behind: [u32; 4],
    key: TopologyKey,
    word: Heard,
}

/// Patroni's last word.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    asked: Option<Instant>,
    holder: Option<usize>,
    up: bool,
    /// It has just come.
    news: bool,
}

struct World {
    dice: Dice,
    servers: [Server; 4],
    nodes: Vec<Arc<Node>>,
    now: Instant,
    /// Probes under way, of each node in order.
    late: [VecDeque<Outcome>; 4],
    control: Arbiter,
    alone: Option<Arbiter>,
    /// Who holds Patroni's lock; not used where Patroni has no say.
    holder: Option<usize>,
    /// Answers of Patroni under way.
    words: Vec<(Instant, Option<usize>)>,
    /// Operators vouch for nodes; how often they did.
    vouching: bool,
    vouches: u32,
}

fn look(server: &Server) -> Outcome {
    let failure = |kind| Err(Failure { kind, text: "no".into() });
    let Server { alive, reachable, full, in_recovery, timeline, system } = *server;
    if !alive || !reachable {
        return failure(if alive { FailureKind::NoAnswer } else { FailureKind::Unreachable });
    }
    if full {
        return failure(FailureKind::Full);
    }
    let (timeline, follows) = if in_recovery { (0, Some(timeline)) } else { (timeline, None) };
    let facts =
        Facts { in_recovery, system, timeline, follows, streams: in_recovery, wal: Some(1), replayed: None };
    Ok(Reply { latency: Duration::from_millis(1), facts: Some(facts) })
}

impl Arbiter {
    fn new(cluster: Cluster) -> Self {
        let key = cluster.key();
        Self { cluster, seen: [None; 4], zombies: [false; 4], behind: [0; 4], key, word: Heard::default() }
    }

    fn probed(&mut self, node: &Arc<Node>, at: usize, outcome: &Outcome, now: Instant) {
        if let Ok(Reply { facts, .. }) = outcome {
            self.seen[at] = *facts;
            let follows = facts.and_then(|facts| facts.follows);
            let behind = follows.is_some_and(|follows| follows < self.cluster.key().timeline);
            self.behind[at] = if behind { self.behind[at] + 1 } else { 0 };
        }
        self.apply(Event::Probed { node: Arc::clone(node), outcome: outcome.clone() }, now);
        if self.cluster.members[at].verdict.health() == Health::Down {
            (self.seen[at], self.behind[at]) = (None, 0);
        }
    }

    fn apply(&mut self, event: Event, now: Instant) {
        let mut before = (self.cluster.primary, self.cluster.key());
        if let Event::Held(held) = &event {
            // Whoever tells has had the proof.
            before.1.epoch = before.1.epoch.max(held.key.epoch);
        }
        self.cluster.apply(event, now);
        self.check(before);
    }

    fn told(&mut self, asked: Instant, holder: Result<Option<usize>, ()>, now: Instant) {
        if self.cluster.spec.health.patroni.is_none() {
            return;
        }
        self.word.news = match holder {
            Ok(holder) if self.word.asked.is_none_or(|last| last <= asked) => {
                self.word = Heard { asked: Some(asked), holder, up: true, news: true };
                true
            }
            Ok(_) => false,
            Err(()) => {
                self.word.up = false;
                false
            }
        };
        let name = |i: usize| self.cluster.members[i].state.node.name.to_string();
        let told = holder.map(|holder| holder.map(|i| Holder { name: name(i), address: None }));
        self.apply(Event::Told { asked, told: told.map_err(|()| "no".into()) }, now);
        self.word.news = false;
    }

    /// Where Patroni has the say nobody is the primary against its word.
    fn check_word(&self, (before, key_before): (Option<usize>, TopologyKey)) {
        let (cluster, word) = (&self.cluster, self.word);
        if let Some(primary) = cluster.primary.filter(|_| cluster.spec.health.patroni.is_some()) {
            let named = word.up && word.holder == Some(primary);
            let kept = cluster.key().epoch == key_before.epoch;
            assert!(before == Some(primary) || named || kept, "a new primary without the lock");
            assert!(!word.news || named, "a primary against Patroni's word");
        }
        for (i, member) in cluster.members.iter().enumerate().filter(|_| word.news) {
            let writes = member.facts.is_some_and(|facts| !facts.in_recovery);
            let used = member.state.health != Health::Down;
            // An answer older than what was seen meanwhile convicts nobody.
            let certain = !matches!(cluster.lock(), Lock::Unknown | Lock::Stale(_));
            assert!(
                !(writes && used && certain) || word.holder == Some(i),
                "a writer without the lock is in use"
            );
        }
    }

    fn check(&mut self, (before, key_before): (Option<usize>, TopologyKey)) {
        self.check_word((before, key_before));
        let (cluster, key) = (&self.cluster, self.cluster.key());
        assert!(key >= self.key, "the topology went back: {:?} -> {key:?}", self.key);
        self.key = key;
        for ((zombie, seen), member) in self.zombies.iter_mut().zip(self.seen).zip(&cluster.members) {
            // What is known no longer, or was when the timeline was another one, convicts nobody.
            if let Some(facts) = seen.filter(|_| member.facts.is_some()) {
                let ours = Some(facts.system) == cluster.system;
                *zombie = ours && !facts.in_recovery && facts.timeline < key.timeline;
            }
        }
        let primaries: Vec<usize> =
            (0..4).filter(|i| cluster.members[*i].state.role == Role::Primary).collect();
        if let Some(primary) = cluster.primary {
            assert_eq!(primaries, [primary], "one primary, and it is called so");
            assert_ne!(primary, 3, "a replica is never the primary");
            assert_ne!(cluster.members[primary].state.health, Health::Down, "a primary that is down");
            assert_eq!(cluster.last_primary.as_ref(), Some(&cluster.members[primary].state.node.name));
            if let Some(facts) = self.seen[primary] {
                assert!(!facts.in_recovery, "a standby is the primary");
                assert!(facts.timeline >= key.timeline, "a zombie is the primary");
                assert!(cluster.system.is_none_or(|own| facts.system == own), "a stranger is the primary");
            }
            assert!(!self.zombies[primary], "a zombie is the primary before it was seen to follow");
            if before != Some(primary) && key.timeline > 0 && key.epoch > key_before.epoch {
                assert!(self.seen[primary].is_some(), "a new primary without proof");
            }
        } else {
            assert!(primaries.len() <= 1, "{primaries:?}");
        }
        for i in 0..4 {
            let health = cluster.members[i].state.health;
            assert!(!self.zombies[i] || health == Health::Down, "a zombie is in use");
            let old = self.behind[i] >= cluster.spec.health.failure_threshold && cluster.primary.is_some();
            assert!(!old || health == Health::Down, "old data are read though there is a primary");
        }
        let all = || cluster.members.iter();
        let served = all().any(|member| member.state.health != Health::Down);
        let ours = |m: &Member| m.facts.is_some_and(|facts| Some(facts.system) == cluster.system);
        let stands_by = |m: &Member| m.verdict.health() == Health::Up && m.hot_standby == Some(true);
        let could = all().any(|member| stands_by(member) && ours(member));
        assert!(served || !could, "reads have nowhere to go");
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let text = if seed % 2 == 1 { format!("{PATRONI}{TEXT}") } else { TEXT.to_owned() };
        let spec = config::parse(&text, "test", &|_| None).unwrap().spec;
        let server = Server {
            alive: true,
            reachable: true,
            full: false,
            in_recovery: true,
            timeline: 1,
            system: OURS,
        };
        let mut servers = [server; 4];
        servers[0].in_recovery = false;
        Self {
            dice: Dice(seed),
            servers,
            nodes: spec.nodes.clone(),
            now: Instant::now(),
            late: Default::default(),
            control: Arbiter::new(Cluster::new(spec, &Latch::default())),
            alone: None,
            holder: Some(0),
            words: Vec::new(),
            vouching: seed % 4 == 2,
            vouches: 0,
        }
    }

    fn arbiters(&mut self) -> impl Iterator<Item = &mut Arbiter> {
        std::iter::once(&mut self.control).chain(self.alone.as_mut())
    }

    fn deliver(&mut self, at: usize, outcome: &Outcome) {
        let (node, now) = (Arc::clone(&self.nodes[at]), self.now);
        self.arbiters().for_each(|arbiter| arbiter.probed(&node, at, outcome, now));
    }

    fn step(&mut self) {
        let at = usize::try_from(self.dice.below(4)).unwrap();
        self.now += Duration::from_millis(self.dice.below(400));
        match self.dice.below(100) {
            0..45 => {
                let outcome = look(&self.servers[at]);
                self.late[at].push_back(outcome);
                if self.dice.below(3) > 0 {
                    while let Some(outcome) = self.late[at].pop_front() {
                        self.deliver(at, &outcome);
                    }
                }
            }
            45..60 => {
                if let Some(outcome) = self.late[at].pop_front() {
                    self.deliver(at, &outcome);
                }
            }
            60..70 => self.tell(at),
            70..73 => self.restart(),
            73..76 => self.part_and_meet(),
            84..88 if self.vouching => self.vouch(at),
            76..84 if self.control.cluster.spec.health.patroni.is_some() => self.patroni(at),
            _ => self.happen(at),
        }
    }

    /// Something happens to a server.
    fn happen(&mut self, at: usize) {
        let newest = (0..3).filter(|i| !self.servers[*i].in_recovery).map(|i| self.servers[i].timeline).max();
        let chance = self.dice.below(100);
        let server = &mut self.servers[at];
        match chance {
            0..20 => server.alive = false,
            20..50 => server.alive = true,
            50..60 => server.reachable = !server.reachable,
            60..65 => server.full = !server.full,
            // From its own timeline: two that are promoted apart from each other reach the same one.
            65..80 if server.alive && server.in_recovery => {
                (server.in_recovery, server.timeline) = (false, server.timeline + 1);
            }
            // Rewound: it follows the newest.
            80..97 => {
                server.in_recovery = true;
                server.timeline = newest.unwrap_or(server.timeline);
                server.system = OURS;
            }
            97 => (server.system, server.in_recovery, server.timeline) = (99, false, 50),
            _ => {}
        }
    }

    /// An operator vouches for a node, if there is a reason to.
    fn vouch(&mut self, at: usize) {
        let name = |i: usize| self.nodes[i].name.clone();
        let may = |i: &usize| self.control.cluster.acceptance(name(*i).as_str()).is_ok();
        let Some(at) = (0..4).map(|i| (at + i) % 4).find(may) else { return };
        let (name, now) = (name(at), self.now);
        let accepted = self.control.cluster.acceptance(name.as_str()).unwrap();
        let mut spec = self.control.cluster.spec().clone();
        spec.ops.values_mut().for_each(|marks| marks.accepted = None);
        spec.ops.entry(name).or_default().accepted = Some(accepted);
        self.control.apply(Event::Reload(spec), now);
        self.vouches += 1;
        assert_eq!(self.control.cluster.primary, Some(at), "a word that was taken counts");
    }

    /// Something happens to Patroni's lock, or an answer comes.
    fn patroni(&mut self, at: usize) {
        let (now, holder) = (self.now, self.holder);
        match self.dice.below(10) {
            0 => self.holder = None,
            1..3 => {
                self.holder = Some(at);
                let newest = self.servers.iter().map(|server| server.timeline).max().unwrap();
                let promoted = self.dice.below(2) == 0;
                let server = &mut self.servers[at];
                if promoted && server.alive && server.in_recovery {
                    (server.in_recovery, server.timeline) = (false, newest + 1);
                }
            }
            3..5 => self.words.push((now, holder)),
            5..7 => self.arbiters().for_each(|arbiter| arbiter.told(now, Ok(holder), now)),
            7 => self.arbiters().for_each(|arbiter| arbiter.told(now, Err(()), now)),
            _ if !self.words.is_empty() => {
                let which = usize::try_from(self.dice.below(self.words.len().try_into().unwrap())).unwrap();
                let (asked, holder) = self.words.swap_remove(which);
                self.arbiters().for_each(|arbiter| arbiter.told(asked, Ok(holder), now));
            }
            _ => {}
        }
    }

    /// A connection tells something, not always the truth of this moment.
    fn tell(&mut self, at: usize) {
        let evidence = match self.dice.below(4) {
            0 => Evidence::ConnectFailed,
            1 => Evidence::ConnectionLost,
            2 => Evidence::InHotStandby(self.servers[at].in_recovery),
            _ => Evidence::InHotStandby(self.dice.below(2) == 0),
        };
        let (node, now) = (self.nodes[at].name.clone(), self.now);
        self.arbiters().for_each(|arbiter| {
            // What a connection says is newer than a probe that is out of date.
            if matches!(evidence, Evidence::InHotStandby(_)) && arbiter.cluster.members[at].facts.is_none() {
                arbiter.seen[at] = None;
            }
            arbiter.apply(Event::Evidence { node: node.clone(), evidence }, now);
        });
    }

    /// The control plane dies and comes back with what it had latched.
    fn restart(&mut self) {
        let old = &self.control.cluster;
        let TopologyKey { incarnation, timeline, epoch } = old.key();
        let latch = Latch {
            snapshot: 1,
            incarnation,
            timeline,
            epoch,
            system: old.system(),
            primary: old.last_primary().map(NodeName::to_string),
        };
        let cluster = Cluster::new(old.spec().clone(), &latch);
        let key = self.control.key;
        self.control = Arbiter { key, ..Arbiter::new(cluster) };
        self.control.check((None, key));
    }

    /// A data plane loses the control plane, or finds it again.
    fn part_and_meet(&mut self) {
        let now = self.now;
        match self.alone.take() {
            None => {
                let (_, snapshots) = crate::publish::Publisher::new(&self.control.cluster, 0, now);
                let mut alone = Arbiter::new(Cluster::resume(&snapshots.borrow()));
                let key = alone.key;
                assert_eq!(alone.cluster.primary, self.control.cluster.primary, "nothing changes by itself");
                alone.check((alone.cluster.primary, key));
                self.alone = Some(alone);
            }
            Some(alone) => {
                let theirs = alone.cluster.key();
                let held = Held {
                    revision: 1,
                    key: theirs,
                    last_primary: alone.cluster.last_primary().cloned(),
                    system: alone.cluster.system(),
                };
                self.control.apply(Event::Held(held), now);
                let strangers = alone.cluster.system() != self.control.cluster.system();
                assert!(strangers || self.control.key >= theirs, "what was found out alone is not lost");
            }
        }
    }

    /// All is well from now on: the control plane must find a primary that is beyond doubt.
    fn settle(&mut self) {
        self.late.iter_mut().for_each(VecDeque::clear);
        for server in &mut self.servers {
            (server.reachable, server.full) = (true, false);
        }
        for _ in 0..ROUNDS {
            self.now += Duration::from_secs(5);
            for at in 0..4 {
                let outcome = look(&self.servers[at]);
                self.deliver(at, &outcome);
            }
            let (now, holder) = (self.now, self.holder);
            self.arbiters().for_each(|arbiter| arbiter.told(now, Ok(holder), now));
        }
        self.words.clear();
        let cluster = &self.control.cluster;
        let Some(system) = cluster.system() else { return };
        let able = |i: &usize| {
            let server = &self.servers[*i];
            server.alive && !server.in_recovery && server.system == system
        };
        if cluster.spec.health.patroni.is_some() {
            let old = |i: &usize| self.servers[*i].timeline < cluster.key().timeline;
            let fit = self.holder.filter(|i| *i < 3 && able(i) && !old(i));
            assert_eq!(cluster.primary, fit, "the holder of the lock, if it is fit, and nobody else");
            return;
        }
        if cluster.vouched().is_some() {
            return;
        }
        let newest = (0..3).filter(able).map(|i| self.servers[i].timeline).max().unwrap_or(0);
        let best: Vec<usize> = (0..3).filter(able).filter(|i| self.servers[*i].timeline == newest).collect();
        if newest < cluster.key().timeline || best.is_empty() {
            assert_eq!(cluster.primary, None, "nobody is fit");
        } else if let [only] = best[..] {
            let promoted = newest > cluster.key().timeline;
            let same = cluster.last_primary().is_none_or(|name| *name == self.nodes[only].name);
            if promoted || same {
                assert_eq!(cluster.primary, Some(only), "the only primary is not found");
            }
        } else {
            assert_eq!(cluster.primary, None, "nothing tells them apart");
        }
    }
}

#[test]
fn whatever_happens_the_topology_stays_sound() {
    let mut vouches = 0;
    for seed in 0..SEEDS {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for step in 0..STEPS {
                world.step();
                if step % 50 == 49 {
                    world.settle();
                }
            }
            world.vouches
        });
        vouches += run.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(vouches > 100, "{vouches}");
}
