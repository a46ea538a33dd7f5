//! Logging a client in (DESIGN, "Who may log in"): known roles prove themselves to the proxy by SCRAM, of unknown ones the
//! backend judges (`judge`). Ends with a session or a refusal; never lets a client in without a proof, however warm the
//! pool.

use super::acquire::Seeker;
use super::judge::Way;
use super::patience::Patience;
use super::startup::Lobby;
use crate::auth::hba::{Applicant, admit};
use crate::auth::query::{Found, LookUpError};
use crate::auth::{Known, Proof};
use crate::pool::{Identity, View, Waiter};
use crate::registry::{Registered, random};
use crate::server::{Credential, ServerConn};
use crate::worker::{Shared, Worker};
use helios_pgwire::backend::{self, TxStatus, max_len};
use helios_pgwire::frame::{Header, MAX_AUTH, MAX_SASL, take_cstr};
use helios_pgwire::scram::{MECHANISM, MECHANISM_PLUS, Offer, ScramError, ServerFirst, Verifier};
use helios_pgwire::startup::{Replication, Startup, agreed};
use helios_pgwire::{ErrorFields, PgError, md5};
use helios_proto::config::TlsMode;
use helios_proto::model::{AuthQuery, HbaMethod, UserProof};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Why a connection gets no session.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Closed without a message.
    #[error("malformed login message")]
    Cut,
    /// The client went away.
    #[error("client went away")]
    Gone,
    /// The client's socket failed.
    #[error("lost client: {0}")]
    Io(#[from] io::Error),
    /// TLS failed; the client was told as far as that goes.
    #[error("TLS: {0}")]
    Handshake(String),
    /// Told, then closed.
    #[error("{0}")]
    Told(Box<PgError>),
    /// Told in somebody else's words, then closed.
    #[error("refused by the backend or by the protocol")]
    Raw(Vec<u8>),
    /// Told after a pause.
    #[error("{1}")]
    Late(Duration, Box<Refusal>),
}

/// Counts the failure of a role that was not proved, which is answered late after some; a success ends the count.
pub(super) fn paced<T>(
    worker: &Worker,
    (peer, user): (IpAddr, &[u8]),
    ended: Result<T, Refusal>,
) -> Result<T, Refusal> {
    let Shared { auth, pools, .. } = worker.shared.as_ref();
    match ended {
        Ok(logged_in) => {
            auth.failures.succeeded(peer, user);
            Ok(logged_in)
        }
        Err(refusal) if refusal.is_wrong_proof() => {
            let longest = pools.view().settings().limits.failed_login_delay;
            let pause = auth.failures.failed(peer, user, longest, Instant::now());
            Err(Refusal::Late(pause, Box::new(refusal)))
        }
        Err(refusal) => Err(refusal),
    }
}

impl Refusal {
    /// Whether a password or a proof was wrong.
    fn is_wrong_proof(&self) -> bool {
        match self {
            Self::Told(error) => error.code == "28P01",
            Self::Raw(bytes) => raw_code(bytes) == Some(b"28P01"),
            Self::Cut | Self::Gone | Self::Io(_) | Self::Handshake(_) | Self::Late(..) => false,
        }
    }
}

/// SQLSTATE of the ErrorResponse at the end of these messages.
fn raw_code(mut messages: &[u8]) -> Option<&[u8]> {
    while let Ok(Some(Header { tag, size })) = Header::parse(messages, max_len) {
        let (message, rest) = messages.split_at_checked(size)?;
        if tag == b'E' {
            return ErrorFields::parse(message.get(5..)?).code;
        }
        messages = rest;
    }
    None
}

impl From<PgError> for Refusal {
    fn from(error: PgError) -> Self {
        Self::Told(Box::new(error))
    }
}

impl From<Box<PgError>> for Refusal {
    fn from(error: Box<PgError>) -> Self {
        Self::Told(error)
    }
}

/// A client that has logged in.
pub struct LoggedIn {
    /// Whose server connections the session uses.
    pub identity: Arc<Identity>,
    /// The session's cancel key.
    pub registered: Registered,
    /// The only server connection that the session can have.
    pub own: Option<Box<ServerConn>>,
}

/// A login in progress.
pub struct Login<'a> {
    /// The worker that will run the session.
    pub worker: &'a Arc<Worker>,
    /// The client.
    pub lobby: &'a mut Lobby,
    /// What the client asked for.
    pub startup: &'a Startup,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The same with its port.
    pub from: SocketAddr,
    /// Until when servers are waited for.
    pub deadline: Instant,
}

