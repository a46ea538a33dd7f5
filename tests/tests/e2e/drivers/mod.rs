//! Stock programs through the proxy: drivers in transaction mode with TLS off and on, psycopg2 and pgbench in every mode.
//! Each driver's program is in `tests/drivers/`, has a database of its own, and shares few servers with others that keep
//! them moving.

mod bench;
pub(crate) mod guide;
mod rust;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use helios_tests::cluster::client_config;
use helios_tests::programs::FETCHED;
use helios_tests::{Cluster, Config, Pki, Proxy, loudly};

const MODES: [&str; 3] = ["session", "transaction", "statement"];
/// Runs a program of one file in Java.
pub(crate) const JAVA: [&str; 4] =
    ["java", "-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"];
const SSLMODES: [&str; 2] = ["disable", "require"];

/// A server with TLS, for all drivers.
fn cluster() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let pki = Pki::new();
        pki.issue("db", &["localhost"], 2090);
        let cluster = Cluster::start(&[]);
        cluster.primary().with_tls(&pki.file("db.pem"), &pki.file("db.key"), &pki.file("ca.pem"), "");
        cluster
    })
}

/// A database with the tables that drivers use, made once.
fn database(name: &str) {
    cluster().execute(&format!("create database {name} owner app"));
    let tables = "create table copy_target (i int); create table counter (id int primary key, n int); \
                  insert into counter values (1, 0), (2, 0)";
    client_config(cluster().primary().port, "app")
        .dbname(name)
        .connect(postgres::NoTls)
        .unwrap()
        .batch_execute(tables)
        .unwrap();
}

/// A proxy whose two legs are in TLS, or not.
fn proxy(mode: &'static str, sslmode: &str) -> Proxy {
    let mut config = Config { mode, pool: 12, acquire_timeout: 30, ..Config::new(cluster()) };
    config.more +=
        &format!("\n[client_tls]\nmode = \"{}\"\n", if sslmode == "require" { "require" } else { "disable" });
    config.more += &format!("\n[server_tls]\nmode = \"{sslmode}\"\n");
    config.start().ready()
}

/// Others in the same database: servers change hands all the time. Ends when dropped.
struct Bustle {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bustle {
    fn start(name: &str, proxy: &Proxy) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |i: usize| {
            let (stop, mut config) = (Arc::clone(&stop), proxy.config("app"));
            config.dbname(name);
            std::thread::spawn(move || {
                let mut client = config.connect(postgres::NoTls).expect("others log in");
                let sql = format!("begin; select pg_sleep(0.00{}); commit", i + 1);
                while !stop.load(Ordering::Relaxed) {
                    client.batch_execute(&sql).expect("others work");
                }
            })
        };
        Self { threads: (0..2).map(one).collect(), stop }
    }
}

impl Drop for Bustle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the others have failed");
        }
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers").join(name)
}

/// Runs a driver's program; it has to end well and to say its version.
#[track_caller]
fn run(command: &[&str], sslmode: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg("120")
        .args(command)
        .args(arguments)
        .env("NODE_PATH", format!("{FETCHED}/node_modules"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let error = text(&output.stderr);
    assert!(output.status.success(), "{command:?} with sslmode={sslmode}: {}: {error}", output.status);
    text(&output.stdout)
}

/// A driver's program in transaction mode, with TLS off and on.
#[track_caller]
fn drive(name: &str, command: &[&str]) {
    database(name);
    for sslmode in SSLMODES {
        let proxy = proxy("transaction", sslmode);
        // The others are in plain text: they cannot be where TLS is required.
        let others = (sslmode == "disable").then(|| Bustle::start(name, &proxy));
        let version = run(command, sslmode, &[&proxy.port().to_string(), sslmode, name]);
        drop(others);
        let metrics = proxy.metrics();
        let pinned = metrics.sum("heliosproxy_pinned_total", &[]).unwrap_or_default();
        loudly(&format!("driver {name} {version}, sslmode={sslmode}: fine, {pinned} sessions pinned"));
    }
}

/// A program in Python.
#[track_caller]
fn python(name: &str, file: &str) {
    drive(name, &["/usr/bin/python3", source(file).to_str().unwrap()]);
}

#[test]
fn psycopg_3() {
    python("psycopg", "with_psycopg.py");
}

#[test]
fn asyncpg() {
    python("asyncpg", "with_asyncpg.py");
}

#[test]
fn sqlalchemy() {
    python("sqlalchemy", "with_sqlalchemy.py");
}

#[test]
fn django() {
    python("django", "with_django.py");
}

#[test]
fn node_pg() {
    if !Path::new(FETCHED).join("node_modules/pg").exists() {
        return loudly("SKIPPED: no `pg` for node on this machine (tools/setup fetches it where npm can)");
    }
    drive("node_pg", &["node", source("with_pg.js").to_str().unwrap()]);
}

#[test]
fn pgjdbc() {
    drive("pgjdbc", &[&JAVA[..], &[source("WithJdbc.java").to_str().unwrap()]].concat());
}

/// Builds a program of one file, with Debian's packages, and nothing from the network.
pub(crate) fn build_go(source: &Path, program: &Path) {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gocache");
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([program, source])
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOPROXY", "off"), ("GOFLAGS", "")])
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache)
        .output()
        .expect("go (make setup)");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

#[test]
fn pgx() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = work.join("with-pgx");
    build_go(&source("with_pgx.go"), &program);
    drive("pgx", &[program.to_str().unwrap()]);
}

/// What an application does with psycopg2, as in the guide, and more where the mode allows it.
#[test]
fn psycopg2_works_in_every_mode() {
    database("psycopg2");
    let file = source("with_psycopg2.py");
    for (mode, sslmode) in
        MODES.into_iter().zip(SSLMODES.into_iter().cycle()).chain([("transaction", "disable")])
    {
        let proxy = proxy(mode, sslmode);
        let port = proxy.port().to_string();
        let command = ["/usr/bin/python3", file.to_str().unwrap()];
        let version = run(&command, sslmode, &[&port, sslmode, "psycopg2", mode]);
        loudly(&format!("driver psycopg2 {version}, {mode} mode, sslmode={sslmode}: fine"));
    }
}
