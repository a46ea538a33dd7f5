//! One resource from the wire to the model, or why not. The ranges are those of the configuration file: a control plane
//! is not believed more than a file. No reason quotes a secret.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::v1::{self, settings, user};
use super::words;
use crate::config::keys::{Kind, Section};
use crate::config::{bad_host, is_node_name, is_scram_verifier, is_url};
use crate::model::{
    Acceptance, AuthQuery, AuthSettings, BalancerSettings, Cidr, ConsoleSettings, Database, HbaMethod,
    HbaRule, HealthSettings, Limits, Node, NodeName, NodeOps, Overrides, Patroni, PoolSettings,
    ProbeCredential, ReadYourWrites, Secret, Settings, User, UserProof,
};

type Checked<T> = Result<T, String>;

/// The general settings, without users and databases.
pub(super) fn settings(sent: v1::Settings) -> Checked<Settings> {
    let v1::Settings { pool, balancer, limits, auth, write_timeout_us, health: _, console } = sent;
    Ok(Settings {
        pool: self::pool(pool.ok_or("has no pool settings")?)?,
        balancer: self::balancer(balancer.ok_or("has no balancer settings")?)?,
        limits: self::limits(limits.ok_or("has no limits")?)?,
        auth: self::auth(auth.ok_or("has no login settings")?)?,
        console: console.map(self::console).unwrap_or_default(),
        users: Vec::new(),
        databases: Vec::new(),
        write_timeout: seconds(Section::Top, "write_timeout_secs", write_timeout_us)?,
    })
}

/// How nodes are probed.
pub(super) fn health(sent: settings::Health) -> Checked<HealthSettings> {
    const S: Section = Section::Health;
    let settings::Health {
        check_interval_us,
        check_timeout_us,
        failure_threshold,
        success_threshold,
        credential,
        patroni,
    } = sent;
    Ok(HealthSettings {
        check_interval: seconds(S, "check_interval_secs", check_interval_us)?,
        check_timeout: seconds(S, "check_timeout_secs", check_timeout_us)?,
        failure_threshold: whole(S, "failure_threshold", failure_threshold)?,
        success_threshold: whole(S, "success_threshold", success_threshold)?,
        credential: credential.map(probe_credential).transpose()?,
        patroni: patroni.map(self::patroni).transpose()?.map(Arc::new),
    })
}

fn patroni(sent: settings::Patroni) -> Checked<Patroni> {
    const S: Section = Section::Topology;
    let settings::Patroni { endpoints, interval_us, timeout_us, ca_file } = sent;
    if endpoints.is_empty() {
        return Err("has no endpoint of Patroni".to_owned());
    }
    if let Some(wrong) = endpoints.iter().find(|endpoint| !is_url(endpoint)) {
        return Err(format!("its endpoint {wrong:?} of Patroni is no address"));
    }
    Ok(Patroni {
        endpoints,
        interval: seconds(S, "poll_interval_secs", interval_us)?,
        timeout: seconds(S, "patroni_timeout_secs", timeout_us)?,
        ca: Some(ca_file).filter(|path| !path.is_empty()).map(PathBuf::from),
        login: None,
    })
}

fn probe_credential(sent: settings::Credential) -> Checked<ProbeCredential> {
    let settings::Credential { user, password, database } = sent;
    let texts = [Some(&user), password.as_ref(), Some(&database)];
    if user.is_empty() || database.is_empty() || texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err("the probe's user or database is empty, or holds a NUL byte".to_owned());
    }
    Ok(ProbeCredential { user, password: password.map(Secret::new), database })
}

fn pool(sent: settings::Pool) -> Checked<PoolSettings> {
    const S: Section = Section::PoolMode;
    let settings::Pool {
        mode,
        max_pool_size,
        min_idle,
        idle_timeout_us,
        max_lifetime_us,
        acquire_timeout_us,
        reset_query,
    } = sent;
    if reset_query.is_empty() || reset_query.contains('\0') {
        return Err("reset_query is empty or holds a NUL byte".to_owned());
    }
    if min_idle > max_pool_size {
        return Err(format!("min_idle {min_idle} is more than max_pool_size {max_pool_size}"));
    }
    Ok(PoolSettings {
        mode: words::to_pool_mode(mode).ok_or_else(|| unknown("pool mode", mode))?,
        max_pool_size: whole(S, "max_pool_size", max_pool_size)?,
        min_idle: whole(S, "min_idle", min_idle)?,
        idle_timeout: optional_seconds(S, "idle_timeout_secs", idle_timeout_us)?,
        max_lifetime: optional_seconds(S, "max_lifetime_secs", max_lifetime_us)?,
        acquire_timeout: seconds(S, "acquire_timeout_secs", acquire_timeout_us)?,
        reset_query,
    })
}

