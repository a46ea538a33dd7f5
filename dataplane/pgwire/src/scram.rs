//! SCRAM-SHA-256 (RFC 5802, RFC 7677) in both roles, as state machines without input or output, and the verifier
//! format of `pg_authid`, with channel binding by `tls-server-end-point` (RFC 5929). Never stores a password; keys are wiped when dropped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The one mechanism that both legs speak without TLS.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The same with channel binding, for a connection with TLS.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The one kind of channel binding that PostgreSQL knows, as a GS2 header.
const END_POINT: &str = "p=tls-server-end-point,,";
/// Highest iteration count that we compute for a server (CVE-2026-42198 of pgjdbc: a server that burns a core).
pub const MAX_ITERATIONS: u32 = 100_000;
/// PostgreSQL's default iteration count.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// Longest nonce that we accept from a peer, in bytes.
const MAX_NONCE: usize = 512;

type Key = [u8; 32];

/// The keys that a password, a salt and an iteration count stand for. Whoever has `client` can log in.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    client: Key,
    server: Key,
}

/// What a server keeps of a password: enough to check a proof, not enough to log in.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    /// PBKDF2 rounds.
    pub iterations: u32,
    /// Salt, raw bytes.
    pub salt: Vec<u8>,
    stored: Key,
    server: Key,
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that is not SCRAM (08P01).
    #[error("malformed SCRAM message")]
    Malformed,
    /// An extension or binding that we do not speak (0A000).
    #[error("client requires an unsupported SCRAM extension")]
    Unsupported,
    /// The proof is wrong (28P01).
    #[error("password authentication failed")]
    WrongProof,
    /// The server could not prove that it knows the password.
    #[error("server signature is wrong")]
    WrongServer,
    /// The client thinks that we do not offer channel binding, so somebody has changed our list (28000).
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client's end of the TLS connection is not ours (28000).
    #[error("SCRAM channel binding check failed")]
    WrongBinding,
    /// The server asks for more work than [`MAX_ITERATIONS`].
    #[error("server asks for too many SCRAM iterations")]
    TooManyIterations,
}

/// What a client knows of its channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Channel {
    /// No TLS.
    #[default]
    Plain,
    /// TLS, but the server offers no channel binding.
    Unbound,
    /// TLS with a server whose certificate has this hash, and which offers channel binding.
    Bound(Vec<u8>),
}

/// Client role, first message sent.
pub struct ClientFirst {
    nonce: String,
    channel: Channel,
}

/// What a server offers and a client has chosen, apart from the password.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offer<'a> {
    /// Hash of our certificate on this connection, if channel binding was offered.
    pub end_point: Option<&'a [u8]>,
    /// The client has chosen [`MECHANISM_PLUS`].
    pub chosen: bool,
}

/// Client role, challenge received: what the keys must be derived with.
pub struct Challenge {
    /// Salt, raw bytes.
    pub salt: Vec<u8>,
    /// PBKDF2 rounds, at most [`MAX_ITERATIONS`].
    pub iterations: u32,
    auth_message: String,
    final_without_proof: String,
}

/// Client role, final message sent: what the server must answer.
pub struct Expected {
    signature: Key,
}

/// Server role, challenge sent.
pub struct ServerFirst {
    verifier: Verifier,
    first_bare: String,
    server_first: String,
    /// What the client must bind to.
    gs2: String,
    chosen: bool,
    nonce: String,
}

/// Server role, proof accepted.
pub struct Proved {
    /// Keys recovered from the proof: they open connections to any server with the same verifier.
    pub keys: Keys,
    /// Last message for the client.
    pub server_final: Vec<u8>,
}

fn hmac(key: &[u8], data: &[u8]) -> Key {
    // A MAC of any key length exists; the other arm cannot be reached and gives a key that proves nothing.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn hash(data: &[u8]) -> Key {
    Sha256::digest(data).into()
}

fn xor(a: &Key, b: &Key) -> Key {
    let mut out = *a;
    out.iter_mut().zip(b).for_each(|(o, b)| *o ^= b);
    out
}

fn nonce() -> String {
    let mut raw = [0u8; 18];
    // The kernel's generator does not fail once the system is up; an all-zero nonce would only weaken this login.
    let _ = getrandom::fill(&mut raw);
    BASE64.encode(raw)
}

fn key_from(text: &str) -> Option<Key> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// Value of attribute `name` (`n=value`).
fn attribute(part: &str, name: char) -> Result<&str, ScramError> {
    part.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')).ok_or(ScramError::Malformed)
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed)
}

fn check_nonce(nonce: &str) -> Result<(), ScramError> {
    let printable = nonce.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b',');
    if nonce.is_empty() || !printable || nonce.len() > MAX_NONCE {
        Err(ScramError::Malformed)
    } else {
        Ok(())
    }
}

