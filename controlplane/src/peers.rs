//! The numbers of data planes in cancel keys, and where each data plane takes cancel requests: who gets which, and the
//! list that goes to all of them. Never two live data planes with one number, and none is given away within ten minutes.
//! Owner of one small file, so that numbers outlive this process. Never sees a cancel request.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use helios_proto::wire::v1::{PeerEntry, Peers as List};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

/// The file, in the store's directory.
pub const FILE: &str = "cancel-ids.json";
/// Highest number: 13 bits.
const MOST: u32 = 8191;
/// Nobody gets the number of a data plane that left less than this ago.
const QUARANTINE: Duration = Duration::from_secs(600);

/// Every data plane with a number, by name.
pub struct Peers {
    held: Mutex<BTreeMap<String, Held>>,
    list: watch::Sender<Arc<Vec<PeerEntry>>>,
    file: Option<PathBuf>,
}

struct Held {
    id: u32,
    address: String,
    /// Streams of this data plane; a newer one may come before the older has gone.
    streams: usize,
    /// When the last of them went.
    left: Instant,
}

/// As the file has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: u32,
    address: String,
}

/// A data plane's number, for as long as its stream lives.
pub struct Numbered {
    peers: Arc<Peers>,
    name: String,
    id: u32,
}

impl Peers {
    /// Goes on with what a file holds. Those in it may still live: they count as gone just now.
    #[must_use]
    pub fn open(file: Option<PathBuf>) -> Arc<Self> {
        let stored = file.as_ref().map(read).unwrap_or_default();
        let left = Instant::now();
        let held =
            |(name, Stored { id, address }): (String, Stored)| (name, Held { id, address, streams: 0, left });
        let held: BTreeMap<_, _> = stored.into_iter().map(held).collect();
        let list = watch::Sender::new(Arc::new(listed(&held)));
        Arc::new(Self { held: Mutex::new(held), list, file })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A data plane connects: it keeps the number that it has here, or that it wants and nobody has; else it gets one.
    #[must_use]
    pub fn join(self: &Arc<Self>, name: &str, wanted: u32, address: &str) -> Numbered {
        let mut held = self.lock();
        held.retain(|_, one| one.streams > 0 || one.left.elapsed() < QUARANTINE);
        let id = match held.get(name) {
            Some(own) => own.id,
            None => free(&held, wanted),
        };
        if id == 0 {
            tracing::warn!(dataplane = %name, "every number for cancel keys is taken; its clients cancel at itself only");
        } else {
            let left = Instant::now();
            let new = || Held { id, address: String::new(), streams: 0, left };
            let own = held.entry(name.to_owned()).or_insert_with(new);
            address.clone_into(&mut own.address);
            own.streams = own.streams.saturating_add(1);
        }
        let list = listed(&held);
        let changed = **self.list.borrow() != list;
        if changed {
            self.list.send_replace(Arc::new(list));
            self.save(&held);
        }
        drop(held);
        Numbered { peers: Arc::clone(self), name: name.to_owned(), id }
    }

    /// What is lost here is learnt again from the data planes.
    fn save(&self, held: &BTreeMap<String, Held>) {
        let Some(file) = &self.file else { return };
        let stored: BTreeMap<&String, Stored> = held
            .iter()
            .map(|(name, one)| (name, Stored { id: one.id, address: one.address.clone() }))
            .collect();
        let write = || -> io::Result<()> {
            let text = serde_json::to_string_pretty(&stored)?;
            let beside = file.with_extension("new");
            let mut options = OpenOptions::new();
            let mut new = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&beside, file)
        };
        if let Err(error) = write() {
            tracing::error!(file = %file.display(), %error, "the numbers for cancel keys cannot be kept");
        }
    }
}

fn read(file: &PathBuf) -> BTreeMap<String, Stored> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the numbers for cancel keys cannot be read");
            return BTreeMap::new();
        }
    };
    let read: Result<BTreeMap<String, Stored>, _> = serde_json::from_str(&text);
    let mut read = read.unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "the numbers for cancel keys are damaged");
        BTreeMap::new()
    });
    let mut seen = std::collections::BTreeSet::new();
    read.retain(|_, stored| (1..=MOST).contains(&stored.id) && seen.insert(stored.id));
    read
}

