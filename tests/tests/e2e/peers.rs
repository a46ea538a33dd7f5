//! Cancel requests that come to another data plane than the one that runs the statement.

use std::time::Duration;

use helios_proto::wire::v1::CancelRequest;
use helios_proto::wire::v1::peer_client::PeerClient;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::raw::{Hello, packet, query};
use helios_tests::{Cluster, Config, ControlPlane, Pki, Proxy, Raw, eventually, free_port};
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);
const SLOT_BITS: u32 = 18;

fn data_plane(name: &str, discovery: u16, more: &str) -> String {
    format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"{name}\"\npeer_listen_address = \"127.0.0.1:0\"\n{more}\n"
    )
}

/// Sends a cancel request, and waits until the proxy closes without a word.
fn cancel(port: u16, pid: u32, key: &[u8]) {
    let mut raw = Raw::connect(port);
    raw.send(&packet(&[&80_877_102u32.to_be_bytes()[..], &pid.to_be_bytes(), key].concat()));
    let (bytes, closed) = raw.rest(LONG);
    assert!(bytes.is_empty() && closed, "a cancel request gets no answer");
}

fn running(sql: &str) -> bool {
    let found = "select count(*) from pg_stat_activity where state = 'active' and query = $1";
    let row = Cluster::shared().primary().superuser().query_one(found, &[&sql]).unwrap();
    row.get::<_, i64>(0) == 1
}

/// A session whose process id has a number in it.
fn session(proxy: &Proxy) -> (Raw, Hello) {
    let mut found = None;
    eventually(LONG, "the data plane has its number", || {
        let (raw, hello) = proxy.raw("app");
        let numbered = hello.pid >> SLOT_BITS != 0 && hello.pid <= 0x7fff_ffff;
        found = numbered.then_some((raw, hello));
        numbered
    });
    found.unwrap()
}

/// A statement that runs on `from`, and is cancelled through `to`.
fn cancelled_through(to: &Proxy, (raw, hello): &mut (Raw, Hello), mark: &str) {
    let sql = format!("select pg_sleep(600), '{mark}'");
    raw.send(&query(&sql));
    eventually(LONG, "it runs", || running(&sql));
    let mut wrong = hello.key.clone();
    wrong[0] ^= 1;
    cancel(to.port(), hello.pid, &wrong);
    cancel(to.port(), hello.pid ^ 1, &hello.key);
    cancel(to.port(), hello.pid ^ (0x1000 << SLOT_BITS), &hello.key);
    assert!(running(&sql), "wrong keys cancel nothing");
    eventually(LONG, "the cancel arrives", || {
        cancel(to.port(), hello.pid, &hello.key);
        !running(&sql)
    });
    let messages = raw.until_ready(1);
    assert!(messages.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57014"), "{messages:?}");
    // Later ones must not hit the next statement.
    cancel(to.port(), hello.pid, &hello.key);
    let messages = raw.query("select 1");
    assert!(messages.iter().any(|m| m.tag == b'D'), "{messages:?}");
}

fn two(discovery: u16, state: &str, more: &str) -> (Proxy, Proxy) {
    let first = format!("state_dir = \"{state}\"\n{more}");
    (
        Proxy::start(&data_plane("dp-1", discovery, &first)).ready(),
        Proxy::start(&data_plane("dp-2", discovery, more)).ready(),
    )
}

#[test]
fn a_cancel_reaches_its_session_through_any_data_plane() {
    let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
    let text = Config::primary_only(Cluster::shared()).text() + &sections(&store, discovery);
    let mut plane = ControlPlane::start(&text);
    let secret = format!("token = \"{}\"", token("dataplane"));
    let (first, second) = two(discovery, &state, &secret);
    let (mut one, mut other) = (session(&first), session(&second));
    let number = one.1.pid >> SLOT_BITS;
    assert_ne!(number, other.1.pid >> SLOT_BITS);
    cancelled_through(&second, &mut one, "through the second");
    cancelled_through(&first, &mut other, "through the first");
    cancelled_through(&first, &mut one, "through its own");

    // The control plane is not needed for it, and a restart keeps the number.
    plane.kill();
    cancelled_through(&second, &mut one, "without a control plane");
    drop((one, first));
    let again = format!("state_dir = \"{state}\"\n{secret}");
    let first = Proxy::start(&data_plane("dp-1", discovery, &again));
    let one = session(&first);
    assert_eq!(one.1.pid >> SLOT_BITS, number);

    // A control plane that starts anew gives the same numbers to the same data planes.
    let plane = ControlPlane::start(&text);
    let connected = |proxy: &Proxy| proxy.metrics().sum("heliosproxy_control_connected", &[]) == Some(1.0);
    eventually(LONG, "both are back", || connected(&first) && connected(&second));
    let mut one = session(&first);
    assert_eq!(one.1.pid >> SLOT_BITS, number);
    assert_eq!(session(&second).1.pid >> SLOT_BITS, other.1.pid >> SLOT_BITS);
    cancelled_through(&second, &mut one, "after all that");

    // For a dead data plane: nothing happens, without a word.
    let dead = one.1;
    drop(first);
    cancel(second.port(), dead.pid, &dead.key);
    cancelled_through(&second, &mut other, "still at work");
    for text in [first_bytes(&dead.key), token("dataplane")] {
        assert!(second.logged(&text).is_empty() && plane.logged(&text).is_empty(), "a secret in the log");
    }
    let _ = std::fs::remove_dir_all(store);
    let _ = std::fs::remove_dir_all(state);
}

fn first_bytes(key: &[u8]) -> String {
    format!("{key:?}")
}

#[test]
fn peers_know_each_other_by_certificates() {
    let pki = Pki::new();
    let (discovery, store, state) = (free_port(), directory("store"), directory("state"));
    pki.issue("server", &["127.0.0.1"], 2090);
    pki.issue("dp", &["dp.internal"], 2090);
    let text = Config::primary_only(Cluster::shared()).text() + &sections(&store, discovery);
    let keys = pki.server("server", true) + "[management]\n";
    let text = text.replacen("[management]\n", &keys, 1);
    let _plane = ControlPlane::start(&text);
    let secret = format!("token = \"{}\"\npeer_server_name = \"dp.internal\"\n", token("dataplane"));
    let (first, second) = two(discovery, &state, &(secret + &pki.client("dp")));
    let (mut one, mut other) = (session(&first), session(&second));
    cancelled_through(&second, &mut one, "secured through the second");
    cancelled_through(&first, &mut other, "secured through the first");
    let _ = std::fs::remove_dir_all(store);
    let _ = std::fs::remove_dir_all(state);
}

/// One call of the Peer service at an address.
fn call(address: &str, bearer: &str, request: CancelRequest) -> Result<(), Code> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut request = tonic::Request::new(request);
    if !bearer.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    }
    runtime.block_on(async {
        let mut client = PeerClient::connect(format!("http://{address}")).await.unwrap();
        client.cancel(request).await.map(drop).map_err(|status| status.code())
    })
}

