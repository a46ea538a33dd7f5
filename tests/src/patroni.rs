//! A PostgreSQL cluster that real Patroni leads, with real etcd behind it: members on free ports in a temporary directory,
//! run by an unprivileged user when the tests run as root. Each member can be killed, with its server or without, frozen
//! and started again. Everything ends and goes when it is dropped.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{CLEAN_UP, HBA, SERVER_USER, is_root, roles, unprivileged};
use crate::controlplane::directory;
use crate::guard::{Guard, signal};
use crate::{Etcd, Node, Pki, Programs, Role, eventually, free_port, http};

/// How long members may take for anything.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a leader lock outlives its holder, in seconds.
const TTL: u32 = 10;
/// Ends every member whose process id is in the directory.
const END: &str = r#"for f in "$1"/*.pid; do [ -f "$f" ] && kill -9 "$(cat "$f")"; done; "#;

/// A cluster.
pub struct Patroni {
    /// The servers; their roles are those of the proxy's configuration, not those of the moment.
    pub nodes: Vec<Node>,
    /// Behind it.
    pub etcd: Etcd,
    apis: Vec<u16>,
    members: Vec<Option<Child>>,
    dir: PathBuf,
    settings: &'static str,
    /// The members' REST API speaks TLS, with certificates of this authority.
    pub pki: Option<Pki>,
    _guard: Guard,
}

impl Patroni {
    /// Starts this many members, all streaming, the first of them the leader.
    ///
    /// # Panics
    /// When they do not in time.
    #[must_use]
    pub fn start(count: usize) -> Self {
        Self::with(count, "")
    }

    /// The same with further settings of the cluster, as lines of YAML below `bootstrap: dcs:`.
    ///
    /// # Panics
    /// When they do not in time.
    #[must_use]
    pub fn with(count: usize, settings: &'static str) -> Self {
        Self::with_tls(count, settings, None)
    }

    /// The same with a REST API that speaks TLS: `api.pem` and `api.key` are the members'.
    ///
    /// # Panics
    /// When they do not in time.
    #[must_use]
    pub fn with_tls(count: usize, settings: &'static str, pki: Option<Pki>) -> Self {
        let dir = PathBuf::from(directory("patroni"));
        std::fs::create_dir_all(&dir).unwrap();
        if is_root() {
            let done = Command::new("chown").arg(format!("{SERVER_USER}:{SERVER_USER}")).arg(&dir).status();
            assert!(done.unwrap().success());
        }
        let guard = Guard::new(&format!("{END}{CLEAN_UP}"), &[dir.to_str().unwrap()]);
        let node = |i: usize| {
            let role = if i == 0 { Role::Primary } else { Role::Standby };
            let name = format!("db-{}", i + 1);
            let (data, sockets, programs) = (dir.join(&name), dir.clone(), Programs::newest());
            Node { data, name, role, port: free_port(), sockets, programs }
        };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let apis = (0..count).map(|_| free_port()).collect();
        let members = (0..count).map(|_| None).collect();
        let mut patroni =
            Self { nodes, etcd: Etcd::start(1), apis, members, dir, settings, pki, _guard: guard };
        patroni.give_certificates();
        patroni.launch(0);
        eventually(PATIENCE, "the first member leads", || patroni.leader().as_deref() == Some("db-1"));
        eventually(PATIENCE, "it takes statements", || patroni.nodes[0].try_superuser().is_ok());
        patroni.nodes[0].superuser().batch_execute(&roles()).unwrap();
        for i in 1..count {
            patroni.launch(i);
        }
        patroni.all_stream(count);
        patroni
    }

    /// Waits until there are a leader and standbys that stream, so many in all.
    ///
    /// # Panics
    /// When there are not in time.
    #[track_caller]
    pub fn all_stream(&self, count: usize) {
        eventually(PATIENCE, "every standby streams", || {
            let Some(leader) = self.leader() else { return false };
            let Ok(mut client) = self.node(&leader).try_superuser() else { return false };
            let row =
                client.query_one("select count(*) from pg_stat_replication where state = 'streaming'", &[]);
            row.is_ok_and(|row| row.get::<_, i64>(0) == i64::try_from(count - 1).unwrap())
        });
    }

    /// Starts a member.
    ///
    /// # Panics
    /// When Patroni is not installed.
    pub fn launch(&mut self, member: usize) {
        let node = &self.nodes[member];
        let file = self.file(member);
        std::fs::write(&file, self.config(member)).unwrap();
        let log = self.dir.join(format!("{}.log", node.name));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let child = unprivileged(Path::new("/usr/bin/patroni"), &self.dir)
            .arg(&file)
            .stderr(log)
            .spawn()
            .expect("patroni (tools/setup installs it)");
        std::fs::write(self.dir.join(format!("{}.pid", node.name)), child.id().to_string()).unwrap();
        self.members[member] = Some(child);
    }

