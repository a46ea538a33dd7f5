//! TLS towards clients (`[client_tls]`): what the proxy offers, and what is known of a client that has taken it. Never
//! reads a message.

use helios_proto::config::{LegTls, TlsMode};
use helios_tls::Files;
use helios_tls::files::names;
use helios_tls::live::Live;
use helios_tls::postgres::Accepting;
use rustls::Connection;
use std::sync::Arc;

/// TLS towards clients, as configured.
pub struct ClientLeg {
    /// What the section demands.
    pub mode: TlsMode,
    /// `None`: no TLS.
    live: Option<Arc<Live<Accepting>>>,
}

/// What is known of a client's end of TLS.
pub struct Sealed {
    /// Hash of our certificate, for channel binding.
    pub binding: Option<Arc<[u8]>>,
    /// Names in the client's certificate, which has been verified; empty: it showed none.
    pub names: Vec<String>,
}

impl ClientLeg {
    /// Reads the files of the section.
    ///
    /// # Errors
    /// They are not good, in words that name file and key.
    pub fn open(leg: &LegTls) -> Result<Self, String> {
        let live = Files::of_leg(leg).map(Live::open).transpose()?;
        Ok(Self { mode: leg.mode, live })
    }

    /// The files, to be followed.
    #[must_use]
    pub const fn live(&self) -> Option<&Arc<Live<Accepting>>> {
        self.live.as_ref()
    }

    /// What the next handshake uses; `None`: there is no TLS.
    #[must_use]
    pub fn accepting(&self) -> Option<Arc<Accepting>> {
        self.live.as_ref().map(|live| live.current())
    }
}

impl Sealed {
    /// What a finished handshake says.
    #[must_use]
    pub fn new(accepting: &Accepting, tls: &Connection) -> Self {
        let shown = tls.peer_certificates().and_then(|chain| chain.first());
        Self { binding: accepting.binding.clone(), names: shown.map(names).unwrap_or_default() }
    }

    /// Whether the client's certificate is for this role.
    #[must_use]
    pub fn is_of(&self, role: &[u8]) -> bool {
        self.names.iter().any(|name| name.as_bytes() == role)
    }
}
