//! The keeper of what is wanted: configuration and operators' marks, from request to store to core, one change at a
//! time. Owner of the store. Every change is durable before it is published. Never talks to a data plane.

use std::sync::Arc;
use std::time::Duration;

use helios_proto::config::{self, Report};
use helios_proto::model::{HoldOrder, Spec};
use tokio::sync::Mutex;

mod follow;
mod refusal;
#[cfg(test)]
mod tests;

pub use refusal::Refusal;

use crate::coordinator::Events;
use crate::document::{self, EditError};
use crate::store::{Append, Document, Latch, Meta, Ops, Record, Store, StoreError, Versioned, unix_ms};

/// Name of a configuration in problems.
const FILE: &str = "configuration";
/// Who seeds a store from a file.
pub const FILE_ACTOR: &str = "file";

/// What is wanted.
#[derive(Clone)]
pub struct Desired {
    /// Text in force; holds secrets.
    pub text: String,
    /// Its revision, who made it and why.
    pub meta: Meta,
    /// What it says, with operators' marks.
    pub spec: Spec,
    /// Version of the marks.
    pub ops_version: u64,
}

impl Desired {
    /// Revision in force.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// Takes a configuration, and says whether it can be read.
    fn take(&mut self, document: &Document) -> Result<(), Report> {
        let config = read(&document.text)?;
        let ops = std::mem::take(&mut self.spec.ops);
        self.spec = Spec { ops, revision: document.meta.revision, ..config.spec };
        (self.text, self.meta) = (document.text.clone(), document.meta.clone());
        Ok(())
    }
}

/// How a change ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Revision of the configuration.
    pub config_revision: u64,
    /// Revision of the snapshot that holds it; 0 for a dry run.
    pub revision: u64,
    /// Something is different now.
    pub changed: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// It stands in the audit log.
    pub audited: bool,
}

/// How the store is, and who shares it.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// memory, embedded or etcd.
    pub kind: &'static str,
    /// It answers.
    pub up: bool,
    /// This process is the leader.
    pub leads: bool,
    /// Name of the leader; `None`: there is none, or only this process.
    pub leader: Option<String>,
    /// Control planes that share it; empty: only this one.
    pub members: Vec<String>,
}

/// Who asks for a change, and how.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub comment: &'a str,
    /// Only if this revision is in force.
    pub expected: Option<u64>,
    /// Check only.
    pub dry_run: bool,
    /// For the audit log.
    pub record: Option<Record>,
}

/// What others may have changed in between as often as this is tried once more.
const TRIES: usize = 5;

/// The keeper.
pub struct Keeper {
    store: Arc<dyn Store>,
    desired: Mutex<Desired>,
    events: Events,
}

/// What a text says.
pub(crate) fn read(text: &str) -> Result<config::Config, Report> {
    config::parse(text, FILE, &|name| std::env::var(name).ok())
}

/// The state to start with: the store's; from `file` if the store is empty, or (`follow`) if the file is another one
/// than the store was last given.
///
/// # Errors
/// The store cannot be used, or what it holds is no valid configuration.
pub fn open(store: &dyn Store, file: &str, follow: bool) -> Result<(Desired, Versioned<Latch>), Refusal> {
    let (seed, _) = document::spec_of(file)?;
    let current = store.current()?;
    let last = |document: &Document| last_of_file(store, document);
    let document = match current {
        Some(document) if !follow || last(&document)?.as_deref() == Some(seed.as_str()) => document,
        other => {
            // A start with a wrong file must not leave a wrong store.
            read(&seed)?;
            let change = Append {
                expected: other.map_or(0, |document| document.meta.revision),
                actor: FILE_ACTOR.to_owned(),
                comment: "read from the file".to_owned(),
                text: seed.clone(),
                record: None,
            };
            let meta = store.append(&change)?;
            tracing::info!(revision = meta.revision, "the configuration comes from the file");
            Document { meta, text: seed }
        }
    };
    let mut ops = store.ops()?;
    // Of a switchover that this process, or another, died in.
    for marks in ops.value.values_mut() {
        marks.hold = marks.hold.filter(|order| !is_over(order, unix_ms()));
    }
    let spec = Spec { ops: ops.value, revision: document.meta.revision, ..read(&document.text)?.spec };
    let Document { meta, text } = document;
    Ok((Desired { text, meta, spec, ops_version: ops.version }, store.latch()?))
}

/// Whether an order was given too long ago to matter, by clocks that need not agree well.
const fn is_over(order: &HoldOrder, now: u64) -> bool {
    now > order.given.saturating_add(order.for_ms.saturating_mul(2))
}

