//! Certificate files: read, parsed, and checked to fit together. Every problem names the file and the key or option that
//! names it. Owns nothing; never keeps or shows a private key beyond what it hands out.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use helios_proto::config::{ClientTls, LegTls, ServerTls, TlsMode};
use helios_proto::model::Patroni;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A larger file holds no certificates.
const LARGEST: u64 = 4 << 20;

/// A file, and what names it: `tls_cert_file in [management]`, or `--cert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The file.
    pub path: PathBuf,
    /// The key or option.
    pub by: String,
}

/// The files of one side of a leg.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// For logs and metrics: the section.
    pub name: String,
    /// Authorities that the other side's certificate needs.
    pub authorities: Option<Named>,
    /// Own certificate, and its private key.
    pub identity: Option<(Named, Named)>,
    /// What of the other side's certificate counts, where a mode says so.
    pub trust: Trust,
}

/// What of the other side's certificate counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: any certificate will do, or none.
    #[default]
    Anyone,
    /// Its authority.
    Authority,
    /// Its authority and its name.
    Name,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{by}: {}: {why}", path.display())]
pub struct Problem {
    by: String,
    path: PathBuf,
    why: String,
}

/// What the files hold.
#[derive(Default)]
pub struct Material {
    /// Authorities.
    pub authorities: Option<Arc<RootCertStore>>,
    /// Their certificates as they stand in the file.
    pub trusted: Vec<CertificateDer<'static>>,
    /// What of the other side's certificate counts.
    pub trust: Trust,
    /// Own certificate with its key.
    pub identity: Option<Arc<CertifiedKey>>,
    /// When the own certificate expires, in seconds since 1970.
    pub not_after: Option<i64>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Others may read the private key; in `warnings` as well.
    pub exposed: Option<String>,
}

/// Tells a file from its successor.
pub type Stamp = Vec<Option<(u64, i64, i64, u64)>>;

impl Named {
    fn new(path: &Path, key: &str, section: &str) -> Self {
        Self { path: path.to_owned(), by: format!("{key} in [{section}]") }
    }

    fn wrong(&self, why: impl Into<String>) -> Problem {
        Problem { by: self.by.clone(), path: self.path.clone(), why: why.into() }
    }

    fn read(&self) -> Result<(Vec<u8>, Metadata), Problem> {
        let read = || -> io::Result<_> {
            let metadata = fs::metadata(&self.path)?;
            if !metadata.is_file() || metadata.len() > LARGEST {
                return Err(io::Error::other("not a file of certificates"));
            }
            Ok((fs::read(&self.path)?, metadata))
        };
        read().map_err(|error| self.wrong(error.to_string()))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let (bytes, _) = self.read()?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let found = found.map_err(|error| self.wrong(format!("not PEM: {error}")))?;
        if found.is_empty() {
            return Err(self.wrong("it holds no certificate in PEM form"));
        }
        Ok(found)
    }

    /// The key, and a warning if others may read it.
    fn private_key(&self) -> Result<(PrivateKeyDer<'static>, Option<String>), Problem> {
        let (bytes, metadata) = self.read()?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| self.wrong("it holds no private key in PEM form without a passphrase"))?;
        let mode = metadata.mode() & 0o777;
        let warning = (mode & 0o077 != 0).then(|| {
            format!(
                "{}: others may read the private key in {} (mode {mode:04o}); run chmod 600 on it",
                self.by,
                self.path.display()
            )
        });
        Ok((key, warning))
    }

    fn stamp(&self) -> Option<(u64, i64, i64, u64)> {
        let found = fs::metadata(&self.path).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    }
}

impl Files {
    /// Of a service.
    #[must_use]
    pub fn of_server(tls: &ServerTls) -> Self {
        let named = |path: &Path, key: &str| Named::new(path, key, tls.section);
        // The peers of a data plane are known by the authorities of its control plane.
        let authorities = if tls.section == "control_plane" { "tls_ca_file" } else { "tls_client_ca_file" };
        Self {
            name: tls.section.to_owned(),
            authorities: tls.client_ca.as_deref().map(|path| named(path, authorities)),
            identity: Some((named(&tls.cert, "tls_cert_file"), named(&tls.key, "tls_key_file"))),
            trust: Trust::Anyone,
        }
    }

