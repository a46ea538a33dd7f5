//! Data planes and their pools. Pure.

use helios_proto::wire::v1;

use crate::table::{Cell, Table, Tone, cell, pairs, toned};
use crate::words;

/// A table of pools without rows.
#[must_use]
pub fn pools_header() -> Table {
    Table::new(&[
        "NODE",
        "DATA PLANE",
        "MODE",
        ">CONNS",
        ">IN USE",
        ">IDLE",
        ">MAX",
        ">BUDGET",
        ">WAITING",
        "STATE",
    ])
}

/// A row for [`pools_header`].
#[must_use]
pub fn pool_row(pool: &v1::PoolInfo) -> Vec<Cell> {
    let status = pool.status.clone().unwrap_or_default();
    let waiting = if status.waiting > 0 { toned(status.waiting, Tone::Warn) } else { cell(0) };
    let state = match (pool.paused, pool.drained) {
        (false, false) => toned("open", Tone::Good),
        (true, false) => toned("paused", Tone::Warn),
        (false, true) => toned("drained", Tone::Warn),
        (true, true) => toned("paused, drained", Tone::Warn),
    };
    vec![
        cell(&status.node),
        cell(&pool.dataplane),
        cell(words::mode(pool.mode)),
        cell(status.total),
        cell(status.active),
        cell(status.idle),
        cell(status.max),
        cell(words::budget(status.granted.unwrap_or(0), status.limit)),
        waiting,
        state,
    ]
}

/// Many pools.
#[must_use]
pub fn pools(pools: &[v1::PoolInfo]) -> Table {
    let mut table = pools_header();
    pools.iter().for_each(|pool| table.row(pool_row(pool)));
    table
}

/// A table of data planes without rows.
#[must_use]
pub fn dataplanes_header(wide: bool) -> Table {
    let narrow =
        ["NAME", "VERSION", "STATE", ">REVISION", ">CLIENTS", ">IN USE", ">IDLE", ">WAITING", "NOTE"];
    if !wide {
        return Table::new(&narrow);
    }
    Table::new(&[
        "NAME",
        "VERSION",
        "STATE",
        ">SINCE",
        "ADDRESS",
        ">CONFIG",
        ">REVISION",
        ">ACK",
        ">CLIENTS",
        ">IN USE",
        ">IDLE",
        ">WAITING",
        ">READS",
        ">WRITES",
        "NOTE",
    ])
}

fn state(dataplane: &v1::DataplaneInfo) -> (&'static str, Tone) {
    match dataplane {
        v1::DataplaneInfo { connected: false, .. } => ("lost", Tone::Bad),
        v1::DataplaneInfo { draining: true, .. } => ("draining", Tone::Warn),
        v1::DataplaneInfo { refused, .. } if !refused.is_empty() => ("partial", Tone::Bad),
        v1::DataplaneInfo { synced: true, .. } => ("in step", Tone::Good),
        v1::DataplaneInfo { .. } => ("behind", Tone::Warn),
    }
}

fn took(us: Option<u64>) -> String {
    // A duration of minutes at most: the rounding of large numbers does not matter.
    us.and_then(|us| u32::try_from(us).ok()).map_or("-".to_owned(), |us| words::millis(f64::from(us) / 1e3))
}

/// A row for [`dataplanes_header`].
#[must_use]
pub fn dataplane_row(dataplane: &v1::DataplaneInfo, wide: bool) -> Vec<Cell> {
    let (state, tone) = state(dataplane);
    let notes: Vec<String> = dataplane
        .refused
        .iter()
        .map(|refused| format!("refused {}: {}", refused.resource, refused.reason))
        .collect();
    let waiting = if dataplane.waiting > 0 { toned(dataplane.waiting, Tone::Warn) } else { cell(0) };
    let mut row = vec![cell(&dataplane.id), cell(&dataplane.version), toned(state, tone)];
    if wide {
        let address = if dataplane.address.is_empty() { "-" } else { &dataplane.address };
        row.extend([cell(words::span(dataplane.since_ms)), cell(address), cell(dataplane.config_revision)]);
    }
    row.push(cell(dataplane.revision));
    if wide {
        row.push(cell(took(dataplane.ack_us)));
    }
    row.extend([cell(dataplane.clients), cell(dataplane.active), cell(dataplane.idle), waiting]);
    if wide {
        row.extend([cell(dataplane.reads), cell(dataplane.writes)]);
    }
    row.push(toned(notes.join("; "), Tone::Bad));
    row
}

