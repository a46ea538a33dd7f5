//! /health and /metrics of `helios-controlplane`. Open and read-only: never shows users, secrets or addresses of peers,
//! and never changes anything. Bounded in connections, header size and time.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use helios_proto::model::Health;

use helios_tls::live::Expires;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Standing;
use crate::core::Core;
use crate::counts::Counts;

/// TLS of the services.
type Sides = Vec<Arc<dyn Expires>>;

/// Most connections at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 64;
/// Longest request head, in bytes.
const LONGEST_HEAD: usize = 8192;
/// Longest wait for a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds the address.
///
/// # Errors
/// What the system says, with the address and the key to change.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address} (admin_address): {error}"))
    })
}

/// Serves until stopped; there is no core before the store has answered.
pub async fn serve(
    listener: TcpListener,
    core: watch::Receiver<Option<Core>>,
    sides: Sides,
    stop: CancellationToken,
) {
    let sides: Arc<[Arc<dyn Expires>]> = sides.into();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, _)) => {
                let (core, sides) = (core.clone(), Arc::clone(&sides));
                tasks.spawn(async move {
                    connection(io, core, sides).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(io: TcpStream, core: watch::Receiver<Option<Core>>, sides: Arc<[Arc<dyn Expires>]>) {
    let service = service_fn(move |request| {
        let core = core.borrow().clone();
        let response = answer(&request, core.as_ref(), &sides);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(io), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "http connection ended early");
    }
}

fn answer(
    request: &Request<Incoming>,
    core: Option<&Core>,
    sides: &[Arc<dyn Expires>],
) -> Response<Full<Bytes>> {
    let json = "application/json";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response =
            response(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n".to_owned(), "text/plain");
        response.headers_mut().insert("allow", HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let starting = "{\"status\":\"starting\",\"store_up\":false}\n".to_owned();
    let text = "text/plain; version=0.0.4; charset=utf-8";
    match (request.uri().path(), core) {
        ("/health/live", None) => response(StatusCode::OK, starting, json),
        ("/health" | "/health/ready", None) => response(StatusCode::SERVICE_UNAVAILABLE, starting, json),
        ("/health" | "/health/live" | "/health/ready", Some(core)) => {
            response(StatusCode::OK, health(core), json)
        }
        ("/metrics", core) => response(StatusCode::OK, metrics(core) + &of_tls(sides), text),
        _ => response(StatusCode::NOT_FOUND, "not found; try /health or /metrics\n".to_owned(), "text/plain"),
    }
}

/// The process serves; a dead database is not its fault.
fn health(core: &Core) -> String {
    let snapshot = core.snapshots.borrow();
    let down = snapshot.nodes.iter().filter(|node| node.health == Health::Down).count();
    let standing = core.keeper.standing();
    let leading = *core.leading.borrow();
    let provider_up = snapshot.authority.as_ref().map(|authority| authority.up);
    let well =
        down == 0 && snapshot.primary.is_some() && standing.up && leading && provider_up.unwrap_or(true);
    let status = if well { "ok" } else { "degraded" };
    let dataplanes = core.fleet.list().iter().filter(|dataplane| dataplane.connected).count();
    let body = serde_json::json!({
        "status": status,
        "nodes": snapshot.nodes.len(),
        "nodes_down": down,
        "primary": snapshot.primary().map(|node| node.node.name.as_str()),
        "dataplanes": dataplanes,
        "config_revision": snapshot.config_revision,
        "revision": snapshot.revision,
        "store": standing.kind,
        "store_up": standing.up,
        "leader": standing.leads,
        "control_planes": standing.members.len().max(1),
        "topology_latched": leading,
        "topology_provider_up": provider_up,
    });
    format!("{body}\n")
}

/// One family, as text.
fn family(text: &mut String, (name, kind): (&str, &str), help: &str, values: &[(String, String)]) {
    // Writing to memory does not fail.
    let _ = writeln!(text, "# HELP heliosproxy_cp_{name} {help}\n# TYPE heliosproxy_cp_{name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(text, "heliosproxy_cp_{name}{labels} {value}");
    }
}

/// Prometheus text. The only labels are names of nodes, and words.
fn metrics(core: Option<&Core>) -> String {
    let standing = core.map(|core| core.keeper.standing()).unwrap_or_default();
    let flag = |flag: bool| [(String::new(), u8::from(flag).to_string())];
    let mut text = String::new();
    family(&mut text, ("leader", "gauge"), "1 if this control plane is the leader.", &flag(standing.leads));
    family(&mut text, ("store_up", "gauge"), "1 if the store can be reached.", &flag(standing.up));
    text + &core.map(metrics_of).unwrap_or_default()
}

fn metrics_of(core: &Core) -> String {
    let snapshot = Arc::clone(&core.snapshots.borrow());
    let fleet = core.fleet.list();
    let connected = || fleet.iter().filter(|dataplane| dataplane.connected);
    let least = connected().map(|dataplane| dataplane.revision).min().unwrap_or(snapshot.revision);
    let refusing = connected().filter(|dataplane| !dataplane.refused.is_empty()).count();
    let mut text = String::new();
    let mut family = |name: &str, help: &str, values: &[(String, String)]| {
        family(&mut text, (name, "gauge"), help, values);
    };
    let one = |value: String| [(String::new(), value)];
    family("dataplanes", "Data planes connected.", &one(connected().count().to_string()));
    family(
        "dataplanes_refusing",
        "Data planes that refused a part of the configuration.",
        &one(refusing.to_string()),
    );
    family(
        "acknowledged_revision_min",
        "Lowest revision acknowledged by a connected data plane.",
        &one(least.to_string()),
    );
    family("snapshot_revision", "Revision published last.", &one(snapshot.revision.to_string()));
    family("config_revision", "Revision of the configuration.", &one(snapshot.config_revision.to_string()));
    family("topology_epoch", "Changes of primary so far.", &one(snapshot.epoch.to_string()));
    if let Some(authority) = &snapshot.authority {
        let help = "1 if Patroni, which says who may be the primary, answers.";
        family("topology_provider_up", help, &one(u8::from(authority.up).to_string()));
    }
    let healthy: Vec<_> = snapshot
        .nodes
        .iter()
        .map(|node| {
            let up = u8::from(node.health == Health::Up);
            (format!("{{node=\"{}\"}}", node.node.name), up.to_string())
        })
        .collect();
    family("node_healthy", "1 if the health checks say up.", &healthy);
    let standings = core.budgets.standings();
    if !standings.is_empty() {
        let each = |of: fn(&Standing) -> u32| -> Vec<_> {
            let value =
                |standing: &Standing| (format!("{{node=\"{}\"}}", standing.node), of(standing).to_string());
            standings.iter().map(value).collect()
        };
        let help = "Most server connections of all data planes together.";
        family("budget_limit", help, &each(|standing| standing.limit));
        let help = "Of these, what no data plane may hold now.";
        family("budget_free", help, &each(|standing| standing.free));
    }
    traffic(&mut text, &core.counts);
    text
}

/// Messages to data planes, and reports from them.
fn traffic(text: &mut String, counts: &Counts) {
    let by = |label: &str, all: Vec<(&str, u64)>| -> Vec<(String, String)> {
        all.into_iter().map(|(word, count)| (format!("{{{label}=\"{word}\"}}"), count.to_string())).collect()
    };
    let mut counter = |name: &str, help: &str, values: &[(String, String)]| {
        family(text, (name, "counter"), help, values);
    };
    let one = |count: &AtomicU64| [(String::new(), count.load(Ordering::Relaxed).to_string())];
    let help = "Snapshots sent to data planes: whole, as a change of the configuration, or what is known about nodes.";
    counter("messages_total", help, &by("kind", counts.messages().collect()));
    let help = "Snapshots encoded; each goes to all data planes that need the same.";
    counter("encoded_total", help, &one(&counts.encoded));
    let help = "Changes of the configuration that did not fit what a data plane holds.";
    counter("resyncs_total", help, &one(&counts.resyncs));
    let help = "Reports of data planes, by service.";
    counter("reports_total", help, &by("service", counts.reports().collect()));
    let help = "Reports that waited, because one data plane sent too many.";
    counter("reports_slowed_total", help, &one(&counts.slowed));
}

/// Expiry of the certificates in force, and files that were refused. The only label is a section's name.
fn of_tls(sides: &[Arc<dyn Expires>]) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, of: fn(&dyn Expires) -> Option<String>| {
        let name = format!("heliosproxy_cp_tls_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for side in sides {
            if let Some(value) = of(side.as_ref()) {
                let _ = writeln!(text, "{name}{{section=\"{}\"}} {value}", side.name());
            }
        }
    };
    let help = "When the certificate in force expires, in seconds since 1970.";
    family("not_after_seconds", "gauge", help, |side| side.not_after().map(|at| at.to_string()));
    let help = "New certificate files that were refused.";
    family("reload_failures_total", "counter", help, |side| Some(side.failures().to_string()));
    text
}

fn response(code: StatusCode, body: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
