//! What a switchover says to the servers: positions in the WAL, whether it may act, fencing, promotion. One connection per
//! server, each statement under a deadline. Only `pg_catalog` is named. Never touches a table.

use std::time::Duration;

use helios_proto::model::{Node, ProbeCredential};
use helios_tls::postgres::ToServers;
use tokio::time::timeout;
use tokio_postgres::{Client, Row};
use tokio_util::task::AbortOnDropHandle;

use crate::servers;

/// Longest wait for a connection or for a statement that only asks.
const SHORT: Duration = Duration::from_secs(5);

/// A position in the WAL, in bytes.
pub type Lsn = u64;

/// A login on one server.
pub struct Server {
    name: String,
    client: Client,
    _connection: AbortOnDropHandle<()>,
}

/// What a standby has of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Received from the primary.
    pub received: Lsn,
    /// Replayed.
    pub replayed: Lsn,
    /// A receiver runs.
    pub streams: bool,
}

impl Server {
    /// Logs in.
    pub async fn open(
        node: &Node,
        servers: &ToServers,
        credential: &ProbeCredential,
    ) -> Result<Self, String> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&node.host)
            .port(node.port)
            .user(&credential.user)
            .dbname(&credential.database)
            .application_name("helios-switchover")
            .options("-c search_path=pg_catalog -c default_transaction_isolation=read\\ committed")
            .connect_timeout(SHORT);
        if let Some(password) = &credential.password {
            config.password(password.expose());
        }
        let name = node.name.to_string();
        let connected = timeout(SHORT, servers::log_in(&mut config, servers)).await;
        let (client, connection) = connected
            .map_err(|_| format!("no answer from {name} in {SHORT:?}"))?
            .map_err(|error| format!("cannot log in on {name}: {}", words(&error)))?;
        Ok(Self { name, client, _connection: connection })
    }

    async fn one(&self, sql: &str, limit: Duration) -> Result<Row, String> {
        let answer = timeout(limit, self.client.query_one(sql, &[])).await;
        let answer = answer.map_err(|_| format!("no answer from {} in {limit:?}", self.name))?;
        answer.map_err(|error| format!("{}: {}", self.name, words(&error)))
    }

    async fn run(&self, sql: &str, limit: Duration) -> Result<(), String> {
        let answer = timeout(limit, self.client.batch_execute(sql)).await;
        let answer = answer.map_err(|_| format!("no answer from {} in {limit:?}", self.name))?;
        answer.map_err(|error| format!("{}: {}", self.name, words(&error)))
    }

    /// Whether this login may call `pg_promote`, and whether it is a superuser.
    pub async fn rights(&self) -> Result<(bool, bool), String> {
        const SQL: &str = "select has_function_privilege('pg_catalog.pg_promote(boolean,integer)', 'execute'), \
            (select rolsuper from pg_catalog.pg_roles where rolname = current_user)";
        let row = self.one(SQL, SHORT).await?;
        Ok((get(&row, 0)?, get(&row, 1)?))
    }

    /// Age of the oldest open transaction of a client, as far as this login may see it.
    pub async fn oldest_transaction(&self) -> Result<Duration, String> {
        const SQL: &str = "select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float8 \
            from pg_catalog.pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
        let seconds: f64 = get(&self.one(SQL, SHORT).await?, 0)?;
        Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
    }

    /// Transactions of clients that are open now, as far as this login may see them.
    pub async fn open_transactions(&self) -> Result<i64, String> {
        const SQL: &str = "select count(*) from pg_catalog.pg_stat_activity where backend_type = 'client backend' \
            and pid <> pg_backend_pid() and application_name <> 'helios-probe' and xact_start is not null";
        get(&self.one(SQL, SHORT).await?, 0)
    }

    /// Where a primary writes.
    pub async fn written(&self) -> Result<Lsn, String> {
        lsn(&self.one("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8", SHORT).await?, 0)
    }

    /// How far a standby is.
    pub async fn reached(&self) -> Result<Reached, String> {
        const SQL: &str = "select coalesce(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0'), 0)::int8, \
            coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)::int8, \
            exists (select from pg_catalog.pg_stat_wal_receiver)";
        let row = self.one(SQL, SHORT).await?;
        Ok(Reached { received: lsn(&row, 0)?, replayed: lsn(&row, 1)?, streams: get(&row, 2)? })
    }

    /// Takes no more writes: new transactions are read-only, and everybody but probes is sent away.
    pub async fn fence(&self) -> Result<(), String> {
        self.run("alter system set default_transaction_read_only = on", SHORT).await?;
        self.run("select pg_reload_conf()", SHORT).await?;
        self.run(
            "select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
             where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'helios-probe'",
            SHORT,
        )
        .await
    }

    /// Takes writes again.
    pub async fn release(&self) -> Result<(), String> {
        self.run("alter system reset default_transaction_read_only", SHORT).await?;
        self.run("select pg_reload_conf()", SHORT).await
    }

    /// Whether it is a primary now; no answer counts as no.
    pub async fn is_promoted(&self) -> bool {
        let row = self.one("select pg_is_in_recovery()", SHORT).await;
        row.and_then(|row| get::<bool>(&row, 0)).is_ok_and(|recovers| !recovers)
    }

    /// Becomes a primary.
    pub async fn promote(&self, limit: Duration) -> Result<(), String> {
        let sql = format!("select pg_promote(true, {})", limit.as_secs().max(1));
        match get(&self.one(&sql, limit).await?, 0)? {
            true => Ok(()),
            false => Err(format!("{} was not promoted in {limit:?}", self.name)),
        }
    }
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, String> {
    row.try_get(at).map_err(|error| words(&error))
}

fn lsn(row: &Row, at: usize) -> Result<Lsn, String> {
    let value: i64 = get(row, at)?;
    u64::try_from(value).map_err(|_| "a position in the WAL is negative".to_owned())
}

/// What the server said, else what the driver says: without SQL and names of users.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => error.to_string(),
    }
}
