//! A short part of `make soak`: many kinds of statements over few servers, every answer its own; and cancels that race
//! with the statements of others. Never measures a time.

use std::sync::atomic::Ordering;

use helios_tests::soak::{Seen, Until, run};
use helios_tests::{Cluster, Config, Raw, loudly, races};

const SEED: u64 = 1;

fn looked(seen: &Seen, least: u64) {
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    assert!(
        count(&seen.answers) > least && count(&seen.sessions) > 0 && count(&seen.settings) > 0,
        "{seen:?}"
    );
    assert!(count(&seen.cancels) > 0 && count(&seen.cancelled) > 0, "{seen:?}");
    loudly(&format!("soak: {seen:?}"));
}

#[test]
fn every_answer_is_its_own_under_a_mixed_load() {
    let proxy = Config { pool: 3, acquire_timeout: 60, ..Config::new(Cluster::shared()) }.start().ready();
    looked(&run(&proxy, 8, Until { rounds: 200, end: None, seed: SEED }), 2000);
}

#[test]
fn every_answer_is_its_own_in_session_mode_too() {
    let config = Config { mode: "session", pool: 16, acquire_timeout: 60, ..Config::new(Cluster::shared()) };
    let proxy = config.start().ready();
    looked(&run(&proxy, 4, Until { rounds: 150, end: None, seed: SEED }), 500);
}

#[test]
fn cancels_that_race_hit_nobody_else() {
    let proxy = Config { pool: 3, acquire_timeout: 60, ..Config::new(Cluster::shared()) }.start().ready();
    let races = races::run(&proxy, 4, 2000, Until { rounds: u64::MAX, end: None, seed: SEED });
    assert!(races.hit.load(Ordering::Relaxed) > 0 && races.wrong.load(Ordering::Relaxed) > 0, "{races:?}");
    loudly(&format!("races: {races:?}"));
}

#[test]
fn a_cancel_ends_the_wait_for_a_server_and_nothing_else() {
    let proxy = Config { pool: 1, acquire_timeout: 60, ..Config::primary_only(Cluster::shared()) };
    let proxy = proxy.start().ready();
    let (mut holder, _) = proxy.raw("app");
    holder.query("begin");
    let (mut queued, hello) = proxy.raw("app");
    let mut request = Vec::new();
    helios_pgwire::frontend::cancel(&mut request, hello.pid, &hello.key);
    for _ in 0..20 {
        queued.send(&helios_tests::raw::query("select 'queued'"));
        // Until it has been heard: a cancel may come before the statement.
        let answer = (0..1000).find_map(|_| {
            let mut cancel = Raw::connect(proxy.port());
            cancel.send(&request);
            cancel.rest(helios_tests::raw::PATIENCE);
            match queued.next(std::time::Duration::from_millis(20)) {
                helios_tests::raw::Next::Message(message) => Some(message),
                helios_tests::raw::Next::Silence => None,
                helios_tests::raw::Next::Closed => panic!("the session ended"),
            }
        });
        assert_eq!(answer.expect("cancelled").sqlstate(), "57014");
        queued.until_ready(1);
        assert!(holder.query("select 1").iter().all(|m| m.tag != b'E'), "the holder goes on");
    }
    holder.query("commit");
    assert!(queued.query("select 1").iter().all(|m| m.tag != b'E'));
}
