//! The end of a connection to a node that has a budget: its place is free only once the server has ended as well, so that
//! the server never counts more than we do. One short task per connection; without a runtime the place is free at once.

use super::NodePool;
use crate::pool::identity::Identity;
use socket2::Socket;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Longest wait for a server's end.
const LONGEST: Duration = Duration::from_secs(10);

/// A place whose connection ends; dropped: it is free.
struct Leaving {
    pool: Arc<NodePool>,
    identity: Arc<Identity>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.pool.left(&self.identity);
    }
}

/// Closes our side of a connection, and frees its place when the server has closed its own.
pub(super) fn see_off(pool: &Arc<NodePool>, identity: &Arc<Identity>, socket: Socket) {
    pool.leaves();
    let place = Leaving { pool: Arc::clone(pool), identity: Arc::clone(identity) };
    // An error says that it is gone already.
    let _ = socket.shutdown(Shutdown::Write);
    let Ok(runtime) = Handle::try_current() else { return };
    let ending = async move {
        // The place goes last, whatever happens.
        let _place = place;
        let Ok(mut io) = TcpStream::from_std(socket.into()) else { return };
        let mut unread = [0; 1024];
        let end = async { while io.read(&mut unread).await.is_ok_and(|got| got > 0) {} };
        let _ = timeout(LONGEST, end).await;
    };
    // In no tracker: it ends by itself, and a runtime that stops takes it along.
    drop(runtime.spawn(ending));
}
