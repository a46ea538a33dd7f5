//! What is ordered on the console: that it happens, to whom it happens, and that nobody loses anything by it.

use super::{LONG, console, failure, login, pool, row, rows, tag, with_console};
use helios_tests::raw::{Next, packet, query};
use helios_tests::{Cluster, Heliosctl, Load, Proxy, Raw, eventually, free_port};
use postgres::SimpleQueryMessage;
use std::net::SocketAddr;

/// A proxy with a console and a place for `heliosctl`, and its file.
fn operated(cluster: &Cluster) -> (Proxy, Heliosctl, String) {
    let port = free_port();
    let text =
        format!("{}[management]\nlisten_address = \"127.0.0.1:{port}\"\n", with_console(cluster).text());
    (Proxy::start(&text).ready(), Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port))), text)
}

fn servers(console: &mut Raw) -> u32 {
    // A pool that has neither clients nor servers is not shown.
    let Some(pool) = pool(console) else { return 0 };
    ["sv_active", "sv_idle", "sv_login"].iter().map(|name| pool[*name].parse::<u32>().unwrap()).sum()
}

#[test]
fn a_pause_under_load_closes_every_server_connection_and_no_client_notices() {
    let cluster = Cluster::start(&[]);
    Load::prepare(&cluster);
    let (proxy, ctl, _) = operated(&cluster);
    let mut ops = console(proxy.port(), "ops");
    let load = Load::start(8, &[&proxy]);
    load.go_on(20);
    for (pause, resume) in [("PAUSE", "RESUME"), ("PAUSE postgres", "RESUME postgres")] {
        assert_eq!(tag(&mut ops, pause), "PAUSE");
        assert_eq!(servers(&mut ops), 0, "{pause}");
        let issued = load.issued();
        let waiting = || pool(&mut console(proxy.port(), "watch")).unwrap()["cl_waiting"].clone();
        eventually(LONG, "every client waits", || waiting() == "8");
        assert!(load.issued() <= issued + 8, "{pause}: nothing goes on");
        assert_eq!(row(&mut ops, "SHOW DATABASES", &[("name", "postgres")])["paused"], "1");
        assert_eq!(tag(&mut ops, resume), "RESUME");
        assert_eq!(row(&mut ops, "SHOW DATABASES", &[("name", "postgres")])["paused"], "0");
        load.go_on(20);
    }
    assert_eq!(tag(&mut ops, "RECONNECT"), "RECONNECT");
    load.go_on(20);
    assert_eq!(tag(&mut ops, "RECONNECT postgres"), "RECONNECT");
    load.go_on(20);
    let outcome = load.finish();
    outcome.nothing_failed();
    outcome.check(cluster.primary());
    // Who, from where, what: for the operator of the audit log.
    let audit = ctl.run(&["audit", "-o", "json"]).code(0).out;
    for words in ["PAUSE", "RESUME", "RECONNECT", "\"ops\"", "(console)"] {
        assert!(audit.contains(words), "{words} in {audit}");
    }
    let _ = proxy.said("verb=\"PAUSE\" detail=postgres outcome=ok");
}

#[test]
fn what_is_paused_on_the_console_heliosctl_sees_and_resumes() {
    let (proxy, ctl, _) = operated(Cluster::shared());
    let mut ops = console(proxy.port(), "ops");
    assert_eq!(tag(&mut ops, "PAUSE"), "PAUSE");
    assert!(ctl.run(&["pool", "list"]).code(0).out.contains("paused"));
    let _ = ctl.run(&["pool", "resume", "--all"]).code(0);
    assert_eq!(failure(&mut ops, "RESUME").1, "pooler is not paused/suspended");
}

#[test]
fn reconnect_leaves_no_old_connection() {
    let cluster = Cluster::shared();
    let proxy = with_console(cluster).start().ready();
    let mut ops = console(proxy.port(), "ops");
    let mut client = proxy.connect("app");
    let mut pid = || {
        let said = client.simple_query("select pg_backend_pid()").unwrap();
        said.iter().find_map(|m| {
            if let SimpleQueryMessage::Row(row) = m { Some(row.get(0)?.to_owned()) } else { None }
        })
    };
    let mut last = pid();
    assert_eq!(last, pid(), "one connection is used again and again");
    for command in ["RECONNECT", "RECONNECT postgres"] {
        assert_eq!(tag(&mut ops, command), "RECONNECT");
        let next = pid();
        assert_ne!(next, last, "{command}");
        last = next;
    }
}

