//! A PostgreSQL cluster: one primary and any number of streaming standbys in a temporary directory, each with its
//! own free port, run by an unprivileged user when the tests run as root. Clean-up is a [`Guard`]'s job.
//!
//! Roles: `app` (SCRAM), `md5user` (MD5), `clear` (clear text on the wire), `trusty` (no password asked) and, with
//! 63 letters `u`, the longest name. Each has the password [`password`] says. The superuser comes by unix socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::guard::{Guard, children, signal};
use crate::programs::Programs;
use crate::{backup, eventually, free_port};

/// How long a server may take to start, follow or stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// The unprivileged user that servers run as when the tests run as root.
pub(crate) const SERVER_USER: &str = "postgres";
/// Ends every server of the directory `$1` and removes it.
pub(crate) const CLEAN_UP: &str = r#"
for f in "$1"/*/postmaster.pid; do [ -f "$f" ] && kill -QUIT "$(head -n 1 "$f")"; done
for i in 1 2 3 4 5 6 7 8 9 10; do
  alive=; for f in "$1"/*/postmaster.pid; do [ -f "$f" ] && kill -0 "$(head -n 1 "$f")" && alive=1; done
  [ -z "$alive" ] && break; sleep 0.2
done
rm -rf "$1""#;

/// What the configuration of the proxy calls this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// First in line at a failover.
    Standby,
    /// Takes reads.
    Replica,
}

/// One server.
pub struct Node {
    /// Its name in the proxy's configuration, logs and metrics.
    pub name: String,
    /// Its role when the cluster was started.
    pub role: Role,
    /// Its port on 127.0.0.1.
    pub port: u16,
    pub(crate) data: PathBuf,
    pub(crate) sockets: PathBuf,
    pub(crate) programs: Programs,
}

/// A running cluster; ends with its last owner.
pub struct Cluster {
    /// Primary first, then standbys and replicas, in the order asked for.
    pub nodes: Vec<Node>,
    dir: PathBuf,
    _guard: Guard,
}

/// The password of a role.
#[must_use]
pub fn password(role: &str) -> String {
    format!("{role}-secret")
}

/// The longest role name that PostgreSQL keeps whole.
#[must_use]
pub fn long_role() -> String {
    "u".repeat(63)
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Any program as the unprivileged user.
pub(crate) fn unprivileged(path: &Path, dir: &Path) -> Command {
    let mut command = if is_root() {
        let mut c = Command::new("setpriv");
        c.arg(format!("--reuid={SERVER_USER}")).arg(format!("--regid={SERVER_USER}")).arg("--init-groups");
        c.arg(path);
        c
    } else {
        Command::new(path)
    };
    command.current_dir(dir).env("LC_ALL", "C").env("HOME", dir).stdin(Stdio::null()).stdout(Stdio::null());
    for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGDATA", "PGSERVICE"] {
        command.env_remove(name);
    }
    command
}

/// Gives a file or directory to the servers' user.
pub(crate) fn own(path: &Path) {
    if is_root() {
        let mut chown = Command::new("chown");
        chown.arg(format!("{SERVER_USER}:{SERVER_USER}")).arg(path);
        run(chown);
    }
}

