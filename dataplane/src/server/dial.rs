//! Dialling a node and logging in. Two steps, so that a client's own login can supply the credential in between.
//! Never retries and never chooses a node.

use super::credential::Credential;
use crate::descriptors::ran_out;
use crate::legs::{Sealing, SecureError, ServerLeg, shown};
use crate::pool::node::Refused;
use crate::stream::Stream;
use helios_pgwire::ErrorFields;
use helios_pgwire::frontend;
use helios_pgwire::login::{Asked, Login, LoginError, Need, Welcome};
use helios_proto::model::Node;
use helios_tls::names;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Longest wait for a TCP connection or for one answer of a backend during login.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest login in all: a backend that says a little now and then would hold for ever whoever waits for it.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes read at once during login.
const CHUNK: usize = 4096;

/// Why a node gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Refused, unreachable, or broken before the login was through.
    #[error("could not connect to {host}:{port}: {source}")]
    Io {
        /// Host of the node.
        host: String,
        /// Port of the node.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No TLS, where it has to be.
    #[error("could not connect to {host}:{port}: {why}")]
    Tls {
        /// Host of the node.
        host: String,
        /// Port of the node.
        port: u16,
        /// In words for an operator.
        why: String,
    },
    /// The backend refused, or the login could not be done.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The backend asks for a credential that is not there.
    #[error("backend asks for a credential ({0}) that is not known")]
    NoCredential(&'static str),
}

impl DialError {
    /// Whether the node may well give a connection in a moment: it is not reached, or it starts, stops or recovers.
    #[must_use]
    pub fn is_for_now(&self) -> bool {
        match self {
            Self::Io { source, .. } => !ran_out(source),
            Self::Login(_) => self.refused() == Some(Refused::Away),
            Self::Tls { .. } | Self::NoCredential(_) => false,
        }
    }

    /// What the server refused for now.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        let Self::Login(LoginError::Refused { raw, .. }) = self else { return None };
        let fields = ErrorFields::parse(raw.get(5..)?);
        Refused::read(fields.code?, fields.routine)
    }
}

/// A connection whose login has begun.
pub struct Opening {
    io: Stream,
    sealing: Option<Sealing>,
    login: Login,
    buf: Vec<u8>,
    place: (String, u16),
}

/// A connection, and the TLS on it.
pub type Secured = (Stream, Option<Sealing>);

/// What a backend answered to the StartupMessage.
pub enum Opened {
    /// Logged in; it asked for nothing.
    Ready(Secured, Box<Welcome>),
    /// It asks for this.
    Asked(Box<Opening>, Asked),
}

/// What a backend made of somebody else's answer.
pub enum Passed {
    /// It says this in turn.
    Show {
        /// The login goes on.
        opening: Box<Opening>,
        /// The message, header included.
        message: Vec<u8>,
        /// Nothing is to be answered: [`Opening::shows`] goes on.
        last: bool,
    },
    /// Logged in.
    Ready(Secured, Box<Welcome>),
}

/// Who to log in as, and with which startup parameters.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// Role.
    pub user: &'a [u8],
    /// Database.
    pub database: &'a [u8],
    /// Startup parameters, sorted by name.
    pub params: &'a [(Vec<u8>, Vec<u8>)],
}

/// How long a server may leave data of ours unacknowledged (`reliability.md` B33).
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

/// Sets what every socket of ours has: no delay, keepalive 30/10/3, and an end to unacknowledged data.
///
/// # Errors
/// What the system says.
pub fn tune(io: &TcpStream, patience: Duration) -> io::Result<()> {
    io.set_nodelay(true)?;
    let socket = SockRef::from(io);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(patience))?;
    Ok(())
}

/// Connects and logs in with a credential.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(
    to: (&Node, &ServerLeg),
    who: Who<'_>,
    credential: &Arc<Credential>,
) -> Result<(Secured, Box<Welcome>), DialError> {
    let login = async {
        match Opening::start(to, who).await? {
            Opened::Ready(secured, welcome) => Ok((secured, welcome)),
            Opened::Asked(opening, asked) => opening.finish(asked, who.user, credential).await,
        }
    };
    let late = |_| {
        let place = (to.0.host.clone(), to.0.port);
        Err(failed(&place, io::ErrorKind::TimedOut.into()))
    };
    tokio::time::timeout(LOGIN_TIMEOUT, login).await.unwrap_or_else(late)
}

