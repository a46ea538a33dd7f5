//! The HTTP shim: /health, /metrics, /pool/stats, /nodes. Open and read-only: never shows users, SQL or addresses of
//! clients, and never changes anything. Bounded in connections, header size and time.

use crate::cache;
use crate::control::Link;
use crate::descriptors::{Reserve, ran_out};
use crate::listener::WorkerThread;
use crate::metrics;
use crate::pool::View;
use crate::route::Pins;
use crate::spans::Tracer;
use crate::worker::Shared;
use helios_proto::model::Health;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Most connections at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 64;
/// Longest request head, in bytes.
const LONGEST_HEAD: usize = 8192;
/// Longest wait for a request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// What the shim reports on.
pub struct Shim {
    /// Pools, snapshot, sessions.
    pub shared: Arc<Shared>,
    /// The workers' counts.
    pub workers: Arc<Vec<WorkerThread>>,
    /// The data plane is stopping.
    pub draining: Arc<AtomicBool>,
    /// The way to the control plane.
    pub link: Arc<Link>,
}

/// Serves until stopped.
pub async fn serve(listener: TcpListener, shim: Arc<Shim>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let tasks = tokio_util::task::TaskTracker::new();
    let reserve = Reserve::hold();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((io, _)) => {
                let (shim, reserve) = (Arc::clone(&shim), reserve.clone());
                tasks.spawn(async move {
                    connection(io, shim).await;
                    reserve.refill();
                    drop(place);
                });
            }
            // Clients have taken every descriptor: one is held back for whoever wants to know.
            Err(error) if ran_out(&error) && reserve.lend() => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(io: TcpStream, shim: Arc<Shim>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &shim);
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

fn answer(request: &Request<Incoming>, shim: &Shim) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n");
        response.headers_mut().insert("allow", HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let view = shim.shared.pools.view();
    match request.uri().path() {
        "/health" | "/health/ready" => health(shim, &view),
        "/health/live" => json_response(StatusCode::OK, &json!({"status": "ok"})),
        "/metrics" => {
            let counters: Vec<_> = shim.workers.iter().map(|worker| Arc::clone(&worker.counters)).collect();
            let body = metrics::render(
                &counters,
                shim.shared.lanes.open(),
                &view,
                &shim.link,
                [
                    cache::families(shim.shared.answers.as_deref()),
                    Tracer::families(shim.shared.tracer.as_deref()),
                ]
                .concat(),
            );
            with_type(StatusCode::OK, body, "text/plain; version=0.0.4; charset=utf-8")
        }
        "/pool/stats" => json_response(StatusCode::OK, &pool_stats(shim, &view)),
        "/nodes" => json_response(StatusCode::OK, &nodes(&view)),
        _ => text(StatusCode::NOT_FOUND, "not found; try /health, /metrics, /pool/stats or /nodes\n"),
    }
}

/// 200 while the process serves, whatever the state of the databases and of the control plane; 503 while it drains, and
/// before the first snapshot.
fn health(shim: &Shim, view: &View) -> Response<Full<Bytes>> {
    let down = view.snapshot.nodes.iter().filter(|node| node.health == Health::Down).count();
    let (code, status) = if shim.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if view.snapshot.nodes.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    } else if down > 0 || view.snapshot.primary.is_none() || !shim.link.connected() {
        (StatusCode::OK, "degraded")
    } else {
        (StatusCode::OK, "ok")
    };
    let body = json!({
        "status": status,
        "nodes": view.snapshot.nodes.len(),
        "nodes_down": down,
        "primary": view.snapshot.primary().map(|node| node.node.name.as_str()),
        "revision": view.snapshot.revision,
        "control_connected": shim.link.connected(),
    });
    json_response(code, &body)
}

fn pool_stats(shim: &Shim, view: &View) -> Value {
    let pools: Vec<_> = view
        .pools
        .iter()
        .map(|pool| {
            let counts = pool.counts();
            json!({
                "node": pool.node.name.as_str(),
                "total": counts.total,
                "active": counts.active,
                "idle": counts.idle,
                "waiting": counts.waiting,
                "max": pool.most(),
            })
        })
        .collect();
    let pinned = |at: usize| -> u64 {
        let each = shim.workers.iter().filter_map(|worker| worker.counters.pins.get(at));
        each.map(|held| held.now.load(Ordering::Relaxed)).sum()
    };
    let pinned: serde_json::Map<_, _> = Pins::WORDS
        .iter()
        .enumerate()
        .map(|(at, (_, word))| ((*word).to_owned(), pinned(at).into()))
        .collect();
    json!({
        "mode": view.settings().pool.mode.word(),
        "sessions": shim.shared.registry.len(),
        "pinned": pinned,
        "pools": pools,
    })
}

fn nodes(view: &View) -> Value {
    let nodes: Vec<_> = view
        .snapshot
        .nodes
        .iter()
        .enumerate()
        .map(|(at, state)| {
            json!({
                "name": state.node.name.as_str(),
                "host": state.node.host,
                "port": state.node.port,
                "role": state.role.word(),
                "configured_role": state.node.role.word(),
                "primary": view.snapshot.primary == Some(at),
                "health": state.health.word(),
                "weight": state.weight(),
                "drained": state.ops.drained,
                "paused": state.ops.paused,
                "latency_ms": state.latency.map(|latency| latency.as_secs_f64() * 1e3),
                "lag_bytes": state.lag_bytes,
                "lag_ms": state.lag.map(|lag| lag.as_secs_f64() * 1e3),
                "last_error": state.last_error.as_deref(),
            })
        })
        .collect();
    json!({ "revision": view.snapshot.revision, "epoch": view.snapshot.epoch, "nodes": nodes })
}

fn json_response(code: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    with_type(code, format!("{value}\n").into_bytes(), "application/json")
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    with_type(code, body.as_bytes().to_vec(), "text/plain; charset=utf-8")
}

fn with_type(code: StatusCode, body: Vec<u8>, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
