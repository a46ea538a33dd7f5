//! Patroni has the say: a proxy and a fleet follow its leader lock and nothing else. Patroni, etcd and PostgreSQL are real;
//! each test has a cluster of its own to break. Times are printed, never asserted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use helios_tests::controlplane::{directory, sections, token};
use helios_tests::{Config, ControlPlane, Heliosctl, Load, Node, Patroni, Pki, Proxy, eventually, free_port};
use postgres::NoTls;

const LONG: Duration = Duration::from_secs(90);
const WRITE: &str = "update counter set n = n + 1 where id = 1";
const PORT: &str = "select setting from pg_settings where name = 'port'";
const TABLE: &str = "create table written (i bigint primary key); grant all on written to public";
const CLIENTS: usize = 4;

/// A standalone proxy, and a shell beside it.
fn standalone(patroni: &Patroni, write_timeout: u32) -> (Proxy, Heliosctl) {
    let port = free_port();
    let text = Config { balancer: "slow_start_secs = 0", ..Config::of_patroni(patroni) }.text();
    let text = format!("write_timeout_secs = {write_timeout}\n{text}");
    let proxy = Proxy::start(&format!("{text}\n[management]\nlisten_address = \"127.0.0.1:{port}\"\n"));
    (proxy.ready(), Heliosctl::at(SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Where a write lands, in a session of its own.
fn writes_at(proxy: &Proxy) -> Result<u16, String> {
    let words =
        |error: postgres::Error| error.code().map_or(error.to_string(), |code| code.code().to_owned());
    let mut client = proxy.config("app").connect(NoTls).map_err(words)?;
    client.batch_execute(WRITE).map_err(words)?;
    // A transaction that may write is the primary's, whatever it reads.
    let mut transaction = client.transaction().map_err(words)?;
    let rows = transaction.query_typed(PORT, &[]).map_err(words)?;
    Ok(rows[0].get::<_, String>(0).parse().unwrap())
}

fn rows_of(node: &Node) -> i64 {
    node.superuser().query_one("select count(*) from written", &[]).unwrap().get(0)
}

fn provider_up(proxy: &Proxy) -> Option<f64> {
    proxy.metrics().sum("heliosproxy_topology_provider_up", &[])
}

#[test]
fn writes_follow_a_switchover_by_patronictl_and_one_by_heliosctl() {
    let patroni = Patroni::start(2);
    let (first, second) = (&patroni.nodes[0], &patroni.nodes[1]);
    first.superuser().batch_execute(TABLE).unwrap();
    let (proxy, ctl) = standalone(&patroni, 30);
    assert_eq!((writes_at(&proxy), provider_up(&proxy)), (Ok(first.port), Some(1.0)));
    let status = ctl.run(&["status", "-o", "json"]).json();
    assert_eq!((&status["provider"], &status["lock_holder"]), (&"patroni".into(), &"db-1".into()));

    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    let began = Instant::now();
    let done = patroni.ctl(&["switchover", "helios", "--leader", "db-1", "--candidate", "db-2", "--force"]);
    assert!(done.status.success(), "{done:?}");
    eventually(LONG, "writes go to the new leader", || writes_at(&proxy) == Ok(second.port));
    println!("patronictl switchover: writes at the new leader after {:?}", began.elapsed());
    load.go_on(20);
    load.finish().check(second);
    patroni.all_stream(2);
    eventually(LONG, "all is well again", || ctl.run(&["status"]).code == 0);

    // Drained first, so that nobody notices.
    second.superuser().batch_execute("truncate written").unwrap();
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    let done = ctl.run(&["switchover", "--to", "db-1", "--yes"]).code(0);
    println!("{}{}", done.err, done.out);
    assert!(done.err.contains("promoting db-1 (patroni)"), "{done:?}");
    load.go_on(20);
    let outcome = load.finish();
    outcome.check(first);
    outcome.nothing_failed();
    assert_eq!((writes_at(&proxy), patroni.leader().as_deref()), (Ok(first.port), Some("db-1")));
}

#[test]
fn a_fleet_writes_to_who_has_the_lock_after_the_leader_and_after_a_leaders_patroni_is_killed() {
    let mut patroni = Patroni::with(3, "synchronous_mode: true");
    patroni.nodes[0].superuser().batch_execute(TABLE).unwrap();
    let (discovery, store) = (free_port(), directory("store"));
    let mut plane =
        ControlPlane::start(&(Config::of_patroni(&patroni).text() + &sections(&store, discovery)));
    let proxy = Proxy::start(&format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nname = \"dp-1\"\ntoken = \"{}\"\n",
        token("dataplane")
    ))
    .ready();
    eventually(LONG, "it writes", || writes_at(&proxy) == Ok(patroni.nodes[0].port));
    eventually(LONG, "there is a synchronous standby", || {
        let sql = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        patroni.nodes[0].superuser().query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1
    });
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    let killed = Instant::now();
    patroni.kill(0);
    eventually(LONG, "Patroni has another leader", || patroni.leader().is_some_and(|name| name != "db-1"));
    let second = patroni.leader().unwrap();
    let port = patroni.node(&second).port;
    eventually(LONG, "writes go to it", || writes_at(&proxy) == Ok(port));
    println!("leader killed: writes at the next one after {:?}", killed.elapsed());
    load.go_on(20);
    // Every acknowledged write was on the synchronous standby, so it is there.
    load.finish().check(patroni.node(&second));

    // The data plane asks Patroni itself when its control plane is gone.
    assert_eq!(plane.metric("heliosproxy_cp_topology_provider_up", &[]), Some(1.0));
    plane.kill();
    eventually(LONG, "the data plane is on its own", || {
        proxy.metrics().sum("heliosproxy_autonomous", &[]) == Some(1.0)
    });
    // A leader's Patroni alone dies: the server lives on and takes writes, until another one has the lock.
    patroni.all_stream(2);
    let at = patroni.nodes.iter().position(|node| node.name == second).unwrap();
    let mut client = patroni.nodes[at].superuser();
    // So that its server can acknowledge writes by itself.
    client.batch_execute("truncate written").unwrap();
    let done = patroni.ctl(&["edit-config", "helios", "-s", "synchronous_mode=false", "--force"]);
    assert!(done.status.success(), "{done:?}");
    eventually(LONG, "replication is asynchronous", || {
        client.query_one("show synchronous_standby_names", &[]).unwrap().get::<_, String>(0).is_empty()
    });
    drop(client);
    let load = Load::start(CLIENTS, &[&proxy]);
    load.go_on(20);
    patroni.kill_patroni(at);
    let changed = |patroni: &Patroni| patroni.leader().filter(|name| *name != second && *name != "db-1");
    eventually(LONG, "the third one leads", || changed(&patroni).is_some());
    let third = patroni.node(&changed(&patroni).unwrap());
    eventually(LONG, "writes go to it", || writes_at(&proxy) == Ok(third.port));
    let orphan = &patroni.nodes[at];
    assert!(!orphan.superuser().query_one("select pg_is_in_recovery()", &[]).unwrap().get::<_, bool>(0));
    let before = rows_of(orphan);
    load.go_on(50);
    assert_eq!(rows_of(orphan), before, "the server without the lock gets no write");
    drop(load);
    assert_eq!(provider_up(&proxy), Some(1.0));
    let _ = std::fs::remove_dir_all(store);
}

#[test]
fn a_writer_without_the_lock_is_not_used_and_without_patronis_word_nobody_is_promoted() {
    let patroni = Patroni::start(2);
    let (first, second) = (&patroni.nodes[0], &patroni.nodes[1]);
    let (proxy, ctl) = standalone(&patroni, 2);
    assert_eq!(writes_at(&proxy), Ok(first.port));

    // Promoted by hand, on a higher timeline: by timelines alone it would be the primary.
    patroni.signal("STOP", 1);
    second.promote();
    eventually(LONG, "the writer without the lock is quarantined", || {
        proxy.get("/nodes").body.contains("not used: it takes writes but does not hold Patroni's leader lock")
    });
    for _ in 0..5 {
        assert_eq!(writes_at(&proxy), Ok(first.port));
    }
    assert_eq!(patroni.leader().as_deref(), Some("db-1"));
    patroni.signal("CONT", 1);
    patroni.all_stream(2);
    eventually(LONG, "it is a standby again", || ctl.run(&["status"]).code == 0);

    // Nobody answers: what is known goes on, and is said to be all that is known.
    patroni.signal_all("STOP");
    eventually(LONG, "that Patroni is silent is seen", || provider_up(&proxy) == Some(0.0));
    let status = ctl.run(&["status"]).code(7);
    assert!(status.out.contains("Patroni does not answer"), "{status:?}");
    assert_eq!(writes_at(&proxy), Ok(first.port));
    second.promote();
    eventually(LONG, "two may be the primary: writes wait", || writes_at(&proxy) == Err("57P03".to_owned()));
    let _ = proxy.said("Patroni has to say who it is and does not answer");

    patroni.signal_all("CONT");
    eventually(LONG, "writes go to who has the lock", || {
        let leader = patroni.leader();
        leader.is_some_and(|name| writes_at(&proxy) == Ok(patroni.node(&name).port))
    });
    eventually(LONG, "Patroni answers", || provider_up(&proxy) == Some(1.0));
}

#[test]
fn patroni_is_asked_over_tls_and_an_unknown_authority_is_no_answer() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    pki.issue("api", &["127.0.0.1", "localhost"], 2050);
    let patroni = Patroni::with_tls(1, "", Some(pki));
    let (proxy, _) = standalone(&patroni, 1);
    eventually(LONG, "it writes", || writes_at(&proxy) == Ok(patroni.nodes[0].port));
    assert_eq!(provider_up(&proxy), Some(1.0));
    let text = Config::of_patroni(&patroni).text();
    let ours = patroni.pki.as_ref().unwrap().file("ca.pem");
    let text = format!("write_timeout_secs = 1\n{}", text.replace(&ours, &strangers.file("ca.pem")));
    let deceived = Proxy::start(&text);
    eventually(LONG, "it says why", || {
        !deceived.logged("the certificate is of an unknown authority").is_empty()
    });
    eventually(LONG, "writes wait", || writes_at(&deceived) == Err("57P03".to_owned()));
    assert_eq!(provider_up(&deceived), Some(0.0));
}
