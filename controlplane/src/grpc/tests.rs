//! The stream over real sockets, with data planes that are played: many, slow, and ill-behaved ones.

use super::*;
use crate::core::Core;
use crate::store::Memory;
use helios_proto::config::{Access, Token, TokenProof};
use helios_proto::model::{NodeName, Secret};
use helios_proto::wire;
use helios_proto::wire::v1::discovery_client::DiscoveryClient;
use helios_proto::wire::v1::report_client::ReportClient;
use helios_proto::wire::v1::{cp_msg, dp_msg, report_msg};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

const TOKEN: &str = "token-of-data-planes";
const TEXT: &str = "[health]\ncheck_interval_secs = 3600\n[[nodes]]\nhost = \"127.0.0.1\"\nport = 1\nrole = \"primary\"\n\
    [[nodes]]\nhost = \"127.0.0.1\"\nport = 2\nrole = \"replica\"\n";

struct Stage {
    core: Core,
    address: SocketAddr,
    _stop: DropGuard,
}

async fn stage() -> Stage {
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let core =
        Core::start((Arc::new(Memory::default()), Arc::default()), (TEXT, false), &stop, &tracker).unwrap();
    let peers = crate::peers::Peers::open(None);
    let service = discovery::Service::new("ours", &core, peers, (&stop, &tracker));
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "discovery").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proof = TokenProof::Clear(Secret::new(TOKEN.to_owned()));
    let door = Door::new(&[Token { name: "dp".to_owned(), access: Access::Dataplane, proof }], false);
    tracker.spawn(serve((listener, None), discovery_routes(service).await, door, stop.clone()));
    Stage { core, address, _stop: stop.drop_guard() }
}

type Talk = (mpsc::Sender<v1::DpMsg>, Streaming<v1::CpMsg>);

