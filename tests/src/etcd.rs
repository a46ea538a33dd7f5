//! Real etcd, one member or several, on free ports and in a temporary directory. Everything ends and goes when it is
//! dropped. Each member can be killed, frozen and started again.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::controlplane::directory;
use crate::guard::{Guard, signal};
use crate::{eventually, free_port, http};

/// How long members may take to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of etcd.
pub struct Etcd {
    members: Vec<Member>,
    initial: String,
    dir: PathBuf,
}

struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<(Child, Guard)>,
}

impl Etcd {
    /// Starts this many members and waits until they serve.
    ///
    /// # Panics
    /// When they do not in time.
    #[must_use]
    pub fn start(members: usize) -> Self {
        let dir = PathBuf::from(directory("etcd"));
        std::fs::create_dir_all(&dir).unwrap();
        let member =
            |i| Member { name: format!("m{i}"), client: free_port(), peer: free_port(), process: None };
        let members: Vec<Member> = (0..members).map(member).collect();
        let initial: Vec<String> =
            members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer)).collect();
        let mut etcd = Self { members, initial: initial.join(","), dir };
        for i in 0..etcd.members.len() {
            etcd.launch(i);
        }
        etcd.serves();
        etcd
    }

    /// Where clients connect, as a configuration has it.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> =
            self.members.iter().map(|m| format!("\"http://127.0.0.1:{}\"", m.client)).collect();
        format!("[{}]", urls.join(", "))
    }

    /// Addresses of the members.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("http://127.0.0.1:{}", m.client)).collect()
    }

    /// Starts a member that was killed.
    ///
    /// # Panics
    /// When etcd is not installed.
    pub fn launch(&mut self, member: usize) {
        let (initial, dir) = (self.initial.clone(), self.dir.clone());
        let member = &mut self.members[member];
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let log = std::fs::File::create(dir.join(format!("{}.log", member.name))).unwrap();
        let child = Command::new("etcd")
            .args(["--name", &member.name, "--initial-cluster", &initial, "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(dir.join(&member.name))
            .args([
                "--listen-client-urls",
                &url(member.client),
                "--advertise-client-urls",
                &url(member.client),
            ])
            .args([
                "--listen-peer-urls",
                &url(member.peer),
                "--initial-advertise-peer-urls",
                &url(member.peer),
            ])
            // Passwords are for tests: by default a login takes a large part of a second on a busy machine.
            .args(["--bcrypt-cost", "4"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd (etcd-server; tools/setup installs it)");
        let arguments = [child.id().to_string(), dir.to_str().unwrap().to_owned()];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let guard = Guard::new("kill -9 \"$1\" && sleep 0.2; rm -rf \"$2\"", &arguments);
        member.process = Some((child, guard));
    }

    /// Waits until a majority serves.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn serves(&self) {
        eventually(PATIENCE, "etcd serves", || {
            let healthy = |m: &&Member| {
                http::get(address(m.client), "/health").is_ok_and(|answer| answer.body.contains("\"true\""))
            };
            self.members.iter().filter(|m| m.process.is_some()).all(|m| healthy(&m))
        });
    }

    /// Ends a member at once, as a power cut does; its data stay.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, member: usize) {
        let (mut child, mut guard) = self.members[member].process.take().expect("it runs");
        let _ = child.kill();
        let _ = child.wait();
        guard.disarm();
    }

    /// Sends a signal (`STOP`, `CONT`) to a member.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, name: &str, member: usize) {
        signal(name, &[self.members[member].process.as_ref().expect("it runs").0.id()]);
    }

    /// Forgets the history of every key before now.
    ///
    /// # Panics
    /// When no member answers.
    pub fn compact(&self) {
        let found = self.post("/v3/kv/range", &json!({"key": "AA=="}));
        let revision = found["header"]["revision"].as_str().unwrap().to_owned();
        let done = self.post("/v3/kv/compaction", &json!({"revision": revision, "physical": true}));
        assert!(done["header"].is_object(), "{done}");
    }

    /// From now on nobody is let in but `root` with this password.
    ///
    /// # Panics
    /// When etcd does not do so.
    pub fn demand_password(&self, password: &str) {
        for (path, body) in [
            ("/v3/auth/user/add", json!({"name": "root", "password": password})),
            ("/v3/auth/role/add", json!({"name": "root"})),
            ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
            ("/v3/auth/enable", json!({})),
        ] {
            let done = self.post(path, &body);
            assert!(done["header"].is_object(), "{path}: {done}");
        }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let member = self.members.iter().find(|m| m.process.is_some()).expect("a member runs");
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = http::exchange(address(member.client), request.as_bytes()).unwrap();
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {answer:?}"))
    }

    /// Where the members keep their data.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some((mut child, guard)) = member.process.take() {
                let _ = child.kill();
                let _ = child.wait();
                drop(guard);
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
