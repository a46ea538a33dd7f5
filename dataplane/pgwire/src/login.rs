//! Logging in on a backend, without a socket: bytes of the backend in, bytes for the backend and one of a few
//! needs out. Used for every server connection. Treats the backend as hostile: lengths, counts and order checked.

use crate::backend::{AuthRequest, key_data_fields, max_len, parameter_status_fields};
use crate::error::ErrorFields;
use crate::frame::Header;
use crate::frontend;
use crate::md5;
use crate::scram::{Challenge, Channel, ClientFirst, Expected, Keys, MECHANISM, MECHANISM_PLUS, ScramError};

/// Longest message that a backend may send during login, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Most parameters that a backend may report during login.
const MAX_PARAMETERS: usize = 256;

/// What the login needs next.
pub enum Need {
    /// More bytes of the backend.
    Bytes,
    /// The backend asked for this kind of credential: call [`Login::credential`].
    Credential(Asked),
    /// SCRAM keys for this salt and count: call [`Login::keys`].
    Keys {
        /// Salt, raw bytes.
        salt: Vec<u8>,
        /// PBKDF2 rounds.
        iterations: u32,
    },
    /// Somebody else to see this message of the backend: call [`Login::passes`] with what it answers, unless it is the last.
    Show {
        /// The authentication request, header included.
        message: Vec<u8>,
        /// Nothing is to be answered.
        last: bool,
    },
    /// Nothing: the backend is ready for its first query.
    Done(Box<Welcome>),
}

/// The kind of credential that a backend asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The password in clear text.
    Cleartext,
    /// MD5 with this salt.
    Md5([u8; 4]),
    /// SCRAM-SHA-256.
    Scram,
}

