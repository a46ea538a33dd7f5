//! TLS configurations for the two legs that speak PostgreSQL's protocol: towards clients (`[client_tls]`) and towards
//! servers (`[server_tls]`). What each mode trusts, channel binding (RFC 5929, `tls-server-end-point`), a certificate in
//! memory where none is configured. Never touches a socket.

use std::sync::Arc;

use helios_proto::config::LegTls;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::{Files, Material, Trust, names, provider};
use crate::live::{FromFiles, Live};

/// The protocol's name in ALPN (PostgreSQL 17, `libpq/libpq.h`).
pub const ALPN: &[u8] = b"postgresql";
/// Longest plaintext of a record towards clients, in bytes: asynchronous users of libpq look at the socket only, and miss
/// what of a longer record waits inside it (`reliability.md` B21).
const RECORD: usize = 8 * 1024;

/// The side of clients: what connections are accepted with.
pub struct Accepting {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// What channel binding names, if our certificate has such a hash.
    pub binding: Option<Arc<[u8]>>,
}

/// The side of servers: what connections are opened with.
pub struct Dialling {
    /// For rustls.
    pub config: Arc<ClientConfig>,
}

/// `[server_tls]` with its files.
#[derive(Default)]
pub struct ToServers {
    /// `None`: no TLS.
    pub live: Option<Arc<Live<Dialling>>>,
    /// A server without TLS is not used.
    pub required: bool,
    /// The server's certificate is looked at.
    pub verified: bool,
}

impl ToServers {
    /// Reads the files of the section.
    ///
    /// # Errors
    /// They are not good, in words that name file and key.
    pub fn open(leg: &LegTls) -> Result<Self, String> {
        let live = Files::of_leg(leg).map(Live::open).transpose()?;
        Ok(Self { live, required: leg.mode.is_required(), verified: leg.mode.verifies() })
    }
}

impl FromFiles for Accepting {
    fn make(material: &Material) -> Result<Self, Error> {
        let identity = match &material.identity {
            Some(identity) => Arc::clone(identity),
            None => Arc::new(of_its_own()?),
        };
        let binding = identity.end_entity_cert().ok().and_then(end_point);
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &material.authorities {
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
                let verifier = match material.trust {
                    Trust::Anyone => verifier.allow_unauthenticated(),
                    Trust::Authority | Trust::Name => verifier,
                };
                builder
                    .with_client_cert_verifier(verifier.build().map_err(|e| Error::General(e.to_string()))?)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_fragment_size = Some(RECORD);
        // As PostgreSQL: sessions are not resumed.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), binding: binding.map(Into::into) })
    }
}

impl FromFiles for Dialling {
    fn make(material: &Material) -> Result<Self, Error> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let verifier = ServerCheck::new(material)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &material.identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }
}

/// A self-signed certificate, so that clients that prefer TLS are encrypted without any configuration. ECDSA: an Ed25519
/// certificate has no hash that channel binding could name.
fn of_its_own() -> Result<CertifiedKey, Error> {
    let general = |error: rcgen::Error| Error::General(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(general)?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).map_err(general)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "heliosdb-proxy");
    let certificate = params.self_signed(&key).map_err(general)?;
    let private =
        PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| Error::General(why.to_owned()))?;
    CertifiedKey::from_der(vec![certificate.der().clone()], private, &provider())
}

/// The hash of a certificate that `tls-server-end-point` stands for: that of its signature, or SHA-256 where that is MD5 or
/// SHA-1 (RFC 5929, section 4.1). `None`: the signature has no single hash.
#[must_use]
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let oid = parsed.signature_algorithm.algorithm.to_id_string();
    Some(match oid.as_str() {
        // RSA and ECDSA with MD5, SHA-1, SHA-224 is not allowed any more, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// What makes a server's certificate good enough.
#[derive(Debug)]
struct ServerCheck {
    provider: Arc<CryptoProvider>,
    trust: Trust,
    /// `None`: every certificate is good.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted as they are: those of the file of authorities.
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCheck {
    fn new(material: &Material) -> Result<Self, Error> {
        let chain = match (&material.authorities, material.trust) {
            (_, Trust::Anyone) => None,
            (Some(roots), _) => {
                let built =
                    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build();
                Some(built.map_err(|error| Error::General(error.to_string()))?)
            }
            (None, _) => return Err(Error::General("there is no authority".to_owned())),
        };
        Ok(Self { provider: provider(), trust: material.trust, chain, pinned: material.trusted.clone() })
    }

    /// Whether the certificate is the host's, as libpq sees it: the common name counts where there is no other name.
    fn is_of(
        &self,
        certificate: &CertificateDer<'_>,
        host: &ServerName<'_>,
        refusal: Error,
    ) -> Result<(), Error> {
        let host = host.to_str();
        let fits = |name: &String| name.eq_ignore_ascii_case(&host);
        if self.trust != Trust::Name
            || (!has_alternative_names(certificate) && names(certificate).iter().any(fits))
        {
            return Ok(());
        }
        Err(refusal)
    }
}

fn has_alternative_names(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, parsed)| matches!(parsed.subject_alternative_name(), Ok(Some(_))))
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let refusal = match chain.verify_server_cert(certificate, intermediates, host, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(refusal) => refusal,
        };
        let pinned = self.pinned.iter().any(|known| known == certificate);
        match &refusal {
            // The chain was found good before the name was looked at.
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => self.is_of(certificate, host, refusal)?,
            // Self-signed, and named as an authority itself.
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_))
                if pinned =>
            {
                let parsed = X509Certificate::from_der(certificate);
                let (_, parsed) = parsed.map_err(|_| Error::from(CertificateError::BadEncoding))?;
                let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                if at > parsed.validity().not_after.timestamp() {
                    return Err(CertificateError::Expired.into());
                }
                if at < parsed.validity().not_before.timestamp() {
                    return Err(CertificateError::NotValidYet.into());
                }
                if self.trust == Trust::Name
                    && let Err(refusal) = verify_server_name(&ParsedCertificate::try_from(certificate)?, host)
                {
                    self.is_of(certificate, host, refusal)?;
                }
            }
            _ => return Err(refusal),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
