//! Cleaning up after a process that may die at any moment. A guard is a small shell that waits for the end of a pipe
//! whose other end only this process holds: the kernel closes it however this process ends, and the shell cleans up.

use std::process::{Child, Command, Stdio};

/// Runs a shell script when dropped, or when this process ends in any way.
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// Arms the guard: `script` gets `args` as `$1`, `$2`, ….
    ///
    /// # Panics
    /// When there is no shell.
    #[must_use]
    pub fn new(script: &str, args: &[&str]) -> Self {
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; {script}");
        let shell = Command::new("setsid")
            .args(["sh", "-c", &script, "guard"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid sh");
        Self { shell }
    }
}

impl Guard {
    /// Nothing is left to clean up: the script will not run.
    pub fn disarm(&mut self) {
        let _ = self.shell.kill();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Sends `signal` (`KILL`, `TERM`, `HUP`, `STOP`, …) to processes; those that are gone already are no error.
pub fn signal(signal: &str, pids: &[u32]) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(pids.iter().map(ToString::to_string))
        .stderr(Stdio::null())
        .status();
}

/// Processes whose parent is `pid`.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|n| parent(*n) == Some(pid)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
