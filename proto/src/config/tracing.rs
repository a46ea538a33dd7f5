//! `[tracing]`: spans of one data plane. They belong to that process and never travel in a snapshot. Pure.

use toml::de::DeTable;

use super::keys::Section;
use super::plane::is_endpoint;
use super::reader::Reader;

/// `[tracing]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// `http://host:port` of an OpenTelemetry collector.
    pub endpoint: String,
    /// One statement in so many is traced.
    pub one_in: u64,
    /// Name of the service in traces.
    pub service: String,
}

pub(super) fn tracing(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<Tracing> {
    let mut part = reader.part(root, Section::Tracing);
    let endpoint = part.text("otlp_endpoint");
    let (one_in, service) = (part.whole("sample_one_in"), part.text("service_name").unwrap_or_default());
    if endpoint.is_none() {
        part.refuse(["sample_one_in", "service_name"], "does nothing without otlp_endpoint");
    }
    if let Some(text) = endpoint.as_deref().filter(|text| !is_collector(text)) {
        let line = part.given("otlp_endpoint");
        part.problem(
            line,
            format!(
                "otlp_endpoint {text:?} in [tracing] is not an address such as \"http://127.0.0.1:4317\" (TLS is not \
                 supported: put a collector beside the proxy)"
            ),
        );
    }
    Some(Tracing { endpoint: endpoint?, one_in, service })
}

/// `http://host:port`, a slash behind it or not.
fn is_collector(text: &str) -> bool {
    text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest)).is_some_and(is_endpoint)
}
