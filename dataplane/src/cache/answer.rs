//! An answer on its way from a server to a client, as it is recorded for the next who asks, and what may be kept of it. Pure.

use super::shape::Key;
use helios_pgwire::frame::Header;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an answer is kept under, and until when.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Its key.
    pub key: Key,
    /// Tables that it depends on.
    pub tables: Arc<[u32]>,
    /// Number of the sequence when its statement had not been sent yet.
    pub since: u64,
    /// Era of the cache at that time.
    pub era: u64,
    /// When it was asked for.
    pub asked: Instant,
    /// Longest life since then.
    pub life: Duration,
}

/// What came of more bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Recorded {
    /// More is to come.
    More,
    /// The answer is whole and good.
    Whole,
    /// It cannot be kept.
    Spoiled,
}

/// The bytes so far.
#[derive(Debug, Default)]
pub struct Recording {
    bytes: Vec<u8>,
    /// Where the next message begins.
    next: usize,
}

impl Recording {
    /// Takes bytes that the client gets, of an answer of at most so many.
    pub fn take(&mut self, bytes: &[u8], most: usize) -> Recorded {
        self.bytes.extend_from_slice(bytes);
        loop {
            let rest = self.bytes.get(self.next..).unwrap_or_default();
            let end = match Header::parse(rest, helios_pgwire::backend::max_len) {
                Ok(Some(Header { tag, size })) if is_kept(tag) => (tag, self.next.saturating_add(size)),
                Ok(None) if self.bytes.len() <= most => return Recorded::More,
                _ => return Recorded::Spoiled,
            };
            if end.1 > most {
                return Recorded::Spoiled;
            }
            if end.1 > self.bytes.len() {
                return Recorded::More;
            }
            self.next = end.1;
            if end.0 == b'Z' {
                let idle = self.bytes.get(self.next.saturating_sub(1)) == Some(&b'I');
                self.bytes.truncate(self.next);
                return if idle { Recorded::Whole } else { Recorded::Spoiled };
            }
        }
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Parse, bind and describe answers, rows, and the end: no error, notice, setting, notification or COPY.
const fn is_kept(tag: u8) -> bool {
    matches!(tag, b'1' | b'2' | b't' | b'T' | b'n' | b'D' | b'C' | b'Z')
}

/// Whether bytes from elsewhere are one whole answer.
#[must_use]
pub fn is_whole(bytes: &[u8]) -> bool {
    let mut recording = Recording::default();
    recording.take(bytes, bytes.len()) == Recorded::Whole && recording.bytes.len() == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"D\0\0\0\x0b\0\x01\0\0\0\x01x";
    const DONE: &[u8] = b"C\0\0\0\x0dSELECT 1\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn an_answer_ends_with_its_first_ready() {
        let all = [ROW, DONE, READY].concat();
        for cut in 0..all.len() {
            let mut recording = Recording::default();
            assert_eq!(recording.take(&all[..cut], 100), Recorded::More, "{cut}");
            // Whatever stands behind it is another answer.
            assert_eq!(recording.take(&[&all[cut..], ROW].concat(), 100), Recorded::Whole, "{cut}");
            assert_eq!(recording.into_bytes(), all);
        }
        assert!(is_whole(&all) && !is_whole(&all[1..]) && !is_whole(&[&all[..], READY].concat()));
    }

    #[test]
    fn what_is_not_kept() {
        for bad in [
            b"E\0\0\0\x05\0".to_vec(),
            b"N\0\0\0\x05\0".to_vec(),
            b"S\0\0\0\x08a\0b\0".to_vec(),
            b"A\0\0\0\x0b\0\0\0\0a\0b\0".to_vec(),
            b"G\0\0\0\x07\0\0\0".to_vec(),
            b"Z\0\0\0\x05T".to_vec(),
            b"Z\0\0\0\x05E".to_vec(),
            b"x\0\0\0\x04".to_vec(),
            [ROW; 9].concat(),
        ] {
            assert_eq!(Recording::default().take(&bad, 100), Recorded::Spoiled, "{bad:?}");
        }
        let long = Recording::default().take(b"D\0\0\x10\0", 100);
        assert_eq!(long, Recorded::Spoiled, "known from its header");
    }
}
