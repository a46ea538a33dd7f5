//! Why a change was not made, in words for operators. Pure.

use helios_proto::config::{Problem, Report};

use crate::document::EditError;
use crate::store::StoreError;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The configuration is wrong.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
    /// The request is wrong.
    #[error("{0}")]
    Wrong(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// There is such a thing already.
    #[error("{0}")]
    Exists(String),
    /// It cannot be done as things are.
    #[error("{0}")]
    NotNow(String),
    /// Another revision is in force than the one expected.
    #[error("the configuration is at revision {current}, not at {expected}; look at it and try again")]
    Conflict {
        /// Where it should have been.
        expected: u64,
        /// Where it is.
        current: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The core has stopped.
    #[error("the control plane is stopping")]
    Stopping,
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|Problem { line, text, .. }| line.map_or(text.clone(), |line| format!("line {line}: {text}")))
        .collect();
    lines.join("\n")
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { expected, current } => Self::Conflict { expected, current },
            other => Self::Store(other),
        }
    }
}

impl From<EditError> for Refusal {
    fn from(error: EditError) -> Self {
        Self::Wrong(error.to_string())
    }
}

impl From<Report> for Refusal {
    fn from(report: Report) -> Self {
        Self::Invalid(report.problems().to_vec())
    }
}