// === impl Keys ===

impl Keys {
    /// Derives the keys; takes milliseconds, so not on a worker's thread. The password goes through SASLprep as in
    /// PostgreSQL: one that is not valid UTF-8, or prohibited, is used as it is.
    #[must_use]
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let prepared = std::str::from_utf8(password).ok().and_then(|p| stringprep::saslprep(p).ok());
        let bytes = prepared.as_ref().map_or(password, |p| p.as_bytes());
        let mut salted = [0u8; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(bytes, salt, iterations, &mut salted);
        let keys = Self { client: hmac(&salted, b"Client Key"), server: hmac(&salted, b"Server Key") };
        salted.zeroize();
        keys
    }

    /// What a server would keep of these keys.
    #[must_use]
    pub fn verifier(&self, salt: Vec<u8>, iterations: u32) -> Verifier {
        Verifier { iterations, salt, stored: hash(&self.client), server: self.server }
    }
}

// === impl Verifier ===

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|n| (1..=MAX_ITERATIONS).contains(n))?;
        let salt = BASE64.decode(salt).ok().filter(|s| !s.is_empty())?;
        Some(Self { iterations, salt, stored: key_from(stored)?, server: key_from(server)? })
    }

    /// A verifier that no password fits, for a role that does not exist: its salt is always the same for the same role and
    /// secret, as an existing role's would be (`scram_mock_salt` of PostgreSQL).
    #[must_use]
    pub fn nobody(secret: &[u8; 32], role: &[u8]) -> Self {
        let salt = hmac(secret, role).get(..16).unwrap_or_default().to_vec();
        let mut keys = [[0; 32]; 2];
        // As in `nonce`; what stays zero has no known preimage either.
        for key in &mut keys {
            let _ = getrandom::fill(key);
        }
        let [stored, server] = keys;
        Self { iterations: DEFAULT_ITERATIONS, salt, stored, server }
    }

    /// Whether these keys belong to this verifier.
    #[must_use]
    pub fn admits(&self, keys: &Keys) -> bool {
        hash(&keys.client).ct_eq(&self.stored).into()
    }
}

// === client role ===

impl ClientFirst {
    /// Starts an exchange with a random nonce.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { nonce: nonce(), channel }
    }

    /// The mechanism that goes with the channel.
    #[must_use]
    pub const fn mechanism(&self) -> &'static str {
        if matches!(self.channel, Channel::Bound(_)) { MECHANISM_PLUS } else { MECHANISM }
    }

    const fn gs2(&self) -> &'static str {
        match self.channel {
            Channel::Plain => "n,,",
            Channel::Unbound => "y,,",
            Channel::Bound(_) => END_POINT,
        }
    }

    /// The attribute `c` of the last message: the GS2 header, and what it binds to.
    fn bound(&self) -> String {
        let hash = if let Channel::Bound(hash) = &self.channel { hash.as_slice() } else { &[] };
        BASE64.encode([self.gs2().as_bytes(), hash].concat())
    }

    /// The first message. PostgreSQL takes the role's name from the startup packet, so it is empty here.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        format!("{}n=,r={}", self.gs2(), self.nonce).into_bytes()
    }

    /// Reads the server's challenge.
    ///
    /// # Errors
    /// [`ScramError::Malformed`], also for a nonce that does not extend ours, and
    /// [`ScramError::TooManyIterations`].
    pub fn challenge(self, message: &[u8]) -> Result<Challenge, ScramError> {
        let server_first = text(message)?;
        let mut parts = server_first.split(',');
        let mut next = |name| attribute(parts.next().unwrap_or_default(), name);
        let (nonce, salt, iterations) = (next('r')?, next('s')?, next('i')?);
        check_nonce(nonce)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed);
        }
        let iterations: u32 = iterations.parse().map_err(|_| ScramError::Malformed)?;
        if iterations > MAX_ITERATIONS {
            return Err(ScramError::TooManyIterations);
        }
        let salt = BASE64.decode(salt).ok().filter(|s| !s.is_empty() && iterations > 0);
        let final_without_proof = format!("c={},r={nonce}", self.bound());
        Ok(Challenge {
            salt: salt.ok_or(ScramError::Malformed)?,
            iterations,
            auth_message: format!("n=,r={},{server_first},{final_without_proof}", self.nonce),
            final_without_proof,
        })
    }
}

impl Challenge {
    /// The final message, and what the server must answer.
    #[must_use]
    pub fn answer(&self, keys: &Keys) -> (Vec<u8>, Expected) {
        let signature = hmac(&hash(&keys.client), self.auth_message.as_bytes());
        let proof = BASE64.encode(xor(&keys.client, &signature));
        let expected = Expected { signature: hmac(&keys.server, self.auth_message.as_bytes()) };
        (format!("{},p={proof}", self.final_without_proof).into_bytes(), expected)
    }
}

