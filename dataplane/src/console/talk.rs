//! One client of the console, from its greeting to its end: the simple query protocol, one command a message. The extended
//! protocol is refused up to its Sync. Never keeps more than one message of a bounded length.

use super::command::{Change, Command, Subject, parse};
use super::orders::Orders;
use super::table::complete;
use super::{Caller, show};
use crate::registry::{Registered, SessionHandle};
use crate::stream::Stream;
use crate::worker::Shared;
use helios_pgwire::backend::{self, TxStatus};
use helios_pgwire::frame::{FrameError, Header};
use helios_pgwire::{PgError, Severity, frontend};
use helios_proto::model::ConsoleAccess;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

/// Longest message of a client, its length word included: commands are short.
const LONGEST: usize = 64 * 1024;
/// Bytes read at once.
const CHUNK: usize = 4096;

/// What every client of the console is told at login.
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/helios")),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];
/// Startup parameters that are said back to the client, as PgBouncer does.
const ECHOED: [&str; 5] =
    ["client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name"];

/// Appends what is said between the proof and the first command.
pub fn greet(out: &mut Vec<u8>, params: &[(Vec<u8>, Vec<u8>)], handle: &SessionHandle) {
    for (name, value) in PARAMETERS {
        backend::parameter_status(out, name.as_bytes(), value.as_bytes());
    }
    for name in ECHOED {
        let given = params.iter().find(|(given, _)| given.eq_ignore_ascii_case(name.as_bytes()));
        if let Some((_, value)) = given {
            backend::parameter_status(out, name.as_bytes(), value);
        }
    }
    backend::key_data(out, handle.pid, &handle.key);
    backend::ready_for_query(out, TxStatus::Idle);
}

/// A client that has logged in to the console.
pub struct Talk {
    shared: Arc<Shared>,
    registered: Registered,
    caller: Caller,
    reading: Reading,
}

/// What the next message means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Anything,
    /// The extended protocol was refused: nothing counts before the Sync.
    UpToSync,
}