pub(super) type Proved = (Arc<Credential>, u64);

impl Login<'_> {
    /// Says which version of the protocol it will be, where that is not the one asked for.
    ///
    /// # Errors
    /// The client went away.
    pub async fn negotiate(&mut self) -> Result<(), Refusal> {
        if let Some((version, unknown)) = self.startup.negotiation() {
            let mut out = Vec::new();
            backend::negotiate_version(&mut out, version, &unknown);
            self.lobby.send(&out).await?;
        }
        Ok(())
    }

    /// Runs the login up to the first ReadyForQuery.
    ///
    /// # Errors
    /// See [`Refusal`]; what must be told has not been sent.
    pub async fn run(mut self, counted: &mut crate::limits::Counted) -> Result<LoggedIn, Refusal> {
        let view = self.view().await?;
        let way = match self.by_knowledge(&view).await? {
            Some(proved) => Way::Pooled(proved),
            None => self.by_backend(&view).await?,
        };
        counted.login(&view.settings().limits, &self.startup.user, &self.startup.database)?;
        let mut out = Vec::new();
        backend::auth(&mut out, 0, b"");
        self.lobby.send(&out).await?;
        let Startup { user, database, params, .. } = self.startup;
        let (identity, own) = match way {
            Way::Pooled((credential, epoch)) => {
                let identities = &self.worker.shared.identities;
                (identities.get(user, database, params.clone(), epoch, &credential), None)
            }
            Way::Relayed(conn) => (Arc::clone(&conn.identity), Some(conn)),
        };
        let registered = self.worker.shared.registry.register(agreed(self.startup.version));
        self.welcome(&identity, &registered).await?;
        Ok(LoggedIn { identity, registered, own })
    }

    /// What PostgreSQL says between the proof and the first query, in the backend's own words.
    async fn welcome(&mut self, identity: &Arc<Identity>, registered: &Registered) -> Result<(), Refusal> {
        if identity.greeting().is_none() {
            let seeker = Seeker::new(self.worker, identity, Waiter::new(self.worker.id));
            self.in_time(Box::pin(seeker.greet())).await?;
        }
        let gone = || PgError::fatal("08006", "the server closed the connection during login");
        let greeting = identity.greeting().ok_or_else(gone)?;
        let mut out = greeting.messages.clone();
        backend::key_data(&mut out, registered.handle.pid, &registered.handle.key);
        backend::ready_for_query(&mut out, TxStatus::Idle);
        Ok(self.lobby.send(&out).await?)
    }

    /// A proof that the proxy can check by itself; `None`: only the backend knows the role.
    pub(super) async fn by_knowledge(&mut self, view: &Arc<View>) -> Result<Option<Proved>, Refusal> {
        let shared = Arc::clone(&self.worker.shared);
        let Startup { user, database, .. } = self.startup;
        let settings = view.settings();
        if self.admitted(view)? == HbaMethod::Cert {
            return self.by_certificate(view).await.map(Some);
        }
        if shared.client_leg.mode == TlsMode::VerifyFull {
            self.check_certificate()?;
        }
        if let Some(known) = shared.auth.configured(settings, user).await {
            return self.by_configuration(known).await.map(Some);
        }
        if let Some(query) = &settings.auth.query {
            return self.by_query(query).await.map(Some);
        }
        let ttl = view.settings().auth.proof_ttl;
        match shared.auth.learned((user, database), self.peer, ttl) {
            Some(known) if self.may_prove(&known.proof, view) => self.by_memory(known).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Whether a role may be proved in this way on this connection.
    fn may_prove(&self, proof: &Proof, view: &View) -> bool {
        match proof {
            Proof::Scram(_) => true,
            Proof::Password => self.is_private(),
            Proof::Trust => self.may_be_trusted(view),
        }
    }

    /// Whether nobody else can read what the client sends: a password in clear text may be asked for.
    pub(super) fn is_private(&self) -> bool {
        self.is_near() || self.lobby.sealed.is_some()
    }

    /// Whether the client may use a role for which the backend asks nothing.
    pub(super) fn may_be_trusted(&self, view: &View) -> bool {
        self.is_near() || view.settings().auth.allow_backend_trust
    }

    /// What `[[hba]]` says of this client.
    pub(super) fn admitted(&self, view: &View) -> Result<HbaMethod, Refusal> {
        let Startup { user, database, .. } = self.startup;
        let tls = self.lobby.sealed.is_some();
        let replication = self.startup.replication == Replication::Physical;
        let who = Applicant { user, database, replication, address: self.peer, tls };
        Ok(admit(&view.settings().auth.hba, who)?)
    }

    /// The client's certificate has to be the role's.
    pub(super) fn check_certificate(&self) -> Result<(), Refusal> {
        let user = &self.startup.user;
        if self.lobby.sealed.as_ref().is_some_and(|sealed| sealed.is_of(user)) {
            return Ok(());
        }
        let user = String::from_utf8_lossy(user);
        let text = format!("certificate authentication failed for user \"{user}\"");
        Err(PgError::fatal("28000", text)
            .detail("The client's certificate must have the role as common name or DNS name.")
            .into())
    }

    /// Whether the client is on this machine.
    fn is_near(&self) -> bool {
        self.peer.to_canonical().is_loopback()
    }

    pub(super) fn wrong(&self) -> Refusal {
        let user = String::from_utf8_lossy(&self.startup.user).into_owned();
        PgError::fatal("28P01", format!("password authentication failed for user \"{user}\"")).into()
    }

    async fn by_configuration(&mut self, known: Known) -> Result<Proved, Refusal> {
        let Proof::Scram(verifier) = known.proof else { return Err(self.wrong()) };
        let keys = self.scram(verifier).await?;
        let recovered = || self.worker.shared.auth.recovered(&self.startup.user, known.epoch, keys);
        Ok((known.credential.unwrap_or_else(recovered), known.epoch))
    }

    /// The client has shown a certificate for the role; the role's password has to be at hand for the servers.
    async fn by_certificate(&mut self, view: &View) -> Result<Proved, Refusal> {
        self.check_certificate()?;
        let user = &self.startup.user;
        let known = self.worker.shared.auth.configured(view.settings(), user).await;
        let opens = known.and_then(|known| Some((known.credential?, known.epoch)));
        opens.ok_or_else(|| {
            let user = String::from_utf8_lossy(user);
            let text = format!("role \"{user}\" has no password at hand for the server");
            PgError::fatal("28000", text).hint("Add the role to [[users]] with its password.").into()
        })
    }

    /// The role is looked up. One that is not there goes through the same exchange, and never proves itself.
    async fn by_query(&mut self, query: &AuthQuery) -> Result<Proved, Refusal> {
        let shared = Arc::clone(&self.worker.shared);
        let user = &self.startup.user;
        let found = self.in_time(Box::pin(async { Ok(self.look_up(query).await) })).await?;
        match found {
            Ok(Found::Scram(verifier)) => {
                let known = shared.auth.known(user, UserProof::ScramVerifier(verifier)).await;
                self.by_configuration(known.ok_or_else(|| self.wrong())?).await
            }
            Ok(Found::Md5(stored)) => self.by_md5(&stored).await,
            Ok(Found::Nobody) => {
                let _ = self.scram(shared.auth.nobody(user)).await?;
                Err(self.wrong())
            }
            Err(error) => {
                tracing::warn!(%error, "could not look a role up");
                Err(PgError::fatal("57P03", "the role cannot be looked up on any server").into())
            }
        }
    }

    /// Waits for a node that can be asked.
    async fn look_up(&self, query: &AuthQuery) -> Result<Found, LookUpError> {
        let Shared { pools, auth, .. } = self.worker.shared.as_ref();
        let mut patience = Patience::since(Instant::now());
        loop {
            let view = patience.look(pools);
            match auth.look_up.find(query, &view, &self.startup.user).await {
                Err(error) if error.is_for_now() && !self.is_late() => {
                    patience.rest(pools).await;
                }
                found => return found,
            }
        }
    }

    /// MD5 with the client, the proxy in the server's role.
    async fn by_md5(&mut self, stored: &Zeroizing<Vec<u8>>) -> Result<Proved, Refusal> {
        let salt = random::<4>();
        let mut out = Vec::new();
        backend::auth(&mut out, 5, &salt);
        self.lobby.send(&out).await?;
        let body = Zeroizing::new(self.lobby.auth_message("password", MAX_AUTH).await?);
        let expected = Zeroizing::new([md5::answer(stored, salt).as_slice(), b"\0"].concat());
        if !bool::from(body.ct_eq(&expected)) {
            return Err(self.wrong());
        }
        Ok(self.worker.shared.auth.md5(&self.startup.user, stored))
    }

    async fn by_memory(&mut self, known: Known) -> Result<Proved, Refusal> {
        let Some(credential) = known.credential.clone() else { return Err(self.wrong()) };
        let accepted = match known.proof.clone() {
            Proof::Trust => Ok(()),
            Proof::Scram(verifier) => self.scram(verifier).await.map(|_| ()),
            Proof::Password => {
                let password = self.password().await?;
                let right = known.admits(&self.startup.user, &password);
                if right { Ok(()) } else { Err(self.wrong()) }
            }
        };
        if let Err(Refusal::Told(error)) = &accepted
            && error.code == "28P01"
        {
            // Who cannot be judged by the clear password makes nobody else be judged anew.
            let from = (!self.is_private()).then(|| self.peer.to_canonical());
            self.worker.shared.auth.doubt(&self.startup.user, &self.startup.database, from);
        }
        accepted.map(|()| (credential, known.epoch))
    }

    /// SCRAM with the client, the proxy in the server's role.
    pub(super) async fn scram(&mut self, verifier: Verifier) -> Result<helios_pgwire::scram::Keys, Refusal> {
        let mut out = Vec::new();
        let binding = self.lobby.sealed.as_ref().and_then(|sealed| sealed.binding.clone());
        let offered = match &binding {
            Some(_) => format!("{MECHANISM_PLUS}\0{MECHANISM}\0\0"),
            None => format!("{MECHANISM}\0\0"),
        };
        backend::auth(&mut out, 10, offered.as_bytes());
        self.lobby.send(&out).await?;
        let body = self.sasl_message().await?;
        let malformed = || Refusal::from(PgError::fatal("08P01", "malformed SCRAM message"));
        let (mechanism, rest) = take_cstr(&body).ok_or_else(malformed)?;
        let offer = Offer {
            end_point: binding.as_deref(),
            chosen: mechanism == MECHANISM_PLUS.as_bytes() && binding.is_some(),
        };
        if mechanism != MECHANISM.as_bytes() && !offer.chosen {
            return Err(
                PgError::fatal("08P01", "client selected an invalid SASL authentication mechanism").into()
            );
        }
        let (len, data) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let fits = usize::try_from(u32::from_be_bytes(*len)) == Ok(data.len());
        let first = if fits { data } else { return Err(malformed()) };
        let server = ServerFirst::new(first, verifier, offer).map_err(|e| self.scram_error(e))?;
        out.clear();
        backend::auth(&mut out, 11, server.message());
        self.lobby.send(&out).await?;
        let body = self.sasl_message().await?;
        let proved = server.prove(&body).map_err(|e| self.scram_error(e))?;
        out.clear();
        backend::auth(&mut out, 12, &proved.server_final);
        self.lobby.send(&out).await?;
        Ok(proved.keys)
    }

    /// One that is too long is a wrong proof, as it is to PostgreSQL.
    pub(super) async fn sasl_message(&mut self) -> Result<Vec<u8>, Refusal> {
        let body = self.lobby.auth_message("SASL", MAX_SASL).await;
        body.map_err(|why| if matches!(why, Refusal::Cut) { self.wrong() } else { why })
    }

    fn scram_error(&self, error: ScramError) -> Refusal {
        match error {
            ScramError::WrongProof => self.wrong(),
            ScramError::Downgrade | ScramError::WrongBinding => {
                PgError::fatal("28000", error.to_string()).into()
            }
            ScramError::Unsupported => PgError::fatal("0A000", error.to_string()).into(),
            _ => PgError::fatal("08P01", error.to_string()).into(),
        }
    }

    /// The clear password of the client.
    pub(super) async fn password(&mut self) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let mut out = Vec::new();
        backend::auth(&mut out, 3, b"");
        self.lobby.send(&out).await?;
        let body = Zeroizing::new(self.lobby.auth_message("password", MAX_AUTH).await?);
        match body.split_last() {
            Some((0, [])) => Err(PgError::fatal("28P01", "empty password returned by client").into()),
            Some((0, password)) if !password.contains(&0) => Ok(Zeroizing::new(password.to_vec())),
            _ => Err(PgError::fatal("08P01", "invalid password packet size").into()),
        }
    }
}
