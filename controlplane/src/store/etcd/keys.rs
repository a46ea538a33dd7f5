//! Names of the keys, and what stands behind them. Pure. What changes while control planes run lies under `live/`, which
//! they watch; history and audit log lie beside it and are only read when somebody asks.

use std::sync::Arc;

use etcd_client::{EventType, KeyValue, WatchResponse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::{Document, Meta, StoreError, Versioned, View, stored};

/// A revision as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredDocument {
    meta: Meta,
    text: String,
}

/// Where everything is.
#[derive(Clone)]
pub(super) struct Keys(String);

impl Keys {
    /// Of the fleet `cluster`, under `prefix`.
    pub fn new(prefix: &str, cluster: &str) -> Self {
        Self(format!("{prefix}/{cluster}"))
    }

    /// What every watched key starts with.
    pub fn live(&self) -> String {
        format!("{}/live/", self.0)
    }

    /// The configuration in force.
    pub fn config(&self) -> String {
        format!("{}/live/config", self.0)
    }

    /// Operators' marks.
    pub fn ops(&self) -> String {
        format!("{}/live/ops", self.0)
    }

    /// The latched topology.
    pub fn latch(&self) -> String {
        format!("{}/live/latch", self.0)
    }

    /// The leader's name, under its lease.
    pub fn leader(&self) -> String {
        format!("{}/live/leader", self.0)
    }

    /// A control plane's name, under its lease.
    pub fn member(&self, lease: i64) -> String {
        format!("{}/live/members/{lease:016x}", self.0)
    }

    /// Texts of revisions.
    pub fn history(&self, revision: u64) -> String {
        format!("{}/history/{revision:020}", self.0)
    }

    /// What is known about revisions.
    pub fn meta(&self, revision: u64) -> String {
        format!("{}/revisions/{revision:020}", self.0)
    }

    /// What every line of the audit log starts with.
    pub fn audit(&self) -> String {
        format!("{}/audit/", self.0)
    }
}

pub(super) fn version(kv: &KeyValue) -> u64 {
    u64::try_from(kv.mod_revision()).unwrap_or(0)
}

fn damaged(key: &[u8], why: &str) -> StoreError {
    StoreError::Damaged { what: String::from_utf8_lossy(key).into_owned(), why: why.to_owned() }
}

/// What a key holds.
pub(super) fn json<T: DeserializeOwned>(kv: &KeyValue) -> Result<T, StoreError> {
    // The words of the parser may quote what it read, which may be a secret.
    serde_json::from_slice(kv.value()).map_err(|error| {
        damaged(kv.key(), &format!("not readable at line {} column {}", error.line(), error.column()))
    })
}

pub(super) fn document(kv: &KeyValue) -> Result<Document, StoreError> {
    let StoredDocument { meta, text } = json(kv)?;
    Ok(Document { meta, text })
}

pub(super) fn document_to_json(meta: &Meta, text: &str) -> serde_json::Result<String> {
    serde_json::to_string(&StoredDocument { meta: meta.clone(), text: text.to_owned() })
}

fn text(kv: &KeyValue) -> Result<String, StoreError> {
    String::from_utf8(kv.value().to_vec()).map_err(|_| damaged(kv.key(), "not UTF-8"))
}

/// The watched keys with the names behind `members/`.
#[derive(Clone, Default)]
pub(super) struct Seen {
    pub view: View,
    members: std::collections::BTreeMap<Vec<u8>, String>,
}

impl Seen {
    /// What was loaded.
    pub fn load(keys: &Keys, kvs: &[KeyValue]) -> Result<Self, StoreError> {
        let mut seen = Self::default();
        kvs.iter().try_for_each(|kv| seen.put(keys, kv))?;
        Ok(seen)
    }

    /// What has changed since.
    pub fn apply(&mut self, keys: &Keys, changes: &WatchResponse) -> Result<(), StoreError> {
        for event in changes.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => self.put(keys, kv)?,
                EventType::Delete => self.delete(keys, kv),
            }
        }
        Ok(())
    }

    fn put(&mut self, keys: &Keys, kv: &KeyValue) -> Result<(), StoreError> {
        let (key, view) = (kv.key(), &mut self.view);
        if key == keys.config().as_bytes() {
            view.document = Some(Arc::new(document(kv)?));
        } else if key == keys.ops().as_bytes() {
            let ops = stored::ops_from_json(&text(kv)?).map_err(|error| damaged(key, &error.to_string()))?;
            view.ops = Versioned { value: ops, version: version(kv) };
        } else if key == keys.latch().as_bytes() {
            view.latch = Versioned { value: json(kv)?, version: version(kv) };
        } else if key == keys.leader().as_bytes() {
            view.leader = Some((text(kv)?, kv.lease()));
        } else {
            self.members.insert(key.to_vec(), text(kv)?);
            self.name_members();
        }
        Ok(())
    }

    fn delete(&mut self, keys: &Keys, kv: &KeyValue) {
        let (key, view) = (kv.key(), &mut self.view);
        // Nobody deletes the others; whoever did must not make control planes forget.
        if key == keys.leader().as_bytes() {
            view.leader = None;
        } else if self.members.remove(key).is_some() {
            self.name_members();
        }
    }

    fn name_members(&mut self) {
        self.view.members = self.members.values().cloned().collect();
        self.view.members.sort();
        self.view.members.dedup();
    }
}
