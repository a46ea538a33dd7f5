//! `[[users]]` and `[[databases]]`: who is known, and what they get instead of the general settings. Pure.

use super::reader::Part;
use crate::model::{Database, Overrides, PoolMode, User, UserProof};

/// Reads one `[[users]]`; `max_pool_size` bounds its own pool size.
pub(super) fn user(part: &mut Part<'_, '_>, max_pool_size: u32) -> Option<User> {
    let name = part.text("name");
    let password = part.secret("password");
    let verifier = part.secret("scram_verifier");
    if let (Some(line), Some(_)) = (part.given("scram_verifier"), part.given("password")) {
        part.problem(Some(line), "a user takes password or scram_verifier, not both".to_owned());
    }
    if let Some(verifier) = &verifier
        && !is_scram_verifier(verifier.expose())
    {
        let line = part.given("scram_verifier");
        let form = "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>";
        part.problem(line, format!("scram_verifier in [[users]] is not of the form {form}"));
    }
    let overrides = overrides(part, max_pool_size);
    let proof = password.map(UserProof::Password).or(verifier.map(UserProof::ScramVerifier));
    Some(User { name: name?, proof, overrides })
}

/// Reads one `[[databases]]`; `max_pool_size` bounds its own pool size.
pub(super) fn database(part: &mut Part<'_, '_>, max_pool_size: u32) -> Option<Database> {
    let name = part.text("name");
    let overrides = overrides(part, max_pool_size);
    Some(Database { name: name?, overrides })
}

/// The names that stand there more than once, in order of appearance.
pub(super) fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = std::collections::HashSet::new();
    names.filter(|name| !seen.insert(*name)).collect()
}

fn overrides(part: &mut Part<'_, '_>, max_pool_size: u32) -> Overrides {
    let pool_size = part.whole_if_given("pool_size").and_then(|size| u32::try_from(size).ok());
    if let Some(size) = pool_size.filter(|size| *size > max_pool_size) {
        let line = part.given("pool_size");
        part.problem(
            line,
            format!("pool_size {size} is more than max_pool_size {max_pool_size} in [pool_mode]"),
        );
    }
    let mut timeout =
        |name| part.seconds_if_given(name).map(|limit| Some(limit).filter(|limit| !limit.is_zero()));
    let query_timeout = timeout("query_timeout_secs");
    let idle_in_transaction_timeout = timeout("idle_in_transaction_timeout_secs");
    let mode = part.word("mode", PoolMode::from_word);
    Overrides { mode, pool_size, query_timeout, idle_in_transaction_timeout }
}

/// Whether the text has the form of a verifier in `pg_authid`.
pub(crate) fn is_scram_verifier(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") else { return false };
    let Some((head, keys)) = rest.split_once('$') else { return false };
    let (Some((iterations, salt)), Some((stored, server))) = (head.split_once(':'), keys.split_once(':'))
    else {
        return false;
    };
    let digits = !iterations.is_empty() && iterations.bytes().all(|b| b.is_ascii_digit());
    digits
        && iterations.parse::<i32>().is_ok_and(|n| n > 0)
        && base64_len(salt).is_some_and(|len| len > 0)
        && base64_len(stored) == Some(32)
        && base64_len(server) == Some(32)
}

/// How many bytes a padded base64 text stands for; `None` if it is none.
fn base64_len(text: &str) -> Option<usize> {
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let valid = digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    (valid && text.len().is_multiple_of(4) && digits.len() % 4 != 1).then_some(digits.len() * 3 / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifiers_are_recognised_by_form() {
        let key = format!("{}=", "A".repeat(43));
        let good = format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}");
        assert!(is_scram_verifier(&good));
        for bad in [
            String::new(),
            "md5d41d8cd98f00b204e9800998ecf8427e".to_owned(),
            good.replace("4096", "0"),
            good.replace("4096", "+1"),
            good.replace("4096", "99999999999"),
            good.replace("c2FsdA==", ""),
            good.replace("c2FsdA==", "c2FsdA="),
            good.replace("c2FsdA==", "c2F!dA=="),
            good.replace(&key, "AAAA"),
            good.replacen(&format!(":{key}"), "", 1),
            good.replace("256", "512"),
            format!("{good}x"),
        ] {
            assert!(!is_scram_verifier(&bad), "{bad}");
        }
    }
}