/// What the proxy answers to [`Need::Credential`].
pub enum Answer<'a> {
    /// The password itself, for [`Asked::Cleartext`].
    Cleartext(&'a [u8]),
    /// `md5(password || user)` in hex, for [`Asked::Md5`].
    Md5(&'a [u8]),
    /// Start the exchange; the keys follow when [`Need::Keys`] asks.
    Scram,
}

/// What a backend said of itself while logging in. Has no Debug: its key is a secret.
#[derive(Clone, Default)]
pub struct Welcome {
    /// Parameters reported, in order.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Process id for cancel requests.
    pub pid: u32,
    /// Secret for cancel requests.
    pub key: Vec<u8>,
    /// Whether the backend asked for any credential; `false` is `trust` and the like.
    pub asked: bool,
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The backend refused; the whole ErrorResponse, as sent.
    #[error("backend refused the login ({sqlstate}): {message}")]
    Refused {
        /// The ErrorResponse message, header included.
        raw: Vec<u8>,
        /// SQLSTATE, empty if the backend sent none.
        sqlstate: String,
        /// Primary message.
        message: String,
        /// Whether the credential had been accepted before.
        authenticated: bool,
    },
    /// The backend asks for a method that the proxy does not speak.
    #[error("backend asks for an unsupported authentication method ({0})")]
    Unsupported(String),
    /// The backend broke the protocol.
    #[error("backend broke the protocol during login: {0}")]
    Protocol(&'static str),
    /// SCRAM failed on our side.
    #[error(transparent)]
    Scram(#[from] ScramError),
}

enum State {
    Waiting,
    AskedFor(Asked),
    /// Somebody else goes through the SCRAM exchange, and has begun it, or has been shown what to prove.
    Relayed {
        proved: bool,
    },
    ClientFirst(ClientFirst),
    Challenge(Challenge),
    Expected(Expected),
    ScramDone,
    Authenticated,
}

/// A login in progress. Feed it with [`Login::advance`].
pub struct Login {
    state: State,
    welcome: Welcome,
    /// With TLS: hash of the backend's certificate, if it has one that can be bound to.
    tls: Option<Option<Vec<u8>>>,
    /// As the backend's offer leaves it.
    channel: Channel,
}

impl Login {
    /// A login whose StartupMessage has been sent in plain text.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Waiting, welcome: Welcome::default(), tls: None, channel: Channel::Plain }
    }

    /// The same over TLS; `end_point` is the hash of the backend's certificate for channel binding, if it has one.
    #[must_use]
    pub fn over_tls(end_point: Option<Vec<u8>>) -> Self {
        Self { tls: Some(end_point), ..Self::new() }
    }

    /// What the backend's list of mechanisms makes of the channel; `None` if it offers none that we speak.
    fn offered(&self, list: &[u8]) -> Option<Channel> {
        let plain = AuthRequest::offers(list, MECHANISM);
        match &self.tls {
            Some(Some(hash)) if AuthRequest::offers(list, MECHANISM_PLUS) => {
                Some(Channel::Bound(hash.clone()))
            }
            Some(Some(_)) => plain.then_some(Channel::Unbound),
            // Without a hash we support no channel binding, whatever the backend offers.
            Some(None) | None => plain.then_some(Channel::Plain),
        }
    }

    /// Takes as many whole messages off the front of `buf` as it can; drops them from it.
    ///
    /// # Errors
    /// See [`LoginError`]; the connection is of no use afterwards.
    pub fn advance(&mut self, buf: &mut Vec<u8>) -> Result<Need, LoginError> {
        loop {
            let header = Header::parse(buf, max_len).map_err(|_| LoginError::Protocol("message length"))?;
            let Some(Header { tag, size }) = header else { return Ok(Need::Bytes) };
            if size > MAX_MESSAGE {
                return Err(LoginError::Protocol("message too long"));
            }
            let Some(message) = buf.get(..size) else { return Ok(Need::Bytes) };
            let need = self.message(tag, message);
            buf.drain(..size);
            if let Some(need) = need? {
                return Ok(need);
            }
        }
    }

    /// Answers [`Need::Credential`] with bytes to send.
    ///
    /// # Errors
    /// [`LoginError::Protocol`] when nothing of that kind was asked for.
    pub fn credential(&mut self, answer: Answer<'_>) -> Result<Vec<u8>, LoginError> {
        let mut out = Vec::new();
        let State::AskedFor(asked) = &self.state else {
            return Err(LoginError::Protocol("no credential asked"));
        };
        self.state = match (asked, answer) {
            (Asked::Cleartext, Answer::Cleartext(password)) => {
                frontend::password(&mut out, password, true);
                State::Waiting
            }
            (Asked::Md5(salt), Answer::Md5(stored)) => {
                frontend::password(&mut out, &md5::answer(stored, *salt), true);
                State::Waiting
            }
            (Asked::Scram, Answer::Scram) => {
                let first = ClientFirst::new(std::mem::take(&mut self.channel));
                frontend::sasl_initial(&mut out, first.mechanism(), &first.message());
                State::ClientFirst(first)
            }
            _ => return Err(LoginError::Protocol("credential of another kind")),
        };
        Ok(out)
    }

    /// Answers [`Need::Keys`] with bytes to send.
    ///
    /// # Errors
    /// [`LoginError::Protocol`] when no keys were asked for.
    pub fn keys(&mut self, keys: &Keys) -> Result<Vec<u8>, LoginError> {
        let State::Challenge(challenge) = &self.state else {
            return Err(LoginError::Protocol("no keys asked"));
        };
        let (answer, expected) = challenge.answer(keys);
        self.state = State::Expected(expected);
        let mut out = Vec::new();
        frontend::password(&mut out, &answer, false);
        Ok(out)
    }

    /// Somebody else answers the backend from here on, with the body of this message. What it proves, and whether the
    /// backend proves anything to it, is not looked at.
    ///
    /// # Errors
    /// [`LoginError::Protocol`] when there is nothing to answer.
    pub fn passes(&mut self, body: &[u8]) -> Result<Vec<u8>, LoginError> {
        self.state = match &self.state {
            State::AskedFor(Asked::Scram) => State::Relayed { proved: false },
            State::Relayed { proved: false } => State::Relayed { proved: true },
            State::AskedFor(_) => State::Waiting,
            _ => return Err(LoginError::Protocol("nothing to answer")),
        };
        let mut out = Vec::new();
        frontend::password(&mut out, body, false);
        Ok(out)
    }

    fn message(&mut self, tag: u8, message: &[u8]) -> Result<Option<Need>, LoginError> {
        let body = message.get(5..).unwrap_or_default();
        match tag {
            b'R' => self.auth(message, body),
            b'E' => Err(self.refused(message, body)),
            b'N' => Ok(None),
            b'v' => Err(LoginError::Protocol("version negotiation for protocol 3.0")),
            b'S' if self.authenticated() => {
                let (name, value) =
                    parameter_status_fields(body).ok_or(LoginError::Protocol("ParameterStatus"))?;
                if self.welcome.parameters.len() >= MAX_PARAMETERS {
                    return Err(LoginError::Protocol("too many parameters"));
                }
                self.welcome.parameters.retain(|(known, _)| known != name);
                self.welcome.parameters.push((name.to_vec(), value.to_vec()));
                Ok(None)
            }
            b'K' if self.authenticated() => {
                let (pid, key) = key_data_fields(body).ok_or(LoginError::Protocol("BackendKeyData"))?;
                self.welcome.pid = pid;
                self.welcome.key = key.to_vec();
                Ok(None)
            }
            b'Z' if self.authenticated() => Ok(Some(Need::Done(Box::new(std::mem::take(&mut self.welcome))))),
            _ => Err(LoginError::Protocol("unexpected message")),
        }
    }

    fn authenticated(&self) -> bool {
        matches!(self.state, State::Authenticated)
    }

    fn auth(&mut self, message: &[u8], body: &[u8]) -> Result<Option<Need>, LoginError> {
        let request = AuthRequest::parse(body).ok_or(LoginError::Protocol("authentication request"))?;
        let state = std::mem::replace(&mut self.state, State::Waiting);
        let (next, need) = match (state, request) {
            (State::Waiting | State::ScramDone, AuthRequest::Ok) => (State::Authenticated, None),
            (State::Waiting, AuthRequest::CleartextPassword) => self.ask(Asked::Cleartext)?,
            (State::Waiting, AuthRequest::Md5Password(salt)) => self.ask(Asked::Md5(salt))?,
            (State::Waiting, AuthRequest::Sasl(list)) => {
                let Some(channel) = self.offered(list) else {
                    let offered = String::from_utf8_lossy(list).replace('\0', " ");
                    return Err(LoginError::Unsupported(offered.trim_end().escape_debug().to_string()));
                };
                self.channel = channel;
                self.ask(Asked::Scram)?
            }
            (State::ClientFirst(first), AuthRequest::SaslContinue(data)) => {
                let challenge = first.challenge(data)?;
                let need = Need::Keys { salt: challenge.salt.clone(), iterations: challenge.iterations };
                (State::Challenge(challenge), Some(need))
            }
            (State::Expected(expected), AuthRequest::SaslFinal(data)) => {
                expected.check(data)?;
                (State::ScramDone, None)
            }
            (state @ State::Relayed { proved: false }, AuthRequest::SaslContinue(_)) => {
                (state, Some(Need::Show { message: message.to_vec(), last: false }))
            }
            (State::Relayed { proved: true }, AuthRequest::SaslFinal(_)) => {
                (State::ScramDone, Some(Need::Show { message: message.to_vec(), last: true }))
            }
            (_, AuthRequest::Other(code)) => return Err(LoginError::Unsupported(code.to_string())),
            _ => return Err(LoginError::Protocol("authentication request out of order")),
        };
        self.state = next;
        Ok(need)
    }

    fn ask(&mut self, asked: Asked) -> Result<(State, Option<Need>), LoginError> {
        if self.welcome.asked {
            return Err(LoginError::Protocol("two authentication requests"));
        }
        self.welcome.asked = true;
        Ok((State::AskedFor(asked), Some(Need::Credential(asked))))
    }

    fn refused(&self, message: &[u8], body: &[u8]) -> LoginError {
        let fields = ErrorFields::parse(body);
        let shown = |field: Option<&[u8]>| {
            String::from_utf8_lossy(field.unwrap_or_default()).escape_debug().collect::<String>()
        };
        LoginError::Refused {
            raw: message.to_vec(),
            sqlstate: shown(fields.code),
            message: shown(fields.message),
            authenticated: self.authenticated(),
        }
    }
}

impl Default for Login {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TxStatus;
    use crate::backend::{auth, key_data, parameter_status, ready_for_query};

    #[test]
    fn trust() {
        let mut buf = Vec::new();
        auth(&mut buf, 0, b"");
        parameter_status(&mut buf, b"server_version", b"15");
        key_data(&mut buf, 5, &[1; 4]);
        ready_for_query(&mut buf, TxStatus::Idle);
        buf.extend_from_slice(b"rest");
        let Ok(Need::Done(welcome)) = Login::new().advance(&mut buf) else { panic!() };
        assert_eq!((welcome.pid, welcome.asked, welcome.parameters.len()), (5, false, 1));
        assert_eq!(buf, b"rest");
    }

    #[test]
    fn a_server_cannot_skip_its_proof() {
        let mut login = Login::new();
        let mut buf = Vec::new();
        auth(&mut buf, 10, b"SCRAM-SHA-256\0\0");
        assert!(matches!(login.advance(&mut buf), Ok(Need::Credential(Asked::Scram))));
        login.credential(Answer::Scram).unwrap();
        auth(&mut buf, 0, b"");
        assert!(matches!(login.advance(&mut buf), Err(LoginError::Protocol(_))));
    }

    #[test]
    fn channel_binding_is_used_where_both_sides_have_it() {
        let hash = || Some(b"hash".to_vec());
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice();
        let plain = b"SCRAM-SHA-256\0\0".as_slice();
        for (mut login, list, begins) in [
            (Login::over_tls(hash()), both, "SCRAM-SHA-256-PLUS p=tls-server-end-point,,"),
            (Login::over_tls(hash()), plain, "SCRAM-SHA-256 y,,"),
            (Login::over_tls(None), both, "SCRAM-SHA-256 n,,"),
            (Login::new(), both, "SCRAM-SHA-256 n,,"),
        ] {
            let mut buf = Vec::new();
            auth(&mut buf, 10, list);
            assert!(matches!(login.advance(&mut buf), Ok(Need::Credential(Asked::Scram))));
            let sent = login.credential(Answer::Scram).unwrap();
            let (mechanism, rest) = crate::frame::take_cstr(&sent[5..]).unwrap();
            let sent = [mechanism, b" ", &rest[4..]].concat();
            assert!(sent.starts_with(begins.as_bytes()), "{begins}: {sent:?}");
        }
        let mut buf = Vec::new();
        auth(&mut buf, 10, b"SCRAM-SHA-256-PLUS\0\0");
        let refused = Login::new().advance(&mut buf);
        assert!(matches!(refused, Err(LoginError::Unsupported(_))), "not without TLS");
    }

    #[test]
    fn what_somebody_else_proves_is_passed_on_in_order() {
        let asked = || {
            let (mut login, mut buf) = (Login::new(), Vec::new());
            auth(&mut buf, 10, b"SCRAM-SHA-256\0\0");
            assert!(matches!(login.advance(&mut buf), Ok(Need::Credential(Asked::Scram))));
            (login, buf)
        };
        let (mut login, mut buf) = asked();
        assert_eq!(login.passes(b"first").unwrap(), b"p\0\0\0\x09first");
        auth(&mut buf, 11, b"challenge");
        let shown = buf.clone();
        let Ok(Need::Show { message, last: false }) = login.advance(&mut buf) else { panic!() };
        assert_eq!(message, shown);
        login.passes(b"proof").unwrap();
        auth(&mut buf, 12, b"signature");
        auth(&mut buf, 0, b"");
        ready_for_query(&mut buf, TxStatus::Idle);
        assert!(matches!(login.advance(&mut buf), Ok(Need::Show { last: true, .. })));
        assert!(matches!(login.advance(&mut buf), Ok(Need::Done(_))));

        // Neither side may skip a step.
        for early in [0, 12] {
            let (mut login, mut buf) = asked();
            login.passes(b"first").unwrap();
            auth(&mut buf, early, b"");
            assert!(matches!(login.advance(&mut buf), Err(LoginError::Protocol(_))), "{early}");
        }
        let (mut login, _) = asked();
        login.passes(b"first").unwrap();
        login.passes(b"proof").unwrap();
        assert!(login.passes(b"more").is_err());
        assert!(Login::new().passes(b"p").is_err());
    }

    #[test]
    fn hostile_messages() {
        for bytes in
            [&b"Z\0\0\0\x05I"[..], b"R\0\0\0\x04", b"R\xff\xff\xff\xff", b"R\0\x10\0\0", b"D\0\0\0\x04"]
        {
            let mut buf = bytes.to_vec();
            assert!(Login::new().advance(&mut buf).is_err(), "{bytes:?}");
        }
        let mut buf = b"E\0\0\0\x05\0".to_vec();
        let Err(LoginError::Refused { sqlstate, .. }) = Login::new().advance(&mut buf) else { panic!() };
        assert_eq!(sqlstate, "");
    }
}
