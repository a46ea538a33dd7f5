//! Getting a server connection when there is none at hand: wait in the queue, dial, wait for a primary, give up with
//! the right SQLSTATE. Runs only off the hot path. Never sends a byte of the client.

use super::patience::Patience;
use crate::pool::node::{Refused, Request};
use crate::pool::sweep::open;
use crate::pool::{Checkout, Grant, Identity, NodePool, Outcome, Slot, View, Waiter, wait};
use crate::server::ServerConn;
use crate::server::dial::DialError;
use crate::server::settings::Texts;
use crate::worker::Worker;
use helios_pgwire::login::LoginError;
use helios_pgwire::{PgError, Severity};
use helios_proto::model::Evidence;
use std::sync::Arc;
use std::time::Instant;

/// What a search for a server connection ended with, short of one.
#[derive(Debug)]
pub enum Failure {
    /// The statement fails, the session lives.
    Statement(Box<PgError>),
    /// The backend ended the session's right to connect: its ErrorResponse, for the client, then close.
    Session(Vec<u8>),
}

/// One search for a server connection.
pub struct Seeker<'a> {
    worker: &'a Arc<Worker>,
    identity: &'a Arc<Identity>,
    waiter: Arc<Waiter>,
    patience: Patience,
    /// How often a node that was chosen could not be reached.
    misses: usize,
    /// The right to open a connection, from before the search.
    slot: Option<Slot>,
    /// Settings that the connection is to have.
    settings: Option<Arc<Texts>>,
}

/// The error of the acquire timeout, in the words of the guide.
#[must_use]
pub fn timed_out(severity: Severity) -> PgError {
    let error = PgError::error("53300", "connection acquire timeout").hint(
        "Increase max_pool_size, use transaction or statement mode, or hold connections for a shorter time.",
    );
    PgError { severity, ..error }
}

fn no_primary() -> Failure {
    let error = PgError::error("57P03", "no primary server is available")
        .hint("The statement was not sent; it is safe to retry.");
    Failure::Statement(Box::new(error))
}

fn no_descriptors() -> Failure {
    let error = PgError::error("53000", "the proxy has no file descriptor left for a server connection")
        .hint("Raise the limit of open files, or lower max_clients in [limits].");
    Failure::Statement(Box::new(error))
}

/// What to do after a node gave no connection.
enum Next {
    Retry,
    Fail(Failure),
}

impl<'a> Seeker<'a> {
    /// A search that starts now.
    #[must_use]
    pub fn new(worker: &'a Arc<Worker>, identity: &'a Arc<Identity>, waiter: Arc<Waiter>) -> Self {
        Self {
            worker,
            identity,
            waiter,
            patience: Patience::since(Instant::now()),
            misses: 0,
            slot: None,
            settings: None,
        }
    }

    /// The search began earlier, and has perhaps got the right to open a connection already.
    #[must_use]
    pub fn begun(self, started: Instant, slot: Option<Slot>) -> Self {
        Self { patience: Patience::since(started), slot, ..self }
    }

    /// The connection is to have these settings.
    #[must_use]
    pub fn dressed(self, settings: Option<Arc<Texts>>) -> Self {
        Self { settings, ..self }
    }

