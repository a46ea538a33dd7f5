//! Traces, `[tracing]`: a span for each statement that is chosen, sent to an OpenTelemetry collector (OTLP over gRPC). A span
//! says where a statement went, how long it waited for a server connection and how long it took; never its text, nor a
//! parameter. Whoever hands one over never waits: what does not fit is counted and lost.

use crate::metrics::{counter, family};
use crate::pool::Identity;
use helios_proto::config::Tracing;
use helios_proto::model::Node;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use prometheus::proto::{MetricFamily, MetricType};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Spans that wait to be sent; more are lost.
const WAITING: usize = 8192;
/// Spans in one request.
const BATCH: usize = 512;
/// How often they are sent.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const PATIENCE: Duration = Duration::from_secs(5);

/// The span that a statement's is a part of, as its comment says (W3C Trace Context, `traceparent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
    /// Whoever made it wants to see more.
    pub sampled: bool,
}

/// A statement that has ended.
pub struct Done {
    /// What it is a part of.
    pub parent: Option<Parent>,
    /// Role and database.
    pub identity: Arc<Identity>,
    /// Where it went; `None`: nowhere, or the cache had the answer.
    pub node: Option<Arc<Node>>,
    /// It counts as a write.
    pub write: bool,
    /// The cache had the answer.
    pub cached: bool,
    /// When it came, and when it ended.
    pub from: SystemTime,
    /// When it ended.
    pub to: SystemTime,
    /// The part of it that was a wait for a server connection.
    pub waited: Duration,
    /// SQLSTATE of its error.
    pub code: Option<[u8; 5]>,
}

/// Where spans are handed over.
pub struct Tracer {
    one_in: u64,
    outgoing: mpsc::Sender<Done>,
    incoming: Mutex<Option<(mpsc::Receiver<Done>, SpanExporter)>>,
    sent: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
}

impl Parent {
    /// The parent that a comment of the text names, `/*traceparent='00-...'*/`, as SQLCommenter writes it.
    #[must_use]
    pub fn find(text: &[u8]) -> Option<Self> {
        const NAME: &[u8] = b"traceparent='00-";
        let at = memchr::memmem::find(text, NAME)?;
        let before = text.get(..at)?;
        let opened = memchr::memmem::rfind(before, b"/*")?;
        let open = memchr::memmem::find(before.get(opened..)?, b"*/").is_none();
        let value = text.get(at.checked_add(NAME.len())?..)?.first_chunk::<53>().filter(|_| open)?;
        let mut parts = std::str::from_utf8(value).ok()?.split(['-', '\'']);
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = (trace.len(), span.len(), flags.len()) == (32, 16, 2) && value.last() == Some(&b'\'');
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let valid = whole && trace != TraceId::INVALID && span != SpanId::INVALID;
        valid.then_some(Self { trace, span, sampled })
    }
}

impl Tracer {
    /// `None` if no collector is configured. `instance` tells data planes apart.
    ///
    /// # Errors
    /// The collector's address is none.
    pub fn new(settings: Option<&Tracing>, instance: String) -> io::Result<Option<Arc<Self>>> {
        let Some(Tracing { endpoint, one_in, service }) = settings else { return Ok(None) };
        let built =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE).build();
        let mut exporter = built.map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("otlp_endpoint in [tracing]: {error}"))
        })?;
        exporter.set_resource(
            &Resource::builder_empty()
                .with_service_name(service.clone())
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .with_attribute(KeyValue::new("service.instance.id", instance))
                .build(),
        );
        let (outgoing, incoming) = mpsc::channel(WAITING);
        Ok(Some(Arc::new(Self {
            one_in: *one_in,
            outgoing,
            incoming: Mutex::new(Some((incoming, exporter))),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        })))
    }

    /// One statement in so many is traced, if nobody says anything else.
    #[must_use]
    pub const fn one_in(&self) -> u64 {
        self.one_in
    }

    /// Hands a span over.
    pub fn tell(&self, done: Done) {
        if self.outgoing.try_send(done).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends spans until stopped, and then those that are left.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let taken = self.incoming.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut incoming, exporter)) = taken else { return };
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            let last = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                _ = beat.tick() => false,
            };
            loop {
                let batch = gather(&mut incoming);
                if batch.is_empty() || last && away {
                    break;
                }
                self.send(&exporter, batch, &mut away).await;
            }
            if last {
                return;
            }
        }
    }

    async fn send(&self, exporter: &SpanExporter, batch: Vec<SpanData>, away: &mut bool) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let sent = timeout(PATIENCE, exporter.export(batch)).await;
        let result = match sent {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        };
        let counted = if result.is_ok() { &self.sent } else { &self.failed };
        counted.fetch_add(count, Ordering::Relaxed);
        let was = std::mem::replace(away, result.is_err());
        match result {
            Err(error) if !was => tracing::warn!(error, "the collector takes no spans, they are lost"),
            Ok(()) if was => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }

    /// For Prometheus.
    #[must_use]
    pub fn families(tracer: Option<&Self>) -> Vec<MetricFamily> {
        let Some(tracer) = tracer else { return Vec::new() };
        let outcomes = [("sent", &tracer.sent), ("failed", &tracer.failed), ("lost", &tracer.lost)];
        let metrics =
            outcomes.map(|(outcome, count)| counter(&[("outcome", outcome)], count.load(Ordering::Relaxed)));
        let help = "Spans: taken by the collector, not taken, or lost before because too many waited.";
        vec![family("spans_total", help, MetricType::COUNTER, metrics.into())]
    }
}

