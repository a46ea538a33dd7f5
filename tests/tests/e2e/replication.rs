//! The replication protocol goes through: a base backup that starts, a stream of decoded changes, limits, and the end of it
//! when another node becomes the primary.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use helios_tests::cluster::password;
use helios_tests::raw::{PATIENCE, startup};
use helios_tests::{Cluster, Config, Proxy, Raw, Role, eventually};

/// A program of PostgreSQL as `app` through this proxy.
fn program(name: &str, proxy: &Proxy, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(["-h", "127.0.0.1", "-p", &proxy.port().to_string(), "-U", "app", "-w"]).args(args);
    command.env("PGPASSWORD", password("app")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Ends with its owner.
struct Going(Child);

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn logical() -> Cluster {
    let cluster = Cluster::start(&[Role::Standby]);
    cluster.primary().restart_with("alter system set wal_level = logical");
    cluster.execute("alter role app replication");
    cluster
}

/// Starts a stream of the slot's changes: its lines so far can be read.
fn stream(proxy: &Proxy) -> (Going, BufReader<std::process::ChildStdout>) {
    let args = ["-d", "postgres", "--slot", "s", "--start", "-f", "-", "-n", "-o", "skip-empty-xacts=1"];
    let mut child = program("pg_recvlogical", proxy, &args);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (Going(child), lines)
}

#[test]
fn a_base_backup_and_decoded_changes_come_through_until_the_primary_changes() {
    let cluster = logical();
    cluster.execute("create table t (i int primary key); insert into t select generate_series(1, 20000); grant select on t to app");
    for tls in ["disable", "prefer"] {
        let mut config = Config::new(&cluster);
        config.more += &format!("\n[client_tls]\nmode = \"{tls}\"\n");
        let proxy = config.start().ready();
        let to = std::env::temp_dir().join(format!("helios-backup-{}-{tls}", std::process::id()));
        succeeds(program(
            "pg_basebackup",
            &proxy,
            &["-D", to.to_str().unwrap(), "-X", "stream", "-c", "fast"],
        ));
        let manifest = std::fs::metadata(to.join("backup_manifest")).unwrap();
        assert!(manifest.len() > 1000);
        let verify = cluster.primary().shell("pg_verifybackup", "");
        let verify = Command::new(verify.split_whitespace().last().unwrap()).arg(&to).output().unwrap();
        assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
        std::fs::remove_dir_all(&to).unwrap();
    }
    let mut proxy = Config::new(&cluster).start().ready();
    succeeds(program(
        "pg_recvlogical",
        &proxy,
        &["-d", "postgres", "--slot", "s", "--create-slot", "-P", "test_decoding"],
    ));
    let (mut going, mut lines) = stream(&proxy);
    proxy.connect("app").batch_execute("select 1").unwrap();
    cluster.execute("insert into t values (0)");
    let mut seen = String::new();
    while !seen.contains("INSERT: i[integer]:0") {
        assert!(lines.read_line(&mut seen).unwrap() > 0, "the stream ended: {seen}");
    }
    assert!(seen.contains("BEGIN"), "{seen}");
    // Ordinary sessions use the pool as before.
    assert_eq!(
        proxy.connect("app").query_one("select count(*) from t", &[]).unwrap().get::<_, i64>(0),
        20001
    );
    cluster.node("standby").catch_up(cluster.primary());
    cluster.node("standby").promote();
    eventually(PATIENCE, "the stream from the old primary ends", || going.0.try_wait().unwrap().is_some());
    assert!(proxy.alive());
}

#[test]
fn limits_of_replication_connections() {
    let cluster = Cluster::shared();
    let refusal = |proxy: &Proxy| {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", "app"), ("replication", "true")]));
        let refused = raw.finish_login("app", &password("app")).expect_err("refused");
        (refused.sqlstate(), refused.error().1)
    };
    let with = |most: u32| {
        let mut config = Config::primary_only(cluster);
        config.more += &format!("\n[limits]\nmax_replication_connections = {most}\n");
        config.start().ready()
    };
    let (code, text) = refusal(&with(0));
    assert_eq!(
        (code.as_str(), text.as_str()),
        ("0A000", "replication connections are not allowed by the configuration")
    );
    // The server's own refusal, in its words: the role may not replicate.
    let proxy = with(1);
    let (code, text) = refusal(&proxy);
    assert_eq!(code, "42501", "{text}");
    cluster.execute("create role walker login replication password 'walker-secret'");
    let mut held = Raw::connect(proxy.port());
    held.send(&startup(0x0003_0000, &[("user", "walker"), ("replication", "1")]));
    held.finish_login("walker", "walker-secret").unwrap();
    let another = || {
        let mut raw = Raw::connect(proxy.port());
        raw.send(&startup(0x0003_0000, &[("user", "walker"), ("replication", "1")]));
        raw.finish_login("walker", "walker-secret")
            .map(drop)
            .map_err(|refused| (refused.sqlstate(), refused.error().1))
    };
    assert_eq!(another(), Err(("53300".to_owned(), "too many replication connections".to_owned())));
    drop(held);
    eventually(PATIENCE, "the place is free again", || another().is_ok());
}