    /// Of a data plane, towards its control plane.
    #[must_use]
    pub fn of_client(tls: &ClientTls) -> Self {
        let named = |path: &Path, key: &str| Named::new(path, key, "control_plane");
        let identity = tls.identity.as_ref();
        Self {
            name: "control_plane".to_owned(),
            authorities: Some(named(&tls.ca, "tls_ca_file")),
            identity: identity.map(|(cert, key)| (named(cert, "tls_cert_file"), named(key, "tls_key_file"))),
            trust: Trust::Anyone,
        }
    }

    /// Of a leg that speaks PostgreSQL's protocol; `None`: without TLS.
    #[must_use]
    pub fn of_leg(leg: &LegTls) -> Option<Self> {
        let trust = match leg.mode {
            TlsMode::Disable => return None,
            TlsMode::Prefer | TlsMode::Require => Trust::Anyone,
            TlsMode::VerifyCa => Trust::Authority,
            TlsMode::VerifyFull => Trust::Name,
        };
        let named = |path: &Path, key: &str| Named::new(path, key, leg.section);
        let authorities = if leg.section == "client_tls" { "tls_client_ca_file" } else { "tls_ca_file" };
        let identity = leg.identity.as_ref();
        Some(Self {
            name: leg.section.to_owned(),
            authorities: leg.authorities.as_deref().map(|path| named(path, authorities)),
            identity: identity.map(|(cert, key)| (named(cert, "tls_cert_file"), named(key, "tls_key_file"))),
            trust,
        })
    }

    /// Towards Patroni, if its REST API speaks TLS.
    #[must_use]
    pub fn of_patroni(patroni: &Patroni) -> Option<Self> {
        let authorities = Named::new(patroni.ca.as_deref()?, "patroni_ca_file", "topology");
        Some(Self {
            name: "topology".to_owned(),
            authorities: Some(authorities),
            identity: None,
            trust: Trust::Anyone,
        })
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// A file cannot be read, is no PEM file, or the key is not the certificate's.
    pub fn load(&self) -> Result<Material, Problem> {
        let mut material = Material { trust: self.trust, ..Material::default() };
        if let Some(named) = &self.authorities {
            let mut roots = RootCertStore::empty();
            material.trusted = named.certificates()?;
            for certificate in &material.trusted {
                roots
                    .add(certificate.clone())
                    .map_err(|error| named.wrong(format!("not the certificate of an authority: {error}")))?;
            }
            material.authorities = Some(Arc::new(roots));
        }
        if let Some((cert, key)) = &self.identity {
            let chain = cert.certificates()?;
            let first = chain.first().ok_or_else(|| cert.wrong("it holds no certificate"))?;
            let not_after = not_after(first).ok_or_else(|| cert.wrong("it holds no certificate of X.509"))?;
            let (private, exposed) = key.private_key()?;
            material.warnings.extend(exposed.clone());
            material.exposed = exposed;
            if is_past(not_after) {
                material.warnings.push(format!("{}: {}: it has expired", cert.by, cert.path.display()));
            }
            let fits = CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    key.wrong(format!("it is not the key of the certificate in {}", cert.path.display()))
                }
                error => key.wrong(error.to_string()),
            })?;
            (material.identity, material.not_after) = (Some(Arc::new(fits)), Some(not_after));
        }
        Ok(material)
    }

    /// Changes when a file does.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.authorities.iter().chain(identity).map(Named::stamp).collect()
    }
}

/// The cryptography of every leg.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whether this moment, in seconds since 1970, has gone by.
#[must_use]
pub fn is_past(at: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX) > at
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The common name and the DNS names of a certificate.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = common.map(str::to_owned).collect();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    names
}
