//! A client from accept to end: login, relay, the waits in between, and what is left behind. The one place that ends a
//! session; every way out gives the server connection back clean or closes it.

use super::acquire::{Failure, Seeker, timed_out};
use super::checkout::{Lead, is_still_meant};
use super::core::{Core, Ending};
use super::drive::{Session, Step, stops};
use super::leg::Leg;
use super::login::{LoggedIn, Login, Refusal, paced};
use super::names::{Named, named};
use super::replication::Through;
use super::startup::{Greeted, Lobby};
use super::tied::Tied;
use super::traced::Traced;
use crate::cache::Desk;
use crate::console::{Over, Talk};
use crate::lanes::Arrival;
use crate::limits::Counted;
use crate::metrics::count;
use crate::pool::Waiter;
use crate::registry::{ClientFacts, ClientKind, SessionHandle};
use crate::server::ServerConn;
use crate::server::ask::refusal;
use crate::server::clean::{Leftover, abandon, clean};
use crate::server::settings::dress;
use crate::stream::Stream;
use crate::worker::Worker;
use helios_pgwire::frame::Header;
use helios_pgwire::frontend::{max_len, parse_text, query_text};
use helios_pgwire::startup::Replication;
use helios_pgwire::{ErrorFields, PgError, Severity};
use helios_proto::model::{Evidence, PoolMode};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until, timeout};

/// Longest time for a last message to a client.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a statement that was cancelled for its timeout may take to end.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// While draining, how long a client may read its last answer before it is told that the session ends: drivers that
/// find both at once report the end in place of the answer.
const LAST_ANSWER: Duration = Duration::from_millis(100);
/// How often one statement may be replayed.
const MOST_REPLAYS: u32 = 3;

/// Serves one accepted socket, to its end or until another worker has the session.
pub async fn serve(worker: Arc<Worker>, io: TcpStream, peer: SocketAddr, mut counted: Counted) {
    count(&worker.counters.clients);
    let Some(entered) = Box::pin(enter(&worker, io, peer, &mut counted)).await else { return };
    let (session, registered) = *entered;
    carry_on(Box::new(Moving { session, registered, counted })).await;
}

/// Goes on with a session of another worker.
pub async fn resume(worker: Arc<Worker>, moving: Box<Moving>) {
    let Moving { session, registered, counted } = *moving;
    if let Ok(session) = session.settle(worker) {
        carry_on(Box::new(Moving { session, registered, counted })).await;
    }
}

/// A session on its way to another worker, holding nothing but its socket.
pub struct Moving {
    session: Session,
    registered: crate::registry::Registered,
    counted: Counted,
}

async fn carry_on(mut moving: Box<Moving>) {
    let worker = Arc::clone(&moving.session.worker);
    worker.counters.sessions.fetch_add(1, Ordering::Relaxed);
    let over = relay(&mut moving.session).await;
    worker.counters.sessions.fetch_sub(1, Ordering::Relaxed);
    if over {
        moving.session.hand_over();
    } else {
        count(&worker.counters.moved);
        worker.shared.lanes.send(Arrival::Moved(moving));
    }
}

/// What a connection has become.
enum Entry {
    Session(LoggedIn),
    Through(Through),
    Console(Talk),
    /// A cancel request, which has been dealt with.
    Nothing,
}

type Entered = Box<(Session, crate::registry::Registered)>;

