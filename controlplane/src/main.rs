//! The control plane's program: arguments, configuration, start, signals. Everything else is in the library.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, ValueEnum};
use helios_controlplane::app;
use helios_controlplane::store::Etcd;
use helios_papers::Papers;
use helios_proto::config::{self, Config, StoreSettings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// sysexits.h: EX_CONFIG
const BAD_CONFIG: u8 = 78;

/// The control plane of a HeliosProxy fleet: owns the configuration, probes the nodes, streams to data planes.
#[derive(Debug, Parser)]
#[command(name = "helios-controlplane", version, after_help = AFTER)]
struct Args {
    /// Configuration file (TOML); seeds the store when that is empty.
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["man", "completion"])]
    config: Option<PathBuf>,
    /// Check the configuration, print every problem, and exit.
    #[arg(long)]
    check: bool,
    /// Form of the log lines.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(flatten)]
    papers: Papers,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

const AFTER: &str = "\
Examples:
  helios-controlplane --config /etc/heliosproxy/controlplane.toml
  helios-controlplane --config controlplane.toml --check

Signals: SIGTERM and SIGINT stop. Changes of the configuration come through heliosctl once the store is seeded.
Exit codes: 0 stopped or checked well, 1 could not run, 2 wrong command line, 78 wrong configuration.";

fn main() -> ExitCode {
    let args = Args::parse();
    if args.papers.print(Args::command()) {
        return ExitCode::SUCCESS;
    }
    let config = match configuration(&args) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if args.check {
        config.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        println!("configuration is valid");
        return ExitCode::SUCCESS;
    }
    start_log(args.log_format);
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(&config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The checked configuration, or every problem, one a line.
fn configuration(args: &Args) -> Result<Config, String> {
    let path = args.config.as_deref().ok_or("--config is missing")?;
    let mut config = config::load(path, &|name| std::env::var(name).ok()).map_err(|r| r.to_string())?;
    let file = path.display();
    let mut problems = config.problems_for_controlplane();
    problems.extend(helios_tls::check(&mut config));
    if matches!(config.store, Some(StoreSettings::Etcd(_))) && !Etcd::BUILT {
        problems.push("kind = \"etcd\" in [store]: this program was built without it".to_owned());
    }
    let problems: Vec<String> = problems.iter().map(|problem| format!("{file}: {problem}")).collect();
    if problems.is_empty() { Ok(config) } else { Err(problems.join("\n")) }
}

async fn run(config: &Config) -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hup = signal(SignalKind::hangup())?;
    let app = Box::pin(app::start(config)).await?;
    tracing::info!(address = %app.discovery, "discovery");
    if let Some(address) = app.management {
        tracing::info!(%address, "management");
    }
    tracing::info!(address = %app.admin, "admin");
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => tracing::warn!("the file is not read again, certificates are; use heliosctl config apply"),
        }
    }
    tracing::info!("stopping");
    app.stop().await;
    tracing::info!("stopped");
    Ok(())
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
}
