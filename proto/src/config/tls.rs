//! The keys about TLS and about peers in `[discovery]`, `[management]` and `[control_plane]`, and what must fit together.
//! Reads no certificate: whether the files are good is for who uses them.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::plane::{Access, TokenProof, is_endpoint};
use super::reader::Part;
use super::sections::address;
use super::{Config, ControlPlane};
use crate::model::Secret;

/// TLS of a service: `tls_cert_file`, `tls_key_file`, `tls_client_ca_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Section of the file, without brackets.
    pub section: &'static str,
    /// Certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of client certificates; given: every client needs one.
    pub client_ca: Option<PathBuf>,
}

/// TLS towards a service: `tls_ca_file`, `tls_cert_file`, `tls_key_file`, `tls_server_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Authorities of the service's certificate.
    pub ca: PathBuf,
    /// Own certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the service's certificate, if it is not the host of the endpoint.
    pub server_name: Option<String>,
}

/// Cancel requests from and to other data planes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Where other data planes connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// `host:port` as others reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// Name in the other data planes' certificates, if it is not the host of their address.
    pub server_name: Option<String>,
}

pub(super) fn server(part: &mut Part<'_, '_>, section: &'static str) -> Option<ServerTls> {
    let identity = identity(part);
    let client_ca = part.text("tls_client_ca_file").map(PathBuf::from);
    if identity.is_none() && client_ca.is_some() && part.given("tls_cert_file").is_none() {
        let line = part.given("tls_client_ca_file");
        part.problem(line, "tls_client_ca_file needs tls_cert_file and tls_key_file".to_owned());
    }
    identity.map(|(cert, key)| ServerTls { section, cert, key, client_ca })
}

pub(super) fn client(part: &mut Part<'_, '_>) -> Option<ClientTls> {
    let identity = identity(part);
    let server_name = part.text("tls_server_name");
    let ca = part.text("tls_ca_file").map(PathBuf::from);
    if ca.is_none() && part.given("tls_ca_file").is_none() {
        for name in ["tls_cert_file", "tls_server_name"] {
            let line = part.given(name);
            if line.is_some() {
                part.problem(line, format!("{name} has no effect without tls_ca_file, which turns TLS on"));
            }
        }
    }
    ca.map(|ca| ClientTls { ca, identity, server_name })
}

pub(super) fn identity(part: &mut Part<'_, '_>) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (part.text("tls_cert_file"), part.text("tls_key_file"));
    let lines = (part.given("tls_cert_file"), part.given("tls_key_file"));
    match lines {
        (Some(_), None) => part.problem(lines.0, "tls_cert_file needs tls_key_file".to_owned()),
        (None, Some(_)) => part.problem(lines.1, "tls_key_file needs tls_cert_file".to_owned()),
        (Some(_), Some(_)) | (None, None) => {}
    }
    Some((cert?.into(), key?.into()))
}

pub(super) fn peers(
    part: &mut Part<'_, '_>,
    token: Option<&Secret>,
    tls: Option<&ClientTls>,
) -> Option<PeerSettings> {
    let line = part.given("peer_listen_address");
    let advertise = part.text("peer_advertise_address");
    let server_name = part.text("peer_server_name");
    if line.is_none() {
        for name in ["peer_advertise_address", "peer_server_name"] {
            let line = part.given(name);
            if line.is_some() {
                part.problem(line, format!("{name} has no effect without peer_listen_address"));
            }
        }
        return None;
    }
    let listen = address(part, "peer_listen_address")?;
    if let Some(advertise) = advertise.as_ref().filter(|advertise| !is_endpoint(advertise)) {
        let line = part.given("peer_advertise_address");
        part.problem(
            line,
            format!("peer_advertise_address {advertise:?} is not an address such as \"dp-1:9093\""),
        );
    }
    let mut refuse = |wrong: bool, text: &str| {
        if wrong {
            part.problem(line, text.to_owned());
        }
    };
    refuse(
        listen.ip().is_unspecified() && advertise.is_none(),
        "peer_listen_address is every address of this machine: peer_advertise_address has to name one",
    );
    refuse(
        tls.is_some_and(|tls| tls.identity.is_none()),
        "peer_listen_address with tls_ca_file needs tls_cert_file and tls_key_file: peers show each other certificates",
    );
    refuse(
        tls.is_none() && token.is_none(),
        "peer_listen_address needs token, or tls_ca_file with tls_cert_file and tls_key_file",
    );
    Some(PeerSettings { listen, advertise, server_name })
}

impl Config {
    /// Entries that name a certificate which nobody could show.
    pub(super) fn certificate_problems(&self, standalone: bool) -> Vec<String> {
        let asks = |tls: &Option<ServerTls>| tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let mut problems = Vec::new();
        for token in &self.management.tokens {
            let TokenProof::Certificate(name) = &token.proof else { continue };
            let (section, asked) = match token.access {
                Access::Dataplane if !standalone => ("discovery", asks(&self.discovery.tls)),
                _ => ("management", asks(&self.management.tls)),
            };
            if !asked {
                problems.push(format!(
                    "certificate = {name:?} in [[management.tokens]] needs tls_client_ca_file in [{section}]"
                ));
            }
        }
        problems
    }
}

impl ControlPlane {
    /// The files of the peer listener: this data plane's identity, and the authorities that peers' certificates need.
    #[must_use]
    pub fn peer_tls(&self) -> Option<ServerTls> {
        let tls = self.tls.as_ref()?;
        let (cert, key) = tls.identity.clone()?;
        Some(ServerTls { section: "control_plane", cert, key, client_ca: Some(tls.ca.clone()) })
    }
}
