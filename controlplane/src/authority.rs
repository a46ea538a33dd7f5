//! What an authority outside has said of who may take writes: Patroni, by its leader lock. Pure: answers come in as events,
//! and what follows from them for the primary is `primary`'s business. Asking is done in [`ask`].

pub(crate) mod ask;
pub(crate) mod patroni;

use std::sync::Arc;
use std::time::{Duration, Instant};

use helios_proto::model::{Authority, Node};
use tracing::{info, warn};

use crate::primary::Lock;

/// Pause between two questions while something is wrong.
const HUNT_PAUSE: Duration = Duration::from_millis(200);
/// The same when that takes long.
const SEEK_PAUSE: Duration = Duration::from_millis(500);
/// After this it takes long.
const LONGEST_HUNT: Duration = Duration::from_secs(30);

/// Who holds the leader lock, as the authority names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub name: String,
    /// Host and port of its PostgreSQL.
    pub address: Option<(String, u16)>,
}

/// An answer: the holder, `None` if there is none; or why there is no answer.
pub(crate) type Told = Result<Option<Holder>, Arc<str>>;

/// What has been heard.
#[derive(Debug, Default)]
pub(crate) struct Word {
    /// When the question was asked whose answer this is; `None`: no answer yet.
    asked: Option<Instant>,
    holder: Option<Holder>,
    /// Whether the last question was answered; `None`: it is still out.
    up: Option<bool>,
    /// Something was seen then that the answer may be too old for.
    doubted: Option<Instant>,
    wrong_since: Option<Instant>,
}

impl Holder {
    /// Which of the nodes it is: by its address, else by its name.
    fn index(&self, nodes: &[&Node]) -> Option<usize> {
        let here =
            |node: &&Node| self.address.as_ref().is_some_and(|(h, p)| *h == node.host && *p == node.port);
        let by_address = nodes.iter().position(here);
        by_address.or_else(|| nodes.iter().position(|node| node.name.as_str() == self.name))
    }
}

impl Word {
    /// Takes an answer to a question that was asked then. An answer to an older question than the last one is nothing new.
    pub fn hear(&mut self, asked: Instant, told: Told) {
        let was_up = self.up;
        match told {
            Ok(holder) if self.asked.is_none_or(|last| last <= asked) => {
                if was_up == Some(false) {
                    info!("Patroni answers again");
                }
                if self.asked.is_none() || self.holder != holder {
                    let name = holder.as_ref().map_or("nobody", |holder| holder.name.as_str());
                    info!(holder = name, "Patroni names the holder of its leader lock");
                }
                (self.asked, self.holder, self.up) = (Some(asked), holder, Some(true));
                self.doubted = self.doubted.filter(|doubted| *doubted > asked);
            }
            Ok(_) => {}
            Err(error) => {
                if was_up != Some(false) {
                    warn!(%error, "Patroni does not answer: no node becomes the primary that is not, until it does");
                }
                self.up = Some(false);
            }
        }
    }

    /// Something was seen at this moment that an older answer knows nothing of.
    pub fn doubt(&mut self, now: Instant) {
        self.doubted = Some(now);
    }

    /// What follows for these nodes.
    pub fn lock(&self, nodes: &[&Node]) -> Lock {
        let held = self.holder.as_ref().and_then(|holder| holder.index(nodes));
        match (self.up, self.asked, self.doubted) {
            (None, ..) => Lock::Unheard,
            (Some(_), None, _) => Lock::Unknown,
            (Some(false), Some(_), _) | (Some(true), Some(_), Some(_)) => Lock::Stale(held),
            (Some(true), Some(_), None) => held.map_or(Lock::Free, Lock::Held),
        }
    }

    /// For who wants to see it.
    pub fn shown(&self) -> Authority {
        let holder = self.holder.as_ref().map(|holder| holder.name.clone());
        Authority { up: self.up.unwrap_or(true), holder }
    }

    /// The pause between two questions, if they should be asked often. `seek`: there is no primary, or it is in doubt.
    pub fn hunted(&mut self, seek: bool, now: Instant) -> Option<Duration> {
        if !seek && self.doubted.is_none() {
            self.wrong_since = None;
            return None;
        }
        let since = *self.wrong_since.get_or_insert(now);
        let young = now.saturating_duration_since(since) < LONGEST_HUNT;
        Some(if young { HUNT_PAUSE } else { SEEK_PAUSE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::{NodeName, Role};

    fn node(name: &str, port: u16) -> Node {
        let (name, host) = (NodeName::new(name), "db".to_owned());
        Node { name, host, port, role: Role::Standby, weight: 1, max_connections: None }
    }

    fn holder(name: &str, port: u16) -> Option<Holder> {
        Some(Holder { name: name.to_owned(), address: Some(("db".to_owned(), port)) })
    }

    #[test]
    fn the_holder_is_found_by_its_address_and_then_by_its_name() {
        let (a, b) = (node("a", 1), node("b", 2));
        for (told, lock) in [
            (holder("x", 2), Lock::Held(1)),
            (holder("b", 1), Lock::Held(0)),
            (holder("b", 9), Lock::Held(1)),
            (Some(Holder { name: "a".to_owned(), address: None }), Lock::Held(0)),
            (holder("x", 9), Lock::Free),
            (None, Lock::Free),
        ] {
            let mut word = Word::default();
            word.hear(Instant::now(), Ok(told.clone()));
            assert_eq!(word.lock(&[&a, &b]), lock, "{told:?}");
        }
    }

    #[test]
    fn what_is_not_newer_than_the_doubt_does_not_end_it() {
        let (a, start) = (node("a", 1), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut word = Word::default();
        assert_eq!(word.lock(&[&a]), Lock::Unheard);
        word.hear(at(5), Err("gone".into()));
        assert_eq!(word.lock(&[&a]), Lock::Unknown);
        word.hear(at(10), Ok(holder("a", 1)));
        assert_eq!((word.lock(&[&a]), word.hunted(false, at(10))), (Lock::Held(0), None));
        word.doubt(at(20));
        word.hear(at(15), Ok(holder("a", 1)));
        assert_eq!((word.lock(&[&a]), word.hunted(false, at(20))), (Lock::Stale(Some(0)), Some(HUNT_PAUSE)));
        word.hear(at(25), Ok(None));
        assert_eq!(word.lock(&[&a]), Lock::Free);
        word.hear(at(24), Ok(holder("a", 1)));
        assert_eq!(word.lock(&[&a]), Lock::Free, "an older answer came later");
        word.hear(at(30), Err("gone".into()));
        assert_eq!(word.lock(&[&a]), Lock::Stale(None));
        assert_eq!(word.shown(), Authority { up: false, holder: None });
        assert_eq!(word.hunted(true, at(30)), Some(HUNT_PAUSE));
        assert_eq!(word.hunted(true, at(31_000)), Some(SEEK_PAUSE));
        word.hear(at(40), Ok(holder("a", 1)));
        assert_eq!((word.lock(&[&a]), word.hunted(false, at(32_000))), (Lock::Held(0), None));
    }
}
