//! The stream over real sockets, with data planes that are played: many, slow, and ill-behaved ones.

use super::*;
use crate::core::Core;
use crate::store::Memory;
use helios_proto::config::{Access, Token, TokenProof};
use helios_proto::model::{NodeName, Secret};
use helios_proto::wire::v1::discovery_client::DiscoveryClient;
use helios_proto::wire::v1::{cp_msg, dp_msg};
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
    let core = Core::start(Arc::new(Memory::default()), (TEXT, false), &stop, &tracker).unwrap();
    let service = discovery::Service {
        cluster: "ours".to_owned(),
        core: core.clone(),
        peers: crate::peers::Peers::open(None),
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
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
