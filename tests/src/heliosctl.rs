//! `heliosctl` as a process: one command, its exit code, what it printed. The program stands beside the proxy's. It sees
//! no configuration and no environment of whoever runs the tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::controlplane::{directory, token};
use crate::guard::Guard;
use crate::proxy::program;

/// An operator's shell.
#[derive(Debug, Clone)]
pub struct Heliosctl {
    endpoint: Option<String>,
    token: Option<String>,
    home: PathBuf,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A command that goes on, such as a watch; killed when dropped.
pub struct Going {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    _guard: Guard,
}

impl Heliosctl {
    /// Nothing configured.
    #[must_use]
    pub fn bare() -> Self {
        Self { endpoint: None, token: None, home: directory("heliosctl").into() }
    }

    /// Asks this address without a token.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self { endpoint: Some(format!("http://{address}")), ..Self::bare() }
    }

    /// Asks this address over TLS, without a token.
    #[must_use]
    pub fn secure(address: SocketAddr) -> Self {
        Self { endpoint: Some(format!("https://{address}")), ..Self::bare() }
    }

    /// With the token of a role, see [`crate::controlplane::sections`].
    #[must_use]
    pub fn role(self, role: &str) -> Self {
        self.token(&token(role))
    }

    /// With this token.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// Where its contexts are.
    #[must_use]
    pub fn home(&self) -> &std::path::Path {
        &self.home
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program().with_file_name("heliosctl"));
        command.env_clear().env("XDG_CONFIG_HOME", &self.home).env("HOME", &self.home);
        command.envs(self.endpoint.as_ref().map(|endpoint| ("HELIOSCTL_ENDPOINTS", endpoint)));
        command.envs(self.token.as_ref().map(|token| ("HELIOSCTL_TOKEN", token)));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When the program is not built.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "")
    }

    /// Runs a command with this on its standard input.
    ///
    /// # Panics
    /// When the program is not built.
    #[must_use]
    pub fn run_with(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("cargo build -p heliosctl");
        // Who does not read its input may close it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("ended by itself");
        Ended { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Starts a command that goes on.
    ///
    /// # Panics
    /// When the program is not built.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Going {
        let mut child = self.command(args).stderr(Stdio::null()).spawn().expect("cargo build -p heliosctl");
        let guard = Guard::new("kill -9 \"$1\"", &[&child.id().to_string()]);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (from, into) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&lines));
        std::thread::spawn(move || from.map_while(Result::ok).for_each(|l| into.lock().unwrap().push(l)));
        Going { child, lines, _guard: guard }
    }
}

impl Ended {
    /// The output, of a command that ended with `code`.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[must_use]
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// The output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Going {
    /// What it has printed.
    ///
    /// # Panics
    /// Never, as long as the reader lives.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
