//! What goes over the wire comes back the same; what is wrong is refused by name, and the rest counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::v1::resource::Body;
use super::*;
use crate::config;
use crate::model::{
    Acceptance, Authority, Health, Hold, NodeName, NodeOps, NodeState, Role, Secret, Snapshot, UserProof,
};

const TEXT: &str = r#"
write_timeout_secs = 12
[pool_mode]
mode = "session"
max_pool_size = 7
min_idle = 2
idle_timeout_secs = 0
max_lifetime_secs = 1.5
acquire_timeout_secs = 0.25
reset_query = "RESET ALL"
[load_balancer]
read_write_split = true
read_strategy = "latency_based"
read_your_writes = "time"
read_your_writes_ms = 700
slow_start_secs = 3
max_lag_bytes = 4096
max_lag_ms = 900
[health]
user = "probe"
[topology]
provider = "patroni"
patroni_endpoints = ["http://h1:8008", "https://[::1]:8008"]
poll_interval_secs = 0.5
patroni_ca_file = "/etc/ca.pem"
[limits]
max_client_connections = 10
max_client_connections_per_user = 5
query_timeout_secs = 9
client_idle_timeout_secs = 99
login_timeout_secs = 4
failed_login_delay_secs = 2
[auth]
allow_backend_trust = true
proof_ttl_secs = 1
[console]
admin_users = ["boss", "a"]
stats_users = ["metrics"]
[[users]]
name = "a"
password = "pass-of-a"
mode = "statement"
pool_size = 3
query_timeout_secs = 0
[[users]]
name = "b"
[[databases]]
name = "d"
idle_in_transaction_timeout_secs = 6
[[nodes]]
host = "h1"
role = "primary"
[[nodes]]
host = "h2"
port = 5433
role = "standby"
weight = 0
"#;

fn snapshot(now: Instant) -> Snapshot {
    let spec = config::parse(TEXT, "test", &|_| None).unwrap().spec;
    let ago = |ms| now.checked_sub(Duration::from_millis(ms));
    let nodes = spec.nodes.iter().map(|node| NodeState {
        node: Arc::clone(node),
        ops: NodeOps::default(),
        role: node.role,
        health: Health::Up,
        recovered_at: None,
        latency: Some(Duration::from_micros(250)),
        lag_bytes: None,
        lag: None,
        probed_at: ago(1),
        last_error: None,
    });
    let mut snapshot = Snapshot {
        revision: 40,
        config_revision: 3,
        epoch: 2,
        timeline: 5,
        incarnation: 1,
        system: Some(u64::MAX),
        last_primary: Some(NodeName::new("standby")),
        settings: spec.settings,
        health: Arc::new(spec.health),
        nodes: nodes.collect(),
        primary: Some(1),
        hold: Some(Hold { node: NodeName::new("standby"), until: now + Duration::from_secs(9) }),
        authority: Some(Authority { up: true, holder: Some("standby".to_owned()) }),
        cache_flush: 1_700_000_000_000,
    };
    let standby = &mut snapshot.nodes[1];
    standby.role = Role::Primary;
    standby.recovered_at = ago(5_000);
    standby.lag_bytes = Some(0);
    standby.lag = Some(Duration::from_millis(3));
    standby.ops = NodeOps {
        drained: true,
        weight: Some(9),
        paused: true,
        pool_size: Some(2),
        reconnect: 11,
        hold: None,
        accepted: Some(Acceptance { from: (0, 6), to: (1, 5), system: u64::MAX }),
    };
    snapshot.nodes[0].health = Health::Down;
    snapshot.nodes[0].last_error = Some("refused".into());
    snapshot
}

fn same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
    assert_eq!(a.settings, b.settings, "secrets too, which are not printed");
}

fn body<'a>(full: &'a mut v1::Full, name: &str) -> &'a mut Option<Body> {
    &mut full.resources.iter_mut().find(|r| r.name == name).unwrap().body
}

fn rehashed(mut full: v1::Full) -> v1::Full {
    full.sha256 = hash(&full.resources);
    full
}

#[test]
fn a_snapshot_comes_back_as_it_was() {
    let now = Instant::now();
    let sent = snapshot(now);
    let accepted = accept(full(&sent, now), None, now).unwrap();
    assert_eq!(accepted.rejected, []);
    same(&accepted.snapshot, &sent);
    let UserProof::Password(secret) = accepted.snapshot.settings.users[0].proof.clone().unwrap() else {
        panic!("a password");
    };
    assert_eq!(secret, Secret::new("pass-of-a".to_owned()));
    assert!(Snapshot::try_from(full(&sent, now)).is_ok());
}

