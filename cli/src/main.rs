//! The operator's program: arguments, one command, an exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use heliosctl::args::Cli;
use heliosctl::commands;
use heliosctl::failure::clean;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return heliosctl::failure::Exit::Unavailable.into();
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("error: {}", clean(&failure.text));
            }
            failure.exit.into()
        }
    }
}
