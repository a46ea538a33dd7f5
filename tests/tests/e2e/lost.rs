//! A server connection breaks under a client: what the client is told, and that its session lives on.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use helios_tests::raw::{Message, Next, PATIENCE, Raw, message, query};
use helios_tests::relay::{self, Between};
use helios_tests::{Cluster, Config, Proxy, eventually};

fn proxy() -> Proxy {
    Config { pool: 5, ..Config::primary_only(Cluster::shared()) }.start().ready()
}

pub(super) fn seen(messages: &[Message]) -> Vec<String> {
    let text = |m: &Message| String::from_utf8_lossy(&m.body).trim_end_matches('\0').to_owned();
    messages
        .iter()
        .filter(|m| !matches!(m.tag, b'S' | b'T'))
        .map(|m| match m.tag {
            b'E' => format!("E:{}", m.sqlstate()),
            b'C' | b'Z' => format!("{}:{}", char::from(m.tag), text(m)),
            b'D' => format!("D:{}", m.fields().join(",")),
            tag => char::from(tag).to_string(),
        })
        .collect()
}

pub(super) fn ask(raw: &mut Raw, bytes: &[u8], readies: usize) -> Vec<String> {
    raw.send(bytes);
    seen(&raw.until_ready(readies))
}

/// Ends every backend of the proxy's clients that runs or ran something with this mark.
fn end_backend(mark: &str) {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where pid <> pg_backend_pid() and query like '%{mark}%' and backend_type = 'client backend'"
    );
    eventually(Duration::from_secs(10), mark, || {
        let rows = Cluster::shared().primary().superuser().query(&sql, &[]).unwrap();
        rows.iter().any(|row| row.get(0))
    });
}

pub(super) fn extended(parts: &[(u8, &[u8])]) -> Vec<u8> {
    parts.iter().flat_map(|(tag, body)| message(*tag, body)).collect()
}

pub(super) fn one_shot(sql: &str) -> Vec<u8> {
    let parse = [b"\0", sql.as_bytes(), b"\0\0\0"].concat();
    extended(&[(b'P', &parse), (b'B', &[0; 8]), (b'D', b"P\0"), (b'E', &[0; 5]), (b'S', b"")])
}

fn named(sql: &str) -> Vec<u8> {
    let parse = [b"exit\0", sql.as_bytes(), b"\0\0\0"].concat();
    extended(&[(b'P', &parse), (b'B', b"\0exit\0\0\0\0\0\0\0"), (b'E', &[0; 5]), (b'S', b"")])
}

#[test]
fn an_open_transaction_is_told_once_and_behaves_as_failed_until_it_ends() {
    let proxy = proxy();
    let (mut raw, _) = proxy.raw("app");
    for (n, (what, first, exit, expected)) in [
        ("told by the next statement", query("select 1"), query("commit"), vec!["E:40001", "Z:E"]),
        ("told by an extended one", one_shot("select 1"), query("rollback"), vec!["E:40001", "Z:E"]),
        ("told by the commit", query("commit"), query("select 1"), vec!["E:40001", "Z:I"]),
        ("told by an extended commit", one_shot("COMMIT"), query("select 1"), vec!["E:40001", "Z:I"]),
        ("not told: it was rolled back", query("rollback"), query("select 1"), vec!["C:ROLLBACK", "Z:I"]),
        (
            "the same, extended",
            one_shot("rollback"),
            query("select 1"),
            vec!["1", "2", "n", "C:ROLLBACK", "Z:I"],
        ),
        ("the same, by name", named("abort"), query("select 1"), vec!["1", "2", "C:ROLLBACK", "Z:I"]),
    ]
    .into_iter()
    .enumerate()
    {
        raw.query("begin");
        raw.query(&format!("select 'open {n}.'"));
        end_backend(&format!("open {n}."));
        let noticed = || proxy.logged("lost a server connection in use").len() == n + 1;
        eventually(PATIENCE, what, noticed);
        assert_eq!(ask(&mut raw, &first, 1), expected, "{what}");
        if expected.ends_with(&["Z:E"]) {
            assert_eq!(ask(&mut raw, &query("select 2"), 1), ["E:25P02", "Z:E"], "{what}");
            assert_eq!(ask(&mut raw, &one_shot("savepoint a"), 1), ["E:25P02", "Z:E"], "{what}");
            assert_eq!(ask(&mut raw, &exit, 1), ["C:ROLLBACK", "Z:I"], "{what}");
        }
        assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"], "{what}");
    }
    let close = extended(&[(b'C', b"Sexit\0"), (b'S', b"")]);
    assert_eq!(ask(&mut raw, &close, 1), ["3", "Z:I"]);
}

