//! Does one piece of work so many times, for callgrind: `helios-micro NAME TIMES`; without arguments it names the pieces.
//! Measures nothing itself.
// A program for measurements: what it cannot do ends it.
#![allow(clippy::print_stdout, clippy::expect_used)]

use helios_micro::PIECES;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        PIECES.iter().for_each(|piece| println!("{}", piece.name));
        return;
    };
    let times = arguments.next().and_then(|times| times.parse().ok()).expect("helios-micro NAME TIMES");
    let piece = PIECES.iter().find(|piece| piece.name == name).expect("one of the names");
    let mut work = (piece.make)();
    (0_u32..times).for_each(|_| work());
}