impl Opening {
    /// Connects, sends the StartupMessage, and reads on until the backend asks for something or is ready.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn start((node, leg): (&Node, &ServerLeg), who: Who<'_>) -> Result<Opened, DialError> {
        let place = (node.host.clone(), node.port);
        let connect = async {
            let found = names::resolve(&node.host, node.port, STEP_TIMEOUT).await?;
            let io = TcpStream::connect(found.as_slice()).await?;
            tune(&io, SERVER_PATIENCE)?;
            Ok(io)
        };
        let io = step(connect).await.map_err(|source| failed(&place, source))?;
        let mut io = Stream::from(io);
        let sealing = secure(leg, &mut io, &place).await?;
        let login = if io.is_sealed() { Login::over_tls(shown(&io)) } else { Login::new() };
        let mut startup = Vec::new();
        let params = who.params.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        frontend::startup(&mut startup, who.user, who.database, params);
        let mut this = Self { io, sealing, login, buf: Vec::new(), place };
        this.send(&startup).await?;
        match this.next().await? {
            Need::Done(welcome) => Ok(Opened::Ready((this.io, this.sealing), welcome)),
            Need::Credential(asked) => Ok(Opened::Asked(Box::new(this), asked)),
            _ => Err(LoginError::Protocol("login out of order").into()),
        }
    }

    /// Answers what the backend asked for, and reads on until it is ready.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn finish(
        mut self,
        asked: Asked,
        user: &[u8],
        credential: &Arc<Credential>,
    ) -> Result<(Secured, Box<Welcome>), DialError> {
        let mut hold = Zeroizing::new(Vec::new());
        let answer = credential.answer(asked, user, &mut hold).ok_or(DialError::NoCredential(name(asked)))?;
        let bytes = Zeroizing::new(self.login.credential(answer)?);
        self.send(&bytes).await?;
        loop {
            match self.next().await? {
                Need::Done(welcome) => return Ok(((self.io, self.sealing), welcome)),
                Need::Keys { salt, iterations } => {
                    let keys = credential.keys(salt, iterations).await;
                    let keys = keys.ok_or(DialError::NoCredential(name(Asked::Scram)))?;
                    let bytes = self.login.keys(&keys)?;
                    self.send(&bytes).await?;
                }
                _ => return Err(LoginError::Protocol("login out of order").into()),
            }
        }
    }

    /// Passes on the body of somebody else's answer to the backend, and reads on until the backend wants that one to see
    /// something, or is ready.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn pass(mut self: Box<Self>, body: &[u8]) -> Result<Passed, DialError> {
        let bytes = Zeroizing::new(self.login.passes(body)?);
        self.send(&bytes).await?;
        self.shows().await
    }

    /// Reads on after the last thing that somebody else had to see.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn shows(mut self: Box<Self>) -> Result<Passed, DialError> {
        match self.next().await? {
            Need::Done(welcome) => Ok(Passed::Ready((self.io, self.sealing), welcome)),
            Need::Show { message, last } => Ok(Passed::Show { opening: self, message, last }),
            _ => Err(LoginError::Protocol("login out of order").into()),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), DialError> {
        let send = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        let sent = step(send).await;
        sent.map_err(|source| failed(&self.place, source))
    }

    async fn next(&mut self) -> Result<Need, DialError> {
        loop {
            match self.login.advance(&mut self.buf)? {
                Need::Bytes => {
                    let mut chunk = [0u8; CHUNK];
                    let n = step(self.io.read(&mut chunk)).await.map_err(|e| failed(&self.place, e))?;
                    let got = chunk.get(..n).filter(|got| !got.is_empty());
                    let eof = || failed(&self.place, io::ErrorKind::UnexpectedEof.into());
                    self.buf.extend_from_slice(got.ok_or_else(eof)?);
                }
                // Nothing was asked yet, so the connection is about to end, or its settings change: another one is tried.
                Need::Done(_) if !self.buf.is_empty() => {
                    let unasked =
                        io::Error::new(io::ErrorKind::InvalidData, "unasked bytes behind the login");
                    return Err(failed(&self.place, unasked));
                }
                need => return Ok(need),
            }
        }
    }
}

async fn secure(
    leg: &ServerLeg,
    io: &mut Stream,
    place: &(String, u16),
) -> Result<Option<Sealing>, DialError> {
    let secured = tokio::time::timeout(STEP_TIMEOUT, leg.secure(io, &place.0)).await;
    match secured {
        Ok(Ok(sealing)) => Ok(sealing),
        Ok(Err(SecureError::Io(source))) => Err(failed(place, source)),
        Ok(Err(error)) => {
            let (host, port) = place.clone();
            Err(DialError::Tls { host, port, why: error.to_string() })
        }
        Err(_) => Err(failed(place, io::ErrorKind::TimedOut.into())),
    }
}

async fn step<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STEP_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn failed((host, port): &(String, u16), source: io::Error) -> DialError {
    DialError::Io { host: host.clone(), port: *port, source }
}

const fn name(asked: Asked) -> &'static str {
    match asked {
        Asked::Cleartext => "clear-text password",
        Asked::Md5(_) => "MD5 password",
        Asked::Scram => "SCRAM-SHA-256",
    }
}
