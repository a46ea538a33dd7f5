//! TLS of a service as its section of the file asks for it: opened, followed, and said aloud where it is missing. Decides
//! nothing about certificates; that is helios-tls.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use helios_proto::config::ServerTls;
use helios_tls::{Files, ServerSide};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Opens TLS for a section that asks for it, and follows its files until stopped.
///
/// # Errors
/// The files are not good, in words that name file and key.
pub fn open(
    tls: Option<&ServerTls>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> io::Result<Option<Arc<ServerSide>>> {
    let Some(tls) = tls else { return Ok(None) };
    let side = ServerSide::open(Files::of_server(tls)).map_err(io::Error::other)?;
    tracker.spawn(Arc::clone(&side).follow(stop.clone()));
    Ok(Some(side))
}

/// Says so if what is sent to this address can be read on the way.
pub fn warn_of_plain_text(address: SocketAddr, tls: Option<&Arc<ServerSide>>, section: &str) {
    if tls.is_none() && !address.ip().is_loopback() {
        tracing::warn!(%address, "[{section}] is not encrypted: tokens and passwords can be read on the network");
    }
}