#[test]
fn what_was_on_its_way_gets_the_code_that_says_what_is_known() {
    let proxy = proxy();
    Cluster::shared().execute("create table if not exists lost (x text); grant all on lost to app");
    for (mark, before, sent, readies, expected) in [
        (
            "a write",
            "",
            query("insert into lost select 'a write' from pg_sleep(30)"),
            1,
            vec!["E:40003", "Z:I"],
        ),
        ("in a block", "begin", query("select 'in a block', pg_sleep(30)"), 1, vec!["E:40001", "Z:E"]),
        (
            "a pipeline",
            "",
            [one_shot("insert into lost select 'a pipeline' from pg_sleep(30)"), one_shot("select 1")]
                .concat(),
            2,
            vec!["1", "2", "n", "E:40003", "Z:I", "E:40003", "Z:I"],
        ),
    ] {
        let (mut raw, _) = proxy.raw("app");
        if !before.is_empty() {
            raw.query(before);
        }
        raw.send(&sent);
        end_backend(&format!("{mark}''%pg_sleep"));
        let got = seen(&raw.until_ready(readies));
        let got: Vec<_> = got.iter().filter(|m| !["1", "2", "n"].contains(&m.as_str())).collect();
        let expected: Vec<_> = expected.iter().filter(|m| !["1", "2", "n"].contains(*m)).collect();
        assert_eq!(got, expected, "{mark}");
        raw.query("rollback");
        assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"], "{mark}");
    }
}

#[test]
fn a_commit_on_its_way_is_in_doubt() {
    let proxy = proxy();
    Cluster::shared().execute(
        "create table if not exists slow (x int);
         create or replace function slow() returns trigger language plpgsql as
           $$ begin perform pg_sleep(30); return null; end $$;
         drop trigger if exists slow on slow;
         create constraint trigger slow after insert on slow deferrable initially deferred
           for each row execute function slow();
         grant all on slow to app",
    );
    let (mut raw, _) = proxy.raw("app");
    raw.query("begin");
    raw.query("insert into slow values (1)");
    raw.send(&query("commit /* in doubt */"));
    end_backend("in doubt");
    assert_eq!(seen(&raw.until_ready(1)), ["E:08007", "Z:I"]);
    assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"]);
}

#[test]
fn a_session_that_lost_state_of_its_own_ends() {
    let proxy = proxy();
    let (mut raw, _) = proxy.raw("app");
    raw.query("create temp table mine (x int)");
    raw.query("select 'pinned session'");
    end_backend("pinned session");
    loop {
        match raw.next(PATIENCE) {
            Next::Message(m) => assert_eq!(m.sqlstate(), "57P01"),
            Next::Closed => break,
            Next::Silence => panic!("still there"),
        }
    }
}

#[test]
fn a_read_that_had_no_answer_yet_runs_again() {
    let proxy = proxy();
    Cluster::shared().execute("create table if not exists held (x int); grant all on held to app");
    let mut locker = Cluster::shared().primary().superuser();
    let mut lock = locker.transaction().unwrap();
    lock.batch_execute("lock table held").unwrap();
    let (mut raw, _) = proxy.raw("app");
    raw.send(&query("select count(*) >= 0, 'held read' from held"));
    end_backend("held read");
    lock.commit().unwrap();
    assert_eq!(seen(&raw.until_ready(1)), ["D:t,held read", "C:SELECT 1", "Z:I"]);
}

