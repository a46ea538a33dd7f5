//! The configuration file: TOML text to a checked [`Config`], or every problem of it in one [`Report`].
//! Owns no state; reads one file and resolves two listen addresses, nothing else. Never prints a secret.
//!
//! A walk: [`load`] reads the file -> [`parse`] -> `reader` (typed values, unknown keys, `${VAR}`) -> `sections`,
//! `users`, `nodes` (what must fit together) -> [`Config`]. What a key may be and its default stand in [`keys`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use crate::model::{Database, Node, Role, Secret, Settings, Spec, User};
use keys::Section;
use reader::{Env, Reader};

mod access;
mod cache;
pub mod keys;
mod legs;
mod nearest;
mod nodes;
mod phrases;
mod plane;
mod problem;
mod reader;
mod sections;
mod substitute;
mod switchover;
#[cfg(test)]
mod tests;
mod tls;
mod topology;
mod tracing;
mod users;

pub use cache::{CacheSettings, Logical};
pub use legs::{LegTls, TlsMode};
pub use plane::{
    Access, ControlPlane, Discovery, EtcdSettings, Management, StoreSettings, Token, TokenProof,
};
pub use problem::{Problem, Report};
pub use switchover::{Driver, Switchover};
pub use tls::{ClientTls, PeerSettings, ServerTls};
pub use tracing::Tracing;
#[cfg(feature = "grpc")]
pub(crate) use {
    nodes::bad_host, nodes::is_node_name, phrases::MAX_SECONDS, topology::is_url, users::is_scram_verifier,
};

/// A larger file is not a configuration.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where the HTTP shim listens; port 0 lets the system choose.
    pub admin: SocketAddr,
    /// Most worker threads; `None`: one per core.
    pub workers: Option<usize>,
    /// How long new clients are let in after the readiness has gone, at shutdown; zero: not at all.
    pub grace: Duration,
    /// Longest wait for open transactions at shutdown; zero: none.
    pub drain_timeout: Duration,
    /// Settings, health checks and nodes.
    pub spec: Spec,
    /// `[control_plane]`: where a data plane of a fleet takes its snapshots from; `None`: standalone.
    pub control_plane: Option<ControlPlane>,
    /// `[management]`
    pub management: Management,
    /// `[discovery]`
    pub discovery: Discovery,
    /// `[store]`; `None`: changes end with the process.
    pub store: Option<StoreSettings>,
    /// `[switchover]`
    pub switchover: Switchover,
    /// `[cache]`
    pub cache: CacheSettings,
    /// `[tracing]`; `None`: no spans.
    pub tracing: Option<Tracing>,
    /// `[client_tls]`
    pub client_tls: LegTls,
    /// `[server_tls]`
    pub server_tls: LegTls,
    /// The text that says all this, secrets included.
    pub text: Secret,
    /// What an operator should know though it is no error.
    pub warnings: Vec<String>,
}

/// Reads and checks a file. `env` gives the value of a variable, if it is set.
///
/// # Errors
/// Every problem of the file, or why it cannot be read.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Report> {
    let name = path.display().to_string();
    let unreadable = |error| Report::of_file(&name, format!("cannot read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(Report::of_file(&name, format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Report::of_file(&name, format!("not UTF-8 text: {}", error.utf8_error())))?;
    let (mut config, literal_secret) = read(&text, &name, env)?;
    if literal_secret && mode & 0o077 != 0 {
        config.warnings.push(format!(
            "{name} holds a password or verifier and others may read it (mode {mode:04o}); run chmod 600 on it"
        ));
    }
    Ok(config)
}

/// Checks the text of a file. `file_name` appears in problems; `env` gives the value of a variable, if it is set.
///
/// # Errors
/// Every problem of the text.
pub fn parse(text: &str, file_name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Report> {
    read(text, file_name, env).map(|(config, _)| config)
}

/// The configuration of a command line without a file: defaults, and nodes as `host`, `host:port` or `[ipv6]:port`;
/// `None` addresses take their defaults.
///
/// # Errors
/// Every address that is wrong, two equal nodes, or no node at all.
pub fn from_args(
    listen: Option<&str>,
    admin: Option<&str>,
    primary: Option<&str>,
    standbys: &[String],
) -> Result<Config, Report> {
    let mut reader = Reader::new("command line", "", &|_| None);
    let root = DeTable::new();
    let mut top = sections::top(&mut reader, &root);
    for (name, text, address) in [("listen", listen, &mut top.listen), ("admin", admin, &mut top.admin)] {
        match text.map(sections::resolve) {
            None => {}
            Some(Ok(given)) => *address = Some(given),
            Some(Err(why)) => {
                reader.problem(None, format!("{name} address {:?} {why}", text.unwrap_or_default()))
            }
        }
    }
    let given = primary.map(|text| (text, Role::Primary));
    let given = given.into_iter().chain(standbys.iter().map(|text| (text.as_str(), Role::Standby)));
    let mut drafts = Vec::new();
    let mut wrong = false;
    for (text, role) in given {
        match nodes::from_arg(text, role) {
            Some(draft) => drafts.push(draft),
            None => {
                wrong = true;
                reader.problem(None, format!("{role} {text:?} is not an address such as \"127.0.0.1:5432\""));
            }
        }
    }
    let nodes = if drafts.is_empty() && wrong { Vec::new() } else { nodes::check(&mut reader, drafts, true) };
    let text = nodes.iter().map(|node| as_text(node)).collect();
    let (config, _) = assemble(reader, &root, top, nodes)?;
    Ok(Config { text: Secret::new(text), ..config })
}

/// A node as it stands in a file; its host has been checked to need no escapes.
fn as_text(node: &Node) -> String {
    let Node { name, host, port, role, weight, max_connections } = node;
    let most = max_connections.map(|most| format!("max_connections = {most}\n")).unwrap_or_default();
    format!(
        "[[nodes]]\nname = \"{name}\"\nhost = {host:?}\nport = {port}\nrole = \"{role}\"\nweight = {weight}\n{most}"
    )
}

/// The configuration, and whether the file itself holds a secret.
fn read(text: &str, file_name: &str, env: Env<'_>) -> Result<(Config, bool), Report> {
    let mut reader = Reader::new(file_name, text, env);
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let line = error.span().map(|span| reader.line(span.start));
            reader.problem(line, format!("not valid TOML: {}", error.message()));
            return reader.finish(()).and(Err(Report::of_file(file_name, "not valid TOML".to_owned())));
        }
    };
    let root = root.get_ref();
    let top = sections::top(&mut reader, root);
    let mut drafts = Vec::new();
    let shaped = reader.each(root, Section::Nodes, |mut part| drafts.push(nodes::read(&mut part)));
    // A data plane of a fleet gets its nodes from the control plane; its own are for a start without one.
    let needed = !root.iter().any(|(key, _)| key.get_ref() == Section::ControlPlane.name());
    let nodes = if shaped { nodes::check(&mut reader, drafts, needed) } else { Vec::new() };
    let (config, literal_secret) = assemble(reader, root, top, nodes)?;
    Ok((Config { text: Secret::new(text.to_owned()), ..config }, literal_secret))
}

