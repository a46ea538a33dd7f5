//! Tables for people: columns as wide as needed, numbers to the right, colour where it helps. Pure.
//! Never prints: it returns text.

use crate::failure::clean;

/// How a cell looks on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Of less interest.
    Dim,
    /// A heading.
    Bold,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
        }
    }

    /// The text in this tone.
    #[must_use]
    pub fn paint(self, text: &str, color: bool) -> String {
        if !color || self == Self::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("{}{text}\x1b[0m", self.code())
    }
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

/// A plain cell.
pub fn cell(text: impl std::fmt::Display) -> Cell {
    toned(text, Tone::Plain)
}

/// A cell with a tone.
pub fn toned(text: impl std::fmt::Display, tone: Tone) -> Cell {
    Cell { text: clean(&text.to_string()).replace('\n', " "), tone }
}

/// A table in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Names; one that starts with `>` has its cells to the right.
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

const GAP: &str = "  ";

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Whether it has this row.
    #[must_use]
    pub fn has(&self, row: &[Cell]) -> bool {
        self.rows.iter().any(|known| known == row)
    }

    /// How wide each column is.
    #[must_use]
    pub fn widths(&self) -> Vec<usize> {
        let name = |name: &str| name.trim_start_matches('>').chars().count();
        let mut widths: Vec<usize> = self.header.iter().map(|n| name(n)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        widths
    }

    /// The whole, a line each, without a last line end.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let widths = self.widths();
        let header: Vec<Cell> =
            self.header.iter().map(|name| toned(name.trim_start_matches('>'), Tone::Bold)).collect();
        let rows = std::iter::once(&header).chain(&self.rows);
        rows.map(|row| self.line(row, &widths, color)).collect::<Vec<_>>().join("\n")
    }

    /// One row, for a table that grows while somebody looks.
    #[must_use]
    pub fn line(&self, row: &[Cell], widths: &[usize], color: bool) -> String {
        let mut line = String::new();
        let mut owed = 0;
        for ((name, cell), width) in self.header.iter().zip(row).zip(widths) {
            let pad = width.saturating_sub(cell.text.chars().count());
            let (left, right) = if name.starts_with('>') { (pad, 0) } else { (0, pad) };
            if !cell.text.is_empty() {
                // Space is written only before text, so that no line ends in it.
                line.push_str(&" ".repeat(owed + left));
                line.push_str(&cell.tone.paint(&cell.text, color));
                owed = right + GAP.len();
            } else {
                owed += pad + GAP.len();
            }
        }
        line
    }
}

/// Names and values, one a line, the values in one column.
#[must_use]
pub fn pairs(pairs: &[(&str, Cell)], color: bool) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, cell): &(&str, Cell)| {
        let pad = " ".repeat(width.saturating_sub(name.chars().count()) + GAP.len());
        let value = cell.tone.paint(if cell.text.is_empty() { "-" } else { &cell.text }, color);
        format!("{}{pad}{value}", Tone::Bold.paint(name, color))
    };
    pairs.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_in_text() {
        let mut table = Table::new(&["NAME", ">CONNS", "NOTE"]);
        table.row(vec![cell("primary"), cell(7), cell("")]);
        table.row(vec![cell("é"), cell(1234), toned("drained", Tone::Warn)]);
        assert_eq!(table.render(false), "NAME     CONNS  NOTE\nprimary      7\né         1234  drained");
        assert!(table.render(true).ends_with("\x1b[33mdrained\x1b[0m"));
    }

    #[test]
    fn a_cell_is_one_line_and_steers_nothing() {
        let mut table = Table::new(&["A"]);
        table.row(vec![cell("x\n\x1b[2Jy")]);
        assert_eq!(table.render(false), "A\nx  [2Jy");
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(pairs(&[("a", cell("")), ("long", cell("x"))], false), "a     -\nlong  x");
    }
}
