//! Message headers and the bodies that are read, on both sides: any split of the bytes gives the same messages, no
//! length is believed before it is checked, and what is read lies inside its message.

use helios_pgwire::ErrorFields;
use helios_pgwire::backend::{self, AuthRequest, TxStatus};
use helios_pgwire::frame::{FrameError, HEADER, Header, MAX_LARGE, take_cstr};
use helios_pgwire::frontend;

type Max = fn(u8) -> Result<usize, FrameError>;

/// The headers of a stream, and how it ends, as read from the whole of it.
fn whole(bytes: &[u8], max: Max) -> (Vec<Header>, Option<FrameError>) {
    let (mut at, mut headers) = (0_usize, Vec::new());
    loop {
        match Header::parse(bytes.get(at..).unwrap_or_default(), max) {
            Ok(Some(header)) => {
                assert!((HEADER..=MAX_LARGE + 1).contains(&header.size), "{header:?}");
                headers.push(header);
                at = at.saturating_add(header.size);
            }
            Ok(None) => return (headers, None),
            Err(error) => return (headers, Some(error)),
        }
    }
}

/// The same, from a stream that comes in pieces of this size.
fn pieces(bytes: &[u8], size: usize, max: Max) -> (Vec<Header>, Option<FrameError>) {
    let (mut buf, mut skip, mut headers) = (Vec::new(), 0_usize, Vec::new());
    for piece in bytes.chunks(size) {
        buf.extend_from_slice(piece);
        loop {
            let gone = skip.min(buf.len());
            buf.drain(..gone);
            skip -= gone;
            if skip > 0 {
                break;
            }
            match Header::parse(&buf, max) {
                Ok(Some(header)) => {
                    headers.push(header);
                    skip = header.size;
                }
                Ok(None) => break,
                Err(error) => return (headers, Some(error)),
            }
        }
    }
    (headers, None)
}

fn bodies(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(Header { size, .. })) = Header::parse(rest, backend::max_len) {
        let Some((message, tail)) = rest.split_at_checked(size) else { break };
        let body = &message[HEADER..];
        let fields = ErrorFields::parse(body);
        let _ = (fields.is_fatal(), fields.is("25006"));
        for field in [fields.code, fields.message, fields.severity].into_iter().flatten() {
            assert!(body.windows(field.len().max(1)).any(|part| part == field) || field.is_empty());
        }
        if let Some((name, value)) = backend::parameter_status_fields(body) {
            assert!(!name.contains(&0) && !value.contains(&0));
        }
        if let Some((_, key)) = backend::key_data_fields(body) {
            assert!(key.len() <= 256, "a cancel key of {} bytes", key.len());
        }
        if let Some(AuthRequest::Sasl(list)) = AuthRequest::parse(body) {
            let _ = AuthRequest::offers(list, "SCRAM-SHA-256");
        }
        let _ = body.first().copied().and_then(TxStatus::from_byte).map(|s| assert_eq!(s.byte(), body[0]));
        if let Some((sql, name)) = frontend::query_text(message).zip(frontend::parse_text(message)) {
            assert!(!sql.contains(&0) && !name.0.contains(&0));
        }
        if let Some((text, rest)) = take_cstr(body) {
            assert_eq!(text.len() + 1 + rest.len(), body.len());
        }
        rest = tail;
    }
}

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let limits: [Max; 2] = [frontend::max_len, backend::max_len];
    for max in limits {
        assert_eq!(whole(bytes, max), pieces(bytes, usize::from(first).max(1), max));
    }
    bodies(bytes);
}