fn balancer(sent: settings::Balancer) -> Checked<BalancerSettings> {
    const S: Section = Section::LoadBalancer;
    let settings::Balancer {
        read_write_split,
        read_strategy,
        read_your_writes_us,
        slow_start_us,
        max_lag_bytes,
        max_lag_us,
    } = sent;
    Ok(BalancerSettings {
        read_write_split,
        read_strategy: words::to_strategy(read_strategy)
            .ok_or_else(|| unknown("read strategy", read_strategy))?,
        read_your_writes: read_your_writes_us
            .map_or(ReadYourWrites::Off, |us| ReadYourWrites::Time(Duration::from_micros(us))),
        slow_start: seconds(S, "slow_start_secs", slow_start_us)?,
        max_lag_bytes,
        max_lag: max_lag_us.map(Duration::from_micros),
    })
}

fn limits(sent: settings::Limits) -> Checked<Limits> {
    const S: Section = Section::Limits;
    let most = |name, limit: Option<u32>| limit.map(|limit| whole(S, name, limit)).transpose();
    Ok(Limits {
        max_clients: most("max_client_connections", sent.max_clients)?,
        max_clients_per_user: most("max_client_connections_per_user", sent.max_clients_per_user)?,
        max_clients_per_database: most("max_client_connections_per_database", sent.max_clients_per_database)?,
        max_clients_per_address: most("max_client_connections_per_address", sent.max_clients_per_address)?,
        query_timeout: optional_seconds(S, "query_timeout_secs", sent.query_timeout_us)?,
        idle_in_transaction_timeout: optional_seconds(
            S,
            "idle_in_transaction_timeout_secs",
            sent.idle_in_transaction_timeout_us,
        )?,
        client_idle_timeout: optional_seconds(S, "client_idle_timeout_secs", sent.client_idle_timeout_us)?,
        login_timeout: seconds(S, "login_timeout_secs", sent.login_timeout_us)?,
        failed_login_delay: match sent.failed_login_delay_us {
            Some(longest) => seconds(S, "failed_login_delay_secs", longest)?,
            None => Duration::from_secs(1),
        },
        max_replication: match sent.max_replication {
            Some(most) => whole(S, "max_replication_connections", most)?,
            None => 10,
        },
    })
}

fn console(sent: settings::Console) -> ConsoleSettings {
    let settings::Console { admin_users: admins, stats_users: viewers } = sent;
    ConsoleSettings { admins, viewers }
}

fn auth(sent: settings::Auth) -> Checked<AuthSettings> {
    let settings::Auth { allow_backend_trust, proof_ttl_us, query, hba } = sent;
    let proof_ttl = seconds(Section::Auth, "proof_ttl_secs", proof_ttl_us)?;
    let query = query.map(auth_query).transpose()?;
    let hba = hba.into_iter().map(hba_rule).collect::<Checked<_>>()?;
    Ok(AuthSettings { allow_backend_trust, proof_ttl, query, hba })
}

fn auth_query(sent: v1::AuthQuery) -> Checked<AuthQuery> {
    let v1::AuthQuery { sql, user, password, database } = sent;
    if [&sql, &user, &database].into_iter().any(|text| text.is_empty() || text.contains('\0')) {
        return Err("auth_query without statement, user or database".to_owned());
    }
    let password = Some(password).filter(|text| !text.is_empty()).map(Secret::new);
    Ok(AuthQuery { sql, user, password, database })
}

fn hba_rule(sent: v1::HbaRule) -> Checked<HbaRule> {
    let v1::HbaRule { users, databases, address, tls, method } = sent;
    let address = match address.as_str() {
        "" => None,
        text => Some(Cidr::parse(text).ok_or_else(|| format!("[[hba]] address {text:?} is no network"))?),
    };
    let method = HbaMethod::from_word(&method).unwrap_or(HbaMethod::Reject);
    Ok(HbaRule { users, databases, address, tls, method })
}

/// A user.
pub(super) fn user(sent: v1::User) -> Checked<User> {
    let v1::User { name, proof, overrides } = sent;
    if name.is_empty() || name.contains('\0') {
        return Err("has no name, or one with a NUL byte".to_owned());
    }
    let proof = match proof {
        None => None,
        Some(user::Proof::Password(text)) if text.is_empty() || text.contains('\0') => {
            return Err("has a password that is empty or holds a NUL byte".to_owned());
        }
        Some(user::Proof::Password(text)) => Some(UserProof::Password(Secret::new(text))),
        Some(user::Proof::ScramVerifier(text)) if is_scram_verifier(&text) => {
            Some(UserProof::ScramVerifier(Secret::new(text)))
        }
        Some(user::Proof::ScramVerifier(_)) => return Err("has a malformed SCRAM verifier".to_owned()),
    };
    Ok(User { name, proof, overrides: self::overrides(Section::Users, overrides)? })
}

