//! One database as all its clients share it: what they have done, counted by worker, and what an operator orders for it on
//! this data plane. Owner: [`super::Identities`]. Never knows a session.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is counted and ordered for one database.
#[derive(Default)]
pub struct DatabaseState {
    paused: AtomicBool,
    /// Grows with each order to reconnect.
    generation: AtomicU64,
    /// Places that its connections have in pools, whoever they are for.
    places: AtomicU32,
    tallies: Mutex<Vec<Arc<Tally>>>,
}

/// Counts of one worker for one database. Only that worker's thread adds, so that adding is a plain load and store.
#[derive(Default)]
pub struct Tally {
    transactions: AtomicU64,
    statements: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    transaction_micros: AtomicU64,
    statement_micros: AtomicU64,
    wait_micros: AtomicU64,
}

/// Counts of a database, all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Transactions that have ended; a statement outside of a block is one.
    pub transactions: u64,
    /// Statements that were answered, a batch of the extended protocol as one.
    pub statements: u64,
    /// Bytes that came from clients.
    pub received: u64,
    /// Bytes that came from servers, for clients.
    pub sent: u64,
    /// Time of the transactions.
    pub transaction_micros: u64,
    /// Time of the statements.
    pub statement_micros: u64,
    /// Time that statements have waited for a server connection.
    pub wait_micros: u64,
}

impl DatabaseState {
    /// Nobody gets a server connection to it now.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Sets or lifts the pause; whether that was a change.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::Relaxed) != paused
    }

    /// Connections opened under another generation close as they come back.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Orders that every connection of now closes as it comes back.
    pub fn renew(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Places that its connections have in pools: open, or being opened.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.places.load(Ordering::Relaxed)
    }

    /// One more connection has a place in a pool.
    pub(super) fn take_place(&self) {
        self.places.fetch_add(1, Ordering::Relaxed);
    }

    /// One place fewer.
    pub(super) fn give_place(&self) {
        self.places.fetch_sub(1, Ordering::Relaxed);
    }

    /// Where a worker counts.
    #[must_use]
    pub fn tally(&self, worker: usize) -> Arc<Tally> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        while tallies.len() <= worker {
            tallies.push(Arc::default());
        }
        tallies.get(worker).map(Arc::clone).unwrap_or_default()
    }

    /// All workers' counts together.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.iter().fold(Totals::default(), |sum, tally| sum.plus(&tally.totals()))
    }
}

fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn add_time(cell: &AtomicU64, time: Duration) {
    add(cell, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
}

fn add_bytes(cell: &AtomicU64, bytes: usize) {
    add(cell, u64::try_from(bytes).unwrap_or(u64::MAX));
}

impl Tally {
    /// Bytes came from a client.
    pub fn received(&self, bytes: usize) {
        add_bytes(&self.received, bytes);
    }

    /// Bytes came from a server.
    pub fn sent(&self, bytes: usize) {
        add_bytes(&self.sent, bytes);
    }

    /// So many answers were complete, and of the last one's statement it took this long.
    pub fn answered(&self, statements: u32, took: Duration) {
        add(&self.statements, u64::from(statements));
        add_time(&self.statement_micros, took);
    }

    /// So many transactions have ended, together after this long.
    pub fn ended(&self, transactions: u32, took: Duration) {
        add(&self.transactions, u64::from(transactions));
        add_time(&self.transaction_micros, took);
    }

    /// A statement has waited for a server connection.
    pub fn waited(&self, time: Duration) {
        add_time(&self.wait_micros, time);
    }

    fn totals(&self) -> Totals {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Totals {
            transactions: of(&self.transactions),
            statements: of(&self.statements),
            received: of(&self.received),
            sent: of(&self.sent),
            transaction_micros: of(&self.transaction_micros),
            statement_micros: of(&self.statement_micros),
            wait_micros: of(&self.wait_micros),
        }
    }
}

impl Totals {
    fn each(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            transactions: with(self.transactions, other.transactions),
            statements: with(self.statements, other.statements),
            received: with(self.received, other.received),
            sent: with(self.sent, other.sent),
            transaction_micros: with(self.transaction_micros, other.transaction_micros),
            statement_micros: with(self.statement_micros, other.statement_micros),
            wait_micros: with(self.wait_micros, other.wait_micros),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.each(other, u64::wrapping_add)
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.each(before, u64::saturating_sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_apart_and_are_summed() {
        let state = DatabaseState::default();
        let (first, third) = (state.tally(0), state.tally(2));
        assert!(Arc::ptr_eq(&third, &state.tally(2)) && !Arc::ptr_eq(&first, &third));
        first.received(10);
        first.answered(2, Duration::from_micros(7));
        third.received(5);
        third.sent(3);
        third.ended(1, Duration::from_millis(1));
        third.waited(Duration::from_micros(4));
        let before = Totals { received: 1, ..Totals::default() };
        let expected = Totals {
            transactions: 1,
            statements: 2,
            received: 14,
            sent: 3,
            transaction_micros: 1_000,
            statement_micros: 7,
            wait_micros: 4,
        };
        assert_eq!(state.totals().since(&before), expected);
    }

    #[test]
    fn a_pause_is_told_from_one_that_held_already() {
        let state = DatabaseState::default();
        let made: Vec<bool> = [true, true, false, false].map(|to| state.set_paused(to)).into();
        assert_eq!(made, [true, false, true, false]);
    }
}
