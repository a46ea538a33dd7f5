//! Statements to be judged: the lexer and the verdict, with and without the worker's cache.

use crate::Work;
use heliosdb_proxy::route::{Class, NoFunctions, VerdictCache};
use std::fmt::Write as _;
use std::hint::black_box;

/// Places of the worker's cache, at least.
const PLACES: usize = 1024;

/// A read of about this many bytes: columns, a condition, a comment and literals, as an ORM writes them.
fn read(size: usize) -> Vec<u8> {
    let mut sql = "/* app:web */ SELECT a.id, a.name FROM accounts a WHERE a.id = 1234567".to_owned();
    let mut i = 0;
    while sql.len() + 24 <= size {
        let _ = write!(sql, " OR a.name = 'n''o {i:04}'");
        i += 1;
    }
    sql.into_bytes()
}

/// A statement that was never seen: a literal of it changes each time, as with an ORM that writes values into the text.
pub fn unseen(size: usize) -> Work {
    let (mut cache, mut sql, mut next) = (VerdictCache::new(), read(size), 0_u32);
    let at = sql.windows(7).position(|w| w == b"1234567").unwrap();
    let mut work = move || {
        next = next.wrapping_add(1) % 10_000_000;
        let mut rest = next;
        for digit in sql[at..at + 7].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap();
            rest /= 10;
        }
        let verdict = cache.get_or_classify(black_box(&sql), true, &NoFunctions);
        assert!(verdict.class == Class::Read);
    };
    if size < 10_000 {
        // What is kept has a place from now on: nothing is allocated any more.
        (0..PLACES * 8).for_each(|_| work());
    }
    Box::new(work)
}

/// A statement that the worker has judged before.
pub fn known() -> Work {
    let (mut cache, sql) = (VerdictCache::new(), read(100));
    Box::new(move || {
        let verdict = cache.get_or_classify(black_box(&sql), true, &NoFunctions);
        assert!(verdict.class == Class::Read);
    })
}