/// A database.
pub(super) fn database(sent: v1::Database) -> Checked<Database> {
    let v1::Database { name, overrides } = sent;
    if name.is_empty() || name.contains('\0') {
        return Err("has no name, or one with a NUL byte".to_owned());
    }
    Ok(Database { name, overrides: self::overrides(Section::Databases, overrides)? })
}

fn overrides(section: Section, sent: Option<v1::Overrides>) -> Checked<Overrides> {
    let v1::Overrides { mode, pool_size, query_timeout_us, idle_in_transaction_timeout_us } =
        sent.unwrap_or_default();
    let limit = |name, us: Option<u64>| {
        us.map(|us| Ok::<_, String>(Some(seconds(section, name, us)?).filter(|limit| !limit.is_zero())))
            .transpose()
    };
    let unspecified: i32 = v1::PoolMode::Unspecified.into();
    Ok(Overrides {
        mode: match mode {
            mode if mode == unspecified => None,
            mode => Some(words::to_pool_mode(mode).ok_or_else(|| unknown("pool mode", mode))?),
        },
        pool_size: pool_size.map(|size| whole(section, "pool_size", size)).transpose()?,
        query_timeout: limit("query_timeout_secs", query_timeout_us)?,
        idle_in_transaction_timeout: limit(
            "idle_in_transaction_timeout_secs",
            idle_in_transaction_timeout_us,
        )?,
    })
}

/// A node, with what operators have set.
pub(super) fn node(sent: v1::Node) -> Checked<(Arc<Node>, NodeOps)> {
    const S: Section = Section::Nodes;
    let v1::Node { name, host, port, role, weight, ops, max_connections } = sent;
    if name.is_empty() || !is_node_name(&name) {
        return Err("has a name that is none".to_owned());
    }
    if host.is_empty() {
        return Err("has no host".to_owned());
    }
    if let Some(why) = bad_host(&host) {
        return Err(format!("host {host:?} {why}"));
    }
    let port = whole(S, "port", port)?;
    let node = Node {
        name: NodeName::new(&name),
        host,
        port: u16::try_from(port).map_err(|_| format!("port {port} is none"))?,
        role: words::to_role(role).ok_or_else(|| unknown("role", role))?,
        weight: whole(S, "weight", weight)?,
        max_connections: Some(whole(S, "max_connections", max_connections)?).filter(|most| *most > 0),
    };
    let v1::NodeOps { drained, weight, paused, pool_size, reconnect, accepted } = ops.unwrap_or_default();
    let accepted = accepted.map(|sent| Acceptance {
        from: (sent.from_incarnation, sent.from_timeline),
        to: (sent.to_incarnation, sent.to_timeline),
        system: sent.system,
    });
    let ops = NodeOps {
        drained,
        weight: weight.map(|weight| whole(S, "weight", weight)).transpose()?,
        paused,
        pool_size: pool_size.map(|size| whole(Section::PoolMode, "max_pool_size", size)).transpose()?,
        reconnect,
        hold: None,
        accepted,
    };
    Ok((Arc::new(node), ops))
}

fn unknown(what: &str, number: i32) -> String {
    format!("has a {what} that this version does not know ({number})")
}

/// A number within the range of its key.
fn whole(section: Section, name: &str, value: u32) -> Checked<u32> {
    match section.key(name).map(|key| key.kind) {
        Some(Kind::Whole(_, least, most)) if !(least..=most).contains(&value.into()) => {
            Err(format!("{name} {value} is not within {least} to {most}"))
        }
        _ => Ok(value),
    }
}

/// A duration within the range of its key.
fn seconds(section: Section, name: &str, us: u64) -> Checked<Duration> {
    let duration = Duration::from_micros(us);
    let least = match section.key(name).map(|key| key.kind) {
        Some(Kind::Seconds(least)) => Duration::from_millis(least),
        _ => Duration::ZERO,
    };
    let most = Duration::from_secs(crate::config::MAX_SECONDS);
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!(
            "{name} {} is not within {} to {}",
            duration.as_secs_f64(),
            least.as_secs_f64(),
            most.as_secs()
        ))
    }
}

fn optional_seconds(section: Section, name: &str, us: Option<u64>) -> Checked<Option<Duration>> {
    us.map(|us| seconds(section, name, us)).transpose()
}
