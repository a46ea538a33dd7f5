//! Averages of `SHOW STATS`: what was counted over the last whole period, or since the start while there is none. Pure but
//! for its lock.

use crate::pool::database::Totals;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Length of a period, as PgBouncer's `stats_period` by default.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Counts by database.
pub type ByDatabase = BTreeMap<Vec<u8>, Totals>;

/// The two samples between which averages are taken.
pub struct Averages {
    samples: Mutex<(Sample, Option<Sample>)>,
}

struct Sample {
    at: Instant,
    totals: ByDatabase,
}

/// What a database did in the mean, each as `SHOW STATS` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Transactions a second.
    pub transactions: u64,
    /// Statements a second.
    pub statements: u64,
    /// Bytes a second from clients.
    pub received: u64,
    /// Bytes a second from servers.
    pub sent: u64,
    /// Microseconds of a transaction.
    pub transaction_micros: u64,
    /// Microseconds of a statement.
    pub statement_micros: u64,
    /// Microseconds a second that clients have waited for servers.
    pub wait_micros: u64,
}

impl Averages {
    /// Nothing is counted yet.
    pub fn new(now: Instant) -> Self {
        Self { samples: Mutex::new((Sample { at: now, totals: ByDatabase::new() }, None)) }
    }

    /// A period is over.
    pub fn take(&self, now: Instant, totals: ByDatabase) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = samples.1.replace(Sample { at: now, totals }) {
            samples.0 = newer;
        }
    }

    /// A database's averages; `totals` are its counts of now.
    pub fn of(&self, database: &[u8], totals: &Totals, now: Instant) -> Rates {
        self.between(totals, now, |sample| sample.totals.get(database).copied().unwrap_or_default())
    }

    /// Those of all databases; `totals` are all counts of now.
    pub fn of_all(&self, totals: &Totals, now: Instant) -> Rates {
        self.between(totals, now, |sample| sum(sample.totals.values()))
    }

    fn between(&self, totals: &Totals, now: Instant, at: impl Fn(&Sample) -> Totals) -> Rates {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (older, newer) = (&samples.0, samples.1.as_ref());
        let (until, totals) = newer.map_or((now, *totals), |newer| (newer.at, at(newer)));
        rates(&totals.since(&at(older)), until.saturating_duration_since(older.at))
    }
}

/// Counts together.
pub fn sum<'a>(totals: impl Iterator<Item = &'a Totals>) -> Totals {
    totals.fold(Totals::default(), |sum, totals| sum.plus(totals))
}

fn rates(counted: &Totals, over: Duration) -> Rates {
    // The microseconds of a period fit easily.
    let micros = u64::try_from(over.as_micros()).unwrap_or(u64::MAX);
    let a_second = |count: u64| {
        let scaled = u128::from(count).saturating_mul(1_000_000).checked_div(u128::from(micros));
        u64::try_from(scaled.unwrap_or(0)).unwrap_or(u64::MAX)
    };
    let each = |sum: u64, of: u64| sum.checked_div(of).unwrap_or(0);
    Rates {
        transactions: a_second(counted.transactions),
        statements: a_second(counted.statements),
        received: a_second(counted.received),
        sent: a_second(counted.sent),
        transaction_micros: each(counted.transaction_micros, counted.transactions),
        statement_micros: each(counted.statement_micros, counted.statements),
        wait_micros: a_second(counted.wait_micros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(statements: u64) -> Totals {
        Totals { statements, statement_micros: statements * 10, ..Totals::default() }
    }

    #[test]
    fn averages_are_of_the_last_whole_period_and_of_all_time_before_there_is_one() {
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let averages = Averages::new(start);
        let sample = |n| ByDatabase::from([(b"app".to_vec(), counted(n))]);
        let of = |n, at| averages.of(b"app", &counted(n), at).statements;
        assert_eq!((of(40, start), of(40, after(10))), (0, 4));
        averages.take(after(60), sample(600));
        assert_eq!(of(5_000, after(61)), 10, "the first period");
        averages.take(after(120), sample(6_600));
        let rates = averages.of(b"app", &counted(9_999), after(130));
        assert_eq!((rates.statements, rates.statement_micros, rates.transaction_micros), (100, 10, 0));
        let all = Totals { transactions: 1, ..counted(9_999) };
        assert_eq!(averages.of_all(&all, after(130)).statements, 100);
        assert_eq!(averages.of(b"other", &counted(7), after(130)), Rates::default());
    }
}
