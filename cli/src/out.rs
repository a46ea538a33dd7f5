//! Where output goes: data to standard output, words about it to standard error, a question to the terminal. Owner of
//! the decision about colour.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::args::{Format, Global};
use crate::failure::{Failure, clean};
use crate::tree::Tree;

/// Where output goes, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// Its form.
    pub format: Format,
    /// Whether tables have colours.
    pub color: bool,
    quiet: bool,
}

impl Out {
    /// As the command line says.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        let asked_not_to =
            global.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = !asked_not_to && io::stdout().is_terminal();
        Self { format: global.output, color, quiet: global.quiet }
    }

    /// Data.
    ///
    /// # Errors
    /// Standard output fails.
    pub fn data(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
        out.write_all(text.as_bytes())
            .and_then(|()| out.write_all(end.as_bytes()))
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Data in the form that was asked for; `table` and `name` are made only where they are.
    ///
    /// # Errors
    /// Standard output fails.
    pub fn show(
        self,
        tree: impl FnOnce() -> Tree,
        name: impl FnOnce() -> String,
        table: impl FnOnce(Self) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.data(&tree().json()),
            Format::Yaml => self.data(&tree().yaml()),
            Format::Name => self.data(&clean(&name())),
            Format::Table | Format::Wide => self.data(&table(self)),
        }
    }

    /// One of many, while watching: an object a line, or a YAML document.
    ///
    /// # Errors
    /// Standard output fails.
    pub fn one(self, tree: &Tree, line: &str) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.data(&tree.json_line()),
            Format::Yaml => self.data(&format!("---\n{}", tree.yaml())),
            Format::Name | Format::Table | Format::Wide => self.data(line),
        }
    }

    /// Whether there are more columns.
    #[must_use]
    pub fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    /// A word about what happens.
    pub fn note(self, text: &str) {
        if !self.quiet {
            // Nobody to tell if this fails.
            let _ = writeln!(io::stderr(), "{}", clean(text));
        }
    }

    /// Asks before something that is hard to take back.
    ///
    /// # Errors
    /// It was not confirmed.
    pub fn confirm(self, yes: bool, what: &str) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(format!("{what}; this needs --yes where nobody can be asked")));
        }
        let _ = write!(io::stderr(), "{}. Go on? [y/N] ", clean(what));
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        match (read, answer.trim().to_ascii_lowercase().as_str()) {
            (Ok(_), "y" | "yes") => Ok(()),
            _ => Err(Failure::usage("not confirmed, nothing was changed")),
        }
    }
}
