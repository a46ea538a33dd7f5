//! The sections about the control plane itself: where it is, who may use it, where it keeps what. They belong to one
//! process and never travel in a snapshot. Pure, apart from resolving the addresses that the program listens on.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeTable;

use super::Config;
use super::keys::Section;
use super::reader::{Part, Reader};
use super::sections::address;
use super::tls::{self, ClientTls, PeerSettings, ServerTls};
use super::users::repeated;
use crate::model::{Secret, words};

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// `[control_plane]`: a data plane of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// `host:port` of each control plane; never empty.
    pub endpoints: Vec<String>,
    /// Name of the fleet.
    pub cluster: String,
    /// Token with the role dataplane.
    pub token: Option<Secret>,
    /// Unique name of the data plane; `None`: derived from the host.
    pub name: Option<String>,
    /// Where the last good snapshot is kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// TLS towards the control plane; `None`: plain text.
    pub tls: Option<ClientTls>,
    /// Cancel requests from and to other data planes; `None`: neither received nor forwarded.
    pub peers: Option<PeerSettings>,
}

/// `[management]`: the service for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Management {
    /// Whether it is served.
    pub enabled: bool,
    /// Where; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The section stands in the file: an address that is taken is an error.
    pub explicit: bool,
    /// `[[management.tokens]]`
    pub tokens: Vec<Token>,
    /// TLS; `None`: plain text.
    pub tls: Option<ServerTls>,
}

/// One of `[[management.tokens]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// As the audit log shows it.
    pub name: String,
    /// What it allows.
    pub access: Access,
    /// How it is recognised.
    pub proof: TokenProof,
}

/// How a token is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenProof {
    /// The token itself.
    Clear(Secret),
    /// Its SHA-256.
    Sha256([u8; 32]),
    /// No token: a client certificate with this common name or DNS name.
    Certificate(String),
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read.
    Viewer,
    /// Also drain, weigh, pause and resize.
    Operator,
    /// Also change the configuration and read the audit log.
    Admin,
    /// Open the stream of a data plane, and nothing else.
    Dataplane,
}

words!(Access: Viewer = "viewer", Operator = "operator", Admin = "admin", Dataplane = "dataplane");

/// `[discovery]`: the service for data planes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Where it is served; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Name of the fleet.
    pub cluster: String,
    /// The section stands in the file.
    pub explicit: bool,
    /// TLS; `None`: plain text.
    pub tls: Option<ServerTls>,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreSettings {
    /// Files in this directory.
    Embedded(PathBuf),
    /// etcd, which several control planes share.
    Etcd(EtcdSettings),
}

/// `[store]` with `kind = "etcd"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `http://host:port` of each member; never empty.
    pub endpoints: Vec<String>,
    /// What every key starts with; no `/` at its end.
    pub prefix: String,
    /// User and password; `None`: etcd asks for none.
    pub login: Option<(String, Secret)>,
}

