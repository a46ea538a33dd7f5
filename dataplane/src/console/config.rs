//! `SHOW CONFIG`: what is in force, under PgBouncer's names where the same thing has one. No secret, and nothing that does
//! not hold here.

use super::table::{Cell, Kind, Table};
use crate::pool::View;
use helios_proto::config::keys::{Fallback, Section};
use std::net::SocketAddr;
use std::time::Duration;

/// Without a limit, PgBouncer says 0.
fn seconds(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "0".to_owned(), |limit| limit.as_secs_f64().to_string())
}

fn number(limit: Option<u32>) -> String {
    limit.unwrap_or(0).to_string()
}

/// The default of the key that this is in the file.
fn default(section: Section, name: &str) -> Cell {
    match section.key(name).map(|key| key.default) {
        Some(Fallback::Text(text)) => text.into(),
        Some(Fallback::Number(number)) => number.to_string().into(),
        Some(Fallback::Flag(flag)) => u32::from(flag).to_string().into(),
        Some(Fallback::Required | Fallback::Absent) | None => "".into(),
    }
}

/// The settings of a snapshot.
pub fn table(view: &View, listen: SocketAddr) -> Table {
    use Section::{Auth, Console, Limits, PoolMode, Top};
    let settings = view.settings();
    let (pool, limits, console) = (&settings.pool, &settings.limits, &settings.console);
    let query = settings.auth.query.as_ref();
    let rows: [(&str, String, Section, &str); 23] = [
        ("admin_users", console.admins.join(", "), Console, "admin_users"),
        ("auth_dbname", query.map(|q| q.database.clone()).unwrap_or_default(), Auth, "auth_database"),
        ("auth_query", query.map(|q| q.sql.clone()).unwrap_or_default(), Auth, "auth_query"),
        ("auth_user", query.map(|q| q.user.clone()).unwrap_or_default(), Auth, "auth_user"),
        ("client_idle_timeout", seconds(limits.client_idle_timeout), Limits, "client_idle_timeout_secs"),
        ("client_login_timeout", seconds(Some(limits.login_timeout)), Limits, "login_timeout_secs"),
        ("default_pool_size", pool.max_pool_size.to_string(), PoolMode, "max_pool_size"),
        (
            "idle_transaction_timeout",
            seconds(limits.idle_in_transaction_timeout),
            Limits,
            "idle_in_transaction_timeout_secs",
        ),
        ("listen_addr", listen.ip().to_string(), Top, ""),
        ("listen_port", listen.port().to_string(), Top, ""),
        ("max_client_conn", number(limits.max_clients), Limits, "max_client_connections"),
        (
            "max_db_client_connections",
            number(limits.max_clients_per_database),
            Limits,
            "max_client_connections_per_database",
        ),
        // A limit of one database or user is its own, in [[databases]] and [[users]].
        ("max_db_connections", "0".to_owned(), PoolMode, ""),
        ("max_user_connections", "0".to_owned(), PoolMode, ""),
        (
            "max_user_client_connections",
            number(limits.max_clients_per_user),
            Limits,
            "max_client_connections_per_user",
        ),
        ("min_pool_size", pool.min_idle.to_string(), PoolMode, "min_idle"),
        ("pool_mode", pool.mode.word().to_owned(), PoolMode, "mode"),
        ("query_timeout", seconds(limits.query_timeout), Limits, "query_timeout_secs"),
        ("query_wait_timeout", seconds(Some(pool.acquire_timeout)), PoolMode, "acquire_timeout_secs"),
        ("server_idle_timeout", seconds(pool.idle_timeout), PoolMode, "idle_timeout_secs"),
        ("server_lifetime", seconds(pool.max_lifetime), PoolMode, "max_lifetime_secs"),
        ("server_reset_query", pool.reset_query.clone(), PoolMode, "reset_query"),
        ("stats_users", console.viewers.join(", "), Console, "stats_users"),
    ];
    let columns =
        [("key", Kind::Text), ("value", Kind::Text), ("default", Kind::Text), ("changeable", Kind::Text)];
    let mut table = Table::new(&columns);
    table.rows.extend(rows.map(|(key, value, section, name)| {
        let changeable = if section == Top { "no" } else { "yes" };
        vec![key.into(), value.into(), default(section, name), changeable.into()]
    }));
    table
}