/// Many data planes.
#[must_use]
pub fn dataplanes(dataplanes: &[v1::DataplaneInfo], wide: bool) -> Table {
    let mut table = dataplanes_header(wide);
    dataplanes.iter().for_each(|dataplane| table.row(dataplane_row(dataplane, wide)));
    table
}

/// One data plane.
#[must_use]
pub fn dataplane(dataplane: &v1::DataplaneInfo, color: bool) -> String {
    let (state, tone) = state(dataplane);
    let since = if dataplane.connected { "connected for" } else { "lost for" };
    let mut all = vec![
        ("name", cell(&dataplane.id)),
        ("version", cell(&dataplane.version)),
        ("started as", cell(&dataplane.boot_id)),
        ("address", cell(&dataplane.address)),
        ("state", toned(state, tone)),
        (since, cell(words::span(dataplane.since_ms))),
        ("configuration", cell(dataplane.config_revision)),
        ("revision", cell(dataplane.revision)),
        ("acknowledged in", cell(took(dataplane.ack_us))),
        ("clients", cell(dataplane.clients)),
        ("connections", cell(format!("{} in use, {} idle", dataplane.active, dataplane.idle))),
        ("waiting", cell(dataplane.waiting)),
        ("statements", cell(format!("{} reads, {} writes", dataplane.reads, dataplane.writes))),
    ];
    let refusals = dataplane.refused.iter();
    all.extend(refusals.map(|r| ("refused", toned(format!("{}: {}", r.resource, r.reason), Tone::Bad))));
    pairs(&all, color)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_line_up() {
        let status = v1::PoolStatus {
            node: "primary".to_owned(),
            total: 12,
            active: 10,
            idle: 2,
            waiting: 4,
            max: 100,
            ..v1::PoolStatus::default()
        };
        let budgeted = v1::PoolStatus { granted: Some(14), limit: 90, floor: 3, ..status.clone() };
        let pool = v1::PoolInfo {
            dataplane: "dp-1".to_owned(),
            mode: v1::PoolMode::Transaction.into(),
            status: Some(status),
            ..v1::PoolInfo::default()
        };
        let paused = v1::PoolInfo {
            paused: true,
            dataplane: "dp-20".to_owned(),
            status: Some(budgeted),
            ..pool.clone()
        };
        let expected = "\
NODE     DATA PLANE  MODE         CONNS  IN USE  IDLE  MAX  BUDGET  WAITING  STATE
primary  dp-1        transaction     12      10     2  100       -        4  open
primary  dp-20       transaction     12      10     2  100   14/90        4  paused";
        assert_eq!(pools(&[pool, paused]).render(false), expected);
    }

    #[test]
    fn data_planes_say_what_is_wrong_with_them() {
        let good = v1::DataplaneInfo {
            id: "dp-1".to_owned(),
            version: "1.0.0".to_owned(),
            connected: true,
            synced: true,
            revision: 7,
            config_revision: 2,
            ack_us: Some(840),
            clients: 100,
            since_ms: 61_000,
            ..v1::DataplaneInfo::default()
        };
        let refused = v1::Refusal {
            dataplane: "dp-2".to_owned(),
            resource: "user/x".to_owned(),
            reason: "unknown mode".to_owned(),
        };
        let partial = v1::DataplaneInfo {
            id: "dp-2".to_owned(),
            synced: false,
            refused: vec![refused],
            ..good.clone()
        };
        let lost = v1::DataplaneInfo { id: "dp-3".to_owned(), connected: false, ..good.clone() };
        let behind = v1::DataplaneInfo { id: "dp-4".to_owned(), synced: false, revision: 6, ..good.clone() };
        let all = [good, partial, lost, behind];
        let expected = "\
NAME  VERSION  STATE    REVISION  CLIENTS  IN USE  IDLE  WAITING  NOTE
dp-1  1.0.0    in step         7      100       0     0        0
dp-2  1.0.0    partial         7      100       0     0        0  refused user/x: unknown mode
dp-3  1.0.0    lost            7      100       0     0        0
dp-4  1.0.0    behind          6      100       0     0        0";
        assert_eq!(dataplanes(&all, false).render(false), expected);
        let wide = dataplanes(&all[..1], true).render(false);
        assert!(wide.contains("1m01s") && wide.contains("0.8 ms"), "{wide}");
        assert!(dataplane(&all[1], false).contains("refused          user/x: unknown mode"));
    }
}
