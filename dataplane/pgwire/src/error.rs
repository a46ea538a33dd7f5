//! ErrorResponse and NoticeResponse: building ours, reading a backend's. Never trusts that a field is there
//! (CVE-2026-6666 of PgBouncer: an ErrorResponse without a SQLSTATE).

use crate::frame::{put, put_cstr, take_cstr};

/// How bad an error is for the session (field `S` and `V`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session lives.
    Error,
    /// The session ends.
    Fatal,
    /// Only a message.
    Notice,
    /// Only a message, but one that should be read.
    Warning,
}

/// An error that we raise ourselves, in PostgreSQL's style.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PgError {
    /// Severity.
    pub severity: Severity,
    /// SQLSTATE, five characters (manual: "PostgreSQL Error Codes").
    pub code: &'static str,
    /// Primary message: lower case, no full stop.
    pub message: String,
    /// Detail: a sentence.
    pub detail: Option<String>,
    /// Hint: what to do, a sentence.
    pub hint: Option<String>,
}

/// What we read of a backend's ErrorResponse. Every field is optional.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorFields<'a> {
    /// Severity, not localised (`V`), else localised (`S`).
    pub severity: Option<&'a [u8]>,
    /// SQLSTATE (`C`).
    pub code: Option<&'a [u8]>,
    /// Primary message (`M`).
    pub message: Option<&'a [u8]>,
    /// The function of the server that reports it (`R`), the same in every language.
    pub routine: Option<&'a [u8]>,
}

impl Severity {
    /// The word on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Notice => "NOTICE",
            Self::Warning => "WARNING",
        }
    }

    const fn tag(self) -> u8 {
        match self {
            Self::Error | Self::Fatal => b'E',
            Self::Notice | Self::Warning => b'N',
        }
    }
}

impl PgError {
    /// An error after which the session lives.
    #[must_use]
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), detail: None, hint: None }
    }

    /// An error that ends the session.
    #[must_use]
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(code, message) }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.severity.tag(), |b| {
            let field = |b: &mut Vec<u8>, tag: u8, text: &str| {
                b.push(tag);
                put_cstr(b, text.as_bytes());
            };
            field(b, b'S', self.severity.word());
            field(b, b'V', self.severity.word());
            field(b, b'C', self.code);
            field(b, b'M', &self.message);
            if let Some(detail) = &self.detail {
                field(b, b'D', detail);
            }
            if let Some(hint) = &self.hint {
                field(b, b'H', hint);
            }
            b.push(0);
        });
    }

    /// The message as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an ErrorResponse or NoticeResponse (header not included). Stops at the first oddity and
    /// keeps what it has.
    #[must_use]
    pub fn parse(mut body: &'a [u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&tag, rest)) = body.split_first() {
            if tag == 0 {
                break;
            }
            let Some((text, rest)) = take_cstr(rest) else { break };
            match tag {
                b'V' => fields.severity = Some(text),
                b'S' if fields.severity.is_none() => fields.severity = Some(text),
                b'C' => fields.code = Some(text),
                b'M' => fields.message = Some(text),
                b'R' => fields.routine = Some(text),
                _ => {}
            }
            body = rest;
        }
        fields
    }

    /// Whether the backend ends the session with this.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, Some(b"FATAL" | b"PANIC"))
    }

    /// Whether the SQLSTATE is `code`.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.code == Some(code.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let bytes = PgError::fatal("28P01", "no").hint("Ask.").to_bytes();
        assert_eq!(bytes, b"E\0\0\0\x24SFATAL\0VFATAL\0C28P01\0Mno\0HAsk.\0\0");
    }

    #[test]
    fn fields_survive_anything() {
        let bytes = PgError::error("25006", "read only").to_bytes();
        let fields = ErrorFields::parse(&bytes[5..]);
        assert!(fields.is("25006") && !fields.is_fatal());
        for cut in 0..bytes.len() {
            let _ = ErrorFields::parse(&bytes[cut..]);
            let _ = ErrorFields::parse(&bytes[..cut]);
        }
        assert!(ErrorFields::parse(b"\0").code.is_none());
    }
}
