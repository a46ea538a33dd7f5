//! Messages that a client sends after login: which types exist, how long each may be, and the few that we send
//! to a backend ourselves. Never decodes parameters.

use crate::frame::{FrameError, MAX_LARGE, MAX_SMALL, put, put_cstr, put_untyped, take_cstr};

/// Longest length word that a frontend message may carry after login, by type
/// (`SocketBackend` in PostgreSQL's `tcop/postgres.c`).
///
/// # Errors
/// [`FrameError::UnknownType`] for a byte that is no frontend message type in this state.
#[inline]
pub const fn max_len(tag: u8) -> Result<usize, FrameError> {
    match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Ok(MAX_LARGE),
        b'S' | b'H' | b'E' | b'D' | b'C' | b'X' | b'c' | b'f' => Ok(MAX_SMALL),
        other => Err(FrameError::UnknownType(other)),
    }
}

/// The SQL text of a whole Query message (header included); `None` if it is malformed, which PostgreSQL reports.
#[must_use]
pub fn query_text(message: &[u8]) -> Option<&[u8]> {
    let (text, rest) = take_cstr(message.get(5..)?)?;
    rest.is_empty().then_some(text)
}

/// Statement name and SQL text of a whole Parse message (header included); `None` if it is malformed.
#[must_use]
pub fn parse_text(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = take_cstr(message.get(5..)?)?;
    let (text, _) = take_cstr(rest)?;
    Some((name, text))
}

/// Appends Parse, Bind, Execute and Sync of a statement with one parameter as text; text comes back.
pub fn statement(out: &mut Vec<u8>, sql: &str, parameter: &[u8]) {
    put(out, b'P', |b| {
        b.push(0);
        put_cstr(b, sql.as_bytes());
        b.extend_from_slice(&[0, 0]);
    });
    put(out, b'B', |b| {
        b.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
        b.extend_from_slice(&u32::try_from(parameter.len()).unwrap_or(0).to_be_bytes());
        b.extend_from_slice(parameter);
        b.extend_from_slice(&[0, 0]);
    });
    put(out, b'E', |b| b.extend_from_slice(&[0, 0, 0, 0, 0]));
    put(out, b'S', |_| {});
}

/// Appends a Query message.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    put(out, b'Q', |b| put_cstr(b, sql.as_bytes()));
}

/// Appends a Terminate message.
pub fn terminate(out: &mut Vec<u8>) {
    put(out, b'X', |_| {});
}

/// Appends a PasswordMessage (also used for SASL responses when `cstr` is false).
pub fn password(out: &mut Vec<u8>, data: &[u8], cstr: bool) {
    put(out, b'p', |b| {
        b.extend_from_slice(data);
        if cstr {
            b.push(0);
        }
    });
}

/// Appends a SASLInitialResponse.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    put(out, b'p', |b| {
        put_cstr(b, mechanism.as_bytes());
        let len = u32::try_from(data.len()).unwrap_or(0);
        b.extend_from_slice(&len.to_be_bytes());
        b.extend_from_slice(data);
    });
}

/// Appends a StartupMessage of protocol 3.0.
pub fn startup<'a>(
    out: &mut Vec<u8>,
    user: &'a [u8],
    database: &'a [u8],
    params: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) {
    put_untyped(out, |b| {
        b.extend_from_slice(&crate::startup::PROTOCOL_3_0.to_be_bytes());
        for (name, value) in [(&b"user"[..], user), (&b"database"[..], database)].into_iter().chain(params) {
            put_cstr(b, name);
            put_cstr(b, value);
        }
        b.push(0);
    });
}

/// Appends an SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    put_untyped(out, |b| b.extend_from_slice(&crate::startup::SSL.to_be_bytes()));
}

/// Appends a CancelRequest.
pub fn cancel(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put_untyped(out, |b| {
        b.extend_from_slice(&crate::startup::CANCEL.to_be_bytes());
        b.extend_from_slice(&pid.to_be_bytes());
        b.extend_from_slice(key);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut out = Vec::new();
        query(&mut out, "select 1");
        assert_eq!(out, b"Q\0\0\0\x0dselect 1\0");
        assert_eq!(query_text(&out), Some(&b"select 1"[..]));
        out.clear();
        startup(&mut out, b"u", b"d", [(&b"a"[..], &b"b"[..])]);
        assert_eq!(out, b"\0\0\0\x1f\0\x03\0\0user\0u\0database\0d\0a\0b\0\0".as_slice());
        out.clear();
        ssl_request(&mut out);
        assert_eq!(out, b"\0\0\0\x08\x04\xd2\x16\x2f");
        out.clear();
        cancel(&mut out, 7, &[1, 2, 3, 4]);
        assert_eq!(out, b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07\x01\x02\x03\x04");
        out.clear();
        sasl_initial(&mut out, "SCRAM-SHA-256", b"n,,");
        assert_eq!(out, b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,");
    }

    #[test]
    fn malformed_texts() {
        assert_eq!(query_text(b"Q\0\0\0\x04"), None);
        assert_eq!(query_text(b"Q\0\0\0\x07a\0b"), None);
        assert_eq!(parse_text(b"P\0\0\0\x08s\0x\0\0\0"), Some((&b"s"[..], &b"x"[..])));
        assert_eq!(parse_text(b"P\0\0\0\x06s\0"), None);
    }
}
