//! The last good snapshot on disk, with this data plane's number in cancel keys: one file, private, with a hash, replaced by renaming. A file that is damaged, or of
//! another fleet, is as good as none. Owner of one task that writes at most once a second.

use helios_proto::model::{Health, Snapshot};
use helios_proto::wire::{self, v1};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// First bytes of the file; another format gets another one.
const MAGIC: &[u8; 8] = b"helios\x001";
/// Bytes of a hash.
const HASH: usize = 32;
/// A larger file is none of ours.
const LARGEST: u64 = 64 << 20;
/// Changes in quick succession are written once.
const GATHER: Duration = Duration::from_secs(1);

/// A snapshot to keep, with the hash of its resources as the control plane sent them.
pub type Kept = Option<(Arc<Snapshot>, Vec<u8>)>;

/// Where the file is.
pub struct Place {
    path: PathBuf,
    cluster: String,
    /// Number of this data plane in cancel keys; goes into the file, and comes from it.
    number: Arc<AtomicU32>,
}

impl Place {
    /// In this directory, for this fleet.
    #[must_use]
    pub fn new(directory: &Path, cluster: &str, number: &Arc<AtomicU32>) -> Self {
        let (path, cluster) = (directory.join("last-good-snapshot"), cluster.to_owned());
        Self { path, cluster, number: Arc::clone(number) }
    }

    /// The snapshot and the hash, if there is a good file. Health and lag are not believed: they were of another day.
    #[must_use]
    pub fn load(&self) -> Option<(Snapshot, Vec<u8>)> {
        let ignored = |why: &str| {
            tracing::warn!(file = %self.path.display(), "the last good snapshot is ignored: {why}");
            None
        };
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return ignored(&error.to_string()),
        };
        let (Some(hash), Some(body)) =
            (bytes.get(MAGIC.len()..MAGIC.len() + HASH), bytes.get(MAGIC.len() + HASH..))
        else {
            return ignored("it is too short");
        };
        if !bytes.starts_with(MAGIC) {
            return ignored("it is of another format");
        }
        if Sha256::digest(body).as_slice() != hash {
            return ignored("it is damaged");
        }
        let decoded = v1::Hello::decode_length_delimited(body).and_then(|hello| {
            let rest = body.get(hello.encoded_len() + prost::length_delimiter_len(hello.encoded_len())..);
            Ok((hello, v1::Full::decode(rest.unwrap_or_default())?))
        });
        let Ok((hello, full)) = decoded else { return ignored("it cannot be read") };
        if hello.cluster != self.cluster {
            return ignored("it is of another fleet");
        }
        match Snapshot::try_from(full) {
            Ok(mut snapshot) => {
                for state in &mut snapshot.nodes {
                    state.health = Health::Unknown;
                    (state.lag, state.lag_bytes, state.latency) = (None, None, None);
                    (state.recovered_at, state.probed_at, state.last_error) = (None, None, None);
                }
                self.number.store(hello.cancel_id, Ordering::Relaxed);
                Some((snapshot, hello.sha256))
            }
            Err(refused) => ignored(&format!("{}: {}", refused.name, refused.reason)),
        }
    }

    fn save(&self, snapshot: &Snapshot, sha256: &[u8]) -> io::Result<()> {
        let head = v1::Hello {
            cluster: self.cluster.clone(),
            sha256: sha256.to_vec(),
            revision: snapshot.revision,
            epoch: snapshot.epoch,
            cancel_id: self.number.load(Ordering::Relaxed),
            ..v1::Hello::default()
        };
        let mut body = head.encode_length_delimited_to_vec();
        body.extend(wire::full(snapshot, Instant::now()).encode_to_vec());
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let beside = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(&body))?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(directory)?.sync_all()
    }

    /// Keeps what comes, until stopped.
    pub async fn run(self, mut kept: watch::Receiver<Kept>, stop: CancellationToken) {
        let place = Arc::new(self);
        loop {
            let more = tokio::select! {
                biased;
                () = stop.cancelled() => false,
                changed = kept.changed() => changed.is_ok(),
            };
            let Some((snapshot, hash)) = kept.borrow_and_update().clone() else {
                if more { continue } else { return }
            };
            let place = Arc::clone(&place);
            let path = place.path.display().to_string();
            let saved = tokio::task::spawn_blocking(move || place.save(&snapshot, &hash)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(file = %path, %error, "the last good snapshot cannot be kept (state_dir in [control_plane])");
            }
            if !more {
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn snapshot() -> Snapshot {
        let text =
            "[[users]]\nname = \"a\"\npassword = \"hush\"\n[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
        let spec = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec;
        let mut snapshot = super::super::seed(&spec);
        (snapshot.revision, snapshot.epoch) = (7, 2);
        snapshot.nodes[0].health = Health::Down;
        snapshot
    }

    #[test]
    fn what_was_kept_comes_back_and_damage_is_noticed() {
        let directory = std::env::temp_dir().join(format!("helios-last-good-{}", std::process::id()));
        let number = Arc::new(AtomicU32::new(17));
        let place = Place::new(&directory, "ours", &number);
        assert!(place.load().is_none());
        place.save(&snapshot(), b"hash").unwrap();
        number.store(0, Ordering::Relaxed);
        let (held, hash) = place.load().unwrap();
        assert_eq!(number.load(Ordering::Relaxed), 17);
        assert_eq!((held.revision, held.epoch, hash.as_slice()), (7, 2, &b"hash"[..]));
        assert_eq!(held.settings, snapshot().settings);
        assert_eq!(held.nodes[0].health, Health::Unknown, "of another day");
        assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Place::new(&directory, "theirs", &number).load().is_none(), "another fleet");
        let good = fs::read(&place.path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&place.path, bad).unwrap();
            assert!(place.load().is_none(), "byte {at}");
            fs::write(&place.path, &good[..at]).unwrap();
            assert!(place.load().is_none(), "cut at {at}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
