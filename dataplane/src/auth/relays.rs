//! How many logins may be passed on to servers at once, and what operators are told of them. Sees no message of a login.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Logins under way at once. Each has a place of a pool before its client has proved anything.
const MOST: usize = 4;
/// Operators are told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Logins that are passed on.
pub struct Relays {
    few: Semaphore,
    told: Mutex<Option<Instant>>,
}

impl Default for Relays {
    fn default() -> Self {
        Self { few: Semaphore::const_new(MOST), told: Mutex::default() }
    }
}

impl Relays {
    /// Waits for its turn, in the order of arrival. It lasts until the permit is dropped.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.few.acquire().await.ok()
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
