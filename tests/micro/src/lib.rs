//! Pieces of the hot path, each as work that can be done any number of times: what criterion times and callgrind counts the
//! instructions of. Same bytes every time; no socket is read or written, no clock asked by the measurement itself.
// Measuring code: a broken assumption has to stop it, loudly and where it happens.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

mod checkout;
mod relay;
mod texts;

use helios_pgwire::backend::max_len;
use helios_pgwire::frame::Header;
use heliosdb_proxy::server::ledger::Ledger;
use std::hint::black_box;

/// Work that is done once each time it is called.
pub type Work = Box<dyn FnMut()>;

/// A piece of the hot path.
pub struct Piece {
    /// As reports name it.
    pub name: &'static str,
    /// Makes everything ready, and gives the work.
    pub make: fn() -> Work,
}

/// Everything that is measured.
pub const PIECES: &[Piece] = &[
    Piece { name: "framing-64-rows", make: framing },
    Piece { name: "ledger-simple", make: ledger },
    Piece { name: "verdict-new-100b", make: || texts::unseen(100) },
    Piece { name: "verdict-new-1kb", make: || texts::unseen(1_000) },
    Piece { name: "verdict-new-100kb", make: || texts::unseen(100_000) },
    Piece { name: "verdict-known", make: texts::known },
    Piece { name: "relay-simple", make: relay::simple },
    Piece { name: "relay-extended", make: relay::extended },
    Piece { name: "relay-prepared", make: relay::prepared },
    Piece { name: "relay-pipeline-10", make: relay::pipeline },
    Piece { name: "relay-10000-rows", make: relay::rows },
    Piece { name: "checkout", make: checkout::idle },
];

/// The headers of an answer with 64 rows of 100 bytes.
fn framing() -> Work {
    let answer = relay::answer(64, 100);
    Box::new(move || {
        let (mut rest, mut messages) = (answer.as_slice(), 0);
        while let Ok(Some(Header { size, .. })) = Header::parse(black_box(rest), max_len) {
            rest = &rest[size..];
            messages += 1;
        }
        assert_eq!(black_box(messages), 67);
    })
}

/// One simple query in the ledger.
fn ledger() -> Work {
    let mut ledger = Ledger::new();
    Box::new(move || {
        ledger.sent(black_box(b'Q'));
        for tag in *b"TDC" {
            ledger.received(black_box(tag), None);
        }
        ledger.received(b'Z', Some(helios_pgwire::backend::TxStatus::Idle));
        assert!(ledger.settled());
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_works_again_and_again() {
        for piece in PIECES {
            let mut work = (piece.make)();
            for _ in 0..100 {
                work();
            }
        }
    }
}