/// Where bytes pass to `server`, until some have this mark: their connection is reset.
fn resetting(server: u16, mark: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut near, _)) = listener.accept() {
            let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
            let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let mut buf = [0; 4096];
                // A socket that is closed before all was read is reset (RFC 2525, 2.17).
                while let Ok(n @ 1..) = near.peek(&mut buf) {
                    if buf[..n].windows(mark.len()).any(|part| part == mark) {
                        break;
                    }
                    let Ok(n) = near.read(&mut buf[..n]) else { break };
                    if far.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
                let _ = far.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

#[test]
fn statements_that_could_not_be_sent_are_answered_once() {
    const BEHIND: usize = 30_000;
    let primary = Cluster::shared().primary();
    let port = resetting(primary.port, b"reset here");
    let config = Config { pool: 5, ..Config::primary_only(Cluster::shared()) };
    let text = config.text().replace(&format!("port = {}", primary.port), &format!("port = {port}"));
    let proxy = Proxy::start(&text).ready();
    for round in 0..10 {
        let (mut raw, _) = proxy.raw("app");
        raw.query("begin");
        // More than goes out at once, so that the reset is met by a write.
        let behind = query("select 2").repeat(BEHIND);
        raw.send(&[query("select 'reset here'"), behind, query("rollback")].concat());
        let got = seen(&raw.until_ready(BEHIND + 2));
        let (answers, end) = got.split_at(2 * (BEHIND + 1));
        for (n, answer) in answers.chunks(2).enumerate() {
            assert!(matches!(answer[0].as_str(), "E:40001" | "E:25P02"), "{round}, {n}: {answer:?}");
            assert_eq!(answer[1], "Z:E", "{round}, {n}");
        }
        assert_eq!(end, ["C:ROLLBACK", "Z:I"], "{round}");
        assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"], "{round}");
    }
}

/// A way to the server on which connections end right behind their login while there are `ends` left. What is sent on these
/// reaches no server.
struct Ending {
    port: u16,
    ends: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Ending {
    fn start(server: u16) -> Self {
        let (ends, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let both = (Arc::clone(&ends), Arc::clone(&open));
        let port = relay::start(server, move |between| {
            both.1.lock().unwrap().push(between.near.try_clone().unwrap());
            Self::relay(between, &both.0);
        });
        Self { port, ends, open }
    }

    fn relay(Between { mut near, mut far, probe, .. }: Between, ends: &AtomicUsize) {
        let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let mut buf = [0; 4096];
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut near, &mut far);
            let _ = far.shutdown(Shutdown::Both);
        });
        let mut logged_in = probe;
        while let Ok(n @ 1..) = answers.read(&mut buf) {
            let login = !logged_in && buf[..n].ends_with(b"Z\0\0\0\x05I");
            logged_in |= login;
            let one_less = |left: usize| left.checked_sub(1);
            let ends = login && ends.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
            if ends {
                // Before the proxy can send anything.
                let _ = answers.shutdown(Shutdown::Both);
            }
            if back.write_all(&buf[..n]).is_err() || ends {
                break;
            }
        }
        let _ = back.shutdown(Shutdown::Both);
    }

    /// Ends what is open, and so many of those that come.
    fn end(&self, more: usize) {
        self.ends.store(more, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_statement_whose_server_connection_was_dead_before_it_was_sent_runs_once() {
    let primary = Cluster::shared().primary();
    let mut superuser = primary.superuser();
    let table =
        "create table if not exists sent_late (n int); truncate sent_late; grant all on sent_late to app";
    superuser.batch_execute(table).unwrap();
    let ending = Ending::start(primary.port);
    let config = Config { pool: 1, ..Config::primary_only(Cluster::shared()) };
    let text = config.text().replace(&format!("port = {}", primary.port), &format!("port = {}", ending.port));
    let proxy = Proxy::start(&text).ready();
    let (mut raw, _) = proxy.raw("app");
    let mut executed = 0;
    for round in 0..60 {
        let n = round.to_string();
        let insert = format!("insert into sent_late values ({round}) returning n");
        let (run, done) = match round % 3 {
            0 => (query(&insert), vec![format!("D:{n}"), "C:INSERT 0 1".into(), "Z:I".into()]),
            1 => {
                let head = ["1", "2"].map(str::to_owned);
                let rest = [format!("D:{n}"), "C:INSERT 0 1".into(), "Z:I".into()];
                (one_shot(&insert), [&head[..], &rest[..]].concat())
            }
            _ => {
                (query(&format!("select {round}")), vec![format!("D:{n}"), "C:SELECT 1".into(), "Z:I".into()])
            }
        };
        // One is met by another attempt, so many by none.
        ending.end(if round % 10 == 9 { 20 } else { 1 });
        let got = ask(&mut raw, &run, 1);
        ending.ends.store(0, Ordering::SeqCst);
        let rows: i64 =
            superuser.query_one("select count(*) from sent_late where n = $1", &[&round]).unwrap().get(0);
        if got == done {
            executed += 1;
            assert_eq!(rows, i64::from(round % 3 != 2), "{round}");
        } else {
            assert!(
                matches!(got[0].as_str(), "E:08006" | "E:40003") && got[1..] == ["Z:I"],
                "{round}: {got:?}"
            );
            assert_eq!(rows, 0, "{round}: {got:?}");
        }
        // What comes next has its own answer, and nothing that had failed runs after all.
        assert_eq!(ask(&mut raw, &query("select 'next'"), 1), ["D:next", "C:SELECT 1", "Z:I"], "{round}");
        let after: i64 =
            superuser.query_one("select count(*) from sent_late where n = $1", &[&round]).unwrap().get(0);
        assert_eq!(after, rows, "{round}");
    }
    // The end may be met by a write as well, and then the statement is in doubt.
    let again = proxy.metrics().sum("heliosproxy_replays_total", &[]).unwrap_or_default();
    println!("{executed} of 60 ran, {again} attempts were taken back");
    assert!(executed > 0 && again > 0.0, "{executed} ran, {again} taken back");
    superuser.batch_execute("drop table sent_late").unwrap();
}

#[test]
fn a_read_runs_again_with_its_name_and_not_once_the_client_has_something_of_it() {
    let view =
        "create or replace view slow_view as select 1 as x from pg_sleep(3); grant all on slow_view to app";
    Cluster::shared().execute(view);
    let proxy = proxy();
    let (mut raw, _) = proxy.raw("app");
    let parse = b"st\0select 'named lost', x from slow_view\0\0\0";
    raw.send(&extended(&[(b'P', parse), (b'B', b"\0st\0\0\0\0\0\0\0"), (b'E', &[0; 5]), (b'S', b"")]));
    end_backend("named lost");
    assert_eq!(seen(&raw.until_ready(1)), ["1", "2", "D:named lost,1", "C:SELECT 1", "Z:I"]);
    // The description of its row is longer than what is held back.
    let column = |n: usize| format!(", {n} as a_column_with_a_name_of_considerable_length_{n:05}");
    let columns: String = (0..1000).map(column).collect();
    raw.send(&query(&format!("select 'wide lost', x{columns} from slow_view")));
    end_backend("wide lost");
    let got: String = raw.until_ready(1).iter().map(|message| char::from(message.tag)).collect();
    assert!(["TDCZ", "TEZ"].contains(&got.as_str()), "{got}");
    assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"]);
}

#[test]
fn what_stands_behind_a_begin_that_was_lost_is_not_run_outside_of_it() {
    const BEHIND: usize = 30_000;
    Cluster::shared().execute("create table outside (x int); grant all on outside to app");
    let primary = Cluster::shared().primary();
    let port = resetting(primary.port, b"reset here");
    let config = Config { pool: 5, ..Config::primary_only(Cluster::shared()) };
    let text = config.text().replace(&format!("port = {}", primary.port), &format!("port = {port}"));
    let proxy = Proxy::start(&text).ready();
    let (mut raw, _) = proxy.raw("app");
    let behind = query("insert into outside values (1)").repeat(BEHIND);
    raw.send(&[query("begin /* reset here */"), behind, query("rollback")].concat());
    let got = seen(&raw.until_ready(BEHIND + 2));
    assert_eq!(got[got.len() - 2..], ["C:ROLLBACK", "Z:I"]);
    assert!(!got.iter().any(|message| message.starts_with("C:INSERT")));
    let rows = primary.superuser().query_one("select count(*) from outside", &[]).unwrap();
    assert_eq!(rows.get::<_, i64>(0), 0);
    assert_eq!(ask(&mut raw, &query("select 3"), 1), ["D:3", "C:SELECT 1", "Z:I"]);
}

#[test]
fn what_stands_behind_a_begin_that_got_no_server_is_not_run_outside_of_it() {
    Cluster::shared().execute("create table queued (x int); grant all on queued to app");
    let config = Config { pool: 1, acquire_timeout: 1, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.start().ready();
    let ((mut holder, _), (mut raw, _)) = (proxy.raw("app"), proxy.raw("app"));
    holder.query("begin");
    let insert = query("insert into queued values (1)");
    raw.send(&[query("begin"), insert.clone(), query("commit")].concat());
    let got = seen(&raw.until_ready(3));
    assert_eq!(got, ["E:53300", "Z:E", "E:25P02", "Z:E", "C:ROLLBACK", "Z:I"]);
    // By itself it has failed, and that is all.
    assert_eq!(ask(&mut raw, &query("begin"), 1), ["E:53300", "Z:I"]);
    holder.query("commit");
    assert_eq!(ask(&mut raw, &query("select count(*) from queued"), 1), ["D:0", "C:SELECT 1", "Z:I"]);
}
