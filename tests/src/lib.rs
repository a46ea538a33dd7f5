//! Harness: real PostgreSQL clusters ([`Cluster`]), the proxy as a process ([`Proxy`]), control planes for a fleet of
//! them ([`ControlPlane`]), etcd behind these ([`Etcd`]), clusters that Patroni leads ([`Patroni`]), PgBouncer to be compared with ([`PgBouncer`]), clients
//! that check every answer ([`Load`], [`soak`], [`races`]), networks that can be cut ([`Net`]), and a client that sends any bytes
//! ([`Raw`]). Everything that it starts ends with the test process, also when that is killed ([`guard`]).
//! Never mocks a server, never waits a fixed time: it asks again until an answer is there or a deadline has passed.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used, clippy::as_conversions, clippy::too_many_lines)]

mod backup;
pub mod cluster;
pub mod collector;
pub mod controlplane;
pub mod dice;
pub mod etcd;
pub mod guard;
pub mod heliosctl;
pub mod http;
pub mod load;
pub mod net;
pub mod patroni;
pub mod pgbouncer;
pub mod pki;
pub mod programs;
pub mod prometheus;
pub mod proxy;
pub mod races;
pub mod raw;
pub mod redis;
pub mod relay;
pub mod soak;
pub mod socket;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use cluster::{Cluster, Node, Role};
pub use collector::Collector;
pub use controlplane::{ControlPlane, Operator};
pub use etcd::Etcd;
pub use heliosctl::Heliosctl;
pub use load::Load;
pub use net::Net;
pub use patroni::Patroni;
pub use pgbouncer::{Exporter, PgBouncer};
pub use pki::Pki;
pub use programs::Programs;
pub use prometheus::Prometheus;
pub use proxy::{Config, Proxy};
pub use raw::{Message, Raw};
pub use redis::Redis;

/// A TCP port of the loopback interface that nobody listens on, below the range from which the kernel takes the
/// ports of outgoing connections: nobody else gets it by chance before its user binds it.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const SPAN: u16 = 11_000;
    // Processes that start together begin far from each other.
    let start = u16::try_from(std::process::id().wrapping_mul(101) % u32::from(SPAN)).unwrap();
    for _ in 0..SPAN {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + start.wrapping_add(step) % SPAN;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// A line past the test harness, which swallows what a passing test prints.
pub fn loudly(line: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Asks `condition` until it holds.
///
/// # Panics
/// When it does not hold within `limit`.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first line with this text, once a log has one.
#[track_caller]
fn first_said(text: &str, logged: impl Fn() -> Vec<String>) -> String {
    let mut line = None;
    eventually(Duration::from_secs(20), text, || {
        line = logged().into_iter().next();
        line.is_some()
    });
    line.unwrap()
}

/// Raises the limit of open files of this process, for tests with thousands of sockets.
///
/// # Panics
/// When `prlimit` cannot be run.
pub fn raise_file_limit() {
    let pid = std::process::id().to_string();
    for limit in ["--nofile=65536:65536", "--nofile=20000:20000"] {
        let done = std::process::Command::new("prlimit")
            .args(["--pid", &pid, limit])
            .stderr(std::process::Stdio::null())
            .status()
            .expect("prlimit (util-linux)");
        if done.success() {
            return;
        }
    }
}
