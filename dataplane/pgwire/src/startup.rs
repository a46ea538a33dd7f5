//! The first packet of a connection: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest
//! (`ProcessStartupPacket` in PostgreSQL's `tcop/backend_startup.c`). Never remembers what came before: the
//! caller knows whether encryption was already refused.

use crate::error::PgError;
use crate::frame::take_cstr;

/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 0x0003_0000;
/// Newest protocol that we speak: 3.2, as PostgreSQL 18.
pub const PROTOCOL_LATEST: u32 = 0x0003_0002;
/// Code of a CancelRequest (1234.5678).
pub const CANCEL: u32 = 0x04d2_162e;
/// Code of an SSLRequest (1234.5679).
pub const SSL: u32 = 0x04d2_162f;
/// Code of a GSSENCRequest (1234.5680).
pub const GSSENC: u32 = 0x04d2_1630;

/// Longest first packet, its length word included (`MAX_STARTUP_PACKET_LENGTH` plus the word).
pub const MAX_PACKET: usize = 10_004;
/// Longest name that PostgreSQL keeps (`NAMEDATALEN - 1`); longer ones are cut, not refused.
const MAX_NAME: usize = 63;

/// The first packet, by what its sender wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// Wants TLS.
    Ssl,
    /// Wants GSSAPI encryption.
    GssEnc,
    /// Wants a running statement cancelled.
    Cancel {
        /// Process id of BackendKeyData.
        pid: u32,
        /// Secret of BackendKeyData, 4 to 256 bytes.
        key: Vec<u8>,
    },
    /// Wants a session.
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Version asked for, major in the upper half; the major number is 3.
    pub version: u32,
    /// Role, cut to 63 bytes, never empty.
    pub user: Vec<u8>,
    /// Database, cut to 63 bytes; the role's name if none was given.
    pub database: Vec<u8>,
    /// Whether and how replication was asked for.
    pub replication: Replication,
    /// Every other parameter, `options` included, sorted by name; of a name given twice the last value.
    pub params: Vec<(Vec<u8>, Vec<u8>)>,
    /// Protocol options (`_pq_.…`) that we do not know, as sent.
    pub unknown_options: Vec<Vec<u8>>,
}

/// The startup parameter `replication`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// An ordinary session.
    No,
    /// A walsender that sends the WAL.
    Physical,
    /// A walsender that decodes the WAL of its database.
    Logical,
}

/// Why a first packet gets no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Closed without a message, as PostgreSQL does.
    #[error("invalid length of startup packet")]
    Cut,
    /// Told in protocol 3 form, then closed. `negotiate`: a NegotiateProtocolVersion goes before the error.
    #[error("{error}")]
    Fatal {
        /// The error.
        error: Box<PgError>,
        /// Version and unknown options to announce first.
        negotiate: Option<(u32, Vec<Vec<u8>>)>,
    },
    /// Told in protocol 2 form, then closed.
    #[error("{0}")]
    Old(String),
}

/// Size of the first packet, length word included; `None` while fewer than four bytes are there.
///
/// # Errors
/// [`StartupError::Cut`] below 8 or above [`MAX_PACKET`].
pub fn packet_size(buf: &[u8]) -> Result<Option<usize>, StartupError> {
    let Some(word) = buf.first_chunk::<4>() else { return Ok(None) };
    let size = usize::try_from(u32::from_be_bytes(*word)).map_err(|_| StartupError::Cut)?;
    if (8..=MAX_PACKET).contains(&size) { Ok(Some(size)) } else { Err(StartupError::Cut) }
}

/// Reads a whole first packet (of [`packet_size`] bytes). With `encryption_settled`, another SSLRequest or
/// GSSENCRequest is an unsupported protocol, as in PostgreSQL.
///
/// # Errors
/// See [`StartupError`].
pub fn parse(packet: &[u8], encryption_settled: Settled) -> Result<FirstPacket, StartupError> {
    let body = packet.get(4..).ok_or(StartupError::Cut)?;
    let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Cut)?;
    match u32::from_be_bytes(*code) {
        CANCEL => cancel(rest),
        SSL if !encryption_settled.ssl => Ok(FirstPacket::Ssl),
        GSSENC if !encryption_settled.gss => Ok(FirstPacket::GssEnc),
        version => startup(version, rest),
    }
}

