//! The cluster driven event by event, with a clock of its own.

use super::*;
use crate::health::FailureKind;
use helios_proto::config;

/// A cluster, its time, and short words for events.
struct Stage {
    cluster: Cluster,
    nodes: Vec<Arc<Node>>,
    now: Instant,
}

const THREE: &str = "[[nodes]]\nhost = \"p\"\nrole = \"primary\"\n[[nodes]]\nhost = \"s\"\nrole = \"standby\"\n\
    [[nodes]]\nhost = \"r\"\nrole = \"replica\"\n";
const LOGIN: &str = "[health]\nuser = \"probe\"\n";

fn spec(text: &str) -> Spec {
    config::parse(text, "test", &|_| None).unwrap_or_else(|report| panic!("{report}")).spec
}

impl Stage {
    fn new(text: &str) -> Self {
        let spec = spec(text);
        let nodes = spec.nodes.clone();
        Self { cluster: Cluster::new(spec, &Latch::default()), nodes, now: Instant::now() }
    }

    fn outcome(&mut self, node: usize, outcome: Result<Reply, Failure>) -> Change {
        let event = Event::Probed { node: Arc::clone(&self.nodes[node]), outcome };
        self.cluster.apply(event, self.now)
    }

    fn answers(&mut self, node: usize) -> Change {
        self.outcome(node, Ok(Reply { latency: Duration::from_millis(1), facts: None }))
    }

    fn all_answer(&mut self) {
        for node in 0..3 {
            self.answers(node);
        }
    }

    fn fails(&mut self, node: usize, kind: FailureKind) -> Change {
        self.outcome(node, Err(Failure { kind, text: "it broke".into() }))
    }

    fn goes_down(&mut self, node: usize) {
        for _ in 0..3 {
            self.fails(node, FailureKind::Unreachable);
        }
    }

    /// A writable node on this timeline and WAL position.
    fn writes(&mut self, node: usize, timeline: u32, wal: u64) -> Change {
        let facts = Facts {
            in_recovery: false,
            system: 7,
            timeline,
            follows: None,
            streams: false,
            wal: Some(wal),
            replayed: None,
        };
        self.outcome(node, Ok(Reply { latency: Duration::from_millis(1), facts: Some(facts) }))
    }

    fn replays(&mut self, node: usize, wal: u64) -> Change {
        self.follows(node, None, wal)
    }

    /// A standby on this timeline and WAL position.
    fn follows(&mut self, node: usize, follows: Option<u32>, wal: u64) -> Change {
        self.stands_by(node, (follows, true), wal)
    }

    fn stands_by(&mut self, node: usize, (follows, streams): (Option<u32>, bool), wal: u64) -> Change {
        let (wal, replayed) = (Some(wal), Some(wal));
        let facts = Facts { in_recovery: true, system: 7, timeline: 0, follows, streams, wal, replayed };
        self.outcome(node, Ok(Reply { latency: Duration::from_millis(1), facts: Some(facts) }))
    }

    fn shows(&mut self, node: usize, evidence: Evidence) -> Change {
        let node = self.nodes[node].name.clone();
        self.cluster.apply(Event::Evidence { node, evidence }, self.now)
    }

    fn passes(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn primary(&self) -> Option<&str> {
        self.cluster
            .primary()
            .and_then(|i| self.cluster.states().nth(i))
            .map(|state| state.node.name.as_str())
    }

    fn state(&self, node: usize) -> &NodeState {
        self.cluster.states().nth(node).expect("a node")
    }

    fn hunted(&self) -> Vec<bool> {
        self.cluster.hunted().map(|pause| pause == Some(Duration::from_millis(50))).collect()
    }
}

#[test]
fn without_login_the_configured_primary_serves_from_the_start() {
    let stage = Stage::new(THREE);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("primary"), 1));
    assert_eq!(stage.state(0).health, Health::Unknown);
}

#[test]
fn with_login_writes_wait_for_the_first_answers() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    assert_eq!(stage.primary(), None);
    stage.writes(0, 1, 100);
    assert_eq!(stage.primary(), None, "the standby may be the newer primary");
    assert_eq!(stage.fails(1, FailureKind::Unreachable), Change::State);
    assert_eq!(stage.primary(), Some("primary"));
}

