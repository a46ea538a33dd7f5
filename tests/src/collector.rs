//! A real OpenTelemetry collector (`rotel`, which `tools/setup` fetches): takes spans by OTLP over gRPC and says what it got. It
//! ends when it is dropped.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::guard::Guard;
use crate::programs::FETCHED;
use crate::{eventually, free_port};

/// A collector.
pub struct Collector {
    program: PathBuf,
    ports: (u16, u16),
    log: PathBuf,
    process: Option<(Child, Guard)>,
}

/// A span as the collector shows it.
#[derive(Debug)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// Identifier of its parent, in hexadecimal digits.
    pub parent: String,
    /// Everything about it.
    pub text: String,
}

impl Span {
    /// Whether it has this attribute.
    #[must_use]
    pub fn has(&self, key: &str, value: &str) -> bool {
        let wanted = format!("-> {key}: ");
        let found = self.text.lines().find_map(|line| line.trim().strip_prefix(&wanted));
        found
            .is_some_and(|found| found.split_once('(').is_some_and(|(_, v)| v.trim_end_matches(')') == value))
    }

    fn field<'a>(text: &'a str, name: &str) -> &'a str {
        let line = text.lines().find(|line| line.trim().starts_with(name)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value.trim())
    }
}

impl Collector {
    /// Starts one and waits until it listens. `None`, and a line on standard error, where it could not be installed.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    pub fn start() -> Option<Self> {
        let program = Path::new(FETCHED).join("rotel-agent");
        if !program.exists() {
            crate::loudly(
                "SKIPPED: no OpenTelemetry collector on this machine (tools/setup fetches it where pip can)",
            );
            return None;
        }
        let ports = (free_port(), free_port());
        let log = std::env::temp_dir().join(format!("helios-collector-{}.log", ports.0));
        let mut collector = Self { program, ports, log, process: None };
        collector.launch();
        Some(collector)
    }

    /// Where it takes spans.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.0)
    }

    /// Starts it, at its old place; what it said before is forgotten.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn launch(&mut self) {
        let log = File::create(&self.log).unwrap();
        let (grpc, http) = self.ports;
        let child = Command::new(&self.program)
            .args([
                "start",
                "--exporter",
                "blackhole",
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
            ])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let guard = Guard::new("kill -9 \"$1\"", &[&child.id().to_string()]);
        self.process = Some((child, guard));
        eventually(Duration::from_secs(20), "the collector listens", || {
            TcpStream::connect(("127.0.0.1", grpc)).is_ok()
        });
    }

    /// Ends it.
    ///
    /// # Panics
    /// When it was ended before.
    pub fn stop(&mut self) {
        let (mut child, guard) = self.process.take().unwrap();
        child.kill().unwrap();
        let _ = child.wait();
        drop(guard);
    }

    /// Everything that it has said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The span of the trace of this number.
    #[must_use]
    pub fn span(&self, trace: u32) -> Option<Span> {
        let (said, trace) = (self.said(), format!("{trace:032x}"));
        let spans =
            said.split("\nSpan #").skip(1).map(|text| text.split("\nResourceSpans #").next().unwrap());
        let mut found =
            spans.filter(|text| Span::field(text, "Trace ID") == trace && text.contains("Attributes:"));
        found.next().map(|text| Span {
            name: Span::field(text, "Name").to_owned(),
            parent: Span::field(text, "Parent ID").to_owned(),
            text: text.to_owned(),
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