/// Reads everything but the top and the nodes.
fn assemble(
    mut reader: Reader<'_>,
    root: &DeTable<'_>,
    top: sections::Top,
    nodes: Vec<Arc<Node>>,
) -> Result<(Config, bool), Report> {
    let pool = sections::pool(&mut reader, root);
    let mut health = sections::health(&mut reader, root);
    health.patroni = topology::patroni(&mut reader, root, health.credential.is_some()).map(Arc::new);
    let balancer = sections::balancer(&mut reader, root, health.credential.is_some());
    let limits = sections::limits(&mut reader, root);
    let auth = access::auth(&mut reader, root);
    let console = access::console(&mut reader, root);
    let users = read_users(&mut reader, root, pool.max_pool_size);
    let databases = read_databases(&mut reader, root, pool.max_pool_size);
    let control_plane = plane::control_plane(&mut reader, root);
    let management = plane::management(&mut reader, root);
    let discovery = plane::discovery(&mut reader, root);
    let store = plane::store(&mut reader, root);
    let switchover = switchover::switchover(&mut reader, root);
    let cache = cache::cache(&mut reader, root, control_plane.is_some());
    let tracing = tracing::tracing(&mut reader, root);
    let client_tls = legs::client(&mut reader, root);
    let server_tls = legs::server(&mut reader, root);
    let literal_secret = reader.literal_secret;
    let write_timeout = top.write_timeout;
    let settings =
        Arc::new(Settings { pool, balancer, limits, auth, console, users, databases, write_timeout });
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
    let config = Config {
        // A missing address has been reported, so that `finish` refuses.
        listen: top.listen.unwrap_or(unspecified),
        admin: top.admin.unwrap_or(unspecified),
        workers: top.workers,
        grace: top.grace,
        drain_timeout: top.drain_timeout,
        spec: Spec { settings, health, nodes, ops: BTreeMap::new(), revision: 0 },
        control_plane,
        management,
        discovery,
        store,
        switchover,
        cache,
        tracing,
        client_tls,
        server_tls,
        text: Secret::new(String::new()),
        warnings: Vec::new(),
    };
    reader.finish((config, literal_secret))
}

fn read_users(reader: &mut Reader<'_>, root: &DeTable<'_>, max_pool_size: u32) -> Vec<User> {
    let mut users = Vec::new();
    reader.each(root, Section::Users, |mut part| users.extend(users::user(&mut part, max_pool_size)));
    for name in users::repeated(users.iter().map(|user| user.name.as_str())) {
        reader.problem(None, format!("two [[users]] named {name:?}"));
    }
    users
}

fn read_databases(reader: &mut Reader<'_>, root: &DeTable<'_>, max_pool_size: u32) -> Vec<Database> {
    let mut databases = Vec::new();
    reader.each(root, Section::Databases, |mut part| {
        databases.extend(users::database(&mut part, max_pool_size))
    });
    for name in users::repeated(databases.iter().map(|database| database.name.as_str())) {
        reader.problem(None, format!("two [[databases]] named {name:?}"));
    }
    databases
}
