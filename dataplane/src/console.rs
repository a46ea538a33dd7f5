//! The admin console: what a client finds that connects to the virtual database `pgbouncer`, or `helios`, on the ordinary
//! port. `talk` speaks the simple query protocol, `command` reads what is said, `census` counts what is there, `show` lays
//! it out in the columns of PgBouncer 1.18, `orders` carries changes out. Never opens a server connection, never takes part
//! in the relay of a statement, and shows no statement and no secret.

mod averages;
mod census;
mod command;
mod config;
mod orders;
mod show;
mod stats;
mod table;
mod talk;

pub use talk::{Over, Talk, greet};

use self::averages::Averages;
use crate::pool::Identities;
use helios_pgwire::PgError;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What the console calls its own database, whatever name a client has used.
const DATABASE: &str = "pgbouncer";

/// Whether a database of this name is the console, where there is one.
#[must_use]
pub fn is_console(database: &[u8]) -> bool {
    matches!(database, b"pgbouncer" | b"helios")
}

/// What the console of a data plane in a fleet says to a change.
#[must_use]
pub fn of_a_fleet() -> PgError {
    PgError::error("0A000", "the control plane decides over this data plane")
        .hint("Use heliosctl: pool pause, pool resume, pool reconnect, config apply.")
}

/// Who speaks on the console.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Role.
    pub user: String,
    /// Address.
    pub from: SocketAddr,
}

/// A change that goes the way of operators' changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// No node gives a server connection any more, and those that are open close.
    Pause,
    /// All nodes go on.
    Resume,
    /// All server connections close as they come back.
    Reconnect,
    /// Nothing about nodes: what this process does by itself is only written down, with its outcome.
    Own(String),
}

/// An order with who gives it and what the audit log is to say: verb and detail.
pub struct Ordered {
    /// The order.
    pub order: Order,
    /// Who.
    pub caller: Caller,
    /// Such as `PAUSE`.
    pub verb: &'static str,
    /// Of what.
    pub detail: String,
}

/// Carries an order out; the revision of the snapshot that has it.
pub type Obey =
    Box<dyn Fn(Ordered) -> Pin<Box<dyn Future<Output = Result<u64, Box<PgError>>> + Send>> + Send + Sync>;

/// Asks for the configuration to be read again; answered with why not.
pub type Reload = oneshot::Sender<Result<(), String>>;

/// What the console needs beside what all workers share.
pub struct Desk {
    obey: Obey,
    reload: mpsc::Sender<Reload>,
    listen: SocketAddr,
    averages: Averages,
    /// Commands so far.
    commands: AtomicU64,
}

impl Desk {
    /// A desk whose orders go to `obey` and `reload`, of a data plane that listens there.
    #[must_use]
    pub fn new(obey: Obey, reload: mpsc::Sender<Reload>, listen: SocketAddr) -> Self {
        let averages = Averages::new(Instant::now());
        Self { obey, reload, listen, averages, commands: AtomicU64::new(0) }
    }

    /// Follows what is counted, for the averages of `SHOW STATS`, until stopped.
    pub async fn follow(self: Arc<Self>, identities: Arc<Identities>, stop: CancellationToken) {
        let mut period = tokio::time::interval(averages::PERIOD);
        period.tick().await;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = period.tick() => {
                    self.averages.take(Instant::now(), stats::totals(&self, &identities));
                }
            }
        }
    }
}
