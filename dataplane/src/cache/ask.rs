//! What a session asks the cache, and what it is told: the same in both twins, with the cache and without it. Never answers
//! anything.

use crate::pool::Identity;
use crate::pool::identity::Greeting;
use crate::server::settings::Texts;
use helios_proto::model::Snapshot;
use std::sync::Arc;

/// What was prepared under a name: its text, NUL, and its types.
pub type Prepared<'a> = &'a dyn Fn(&[u8]) -> Option<&'a [u8]>;

/// What came of looking.
pub enum Found {
    /// This is the answer.
    Answer(Arc<[u8]>),
    /// `Desk::fetch` may have it; if not, the primary is to be asked.
    Fetch,
    /// The primary is to be asked, so that the answer can be kept.
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
    pub prepared: Prepared<'a>,
}