#[test]
fn the_peer_service_knows_whom_it_serves() {
    let (discovery, store) = (free_port(), directory("store"));
    let _plane =
        ControlPlane::start(&(Config::primary_only(Cluster::shared()).text() + &sections(&store, discovery)));
    let secret = format!("token = \"{}\"", token("dataplane"));
    let proxy = Proxy::start(&data_plane("dp-1", discovery, &secret)).ready();
    let line = proxy.said("peers address=");
    let address = line.split_once("peers address=").unwrap().1.trim();
    let (mut raw, hello) = session(&proxy);
    let sql = "select pg_sleep(600), 'for the peer service'";
    raw.send(&query(sql));
    eventually(LONG, "it runs", || running(sql));
    let request = |secret: &[u8], hops| CancelRequest { pid: hello.pid, secret: secret.to_vec(), hops };
    let good = token("dataplane");
    assert_eq!(call(address, "", request(&hello.key, 1)), Err(Code::Unauthenticated));
    assert_eq!(call(address, "wrong", request(&hello.key, 1)), Err(Code::Unauthenticated));
    assert_eq!(call(address, &token("admin"), request(&hello.key, 1)), Err(Code::Unauthenticated));
    assert_eq!(call(address, &good, request(&hello.key, 2)), Err(Code::InvalidArgument));
    assert_eq!(call(address, &good, request(&[0; 3], 1)), Err(Code::InvalidArgument));
    assert_eq!(call(address, &good, request(&[0; 257], 1)), Err(Code::InvalidArgument));
    assert_eq!(call(address, &good, request(&[0; 2000], 1)), Err(Code::OutOfRange));
    assert_eq!(call(address, &good, request(&[0; 4], 1)), Ok(()), "the answer does not tell");
    assert!(running(sql), "and nothing was cancelled");
    assert_eq!(call(address, &good, request(&hello.key, 1)), Ok(()));
    eventually(LONG, "it is cancelled", || !running(sql));
    let _ = std::fs::remove_dir_all(store);
}
