//! Where a statement runs: (snapshot, session facts, SQL text) -> node and reason.
//! Owner: one worker each has its [`VerdictCache`] and [`Picker`]. Pure and synchronous: never does input or output,
//! never waits, and allocates nothing for a text it has seen before.
//!
//! The walk: [`lexer`] cuts the text into tokens -> [`classify`](classify::classify) judges every statement and reads the
//! hints -> [`Verdict`], kept by [`VerdictCache`] -> [`choose`](choose::choose) names a node.

pub mod cache;
pub mod choose;
pub mod classify;
pub mod functions;
pub mod hint;
pub mod lexer;
pub mod picker;
pub mod verdict;
mod words;

#[cfg(test)]
mod tests;

pub use cache::VerdictCache;
pub use choose::{Choice, Kind, Query, Reason, SessionFacts, choose};
pub use classify::classify;
pub use functions::{KnownFunctions, NoFunctions, UserFunctions};
pub use hint::{Hint, RouteHint};
pub use picker::{Loads, Picker};
pub use verdict::{Class, Pins, TxWord, Verdict};
