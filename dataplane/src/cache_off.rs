//! The twin of `cache` in a build without feature `distribcache`: nothing is looked up, recorded or noted. The configuration
//! refuses `enabled = true`.

use crate::pool::Identity;
use crate::pool::identity::Greeting;
use crate::route::Verdict;
use crate::server::settings::Texts;
use crate::session::run::Watching;
use crate::worker::Shared;
use helios_proto::config::Config;
use helios_proto::model::Snapshot;
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

/// What came of looking.
pub enum Found {
    /// This is the answer.
    Answer(Arc<[u8]>),
    /// [`Desk::fetch`] may have it.
    Fetch,
    /// The primary is to be asked.
    Primary,
    /// It is none of the cache's business.
    Nothing,
}

/// Whose run it is, and under which settings.
pub struct Asker<'a> {
    /// Role, database and startup parameters.
    pub identity: &'a Identity,
    /// Settings that the session has made, by name.
    pub settings: Option<&'a Arc<Texts>>,
    /// Of which cluster, and how far it has come.
    pub snapshot: &'a Snapshot,
    /// What the session was told when its server connections were opened.
    pub greeting: &'a Greeting,
    /// Text, NUL and types of a prepared statement.
    pub prepared: &'a dyn Fn(&[u8]) -> Option<&'a [u8]>,
}

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
