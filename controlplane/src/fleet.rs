//! The data planes: who is connected, what each has acknowledged and refused, how each is doing. Owner: this registry;
//! a stream holds a [`Seat`] and loses it when dropped. Never sends anything, never judges a snapshot.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use helios_proto::wire::{Refused, v1};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, Kind};

/// Data planes remembered, connected or not.
const MOST: usize = 10_000;

/// Who a data plane says it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The same over restarts.
    pub id: String,
    /// Another one after each start.
    pub boot_id: String,
    /// Version of the program.
    pub version: String,
    /// Where it connects from; empty in a standalone proxy.
    pub address: String,
}

/// A data plane.
#[derive(Debug, Clone)]
pub struct Dataplane {
    /// Who it is.
    pub identity: Identity,
    /// It has a stream now.
    pub connected: bool,
    /// When it came, or went.
    pub since: Instant,
    /// Revision acknowledged.
    pub revision: u64,
    /// Revision of the configuration acknowledged.
    pub config_revision: u64,
    /// How long the last acknowledgement took.
    pub ack: Option<Duration>,
    /// What it refused of the last snapshot.
    pub refused: Vec<Refused>,
    /// How it is doing.
    pub status: v1::Status,
    seat: u64,
    leave: CancellationToken,
}

/// An acknowledgement.
#[derive(Debug, Default)]
pub struct Ack {
    /// Revision in force there.
    pub revision: u64,
    /// Revision of the configuration in force there.
    pub config_revision: u64,
    /// What was refused.
    pub refused: Vec<Refused>,
    /// How long it took.
    pub took: Option<Duration>,
}

/// All data planes.
pub struct Fleet {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    feed: Arc<Feed>,
}

#[derive(Default)]
struct Inner {
    dataplanes: BTreeMap<String, Dataplane>,
    seats: u64,
}

/// A connected data plane's place; dropped: it is gone.
pub struct Seat {
    fleet: Arc<Fleet>,
    id: String,
    number: u64,
    /// Cancelled when a newer stream of the same data plane takes the place.
    pub leave: CancellationToken,
}