/// What waits, as much as one request holds.
fn gather(incoming: &mut mpsc::Receiver<Done>) -> Vec<SpanData> {
    let mut batch = Vec::new();
    while batch.len() < BATCH
        && let Ok(done) = incoming.try_recv()
    {
        batch.push(span(done));
    }
    batch
}

/// A statement as a span, by the semantic conventions for database clients.
fn span(done: Done) -> SpanData {
    let Done { parent, identity, node, write, cached, from, to, waited, code } = done;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut attributes = vec![
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.namespace", text(&identity.database)),
        KeyValue::new("heliosproxy.user", text(&identity.user)),
        KeyValue::new("heliosproxy.wait_ms", waited.as_secs_f64() * 1e3),
        KeyValue::new("heliosproxy.cached", cached),
    ];
    if let Some(node) = node {
        attributes.extend([
            KeyValue::new("server.address", node.host.clone()),
            KeyValue::new("server.port", i64::from(node.port)),
            KeyValue::new("heliosproxy.node", node.name.to_string()),
        ]);
    }
    let mut status = Status::Unset;
    if let Some(code) = code {
        let code = text(&code);
        status = Status::error(format!("SQLSTATE {code}"));
        attributes.extend([
            KeyValue::new("db.response.status_code", code.clone()),
            KeyValue::new("error.type", code),
        ]);
    }
    let trace = parent.map_or_else(|| TraceId::from_bytes(random()), |parent| parent.trace);
    let own = SpanId::from_bytes(random());
    SpanData {
        span_context: SpanContext::new(trace, own, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| parent.span),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Client,
        name: if write { "write" } else { "read" }.into(),
        start_time: from,
        end_time: to,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: InstrumentationScope::builder("heliosdb-proxy")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness the number is 0, which a collector refuses as none.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn a_parent_is_found_in_a_comment_and_nowhere_else() {
        let value = format!("00-{TRACE}-{SPAN}-01");
        let found = |text: &str| Parent::find(text.as_bytes());
        let parent = Parent {
            trace: TraceId::from_hex(TRACE).unwrap(),
            span: SpanId::from_hex(SPAN).unwrap(),
            sampled: true,
        };
        for text in [
            format!("select 1 /*traceparent='{value}'*/"),
            format!("/* a */ /*db_driver='x',traceparent='{value}',tracestate=''*/ select 1"),
        ] {
            assert_eq!(found(&text), Some(parent), "{text}");
        }
        let unsampled = Parent { sampled: false, ..parent };
        assert_eq!(found(&format!("/*traceparent='00-{TRACE}-{SPAN}-00'*/")), Some(unsampled));
        for text in [
            "select 1".to_owned(),
            format!("select 'traceparent=''{value}''' "),
            format!("/* a */ select $$traceparent='{value}'$$"),
            format!("/*traceparent='01-{TRACE}-{SPAN}-01'*/"),
            format!("/*traceparent='{value}"),
            format!("/*traceparent='{value}0'*/"),
            format!("/*traceparent='00-{TRACE}-{}-01'*/", "0".repeat(16)),
            format!("/*traceparent='00-{}-{SPAN}-01'*/", "0".repeat(32)),
            format!("/*traceparent='00-{}-{SPAN}-01'*/", "x".repeat(32)),
            format!("/*traceparent='00-{TRACE}{SPAN}--01'*/"),
        ] {
            assert_eq!(found(&text), None, "{text}");
        }
    }
}
