//! Cancel requests by the thousand, with wrong keys and right ones: few of them become connections to a server, others are
//! served, and what was asked for still happens. Never judges how long that takes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use helios_pgwire::frontend;
use helios_tests::raw::{Hello, PATIENCE, query};
use helios_tests::{Cluster, Config, Proxy, Raw, eventually, raise_file_limit};

/// Requests of each kind.
const STORM: usize = 1000;
/// Most cancel requests on their way to a server for one session.
const MOST: usize = 2;

/// Between the proxy and a server: holds cancel requests back while it is shut, and counts them.
#[derive(Default)]
struct Gate {
    open: AtomicBool,
    held: AtomicUsize,
    most: AtomicUsize,
    passed: AtomicUsize,
}

impl Gate {
    fn start(server: u16) -> (Arc<Self>, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Arc::new(Self::default());
        let of = Arc::clone(&gate);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let gate = Arc::clone(&of);
                std::thread::spawn(move || gate.serve(near, server));
            }
        });
        (gate, port)
    }

    fn serve(&self, mut near: TcpStream, server: u16) -> Option<()> {
        let mut first = vec![0; 8];
        near.read_exact(&mut first).ok()?;
        if first[4..] != [4, 210, 22, 46] {
            return pass(near, server, &first);
        }
        first.resize(16, 0);
        near.read_exact(&mut first[8..]).ok()?;
        let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(held, Ordering::SeqCst);
        near.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        // The proxy may give up.
        let mut gone = false;
        while !gone && !self.open.load(Ordering::SeqCst) {
            gone = matches!(near.peek(&mut [0]), Ok(0));
        }
        near.set_read_timeout(None).unwrap();
        self.passed.fetch_add(1, Ordering::SeqCst);
        let passed = if gone { None } else { pass(near, server, &first) };
        self.held.fetch_sub(1, Ordering::SeqCst);
        passed
    }
}

/// Both ways, to the end.
fn pass(mut near: TcpStream, server: u16, first: &[u8]) -> Option<()> {
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).ok()?;
    far.write_all(first).ok()?;
    let (mut back, mut answers) = (near.try_clone().ok()?, far.try_clone().ok()?);
    let there = std::thread::spawn(move || {
        let _ = std::io::copy(&mut near, &mut far);
        let _ = far.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut answers, &mut back);
    let _ = back.shutdown(Shutdown::Both);
    there.join().ok()
}

fn request(pid: u32, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frontend::cancel(&mut bytes, pid, key);
    bytes
}

/// Wrong keys for a session that there is, right keys for one, and both for sessions that there are not.
fn storm(proxy: &Proxy, hello: &Hello) -> Vec<Raw> {
    let wrong = hello.key.iter().map(|byte| !byte).collect::<Vec<_>>();
    let send = |bytes: &[u8]| {
        let mut raw = Raw::connect(proxy.port());
        raw.send(bytes);
        raw
    };
    let kinds = (0..STORM).flat_map(|n| {
        let other = hello.pid.wrapping_add(1 + u32::try_from(n).unwrap());
        [request(hello.pid, &wrong), request(hello.pid, &hello.key), request(other, &hello.key)]
    });
    kinds.map(|bytes| send(&bytes)).collect()
}

fn cancelled(raw: &mut Raw) {
    let got = raw.until_ready(1);
    assert!(got.iter().any(|m| m.tag == b'E' && m.sqlstate() == "57014"), "{got:?}");
}

#[test]
fn a_storm_of_cancels_is_few_connections_and_hits_nobody_else() {
    raise_file_limit();
    let primary = Cluster::shared().primary();
    let (gate, port) = Gate::start(primary.port);
    let config = Config { pool: 4, ..Config::primary_only(Cluster::shared()) };
    let text = config.text().replace(&format!("port = {}", primary.port), &format!("port = {port}"));
    let proxy = Proxy::start(&text).ready();
    let (mut victim, hello) = proxy.raw("app");
    let (mut other, _) = proxy.raw("app");
    victim.send(&query("select pg_sleep(600) /* stormed */"));
    let mut direct = primary.superuser();
    let mut runs = || {
        let sql =
            "select count(*) from pg_stat_activity where query like '%stormed%' and wait_event = 'PgSleep'";
        direct.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1
    };
    eventually(PATIENCE, "the statement runs", &mut runs);
    let requests = storm(&proxy, &hello);
    for n in 0..50 {
        let answer = other.query(&format!("select {n}"));
        assert!(answer.iter().any(|m| m.tag == b'D' && m.fields() == [n.to_string()]), "{answer:?}");
    }
    gate.open.store(true, Ordering::SeqCst);
    for mut raw in requests {
        let (said, closed) = raw.rest(PATIENCE);
        assert!(said.is_empty() && closed, "a cancel request gets no answer");
    }
    cancelled(&mut victim);
    let (most, passed) = (gate.most.load(Ordering::SeqCst), gate.passed.load(Ordering::SeqCst));
    println!("{} requests: {passed} connections to the server, {most} at a time", 3 * STORM);
    assert!((1..=MOST).contains(&most), "{most}");
    // Alone, and with a right key, it lands.
    eventually(PATIENCE, "nothing is on its way", || gate.held.load(Ordering::SeqCst) == 0);
    victim.send(&query("select pg_sleep(600) /* stormed */"));
    eventually(PATIENCE, "the statement runs", &mut runs);
    let mut raw = Raw::connect(proxy.port());
    raw.send(&request(hello.pid, &hello.key));
    raw.rest(PATIENCE);
    cancelled(&mut victim);
    assert!(other.query("select 1").iter().all(|m| m.tag != b'E'));
}
