//! Logins that only the backend can judge (DESIGN, "Who may log in", 2 and 3): with the clear password, asked where nobody
//! else can read it, or by passing the exchange on to a server connection that the session then keeps. Never lets a client in
//! without a proof; never keeps a password.

use super::acquire::timed_out;
use super::login::{Login, Proved, Refusal};
use super::patience::Patience;
use super::startup::Lobby;
use crate::auth::Tried;
use crate::descriptors::ran_out;
use crate::metrics::count;
use crate::pool::node::Request;
use crate::pool::sweep::established;
use crate::pool::{Checkout, Grant, NodePool, Outcome, Slot, View, Waiter};
use crate::server::credential::Password;
use crate::server::dial::{DialError, Opened, Opening, Passed, Secured, Who};
use crate::server::{Credential, ServerConn};
use crate::worker::Worker;
use helios_pgwire::frame::MAX_AUTH;
use helios_pgwire::login::{Asked, LoginError, Welcome};
use helios_pgwire::scram::MECHANISM;
use helios_pgwire::startup::Startup;
use helios_pgwire::{PgError, Severity, backend, md5};
use helios_proto::model::{Evidence, NodeState, Settings};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};
use zeroize::Zeroizing;

/// Longest exchange that is passed on: a server connection waits for each answer of the client.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Servers are waited for at least this long.
const LEAST: Duration = Duration::from_secs(1);

/// How a login was proved.
pub(super) enum Way {
    /// The proxy has what opens server connections for the role.
    Pooled(Proved),
    /// The client has proved itself to the server on this connection, and only it can do so again.
    Relayed(Box<ServerConn>),
}

/// Which node may judge a login.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The primary, or without one any that is up.
    Any,
    /// The primary: the session stays on this connection.
    Primary,
}

/// Why there is no connection.
enum Turn {
    /// There may be one in a moment; what to say if not.
    Later(Refusal),
    Never(Refusal),
}

/// How long a login waits for a node: as long as a statement would, but short of the login timeout, to be able to say why.
fn longest(settings: &Settings) -> Duration {
    settings.write_timeout.min(settings.limits.login_timeout.mul_f32(0.75))
}

impl<'a> Login<'a> {
    /// A login that begins now.
    pub(super) fn new(
        worker: &'a Arc<Worker>,
        lobby: &'a mut Lobby,
        startup: &'a Startup,
        peer: SocketAddr,
    ) -> Self {
        let deadline = Instant::now() + longest(worker.shared.pools.view().settings());
        Self { worker, lobby, startup, peer: peer.ip(), from: peer, deadline }
    }

    /// Whether servers have been waited for long enough.
    pub(super) fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What waits for a server, ended before the login timeout would cut the client without a word.
    pub(super) async fn in_time<T>(
        &self,
        work: Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + '_>>,
    ) -> Result<T, Refusal> {
        // Also when the client took its time to find the password.
        let until = self.deadline.max(Instant::now() + LEAST);
        let late = |_| Err(PgError::fatal("57P03", "no server answered in time to check the login").into());
        timeout_at(until.into(), work).await.unwrap_or_else(late)
    }

    /// The snapshot in force, once there is one.
    pub(super) async fn view(&self) -> Result<Arc<View>, Refusal> {
        let pools = &self.worker.shared.pools;
        let mut patience = Patience::since(Instant::now());
        loop {
            let view = patience.look(pools);
            if !view.snapshot.nodes.is_empty() {
                return Ok(view);
            }
            if self.is_late() {
                return Err(PgError::fatal("57P03", "the proxy is starting up")
                    .hint("It has no configuration yet, and waits for its control plane.")
                    .into());
            }
            patience.rest(pools).await;
        }
    }

    /// The backend judges. With the clear password: a connection shows what it asks for, then the client is asked, then
    /// another connection tries the answer. None is kept in between: a client that has proved nothing must not hold a place of
    /// the pool.
    pub(super) async fn by_backend(&mut self, view: &Arc<View>) -> Result<Way, Refusal> {
        if !self.is_private() {
            return Box::pin(self.by_relay(view)).await;
        }
        let (slot, opened) = self.in_time(Box::pin(self.open(Which::Any))).await?;
        let Opened::Asked(..) = opened else { return self.trusted(view, slot, opened) };
        drop(opened);
        drop(slot);
        let password = self.password().await?;
        let credential = Arc::new(Credential::Password(Password::new(password)));
        self.in_time(Box::pin(self.by_password(view, &credential))).await
    }

