//! PgBouncer as Debian has it, whose console is what ours is compared with, and Debian's exporter for it. Killed when
//! dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cluster::{own, password, unprivileged};
use crate::controlplane::directory;
use crate::guard::Guard;
use crate::http::{self, Metrics};
use crate::{Node, eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running PgBouncer in front of one server, with `ops` as administrator and `watch` who may look.
pub struct PgBouncer {
    /// Where clients connect.
    pub port: u16,
    child: Child,
    _guard: Guard,
}

impl PgBouncer {
    /// Starts one with the database `postgres` of this server, and waits until it listens.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        let (dir, port) = (PathBuf::from(directory("pgbouncer")), free_port());
        std::fs::create_dir_all(&dir).unwrap();
        let users: String = ["app", "ops", "watch", "other"]
            .iter()
            .map(|role| format!("\"{role}\" \"{}\"\n", password(role)))
            .collect();
        std::fs::write(dir.join("users"), users).unwrap();
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\npool_mode = transaction\nauth_type = scram-sha-256\nauth_file = users\n\
             admin_users = ops\nstats_users = watch\nunix_socket_dir =\nlogfile = log\n",
            node.port
        );
        std::fs::write(dir.join("pgbouncer.ini"), text).unwrap();
        own(&dir);
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].iter().map(PathBuf::from);
        let program = program.clone().find(|path| path.exists()).expect("pgbouncer (make setup)");
        let mut command = unprivileged(&program, &dir);
        let child = command.args(["-q", "pgbouncer.ini"]).stderr(Stdio::null()).spawn().unwrap();
        let guard =
            Guard::new("kill -9 \"$1\"; rm -rf \"$2\"", &[&child.id().to_string(), dir.to_str().unwrap()]);
        eventually(PATIENCE, "PgBouncer listens", || {
            std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        Self { port, child, _guard: guard }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `prometheus-pgbouncer-exporter`, which asks the console of a pooler whenever it is scraped.
pub struct Exporter {
    address: SocketAddr,
    child: Child,
    _guard: Guard,
}

impl Exporter {
    /// Starts it as `role` on the console at this port.
    ///
    /// # Panics
    /// When it is not installed or cannot log in.
    #[must_use]
    pub fn start(console: u16, role: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let child = Command::new("prometheus-pgbouncer-exporter")
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--pgbouncer-host", "127.0.0.1", "--pgbouncer-port", &console.to_string()])
            .args(["--pgbouncer-user", role])
            .env("PGPASSWORD", password(role))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus-pgbouncer-exporter (make setup)");
        let guard = Guard::new("kill -9 \"$1\"", &[&child.id().to_string()]);
        let exporter = Self { address, child, _guard: guard };
        eventually(PATIENCE, "the exporter answers", || exporter.scrape().is_some());
        exporter
    }

    /// What it exports now; `None`: it cannot understand the console.
    #[must_use]
    pub fn scrape(&self) -> Option<Metrics> {
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        let answer = http::exchange(self.address, request.as_bytes()).ok()?;
        (answer.status == 200).then(|| Metrics::parse(&answer.body))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