#[test]
fn changes_are_graded() {
    let mut stage = Stage::new(THREE);
    assert_eq!(stage.answers(0), Change::State, "unknown -> up");
    assert_eq!(stage.answers(0), Change::Measures);
    assert_eq!(stage.fails(0, FailureKind::NoAnswer), Change::Measures);
    assert_eq!(stage.fails(0, FailureKind::NoAnswer), Change::Measures);
    assert_eq!(stage.fails(0, FailureKind::NoAnswer), Change::State, "up -> down");
    assert_eq!(stage.shows(1, Evidence::ConnectFailed), Change::Nothing);
    let stranger = Arc::new(Node { port: 1, ..stage.nodes[0].as_ref().clone() });
    let outcome = Ok(Reply { latency: Duration::ZERO, facts: None });
    assert_eq!(stage.cluster.apply(Event::Probed { node: stranger, outcome }, stage.now), Change::Nothing);
    let same = stage.cluster.spec().clone();
    assert_eq!(stage.cluster.apply(Event::Reload(same), stage.now), Change::Nothing);
}

#[test]
fn a_node_that_comes_back_says_since_when() {
    let mut stage = Stage::new(THREE);
    stage.answers(2);
    assert_eq!(stage.state(2).recovered_at, None, "never was down");
    stage.goes_down(2);
    assert_eq!(stage.state(2).last_error.as_deref(), Some("it broke"));
    stage.passes(10);
    stage.answers(2);
    assert_eq!(stage.state(2).health, Health::Down, "one good probe is not enough");
    stage.answers(2);
    assert_eq!((stage.state(2).health, stage.state(2).recovered_at), (Health::Up, Some(stage.now)));
    assert_eq!(stage.state(2).last_error, None);
}

#[test]
fn a_wrong_login_or_a_full_server_takes_no_node_out() {
    for kind in [FailureKind::Misconfigured, FailureKind::Full] {
        let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
        for _ in 0..5 {
            for node in 0..3 {
                stage.fails(node, kind);
            }
        }
        assert_eq!((stage.state(0).health, stage.primary()), (Health::Up, Some("primary")), "{kind:?}");
        assert!(stage.state(0).last_error.is_some());
    }
}

#[test]
fn a_primary_that_is_down_leaves_writes_waiting_and_comes_back_as_itself() {
    let mut stage = Stage::new(THREE);
    stage.all_answer();
    stage.goes_down(0);
    assert_eq!((stage.primary(), stage.state(0).role), (None, Role::Primary));
    stage.answers(0);
    stage.answers(0);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("primary"), 1));
}

#[test]
fn without_login_a_standby_that_shows_itself_writable_takes_over() {
    let mut stage = Stage::new(THREE);
    stage.all_answer();
    stage.shows(1, Evidence::InHotStandby(true));
    stage.goes_down(0);
    assert_eq!(stage.primary(), None);
    assert_eq!(stage.shows(1, Evidence::InHotStandby(false)), Change::State);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("standby"), 2));
    assert_eq!(stage.state(0).role, Role::Standby);
    stage.answers(0);
    stage.answers(0);
    assert_eq!(stage.primary(), Some("standby"), "the old one does not take over again");
    stage.shows(0, Evidence::InHotStandby(false));
    assert_eq!(stage.state(0).health, Health::Down, "two writers: the old one is not used");
    stage.shows(0, Evidence::InHotStandby(true));
    assert_eq!(stage.state(0).health, Health::Up);
}

#[test]
fn a_promotion_is_followed_and_the_old_primary_is_shut_out() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("primary"), 1));
    assert_eq!(stage.writes(1, 2, 110), Change::State);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("standby"), 2));
    assert_eq!((stage.state(1).role, stage.state(0).role), (Role::Primary, Role::Standby));
    stage.writes(0, 1, 999);
    assert_eq!(stage.primary(), Some("standby"), "a higher position on a lower timeline means nothing");
    assert_eq!(stage.state(0).health, Health::Down);
    assert_eq!(stage.state(0).last_error.as_deref(), Some("not used: it takes writes on an old timeline"));
    stage.goes_down(1);
    assert_eq!(stage.primary(), None);
    stage.passes(1);
    assert_eq!(stage.replays(0, 120), Change::State, "it was rewound");
    assert_eq!((stage.state(0).health, stage.state(0).recovered_at), (Health::Up, Some(stage.now)));
    assert_eq!(stage.state(0).last_error, None);
}

