//! What opens server connections for a role: learnt from a login or configured. Lives in memory only; wiped when
//! dropped; never printed. Never checks a client: that is `auth`.

use helios_pgwire::login::{Answer, Asked};
use helios_pgwire::md5;
use helios_pgwire::scram::Keys;
use helios_proto::model::Secret;
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

/// Means to log in on a backend as one role.
pub enum Credential {
    /// None: the backend asks for nothing (`trust`).
    Nothing,
    /// The password, configured or kept because the backend wants it in clear text.
    Password(Password),
    /// `md5(password || user)` in hex.
    Md5(Zeroizing<Vec<u8>>),
    /// SCRAM keys, learnt from a proof or derived from a password that is gone.
    Scram(Keys),
}

/// A password, with the SCRAM keys that were last derived from it.
pub struct Password {
    text: Zeroizing<Vec<u8>>,
    derived: Mutex<Option<Derived>>,
}

/// SCRAM keys and what they were derived with.
#[derive(Clone)]
pub struct Derived {
    /// Salt, raw bytes.
    pub salt: Vec<u8>,
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// The keys.
    pub keys: Keys,
}

impl Password {
    /// Wraps a password.
    #[must_use]
    pub fn new(text: Zeroizing<Vec<u8>>) -> Self {
        Self { text, derived: Mutex::new(None) }
    }

    /// The password in clear text; the caller must not print it.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.text
    }

    /// Keys that were already derived with this salt and count.
    fn known(&self, salt: &[u8], iterations: u32) -> Option<Keys> {
        let derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        derived.as_ref().filter(|d| d.salt == salt && d.iterations == iterations).map(|d| d.keys.clone())
    }

    /// The last keys derived, with salt and count.
    #[must_use]
    pub fn derived(&self) -> Option<Derived> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Credential {
    /// A configured password, or none.
    #[must_use]
    pub fn configured(password: Option<&Secret>) -> Self {
        password.map_or(Self::Nothing, |password| {
            Self::Password(Password::new(Zeroizing::new(password.expose().as_bytes().to_vec())))
        })
    }

    /// The answer to what a backend asks, with the bytes it borrows held by `hold`; `None` if this credential
    /// cannot answer that.
    #[must_use]
    pub fn answer<'a>(
        &'a self,
        asked: Asked,
        user: &[u8],
        hold: &'a mut Zeroizing<Vec<u8>>,
    ) -> Option<Answer<'a>> {
        match (self, asked) {
            (Self::Password(_) | Self::Scram(_), Asked::Scram) => Some(Answer::Scram),
            (Self::Password(password), Asked::Cleartext) => Some(Answer::Cleartext(password.expose())),
            (Self::Password(password), Asked::Md5(_)) => {
                *hold = Zeroizing::new(md5::stored(user, password.expose()));
                Some(Answer::Md5(hold))
            }
            (Self::Md5(stored), Asked::Md5(_)) => Some(Answer::Md5(stored)),
            _ => None,
        }
    }

    /// SCRAM keys for this salt and count: at once if known, else derived on a blocking thread.
    /// `None` if this credential has no keys.
    pub async fn keys(self: &Arc<Self>, salt: Vec<u8>, iterations: u32) -> Option<Keys> {
        match self.as_ref() {
            Self::Scram(keys) => return Some(keys.clone()),
            Self::Password(password) => {
                if let Some(keys) = password.known(&salt, iterations) {
                    return Some(keys);
                }
            }
            Self::Nothing | Self::Md5(_) => return None,
        }
        let this = Arc::clone(self);
        // A blocking thread: the derivation takes milliseconds (4,096 rounds of HMAC), and a worker has no time.
        let derive = move || match this.as_ref() {
            Self::Password(password) => {
                let keys = Keys::derive(password.expose(), &salt, iterations);
                let derived = Derived { salt, iterations, keys: keys.clone() };
                *password.derived.lock().unwrap_or_else(PoisonError::into_inner) = Some(derived);
                Some(keys)
            }
            Self::Nothing | Self::Md5(_) | Self::Scram(_) => None,
        };
        tokio::task::spawn_blocking(derive).await.ok().flatten()
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Password(_) => "Password(******)",
            Self::Md5(_) => "Md5(******)",
            Self::Scram(_) => "Scram(******)",
        })
    }
}
