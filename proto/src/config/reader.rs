//! Reads one parsed TOML file, section by section, and collects every problem on the way: a bad value becomes a
//! problem and its default, so that reading always goes on. Owns nothing but the list; never does IO.

use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::keys::{self, Fallback, Kind, Section};
use super::nearest::nearest;
use super::phrases::{MAX_SECONDS, did_you_mean, expected, found, place, stranger, top_stranger};
use super::problem::{Problem, Report};
use super::substitute::{Unfilled, substitute};
use crate::model::Secret;

/// The environment: the value of a variable, if it is set.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One file being read.
pub(super) struct Reader<'a> {
    file: &'a str,
    env: Env<'a>,
    line_ends: Vec<usize>,
    problems: Vec<Problem>,
    /// The file itself holds a secret, not just the name of a variable.
    pub literal_secret: bool,
}

/// One section being read; absent sections read as empty ones.
pub(super) struct Part<'r, 'a> {
    reader: &'r mut Reader<'a>,
    section: Section,
    table: Option<&'r DeTable<'r>>,
    /// Line of the section's header.
    pub line: Option<usize>,
}

/// A value with its key and line.
struct Entry<'r> {
    key: &'static keys::Key,
    line: usize,
    value: &'r DeValue<'r>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str, text: &str, env: Env<'a>) -> Self {
        let line_ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i).collect();
        Self { file, env, line_ends, problems: Vec::new(), literal_secret: false }
    }

    /// The line of a byte offset, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.line_ends.partition_point(|end| *end < offset) + 1
    }

    /// Notes a problem.
    pub fn problem(&mut self, line: Option<usize>, text: String) {
        self.problems.push(Problem { file: self.file.to_owned(), line, text });
    }

    /// The value, unless there were problems.
    pub fn finish<T>(self, value: T) -> Result<T, Report> {
        if self.problems.is_empty() { Ok(value) } else { Err(Report::new(self.problems)) }
    }

    /// A single section, with its unknown keys reported.
    pub fn part<'r>(&'r mut self, root: &'r DeTable<'r>, section: Section) -> Part<'r, 'a> {
        let (table, line) = match section {
            Section::Top => (Some(root), None),
            _ => match find(root, section.name()) {
                Some((at, DeValue::Table(table))) => (Some(table), Some(self.line(at))),
                Some((at, _)) => {
                    self.misshapen(at, section);
                    (None, None)
                }
                None => (None, None),
            },
        };
        let mut part = Part { reader: self, section, table, line };
        part.check_keys();
        part
    }

    /// Runs `read` on each element of a repeated section; false if the section is not written as one.
    pub fn each<'r>(
        &mut self,
        root: &'r DeTable<'r>,
        section: Section,
        mut read: impl FnMut(Part<'_, 'a>),
    ) -> bool {
        let Some((at, value)) = find(root, section.name()) else { return true };
        let DeValue::Array(elements) = value else {
            self.misshapen(at, section);
            return false;
        };
        let mut shaped = true;
        for element in elements {
            let at = element.span().start;
            let DeValue::Table(table) = element.get_ref() else {
                self.misshapen(at, section);
                shaped = false;
                continue;
            };
            let line = Some(self.line(at));
            let mut part = Part { reader: self, section, table: Some(table), line };
            part.check_keys();
            read(part);
        }
        shaped
    }

    fn misshapen(&mut self, at: usize, section: Section) {
        let line = self.line(at);
        self.problem(Some(line), format!("{} must be written {}", section.name(), section.header()));
    }
}

