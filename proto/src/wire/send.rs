//! From the model to the wire. Total: whatever the model can hold can be sent. Pure; the time is passed in.

use std::time::{Duration, Instant};

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::delta::Configuration;
use super::v1::{self, resource::Body, settings, user};
use super::words;
use crate::model::{
    Acceptance, AuthQuery, AuthSettings, Authority, BalancerSettings, ConsoleSettings, Database, HbaRule,
    HealthSettings, Hold, Limits, NodeName, NodeOps, NodeState, Overrides, Patroni, PoolSettings,
    ProbeCredential, ReadYourWrites, Settings, Snapshot, User, UserProof,
};

/// The whole snapshot. Holds the secrets of `[[users]]`.
#[must_use]
pub fn full(snapshot: &Snapshot, now: Instant) -> v1::Full {
    Configuration::of(snapshot).full(topology(snapshot, now))
}

/// What is known about the nodes.
#[must_use]
pub fn topology(snapshot: &Snapshot, now: Instant) -> v1::Topology {
    v1::Topology {
        revision: snapshot.revision,
        primary: snapshot.primary().map(|node| node.node.name.to_string()).unwrap_or_default(),
        epoch: snapshot.epoch,
        timeline: snapshot.timeline,
        system: snapshot.system,
        nodes: snapshot.nodes.iter().map(|state| node_state(state, now)).collect(),
        incarnation: snapshot.incarnation,
        last_primary: snapshot.last_primary.as_ref().map(NodeName::to_string).unwrap_or_default(),
        hold: snapshot.hold.as_ref().map(|Hold { node, until }| v1::Hold {
            node: node.to_string(),
            left_us: micros(until.saturating_duration_since(now)),
        }),
        authority: snapshot.authority.as_ref().map(|Authority { up, holder }| v1::Authority {
            up: *up,
            holder: holder.clone().unwrap_or_default(),
        }),
        cache_flush: snapshot.cache_flush,
    }
}

/// The hash of resources: equal for equal configurations, whatever the topology.
#[must_use]
pub fn hash(resources: &[v1::Resource]) -> Vec<u8> {
    let mut sha = Sha256::new();
    for resource in resources {
        let bytes = resource.encode_to_vec();
        sha.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        sha.update(&bytes);
    }
    sha.finalize().to_vec()
}

/// What operators have set on a node.
#[must_use]
pub const fn ops(ops: NodeOps) -> v1::NodeOps {
    let NodeOps { drained, weight, paused, pool_size, reconnect, hold: _, accepted } = ops;
    let accepted = match accepted {
        Some(Acceptance { from, to, system }) => Some(v1::Acceptance {
            from_incarnation: from.0,
            from_timeline: from.1,
            to_incarnation: to.0,
            to_timeline: to.1,
            system,
        }),
        None => None,
    };
    v1::NodeOps { drained, weight, paused, pool_size, reconnect, accepted }
}

/// Settings, users, databases and nodes, in this order.
pub(super) fn resources(snapshot: &Snapshot) -> Vec<v1::Resource> {
    let Settings { users, databases, .. } = snapshot.settings.as_ref();
    let resource = |name: String, body| v1::Resource { name, body: Some(body) };
    let first = resource("settings".to_owned(), Body::Settings(general(snapshot)));
    let users = users.iter().map(|user| resource(format!("user/{}", user.name), Body::User(one_user(user))));
    let databases = databases.iter().map(|database| {
        resource(format!("database/{}", database.name), Body::Database(one_database(database)))
    });
    let nodes = snapshot
        .nodes
        .iter()
        .map(|state| resource(format!("node/{}", state.node.name), Body::Node(node(state))));
    std::iter::once(first).chain(users).chain(databases).chain(nodes).collect()
}

fn node(state: &NodeState) -> v1::Node {
    let node = &state.node;
    v1::Node {
        name: node.name.to_string(),
        host: node.host.clone(),
        port: node.port.into(),
        role: words::role(node.role).into(),
        weight: node.weight,
        ops: Some(ops(state.ops)),
        max_connections: node.max_connections.unwrap_or(0),
    }
}

fn node_state(state: &NodeState, now: Instant) -> v1::NodeState {
    let NodeState { node, role, health, recovered_at, latency, lag_bytes, lag, probed_at, .. } = state;
    let ago = |at: &Option<Instant>| at.map(|at| micros(now.saturating_duration_since(at)));
    v1::NodeState {
        node: node.name.to_string(),
        role: words::role(*role).into(),
        health: words::health(*health).into(),
        recovered_us_ago: ago(recovered_at),
        latency_us: latency.map(micros),
        lag_bytes: *lag_bytes,
        lag_us: lag.map(micros),
        probed_us_ago: ago(probed_at),
        last_error: state.last_error.as_deref().unwrap_or_default().to_owned(),
    }
}

fn general(snapshot: &Snapshot) -> v1::Settings {
    let Settings { pool, balancer, limits, auth, console, users: _, databases: _, write_timeout } =
        snapshot.settings.as_ref();
    v1::Settings {
        pool: Some(pool_settings(pool)),
        balancer: Some(balancer_settings(balancer)),
        limits: Some(limit_settings(limits)),
        auth: Some(auth_settings(auth)),
        write_timeout_us: micros(*write_timeout),
        health: Some(health_settings(&snapshot.health)),
        console: Some(console_settings(console)),
    }
}

