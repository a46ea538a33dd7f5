//! What the cache tells Prometheus. Only counts; nothing of what is kept.

use super::{Cache, Counts};
use crate::metrics::{counter, family, float, gauge};
use prometheus::proto::{Metric, MetricFamily, MetricType};
use std::sync::atomic::{AtomicU64, Ordering};

/// The families of the cache; none without one.
#[must_use]
pub fn families(cache: Option<&Cache>) -> Vec<MetricFamily> {
    let Some(cache) = cache else { return Vec::new() };
    let Counts { hits, shared_hits, misses, fills, invalidations, flushes } = &cache.counts;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let levels = vec![
        counter(&[("level", "process")], read(hits)),
        counter(&[("level", "shared")], read(shared_hits)),
    ];
    let (entries, bytes) = cache.size();
    let one = |name: &str, help: &str, count: &AtomicU64| {
        family(name, help, MetricType::COUNTER, vec![counter(&[], read(count))])
    };
    let now =
        |name: &str, help: &str, value: f64| family(name, help, MetricType::GAUGE, vec![gauge(&[], value)]);
    let mut families = vec![
        family("cache_hits_total", "Reads answered from the cache.", MetricType::COUNTER, levels),
        one("cache_misses_total", "Reads that the cache could have answered and had not.", misses),
        one("cache_fills_total", "Answers kept.", fills),
        one("cache_invalidations_total", "Writes that may have changed what is kept.", invalidations),
        one("cache_flushes_total", "Times that everything kept was thrown away.", flushes),
        now("cache_entries", "Answers kept now.", float(entries)),
        now("cache_bytes", "Bytes of the answers kept now.", float(bytes)),
        now(
            "cache_up",
            "Whether reads are answered from the cache: Redis answers, where it is configured.",
            f64::from(u8::from(cache.is_up())),
        ),
    ];
    if cache.settings.logical.is_some() {
        let one =
            |(name, followed): (String, bool)| gauge(&[("database", &name)], f64::from(u8::from(followed)));
        let followed: Vec<Metric> = cache.streams().into_iter().map(one).collect();
        let help = "Whether the primary's logical replication stream is followed; else nothing of the database is answered \
                    from the cache.";
        families.push(family("cache_followed", help, MetricType::GAUGE, followed));
    }
    families
}
