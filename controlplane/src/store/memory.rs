//! A store that ends with the process: for a standalone proxy without `[store]`, whose configuration is its file.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Append, Document, KEPT, Latch, Meta, Ops, Record, Store, StoreError, Versioned, unix_ms};

/// Lines of the audit log kept.
const RECORDS: usize = 1000;

/// A store in memory.
#[derive(Default)]
pub struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    documents: VecDeque<Document>,
    ops: Versioned<Ops>,
    latch: Versioned<Latch>,
    records: VecDeque<Record>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn log(&mut self, record: Record) {
        self.records.push_back(record);
        if self.records.len() > RECORDS {
            self.records.pop_front();
        }
    }
}

impl Store for Memory {
    fn is_durable(&self) -> bool {
        false
    }

    fn kind(&self) -> &'static str {
        "memory"
    }

    fn current(&self) -> Result<Option<Document>, StoreError> {
        Ok(self.lock().documents.back().cloned())
    }

    fn read(&self, revision: u64) -> Result<Option<Document>, StoreError> {
        Ok(self.lock().documents.iter().find(|document| document.meta.revision == revision).cloned())
    }

    fn append(&self, change: &Append) -> Result<Meta, StoreError> {
        let Append { expected, actor, comment, text, record } = change.clone();
        let mut inner = self.lock();
        let current = inner.documents.back().map_or(0, |document| document.meta.revision);
        if current != expected {
            return Err(StoreError::Conflict { expected, current });
        }
        let meta = Meta { revision: current + 1, at_unix_ms: unix_ms(), actor, comment };
        inner.documents.push_back(Document { meta: meta.clone(), text });
        if inner.documents.len() > KEPT {
            inner.documents.pop_front();
        }
        if let Some(record) = record {
            inner.log(Record { config_revision: meta.revision, ..record });
        }
        Ok(meta)
    }

    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError> {
        Ok(self.lock().documents.iter().rev().take(limit).map(|document| document.meta.clone()).collect())
    }

    fn ops(&self) -> Result<Versioned<Ops>, StoreError> {
        Ok(self.lock().ops.clone())
    }

    fn save_ops(&self, expected: u64, ops: &Ops, record: Option<&Record>) -> Result<u64, StoreError> {
        let mut inner = self.lock();
        if inner.ops.version != expected {
            return Err(StoreError::Stale);
        }
        let version = expected + 1;
        inner.ops = Versioned { value: ops.clone(), version };
        if let Some(record) = record {
            inner.log(record.clone());
        }
        Ok(version)
    }

    fn latch(&self) -> Result<Versioned<Latch>, StoreError> {
        Ok(self.lock().latch.clone())
    }

    fn save_latch(&self, before: &Versioned<Latch>, latch: &Latch) -> Result<u64, StoreError> {
        let mut inner = self.lock();
        if inner.latch.version != before.version {
            return Err(StoreError::Stale);
        }
        if latch.key() < before.value.key() {
            return Err(StoreError::Backwards);
        }
        let version = before.version + 1;
        inner.latch = Versioned { value: latch.clone(), version };
        Ok(version)
    }

    fn audit(&self, record: &Record) -> Result<(), StoreError> {
        self.lock().log(record.clone());
        Ok(())
    }

    fn audited(&self, limit: usize, actor: &str) -> Result<Vec<Record>, StoreError> {
        let inner = self.lock();
        let wanted = |record: &&Record| actor.is_empty() || record.actor == actor;
        Ok(inner.records.iter().rev().filter(wanted).take(limit).cloned().collect())
    }
}
