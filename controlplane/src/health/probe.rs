//! One probe of one node: does the server answer, and what does it say about itself. Owner: the node's task.
//! Without a login, a TLS request that every PostgreSQL answers with one byte; with one, a query on a connection
//! that is kept, and renewed now and then: a server that is told to stop serves open connections to their end, and shows
//! only to new ones that it stops. Never causes an ERROR in a server's log, never writes, never waits longer than the timeout.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{Node, ProbeCredential};
use helios_tls::dial::in_words;
use helios_tls::names;
use helios_tls::postgres::ToServers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Statement};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::{Facts, Failure, FailureKind, Reply};
use crate::servers;

/// Length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A connection that is older is renewed.
const RENEWED: Duration = Duration::from_secs(5);

/// In one round trip: in recovery, system identifier, timeline in hex (the running one, which
/// `pg_control_checkpoint` would show only after a checkpoint), WAL written or received, WAL replayed, the timeline that
/// a standby follows: what its receiver says (NULL to a login without `pg_monitor`), without a receiver what it has
/// replayed at least.
const PROBE: &str = "SELECT pg_is_in_recovery(), \
    (SELECT system_identifier FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END, \
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, \
    '0/0')::int8, \
    pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8, \
    CASE WHEN NOT pg_is_in_recovery() THEN NULL \
    WHEN EXISTS (SELECT FROM pg_stat_wal_receiver) THEN (SELECT received_tli FROM pg_stat_wal_receiver) \
    ELSE greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
    (SELECT min_recovery_end_timeline FROM pg_control_recovery())) END, \
    EXISTS (SELECT FROM pg_stat_wal_receiver)";

/// Probes one node.
pub(crate) struct Prober {
    node: Arc<Node>,
    servers: Arc<ToServers>,
    credential: Option<ProbeCredential>,
    limit: Duration,
    session: Option<Session>,
}

/// A logged-in connection; dropped with its task.
struct Session {
    client: Client,
    statement: Statement,
    since: Instant,
    doubted: bool,
    _connection: AbortOnDropHandle<()>,
}

impl Prober {
    pub fn new(
        (node, servers): (Arc<Node>, Arc<ToServers>),
        credential: Option<ProbeCredential>,
        limit: Duration,
    ) -> Self {
        Self { node, servers, credential, limit, session: None }
    }

    /// The next probe renews its connection: something may be wrong with the server.
    pub fn doubt(&mut self) {
        if let Some(session) = &mut self.session {
            session.doubted = true;
        }
    }

    /// Probes once. A connection that broke since the last probe is replaced within the same probe.
    pub async fn probe(&mut self) -> Result<Reply, Failure> {
        let limit = self.limit;
        let outcome = timeout(limit, self.attempt()).await;
        let failure = match outcome {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(FailureKind::NoAnswer, format!("no answer within {limit:?}")),
        };
        self.session = None;
        Err(failure)
    }

    async fn attempt(&mut self) -> Result<Reply, Failure> {
        let Some(credential) = self.credential.clone() else { return self.knock().await };
        self.renew(&credential).await?;
        let broken = match self.session.as_ref() {
            None => true,
            Some(session) => match ask(session).await {
                Ok(reply) => return Ok(reply),
                // A lost connection says nothing about the server now; any other error does.
                Err(error) if error.is_closed() || session.client.is_closed() => true,
                Err(error) => return Err(self.explain(&error).await),
            },
        };
        if broken {
            self.session = None;
        }
        let session = match log_in((&self.node, &self.servers), &credential, self.limit).await {
            Ok(session) => session,
            Err(error) => return Err(self.explain(&error).await),
        };
        let answer = ask(&session).await;
        self.session = Some(session);
        match answer {
            Ok(reply) => Ok(reply),
            Err(error) => Err(self.explain(&error).await),
        }
    }

