//! docs/reference/heliosctl.md is the definition of the command line, written for people. The test fails when the file says
//! something else. Test code only.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use crate::args::Cli;

const HEAD: &str = "\
# heliosctl reference

Every command with its options, made by `make reference` from the definition that the program parses its command line with;
the same as `heliosctl COMMAND --help` and `heliosctl man`. What they do to a fleet, whom they ask, output and exit codes:
[heliosctl.md](../heliosctl.md).
";

/// The whole file.
fn reference() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut out = HEAD.to_owned();
    out.push_str("\n## Options of every command\n");
    table(&mut out, &cli.get_arguments().filter(|arg| arg.is_global_set()).collect::<Vec<_>>());
    cli.get_subcommands().for_each(|command| of_command(&mut out, command, "heliosctl"));
    out
}

fn of_command(out: &mut String, command: &Command, within: &str) {
    let name = format!("{within} {}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    let mut inner = command.get_subcommands().filter(|inner| inner.get_name() != "help").peekable();
    if inner.peek().is_some() {
        inner.for_each(|inner| of_command(out, inner, &name));
        return;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().bin_name(&name).render_usage().to_string().replace("Usage: ", "");
    let _ = writeln!(out, "\n## `{name}`\n\n{about}.\n\n```text\n{usage}\n```");
    let own = command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help");
    table(out, &own.collect::<Vec<_>>());
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut parts = after.trim_start_matches("Examples:\n").splitn(2, "\n\n");
    let examples = parts.next().unwrap_or_default();
    let examples: Vec<_> = examples.lines().map(str::trim).collect();
    let _ = writeln!(out, "\nExamples:\n\n```text\n{}\n```", examples.join("\n"));
    if let Some(rest) = parts.next() {
        let _ = writeln!(out, "\n{rest}");
    }
}

fn table(out: &mut String, arguments: &[&Arg]) {
    if arguments.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n| option | default | what it does |\n|---|---|---|");
    for arg in arguments {
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let shown = !arg.is_hide_default_value_set() && arg.get_action().takes_values();
        let default = Some(default.join(",")).filter(|text| shown && !text.is_empty());
        let default = default.map(|text| format!("`{text}`")).unwrap_or_default();
        let words: Vec<_> =
            arg.get_possible_values().iter().map(|word| format!("`{}`", word.get_name())).collect();
        let hidden =
            words.is_empty() || arg.is_hide_possible_values_set() || !arg.get_action().takes_values();
        let words = if hidden { String::new() } else { format!(": {}", words.join(", ")) };
        let help = arg.get_long_help().filter(|_| arg.is_hide_possible_values_set()).or(arg.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let help = help.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(out, "| {} | {default} | {help}{words} |", spelled(arg));
    }
}

/// An option as it is written on the command line.
fn spelled(arg: &Arg) -> String {
    let value = arg.get_value_names().unwrap_or_default().join(" ");
    let value = Some(value).filter(|_| arg.get_action().takes_values() && !arg.is_positional());
    let value = value.map(|name| format!(" {name}")).unwrap_or_default();
    let value = if matches!(arg.get_action(), ArgAction::SetTrue) { String::new() } else { value };
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, None) => format!("`{}`", arg.get_value_names().unwrap_or_default().join(" ")),
    }
}

#[test]
fn the_reference_is_the_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/heliosctl.md");
    let reference = reference();
    if std::env::var_os("HELIOS_RENEW_REFERENCE").is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    let differs = written.lines().zip(reference.lines()).find(|(written, made)| written != made);
    assert!(written == reference, "{} is out of date: make reference\n{differs:#?}", path.display());
}

#[test]
fn every_command_is_in_it_with_its_options() {
    let reference = reference();
    for line in [
        "## `heliosctl node set-weight`",
        "| `-o`, `--output FORMAT` | `table` | Form of the output: `table`, `wide`, `json`, `yaml`, `name` |",
        "| `--dry-run` |  | Look only |",
        "heliosctl config diff --against 3",
    ] {
        assert!(reference.lines().any(|l| l == line), "{line}\n{reference}");
    }
}