impl<'r> Part<'r, '_> {
    /// Notes a problem of this section.
    pub fn problem(&mut self, line: Option<usize>, text: String) {
        self.reader.problem(line, text);
    }

    /// The line of a key, if it is given.
    pub fn given(&self, name: &str) -> Option<usize> {
        let table = self.table?;
        table.iter().find(|(key, _)| key.get_ref() == name).map(|(key, _)| self.reader.line(key.span().start))
    }

    /// Refuses keys that do nothing as things are; `why` follows their name and section.
    pub fn refuse<'k>(&mut self, keys: impl IntoIterator<Item = &'k str>, why: &str) {
        for key in keys {
            if let Some(line) = self.given(key) {
                let header = self.section.header();
                self.problem(Some(line), format!("{key} in {header} {why}"));
            }
        }
    }

    /// A flag.
    pub fn flag(&mut self, name: &'static str) -> bool {
        let fallback = matches!(default(self.section, name), Fallback::Flag(true));
        let Some(entry) = self.entry(name) else { return fallback };
        match entry.value {
            DeValue::Boolean(flag) => *flag,
            other => {
                self.wrong(&entry, found(other));
                fallback
            }
        }
    }

    /// A whole number, or its default.
    pub fn whole(&mut self, name: &'static str) -> u64 {
        let fallback = default_number(self.section, name);
        self.whole_if_given(name).unwrap_or(fallback)
    }

    /// A whole number that fits 32 bits, or its default.
    pub fn whole32(&mut self, name: &'static str) -> u32 {
        u32::try_from(self.whole(name)).unwrap_or(u32::MAX)
    }

    /// A whole number, if it is given and right.
    pub fn whole_if_given(&mut self, name: &'static str) -> Option<u64> {
        let entry = self.entry(name)?;
        let DeValue::Integer(integer) = entry.value else {
            self.wrong(&entry, found(entry.value));
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match (number, entry.key.kind) {
            (Some(number), Kind::Whole(_, least, most)) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.wrong(&entry, integer.to_string());
                None
            }
        }
    }

    /// A number of seconds, or its default.
    pub fn seconds(&mut self, name: &'static str) -> Duration {
        let fallback = Duration::from_secs(default_number(self.section, name));
        self.seconds_if_given(name).unwrap_or(fallback)
    }

    /// A number of seconds where zero means "none".
    pub fn seconds_or_none(&mut self, name: &'static str) -> Option<Duration> {
        Some(self.seconds(name)).filter(|duration| !duration.is_zero())
    }

    /// A number of seconds, if it is given and right.
    pub fn seconds_if_given(&mut self, name: &'static str) -> Option<Duration> {
        let entry = self.entry(name)?;
        let (duration, shown) = match entry.value {
            DeValue::Integer(i) => {
                let seconds = u64::from_str_radix(i.as_str(), i.radix()).ok();
                (seconds.map(Duration::from_secs), i.to_string())
            }
            DeValue::Float(f) => {
                let seconds = f.as_str().parse().ok();
                (seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()), f.to_string())
            }
            other => (None, found(other)),
        };
        let least = match entry.key.kind {
            Kind::Seconds(least) => Duration::from_millis(least),
            _ => Duration::ZERO,
        };
        let right = duration.filter(|d| (least..=Duration::from_secs(MAX_SECONDS)).contains(d));
        if right.is_none() {
            self.wrong(&entry, shown);
        }
        right
    }

    /// A word, as the type it stands for; `None` if it is absent without default, or wrong.
    pub fn word<T>(&mut self, name: &'static str, from: impl Fn(&str) -> Option<T>) -> Option<T> {
        let fallback = match default(self.section, name) {
            Fallback::Text(word) => from(word),
            _ => None,
        };
        let Some(entry) = self.entry(name) else { return fallback };
        let Some((text, raw, _)) = self.filled(&entry) else { return fallback };
        if let Some(value) = from(&text) {
            return Some(value);
        }
        let later = keys::LATER_WORDS.iter().any(|(s, k, w)| *s == self.section && *k == name && *w == text);
        if later {
            let text = format!("{name} = {text:?} is not supported by this version");
            self.problem(Some(entry.line), text);
            return fallback;
        }
        let meant = match entry.key.kind {
            Kind::Word(words) if raw == text => nearest(&text, words.iter().copied()),
            _ => None,
        };
        self.wrong(&entry, format!("{raw:?}{}", did_you_mean(meant)));
        fallback
    }

    /// A text with its line, or its default; `None` if it is absent without default, or wrong.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let fallback = match default(self.section, name) {
            Fallback::Text(text) => Some(text.to_owned()),
            _ => None,
        };
        let Some(entry) = self.entry(name) else { return fallback };
        match self.filled(&entry) {
            Some((text, raw, _)) if text.is_empty() || text.contains('\0') => {
                self.wrong(&entry, format!("{raw:?}"));
                fallback
            }
            Some((text, _, _)) => Some(text),
            None => fallback,
        }
    }

    /// A list of texts; empty if it is wrong or not given.
    pub fn texts(&mut self, name: &'static str) -> Vec<String> {
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let DeValue::Array(elements) = entry.value else {
            self.wrong(&entry, found(entry.value));
            return Vec::new();
        };
        let mut texts = Vec::new();
        for element in elements {
            let element = Entry { key: entry.key, line: entry.line, value: element.get_ref() };
            match self.filled(&element) {
                Some((text, raw, _)) if text.is_empty() || text.contains('\0') => {
                    self.wrong(&element, format!("{raw:?}"));
                }
                Some((text, _, _)) => texts.push(text),
                None => {}
            }
        }
        if elements.is_empty() {
            self.wrong(&entry, "empty".to_owned());
        }
        texts
    }

    /// A secret, if it is given and not empty. Its text never enters a problem.
    pub fn secret(&mut self, name: &'static str) -> Option<Secret> {
        let entry = self.entry(name)?;
        let (text, _, from_env) = self.filled(&entry)?;
        if text.is_empty() {
            self.wrong(&entry, "empty".to_owned());
            return None;
        }
        if text.contains('\0') {
            self.wrong(&entry, "a text with a NUL byte".to_owned());
            return None;
        }
        self.reader.literal_secret |= !from_env;
        Some(Secret::new(text))
    }

    fn entry(&mut self, name: &'static str) -> Option<Entry<'r>> {
        let Some(key) = self.section.key(name) else {
            self.problem(None, format!("internal: key {name:?} is not in the table of keys"));
            return None;
        };
        let Some((found, value)) = self.table?.iter().find(|(found, _)| found.get_ref() == name) else {
            if key.default == Fallback::Required {
                let text = format!("{} without {name:?}", self.section.header());
                self.problem(self.line, text);
            }
            return None;
        };
        let line = self.reader.line(found.span().start);
        Some(Entry { key, line, value: value.get_ref() })
    }

    /// The text of a value with its variables filled in, as it stands in the file, and whether it uses any.
    fn filled<'e>(&mut self, entry: &Entry<'e>) -> Option<(String, &'e str, bool)> {
        let DeValue::String(raw) = entry.value else {
            self.wrong(entry, found(entry.value));
            return None;
        };
        let why = match substitute(raw, self.reader.env) {
            Ok(filled) => return Some((filled.text, raw, filled.from_env)),
            Err(Unfilled::Unset(variable)) => {
                format!("the environment variable {variable:?}, which is not set")
            }
            Err(Unfilled::Malformed) => {
                "\"${\" without a variable name and \"}\"; write \"$${\" for a literal".to_owned()
            }
        };
        let text = format!("{} uses {why}", place(entry.key));
        self.problem(Some(entry.line), text);
        None
    }

    fn wrong(&mut self, entry: &Entry<'_>, is: String) {
        let text = format!("{} must be {}; it is {is}", place(entry.key), expected(entry.key.kind));
        self.problem(Some(entry.line), text);
    }

    /// Reports every key that the section does not have.
    fn check_keys(&mut self) {
        let Some(table) = self.table else { return };
        for (key, value) in table {
            let name: &str = key.get_ref();
            if self.section.key(name).is_some() || self.section.holds(name) {
                continue;
            }
            let text = match self.section {
                Section::Top => match top_stranger(name, value) {
                    Some(text) => text,
                    None => continue,
                },
                section => stranger(section, name),
            };
            let line = self.reader.line(key.span().start);
            self.problem(Some(line), text);
        }
    }
}

/// A section; of `a.b`, the `b` in `a`.
fn find<'r>(root: &'r DeTable<'r>, name: &str) -> Option<(usize, &'r DeValue<'r>)> {
    if let Some((outer, inner)) = name.split_once('.') {
        return match find(root, outer)? {
            (_, DeValue::Table(table)) => find(table, inner),
            _ => None,
        };
    }
    root.iter().find(|(key, _)| key.get_ref() == name).map(|(key, value)| (key.span().start, value.get_ref()))
}

fn default(section: Section, name: &str) -> Fallback {
    section.key(name).map_or(Fallback::Absent, |key| key.default)
}

fn default_number(section: Section, name: &str) -> u64 {
    match default(section, name) {
        Fallback::Number(number) => number,
        _ => 0,
    }
}
