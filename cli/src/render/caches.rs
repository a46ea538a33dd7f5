//! Result caches of data planes. Pure.

use helios_proto::wire::v1;

use crate::table::{Cell, Table, Tone, cell, toned};
use crate::words;

/// A table without rows.
#[must_use]
pub fn header(wide: bool) -> Table {
    let narrow = ["DATA PLANE", "STATE", ">HIT RATIO", ">HITS", ">MISSES", ">ANSWERS", ">BYTES", ">FLUSHES"];
    if !wide {
        return Table::new(&narrow);
    }
    let more = [">SHARED HITS", ">KEPT", ">MADE BAD", ">MOST BYTES"];
    Table::new(&narrow.into_iter().chain(more).collect::<Vec<_>>())
}

/// A row for [`header`].
#[must_use]
pub fn row(cache: &v1::CacheInfo, wide: bool) -> Vec<Cell> {
    let columns = if wide { 12 } else { 8 };
    let Some(status) = &cache.status else {
        let mut row = vec![cell(&cache.dataplane), cell("none")];
        row.resize_with(columns, || cell("-"));
        return row;
    };
    let state = match (status.up, status.unfollowed.is_empty(), status.shared) {
        (false, ..) => toned("no Redis", Tone::Bad),
        (true, false, _) => toned("no stream", Tone::Bad),
        (true, true, true) => toned("shared", Tone::Good),
        (true, true, false) => toned("alone", Tone::Good),
    };
    let hits = status.hits.saturating_add(status.shared_hits);
    let mut row = vec![
        cell(&cache.dataplane),
        state,
        cell(ratio(hits, status.misses)),
        cell(hits),
        cell(status.misses),
        cell(status.entries),
        cell(words::size(status.bytes)),
        cell(status.flushes),
    ];
    if wide {
        row.extend([
            cell(status.shared_hits),
            cell(status.fills),
            cell(status.invalidations),
            cell(words::size(status.max_bytes)),
        ]);
    }
    row
}

/// Of all reads that could be answered, how many were; in hundredths, rounded down.
fn ratio(hits: u64, misses: u64) -> String {
    let (hits, all) = (u128::from(hits), u128::from(hits).saturating_add(u128::from(misses)));
    hits.saturating_mul(100).checked_div(all).map_or("-".to_owned(), |ratio| format!("{ratio} %"))
}

/// Many caches.
#[must_use]
pub fn table(caches: &[v1::CacheInfo], wide: bool) -> Table {
    let mut table = header(wide);
    caches.iter().for_each(|cache| table.row(row(cache, wide)));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_line_up() {
        let status = v1::CacheStatus {
            up: true,
            shared: true,
            hits: 700,
            shared_hits: 50,
            misses: 250,
            fills: 240,
            invalidations: 9,
            flushes: 1,
            entries: 12,
            bytes: 65_536,
            max_bytes: 1 << 26,
            unfollowed: Vec::new(),
        };
        let of = |dataplane: &str, status| v1::CacheInfo { dataplane: dataplane.to_owned(), status };
        let away = v1::CacheStatus { up: false, hits: 0, shared_hits: 0, misses: 0, ..status.clone() };
        let deaf = v1::CacheStatus { unfollowed: vec!["shop".to_owned()], ..status.clone() };
        let all =
            [of("dp-1", Some(status)), of("dp-2", Some(away)), of("dp-3", None), of("dp-4", Some(deaf))];
        let expected = "\
DATA PLANE  STATE      HIT RATIO  HITS  MISSES  ANSWERS  BYTES  FLUSHES
dp-1        shared          75 %   750     250       12  64 kB        1
dp-2        no Redis           -     0       0       12  64 kB        1
dp-3        none               -     -       -        -      -        -
dp-4        no stream       75 %   750     250       12  64 kB        1";
        assert_eq!(table(&all, false).render(false), expected);
        let wide = table(&all, true).render(false);
        assert!(wide.contains("MADE BAD") && wide.contains("64 MB"), "{wide}");
    }
}
