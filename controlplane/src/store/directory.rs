//! A store in a directory that people can read: `revisions/000042.toml` (its first line says who, when and why),
//! `current` (the number in force), `ops.json`, `latch.json`, `audit.jsonl`. One process at a time, by a lock on
//! `lock`. What is replaced is written beside, synced and renamed, so that a crash leaves the old or the new.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Append, Document, KEPT, Latch, Meta, Ops, Record, Store, StoreError, Versioned, stored, unix_ms,
};

/// Starts the first line of a revision; JSON follows.
const HEAD: &str = "#! ";
/// Bytes read from the end of the audit log at most.
const TAIL: u64 = 1 << 20;

/// A store in a directory.
pub struct Directory {
    path: PathBuf,
    /// One change at a time.
    change: Mutex<Change>,
}

/// What changes take turns with.
struct Change {
    /// Open, which holds the lock.
    _lock: File,
    /// Versions of marks and latch, counted from the start of the process: nobody else writes them.
    ops: u64,
    latch: u64,
}

impl Directory {
    /// Opens the directory, making it if it is not there.
    ///
    /// # Errors
    /// It cannot be made or written, or another process has it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join("revisions"));
        made.map_err(|source| StoreError::Io { what: format!("make the store {shown}"), source })?;
        let lock = private(OpenOptions::new().write(true).create(true), &path.join("lock"))?;
        lock.try_lock().map_err(|error| {
            let what = match &error {
                TryLockError::WouldBlock => format!("open the store {shown}: another process has it"),
                TryLockError::Error(_) => format!("lock the store {shown}"),
            };
            StoreError::Io { what, source: error.into() }
        })?;
        Ok(Self { path: path.to_owned(), change: Mutex::new(Change { _lock: lock, ops: 0, latch: 0 }) })
    }

    fn revision_path(&self, revision: u64) -> PathBuf {
        self.path.join("revisions").join(format!("{revision:06}.toml"))
    }

    fn current_number(&self) -> Result<u64, StoreError> {
        let path = self.path.join("current");
        let Some(text) = read(&path)? else { return Ok(0) };
        text.trim().parse().map_err(|_| damaged(&path, "it holds no number"))
    }

    /// Replaces a file whole.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let beside = path.with_extension("new");
        let failed = |source| StoreError::Io { what: format!("write {}", path.display()), source };
        let mut file = private(OpenOptions::new().write(true).create(true).truncate(true), &beside)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)?;
        let folder = path.parent().unwrap_or(&self.path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn parsed<T: Default>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> serde_json::Result<T>,
    ) -> Result<T, StoreError> {
        let path = self.path.join(name);
        let Some(text) = read(&path)? else { return Ok(T::default()) };
        parse(&text).map_err(|error| damaged(&path, &error.to_string()))
    }

    fn save(&self, name: &str, text: serde_json::Result<String>) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let mut text = text.map_err(|error| StoreError::Io {
            what: format!("write {}", path.display()),
            source: error.into(),
        })?;
        text.push('\n');
        self.replace(&path, text.as_bytes())
    }

    fn turn(&self) -> MutexGuard<'_, Change> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the audit log; the change lock is held.
    fn log(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path.join("audit.jsonl");
        let failed = |source| StoreError::Io { what: format!("write {}", path.display()), source };
        let mut line = serde_json::to_string(record).map_err(|error| failed(error.into()))?;
        line.push('\n');
        let mut file = private(OpenOptions::new().read(true).append(true).create(true), &path)?;
        // A crash may have left half a line: this one starts anew.
        if !ends_well(&mut file).map_err(failed)? {
            line.insert(0, '\n');
        }
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)
    }

    /// Writes down a change that is made already: a log that cannot be written does not undo it.
    fn log_made(&self, record: Option<&Record>) {
        if let Some(Err(error)) = record.map(|record| self.log(record)) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }

    /// Numbers of the revisions there, in order.
    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let path = self.path.join("revisions");
        let entries = fs::read_dir(&path)
            .map_err(|source| StoreError::Io { what: format!("read {}", path.display()), source })?;
        let number = |name: &str| name.strip_suffix(".toml")?.parse().ok();
        let mut numbers: Vec<u64> =
            entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Removes what is beyond the revisions kept. What cannot be removed stays: it does no harm.
    fn prune(&self) {
        let numbers = self.numbers().unwrap_or_default();
        let spare = numbers.len().saturating_sub(KEPT);
        for number in numbers.into_iter().take(spare) {
            let _ = fs::remove_file(self.revision_path(number));
        }
    }
}

