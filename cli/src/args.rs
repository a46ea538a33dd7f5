//! The command line: options that every command has, and the tree of commands. Examples in the help are parsed by a
//! test. Never does anything.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use helios_papers::Shell;

use crate::verbs::{CacheVerb, ConfigVerb, ContextVerb, DataplaneVerb, NodeVerb, PoolVerb, TopologyVerb};
use crate::words::duration;

/// Sees and changes a HeliosProxy: one standalone proxy, or a fleet behind a control plane.
#[derive(Debug, Parser)]
#[command(name = "heliosctl", version, after_help = AFTER, propagate_version = false, max_term_width = 110)]
pub struct Cli {
    /// What every command has.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Examples:
  heliosctl status
  heliosctl node list -o wide
  heliosctl node drain replica-1
  heliosctl --endpoints https://cp-1:9091 --ca ca.pem --token-file ops.token config history

Without anything configured it asks http://127.0.0.1:9091, where a standalone heliosdb-proxy listens.

Exit codes:
  0 done           3 not found                      6 denied
  1 differences    4 conflict                       7 degraded, or waited too long
  2 usage          5 unavailable                    8 rejected by validation";

/// What every command has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Management service, or several with commas between them: the first that answers is asked
    /// [env: HELIOSCTL_ENDPOINTS] [default: http://127.0.0.1:9091]
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// Token; better in HELIOSCTL_TOKEN or a file, since others may see the command line
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File that holds the token
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Authorities of the service's certificate (PEM), for endpoints with https:// [env: HELIOSCTL_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Own certificate (PEM), where the service asks for one [env: HELIOSCTL_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Private key of that certificate (PEM) [env: HELIOSCTL_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Name in the service's certificate, if it is not the host of the endpoint [env: HELIOSCTL_SERVER_NAME]
    #[arg(long, global = true, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Context to use, see `heliosctl context`
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
    /// No colours, also on a terminal; NO_COLOR does the same
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Longest wait for an answer, and for data planes to acknowledge a change
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// The same with more columns.
    Wide,
    /// One document, or one object a line while watching.
    Json,
    /// One document, or several while watching.
    Yaml,
    /// Names only, one a line.
    Name,
}

