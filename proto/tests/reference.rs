//! docs/reference/configuration.md is the table of keys, written for people: every key with its type, range, default, and when
//! a change of it holds. The test fails when the file says something else; it never changes the table.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use helios_proto::config::keys::{Fallback, InForce, Key, Kind, Section};

const RENEW: &str = "make reference";

const HEAD: &str = "\
# Configuration reference

Every key of the configuration file, made by `make reference` from the table that the programs read it with. How the file is
read, checked and reloaded, and what belongs together: [configuration.md](../configuration.md).

A text may use `${VAR}` and `${VAR:-default}`. A duration is a number of seconds, with a fraction if need be. Where no default
stands, nothing holds; what that means is said.

**In force** tells when a changed value holds. *At once*: from the next statement, login or probe on, after SIGHUP in a standalone
proxy, or after `heliosctl config apply`; in a fleet these keys belong to the configuration that the control plane has. *At
restart*: they belong to one process, also in a fleet, and are read when it starts. Files that TLS keys name are followed
while a process runs.
";

/// The whole file.
fn reference() -> String {
    let mut out = HEAD.to_owned();
    of_section(&mut out, Section::Top, "Top level");
    for section in Section::NAMED {
        of_section(&mut out, *section, &format!("`{}`", section.header()));
    }
    out
}

fn of_section(out: &mut String, section: Section, title: &str) {
    let head = "| key | type | range | default | in force | what it does |\n|---|---|---|---|---|---|";
    let _ = writeln!(out, "\n## {title}\n\n{}\n\n{head}", section.meaning());
    section.keys().for_each(|key| of_key(out, key));
}

fn of_key(out: &mut String, key: &Key) {
    let (kind, range) = described(key.kind);
    let default = match key.default {
        Fallback::Required => "required".to_owned(),
        _ => key.default_text().map(|text| format!("`{text}`")).unwrap_or_default(),
    };
    let in_force = match key.in_force() {
        InForce::AtOnce => "at once",
        InForce::AtRestart => "at restart",
    };
    let meaning = key.meaning.replace('|', "\\|");
    let _ = writeln!(out, "| `{}` | {kind} | {range} | {default} | {in_force} | {meaning} |", key.name);
}

fn described(kind: Kind) -> (&'static str, String) {
    match kind {
        Kind::Text => ("text", String::new()),
        Kind::Texts => ("list of texts", "at least one".to_owned()),
        Kind::Secret => ("text, never shown", String::new()),
        Kind::Address => ("text", "`host:port`".to_owned()),
        Kind::Flag => ("flag", "`true` or `false`".to_owned()),
        Kind::Word(words) => {
            ("word", words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", "))
        }
        Kind::Whole(unit, least, u64::MAX) => ("whole number", format!("{least} or more, {unit}")),
        Kind::Whole(unit, least, most) => ("whole number", format!("{least} to {most}, {unit}")),
        Kind::Seconds(0) => ("duration", "0 to a year".to_owned()),
        Kind::Seconds(least) => {
            let least = std::time::Duration::from_millis(least).as_secs_f64();
            ("duration", format!("{least} s to a year"))
        }
    }
}

#[test]
fn the_reference_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/configuration.md");
    let reference = reference();
    if std::env::var_os("HELIOS_RENEW_REFERENCE").is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    let differs = written.lines().zip(reference.lines()).find(|(written, made)| written != made);
    assert!(written == reference, "{} is out of date: {RENEW}\n{differs:#?}", path.display());
}

#[test]
fn every_key_has_a_line_that_says_everything_about_it() {
    let reference = reference();
    for line in [
        "| `listen_address` | text | `host:port` | `\"127.0.0.1:5433\"` | at restart | Where clients connect. |",
        "| `write_timeout_secs` | duration | 0 to a year | `30` | at once | ",
        "| `acquire_timeout_secs` | duration | 0.001 s to a year | `5` | at once | ",
        "| `mode` | word | `\"session\"`, `\"transaction\"`, `\"statement\"` | `\"transaction\"` | at once | ",
        "| `max_lag_bytes` | whole number | 0 or more, bytes | `0` | at once | ",
        "| `max_pool_size` | whole number | 1 to 10000, connections | `100` | at once | ",
        "| `password` | text, never shown |  |  | at once | Password of that role. |",
        "| `host` | text |  | required | at once | Host name or IP address. |",
        "| `tls_cert_file` | text |  |  | at restart | ",
    ] {
        assert!(reference.contains(&format!("\n{line}")), "{line}");
    }
    let lines = reference.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(lines, helios_proto::config::keys::KEYS.len());
}
