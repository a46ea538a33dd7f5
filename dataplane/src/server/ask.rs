//! One query of ours on a server connection that nobody uses: sent, its rows read, everything owed awaited. For what
//! the proxy itself wants to know. Bounded in bytes; never runs what a client wrote.

use crate::stream::Stream;
use helios_pgwire::ErrorFields;
use helios_pgwire::backend::{TxStatus, max_len};
use helios_pgwire::frame::{Header, put, put_cstr};
use helios_pgwire::frontend;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// Longest answer, in bytes.
const LONGEST: usize = 8 * 1024 * 1024;

/// A row's columns; `None` for NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// The rows of a simple query. After an error the connection is in an unknown state: close it.
///
/// # Errors
/// What the system says; an error of the server in its words; `InvalidData` for a message out of place or an answer that is
/// too long.
pub async fn ask(io: &mut Stream, sql: &str) -> io::Result<Vec<Row>> {
    let mut message = Vec::new();
    frontend::query(&mut message, sql);
    exchange(io, &message, 1).await
}

/// The rows of a statement with `$1`, which is text. The same errors as [`ask`].
///
/// # Errors
/// As [`ask`].
pub async fn ask_with(io: &mut Stream, sql: &str, parameter: &[u8]) -> io::Result<Vec<Row>> {
    let mut messages = Vec::new();
    frontend::statement(&mut messages, sql, parameter);
    exchange(io, &messages, 1).await
}

/// Runs statements of which no rows are wanted, all sent at once.
///
/// # Errors
/// As [`ask`].
pub async fn settle<'a>(io: &mut Stream, statements: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let (mut messages, mut owed) = (Vec::new(), 0usize);
    for sql in statements {
        put(&mut messages, b'Q', |body| put_cstr(body, sql));
        owed = owed.saturating_add(1);
    }
    exchange(io, &messages, owed).await.map(drop)
}

/// Sends messages, and reads until as many ReadyForQuery are there as are owed, and nothing behind the last.
async fn exchange(io: &mut Stream, messages: &[u8], mut owed: usize) -> io::Result<Vec<Row>> {
    io.write_all(messages).await?;
    io.flush().await?;
    let (mut buf, mut rows, mut seen) = (Vec::new(), Vec::new(), 0usize);
    let mut chunk = vec![0u8; CHUNK];
    while owed > 0 {
        if take(&mut buf, &mut rows)? {
            owed = owed.saturating_sub(1);
            continue;
        }
        let n = io.read(&mut chunk).await?;
        let got = chunk.get(..n).filter(|got| !got.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
        seen = seen.saturating_add(n);
        if seen > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buf.extend_from_slice(got);
    }
    if buf.is_empty() { Ok(rows) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Takes whole messages off the front; whether ReadyForQuery was among them.
fn take(buf: &mut Vec<u8>, rows: &mut Vec<Row>) -> io::Result<bool> {
    let mut at = 0usize;
    let ready = loop {
        let rest = buf.get(at..).unwrap_or_default();
        let header = Header::parse(rest, max_len).map_err(|_| io::ErrorKind::InvalidData)?;
        let Some(Header { tag, size }) = header else { break false };
        let Some(message) = rest.get(..size) else { break false };
        at = at.saturating_add(size);
        match tag {
            b'D' => rows.push(row(message).ok_or(io::ErrorKind::InvalidData)?),
            b'Z' if message.get(5).copied().and_then(TxStatus::from_byte) == Some(TxStatus::Idle) => {
                break true;
            }
            b'T' | b'C' | b'N' | b'S' | b'1' | b'2' | b'n' => {}
            b'E' => return Err(refused(message)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    };
    buf.drain(..at);
    Ok(ready)
}

/// An error of the server.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// SQLSTATE.
    pub code: String,
    /// Primary message.
    pub message: String,
}

/// What an ErrorResponse says, header included.
#[must_use]
pub fn refused(message: &[u8]) -> io::Error {
    let fields = ErrorFields::parse(message.get(5..).unwrap_or_default());
    let text = |field: Option<&[u8]>| {
        String::from_utf8_lossy(field.unwrap_or_default()).replace(char::is_control, " ")
    };
    io::Error::other(Refusal { code: text(fields.code), message: text(fields.message) })
}

/// What the server refused, if it was the server and it is not about to end.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<&Refusal> {
    let refusal = error.get_ref()?.downcast_ref::<Refusal>()?;
    (!refusal.code.starts_with("57P")).then_some(refusal)
}

/// The columns of a DataRow message; `None` if it is malformed.
fn row(message: &[u8]) -> Option<Row> {
    let (count, mut rest) = message.get(5..)?.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = i32::from_be_bytes(*len);
        rest = tail;
        columns.push(match usize::try_from(len) {
            Ok(len) => {
                let value = rest.get(..len)?.to_vec();
                rest = rest.get(len..)?;
                Some(value)
            }
            Err(_) if len == -1 => None,
            Err(_) => return None,
        });
    }
    rest.is_empty().then_some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_pgwire::frame::put;
    use tokio::net::{TcpListener, TcpStream};

    fn data_row(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, b'D', |b| b.extend_from_slice(body));
        out
    }

    /// Runs `ours` against a server that says `answer` and will say no more.
    async fn against<T>(answer: Vec<u8>, ours: impl AsyncFnOnce(Stream) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        // Ours may hang up before all of it is written.
        let theirs = tokio::spawn(async move {
            let _ = server.write_all(&answer).await;
            let _ = server.shutdown().await;
            server
        });
        let done = ours(io.into()).await;
        theirs.await.unwrap();
        done
    }

    #[tokio::test]
    async fn everything_owed_is_awaited_and_nothing_without_end() {
        let (one, report) = (b"C\0\0\0\x08SET\0Z\0\0\0\x05I".to_vec(), b"S\0\0\0\x08a\0b\0".to_vec());
        let two: [&[u8]; 2] = [b"set a = 1", b"set b = 2"];
        for (answer, ends) in [
            (one.repeat(2), Ok(())),
            (one.repeat(3), Err(io::ErrorKind::InvalidData)),
            (
                [&one[..], &report.repeat(LONGEST / report.len() + 1)].concat(),
                Err(io::ErrorKind::InvalidData),
            ),
        ] {
            let settled = against(answer, async |mut io| settle(&mut io, two.into_iter()).await).await;
            assert_eq!(settled.map_err(|error| error.kind()), ends);
        }
    }

    #[test]
    fn rows_are_read_and_malformed_ones_refused() {
        let good = data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        let ready = b"Z\0\0\0\x05I";
        let (mut buf, mut rows) = ([&good[..], ready].concat(), Vec::new());
        assert!(take(&mut buf, &mut rows).unwrap());
        assert_eq!((rows, buf.len()), (vec![vec![Some(b"a".to_vec()), None]], 0));
        for bad in [&b"\0\x01\0\0\0\x02a"[..], b"\0\x01\xff\xff\xff\xfe", b"\0", b"\0\x01\0\0\0\x01ab"] {
            assert!(take(&mut data_row(bad), &mut Vec::new()).is_err(), "{bad:?}");
        }
        assert!(take(&mut b"Z\0\0\0\x05T".to_vec(), &mut Vec::new()).is_err());
        assert!(take(&mut b"E\0\0\0\x05\0".to_vec(), &mut Vec::new()).is_err());
        assert!(!take(&mut ready[..4].to_vec(), &mut Vec::new()).unwrap());
    }
}