#[test]
fn two_writers_on_one_timeline_stop_writes_until_one_gives_in() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.writes(1, 1, 100);
    assert_eq!(stage.primary(), None);
    stage.replays(1, 100);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("primary"), 1));
}

#[test]
fn a_standby_left_behind_by_a_promotion_is_not_used_until_it_follows() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    let why = "not used: it follows an old timeline, not that of the primary; point it at the primary";
    stage.writes(0, 1, 100);
    stage.follows(1, Some(1), 100);
    stage.follows(2, Some(1), 100);
    stage.writes(1, 2, 110);
    assert_eq!(stage.primary(), Some("standby"));
    for _ in 0..2 {
        stage.follows(2, Some(1), 100);
        assert_eq!(stage.state(2).health, Health::Up, "it may be about to follow");
    }
    assert_eq!(stage.follows(2, Some(1), 100), Change::State);
    assert_eq!((stage.state(2).health, stage.state(2).last_error.as_deref()), (Health::Down, Some(why)));
    // Nobody else can serve reads: old data are better than none.
    stage.goes_down(0);
    stage.goes_down(1);
    assert_eq!((stage.primary(), stage.state(2).health), (None, Health::Up));
    stage.writes(1, 2, 120);
    stage.writes(1, 2, 120);
    assert_eq!((stage.primary(), stage.state(2).health), (Some("standby"), Health::Down));
    assert_eq!(stage.follows(2, Some(2), 130), Change::State);
    assert_eq!((stage.state(2).health, stage.state(2).last_error.as_deref()), (Health::Up, None));
    // Without a receiver the server may know less than was seen before.
    for _ in 0..5 {
        stage.stands_by(2, (Some(1), false), 130);
    }
    assert_eq!(stage.state(2).health, Health::Up);
    // A login that may not see it accuses nobody.
    stage.goes_down(2);
    for _ in 0..5 {
        stage.replays(2, 130);
    }
    assert_eq!(stage.state(2).health, Health::Up);
}

/// The configuration with an operator's word for this node.
fn accept(stage: &mut Stage, name: &str) -> Result<(), Objection> {
    let accepted = stage.cluster.acceptance(name)?;
    let mut spec = stage.cluster.spec().clone();
    spec.ops.values_mut().for_each(|marks| marks.accepted = None);
    spec.ops.entry(NodeName::new(name)).or_default().accepted = Some(accepted);
    stage.cluster.apply(Event::Reload(spec), stage.now);
    Ok(())
}

