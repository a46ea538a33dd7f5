//! Pool keys: (database, user, startup parameters, proof epoch). A connection opened for one identity is never
//! lent to another; a new credential makes a new identity, so old connections die with the old one.
//!
//! Startup parameters are part of the key: a server connection is opened with exactly the parameters of the
//! clients that use it, so settings from the startup packet hold and nothing needs replaying (decision 0003).

use super::database::DatabaseState;
use crate::route::UserFunctions;
use crate::server::Credential;
use helios_pgwire::backend;
use helios_pgwire::login::Welcome;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Name and value pairs.
pub type Params = Vec<(Vec<u8>, Vec<u8>)>;

/// Whose server connections these are.
pub struct Identity {
    /// Unique in this process.
    pub id: u64,
    /// Role.
    pub user: Vec<u8>,
    /// Database.
    pub database: Vec<u8>,
    /// Startup parameters, sorted by name.
    pub params: Params,
    /// Opens server connections.
    pub credential: Arc<Credential>,
    /// Proof epoch: grows when the role's credential changes.
    pub epoch: u64,
    /// What is known of the functions of the database.
    pub functions: Arc<UserFunctions>,
    /// What is counted and ordered for the database.
    pub state: Arc<DatabaseState>,
    /// Places that its connections have in pools: open, or being opened.
    places: AtomicU32,
    welcome: Mutex<Option<Arc<Greeting>>>,
}

/// Encodings in which a byte of a character may look like a quote or a backslash (manual, "Character Set Support":
/// client-only encodings). Their texts cannot be cut into tokens byte by byte.
const UNREADABLE: [&[u8]; 7] = [b"BIG5", b"GB18030", b"GBK", b"JOHAB", b"SHIFT_JIS_2004", b"SJIS", b"UHC"];

/// What a backend reports at login, kept to greet the next client without one.
#[derive(Default)]
pub struct Greeting {
    /// ParameterStatus messages, ready to send.
    pub messages: Vec<u8>,
    /// The same as pairs: the baseline that later reports are compared with.
    pub baseline: Params,
    /// `standard_conforming_strings` is on.
    pub standard_strings: bool,
    /// Statement texts in this client encoding can be judged.
    pub readable: bool,
}

/// Every identity in use.
#[derive(Default)]
pub struct Identities {
    known: Mutex<HashMap<Key, Weak<Identity>>>,
    functions: Mutex<HashMap<Vec<u8>, Weak<UserFunctions>>>,
    databases: Mutex<HashMap<Vec<u8>, Weak<DatabaseState>>>,
    /// Those that are there, because a server has let somebody in or the configuration has them: their counts last.
    lasting: Mutex<BTreeMap<Vec<u8>, Arc<DatabaseState>>>,
    next: AtomicU64,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    user: Vec<u8>,
    database: Vec<u8>,
    params: Params,
    epoch: u64,
}

impl Identities {
    /// The identity for these values, made if it is new.
    pub fn get(
        &self,
        user: &[u8],
        database: &[u8],
        params: Params,
        epoch: u64,
        credential: &Arc<Credential>,
    ) -> Arc<Identity> {
        let key = Key { user: user.to_vec(), database: database.to_vec(), params: params.clone(), epoch };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = known.get(&key).and_then(Weak::upgrade) {
            return identity;
        }
        known.retain(|_, identity| identity.strong_count() > 0);
        let identity = Arc::new(Identity {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            user: user.to_vec(),
            database: database.to_vec(),
            params,
            credential: Arc::clone(credential),
            epoch,
            functions: self.functions(database),
            state: self.database(database),
            places: AtomicU32::new(0),
            welcome: Mutex::new(None),
        });
        known.insert(key, Arc::downgrade(&identity));
        identity
    }
}

impl Identities {
    /// An identity for a login that is still being proved: nobody else ever gets its connections.
    pub fn provisional(&self, user: &[u8], database: &[u8], params: Params) -> Arc<Identity> {
        Arc::new(Identity {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            user: user.to_vec(),
            database: database.to_vec(),
            params,
            credential: Arc::new(Credential::Nothing),
            epoch: 0,
            functions: Arc::default(),
            state: self.database(database),
            places: AtomicU32::new(0),
            welcome: Mutex::new(None),
        })
    }

