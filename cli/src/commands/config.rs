//! The configuration: show, check, compare, apply, take back. What is confirmed is what is applied: the revision that was
//! compared with is expected to be in force still.

use std::io::Read as _;
use std::path::Path;

use helios_proto::config;
use helios_proto::wire::v1;

use super::Done;
use super::change::{no_idle, tell, tell_dry, wait};
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::render::records;
use crate::tree::{self, Tree};
use crate::verbs::{ConfigVerb, Wait};

/// Longest file, as the programs have it.
const MOST: u64 = 4 << 20;

/// A file, or standard input.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let wrong = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(MOST + 1).read_to_string(&mut text).map_err(wrong)?;
    } else {
        std::fs::File::open(file).map_err(wrong)?.take(MOST + 1).read_to_string(&mut text).map_err(wrong)?;
    }
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MOST {
        return Err(Failure::usage(format!("{} is larger than {MOST} bytes", file.display())));
    }
    if text.trim().is_empty() {
        return Err(Failure::usage(format!("{} is empty", file.display())));
    }
    Ok(text)
}

/// A text as it is, without what could steer a terminal: in TOML such characters are escaped.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t')).collect()
}

pub(super) async fn run(out: Out, session: &mut Session, verb: ConfigVerb) -> Done {
    match verb {
        ConfigVerb::Get { revision } => {
            let request = v1::GetConfigRequest { revision: revision.unwrap_or(0) };
            let reply = session.call(async |c| c.get_config(request).await).await?;
            let name = || reply.revision.as_ref().map_or(0, |meta| meta.revision).to_string();
            out.show(|| tree::of(&reply), name, |_| plain(&reply.text))?;
            Ok(Exit::Ok)
        }
        ConfigVerb::Validate { file, .. } => {
            let text = read(&file)?;
            let request = v1::ValidateConfigRequest { text };
            let reply = session.call(async |c| c.validate_config(request).await).await?;
            verdict(out, &file.display().to_string(), &reply)
        }
        ConfigVerb::Diff { file, against } => diff(out, session, file.as_deref(), against).await,
        ConfigVerb::Apply { file, expect, comment, dry_run, yes, wait } => {
            let plan = Plan { expect, dry_run, yes, wait };
            apply(out, session, (&file, comment), plan).await
        }
        ConfigVerb::History { limit } => {
            let reply = session.call(async |c| c.history(v1::HistoryRequest { limit }).await).await?;
            let names =
                || reply.revisions.iter().map(|it| it.revision.to_string()).collect::<Vec<_>>().join("\n");
            out.show(|| tree::of(&reply), names, |out| records::history(&reply.revisions).render(out.color))?;
            Ok(Exit::Ok)
        }
        ConfigVerb::Rollback { revision, expect, dry_run, yes, wait } => {
            rollback(out, session, revision.unwrap_or(0), Plan { expect, dry_run, yes, wait }).await
        }
    }
}

/// As `--check` of the programs does it, with the same words. A file with `[discovery]` is one of a control plane.
pub(super) fn validate_here(out: Out, file: &Path) -> Done {
    let env = |name: &str| std::env::var(name).ok();
    let name = file.display().to_string();
    let loaded = if file == Path::new("-") {
        config::parse(&read(file)?, &name, &env)
    } else {
        config::load(file, &env)
    };
    let mut reply = v1::ValidateConfigReply::default();
    match loaded {
        Ok(config) => {
            let problems = if config.discovery.explicit {
                config.problems_for_controlplane()
            } else {
                config.problems_for_dataplane()
            };
            reply.problems = problems.into_iter().map(|text| v1::Problem { line: 0, text }).collect();
            reply.warnings = config.warnings;
        }
        Err(report) => {
            let problem = |problem: &config::Problem| v1::Problem {
                line: problem.line.and_then(|line| u64::try_from(line).ok()).unwrap_or(0),
                text: problem.text.clone(),
            };
            reply.problems = report.problems().iter().map(problem).collect();
        }
    }
    verdict(out, &name, &reply)
}

