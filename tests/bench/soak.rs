//! A mixed load for a long time, beside it cancel requests that race:
//! `soak [--seconds N] [--clients N] [--servers N] [--races N] [--seed N]`. Every answer carries its own token; the first one
//! that does not, and the first foreign cancel, end the run with an error. Prints what was checked, and the proxies' memory.
//! Never retries, and never measures a latency.
// A program for people: a broken assumption stops it, loudly.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use helios_tests::soak::{Until, run};
use helios_tests::{Cluster, Config, Role, races};

fn option(args: &[String], name: &str, default: u64) -> u64 {
    let at = args.iter().position(|arg| arg == name);
    at.map_or(default, |at| args.get(at + 1).and_then(|n| n.parse().ok()).expect("a number behind an option"))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let known = ["--seconds", "--clients", "--servers", "--races", "--seed"];
    let unknown = args.iter().step_by(2).find(|arg| !known.contains(&arg.as_str()));
    assert!(unknown.is_none(), "unknown option {unknown:?}; there are {known:?}, each with a number");
    let (seconds, clients) = (option(&args, "--seconds", 3600), option(&args, "--clients", 24));
    let requests = option(&args, "--races", 100_000);
    let cluster = Cluster::start(&[Role::Replica]);
    let pool = u32::try_from(option(&args, "--servers", 6)).unwrap();
    let shared = Config { pool, acquire_timeout: 60, ..Config::new(&cluster) }.start().ready();
    // Each client of it, and the other session that some rounds need, has a server.
    let few = clients.div_ceil(4);
    let own = u32::try_from(few * 4).unwrap();
    let session = Config { mode: "session", pool: own, acquire_timeout: 60, ..Config::new(&cluster) };
    let session = session.start().ready();
    let raced_at = Config { pool: 4, acquire_timeout: 60, ..Config::new(&cluster) }.start().ready();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let (mut part, mut answers, mut raced, mut spared) = (option(&args, "--seed", 0), 0, 0, 0);
    while Instant::now() < end {
        part += 1;
        let until = Until {
            rounds: u64::MAX,
            end: Some(end.min(Instant::now() + Duration::from_secs(60))),
            seed: part,
        };
        let left = requests.saturating_sub(raced);
        let (mixed, sessions, races) = std::thread::scope(|scope| {
            let mixed = scope.spawn(|| run(&shared, clients, until));
            let sessions = scope.spawn(|| run(&session, few, until));
            let races = scope.spawn(|| races::run(&raced_at, if left == 0 { 0 } else { 8 }, left, until));
            (mixed.join().unwrap(), sessions.join().unwrap(), races.join().unwrap())
        });
        answers += mixed.answers.load(Ordering::Relaxed) + sessions.answers.load(Ordering::Relaxed);
        raced += races.sent.load(Ordering::Relaxed);
        spared += races.spared.load(Ordering::Relaxed);
        println!("seed {part}, transaction mode: {mixed:?}, {} KiB resident", shared.rss_kib());
        println!("seed {part}, session mode: {sessions:?}, {} KiB resident", session.rss_kib());
        println!("seed {part}, races: {races:?}");
    }
    let pinned = shared.metrics().sum("heliosproxy_pinned_total", &[]).unwrap_or_default();
    println!(
        "{} s: {answers} answers, all of them their own; {raced} cancel requests raced, none of {spared} bystanders' \
         statements was hit; {pinned} sessions were pinned",
        begun.elapsed().as_secs()
    );
}
