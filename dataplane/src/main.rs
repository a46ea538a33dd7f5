//! The data plane's program: arguments, configuration, start, signals. Everything else is in the library.

use clap::Parser as _;
use heliosdb_proxy::app::{self, App};
use heliosdb_proxy::cli::Args;
use heliosdb_proxy::{descriptors, logging};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// sysexits.h: EX_CONFIG
const BAD_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_paper() {
        return ExitCode::SUCCESS;
    }
    let config = match args.configuration() {
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
    logging::start(args.log_format);
    descriptors::raise_limit();
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let ran = runtime.and_then(|runtime| {
        runtime.block_on(async {
            // Before the first word of a start: who reads it may end the process at once.
            let signals = Signals::new()?;
            let app = app::start(config).await?;
            run(app, signals, &args).await
        })
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the process can be told.
struct Signals {
    hup: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hup: signal(SignalKind::hangup())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }
}

/// Reads the configuration again and puts it in force.
async fn reload(app: &App, args: &Args) -> Result<(), String> {
    let reloaded = match args.configuration() {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            app.reload(&config).await
        }
        Err(problems) => Err(problems),
    };
    match &reloaded {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(why) => tracing::error!("configuration not reloaded, the old one stays: {why}"),
    }
    reloaded
}

async fn run(mut app: App, signals: Signals, args: &Args) -> std::io::Result<()> {
    let Signals { mut hup, mut term, mut int } = signals;
    tracing::info!(address = %app.listen, "listening");
    if let Some(address) = app.management {
        tracing::info!(%address, "management");
    }
    tracing::info!(address = %app.admin, "admin");
    loop {
        tokio::select! {
            _ = hup.recv() => drop(reload(&app, args).await),
            Some(asked) = app.reloads.recv() => {
                // Who asked may have left.
                let _ = asked.send(reload(&app, args).await);
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    tracing::info!("draining");
    let again = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    app.stop(again).await;
    tracing::info!("stopped");
    Ok(())
}