/// Without the login: it is for changes, which are the control plane's.
fn patroni_settings(settings: &Patroni) -> settings::Patroni {
    let Patroni { endpoints, interval, timeout, ca, login: _ } = settings;
    settings::Patroni {
        endpoints: endpoints.clone(),
        interval_us: micros(*interval),
        timeout_us: micros(*timeout),
        ca_file: ca.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

fn health_settings(settings: &HealthSettings) -> settings::Health {
    let HealthSettings {
        check_interval,
        check_timeout,
        failure_threshold,
        success_threshold,
        credential,
        patroni,
    } = settings;
    settings::Health {
        patroni: patroni.as_deref().map(patroni_settings),
        check_interval_us: micros(*check_interval),
        check_timeout_us: micros(*check_timeout),
        failure_threshold: *failure_threshold,
        success_threshold: *success_threshold,
        credential: credential.as_ref().map(|ProbeCredential { user, password, database }| {
            settings::Credential {
                user: user.clone(),
                password: password.as_ref().map(|password| password.expose().to_owned()),
                database: database.clone(),
            }
        }),
    }
}

fn pool_settings(settings: &PoolSettings) -> settings::Pool {
    let PoolSettings { mode, max_pool_size, min_idle, idle_timeout, max_lifetime, acquire_timeout, .. } =
        settings;
    settings::Pool {
        mode: words::pool_mode(*mode).into(),
        max_pool_size: *max_pool_size,
        min_idle: *min_idle,
        idle_timeout_us: idle_timeout.map(micros),
        max_lifetime_us: max_lifetime.map(micros),
        acquire_timeout_us: micros(*acquire_timeout),
        reset_query: settings.reset_query.clone(),
    }
}

fn balancer_settings(settings: &BalancerSettings) -> settings::Balancer {
    let BalancerSettings {
        read_write_split,
        read_strategy,
        read_your_writes,
        slow_start,
        max_lag_bytes,
        max_lag,
    } = settings;
    settings::Balancer {
        read_write_split: *read_write_split,
        read_strategy: words::strategy(*read_strategy).into(),
        read_your_writes_us: match read_your_writes {
            ReadYourWrites::Off => None,
            ReadYourWrites::Time(window) => Some(micros(*window)),
        },
        slow_start_us: micros(*slow_start),
        max_lag_bytes: *max_lag_bytes,
        max_lag_us: max_lag.map(micros),
    }
}

fn limit_settings(limits: &Limits) -> settings::Limits {
    settings::Limits {
        max_clients: limits.max_clients,
        max_clients_per_user: limits.max_clients_per_user,
        max_clients_per_database: limits.max_clients_per_database,
        max_clients_per_address: limits.max_clients_per_address,
        query_timeout_us: limits.query_timeout.map(micros),
        idle_in_transaction_timeout_us: limits.idle_in_transaction_timeout.map(micros),
        client_idle_timeout_us: limits.client_idle_timeout.map(micros),
        login_timeout_us: micros(limits.login_timeout),
        max_replication: Some(limits.max_replication),
        failed_login_delay_us: Some(micros(limits.failed_login_delay)),
    }
}

fn auth_settings(settings: &AuthSettings) -> settings::Auth {
    let AuthSettings { allow_backend_trust, proof_ttl, query, hba } = settings;
    settings::Auth {
        allow_backend_trust: *allow_backend_trust,
        proof_ttl_us: micros(*proof_ttl),
        query: query.as_ref().map(auth_query),
        hba: hba.iter().map(hba_rule).collect(),
    }
}

fn console_settings(settings: &ConsoleSettings) -> settings::Console {
    let ConsoleSettings { admins, viewers } = settings;
    settings::Console { admin_users: admins.clone(), stats_users: viewers.clone() }
}

fn auth_query(query: &AuthQuery) -> v1::AuthQuery {
    let AuthQuery { sql, user, password, database } = query;
    let password = password.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default();
    v1::AuthQuery { sql: sql.clone(), user: user.clone(), password, database: database.clone() }
}

fn hba_rule(rule: &HbaRule) -> v1::HbaRule {
    let HbaRule { users, databases, address, tls, method } = rule;
    v1::HbaRule {
        users: users.clone(),
        databases: databases.clone(),
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        tls: *tls,
        method: method.word().to_owned(),
    }
}

fn one_user(user: &User) -> v1::User {
    let proof = user.proof.as_ref().map(|proof| match proof {
        UserProof::Password(secret) => user::Proof::Password(secret.expose().to_owned()),
        UserProof::ScramVerifier(secret) => user::Proof::ScramVerifier(secret.expose().to_owned()),
    });
    v1::User { name: user.name.clone(), proof, overrides: Some(overrides(&user.overrides)) }
}

fn one_database(database: &Database) -> v1::Database {
    v1::Database { name: database.name.clone(), overrides: Some(overrides(&database.overrides)) }
}

fn overrides(overrides: &Overrides) -> v1::Overrides {
    let Overrides { mode, pool_size, query_timeout, idle_in_transaction_timeout } = overrides;
    let limit = |limit: &Option<Option<Duration>>| limit.map(|limit| limit.map_or(0, micros));
    v1::Overrides {
        mode: mode.map_or(v1::PoolMode::Unspecified, words::pool_mode).into(),
        pool_size: *pool_size,
        query_timeout_us: limit(query_timeout),
        idle_in_transaction_timeout_us: limit(idle_in_transaction_timeout),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
