//! The user's own functions of one database, as far as they are known. Readers never lock; whoever has looked at the
//! catalog replaces the whole. Never looks at a server itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};

use super::KnownFunctions;

/// Names without schema, and whether every function of that name is immutable or stable.
type Names = HashMap<Box<[u8]>, bool>;

/// What is known of one database; nothing at first.
#[derive(Default)]
pub struct UserFunctions {
    names: ArcSwap<Names>,
    id: AtomicU64,
}

impl UserFunctions {
    /// Replaces what is known; whether that is something else than before.
    pub fn set(&self, names: impl IntoIterator<Item = (Box<[u8]>, bool)>) -> bool {
        let names: Names = names.into_iter().collect();
        let id = digest(&names);
        if id == self.id() {
            return false;
        }
        self.names.store(names.into());
        self.id.store(id, Ordering::Release);
        true
    }

    /// How many names are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.load().len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl KnownFunctions for UserFunctions {
    fn id(&self) -> u64 {
        self.id.load(Ordering::Acquire)
    }

    fn is_safe(&self, name: &[u8]) -> bool {
        self.names.load().get(name) == Some(&true)
    }

    fn is_volatile(&self, name: &[u8]) -> bool {
        self.names.load().get(name) == Some(&false)
    }
}

/// A number for the contents: equal ones may share verdicts, others never do. 0 for nothing.
fn digest(names: &Names) -> u64 {
    if names.is_empty() {
        return 0;
    }
    let mut sorted: Vec<_> = names.iter().collect();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    for (name, safe) in sorted {
        hash.update(name);
        hash.update([0, u8::from(*safe)]);
    }
    let hash = hash.finalize();
    hash.first_chunk().map_or(1, |first| u64::from_be_bytes(*first).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[(&str, bool)]) -> Vec<(Box<[u8]>, bool)> {
        list.iter().map(|(name, safe)| (name.as_bytes().into(), *safe)).collect()
    }

    #[test]
    fn contents_decide_the_id_and_each_change_is_told_once() {
        let (one, other) = (UserFunctions::default(), UserFunctions::default());
        assert_eq!((one.id(), one.is_safe(b"f"), one.is_volatile(b"f")), (0, false, false));
        assert!(one.set(names(&[("f", true), ("g", false)])));
        assert!(!one.set(names(&[("g", false), ("f", true)])));
        assert!(other.set(names(&[("f", true), ("g", false)])));
        assert_eq!(one.id(), other.id());
        assert_eq!((one.is_safe(b"f"), one.is_volatile(b"f")), (true, false));
        assert_eq!((one.is_safe(b"g"), one.is_volatile(b"g")), (false, true));
        assert!(other.set(names(&[("f", false), ("g", false)])));
        assert_ne!(one.id(), other.id());
        assert!(one.set(names(&[])) && one.is_empty() && one.id() == 0);
    }
}
