//! What is known of roles: the proofs against which clients are checked, and the credentials that open server
//! connections. Owner: the data plane. Talks to nobody: `session::login` holds the conversations.

pub mod failures;
pub mod hba;
pub mod query;
pub mod relays;

use self::failures::Failures;
use self::query::LookUp;
use self::relays::Relays;
use crate::registry::random;
use crate::server::Credential;
use crate::server::credential::{Derived, Password};
use helios_pgwire::md5;
use helios_pgwire::scram::{DEFAULT_ITERATIONS, Keys, Verifier};
use helios_proto::model::{Settings, UserProof};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Addresses remembered by role from which a login failed.
const MOST_DOUBTS: usize = 64;

/// How a client proves that it is a role.
#[derive(Clone)]
pub enum Proof {
    /// It need not: the backend asks for nothing.
    Trust,
    /// By SCRAM against this verifier.
    Scram(Verifier),
    /// By the clear password, compared with what is kept.
    Password,
}

/// A role that was proved.
#[derive(Clone)]
pub struct Known {
    /// How clients prove themselves.
    pub proof: Proof,
    /// Opens server connections; `None` until a proof has shown the key (a verifier alone opens nothing).
    pub credential: Option<Arc<Credential>>,
    /// Grows when the credential changes.
    pub epoch: u64,
    proved_at: Instant,
    /// A login failed since: the next one is checked on the backend.
    doubted: bool,
    /// The same for clients at these addresses only, until the role is proved on the backend again.
    doubted_from: Vec<IpAddr>,
    /// From `[[users]]`, with what it was made of.
    source: Option<UserProof>,
}

/// Roles by user and database. A role of `[[users]]` is known for every database.
type Roles = HashMap<(Vec<u8>, Option<Vec<u8>>), Known>;

/// What is known of roles.
#[derive(Default)]
pub struct Auth {
    roles: Mutex<Roles>,
    epoch: AtomicU64,
    /// For `auth_query`.
    pub look_up: LookUp,
    /// Logins in vain.
    pub failures: Failures,
    /// For logins that are passed on to a server.
    pub relays: Relays,
    /// What the salt of a role that does not exist is made of.
    mock: OnceLock<[u8; 32]>,
}

impl Auth {
    fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Relaxed)
    }

    fn roles(&self) -> std::sync::MutexGuard<'_, Roles> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A role of `[[users]]` that has a password or a verifier.
    pub async fn configured(&self, settings: &Settings, user: &[u8]) -> Option<Known> {
        let entry = settings.users.iter().find(|entry| entry.name.as_bytes() == user)?;
        self.known(user, entry.proof.clone()?).await
    }

    /// A role that proves itself in this way: the same as before while that is the same.
    pub async fn known(&self, user: &[u8], source: UserProof) -> Option<Known> {
        let key = (user.to_vec(), None);
        if let Some(known) = self.roles().get(&key).filter(|known| known.source.as_ref() == Some(&source)) {
            return Some(known.clone());
        }
        let (proof, credential) = match &source {
            UserProof::ScramVerifier(text) => (Proof::Scram(Verifier::parse(text.expose())?), None),
            UserProof::Password(text) => {
                let text = Zeroizing::new(text.expose().as_bytes().to_vec());
                let verifier = derive(text.clone()).await?;
                (Proof::Scram(verifier), Some(Arc::new(Credential::Password(Password::new(text)))))
            }
        };
        let epoch = self.next_epoch();
        let now = Instant::now();
        let known = Known {
            proof,
            credential,
            epoch,
            proved_at: now,
            doubted: false,
            doubted_from: Vec::new(),
            source: Some(source),
        };
        self.roles().insert(key, known.clone());
        Some(known)
    }

    /// A role that has this MD5 verifier: what opens its server connections, and its epoch.
    pub fn md5(&self, user: &[u8], stored: &Zeroizing<Vec<u8>>) -> (Arc<Credential>, u64) {
        let mut roles = self.roles();
        let key = (user.to_vec(), None);
        if let Some(known) = roles.get(&key)
            && let Some(credential) = &known.credential
            && matches!(credential.as_ref(), Credential::Md5(known) if bool::from(known.ct_eq(stored)))
        {
            return (Arc::clone(credential), known.epoch);
        }
        let credential = Arc::new(Credential::Md5(stored.clone()));
        let epoch = self.next_epoch();
        let (proved_at, held) = (Instant::now(), Some(Arc::clone(&credential)));
        let known = Known {
            proof: Proof::Password,
            credential: held,
            epoch,
            proved_at,
            doubted: false,
            doubted_from: Vec::new(),
            source: None,
        };
        roles.insert(key, known);
        (credential, epoch)
    }

    /// What a role that does not exist is checked against: the same salt each time, and no password fits.
    pub fn nobody(&self, user: &[u8]) -> Verifier {
        Verifier::nobody(self.mock.get_or_init(random), user)
    }

    /// A role that a login has proved on the backend within `ttl`, and that no failed login has put in doubt for a client at
    /// this address.
    pub fn learned(&self, (user, database): (&[u8], &[u8]), from: IpAddr, ttl: Duration) -> Option<Known> {
        let roles = self.roles();
        let known = roles.get(&(user.to_vec(), Some(database.to_vec())))?;
        let doubted = known.doubted || known.doubted_from.contains(&from.to_canonical());
        (!doubted && known.proved_at.elapsed() < ttl).then(|| known.clone())
    }

    /// A login of this role failed at the proxy: perhaps its password has changed. With an address, that counts for clients
    /// there.
    pub fn doubt(&self, user: &[u8], database: &[u8], from: Option<IpAddr>) {
        if let Some(known) = self.roles().get_mut(&(user.to_vec(), Some(database.to_vec()))) {
            match from {
                None => known.doubted = true,
                Some(from) if known.doubted_from.contains(&from) => {}
                Some(from) => {
                    if known.doubted_from.len() >= MOST_DOUBTS {
                        known.doubted_from.remove(0);
                    }
                    known.doubted_from.push(from);
                }
            }
        }
    }

    /// The keys that a proof has shown for a verifier; remembered while the role still has that one.
    pub fn recovered(&self, user: &[u8], epoch: u64, keys: Keys) -> Arc<Credential> {
        let mut roles = self.roles();
        match roles.get_mut(&(user.to_vec(), None)).filter(|known| known.epoch == epoch) {
            Some(known) => {
                Arc::clone(known.credential.get_or_insert_with(|| Arc::new(Credential::Scram(keys))))
            }
            None => Arc::new(Credential::Scram(keys)),
        }
    }

    /// A login has just been proved on the backend with this password, or without one. The same proof as before keeps
    /// its credential and epoch.
    pub fn prove(&self, user: &[u8], database: &[u8], password: Option<Tried>) -> (Arc<Credential>, u64) {
        let key = (user.to_vec(), Some(database.to_vec()));
        let mut roles = self.roles();
        if let Some(known) = roles.get_mut(&key)
            && let Some(credential) = known.credential.clone()
            && known.is_same(password.as_ref())
        {
            known.proved_at = Instant::now();
            known.doubted = false;
            known.doubted_from.clear();
            return (credential, known.epoch);
        }
        let (proof, credential) = match password {
            None => (Proof::Trust, Credential::Nothing),
            Some(Tried::Scram(Derived { salt, iterations, keys })) => {
                (Proof::Scram(keys.verifier(salt, iterations)), Credential::Scram(keys))
            }
            Some(Tried::Md5(stored)) => (Proof::Password, Credential::Md5(stored)),
            Some(Tried::Clear(text)) => (Proof::Password, Credential::Password(Password::new(text))),
        };
        let credential = Arc::new(credential);
        let known = Known {
            proof,
            credential: Some(Arc::clone(&credential)),
            epoch: self.next_epoch(),
            proved_at: Instant::now(),
            doubted: false,
            doubted_from: Vec::new(),
            source: None,
        };
        let epoch = known.epoch;
        roles.insert(key, known);
        (credential, epoch)
    }
}