#[test]
fn a_pause_waits_for_open_transactions_and_the_wait_can_be_cancelled_or_left() {
    let proxy = with_console(Cluster::shared()).start().ready();
    let mut client = proxy.connect("app");
    let mut watch = console(proxy.port(), "watch");
    for (pause, resume) in [("PAUSE", "RESUME"), ("PAUSE postgres", "RESUME postgres")] {
        client.batch_execute("begin; select 1").unwrap();
        let (mut ops, hello) = login(proxy.port(), "pgbouncer", "ops").unwrap();
        ops.send(&query(pause));
        let paused = |watch: &mut Raw| row(watch, "SHOW DATABASES", &[("name", "postgres")])["paused"] == "1";
        eventually(LONG, "the pause has begun", || paused(&mut watch));
        // Were it not waiting, the answer would not be that of a cancel.
        let mut cancel = 80_877_102u32.to_be_bytes().to_vec();
        cancel.extend_from_slice(&hello.pid.to_be_bytes());
        cancel.extend_from_slice(&hello.key);
        Raw::connect(proxy.port()).send(&packet(&cancel));
        assert_eq!(ops.until_ready(1)[0].sqlstate(), "57014");
        assert!(paused(&mut watch), "the pause goes on");
        assert_eq!(tag(&mut ops, resume), "RESUME");
        // One that leaves ends its wait only; one that stays is answered once the transaction is over.
        ops.send(&query(pause));
        eventually(LONG, "the pause has begun", || paused(&mut watch));
        drop(ops);
        eventually(LONG, "who paused has left", || {
            !rows(&mut watch, "SHOW CLIENTS").iter().any(|client| client["user"] == "ops")
        });
        assert!(paused(&mut watch));
        let mut ops = console(proxy.port(), "ops");
        assert_eq!(tag(&mut ops, resume), "RESUME");
        ops.send(&query(pause));
        eventually(LONG, "the pause has begun", || paused(&mut watch));
        client.batch_execute("commit").unwrap();
        assert_eq!(ops.until_ready(1)[0].tag, b'C', "{pause}");
        assert_eq!(tag(&mut ops, resume), "RESUME");
    }
}

#[test]
fn a_pause_that_somebody_ends_is_told_to_who_waits_for_it() {
    let proxy = with_console(Cluster::shared()).start().ready();
    let mut client = proxy.connect("app");
    client.batch_execute("begin; select 1").unwrap();
    let (mut first, mut second) = (console(proxy.port(), "ops"), console(proxy.port(), "ops"));
    first.send(&query("PAUSE"));
    eventually(LONG, "the pause has begun", || {
        second.query("RESUME").iter().any(|message| message.tag == b'C')
    });
    assert_eq!(first.until_ready(1)[0].sqlstate(), "55000");
    client.batch_execute("commit; select 1").unwrap();
}

#[test]
fn kill_ends_clients_and_servers_of_one_database_and_pauses_it() {
    let cluster = Cluster::shared();
    let proxy = with_console(cluster).start().ready();
    let mut ops = console(proxy.port(), "ops");
    cluster.execute("create database beside_killed");
    let mut config = proxy.config("app");
    let mut other = config.dbname("beside_killed").connect(postgres::NoTls).unwrap();
    other.batch_execute("begin; select 1").unwrap();
    let mut idle = proxy.connect("app");
    idle.simple_query("select 1").unwrap();
    let mut open = proxy.connect("app");
    open.batch_execute("begin; select 1").unwrap();
    let (mut busy, _) = proxy.raw("app");
    let pid = busy.query("select pg_backend_pid()")[1].fields()[0].clone();
    busy.send(&query("select pg_sleep(600) /* killed */"));
    let runs = "select pid from pg_stat_activity where query like '%pg_sleep(600) /* killed */%' and pid <> pg_backend_pid()";
    let backends = || cluster.primary().superuser().query(runs, &[]).unwrap().len();
    eventually(LONG, "the statement runs", || backends() == 1);
    assert_eq!(tag(&mut ops, "KILL postgres"), "KILL");
    let Next::Message(error) = busy.next(LONG) else { panic!("closed without a word") };
    assert_eq!(error.sqlstate(), "57P01");
    for client in [&mut idle, &mut open] {
        assert!(client.simple_query("select 1").is_err());
    }
    eventually(LONG, "no server is left", || servers(&mut ops) == 0);
    eventually(LONG, "nor its statement", || backends() == 0);
    assert!(!rows(&mut ops, "SHOW SERVERS").iter().any(|server| server["remote_pid"] == pid));
    other.batch_execute("commit; select 1").unwrap();
    // Who comes now waits for the end of the pause.
    let later = proxy.config("app");
    let waiting = std::thread::spawn(move || later.connect(postgres::NoTls)?.simple_query("select 1"));
    eventually(LONG, "one waits", || {
        row(&mut ops, "SHOW LISTS", &[("list", "login_clients")])["items"] == "1"
    });
    assert_eq!(tag(&mut ops, "RESUME postgres"), "RESUME");
    assert!(waiting.join().unwrap().is_ok());
}

