//! Names the node for one statement, and why: a pure function of verdict, session, snapshot and local evidence.
//! Never waits for a node: what to do when there is none is the caller's.

use std::fmt;
use std::time::Instant;

use helios_proto::model::{Health, NodeState, PoolMode, Role, Snapshot};

use super::hint::RouteHint;
use super::picker::{Candidates, Choosing, Loads, Picker};
use super::verdict::{Class, Verdict};

/// What the session brings to the choice.
#[derive(Debug, Clone, Copy)]
pub struct SessionFacts {
    /// Inside a transaction block.
    pub in_transaction: bool,
    /// Tied to its server connection by state it left there.
    pub pinned: bool,
    /// The node of the server connection held now.
    pub bound: Option<usize>,
    /// Inside its read-your-writes window.
    pub read_your_writes: bool,
    /// Reads may leave the primary (the setting in force for this session).
    pub read_write_split: bool,
    /// Pool mode in force for this session; in session mode every statement stays on one server.
    pub mode: PoolMode,
}

/// Everything a choice depends on, but for the picker's own state.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// The judgement of the text.
    pub verdict: &'a Verdict,
    /// The session.
    pub session: SessionFacts,
    /// The nodes and settings.
    pub snapshot: &'a Snapshot,
    /// What this data plane itself sees of the nodes.
    pub loads: &'a dyn Loads,
    /// The time now.
    pub now: Instant,
}

/// Where a statement goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Index into the snapshot's nodes; `None`: it needs a primary, or any node at all, and there is none.
    pub node: Option<usize>,
    /// Why.
    pub reason: Reason,
    /// As what it counts.
    pub kind: Kind,
}

/// Whether a statement counts as a read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Plain reads and texts without a statement.
    Read,
    /// Everything that needs the primary.
    Write,
}

/// Why a statement went where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not a plain read.
    WriteQuery,
    /// A plain read, by the rules.
    ReadQuery,
    /// A comment asked for it.
    Hint,
    /// Inside a transaction block.
    InTransaction,
    /// The session wrote a moment ago.
    ReadYourWrites,
    /// Every replica is too far behind.
    ReplicaLag,
    /// There is no replica that takes reads.
    NoReplica,
    /// Calls a function not known to be safe on a standby.
    VolatileFunction,
    /// Session state ties it to its server.
    Pinned,
    /// The nodes it was meant for have just failed here.
    Fallback,
}

/// The nodes that may serve a read, or why there is none.
type Readers = Result<Candidates, Reason>;

/// Names the node for a statement.
pub fn choose(query: &Query<'_>, picker: &mut Picker) -> Choice {
    let session = query.session;
    let kind = match query.verdict.class {
        Class::Empty | Class::Read => Kind::Read,
        Class::VolatileFunction | Class::Write => Kind::Write,
    };
    let at = |node, reason| Choice { node, reason, kind };
    let held = session.bound.or(query.snapshot.primary);
    if session.in_transaction {
        return at(held, Reason::InTransaction);
    }
    if session.pinned {
        return at(held, Reason::Pinned);
    }
    match query.verdict.class {
        Class::Write => at(query.snapshot.primary, Reason::WriteQuery),
        Class::VolatileFunction => at(query.snapshot.primary, Reason::VolatileFunction),
        Class::Empty | Class::Read if session.mode == PoolMode::Session => {
            let node = session.bound.or(query.snapshot.primary);
            let (node, reason) = query.read_from(node, picker);
            at(node, reason)
        }
        Class::Empty | Class::Read => {
            let (node, reason) = query.read(picker);
            at(node, reason)
        }
    }
}

// === impl Query ===

