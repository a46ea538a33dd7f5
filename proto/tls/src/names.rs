//! The addresses of nodes' names. The system's resolver is one for the whole process, and so is what is known here: each
//! name is looked up by one thread at a time, anew for whoever connects, so that a new address is used at once; the last good
//! ones stay when it fails or hangs. Counts addresses that a name has given up, so that pools leave them. Never
//! blocks a runtime's threads, never connects.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What was found so lately is not looked up again.
const FRESH: Duration = Duration::from_secs(1);
/// Longest wait for the resolver while there are addresses that were good before.
const PATIENCE: Duration = Duration::from_secs(1);
/// A name has given an address up that was in none of the answers for so long: some resolvers answer in parts.
const GIVEN_UP: Duration = Duration::from_secs(5);

static NAMES: LazyLock<Mutex<HashMap<String, Arc<Name>>>> = LazyLock::new(Mutex::default);

struct Name {
    host: String,
    known: Mutex<Known>,
    /// Look-ups that have ended.
    ended: watch::Sender<u64>,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Known {
    /// Of the last look-up that found any.
    addresses: Vec<IpAddr>,
    /// When each address was last among the answers.
    seen: Vec<(IpAddr, Instant)>,
    /// Addresses given up so far.
    departures: u64,
    /// When the last look-up ended, and when the one on its way began.
    looked: Option<Instant>,
    looking: Option<Instant>,
    /// Why the last look-up found none.
    failure: Option<(io::ErrorKind, String)>,
}

/// What to do for somebody who asks.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// These are good.
    Use(Vec<IpAddr>),
    /// A look-up has to end first; whether it has to be begun, and the longest wait.
    Wait { begin: bool, patience: Duration },
}

impl Known {
    fn step(&mut self, now: Instant, longest: Duration) -> Step {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let fresh = since(self.looked).is_some_and(|ago| ago < FRESH);
        let hangs = since(self.looking).is_some_and(|ago| ago >= PATIENCE);
        if !self.addresses.is_empty() && (fresh || hangs) {
            return Step::Use(self.addresses.clone());
        }
        let begin = self.looking.is_none();
        if begin {
            self.looking = Some(now);
        }
        Step::Wait {
            begin,
            patience: if self.addresses.is_empty() { longest } else { PATIENCE.min(longest) },
        }
    }

    /// Takes the end of a look-up; whether finding the name fails from now on, or works again.
    fn end(&mut self, found: io::Result<Vec<IpAddr>>, now: Instant) -> Option<bool> {
        (self.looking, self.looked) = (None, Some(now));
        let failed = self.failure.is_some();
        match found {
            Ok(addresses) if !addresses.is_empty() => {
                for address in &addresses {
                    self.seen.retain(|(seen, _)| seen != address);
                    self.seen.push((*address, now));
                }
                self.addresses = addresses;
                let before = self.seen.len();
                self.seen.retain(|(_, at)| now.saturating_duration_since(*at) < GIVEN_UP);
                let gone = u64::try_from(before.saturating_sub(self.seen.len())).unwrap_or(0);
                self.departures = self.departures.saturating_add(gone);
                self.failure = None;
            }
            Ok(_) => self.failure = Some((io::ErrorKind::NotFound, "the name has no address".to_owned())),
            Err(error) => self.failure = Some((error.kind(), error.to_string())),
        }
        (failed != self.failure.is_some()).then_some(self.failure.is_some())
    }