/// The text that the store was last given from a file.
fn last_of_file(store: &dyn Store, current: &Document) -> Result<Option<String>, StoreError> {
    if current.meta.actor == FILE_ACTOR {
        return Ok(Some(current.text.clone()));
    }
    let history = store.history(usize::MAX)?;
    let found = history.iter().find(|meta| meta.actor == FILE_ACTOR);
    Ok(found.map(|meta| store.read(meta.revision)).transpose()?.flatten().map(|document| document.text))
}

impl Keeper {
    /// Keeps `desired`, which the core has been started with.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, desired: Desired, events: Events) -> Self {
        Self { store, desired: Mutex::new(desired), events }
    }

    /// Where the core hears what was seen.
    #[must_use]
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// Where it is kept.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// How the store is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let (kind, leads) = (self.store.kind(), self.store.leads());
        let Some(view) = self.store.shared() else {
            return Standing { kind, leads, up: true, ..Standing::default() };
        };
        let view = Arc::clone(&view.borrow());
        let leader = view.leader.as_ref().map(|(name, _)| name.clone());
        Standing { kind, leads, up: view.up, leader, members: view.members.clone() }
    }

    /// Whether changes outlive the process.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.store.is_durable()
    }

    /// What is wanted now.
    pub async fn desired(&self) -> Desired {
        self.desired.lock().await.clone()
    }

    /// Checks a configuration, dots standing for the secrets in force.
    ///
    /// # Errors
    /// Every problem.
    pub async fn check(&self, text: &str) -> Result<(String, Vec<String>), Refusal> {
        let current = self.desired.lock().await.text.clone();
        checked(text, &current)
    }

    /// Makes `text` the configuration.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn apply(&self, request: &Request<'_>, text: &str) -> Result<Changed, Refusal> {
        self.edit(request, |desired| checked(text, &desired.text)).await
    }

    /// Makes what a file says the configuration, but for what belongs to the process.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn apply_file(&self, text: &str) -> Result<Changed, Refusal> {
        let (text, _) = document::spec_of(text)?;
        let request = Request { actor: FILE_ACTOR, comment: "read from the file", ..Request::default() };
        self.edit(&request, |_| Ok((text, Vec::new()))).await
    }

    /// Makes an older revision's text the configuration, as a new revision.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn rollback(&self, request: &Request<'_>, to: u64) -> Result<Changed, Refusal> {
        let to = match to {
            0 => self.desired.lock().await.revision().saturating_sub(1),
            revision => revision,
        };
        let document = self.revision(to).await?;
        self.edit(request, |_| Ok((document.text.clone(), Vec::new()))).await
    }

    /// Makes what `edit` says of the text in force the configuration.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn edit(
        &self,
        request: &Request<'_>,
        edit: impl FnOnce(&Desired) -> Result<(String, Vec<String>), Refusal>,
    ) -> Result<Changed, Refusal> {
        let mut desired = self.desired.lock().await;
        let current = desired.revision();
        if let Some(expected) = request.expected.filter(|expected| *expected != current) {
            return Err(Refusal::Conflict { expected, current });
        }
        let (text, mut warnings) = edit(&desired)?;
        let config = read(&text)?;
        warnings.extend(config.warnings);
        let changed = text != desired.text;
        if request.dry_run || !changed {
            return Ok(Changed { config_revision: current, changed, warnings, ..Changed::default() });
        }
        let change = Append {
            expected: current,
            actor: request.actor.to_owned(),
            comment: request.comment.to_owned(),
            text: text.clone(),
            record: request.record.clone(),
        };
        let store = Arc::clone(&self.store);
        let meta = match blocking(move || store.append(&change)).await {
            Ok(meta) => meta,
            Err(refusal) => {
                self.catch_up(&mut desired).await;
                return Err(refusal);
            }
        };
        let ops = std::mem::take(&mut desired.spec.ops);
        desired.spec = Spec { ops, revision: meta.revision, ..config.spec };
        (desired.text, desired.meta) = (text, meta);
        warnings.extend(self.forget_marks(&mut desired).await);
        self.publish(&desired, warnings, request.record.is_some()).await
    }

    /// Forgets marks of nodes that are gone; what to say if that failed. They may stay in the store: they do nothing.
    async fn forget_marks(&self, desired: &mut Desired) -> Option<String> {
        let mut ops = desired.spec.ops.clone();
        ops.retain(|name, _| desired.spec.nodes.iter().any(|node| node.name == *name));
        if ops == desired.spec.ops {
            return None;
        }
        let (store, kept, expected) = (Arc::clone(&self.store), ops.clone(), desired.ops_version);
        match blocking(move || store.save_ops(expected, &kept, None)).await {
            Ok(version) => {
                (desired.spec.ops, desired.ops_version) = (ops, version);
                None
            }
            Err(error) => {
                desired.spec.ops = ops;
                Some(format!("marks of removed nodes could not be forgotten: {error}"))
            }
        }
    }

    /// Changes operators' marks; `change` says whether anything is different. It runs again on what somebody else has
    /// written meanwhile.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn mark(
        &self,
        record: Option<Record>,
        change: impl Fn(&Spec, &mut Ops) -> Result<(), Refusal>,
    ) -> Result<Changed, Refusal> {
        let mut desired = self.desired.lock().await;
        let config_revision = desired.revision();
        let record = record.map(|record| Record { config_revision, ..record });
        for _ in 0..TRIES {
            let mut ops = desired.spec.ops.clone();
            change(&desired.spec, &mut ops)?;
            ops.retain(|_, ops| *ops != helios_proto::model::NodeOps::default());
            if ops == desired.spec.ops {
                return Ok(Changed { config_revision, ..Changed::default() });
            }
            let (store, kept, line) = (Arc::clone(&self.store), ops.clone(), record.clone());
            let expected = desired.ops_version;
            match blocking(move || store.save_ops(expected, &kept, line.as_ref())).await {
                Ok(version) => {
                    (desired.spec.ops, desired.ops_version) = (ops, version);
                    return self.publish(&desired, Vec::new(), record.is_some()).await;
                }
                Err(Refusal::Store(StoreError::Stale)) => self.reread_marks(&mut desired).await?,
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::Store(StoreError::Stale))
    }

    async fn publish(
        &self,
        desired: &Desired,
        mut warnings: Vec<String>,
        audited: bool,
    ) -> Result<Changed, Refusal> {
        let revision = self.events.reload(desired.spec.clone()).await.ok_or(Refusal::Stopping)?;
        if !self.is_durable() {
            warnings.push("this change ends with the process: there is no [store]".to_owned());
        }
        Ok(Changed { config_revision: desired.revision(), revision, changed: true, warnings, audited })
    }

    /// A revision; 0: the one in force.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub async fn revision(&self, revision: u64) -> Result<Document, Refusal> {
        if revision == 0 {
            let Desired { text, meta, .. } = self.desired().await;
            return Ok(Document { meta, text });
        }
        let store = Arc::clone(&self.store);
        let found = blocking(move || store.read(revision)).await?;
        found.ok_or_else(|| Refusal::NotFound(format!("there is no revision {revision}, or no more")))
    }

    /// Revisions, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn history(&self, limit: usize) -> Result<Vec<Meta>, Refusal> {
        let store = Arc::clone(&self.store);
        blocking(move || store.history(limit)).await
    }

    /// Adds to the audit log; a log that cannot be written is an error of the program, not of the request.
    pub async fn audit(&self, record: Record) {
        let store = Arc::clone(&self.store);
        if let Err(error) = blocking(move || store.audit(&record)).await {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }

    /// The audit log, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audited(&self, limit: usize, actor: String) -> Result<Vec<Record>, Refusal> {
        let store = Arc::clone(&self.store);
        blocking(move || store.audited(limit, &actor)).await
    }

    /// The latched topology.
    ///
    /// # Errors
    /// The store failed.
    pub async fn latched(&self) -> Result<Versioned<Latch>, Refusal> {
        let store = Arc::clone(&self.store);
        blocking(move || store.latch()).await
    }

    /// Keeps the latched topology instead of `before`; the new version.
    ///
    /// # Errors
    /// The store failed, or somebody was faster.
    pub async fn latch(&self, before: Versioned<Latch>, latch: Latch) -> Result<u64, Refusal> {
        let store = Arc::clone(&self.store);
        blocking(move || store.save_latch(&before, &latch)).await
    }
}

/// A text as the store would keep it, with what is to be said about it.
fn checked(text: &str, current: &str) -> Result<(String, Vec<String>), Refusal> {
    // Read whole first, so that problems have the lines of the text that was given.
    let whole = match document::restored(text, current) {
        Err(error @ EditError::Syntax(_)) => {
            read(text)?;
            return Err(error.into());
        }
        other => other?,
    };
    let config = read(&whole)?;
    let (text, out) = document::spec_of(&whole)?;
    let mut warnings = config.warnings;
    if !out.is_empty() {
        let names = out.join(", ");
        warnings.push(format!(
            "not part of the configuration, left out: {names} (of one process, not of the fleet)"
        ));
    }
    Ok((text, warnings))
}

/// Runs a call of the store where it may wait for a disk.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refusal> {
    let run = tokio::task::spawn_blocking(call);
    run.await.map_err(|_| Refusal::Stopping)?.map_err(Refusal::from)
}

/// Longest wait for acknowledgements that a request may ask for.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);