fn lines(file: &str, problems: &[v1::Problem]) -> String {
    let line = |v1::Problem { line, text }: &v1::Problem| match line {
        0 => format!("{file}: {text}"),
        line => format!("{file}:{line}: {text}"),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Prints how a check ended: that it passed is data, problems are an error as with `--check`.
fn verdict(out: Out, file: &str, reply: &v1::ValidateConfigReply) -> Done {
    reply.warnings.iter().for_each(|warning| out.note(&format!("warning: {warning}")));
    let valid = reply.problems.is_empty();
    let words = if valid { "configuration is valid".to_owned() } else { String::new() };
    let tree = || {
        let Tree::Map(mut fields) = tree::of(reply) else { return Tree::Null };
        fields.insert(0, ("valid".to_owned(), Tree::Bool(valid)));
        Tree::Map(fields)
    };
    out.show(tree, || if valid { file.to_owned() } else { String::new() }, |_| words)?;
    if valid {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(Exit::Rejected, lines(file, &reply.problems)))
}

fn rejected(file: &str, reply: &v1::DiffConfigReply) -> Result<(), Failure> {
    if reply.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Rejected, lines(file, &reply.problems)))
}

async fn compare(session: &mut Session, text: String, against: u64) -> Result<v1::DiffConfigReply, Failure> {
    session.call(async |c| c.diff_config(v1::DiffConfigRequest { text, against }).await).await
}

async fn diff(out: Out, session: &mut Session, file: Option<&Path>, against: Option<u64>) -> Done {
    let text = file.map(read).transpose()?.unwrap_or_default();
    let reply = compare(session, text, against.unwrap_or(0)).await?;
    rejected(&file.map(|file| file.display().to_string()).unwrap_or_default(), &reply)?;
    let names =
        || reply.removed_nodes.iter().chain(&reply.added_nodes).cloned().collect::<Vec<_>>().join("\n");
    out.show(|| tree::of(&reply), names, |out| records::diff(&reply.unified, out.color))?;
    Ok(if reply.unified.is_empty() { Exit::Ok } else { Exit::Differences })
}

/// How a configuration is put in force.
struct Plan {
    expect: Option<u64>,
    dry_run: bool,
    yes: bool,
    wait: Wait,
}

async fn apply(out: Out, session: &mut Session, (file, comment): (&Path, String), plan: Plan) -> Done {
    let Plan { expect, dry_run, yes, wait: until } = plan;
    no_idle(until)?;
    let (text, name) = (read(file)?, file.display().to_string());
    let differences = compare(session, text.clone(), 0).await?;
    rejected(&name, &differences)?;
    let gone = &differences.removed_nodes;
    if !gone.is_empty() && !dry_run {
        out.confirm(yes, &format!("{name} takes out node {}", gone.join(", ")))?;
    }
    let expected_revision = Some(expect.unwrap_or(differences.against));
    let wait = wait(session, until);
    let request = v1::ApplyConfigRequest { text, expected_revision, comment, dry_run, wait };
    let reply = session.change(async |c| c.apply_config(request).await).await?;
    if dry_run {
        out.note(&records::diff(&differences.unified, false));
        return tell_dry(out, &format!("{name} applied"), &reply.config_revision.to_string(), &reply);
    }
    tell(out, until, &format!("{name} applied"), &reply.config_revision.to_string(), &reply)
}

async fn rollback(out: Out, session: &mut Session, to: u64, plan: Plan) -> Done {
    let Plan { expect, dry_run, yes, wait: until } = plan;
    no_idle(until)?;
    let current = session.call(async |c| c.history(v1::HistoryRequest { limit: 1 }).await).await?;
    let current = current.revisions.first().map_or(0, |meta| meta.revision);
    let to = if to == 0 { current.saturating_sub(1) } else { to };
    if to == 0 {
        return Err(Failure::new(Exit::NotFound, "there is no revision before the one in force"));
    }
    let reply = session.call(async |c| c.get_config(v1::GetConfigRequest { revision: to }).await).await?;
    // Dots stand for the secrets in force, so that only a difference in secrets is not shown.
    if let Ok(differences) = compare(session, reply.text, 0).await {
        out.note(&records::diff(&differences.unified, false));
    }
    if !dry_run {
        out.confirm(
            yes,
            &format!("the configuration goes back from revision {current} to what revision {to} said"),
        )?;
    }
    let expected_revision = Some(expect.unwrap_or(current));
    let request =
        v1::RollbackRequest { revision: to, expected_revision, dry_run, wait: wait(session, until) };
    let reply = session.change(async |c| c.rollback(request).await).await?;
    let (what, name) = (format!("rolled back to revision {to}"), reply.config_revision.to_string());
    if dry_run { tell_dry(out, &what, &name, &reply) } else { tell(out, until, &what, &name, &reply) }
}