#[test]
fn an_operator_vouches_for_one_of_two_writers_until_somebody_is_promoted() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    let why = |stage: &mut Stage, name: &str| match accept(stage, name) {
        Err(Objection::NotNow(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(why(&mut stage, "standby").contains("looked at"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    assert!(why(&mut stage, "standby").contains("primary is the primary"));
    assert_eq!(accept(&mut stage, "nobody"), Err(Objection::Unknown));
    stage.writes(1, 1, 100);
    assert_eq!(stage.primary(), None);
    assert!(why(&mut stage, "replica-1").contains("role"));
    let before = stage.cluster.key();
    accept(&mut stage, "standby").unwrap();
    assert_eq!(stage.primary(), Some("standby"));
    assert_eq!(stage.cluster.key(), TopologyKey { epoch: before.epoch + 1, ..before });
    assert_eq!(
        stage.state(0).last_error.as_deref(),
        Some("not used: it takes writes but is not the primary")
    );
    // It lasts: over probes, a restart, and in a data plane that is alone.
    stage.writes(0, 1, 200);
    stage.writes(1, 1, 200);
    assert_eq!(stage.primary(), Some("standby"));
    let latch = stage.cluster.latch();
    let mut again = Stage { cluster: Cluster::new(stage.cluster.spec().clone(), &latch), ..stage };
    again.writes(0, 1, 200);
    again.writes(1, 1, 200);
    again.replays(2, 200);
    assert_eq!((again.primary(), again.cluster.key()), (Some("standby"), latch.key()));
    let (_, snapshots) = crate::publish::Publisher::new(&again.cluster, 0, again.now);
    let snapshot = snapshots.borrow().as_ref().clone();
    let mut alone = Stage { cluster: Cluster::resume(&snapshot), nodes: again.nodes.clone(), now: again.now };
    alone.writes(0, 1, 300);
    alone.writes(1, 1, 300);
    assert_eq!(alone.primary(), Some("standby"));
    // When it fails the other one does not take its place, but who is promoted does.
    again.goes_down(1);
    assert_eq!(again.primary(), None);
    again.writes(0, 2, 300);
    assert_eq!(again.primary(), Some("primary"));
    again.goes_down(0);
    again.writes(1, 1, 300);
    again.writes(1, 1, 300);
    assert_eq!(again.primary(), None, "the word was for another topology");
}

#[test]
fn an_older_timeline_is_accepted_as_a_new_incarnation() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    stage.writes(1, 2, 100);
    stage.writes(0, 1, 100);
    stage.goes_down(1);
    assert_eq!(stage.primary(), None);
    let before = stage.cluster.key();
    accept(&mut stage, "primary").unwrap();
    let TopologyKey { incarnation, timeline, .. } = stage.cluster.key();
    assert_eq!((stage.primary(), incarnation, timeline), (Some("primary"), before.incarnation + 1, 1));
    assert!(stage.cluster.key() > before && stage.state(0).health == Health::Up);
    // The one that was lost comes back: it was not promoted from this one.
    stage.writes(1, 2, 200);
    stage.writes(1, 2, 200);
    assert_eq!((stage.primary(), stage.state(1).health), (Some("primary"), Health::Down));
}

#[test]
fn lag_is_measured_against_the_same_round() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.replays(1, 100);
    stage.writes(0, 1, 100);
    assert_eq!((stage.state(1).lag_bytes, stage.state(1).lag), (Some(0), Some(Duration::ZERO)));
    assert_eq!(stage.state(0).lag_bytes, None);
    stage.passes(5);
    stage.replays(2, 100);
    assert_eq!(stage.state(2).lag_bytes, None, "the primary's position is five seconds old");
    stage.writes(0, 1, 300);
    assert_eq!((stage.state(2).lag_bytes, stage.state(2).lag), (Some(200), Some(Duration::from_secs(5))));
    assert_eq!(stage.state(1).lag_bytes, Some(0), "not of this round: kept");
    stage.passes(15);
    stage.fails(1, FailureKind::NoAnswer);
    assert_eq!(stage.state(1).lag_bytes, None, "too old to be true");
}

#[test]
fn trouble_is_hunted_but_not_for_ever() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    assert_eq!(stage.hunted(), [false, false, false]);
    stage.shows(2, Evidence::ConnectFailed);
    assert_eq!(stage.hunted(), [false, false, true]);
    stage.replays(2, 100);
    stage.replays(2, 100);
    assert_eq!(stage.hunted(), [false, false, false], "the suspicion is dispelled");
    stage.shows(0, Evidence::ConnectionLost);
    assert_eq!(stage.hunted(), [true, true, false], "the next primary is sought among those that may be");
    stage.goes_down(0);
    stage.replays(1, 100);
    stage.replays(1, 100);
    assert_eq!(stage.hunted(), [true, true, false]);
    stage.passes(31);
    stage.replays(1, 100);
    assert_eq!(stage.hunted(), [false, false, false]);
    stage.writes(1, 2, 100);
    assert_eq!((stage.primary(), stage.hunted()), (Some("standby"), vec![false, false, false]));
}

#[test]
fn a_reload_keeps_what_is_known_about_nodes_that_stay() {
    let mut stage = Stage::new(THREE);
    stage.all_answer();
    stage.goes_down(0);
    stage.shows(1, Evidence::InHotStandby(false));
    let text = "[[nodes]]\nhost = \"new\"\nrole = \"replica\"\nname = \"extra\"\n\
        [[nodes]]\nhost = \"s\"\nrole = \"standby\"\nweight = 7\n[[nodes]]\nhost = \"p\"\nrole = \"primary\"\n\
        [[nodes]]\nhost = \"elsewhere\"\nrole = \"replica\"\nname = \"replica-1\"\n";
    assert_eq!(stage.cluster.apply(Event::Reload(spec(text)), stage.now), Change::State);
    assert_eq!(
        (stage.primary(), stage.cluster.key().epoch),
        (Some("standby"), 2),
        "the index moved, the primary did not"
    );
    let seen: Vec<_> =
        stage.cluster.states().map(|s| (s.node.name.as_str(), s.health, s.node.weight)).collect();
    assert_eq!(
        seen,
        [
            ("extra", Health::Unknown, 100),
            ("standby", Health::Up, 7),
            ("primary", Health::Down, 100),
            ("replica-1", Health::Unknown, 100),
        ]
    );
    let text = "[[nodes]]\nhost = \"p\"\nrole = \"primary\"\n";
    stage.cluster.apply(Event::Reload(spec(text)), stage.now);
    assert_eq!(stage.primary(), None, "it is still down");
}

#[test]
fn what_a_data_plane_found_out_alone_is_learnt_and_nothing_goes_back() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    assert_eq!((stage.primary(), stage.cluster.key().epoch), (Some("primary"), 1));
    let key = |incarnation, timeline, epoch| TopologyKey { incarnation, timeline, epoch };
    let standby = Some(NodeName::new("standby"));
    let held = |key, system| Held { revision: 9, key, last_primary: standby.clone(), system: Some(system) };
    for older in [held(key(0, 1, 1), 7), held(key(0, 0, 9), 7), held(key(0, 2, 2), 99)] {
        stage.cluster.apply(Event::Held(older), stage.now);
        assert_eq!(
            (stage.primary(), stage.cluster.key()),
            (Some("primary"), key(0, 1, 1)),
            "not newer, or not ours"
        );
    }
    stage.cluster.apply(Event::Held(held(key(0, 2, 2), 7)), stage.now);
    assert_eq!(
        (stage.primary(), stage.cluster.key()),
        (None, key(0, 2, 2)),
        "the old one is on an old timeline"
    );
    stage.writes(1, 2, 200);
    assert_eq!((stage.primary(), stage.cluster.key()), (Some("standby"), key(0, 2, 2)), "no second change");
    assert_eq!(stage.state(0).health, Health::Down);
}

