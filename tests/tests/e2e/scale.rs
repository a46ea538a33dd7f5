//! Many clients: idle, and all at once after a data plane has come back.

use std::time::{Duration, Instant};

use helios_tests::cluster::password;
use helios_tests::raw::{Next, startup};
use helios_tests::{Cluster, Config, Proxy, Raw, eventually, free_port, raise_file_limit};

const CLIENTS: usize = 5_000;
/// Resident memory that 5,000 idle clients may cost, base included.
const LIMIT_KIB: u64 = 110 * 1024;

#[test]
fn five_thousand_idle_clients_fit_into_110_mib() {
    raise_file_limit();
    let secret = format!("password = \"{}\"", password("app"));
    let config = Config { pool: 10, ..Config::primary_only(Cluster::shared()) };
    let proxy = config.user("app", &secret).start().ready();
    let mut clients: Vec<Raw> = std::thread::scope(|s| {
        let open = || (0..CLIENTS / 4).map(|_| proxy.raw("app").0).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| s.spawn(open)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(clients.len(), CLIENTS);
    // All have been at work once: what an idle client keeps is counted, not what it never had.
    for client in &mut clients {
        assert_eq!(client.query("select 7")[1].fields(), ["7"]);
    }
    let rss = proxy.rss_kib();
    assert!(rss < LIMIT_KIB, "{rss} KiB");
    for client in clients.iter_mut().step_by(100) {
        assert_eq!(client.query("select 8")[1].fields(), ["8"]);
    }
}

#[test]
fn a_thousand_clients_that_come_back_at_once_are_all_served_by_as_few_servers() {
    const MANY: usize = 1_200;
    const POOL: u32 = 8;
    const LONG: Duration = Duration::from_secs(60);
    raise_file_limit();
    let cluster = Cluster::start(&[]);
    let secret = format!("password = \"{}\"", password("app"));
    let config = Config { pool: POOL, acquire_timeout: 30, ..Config::primary_only(&cluster) };
    // The clients work out their proofs on the same machine.
    let text = config.user("app", &secret).text() + "\n[limits]\nlogin_timeout_secs = 60\n";
    let text = text.replacen("127.0.0.1:0", &format!("127.0.0.1:{}", free_port()), 1);
    let proxy = Proxy::start(&text).ready();
    let port = proxy.port();
    let serve = |client: &mut Raw| assert_eq!(client.query("select 7")[1].fields(), ["7"]);
    // All of them knock before anybody is let in.
    let knock = || {
        let mut clients: Vec<Raw> = (0..MANY).map(|_| Raw::connect(port)).collect();
        for client in &mut clients {
            client.send(&startup(0x0003_0000, &[("user", "app"), ("database", "postgres")]));
        }
        clients
    };
    let come_in = |clients: &mut [Raw]| {
        for client in clients {
            client.finish_login("app", &password("app")).expect("let in");
            serve(client);
        }
    };
    let mut clients = knock();
    std::thread::scope(|s| clients.chunks_mut(MANY / 4).for_each(|some| drop(s.spawn(|| come_in(some)))));
    drop(proxy);
    for client in &mut clients {
        assert!(matches!(client.next(LONG), Next::Closed), "cut");
    }
    let mut superuser = cluster.primary().superuser();
    let mut open = || {
        let sql = "select count(*) from pg_stat_activity where usename = 'app' and application_name <> 'helios-probe'";
        superuser.query_one(sql, &[]).unwrap().get::<_, i64>(0)
    };
    eventually(LONG, "its servers are gone", || open() == 0);
    let proxy = Proxy::start(&text);
    let since = Instant::now();
    let mut clients = knock();
    let most = std::thread::scope(|s| {
        let threads: Vec<_> = clients.chunks_mut(MANY / 4).map(|some| s.spawn(|| come_in(some))).collect();
        let mut most = 0i64;
        eventually(LONG, "all are back", || {
            most = most.max(open());
            threads.iter().all(std::thread::ScopedJoinHandle::is_finished)
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        most
    });
    println!(
        "{MANY} clients came back within {:?} over {most} servers, memory {} KiB",
        since.elapsed(),
        proxy.rss_kib()
    );
    // The probe has no name at first.
    assert!(most <= i64::from(POOL) + 1, "{most} server connections");
    assert!(proxy.rss_kib() < LIMIT_KIB);
    clients.iter_mut().step_by(50).for_each(serve);
}