impl Fleet {
    /// Nobody yet.
    #[must_use]
    pub fn new(feed: Arc<Feed>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::Sender::new(()), feed })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A data plane connects. An older stream of the same one has to leave.
    #[must_use]
    pub fn join(self: &Arc<Self>, identity: Identity) -> Seat {
        let (id, leave) = (identity.id.clone(), CancellationToken::new());
        let mut inner = self.lock();
        inner.seats += 1;
        let number = inner.seats;
        let dataplane = Dataplane {
            identity,
            connected: true,
            since: Instant::now(),
            revision: 0,
            config_revision: 0,
            ack: None,
            refused: Vec::new(),
            status: v1::Status::default(),
            seat: number,
            leave: leave.clone(),
        };
        let old = inner.dataplanes.insert(id.clone(), dataplane);
        inner.forget();
        drop(inner);
        if let Some(old) = old.filter(|old| old.connected) {
            tracing::warn!(dataplane = %id, "a newer stream of the same data plane takes over; two with one name?");
            old.leave.cancel();
        }
        self.feed.tell(Kind::Dataplane, &id, "connected");
        self.changed.send_replace(());
        Seat { fleet: Arc::clone(self), id, number, leave }
    }

    /// Every data plane, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Dataplane> {
        self.lock().dataplanes.values().cloned().collect()
    }

    /// Waits until every connected data plane has acknowledged `revision`, or gone, or the time is up.
    /// Connected ones, and how many of these have acknowledged.
    pub async fn acknowledged(&self, revision: u64, longest: Duration) -> (u32, u32) {
        let mut changes = self.changed.subscribe();
        let all = async {
            let mut late = None;
            loop {
                changes.borrow_and_update();
                late = self.lock().late(revision, late);
                if late.is_none() || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(longest, all).await;
        let inner = self.lock();
        let connected = || inner.dataplanes.values().filter(|dataplane| dataplane.connected);
        let acknowledged = connected().filter(|dataplane| dataplane.revision >= revision).count();
        let connected = connected().count();
        drop(inner);
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        (number(connected), number(acknowledged))
    }

    /// Forgets all that is known about a data plane that is not connected; for one that is, does nothing.
    fn leave(&self, id: &str, number: u64) {
        let mut inner = self.lock();
        let Some(dataplane) = inner.dataplanes.get_mut(id).filter(|d| d.seat == number) else { return };
        dataplane.connected = false;
        dataplane.since = Instant::now();
        dataplane.status = v1::Status::default();
        drop(inner);
        self.feed.tell(Kind::Dataplane, id, "disconnected");
        self.changed.send_replace(());
    }
}

impl Inner {
    /// A connected data plane that has not acknowledged this revision. Looks on from the one found before: each of many
    /// acknowledgements must not look at everybody again.
    fn late(&self, revision: u64, before: Option<String>) -> Option<String> {
        let late =
            |(_, dataplane): &(&String, &Dataplane)| dataplane.connected && dataplane.revision < revision;
        let from = before.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let further = self.dataplanes.range::<str, _>((from, Bound::Unbounded)).find(late);
        let found = further.or_else(|| self.dataplanes.iter().find(late)).map(|(id, _)| id);
        if found == before.as_ref() { before } else { found.cloned() }
    }

    /// Makes room: those gone longest go first.
    fn forget(&mut self) {
        while self.dataplanes.len() > MOST {
            let gone = self.dataplanes.iter().filter(|(_, dataplane)| !dataplane.connected);
            let Some(id) = gone.min_by_key(|(_, dataplane)| dataplane.since).map(|(id, _)| id.clone()) else {
                return;
            };
            self.dataplanes.remove(&id);
        }
    }
}

impl Seat {
    /// The data plane has taken a message into account.
    pub fn ack(&self, ack: Ack) {
        let Ack { revision, config_revision, refused, took } = ack;
        let mut inner = self.fleet.lock();
        let Some(dataplane) = inner.dataplanes.get_mut(&self.id).filter(|d| d.seat == self.number) else {
            return;
        };
        let news = dataplane.refused != refused && !refused.is_empty();
        dataplane.revision = revision;
        dataplane.config_revision = config_revision;
        dataplane.ack = took.or(dataplane.ack);
        dataplane.refused.clone_from(&refused);
        drop(inner);
        for Refused { name, reason } in refused.iter().filter(|_| news) {
            tracing::warn!(dataplane = %self.id, resource = %name, %reason, "a data plane refused a resource");
            self.fleet.feed.tell(Kind::Dataplane, &self.id, &format!("refused {name}: {reason}"));
        }
        self.fleet.changed.send_replace(());
    }

    /// How the data plane is doing.
    pub fn status(&self, status: v1::Status) {
        let mut inner = self.fleet.lock();
        if let Some(dataplane) = inner.dataplanes.get_mut(&self.id).filter(|d| d.seat == self.number) {
            dataplane.status = status;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.fleet.leave(&self.id, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: &str, boot: &str) -> Identity {
        Identity {
            id: id.to_owned(),
            boot_id: boot.to_owned(),
            version: "1".to_owned(),
            address: String::new(),
        }
    }

    fn ack(revision: u64) -> Ack {
        Ack { revision, ..Ack::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_those_who_are_connected() {
        let fleet = Fleet::new(Feed::new());
        let second = Duration::from_secs(1);
        assert_eq!(fleet.acknowledged(5, second).await, (0, 0));
        let (a, b) = (fleet.join(identity("a", "1")), fleet.join(identity("b", "1")));
        a.ack(ack(5));
        b.ack(ack(4));
        assert_eq!(fleet.acknowledged(5, second).await, (2, 1), "time is up");
        let waiting = fleet.acknowledged(5, second * 60);
        let leaving = async {
            tokio::time::sleep(second).await;
            drop(b);
        };
        assert_eq!(tokio::join!(waiting, leaving).0, (1, 1), "who is gone is not waited for");
        assert_eq!(fleet.list().len(), 2, "but known");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_overlooked_in_whatever_order_they_answer() {
        let fleet = Fleet::new(Feed::new());
        let join = |number: u32| fleet.join(identity(&format!("dp-{number}"), "1"));
        let mut seats: Vec<Seat> = (1..9).map(join).collect();
        let second = Duration::from_secs(1);
        let answers = async {
            tokio::task::yield_now().await;
            // One more comes, before all others in the order of names.
            seats.push(join(0));
            for number in [7, 0, 3, 1, 5, 4, 6, 2] {
                seats[number].ack(ack(5));
                tokio::time::sleep(second).await;
            }
            seats[8].ack(ack(5));
            seats
        };
        let (counted, seats) = tokio::join!(fleet.acknowledged(5, second * 60), answers);
        assert_eq!((counted, seats.len()), ((9, 9), 9));
    }

    #[tokio::test]
    async fn a_newer_stream_takes_the_place_of_an_older_one() {
        let fleet = Fleet::new(Feed::new());
        let old = fleet.join(identity("a", "1"));
        let new = fleet.join(identity("a", "2"));
        assert!(old.leave.is_cancelled() && !new.leave.is_cancelled());
        old.ack(ack(9));
        drop(old);
        let [dataplane] = fleet.list().try_into().unwrap();
        assert!(dataplane.connected && dataplane.revision == 0 && dataplane.identity.boot_id == "2");
    }
}