    /// Copies of the certificate and its key that the servers' user may read.
    fn give_certificates(&self) {
        let Some(pki) = &self.pki else { return };
        for name in ["api.pem", "api.key"] {
            let copy = self.dir.join(name);
            std::fs::copy(pki.file(name), &copy).unwrap();
            if is_root() {
                let owner = format!("{SERVER_USER}:{SERVER_USER}");
                assert!(Command::new("chown").arg(owner).arg(&copy).status().unwrap().success());
            }
        }
    }

    fn file(&self, member: usize) -> PathBuf {
        self.dir.join(format!("{}.yml", self.nodes[member].name))
    }

    fn config(&self, member: usize) -> String {
        let (node, api) = (&self.nodes[member], self.apis[member]);
        let hosts: Vec<String> =
            self.etcd.urls().iter().map(|url| url.trim_start_matches("http://").to_owned()).collect();
        let (dir, name, port) = (self.dir.display(), &node.name, node.port);
        let tls = match self.pki {
            Some(_) => format!("certfile: {dir}/api.pem\n  keyfile: {dir}/api.key"),
            None => String::new(),
        };
        let mut hba = String::new();
        for line in HBA.lines().filter(|line| !line.is_empty()) {
            let _ = write!(hba, "\n  - {line}");
        }
        format!(
            "scope: helios
name: {name}
restapi:
  listen: 127.0.0.1:{api}
  connect_address: 127.0.0.1:{api}
  authentication: {{username: api, password: api-secret}}
  {tls}
ctl:
  insecure: true
etcd3:
  hosts: {}
bootstrap:
  dcs:
    ttl: {TTL}
    loop_wait: 1
    retry_timeout: 3
    {}
    postgresql:
      use_pg_rewind: true
      parameters: {{wal_log_hints: \"on\", max_connections: 100, wal_keep_size: 64MB}}
  initdb: [encoding: UTF8, locale: C, data-checksums]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {dir}/{name}
  bin_dir: {}
  pgpass: {dir}/{name}.pass
  authentication:
    superuser: {{username: {SERVER_USER}, password: super-secret}}
    replication: {{username: replicator, password: replicator-secret}}
  parameters:
    unix_socket_directories: {dir}
    shared_buffers: 16MB
    fsync: \"off\"
    password_encryption: scram-sha-256
    log_min_messages: warning
    logging_collector: \"off\"
  pg_hba:{hba}
  use_unix_socket: true
  remove_data_directory_on_rewind_failure: true
",
            hosts.join(","),
            self.settings,
            Programs::newest().directory().display()
        )
    }

    /// A server by its name.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// Who holds the leader lock, by the word of a member that answers.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        if self.pki.is_some() {
            let list: Value = serde_json::from_slice(&self.ctl(&["list", "-f", "json"]).stdout).ok()?;
            let leader = list.as_array()?.iter().find(|member| member["Role"] == "Leader")?;
            return Some(leader["Member"].as_str()?.to_owned());
        }
        let views = self.apis.iter().filter_map(|api| http::get(local(*api), "/cluster").ok());
        let view: Value = views.filter_map(|answer| serde_json::from_str(&answer.body).ok()).next()?;
        let members = view["members"].as_array()?;
        let leader = members.iter().find(|member| member["role"] == "leader")?;
        Some(leader["name"].as_str()?.to_owned())
    }

    /// REST addresses of the members, as a configuration has them.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        let url = |api: &u16| format!("\"{scheme}://127.0.0.1:{api}\"");
        let urls: Vec<String> = self.apis.iter().map(url).collect();
        format!("[{}]", urls.join(", "))
    }

    /// Kills a member's Patroni; its server goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_patroni(&mut self, member: usize) {
        let mut child = self.members[member].take().expect("it runs");
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Kills a member and its server, as a power cut does.
    pub fn kill(&mut self, member: usize) {
        self.kill_patroni(member);
        self.nodes[member].kill();
    }

    /// Sends a signal (`STOP`, `CONT`) to the Patroni of every member that runs.
    pub fn signal_all(&self, name: &str) {
        let pids: Vec<u32> = self.members.iter().flatten().map(Child::id).collect();
        signal(name, &pids);
    }

    /// The same to that of one member.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, name: &str, member: usize) {
        signal(name, &[self.members[member].as_ref().expect("it runs").id()]);
    }

    /// Runs `patronictl` with the configuration of a member.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut command = unprivileged(Path::new("/usr/bin/patronictl"), &self.dir);
        command.arg("-c").arg(self.file(0)).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = std::fs::read_to_string(self.dir.join(format!("{}.log", node.name)));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("Patroni of {}, newest first: {lines:#?}", node.name);
            }
        }
        self.signal_all("CONT");
        for child in self.members.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
