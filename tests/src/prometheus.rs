//! Debian's Prometheus on a free port, which scrapes what the tests name, under the project's own rules. Ends when dropped,
//! and its files go with it. Needs `make setup`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::controlplane::directory;
use crate::guard::Guard;
use crate::{eventually, free_port, http};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Prometheus.
pub struct Prometheus {
    address: SocketAddr,
    child: Child,
    dir: PathBuf,
    _guard: Guard,
}

/// The recording and alerting rules that the project ships.
#[must_use]
pub fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring/rules.yml").canonicalize().unwrap()
}

/// Runs `promtool`.
///
/// # Panics
/// When it is not content.
#[track_caller]
pub fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).output().expect("promtool (make setup)");
    assert!(output.status.success(), "promtool {arguments:?}: {output:?}");
}

/// Panics unless a configuration that stands beside the project's rules is valid.
///
/// # Panics
/// See above.
#[track_caller]
pub fn check_config(text: &str) {
    let dir = PathBuf::from(directory("promtool"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(rules(), dir.join("rules.yml")).unwrap();
    std::fs::write(dir.join("prometheus.yml"), text).unwrap();
    promtool(&["check", "config", dir.join("prometheus.yml").to_str().unwrap()]);
    std::fs::remove_dir_all(&dir).unwrap();
}

impl Prometheus {
    /// Scrapes these addresses of each job five times a second, and waits until it answers.
    ///
    /// # Panics
    /// When it does not in time.
    #[must_use]
    pub fn start(jobs: &[(&str, &[SocketAddr])]) -> Self {
        let (dir, port) = (PathBuf::from(directory("prometheus")), free_port());
        std::fs::create_dir_all(&dir).unwrap();
        let rules = rules();
        let mut text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}\n\
             rule_files: [{rules:?}]\nscrape_configs:\n"
        );
        for (job, targets) in jobs {
            let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
            text += &format!("- job_name: {job}\n  static_configs: [{{targets: {targets:?}}}]\n");
        }
        let config = dir.join("prometheus.yml");
        std::fs::write(&config, text).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus (make setup)");
        let guard =
            Guard::new("kill -9 \"$1\"; rm -rf \"$2\"", &[&child.id().to_string(), dir.to_str().unwrap()]);
        let prometheus = Self { address, child, dir, _guard: guard };
        eventually(PATIENCE, "Prometheus answers", || {
            http::get(address, "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        prometheus
    }

    /// Asks its API; what stands under `data` in the answer.
    ///
    /// # Panics
    /// When it answers with an error.
    #[must_use]
    pub fn ask(&self, path: &str) -> Value {
        // Of HTTP 1.0, so that the answer is not in chunks.
        let request = format!("GET /api/v1/{path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        let answer = http::exchange(self.address, request.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let mut body: Value = serde_json::from_str(&answer.body).unwrap();
        body["data"].take()
    }

    /// The values of an expression now.
    ///
    /// # Panics
    /// When it is not valid.
    #[must_use]
    pub fn values(&self, expression: &str) -> Vec<f64> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.ask(&format!("query?query={encoded}"));
        let number = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        data["result"].as_array().unwrap().iter().map(number).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
