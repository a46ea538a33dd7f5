//! Changes by operators: through the keeper, into the audit log, then a wait for the data planes' acknowledgements. Every
//! change, made or refused, is written down with who, from where and what. Never waits while holding the keeper.

use std::time::Duration;

use helios_proto::model::{Node, NodeName, NodeOps};
use helios_proto::wire;
use helios_proto::wire::v1::{self, pool_op_request::Op};
use tonic::{Request, Response, Status};

use super::auth::Caller;
use super::management::{Reply, Service};
use super::show;
use crate::cluster::Objection;
use crate::document;
use crate::feed::{Feed, Kind};
use crate::keeper::{self, Changed, Keeper, Refusal};
use crate::store::{Record, unix_ms};

/// A change on its way: who, what, and how long to wait.
pub(super) struct Change {
    caller: Caller,
    verb: &'static str,
    pub(super) detail: String,
    wait: Option<v1::Wait>,
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    // The gate puts it there; without it nothing goes on.
    request.extensions().get().cloned().ok_or_else(|| Status::internal("the caller is not known"))
}

impl Change {
    pub(super) fn of<T>(
        request: Request<T>,
        verb: &'static str,
        what: impl FnOnce(&T) -> (String, Option<v1::Wait>),
    ) -> Result<(Self, T), Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let (detail, wait) = what(&message);
        Ok((Self { caller, verb, detail, wait }, message))
    }

    fn log(&self, outcome: &str) {
        let Self { caller: Caller { name: actor, from, .. }, verb, detail, .. } = self;
        tracing::info!(%actor, %from, verb, %detail, %outcome, "change");
    }

    /// Tells of it and writes it down, unless it was `audited` with the change that it made.
    pub(super) async fn note(&self, keeper: &Keeper, feed: &Feed, (outcome, audited): (&str, bool)) {
        self.log(outcome);
        if outcome == "ok" {
            let Self { caller, verb, detail, .. } = self;
            feed.tell(Kind::Change, "", &format!("{verb} {detail} (by {})", caller.name));
        }
        if !audited {
            keeper.audit(self.record(outcome.to_owned())).await;
        }
    }

    pub(super) fn request<'a>(
        &'a self,
        comment: &'a str,
        expected: Option<u64>,
        dry_run: bool,
    ) -> keeper::Request<'a> {
        let record = Some(self.record("ok".to_owned()));
        keeper::Request { actor: &self.caller.name, comment, expected, dry_run, record }
    }

    /// As the audit log has it.
    fn record(&self, outcome: String) -> Record {
        let Caller { name: actor, access, from } = self.caller.clone();
        let (role, verb, detail) = (access.to_string(), self.verb.to_owned(), self.detail.clone());
        Record { at_unix_ms: unix_ms(), actor, role, from, verb, detail, outcome, config_revision: 0 }
    }
}

/// What an operator who comes another way than by gRPC has done.
#[derive(Debug)]
pub enum ByHand {
    /// This to the marks of every node.
    Marks(fn(&mut NodeOps)),
    /// Something elsewhere, with this outcome, to be written down.
    Elsewhere(String),
}

