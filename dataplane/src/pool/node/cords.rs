//! A second handle on the socket of each of a node's connections, so that all can be cut at once when another node has
//! become the primary: also those that sessions hold, also those whose server hangs. Never reads and never writes.

use socket2::{SockRef, Socket};
use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::{Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The handles of one node.
pub(super) struct Cords {
    /// How often all were cut.
    cuts: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    sockets: HashMap<u64, Socket>,
}

impl Default for Cords {
    fn default() -> Self {
        Self { cuts: watch::channel(0).0, inner: Mutex::default() }
    }
}

impl Cords {
    /// How often all were cut so far.
    pub fn cuts(&self) -> u64 {
        *self.cuts.borrow()
    }

    /// Waits until they have been cut more often than so.
    pub async fn wait_for_cut(&self, cuts: u64) {
        // Cannot fail: the sender is here.
        let _ = self.cuts.subscribe().wait_for(|now| *now != cuts).await;
    }

    /// Holds a connection whose opening began after so many cuts. One that is late is cut at once. `None`: there is
    /// nothing to let go later.
    pub fn hold(&self, io: &TcpStream, cuts: u64) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = SockRef::from(io);
        if *self.cuts.borrow() != cuts {
            // An error says that it is gone already.
            let _ = socket.shutdown(Shutdown::Both);
            return None;
        }
        // Without a file descriptor to spare the connection cannot be cut while it is in use.
        let socket = socket.try_clone().ok()?;
        inner.next = inner.next.wrapping_add(1);
        let id = inner.next;
        inner.sockets.insert(id, socket);
        Some(id)
    }

    /// Lets a connection go: it closes when its owner and who gets this close it.
    pub fn release(&self, id: u64) -> Option<Socket> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).sockets.remove(&id)
    }

    /// Cuts so many connections, whichever they are.
    pub fn cut_some(&self, count: u32) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in inner.sockets.values().take(usize::try_from(count).unwrap_or(usize::MAX)) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Cuts every connection, and those that are being opened.
    pub fn cut(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.cuts.send_modify(|cuts| *cuts = cuts.wrapping_add(1));
        for socket in inner.sockets.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
