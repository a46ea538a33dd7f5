//! Something is full: the connections of PostgreSQL, its disk, the disk of the proxy. What the server says is passed on, nobody
//! takes a node for dead because of it, and all is well again once there is room. Small disks are file systems in memory, which
//! need root; says so loudly where they cannot be made. Never fills a disk that is not its own.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use helios_proto::wire::v1;
use helios_tests::controlplane::{directory, sections, token};
use helios_tests::guard::Guard;
use helios_tests::{Cluster, Config, ControlPlane, Load, Proxy, Role, eventually, free_port};

const LONG: Duration = Duration::from_secs(60);

fn healthy(proxy: &Proxy) -> bool {
    proxy.metrics().sum("heliosproxy_node_healthy", &[("node", "primary")]) == Some(1.0)
        && proxy.logged("node is down").is_empty()
}

/// Most attempts of a data plane on a server that refuses them: one a second, and the one that is due.
fn attempts_in(time: Duration) -> usize {
    usize::try_from(time.as_secs()).unwrap() + 2
}

#[test]
fn first_logins_wait_for_a_full_server_which_is_asked_once_a_second() {
    const CLIENTS: usize = 3;
    let cluster = Cluster::start(&[]);
    // Five for others than superusers: the probe's and four more.
    cluster.primary().restart_with("alter system set max_connections = 10");
    let mut config = Config { pool: 10, acquire_timeout: 30, ..Config::primary_only(&cluster) };
    config.more += "\n[limits]\nlogin_timeout_secs = 60\n";
    let proxy = config.start().ready();
    let mut others: Vec<_> = (0..4).map(|_| cluster.primary().connect("trusty")).collect();
    let refused = || {
        let log = cluster.primary().log();
        log.matches("connection slots are reserved").count() + log.matches("too many clients").count()
    };
    std::thread::scope(|s| {
        let login = || {
            let mut client = proxy.connect("clear");
            client.batch_execute("select 1").unwrap();
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| s.spawn(login)).collect();
        // Some are under way when the first is refused.
        eventually(LONG, "it refuses", || refused() > CLIENTS);
        let (since, before) = (Instant::now(), refused());
        eventually(LONG, "it is asked again and again", || refused() > before + 2);
        let (took, more) = (since.elapsed(), refused() - before);
        println!("{CLIENTS} first logins at a full server: {more} attempts in {took:?}");
        assert!(more <= attempts_in(took), "{more} attempts in {took:?}");
        assert!(clients.iter().all(|client| !client.is_finished()), "they wait");
        others.truncate(2);
        clients.into_iter().for_each(|client| client.join().expect("let in, and served"));
    });
    assert!(healthy(&proxy), "{:#?}", proxy.tail());
    // What is idle makes room for a role that has nothing.
    drop(others);
    let mut clients: Vec<_> = (0..5).map(|_| proxy.connect("clear")).collect();
    clients.iter_mut().for_each(|client| client.batch_execute("begin").unwrap_or_default());
    drop(clients);
    proxy.connect("app").batch_execute("select 1").expect("an idle connection makes room");
    proxy.connect("clear").batch_execute("select 1").expect("and again");
}

#[test]
fn a_server_without_free_connections_is_full_not_down_and_is_not_hammered() {
    let cluster = Cluster::start(&[]);
    Load::prepare(&cluster);
    let proxy = Config { pool: 10, acquire_timeout: 30, ..Config::primary_only(&cluster) }.start().ready();
    // The first login of a role is judged by the server, and gets its word.
    proxy.connect("app").batch_execute("select 1").unwrap();
    // Three connections, and that of the probe.
    let limit = |limit: i32| cluster.execute(&format!("alter role app connection limit {limit}"));
    limit(4);
    let refused = || cluster.primary().log().matches("too many connections for role").count();
    let load = Load::start(8, &[&proxy]);
    load.go_on(20);
    assert!(refused() > 0, "it is full");
    let (before, since, issued) = (refused(), Instant::now(), load.issued());
    load.go_on(150);
    let took = since.elapsed();
    let more = refused() - before;
    println!("a full server: {} requests in {took:?}, {more} connections refused", load.issued() - issued);
    assert!(more <= attempts_in(took), "{more} attempts in {took:?}");
    assert!(healthy(&proxy), "{:#?}", proxy.tail());
    // Room again: the pool grows as far as it wants to.
    limit(-1);
    let total = || proxy.metrics().sum("heliosproxy_pool_connections_total", &[]).unwrap();
    eventually(LONG, "the pool grows", || total() > 4.0);
    load.go_on(20);
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
}

/// A disk of its own, of this many KiB; `None`: this machine does not let us.
fn disk(kib: u32, what: &str) -> Option<(String, Guard)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("helios-disk-{}-{count}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let guard = Guard::new("umount -l \"$1\"; rmdir \"$1\"", &[&path]);
    let size = format!("size={kib}k,mode=0777");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs", &path]).output();
    match mount {
        Ok(output) if output.status.success() => Some((path, guard)),
        output => {
            eprintln!("SKIPPED {what}: no small file system can be made here: {output:?}");
            None
        }
    }
}

