//! Simulated data planes, as light as they can be, so that what is measured is the control plane: one thread for all, each
//! with a connection of its own, a stream that acknowledges what it gets and a call that reports every second. They read
//! of a message only what they answer with: they trust it, and hold nothing.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use helios_proto::wire::v1::report_client::ReportClient;
use helios_proto::wire::v1::{self, dp_msg, report_msg};
use helios_tests::controlplane::token;
use helios_tests::eventually;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::PATIENCE;

/// Pause of a data plane before it connects again.
const AGAIN: Duration = Duration::from_millis(100);

/// What of a `CpMsg` is looked at; the rest is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Glance {
    #[prost(uint64, tag = "1")]
    nonce: u64,
    #[prost(message, optional, tag = "2")]
    full: Option<GlanceAtFull>,
    #[prost(message, optional, tag = "3")]
    topology: Option<GlanceAtTopology>,
    #[prost(message, optional, tag = "7")]
    delta: Option<GlanceAtDelta>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GlanceAtFull {
    #[prost(uint64, tag = "1")]
    config_revision: u64,
    #[prost(bytes = "vec", tag = "2")]
    sha256: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    topology: Option<GlanceAtTopology>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GlanceAtDelta {
    #[prost(uint64, tag = "2")]
    config_revision: u64,
    #[prost(bytes = "vec", tag = "3")]
    sha256: Vec<u8>,
    #[prost(message, optional, tag = "6")]
    topology: Option<GlanceAtTopology>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GlanceAtTopology {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(uint32, tag = "4")]
    timeline: u32,
    #[prost(fixed64, optional, tag = "5")]
    system: Option<u64>,
    #[prost(uint32, tag = "7")]
    incarnation: u32,
    #[prost(string, tag = "8")]
    last_primary: String,
}

/// What all data planes have got, and when.
#[derive(Default)]
pub struct Board {
    /// The revision that each one holds, its epoch, and when it came.
    pub held: Vec<(u64, u64, Option<Instant>)>,
    /// When each one got another epoch than before.
    pub moved: Vec<Option<Instant>>,
    /// Streams that have brought a whole snapshot since this was set to 0.
    pub full: usize,
    pub connected: usize,
    /// Whole snapshots, deltas and topologies so far, over all data planes.
    pub kinds: [u64; 3],
}

type Shared = Arc<Mutex<Board>>;

/// Simulated data planes; they end with it.
pub struct Simulated {
    pub board: Shared,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Simulated {
    pub fn start(count: usize, address: SocketAddr) -> Self {
        let board = Shared::default();
        board.lock().unwrap().held = vec![(0, 0, None); count];
        board.lock().unwrap().moved = vec![None; count];
        // One thread: what is measured is the control plane.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for number in 0..count {
            runtime.spawn(dataplane(number, address, Arc::clone(&board)));
        }
        Self { board, runtime: Some(runtime) }
    }

    pub fn count(&self) -> usize {
        self.board.lock().unwrap().held.len()
    }

    /// Waits until each holds this revision or a later one, and says when each one got it.
    pub fn all_hold(&self, revision: u64) -> Vec<Instant> {
        let all = || self.board.lock().unwrap().held.iter().all(|(held, ..)| *held >= revision);
        eventually(PATIENCE, "every data plane has the change", all);
        self.board.lock().unwrap().held.iter().filter_map(|(.., at)| *at).collect()
    }

    /// Waits until each has got a whole snapshot.
    pub fn all_full(&self) {
        eventually(PATIENCE, "every data plane has a whole snapshot", || {
            let board = self.board.lock().unwrap();
            board.full >= board.held.len() && board.connected == board.held.len()
        });
    }

    /// Waits until each has got another epoch than it had, and says when each one did.
    pub fn all_moved(&self) -> Vec<Instant> {
        let all = || self.board.lock().unwrap().moved.iter().all(Option::is_some);
        eventually(PATIENCE, "every data plane knows of the promotion", all);
        self.board.lock().unwrap().moved.iter().filter_map(|at| *at).collect()
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn dataplane(number: usize, address: SocketAddr, board: Shared) {
    let mut hello = v1::Hello {
        cluster: "helios".to_owned(),
        dp_id: format!("dp-{number}"),
        boot_id: "1".to_owned(),
        version: "1".to_owned(),
        deltas: true,
        ..v1::Hello::default()
    };
    // Not all at once: a fleet starts over some time.
    tokio::time::sleep(Duration::from_millis((number % 100) as u64)).await;
    loop {
        let mut counted = false;
        if let Err(status) = stream(number, address, &mut hello, (&board, &mut counted)).await
            && !matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown)
        {
            eprintln!("dp-{number}: {status}");
        }
        if counted {
            board.lock().unwrap().connected -= 1;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {}", token("dataplane")).parse().unwrap());
    request
}

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A call that reports, for as long as it is polled.
fn report(channel: Channel, hello: &v1::Hello) -> (mpsc::Sender<v1::ReportMsg>, Ended) {
    let (reports, messages) = mpsc::channel(4);
    let reporter = v1::Reporter { dp_id: hello.dp_id.clone(), boot_id: hello.boot_id.clone() };
    drop(reports.try_send(v1::ReportMsg { msg: Some(report_msg::Msg::Reporter(reporter)) }));
    let request = with_token(ReceiverStream::new(messages));
    let ended = async move { drop(ReportClient::new(channel).stream(request).await) };
    (reports, Box::pin(ended))
}

/// One stream from connecting to its end.
async fn stream(
    number: usize,
    address: SocketAddr,
    hello: &mut v1::Hello,
    (board, counted): (&Shared, &mut bool),
) -> Result<(), Status> {
    let lost = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(lost)?.tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(lost)?;
    let (outgoing, messages) = mpsc::channel(64);
    let send = |msg| outgoing.try_send(v1::DpMsg { msg: Some(msg) }).is_ok();
    send(dp_msg::Msg::Hello(hello.clone()));
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(lost)?;
    let path = PathAndQuery::from_static("/helios.v1.Discovery/Stream");
    let codec = ProstCodec::<v1::DpMsg, Glance>::default();
    let call = grpc.streaming(with_token(ReceiverStream::new(messages)), path, codec);
    let mut incoming = call.await?.into_inner();
    let (reports, mut ended) = report(channel, hello);
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    let mut apart = true;
    loop {
        let message = tokio::select! {
            biased;
            message = incoming.message() => message?,
            () = &mut ended, if apart => {
                // Not offered.
                apart = false;
                continue;
            }
            _ = beat.tick() => {
                let status = v1::Status { revision: hello.revision, ..v1::Status::default() };
                if apart {
                    drop(reports.try_send(v1::ReportMsg { msg: Some(report_msg::Msg::Status(status)) }));
                } else {
                    send(dp_msg::Msg::Status(status));
                }
                continue;
            }
        };
        let Some(glance) = message else { return Ok(()) };
        let at = Instant::now();
        let nonce = glance.nonce;
        if let Some(revision) = seen(number, glance, hello, (board, counted), at) {
            send(dp_msg::Msg::Ack(v1::Ack { nonce, revision, rejected: Vec::new() }));
        }
    }
}

/// Takes note of a message; the revision to acknowledge.
fn seen(
    number: usize,
    Glance { nonce: _, full, topology, delta }: Glance,
    hello: &mut v1::Hello,
    (board, counted): (&Shared, &mut bool),
    at: Instant,
) -> Option<u64> {
    let mut board = board.lock().unwrap();
    let topology = if let Some(full) = full {
        (hello.config_revision, hello.sha256) = (full.config_revision, full.sha256);
        board.full += 1;
        board.kinds[0] += 1;
        board.connected += usize::from(!*counted);
        *counted = true;
        full.topology?
    } else if let Some(delta) = delta {
        (hello.config_revision, hello.sha256) = (delta.config_revision, delta.sha256);
        board.kinds[1] += 1;
        delta.topology?
    } else {
        let topology = topology?;
        board.kinds[2] += 1;
        topology
    };
    let revision = topology.revision;
    if topology.epoch != hello.epoch && hello.epoch != 0 {
        board.moved[number] = Some(at);
    }
    (hello.revision, hello.epoch, hello.timeline) = (revision, topology.epoch, topology.timeline);
    (hello.incarnation, hello.last_primary) = (topology.incarnation, topology.last_primary);
    hello.system = topology.system;
    board.held[number] = (revision, topology.epoch, Some(at));
    Some(revision)
}