    /// Tries the password until a server takes it or refuses it; one that is full says so only after it has taken it.
    async fn by_password(&self, view: &View, credential: &Arc<Credential>) -> Result<Way, Refusal> {
        loop {
            let (slot, opened) = self.open(Which::Any).await?;
            let Opened::Asked(opening, asked) = opened else { return self.trusted(view, slot, opened) };
            match opening.finish(asked, &self.startup.user, credential).await {
                Ok(done) => return Ok(self.proved(view, slot, done, self.tried(asked, credential))),
                Err(error) => {
                    let for_now = error.refused().is_some();
                    let refusal = self.told(&slot, error);
                    if !for_now || self.is_late() {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// A client whose clear password others could read: the exchange is passed on. Few at a time, since each has a place of
    /// the pool before it has proved anything.
    async fn by_relay(&mut self, view: &Arc<View>) -> Result<Way, Refusal> {
        let shared = Arc::clone(&self.worker.shared);
        let turn = timeout_at(self.deadline.into(), shared.auth.relays.turn(self.peer)).await;
        let Ok(Some(_turn)) = turn else {
            return Err(PgError::fatal("53300", "too many logins without TLS at once")
                .hint("Connect with sslmode=require, or add the role to [[users]] with its password or SCRAM verifier.")
                .into());
        };
        match self.in_time(Box::pin(self.open(Which::Primary))).await? {
            (slot, Opened::Asked(opening, asked)) => {
                // In PostgreSQL's words, whoever of the two took so long.
                let late = |_| PgError::fatal("57014", "canceling authentication due to timeout");
                timeout(EXCHANGE, self.pass_on(slot, opening, asked)).await.map_err(late)?
            }
            (slot, opened) => self.trusted(view, slot, opened),
        }
    }

    /// The backend asked for nothing.
    fn trusted(&self, view: &View, slot: Slot, opened: Opened) -> Result<Way, Refusal> {
        match opened {
            Opened::Ready(io, welcome) if self.may_be_trusted(view) => {
                Ok(self.proved(view, slot, (io, welcome), None))
            }
            Opened::Ready(..) | Opened::Asked(..) => Err(self.too_trusting()),
        }
    }

    /// Keeps what opens connections of the role, and puts this one into its pool.
    fn proved(
        &self,
        view: &View,
        slot: Slot,
        (io, welcome): (Secured, Box<Welcome>),
        tried: Option<Tried>,
    ) -> Way {
        let Startup { user, database, params, .. } = self.startup;
        let shared = &self.worker.shared;
        let (credential, epoch) = shared.auth.prove(user, database, tried);
        let identity = shared.identities.get(user, database, params.clone(), epoch, &credential);
        let lifetime = view.settings().pool.max_lifetime;
        let mut conn = established(io, &welcome, slot, self.worker.id, lifetime);
        identity.greet(&welcome);
        conn.identity = identity;
        let pool = Arc::clone(conn.slot.pool());
        pool.put_back(conn);
        Way::Pooled((credential, epoch))
    }

    /// Shows the client what the backend asks, and the backend what the client answers.
    async fn pass_on(&mut self, slot: Slot, mut opening: Box<Opening>, asked: Asked) -> Result<Way, Refusal> {
        let mut show = Vec::new();
        match asked {
            Asked::Cleartext => return Err(self.too_far()),
            Asked::Md5(salt) => backend::auth(&mut show, 5, &salt),
            // Bound to a channel that the client does not have, it could not be passed on.
            Asked::Scram => backend::auth(&mut show, 10, format!("{MECHANISM}\0\0").as_bytes()),
        }
        loop {
            self.lobby.send(&show).await?;
            let body = Zeroizing::new(match asked {
                Asked::Scram => self.sasl_message().await?,
                Asked::Cleartext | Asked::Md5(_) => self.lobby.auth_message("password", MAX_AUTH).await?,
            });
            let mut passed = opening.pass(&body).await;
            if let Ok(Passed::Show { opening, message, last: true }) = passed {
                self.lobby.send(&message).await?;
                passed = opening.shows().await;
            }
            match passed.map_err(|error| self.told(&slot, error))? {
                Passed::Ready(io, welcome) => {
                    self.worker.shared.auth.relays.tell(self.peer);
                    count(&self.worker.counters.logins_relayed);
                    let mut conn = established(io, &welcome, slot, self.worker.id, None);
                    // Nobody else may have it: whatever becomes of the session, it does not go back into a pool.
                    conn.expires = Some(Instant::now());
                    return Ok(Way::Relayed(conn));
                }
                Passed::Show { opening: next, message, .. } => (opening, show) = (next, message),
            }
        }
    }

    /// Opens a connection up to the point where the backend asks for something. Waits for a node that can judge the login.
    async fn open(&self, which: Which) -> Result<(Slot, Opened), Refusal> {
        let pools = &self.worker.shared.pools;
        let mut patience = Patience::since(Instant::now());
        loop {
            let view = patience.look(pools);
            let why = match self.try_open(&view, which).await {
                Ok(opened) => return Ok(opened),
                Err(Turn::Never(refusal)) => return Err(refusal),
                Err(Turn::Later(refusal)) => refusal,
            };
            if self.is_late() {
                return Err(why);
            }
            patience.rest(pools).await;
        }
    }

    async fn try_open(&self, view: &Arc<View>, which: Which) -> Result<(Slot, Opened), Turn> {
        let slot = self.place(view, which).await?;
        let Startup { user, database, params, .. } = self.startup;
        let to = (slot.pool().node.as_ref(), &slot.pool().leg);
        match Opening::start(to, Who { user, database, params }).await {
            Ok(opened) => Ok((slot, opened)),
            Err(error) => {
                let for_now = error.is_for_now() || error.refused().is_some();
                let turn = if for_now { Turn::Later } else { Turn::Never };
                Err(turn(self.told(&slot, error)))
            }
        }
    }

    fn tried(&self, asked: Asked, credential: &Credential) -> Option<Tried> {
        let Credential::Password(password) = credential else { return None };
        match asked {
            Asked::Scram => password.derived().map(Tried::Scram),
            Asked::Md5(_) => {
                Some(Tried::Md5(Zeroizing::new(md5::stored(&self.startup.user, password.expose()))))
            }
            Asked::Cleartext => Some(Tried::Clear(Zeroizing::new(password.expose().to_vec()))),
        }
    }

    /// How long to wait for a place: as a statement would, but short of the end of the wait, to be able to say why.
    fn wait_for_place(&self, settings: &Settings) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        settings.pool.acquire_timeout.min(left.mul_f32(0.9))
    }

    /// A place for the connection that judges the login.
    async fn place(&self, view: &Arc<View>, which: Which) -> Result<Slot, Turn> {
        let (snapshot, any) = (&view.snapshot, which == Which::Any);
        let open = |i: usize| snapshot.nodes.get(i).is_some_and(NodeState::is_open);
        let node = view.askable().find(|i| snapshot.primary == Some(*i) || (any && open(*i)));
        let none =
            || Turn::Later(PgError::fatal("57P03", "no server is available to check the login").into());
        let pool = node.and_then(|i| view.pools.get(i)).ok_or_else(none)?;
        let Startup { user, database, params, .. } = self.startup;
        let identity = self.worker.shared.identities.provisional(user, database, params.clone());
        let waiter = Waiter::new(self.worker.id);
        let request = Request {
            identity: &identity,
            waiter: &waiter,
            settings: None,
            caps: view.caps(&identity),
            timeout: self.wait_for_place(view.settings()),
        };
        let outcome = match pool.checkout(&request) {
            Checkout::Dial(slot) => return Ok(slot),
            Checkout::Ready(_) | Checkout::Away | Checkout::Retired => return Err(none()),
            Checkout::Wait => crate::pool::wait(pool, &waiter).await,
        };
        match outcome {
            Outcome::Granted(Grant::Dial(slot)) => Ok(slot),
            Outcome::Granted(Grant::Conn(_)) | Outcome::Retired => Err(none()),
            Outcome::Expired => Err(Turn::Never(timed_out(Severity::Fatal).into())),
        }
    }

    pub(super) fn too_trusting(&self) -> Refusal {
        let user = String::from_utf8_lossy(&self.startup.user);
        PgError::fatal(
            "28000",
            format!("role \"{user}\" proves nothing to the server, so it is for local clients"),
        )
        .hint("Ask for a password in pg_hba.conf of the server, or set allow_backend_trust in [auth].")
        .into()
    }

    pub(super) fn too_far(&self) -> Refusal {
        PgError::fatal("28000", "HeliosProxy cannot check this login over an unencrypted remote connection")
            .hint("Connect with sslmode=require, or add the role to [[users]] with its password or SCRAM verifier.")
            .into()
    }

    /// What the client is told of this; the pool learns what it means for others.
    fn told(&self, slot: &Slot, error: DialError) -> Refusal {
        if let Some(refused) = error.refused() {
            slot.refuse(refused);
        }
        self.dial_error(slot.pool(), error)
    }

    /// A refusal of the backend goes to the client in the backend's words, after AuthenticationOk if that had come.
    pub(super) fn dial_error(&self, pool: &NodePool, error: DialError) -> Refusal {
        match error {
            DialError::Login(LoginError::Refused { raw, authenticated, sqlstate, message }) => {
                let node = &pool.node.name;
                tracing::debug!(node = %node, %sqlstate, %message, "the backend refused a login");
                let mut out = Vec::new();
                if authenticated {
                    backend::auth(&mut out, 0, b"");
                }
                out.extend_from_slice(&raw);
                Refusal::Raw(out)
            }
            // That says nothing about the node.
            DialError::Io { source, .. } if ran_out(&source) => {
                PgError::fatal("53000", "the proxy has no file descriptor left for a server connection")
                    .into()
            }
            error @ DialError::Io { .. } => {
                pool.suspect();
                let name = pool.node.name.clone();
                tracing::debug!(node = %name, %error, "could not open a server connection");
                (self.worker.shared.evidence)(&name, Evidence::ConnectFailed);
                PgError::fatal("57P03", "the server cannot be reached to check the login").into()
            }
            error @ (DialError::Login(_) | DialError::NoCredential(_) | DialError::Tls { .. }) => {
                let name = &pool.node.name;
                tracing::warn!(node = %name, %error, "could not log in on a node");
                PgError::fatal("08006", format!("could not log in on node \"{name}\"")).into()
            }
        }
    }
}