impl Expected {
    /// Checks the server's last message.
    ///
    /// # Errors
    /// [`ScramError::WrongServer`] unless it holds the right signature.
    pub fn check(self, message: &[u8]) -> Result<(), ScramError> {
        let signature = attribute(text(message)?.split(',').next().unwrap_or_default(), 'v')?;
        let signature = key_from(signature).ok_or(ScramError::Malformed)?;
        if signature.ct_eq(&self.signature).into() { Ok(()) } else { Err(ScramError::WrongServer) }
    }
}

// === server role ===

impl ServerFirst {
    /// Reads the client's first message and makes the challenge.
    ///
    /// # Errors
    /// [`ScramError::Malformed`], also for a binding that is not of the mechanism chosen; [`ScramError::Downgrade`]; and
    /// [`ScramError::Unsupported`] for an authorization identity or a mandatory extension.
    pub fn new(client_first: &[u8], verifier: Verifier, offer: Offer<'_>) -> Result<Self, ScramError> {
        let message = text(client_first)?;
        let mut parts = message.splitn(3, ',');
        let (flag, authzid) = (parts.next().unwrap_or_default(), parts.next().ok_or(ScramError::Malformed)?);
        let bare = parts.next().ok_or(ScramError::Malformed)?;
        let bound: &[u8] = match (flag, offer.end_point) {
            ("n", _) | ("y", None) if !offer.chosen => &[],
            ("y", Some(_)) if !offer.chosen => return Err(ScramError::Downgrade),
            ("p=tls-server-end-point", Some(hash)) if offer.chosen => hash,
            _ => return Err(ScramError::Malformed),
        };
        if !authzid.is_empty() {
            let known = authzid.starts_with("a=");
            return Err(if known { ScramError::Unsupported } else { ScramError::Malformed });
        }
        if bare.starts_with("m=") {
            return Err(ScramError::Unsupported);
        }
        let mut fields = bare.split(',');
        attribute(fields.next().unwrap_or_default(), 'n')?;
        let client_nonce = attribute(fields.next().unwrap_or_default(), 'r')?;
        check_nonce(client_nonce)?;
        let nonce = format!("{client_nonce}{}", nonce());
        let salt = BASE64.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let gs2 = BASE64.encode([flag.as_bytes(), b",,", bound].concat());
        let (first_bare, chosen) = (bare.to_owned(), offer.chosen);
        Ok(Self { verifier, first_bare, server_first, gs2, chosen, nonce })
    }

