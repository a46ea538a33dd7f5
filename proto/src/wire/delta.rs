//! A configuration as resources, what changed from one to the next, and what comes out when that is applied. Pure: the
//! control plane compares, the data plane rebuilds and judges the outcome as if it had been sent whole. Never guesses:
//! what does not fit is told, so that everything is sent again.

use std::collections::{HashMap, HashSet};

use super::send;
use super::v1::{self, Placed, Resource};
use crate::model::Snapshot;

/// The resources of a configuration as they were sent, and their hash. Holds the secrets of `[[users]]`: never printed.
#[derive(Clone, PartialEq)]
pub struct Configuration {
    /// Of the store.
    pub revision: u64,
    /// As in [`v1::Full`].
    pub sha256: Vec<u8>,
    resources: Vec<Resource>,
}

/// What of a configuration is another than before.
#[derive(Clone, Default, PartialEq)]
pub struct Changes {
    /// Names of what is gone.
    pub removed: Vec<String>,
    /// What is new, another or elsewhere, by place.
    pub changed: Vec<Placed>,
}

/// A delta that does not fit what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It changes something else.
    #[error("the delta is against another configuration than the one held")]
    Base,
    /// Its places are not those of a list.
    #[error("the delta has places that do not fit")]
    Places,
    /// Something else comes out than the control plane has.
    #[error("the delta leads to another configuration than it says")]
    Hash,
}

impl Configuration {
    /// Of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let resources = send::resources(snapshot);
        Self { revision: snapshot.config_revision, sha256: send::hash(&resources), resources }
    }

    /// Of a message, whose hash has been checked.
    #[must_use]
    pub fn sent(full: &v1::Full) -> Self {
        let v1::Full { config_revision, sha256, resources, topology: _ } = full;
        Self { revision: *config_revision, sha256: sha256.clone(), resources: resources.clone() }
    }

    /// All of it.
    #[must_use]
    pub fn full(&self, topology: v1::Topology) -> v1::Full {
        v1::Full {
            config_revision: self.revision,
            sha256: self.sha256.clone(),
            resources: self.resources.clone(),
            topology: Some(topology),
        }
    }

    /// What changed since `base`, without a topology; `None` if that is no less than all of it.
    #[must_use]
    pub fn delta(&self, base: &Self) -> Option<v1::Delta> {
        let Changes { removed, changed } = diff(&base.resources, &self.resources);
        (changed.len() < self.resources.len()).then(|| v1::Delta {
            base_sha256: base.sha256.clone(),
            config_revision: self.revision,
            sha256: self.sha256.clone(),
            removed,
            changed,
            topology: None,
        })
    }

    /// What a delta makes of it, as a whole message.
    ///
    /// # Errors
    /// The delta is against something else, or leads to something else than it says.
    pub fn with(&self, delta: v1::Delta) -> Result<v1::Full, Misfit> {
        let v1::Delta { base_sha256, config_revision, sha256, removed, changed, topology } = delta;
        if base_sha256 != self.sha256 {
            return Err(Misfit::Base);
        }
        let resources = apply(&self.resources, Changes { removed, changed }).ok_or(Misfit::Places)?;
        if send::hash(&resources) != sha256 {
            return Err(Misfit::Hash);
        }
        Ok(v1::Full { config_revision, sha256, resources, topology })
    }
}

/// What leads from one list of resources to another. Names are unique within a list.
#[must_use]
pub fn diff(base: &[Resource], new: &[Resource]) -> Changes {
    let places: HashMap<&str, usize> = base.iter().enumerate().map(|(at, r)| (r.name.as_str(), at)).collect();
    let names: HashSet<&str> = new.iter().map(|resource| resource.name.as_str()).collect();
    let removed = base.iter().filter(|old| !names.contains(old.name.as_str()));
    // The place of the next resource that can stay: those that stay do so in their order.
    let mut next = 0;
    let mut changed = Vec::new();
    for (at, resource) in (0..).zip(new) {
        let old = places.get(resource.name.as_str()).copied().filter(|old| *old >= next);
        match old.filter(|old| base.get(*old) == Some(resource)) {
            Some(old) => next = old + 1,
            None => changed.push(Placed { at, resource: Some(resource.clone()) }),
        }
    }
    Changes { removed: removed.map(|old| old.name.clone()).collect(), changed }
}

/// What comes out; `None`: the places do not fit.
#[must_use]
pub fn apply(base: &[Resource], changes: Changes) -> Option<Vec<Resource>> {
    let Changes { removed, changed } = changes;
    let name = |placed: &Placed| placed.resource.as_ref().map(|resource| resource.name.clone());
    let gone: HashSet<String> = removed.into_iter().chain(changed.iter().filter_map(name)).collect();
    let mut kept = base.iter().filter(|old| !gone.contains(&old.name));
    let mut out = Vec::with_capacity(base.len());
    for Placed { at, resource } in changed {
        let before = usize::try_from(at).ok()?.checked_sub(out.len())?;
        let had = out.len();
        out.extend(kept.by_ref().take(before).cloned());
        if out.len() - had != before {
            return None;
        }
        out.push(resource?);
    }
    out.extend(kept.cloned());
    Some(out)
}

#[cfg(test)]
mod tests;
