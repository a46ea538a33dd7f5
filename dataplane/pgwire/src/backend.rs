//! Messages that a backend sends: the transaction status, the authentication requests, and builders for those
//! that the proxy sends to its clients. Never decodes rows.

use crate::frame::{FrameError, MAX_LARGE, put, put_cstr, take_cstr};

/// Transaction status of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// Not in a transaction block (`I`).
    Idle,
    /// In a transaction block (`T`).
    InTransaction,
    /// In a failed transaction block (`E`).
    Failed,
}

/// What a backend asks for at login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRequest<'a> {
    /// Nothing (more): logged in.
    Ok,
    /// The password in clear text.
    CleartextPassword,
    /// The password hashed with this salt.
    Md5Password([u8; 4]),
    /// SASL; mechanism names follow, each NUL-terminated.
    Sasl(&'a [u8]),
    /// SASL: the server's next message.
    SaslContinue(&'a [u8]),
    /// SASL: the server's last message.
    SaslFinal(&'a [u8]),
    /// Something this proxy does not speak (GSSAPI, SSPI, Kerberos).
    Other(u32),
}

/// Longest backend message: any type, 1 GB, as PostgreSQL itself can build.
///
/// # Errors
/// Never; the signature is that of [`crate::Header::parse`].
#[inline]
pub const fn max_len(_tag: u8) -> Result<usize, FrameError> {
    Ok(MAX_LARGE)
}

impl TxStatus {
    /// Reads the byte of a ReadyForQuery; `None` for a byte that is no status.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

impl<'a> AuthRequest<'a> {
    /// Reads the body of an `R` message; `None` if it is malformed.
    #[must_use]
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (code, rest) = body.split_first_chunk::<4>()?;
        Some(match u32::from_be_bytes(*code) {
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => Self::Md5Password(*rest.first_chunk()?),
            10 => Self::Sasl(rest),
            11 => Self::SaslContinue(rest),
            12 => Self::SaslFinal(rest),
            other => Self::Other(other),
        })
    }

    /// Whether a SASL request offers a mechanism. The list is a list: order means nothing.
    #[must_use]
    pub fn offers(list: &[u8], mechanism: &str) -> bool {
        list.split(|&b| b == 0).any(|name| name == mechanism.as_bytes())
    }
}

/// Name and value of a ParameterStatus body; `None` if it is malformed.
#[must_use]
pub fn parameter_status_fields(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = take_cstr(body)?;
    let (value, _) = take_cstr(rest)?;
    Some((name, value))
}

/// Process id and secret of a BackendKeyData body; `None` if it is malformed (secret of 4 to 256 bytes).
#[must_use]
pub fn key_data_fields(body: &[u8]) -> Option<(u32, &[u8])> {
    let (pid, key) = body.split_first_chunk::<4>()?;
    (4..=256).contains(&key.len()).then_some((u32::from_be_bytes(*pid), key))
}

/// Appends an authentication request.
pub fn auth(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    put(out, b'R', |b| {
        b.extend_from_slice(&code.to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, b'S', |b| {
        put_cstr(b, name);
        put_cstr(b, value);
    });
}

/// Appends a BackendKeyData.
pub fn key_data(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put(out, b'K', |b| {
        b.extend_from_slice(&pid.to_be_bytes());
        b.extend_from_slice(key);
    });
}

/// Appends a ReadyForQuery.
pub fn ready_for_query(out: &mut Vec<u8>, status: TxStatus) {
    put(out, b'Z', |b| b.push(status.byte()));
}

/// Appends a NegotiateProtocolVersion: the version in force and the protocol options not understood.
pub fn negotiate_version<T: AsRef<[u8]>>(out: &mut Vec<u8>, version: u32, unknown: &[T]) {
    put(out, b'v', |b| {
        b.extend_from_slice(&version.to_be_bytes());
        b.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(u32::MAX).to_be_bytes());
        for name in unknown {
            put_cstr(b, name.as_ref());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut out = Vec::new();
        ready_for_query(&mut out, TxStatus::Failed);
        key_data(&mut out, 1, &[9; 4]);
        parameter_status(&mut out, b"a", b"b");
        auth(&mut out, 0, b"");
        negotiate_version(&mut out, 0x0003_0002, &[b"_pq_.x"]);
        assert_eq!(
            out,
            [
                &b"Z\0\0\0\x05E"[..],
                b"K\0\0\0\x0c\0\0\0\x01\x09\x09\x09\x09",
                b"S\0\0\0\x08a\0b\0",
                b"R\0\0\0\x08\0\0\0\0",
                b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0",
            ]
            .concat()
        );
    }

    #[test]
    fn auth_requests() {
        assert_eq!(
            AuthRequest::parse(&[0, 0, 0, 5, 1, 2, 3, 4]),
            Some(AuthRequest::Md5Password([1, 2, 3, 4]))
        );
        assert_eq!(AuthRequest::parse(&[0, 0, 0, 5, 1]), None);
        assert_eq!(AuthRequest::parse(&[0, 0]), None);
        assert!(AuthRequest::offers(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0", "SCRAM-SHA-256"));
        assert!(!AuthRequest::offers(b"SCRAM-SHA-256-PLUS\0\0", "SCRAM-SHA-256"));
        assert_eq!(key_data_fields(&[0, 0, 0, 1, 1, 2, 3]), None);
    }
}
