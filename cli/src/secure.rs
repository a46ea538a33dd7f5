//! Which certificate files to use: each from the command line, else the environment, else the context; and what they
//! give. A private key that others may read is refused, as a token is. Never prints what a file holds.

use std::path::{Path, PathBuf};

use helios_tls::files::{Files, Named};
use helios_tls::{ClientSide, dial::Secured};
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::contexts::{Env, set};
use crate::failure::Failure;

/// Files and a name, where they are given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// Authorities of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Name in the service's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl Certificates {
    /// Whether none is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the command line gives, paths absolute.
    #[must_use]
    pub fn of(global: &Global) -> Self {
        let whole = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| std::path::absolute(path).unwrap_or(path.clone()))
        };
        Self {
            ca: whole(&global.ca),
            cert: whole(&global.cert),
            key: whole(&global.key),
            server_name: global.server_name.clone(),
        }
    }

    /// The command line, then the environment, then the context.
    #[must_use]
    pub fn found(global: &Global, env: Env<'_>, context: Option<Self>) -> Self {
        let (given, context) = (Self::of(global), context.unwrap_or_default());
        let file = |name: &str| set(env, name).map(PathBuf::from);
        // A certificate and a key of two places do not fit: the nearest place that names either gives both.
        let (cert, key) = [
            (given.cert, given.key),
            (file("HELIOSCTL_CERT"), file("HELIOSCTL_KEY")),
            (context.cert, context.key),
        ]
        .into_iter()
        .find(|(cert, key)| cert.is_some() || key.is_some())
        .unwrap_or_default();
        Self {
            ca: given.ca.or_else(|| file("HELIOSCTL_CA")).or(context.ca),
            cert,
            key,
            server_name: given
                .server_name
                .or_else(|| set(env, "HELIOSCTL_SERVER_NAME"))
                .or(context.server_name),
        }
    }

    /// TLS made of them.
    ///
    /// # Errors
    /// One is missing, or is not good.
    pub fn open(&self) -> Result<Secured, Failure> {
        let named = |path: &Path, option: &str| Named { path: path.to_owned(), by: option.to_owned() };
        let Some(ca) = &self.ca else {
            return Err(Failure::usage(
                "an endpoint with https:// needs the authorities of its certificate: give --ca FILE, HELIOSCTL_CA \
                 or a context",
            ));
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((named(cert, "--cert"), named(key, "--key"))),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("--cert needs --key")),
            (None, Some(_)) => return Err(Failure::usage("--key needs --cert")),
        };
        let authorities = Some(named(ca, "--ca"));
        let files = Files { name: "heliosctl".to_owned(), authorities, identity, ..Files::default() };
        let material = files.load().map_err(|problem| Failure::usage(problem.to_string()))?;
        if let Some(exposed) = material.exposed {
            return Err(Failure::usage(exposed));
        }
        let side = ClientSide::open(files).map_err(Failure::usage)?;
        Ok(Secured { config: side.current(), name: self.server_name.clone() })
    }
}
