//! The settings that a session has made, on another server connection: what the last session left is reset, and the same
//! statements run again. Never chooses what to run.

use super::ServerConn;
use super::ask::settle;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Statements that make a session's settings, by the setting's name in lower case.
pub type Texts = Vec<(Vec<u8>, Vec<u8>)>;

/// Longest time for all of them.
const LONGEST: Duration = Duration::from_secs(5);

/// Whether these are the same settings.
#[must_use]
pub fn same(a: Option<&Arc<Texts>>, b: Option<&Arc<Texts>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    }
}

/// Gives a clean connection these settings in place of those that it has. After an error it is in an unknown state: close
/// it.
///
/// # Errors
/// What the system says, an error of the server in its words, or a timeout.
pub async fn dress(conn: &mut ServerConn, wanted: Option<&Arc<Texts>>) -> io::Result<()> {
    if same(conn.settings.as_ref(), wanted) {
        return Ok(());
    }
    let reset = conn.settings.take().map(|_| &b"RESET ALL"[..]);
    let texts = wanted.map(|texts| texts.as_slice()).unwrap_or_default();
    let statements = reset.into_iter().chain(texts.iter().map(|(_, text)| text.as_slice()));
    let done = timeout(LONGEST, settle(&mut conn.io, statements)).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    conn.settings = wanted.map(Arc::clone);
    Ok(())
}
