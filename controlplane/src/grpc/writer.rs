//! What a data plane gets, made at the moment when the connection can take it: the latest snapshot, never a queue of them.
//! Runs inside the connection's own task: nothing is handed from task to task. Ends with the stream.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use helios_proto::model::Snapshot;
use helios_proto::wire::Configuration;
use helios_proto::wire::v1::{self, cp_msg};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard, ReusableBoxFuture};
use tonic::Status;

use super::frames::Frame;
use crate::fanout::{Fanout, Message, encode};
use crate::peers::Numbered;

/// Pause between two heartbeats.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// A message sent and not yet acknowledged.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub nonce: u64,
    pub config_revision: u64,
    pub at: Instant,
}

/// When the data plane last took something.
pub(super) struct Pulse {
    started: Instant,
    /// Milliseconds after that.
    last: AtomicU64,
}

/// What the writer listens to.
pub(super) struct Sources {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub fanout: Arc<Fanout>,
    /// `None`: it takes no cancel requests.
    pub numbered: Option<Numbered>,
    pub grants: watch::Receiver<Option<v1::Grants>>,
    /// Moves when the data plane asks for everything.
    pub again: watch::Receiver<u64>,
    /// Cancelled: the stream ends.
    pub done: CancellationToken,
}

/// Sends to one data plane.
struct Writer {
    sources: Sources,
    /// The data plane takes deltas.
    deltas: bool,
    peers: Option<watch::Receiver<Arc<Vec<v1::PeerEntry>>>>,
    sent: watch::Sender<Option<Sent>>,
    pulse: Arc<Pulse>,
    beat: Interval,
    nonce: u64,
    /// Revision of the snapshot sent last, and its configuration.
    last: Option<(u64, Arc<Configuration>)>,
    /// Nobody listens any more: the reader ends as well.
    _end: DropGuard,
}

/// The messages of one stream.
pub(super) struct Outgoing(ReusableBoxFuture<'static, Option<(Frame, Writer)>>);

impl Outgoing {
    /// Begins with the snapshot of this moment; says what it sends.
    pub fn new(mut sources: Sources, deltas: bool) -> (Self, watch::Receiver<Option<Sent>>, Arc<Pulse>) {
        sources.snapshots.mark_changed();
        let (sent, acknowledged) = watch::channel(None);
        let pulse = Arc::new(Pulse { started: Instant::now(), last: AtomicU64::new(0) });
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let writer = Writer {
            peers: sources.numbered.as_ref().map(Numbered::list),
            _end: sources.done.clone().drop_guard(),
            pulse: Arc::clone(&pulse),
            sources,
            deltas,
            sent,
            beat,
            nonce: 0,
            last: None,
        };
        (Self(ReusableBoxFuture::new(writer.next())), acknowledged, pulse)
    }
}

impl Stream for Outgoing {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.0.poll(cx));
        Poll::Ready(match next {
            Some((frame, writer)) => {
                self.0.set(writer.next());
                Some(Ok(frame))
            }
            None => {
                self.0.set(std::future::ready(None));
                None
            }
        })
    }
}

impl Writer {
    /// The next message, once there is one; `None`: the stream has ended.
    async fn next(mut self) -> Option<(Frame, Self)> {
        loop {
            let Sources { snapshots, grants, again, done, .. } = &mut self.sources;
            let msg = tokio::select! {
                biased;
                () = done.cancelled() => return None,
                changed = snapshots.changed() => {
                    changed.ok()?;
                    self.snapshot()
                }
                changed = again.changed() => {
                    changed.ok()?;
                    self.last = None;
                    self.snapshot()
                }
                Ok(()) = grants.changed() => self.grants(),
                Some(entries) = changed(&mut self.peers) => self.peers(&entries),
                _ = self.beat.tick() => self.heartbeat(),
            };
            if let Some(msg) = msg {
                self.nonce += 1;
                self.pulse.note();
                return Some((Frame { nonce: self.nonce, msg }, self));
            }
        }
    }

    /// The snapshot of this moment, or what of it has not been sent.
    fn snapshot(&mut self) -> Option<Bytes> {
        let snapshot = Arc::clone(&self.sources.snapshots.borrow_and_update());
        if self.last.as_ref().is_some_and(|(revision, _)| *revision >= snapshot.revision) {
            return None;
        }
        let now = Instant::now();
        let last = self.last.as_ref().map(|(_, configuration)| configuration);
        let message = self.sources.fanout.message(&snapshot, (last, self.deltas), now);
        let Message { bytes, snapshot, configuration } = message;
        let sent = Sent { nonce: self.nonce + 1, config_revision: snapshot.config_revision, at: now };
        self.last = Some((snapshot.revision, configuration));
        self.sent.send_replace(Some(sent));
        Some(bytes)
    }

    fn peers(&self, entries: &[v1::PeerEntry]) -> Option<Bytes> {
        let message = self.sources.numbered.as_ref()?.message(entries);
        Some(encode(cp_msg::Msg::Peers(message)))
    }

    fn grants(&mut self) -> Option<Bytes> {
        let grants = self.sources.grants.borrow_and_update().clone()?;
        Some(encode(cp_msg::Msg::Grants(grants)))
    }

    fn heartbeat(&self) -> Option<Bytes> {
        let (revision, configuration) = self.last.as_ref()?;
        let beat = v1::Heartbeat { revision: *revision, sha256: configuration.sha256.clone() };
        Some(encode(cp_msg::Msg::Heartbeat(beat)))
    }
}

impl Pulse {
    fn note(&self) {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// How long nothing has been taken, not even a heartbeat.
    pub fn age(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// The list of peers once it has changed; never for who takes no cancel requests.
async fn changed(
    peers: &mut Option<watch::Receiver<Arc<Vec<v1::PeerEntry>>>>,
) -> Option<Arc<Vec<v1::PeerEntry>>> {
    let Some(peers) = peers else { return std::future::pending().await };
    peers.changed().await.ok()?;
    Some(Arc::clone(&peers.borrow_and_update()))
}
