//! A TLS configuration that follows its files: looked at every ten seconds and on SIGHUP, replaced whole when they are
//! good. What is not good is refused with an error in the log, and the old stays. Owner of one task per side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::files::{Files, Material, Stamp, is_past, provider};

/// Pause between two looks at the files.
const LOOK: Duration = Duration::from_secs(10);
/// HTTP/2, as gRPC needs it.
const ALPN: &[u8] = b"h2";

/// A service's side.
pub type ServerSide = Live<ServerConfig>;
/// The side of who calls.
pub type ClientSide = Live<ClientConfig>;

/// A configuration of rustls that can be made from files.
pub trait FromFiles: Sized + Send + Sync + 'static {
    /// Makes one.
    ///
    /// # Errors
    /// What rustls says.
    fn make(material: &Material) -> Result<Self, rustls::Error>;
}

/// What metrics tell of a side.
pub trait Expires: Send + Sync {
    /// The section that names the files.
    fn name(&self) -> &str;
    /// When the certificate in force expires, in seconds since 1970; `None`: there is none.
    fn not_after(&self) -> Option<i64>;
    /// How often new files were refused.
    fn failures(&self) -> u64;
}

/// A configuration in force, and its files.
pub struct Live<C> {
    files: Files,
    state: Mutex<State<C>>,
    failures: AtomicU64,
}

struct State<C> {
    current: Arc<C>,
    not_after: Option<i64>,
    seen: Stamp,
}

impl<C: FromFiles> Live<C> {
    /// Reads the files.
    ///
    /// # Errors
    /// They are not good, in words that name file and key.
    pub fn open(files: Files) -> Result<Arc<Self>, String> {
        let seen = files.stamp();
        let (current, not_after) = Self::made(&files)?;
        let state = Mutex::new(State { current: Arc::new(current), not_after, seen });
        Ok(Arc::new(Self { files, state, failures: AtomicU64::new(0) }))
    }

    fn made(files: &Files) -> Result<(C, Option<i64>), String> {
        let material = files.load().map_err(|problem| problem.to_string())?;
        let made = C::make(&material).map_err(|error| format!("TLS of [{}]: {error}", files.name))?;
        Ok((made, material.not_after))
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    #[must_use]
    pub fn current(&self) -> Arc<C> {
        Arc::clone(&self.lock().current)
    }

    /// Takes the files in force if they have changed and are good.
    pub fn look(&self) {
        let seen = self.files.stamp();
        if self.lock().seen == seen {
            return;
        }
        let made = Self::made(&self.files).and_then(|(made, not_after)| match not_after {
            Some(at) if is_past(at) => {
                Err(format!("tls_cert_file in [{}]: the new certificate has expired", self.files.name))
            }
            not_after => Ok((made, not_after)),
        });
        let mut state = self.lock();
        state.seen = seen;
        match made {
            Ok((made, not_after)) => {
                (state.current, state.not_after) = (Arc::new(made), not_after);
                tracing::info!(section = %self.files.name, not_after, "new certificate files are in force");
            }
            Err(why) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!("new certificate files are refused, the old ones stay: {why}");
            }
        }
    }

    /// Looks at the files now and then, and on SIGHUP, until stopped.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hup = match signal(SignalKind::hangup()) {
            Ok(hup) => hup,
            Err(error) => return tracing::error!(%error, "certificate files are not followed"),
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = hup.recv() => {}
                _ = ticks.tick() => {}
            }
            let live = Arc::clone(&self);
            // Files may be on a file system that is slow.
            let _ = tokio::task::spawn_blocking(move || live.look()).await;
        }
    }
}

impl<C: Send + Sync> Expires for Live<C> {
    fn name(&self) -> &str {
        &self.files.name
    }

    fn not_after(&self) -> Option<i64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).not_after
    }

    fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl FromFiles for ServerConfig {
    fn make(material: &Material) -> Result<Self, rustls::Error> {
        let builder = Self::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &material.authorities {
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
                let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let identity = material.identity.clone();
        let identity =
            identity.ok_or_else(|| rustls::Error::General("there is no certificate".to_owned()))?;
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

impl FromFiles for ClientConfig {
    fn make(material: &Material) -> Result<Self, rustls::Error> {
        let roots = material.authorities.clone();
        let roots = roots.ok_or_else(|| rustls::Error::General("there is no authority".to_owned()))?;
        let builder = Self::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match &material.identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}