/// Repeating a list.
#[derive(Debug, Clone, Copy, Args)]
pub struct Watch {
    /// Go on, and print what changes
    #[arg(short, long)]
    pub watch: bool,
    /// How often to look while watching
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub interval: Duration,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One screen about everything; exit code 7 if something is wrong
    #[command(after_help = "Examples:\n  heliosctl status\n  heliosctl status -o json")]
    Status,
    /// A list of checks, each ok, a warning or failed; exit code 7 if one failed
    #[command(after_help = "Examples:\n  heliosctl check\n  heliosctl check -o json")]
    Check,
    /// PostgreSQL servers
    #[command(subcommand, after_help = "Examples:\n  heliosctl node list\n  heliosctl node drain replica-1")]
    Node(NodeVerb),
    /// Pools of server connections
    #[command(subcommand, after_help = "Examples:\n  heliosctl pool list\n  heliosctl pool pause primary")]
    Pool(PoolVerb),
    /// Result caches of the data planes
    #[command(subcommand, after_help = "Examples:\n  heliosctl cache stats\n  heliosctl cache flush")]
    Cache(CacheVerb),
    /// Proxies
    #[command(
        subcommand,
        alias = "dp",
        after_help = "Examples:\n  heliosctl dataplane list\n  heliosctl dp list"
    )]
    Dataplane(DataplaneVerb),
    /// Who is the primary, and what each node is
    #[command(
        subcommand,
        after_help = "Examples:\n  heliosctl topology show\n  heliosctl topology watch -o json"
    )]
    Topology(TopologyVerb),
    /// The configuration and its revisions
    #[command(
        subcommand,
        after_help = "Examples:\n  heliosctl config get\n  heliosctl config diff config.toml\n  heliosctl config apply config.toml"
    )]
    Config(ConfigVerb),
    /// What happened last; with -w, what happens
    #[command(
        after_help = "Examples:\n  heliosctl events\n  heliosctl events --limit 200\n  heliosctl events -w -o json"
    )]
    Events {
        /// Go on with what happens from now on
        #[arg(short, long)]
        watch: bool,
        /// Most past events
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// Who changed what, newest first
    #[command(after_help = "Examples:\n  heliosctl audit\n  heliosctl audit --actor ops --limit 10")]
    Audit {
        /// Only changes by this token
        #[arg(long, value_name = "NAME")]
        actor: Option<String>,
        /// Most entries
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// Where a statement would go now, and why; answered by a standalone proxy
    #[command(
        after_help = "Examples:\n  heliosctl explain \"select 1\"\n  heliosctl explain \"delete from t\" --user app --database shop"
    )]
    Explain {
        /// The statement
        #[arg(value_name = "SQL")]
        sql: String,
        /// As this user
        #[arg(long, default_value = "", hide_default_value = true)]
        user: String,
        /// On this database
        #[arg(long, default_value = "", hide_default_value = true)]
        database: String,
    },
    /// Hands the primary's part to a standby, between the transactions of every data plane
    #[command(
        after_help = "Examples:\n  heliosctl switchover --to standby --dry-run\n  heliosctl switchover --to standby --drain-timeout 5s --yes\n\nWhat fails before the promotion is taken back. Exit code 7: it failed, and says why."
    )]
    Switchover {
        /// Node that is to become the primary; without it the only standby that is up
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Longest wait for open transactions; without it as configured
        #[arg(long, value_parser = duration, value_name = "DURATION")]
        drain_timeout: Option<Duration>,
        /// Look only
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// A live screen; plain lines if standard output is no terminal
    #[command(
        after_help = "Examples:\n  heliosctl top\n  heliosctl top --interval 5s\n  heliosctl top --once\n\nCtrl-C ends it."
    )]
    Top {
        /// How often to look
        #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
        interval: Duration,
        /// One screen, after one interval, and end
        #[arg(long)]
        once: bool,
    },
    /// Named endpoints and tokens
    #[command(
        subcommand,
        after_help = "Examples:\n  heliosctl context set prod --endpoints http://cp-1:9091 --token-file ops.token\n  heliosctl context use prod"
    )]
    Context(ContextVerb),
    /// Makes a configuration of pgbouncer.ini: to standard output, notes to standard error
    #[command(
        after_help = "Examples:\n  heliosctl import /etc/pgbouncer/pgbouncer.ini > config.toml\n  heliosctl import pgbouncer.ini --users userlist.txt > config.toml\n\nThe output holds the passwords of the file of users: keep it from others."
    )]
    Import {
        /// The file; - is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// File of users; by default that of auth_file, if it can be read
        #[arg(long, value_name = "FILE")]
        users: Option<PathBuf>,
    },
    /// Prints a completion script
    #[command(
        after_help = "Examples:\n  heliosctl completion bash > ~/.local/share/bash-completion/completions/heliosctl\n  heliosctl completion fish > ~/.config/fish/completions/heliosctl.fish"
    )]
    Completion {
        /// For this shell
        shell: Shell,
    },
    /// Prints the manual page
    #[command(after_help = "Examples:\n  heliosctl man | man -l -\n  heliosctl man --directory man1")]
    Man {
        /// Write the pages of all commands there instead
        #[arg(long, value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
    /// Version of this program, and of what answers
    #[command(after_help = "Examples:\n  heliosctl version\n  heliosctl version --client")]
    Version {
        /// Of this program only; asks nobody
        #[arg(long)]
        client: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// The words of a line as a shell would split it: quotes, and nothing after a pipe or a redirection.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                ' ' if !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty())),
                '|' | '>' if !quoted => break,
                _ => word.push(c),
            }
        }
        words.extend(Some(word).filter(|w| !w.is_empty()));
        words
    }

    fn each(command: &clap::Command, see: &mut dyn FnMut(&clap::Command)) {
        see(command);
        command.get_subcommands().for_each(|command| each(command, see));
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_has_examples_and_they_are_right() {
        let mut seen = 0;
        each(&Cli::command(), &mut |command| {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Examples:"), "{} has no examples", command.get_name());
            for line in after.lines().filter(|line| line.starts_with("  heliosctl ")) {
                Cli::try_parse_from(words(line)).unwrap_or_else(|error| panic!("{line}: {error}"));
                seen += 1;
            }
        });
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        each(&Cli::command(), &mut |command| {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                let builtin = ["help", "version"].contains(&arg.get_id().as_str());
                assert!(arg.get_help().is_some() || builtin, "{} {}", command.get_name(), arg.get_id());
            }
        });
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        for line in [
            "heliosctl",
            "heliosctl nonsense",
            "heliosctl switchover --drain-timeout never",
            "heliosctl node",
            "heliosctl node drain",
            "heliosctl node set-weight a",
            "heliosctl node set-weight a 5 --reset",
            "heliosctl node set-weight a -1",
            "heliosctl node add db:1 --role boss",
            "heliosctl pool resize a",
            "heliosctl pool pause",
            "heliosctl pool pause a --all",
            "heliosctl config diff",
            "heliosctl status --timeout never",
            "heliosctl status -o xml",
            "heliosctl --token a --token-file b status",
            "heliosctl completion powershell",
        ] {
            let error = Cli::try_parse_from(words(line)).err();
            // A command that lacks its verb shows the help, which is a usage error as well.
            assert!(error.is_some_and(|error| error.exit_code() == 2), "{line}");
        }
    }
}
