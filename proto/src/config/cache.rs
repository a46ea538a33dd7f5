//! `[cache]` and `[[cache.tables]]`: the result cache of one data plane. It belongs to that process and never travels in a
//! snapshot. Pure.

use std::time::Duration;

use toml::de::DeTable;

use super::keys::Section;
use super::reader::Reader;
use super::users::repeated;
use crate::model::Secret;

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// Whether answers are kept at all.
    pub enabled: bool,
    /// Most bytes of answers in this process.
    pub max_bytes: u64,
    /// Longest answer that is kept, in bytes.
    pub max_entry_bytes: usize,
    /// Longest life of an answer.
    pub ttl: Duration,
    /// Where data planes share answers and tell each other of writes; `None`: this one is alone.
    pub redis: Option<Secret>,
    /// What the names in Redis begin with: another one for each PostgreSQL cluster.
    pub namespace: String,
    /// `[[cache.tables]]`: other lives by name of a table; zero: its answers are not kept.
    pub tables: Vec<(String, Duration)>,
}

pub(super) fn cache(reader: &mut Reader<'_>, root: &DeTable<'_>, fleet: bool) -> CacheSettings {
    let mut tables = Vec::new();
    reader.each(root, Section::CacheTables, |mut part| {
        let (name, ttl) = (part.text("name"), part.seconds("ttl_secs"));
        tables.extend(name.map(|name| (name, ttl)));
    });
    for name in repeated(tables.iter().map(|(name, _)| name.as_str())) {
        reader.problem(None, format!("two [[cache.tables]] named {name:?}"));
    }
    let mut part = reader.part(root, Section::Cache);
    let enabled = part.flag("enabled");
    let redis = part.secret("redis_url");
    if redis.as_ref().is_some_and(|url| !url.expose().starts_with("redis://")) {
        let line = part.given("redis_url");
        part.problem(
            line,
            "redis_url in [cache] does not begin with redis:// (TLS is not supported)".to_owned(),
        );
    }
    if enabled && fleet && redis.is_none() {
        let line = part.given("enabled");
        let why = "a data plane of a fleet would not hear of writes through the others";
        part.problem(
            line,
            format!("enabled = true in [cache] next to [control_plane] needs redis_url: {why}"),
        );
    }
    CacheSettings {
        enabled,
        max_bytes: part.whole("max_bytes"),
        max_entry_bytes: usize::try_from(part.whole("max_entry_bytes")).unwrap_or(usize::MAX),
        ttl: part.seconds("ttl_secs"),
        redis,
        namespace: part.text("namespace").unwrap_or_default(),
        tables,
    }
}
