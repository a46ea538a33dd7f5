//! Logging in on a node with the stock client, with TLS as `[server_tls]` says: for probes and for a switchover. Never asks
//! anything itself.

use std::time::Duration;

use helios_tls::names;
use helios_tls::postgres::ToServers;
use rustls::ClientConfig;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

/// A client, and the task that is its connection.
pub(crate) type Connected = (Client, AbortOnDropHandle<()>);

/// Longest wait for the address of a name that has never been found; the probe's own limit is mostly shorter.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Logs in.
pub(crate) async fn log_in(config: &mut Config, to: &ToServers) -> Result<Connected, Error> {
    locate(config).await;
    let Some(live) = &to.live else {
        let (client, connection) = Box::pin(config.ssl_mode(SslMode::Disable).connect(NoTls)).await?;
        return Ok((client, run(connection)));
    };
    config.ssl_mode(if to.required { SslMode::Require } else { SslMode::Prefer });
    let tls = MakeRustlsConnect::new(ClientConfig::clone(&live.current().config));
    let (client, connection) = Box::pin(config.connect(tls)).await?;
    Ok((client, run(connection)))
}

/// Fills in the addresses of the host. Without one the client asks for it itself, and says why there is none.
async fn locate(config: &mut Config) {
    let [Host::Tcp(host)] = config.get_hosts() else { return };
    let host = host.clone();
    let Ok(found) = names::resolve(&host, 0, LOOK_UP).await else { return };
    for (at, address) in found.into_iter().enumerate() {
        // One host for each address.
        if at > 0 {
            config.host(&host);
        }
        config.hostaddr(address.ip());
    }
}

fn run(connection: impl Future<Output = Result<(), Error>> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        // Its end shows in the next statement.
        drop(connection.await);
    }))
}