    fn last(&self) -> io::Result<Vec<IpAddr>> {
        match &self.failure {
            _ if !self.addresses.is_empty() => Ok(self.addresses.clone()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Err(io::Error::new(io::ErrorKind::TimedOut, "the name is still being looked up")),
        }
    }
}

impl Name {
    fn of(host: &str) -> Arc<Self> {
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(host) {
            return Arc::clone(name);
        }
        let (host, known, ended) = (host.to_owned(), Mutex::default(), watch::Sender::new(0));
        let name = Arc::new(Self { host: host.clone(), known, ended });
        names.insert(host, Arc::clone(&name));
        name
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks it up in a thread that ends with it: the system's resolver may take half a minute.
    fn begin(self: &Arc<Self>) {
        let name = Arc::clone(self);
        let look = move || {
            let found = (name.host.as_str(), 0).to_socket_addrs();
            name.end(found.map(|found| found.map(|address| address.ip()).collect()));
        };
        if let Err(error) = std::thread::Builder::new().name("name".to_owned()).spawn(look) {
            self.end(Err(error));
        }
    }

    fn end(&self, found: io::Result<Vec<IpAddr>>) {
        let mut known = self.known();
        let turned = known.end(found, Instant::now());
        let why = known.failure.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
        let kept = !known.addresses.is_empty();
        drop(known);
        match turned {
            Some(true) => {
                let host = self.host.as_str();
                tracing::warn!(
                    host,
                    kept,
                    "name is not found, its last addresses stay in use if there are any: {why}"
                );
            }
            Some(false) => tracing::info!(host = self.host, "name is found again"),
            None => {}
        }
        self.ended.send_modify(|ended| *ended = ended.wrapping_add(1));
    }

    async fn resolve(self: Arc<Self>, longest: Duration) -> io::Result<Vec<IpAddr>> {
        let mut ended = self.ended.subscribe();
        let step = self.known().step(Instant::now(), longest);
        let (begin, patience) = match step {
            Step::Use(addresses) => return Ok(addresses),
            Step::Wait { begin, patience } => (begin, patience),
        };
        if begin {
            self.begin();
        }
        // The end of the wait is as good as the end of the look-up: what is known then is all there is.
        drop(tokio::time::timeout(patience, ended.changed()).await);
        self.known().last()
    }
}

/// Where to connect to for a node's host: the system's answer, or the last good one when there is none within a second.
///
/// # Errors
/// What the system says of a name that has never been found, or that it says nothing within `longest`.
pub async fn resolve(host: &str, port: u16, longest: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let found = Name::of(host).resolve(longest).await?;
    Ok(found.into_iter().map(|address| (address, port).into()).collect())
}

/// How many addresses this host has given up so far, 5 s after it was last found at each. Has it looked up for the next call.
#[must_use]
pub fn departures(host: &str) -> u64 {
    if host.starts_with('/') || host.parse::<IpAddr>().is_ok() {
        return 0;
    }
    let name = Name::of(host);
    let mut known = name.known();
    let (step, departures) = (known.step(Instant::now(), Duration::ZERO), known.departures);
    drop(known);
    if matches!(step, Step::Wait { begin: true, .. }) {
        name.begin();
    }
    departures
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn failed() -> io::Result<Vec<IpAddr>> {
        Err(io::Error::new(io::ErrorKind::NotFound, "no such name"))
    }

    #[test]
    fn the_last_good_addresses_stay() {
        let (mut known, start) = (Known::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(known.step(at(0), LONGEST), Step::Wait { begin: true, patience: LONGEST });
        assert_eq!(
            known.step(at(9), LONGEST),
            Step::Wait { begin: false, patience: LONGEST },
            "one at a time"
        );
        assert_eq!(known.last().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(known.end(failed(), at(10)), Some(true));
        assert_eq!(known.last().unwrap_err().to_string(), "no such name");
        assert_eq!(known.step(at(11), LONGEST), Step::Wait { begin: true, patience: LONGEST });
        assert_eq!(known.end(Ok(vec![ip(1)]), at(20)), Some(false));
        assert_eq!(known.step(at(1_019), LONGEST), Step::Use(vec![ip(1)]));
        assert_eq!(known.step(at(1_020), LONGEST), Step::Wait { begin: true, patience: PATIENCE });
        assert_eq!(known.step(at(2_020), LONGEST), Step::Use(vec![ip(1)]), "the resolver hangs");
        assert_eq!(known.end(failed(), at(9_000)), Some(true));
        assert_eq!(known.end(Ok(vec![]), at(9_001)), None);
        assert_eq!(known.last().unwrap(), [ip(1)]);
        assert_eq!(known.end(Ok(vec![ip(2)]), at(9_002)), Some(false));
        assert_eq!(known.last().unwrap(), [ip(2)]);
    }

    #[test]
    fn an_address_is_given_up_once_it_was_missing_for_a_while() {
        let (mut known, start) = (Known::default(), Instant::now());
        let mut look = |seconds, addresses: &[u8]| {
            let found = addresses.iter().map(|last| ip(*last)).collect();
            let _ = known.end(Ok(found), start + Duration::from_secs(seconds));
            known.departures
        };
        assert_eq!(look(0, &[1]), 0);
        assert_eq!(look(1, &[2]), 0);
        assert_eq!(look(2, &[1]), 0, "answers in turn");
        assert_eq!(look(3, &[2]), 0);
        assert_eq!(look(6, &[2]), 0);
        assert_eq!(look(7, &[2]), 1);
        assert_eq!(look(8, &[2, 3]), 1);
        assert_eq!(look(20, &[4]), 3);
    }

    #[tokio::test]
    async fn names_and_addresses() {
        assert_eq!(
            resolve("::1", 7, LONGEST).await.unwrap(),
            [SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7))]
        );
        let found = resolve("localhost", 7, LONGEST).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 7), "{found:?}");
        assert!(resolve("nowhere.invalid", 7, LONGEST).await.is_err());
        assert_eq!((departures("10.0.0.1"), departures("localhost")), (0, 0));
    }
}
