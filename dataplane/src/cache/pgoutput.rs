//! What a logical replication stream says, as far as the cache wants to know: which tables each transaction has changed, and
//! how far the stream is. Messages as in the PostgreSQL documentation, "Streaming Replication Protocol" and "Logical
//! Replication Message Formats", version 1. Rows are skipped as they come, whatever their size. Pure.

use bytes::{Buf as _, BytesMut};
use std::collections::HashSet;

/// A message that is neither a row nor anything of its kind is no longer than this, in bytes.
const LONGEST: usize = 1 << 20;
/// CopyData and XLogData before what the plugin says.
const HEAD: usize = 5 + 25;
/// The same, and the kind of a change and its table.
const ROW: usize = HEAD + 5;

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The stream has come to this position, and nothing before it is still to be said.
    Position(u64),
    /// A transaction is committed.
    Commit(Commit),
    /// The server wants to know how far this one is.
    Asked(u64),
    /// An ErrorResponse, header included.
    Refused(Vec<u8>),
}

/// A committed transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub xid: u32,
    /// Position of its end.
    pub end: u64,
    /// Tables that it changed.
    pub tables: HashSet<u32>,
}

/// The stream does not say what was expected.
#[derive(Debug, thiserror::Error)]
#[error("the stream says something strange: {0}")]
pub struct Garbled(&'static str);

/// From bytes to what they say.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    /// Bytes to come that do not matter.
    skip: usize,
    xid: u32,
    tables: HashSet<u32>,
}

impl Decoder {
    /// Takes what was received.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip = self.skip.saturating_sub(skipped);
        bytes = bytes.get(skipped..).unwrap_or_default();
        self.buf.extend_from_slice(bytes);
    }

    /// What comes next; `None`: more has to be received.
    ///
    /// # Errors
    /// It is no such stream.
    pub fn next(&mut self) -> Result<Option<Heard>, Garbled> {
        loop {
            let Some((tag, len)) = head(&self.buf)? else { return Ok(None) };
            if len > LONGEST && tag != b'd' {
                return Err(Garbled("a message that is too long"));
            }
            if self.buf.len() < len.min(ROW) {
                return Ok(None);
            }
            if len >= ROW
                && let Some(table) = changed(&self.buf)
            {
                self.tables.insert(table);
                let here = len.min(self.buf.len());
                self.buf.advance(here);
                self.skip = len.saturating_sub(here);
                continue;
            }
            if len > LONGEST {
                return Err(Garbled("a message that is too long"));
            }
            if self.buf.len() < len {
                return Ok(None);
            }
            let message = self.buf.split_to(len);
            if let Some(heard) = self.take(tag, &message)? {
                return Ok(Some(heard));
            }
        }
    }

    fn take(&mut self, tag: u8, message: &[u8]) -> Result<Option<Heard>, Garbled> {
        let short = || Garbled("a message that is too short");
        match (tag, message.get(5)) {
            (b'E', _) => Ok(Some(Heard::Refused(message.to_vec()))),
            (b'N' | b'S' | b'W', _) => Ok(None),
            (b'd', Some(b'k')) => {
                let at = u64_at(message, 6).ok_or_else(short)?;
                let asked = *message.get(22).ok_or_else(short)? != 0;
                Ok(Some(if asked { Heard::Asked(at) } else { Heard::Position(at) }))
            }
            (b'd', Some(b'w')) => self.said(message.get(HEAD..).ok_or_else(short)?),
            _ => Err(Garbled("a message out of place")),
        }
    }

    /// What the plugin says.
    fn said(&mut self, says: &[u8]) -> Result<Option<Heard>, Garbled> {
        let short = || Garbled("a message that is too short");
        match says.first() {
            Some(b'B') => {
                self.tables.clear();
                self.xid = u32_at(says, 17).ok_or_else(short)?;
                Ok(None)
            }
            Some(b'C') => {
                let end = u64_at(says, 10).ok_or_else(short)?;
                let tables = std::mem::take(&mut self.tables);
                Ok(Some(Heard::Commit(Commit { xid: self.xid, end, tables })))
            }
            Some(b'T') => {
                let count = usize::try_from(u32_at(says, 1).ok_or_else(short)?).unwrap_or(usize::MAX);
                let list = says.get(6..).ok_or_else(short)?;
                if list.len() != count.saturating_mul(4) {
                    return Err(short());
                }
                self.tables.extend((0..count).filter_map(|i| u32_at(list, i.saturating_mul(4))));
                Ok(None)
            }
            Some(b'R' | b'Y' | b'O' | b'M') => Ok(None),
            _ => Err(Garbled("a change of an unknown kind")),
        }
    }
}