#[test]
fn kill_client_ends_one() {
    let proxy = with_console(Cluster::shared()).start().ready();
    let mut ops = console(proxy.port(), "ops");
    let named = |name: &str| proxy.config("app").application_name(name).connect(postgres::NoTls).unwrap();
    let (mut one, mut two) = (named("one"), named("two"));
    let ptr = row(&mut ops, "SHOW CLIENTS", &[("application_name", "one")])["ptr"].clone();
    assert_eq!(
        failure(&mut console(proxy.port(), "watch"), &format!("KILL_CLIENT {ptr}")).1,
        "admin access needed"
    );
    assert_eq!(tag(&mut ops, &format!("KILL_CLIENT {ptr}")), "KILL_CLIENT");
    eventually(LONG, "it is gone", || {
        !rows(&mut ops, "SHOW CLIENTS").iter().any(|client| client["application_name"] == "one")
    });
    assert!(one.simple_query("select 1").is_err());
    two.simple_query("select 1").unwrap();
    for (command, words) in [
        ("KILL_CLIENT 0x0", "no such client: 0x0"),
        ("KILL_CLIENT", "a client is required"),
        ("KILL_CLIENT 0xfffffffff", "no such client"),
    ] {
        assert!(failure(&mut ops, command).1.contains(words), "{command}");
    }
}

#[test]
fn what_is_done_elsewhere_is_refused_with_the_way_there() {
    let proxy = with_console(Cluster::shared()).start().ready();
    let mut ops = console(proxy.port(), "ops");
    for command in [
        "SHUTDOWN",
        "SUSPEND",
        "WAIT_CLOSE",
        "SET a = 'b'",
        "DISABLE postgres",
        "ENABLE postgres",
        "SHOW FDS",
    ] {
        let (code, text) = failure(&mut ops, command);
        assert!(code == "0A000" && text.ends_with("is not supported"), "{command}: {code} {text}");
    }
}

#[test]
fn reload_reads_the_file_again_or_says_why_not() {
    let (proxy, ctl, good) = operated(Cluster::shared());
    let mut ops = console(proxy.port(), "ops");
    let size = |raw: &mut Raw| row(raw, "SHOW CONFIG", &[("key", "default_pool_size")])["value"].clone();
    assert_eq!(size(&mut ops), "10");
    proxy.rewrite(&good.replace("max_pool_size = 10", "max_pool_size = 7"));
    assert_eq!(tag(&mut ops, "RELOAD"), "RELOAD");
    eventually(LONG, "the new size", || size(&mut ops) == "7");
    proxy.rewrite(&good.replace("max_pool_size", "max_pool_sze"));
    let (code, text) = failure(&mut ops, "RELOAD");
    assert_eq!((code.as_str(), text.as_str()), ("F0000", "configuration not reloaded, the old one stays"));
    assert_eq!(size(&mut ops), "7");
    let audit = ctl.run(&["audit", "-o", "json"]).code(0).out;
    assert!(audit.contains("max_pool_sze"), "why it failed: {audit}");
}

#[test]
fn a_proxy_that_stops_ends_its_consoles_and_does_not_wait_for_them() {
    let mut proxy = with_console(Cluster::shared()).start().ready();
    let mut client = proxy.connect("app");
    client.batch_execute("begin; select 1").unwrap();
    let (mut resting, mut waiting) = (console(proxy.port(), "watch"), console(proxy.port(), "ops"));
    waiting.send(&query("PAUSE"));
    eventually(LONG, "the pause has begun", || {
        row(&mut resting, "SHOW DATABASES", &[("name", "postgres")])["paused"] == "1"
    });
    proxy.terminate();
    for raw in [&mut resting, &mut waiting] {
        let Next::Message(error) = raw.next(LONG) else { panic!("closed without a word") };
        assert_eq!(error.sqlstate(), "57P01");
    }
    client.batch_execute("commit").unwrap();
    assert!(proxy.wait(LONG).success());
}