    /// Logs in anew if it is time. Only a server that says that it stops counts: whatever else goes wrong, what serves the
    /// open connection is alive.
    async fn renew(&mut self, credential: &ProbeCredential) -> Result<(), Failure> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if !session.doubted && session.since.elapsed() < RENEWED {
            return Ok(());
        }
        (session.since, session.doubted) = (Instant::now(), false);
        // What is left of the limit is for the query.
        let limit = self.limit / 2;
        match timeout(limit, log_in((&self.node, &self.servers), credential, self.limit)).await {
            Ok(Ok(renewed)) => self.session = Some(renewed),
            Ok(Err(error)) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {
                self.session = None;
                return Err(self.explain(&error).await);
            }
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(())
    }

    /// Connects and asks for TLS: a frozen postmaster accepts but never answers.
    async fn knock(&self) -> Result<Reply, Failure> {
        let started = Instant::now();
        let answer = if self.node.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", self.node.host, self.node.port);
            exchange(UnixStream::connect(path).await).await
        } else {
            match names::resolve(&self.node.host, self.node.port, self.limit).await {
                Ok(found) => exchange(TcpStream::connect(found.as_slice()).await).await,
                Err(error) => Err(error),
            }
        };
        match answer {
            Ok(b'S' | b'N') => Ok(Reply { latency: started.elapsed(), facts: None }),
            Ok(_) => {
                let text = "the answer is not PostgreSQL's".to_owned();
                Err(Failure::new(FailureKind::Unreachable, text))
            }
            Err(error) => Err(Failure::new(FailureKind::Unreachable, error.to_string())),
        }
    }

    /// What an error means. The text names neither users nor SQL: it is shown to everyone.
    async fn explain(&self, error: &tokio_postgres::Error) -> Failure {
        debug!(node = %self.node.name, %error, source = error.source(), "probe failed");
        if let Some(code) = error.code() {
            return by_code(code.code());
        }
        if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            // A certificate that is not good says nothing about the server's life.
            let tls = io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            let kind = if tls { FailureKind::Misconfigured } else { FailureKind::Unreachable };
            let text =
                if tls { format!("TLS: {}", in_words(io, Some(&self.node.host))) } else { io.to_string() };
            return Failure::new(kind, text);
        }
        if error.is_closed() {
            return Failure::new(FailureKind::Unreachable, "connection closed by the server".to_owned());
        }
        // Neither the server nor the network refused: a login that this side cannot do, or no PostgreSQL.
        match self.knock().await {
            Ok(_) => Failure::new(FailureKind::Misconfigured, "the probe cannot log in".to_owned()),
            Err(failure) => failure,
        }
    }
}

/// Sends the TLS request and reads the one byte.
async fn exchange<S>(stream: io::Result<S>) -> io::Result<u8>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut stream = stream?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await
}

async fn log_in(
    (node, servers): (&Node, &ToServers),
    credential: &ProbeCredential,
    limit: Duration,
) -> Result<Session, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&node.host)
        .port(node.port)
        .user(&credential.user)
        .dbname(&credential.database)
        .application_name("helios-probe")
        // A standby refuses serializable transactions, whatever the role's default.
        .options(format!(
            "-c statement_timeout={} -c default_transaction_isolation=read\\ committed",
            limit.as_millis()
        ))
        .connect_timeout(limit);
    if let Some(password) = &credential.password {
        config.password(password.expose());
    }
    let (client, connection) = servers::log_in(&mut config, servers).await?;
    let statement = client.prepare(PROBE).await?;
    Ok(Session { client, statement, since: Instant::now(), doubted: false, _connection: connection })
}

async fn ask(session: &Session) -> Result<Reply, tokio_postgres::Error> {
    let started = Instant::now();
    let row = session.client.query_one(&session.statement, &[]).await?;
    Ok(Reply { latency: started.elapsed(), facts: Some(facts(&row)?) })
}

fn facts(row: &Row) -> Result<Facts, tokio_postgres::Error> {
    let system: i64 = row.try_get(1)?;
    let timeline: Option<&str> = row.try_get(2)?;
    let wal: Option<i64> = row.try_get(3)?;
    let replayed: Option<i64> = row.try_get(4)?;
    let follows: Option<i32> = row.try_get(5)?;
    Ok(Facts {
        in_recovery: row.try_get(0)?,
        system: system.cast_unsigned(),
        timeline: timeline.and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0),
        follows: follows.and_then(|timeline| u32::try_from(timeline).ok()).filter(|timeline| *timeline > 0),
        streams: row.try_get(6)?,
        wal: wal.and_then(|lsn| u64::try_from(lsn).ok()),
        replayed: replayed.and_then(|lsn| u64::try_from(lsn).ok()),
    })
}