    /// What is known of the functions of a database: the same for all its identities.
    #[must_use]
    pub fn functions(&self, database: &[u8]) -> Arc<UserFunctions> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = functions.get(database).and_then(Weak::upgrade) {
            return known;
        }
        functions.retain(|_, known| known.strong_count() > 0);
        let known = Arc::default();
        functions.insert(database.to_vec(), Arc::downgrade(&known));
        known
    }

    /// What is counted and ordered for a database. A name that nobody uses any more, and that no server has confirmed, is
    /// forgotten: clients may send any.
    fn database(&self, database: &[u8]) -> Arc<DatabaseState> {
        let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = databases.get(database).and_then(Weak::upgrade) {
            return known;
        }
        databases.retain(|_, known| known.strong_count() > 0);
        let state = Arc::default();
        databases.insert(database.to_vec(), Arc::downgrade(&state));
        state
    }

    /// The state of a database that is there: its counts and orders last as long as the process.
    pub fn keep_database(&self, database: &[u8]) -> Arc<DatabaseState> {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lasting.get(database) {
            return Arc::clone(known);
        }
        let state = self.database(database);
        lasting.insert(database.to_vec(), Arc::clone(&state));
        state
    }

    /// Databases that are there, by name.
    #[must_use]
    pub fn kept_databases(&self) -> BTreeMap<Vec<u8>, Arc<DatabaseState>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Identities that a session or a connection still uses.
    #[must_use]
    pub fn in_use(&self) -> Vec<Arc<Identity>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(Weak::upgrade).collect()
    }

    /// Identities that a session or a connection still uses and that a backend has greeted.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<Identity>> {
        let mut live = self.in_use();
        live.retain(|identity| identity.greeting().is_some());
        live
    }
}

impl Identity {
    /// Places that its connections have in pools: open, or being opened.
    #[must_use]
    pub fn places(&self) -> u32 {
        self.places.load(Ordering::Relaxed)
    }

    /// One more connection has a place in a pool.
    pub fn take_place(&self) {
        self.places.fetch_add(1, Ordering::Relaxed);
        self.state.take_place();
    }

    /// One place fewer.
    pub fn give_place(&self) {
        self.places.fetch_sub(1, Ordering::Relaxed);
        self.state.give_place();
    }

    /// What the backend said at login, if a connection was opened yet.
    #[must_use]
    pub fn greeting(&self) -> Option<Arc<Greeting>> {
        self.welcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in what a backend said at login: the greeting of that connection. It greets the next client too; but a
    /// standby's word only fills a gap.
    pub fn greet(&self, welcome: &Welcome) -> Arc<Greeting> {
        let mut slot = self.welcome.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = slot.as_ref().filter(|known| known.says(&welcome.parameters)) {
            return Arc::clone(known);
        }
        let greeting = Arc::new(Greeting::new(&welcome.parameters));
        let standby = welcome.parameters.iter().any(|(n, v)| n == HOT_STANDBY && v == b"on");
        if slot.is_none() || !standby {
            *slot = Some(Arc::clone(&greeting));
        }
        greeting
    }
}

/// Reported by standbys and primaries differently, and no setting of the session.
const HOT_STANDBY: &[u8] = b"in_hot_standby";

impl Greeting {
    fn new(parameters: &Params) -> Self {
        let mut messages = Vec::new();
        for (name, value) in parameters {
            backend::parameter_status(&mut messages, name, value);
        }
        let value = |name: &[u8]| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_slice());
        let standard_strings = value(b"standard_conforming_strings") != Some(b"off");
        let readable = !value(b"client_encoding").is_some_and(|encoding| UNREADABLE.contains(&encoding));
        Self { messages, baseline: parameters.clone(), standard_strings, readable }
    }

    fn says(&self, parameters: &Params) -> bool {
        self.baseline.len() == parameters.len() && self.unlike(parameters).next().is_none()
    }

    /// Settings among these that are not as in this greeting.
    fn unlike<'a>(&'a self, parameters: &'a Params) -> impl Iterator<Item = &'a (Vec<u8>, Vec<u8>)> {
        parameters.iter().filter(|pair| pair.0 != HOT_STANDBY && !self.baseline.contains(pair))
    }

    /// Whether a client that knows this greeting finds nothing new in another one.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        self.unlike(&other.baseline).next().is_none()
    }

    /// ParameterStatus messages for a client that knows this greeting and now uses a connection with another one.
    #[must_use]
    pub fn changes_to(&self, other: &Self) -> Vec<u8> {
        let mut messages = Vec::new();
        for (name, value) in self.unlike(&other.baseline) {
            backend::parameter_status(&mut messages, name, value);
        }
        messages
    }
}