/// A change by an operator who comes another way than by gRPC, noted like every other.
///
/// # Errors
/// It was not made.
pub async fn by_hand(
    (keeper, feed): (&Keeper, &Feed),
    (caller, verb, detail): (Caller, &'static str, String),
    what: ByHand,
) -> Result<Changed, Refusal> {
    let change = Change { caller, verb, detail, wait: None };
    let set = match what {
        ByHand::Marks(set) => set,
        ByHand::Elsewhere(outcome) => {
            change.note(keeper, feed, (&outcome, false)).await;
            return Ok(Changed::default());
        }
    };
    let marked = keeper.mark(Some(change.record("ok".to_owned())), |spec, ops| {
        spec.nodes.iter().for_each(|node| set(ops.entry(node.name.clone()).or_default()));
        Ok(())
    });
    let result = marked.await;
    let outcome = result.as_ref().map_or_else(Refusal::to_string, |_| "ok".to_owned());
    let audited = result.as_ref().is_ok_and(|changed| changed.audited);
    change.note(keeper, feed, (&outcome, audited)).await;
    result
}

impl Service {
    /// Tells of a change, and waits for the data planes.
    pub(super) async fn finish(
        &self,
        change: Change,
        result: Result<Changed, Refusal>,
    ) -> Reply<v1::ChangeReply> {
        let outcome = result.as_ref().map_or_else(Refusal::to_string, |_| "ok".to_owned());
        let wait = change.wait;
        if result.as_ref().is_ok_and(|changed| changed.revision == 0) {
            change.log(&outcome);
        } else {
            let audited = result.as_ref().is_ok_and(|changed| changed.audited);
            change.note(&self.keeper, &self.feed, (&outcome, audited)).await;
        }
        let changed = result.map_err(|refusal| show::status(&refusal))?;
        let dry = changed.revision == 0;
        let revision = if dry { self.snapshot().revision } else { changed.revision };
        let longest = Duration::from_millis(wait.unwrap_or_default().timeout_ms).min(keeper::LONGEST_WAIT);
        let (dataplanes, acknowledged) = self.fleet.acknowledged(revision, longest).await;
        let fleet = self.fleet.list();
        Ok(Response::new(v1::ChangeReply {
            config_revision: changed.config_revision,
            revision,
            dataplanes,
            acknowledged,
            refused: fleet.iter().flat_map(show::refusals).collect(),
            changed: changed.changed,
            warnings: changed.warnings,
        }))
    }

    /// Changes the marks of one node, or of all if `node` is empty.
    async fn mark(
        &self,
        change: &Change,
        node: &str,
        set: impl Fn(&mut NodeOps, bool) -> Result<(), Refusal>,
    ) -> Result<Changed, Refusal> {
        let primary = self.snapshot().primary().map(|state| state.node.name.clone());
        self.keeper
            .mark(Some(change.record("ok".to_owned())), |spec, ops| {
                let meant = || spec.nodes.iter().filter(|n| node.is_empty() || n.name.as_str() == node);
                if meant().next().is_none() {
                    return Err(Refusal::NotFound(format!("there is no node {node:?}")));
                }
                for node in meant() {
                    let marks = ops.entry(node.name.clone()).or_default();
                    set(marks, primary.as_ref() == Some(&node.name))?;
                }
                Ok(())
            })
            .await
    }

    /// Vouches for a node as the primary. One node at a time: a new word takes the place of an old one.
    pub(super) async fn accept(&self, change: &Change, name: &str) -> Result<Changed, Refusal> {
        if name.is_empty() {
            return Err(Refusal::Wrong("name is missing".to_owned()));
        }
        let judged = self.keeper.events().acceptance(name).await.ok_or(Refusal::Stopping)?;
        let accepted = judged.map_err(|objection| match objection {
            Objection::Unknown => Refusal::NotFound(format!("there is no node {name:?}")),
            Objection::NotNow(text) => Refusal::NotNow(text),
        })?;
        self.keeper
            .mark(Some(change.record("ok".to_owned())), |_, ops| {
                ops.values_mut().for_each(|marks| marks.accepted = None);
                ops.entry(NodeName::new(name)).or_default().accepted = Some(accepted);
                Ok(())
            })
            .await
    }

    /// Adds a node to the configuration.
    pub(super) async fn add(&self, change: &Change, sent: v1::AddNodeRequest) -> Result<Changed, Refusal> {
        let v1::AddNodeRequest { name, host, port, role, weight, dry_run, wait: _ } = sent;
        let role =
            wire::to_role(role).ok_or_else(|| Refusal::Wrong("role is missing or unknown".to_owned()))?;
        let port = if port == 0 { 5432 } else { port };
        let port = u16::try_from(port).map_err(|_| Refusal::Wrong(format!("port {port} is none")))?;
        let named = !name.is_empty();
        let (name_of, weight) = (NodeName::new(&name), weight.unwrap_or(100));
        let node = Node { name: name_of, host, port, role, weight, max_connections: None };
        let comment = format!("node add {}", change.detail);
        self.keeper
            .edit(&change.request(&comment, None, dry_run), |desired| {
                if named && desired.spec.nodes.iter().any(|n| n.name == node.name) {
                    return Err(Refusal::Exists(format!("there is a node {name:?} already")));
                }
                Ok((document::with_node(&desired.text, &node, named)?, Vec::new()))
            })
            .await
    }

    /// Takes a node out of the configuration.
    pub(super) async fn remove(
        &self,
        change: &Change,
        sent: &v1::RemoveNodeRequest,
    ) -> Result<Changed, Refusal> {
        let snapshot = self.snapshot();
        let primary = snapshot.primary().is_some_and(|state| state.node.name.as_str() == sent.name);
        let (_, busy, _) = show::load(&sent.name, &self.fleet.list());
        let comment = format!("node remove {}", sent.name);
        self.keeper
            .edit(&change.request(&comment, None, sent.dry_run), |desired| {
                let nodes = &desired.spec.nodes;
                let index = nodes.iter().position(|node| node.name.as_str() == sent.name);
                let index =
                    index.ok_or_else(|| Refusal::NotFound(format!("there is no node {:?}", sent.name)))?;
                if primary && !sent.force {
                    return Err(Refusal::NotNow(
                        "it is the primary; use force to remove it all the same".to_owned(),
                    ));
                }
                if busy > 0 && !sent.force {
                    return Err(Refusal::NotNow(format!(
                        "{busy} server connections to it are in use; drain it first, or use force"
                    )));
                }
                let names: Vec<NodeName> = nodes.iter().map(|node| node.name.clone()).collect();
                Ok((document::without_node(&desired.text, index, &names)?, Vec::new()))
            })
            .await
    }

    /// Marks pools.
    pub(super) async fn operate(
        &self,
        change: &Change,
        sent: &v1::PoolOpRequest,
    ) -> Result<Changed, Refusal> {
        let op = Op::try_from(sent.op).unwrap_or(Op::Unspecified);
        if op == Op::Unspecified {
            return Err(Refusal::Wrong("op is missing or unknown".to_owned()));
        }
        if sent.size.is_some() && op != Op::Resize {
            return Err(Refusal::Wrong("size is for OP_RESIZE only".to_owned()));
        }
        if sent.size.is_some_and(|size| !(1..=10_000).contains(&size)) {
            return Err(Refusal::Wrong("size must be 1 to 10000".to_owned()));
        }
        self.mark(change, &sent.node, |marks, _| {
            match op {
                Op::Pause => marks.paused = true,
                Op::Resume => marks.paused = false,
                Op::Reconnect => marks.reconnect = marks.reconnect.saturating_add(1),
                Op::Resize => marks.pool_size = sent.size,
                Op::Unspecified => {}
            }
            Ok(())
        })
        .await
    }

    /// Has every result cache emptied.
    pub(super) async fn flush_caches(&self) -> Result<Changed, Refusal> {
        let revision = self.keeper.events().flush_caches().await.ok_or(Refusal::Stopping)?;
        let caches = self.fleet.list().iter().any(|dataplane| dataplane.status.cache.is_some());
        let none = "no data plane has reported a result cache ([cache] enabled = true in its file)";
        let warnings = if caches { Vec::new() } else { vec![none.to_owned()] };
        let config_revision = self.snapshot().config_revision;
        Ok(Changed { config_revision, revision, changed: true, warnings, audited: false })
    }

    /// Drains, undrains or weighs a node.
    pub(super) async fn set(&self, change: &Change, sent: &v1::SetNodeRequest) -> Result<Changed, Refusal> {
        if sent.name.is_empty() {
            return Err(Refusal::Wrong("name is missing".to_owned()));
        }
        if sent.weight.is_some_and(|weight| weight > 10_000) {
            return Err(Refusal::Wrong("weight must be 0 to 10000".to_owned()));
        }
        self.mark(change, &sent.name, |marks, primary| {
            if sent.drained == Some(true) && primary {
                return Err(Refusal::NotNow("it is the primary: writes have nowhere else to go".to_owned()));
            }
            marks.drained = sent.drained.unwrap_or(marks.drained);
            marks.weight = if sent.reset_weight { None } else { sent.weight.or(marks.weight) };
            Ok(())
        })
        .await
    }
}