    /// A connection to the node that `choose` names each time it is asked; `None` means that there is none now.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn seek(
        mut self,
        mut choose: impl FnMut(&View) -> Option<usize>,
    ) -> Result<(usize, Arc<View>, Box<ServerConn>), Failure> {
        loop {
            let view = self.patience.look(&self.worker.shared.pools);
            let node = choose(&view);
            let Some((node, pool)) = node.and_then(|i| Some((i, view.pools.get(i)?))) else {
                self.hold(&view).await?;
                continue;
            };
            let timeout = view.settings().pool.acquire_timeout.saturating_sub(self.patience.elapsed());
            let (identity, waiter) = (self.identity, &self.waiter);
            let settings = self.settings.as_ref();
            let request = Request { identity, waiter, settings, caps: view.caps(identity), timeout };
            let given = self.slot.take().filter(|slot| Arc::ptr_eq(slot.pool(), pool)).map(Checkout::Dial);
            let outcome = match given.unwrap_or_else(|| pool.checkout(&request)) {
                Checkout::Ready(conn) => Outcome::Granted(Grant::Conn(conn)),
                Checkout::Dial(slot) => Outcome::Granted(Grant::Dial(slot)),
                Checkout::Away => {
                    let next = self.unreached(pool, &view, node);
                    self.again(next).await?;
                    continue;
                }
                Checkout::Retired => Outcome::Retired,
                Checkout::Wait => wait(pool, &self.waiter).await,
            };
            match outcome {
                Outcome::Granted(Grant::Conn(conn)) => {
                    if let Ok(conn) = conn.adopt(self.worker.id) {
                        return Ok((node, view, conn));
                    }
                }
                Outcome::Granted(Grant::Dial(slot)) => {
                    if let Some(conn) = self.dial(slot, &view, node).await? {
                        return Ok((node, view, conn));
                    }
                }
                Outcome::Retired => self.patience.rest(&self.worker.shared.pools).await,
                Outcome::Expired => return Err(Failure::Statement(Box::new(timed_out(Severity::Error)))),
            }
        }
    }

    /// Makes sure that the identity's greeting is known: opens or borrows a connection and gives it back.
    ///
    /// # Errors
    /// What the client must be told.
    pub async fn greet(self) -> Result<(), super::login::Refusal> {
        match self.seek(|view| view.askable().next()).await {
            Ok((_, view, conn)) => {
                drop(view);
                let pool = Arc::clone(conn.slot.pool());
                pool.put_back(conn);
                Ok(())
            }
            Err(Failure::Statement(error)) => Err(PgError { severity: Severity::Fatal, ..*error }.into()),
            Err(Failure::Session(raw)) => Err(super::login::Refusal::Raw(raw)),
        }
    }

    async fn dial(
        &mut self,
        slot: Slot,
        view: &View,
        node: usize,
    ) -> Result<Option<Box<ServerConn>>, Failure> {
        let pool = Arc::clone(slot.pool());
        match open(slot, self.worker.id, view.settings().pool.max_lifetime).await {
            Ok(conn) => Ok(Some(conn)),
            // The next connection that is free, or the next attempt, is waited for in the queue.
            Err(error) if matches!(error.refused(), Some(Refused::Full(_))) => {
                tracing::debug!(node = %pool.node.name, %error, "a server is full");
                Ok(None)
            }
            Err(error) => {
                let next = self.judge(&error, &pool, view, node);
                self.again(next).await.map(|()| None)
            }
        }
    }

    async fn again(&mut self, next: Next) -> Result<(), Failure> {
        match next {
            Next::Retry => {
                self.patience.rest(&self.worker.shared.pools).await;
                Ok(())
            }
            Next::Fail(failure) => Err(failure),
        }
    }

    fn judge(&mut self, error: &DialError, pool: &NodePool, view: &View, node: usize) -> Next {
        let name = &pool.node.name;
        let settings = view.settings();
        let late = self.patience.elapsed() >= settings.pool.acquire_timeout;
        tracing::debug!(node = %name, %error, "could not open a server connection");
        match error {
            error if error.is_for_now() => {}
            DialError::Login(LoginError::Refused { raw, sqlstate, .. }) => {
                if sqlstate.starts_with("28") || sqlstate == "42501" {
                    // What was proved of the role is not so any more.
                    let Identity { user, database, .. } = self.identity.as_ref();
                    self.worker.shared.auth.doubt(user, database, None);
                }
                return Next::Fail(Failure::Session(raw.clone()));
            }
            DialError::Login(_) | DialError::NoCredential(_) | DialError::Tls { .. } => {
                tracing::warn!(node = %name, %error, "could not log in on a node");
                let text = format!("could not log in on node \"{name}\"");
                return Next::Fail(Failure::Statement(Box::new(PgError::error("08006", text))));
            }
            // The proxy has no descriptors: that says nothing about the node.
            DialError::Io { .. } => {
                return if late { Next::Fail(no_descriptors()) } else { Next::Retry };
            }
        }
        (self.worker.shared.evidence)(name, Evidence::ConnectFailed);
        self.unreached(pool, view, node)
    }

    /// The node gives no connection now.
    fn unreached(&mut self, pool: &NodePool, view: &View, node: usize) -> Next {
        pool.suspect();
        self.misses = self.misses.saturating_add(1);
        if self.patience.elapsed() < view.settings().write_timeout {
            Next::Retry
        } else if view.snapshot.primary == Some(node) {
            Next::Fail(no_primary())
        } else if self.misses <= view.pools.len() {
            // It took as long as that to find out, and another node may be a step away.
            Next::Retry
        } else {
            let text = format!("node \"{}\" cannot be reached", pool.node.name);
            Next::Fail(Failure::Statement(Box::new(PgError::error("08006", text))))
        }
    }

    /// No node can take the statement now: wait a little, up to the write timeout.
    async fn hold(&mut self, view: &View) -> Result<(), Failure> {
        if self.patience.elapsed() >= view.settings().write_timeout {
            return Err(no_primary());
        }
        self.patience.rest(&self.worker.shared.pools).await;
        Ok(())
    }
}
