//! `SHOW STATS` and what belongs to it: counts by database and their averages. Reads counts, resets none.

use super::averages::{ByDatabase, Rates, sum};
use super::table::{Cell, Column, Kind, Table};
use super::{DATABASE, Desk};
use crate::pool::Identities;
use crate::pool::database::Totals;
use std::sync::atomic::Ordering;
use std::time::Instant;

use Kind::{Numeric, Text};

/// Columns of `SHOW STATS`. The last is that of PgBouncer before 1.8, which the exporter in Debian asks for.
const STATS: &[Column] = &[
    ("database", Text),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
    ("total_requests", Numeric),
];

/// Columns of `SHOW STATS_TOTALS` and `SHOW STATS_AVERAGES`.
const EITHER: &[Column] = &[
    ("database", Text),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
];

/// What `SHOW TOTALS` calls the numbers of a database.
const NAMES: [&str; 7] =
    ["xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time", "wait_time"];

/// Counts of each database that is there. The console is one too, whose statements are the commands.
pub fn totals(desk: &Desk, identities: &Identities) -> ByDatabase {
    let kept = identities.kept_databases().into_iter();
    let mut totals: ByDatabase = kept.map(|(name, state)| (name, state.totals())).collect();
    let commands = desk.commands.load(Ordering::Relaxed);
    let console = Totals { transactions: commands, statements: commands, ..Totals::default() };
    totals.insert(DATABASE.into(), console);
    totals
}

fn total_cells(totals: &Totals) -> [u64; 7] {
    let Totals {
        transactions,
        statements,
        received,
        sent,
        transaction_micros,
        statement_micros,
        wait_micros,
    } = *totals;
    [transactions, statements, received, sent, transaction_micros, statement_micros, wait_micros]
}

fn rate_cells(rates: &Rates) -> [u64; 7] {
    let Rates { transactions, statements, received, sent, transaction_micros, statement_micros, wait_micros } =
        *rates;
    [transactions, statements, received, sent, transaction_micros, statement_micros, wait_micros]
}

fn row(name: &[u8], cells: impl Iterator<Item = u64>) -> Vec<Cell> {
    std::iter::once(Cell::from(name)).chain(cells.map(Cell::Number)).collect()
}

/// One look at the counts.
pub struct Stats {
    rows: Vec<(Vec<u8>, Totals, Rates)>,
    all: (Totals, Rates),
}

impl Stats {
    /// Takes the counts of now.
    pub fn take(desk: &Desk, identities: &Identities) -> Self {
        let now = Instant::now();
        let by_database = totals(desk, identities);
        let all = sum(by_database.values());
        let rows = by_database.into_iter().map(|(name, totals)| {
            let rates = desk.averages.of(&name, &totals, now);
            (name, totals, rates)
        });
        Self { rows: rows.collect(), all: (all, desk.averages.of_all(&all, now)) }
    }

    /// `SHOW STATS`
    pub fn all(&self) -> Table {
        let mut table = Table::new(STATS);
        for (name, totals, rates) in &self.rows {
            let cells = total_cells(totals).into_iter().chain(rate_cells(rates));
            table.rows.push(row(name, cells.chain([totals.statements])));
        }
        table
    }

    /// `SHOW STATS_TOTALS`
    pub fn totals(&self) -> Table {
        let mut table = Table::new(EITHER);
        table.rows.extend(self.rows.iter().map(|(name, of, _)| row(name, total_cells(of).into_iter())));
        table
    }

    /// `SHOW STATS_AVERAGES`
    pub fn averages(&self) -> Table {
        let mut table = Table::new(EITHER);
        table.rows.extend(self.rows.iter().map(|(name, _, of)| row(name, rate_cells(of).into_iter())));
        table
    }

    /// `SHOW TOTALS`
    pub fn sums(&self) -> Table {
        let mut table = Table::new(&[("name", Text), ("value", Numeric)]);
        let (totals, rates) = &self.all;
        for (kind, cells) in [("total", total_cells(totals)), ("avg", rate_cells(rates))] {
            let named = NAMES.iter().zip(cells);
            table.rows.extend(named.map(|(name, n)| vec![format!("{kind}_{name}").into(), n.into()]));
        }
        table
    }
}
