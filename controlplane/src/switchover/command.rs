//! Commands of `[switchover]`: run by the shell, with what they need to know in their environment, under a deadline, in a
//! process group that ends with it. What they print goes to the log, not to the caller.

use std::process::Stdio;
use std::time::Duration;

use helios_proto::model::Node;
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes of a command's output that are told.
const MOST_WORDS: usize = 400;

/// Runs a command; `old` and `new` are the primary before and after.
pub async fn run(command: &str, (old, new): (&Node, &Node), limit: Duration) -> Result<(), String> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).kill_on_drop(true);
    for (name, node) in [("OLD", old), ("NEW", new)] {
        shell.env(format!("HELIOS_{name}_NODE"), node.name.as_str());
        shell.env(format!("HELIOS_{name}_HOST"), &node.host);
        shell.env(format!("HELIOS_{name}_PORT"), node.port.to_string());
    }
    let output = timeout(limit, shell.output()).await;
    let output = output.map_err(|_| format!("the command did not end in {limit:?}"))?;
    let output = output.map_err(|error| format!("the command cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    tracing::info!(status = %output.status, bytes = said.len(), "a command of [switchover] ended");
    if output.status.success() {
        return Ok(());
    }
    let cut = said.char_indices().rev().nth(MOST_WORDS).map_or(0, |(at, _)| at);
    Err(format!("the command failed, {}: {}", output.status, said.get(cut..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::{NodeName, Role};

    fn node(name: &str) -> Node {
        Node {
            name: NodeName::new(name),
            host: format!("{name}.internal"),
            port: 5432,
            role: Role::Standby,
            weight: 1,
            max_connections: None,
        }
    }

    #[tokio::test]
    async fn a_command_knows_both_nodes_and_its_words_are_told_when_it_fails() {
        let (old, new) = (node("a"), node("b"));
        let long = Duration::from_secs(30);
        let check = "test \"$HELIOS_OLD_NODE $HELIOS_OLD_HOST $HELIOS_NEW_HOST:$HELIOS_NEW_PORT\" = \
                     'a a.internal b.internal:5432'";
        run(check, (&old, &new), long).await.unwrap();
        let error = run("echo no luck >&2; exit 3", (&old, &new), long).await.unwrap_err();
        assert!(error.contains("exit status: 3") && error.ends_with("no luck"), "{error}");
        let error = run("sleep 600", (&old, &new), Duration::from_millis(50)).await.unwrap_err();
        assert!(error.contains("did not end"), "{error}");
    }
}
