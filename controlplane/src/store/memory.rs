//! A store that ends with the process: for a standalone proxy without `[store]`, whose configuration is its file.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Document, KEPT, Latch, Meta, Ops, Record, Store, StoreError, unix_ms};

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
    ops: Ops,
    latch: Latch,
    records: VecDeque<Record>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn is_durable(&self) -> bool {
        false
    }

    fn current(&self) -> Result<Option<Document>, StoreError> {
        Ok(self.lock().documents.back().cloned())
    }

    fn read(&self, revision: u64) -> Result<Option<Document>, StoreError> {
        Ok(self.lock().documents.iter().find(|document| document.meta.revision == revision).cloned())
    }

    fn append(&self, expected: u64, actor: &str, comment: &str, text: &str) -> Result<Meta, StoreError> {
        let mut inner = self.lock();
        let current = inner.documents.back().map_or(0, |document| document.meta.revision);
        if current != expected {
            return Err(StoreError::Conflict { expected, current });
        }
        let (actor, comment) = (actor.to_owned(), comment.to_owned());
        let meta = Meta { revision: current + 1, at_unix_ms: unix_ms(), actor, comment };
        inner.documents.push_back(Document { meta: meta.clone(), text: text.to_owned() });
        if inner.documents.len() > KEPT {
            inner.documents.pop_front();
        }
        Ok(meta)
    }

    fn history(&self, limit: usize) -> Result<Vec<Meta>, StoreError> {
        Ok(self.lock().documents.iter().rev().take(limit).map(|document| document.meta.clone()).collect())
    }

    fn ops(&self) -> Result<Ops, StoreError> {
        Ok(self.lock().ops.clone())
    }

    fn save_ops(&self, ops: &Ops) -> Result<(), StoreError> {
        self.lock().ops = ops.clone();
        Ok(())
    }

    fn latch(&self) -> Result<Latch, StoreError> {
        Ok(self.lock().latch.clone())
    }

    fn save_latch(&self, latch: &Latch) -> Result<(), StoreError> {
        self.lock().latch = latch.clone();
        Ok(())
    }

    fn audit(&self, record: &Record) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.records.push_back(record.clone());
        if inner.records.len() > RECORDS {
            inner.records.pop_front();
        }
        Ok(())
    }

    fn audited(&self, limit: usize, actor: &str) -> Result<Vec<Record>, StoreError> {
        let inner = self.lock();
        let wanted = |record: &&Record| actor.is_empty() || record.actor == actor;
        Ok(inner.records.iter().rev().filter(wanted).take(limit).cloned().collect())
    }
}
