//! A table as the console sends it: columns with PgBouncer's types, rows of text, and the messages that carry them. Pure.

use helios_pgwire::frame::{put, put_cstr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `text`
    Text,
    /// `int4`
    Int,
    /// `int8`
    Long,
    /// `numeric`
    Numeric,
}

/// Name and type.
pub type Column = (&'static str, Kind);

/// What stands in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// Text, in whatever encoding it came.
    Text(Vec<u8>),
    /// A number.
    Number(u64),
}

/// Columns and rows.
pub struct Table {
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows, each with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text.into_bytes())
    }
}

impl From<&[u8]> for Cell {
    fn from(text: &[u8]) -> Self {
        Self::Text(text.to_vec())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Cell {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Self::Number(flag.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(cell: Option<T>) -> Self {
        cell.map_or(Self::Null, Into::into)
    }
}

impl Kind {
    /// The type's OID in PostgreSQL's catalog, and its size.
    const fn oid(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int => (23, 4),
            Self::Long => (20, 8),
            Self::Numeric => (1700, -1),
        }
    }

    /// The most that a client can read into the type.
    const fn most(self) -> u64 {
        match self {
            Self::Int => 0x7fff_ffff,
            Self::Long => 0x7fff_ffff_ffff_ffff,
            Self::Text | Self::Numeric => u64::MAX,
        }
    }
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Appends RowDescription and DataRows.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        put(out, b'T', |b| {
            b.extend_from_slice(&count(self.columns.len()));
            for (name, kind) in &self.columns {
                let (oid, size) = kind.oid();
                put_cstr(b, name.as_bytes());
                b.extend_from_slice(&[0; 6]);
                b.extend_from_slice(&oid.to_be_bytes());
                b.extend_from_slice(&size.to_be_bytes());
                b.extend_from_slice(&(-1i32).to_be_bytes());
                b.extend_from_slice(&[0; 2]);
            }
        });
        for row in &self.rows {
            put(out, b'D', |b| {
                b.extend_from_slice(&count(row.len()));
                for (cell, (_, kind)) in row.iter().zip(&self.columns) {
                    match cell {
                        Cell::Null => b.extend_from_slice(&(-1i32).to_be_bytes()),
                        Cell::Text(text) => put_value(b, text),
                        Cell::Number(n) => put_value(b, (*n).min(kind.most()).to_string().as_bytes()),
                    }
                }
            });
        }
    }
}

fn put_value(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends a CommandComplete.
pub fn complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', |b| put_cstr(b, tag.as_bytes()));
}

/// A moment as PgBouncer shows it: `2026-11-26 16:36:49 UTC`.
pub fn moment(at: SystemTime) -> String {
    let secs = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (day, second) = (secs / 86_400, secs % 86_400);
    // Days to a date of the Gregorian calendar, in years that begin with March, so that the leap day is the last.
    let shifted = day.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era.saturating_sub(day_of_era / 1_460).saturating_add(day_of_era / 36_524))
        .saturating_sub(day_of_era / 146_096)
        / 365;
    let before =
        year_of_era.saturating_mul(365).saturating_add(year_of_era / 4).saturating_sub(year_of_era / 100);
    let day_of_year = day_of_era.saturating_sub(before);
    let from_march = day_of_year.saturating_mul(5).saturating_add(2) / 153;
    let date =
        day_of_year.saturating_sub(from_march.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if from_march < 10 { from_march.saturating_add(3) } else { from_march.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(year_of_era).saturating_add(u64::from(month <= 2));
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut table = Table::new(&[("a", Kind::Text), ("n", Kind::Int)]);
        table.rows.push(vec!["x".into(), u64::MAX.into()]);
        table.rows.push(vec![Cell::Null, 7u32.into()]);
        let mut out = Vec::new();
        table.encode(&mut out);
        complete(&mut out, "SHOW");
        let expected = [
            &b"T\0\0\0\x2e\0\x02a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"[..],
            b"n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
            b"D\0\0\0\x19\0\x02\0\0\0\x01x\0\0\0\x0a2147483647",
            b"D\0\0\0\x0f\0\x02\xff\xff\xff\xff\0\0\0\x017",
            b"C\0\0\0\x09SHOW\0",
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn moments_are_written_as_postgresql_would() {
        for (secs, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_795_711_009, "2026-11-26 16:36:49 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
    }
}
