//! TLS on every leg: certificate files and their check ([`files`]), a configuration that takes new files while the
//! program runs ([`live`]); for gRPC the listener ([`incoming`]) and the connection to a service ([`dial`]); for the legs that
//! speak PostgreSQL's protocol what rustls is told ([`postgres`]). Knows nothing of what is
//! said on a connection. Never logs or prints a key.

pub mod dial;
pub mod files;
pub mod incoming;
pub mod live;
pub mod names;
pub mod postgres;
#[cfg(test)]
mod tests;

pub use dial::{DialError, connect};
pub use files::{Files, Problem};
pub use incoming::{Peer, incoming};
pub use live::{ClientSide, Live, ServerSide};

use helios_proto::config::Config;

/// Checks the certificate files that a configuration names: problems, and as warnings of the configuration what an
/// operator should know.
#[must_use]
pub fn check(config: &mut Config) -> Vec<String> {
    let servers = [&config.management.tls, &config.discovery.tls].into_iter().flatten();
    let mut all: Vec<Files> = servers.map(Files::of_server).collect();
    let legs = [&config.client_tls, &config.server_tls];
    all.extend(legs.into_iter().filter_map(Files::of_leg));
    all.extend(config.spec.health.patroni.as_deref().and_then(Files::of_patroni));
    all.extend(config.control_plane.as_ref().and_then(|plane| plane.tls.as_ref()).map(Files::of_client));
    let mut problems = Vec::new();
    for files in all {
        match files.load() {
            Ok(material) => config.warnings.extend(material.warnings),
            Err(problem) => problems.push(problem.to_string()),
        }
    }
    problems
}
