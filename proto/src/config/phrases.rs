//! The words of the reader's problems: what was expected, what stands there, what was probably meant. Pure.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::{self, KEYS, Kind, Section};
use super::nearest::nearest;

/// Longest duration in a file: a year.
pub(crate) const MAX_SECONDS: u64 = 31_536_000;

/// The problem with a top-level name that is no key; `None` if it is a section.
pub(super) fn top_stranger(name: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
    if Section::NAMED.iter().any(|section| section.name() == name) {
        return None;
    }
    let is_section = match value.get_ref() {
        DeValue::Table(_) => true,
        DeValue::Array(elements) => elements.iter().any(|e| e.get_ref().is_table()),
        _ => false,
    };
    if keys::LATER_SECTIONS.contains(&name) {
        return Some(format!("section [{name}] is not supported by this version"));
    }
    if !is_section {
        return Some(stranger(Section::Top, name));
    }
    let meant = nearest(name, Section::NAMED.iter().map(|section| section.name()));
    let meant = Section::NAMED.iter().find(|section| Some(section.name()) == meant);
    let hint = meant.map(|section| format!("; did you mean {}?", section.header())).unwrap_or_default();
    Some(format!("unknown section [{}]{hint}", name.escape_debug()))
}

/// The problem with a key that its section does not have.
pub(super) fn stranger(section: Section, name: &str) -> String {
    let place = if section == Section::Top { "at" } else { "in" };
    let homes: Vec<String> =
        KEYS.iter().filter(|key| key.name == name).map(|key| key.section.header()).collect();
    let hint = if homes.is_empty() {
        did_you_mean(nearest(name, section.keys().map(|key| key.name)))
    } else {
        format!("; it belongs in {}", list(&homes, "or"))
    };
    format!("unknown key {name:?} {place} {}{hint}", section.header())
}

/// A key with its section, as problems name it.
pub(super) fn place(key: &keys::Key) -> String {
    match key.section {
        Section::Top => key.name.to_owned(),
        section => format!("{} in {}", key.name, section.header()),
    }
}

pub(super) fn expected(kind: Kind) -> String {
    match kind {
        Kind::Text | Kind::Secret => "a text that is not empty".to_owned(),
        Kind::Texts => "a list of texts that are not empty, at least one".to_owned(),
        Kind::Address => "an address such as \"127.0.0.1:5433\"".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Word([only]) => format!("{only:?}"),
        Kind::Word(words) => list(&words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>(), "or"),
        Kind::Whole(unit, least, u64::MAX) => format!("a whole number ({unit}) of {least} or more"),
        Kind::Whole(unit, least, most) => format!("a whole number ({unit}), {least} to {most}"),
        Kind::Seconds(0) => format!("a number of seconds, 0 to {MAX_SECONDS}"),
        Kind::Seconds(least) => {
            format!("a number of seconds, {} to {MAX_SECONDS}", Duration::from_millis(least).as_secs_f64())
        }
    }
}

pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
    .to_owned()
}

pub(super) fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

/// `a, b or c`
fn list(items: &[String], last: &str) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}
