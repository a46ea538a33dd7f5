//! The lease of this process and what it makes of it: a name among the control planes, perhaps the leader's. A lease is
//! no lock: whoever holds it is asked to do what only one should do, and every write is guarded all the same.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use tokio::time::{Instant, timeout};

use super::keys::Keys;
use super::words;

/// How long a lease lives without word from its holder, in seconds as etcd counts and as time.
const TTL: (i64, Duration) = (5, Duration::from_secs(5));
/// A leader stops to be one this long before others may think so.
const MARGIN: Duration = Duration::from_millis(1_500);
/// Longest wait for one answer.
const ATTEMPT: Duration = Duration::from_secs(1);

/// The lease of this process.
#[derive(Default)]
pub(super) struct Hold(Mutex<Option<Lease>>);

/// A lease, and until when it surely lives: counted from when its renewal was sent.
#[derive(Clone, Copy)]
struct Lease {
    id: i64,
    until: Instant,
}

/// Renews a lease.
pub(super) struct Keeping {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Hold {
    fn get(&self) -> Option<Lease> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, lease: Option<Lease>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Whether this lease is ours and good for a while.
    pub fn is(&self, lease: i64) -> bool {
        self.get().is_some_and(|held| held.id == lease && Instant::now() + MARGIN < held.until)
    }

    /// Goes on with the lease held, or takes a new one and puts the name under it.
    pub async fn take(&self, client: &mut Client, keys: &Keys, name: &str) -> Result<Keeping, String> {
        if let Some(lease) = self.get().filter(|lease| Instant::now() < lease.until) {
            let sent = Instant::now();
            // An error: it is gone, or will be.
            if let Ok(Ok(keeping)) = timeout(ATTEMPT, client.lease_keep_alive(lease.id)).await {
                self.set(Some(Lease { id: lease.id, until: sent + TTL.1 }));
                return Ok(Keeping { keeper: keeping.0, answers: keeping.1 });
            }
        }
        let sent = Instant::now();
        let granted = bounded("the lease", client.lease_grant(TTL.0, None)).await?;
        let id = granted.id();
        let put = client.put(keys.member(id), name, Some(PutOptions::new().with_lease(id)));
        bounded("the name", put).await?;
        let (keeper, answers) = bounded("the lease", client.lease_keep_alive(id)).await?;
        self.set(Some(Lease { id, until: sent + TTL.1 }));
        Ok(Keeping { keeper, answers })
    }

    /// Renews the lease once.
    pub async fn renew(&self, keeping: &mut Keeping) -> Result<(), String> {
        let sent = Instant::now();
        let answer = async {
            keeping.keeper.keep_alive().await?;
            keeping.answers.message().await
        };
        let answer = bounded("the lease", answer).await?;
        let answer = answer.filter(|answer| answer.ttl() > 0);
        let Some(lease) = self.get().filter(|_| answer.is_some()) else {
            self.set(None);
            return Err("the lease is gone".to_owned());
        };
        self.set(Some(Lease { until: sent + TTL.1, ..lease }));
        Ok(())
    }

    /// Becomes the leader if there is none.
    pub async fn campaign(&self, client: &mut Client, keys: &Keys, name: &str) -> Result<(), String> {
        let Some(Lease { id, .. }) = self.get() else { return Ok(()) };
        let nobody = Compare::create_revision(keys.leader(), CompareOp::Equal, 0);
        let put = TxnOp::put(keys.leader(), name, Some(PutOptions::new().with_lease(id)));
        let txn = Txn::new().when(vec![nobody]).and_then(vec![put]);
        bounded("the campaign", client.txn(txn)).await.map(drop)
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    pub async fn give_back(&self, client: &mut Client) {
        if let Some(Lease { id, .. }) = self.get() {
            self.set(None);
            // An error: it ends by itself.
            let _ = timeout(ATTEMPT, client.lease_revoke(id)).await;
        }
    }
}

/// One call, no longer than an attempt may take.
pub(super) async fn bounded<T>(
    what: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, String> {
    match timeout(ATTEMPT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer to {what} within {} s", ATTEMPT.as_secs())),
    }
}
