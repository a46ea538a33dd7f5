//! Message headers: one type byte and a checked length. Owner: whoever reads a leg. Never looks into a body.

/// Longest message of a type that has a body of user data, its length word included
/// (`PQ_LARGE_MESSAGE_LIMIT` of PostgreSQL's `libpq/libpq.h`: `MaxAllocSize - 1`).
pub const MAX_LARGE: usize = 0x3fff_fffe;

/// Longest message of every other type, its length word included (`PQ_SMALL_MESSAGE_LIMIT`).
pub const MAX_SMALL: usize = 10_000;

/// Longest password message, its length word included (`PG_MAX_AUTH_TOKEN_LENGTH`).
pub const MAX_AUTH: usize = 65_535;
/// Longest SASL message, its length word included (`PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MAX_SASL: usize = 1024;

/// Bytes of a header: the type and the length word.
pub const HEADER: usize = 5;

/// A message's type and its whole size on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// Whole message in bytes, type and length word included; at least [`HEADER`].
    pub size: usize,
}

/// A header that the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frontend message has this type.
    #[error("invalid frontend message type {0}")]
    UnknownType(u8),
    /// The length word is below 4 or above what this type may have.
    #[error("invalid message length {0}")]
    Length(u32),
}

impl Header {
    /// Reads a header from the front of `buf`; `None` while fewer than five bytes are there.
    /// `max` gives the longest length word that a type may carry, or an error for an unknown type.
    ///
    /// # Errors
    /// What `max` says, and [`FrameError::Length`] for a length below 4 or above the maximum.
    #[inline]
    pub fn parse(
        buf: &[u8],
        max: impl Fn(u8) -> Result<usize, FrameError>,
    ) -> Result<Option<Self>, FrameError> {
        let Some(&tag) = buf.first() else { return Ok(None) };
        let max = max(tag)?;
        let Some(&[_, a, b, c, d]) = buf.first_chunk::<HEADER>() else { return Ok(None) };
        let word = u32::from_be_bytes([a, b, c, d]);
        let len = usize::try_from(word).map_err(|_| FrameError::Length(word))?;
        if len < 4 || len > max {
            return Err(FrameError::Length(word));
        }
        Ok(Some(Self { tag, size: len.saturating_add(1) }))
    }
}

/// Appends a message: type, a length word patched afterwards, and what `body` writes.
pub fn put(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_untyped(out, body);
}

/// Appends a message without a type byte (the first packet of a connection).
pub fn put_untyped(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = u32::try_from(out.len().saturating_sub(at)).unwrap_or(u32::MAX);
    if let Some(word) = out.get_mut(at..at.saturating_add(4)) {
        word.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends a NUL-terminated string. A NUL inside would end it early, so the string is cut there.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().copied().take_while(|&b| b != 0));
    out.push(0);
}

/// Splits a NUL-terminated string off the front of `buf`; `None` when there is no NUL.
#[must_use]
pub fn take_cstr(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, buf)?;
    Some((buf.get(..end)?, buf.get(end.checked_add(1)?..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(_: u8) -> Result<usize, FrameError> {
        Ok(100)
    }

    #[test]
    fn headers() {
        assert_eq!(Header::parse(b"", any), Ok(None));
        assert_eq!(Header::parse(b"Q\0\0\0", any), Ok(None));
        assert_eq!(Header::parse(b"Q\0\0\0\x04", any), Ok(Some(Header { tag: b'Q', size: 5 })));
        assert_eq!(Header::parse(b"Q\0\0\0\x03", any), Err(FrameError::Length(3)));
        assert_eq!(Header::parse(b"Q\0\0\0\x65", any), Err(FrameError::Length(101)));
        assert_eq!(Header::parse(b"Q\xff\xff\xff\xff", any), Err(FrameError::Length(u32::MAX)));
    }

    #[test]
    fn put_patches_the_length() {
        let mut out = b"x".to_vec();
        put(&mut out, b'Z', |b| b.push(b'I'));
        assert_eq!(out, b"xZ\0\0\0\x05I");
    }

    #[test]
    fn cstr_is_cut_at_a_nul() {
        let mut out = Vec::new();
        put_cstr(&mut out, b"a\0b");
        assert_eq!(out, b"a\0");
        assert_eq!(take_cstr(b"ab\0c"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(take_cstr(b"ab"), None);
    }
}