/// Everything up to the first ReadyForQuery, under one timeout.
async fn enter(
    worker: &Arc<Worker>,
    io: TcpStream,
    peer: SocketAddr,
    counted: &mut Counted,
) -> Option<Entered> {
    let limit = worker.shared.pools.view().settings().limits.login_timeout;
    let mut lobby = Lobby::new(io);
    let entered = timeout(limit, login(worker, &mut lobby, peer, counted)).await;
    let refusal = match entered {
        Ok(Ok(Entry::Session(logged_in))) => {
            return Some(Box::new(start(worker, lobby, (logged_in, peer))));
        }
        Ok(Ok(Entry::Console(talk))) => {
            let Lobby { mut io, buf, .. } = lobby;
            let words = match Box::pin(talk.run(&mut io, buf)).await {
                Over::Gone => return None,
                Over::Stopped => stops().to_bytes(),
                Over::Error(error) => error.to_bytes(),
            };
            say_goodbye(&mut io, &words, true).await;
            return None;
        }
        Ok(Ok(Entry::Through(through))) => {
            through.relay(worker, lobby).await;
            return None;
        }
        Ok(Ok(Entry::Nothing)) => return None,
        Ok(Err(refusal)) => refusal,
        Err(_) => Refusal::Cut,
    };
    count(&worker.counters.logins_refused);
    tracing::debug!(address = %peer, error = %refusal, "login refused");
    let (pause, refusal) = match refusal {
        Refusal::Late(pause, refusal) => (pause, *refusal),
        refusal => (Duration::ZERO, refusal),
    };
    tokio::time::sleep(pause).await;
    let words = match refusal {
        Refusal::Told(error) => error.to_bytes(),
        Refusal::Raw(bytes) => bytes,
        Refusal::Late(..) => return None,
        Refusal::Cut | Refusal::Gone | Refusal::Io(_) | Refusal::Handshake(_) => return None,
    };
    say_goodbye(&mut lobby.io, &words, false).await;
    None
}

async fn login(
    worker: &Arc<Worker>,
    lobby: &mut Lobby,
    peer: SocketAddr,
    counted: &mut Counted,
) -> Result<Entry, Refusal> {
    match lobby.greet(&worker.shared.client_leg).await? {
        Greeted::Cancel { pid, key } => {
            worker.shared.registry.cancel(pid, &key).await;
            Ok(Entry::Nothing)
        }
        Greeted::Session(startup) => {
            let mut login = Login::new(worker, lobby, &startup, peer);
            login.negotiate().await?;
            let entered = match startup.replication {
                Replication::No if login.wants_console() => login.console(counted).await.map(Entry::Console),
                Replication::No => login.run(counted).await.map(Entry::Session),
                Replication::Physical | Replication::Logical => {
                    login.replicate(counted).await.map(Entry::Through)
                }
            };
            paced(worker, (peer.ip(), &startup.user), entered)
        }
    }
}

fn start(
    worker: &Arc<Worker>,
    lobby: Lobby,
    (logged_in, peer): (LoggedIn, SocketAddr),
) -> (Session, crate::registry::Registered) {
    let LoggedIn { identity, registered, own } = logged_in;
    let shared = &worker.shared;
    let view = shared.pools.view();
    let mut settings = view.session_settings(&identity.user, &identity.database);
    if own.is_some() {
        settings.mode = PoolMode::Session;
    }
    let greeting = identity.greeting().unwrap_or_default();
    let traced = Traced::new(worker.shared.tracer.as_ref(), &identity);
    let desk = Desk::new(worker.shared.answers.as_ref(), &identity.database);
    // A server has let somebody into the database: it is there.
    let tally = shared.identities.keep_database(&identity.database).tally(worker.id);
    registered.handle.describe(ClientFacts {
        identity: Arc::clone(&identity),
        kind: ClientKind::Pooled,
        peer,
        local: lobby.io.tcp().local_addr().ok(),
        tls: lobby.io.tls_words(),
        since: Instant::now(),
    });
    let mut session = Session {
        worker: Arc::clone(worker),
        handle: Arc::clone(&registered.handle),
        identity,
        waiter: Waiter::new(worker.id),
        settings,
        settings_of: view.snapshot.revision,
        client: lobby.io,
        to_client: Leg::with_inbox(lobby.buf),
        server: None,
        alone: own.is_some(),
        to_server: Leg::default(),
        core: Core::new(settings.mode),
        desk,
        traced,
        sent: Vec::new(),
        fresh: false,
        place: None,
        lead: None,
        greeting,
        eof: false,
        look: true,
        started: None,
        began: None,
        tally,
        rested: Instant::now(),
        last_write: None,
        replays: 0,
        tied: Tied::new(Arc::clone(&worker.counters)),
        window: 0,
        shed: false,
    };
    if let Some(conn) = own {
        session.bind_for_good(conn);
    }
    (session, registered)
}

/// Why a session ends, in words for the client.
enum End {
    Silent,
    Words(Vec<u8>),
}