#[test]
fn what_a_full_or_read_only_server_says_is_passed_on_and_the_node_stays_up() {
    let Some((path, _disk)) = disk(4 * 1024, "a full disk of PostgreSQL") else { return };
    // Dropped first: a server does not leave a directory that it cannot write.
    let cluster = Cluster::start(&[]);
    Load::prepare(&cluster);
    Command::new("chown").args(["postgres:postgres", &path]).status().unwrap();
    let mut superuser = cluster.primary().superuser();
    superuser.batch_execute(&format!("create tablespace small location '{path}'")).unwrap();
    superuser
        .batch_execute("create table heap (x text) tablespace small; grant all on heap to public")
        .unwrap();
    let proxy = Config::primary_only(&cluster).start().ready();
    let load = Load::start(4, &[&proxy]);
    load.go_on(10);
    let mut client = proxy.connect("app");
    let code = |error: postgres::Error| error.code().expect("told by the server").code().to_owned();
    let fill = "insert into heap select repeat(md5(i::text), 50) from generate_series(1, 10000) i";
    for _ in 0..3 {
        assert_eq!(code(client.batch_execute(fill).expect_err("the disk is full")), "53100");
        let error =
            client.batch_execute("begin read only; insert into written values (-1)").expect_err("read only");
        assert_eq!(code(error), "25006");
        client.batch_execute("rollback").expect("the session lives");
        client.batch_execute("set default_transaction_read_only = on").unwrap();
        let error = client.batch_execute("insert into written values (-1)").expect_err("read only");
        assert_eq!(code(error), "25006");
        client.batch_execute("reset default_transaction_read_only").unwrap();
    }
    load.go_on(20);
    assert!(healthy(&proxy), "{:#?}", proxy.tail());
    superuser.batch_execute("drop table heap").unwrap();
    superuser
        .batch_execute("create table heap (x text) tablespace small; grant all on heap to public")
        .unwrap();
    client.batch_execute("insert into heap values ('room')").expect("there is room again");
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
}

/// Whether the proxy has as many places for connections.
fn places(proxy: &Proxy, max: u32) -> bool {
    proxy.get("/pool/stats").body.contains(&format!("\"max\":{max}"))
}

#[test]
fn a_full_disk_of_a_data_plane_costs_what_it_would_have_kept_and_nothing_else() {
    let Some((state, _disk)) = disk(64, "a full disk of a data plane") else { return };
    let cluster = Cluster::start(&[Role::Replica]);
    Load::prepare(&cluster);
    let (discovery, store) = (free_port(), directory("store"));
    let config = Config::new(&cluster);
    let mut plane = ControlPlane::start(&(config.text() + &sections(&store, discovery)));
    let text = format!(
        "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n[control_plane]\n\
         endpoints = [\"127.0.0.1:{discovery}\"]\nstate_dir = \"{state}\"\ntoken = \"{}\"\n",
        token("dataplane")
    );
    let proxy = Proxy::start(&text).ready();
    let load = Load::start(4, &[&proxy]);
    load.go_on(10);
    let file = Path::new(&state).join("last-good-snapshot");
    eventually(LONG, "what is in force is kept", || file.exists());
    let mut admin = plane.operator("admin");
    let mut resize = |max: u32| {
        let old = admin.call(async |c| c.get_config(v1::GetConfigRequest::default()).await).unwrap();
        let (from, to) = (old.text.find("max_pool_size = ").unwrap(), format!("max_pool_size = {max}"));
        let line = old.text[from..].lines().next().unwrap();
        let text = old.text.replace(line, &to);
        let request = v1::ApplyConfigRequest {
            text,
            wait: Some(v1::Wait { timeout_ms: 10_000 }),
            ..v1::ApplyConfigRequest::default()
        };
        admin.call(async |client| client.apply_config(request).await).unwrap().acknowledged
    };
    let ballast = Path::new(&state).join("ballast");
    let full = std::fs::write(&ballast, vec![0; 128 * 1024]);
    assert!(full.is_err(), "the disk is full");
    assert_eq!(resize(11), 1, "a change is taken");
    assert!(places(&proxy, 11));
    eventually(LONG, "it says so", || !proxy.logged("cannot be kept").is_empty());
    load.go_on(20);
    // The old file is whole.
    let start = || Proxy::start(&text.replace(&format!(":{discovery}"), ":1"));
    assert!(places(&start(), 10), "the last good one is the one before");
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(resize(12), 1);
    eventually(LONG, "what is in force is kept again", || places(&start(), 12));
    load.go_on(10);
    let outcome = load.finish();
    outcome.check(cluster.primary());
    outcome.nothing_failed();
    plane.kill();
    let _ = std::fs::remove_dir_all(&store);
}
