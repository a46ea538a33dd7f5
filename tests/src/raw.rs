//! A client that can send anything: a TCP socket, whole messages read with a deadline, and a login with whatever
//! credential is asked for. Never interprets more than it is asked to.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use helios_pgwire::frame::put;
use helios_pgwire::scram::{Channel, ClientFirst, Expected, Keys, MECHANISM};
use helios_pgwire::{ErrorFields, frontend, md5};

use crate::socket::{Refused, Socket};

/// How long an answer may take before the test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// One message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub tag: u8,
    /// Body, without the header.
    pub body: Vec<u8>,
}

/// What [`Raw::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A message.
    Message(Message),
    /// The server closed the connection, or reset it.
    Closed,
    /// Nothing within the time given.
    Silence,
}

/// What a server said of a session when it began.
#[derive(Debug, Clone, Default)]
pub struct Hello {
    /// Process id for cancel requests.
    pub pid: u32,
    /// Secret for cancel requests.
    pub key: Vec<u8>,
    /// Parameters reported.
    pub parameters: HashMap<String, String>,
}

/// A connection.
pub struct Raw {
    stream: Socket,
    buffer: Vec<u8>,
    closed: bool,
}

impl Message {
    /// SQLSTATE of an ErrorResponse or NoticeResponse.
    #[must_use]
    pub fn sqlstate(&self) -> String {
        String::from_utf8_lossy(ErrorFields::parse(&self.body).code.unwrap_or_default()).into_owned()
    }

    /// Severity and primary message of an ErrorResponse or NoticeResponse.
    #[must_use]
    pub fn error(&self) -> (String, String) {
        let fields = ErrorFields::parse(&self.body);
        let text = |f: Option<&[u8]>| String::from_utf8_lossy(f.unwrap_or_default()).into_owned();
        (text(fields.severity), text(fields.message))
    }

    /// The fields of a DataRow as text; NULL is `null`.
    #[must_use]
    pub fn fields(&self) -> Vec<String> {
        let (mut rest, mut out) = (self.body.get(2..).unwrap_or_default(), Vec::new());
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let len = i32::from_be_bytes(*len);
            let Ok(len) = usize::try_from(len) else {
                out.push("null".to_owned());
                rest = tail;
                continue;
            };
            out.push(String::from_utf8_lossy(&tail[..len]).into_owned());
            rest = &tail[len..];
        }
        out
    }
}

/// PBKDF2 takes milliseconds: thousands of logins of one role derive once.
fn keys(password: &str, salt: &[u8], iterations: u32) -> Keys {
    type Known = Mutex<HashMap<(String, Vec<u8>, u32), Keys>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let name = (password.to_owned(), salt.to_vec(), iterations);
    let known = KNOWN.get_or_init(Mutex::default);
    if let Some(keys) = known.lock().unwrap().get(&name) {
        return keys.clone();
    }
    let keys = Keys::derive(password.as_bytes(), salt, iterations);
    known.lock().unwrap().insert(name, keys.clone());
    keys
}

/// A StartupMessage of any version with these parameters.
#[must_use]
pub fn startup(version: u32, params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in params {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    packet(&body)
}

/// `body` with its length before it: a message without a type.
///
/// # Panics
/// On a body of 4 GiB.
#[must_use]
pub fn packet(body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(body);
    out
}

/// A message with its type.
#[must_use]
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, |b| b.extend_from_slice(body));
    out
}

/// Parse, with no types.
#[must_use]
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Bind with these text parameters to the unnamed portal, Execute.
///
/// # Panics
/// On too many or too long parameters.
#[must_use]
pub fn call(name: &str, parameters: &[&str]) -> Vec<u8> {
    let mut bind = format!("\0{name}\0\0\0").into_bytes();
    bind.extend_from_slice(&u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        bind.extend_from_slice(&u32::try_from(parameter.len()).unwrap().to_be_bytes());
        bind.extend_from_slice(parameter.as_bytes());
    }
    bind.extend_from_slice(&[0, 0]);
    [message(b'B', &bind), message(b'E', &[0; 5])].concat()
}

