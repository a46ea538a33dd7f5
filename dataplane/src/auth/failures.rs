//! How long a wrong password is answered late: the more often a role was tried in vain from one address, the longer, so that
//! who waits for the answers guesses slowly. Never locks anybody out: who has the right password is let in at once, which who
//! gives up early may tell; limits of connections bound those. Sees no password.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that are answered at once: a person mistypes, a driver tries again.
const FREE: u32 = 3;
/// The first delay; each further failure doubles it.
const FIRST: Duration = Duration::from_millis(100);
/// A role that was not tried in vain for this long starts anew.
const FORGET: Duration = Duration::from_secs(60);
/// Entries kept at most. Beyond that the oldest go: whoever tries that many is slowed down by the count of connections.
const MOST: usize = 10_000;

/// Failures in a row, by address and role.
#[derive(Default)]
pub struct Failures {
    known: Mutex<HashMap<(IpAddr, Vec<u8>), Failed>>,
}

#[derive(Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
}

/// The delay of the answer to a failure, after this many.
fn delay(times: u32, longest: Duration) -> Duration {
    match times.checked_sub(FREE) {
        None | Some(0) => Duration::ZERO,
        // Beyond sixteen doublings it is the longest anyway.
        Some(more) => FIRST.saturating_mul(1 << (more - 1).min(16)).min(longest),
    }
}

impl Failures {
    /// One more, now: how long its answer waits, at most `longest`.
    pub fn failed(&self, address: IpAddr, user: &[u8], longest: Duration, now: Instant) -> Duration {
        if longest.is_zero() {
            return Duration::ZERO;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_canonical(), user.to_vec());
        if known.len() >= MOST && !known.contains_key(&key) {
            known.retain(|_, failed| now.saturating_duration_since(failed.last) < FORGET);
            if known.len() >= MOST {
                let oldest = known.iter().min_by_key(|(_, failed)| failed.last).map(|(key, _)| key.clone());
                oldest.and_then(|oldest| known.remove(&oldest));
            }
        }
        let failed = known.entry(key).or_insert(Failed { times: 0, last: now });
        if now.saturating_duration_since(failed.last) >= FORGET {
            failed.times = 0;
        }
        *failed = Failed { times: failed.times.saturating_add(1), last: now };
        delay(failed.times, longest)
    }

    /// The role was proved from there.
    pub fn succeeded(&self, address: IpAddr, user: &[u8]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.is_empty() {
            known.remove(&(address.to_canonical(), user.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(1);

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_delay_doubles_up_to_the_longest() {
        let shown: Vec<_> =
            [0, 1, 3, 4, 5, 6, 7, 8, 1000].iter().map(|n| delay(*n, LONGEST).as_millis()).collect();
        assert_eq!(shown, [0, 0, 0, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn each_role_and_address_counts_by_itself_until_it_is_proved_or_forgotten() {
        let (failures, now) = (Failures::default(), Instant::now());
        let fail = |address, user: &str, now| failures.failed(address, user.as_bytes(), LONGEST, now);
        for _ in 0..3 {
            assert_eq!(fail(host(1), "app", now), Duration::ZERO);
        }
        assert_eq!(fail(host(1), "app", now), FIRST);
        assert_eq!(fail(host(2), "app", now), Duration::ZERO);
        assert_eq!(fail(host(1), "web", now), Duration::ZERO);
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(fail(mapped, "app", now), FIRST * 2, "the same host");
        failures.succeeded(host(1), b"app");
        assert_eq!(fail(host(1), "app", now), Duration::ZERO);
        for _ in 0..3 {
            fail(host(1), "app", now);
        }
        assert_eq!(fail(host(1), "app", now + FORGET), Duration::ZERO);
        assert_eq!(failures.failed(host(1), b"app", Duration::ZERO, now), Duration::ZERO, "off");
    }

    #[test]
    fn memory_is_bounded() {
        let (failures, now) = (Failures::default(), Instant::now());
        for i in 0..30_000u32 {
            failures.failed(host(1), &i.to_be_bytes(), LONGEST, now);
        }
        assert!(failures.known.lock().unwrap().len() <= MOST);
    }
}