    /// The challenge.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.server_first.as_bytes()
    }

    /// Checks the client's final message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`], [`ScramError::WrongBinding`] and [`ScramError::WrongProof`].
    pub fn prove(self, client_final: &[u8]) -> Result<Proved, ScramError> {
        let message = text(client_final)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut fields = without_proof.split(',');
        let binding = attribute(fields.next().unwrap_or_default(), 'c')?;
        let nonce = attribute(fields.next().unwrap_or_default(), 'r')?;
        let proof = key_from(proof).ok_or(ScramError::Malformed)?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        if binding != self.gs2 {
            return Err(if self.chosen { ScramError::WrongBinding } else { ScramError::Malformed });
        }
        let auth_message = format!("{},{},{without_proof}", self.first_bare, self.server_first);
        let signature = hmac(&self.verifier.stored, auth_message.as_bytes());
        let keys = Keys { client: xor(&proof, &signature), server: self.verifier.server };
        if !self.verifier.admits(&keys) {
            return Err(ScramError::WrongProof);
        }
        let server = BASE64.encode(hmac(&keys.server, auth_message.as_bytes()));
        Ok(Proved { keys, server_final: format!("v={server}").into_bytes() })
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(******)")
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &[u8] = b"0123456789abcdef";

    fn verifier(password: &str) -> Verifier {
        Keys::derive(password.as_bytes(), SALT, 16).verifier(SALT.to_vec(), 16)
    }

    /// A whole exchange: our client role against our server role.
    fn exchange(client: &str, server: &str) -> Result<Proved, ScramError> {
        bound_exchange(client, server, Channel::Plain, None)
    }

    fn bound_exchange(
        client: &str,
        server: &str,
        channel: Channel,
        end_point: Option<&[u8]>,
    ) -> Result<Proved, ScramError> {
        let first = ClientFirst::new(channel);
        let offer = Offer { end_point, chosen: first.mechanism() == MECHANISM_PLUS };
        let server = ServerFirst::new(&first.message(), verifier(server), offer)?;
        let challenge = first.challenge(server.message())?;
        let keys = Keys::derive(client.as_bytes(), &challenge.salt, challenge.iterations);
        let (answer, expected) = challenge.answer(&keys);
        let proved = server.prove(&answer)?;
        expected.check(&proved.server_final)?;
        assert!(verifier(client).admits(&proved.keys));
        Ok(proved)
    }

    #[test]
    fn right_and_wrong_passwords() {
        assert!(exchange("secret", "secret").is_ok());
        assert_eq!(exchange("secret", "Secret").err(), Some(ScramError::WrongProof));
        assert!(exchange("I\u{00ad}X", "IX").is_ok(), "SASLprep drops a soft hyphen");
    }

    #[test]
    fn channel_binding() {
        let (ours, theirs) = (&b"hash of our certificate"[..], b"hash of somebody else's".to_vec());
        for (channel, offered, result) in [
            (Channel::Plain, None, None),
            // A client without TLS libraries worth the name, over TLS.
            (Channel::Plain, Some(ours), None),
            (Channel::Unbound, None, None),
            (Channel::Bound(ours.to_vec()), Some(ours), None),
            (Channel::Unbound, Some(ours), Some(ScramError::Downgrade)),
            (Channel::Bound(theirs.clone()), Some(ours), Some(ScramError::WrongBinding)),
            (Channel::Bound(theirs), None, Some(ScramError::Malformed)),
        ] {
            let shown = format!("{channel:?} {offered:?}");
            assert_eq!(bound_exchange("x", "x", channel, offered).err(), result, "{shown}");
        }
        let mixed = |message: &[u8], chosen| {
            ServerFirst::new(message, verifier("x"), Offer { end_point: Some(ours), chosen }).err()
        };
        for (message, chosen) in [
            (&b"p=tls-server-end-point,,n=,r=abc"[..], false),
            (b"n,,n=,r=abc", true),
            (b"y,,n=,r=abc", true),
            (b"p=tls-unique,,n=,r=abc", true),
        ] {
            assert_eq!(mixed(message, chosen), Some(ScramError::Malformed), "{message:?}");
        }
    }

    #[test]
    fn rfc_7677_example() {
        let first = ClientFirst { nonce: "rOprNGfwEbeRWgbNEkqO".into(), channel: Channel::Plain };
        let mut challenge = first
            .challenge(
                b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            )
            .unwrap();
        // The RFC's example carries a user name, PostgreSQL's exchange does not.
        challenge.auth_message = challenge.auth_message.replacen("n=,", "n=user,", 1);
        let keys = Keys::derive(b"pencil", &challenge.salt, challenge.iterations);
        let (answer, expected) = challenge.answer(&keys);
        let want = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8(answer).unwrap(), want);
        assert_eq!(expected.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
    }

    #[test]
    fn hostile_clients() {
        use ScramError::{Malformed, Unsupported};
        let long = format!("n,,n=,r={}", "x".repeat(2000));
        for (message, error) in [
            ("", Malformed),
            ("n,,", Malformed),
            ("n,a=x,n=,r=abc", Unsupported),
            ("n,b=x,n=,r=abc", Malformed),
            ("n,,m=x,n=,r=abc", Unsupported),
            ("p=tls-unique,,n=,r=abc", Malformed),
            ("n,,n=,r=a\u{7f}c", Malformed),
            ("n,,n=,r=", Malformed),
            (long.as_str(), Malformed),
        ] {
            assert_eq!(
                ServerFirst::new(message.as_bytes(), verifier("x"), Offer::default()).err(),
                Some(error),
                "{message:.40}"
            );
        }
        let server = ServerFirst::new(b"n,,n=,r=abc", verifier("x"), Offer::default()).unwrap();
        assert_eq!(server.prove(b"c=biws,r=abc,p=AAAA").err(), Some(Malformed));
    }

    #[test]
    fn hostile_servers() {
        let challenge = |m: &str| {
            ClientFirst { nonce: "abc".into(), channel: Channel::Plain }.challenge(m.as_bytes()).err()
        };
        assert_eq!(challenge("r=abc,s=AAAA,i=1"), Some(ScramError::Malformed), "the nonce must be extended");
        assert_eq!(challenge("r=xyz1,s=AAAA,i=1"), Some(ScramError::Malformed));
        assert_eq!(challenge("r=abcd,s=AAAA,i=1000000000"), Some(ScramError::TooManyIterations));
        assert_eq!(challenge("r=abcd,s=,i=1"), Some(ScramError::Malformed));
        assert_eq!(challenge("r=abcd,s=AAAA,i=0"), Some(ScramError::Malformed));
        assert_eq!(challenge("r=abcd,s=AAAA,i=1"), None);
    }

    #[test]
    fn verifier_text() {
        let text = "SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
                    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert!(Verifier::parse(text).is_some());
        assert!(Verifier::parse(&text.replace("4096", "0")).is_none());
        assert!(Verifier::parse("md5abc").is_none());
        assert_eq!(format!("{:?}", Verifier::parse(text)), "Some(Verifier { iterations: 4096, .. })");
    }
}
