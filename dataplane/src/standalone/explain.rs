//! Where a statement would go now, and why: for operators, over the live snapshot. Sends nothing, changes nothing.

use crate::pool::{Identities, Pools};
use crate::route::{Class, Picker, Query, SessionFacts, choose, classify};
use helios_controlplane::grpc::management::Explained;
use std::time::Instant;

/// As the first statement of a new session of `user` on `database`.
#[must_use]
pub fn explain(pools: &Pools, identities: &Identities, sql: &str, user: &str, database: &str) -> Explained {
    let view = pools.view();
    let settings = view.session_settings(user.as_bytes(), database.as_bytes());
    let functions = identities.functions(database.as_bytes());
    let verdict = classify(sql.as_bytes(), true, functions.as_ref());
    let session = SessionFacts {
        in_transaction: false,
        pinned: false,
        bound: None,
        read_your_writes: false,
        read_write_split: view.settings().balancer.read_write_split,
        mode: settings.mode,
    };
    let query = Query {
        verdict: &verdict,
        session,
        snapshot: &view.snapshot,
        loads: view.as_ref(),
        now: Instant::now(),
    };
    let choice = choose(&query, &mut Picker::new());
    Explained {
        node: choice.node.map(|node| view.name(node).to_owned()),
        reason: choice.reason.word(),
        kind: choice.kind.word(),
        verdict: match verdict.class {
            Class::Empty => "empty",
            Class::Read => "read",
            Class::VolatileFunction => "volatile_function",
            Class::Write => "write",
        },
        revision: view.snapshot.revision,
    }
}
