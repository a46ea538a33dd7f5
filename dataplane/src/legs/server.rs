//! TLS towards servers (`[server_tls]`): asks for it as libpq does, and puts it on the socket. Never sends anything else
//! before the answer, and believes nothing that comes before TLS but one byte.

use crate::stream::Stream;
use helios_pgwire::frontend;
use helios_tls::dial::in_words;
use helios_tls::postgres::{ToServers, end_point};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// TLS towards servers, as configured.
#[derive(Clone, Default)]
pub struct ServerLeg(Arc<ToServers>);

/// How a connection was sealed: its cancel requests are sealed in the same way.
#[derive(Clone)]
pub struct Sealing {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a connection got no TLS.
#[derive(Debug, thiserror::Error)]
pub enum SecureError {
    /// The connection broke before TLS.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server has no TLS, which is required.
    #[error("the server does not support TLS, which mode in [server_tls] requires")]
    Unsupported,
    /// The answer is none of PostgreSQL's.
    #[error("the server answered the request for TLS with byte {0}")]
    Answer(u8),
    /// The handshake failed, in words for an operator.
    #[error("TLS: {0}")]
    Handshake(String),
    /// No certificate could be for this host.
    #[error("TLS: host {0:?} is no name that a certificate may have")]
    Name(String),
}

impl ServerLeg {
    /// As the section says.
    #[must_use]
    pub const fn new(to: Arc<ToServers>) -> Self {
        Self(to)
    }

    /// Puts TLS on a fresh connection, if the mode and the server want it; how, if so.
    ///
    /// # Errors
    /// See [`SecureError`].
    pub async fn secure(&self, io: &mut Stream, host: &str) -> Result<Option<Sealing>, SecureError> {
        let Some(live) = &self.0.live else { return Ok(None) };
        let name = match ServerName::try_from(host.to_owned()) {
            Ok(name) => name,
            Err(_) if !self.0.verified => ServerName::try_from("server.invalid").map_err(io::Error::other)?,
            Err(_) => return Err(SecureError::Name(host.to_owned())),
        };
        let sealing = Sealing { config: Arc::clone(&live.current().config), name };
        match request(io).await? {
            b'S' => sealing.seal(io).await.map(|()| Some(sealing)),
            b'N' if self.0.required => Err(SecureError::Unsupported),
            b'N' => Ok(None),
            other => Err(SecureError::Answer(other)),
        }
    }
}

impl Sealing {
    /// Puts TLS of the same kind on another connection to the same server; without it nothing may be said there.
    ///
    /// # Errors
    /// See [`SecureError`].
    pub async fn again(&self, io: &mut Stream) -> Result<(), SecureError> {
        match request(io).await? {
            b'S' => self.seal(io).await,
            b'N' => Err(SecureError::Unsupported),
            other => Err(SecureError::Answer(other)),
        }
    }

    async fn seal(&self, io: &mut Stream) -> Result<(), SecureError> {
        let words = |error: &io::Error| SecureError::Handshake(in_words(error, Some(&self.name.to_str())));
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let tls = tls.map_err(|error| SecureError::Handshake(error.to_string()))?;
        io.seal(tls.into(), &[]).await.map_err(|error| words(&error))
    }
}

/// Sends an SSLRequest and reads the one byte that answers it.
async fn request(io: &mut Stream) -> io::Result<u8> {
    let mut message = Vec::new();
    frontend::ssl_request(&mut message);
    io.write_all(&message).await?;
    io.read_u8().await
}

/// For channel binding: the hash of the certificate that the server has shown.
#[must_use]
pub fn shown(io: &Stream) -> Option<Vec<u8>> {
    io.tls()?.peer_certificates()?.first().and_then(end_point)
}
