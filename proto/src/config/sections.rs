//! The single sections: from what was written to the settings that hold. Pure, apart from resolving the two
//! addresses the program listens on.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use toml::de::DeTable;

use super::keys::Section;
use super::reader::{Part, Reader};
use crate::model::{
    BalancerSettings, HealthSettings, Limits, PoolMode, PoolSettings, ProbeCredential, ReadStrategy,
    ReadYourWrites,
};

/// What stands above the first header.
pub(super) struct Top {
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub workers: Option<usize>,
    pub write_timeout: Duration,
    pub grace: Duration,
    pub drain_timeout: Duration,
}

pub(super) fn top(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Top {
    let mut part = reader.part(root, Section::Top);
    let listen = address(&mut part, "listen_address");
    let admin = address(&mut part, "admin_address");
    if listen.is_some() && listen == admin && listen.is_some_and(|address| address.port() != 0) {
        let line = part.given("admin_address").or(part.given("listen_address"));
        part.problem(line, "admin_address and listen_address are the same".to_owned());
    }
    Top {
        listen,
        admin,
        workers: usize::try_from(part.whole("workers")).ok().filter(|workers| *workers > 0),
        write_timeout: part.seconds("write_timeout_secs"),
        grace: part.seconds("shutdown_grace_secs"),
        drain_timeout: part.seconds("shutdown_drain_timeout_secs"),
    }
}

pub(super) fn address(part: &mut Part<'_, '_>, name: &'static str) -> Option<SocketAddr> {
    let text = part.text(name)?;
    match resolve(&text) {
        Ok(address) => Some(address),
        Err(why) => {
            let line = part.given(name);
            part.problem(line, format!("{name} {text:?} {why}"));
            None
        }
    }
}

/// The address of `host:port`; IPv4 first where a name has both kinds.
pub(super) fn resolve(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let form = "is not an address such as \"127.0.0.1:5433\"";
    let (host, port) = text.rsplit_once(':').ok_or(form)?;
    if host.is_empty() || host.contains([':', '/', ' ']) || port.parse::<u16>().is_err() {
        return Err(form.to_owned());
    }
    let found: Vec<SocketAddr> = match text.to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => return Err(format!("cannot be resolved: {error}")),
    };
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| "cannot be resolved: the name has no address".to_owned())
}

pub(super) fn pool(reader: &mut Reader<'_>, root: &DeTable<'_>) -> PoolSettings {
    let mut part = reader.part(root, Section::PoolMode);
    let settings = PoolSettings {
        mode: part.word("mode", PoolMode::from_word).unwrap_or(PoolMode::Transaction),
        max_pool_size: part.whole32("max_pool_size"),
        min_idle: part.whole32("min_idle"),
        idle_timeout: part.seconds_or_none("idle_timeout_secs"),
        max_lifetime: part.seconds_or_none("max_lifetime_secs"),
        acquire_timeout: part.seconds("acquire_timeout_secs"),
        reset_query: part.text("reset_query").unwrap_or_default(),
    };
    let PoolSettings { min_idle, max_pool_size, .. } = settings;
    if min_idle > max_pool_size {
        let line = part.given("min_idle");
        part.problem(line, format!("min_idle {min_idle} is more than max_pool_size {max_pool_size}"));
    }
    settings
}

pub(super) fn balancer(reader: &mut Reader<'_>, root: &DeTable<'_>, probe_user: bool) -> BalancerSettings {
    let mut part = reader.part(root, Section::LoadBalancer);
    let by_time = part.word("read_your_writes", |word| match word {
        "off" => Some(false),
        "time" => Some(true),
        _ => None,
    });
    let window = Duration::from_millis(part.whole("read_your_writes_ms"));
    if let (Some(line), Some(false)) = (part.given("read_your_writes_ms"), by_time) {
        part.problem(
            Some(line),
            "read_your_writes_ms has no effect without read_your_writes = \"time\"".to_owned(),
        );
    }
    let max_lag_bytes = lag_limit(&mut part, "max_lag_bytes", probe_user);
    let max_lag = lag_limit(&mut part, "max_lag_ms", probe_user).map(Duration::from_millis);
    BalancerSettings {
        read_write_split: part.flag("read_write_split"),
        read_strategy: part
            .word("read_strategy", ReadStrategy::from_word)
            .unwrap_or(ReadStrategy::RoundRobin),
        read_your_writes: match by_time {
            Some(true) => ReadYourWrites::Time(window),
            Some(false) | None => ReadYourWrites::Off,
        },
        slow_start: part.seconds("slow_start_secs"),
        max_lag_bytes,
        max_lag,
    }
}

fn lag_limit(part: &mut Part<'_, '_>, name: &'static str, probe_user: bool) -> Option<u64> {
    let limit = Some(part.whole(name)).filter(|limit| *limit > 0)?;
    if !probe_user {
        let line = part.given(name);
        part.problem(
            line,
            format!("{name} has no effect without user in [health]: only a probe that logs in sees lag"),
        );
    }
    Some(limit)
}

pub(super) fn health(reader: &mut Reader<'_>, root: &DeTable<'_>) -> HealthSettings {
    let mut part = reader.part(root, Section::Health);
    let user = part.text("user");
    let password = part.secret("password");
    let database = part.text("database").unwrap_or_default();
    for name in ["password", "database"] {
        if let (Some(line), None) = (part.given(name), part.given("user")) {
            part.problem(Some(line), format!("{name} in [health] has no effect without user"));
        }
    }
    HealthSettings {
        check_interval: part.seconds("check_interval_secs"),
        check_timeout: part.seconds("check_timeout_secs"),
        failure_threshold: part.whole32("failure_threshold"),
        success_threshold: part.whole32("success_threshold"),
        credential: user.map(|user| ProbeCredential { user, password, database }),
        patroni: None,
    }
}

pub(super) fn limits(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Limits {
    let mut part = reader.part(root, Section::Limits);
    let mut most = |name| Some(part.whole32(name)).filter(|limit| *limit > 0);
    Limits {
        max_clients: most("max_client_connections"),
        max_clients_per_user: most("max_client_connections_per_user"),
        max_clients_per_database: most("max_client_connections_per_database"),
        max_clients_per_address: most("max_client_connections_per_address"),
        query_timeout: part.seconds_or_none("query_timeout_secs"),
        idle_in_transaction_timeout: part.seconds_or_none("idle_in_transaction_timeout_secs"),
        client_idle_timeout: part.seconds_or_none("client_idle_timeout_secs"),
        login_timeout: part.seconds("login_timeout_secs"),
        failed_login_delay: part.seconds("failed_login_delay_secs"),
        max_replication: part.whole32("max_replication_connections"),
    }
}