#[test]
fn every_word_comes_back_as_it_was() {
    use crate::model::{Evidence, PoolMode, ReadStrategy};
    for word in Role::ALL {
        assert_eq!(to_role(role(*word).into()), Some(*word));
    }
    for word in Health::ALL {
        assert_eq!(to_health(health(*word).into()), Some(*word));
    }
    for word in PoolMode::ALL {
        assert_eq!(to_pool_mode(pool_mode(*word).into()), Some(*word));
    }
    for word in ReadStrategy::ALL {
        assert_eq!(words::to_strategy(strategy(*word).into()), Some(*word));
    }
    for word in [
        Evidence::ConnectFailed,
        Evidence::ConnectionLost,
        Evidence::InHotStandby(true),
        Evidence::InHotStandby(false),
    ] {
        assert_eq!(evidence(evidence_kind(word).into()), Some(word));
    }
    assert_eq!((to_role(0), to_role(99), evidence(0)), (None, None, None));
}

#[test]
fn topology_alone_changes_states_and_nothing_else() {
    let now = Instant::now();
    let held = snapshot(now);
    let mut next = held.clone();
    (next.revision, next.epoch, next.primary, next.timeline) = (41, 3, None, 6);
    next.nodes[1].health = Health::Down;
    same(&accept_topology(&topology(&next, now), &held, now).unwrap(), &next);
    let mut strange = topology(&next, now);
    strange.nodes[0].role = 77;
    assert_eq!(accept_topology(&strange, &held, now).unwrap_err().reason, "node primary has an unknown role");
}

#[test]
fn nothing_goes_back() {
    let now = Instant::now();
    let held = snapshot(now);
    for (revision, epoch, word) in [(40, 2, "revision"), (39, 9, "revision"), (41, 1, "epoch")] {
        let mut next = held.clone();
        (next.revision, next.epoch) = (revision, epoch);
        let refused = accept(full(&next, now), Some(&held), now).unwrap_err();
        assert!(refused.name == "snapshot" && refused.reason.contains(word), "{refused:?}");
        let refused = accept_topology(&topology(&next, now), &held, now).unwrap_err();
        assert!(refused.reason.contains(word), "{refused:?}");
    }
}

#[test]
fn a_topology_is_older_by_incarnation_then_timeline_then_epoch() {
    let now = Instant::now();
    let held = snapshot(now);
    for (incarnation, timeline, epoch, taken) in [
        (1, 5, 2, true),
        (1, 6, 0, true),
        (2, 0, 0, true),
        (1, 4, 99, false),
        (0, 99, 99, false),
        (1, 5, 1, false),
    ] {
        let next = Snapshot { revision: 41, incarnation, timeline, epoch, ..held.clone() };
        assert_eq!(accept_topology(&topology(&next, now), &held, now).is_ok(), taken, "{:?}", next.key());
    }
}

#[test]
fn the_probes_settings_travel_and_are_checked() {
    let now = Instant::now();
    let held = snapshot(now);
    let next = Snapshot { revision: 41, ..held.clone() };
    let mut sent = full(&next, now);
    let Some(Body::Settings(settings)) = body(&mut sent, "settings") else { panic!("settings") };
    settings.health = None;
    let older = accept(rehashed(sent.clone()), Some(&held), now).unwrap().snapshot;
    assert_eq!(older.health, held.health, "an older control plane says nothing of it");
    let Some(Body::Settings(settings)) = body(&mut sent, "settings") else { panic!("settings") };
    settings.health = Some(v1::settings::Health::default());
    let accepted = accept(rehashed(sent), Some(&held), now).unwrap();
    assert!(accepted.rejected[0].reason.contains("check_interval_secs"), "{:?}", accepted.rejected);
    assert_eq!(accepted.snapshot.health, held.health);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_version_held_stays() {
    type Damage = fn(&mut v1::Full);
    let cases: [(&str, Damage, &str); 8] = [
        ("node/standby", |f| node_of(f, "node/standby").port = 0, "port 0"),
        ("node/standby", |f| node_of(f, "node/standby").host = "a b".to_owned(), "not a host name"),
        ("node/standby", |f| node_of(f, "node/standby").role = 1, "second node"),
        ("node/standby", |f| *body(f, "node/standby") = None, "does not know"),
        ("settings", |f| pool_of(f).max_pool_size = 0, "min_idle"),
        ("settings", |f| pool_of(f).mode = 9, "pool mode"),
        ("settings", |f| pool_of(f).acquire_timeout_us = u64::MAX, "acquire_timeout_secs"),
        ("user/a", |f| *body(f, "user/a") = Some(Body::User(bad_user())), "verifier"),
    ];
    let now = Instant::now();
    let held = snapshot(now);
    for (name, damage, reason) in cases {
        let mut next = held.clone();
        next.revision = 41;
        let mut sent = full(&next, now);
        damage(&mut sent);
        let accepted = accept(rehashed(sent.clone()), Some(&held), now).unwrap();
        assert_eq!(accepted.rejected.len(), 1, "{name} {reason}");
        assert_eq!(accepted.rejected[0].name, name);
        assert!(accepted.rejected[0].reason.contains(reason), "{:?}", accepted.rejected);
        if reason != "does not know" {
            same(&accepted.snapshot, &next);
        }
        assert!(Snapshot::try_from(rehashed(sent)).is_err(), "strict without a version held");
    }
}

fn node_of<'a>(full: &'a mut v1::Full, name: &str) -> &'a mut v1::Node {
    let Some(Body::Node(node)) = body(full, name) else { panic!("a node") };
    node
}

