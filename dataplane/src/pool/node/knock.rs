//! What a pool does when its server refuses connections, and lets them in again: `doors` decides, the queue is served
//! accordingly. Never dials.

use super::doors::Refused;
use super::inner::Inner;
use super::{Identity, NodePool, Outcome, Slot};
use std::sync::Arc;
use std::time::Instant;

impl NodePool {
    /// The server has refused a connection for now. Who waits for one that starts or stops chooses anew.
    fn refused(&self, identity: &Identity, refused: Refused) {
        self.suspect();
        let mut inner = self.lock();
        inner.doors.refused(identity, refused, Instant::now());
        let queue =
            if refused == Refused::Away { std::mem::take(&mut inner.queue) } else { Default::default() };
        drop(inner);
        queue.into_iter().for_each(|queued| drop(queued.finish(Outcome::Retired)));
    }

    /// The server has let somebody in.
    fn admitted(self: &Arc<Self>, identity: &Identity) {
        self.trust();
        let mut inner = self.lock();
        if inner.doors.all_open() {
            return;
        }
        inner.doors.admitted(identity, Instant::now());
        drop(inner);
        self.serve_refused();
    }

    /// Lets who waits try again where the server has refused connections, once it is time.
    pub(in crate::pool) fn knock(self: &Arc<Self>, now: Instant) {
        let mut inner = self.lock();
        if inner.doors.all_open() || self.paused() {
            return;
        }
        inner.doors.forget(now);
        drop(inner);
        self.serve_refused();
    }

    /// Serves those in the queue whose turn it is.
    fn serve_refused(self: &Arc<Self>) {
        let mut at = 0;
        while let Some((queued, grant, evicted)) = self.next_in_turn(&mut at) {
            if let Some(conn) = evicted {
                conn.close();
            }
            self.hand(&queued, grant);
        }
    }

    /// The next in the queue, from this place on, whose turn it is.
    fn next_in_turn(self: &Arc<Self>, at: &mut usize) -> Option<Served> {
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            let in_turn = |inner: &Inner, i: usize| {
                inner
                    .queue
                    .get(i)
                    .is_some_and(|queued| !queued.is_paused() && inner.doors.admits(&queued.identity, now))
            };
            *at = (*at..inner.queue.len()).find(|i| in_turn(&inner, *i))?;
            let queued = inner.queue.remove(*at)?;
            if let Some((grant, evicted)) = self.grant(&mut inner, &queued) {
                self.note(&inner);
                return Some((queued, grant, evicted));
            }
            inner.queue.insert(*at, queued);
            *at = at.saturating_add(1);
        }
    }
}

type Served = (super::inner::Queued, super::Grant, Option<Box<crate::server::ServerConn>>);

impl Slot {
    /// The server has refused the connection for now.
    pub fn refuse(&self, refused: Refused) {
        self.pool.refused(&self.identity, refused);
    }

    /// The server has let this one in.
    pub fn admit(&self) {
        self.pool.admitted(&self.identity);
    }
}
