//! `[[nodes]]`: from what was written to checked nodes with unique names. Pure.

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::keys::Section;
use super::reader::{Part, Reader};
use crate::model::{Node, NodeName, Role};

/// A node as written; what is missing or wrong has been reported already.
#[derive(Debug)]
pub(super) struct Draft {
    pub line: Option<usize>,
    pub name: Option<String>,
    pub host: Option<String>,
    pub port: u16,
    pub role: Option<Role>,
    pub weight: u32,
    pub max_connections: Option<u32>,
}

/// Reads one `[[nodes]]`.
pub(super) fn read(part: &mut Part<'_, '_>) -> Draft {
    let draft = Draft {
        line: part.line,
        name: part.text("name"),
        host: part.text("host"),
        port: u16::try_from(part.whole("port")).unwrap_or(u16::MAX),
        role: part.word("role", Role::from_word),
        weight: part.whole32("weight"),
        max_connections: Some(part.whole32("max_connections")).filter(|most| *most > 0),
    };
    if let (Some(name), line) = (&draft.name, part.given("name"))
        && !is_node_name(name)
    {
        part.problem(
            line,
            format!("node name {name:?} may hold only a-z, 0-9, \"_\", \".\" and \"-\", at most 63"),
        );
    }
    draft
}

/// Checks the nodes together and names those without a name. Problems go to `reader`. `needed`: at least one.
pub(super) fn check(reader: &mut Reader<'_>, drafts: Vec<Draft>, needed: bool) -> Vec<Arc<Node>> {
    if drafts.is_empty() && needed {
        reader.problem(None, format!("no {}: at least one is needed", Section::Nodes.header()));
    }
    let mut nodes: Vec<(Option<usize>, Arc<Node>)> = Vec::new();
    let mut counts = Counts::default();
    for draft in drafts {
        if let Some(host) = &draft.host
            && let Some(why) = bad_host(host)
        {
            reader.problem(draft.line, format!("host {host:?} {why}"));
        }
        let Some(role) = draft.role else { continue };
        let derived = counts.next(role);
        let name = NodeName::new(&draft.name.unwrap_or(derived));
        let host = draft.host.unwrap_or_default();
        let Draft { port, weight, max_connections, .. } = draft;
        let node = Arc::new(Node { name, host, port, role, weight, max_connections });
        for (line, earlier) in &nodes {
            if let Some(text) = clash(&node, earlier) {
                let where_to =
                    line.map(|line| format!(" (the other stands in line {line})")).unwrap_or_default();
                reader.problem(draft.line, format!("{text}{where_to}"));
            }
        }
        nodes.push((draft.line, node));
    }
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// Nodes seen so far of each role, named or not, so that naming one node does not rename the others.
#[derive(Default)]
struct Counts {
    standbys: usize,
    replicas: usize,
}

impl Counts {
    /// The derived name of the next node of this role.
    fn next(&mut self, role: Role) -> String {
        match role {
            Role::Primary => "primary".to_owned(),
            Role::Standby => {
                self.standbys += 1;
                if self.standbys == 1 { "standby".to_owned() } else { format!("standby-{}", self.standbys) }
            }
            Role::Replica => {
                self.replicas += 1;
                format!("replica-{}", self.replicas)
            }
        }
    }
}

fn clash(node: &Node, earlier: &Node) -> Option<String> {
    if node.role == Role::Primary && earlier.role == Role::Primary {
        return Some("two nodes with role = \"primary\"; one must be a standby or replica".to_owned());
    }
    if node.name == earlier.name {
        return Some(format!("two nodes named {:?}; give one another name", node.name.as_str()));
    }
    if !node.host.is_empty() && node.host.eq_ignore_ascii_case(&earlier.host) && node.port == earlier.port {
        return Some(format!("two nodes with host {:?} and port {}", node.host, node.port));
    }
    None
}

/// Whether a text may name a node.
pub(crate) fn is_node_name(name: &str) -> bool {
    name.len() <= 63
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
}

/// Why a host cannot be right.
pub(crate) fn bad_host(host: &str) -> Option<&'static str> {
    if host.starts_with('/') {
        return Some(
            "is a unix socket directory, which is not supported by this version; use a host name or an IP address",
        );
    }
    if host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
        return Some("is not a host name or an IP address");
    }
    if host.contains(':') && host.parse::<Ipv6Addr>().is_err() {
        return Some("has a port in it; write the port as port");
    }
    None
}

/// `host`, `host:port` or `[ipv6]:port`, as the command line gives a node.
pub(super) fn from_arg(text: &str, role: Role) -> Option<Draft> {
    let (host, port) = match text.rsplit_once(':') {
        _ if text.parse::<Ipv6Addr>().is_ok() => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.map_or(Some(5432), |port| port.parse().ok().filter(|port| *port != 0))?;
    if host.is_empty() || bad_host(host).is_some() {
        return None;
    }
    Some(Draft {
        line: None,
        name: None,
        host: Some(host.to_owned()),
        port,
        role: Some(role),
        weight: 100,
        max_connections: None,
    })
}
