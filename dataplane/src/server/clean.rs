//! Cancelling, and cleaning a connection whose session has left: clean or destroyed. Never repairs: whatever is
//! not as expected ends in a closed connection. Never commits: un-Synced work is left to the backend to roll back.

use super::{Ledger, ServerConn, ServerIdent};
use crate::stream::Stream;
use helios_pgwire::backend::{TxStatus, max_len};
use helios_pgwire::frame::Header;
use helios_pgwire::frontend;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest clean-up of one connection: cancel, drain, ROLLBACK, reset query.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest cancel request, from connect to the backend's close.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read at once while answers nobody waits for are thrown away.
const CHUNK: usize = 16 * 1024;

/// Asks the backend to cancel what this connection runs, and waits until the backend has closed the request's
/// connection: only then is it sure that no late cancel will hit a later statement.
///
/// # Errors
/// What the system says, or a timeout.
pub async fn cancel(target: &ServerIdent) -> io::Result<()> {
    let work = async {
        let mut io = Stream::from(TcpStream::connect(target.addr).await?);
        if let Some(sealing) = &target.sealing {
            sealing.again(&mut io).await.map_err(io::Error::other)?;
        }
        let mut request = Vec::new();
        frontend::cancel(&mut request, target.pid, &target.key);
        io.write_all(&request).await?;
        io.flush().await?;
        let mut byte = [0u8; 1];
        // The backend answers by closing; a reset counts as closed.
        let _ = io.read(&mut byte).await;
        Ok(())
    };
    timeout(CANCEL_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What the session left behind on its server connection.
pub struct Leftover {
    /// Replies still owed.
    pub ledger: Ledger,
    /// The body of a backend message that was not read to its end, in bytes.
    pub unread: usize,
    /// Bytes received and not looked at.
    pub buf: Vec<u8>,
}

/// Makes a connection fit for another session, or closes it. Returns it when it is clean.
pub async fn clean(
    mut conn: Box<ServerConn>,
    mut left: Leftover,
    reset_query: &str,
) -> Option<Box<ServerConn>> {
    match timeout(CLEAN_TIMEOUT, steps(&mut conn, &mut left, reset_query)).await {
        Ok(Ok(true)) => Some(conn),
        _ => {
            abandon(conn, &left.ledger).await;
            None
        }
    }
}

/// Closes a connection. What it still runs is cancelled before: the backend would go on, with all its locks, and notice only
/// when it has an answer that nobody takes.
pub async fn abandon(conn: Box<ServerConn>, ledger: &Ledger) {
    if !ledger.settled()
        && let Err(error) = cancel(&conn.ident).await
    {
        tracing::debug!(%error, "could not cancel what a closed connection ran");
    }
    conn.close();
}

async fn steps(conn: &mut ServerConn, left: &mut Leftover, reset_query: &str) -> io::Result<bool> {
    if left.ledger.doubtful() || left.ledger.unsynced() || left.ledger.copy_in() || left.ledger.broken() {
        return Ok(false);
    }
    if !left.ledger.settled() {
        cancel(&conn.ident).await?;
        drain(conn, left).await?;
    }
    if left.ledger.status() != TxStatus::Idle {
        run(conn, left, "ROLLBACK").await?;
    }
    if left.ledger.settled() && left.ledger.status() == TxStatus::Idle && conn.needs_reset {
        if !run(conn, left, reset_query).await? {
            return Ok(false);
        }
        conn.needs_reset = false;
        // The reset query may have dropped them, or not.
        conn.prepared.doubt_all();
    }
    Ok(left.ledger.settled()
        && !left.ledger.doubtful()
        && left.ledger.status() == TxStatus::Idle
        && left.buf.is_empty()
        && left.unread == 0)
}

/// Runs a statement of ours; whether it succeeded.
async fn run(conn: &mut ServerConn, left: &mut Leftover, sql: &str) -> io::Result<bool> {
    let mut message = Vec::new();
    frontend::query(&mut message, sql);
    conn.io.write_all(&message).await?;
    conn.io.flush().await?;
    left.ledger.sent(b'Q');
    drain(conn, left).await
}

/// Reads until nothing is owed; whether no error came.
async fn drain(conn: &mut ServerConn, left: &mut Leftover) -> io::Result<bool> {
    let mut fine = true;
    let mut chunk = vec![0u8; CHUNK];
    loop {
        fine &= scan(left)?;
        if left.ledger.settled() {
            return Ok(fine);
        }
        if left.ledger.broken() || left.ledger.copy_in() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let n = conn.io.read(&mut chunk).await?;
        let got = chunk.get(..n).filter(|got| !got.is_empty());
        left.buf.extend_from_slice(got.ok_or(io::ErrorKind::UnexpectedEof)?);
    }
}

/// Takes whole or partial messages off the buffer; whether no error was among them.
fn scan(left: &mut Leftover) -> io::Result<bool> {
    let mut fine = true;
    loop {
        let skip = left.unread.min(left.buf.len());
        left.buf.drain(..skip);
        left.unread = left.unread.saturating_sub(skip);
        let header = Header::parse(&left.buf, max_len).map_err(|_| io::ErrorKind::InvalidData)?;
        let Some(Header { tag, size }) = header else { return Ok(fine) };
        if tag == b'Z' && left.buf.len() < size {
            return Ok(fine);
        }
        let status = left.buf.get(5).copied().and_then(TxStatus::from_byte).filter(|_| tag == b'Z');
        fine &= tag != b'E';
        left.ledger.received(tag, status);
        left.unread = size;
    }
}
