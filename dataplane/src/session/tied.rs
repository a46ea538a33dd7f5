//! Why a session is tied to its server connection, as metrics show it: counted in and out, however the session ends.

use crate::metrics::{Counters, count};
use crate::route::Pins;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reasons of one session that are counted.
pub struct Tied {
    counters: Arc<Counters>,
    pins: Pins,
}

impl Tied {
    /// Not tied.
    #[must_use]
    pub const fn new(counters: Arc<Counters>) -> Self {
        Self { counters, pins: Pins::NONE }
    }

    /// Tied for these reasons now.
    pub fn set(&mut self, pins: Pins) {
        if pins == self.pins {
            return;
        }
        if self.pins.is_empty() && !pins.is_empty() {
            count(&self.counters.pinned);
        }
        for (at, (pin, _)) in Pins::WORDS.iter().enumerate() {
            let Some(reason) = self.counters.pins.get(at) else { continue };
            match (self.pins.contains(*pin), pins.contains(*pin)) {
                (false, true) => {
                    count(&reason.begun);
                    count(&reason.now);
                }
                (true, false) => {
                    reason.now.fetch_sub(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        self.pins = pins;
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.set(Pins::NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_in_and_out() {
        let counters = Arc::new(Counters::default());
        let seen = |at: usize| {
            let reason = &counters.pins[at];
            (reason.begun.load(Ordering::Relaxed), reason.now.load(Ordering::Relaxed))
        };
        let mut tied = Tied::new(Arc::clone(&counters));
        tied.set(Pins::LISTEN);
        tied.set(Pins::LISTEN.union(Pins::SETTING));
        assert_eq!((seen(0), seen(1)), ((1, 1), (1, 1)));
        tied.set(Pins::SETTING);
        tied.set(Pins::SETTING.union(Pins::LISTEN));
        assert_eq!((seen(0), seen(1)), ((1, 1), (2, 1)));
        drop(tied);
        assert_eq!((seen(0), seen(1)), ((1, 0), (2, 0)));
        assert_eq!(counters.pinned.load(Ordering::Relaxed), 1);
    }
}
