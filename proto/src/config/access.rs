//! `[auth]`, `[[hba]]` and `[console]`: how clients prove who they are, which of them may try, and who may use the admin
//! console. Pure.

use toml::de::DeTable;

use super::keys::Section;
use super::reader::{Part, Reader};
use crate::model::{AuthQuery, AuthSettings, Cidr, ConsoleSettings, HbaMethod, HbaRule};

/// `[auth]` with the rules of `[[hba]]`.
pub(super) fn auth(reader: &mut Reader<'_>, root: &DeTable<'_>) -> AuthSettings {
    let mut hba = Vec::new();
    reader.each(root, Section::Hba, |mut part| hba.extend(rule(&mut part)));
    let mut part = reader.part(root, Section::Auth);
    // One word so far: checked, not kept.
    part.word("mode", |word| (word == "auto").then_some(()));
    AuthSettings {
        allow_backend_trust: part.flag("allow_backend_trust"),
        proof_ttl: part.seconds("proof_ttl_secs"),
        query: query(&mut part),
        hba,
    }
}

/// `[console]`
pub(super) fn console(reader: &mut Reader<'_>, root: &DeTable<'_>) -> ConsoleSettings {
    let mut part = reader.part(root, Section::Console);
    ConsoleSettings { admins: part.texts("admin_users"), viewers: part.texts("stats_users") }
}

fn query(part: &mut Part<'_, '_>) -> Option<AuthQuery> {
    let (user, password) = (part.text("auth_user"), part.secret("auth_password"));
    let database = part.text("auth_database").unwrap_or_default();
    let line = part.given("auth_query");
    if line.is_none() {
        for name in ["auth_user", "auth_password", "auth_database"] {
            let line = part.given(name);
            if line.is_some() {
                part.problem(line, format!("{name} has no effect without auth_query"));
            }
        }
        return None;
    }
    let sql = part.text("auth_query")?;
    if !sql.contains("$1") {
        part.problem(line, "auth_query needs $1, which stands for the role's name".to_owned());
    }
    if user.is_none() && part.given("auth_user").is_none() {
        part.problem(line, "auth_query needs auth_user, the role that runs it".to_owned());
    }
    Some(AuthQuery { sql, user: user?, password, database })
}

/// Reads one `[[hba]]`.
fn rule(part: &mut Part<'_, '_>) -> Option<HbaRule> {
    let method = part.word("method", HbaMethod::from_word);
    let tls = part.flag("tls");
    let address = part.text("address").map(|text| {
        let parsed = Cidr::parse(&text);
        if parsed.is_none() {
            let line = part.given("address");
            part.problem(
                line,
                format!("address {text:?} in [[hba]] is not a network such as \"10.0.0.0/8\" or \"::1/128\""),
            );
        }
        parsed
    });
    let (users, databases) = (part.texts("users"), part.texts("databases"));
    if method == Some(HbaMethod::Cert) && !tls {
        let line = part.given("method");
        part.problem(line, "method = \"cert\" in [[hba]] needs tls = true".to_owned());
    }
    let address = match address {
        Some(parsed) => Some(parsed?),
        None => None,
    };
    Some(HbaRule { users, databases, address, tls, method: method? })
}
