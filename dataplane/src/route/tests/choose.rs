//! Which node is chosen, and why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::*;

use crate::route::{Choice, Kind, Loads, NoFunctions, Picker, Query, Reason, SessionFacts, choose, classify};

struct Seen {
    busy: Vec<u32>,
    suspect: Vec<usize>,
}

impl Loads for Seen {
    fn busy(&self, node: usize) -> u32 {
        self.busy.get(node).copied().unwrap_or(0)
    }
    fn suspect(&self, node: usize) -> bool {
        self.suspect.contains(&node)
    }
}

struct World {
    snapshot: Snapshot,
    seen: Seen,
    session: SessionFacts,
    now: Instant,
    picker: Picker,
}

fn settings(read_strategy: ReadStrategy) -> Settings {
    Settings {
        pool: PoolSettings {
            mode: PoolMode::Transaction,
            max_pool_size: 10,
            min_idle: 0,
            idle_timeout: None,
            max_lifetime: None,
            acquire_timeout: Duration::from_secs(5),
            reset_query: String::new(),
        },
        balancer: BalancerSettings {
            read_write_split: true,
            read_strategy,
            read_your_writes: ReadYourWrites::Off,
            slow_start: Duration::from_secs(10),
            max_lag_bytes: Some(1000),
            max_lag: Some(Duration::from_secs(1)),
        },
        limits: Limits {
            max_clients: None,
            max_clients_per_user: None,
            max_clients_per_database: None,
            max_clients_per_address: None,
            query_timeout: None,
            idle_in_transaction_timeout: None,
            client_idle_timeout: None,
            failed_login_delay: Duration::ZERO,
            max_replication: 0,
            login_timeout: Duration::from_secs(5),
        },
        auth: AuthSettings {
            allow_backend_trust: false,
            proof_ttl: Duration::ZERO,
            query: None,
            hba: Vec::new(),
        },
        console: ConsoleSettings::default(),
        users: Vec::new(),
        databases: Vec::new(),
        write_timeout: Duration::from_secs(30),
    }
}

impl World {
    /// Node 0 is the primary, 1 a standby, 2 and 3 replicas.
    fn new(strategy: ReadStrategy) -> Self {
        let node = |name: &str, role| NodeState {
            node: Arc::new(Node {
                name: NodeName::new(name),
                host: "h".into(),
                port: 5432,
                role,
                weight: 100,
                max_connections: None,
            }),
            ops: NodeOps::default(),
            role,
            health: Health::Up,
            recovered_at: None,
            latency: None,
            lag_bytes: None,
            lag: None,
            probed_at: None,
            last_error: None,
        };
        Self {
            snapshot: Snapshot {
                revision: 1,
                config_revision: 0,
                epoch: 1,
                timeline: 1,
                incarnation: 0,
                system: None,
                last_primary: None,
                settings: Arc::new(settings(strategy)),
                health: Arc::default(),
                nodes: vec![
                    node("primary", Role::Primary),
                    node("standby", Role::Standby),
                    node("replica-1", Role::Replica),
                    node("replica-2", Role::Replica),
                ],
                primary: Some(0),
                hold: None,
                authority: None,
                cache_flush: 0,
            },
            seen: Seen { busy: vec![0; 4], suspect: Vec::new() },
            session: SessionFacts {
                in_transaction: false,
                pinned: false,
                bound: None,
                read_your_writes: false,
                read_write_split: true,
                mode: PoolMode::Transaction,
            },
            now: Instant::now() + Duration::from_secs(1000),
            picker: Picker::seeded(42),
        }
    }

    fn weight(&mut self, index: usize, weight: u32) {
        let node = &mut self.snapshot.nodes[index].node;
        *node = Arc::new(Node { weight, ..(**node).clone() });
    }

    fn weights(&mut self, weights: [u32; 3]) {
        for (index, weight) in (1..).zip(weights) {
            self.weight(index, weight);
        }
    }

    fn choose(&mut self, sql: &str) -> Choice {
        let verdict = classify(sql.as_bytes(), true, &NoFunctions);
        let query = Query {
            verdict: &verdict,
            session: self.session,
            snapshot: &self.snapshot,
            loads: &self.seen,
            now: self.now,
        };
        choose(&query, &mut self.picker)
    }

    fn goes(&mut self, sql: &str, nodes: &[usize], reason: Reason) {
        for _ in 0..50 {
            let choice = self.choose(sql);
            assert_eq!(choice.reason, reason, "{sql}");
            assert_eq!(nodes.is_empty(), choice.node.is_none(), "{sql}");
            assert!(choice.node.is_none_or(|n| nodes.contains(&n)), "{sql} at {:?}", choice.node);
        }
    }