impl From<PgError> for End {
    fn from(error: PgError) -> Self {
        Self::Words(error.to_bytes())
    }
}

/// Relays until the session ends, `true`, or another worker is to have it.
async fn relay(session: &mut Session) -> bool {
    let mut timer = Timer::default();
    let (end, busy) = loop {
        let step = poll_fn(|cx| timer.poll(session, cx)).await;
        let busy = matches!(step, Event::Step(Step::Ended(_)));
        let next = match step {
            Event::Step(Step::Acquire) => Box::pin(acquire(session)).await,
            Event::Step(Step::Move) => return false,
            Event::Step(Step::Refused) => {
                session.refused();
                Ok(())
            }
            Event::Step(Step::ServerLost(message)) => session.server_lost(message),
            Event::Step(Step::Ended(Ending::Error(error))) => Err(End::Words(error.to_bytes())),
            Event::Step(Step::Ended(Ending::Terminate | Ending::Cut) | Step::ClientGone) => Err(End::Silent),
            Event::QueryTimeout => {
                session.worker.shared.cleanups.spawn(Arc::clone(&session.handle).cancel_own());
                Ok(())
            }
            Event::TimedOut(error) => Err((*error).into()),
        };
        if let Err(end) = next {
            break (end, busy);
        }
    };
    let half = session.core.half_answered();
    let Session { client, to_client, .. } = session;
    let flushed = timeout(LAST_WORDS, poll_fn(|cx| to_client.flush(client, cx))).await;
    // Words of ours in the middle of a message would be taken for a part of it.
    if let End::Words(words) = end
        && let Ok(Ok(())) = flushed
        && !half
    {
        say_goodbye(client, &words, busy).await;
    }
    true
}