/// Tag and length of the first message, its tag included.
fn head(buf: &[u8]) -> Result<Option<(u8, usize)>, Garbled> {
    let (Some(tag), Some(len)) = (buf.first(), u32_at(buf, 1)) else { return Ok(None) };
    let len = usize::try_from(len).ok().filter(|len| *len >= 4).ok_or(Garbled("a length that is none"))?;
    Ok(Some((*tag, len.saturating_add(1))))
}

/// The table of a row that was inserted, updated or deleted, if the first message is about one.
fn changed(buf: &[u8]) -> Option<u32> {
    let row = buf.first() == Some(&b'd') && buf.get(5) == Some(&b'w');
    (row && matches!(buf.get(HEAD), Some(b'I' | b'U' | b'D'))).then(|| u32_at(buf, HEAD.saturating_add(1)))?
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap();
        [b"d", &len.to_be_bytes()[..], body].concat()
    }

    fn says(what: &[u8]) -> Vec<u8> {
        copy(&[b"w", &[0; 24][..], what].concat())
    }

    fn begin(xid: u32) -> Vec<u8> {
        says(&[b"B", &[0; 16][..], &xid.to_be_bytes()].concat())
    }

    fn change(kind: u8, table: u32, row: usize) -> Vec<u8> {
        says(&[&[kind][..], &table.to_be_bytes(), &vec![b'x'; row]].concat())
    }

    fn commit(end: u64) -> Vec<u8> {
        says(&[b"C", &[0; 9][..], &end.to_be_bytes(), &[0; 8]].concat())
    }

    fn truncate(tables: &[u32]) -> Vec<u8> {
        let list: Vec<u8> = tables.iter().flat_map(|table| table.to_be_bytes()).collect();
        says(&[b"T", &u32::try_from(tables.len()).unwrap().to_be_bytes()[..], &[0], &list].concat())
    }

    fn keepalive(at: u64, asks: u8) -> Vec<u8> {
        copy(&[b"k", &at.to_be_bytes()[..], &[0; 8], &[asks]].concat())
    }

    fn all(stream: &[u8], piece: usize) -> Result<Vec<Heard>, Garbled> {
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            decoder.feed(bytes);
            while let Some(next) = decoder.next()? {
                heard.push(next);
            }
            assert!(decoder.buf.len() < 200, "rows are not gathered: {}", decoder.buf.len());
        }
        Ok(heard)
    }

    fn done(xid: u32, end: u64, tables: &[u32]) -> Heard {
        Heard::Commit(Commit { xid, end, tables: tables.iter().copied().collect() })
    }

    #[test]
    fn transactions_are_told_with_their_tables_however_the_bytes_come() {
        let stream = [
            b"W\0\0\0\x07\0\0\0".to_vec(),
            keepalive(7, 0),
            begin(9),
            says(b"R\0\0\0\x01public\0t\0"),
            change(b'I', 1, 10),
            change(b'U', 1, 5_000),
            change(b'D', 2, 0),
            truncate(&[3, 70_000]),
            commit(100),
            keepalive(101, 1),
            begin(10),
            commit(u64::MAX),
        ]
        .concat();
        let expected = [
            Heard::Position(7),
            done(9, 100, &[1, 2, 3, 70_000]),
            Heard::Asked(101),
            done(10, u64::MAX, &[]),
        ];
        for piece in [1, 2, 3, 7, 40, 100] {
            assert_eq!(all(&stream, piece).unwrap(), expected, "{piece}");
        }
    }

    #[test]
    fn what_is_strange_is_an_error_and_an_error_of_the_server_is_passed_on() {
        let refusal = b"E\0\0\0\x05\0".to_vec();
        assert_eq!(all(&refusal, 3).unwrap(), [Heard::Refused(refusal)]);
        for bad in [
            b"d\0\0\0\x03".to_vec(),
            b"Z\0\0\0\x05I".to_vec(),
            b"c\0\0\0\x04".to_vec(),
            copy(b""),
            copy(b"x"),
            copy(b"k\0"),
            copy(b"w\0"),
            says(b""),
            says(b"S"),
            says(b"B\0"),
            says(b"C\0"),
            says(b"T\0\0\0\x02\0\0\0\0\x01"),
            says(b"T\0\0\0\x01\0\0\0\0\x01\0"),
            b"N\x7f\0\0\0".to_vec(),
        ] {
            assert!(all(&bad, 100).is_err(), "{bad:?}");
        }
    }
}