    /// How often each node is chosen for a read, of 10,000.
    fn shares(&mut self) -> [usize; 4] {
        let mut shares = [0; 4];
        for _ in 0..10_000 {
            shares[self.choose("select 1").node.unwrap()] += 1;
        }
        shares
    }
}

const READERS: &[usize] = &[1, 2, 3];

#[test]
fn words_are_those_of_the_documentation() {
    let words: Vec<_> = Reason::ALL.iter().map(ToString::to_string).collect();
    let all = "write_query read_query hint in_transaction read_your_writes replica_lag no_replica volatile_function pinned fallback";
    assert_eq!(words.join(" "), all);
}

#[test]
fn reads_leave_the_primary_and_writes_do_not() {
    for strategy in ReadStrategy::ALL {
        let mut w = World::new(*strategy);
        w.goes("select 1", READERS, Reason::ReadQuery);
        w.goes("begin read only", READERS, Reason::ReadQuery);
        w.goes("insert into t values (1)", &[0], Reason::WriteQuery);
        w.goes("/* helios:route=standby */ insert into t values (1)", &[0], Reason::WriteQuery);
        w.goes("/* helios:node=replica-1 */ insert into t values (1)", &[0], Reason::WriteQuery);
        w.goes("begin", &[0], Reason::WriteQuery);
        w.goes("/* helios:route=standby */ select f()", &[0], Reason::VolatileFunction);
        assert_eq!((w.choose("select 1").kind, w.choose("delete from t").kind), (Kind::Read, Kind::Write));
    }
}

#[test]
fn hints_narrow() {
    let mut w = World::new(ReadStrategy::Random);
    w.goes("/* helios:route=primary */ select 1", &[0], Reason::Hint);
    w.goes("/* helios:route=standby */ select 1", READERS, Reason::Hint);
    w.goes("/* helios:route=replica */ select 1", &[2, 3], Reason::Hint);
    w.goes("/* helios:route=any */ select 1", READERS, Reason::ReadQuery);
    w.goes("/* helios:node=replica-2 */ select 1", &[3], Reason::Hint);
    w.goes("/* helios:node=primary */ select 1", &[0], Reason::Hint);
    w.goes("/* helios:node=nobody */ select 1", READERS, Reason::ReadQuery);
    w.goes("/* helios:node=primary route=standby */ select 1", READERS, Reason::Hint);
    w.goes("/* helios:node=replica-1 route=primary */ select 1", &[0], Reason::Hint);
    w.goes("/* helios:route=standby route=primary */ select 1", &[0], Reason::Hint);
    w.snapshot.nodes[3].health = Health::Unknown;
    w.goes("/* helios:node=replica-2 */ select 1", &[1, 2], Reason::ReadQuery);
    w.goes("select 1", &[1, 2], Reason::ReadQuery);
    w.snapshot.nodes[3].health = Health::Down;
    w.goes("/* helios:node=replica-2 */ select 1", &[1, 2], Reason::ReadQuery);
    w.snapshot.nodes[2].health = Health::Down;
    w.goes("/* helios:route=replica */ select 1", &[1], Reason::Hint);
    w.snapshot.nodes[1].health = Health::Down;
    w.goes("/* helios:route=standby */ select 1", &[0], Reason::NoReplica);
    w = World::new(ReadStrategy::Random);
    w.session.read_write_split = false;
    w.goes("/* helios:route=standby */ select 1", READERS, Reason::Hint);
    w.goes("select 1", &[0], Reason::ReadQuery);
}

#[test]
fn a_session_can_be_tied_down() {
    let mut w = World::new(ReadStrategy::Random);
    w.session.read_your_writes = true;
    w.goes("select 1", &[0], Reason::ReadYourWrites);
    w.session.pinned = true;
    w.goes("select 1", &[0], Reason::Pinned);
    w.session.in_transaction = true;
    w.goes("/* helios:route=standby */ select 1", &[0], Reason::InTransaction);
    w.session.bound = Some(3);
    w.goes("select 1", &[3], Reason::InTransaction);
    w = World::new(ReadStrategy::Random);
    w.session.mode = PoolMode::Session;
    w.goes("select 1", &[0], Reason::ReadQuery);
}

#[test]
fn replicas_fail_then_the_primary_serves() {
    let mut w = World::new(ReadStrategy::LeastConnections);
    w.snapshot.nodes[1].health = Health::Down;
    w.snapshot.nodes[2].lag_bytes = Some(1001);
    w.goes("select 1", &[3], Reason::ReadQuery);
    w.snapshot.nodes[3].lag = Some(Duration::from_secs(2));
    w.goes("select 1", &[0], Reason::ReplicaLag);
    w.seen.suspect = vec![3];
    w.goes("select 1", &[0], Reason::Fallback);
    w.snapshot.nodes.truncate(1);
    w.goes("select 1", &[0], Reason::NoReplica);
    w.snapshot.primary = None;
    w.goes("select 1", &[], Reason::NoReplica);
    w.goes("delete from t", &[], Reason::WriteQuery);
}

