//! What this data plane says of itself: status, load and evidence, in a call beside the stream, on the same connection. A
//! control plane that does not offer it hears them on the stream. Lossy on purpose: what does not fit is dropped, there
//! will be more. Also remembers when each status was sent, as grants count from there. Never waits.

use super::stream::Outgoing;
use super::{Face, Link};
use crate::pool::node::Granted;
use helios_proto::wire::v1::report_client::ReportClient;
use helios_proto::wire::v1::{self, dp_msg, report_msg};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Reports whose answer may still come.
const REPORTS: usize = 1024;
/// Longest lease that is believed.
const LONGEST_LEASE: Duration = Duration::from_secs(60);
/// Reports that may wait to be sent: old ones are worth little.
const QUEUE: usize = 16;

/// The same about a node is said again only after this: thousands of sessions may see it at once.
const AGAIN: Duration = Duration::from_millis(100);
/// Different things said lately that are remembered.
const SAID: usize = 256;

/// The reports of this process.
pub struct Reports {
    /// What to report, and where grants go.
    face: Arc<OnceLock<Face>>,
    link: Arc<Link>,
    leases: Leases,
    call: Option<Call>,
    /// What was said lately of the nodes.
    said: Vec<(v1::Evidence, Instant)>,
}

/// Puts something into a message of a call of its own.
type Apart<T> = fn(T) -> report_msg::Msg;
/// Puts something into a message of the stream.
type Within<T> = fn(T) -> dp_msg::Msg;

/// A call that is open; ended when dropped.
struct Call {
    outgoing: mpsc::Sender<v1::ReportMsg>,
    ended: Pin<Box<dyn Future<Output = Status> + Send>>,
}

/// The reports that grants may answer, and the last grants.
#[derive(Default)]
struct Leases {
    beat: u64,
    /// When each was about to be sent: leases count from there.
    sent: VecDeque<(u64, Instant)>,
    /// Whose grants are in force, and their number.
    held: (u64, u64),
}

impl Reports {
    /// Nothing said yet.
    #[must_use]
    pub fn new(face: Arc<OnceLock<Face>>, link: Arc<Link>) -> Self {
        Self { face, link, leases: Leases::default(), call: None, said: Vec::new() }
    }

