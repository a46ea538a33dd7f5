//! Tables of statements and their verdicts, of nodes and choices.

mod choose;
mod classify;
mod hint;
mod lexer;
