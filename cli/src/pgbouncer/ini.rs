//! The text of `pgbouncer.ini` and `userlist.txt`, cut into settings with their lines. Knows no setting's meaning.

use std::collections::BTreeMap;

/// A setting, and the line where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) line: usize,
    pub(super) value: String,
}

/// The settings of a file.
#[derive(Debug, Default)]
pub struct Ini {
    pub(super) databases: Vec<(String, Setting)>,
    pub(super) users: Vec<(String, Setting)>,
    pub(super) general: BTreeMap<String, Setting>,
}

fn unquoted(name: &str) -> String {
    in_quotes(name, '"').map_or_else(|| name.to_owned(), |(inner, _)| inner)
}

/// `key=value` pairs of an entry, with values in single quotes where they have spaces.
pub(super) fn pairs(setting: &Setting) -> Result<BTreeMap<String, String>, String> {
    let (mut found, mut rest) = (BTreeMap::new(), setting.value.trim());
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once('=') else {
            return Err(format!("line {}: key=value is expected", setting.line));
        };
        let after = after.trim_start();
        let (value, next) = if after.starts_with('\'') {
            in_quotes(after, '\'').ok_or(format!("line {}: a quote is left open", setting.line))?
        } else {
            let (value, next) = after.split_at(after.find(char::is_whitespace).unwrap_or(after.len()));
            (value.to_owned(), next)
        };
        found.insert(key.trim().to_ascii_lowercase(), value);
        rest = next.trim_start();
    }
    Ok(found)
}

/// A text in these quotes, and what stands behind it; a doubled quote inside stands for itself.
fn in_quotes(text: &str, quote: char) -> Option<(String, &str)> {
    let (mut value, mut rest) = (String::new(), text.strip_prefix(quote)?);
    loop {
        let (part, after) = rest.split_once(quote)?;
        value.push_str(part);
        match after.strip_prefix(quote) {
            Some(more) => {
                value.push(quote);
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

impl Ini {
    /// Lines of an ini file as PgBouncer reads it: `;` and `#` begin comments, `%include` names another file.
    ///
    /// # Errors
    /// With the line, and what is wrong there; never with what stands there, which may be a password.
    pub fn read(text: &str) -> Result<Self, String> {
        let (mut ini, mut section) = (Self::default(), String::new());
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if line.starts_with("%include") {
                return Err(format!("line {number}: put the text of the included file here first"));
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_ascii_lowercase();
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(format!("line {number}: neither a section nor name = value"));
            };
            let (name, value) = (unquoted(name.trim()), value.trim().to_owned());
            let setting = Setting { line: number, value };
            match section.as_str() {
                "databases" => ini.databases.push((name, setting)),
                "users" => ini.users.push((name, setting)),
                "pgbouncer" => drop(ini.general.insert(name.to_ascii_lowercase(), setting)),
                // Entries of 1.24 about other PgBouncers.
                "peers" => {}
                _ => return Err(format!("line {number}: no section of PgBouncer: [{section}]")),
            }
        }
        if ini.databases.is_empty() {
            return Err("there is no entry in [databases], so no server is known".to_owned());
        }
        Ok(ini)
    }

    /// Where the users are.
    #[must_use]
    pub fn auth_file(&self) -> Option<&str> {
        self.value("auth_file")
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.general.get(name).map(|setting| setting.value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn line(&self, name: &str) -> usize {
        self.general.get(name).map_or(0, |setting| setting.line)
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.value(name).map(|value| number(value, name, self.line(name))).transpose()
    }
}

pub(super) fn number(value: &str, name: &str, line: usize) -> Result<f64, String> {
    let number = value.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("line {line}: {name} is no number: {value}"))
}

/// `"name" "secret"` a line, quotes doubled inside.
pub(super) fn read_users(list: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(list.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let wrong = || format!("line {number} of the file of users is not \"name\" \"secret\"");
        let (name, rest) = in_quotes(line, '"').ok_or_else(wrong)?;
        let (secret, _) = in_quotes(rest.trim_start(), '"').ok_or_else(wrong)?;
        found.push((name, secret));
    }
    Ok(found)
}
