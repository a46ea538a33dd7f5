//! `[tracing]`: spans of one data plane. They belong to that process and never travel in a snapshot. Pure.

use toml::de::DeTable;

use super::keys::Section;
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
    if endpoint.as_ref().is_some_and(|endpoint| !endpoint.starts_with("http://")) {
        let line = part.given("otlp_endpoint");
        part.problem(
            line,
            "otlp_endpoint in [tracing] does not begin with http:// (TLS is not supported: put a collector beside the proxy)"
                .to_owned(),
        );
    }
    Some(Tracing { endpoint: endpoint?, one_in, service })
}
