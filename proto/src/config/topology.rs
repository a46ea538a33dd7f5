//! `[topology]`: who says which node may be the primary. Checks what must fit together; asks nobody. Pure.

use std::path::PathBuf;

use toml::de::DeTable;

use super::keys::Section;
use super::plane::is_endpoint;
use super::reader::{Part, Reader};
use crate::model::Patroni;

/// Patroni, if it is the provider; `probe_user`: probes log in.
pub(super) fn patroni(reader: &mut Reader<'_>, root: &DeTable<'_>, probe_user: bool) -> Option<Patroni> {
    let mut part = reader.part(root, Section::Topology);
    let provider = part.word("provider", |word| match word {
        "postgres" => Some(false),
        "patroni" => Some(true),
        _ => None,
    });
    let patroni = Patroni {
        endpoints: part.texts("patroni_endpoints"),
        interval: part.seconds("poll_interval_secs"),
        timeout: part.seconds("patroni_timeout_secs"),
        ca: part.text("patroni_ca_file").map(PathBuf::from),
        login: login(&mut part),
    };
    if provider != Some(true) {
        let others = Section::Topology.keys().map(|key| key.name).filter(|name| *name != "provider");
        part.refuse(others, "has no effect without provider = \"patroni\"");
        return None;
    }
    if !probe_user {
        let line = part.given("provider");
        let why = "what Patroni says is checked against what the node itself shows";
        part.problem(line, format!("provider = \"patroni\" in [topology] needs user in [health]: {why}"));
    }
    check_endpoints(&mut part, &patroni);
    Some(patroni)
}

fn login(part: &mut Part<'_, '_>) -> Option<(String, crate::model::Secret)> {
    let (user, password) = (part.text("patroni_user"), part.secret("patroni_password"));
    let lines = (part.given("patroni_user"), part.given("patroni_password"));
    if lines.0.is_some() != lines.1.is_some() {
        let text = "patroni_user and patroni_password in [topology] go together";
        part.problem(lines.0.or(lines.1), text.to_owned());
    }
    if user.as_ref().is_some_and(|user| user.contains(':')) {
        part.problem(lines.0, "patroni_user in [topology] must not hold a colon".to_owned());
    }
    user.zip(password)
}

fn check_endpoints(part: &mut Part<'_, '_>, patroni: &Patroni) {
    let line = part.given("patroni_endpoints");
    if line.is_none() {
        let line = part.given("provider");
        part.problem(line, "provider = \"patroni\" in [topology] needs patroni_endpoints".to_owned());
    }
    for endpoint in patroni.endpoints.iter().filter(|endpoint| !is_url(endpoint)) {
        let text = format!("endpoint {endpoint:?} is not an address such as \"http://db-1:8008\"");
        part.problem(line, text);
    }
    let secure = patroni.endpoints.iter().find(|endpoint| endpoint.starts_with("https://"));
    if let (Some(endpoint), None) = (secure, part.given("patroni_ca_file")) {
        part.problem(line, format!("endpoint {endpoint:?} needs patroni_ca_file in [topology]"));
    }
    if let (None, Some(line)) = (secure, part.given("patroni_ca_file")) {
        let text = "patroni_ca_file in [topology] has no effect: no endpoint starts with https://";
        part.problem(Some(line), text.to_owned());
    }
}

/// `http://host:port` or `https://host:port`, nothing after it.
pub(crate) fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_endpoint)
}