/// Sync.
#[must_use]
pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// A statement by the extended protocol, unnamed, with its Sync.
#[must_use]
pub fn extended(sql: &str, parameters: &[&str]) -> Vec<u8> {
    [parse("", sql), call("", parameters), sync()].concat()
}

/// A Query message.
#[must_use]
pub fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::query(&mut out, sql);
    out
}

impl Raw {
    /// Connects to `127.0.0.1:port`.
    ///
    /// # Panics
    /// When nobody listens there.
    #[must_use]
    pub fn connect(port: u16) -> Self {
        Self::connect_to(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The same at another address.
    ///
    /// # Panics
    /// When nobody answers.
    #[must_use]
    pub fn connect_to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Socket::Plain(stream), buffer: Vec::new(), closed: false }
    }

    /// Connects and logs in.
    ///
    /// # Panics
    /// When the login is refused.
    #[must_use]
    pub fn login(port: u16, user: &str, password: &str) -> (Self, Hello) {
        Self::connect(port).start(user, password)
    }

    /// Connects, asks for TLS, and logs in.
    ///
    /// # Panics
    /// When TLS or the login is refused.
    #[must_use]
    pub fn login_tls(port: u16, user: &str, password: &str) -> (Self, Hello) {
        let mut raw = Self::connect(port);
        raw.send(&SSL_REQUEST);
        assert_eq!(raw.byte(PATIENCE), Some(b'S'), "the server has TLS");
        raw.encrypt(&["postgresql"]).unwrap();
        raw.start(user, password)
    }

    fn start(mut self, user: &str, password: &str) -> (Self, Hello) {
        self.send(&startup(0x0003_0000, &[("user", user), ("database", "postgres")]));
        let hello = self.finish_login(user, password);
        (self, hello.unwrap_or_else(|e| panic!("login of {user}: {:?} {:?}", e.sqlstate(), e.error())))
    }

