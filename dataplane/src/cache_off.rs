//! The twin of `cache` in a build without feature `distribcache`: nothing is looked up, recorded or noted. The configuration
//! refuses `enabled = true`.

#[path = "cache/ask.rs"]
mod ask;

pub use ask::{Asker, Found};

use crate::route::Verdict;
use crate::session::run::Watching;
use crate::worker::Shared;
use helios_proto::config::Config;
use helios_proto::model::Snapshot;
use helios_proto::wire::v1::CacheStatus;
use prometheus::proto::MetricFamily;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// There is none.
pub enum Cache {}

/// Of a session without a cache.
#[derive(Default)]
pub struct Desk;

/// Remembers nothing.
pub struct Readings;

impl Readings {
    /// Remembers nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self
    }
}

/// Hears nothing.
pub struct Watch<'a>(PhantomData<&'a mut Desk>);

impl Cache {
    /// There is none.
    ///
    /// # Errors
    /// None.
    pub fn new(_: &Config) -> io::Result<Option<Arc<Self>>> {
        Ok(None)
    }

    /// There is none.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        match *self {}
    }

    /// There is none.
    pub fn obey(&self, _: &Snapshot) {
        match *self {}
    }
}

/// Nothing is to be followed.
pub fn start(cache: &Arc<Cache>, _: &Arc<Shared>, _: &CancellationToken, _: &TaskTracker) {
    match **cache {}
}

/// There are none.
#[must_use]
pub fn families(_: Option<&Cache>) -> Vec<MetricFamily> {
    Vec::new()
}

impl Desk {
    /// Of a session without a cache.
    #[must_use]
    pub fn new(_: Option<&Arc<Cache>>, _: &[u8]) -> Self {
        Self
    }

    /// It never is.
    #[must_use]
    pub fn is_open(&self) -> bool {
        false
    }

    /// Nothing is found.
    pub fn look_up(&mut self, _: &[u8], _: &Verdict, _: &Asker<'_>, _: &mut Readings) -> Found {
        Found::Nothing
    }

    /// Nothing is fetched.
    pub async fn fetch(&mut self) -> Option<Arc<[u8]>> {
        None
    }

    /// Nothing is recorded.
    pub fn bound(&mut self, _: bool) {}

    /// Nothing was wanted.
    pub fn give_up(&mut self) {}

    /// Nothing is recorded.
    pub fn record(&mut self, _: &[u8]) {}

    /// Nothing was noted.
    pub fn told(&mut self) {}

    /// Nothing was noted.
    pub fn landed(&mut self) {}

    /// Nothing was noted.
    pub fn rested(&mut self) {}

    /// Nothing was noted.
    pub fn lost(&mut self) {}
}

impl<'a> Watch<'a> {
    /// For nobody.
    pub fn new(_: &'a mut Desk, _: &'a mut Readings) -> Self {
        Self(PhantomData)
    }
}

impl Watching for Watch<'_> {
    fn wrote(&mut self, _: &[u8], _: bool) {}

    fn wrote_anything(&mut self) {}
}
