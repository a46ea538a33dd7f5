//! `helios-controlplane` as a process, and a client that does what `heliosctl` does. The program stands beside the proxy's.
//! Killed when dropped; its store is removed with it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use helios_proto::wire::v1::management_client::ManagementClient;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::guard::{Guard, signal};
use crate::http;
use crate::proxy::{Logging, address_of, config_file, program};
use crate::{eventually, first_said};

/// How long the program may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The token of a role.
#[must_use]
pub fn token(role: &str) -> String {
    format!("token-of-the-{role}")
}

/// A running control plane.
pub struct ControlPlane {
    /// Where data planes connect.
    pub discovery: SocketAddr,
    /// Where operators connect.
    pub management: SocketAddr,
    /// Where HTTP answers.
    pub admin: SocketAddr,
    /// Its process id.
    pub pid: u32,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    _guard: Guard,
}

/// The part of a configuration that a control plane needs beside nodes: a store, a token for each role, and where to
/// listen; port 0 lets the kernel choose.
#[must_use]
pub fn sections(directory: &str, discovery: u16) -> String {
    sections_with(&format!("directory = \"{directory}\""), discovery)
}

/// The same with another store: what stands in its section.
#[must_use]
pub fn sections_with(store: &str, discovery: u16) -> String {
    let mut text = format!(
        "\n[store]\n{store}\n[discovery]\nlisten_address = \"127.0.0.1:{discovery}\"\n\
         [management]\nlisten_address = \"127.0.0.1:0\"\n"
    );
    for role in ["viewer", "operator", "admin", "dataplane"] {
        let token = token(role);
        text +=
            &format!("[[management.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\ntoken = \"{token}\"\n");
    }
    text
}

/// A new directory's name for a store or state.
#[must_use]
pub fn directory(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("helios-{what}-{}-{count}", std::process::id()));
    path.to_str().unwrap().to_owned()
}

impl ControlPlane {
    /// Starts with a configuration text and waits until it listens.
    ///
    /// # Panics
    /// When it ends or does not listen in time.
    #[must_use]
    #[track_caller]
    pub fn start(text: &str) -> Self {
        Self::start_logging(text, Logging { filter: "info", format: "text" })
    }

    /// The same with variables in its environment.
    ///
    /// # Panics
    /// As [`ControlPlane::start`].
    #[must_use]
    #[track_caller]
    pub fn start_with(text: &str, variables: &[(&str, &str)]) -> Self {
        Self::launch(text, Logging { filter: "info", format: "text" }, variables)
    }

    /// The same with another log.
    ///
    /// # Panics
    /// As [`ControlPlane::start`].
    #[must_use]
    #[track_caller]
    pub fn start_logging(text: &str, logging: Logging) -> Self {
        Self::launch(text, logging, &[])
    }

    #[track_caller]
    fn launch(text: &str, logging: Logging, variables: &[(&str, &str)]) -> Self {
        let file = config_file(text);
        let mut child = Command::new(program().with_file_name("helios-controlplane"))
            .arg("--config")
            .arg(&file)
            .args(["--log-format", logging.format])
            .env("RUST_LOG", logging.filter)
            .env("NO_COLOR", "1")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("helios-controlplane is built (cargo build -p helios-controlplane)");
        let pid = child.id();
        let guard = Guard::new("kill -9 \"$1\"; rm -f \"$2\"", &[&pid.to_string(), file.to_str().unwrap()]);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|l| into.lock().unwrap().push(l)));
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = log.lock().unwrap().clone();
            let found = |what: &str| lines.iter().find_map(|line| address_of(line, what));
            let all = (found("discovery"), found("management"), found("admin"));
            if let (Some(discovery), Some(management), Some(admin)) = all {
                return Self { discovery, management, admin, pid, child, log, _guard: guard };
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the control plane ended with {ended:?}: {lines:#?}");
            assert!(Instant::now() < end, "the control plane does not listen: {lines:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it serves: one whose store is elsewhere has to reach it first.
    ///
    /// # Panics
    /// When it does not in time.
    #[must_use]
    #[track_caller]
    pub fn ready(self) -> Self {
        eventually(PATIENCE, "the control plane is ready", || {
            http::get(self.admin, "/health/ready").is_ok_and(|answer| answer.status == 200)
        });
        self
    }

    /// A value of `/health`.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn health(&self, name: &str) -> serde_json::Value {
        let answer = http::get(self.admin, "/health").unwrap();
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        body.get(name).cloned().unwrap_or_default()
    }

    /// Sends a signal (`STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        signal(name, &[self.pid]);
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// An operator with the token of this role.
    #[must_use]
    pub fn operator(&self, role: &str) -> Operator {
        Operator::new(self.management, Some(&token(role)))
    }

    /// All lines of the log so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
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

    /// Sends SIGHUP.
    pub fn reload(&self) {
        signal("HUP", &[self.pid]);
    }

    /// A metric of its own, if it is there.
    ///
    /// # Panics
    /// When HTTP does not answer.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        http::Metrics::parse(&http::get(self.admin, "/metrics").unwrap().body).sum(name, labels)
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn terminate(&mut self) -> ExitStatus {
        signal("TERM", &[self.pid]);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the control plane does not end: {:#?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the control plane's log: {:#?}", self.log.lock().unwrap());
        }
        self.kill();
    }
}

/// Adds a token to each call.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// The generated client behind a token.
pub type Client = ManagementClient<InterceptedService<Channel, Bearer>>;

/// An operator, for tests that do not await.
pub struct Operator {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Operator {
    /// Calls this address, with or without a token.
    ///
    /// # Panics
    /// When there is no runtime.
    #[must_use]
    pub fn new(address: SocketAddr, token: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
        };
        let client = ManagementClient::with_interceptor(channel, Bearer(token.map(str::to_owned)));
        Self { runtime, client }
    }

    /// Makes one call.
    ///
    /// # Errors
    /// What the service says.
    pub fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call(&mut self.client)).map(tonic::Response::into_inner)
    }
}