fn listed(held: &BTreeMap<String, Held>) -> Vec<PeerEntry> {
    held.values().map(|one| PeerEntry { cancel_id: one.id, address: one.address.clone() }).collect()
}

/// The number wanted, else one at random: a control plane that has forgotten everything is unlikely to give one that a
/// data plane still has. 0: all are taken.
fn free(held: &BTreeMap<String, Held>, wanted: u32) -> u32 {
    let mut taken = vec![false; usize::try_from(MOST).unwrap_or(0) + 1];
    for one in held.values() {
        if let Some(taken) = usize::try_from(one.id).ok().and_then(|id| taken.get_mut(id)) {
            *taken = true;
        }
    }
    let is_free = |id: &u32| usize::try_from(*id).ok().and_then(|id| taken.get(id)) == Some(&false);
    if (1..=MOST).contains(&wanted) && is_free(&wanted) {
        return wanted;
    }
    let random = RandomState::new().hash_one(SystemTime::now());
    let first = u32::try_from(random % u64::from(MOST)).unwrap_or(0);
    (0..MOST).map(|step| (first + step) % MOST + 1).find(is_free).unwrap_or(0)
}

impl Numbered {
    /// The list as it changes; the first is there already.
    #[must_use]
    pub fn list(&self) -> watch::Receiver<Arc<Vec<PeerEntry>>> {
        let mut list = self.peers.list.subscribe();
        list.mark_changed();
        list
    }

    /// What this data plane is to be told.
    #[must_use]
    pub fn message(&self, entries: &[PeerEntry]) -> List {
        List { cancel_id: self.id, entries: entries.to_vec() }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let mut held = self.peers.lock();
        if let Some(own) = held.get_mut(&self.name).filter(|_| self.id != 0) {
            own.streams = own.streams.saturating_sub(1);
            own.left = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn numbers_are_kept_and_not_given_away_too_soon() {
        let peers = Peers::open(None);
        let a = peers.join("a", 0, "a:1");
        assert!((1..=MOST).contains(&a.id));
        let wants = peers.join("b", a.id, "b:1");
        assert_ne!(wants.id, a.id, "taken");
        let c = peers.join("c", 77, "c:1");
        assert!(c.id == 77 || a.id == 77 || wants.id == 77);
        let (of_a, of_b) = (a.id, wants.id);
        // Back under its name, whatever it wants; a newer stream may come first.
        let again = peers.join("a", 5, "a:2");
        drop(a);
        assert_eq!(again.id, of_a);
        assert!(again.list().borrow().contains(&PeerEntry { cancel_id: of_a, address: "a:2".to_owned() }));
        drop(wants);
        tokio::time::advance(QUARANTINE - Duration::from_secs(1)).await;
        assert_ne!(peers.join("d", of_b, "d:1").id, of_b, "in quarantine");
        assert!(again.list().borrow().iter().any(|entry| entry.cancel_id == of_b), "and still listed");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(peers.join("e", of_b, "e:1").id, of_b, "free again");
        assert_ne!(peers.join("f", of_a, "f:1").id, of_a, "who lives keeps his");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_forgets_nothing_and_damage_is_no_disaster() {
        let file = std::env::temp_dir().join(format!("helios-peers-{}.json", std::process::id()));
        let first = Peers::open(Some(file.clone()));
        let a = first.join("a", 9, "a:1").id;
        let again = Peers::open(Some(file.clone()));
        assert_eq!(again.list.borrow().len(), 1);
        assert_ne!(again.join("b", a, "b:1").id, a);
        assert_eq!(again.join("a", 0, "a:1").id, a);
        fs::write(&file, "{").unwrap();
        assert_eq!(Peers::open(Some(file.clone())).join("b", 9, "b:1").id, 9);
        fs::write(&file, "{\"a\":{\"id\":9000,\"address\":\"\"},\"b\":{\"id\":3,\"address\":\"x\"}}")
            .unwrap();
        assert_eq!(Peers::open(Some(file.clone())).list.borrow().len(), 1);
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn when_all_are_taken_there_is_none() {
        let left = Instant::now();
        let one = |id: u32| (id.to_string(), Held { id, address: String::new(), streams: 1, left });
        let mut held: BTreeMap<_, _> = (1..=MOST).map(one).collect();
        assert_eq!(free(&held, 5), 0);
        held.remove("4000");
        assert_eq!((free(&held, 5), free(&held, 4000)), (4000, 4000));
    }
}
