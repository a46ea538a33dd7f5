//! `${VAR}` in text values, replaced after the file has been parsed, so that no variable can add TOML.
//! Pure: the environment is passed in. Never puts a variable's value into an error.

/// A text with its variables filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filled {
    /// The text to use.
    pub text: String,
    /// At least one variable of the environment was used; else the file itself holds the whole text.
    pub from_env: bool,
}

/// Why a text could not be filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfilled {
    /// No such variable, and no default in the text.
    Unset(String),
    /// `${` without a valid name and a closing brace.
    Malformed,
}

/// Replaces `${VAR}` and `${VAR:-default}` (used if VAR is unset or empty); `$${` stands for `${`.
pub(super) fn substitute(raw: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Filled, Unfilled> {
    let mut text = String::with_capacity(raw.len());
    let mut from_env = false;
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            text.push_str(before);
            text.push_str("${");
            rest = after;
            continue;
        }
        text.push_str(before);
        let (inside, after) = after.split_once('}').ok_or(Unfilled::Malformed)?;
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(Unfilled::Malformed);
        }
        match (env(name), default) {
            (Some(value), None) => {
                text.push_str(&value);
                from_env = true;
            }
            (Some(value), Some(_)) if !value.is_empty() => {
                text.push_str(&value);
                from_env = true;
            }
            (_, Some(default)) => text.push_str(default),
            (None, None) => return Err(Unfilled::Unset(name.to_owned())),
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(Filled { text, from_env })
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db1".to_owned()),
            "EMPTY" => Some(String::new()),
            "SLY" => Some("x\"\nmode = \"${HOST}\"".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_filled_in() {
        for (raw, text, from_env) in [
            ("plain", "plain", false),
            ("a$b$", "a$b$", false),
            ("SCRAM-SHA-256$4096:x$y:z", "SCRAM-SHA-256$4096:x$y:z", false),
            ("${HOST}", "db1", true),
            ("a-${HOST}-b${HOST}", "a-db1-bdb1", true),
            ("${NONE:-dflt}", "dflt", false),
            ("${NONE:-}", "", false),
            ("${EMPTY:-dflt}", "dflt", false),
            ("${EMPTY}", "", true),
            ("${HOST:-dflt}", "db1", true),
            ("$${HOST}", "${HOST}", false),
            ("${SLY}", "x\"\nmode = \"${HOST}\"", true),
        ] {
            let expected = Filled { text: text.to_owned(), from_env };
            assert_eq!(substitute(raw, &env), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_is_named() {
        for (raw, expected) in [
            ("${NONE}", Unfilled::Unset("NONE".to_owned())),
            ("${HOST", Unfilled::Malformed),
            ("${}", Unfilled::Malformed),
            ("${1A}", Unfilled::Malformed),
            ("${A B}", Unfilled::Malformed),
        ] {
            assert_eq!(substitute(raw, &env), Err(expected), "{raw}");
        }
    }
}