/// Last words. A socket that is closed before all was read from it is reset, and then what the client has not got by then is
/// lost: of a `busy` one all is read until it hangs up.
async fn say_goodbye(io: &mut Stream, words: &[u8], busy: bool) {
    let speak = async {
        io.write_all(words).await?;
        io.shutdown().await?;
        let mut unread = [0; 1024];
        while (busy || !io.is_silent()) && io.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = timeout(LAST_WORDS, speak).await;
}

/// Gets the server connection that the session's run needs; `Err` ends the session.
async fn acquire(session: &mut Session) -> Result<(), End> {
    match fetch(session).await {
        Ok(Some(answer)) => {
            session.to_client.push(&answer);
            session.answered();
            return Ok(());
        }
        Ok(None) => {}
        Err(Lost::Gone) => return Err(End::Silent),
        Err(Lost::Failed(Failure::Session(raw))) => return Err(End::Words(raw)),
        Err(Lost::Failed(Failure::Statement(error))) => {
            session.fail(&error);
            return Ok(());
        }
    }
    let lead = session.lead.take();
    let started = lead.as_ref().map_or_else(Instant::now, |lead| lead.since);
    session.handle.set_queued(true);
    let result = {
        let seeking = seek(session, started, lead);
        let leaving = watch(session.client.tcp(), &session.handle);
        tokio::select! {
            biased;
            found = seeking => found,
            why = leaving => Err(why),
        }
    };
    session.handle.set_queued(false);
    session.note_wait(started.elapsed());
    match result {
        Ok((node, view, conn)) => {
            session.refresh(&view);
            session.bind(conn, node, &view);
            Ok(())
        }
        Err(Lost::Gone) => Err(End::Silent),
        Err(Lost::Failed(Failure::Session(raw))) => Err(End::Words(raw)),
        Err(Lost::Failed(Failure::Statement(error))) => {
            if error.code == "53300" {
                count(&session.worker.counters.acquire_timeouts);
            }
            session.fail(&error);
            Ok(())
        }
    }
}

/// The answer that another session, or another data plane, may have for the session's run.
async fn fetch(session: &mut Session) -> Result<Option<Arc<[u8]>>, Lost> {
    let Session { desk, client, handle, .. } = session;
    tokio::select! {
        biased;
        answer = desk.fetch() => Ok(answer),
        why = watch(client.tcp(), handle) => Err(why),
    }
}

/// Why a session gets no server connection.
enum Lost {
    Gone,
    Failed(Failure),
}

async fn seek(
    session: &Session,
    started: Instant,
    lead: Option<Lead>,
) -> Result<(usize, Arc<crate::pool::View>, Box<ServerConn>), Lost> {
    let worker = Arc::clone(&session.worker);
    let (mut first, slot, conn) = lead.map_or((None, None, None), |lead| (lead.choice, lead.slot, lead.conn));
    let wanted = session.core.settings().in_force();
    let mut at_hand = conn.and_then(|conn| at_hand(conn, first, &worker));
    let mut slot = slot;
    loop {
        let (node, view, mut conn) = match at_hand.take() {
            Some(found) => found,
            None => {
                let choose = |view: &crate::pool::View| match first.take() {
                    Some((revision, node)) if revision == view.snapshot.revision => node,
                    _ => session.choose(view, &mut worker.bench().tools).node,
                };
                let seeker = Seeker::new(&session.worker, &session.identity, Arc::clone(&session.waiter));
                let seeker = seeker.begun(started, slot.take()).dressed(wanted.map(Arc::clone));
                seeker.seek(choose).await.map_err(Lost::Failed)?
            }
        };
        let Err(error) = dress(&mut conn, wanted).await else {
            let now = worker.shared.pools.view();
            if is_still_meant(&now, (node, view.snapshot.primary != Some(node)), &conn) {
                return Ok((node, now, conn));
            }
            let pool = Arc::clone(conn.slot.pool());
            pool.put_back(conn);
            continue;
        };
        // The connection is in an unknown state, and closes.
        let name = conn.slot.pool().node.name.clone();
        drop(conn);
        if let Some(refusal) = refusal(&error) {
            tracing::info!(node = %name, %error, "could not restore the settings of a session");
            let text = format!("could not restore the settings of the session on node \"{name}\": {refusal}");
            return Err(Lost::Failed(Failure::Session(PgError::fatal("08006", text).to_bytes())));
        }
        tracing::debug!(node = %name, %error, "a server connection broke before it was used");
        if started.elapsed() >= view.settings().pool.acquire_timeout {
            return Err(Lost::Failed(Failure::Statement(Box::new(timed_out(Severity::Error)))));
        }
    }
}

/// A connection that was chosen already, if the choice still holds; else it goes back.
fn at_hand(
    conn: Box<ServerConn>,
    choice: Option<(u64, Option<usize>)>,
    worker: &Arc<Worker>,
) -> Option<(usize, Arc<crate::pool::View>, Box<ServerConn>)> {
    let view = worker.shared.pools.view();
    match choice {
        Some((revision, Some(node))) if revision == view.snapshot.revision => Some((node, view, conn)),
        _ => {
            let pool = Arc::clone(conn.slot.pool());
            pool.put_back(conn);
            None
        }
    }
}

/// Ends when the client leaves or cancels while it waits.
async fn watch(client: &TcpStream, handle: &SessionHandle) -> Lost {
    poll_fn(|cx| {
        handle.set_waker(cx.waker());
        if handle.killed() {
            return Poll::Ready(Lost::Failed(Failure::Session(stops().to_bytes())));
        }
        if handle.take_cancelled() {
            let error = PgError::error("57014", "canceling statement due to user request");
            return Poll::Ready(Lost::Failed(Failure::Statement(Box::new(error))));
        }
        let mut byte = [0u8; 1];
        match client.poll_peek(cx, &mut tokio::io::ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(_)) => Poll::Ready(Lost::Gone),
            // Also at the end of the stream: a client that will send no more may still wait for its answer.
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

impl Session {
    /// Makes itself at home on the worker that runs this.
    fn settle(self, worker: Arc<Worker>) -> std::io::Result<Self> {
        // Taken out of the old worker's reactor, put into this one's.
        let client = self.client.settle()?;
        let tied = Tied::new(Arc::clone(&worker.counters));
        let tally = self.identity.state.tally(worker.id);
        Ok(Self { client, tally, waiter: Waiter::new(worker.id), tied, worker, ..self })
    }

    /// The statement fails; the session lives. The error goes out behind what the client has not taken yet.
    pub(super) fn fail(&mut self, error: &PgError) {
        let mut out = Vec::new();
        self.replays = 0;
        self.desk.give_up();
        self.desk.landed();
        self.traced.failed(None, error.code);
        if self.to_client.inbox.len() > self.core.run().len() {
            self.core.doom_what_follows();
        }
        self.core.fail(error, &mut out);
        self.to_client.push(&out);
        self.rested = Instant::now();
        self.look = true;
    }

    /// A standby refused the run: remember the text, hand the connection to its clean-up, offer the run again.
    fn refused(&mut self) {
        let worker = Arc::clone(&self.worker);
        // What was refused for the session's isolation is no write of others.
        let refused = if self.core.primary_only() { &[][..] } else { &self.sent };
        for (tag, message) in messages(refused) {
            let text = match tag {
                b'Q' => query_text(message),
                b'P' => parse_text(message).map(|(_, text)| text),
                b'B' => match named(tag, message) {
                    Named::Yes(name) => self.core.sql_of(name),
                    Named::No | Named::Unnamed | Named::Unclear => None,
                },
                _ => None,
            };
            if let Some(text) = text {
                worker.bench().tools.verdicts.learn_write(text);
            }
        }
        self.hand_over();
        self.replay();
    }

    /// Offers the run again, from the front of the client's bytes.
    fn replay(&mut self) {
        self.core.replay();
        self.to_server.clear();
        self.to_client.inbox.splice(0..0, self.sent.drain(..));
        self.started = None;
        self.look = true;
        count(&self.worker.counters.replays);
    }

    /// The server connection broke: replay, or tell the client what is known, or end.
    fn server_lost(&mut self, message: Option<Vec<u8>>) -> Result<(), End> {
        self.handle.clear_server();
        self.desk.lost();
        self.began = None;
        let Some(server) = self.server.take() else { return Err(End::Silent) };
        let pool = Arc::clone(server.slot.pool());
        drop(server);
        let name = &pool.node.name;
        if message.is_none() {
            pool.suspect();
        }
        (self.worker.shared.evidence)(name, Evidence::ConnectionLost);
        tracing::info!(node = %name, "lost a server connection in use");
        if self.core.unsent() && !self.alone {
            self.look_for_another();
            return Ok(());
        }
        if !self.alone && self.core.replayable() && self.replays < MOST_REPLAYS {
            self.replays = self.replays.saturating_add(1);
            self.replay();
            return Ok(());
        }
        self.replays = 0;
        let wrote = self.core.take_wrote();
        if wrote {
            self.last_write = Some(Instant::now());
        }
        let error = match wrote {
            true => PgError::error(
                "40003",
                "connection to the server was lost; it is unknown whether the statement was executed",
            ),
            false => PgError::error("08006", "connection to the server was lost"),
        };
        self.traced.failed(Some(&pool.node), error.code);
        let mut out = Vec::new();
        if !self.alone && self.core.lost(&error, !self.to_client.inbox.is_empty(), &mut out) {
            self.to_server.clear();
            self.started = None;
            self.rested = Instant::now();
            self.look = true;
            self.to_client.push(&out);
            return Ok(());
        }
        let shown = message.filter(|m| ErrorFields::parse(m.get(5..).unwrap_or_default()).code.is_some());
        let fatal = PgError { severity: Severity::Fatal, ..error };
        Err(End::Words(shown.unwrap_or_else(|| fatal.to_bytes())))
    }

    /// The server connection was dead before the run went out: the run is safe, and looks for another one.
    fn look_for_another(&mut self) {
        self.to_server.clear();
        if self.replays < MOST_REPLAYS {
            self.replays = self.replays.saturating_add(1);
            self.core.take_back();
            self.look = true;
            count(&self.worker.counters.replays);
        } else {
            self.core.unbind();
            self.fail(&PgError::error("08006", "connection to the server was lost"));
        }
    }

    /// Gives the server connection up in whatever state it is: cleaned for the next session, or closed.
    pub(super) fn hand_over(&mut self) {
        if !self.core.at_rest() {
            self.desk.lost();
        }
        if self.core.unsent() {
            self.core.take_back();
        }
        let pins = self.core.pins();
        let half_sent = self.core.half_sent() || self.core.is_loose() || self.to_server.blocked();
        let reset = self.core.mode() == PoolMode::Session || !pins.is_empty();
        let settings = self.core.settings().left();
        let (ledger, unread, prepared) = self.core.abandon();
        let uncancelled = self.handle.clear_server();
        let Some(mut conn) = self.server.take() else { return };
        conn.prepared = prepared;
        conn.settings = settings;
        let left = Leftover { ledger, unread, buf: std::mem::take(&mut self.to_server.inbox) };
        if half_sent || !uncancelled || self.alone || !pins.kept_by_discard().is_empty() {
            if left.ledger.settled() {
                return conn.close();
            }
            self.worker.shared.cleanups.spawn(async move { abandon(conn, &left.ledger).await });
            return;
        }
        conn.needs_reset |= reset;
        let reset_query = self.worker.shared.pools.view().settings().pool.reset_query.clone();
        self.worker.shared.cleanups.spawn(async move {
            if let Some(conn) = clean(conn, left, &reset_query).await {
                let pool = Arc::clone(conn.slot.pool());
                pool.put_back(conn);
            }
        });
    }

    /// When the session's current state ends by a timeout, and how.
    fn deadline(&self) -> Option<(Instant, Kind)> {
        let after = |from: Instant, limit: Option<Duration>, kind| Some((from.checked_add(limit?)?, kind));
        if self.handle.draining() && self.core.at_rest() && !self.to_client.blocked() {
            return after(self.rested, Some(LAST_ANSWER), Kind::Drain);
        }
        if let Some(started) = self.started {
            return after(started, self.settings.query_timeout, Kind::Query);
        }
        if self.core.idle_in_transaction() {
            return after(self.rested, self.settings.idle_in_transaction_timeout, Kind::InTransaction);
        }
        if self.core.at_rest() {
            return after(self.rested, self.settings.client_idle_timeout, Kind::Idle);
        }
        None
    }
}

/// Whole messages of a run.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::parse(bytes, max_len).ok()??;
        let message = bytes.get(..header.size)?;
        bytes = bytes.get(header.size..)?;
        Some((header.tag, message))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Drain,
    Query,
    InTransaction,
    Idle,
}

enum Event {
    Step(Step),
    /// The statement has run too long: cancel it.
    QueryTimeout,
    /// The session has waited too long: it ends.
    TimedOut(Box<PgError>),
}

/// The session's one timer. Armed lazily and left alone while deadlines only move back, so that a statement costs
/// none.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    known: bool,
    /// The statement sent at this time was cancelled for its timeout.
    cancelled: Option<Instant>,
}

impl Timer {
    fn poll(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Poll<Event> {
        if !self.known {
            session.handle.set_waker(cx.waker());
            self.known = true;
        }
        if session.handle.killed() {
            return Poll::Ready(Event::TimedOut(Box::new(stops())));
        }
        if let Poll::Ready(step) = session.poll(cx) {
            self.known = !matches!(step, Step::Acquire);
            return Poll::Ready(Event::Step(step));
        }
        while let Some((mut at, kind)) = session.deadline() {
            if kind == Kind::Query && self.cancelled == session.started {
                at = at.checked_add(CANCEL_GRACE).unwrap_or(at);
            }
            if at <= Instant::now() {
                return Poll::Ready(self.expired(session, kind));
            }
            let wanted = tokio::time::Instant::from_std(at);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(wanted)));
            if sleep.deadline() > wanted || sleep.is_elapsed() {
                sleep.as_mut().reset(wanted);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }

    fn expired(&mut self, session: &Session, kind: Kind) -> Event {
        let error = match kind {
            Kind::Query if self.cancelled != session.started => {
                self.cancelled = session.started;
                return Event::QueryTimeout;
            }
            Kind::Query => PgError::fatal("57014", "terminating connection due to query timeout"),
            Kind::InTransaction => {
                PgError::fatal("25P03", "terminating connection due to idle-in-transaction timeout")
            }
            Kind::Drain => stops(),
            Kind::Idle => PgError::fatal("57P05", "terminating connection due to idle-session timeout"),
        };
        Event::TimedOut(Box::new(error))
    }
}