    /// Begins TLS now, with these names of protocols; an `S` was read before, unless the server needs no request.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn encrypt(&mut self, protocols: &[&str]) -> Result<(), Refused> {
        self.stream.encrypt(protocols)
    }

    /// Answers what the server asks until it is ready for a query; on a refusal, the ErrorResponse (an empty one
    /// when the server just closed, one of type `?` when it fell silent).
    ///
    /// # Errors
    /// The refusal.
    ///
    /// # Panics
    /// When the server asks for something that no PostgreSQL of today asks for.
    pub fn finish_login(&mut self, user: &str, password: &str) -> Result<Hello, Message> {
        let (mut hello, mut first, mut expected) = (Hello::default(), None, None::<Expected>);
        loop {
            let message = match self.next(PATIENCE) {
                Next::Message(message) => message,
                Next::Closed => return Err(Message { tag: b'E', body: Vec::new() }),
                Next::Silence => return Err(Message { tag: b'?', body: b"silence".to_vec() }),
            };
            let body = message.body.as_slice();
            match (message.tag, body.get(..4)) {
                (b'R', Some([0, 0, 0, 0])) => assert!(expected.is_none(), "server skipped its signature"),
                (b'R', Some([0, 0, 0, 3])) => self.password(password.as_bytes(), true),
                (b'R', Some([0, 0, 0, 5])) => {
                    let stored = md5::stored(user.as_bytes(), password.as_bytes());
                    self.password(&md5::answer(&stored, body[4..8].try_into().unwrap()), true);
                }
                (b'R', Some([0, 0, 0, 10])) => {
                    let client = ClientFirst::new(Channel::Plain);
                    let mut out = Vec::new();
                    frontend::sasl_initial(&mut out, MECHANISM, &client.message());
                    self.send(&out);
                    first = Some(client);
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    let challenge = first.take().unwrap().challenge(&body[4..]).unwrap();
                    let keys = keys(password, &challenge.salt, challenge.iterations);
                    let (answer, want) = challenge.answer(&keys);
                    self.password(&answer, false);
                    expected = Some(want);
                }
                (b'R', Some([0, 0, 0, 12])) => {
                    expected.take().unwrap().check(&body[4..]).expect("server knows the password");
                }
                (b'K', Some(pid)) => {
                    hello.pid = u32::from_be_bytes(pid.try_into().unwrap());
                    hello.key = body[4..].to_vec();
                }
                (b'S', _) => {
                    let text = String::from_utf8_lossy(body).into_owned();
                    let mut parts = text.split('\0');
                    let mut part = || parts.next().unwrap_or_default().to_owned();
                    hello.parameters.insert(part(), part());
                }
                (b'N' | b'v', _) => {}
                (b'Z', _) => return Ok(hello),
                (b'E', _) => return Err(message),
                other => panic!("unexpected message during login: {other:?}"),
            }
        }
    }

    fn password(&mut self, data: &[u8], cstr: bool) {
        let mut out = Vec::new();
        frontend::password(&mut out, data, cstr);
        self.send(&out);
    }

    /// Sends bytes. A server that has closed already is not an error: what it said before can still be read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// Says that no more bytes will come; answers can still be read.
    pub fn half_close(&self) {
        let _ = self.stream.tcp().shutdown(Shutdown::Write);
    }

    /// The next message, waiting for at most `limit`.
    ///
    /// # Panics
    /// On an error of the socket other than a reset.
    pub fn next(&mut self, limit: Duration) -> Next {
        let end = Instant::now() + limit;
        loop {
            if let Some(message) = self.take() {
                return Next::Message(message);
            }
            if !self.read_some(end) {
                return if self.closed { Next::Closed } else { Next::Silence };
            }
        }
    }

    /// The next single byte, as SSLRequest and GSSENCRequest are answered.
    pub fn byte(&mut self, limit: Duration) -> Option<u8> {
        let end = Instant::now() + limit;
        while self.buffer.is_empty() {
            if !self.read_some(end) {
                return None;
            }
        }
        Some(self.buffer.remove(0))
    }

    /// Everything until the server closes.
    pub fn rest(&mut self, limit: Duration) -> (Vec<u8>, bool) {
        let end = Instant::now() + limit;
        while self.read_some(end) {}
        (std::mem::take(&mut self.buffer), self.closed)
    }

    /// Messages up to and including the `count`-th ReadyForQuery.
    ///
    /// # Panics
    /// When the server closes or falls silent before.
    pub fn until_ready(&mut self, count: usize) -> Vec<Message> {
        let (mut seen, mut out) = (0, Vec::new());
        while seen < count {
            match self.next(PATIENCE) {
                Next::Message(message) => {
                    seen += usize::from(message.tag == b'Z');
                    out.push(message);
                }
                other => {
                    let last = &out[out.len().saturating_sub(9)..];
                    panic!("{other:?} after {seen} of {count} ReadyForQuery, the last messages: {last:?}")
                }
            }
        }
        out
    }

    /// Runs a simple query and returns all that it gave, ReadyForQuery included.
    ///
    /// # Panics
    /// As [`Raw::until_ready`].
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql));
        self.until_ready(1)
    }

    fn take(&mut self) -> Option<Message> {
        let len = usize::try_from(u32::from_be_bytes(self.buffer.get(1..5)?.try_into().unwrap())).unwrap();
        let body = self.buffer.get(5..=len)?.to_vec();
        let tag = self.buffer[0];
        self.buffer.drain(..=len);
        Some(Message { tag, body })
    }

    fn read_some(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        if self.closed || left.is_zero() {
            return false;
        }
        self.stream.tcp().set_read_timeout(Some(left)).unwrap();
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.closed = true,
            Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(e) if e.kind() == ErrorKind::Interrupted => return true,
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{e}");
                self.closed = true;
            }
        }
        !self.closed
    }
}
