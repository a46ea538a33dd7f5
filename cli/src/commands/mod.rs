//! From a parsed command line to what it does: what needs no service first, then one session for the rest.

mod cache;
mod change;
mod config;
mod local;
mod look;
mod switchover;
mod top;
mod watch;

use crate::args::{Cli, Command, Global};
use crate::client::Session;
use crate::contexts;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::verbs::ConfigVerb;

/// How a command ends.
pub type Done = Result<Exit, Failure>;

/// What the environment says.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Does what the command line says.
///
/// # Errors
/// With words for standard error, and an exit code.
pub async fn run(cli: Cli) -> Done {
    let Cli { global, command } = cli;
    let out = Out::new(&global);
    match command {
        Command::Completion { shell } => local::completion(out, shell),
        Command::Man { directory } => local::man(out, directory),
        Command::Import { file, users } => local::import(out, &file, users),
        Command::Version { client: true } => local::version(out, None),
        Command::Context(verb) => local::context(out, &global, verb),
        Command::Config(ConfigVerb::Validate { file, server: false }) => config::validate_here(out, &file),
        command => asked(out, &global, command).await,
    }
}

/// What a service has to be asked for.
async fn asked(out: Out, global: &Global, command: Command) -> Done {
    let target = contexts::target(global, &env)?;
    let mut session = Session::open(&target, global.timeout).await?;
    let it = &mut session;
    match command {
        Command::Status => look::status(out, it).await,
        Command::Check => look::check(out, it).await,
        Command::Node(verb) => change::node(out, it, verb).await,
        Command::Pool(verb) => change::pool(out, it, verb).await,
        Command::Cache(verb) => cache::run(out, it, verb).await,
        Command::Dataplane(verb) => look::dataplane(out, it, verb).await,
        Command::Topology(verb) => look::topology(out, it, verb).await,
        Command::Config(verb) => config::run(out, it, verb).await,
        Command::Events { watch, limit } => look::events(out, it, watch, limit).await,
        Command::Audit { actor, limit } => look::audit(out, it, actor, limit).await,
        Command::Explain { sql, user, database } => look::explain(out, it, sql, user, database).await,
        Command::Switchover { to, drain_timeout, dry_run, yes } => {
            switchover::run(out, it, switchover::Ask { to, drain_timeout, dry_run, yes }).await
        }
        Command::Top { interval, once } => top::run(out, it, interval, once).await,
        Command::Version { .. } => {
            let status = it.call(async |c| c.status(helios_proto::wire::v1::StatusRequest {}).await).await?;
            local::version(out, Some(&status))
        }
        // Done before anybody was asked.
        Command::Context(_) | Command::Completion { .. } | Command::Import { .. } | Command::Man { .. } => {
            Ok(Exit::Ok)
        }
    }
}
