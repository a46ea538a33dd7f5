//! The proxy as a process: started from a configuration text on ports that the kernel chose, its log captured line
//! by line, killed when dropped. The program is `$HELIOS_PROXY_BIN`, else `heliosdb-proxy` beside the test's own
//! profile directory.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Node, Role, client_config};
use crate::guard::{Guard, signal};
use crate::http::{self, Metrics};
use crate::net::Net;
use crate::patroni::Patroni;
use crate::raw::{Hello, Raw};
use crate::{cluster, eventually, first_said};

/// How long the proxy may take to start, reload or stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a program logs, and how.
#[derive(Debug, Clone, Copy)]
pub struct Logging {
    /// `RUST_LOG`.
    pub filter: &'static str,
    /// `--log-format`: `text` or `json`.
    pub format: &'static str,
}

/// What a proxy logs in tests.
const LOG: Logging = Logging { filter: "heliosdb_proxy=debug,info", format: "text" };

/// A configuration file in the making, in the guide's order.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[pool_mode]` mode.
    pub mode: &'static str,
    /// `[pool_mode]` max_pool_size.
    pub pool: u32,
    /// `[pool_mode]` acquire_timeout_secs.
    pub acquire_timeout: u32,
    /// `[load_balancer]` read_write_split.
    pub split: bool,
    /// `[load_balancer]` read_strategy.
    pub strategy: &'static str,
    /// Further lines of `[load_balancer]`.
    pub balancer: &'static str,
    /// `[[nodes]]`: name, role, port.
    pub nodes: Vec<(String, Role, u16)>,
    /// Further tables, as text.
    pub more: String,
}

/// A running proxy.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where HTTP answers.
    pub admin: SocketAddr,
    /// Its process id.
    pub pid: u32,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    file: PathBuf,
    guard: Guard,
}

impl Config {
    /// In front of every node of `cluster`, probed as role `app`.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self::with_nodes(&cluster.nodes.iter().collect::<Vec<_>>())
    }

    /// In front of the primary alone.
    #[must_use]
    pub fn primary_only(cluster: &Cluster) -> Self {
        Self::with_nodes(&[cluster.primary()])
    }

    /// In front of every server of a cluster that Patroni leads, with Patroni as the provider.
    #[must_use]
    pub fn of_patroni(patroni: &Patroni) -> Self {
        let mut config = Self::with_nodes(&patroni.nodes.iter().collect::<Vec<_>>());
        let _ = write!(
            config.more,
            "[topology]\nprovider = \"patroni\"\npatroni_endpoints = {}\npoll_interval_secs = 0.5\n\
             patroni_user = \"api\"\npatroni_password = \"api-secret\"\n",
            patroni.endpoints()
        );
        if let Some(pki) = &patroni.pki {
            let _ = writeln!(config.more, "patroni_ca_file = \"{}\"", pki.file("ca.pem"));
        }
        config
    }

    fn with_nodes(nodes: &[&Node]) -> Self {
        let password = cluster::password("app");
        Self {
            mode: "transaction",
            pool: 10,
            acquire_timeout: 5,
            split: true,
            strategy: "least_connections",
            balancer: "",
            nodes: nodes.iter().map(|n| (n.name.clone(), n.role, n.port)).collect(),
            more: format!(
                "[health]\ncheck_interval_secs = 1\nfailure_threshold = 2\nuser = \"app\"\npassword = \"{password}\"\n"
            ),
        }
    }

    /// Adds a `[[users]]` entry; `secret` is its second line.
    #[must_use]
    pub fn user(mut self, name: &str, secret: &str) -> Self {
        let _ = write!(self.more, "\n[[users]]\nname = \"{name}\"\n{secret}\n");
        self
    }

    /// The file's text, listening on ports that the kernel chooses.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!(
            "listen_address = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n\n\
             [pool_mode]\nmode = \"{}\"\nmax_pool_size = {}\nacquire_timeout_secs = {}\n\n\
             [load_balancer]\nread_write_split = {}\nread_strategy = \"{}\"\n{}\n\n{}\n",
            self.mode, self.pool, self.acquire_timeout, self.split, self.strategy, self.balancer, self.more
        );
        for (name, role, port) in &self.nodes {
            let role = match role {
                Role::Primary => "primary",
                Role::Standby => "standby",
                Role::Replica => "replica",
            };
            let _ = write!(
                out,
                "\n[[nodes]]\nhost = \"127.0.0.1\"\nport = {port}\nrole = \"{role}\"\nname = \"{name}\"\n"
            );
        }
        out
    }

    /// Starts a proxy with this configuration.
    #[must_use]
    pub fn start(&self) -> Proxy {
        Proxy::start(&self.text())
    }
}