fn by_code(code: &str) -> Failure {
    let (kind, words) = match code {
        "57P01" | "57P02" | "57P03" => (FailureKind::NotReady, "starting, stopping or recovering"),
        "53300" => (FailureKind::Full, "all its connections are taken"),
        "3D000" => (FailureKind::Misconfigured, "the probe's database does not exist"),
        _ if code.starts_with("08") => (FailureKind::Misconfigured, "the probe's login is not understood"),
        _ if code.starts_with("28") => (FailureKind::Misconfigured, "the probe's login is refused"),
        _ if code.starts_with("42") => (FailureKind::Misconfigured, "the probe's query is refused"),
        _ => (FailureKind::NotReady, "the probe's query failed"),
    };
    Failure::new(kind, format!("{words} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::{NodeName, Role};
    use tokio::net::TcpListener;

    /// Serves one connection: reads the request, answers these bytes, then holds the connection open.
    async fn server(answer: Option<&'static [u8]>) -> (Arc<Node>, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let Some(answer) = answer else { std::future::pending().await };
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 8];
            client.read_exact(&mut request).await.unwrap();
            client.write_all(answer).await.unwrap();
            request
        });
        let host = "127.0.0.1".to_owned();
        let name = NodeName::new("primary");
        (Arc::new(Node { name, host, port, role: Role::Primary, weight: 100, max_connections: None }), task)
    }

    fn prober(node: Arc<Node>) -> Prober {
        Prober::new((node, Arc::default()), None, Duration::from_millis(200))
    }

    #[tokio::test]
    async fn a_server_that_answers_is_alive() {
        for answer in [b"S".as_slice(), b"N"] {
            let (node, task) = server(Some(answer)).await;
            assert_eq!(prober(node).probe().await.unwrap().facts, None);
            assert_eq!(task.await.unwrap(), SSL_REQUEST);
        }
    }

    #[tokio::test]
    async fn a_frozen_server_accepts_but_is_not_alive() {
        let (node, _task) = server(None).await;
        let failure = prober(Arc::clone(&node)).probe().await.unwrap_err();
        assert_eq!((failure.kind, &*failure.text), (FailureKind::NoAnswer, "no answer within 200ms"));
        let credential = ProbeCredential { user: "u".to_owned(), password: None, database: "d".to_owned() };
        let mut prober = Prober::new((node, Arc::default()), Some(credential), Duration::from_millis(200));
        assert_eq!(prober.probe().await.unwrap_err().kind, FailureKind::NoAnswer);
    }

    #[tokio::test]
    async fn what_is_not_postgresql_or_not_there_is_unreachable() {
        let (node, _task) = server(Some(b"HTTP/1.1 400")).await;
        let failure = prober(Arc::clone(&node)).probe().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable, "{failure:?}");
        let closed = prober(node).probe().await.unwrap_err();
        assert_eq!(closed.kind, FailureKind::Unreachable, "{closed:?}");
        let name = NodeName::new("a");
        let (host, role) = ("/nowhere".to_owned(), Role::Standby);
        let node = Node { name, host, port: 1, role, weight: 1, max_connections: None };
        assert_eq!(prober(Arc::new(node)).probe().await.unwrap_err().kind, FailureKind::Unreachable);
    }

    #[test]
    fn sqlstates_are_classified() {
        for (code, kind) in [
            ("57P03", FailureKind::NotReady),
            ("53300", FailureKind::Full),
            ("28P01", FailureKind::Misconfigured),
            ("28000", FailureKind::Misconfigured),
            ("3D000", FailureKind::Misconfigured),
            ("42501", FailureKind::Misconfigured),
            ("XX000", FailureKind::NotReady),
        ] {
            let failure = by_code(code);
            assert_eq!(failure.kind, kind, "{code}");
            assert!(failure.text.ends_with(&format!("({code})")));
        }
    }
}
