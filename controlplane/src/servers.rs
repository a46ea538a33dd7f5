//! Logging in on a node with the stock client, with TLS as `[server_tls]` says: for probes and for a switchover. Never asks
//! anything itself.

use helios_tls::postgres::ToServers;
use rustls::ClientConfig;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

/// A client, and the task that is its connection.
pub(crate) type Connected = (Client, AbortOnDropHandle<()>);

/// Logs in.
pub(crate) async fn log_in(config: &mut Config, to: &ToServers) -> Result<Connected, Error> {
    let Some(live) = &to.live else {
        let (client, connection) = Box::pin(config.ssl_mode(SslMode::Disable).connect(NoTls)).await?;
        return Ok((client, run(connection)));
    };
    config.ssl_mode(if to.required { SslMode::Require } else { SslMode::Prefer });
    let tls = MakeRustlsConnect::new(ClientConfig::clone(&live.current().config));
    let (client, connection) = Box::pin(config.connect(tls)).await?;
    Ok((client, run(connection)))
}

fn run(connection: impl Future<Output = Result<(), Error>> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Its end shows in the next statement.
        drop(connection.await);
    }))
}
