//! A session's place in a pool's queue. Never allocated per wait: a session reuses its own.

use super::node::{NodePool, Slot};
use crate::server::ServerConn;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// What a waiting session gets.
pub enum Grant {
    /// A connection of its own identity.
    Conn(Box<ServerConn>),
    /// The right to open one.
    Dial(Slot),
}

/// How a wait ended.
pub enum Outcome {
    /// Served.
    Granted(Grant),
    /// The acquire timeout passed.
    Expired,
    /// The node left the configuration: choose again.
    Retired,
}

enum State {
    Idle,
    Queued(Option<Waker>),
    Done(Outcome),
}

/// A session's place in a queue.
pub struct Waiter {
    /// Worker on which the session lives.
    pub worker: usize,
    state: Mutex<State>,
}

impl Waiter {
    /// A place for a session of this worker.
    #[must_use]
    pub fn new(worker: usize) -> Arc<Self> {
        Arc::new(Self { worker, state: Mutex::new(State::Idle) })
    }

    pub(super) fn enqueue(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Queued(None);
    }

    pub(super) fn finish(&self, outcome: Outcome) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *state, State::Done(outcome));
        drop(state);
        if let State::Queued(Some(waker)) = before {
            waker.wake();
        }
    }

    /// How the wait ended, once it has.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Idle) {
            State::Done(outcome) => Poll::Ready(outcome),
            State::Queued(waker) => {
                let waker = waker.filter(|w| w.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone());
                *state = State::Queued(Some(waker));
                Poll::Pending
            }
            State::Idle => Poll::Ready(Outcome::Retired),
        }
    }

    /// What was granted in the moment in which the session gave up.
    pub(super) fn abandon(&self) -> Option<Outcome> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Idle) {
            State::Done(outcome) => Some(outcome),
            State::Idle | State::Queued(_) => None,
        }
    }
}

/// Waits in a pool's queue; gives the place up when dropped.
pub async fn wait(pool: &Arc<NodePool>, waiter: &Arc<Waiter>) -> Outcome {
    let guard = Leave { pool, waiter };
    let outcome = poll_fn(|cx| waiter.poll(cx)).await;
    std::mem::forget(guard);
    outcome
}

struct Leave<'a> {
    pool: &'a Arc<NodePool>,
    waiter: &'a Arc<Waiter>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.pool.abandon(self.waiter);
    }
}
