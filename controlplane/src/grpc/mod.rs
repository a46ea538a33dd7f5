//! The services: [`discovery`] and reports for data planes, [`management`] for operators, behind one [`auth`] layer, with health and
//! reflection beside them. Decides nothing about nodes: it asks the keeper, the fleet and the snapshot.

pub mod auth;
mod changes;
pub mod discovery;
mod ear;
mod frames;
mod handover;
pub mod management;
mod report;
pub mod secure;
mod show;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use helios_proto::wire::v1;
use helios_proto::wire::v1::management_server::ManagementServer;
use helios_proto::wire::v1::report_server::ReportServer;
use helios_tls::{ServerSide, incoming};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use auth::{Door, Guarded};
pub use changes::{ByHand, by_hand};

/// How often the peer of a silent connection is asked whether it lives, and how long it may think.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(3);
/// Longest wait for open calls at the end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Largest message from outside: a configuration file of 4 MiB, and the request around it.
const LARGEST: usize = (4 << 20) + 4096;
/// Calls that one connection may have open.
const CALLS: u32 = 256;
/// Streams that a peer may open and reset before they are taken, and that we may reset because of it; more end the
/// connection.
const RESETS: usize = 20;
const OWN_RESETS: usize = 256;
/// Largest headers of a call, in bytes.
const HEADERS: u32 = 16 << 10;

/// The services for data planes, with health beside them.
pub async fn discovery_routes(service: discovery::Service) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<frames::Server>().await;
    reporter.set_serving::<ReportServer<report::Service>>().await;
    let reports = report::Service { ears: Arc::clone(&service.ears), counts: service.counts() };
    let reports = ReportServer::new(reports).max_decoding_message_size(report::LARGEST);
    Routes::new(health).add_service(frames::Server(Arc::new(service))).add_service(reports)
}

/// The service for operators, with health and reflection beside it.
///
/// # Errors
/// The descriptor set is damaged.
pub async fn management_routes(service: management::Service) -> io::Result<Routes> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ManagementServer<management::Service>>().await;
    let service = ManagementServer::new(service).max_decoding_message_size(LARGEST);
    Ok(Routes::new(health).add_service(service).add_service(reflection()?))
}

fn reflection() -> io::Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .build_v1()
        .map_err(io::Error::other)
}

/// Binds an address.
///
/// # Errors
/// What the system says, with the address and the key to change.
pub async fn bind(address: SocketAddr, section: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let text = format!("cannot listen on {address} (listen_address in [{section}]): {error}");
        io::Error::new(error.kind(), text)
    })
}

/// Serves until stopped; open calls get a moment, then they are cut.
///
/// # Errors
/// The server failed.
pub async fn serve(
    (listener, tls): (TcpListener, Option<Arc<ServerSide>>),
    routes: Routes,
    door: Arc<Door>,
    stop: CancellationToken,
) -> io::Result<()> {
    let incoming = incoming(listener, tls, stop.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PONG))
        .max_concurrent_streams(Some(CALLS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(OWN_RESETS))
        .http2_max_header_list_size(Some(HEADERS))
        .layer(Guarded(door))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled());
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    tokio::select! {
        served = server => served.map_err(io::Error::other),
        () = late => Ok(()),
    }
}
