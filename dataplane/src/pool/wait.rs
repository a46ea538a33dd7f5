//! A session's place in a pool's queue. Never allocated per wait: a session reuses its own.

use super::node::{NodePool, Slot};
use crate::server::ServerConn;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// In the queue, at this place.
    Queued(Ticket, Option<Waker>),
    Done(Outcome),
}

/// Tells a session's places in queues apart: what was granted for one that it has given up is not for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// A session's place in a queue.
pub struct Waiter {
    /// Worker on which the session lives.
    pub worker: usize,
    state: Mutex<State>,
    tickets: AtomicU64,
}

impl Waiter {
    /// A place for a session of this worker.
    #[must_use]
    pub fn new(worker: usize) -> Arc<Self> {
        Arc::new(Self { worker, state: Mutex::new(State::Idle), tickets: AtomicU64::new(0) })
    }

    pub(super) fn enqueue(&self) -> Ticket {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Queued(ticket, None);
        ticket
    }

    /// Ends the wait. The outcome comes back if the session has given that place up in the meantime.
    #[must_use]
    pub(super) fn finish(&self, ticket: Ticket, outcome: Outcome) -> Option<Outcome> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Queued(held, waker) = &mut *state else { return Some(outcome) };
        if *held != ticket {
            return Some(outcome);
        }
        let waker = waker.take();
        *state = State::Done(outcome);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// How the wait ended, once it has.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Idle) {
            State::Done(outcome) => Poll::Ready(outcome),
            State::Queued(ticket, waker) => {
                let waker = waker.filter(|w| w.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone());
                *state = State::Queued(ticket, Some(waker));
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
            State::Idle | State::Queued(..) => None,
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
