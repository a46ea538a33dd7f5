//! What others have written: taken up from the store, never written here. The configuration only goes forward by this, but
//! after a refused write, when what the store holds counts as it is.

use std::sync::Arc;

use super::{Desired, Keeper, Refusal, blocking};
use crate::store::{Document, Versioned, View};

impl Keeper {
    /// After a failed write: a revision that is in force all the same, as when only the last sync failed, is taken up.
    pub(super) async fn catch_up(&self, desired: &mut Desired) {
        let store = Arc::clone(&self.store);
        let Ok(Some(document)) = blocking(move || store.current()).await else { return };
        if document.meta != desired.meta {
            self.take_up(desired, &document).await;
        }
    }

    async fn take_up(&self, desired: &mut Desired, document: &Document) {
        let revision = document.meta.revision;
        match desired.take(document) {
            Ok(()) => {
                tracing::info!(revision, actor = %document.meta.actor, "taking up the revision that the store holds");
                self.events.reload(desired.spec.clone()).await;
            }
            Err(report) => tracing::error!(
                revision,
                "the revision that the store holds cannot be read by this version: {report}"
            ),
        }
    }

    /// Takes up what other control planes have written.
    pub async fn follow(&self, view: &View) {
        let mut desired = self.desired.lock().await;
        let newer = view.document.as_ref().filter(|found| found.meta.revision > desired.revision());
        if view.ops.version > desired.ops_version {
            let Versioned { value, version } = view.ops.clone();
            (desired.spec.ops, desired.ops_version) = (value, version);
            if newer.is_none() {
                self.events.reload(desired.spec.clone()).await;
            }
        }
        if let Some(document) = newer {
            self.take_up(&mut desired, document).await;
        }
    }

    /// Reads the store again; the revision of the configuration then.
    ///
    /// # Errors
    /// The store failed.
    pub async fn refresh(&self) -> Result<u64, Refusal> {
        let mut desired = self.desired.lock().await;
        let store = Arc::clone(&self.store);
        let document = blocking(move || store.current()).await?;
        if let Some(document) = document.filter(|found| found.meta.revision > desired.revision()) {
            self.take_up(&mut desired, &document).await;
        }
        Ok(desired.revision())
    }

    /// Takes up the marks that somebody else has written.
    pub(super) async fn reread_marks(&self, desired: &mut Desired) -> Result<(), Refusal> {
        let store = Arc::clone(&self.store);
        let Versioned { value, version } = blocking(move || store.ops()).await?;
        (desired.spec.ops, desired.ops_version) = (value, version);
        self.events.reload(desired.spec.clone()).await;
        Ok(())
    }
}
