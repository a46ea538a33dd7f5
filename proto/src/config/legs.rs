//! TLS on the legs that speak PostgreSQL's protocol: `[client_tls]` towards clients, `[server_tls]` towards servers. They
//! belong to one process, as files of certificates lie on one machine. Reads no certificate.

use std::path::PathBuf;

use toml::de::DeTable;

use super::keys::Section;
use super::reader::{Part, Reader};
use super::tls::identity;
use crate::model::words;

/// `[client_tls]` or `[server_tls]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegTls {
    /// Section of the file, without brackets.
    pub section: &'static str,
    /// What the leg demands.
    pub mode: TlsMode,
    /// Authorities of the other side's certificate.
    pub authorities: Option<PathBuf>,
    /// Own certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What a leg demands, as `sslmode` of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS where the other side has it; plain text otherwise.
    Prefer,
    /// TLS, whoever the other side is.
    Require,
    /// The other side's certificate is of a known authority.
    VerifyCa,
    /// Also for the right name: the server's host, or the client's role.
    VerifyFull,
}

words!(TlsMode: Disable = "disable", Prefer = "prefer", Require = "require", VerifyCa = "verify-ca", VerifyFull = "verify-full");

impl TlsMode {
    /// Whether certificates of the other side are looked at.
    #[must_use]
    pub const fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }

    /// Whether plain text is refused.
    #[must_use]
    pub const fn is_required(self) -> bool {
        !matches!(self, Self::Disable | Self::Prefer)
    }
}

/// `[client_tls]`
pub(super) fn client(reader: &mut Reader<'_>, root: &DeTable<'_>) -> LegTls {
    let mut part = reader.part(root, Section::ClientTls);
    let leg = leg(&mut part, "client_tls", "tls_client_ca_file");
    if leg.authorities.is_some() && leg.identity.is_none() && part.given("tls_cert_file").is_none() {
        let line = part.given("tls_client_ca_file");
        part.problem(line, "tls_client_ca_file needs tls_cert_file and tls_key_file".to_owned());
    }
    leg
}

/// `[server_tls]`
pub(super) fn server(reader: &mut Reader<'_>, root: &DeTable<'_>) -> LegTls {
    let mut part = reader.part(root, Section::ServerTls);
    let leg = leg(&mut part, "server_tls", "tls_ca_file");
    if leg.authorities.is_some() && matches!(leg.mode, TlsMode::Prefer | TlsMode::Require) {
        let line = part.given("tls_ca_file");
        part.problem(
            line,
            "tls_ca_file in [server_tls] has no effect without mode = \"verify-ca\" or \"verify-full\""
                .to_owned(),
        );
    }
    leg
}

fn leg(part: &mut Part<'_, '_>, section: &'static str, ca_key: &'static str) -> LegTls {
    let mode = part.word("mode", TlsMode::from_word).unwrap_or(TlsMode::Prefer);
    let identity = identity(part);
    let authorities = part.text(ca_key).map(PathBuf::from);
    if mode.verifies() && authorities.is_none() && part.given(ca_key).is_none() {
        let line = part.given("mode");
        part.problem(line, format!("mode = \"{mode}\" in [{section}] needs {ca_key}"));
    }
    for name in [ca_key, "tls_cert_file"] {
        let line = part.given(name);
        if mode == TlsMode::Disable && line.is_some() {
            part.problem(line, format!("{name} in [{section}] has no effect with mode = \"disable\""));
        }
    }
    LegTls { section, mode, authorities, identity }
}
