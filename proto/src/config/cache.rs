//! `[cache]` and `[[cache.tables]]`: the result cache of one data plane. It belongs to that process and never travels in a
//! snapshot. Pure.

use std::time::Duration;

use toml::de::DeTable;

use super::keys::Section;
use super::reader::{Part, Reader};
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
    /// `invalidation = "logical"`: writes that no proxy sees are heard of as well; `None`: they are not.
    pub logical: Option<Logical>,
}

/// How the primary's logical replication stream is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical {
    /// Role with LOGIN and REPLICATION.
    pub user: String,
    /// Its password; `None` for `trust` and the like.
    pub password: Option<Secret>,
    /// Name of the publication: ASCII letters, digits and underscores.
    pub publication: String,
}

fn logical(part: &mut Part<'_, '_>) -> Option<Logical> {
    let wanted = part.word("invalidation", |word| match word {
        "proxy" => Some(false),
        "logical" => Some(true),
        _ => None,
    });
    let wanted = wanted.unwrap_or_default();
    let (user, password) = (part.text("replication_user"), part.secret("replication_password"));
    let publication = part.text("publication").unwrap_or_default();
    if !wanted {
        part.refuse(
            ["replication_user", "replication_password", "publication"],
            "is for invalidation = \"logical\" only; take it out",
        );
        return None;
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !publication.chars().all(plain) {
        let line = part.given("publication");
        part.problem(
            line,
            format!("publication {publication:?} in [cache] has other characters than letters, digits and _"),
        );
    }
    if user.is_none() {
        let line = part.given("invalidation");
        part.problem(
            line,
            "invalidation = \"logical\" in [cache] needs replication_user, a role with LOGIN and REPLICATION"
                .to_owned(),
        );
    }
    Some(Logical { user: user?, password, publication })
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
    let logical = logical(&mut part);
    CacheSettings {
        enabled,
        logical,
        max_bytes: part.whole("max_bytes"),
        max_entry_bytes: usize::try_from(part.whole("max_entry_bytes")).unwrap_or(usize::MAX),
        ttl: part.seconds("ttl_secs"),
        redis,
        namespace: part.text("namespace").unwrap_or_default(),
        tables,
    }
}