#[test]
fn reads_go_on_without_a_primary() {
    let mut w = World::new(ReadStrategy::Random);
    w.snapshot.primary = None;
    w.session.read_write_split = false;
    w.goes("select 1", READERS, Reason::ReadQuery);
    w.snapshot.nodes.iter_mut().for_each(|n| n.lag = Some(Duration::from_secs(60)));
    w.session.mode = PoolMode::Session;
    w.goes("select 1", READERS, Reason::ReadQuery);
    w.session.mode = PoolMode::Transaction;
    w.session.read_write_split = true;
    w.goes("select 1", READERS, Reason::ReadQuery);
    w.session.read_your_writes = true;
    w.goes("select 1", &[], Reason::ReadYourWrites);
    w.goes("/* helios:route=primary */ select 1", &[], Reason::Hint);
}

#[test]
fn a_drained_node_gets_no_new_work_and_the_weight_of_operators_wins() {
    let mut w = World::new(ReadStrategy::RoundRobin);
    w.snapshot.nodes[2].ops.drained = true;
    w.goes("select 1", &[1, 3], Reason::ReadQuery);
    w.goes("/* helios:node=replica-1 */ select 1", &[1, 3], Reason::ReadQuery);
    w.snapshot.nodes[3].ops.weight = Some(0);
    w.goes("select 1", &[1], Reason::ReadQuery);
    w.snapshot.nodes[1].ops.drained = true;
    w.goes("select 1", &[3], Reason::ReadQuery);
    w.snapshot.nodes[3].ops.drained = true;
    w.goes("select 1", &[0], Reason::NoReplica);
}

#[test]
fn weight_zero_takes_reads_only_if_nothing_else_can() {
    for strategy in ReadStrategy::ALL {
        let mut w = World::new(*strategy);
        w.weight(1, 0);
        w.weight(2, 0);
        w.goes("select 1", &[3], Reason::ReadQuery);
        w.seen.suspect = vec![3];
        w.goes("select 1", &[1, 2], Reason::ReadQuery);
    }
}

#[test]
fn strategies_share_as_they_say() {
    let near = |got: usize, want: usize| got.abs_diff(want) < 400;
    let mut w = World::new(ReadStrategy::RoundRobin);
    w.weight(1, 1);
    assert!(w.shares()[1..].iter().all(|s| near(*s, 3333)));
    for strategy in [ReadStrategy::WeightedRoundRobin, ReadStrategy::Random, ReadStrategy::LeastConnections] {
        let mut w = World::new(strategy);
        w.weights([50, 30, 20]);
        let [_, a, b, c] = w.shares();
        assert!(near(a, 5000) && near(b, 3000) && near(c, 2000), "{strategy}: {a} {b} {c}");
    }
    let mut w = World::new(ReadStrategy::WeightedRoundRobin);
    w.weights([5, 1, 1]);
    let order: Vec<_> = (0..7).map(|_| w.choose("select 1").node.unwrap()).collect();
    assert_eq!(order, [1, 1, 2, 1, 3, 1, 1]);
    let mut w = World::new(ReadStrategy::LeastConnections);
    w.seen.busy = vec![0, 4, 3, 5];
    w.goes("select 1", &[2], Reason::ReadQuery);
    w.weight(1, 200);
    w.goes("select 1", &[1], Reason::ReadQuery);
    let mut w = World::new(ReadStrategy::LatencyBased);
    w.snapshot.nodes[1].latency = Some(Duration::from_millis(3));
    w.snapshot.nodes[2].latency = Some(Duration::from_millis(1));
    w.goes("select 1", &[2], Reason::ReadQuery);
    w.weight(1, 400);
    w.goes("select 1", &[1], Reason::ReadQuery);
}

#[test]
fn a_node_that_came_back_starts_slowly() {
    for strategy in ReadStrategy::ALL.iter().filter(|s| **s != ReadStrategy::LatencyBased) {
        let mut w = World::new(*strategy);
        w.snapshot.nodes[3].recovered_at = Some(w.now - Duration::from_secs(1));
        let early = w.shares()[3];
        assert!((200..700).contains(&early), "{strategy}: {early}");
        w.snapshot.nodes[3].recovered_at = Some(w.now - Duration::from_secs(10));
        let late = w.shares()[3];
        assert!((3000..3700).contains(&late), "{strategy}: {late}");
        w.snapshot.nodes[3].recovered_at = Some(w.now + Duration::from_secs(10));
        assert!(w.shares()[3] > 0, "{strategy}: a clock that went back starves nobody");
    }
}