#[test]
fn a_data_plane_goes_on_from_what_was_in_force() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 1, 100);
    stage.replays(1, 100);
    stage.replays(2, 100);
    stage.goes_down(2);
    let (_, snapshots) = crate::publish::Publisher::new(&stage.cluster, 0, stage.now);
    let snapshot = snapshots.borrow().as_ref().clone();
    let mut alone = Stage { cluster: Cluster::resume(&snapshot), nodes: stage.nodes.clone(), now: stage.now };
    assert_eq!((alone.primary(), alone.cluster.key()), (Some("primary"), stage.cluster.key()));
    assert_eq!((alone.state(0).health, alone.state(2).health), (Health::Up, Health::Down));
    alone.writes(1, 2, 200);
    assert_eq!(alone.primary(), Some("standby"));
    // Without a primary nothing but a timeline makes one: not the configuration, not a flag.
    let nobody = Snapshot { primary: None, last_primary: None, ..snapshot };
    alone = Stage { cluster: Cluster::resume(&nobody), nodes: stage.nodes.clone(), now: stage.now };
    alone.shows(0, Evidence::InHotStandby(false));
    assert_eq!(alone.primary(), None);
    alone.writes(0, 1, 100);
    assert_eq!(alone.primary(), None, "the standby may be the newer primary");
    alone.replays(1, 100);
    assert_eq!(alone.primary(), Some("primary"));
}

#[test]
fn another_cluster_starts_a_new_incarnation() {
    let mut stage = Stage::new(&format!("{LOGIN}{THREE}"));
    stage.writes(0, 7, 100);
    stage.replays(1, 100);
    let other = spec(&format!("{LOGIN}[[nodes]]\nhost = \"elsewhere\"\nrole = \"primary\"\n"));
    stage.nodes.clone_from(&other.nodes);
    let before = stage.cluster.key();
    stage.cluster.apply(Event::Reload(other), stage.now);
    stage.writes(0, 1, 100);
    assert_eq!((stage.primary(), stage.cluster.key().timeline), (Some("primary"), 1));
    assert!(stage.cluster.key() > before, "though the timeline is lower");
}