/// The program under test.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("HELIOS_PROXY_BIN") {
        return path.into();
    }
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("heliosdb-proxy");
    assert!(path.exists(), "{} is not built (cargo build -p heliosdb-proxy)", path.display());
    path
}

/// A new file for a configuration.
pub(crate) fn config_file(text: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("helios-config-{}-{count}.toml", std::process::id()));
    write_private(&path, text);
    path
}

/// Configuration files may hold secrets: only their owner reads them.
fn write_private(path: &Path, text: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Runs `heliosdb-proxy --config FILE --check` on a configuration text.
///
/// # Panics
/// When the program cannot be run.
#[must_use]
pub fn check(text: &str) -> Output {
    check_with(text, &[])
}

/// The same with environment variables.
///
/// # Panics
/// When the program cannot be run.
#[must_use]
pub fn check_with(text: &str, variables: &[(&str, &str)]) -> Output {
    check_by(&program(), text, variables)
}

/// What `--check` of this program says of a configuration text.
///
/// # Panics
/// When the program cannot be run.
#[must_use]
pub fn check_by(program: &Path, text: &str, variables: &[(&str, &str)]) -> Output {
    let file = config_file(text);
    let mut command = Command::new(program);
    command.envs(variables.iter().copied());
    let output = command.arg("--config").arg(&file).arg("--check").output().unwrap();
    let _ = std::fs::remove_file(file);
    output
}

impl Proxy {
    /// Starts with a configuration text and waits until it listens.
    ///
    /// # Panics
    /// When it ends or does not listen in time.
    #[must_use]
    #[track_caller]
    pub fn start(text: &str) -> Self {
        Self::launch(text, Command::new("sh"), LOG)
    }

    /// The same with another log.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    #[must_use]
    #[track_caller]
    pub fn start_logging(text: &str, log: Logging) -> Self {
        Self::launch(text, Command::new("sh"), log)
    }

    /// The same with variables in its environment.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    #[must_use]
    #[track_caller]
    pub fn start_with(text: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.envs(variables.iter().copied());
        Self::launch(text, command, LOG)
    }

    /// The same inside a network of its own.
    ///
    /// # Panics
    /// As [`Proxy::start`].
    #[must_use]
    #[track_caller]
    pub fn start_in(net: &Net, text: &str) -> Self {
        let prefix = net.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg("sh");
        Self::launch(text, command, LOG)
    }

    #[track_caller]
    fn launch(text: &str, mut command: Command, logging: Logging) -> Self {
        let file = config_file(text);
        command
            .args(["-c", "ulimit -n 65536 2>/dev/null || ulimit -n \"$(ulimit -Hn)\"; exec \"$0\" \"$@\""]);
        command.arg(program()).arg("--config").arg(&file).args(["--log-format", logging.format]);
        command.env("RUST_LOG", logging.filter).env("NO_COLOR", "1");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let guard = Guard::new("kill -9 \"$1\"; rm -f \"$2\"", &[&pid.to_string(), file.to_str().unwrap()]);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|l| into.lock().unwrap().push(l)));
        let end = Instant::now() + PATIENCE;
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut proxy = Self { address: unset, admin: unset, pid, child, log, file, guard };
        loop {
            let lines = proxy.log();
            let found = |what: &str| lines.iter().find_map(|line| address_of(line, what));
            if let (Some(address), Some(admin)) = (found("listening"), found("admin")) {
                (proxy.address, proxy.admin) = (address, admin);
                return proxy;
            }
            let ended = proxy.child.try_wait().unwrap();
            assert!(ended.is_none(), "the proxy ended with {ended:?}: {:#?}", proxy.log());
            assert!(Instant::now() < end, "the proxy does not listen: {:#?}", proxy.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `/health/ready` says 200 and every node has been found healthy.
    ///
    /// # Panics
    /// When it does not in time.
    #[must_use]
    #[track_caller]
    pub fn ready(self) -> Self {
        eventually(PATIENCE, "proxy is ready", || {
            http::get(self.admin, "/health/ready").is_ok_and(|a| a.status == 200)
        });
        eventually(PATIENCE, "every node is healthy", || {
            let metrics = self.metrics();
            let mut nodes = metrics.0.iter().filter(|s| s.name == "heliosproxy_node_healthy").peekable();
            nodes.peek().is_some() && nodes.all(|s| s.value > 0.5)
        });
        self
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connects as `role` with a stock driver.
    ///
    /// # Panics
    /// When the login fails.
    #[must_use]
    #[track_caller]
    pub fn connect(&self, role: &str) -> postgres::Client {
        self.config(role).connect(postgres::NoTls).unwrap_or_else(|e| panic!("{e:?}: {:#?}", self.tail()))
    }

    /// Connection settings of `role` through this proxy.
    #[must_use]
    pub fn config(&self, role: &str) -> postgres::Config {
        let mut config = client_config(self.port(), role);
        // Beside the host that it names already: inside a network of its own.
        if !self.address.ip().is_loopback() {
            config.hostaddr(self.address.ip());
        }
        config
    }

    /// Connects as `role` with the raw client.
    #[must_use]
    pub fn raw(&self, role: &str) -> (Raw, Hello) {
        Raw::login(self.port(), role, &cluster::password(role))
    }

    /// The same in TLS.
    #[must_use]
    pub fn raw_tls(&self, role: &str) -> (Raw, Hello) {
        Raw::login_tls(self.port(), role, &cluster::password(role))
    }

    /// All lines of the log so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let log = self.log();
        log[log.len().saturating_sub(10)..].to_vec()
    }

    /// Lines of the log with this text in them.
    #[must_use]
    pub fn logged(&self, text: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|l| l.contains(text)).cloned().collect()
    }

    /// The first line of the log with this text, once it is there: what the process does is seen before what it logs
    /// is read.
    ///
    /// # Panics
    /// When there is none within 20 s.
    #[must_use]
    #[track_caller]
    pub fn said(&self, text: &str) -> String {
        first_said(text, || self.logged(text))
    }

    /// A scrape of `/metrics`.
    ///
    /// # Panics
    /// When it does not answer with 200.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        Metrics::parse(&answer.body)
    }

    /// `GET path` on the admin port.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str) -> http::Answer {
        http::get(self.admin, path).unwrap()
    }

    /// Writes another configuration file; [`Proxy::reload`] makes the proxy read it.
    pub fn rewrite(&self, text: &str) {
        write_private(&self.file, text);
    }

    /// Sends SIGHUP.
    pub fn reload(&self) {
        signal("HUP", &[self.pid]);
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal("TERM", &[self.pid]);
    }

    /// Waits for the process to end.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the proxy does not end: {:#?}", self.tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Resident memory in KiB.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// The address in a line of the log, text or JSON, that says `what` listens.
pub(crate) fn address_of(line: &str, what: &str) -> Option<SocketAddr> {
    if line.starts_with('{') {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let said = line.get("fields").unwrap_or(&line);
        return if said["message"] == what { said["address"].as_str()?.parse().ok() } else { None };
    }
    line.split_once(&format!("{what} address="))?.1.split_whitespace().next()?.parse().ok()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the proxy's last lines: {:#?}", self.tail());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.guard.disarm();
        let _ = std::fs::remove_file(&self.file);
    }
}
