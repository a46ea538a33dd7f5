//! Real Redis: one server on a free port, with a password and nothing on disk. It can be killed, frozen and started again,
//! and ends when it is dropped.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::guard::{Guard, signal};
use crate::{eventually, free_port};

const PASSWORD: &str = "secret-of-redis";

/// A server.
pub struct Redis {
    port: u16,
    process: Option<(Child, Guard)>,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it does not, or is not installed.
    #[must_use]
    pub fn start() -> Self {
        let mut redis = Self { port: free_port(), process: None };
        redis.launch();
        redis
    }

    /// The URL, as a configuration has it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    /// Starts it after it was killed: everything that it knew is gone.
    ///
    /// # Panics
    /// As [`Redis::start`].
    pub fn launch(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--requirepass", PASSWORD])
            .args(["--save", "", "--appendonly", "no", "--dir", "/tmp"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server (tools/setup installs it)");
        let guard = Guard::new("kill -9 \"$1\"", &[&child.id().to_string()]);
        self.process = Some((child, guard));
        eventually(Duration::from_secs(20), "Redis answers", || {
            self.ask("PING").is_some_and(|said| said.contains("PONG"))
        });
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let (mut child, mut guard) = self.process.take().unwrap();
        child.kill().unwrap();
        let _ = child.wait();
        guard.disarm();
    }

    /// Stops or continues it: `STOP`, `CONT`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, name: &str) {
        signal(name, &[self.process.as_ref().unwrap().0.id()]);
    }

    /// What it says to a command; `None`: nothing.
    #[must_use]
    pub fn ask(&self, command: &str) -> Option<String> {
        let mut io = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        io.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        io.write_all(format!("AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut said = Vec::new();
        let _ = io.read_to_end(&mut said);
        Some(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
