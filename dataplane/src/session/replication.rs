//! Connections of the replication protocol: they go through to the primary, each with a server connection of its own that no
//! pool knows, and end when that node is no longer the primary. What is said on them is never looked at.

use super::login::{Login, Refusal};
use crate::limits::Counted;
use crate::pool::NodePool;
use crate::registry::{ClientFacts, ClientKind, Registered};
use crate::server::ServerIdent;
use crate::server::credential::{Credential, Password};
use crate::server::dial::{Opened, Opening, Secured, Who, dial};
use crate::worker::Worker;
use helios_pgwire::PgError;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::login::Welcome;
use helios_pgwire::startup::{Replication, Startup, agreed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};

/// How often a connection looks whether it may go on.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes copied at once in each direction.
const CHUNK: usize = 64 * 1024;

/// A replication connection that has logged in.
pub struct Through {
    server: Secured,
    pool: Arc<NodePool>,
    registered: Registered,
}

impl Login<'_> {
    /// Logs a replication client in, on a connection to the primary that is its own.
    ///
    /// # Errors
    /// See [`Refusal`]; what must be told has not been sent.
    pub async fn replicate(mut self, counted: &mut Counted) -> Result<Through, Refusal> {
        let view = self.view().await?;
        let limits = &view.settings().limits;
        if limits.max_replication == 0 {
            let text = "replication connections are not allowed by the configuration";
            return Err(PgError::fatal("0A000", text)
                .hint("Set max_replication_connections in [limits], or connect to the PostgreSQL server itself.")
                .into());
        }
        let none = || PgError::fatal("57P03", "no primary server is available");
        let pool = view.snapshot.primary.and_then(|i| view.pools.get(i)).ok_or_else(none)?;
        let mut params = self.startup.params.clone();
        let kind: &[u8] =
            if self.startup.replication == Replication::Logical { b"database" } else { b"true" };
        params.push((b"replication".to_vec(), kind.to_vec()));
        params.sort();
        let Startup { user, database, .. } = self.startup;
        let who = Who { user, database, params: &params };
        let (server, welcome) = match self.by_knowledge(&view).await? {
            Some((credential, _)) => {
                let dialled = dial((&pool.node, &pool.leg), who, &credential).await;
                dialled.map_err(|error| self.dial_error(pool, error))?
            }
            None => self.by_itself(pool, who).await?,
        };
        // Counted once it has proved itself: nobody else may use the places up.
        counted.replication(limits)?;
        counted.login(limits, user, database)?;
        let registered = self.worker.shared.registry.register(agreed(self.startup.version));
        registered.handle.describe(ClientFacts {
            identity: self.worker.shared.identities.provisional(user, database, params),
            kind: ClientKind::Replication,
            peer: self.from,
            local: self.lobby.io.tcp().local_addr().ok(),
            tls: self.lobby.io.tls_words(),
            since: Instant::now(),
        });
        self.welcome_through(&server, &welcome, &registered).await?;
        Ok(Through { server, pool: Arc::clone(pool), registered })
    }

    /// The backend judges, on the very connection that the client gets.
    async fn by_itself(&mut self, pool: &NodePool, who: Who<'_>) -> Result<(Secured, Box<Welcome>), Refusal> {
        let view = self.worker.shared.pools.view();
        if !self.is_private() && !self.may_be_trusted(&view) {
            return Err(self.too_far());
        }
        let to = (pool.node.as_ref(), &pool.leg);
        match Opening::start(to, who).await.map_err(|error| self.dial_error(pool, error))? {
            Opened::Ready(..) if !self.may_be_trusted(&view) => return Err(self.too_trusting()),
            Opened::Ready(server, welcome) => return Ok((server, welcome)),
            Opened::Asked(..) if !self.is_private() => return Err(self.too_far()),
            // Asked for a password, the server waits a minute; the client may take longer to find it.
            Opened::Asked(..) => {}
        }
        let password = self.password().await?;
        let credential = Arc::new(Credential::Password(Password::new(password)));
        let dialled = dial(to, who, &credential).await;
        dialled.map_err(|error| self.dial_error(pool, error))
    }

    /// What the server said of itself, but for the key: cancel requests come to us.
    async fn welcome_through(
        &mut self,
        (io, sealing): &Secured,
        welcome: &Welcome,
        registered: &Registered,
    ) -> Result<(), Refusal> {
        let addr = io.tcp().peer_addr()?;
        let key = (welcome.pid, welcome.key.clone());
        registered.handle.set_server(&Arc::new(ServerIdent::new((addr, Some(io)), key, sealing.clone())));
        let mut out = Vec::new();
        backend::auth(&mut out, 0, b"");
        for (name, value) in &welcome.parameters {
            backend::parameter_status(&mut out, name, value);
        }
        backend::key_data(&mut out, registered.handle.pid, &registered.handle.key);
        backend::ready_for_query(&mut out, TxStatus::Idle);
        Ok(self.lobby.send(&out).await?)
    }
}

impl Through {
    /// Copies both ways until one side ends, the node is no longer the primary, or the data plane stops.
    pub async fn relay(self, worker: &Arc<Worker>, lobby: super::startup::Lobby) {
        let Self { server: (mut server, _), pool, registered } = self;
        let mut client = lobby.io;
        let copy = async {
            // What the client has sent already.
            server.write_all(&lobby.buf).await?;
            server.flush().await?;
            copy_bidirectional_with_sizes(&mut client, &mut server, CHUNK, CHUNK).await
        };
        let over = async {
            let mut ticks = tokio::time::interval(LOOK);
            loop {
                ticks.tick().await;
                let view = worker.shared.pools.view();
                let primary = view.snapshot.primary.and_then(|i| view.pools.get(i));
                let moved = primary.is_some_and(|primary| !Arc::ptr_eq(primary, &pool));
                if moved || registered.handle.draining() || registered.handle.killed() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            ended = copy => drop(ended),
            () = over => tracing::info!(node = %pool.node.name, "a replication connection was ended"),
        }
    }
}