/// Which kinds of encryption this connection has already asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// An SSLRequest was answered.
    pub ssl: bool,
    /// A GSSENCRequest was answered.
    pub gss: bool,
}

/// Of the version asked for, the one in force: at most [`PROTOCOL_LATEST`].
#[must_use]
pub fn agreed(version: u32) -> u32 {
    if version > PROTOCOL_LATEST { PROTOCOL_LATEST } else { version }
}

fn cancel(rest: &[u8]) -> Result<FirstPacket, StartupError> {
    let (pid, key) = rest.split_first_chunk::<4>().ok_or(StartupError::Cut)?;
    if !(4..=256).contains(&key.len()) {
        return Err(StartupError::Cut);
    }
    Ok(FirstPacket::Cancel { pid: u32::from_be_bytes(*pid), key: key.to_vec() })
}

fn startup(version: u32, body: &[u8]) -> Result<FirstPacket, StartupError> {
    let (major, minor) = (version >> 16, version & 0xffff);
    if major != 3 {
        let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
        return Err(if major < 3 { StartupError::Old(text) } else { fatal(PgError::fatal("0A000", text)) });
    }
    let mut message = Startup {
        version,
        user: Vec::new(),
        database: Vec::new(),
        replication: Replication::No,
        params: Vec::new(),
        unknown_options: Vec::new(),
    };
    read_params(body, &mut message)?;
    message.params.sort();
    if message.user.is_empty() {
        let error = Box::new(PgError::fatal("28000", "no PostgreSQL user name specified in startup packet"));
        return Err(StartupError::Fatal { error, negotiate: message.negotiation() });
    }
    message.user.truncate(MAX_NAME);
    if message.database.is_empty() {
        message.database.clone_from(&message.user);
    }
    message.database.truncate(MAX_NAME);
    Ok(FirstPacket::Startup(message))
}

fn read_params(mut body: &[u8], message: &mut Startup) -> Result<(), StartupError> {
    loop {
        if body == b"\0" {
            return Ok(());
        }
        let pair = take_cstr(body).filter(|(name, _)| !name.is_empty()).and_then(|(name, rest)| {
            let (value, rest) = take_cstr(rest)?;
            Some((name, value, rest))
        });
        let Some((name, value, rest)) = pair else {
            let text = "invalid startup packet layout: expected terminator as last byte";
            return Err(fatal(PgError::fatal("08P01", text)));
        };
        message.set(name, value)?;
        body = rest;
    }
}

fn fatal(error: PgError) -> StartupError {
    StartupError::Fatal { error: Box::new(error), negotiate: None }
}

impl Startup {
    fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), StartupError> {
        match name {
            b"user" => self.user = value.to_vec(),
            b"database" => self.database = value.to_vec(),
            b"replication" => self.replication = Replication::parse(value)?,
            _ if name.starts_with(b"_pq_.") => self.unknown_options.push(name.to_vec()),
            _ => {
                self.params.retain(|(known, _)| known != name);
                self.params.push((name.to_vec(), value.to_vec()));
            }
        }
        Ok(())
    }

    /// What a NegotiateProtocolVersion must say, if one is due: once per login, before anything else.
    #[must_use]
    pub fn negotiation(&self) -> Option<(u32, Vec<Vec<u8>>)> {
        let due = self.version > PROTOCOL_LATEST || !self.unknown_options.is_empty();
        due.then(|| (agreed(self.version), self.unknown_options.clone()))
    }

    /// The value of a parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&[u8]> {
        self.params.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

