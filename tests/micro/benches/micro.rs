//! How long each piece of the hot path takes, with its spread: `cargo bench -p helios-micro`.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use helios_micro::PIECES;

fn pieces(criterion: &mut Criterion) {
    for piece in PIECES {
        let mut work = (piece.make)();
        criterion.bench_function(piece.name, |bencher| bencher.iter(&mut work));
    }
}

criterion_group!(micro, pieces);
criterion_main!(micro);