fn pool_of(full: &mut v1::Full) -> &mut v1::settings::Pool {
    let Some(Body::Settings(settings)) = body(full, "settings") else { panic!("settings") };
    settings.pool.as_mut().unwrap()
}

fn bad_user() -> v1::User {
    let proof = Some(v1::user::Proof::ScramVerifier("SCRAM-SHA-256$nonsense".to_owned()));
    v1::User { name: "a".to_owned(), proof, overrides: None }
}

#[test]
fn damage_and_emptiness_are_refused_as_a_whole() {
    let now = Instant::now();
    let good = full(&snapshot(now), now);
    let mut flipped = good.clone();
    node_of(&mut flipped, "node/primary").port = 1;
    assert!(accept(flipped, None, now).unwrap_err().reason.contains("hash"));
    let mut headless = good.clone();
    headless.topology = None;
    assert!(accept(headless, None, now).unwrap_err().reason.contains("topology"));
    let mut empty = good.clone();
    empty.resources.truncate(1);
    assert!(accept(rehashed(empty), None, now).unwrap_err().reason.contains("no usable node"));
    let mut stranger = good.clone();
    stranger.topology.as_mut().unwrap().primary = "nobody".to_owned();
    assert!(accept(stranger, None, now).unwrap_err().reason.contains("nobody"));
    assert!(accept(v1::Full::default(), None, now).is_err());
}

#[test]
fn no_reason_quotes_a_secret() {
    let now = Instant::now();
    let mut sent = full(&snapshot(now), now);
    let mut user = bad_user();
    user.proof = Some(v1::user::Proof::Password("se\0cret".to_owned()));
    *body(&mut sent, "user/a") = Some(Body::User(user));
    let accepted = accept(rehashed(sent), None, now).unwrap();
    assert!(!format!("{accepted:?}").contains("cret"), "{accepted:?}");
}

/// A delta from one snapshot to another.
fn delta(from: &Snapshot, to: &Snapshot, now: Instant) -> v1::Delta {
    let delta = Configuration::of(to).delta(&Configuration::of(from)).unwrap();
    v1::Delta { topology: Some(topology(to, now)), ..delta }
}

fn taken(verdict: Verdict) -> Snapshot {
    let Verdict::Take(accepted) = verdict else { panic!("not taken") };
    assert_eq!(accepted.rejected, []);
    accepted.snapshot
}

#[test]
fn a_mirror_takes_deltas_and_after_one_that_does_not_fit_only_everything() {
    let now = Instant::now();
    let first = snapshot(now);
    let mut drained = Snapshot { revision: 41, ..first.clone() };
    drained.nodes[0].ops.paused = true;
    let mut last = Snapshot { revision: 42, config_revision: 4, ..drained.clone() };
    last.nodes.truncate(1);
    last.primary = None;
    let mut mirror = Mirror::new(hash(&full(&first, now).resources));
    assert!(
        matches!(mirror.delta(delta(&first, &drained, now), &first, now), Verdict::Resync(Misfit::Base)),
        "the hash is of an earlier life: what it stands for has not been sent"
    );
    assert!(matches!(mirror.topology(&topology(&drained, now), &first, now), Verdict::Ignore));
    assert!(matches!(mirror.full(full(&first, now), &first, now), Verdict::Same));
    same(&taken(mirror.delta(delta(&first, &drained, now), &first, now)), &drained);
    let again = mirror.delta(delta(&first, &drained, now), &drained, now);
    assert!(matches!(again, Verdict::Resync(Misfit::Base)));
    assert!(matches!(mirror.delta(delta(&drained, &last, now), &drained, now), Verdict::Ignore));
    same(&taken(mirror.full(full(&last, now), &drained, now)), &last);
    assert_eq!(mirror.sha256(), Configuration::of(&last).sha256);
    let next = Snapshot { revision: 43, ..drained };
    same(&taken(mirror.delta(delta(&last, &next, now), &last, now)), &next);
}
