//! Before the session: encryption requests, cancel requests, the StartupMessage. One login timeout covers all of it.
//! Never buffers more than one packet; never lets a byte cross an encryption request.

use super::login::Refusal;
use crate::legs::{ClientLeg, Sealed};
use crate::stream::Stream;
use helios_pgwire::PgError;
use helios_pgwire::frame::Header;
use helios_pgwire::startup::{self, FirstPacket, Settled, Startup, StartupError};
use helios_tls::dial::in_words;
use helios_tls::postgres::ALPN;
use rustls::ServerConnection;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroize as _;

/// Bytes read from an unauthenticated client at once.
const CHUNK: usize = 2048;

/// What a connection turned out to be.
pub enum Greeted {
    /// A session.
    Session(Box<Startup>),
    /// A cancel request.
    Cancel {
        /// Process id.
        pid: u32,
        /// Secret.
        key: Vec<u8>,
    },
}

/// A client that has not logged in.
pub struct Lobby {
    /// The socket.
    pub io: Stream,
    /// Bytes received and not consumed.
    pub buf: Vec<u8>,
    /// TLS on the socket.
    pub sealed: Option<Sealed>,
}

/// First byte of a TLS handshake (RFC 8446, section 5.1), where PostgreSQL 17 and newer take TLS without a request.
const HANDSHAKE: u8 = 0x16;

impl Lobby {
    /// A client that was just accepted.
    #[must_use]
    pub fn new(io: TcpStream) -> Self {
        Self { io: io.into(), buf: Vec::new(), sealed: None }
    }

    /// Reads until the client has said what it wants.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn greet(&mut self, leg: &ClientLeg) -> Result<Greeted, Refusal> {
        self.fill().await?;
        let mut settled = Settled::default();
        if self.buf.first() == Some(&HANDSHAKE) {
            self.seal(leg).await?;
            // Without a request only the name of the protocol tells that the other side means PostgreSQL.
            let named = self.io.tls().and_then(|tls| tls.alpn_protocol());
            if named != Some(ALPN) {
                return Err(Refusal::Cut);
            }
        }
        loop {
            let packet = self.packet().await?;
            match startup::parse(&packet, settled).map_err(refuse)? {
                FirstPacket::Ssl if leg.live().is_some() && self.sealed.is_none() => {
                    settled = Settled { ssl: true, gss: true };
                    self.io.write_all(b"S").await?;
                    if !self.buf.is_empty() {
                        // Plain text may not cross into TLS (CVE-2021-3935).
                        return Err(Refusal::Cut);
                    }
                    self.seal(leg).await?;
                }
                FirstPacket::Ssl => {
                    settled.ssl = true;
                    self.send(b"N").await?;
                    if !self.buf.is_empty() {
                        return Err(stuffed("SSL"));
                    }
                }
                FirstPacket::GssEnc => {
                    settled.gss = true;
                    self.send(b"N").await?;
                    if !self.buf.is_empty() {
                        return Err(stuffed("GSSAPI encryption"));
                    }
                }
                FirstPacket::Cancel { pid, key } => return Ok(Greeted::Cancel { pid, key }),
                FirstPacket::Startup(startup) => {
                    if leg.mode.is_required() && self.sealed.is_none() {
                        return Err(PgError::fatal("28000", "connection requires TLS")
                            .hint("Set sslmode=require, or a stricter one, in the client.")
                            .into());
                    }
                    return Ok(Greeted::Session(Box::new(startup)));
                }
            }
        }
    }

    /// TLS begins, with what has come already.
    async fn seal(&mut self, leg: &ClientLeg) -> Result<(), Refusal> {
        let accepting = leg.accepting().ok_or(Refusal::Cut)?;
        let tls = ServerConnection::new(Arc::clone(&accepting.config));
        let tls = tls.map_err(|error| Refusal::Handshake(error.to_string()))?;
        let first = std::mem::take(&mut self.buf);
        let sealed = self.io.seal(tls.into(), &first).await;
        sealed.map_err(|error| Refusal::Handshake(in_words(&error, None)))?;
        self.sealed = self.io.tls().map(|tls| Sealed::new(&accepting, tls));
        Ok(())
    }

    async fn packet(&mut self) -> Result<Vec<u8>, Refusal> {
        loop {
            if let Some(size) = startup::packet_size(&self.buf).map_err(refuse)?
                && self.buf.len() >= size
            {
                return Ok(self.buf.drain(..size).collect());
            }
            self.fill().await?;
        }
    }

    /// The body of the client's next authentication message, up to `max` bytes with its length word.
    ///
    /// # Errors
    /// 08P01 for any other message; cut for a length that is not allowed.
    pub async fn auth_message(&mut self, expected: &str, max: usize) -> Result<Vec<u8>, Refusal> {
        loop {
            if let Some(&tag) = self.buf.first()
                && tag != b'p'
            {
                let text = format!("expected {expected} response, got message type {tag}");
                return Err(PgError::fatal("08P01", text).into());
            }
            let header = Header::parse(&self.buf, |_| Ok(max)).map_err(|_| Refusal::Cut)?;
            if let Some(Header { size, .. }) = header
                && self.buf.len() >= size
            {
                let body = self.buf.get(5..size).unwrap_or_default().to_vec();
                if let Some(used) = self.buf.get_mut(..size) {
                    used.zeroize();
                }
                self.buf.drain(..size);
                return Ok(body);
            }
            self.fill().await?;
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    async fn fill(&mut self) -> Result<(), Refusal> {
        let mut chunk = [0u8; CHUNK];
        let n = self.io.read(&mut chunk).await?;
        let got = chunk.get(..n).filter(|got| !got.is_empty()).ok_or(Refusal::Gone)?;
        self.buf.extend_from_slice(got);
        chunk.zeroize();
        Ok(())
    }
}

fn refuse(error: StartupError) -> Refusal {
    match error {
        StartupError::Cut => Refusal::Cut,
        StartupError::Old(text) => Refusal::Raw([b"EFATAL:  ", text.as_bytes(), b"\n\0"].concat()),
        StartupError::Fatal { error, negotiate } => {
            let mut out = Vec::new();
            if let Some((version, unknown)) = negotiate {
                helios_pgwire::backend::negotiate_version(&mut out, version, &unknown);
            }
            error.encode(&mut out);
            Refusal::Raw(out)
        }
    }
}

fn stuffed(request: &str) -> Refusal {
    let detail =
        "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.";
    PgError::fatal("08P01", format!("received unencrypted data after {request} request"))
        .detail(detail)
        .into()
}
