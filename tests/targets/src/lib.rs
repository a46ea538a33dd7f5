//! What fuzzers run: functions of bytes that panic when a rule is broken. `cargo test` replays the corpus and seeded
//! mutations of it through them, `make fuzz` lets libFuzzer search (`fuzz/`). Never opens a socket, never reads a clock,
//! never depends on anything but its bytes.
// Test code: a broken rule has to stop the run, loudly and where it happens.
#![allow(clippy::unwrap_used, clippy::too_many_lines)]

pub mod frames;
pub mod hostile;
pub mod ledger;
pub mod logins;
pub mod model;
pub mod mutate;
pub mod names;
pub mod script;
pub mod session;
pub mod source;
pub mod sql;
pub mod startup;

/// What a target does with bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its corpus and of its fuzzer.
pub const TARGETS: &[(&str, Target)] = &[
    ("frames", frames::run),
    ("startup", startup::run),
    ("scram", logins::scram),
    ("login", logins::login),
    ("sql", sql::run),
    ("names", names::run),
    ("ledger", ledger::run),
    ("session", session::run),
    ("hostile", hostile::run),
];

/// Runs one target by its name.
///
/// # Panics
/// When there is none of that name, and when a rule is broken.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of that name");
    target(data);
}
