//! The console beside PgBouncer's own: what both say to the same commands.

use super::{columns, console, login, with_console};
use helios_tests::raw::{Next, call, message, parse, query, sync};
use helios_tests::{Cluster, Message, PgBouncer, Raw};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

const SUBJECTS: &[&str] = &[
    "CONFIG",
    "DATABASES",
    "POOLS",
    "CLIENTS",
    "SERVERS",
    "SOCKETS",
    "ACTIVE_SOCKETS",
    "USERS",
    "VERSION",
    "LISTS",
    "MEM",
    "DNS_HOSTS",
    "DNS_ZONES",
    "STATS_TOTALS",
    "STATS_AVERAGES",
    "TOTALS",
    "client_encoding",
    "DateStyle",
    "timezone",
    "standard_conforming_strings",
];

/// What is said in the order in which it is said here: some of it changes what is said to the next.
const COMMANDS: &[&str] = &[
    "nonsense",
    "",
    ";",
    " ; ",
    "SHOW",
    "SHOW nothing",
    "SHOW POOLS x",
    "SHOW POOLS;;",
    "SHOW VERSION; SHOW VERSION",
    "SHOW 'version'",
    "SELECT 1",
    "BEGIN",
    "/* x */ SHOW VERSION",
    "SET",
    "SET a b",
    "RELOAD x",
    "PAUSE 'postgres'",
    "RESUME",
    "RESUME postgres",
    "PAUSE",
    "PAUSE",
    "RESUME",
    "RESUME",
    "pause postgres;",
    "PAUSE postgres",
    "RESUME",
    "resume \"postgres\"",
    "RESUME postgres",
    "RECONNECT",
    "RECONNECT postgres",
    "KILL postgres",
    "RESUME postgres",
    "KILL",
    "KILL nope",
    "PAUSE nope",
    "RESUME nope",
    "RECONNECT nope",
    "PAUSE POSTGRES",
    "PAUSE pgbouncer",
    "RESUME pgbouncer",
    "RECONNECT pgbouncer",
    "KILL pgbouncer",
    "RELOAD",
];

/// Of each message its type, and of errors what a client goes by. Rows are the poolers' own.
fn said(messages: &[Message]) -> Vec<String> {
    let of = |message: &Message| match message.tag {
        b'E' => format!("E {} {:?}", message.sqlstate(), message.error()),
        b'C' => format!("C {}", String::from_utf8_lossy(&message.body)),
        b'T' => format!("T {:?}", message.body),
        tag => char::from(tag).to_string(),
    };
    messages.iter().filter(|message| message.tag != b'D').map(of).collect()
}

/// Both, with a client that has used the database, so that both know it.
fn both(cluster: &Cluster) -> (PgBouncer, helios_tests::Proxy) {
    let (bouncer, proxy) = (PgBouncer::start(cluster.primary()), with_console(cluster).start().ready());
    for port in [bouncer.port, proxy.port()] {
        helios_tests::cluster::client_config(port, "app")
            .connect(postgres::NoTls)
            .unwrap()
            .simple_query("select 1")
            .unwrap();
    }
    (bouncer, proxy)
}

#[test]
fn columns_and_types_are_those_of_pgbouncer() {
    let (bouncer, proxy) = both(Cluster::shared());
    for role in ["ops", "watch"] {
        let (mut theirs, mut ours) = (console(bouncer.port, role), console(proxy.port(), role));
        for subject in SUBJECTS {
            let command = format!("SHOW {subject}");
            assert_eq!(said(&ours.query(&command)), said(&theirs.query(&command)), "{role}: {command}");
        }
        let stats = |raw: &mut Raw| raw.query("SHOW STATS").into_iter().find(|m| m.tag == b'T').unwrap();
        let (theirs, ours) = (stats(&mut theirs), stats(&mut ours));
        let (known, all) = (columns(&theirs), columns(&ours));
        // One more, at the end, for exporters that were written for PgBouncer before 1.8.
        assert_eq!(all, [known.as_slice(), &["total_requests".to_owned()]].concat());
        assert_eq!(ours.body[2..theirs.body.len()], theirs.body[2..], "types");
    }
}

