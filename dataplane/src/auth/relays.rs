//! How many logins may be passed on to servers at once, and what operators are told of them. Sees no message of a login.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Logins under way at once. Each has a place of a pool before its client has proved anything.
const MOST: usize = 4;
/// Of these, from one address: who is silent there keeps nobody else out.
const MOST_OF_ONE: usize = 2;
/// Operators are told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Logins that are passed on.
pub struct Relays {
    few: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    told: Mutex<Option<Instant>>,
}

/// The right to pass a login on.
pub struct Turn {
    _held: [OwnedSemaphorePermit; 2],
}

impl Default for Relays {
    fn default() -> Self {
        Self { few: Arc::new(Semaphore::new(MOST)), by_address: Mutex::default(), told: Mutex::default() }
    }
}

impl Relays {
    /// Waits for the turn of a client at this address, in the order of arrival. It lasts until it is dropped.
    pub async fn turn(&self, from: IpAddr) -> Option<Turn> {
        let own = {
            let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waits or has a turn holds one too.
            by_address.retain(|_, places| Arc::strong_count(places) > 1);
            let places = by_address.entry(from.to_canonical());
            Arc::clone(places.or_insert_with(|| Arc::new(Semaphore::new(MOST_OF_ONE))))
        };
        // Nobody closes them.
        let of_address = own.acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.few).acquire_owned().await.ok()?;
        Some(Turn { _held: [of_address, of_all] })
    }

    /// One went well.
    pub fn tell(&self, client: IpAddr) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            *told = Some(Instant::now());
            tracing::info!(
                %client,
                "a login was passed on to the server, and its session has that one connection to itself; \
                 clients that use TLS, and roles in [[users]], share connections"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::task::AbortOnDropHandle;

    #[tokio::test]
    async fn one_address_has_half_of_the_turns() {
        let relays = Arc::new(Relays::default());
        let turn = |last: u8| {
            let relays = Arc::clone(&relays);
            AbortOnDropHandle::new(tokio::spawn(async move { relays.turn([10, 0, 0, last].into()).await }))
        };
        let (first, second) = (turn(1).await.unwrap(), turn(1).await.unwrap());
        let third = turn(1);
        let other = turn(2).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!third.is_finished() && first.is_some() && second.is_some() && other.is_some());
        drop(first);
        assert!(third.await.unwrap().is_some());
        drop((second, other));
        assert!(turn(3).await.unwrap().is_some());
        assert_eq!(relays.by_address.lock().unwrap().len(), 1, "the others are forgotten");
    }
}