impl Replication {
    /// `parse_bool` of PostgreSQL plus `database`: unique prefixes of true, false, yes, no, and on, off, 1, 0.
    fn parse(value: &[u8]) -> Result<Self, StartupError> {
        let word = value.to_ascii_lowercase();
        let prefix = |of: &str, least: usize| word.len() >= least && of.as_bytes().starts_with(&word);
        if value == b"database" {
            return Ok(Self::Logical);
        }
        if prefix("true", 1) || prefix("yes", 1) || prefix("on", 2) || word == b"1" {
            return Ok(Self::Physical);
        }
        if prefix("false", 1) || prefix("no", 1) || prefix("off", 2) || word == b"0" {
            return Ok(Self::No);
        }
        let shown = String::from_utf8_lossy(value);
        Err(fatal(
            PgError::fatal("22023", format!("invalid value for parameter \"replication\": \"{shown}\""))
                .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        crate::frame::put_untyped(&mut out, |b| {
            b.extend_from_slice(&version.to_be_bytes());
            b.extend_from_slice(body);
        });
        out
    }

    fn read(version: u32, body: &[u8]) -> Result<Startup, StartupError> {
        match parse(&packet(version, body), Settled::default())? {
            FirstPacket::Startup(s) => Ok(s),
            other => panic!("{other:?}"),
        }
    }

    fn code(result: Result<Startup, StartupError>) -> &'static str {
        match result {
            Err(StartupError::Fatal { error, .. }) => error.code,
            Err(StartupError::Old(_)) => "old",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes() {
        for (word, ok) in
            [(0u32, false), (7, false), (8, true), (10_004, true), (10_005, false), (u32::MAX, false)]
        {
            assert_eq!(packet_size(&word.to_be_bytes()).is_ok(), ok, "{word}");
        }
        assert_eq!(packet_size(b"GET "), Err(StartupError::Cut));
        assert_eq!(packet_size(b"\0\0"), Ok(None));
    }

    #[test]
    fn layouts() {
        assert_eq!(code(read(PROTOCOL_3_0, b"")), "08P01");
        assert_eq!(code(read(PROTOCOL_3_0, b"user\0u\0")), "08P01");
        assert_eq!(code(read(PROTOCOL_3_0, b"user\0")), "08P01");
        assert_eq!(code(read(PROTOCOL_3_0, b"user\0u\0\0x")), "08P01");
        assert_eq!(code(read(PROTOCOL_3_0, b"\0")), "28000");
        assert_eq!(code(read(PROTOCOL_3_0, b"user\0\0\0")), "28000");
        assert_eq!(code(read(PROTOCOL_3_0, b"user\0u\0replication\0banana\0\0")), "22023");
        assert_eq!(code(read(0x0004_0000, b"user\0u\0\0")), "0A000");
        assert_eq!(code(read(0x0002_0000, b"")), "old");
    }

    #[test]
    fn names_are_cut_and_the_last_wins() {
        let long = [b'x'; 200];
        let body = [b"user\0a\0user\0", &long[..], b"\0b\x001\0a\x002\0b\x003\0\0"].concat();
        let s = read(0x0003_270f, &body).unwrap();
        assert_eq!((s.user.len(), s.database.len()), (63, 63));
        assert_eq!(s.params, [(b"a".to_vec(), b"2".to_vec()), (b"b".to_vec(), b"3".to_vec())]);
        assert_eq!(s.negotiation(), Some((PROTOCOL_LATEST, vec![])));
        assert_eq!(agreed(0x0003_0001), 0x0003_0001);
    }

    #[test]
    fn encryption_is_asked_for_once() {
        let ssl = packet(SSL, b"");
        assert_eq!(parse(&ssl, Settled::default()), Ok(FirstPacket::Ssl));
        assert!(parse(&ssl, Settled { ssl: true, gss: false }).is_err());
    }

    #[test]
    fn cancel_keys_have_limits() {
        assert!(parse(&packet(CANCEL, &[0; 8]), Settled::default()).is_ok());
        assert!(parse(&packet(CANCEL, &[0; 7]), Settled::default()).is_err());
        assert!(parse(&packet(CANCEL, &[0; 261]), Settled::default()).is_err());
    }
}
