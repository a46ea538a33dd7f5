//! What a session's spans need to know of its statements as they go by: when each came, when it was sent, how it ended.
//! Nothing at all where no collector is configured. Of several statements sent ahead of each other's answers the first is
//! traced. Never looks at anything of a text but its `traceparent`.

use crate::pool::Identity;
use crate::spans::{Done, Parent, Tracer};
use helios_proto::model::Node;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// One session's.
pub struct Traced(Option<Box<Tracing>>);

struct Tracing {
    tracer: Arc<Tracer>,
    identity: Arc<Identity>,
    /// State of a generator that decides which statement is traced (xorshift); never zero.
    dice: u64,
    now: Now,
}

/// What runs.
enum Now {
    Nothing,
    /// A statement that is not traced.
    Untraced,
    /// One that is.
    Traced {
        parent: Option<Parent>,
        from: SystemTime,
        since: Instant,
        waited: Option<Duration>,
        write: bool,
    },
}

impl Traced {
    /// Nothing is traced without a tracer.
    #[must_use]
    pub fn new(tracer: Option<&Arc<Tracer>>, identity: &Arc<Identity>) -> Self {
        let tracing = |tracer: &Arc<Tracer>| {
            let (tracer, identity) = (Arc::clone(tracer), Arc::clone(identity));
            let dice = RandomState::new().hash_one(()) | 1;
            Box::new(Tracing { tracer, identity, dice, now: Now::Nothing })
        };
        Self(tracer.map(tracing))
    }

    /// A run needs an answer, and has no server yet.
    #[inline]
    pub fn asked(&mut self, run: &[u8]) {
        if let Some(tracing) = &mut self.0 {
            tracing.begin(run);
        }
    }

    /// It is sent to a server.
    #[inline]
    pub fn sent(&mut self, run: &[u8], write: bool) {
        if let Some(tracing) = &mut self.0 {
            tracing.sent(run, write);
        }
    }

    /// It is answered by a server; `code`: with an error.
    #[inline]
    pub fn answered(&mut self, node: Option<&Arc<Node>>, code: Option<[u8; 5]>) {
        if let Some(tracing) = &mut self.0 {
            tracing.end(node, false, code);
        }
    }

    /// It is answered from the cache.
    #[inline]
    pub fn cached(&mut self) {
        if let Some(tracing) = &mut self.0 {
            tracing.end(None, true, None);
        }
    }

    /// The proxy answers it with an error.
    #[inline]
    pub fn failed(&mut self, node: Option<&Arc<Node>>, code: &str) {
        if let Some(tracing) = &mut self.0 {
            tracing.end(node, false, code.as_bytes().try_into().ok());
        }
    }
}

impl Tracing {
    fn begin(&mut self, run: &[u8]) {
        if !matches!(self.now, Now::Nothing) {
            return;
        }
        let parent = Parent::find(run);
        let wanted = parent.map_or_else(|| self.roll(), |parent| parent.sampled);
        self.now = if wanted {
            let (from, since) = (SystemTime::now(), Instant::now());
            Now::Traced { parent, from, since, waited: None, write: false }
        } else {
            Now::Untraced
        };
    }

    fn roll(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice.checked_rem(self.tracer.one_in()) == Some(0)
    }

    fn sent(&mut self, run: &[u8], is_write: bool) {
        self.begin(run);
        if let Now::Traced { since, waited, write, .. } = &mut self.now {
            waited.get_or_insert(since.elapsed());
            *write |= is_write;
        }
    }

    fn end(&mut self, node: Option<&Arc<Node>>, cached: bool, code: Option<[u8; 5]>) {
        let now = std::mem::replace(&mut self.now, Now::Nothing);
        let Now::Traced { parent, from, since, waited, write } = now else { return };
        let took = since.elapsed();
        self.tracer.tell(Done {
            parent,
            identity: Arc::clone(&self.identity),
            node: node.map(Arc::clone),
            write,
            cached,
            from,
            to: from.checked_add(took).unwrap_or(from),
            // What never got a server has waited to its end.
            waited: if cached { Duration::ZERO } else { waited.unwrap_or(took) },
            code,
        });
    }
}