/// How it ended.
pub enum Over {
    /// The client has left.
    Gone,
    /// The data plane stops, or an operator ended it.
    Stopped,
    /// With these words.
    Error(Box<PgError>),
}

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl Talk {
    /// A client that begins now.
    pub(crate) fn new(shared: Arc<Shared>, registered: Registered, caller: Caller) -> Self {
        Self { shared, registered, caller, reading: Reading::Anything }
    }

    /// Answers until it is over. `buf` has what the client has sent already.
    pub async fn run(mut self, io: &mut Stream, mut buf: Vec<u8>) -> Over {
        loop {
            let done = match self.message(io, &mut buf).await {
                Ok(message) => self.answer(io, &message).await,
                Err(over) => Err(over),
            };
            if let Err(over) = done {
                return over;
            }
        }
    }

    /// The client's next message, whole.
    async fn message(&self, io: &mut Stream, buf: &mut Vec<u8>) -> Result<Vec<u8>, Over> {
        let handle = &self.registered.handle;
        loop {
            let most = |tag| frontend::max_len(tag).map(|most| most.min(LONGEST));
            let header = Header::parse(buf, most).map_err(|error| broken(&error))?;
            if let Some(Header { size, .. }) = header
                && buf.len() >= size
            {
                return Ok(buf.drain(..size).collect());
            }
            let mut chunk = [0; CHUNK];
            let n = tokio::select! {
                biased;
                () = stopped(handle) => return Err(Over::Stopped),
                n = io.read(&mut chunk) => n?,
            };
            buf.extend_from_slice(chunk.get(..n).filter(|got| !got.is_empty()).ok_or(Over::Gone)?);
        }
    }

    async fn answer(&mut self, io: &mut Stream, message: &[u8]) -> Result<(), Over> {
        let mut out = Vec::new();
        match (message.first(), self.reading) {
            (Some(b'X'), _) => return Err(Over::Gone),
            (Some(b'S'), _) => {
                self.reading = Reading::Anything;
                backend::ready_for_query(&mut out, TxStatus::Idle);
            }
            (_, Reading::UpToSync) => {}
            (Some(b'Q'), Reading::Anything) => {
                self.registered.handle.note_request(Instant::now());
                let replied = match frontend::query_text(message) {
                    Some(text) => self.command(io, text, &mut out).await?,
                    None => Err(Box::new(PgError::error("08P01", "invalid message format"))),
                };
                if let Err(error) = replied {
                    error.encode(&mut out);
                }
                backend::ready_for_query(&mut out, TxStatus::Idle);
            }
            (Some(b'P' | b'B' | b'D' | b'E' | b'C'), Reading::Anything) => {
                self.reading = Reading::UpToSync;
                let text = "extended query protocol not supported by admin console";
                PgError::error("08P01", text).hint("Use the simple query protocol.").encode(&mut out);
            }
            (Some(b'F'), Reading::Anything) => {
                PgError::error("08P01", "function calls are not supported by admin console").encode(&mut out);
                backend::ready_for_query(&mut out, TxStatus::Idle);
            }
            // Flush asks for what has been sent already; COPY data that nobody has asked for is passed over.
            _ => {}
        }
        io.write_all(&out).await?;
        io.flush().await?;
        Ok(())
    }

    /// One command; its reply, or the error in place of it.
    async fn command(
        &self,
        io: &Stream,
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Result<(), Box<PgError>>, Over> {
        self.shared.console.commands.fetch_add(1, Ordering::Relaxed);
        let view = self.shared.pools.view();
        let Some(access) = view.settings().console.access(self.caller.user.as_bytes()) else {
            return Err(Over::Error(Box::new(PgError::fatal("08P01", "not allowed"))));
        };
        let Some(command) = parse(text) else {
            let text = String::from_utf8_lossy(text);
            let text = format!("invalid command '{text}', use SHOW HELP;");
            return Ok(Err(Box::new(PgError::error("08P01", text))));
        };
        let administers = access == ConsoleAccess::Admin;
        match command {
            Command::Change(_) | Command::Show(Subject::Fds) if !administers => {
                let Caller { user, from } = &self.caller;
                tracing::info!(actor = %user, %from, "a change on the console was refused: no administrator");
                Ok(Err(Box::new(PgError::error("08P01", "admin access needed"))))
            }
            Command::Show(subject) => Ok(self.show(subject, out).await),
            Command::Change(change) => {
                let done = self.change(io, change).await?;
                Ok(done.map(|tag| complete(out, tag)))
            }
        }
    }

    /// Looks, on a thread that serves no session: a census of many clients takes its time.
    async fn show(&self, subject: Subject, out: &mut Vec<u8>) -> Result<(), Box<PgError>> {
        match subject {
            Subject::Help => {
                let notice =
                    PgError { severity: Severity::Notice, ..PgError::error("00000", "Console usage") };
                notice.detail(show::HELP).encode(out);
            }
            Subject::Fds => {
                let error = PgError::error("0A000", "SHOW FDS is not supported");
                return Err(Box::new(
                    error.hint("A proxy is replaced by starting another one and draining this."),
                ));
            }
            subject => {
                let shared = Arc::clone(&self.shared);
                let look = move || {
                    let mut rows = Vec::new();
                    let table = show::table(subject, &shared.console, &shared);
                    table.into_iter().for_each(|table| table.encode(&mut rows));
                    rows
                };
                let looked = tokio::task::spawn_blocking(look).await;
                let failed = |_| Box::new(PgError::error("XX000", "the console could not look"));
                out.extend(looked.map_err(failed)?);
            }
        }
        complete(out, "SHOW");
        Ok(())
    }

    /// Changes, unless the client leaves or cancels before the wait that belongs to it is over.
    async fn change(&self, io: &Stream, change: Change) -> Result<Result<&'static str, Box<PgError>>, Over> {
        let handle = &self.registered.handle;
        let orders = Orders { shared: &self.shared, desk: &self.shared.console, caller: &self.caller };
        handle.set_queued(true);
        let done = tokio::select! {
            biased;
            done = orders.carry_out(change) => Ok(done),
            left = poll_fn(|cx| left(io, handle, cx)) => left.map(Err),
        };
        handle.set_queued(false);
        done
    }
}

fn broken(error: &FrameError) -> Over {
    Over::Error(Box::new(PgError::fatal("08P01", error.to_string())))
}

/// Ends when the session has to.
async fn stopped(handle: &SessionHandle) {
    poll_fn(|cx| {
        handle.set_waker(cx.waker());
        if handle.draining() || handle.killed() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Whether the client leaves, or gives up waiting: then with what it is told.
fn left(io: &Stream, handle: &SessionHandle, cx: &mut Context<'_>) -> Poll<Result<Box<PgError>, Over>> {
    handle.set_waker(cx.waker());
    if handle.draining() || handle.killed() {
        return Poll::Ready(Err(Over::Stopped));
    }
    if handle.take_cancelled() {
        let error = PgError::error("57014", "canceling statement due to user request");
        return Poll::Ready(Ok(Box::new(error.hint("A pause that has begun goes on until RESUME."))));
    }
    let mut byte = [0u8; 1];
    let mut peeked = ReadBuf::new(&mut byte);
    match io.tcp().poll_peek(cx, &mut peeked) {
        Poll::Ready(Ok(n)) if n > 0 => Poll::Pending,
        Poll::Ready(_) => Poll::Ready(Err(Over::Gone)),
        Poll::Pending => Poll::Pending,
    }
}