impl Stage {
    /// Opens a stream whose first message is `first`.
    async fn open(&self, first: dp_msg::Msg) -> Result<Talk, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        // Small, so that what is not read soon holds up the sender.
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        let mut client = DiscoveryClient::new(endpoint.connect().await.unwrap());
        let (say, said) = mpsc::channel(16);
        say.send(v1::DpMsg { msg: Some(first) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        Ok((say, client.stream(request).await?.into_inner()))
    }

    async fn drain(&self, drained: bool) -> u64 {
        let changed = self.core.keeper.mark(None, |_, ops| {
            ops.entry(NodeName::new("replica-1")).or_default().drained = drained;
            Ok(())
        });
        changed.await.unwrap().revision
    }
}

fn hello(id: &str, cluster: &str) -> dp_msg::Msg {
    let (cluster, dp_id) = (cluster.to_owned(), id.to_owned());
    dp_msg::Msg::Hello(v1::Hello { cluster, dp_id, ..v1::Hello::default() })
}

fn revision(message: &v1::CpMsg) -> Option<u64> {
    match message.msg.as_ref()? {
        cp_msg::Msg::Full(full) => full.topology.as_ref().map(|topology| topology.revision),
        cp_msg::Msg::Topology(topology) => Some(topology.revision),
        cp_msg::Msg::Delta(delta) => delta.topology.as_ref().map(|topology| topology.revision),
        cp_msg::Msg::Heartbeat(_) | cp_msg::Msg::Peers(_) | cp_msg::Msg::Grants(_) => None,
    }
}

/// Acknowledges whatever comes.
async fn obey((say, mut heard): Talk) {
    while let Ok(Some(message)) = heard.message().await {
        let Some(revision) = revision(&message) else { continue };
        let ack = v1::Ack { nonce: message.nonce, revision, rejected: Vec::new() };
        if say.send(v1::DpMsg { msg: Some(dp_msg::Msg::Ack(ack)) }).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_data_planes_acknowledge_a_change() {
    let stage = stage().await;
    for i in 0..100 {
        let talk = stage.open(hello(&format!("dp-{i}"), "ours")).await.unwrap();
        tokio::spawn(obey(talk));
    }
    let first = stage.core.snapshots.borrow().revision;
    let patience = Duration::from_secs(20);
    assert_eq!(stage.core.fleet.acknowledged(first, patience).await, (100, 100));
    for drained in [true, false, true] {
        let started = Instant::now();
        let revision = stage.drain(drained).await;
        assert_eq!(stage.core.fleet.acknowledged(revision, patience).await, (100, 100));
        println!("100 acknowledgements in {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn who_reads_slowly_gets_the_latest_and_not_every_one() {
    let stage = stage().await;
    let (_say, mut heard) = stage.open(hello("slow", "ours")).await.unwrap();
    let first = heard.message().await.unwrap().unwrap();
    assert!(matches!(first.msg, Some(cp_msg::Msg::Full(_))), "{first:?}");
    let mut last = 0;
    for i in 0..2_000 {
        last = stage.drain(i % 2 == 0).await;
    }
    let mut messages = 0;
    loop {
        let message = heard.message().await.unwrap().unwrap();
        messages += 1;
        if revision(&message).is_some_and(|revision| revision >= last) {
            break;
        }
    }
    println!("{messages} messages for 2000 changes");
    assert!(messages < 1_500, "{messages}");
}

#[tokio::test]
async fn strangers_and_those_who_do_not_say_hello_are_refused() {
    let stage = stage().await;
    let code = async |first| stage.open(first).await.map(|_| ()).map_err(|status| status.code());
    assert_eq!(code(dp_msg::Msg::Status(v1::Status::default())).await, Err(Code::InvalidArgument));
    assert_eq!(code(hello("dp", "theirs")).await, Err(Code::FailedPrecondition));
    assert_eq!(code(hello("", "ours")).await, Err(Code::InvalidArgument));
    assert_eq!(code(hello(&"x".repeat(201), "ours")).await, Err(Code::InvalidArgument));
    let absurd = v1::Hello {
        revision: u64::MAX,
        dp_id: "dp".to_owned(),
        cluster: "ours".to_owned(),
        ..v1::Hello::default()
    };
    assert_eq!(code(dp_msg::Msg::Hello(absurd)).await, Err(Code::InvalidArgument));
    assert!(stage.core.fleet.list().is_empty());
}

fn newer(id: &str) -> dp_msg::Msg {
    let (cluster, dp_id, boot_id) = ("ours".to_owned(), id.to_owned(), "1".to_owned());
    dp_msg::Msg::Hello(v1::Hello { cluster, dp_id, boot_id, deltas: true, ..v1::Hello::default() })
}

/// The next message that is a snapshot or a part of one.
async fn next((_, heard): &mut Talk) -> (u64, cp_msg::Msg) {
    loop {
        let message = heard.message().await.unwrap().unwrap();
        if revision(&message).is_some() {
            return (message.nonce, message.msg.unwrap());
        }
    }
}

#[tokio::test]
async fn a_change_travels_as_a_delta_and_who_cannot_use_it_gets_everything() {
    let stage = stage().await;
    let (mut new, mut old) =
        (stage.open(newer("new")).await.unwrap(), stage.open(hello("old", "ours")).await.unwrap());
    let (_, cp_msg::Msg::Full(first)) = next(&mut new).await else { panic!("the first is everything") };
    assert!(matches!(next(&mut old).await.1, cp_msg::Msg::Full(_)));
    stage.drain(true).await;
    let (nonce, cp_msg::Msg::Delta(delta)) = next(&mut new).await else { panic!("a delta") };
    assert_eq!((delta.removed.len(), delta.changed.len(), &delta.base_sha256), (0, 1, &first.sha256));
    let made = wire::Configuration::sent(&first).with(delta).unwrap();
    let cp_msg::Msg::Full(whole) = next(&mut old).await.1 else { panic!("everything") };
    assert_eq!((&made.resources, &made.sha256), (&whole.resources, &whole.sha256));
    let resync = v1::Resync { nonce, reason: "lost".to_owned() };
    new.0.send(v1::DpMsg { msg: Some(dp_msg::Msg::Resync(resync)) }).await.unwrap();
    let (_, cp_msg::Msg::Full(again)) = next(&mut new).await else { panic!("everything, as asked") };
    assert_eq!(again.sha256, made.sha256);
    assert_eq!(stage.core.counts.resyncs.load(Ordering::Relaxed), 1);
}

type Reports = mpsc::Sender<v1::ReportMsg>;

impl Stage {
    /// Begins to report; the call is driven by a task.
    async fn report(&self, id: &str, boot: &str) -> (Reports, tokio::task::JoinHandle<Option<Code>>) {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let mut client = ReportClient::new(endpoint.connect().await.unwrap());
        let (say, said) = mpsc::channel(4);
        let reporter = v1::Reporter { dp_id: id.to_owned(), boot_id: boot.to_owned() };
        say.send(v1::ReportMsg { msg: Some(report_msg::Msg::Reporter(reporter)) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        let call = async move { client.stream(request).await.err().map(|status| status.code()) };
        (say, tokio::spawn(call))
    }

    /// Clients of the only data plane, as it said last.
    fn clients(&self) -> u32 {
        self.core.fleet.list()[0].status.clients
    }
}

fn status(clients: u32, beat: u64) -> v1::ReportMsg {
    let status = v1::Status { clients, beat, ..v1::Status::default() };
    v1::ReportMsg { msg: Some(report_msg::Msg::Status(status)) }
}

async fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < end, "in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn reports_come_beside_the_stream_in_their_order_and_end_with_it() {
    let stage = stage().await;
    let strangers = stage.report("dp", "1").await.1.await.unwrap();
    assert_eq!(strangers, Some(Code::FailedPrecondition), "no stream is open");
    let (say, mut heard) = stage.open(newer("dp")).await.unwrap();
    let another = stage.report("dp", "2").await.1.await.unwrap();
    assert_eq!(another, Some(Code::FailedPrecondition), "another start of the process");
    let (reports, call) = stage.report("dp", "1").await;
    reports.send(status(7, 2)).await.unwrap();
    until(|| stage.clients() == 7).await;
    // Said before on the stream, and late; then said on the stream, and new.
    for (clients, beat) in [(5, 1), (9, 3)] {
        let status = v1::Status { clients, beat, ..v1::Status::default() };
        say.send(v1::DpMsg { msg: Some(dp_msg::Msg::Status(status)) }).await.unwrap();
    }
    until(|| stage.clients() != 7).await;
    assert_eq!(stage.clients(), 9);
    let (newer, second) = stage.report("dp", "1").await;
    assert_eq!(call.await.unwrap(), Some(Code::Aborted), "one call at a time");
    newer.send(status(11, 4)).await.unwrap();
    until(|| stage.clients() == 11).await;
    drop(say);
    while let Ok(Some(_)) = heard.message().await {}
    assert_eq!(second.await.unwrap(), None, "it ends with the stream");
    until(|| !stage.core.fleet.list()[0].connected).await;
}

#[tokio::test]
async fn a_flood_of_reports_holds_up_neither_topology_nor_acknowledgements() {
    let stage = stage().await;
    let mut talk = stage.open(newer("dp")).await.unwrap();
    let (reports, _call) = stage.report("dp", "1").await;
    let flood = tokio::spawn(async move {
        // Not so small that HTTP/2 ends the connection for their number.
        let pools = vec![v1::PoolStatus { node: "n".repeat(300), ..v1::PoolStatus::default() }];
        for beat in 1..100_000 {
            let status = v1::Status { beat, pools: pools.clone(), ..v1::Status::default() };
            let message = v1::ReportMsg { msg: Some(report_msg::Msg::Status(status)) };
            if reports.send(message).await.is_err() {
                return;
            }
        }
    });
    let slowed = || stage.core.counts.slowed.load(Ordering::Relaxed);
    until(|| slowed() > 2).await;
    next(&mut talk).await;
    for drained in [true, false, true] {
        let revision = stage.drain(drained).await;
        let (nonce, _) = next(&mut talk).await;
        let ack = v1::Ack { nonce, revision, rejected: Vec::new() };
        talk.0.send(v1::DpMsg { msg: Some(dp_msg::Msg::Ack(ack)) }).await.unwrap();
        let patience = Duration::from_secs(20);
        assert_eq!(stage.core.fleet.acknowledged(revision, patience).await, (1, 1));
    }
    assert!(!flood.is_finished(), "it still waits to be read");
    flood.abort();
}

#[tokio::test]
async fn a_report_that_is_too_large_is_refused_and_the_stream_goes_on() {
    let stage = stage().await;
    let mut talk = stage.open(newer("dp")).await.unwrap();
    next(&mut talk).await;
    let (reports, call) = stage.report("dp", "1").await;
    let pools = vec![v1::PoolStatus { node: "n".repeat(1_000), ..v1::PoolStatus::default() }; 300];
    let status = v1::Status { pools, ..v1::Status::default() };
    reports.send(v1::ReportMsg { msg: Some(report_msg::Msg::Status(status)) }).await.unwrap();
    assert_eq!(call.await.unwrap(), Some(Code::OutOfRange));
    stage.drain(true).await;
    assert!(matches!(next(&mut talk).await.1, cp_msg::Msg::Delta(_)));
}
