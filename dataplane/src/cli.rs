//! The command line: arguments to a checked configuration. Never starts anything.

use crate::logging::LogFormat;
use clap::{CommandFactory as _, Parser};
use helios_papers::Papers;
use helios_proto::config::{self, Config};
use helios_proto::model::PoolMode;
use std::path::PathBuf;

/// HeliosProxy: a PostgreSQL proxy with connection pooling and read/write splitting.
#[derive(Debug, Parser)]
#[command(name = "heliosdb-proxy", version, after_help = AFTER)]
pub struct Args {
    /// Configuration file (TOML).
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["listen", "admin", "primary", "standby"])]
    pub config: Option<PathBuf>,
    /// Check the configuration, print every problem, and exit.
    #[arg(long)]
    pub check: bool,
    /// Where clients connect, without a file.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where the HTTP shim listens, without a file.
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// The primary, without a file.
    #[arg(long, value_name = "HOST:PORT")]
    pub primary: Option<String>,
    /// A standby, without a file; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub standby: Vec<String>,
    /// Form of the log lines.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What to print instead.
    #[command(flatten)]
    papers: Papers,
}

const AFTER: &str = "\
Examples:
  heliosdb-proxy --config /etc/heliosproxy/config.toml
  heliosdb-proxy --config config.toml --check
  heliosdb-proxy --listen 127.0.0.1:5433 --primary db1:5432 --standby db2:5432

Signals: SIGHUP reads the configuration again; SIGTERM and SIGINT drain and stop, a second one waits for nobody.
Exit codes: 0 stopped or checked well, 1 could not run, 2 wrong command line, 78 wrong configuration.
RUST_LOG=heliosdb_proxy=debug shows where each statement goes and why.";

/// Why there is no configuration: text for standard error.
pub type Problems = String;

impl Args {
    /// Prints the manual page or a completion script, if that was asked for in place of a start.
    #[must_use]
    pub fn print_paper(&self) -> bool {
        self.papers.print(Self::command())
    }

    /// The checked configuration that the arguments stand for.
    ///
    /// # Errors
    /// Every problem, one a line.
    pub fn configuration(&self) -> Result<Config, Problems> {
        let loaded = match &self.config {
            Some(path) => config::load(path, &|name| std::env::var(name).ok()),
            None => config::from_args(
                self.listen.as_deref(),
                self.admin.as_deref(),
                self.primary.as_deref(),
                &self.standby,
            ),
        };
        let mut config = loaded.map_err(|report| report.to_string())?;
        let mut problems = config.problems_for_dataplane();
        problems.extend(helios_tls::check(&mut config));
        if !problems.is_empty() {
            let file =
                self.config.as_ref().map_or("command line".to_owned(), |path| path.display().to_string());
            let lines: Vec<_> = problems.iter().map(|problem| format!("{file}: {problem}")).collect();
            return Err(lines.join("\n"));
        }
        unsupported(&config).map_or(Ok(config), Err)
    }
}

/// What this build cannot do.
fn unsupported(config: &Config) -> Option<Problems> {
    if config.cache.enabled && !cfg!(feature = "distribcache") {
        let text = "enabled = true in [cache] needs a build with feature distribcache";
        return Some(text.to_owned());
    }
    if cfg!(feature = "pool-modes") {
        return None;
    }
    let settings = &config.spec.settings;
    let modes = settings.users.iter().map(|user| user.overrides.mode);
    let modes = modes.chain(settings.databases.iter().map(|database| database.overrides.mode));
    let other = modes.flatten().chain([settings.pool.mode]).find(|mode| *mode != PoolMode::Session)?;
    Some(format!(
        "pool mode \"{other}\" needs a build with feature pool-modes; set mode = \"session\" in [pool_mode]"
    ))
}