#[test]
fn commands_and_errors_are_answered_as_pgbouncer_answers() {
    let (bouncer, proxy) = both(Cluster::shared());
    for role in ["watch", "ops"] {
        let (mut theirs, mut ours) = (console(bouncer.port, role), console(proxy.port(), role));
        for command in COMMANDS.iter().chain(&["SHOW HELP"]) {
            assert_eq!(said(&ours.query(command)), said(&theirs.query(command)), "{role}: {command}");
        }
        if role == "watch" {
            for command in ["SHOW FDS", "SHUTDOWN", "DISABLE postgres", "SET a = b"] {
                assert_eq!(said(&ours.query(command)), said(&theirs.query(command)), "{role}: {command}");
            }
        }
    }
}

#[test]
fn a_client_is_greeted_and_refused_as_by_pgbouncer() {
    let (bouncer, proxy) = both(Cluster::shared());
    let names = |port: u16| {
        let hello = login(port, "pgbouncer", "watch").unwrap().1;
        let shown = hello.parameters.into_iter().filter(|(name, _)| name != "server_version");
        shown.collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(names(proxy.port()), names(bouncer.port));
    let refused = |port: u16| {
        let error = login(port, "pgbouncer", "other").map(drop).expect_err("not among the users");
        (error.sqlstate(), error.error())
    };
    assert_eq!(refused(proxy.port()), refused(bouncer.port));
}

#[test]
fn several_messages_at_once_are_answered_one_by_one_as_by_pgbouncer() {
    let (bouncer, proxy) = both(Cluster::shared());
    let answers = |port: u16| {
        let mut raw = console(port, "watch");
        raw.send(&[query("SHOW MEM"), query("x"), query("SHOW DNS_ZONES")].concat());
        said(&raw.until_ready(3))
    };
    assert_eq!(answers(proxy.port()), answers(bouncer.port));
}

#[test]
fn the_extended_protocol_is_refused_up_to_its_sync_and_the_session_lives() {
    let (bouncer, proxy) = both(Cluster::shared());
    let extended = [parse("", "SHOW VERSION"), call("", &[])].concat();
    let first = |port: u16| {
        let mut raw = console(port, "ops");
        raw.send(&[extended.clone(), query("PAUSE"), sync()].concat());
        let Next::Message(error) = raw.next(LONG) else { panic!("no answer") };
        ((error.sqlstate(), error.error()), raw)
    };
    let ((theirs, _), (ours, mut raw)) = (first(bouncer.port), first(proxy.port()));
    assert_eq!(ours, theirs);
    // PgBouncer ends the session here; the Query before the Sync was not executed.
    assert_eq!(said(&raw.until_ready(1)), ["Z"]);
    assert_eq!(super::failure(&mut raw, "RESUME").1, "pooler is not paused/suspended");
    raw.send(&[message(b'F', &[0; 8]), message(b'H', b""), message(b'd', b"x"), sync()].concat());
    assert_eq!(raw.until_ready(2).iter().map(|m| m.tag).collect::<Vec<_>>(), b"EZZ");
    assert_eq!(super::tag(&mut raw, "SHOW VERSION"), "SHOW");
    raw.send(&message(b'X', b""));
    assert!(matches!(raw.next(LONG), Next::Closed));
}

#[test]
fn a_message_that_is_too_long_or_of_no_known_type_ends_the_session() {
    let proxy = with_console(Cluster::shared()).start().ready();
    for bytes in [&b"Q\x00\x01\x00\x01"[..], b"Q\xff\xff\xff\xff", b"Q\0\0\0\x03", b"~\0\0\0\x04"] {
        let mut raw = console(proxy.port(), "ops");
        raw.send(bytes);
        let Next::Message(error) = raw.next(LONG) else { panic!("no answer to {bytes:?}") };
        assert_eq!(
            (error.sqlstate(), error.error().0),
            ("08P01".to_owned(), "FATAL".to_owned()),
            "{bytes:?}"
        );
        assert!(matches!(raw.next(LONG), Next::Closed), "{bytes:?}");
    }
}
