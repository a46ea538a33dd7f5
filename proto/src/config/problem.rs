//! What is wrong with a configuration: every problem of one file in one report.
//! Never holds a secret: whoever makes a [`Problem`] quotes what stands in the file, and of a secret nothing.

use std::fmt;

/// One thing wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File name as the caller gave it, or `command line`.
    pub file: String,
    /// Line in the file, from 1; `None` if it concerns the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, as a lower-case fragment.
    pub text: String,
}

/// Every problem of one configuration, in line order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(Vec<Problem>);

impl Report {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        for problem in &mut problems {
            problem.text = without_credentials(&problem.text);
        }
        Self(problems)
    }

    pub(super) fn of_file(file: &str, text: String) -> Self {
        Self(vec![Problem { file: file.to_owned(), line: None, text }])
    }

    /// The problems in line order; those of the file as a whole come first.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

/// The text without what stands before an `@` in what it quotes: `http://user:password@host` is refused as an address, and
/// is a password all the same.
fn without_credentials(text: &str) -> String {
    let parts = text.split('"').map(|part| match part.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("\"")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.text),
            None => write!(f, "{}: {}", self.file, self.text),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
