//! Certificate authorities and certificates for tests, as files in a directory that is removed at the end. Keys are made
//! anew each time and can be read by their owner only.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use crate::controlplane::directory;

/// An authority with its own directory.
pub struct Pki {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Pki {
    /// A new authority; its certificate is `ca.pem`.
    ///
    /// # Panics
    /// When the directory cannot be written.
    #[must_use]
    pub fn new() -> Self {
        let directory = PathBuf::from(directory("pki"));
        fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    /// The path of a file.
    ///
    /// # Panics
    /// Never: the path is text.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// `name.pem` and `name.key`, for these names and until that year; replaced if they are there.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn issue(&self, name: &str, names: &[&str], until: i32) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(until, 1, 1));
        let key = KeyPair::generate().unwrap();
        let path = self.file(&format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
    }

    /// The keys of a service with the certificate of this name; `asks`: clients need one.
    #[must_use]
    pub fn server(&self, name: &str, asks: bool) -> String {
        let ca =
            if asks { format!("tls_client_ca_file = \"{}\"\n", self.file("ca.pem")) } else { String::new() };
        format!(
            "tls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n{ca}",
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}.key"))
        )
    }

    /// The keys of a data plane with the certificate of this name.
    #[must_use]
    pub fn client(&self, name: &str) -> String {
        format!("tls_ca_file = \"{}\"\n{}", self.file("ca.pem"), self.server(name, false))
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