impl Store for Directory {
    fn is_durable(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn current(&self) -> Result<Option<Document>, StoreError> {
        match self.current_number()? {
            0 => Ok(None),
            number => {
                let path = self.revision_path(number);
                self.read(number)?.map(Some).ok_or_else(|| damaged(&path, "it is in force and missing"))
            }
        }
    }

    fn read(&self, revision: u64) -> Result<Option<Document>, StoreError> {
        let path = self.revision_path(revision);
        let Some(content) = read(&path)? else { return Ok(None) };
        let parsed = content.strip_prefix(HEAD).and_then(|rest| {
            let (head, text) = rest.split_once('\n')?;
            let meta: Meta = serde_json::from_str(head).ok()?;
            (meta.revision == revision).then(|| Document { meta, text: text.to_owned() })
        });
        parsed.map(Some).ok_or_else(|| damaged(&path, "its first line is not that of this revision"))
    }

    fn append(&self, change: &Append) -> Result<Meta, StoreError> {
        let Append { expected, actor, comment, text, record } = change.clone();
        let _one_at_a_time = self.turn();
        let current = self.current_number()?;
        if current != expected {
            return Err(StoreError::Conflict { expected, current });
        }
        let meta = Meta { revision: current + 1, at_unix_ms: unix_ms(), actor, comment };
        let path = self.revision_path(meta.revision);
        let head = serde_json::to_string(&meta).map_err(|error| StoreError::Io {
            what: format!("write {}", path.display()),
            source: error.into(),
        })?;
        self.replace(&path, format!("{HEAD}{head}\n{text}").as_bytes())?;
        self.replace(&self.path.join("current"), format!("{}\n", meta.revision).as_bytes())?;
        self.log_made(record.map(|record| Record { config_revision: meta.revision, ..record }).as_ref());
        self.prune();
        Ok(meta)
    }

    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError> {
        let current = self.current_number()?;
        let numbers = self.numbers()?.into_iter().rev().filter(|number| *number <= current);
        // A damaged one is left out: the others still tell their story.
        Ok(numbers
            .filter_map(|number| self.read(number).ok().flatten())
            .map(|d| d.meta)
            .take(limit)
            .collect())
    }

    fn ops(&self) -> Result<Versioned<Ops>, StoreError> {
        let version = self.turn().ops;
        Ok(Versioned { value: self.parsed("ops.json", stored::ops_from_json)?, version })
    }

    fn save_ops(&self, expected: u64, ops: &Ops, record: Option<&Record>) -> Result<u64, StoreError> {
        let mut turn = self.turn();
        if turn.ops != expected {
            return Err(StoreError::Stale);
        }
        self.save("ops.json", stored::ops_to_json(ops))?;
        turn.ops += 1;
        self.log_made(record);
        Ok(turn.ops)
    }

    fn latch(&self) -> Result<Versioned<Latch>, StoreError> {
        let version = self.turn().latch;
        Ok(Versioned { value: self.parsed("latch.json", |text| serde_json::from_str(text))?, version })
    }

    fn save_latch(&self, before: &Versioned<Latch>, latch: &Latch) -> Result<u64, StoreError> {
        let mut turn = self.turn();
        if turn.latch != before.version {
            return Err(StoreError::Stale);
        }
        if latch.key() < before.value.key() {
            return Err(StoreError::Backwards);
        }
        self.save("latch.json", serde_json::to_string_pretty(latch))?;
        turn.latch += 1;
        Ok(turn.latch)
    }

    fn audit(&self, record: &Record) -> Result<(), StoreError> {
        let _one_at_a_time = self.turn();
        self.log(record)
    }

    fn audited(&self, limit: usize, actor: &str) -> Result<Vec<Record>, StoreError> {
        let path = self.path.join("audit.jsonl");
        let text = tail(&path)
            .map_err(|source| StoreError::Io { what: format!("read {}", path.display()), source })?;
        let records = text.lines().rev().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        Ok(records.filter(|record| actor.is_empty() || record.actor == actor).take(limit).collect())
    }
}

/// Opens a file that only its owner reads.
fn private(options: &mut OpenOptions, path: &Path) -> Result<File, StoreError> {
    let opened = options.mode(0o600).open(path);
    opened.map_err(|source| StoreError::Io { what: format!("open {}", path.display()), source })
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { what: format!("read {}", path.display()), source }),
    }
}

fn damaged(path: &Path, why: &str) -> StoreError {
    StoreError::Damaged { what: path.display().to_string(), why: why.to_owned() }
}

fn ends_well(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The last part of a file, from the start of a line; empty if there is no file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened?,
    };
    let skipped = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match text.split_once('\n') {
        Some((_, whole)) if skipped > 0 => whole.to_owned(),
        _ => text,
    })
}
