//! From the end of a promotion to the first write through the proxy, over and over, each time on a cluster of its own:
//! `bench-failover [--rounds N] [--kind crash|planned]`. Prints each round, the median and the worst, and how many
//! acknowledged writes are missing. Judges nothing: this machine is noisy.
// A program for people: a broken assumption stops it, loudly.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use helios_tests::{Cluster, Config, Node, Proxy, Role};
use postgres::Client;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// The primary is gone this long before the standby is promoted.
const OUTAGE: Duration = Duration::from_millis(1500);

/// What a writer got acknowledged, and when; and whether its connection was lost.
struct Written {
    acknowledged: Vec<(i64, Instant)>,
    lost: usize,
}

/// Writes through the proxy until told to stop.
fn write(proxy: &Proxy, stop: &AtomicBool) -> Written {
    let (mut acknowledged, mut lost, mut i) = (Vec::new(), 0, 0i64);
    let mut client: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let mut open = match client.take() {
            Some(open) => open,
            None => match proxy.config("app").connect(postgres::NoTls) {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        i += 1;
        if open.batch_execute(&format!("insert into written values ({i})")).is_ok() {
            acknowledged.push((i, Instant::now()));
        }
        if open.is_closed() {
            lost += 1;
        } else {
            client = Some(open);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Written { acknowledged, lost }
}

/// Promotes, and says when the server first called itself promoted.
fn promote(standby: &Node) -> Instant {
    let mut watch = standby.superuser();
    standby.superuser().batch_execute("select pg_promote(false)").unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let row = watch.query_one("select pg_is_in_recovery()", &[]).unwrap();
        if !row.get::<_, bool>(0) {
            return Instant::now();
        }
        assert!(Instant::now() < end, "the standby is not promoted");
        thread::sleep(Duration::from_millis(1));
    }
}

/// One round: milliseconds from the promotion to the first write.
fn round(planned: bool) -> u128 {
    let cluster = Cluster::start(&[Role::Standby]);
    let (primary, standby) = (cluster.primary(), cluster.node("standby"));
    cluster.execute("create table written (i bigint primary key); grant all on written to public");
    // Only with synchronous replication is a missing write anybody's fault but the network's.
    cluster.execute("alter system set synchronous_standby_names = '*'");
    cluster.execute("select pg_reload_conf()");
    let proxy = Config::new(&cluster).start().ready();
    let mut idle = proxy.connect("app");
    idle.batch_execute("select 1").unwrap();
    let stop = AtomicBool::new(false);
    let (promoted, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| write(&proxy, &stop));
        thread::sleep(Duration::from_secs(1));
        standby.catch_up(primary);
        if planned {
            primary.stop("fast")
        } else {
            primary.kill()
        }
        thread::sleep(if planned { Duration::ZERO } else { OUTAGE });
        let promoted = promote(standby);
        thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        (promoted, writer.join().unwrap())
    });
    let first = written.acknowledged.iter().find(|(_, at)| *at > promoted).expect("writes went on").1;
    let there: Vec<i64> = standby
        .superuser()
        .query("select i from written", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let missing = written.acknowledged.iter().filter(|(i, _)| !there.contains(i)).count();
    let idle = idle.batch_execute("select 1").is_ok();
    let took = (first - promoted).as_millis();
    println!(
        "{took:5} ms  acknowledged {}, missing {missing}, connections lost {}, idle client {}",
        written.acknowledged.len(),
        written.lost,
        if idle { "lives" } else { "LOST" }
    );
    took
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    let rounds: usize = value("--rounds").map_or(20, |n| n.parse().expect("--rounds takes a number"));
    let planned = match value("--kind").map(String::as_str) {
        None | Some("crash") => false,
        Some("planned") => true,
        Some(other) => panic!("--kind is crash or planned, not {other}"),
    };
    let mut all: Vec<u128> = (0..rounds.max(1)).map(|_| round(planned)).collect();
    all.sort_unstable();
    println!("median {} ms, worst {} ms of {} rounds", all[all.len() / 2], all[all.len() - 1], all.len());
}