    /// Begins a call for the stream that has just been opened on this connection.
    pub(super) fn open(
        &mut self,
        channel: Channel,
        token: Option<MetadataValue<Ascii>>,
        reporter: v1::Reporter,
    ) {
        let (outgoing, messages) = mpsc::channel(QUEUE);
        // Room is there: the channel is new.
        let _ = outgoing.try_send(v1::ReportMsg { msg: Some(report_msg::Msg::Reporter(reporter)) });
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token);
        }
        let mut client = ReportClient::new(channel);
        let ended = Box::pin(async move {
            let ended = client.stream(request).await;
            ended.err().unwrap_or_else(|| Status::unavailable("it has ended"))
        });
        self.call = Some(Call { outgoing, ended });
    }

    /// The stream has ended.
    pub(super) fn close(&mut self) {
        self.call = None;
        // Who listens then has not heard it.
        self.said.clear();
    }

    /// Drives the call; why it has ended, if it has. Until the next stream reports go over this one.
    pub(super) async fn ended(&mut self) -> Status {
        let Some(call) = &mut self.call else { return std::future::pending().await };
        let why = call.ended.as_mut().await;
        self.close();
        why
    }

    /// Says how this data plane is doing.
    pub(super) fn status(&mut self, stream: &Outgoing) {
        let Some(face) = self.face.get() else { return };
        let beat = self.leases.next();
        let (grants_of, grants) = self.leases.held;
        let status = v1::Status { beat, grants_of, grants, ..(face.status)() };
        self.say(stream, (report_msg::Msg::Status, dp_msg::Msg::Status), status);
    }

    /// Says what sessions saw, unless it has just been said.
    pub(super) fn evidence(&mut self, stream: &Outgoing, evidence: v1::Evidence) {
        let now = Instant::now();
        self.said.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN);
        if self.said.len() >= SAID || self.said.iter().any(|(said, _)| *said == evidence) {
            return;
        }
        self.said.push((evidence.clone(), now));
        self.say(stream, (report_msg::Msg::Evidence, dp_msg::Msg::Evidence), evidence);
    }

    fn say<T>(&self, stream: &Outgoing, (apart, within): (Apart<T>, Within<T>), what: T) {
        let said = match &self.call {
            Some(call) => call.outgoing.try_send(v1::ReportMsg { msg: Some(apart(what)) }).is_ok(),
            None => stream.try_send(v1::DpMsg { msg: Some(within(what)) }).is_ok(),
        };
        if !said {
            self.link.reports_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives away what is granted.
    pub(super) fn granted(&mut self, grants: v1::Grants) {
        let Some(face) = self.face.get() else { return };
        for (node, granted) in self.leases.take(grants) {
            (face.grant)(&node, granted);
        }
    }
}

impl Leases {
    /// Numbers a report that is about to be made.
    fn next(&mut self) -> u64 {
        self.beat = self.beat.saturating_add(1);
        self.sent.push_back((self.beat, Instant::now()));
        if self.sent.len() > REPORTS {
            self.sent.pop_front();
        }
        self.beat
    }

    /// What is granted, with its end; nothing if it answers a report of long ago.
    fn take(&mut self, grants: v1::Grants) -> Vec<(String, Granted)> {
        let v1::Grants { of, number, beat, lease_us, grants } = grants;
        let Some((_, sent)) = self.sent.iter().find(|(sent, _)| *sent == beat) else { return Vec::new() };
        let Some(until) = sent.checked_add(LONGEST_LEASE.min(Duration::from_micros(lease_us))) else {
            return Vec::new();
        };
        self.held = (of, number);
        let granted =
            |v1::Grant { node, most, floor }| (node, Granted { most, floor: floor.min(most), until });
        grants.into_iter().map(granted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(node: &str, kind: v1::evidence::Kind) -> v1::Evidence {
        v1::Evidence { node: node.to_owned(), kind: kind.into() }
    }

    #[test]
    fn what_thousands_of_sessions_see_is_said_once_and_what_does_not_fit_is_counted() {
        use v1::evidence::Kind::{ConnectFailed, ConnectionLost};
        let link = Link::new(false);
        let mut reports = Reports::new(Arc::default(), Arc::clone(&link));
        let (stream, mut said) = mpsc::channel(3);
        for _ in 0..1_000 {
            for (node, kind) in [("a", ConnectionLost), ("b", ConnectionLost), ("a", ConnectFailed)] {
                reports.evidence(&stream, evidence(node, kind));
            }
        }
        let mut heard = 0;
        while said.try_recv().is_ok() {
            heard += 1;
        }
        assert_eq!((heard, link.reports_dropped.load(Ordering::Relaxed)), (3, 0));
        reports.close();
        for node in ["a", "b", "c", "d"] {
            reports.evidence(&stream, evidence(node, ConnectionLost));
        }
        assert_eq!(link.reports_dropped.load(Ordering::Relaxed), 1, "who listens anew is told again");
    }

    #[test]
    fn a_lease_counts_from_the_report_that_it_answers_and_is_never_believed_for_long() {
        let mut leases = Leases::default();
        let before = Instant::now();
        let beat = leases.next();
        let grant = v1::Grant { node: "a".to_owned(), most: 3, floor: 9 };
        let sent =
            |beat| v1::Grants { of: 1, number: 2, beat, lease_us: u64::MAX, grants: vec![grant.clone()] };
        assert!(leases.take(sent(beat + 1)).is_empty(), "answers no report");
        let taken = leases.take(sent(beat));
        let (node, Granted { most, floor, until }) = &taken[0];
        assert_eq!((node.as_str(), *most, *floor), ("a", 3, 3));
        assert!(*until <= Instant::now() + LONGEST_LEASE && *until >= before + LONGEST_LEASE);
    }
}