/// What a login has proved, by the backend's method.
pub enum Tried {
    /// SCRAM keys with their salt and count; the password is gone.
    Scram(Derived),
    /// `md5(password || user)` in hex.
    Md5(Zeroizing<Vec<u8>>),
    /// The password, because the backend wants it in clear text each time.
    Clear(Zeroizing<Vec<u8>>),
}

impl Known {
    fn is_same(&self, tried: Option<&Tried>) -> bool {
        match (tried, self.credential.as_deref(), &self.proof) {
            (None, Some(Credential::Nothing), _) => true,
            (Some(Tried::Scram(derived)), _, Proof::Scram(verifier)) => {
                verifier.salt == derived.salt && verifier.admits(&derived.keys)
            }
            (Some(Tried::Md5(stored)), Some(Credential::Md5(known)), _) => stored.ct_eq(known).into(),
            (Some(Tried::Clear(text)), Some(Credential::Password(known)), _) => {
                text.ct_eq(known.expose()).into()
            }
            _ => false,
        }
    }

    /// Whether a clear password is the one that this role was proved with.
    #[must_use]
    pub fn admits(&self, user: &[u8], password: &[u8]) -> bool {
        match self.credential.as_deref() {
            Some(Credential::Md5(stored)) => md5::stored(user, password).ct_eq(stored).into(),
            Some(Credential::Password(known)) => known.expose().ct_eq(password).into(),
            _ => false,
        }
    }
}

/// A verifier for a configured password: random salt, PostgreSQL's default count. On a blocking thread.
async fn derive(password: Zeroizing<Vec<u8>>) -> Option<Verifier> {
    let work = move || {
        let mut salt = [0u8; 16];
        getrandom::fill(&mut salt).ok()?;
        Some(Keys::derive(&password, &salt, DEFAULT_ITERATIONS).verifier(salt.to_vec(), DEFAULT_ITERATIONS))
    };
    tokio::task::spawn_blocking(work).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_on_the_backend_ends_every_doubt() {
        let (auth, near, far) = (Auth::default(), IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1]));
        let (app, ttl) = ((&b"app"[..], &b"db"[..]), Duration::from_secs(60));
        let prove = |password: &[u8]| {
            auth.prove(app.0, app.1, Some(Tried::Clear(Zeroizing::new(password.to_vec())))).1
        };
        let known = |from| auth.learned(app, from, ttl).map(|known| known.epoch);
        let first = prove(b"secret");
        for from in [Some(far), None] {
            auth.doubt(app.0, app.1, from);
            assert_eq!((known(far), known(near)), (None, from.map(|_| first)));
            assert_eq!(prove(b"secret"), first, "the same password");
            assert_eq!((known(far), known(near)), (Some(first), Some(first)));
        }
        auth.doubt(app.0, app.1, Some(far));
        let second = prove(b"changed");
        assert_ne!(first, second);
        assert_eq!((known(far), known(near)), (Some(second), Some(second)));
    }
}
