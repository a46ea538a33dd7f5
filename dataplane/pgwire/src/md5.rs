//! MD5 passwords (manual: "Password Authentication", `AuthenticationMD5Password`), for backends that still ask
//! for them. Never keeps a password.

use md5::{Digest, Md5};

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex(digest: &[u8]) -> Vec<u8> {
    let digit = |n: u8| HEX.get(usize::from(n & 15)).copied().unwrap_or(b'0');
    digest.iter().flat_map(|&b| [digit(b >> 4), digit(b)]).collect()
}

/// `md5(password || user)` in hex: what `pg_authid` stores behind the prefix `md5`, and all that is needed to log in.
#[must_use]
pub fn stored(user: &[u8], password: &[u8]) -> Vec<u8> {
    hex(&Md5::new().chain_update(password).chain_update(user).finalize())
}

/// The answer to a salted request: `md5` and `md5(stored || salt)` in hex.
#[must_use]
pub fn answer(stored: &[u8], salt: [u8; 4]) -> Vec<u8> {
    let mut out = b"md5".to_vec();
    out.extend(hex(&Md5::new().chain_update(stored).chain_update(salt).finalize()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Computed with Python's hashlib: md5('secret' || 'bob'), then md5(that || 01 02 03 04).
        let stored = stored(b"bob", b"secret");
        assert_eq!(stored, b"21f3163f8f86fa10bdefbfbd502a8f06");
        assert_eq!(answer(&stored, [1, 2, 3, 4]), b"md5f21dfe33ff3a9e03dbc3e008251fe5cc");
    }
}