#[track_caller]
pub(crate) fn run(mut command: Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
max_connections = 300
superuser_reserved_connections = 5
shared_buffers = 16MB
fsync = off
full_page_writes = off
autovacuum = off
wal_level = replica
max_wal_senders = 10
hot_standby = on
wal_keep_size = 64MB
logging_collector = off
log_min_messages = warning
password_encryption = 'scram-sha-256'
timezone = 'UTC'
lc_messages = 'C'
";

pub(crate) const HBA: &str = "
local all all trust
host replication all 127.0.0.1/32 trust
host all md5user 127.0.0.1/32 md5
host all clear 127.0.0.1/32 password
host all trusty 127.0.0.1/32 trust
host all all 10.231.0.0/16 scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
";

impl Node {
    /// A server program as the unprivileged user, with `dir` as its working directory.
    fn command(&self, program: &str, dir: &Path) -> Command {
        unprivileged(&self.programs.path(program), dir)
    }

    /// A superuser's connection through the unix socket, which no proxy and no password stands in the way of.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn superuser(&self) -> Client {
        self.try_superuser().unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Runs statements here that need a restart of the server, and restarts it.
    ///
    /// # Panics
    /// When one fails.
    pub fn restart_with(&self, sql: &str) {
        self.superuser().batch_execute(sql).unwrap();
        self.stop("fast");
        self.start();
    }

    /// Turns TLS on, with these files and this first line of `pg_hba.conf`; empty: as it was.
    ///
    /// # Panics
    /// When the server does not take them.
    pub fn with_tls(&self, cert: &str, key: &str, authorities: &str, hba: &str) {
        for (from, name) in [(cert, "tls.crt"), (key, "tls.key"), (authorities, "tls.ca")] {
            let to = self.data.join(name);
            std::fs::copy(from, &to).unwrap();
            own(&to);
        }
        let file = self.data.join("pg_hba.conf");
        let rules = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{hba}\n{rules}")).unwrap();
        let mut client = self.superuser();
        for (name, value) in [
            ("ssl_cert_file", "tls.crt"),
            ("ssl_key_file", "tls.key"),
            ("ssl_ca_file", "tls.ca"),
            ("ssl", "on"),
        ] {
            client.batch_execute(&format!("alter system set {name} = '{value}'")).unwrap();
        }
        self.restart_with("select 1");
    }

    /// The same on another database.
    ///
    /// # Panics
    /// When the server does not answer, or has no such database.
    #[must_use]
    pub fn superuser_of(&self, database: &str) -> Client {
        self.try_superuser_of(database).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub(crate) fn try_superuser(&self) -> Result<Client, postgres::Error> {
        self.try_superuser_of("postgres")
    }

    fn try_superuser_of(&self, database: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host_path(&self.sockets)
            .port(self.port)
            .user(SERVER_USER)
            .dbname(database)
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
    }

    /// A direct connection of `role` over TCP.
    ///
    /// # Panics
    /// When the login fails.
    #[must_use]
    pub fn connect(&self, role: &str) -> Client {
        client_config(self.port, role).connect(NoTls).unwrap()
    }

    /// Process id of the postmaster.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("server is running");
        file.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(&self) {
        let mut command = self.command("pg_ctl", &self.data);
        command.args(["start", "-w", "-t", "60", "-s", "-D"]).arg(&self.data).arg("-l");
        command.arg(self.data.join("server.log"));
        run_detached(command, &self.data);
        eventually(PATIENCE, "server takes connections", || self.try_superuser().is_ok());
    }

    /// Stops the server: `fast`, `immediate` or `smart`.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self, mode: &str) {
        let mut command = self.command("pg_ctl", &self.data);
        command.args(["stop", "-w", "-s", "-m", mode, "-D"]).arg(&self.data);
        run(command);
    }

    /// Kills the postmaster and all its children at once, as a power cut does.
    pub fn kill(&self) {
        let postmaster = self.pid();
        signal("STOP", &[postmaster]);
        let mut all = children(postmaster);
        all.push(postmaster);
        signal("KILL", &all);
        eventually(PATIENCE, "killed server is gone", || {
            all.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(*pid))
        });
        // Where nobody reaps orphans, the dead postmaster's process id stays taken and its lock files look alive.
        let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
        let _ = std::fs::remove_file(self.sockets.join(format!(".s.PGSQL.{}.lock", self.port)));
    }

    /// Makes a standby the primary.
    ///
    /// # Panics
    /// When it cannot be promoted.
    pub fn promote(&self) {
        let mut command = self.command("pg_ctl", &self.data);
        command.args(["promote", "-w", "-s", "-D"]).arg(&self.data);
        run(command);
    }

    /// A shell's line that runs a program of PostgreSQL as the servers' user; `DATA` in it stands for the directory.
    #[must_use]
    pub fn shell(&self, program: &str, args: &str) -> String {
        let user = if is_root() {
            format!("setpriv --reuid={SERVER_USER} --regid={SERVER_USER} --init-groups ")
        } else {
            String::new()
        };
        let path = self.programs.path(program);
        format!("{user}{} {}", path.display(), args.replace("DATA", self.data.to_str().unwrap()))
    }

    /// What the server wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.data.join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until this standby has applied all that the primary has written.
    pub fn catch_up(&self, primary: &Self) {
        let sql = "select pg_current_wal_lsn()::text";
        let position: String = primary.superuser().query_one(sql, &[]).unwrap().get(0);
        eventually(PATIENCE, "standby catches up", || {
            let Ok(mut client) = self.try_superuser() else { return false };
            let reached =
                client.query_one("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", &[&position]);
            reached.is_ok_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
        });
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Like [`run`], for a program whose children live on: they must not hold our pipe open.
fn run_detached(mut command: Command, data: &Path) {
    let status = command.stderr(Stdio::null()).status().unwrap();
    let log = std::fs::read_to_string(data.join("server.log")).unwrap_or_default();
    assert!(status.success(), "{command:?}: {log}");
}

/// The roles and tables that tests use, as statements.
pub(crate) fn roles() -> String {
    let long = long_role();
    let mut sql = String::new();
    for role in ["app", "md5user", "clear", "trusty", &long] {
        let encryption = if role == "md5user" { "md5" } else { "scram-sha-256" };
        sql += &format!("set password_encryption = '{encryption}'; ");
        sql += &format!("create role {role} login password '{}'; ", password(role));
    }
    sql + "grant all on schema public to public; \
           create table copy_target (i int); grant all on copy_target to public; \
           create table counter (id int primary key, n int); insert into counter values (1, 0), (2, 0); \
           grant all on counter to public;"
}

/// Connection settings of `role` on `port` of this machine.
#[must_use]
pub fn client_config(port: u16, role: &str) -> postgres::Config {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(port).user(role).password(password(role)).dbname("postgres");
    config.connect_timeout(Duration::from_secs(30));
    config
}

impl Cluster {
    /// Starts a primary and one standby for each further role, all streaming.
    ///
    /// # Panics
    /// When PostgreSQL cannot be started.
    #[must_use]
    pub fn start(roles: &[Role]) -> Self {
        Self::start_with(&Programs::newest(), roles)
    }

    /// The same with the programs of another version.
    ///
    /// # Panics
    /// When PostgreSQL cannot be started.
    #[must_use]
    pub fn start_with(programs: &Programs, roles: &[Role]) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("helios-{}-{count}", std::process::id()));
        let guard = Guard::new(CLEAN_UP, &[dir.to_str().unwrap()]);
        std::fs::create_dir(&dir).unwrap();
        own(&dir);
        let mut counts = [0; 3];
        let nodes = std::iter::once(&Role::Primary).chain(roles).map(|role| {
            counts[*role as usize] += 1;
            let name = match role {
                Role::Primary => "primary".to_owned(),
                Role::Standby if counts[Role::Standby as usize] == 1 => "standby".to_owned(),
                Role::Standby => format!("standby-{}", counts[Role::Standby as usize]),
                Role::Replica => format!("replica-{}", counts[Role::Replica as usize]),
            };
            let (data, sockets, programs) = (dir.join(&name), dir.clone(), programs.clone());
            Node { data, name, role: *role, port: free_port(), sockets, programs }
        });
        let cluster = Self { nodes: nodes.collect(), dir: dir.clone(), _guard: guard };
        cluster.make_primary();
        std::thread::scope(|s| {
            for node in &cluster.nodes[1..] {
                s.spawn(|| cluster.make_standby(node));
            }
        });
        cluster
    }

    /// The cluster that most tests share: a primary, a standby and two replicas. Nobody may stop its servers. It
    /// lives until this process ends; its guard sees that.
    ///
    /// # Panics
    /// When PostgreSQL cannot be started.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[Role::Standby, Role::Replica, Role::Replica]))
    }

    /// The server that was started as the primary.
    #[must_use]
    pub fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    /// A server by its name.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name == name).unwrap()
    }

    /// Runs statements as superuser on the primary and waits until every standby has them.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn execute(&self, sql: &str) {
        self.primary().superuser().batch_execute(sql).unwrap();
        for node in &self.nodes[1..] {
            node.catch_up(self.primary());
        }
    }

    fn make_primary(&self) {
        let node = self.primary();
        let mut initdb = node.command("initdb", &self.dir);
        initdb
            .args(["-N", "-A", "trust", "-E", "UTF8", "--locale=C", "-U", SERVER_USER, "-D"])
            .arg(&node.data);
        run(initdb);
        std::fs::write(node.data.join("pg_hba.conf"), HBA).unwrap();
        Self::configure(node);
        node.start();
        node.superuser().batch_execute(&roles()).unwrap();
    }

    fn make_standby(&self, node: &Node) {
        if node.programs.has("pg_basebackup") {
            let mut backup = node.command("pg_basebackup", &self.dir);
            backup.args(["-c", "fast", "-X", "stream", "-R", "-U", SERVER_USER, "-h", "127.0.0.1", "-p"]);
            backup.arg(self.primary().port.to_string()).arg("-D").arg(&node.data);
            run(backup);
        } else {
            backup::copy(self.primary(), node);
        }
        let _ = std::fs::remove_file(node.data.join("server.log"));
        Self::configure(node);
        node.start();
        node.catch_up(self.primary());
    }

    fn configure(node: &Node) {
        let sockets = node.sockets.display();
        // A standby says its cluster_name as application_name: that is how synchronous_standby_names knows it.
        let text = format!(
            "{SETTINGS}\nport = {}\nunix_socket_directories = '{sockets}'\ncluster_name = '{}'\n",
            node.port, node.name
        );
        // initdb's own file holds nothing that we need.
        std::fs::write(node.data.join("postgresql.conf"), text).unwrap();
    }
}
