//! Commands that ask no service: contexts, completion, the manual, the version of this program.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use helios_papers::Shell;
use helios_proto::wire::v1;

use super::config::read;
use super::{Done, env};
use crate::args::{Cli, Global};
use crate::contexts::{self, Context, Contexts};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::pgbouncer::{self, Ini};
use crate::table::{Table, Tone, cell, pairs, toned};
use crate::tree::Tree;
use crate::verbs::ContextVerb;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn completion(out: Out, shell: Shell) -> Done {
    out.data(&helios_papers::completion(Cli::command(), shell))?;
    Ok(Exit::Ok)
}

pub(super) fn man(out: Out, directory: Option<PathBuf>) -> Done {
    match directory {
        Some(directory) => helios_papers::manuals(Cli::command(), &directory)
            .map_err(|error| Failure::usage(format!("cannot write to {}: {error}", directory.display())))?,
        None => out.data(&helios_papers::manual(Cli::command()))?,
    }
    Ok(Exit::Ok)
}

pub(super) fn import(out: Out, file: &Path, users: Option<PathBuf>) -> Done {
    let rejected =
        |text: String| Failure { exit: Exit::Rejected, text: format!("{}: {text}", file.display()) };
    let ini = Ini::read(&read(file)?).map_err(rejected)?;
    // Who names a file wants it read; that of auth_file may belong to another user.
    let list = match (users, ini.auth_file()) {
        (Some(users), _) => Some(read(&users)?),
        (None, Some(named)) => read(Path::new(named))
            .map_err(|why| {
                out.note(&format!("auth_file is left out: {}; name a copy with --users", why.text))
            })
            .ok(),
        (None, None) => None,
    };
    let made = pgbouncer::convert(&ini, list.as_deref()).map_err(rejected)?;
    made.notes.iter().for_each(|note| out.note(note));
    out.data(&made.toml)?;
    Ok(Exit::Ok)
}

pub(super) fn version(out: Out, server: Option<&v1::StatusReply>) -> Done {
    let tree = || {
        let server = server.map_or(Tree::Null, |status| {
            Tree::map([("program", Tree::text(&status.program)), ("version", Tree::text(&status.version))])
        });
        Tree::map([("client", Tree::text(VERSION)), ("server", server)])
    };
    let table = |out: Out| {
        let mut all = vec![("heliosctl", cell(VERSION))];
        all.extend(server.map(|status| (status.program.as_str(), cell(&status.version))));
        pairs(&all, out.color)
    };
    out.show(tree, || VERSION.to_owned(), table)?;
    Ok(Exit::Ok)
}

pub(super) fn context(out: Out, global: &Global, verb: ContextVerb) -> Done {
    let path = contexts::file(&env)?;
    let mut all = Contexts::load(&path)?;
    match verb {
        ContextVerb::List => list(out, &all)?,
        ContextVerb::Use { name } => {
            all.get(&name)?;
            out.note(&format!("context {name} is used from now on"));
            all.current = Some(name);
            all.save(&path)?;
        }
        ContextVerb::Set { name } => {
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err(Failure::usage("a context needs a name that can be printed"));
            }
            let context = Context::of(global)?;
            out.note(&format!("context {name} is kept in {}", path.display()));
            all.contexts.insert(name, context);
            all.save(&path)?;
        }
    }
    Ok(Exit::Ok)
}

fn list(out: Out, all: &Contexts) -> Result<(), Failure> {
    let is_current = |name: &str| all.current.as_deref() == Some(name);
    let tree = || {
        let one = |(name, context): (&String, &Context)| {
            Tree::map([
                ("name", Tree::text(name)),
                ("current", Tree::Bool(is_current(name))),
                ("endpoints", Tree::texts(&context.endpoints)),
                ("token", Tree::text(&context.token_shown())),
            ])
        };
        Tree::map([("contexts", Tree::List(all.contexts.iter().map(one).collect()))])
    };
    let names = || all.contexts.keys().cloned().collect::<Vec<_>>().join("\n");
    out.show(tree, names, |out| {
        let mut table = Table::new(&["NAME", "ENDPOINTS", "TOKEN", "USED"]);
        for (name, context) in &all.contexts {
            let used = toned(if is_current(name) { "yes" } else { "" }, Tone::Good);
            table.row(vec![cell(name), cell(context.endpoints.join(",")), cell(context.token_shown()), used]);
        }
        table.render(out.color)
    })
}
