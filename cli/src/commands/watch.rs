//! Lists that go on: the whole once, then what changes. Looks again and again, since the service tells events, not lists.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::args::Format;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::table::{Cell, Table, cell};
use crate::tree::Tree;

use super::Done;

/// The shortest pause between two looks.
const SHORTEST: Duration = Duration::from_millis(100);

/// Something in a list.
pub(super) struct Item {
    /// Its name in the list.
    pub(super) key: String,
    /// What makes it different from before; numbers that always move are not part of it.
    pub(super) mark: String,
    pub(super) row: Vec<Cell>,
    pub(super) tree: Tree,
}

/// Prints a list, then each item that changes, until the service is gone.
pub(super) async fn list(
    out: Out,
    session: &mut Session,
    interval: Duration,
    mut table: Table,
    mut look: impl AsyncFnMut(&mut Session) -> Result<Vec<Item>, Failure>,
) -> Done {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut widths = Vec::new();
    loop {
        let items = look(session).await?;
        if widths.is_empty() {
            items.iter().for_each(|item| table.row(item.row.clone()));
            widths = table.widths();
            if matches!(out.format, Format::Table | Format::Wide) {
                out.data(&table.render(out.color))?;
            }
        }
        let gone: Vec<String> =
            known.keys().filter(|key| items.iter().all(|item| item.key != **key)).cloned().collect();
        for key in gone {
            known.remove(&key);
            let tree = said("removed", &key, Tree::Null);
            let line = table.line(&[cell(format!("{key} (removed)"))], &widths, out.color);
            out.one(&tree, if out.format == Format::Name { &key } else { &line })?;
        }
        for item in items {
            let before = known.insert(item.key.clone(), item.mark.clone());
            let change = match before {
                Some(mark) if mark == item.mark => continue,
                Some(_) => "changed",
                None => "present",
            };
            let is_table = matches!(out.format, Format::Table | Format::Wide);
            if is_table && change == "present" && table.has(&item.row) {
                continue;
            }
            let line = table.line(&item.row, &widths, out.color);
            let line = if is_table { &line } else { &item.key };
            out.one(&said(change, &item.key, item.tree), line)?;
        }
        tokio::select! {
            () = tokio::time::sleep(interval.max(SHORTEST)) => {}
            interrupted = tokio::signal::ctrl_c() => if interrupted.is_ok() { return Ok(Exit::Ok) },
        }
    }
}

/// A line of NDJSON.
fn said(change: &str, name: &str, item: Tree) -> Tree {
    Tree::map([("change", Tree::text(change)), ("name", Tree::text(name)), ("item", item)])
}