pub(super) fn control_plane(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<ControlPlane> {
    if !is_given(root, Section::ControlPlane) {
        return None;
    }
    let mut part = reader.part(root, Section::ControlPlane);
    let endpoints = part.texts("endpoints");
    for endpoint in endpoints.iter().filter(|endpoint| !is_endpoint(endpoint)) {
        let line = part.given("endpoints");
        part.problem(line, format!("endpoint {endpoint:?} is not an address such as \"cp-1:9092\""));
    }
    let (token, tls) = (part.secret("token"), tls::client(&mut part));
    let peers = tls::peers(&mut part, token.as_ref(), tls.as_ref());
    Some(ControlPlane {
        endpoints,
        cluster: part.text("cluster").unwrap_or_default(),
        token,
        name: part.text("name"),
        state_dir: part.text("state_dir").map(PathBuf::from),
        tls,
        peers,
    })
}

pub(super) fn management(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Management {
    let mut part = reader.part(root, Section::Management);
    let enabled = part.flag("enabled");
    let listen = address(&mut part, "listen_address").unwrap_or_else(nowhere);
    let tls = tls::server(&mut part, "management");
    let mut tokens: Vec<Token> = Vec::new();
    reader.each(root, Section::Tokens, |mut part| tokens.extend(token(&mut part)));
    for name in repeated(tokens.iter().map(|token| token.name.as_str())) {
        reader.problem(None, format!("two [[management.tokens]] named {name:?}"));
    }
    Management { enabled, listen, explicit: is_given(root, Section::Management), tokens, tls }
}

fn token(part: &mut Part<'_, '_>) -> Option<Token> {
    let name = part.text("name");
    let access = part.word("role", Access::from_word);
    let proof = proof(part);
    Some(Token { name: name?, access: access?, proof: proof? })
}

/// Exactly one of token, sha256 and certificate.
fn proof(part: &mut Part<'_, '_>) -> Option<TokenProof> {
    let line = part.line;
    let given = ["token", "sha256", "certificate"].iter().filter(|name| part.given(name).is_some()).count();
    let (clear, hash, certificate) = (part.secret("token"), part.text("sha256"), part.text("certificate"));
    if given > 1 {
        part.problem(line, "[[management.tokens]] takes one of token, sha256 and certificate".to_owned());
        return None;
    }
    if given == 0 {
        part.problem(line, "[[management.tokens]] without token, sha256 or certificate".to_owned());
    }
    if let Some(clear) = clear {
        if clear.expose().len() >= SHORTEST_TOKEN {
            return Some(TokenProof::Clear(clear));
        }
        let line = part.given("token");
        part.problem(line, format!("token is too short: at least {SHORTEST_TOKEN} characters"));
    }
    if let Some(hash) = hash {
        let bytes = from_hex(&hash);
        if bytes.is_none() {
            let line = part.given("sha256");
            part.problem(line, "sha256 must be 64 hexadecimal digits".to_owned());
        }
        return bytes.map(TokenProof::Sha256);
    }
    certificate.map(TokenProof::Certificate)
}

pub(super) fn discovery(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Discovery {
    let explicit = is_given(root, Section::Discovery);
    let mut part = reader.part(root, Section::Discovery);
    let listen = address(&mut part, "listen_address").unwrap_or_else(nowhere);
    let tls = tls::server(&mut part, "discovery");
    Discovery { listen, cluster: part.text("cluster").unwrap_or_default(), explicit, tls }
}

pub(super) fn store(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<StoreSettings> {
    if !is_given(root, Section::Store) {
        return None;
    }
    let mut part = reader.part(root, Section::Store);
    let shared = part.word("kind", |word| match word {
        "embedded" => Some(false),
        "etcd" => Some(true),
        _ => None,
    })?;
    let others: &[&str] = if shared { &["directory"] } else { &["endpoints", "prefix", "user", "password"] };
    let kind = if shared { "embedded" } else { "etcd" };
    for name in others {
        if let Some(line) = part.given(name) {
            part.problem(Some(line), format!("{name} in [store] has no effect without kind = {kind:?}"));
        }
    }
    if shared {
        return etcd(&mut part).map(StoreSettings::Etcd);
    }
    let directory = part.text("directory");
    if part.given("directory").is_none() {
        let line = part.line;
        part.problem(line, "[store] without \"directory\"".to_owned());
    }
    directory.map(|directory| StoreSettings::Embedded(PathBuf::from(directory)))
}

fn etcd(part: &mut Part<'_, '_>) -> Option<EtcdSettings> {
    let endpoints = part.texts("endpoints");
    let line = part.given("endpoints");
    if line.is_none() {
        let line = part.line;
        part.problem(line, "[store] with kind = \"etcd\" and without \"endpoints\"".to_owned());
    }
    for endpoint in &endpoints {
        if endpoint.starts_with("https://") {
            let text = format!(
                "endpoint {endpoint:?}: https is not supported by this version; use http in a trusted network"
            );
            part.problem(line, text);
        } else if !endpoint.strip_prefix("http://").is_some_and(is_endpoint) {
            part.problem(
                line,
                format!("endpoint {endpoint:?} is not an address such as \"http://etcd-1:2379\""),
            );
        }
    }
    let prefix = part.text("prefix").unwrap_or_default();
    let line = part.given("prefix");
    if !prefix.starts_with('/') || prefix.ends_with('/') {
        part.problem(line, format!("prefix {prefix:?} must start with \"/\" and end without"));
    }
    let (user, password) = (part.text("user"), part.secret("password"));
    let lines = (part.given("user"), part.given("password"));
    if lines.0.is_some() != lines.1.is_some() {
        let line = lines.0.or(lines.1);
        part.problem(line, "user and password in [store] go together".to_owned());
    }
    Some(EtcdSettings { endpoints, prefix, login: user.zip(password) })
}

fn is_given(root: &DeTable<'_>, section: Section) -> bool {
    root.iter().any(|(key, _)| key.get_ref() == section.name())
}

/// Stands for an address whose problem has been noted.
fn nowhere() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// `host:port`; not resolved, since the name may appear later.
pub(super) fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    super::nodes::bad_host(host).is_none()
        && !host.is_empty()
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl Config {
    /// What of this configuration a data plane cannot use: keys that would do nothing there, and what is not safe.
    #[must_use]
    pub fn problems_for_dataplane(&self) -> Vec<String> {
        let Self { control_plane, management, discovery, store, .. } = self;
        let mut problems = Vec::new();
        let mut refuse = |wrong: bool, text: &str| problems.extend(wrong.then(|| text.to_owned()));
        refuse(discovery.explicit, "[discovery] is for helios-controlplane only; take it out");
        let shared = matches!(store, Some(StoreSettings::Etcd(_)));
        refuse(
            shared && control_plane.is_none(),
            "kind = \"etcd\" in [store] is for helios-controlplane only; a standalone proxy keeps a directory",
        );
        if control_plane.is_some() {
            let hint = "has no effect beside [control_plane]; it belongs to helios-controlplane";
            refuse(management.explicit, &format!("[management] {hint}"));
            refuse(store.is_some(), &format!("[store] {hint}"));
            return problems;
        }
        let open =
            management.enabled && !management.listen.ip().is_loopback() && management.tokens.is_empty();
        refuse(
            open,
            "listen_address in [management] is not a loopback address: [[management.tokens]] are needed",
        );
        let stream = management.tokens.iter().any(|token| token.access == Access::Dataplane);
        refuse(stream, "role = \"dataplane\" in [[management.tokens]] has no effect in a standalone proxy");
        problems.extend(self.certificate_problems(true));
        problems
    }

    /// What of this configuration a control plane cannot use, and what it lacks.
    #[must_use]
    pub fn problems_for_controlplane(&self) -> Vec<String> {
        let Self { control_plane, management, discovery, store, .. } = self;
        let mut problems = Vec::new();
        let mut refuse = |wrong: bool, text: &str| problems.extend(wrong.then(|| text.to_owned()));
        refuse(control_plane.is_some(), "[control_plane] is for heliosdb-proxy only; take it out");
        refuse(
            self.cache.enabled,
            "[cache] is for heliosdb-proxy only; take it out, and into the data planes' files",
        );
        refuse(
            self.tracing.is_some(),
            "[tracing] is for heliosdb-proxy only; take it out, and into the data planes' files",
        );
        refuse(
            store.is_none(),
            "no [store]: a directory is needed, such as \"/var/lib/helios-controlplane\", or etcd",
        );
        let has = |dataplane: bool| {
            management.tokens.iter().any(|token| (token.access == Access::Dataplane) == dataplane)
        };
        refuse(!has(true), "no [[management.tokens]] with role = \"dataplane\": no data plane could connect");
        let lonely = management.enabled && !has(false);
        refuse(
            lonely,
            "no [[management.tokens]] with role \"viewer\", \"operator\" or \"admin\": nobody could use it",
        );
        let same =
            management.enabled && management.listen == discovery.listen && discovery.listen.port() != 0;
        refuse(same, "listen_address in [management] and in [discovery] are the same");
        problems.extend(self.certificate_problems(false));
        problems
    }
}