impl Query<'_> {
    /// A plain read outside of transactions and pins.
    fn read(&self, picker: &mut Picker) -> (Option<usize>, Reason) {
        let primary = self.snapshot.primary;
        let hint = &self.verdict.hint;
        if hint.route == Some(RouteHint::Primary) {
            return (primary, Reason::Hint);
        }
        if let Some(node) = hint.node.as_deref().and_then(|name| self.named(name)) {
            return (Some(node), Reason::Hint);
        }
        match hint.route {
            Some(RouteHint::Standby) => return self.balanced(None, Reason::Hint, picker),
            Some(RouteHint::Replica) => return self.balanced(Some(Role::Replica), Reason::Hint, picker),
            Some(RouteHint::Primary | RouteHint::Any) | None => {}
        }
        if !self.session.read_write_split {
            return self.read_from(primary, picker);
        }
        if self.session.read_your_writes {
            return (primary, Reason::ReadYourWrites);
        }
        self.balanced(None, Reason::ReadQuery, picker)
    }

    /// At this node; if there is none, reads go on at a replica.
    fn read_from(&self, node: Option<usize>, picker: &mut Picker) -> (Option<usize>, Reason) {
        if node.is_some() {
            (node, Reason::ReadQuery)
        } else {
            self.balanced(None, Reason::ReadQuery, picker)
        }
    }

    /// At one of the nodes that serve reads, else at the primary.
    fn balanced(&self, prefer: Option<Role>, reason: Reason, picker: &mut Picker) -> (Option<usize>, Reason) {
        match self.readers(prefer) {
            Ok(set) => (picker.pick(&self.choosing(), set), reason),
            Err(why) => (self.snapshot.primary, why),
        }
    }

    fn choosing(&self) -> Choosing<'_> {
        Choosing { snapshot: self.snapshot, loads: self.loads, now: self.now }
    }

    /// The node that `node=` names, if it is usable.
    fn named(&self, name: &str) -> Option<usize> {
        let index = self.snapshot.nodes.iter().position(|n| n.node.name.as_str() == name)?;
        let node = self.snapshot.nodes.get(index)?;
        let of_route = match self.verdict.hint.route {
            Some(RouteHint::Standby | RouteHint::Replica) => self.is_reader(index, node),
            Some(RouteHint::Primary | RouteHint::Any) | None => {
                self.is_reader(index, node) || self.snapshot.primary == Some(index)
            }
        };
        let usable = of_route && node.health != Health::Down && node.is_open() && !self.loads.suspect(index);
        usable.then_some(index)
    }

    /// A node that was never probed may be another cluster's: it takes no reads.
    fn is_reader(&self, index: usize, node: &NodeState) -> bool {
        node.role != Role::Primary && self.snapshot.primary != Some(index) && node.health == Health::Up
    }

    /// The nodes that take reads now: of the preferred role if there are any, of weight 0 only if there are no others.
    fn readers(&self, prefer: Option<Role>) -> Readers {
        let mut sets = [Candidates::default(); 4];
        let (mut lagging, mut failed) = (false, false);
        for (index, node) in self.snapshot.nodes.iter().enumerate().take(Candidates::MOST) {
            if !self.is_reader(index, node) || !node.is_open() {
                continue;
            }
            if self.loads.suspect(index) {
                failed = true;
            } else if self.lags(node) {
                lagging = true;
            } else {
                let rank = match (prefer.is_none_or(|role| role == node.role), node.weight() > 0) {
                    (true, true) => 0,
                    (true, false) => 1,
                    (false, true) => 2,
                    (false, false) => 3,
                };
                sets.get_mut(rank).into_iter().for_each(|set| set.add(index));
            }
        }
        let why = match (failed, lagging) {
            (true, _) => Reason::Fallback,
            (false, true) => Reason::ReplicaLag,
            (false, false) => Reason::NoReplica,
        };
        sets.into_iter().find(|set| !set.is_empty()).ok_or(why)
    }

    /// Further behind than allowed. An unknown lag is within the limits, and any is without a primary to be behind.
    fn lags(&self, node: &NodeState) -> bool {
        if self.snapshot.primary.is_none() {
            return false;
        }
        let balancer = &self.snapshot.settings.balancer;
        let over_bytes = balancer.max_lag_bytes.zip(node.lag_bytes).is_some_and(|(most, lag)| lag > most);
        let over_time = balancer.max_lag.zip(node.lag).is_some_and(|(most, lag)| lag > most);
        over_bytes || over_time
    }
}

// === words ===

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::WriteQuery,
        Self::ReadQuery,
        Self::Hint,
        Self::InTransaction,
        Self::ReadYourWrites,
        Self::ReplicaLag,
        Self::NoReplica,
        Self::VolatileFunction,
        Self::Pinned,
        Self::Fallback,
    ];

    /// The word in logs and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::WriteQuery => "write_query",
            Self::ReadQuery => "read_query",
            Self::Hint => "hint",
            Self::InTransaction => "in_transaction",
            Self::ReadYourWrites => "read_your_writes",
            Self::ReplicaLag => "replica_lag",
            Self::NoReplica => "no_replica",
            Self::VolatileFunction => "volatile_function",
            Self::Pinned => "pinned",
            Self::Fallback => "fallback",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Kind {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}
