//! One side of a session: received bytes that are not consumed yet, and bytes that the socket has not taken yet.
//! Neither holds memory while it is empty.

use crate::stream::Stream;
use std::io;
use std::task::{Context, Poll, ready};

/// A buffer that grew beyond this is freed when it is empty, in bytes.
pub const KEEP: usize = 1024;

/// Bytes of one side.
#[derive(Debug, Default)]
pub struct Leg {
    /// Received, not consumed.
    pub inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Bytes of `outbox` that the socket has taken.
    taken: usize,
    /// Bytes that TLS has taken, and the socket has not.
    behind: bool,
}

impl Leg {
    /// A side of which bytes were received already.
    #[must_use]
    pub fn with_inbox(inbox: Vec<u8>) -> Self {
        Self { inbox, ..Self::default() }
    }

    /// Queues bytes for the socket; they go out with the next poll.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Whether bytes wait for the socket.
    #[must_use]
    pub fn blocked(&self) -> bool {
        self.behind || self.taken < self.outbox.len()
    }

    /// Sends bytes behind what waits already; what the socket does not take now waits.
    ///
    /// # Errors
    /// What the system says.
    pub fn send(&mut self, io: &mut Stream, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while !self.blocked() && !bytes.is_empty() {
            match io.poll_write(cx, bytes) {
                Poll::Ready(n) => bytes = bytes.get(n?..).unwrap_or_default(),
                Poll::Pending => break,
            }
            self.behind = io.is_behind();
        }
        self.outbox.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what waits: `Ready` once nothing does.
    ///
    /// # Errors
    /// What the system says.
    pub fn flush(&mut self, io: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(waiting) = self.outbox.get(self.taken..).filter(|waiting| !waiting.is_empty()) {
            let n = ready!(io.poll_write(cx, waiting))?;
            self.taken = self.taken.saturating_add(n);
        }
        ready!(io.poll_flush(cx))?;
        self.behind = false;
        self.taken = 0;
        self.outbox.clear();
        shrink(&mut self.outbox);
        Poll::Ready(Ok(()))
    }

    /// Drops bytes from the front of the inbox.
    pub fn consume(&mut self, n: usize) {
        self.inbox.drain(..n.min(self.inbox.len()));
        if self.inbox.is_empty() {
            shrink(&mut self.inbox);
        }
    }

    /// Forgets both directions; for the next server connection.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn shrink(buf: &mut Vec<u8>) {
    if buf.capacity() > KEEP {
        *buf = Vec::new();
    }
}
