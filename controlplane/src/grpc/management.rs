//! The service for operators: reads from the snapshot, the fleet and the store; how changes are made stands in `changes`.
//! No reply holds a secret.

use std::sync::Arc;
use std::time::Instant;

use helios_proto::model::{Health, Role, Snapshot};
use helios_proto::wire;
use helios_proto::wire::v1::{self, management_server::Management, pool_op_request::Op};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::changes::Change;
use super::show;
use crate::core::Core;
use crate::document;
use crate::feed::{Feed, Kind};
use crate::fleet::Fleet;
use crate::keeper::Keeper;
use crate::switchover::Desk;

/// What the answering program says about itself.
#[derive(Debug, Clone)]
pub struct About {
    /// Name of the fleet; empty in a standalone proxy.
    pub cluster: String,
    /// Name of the program.
    pub program: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The control plane is inside a data plane.
    pub standalone: bool,
    /// When it started.
    pub started: Instant,
}

/// Where a statement would go.
#[derive(Debug, Clone)]
pub struct Explained {
    /// Name of the node; `None`: there is none now.
    pub node: Option<String>,
    /// Why.
    pub reason: &'static str,
    /// As what it counts.
    pub kind: &'static str,
    /// The judgement of the text alone.
    pub verdict: &'static str,
    /// Of the snapshot.
    pub revision: u64,
}

/// Says where a statement of a user on a database would go; only a data plane knows.
pub type Explain = Arc<dyn Fn(&str, &str, &str) -> Explained + Send + Sync>;

/// The service.
pub struct Service {
    /// What is wanted.
    pub keeper: Arc<Keeper>,
    /// Who is there.
    pub fleet: Arc<Fleet>,
    /// What happens.
    pub feed: Arc<Feed>,
    /// What is.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether data planes may be told.
    pub leading: watch::Receiver<bool>,
    /// Who answers.
    pub about: About,
    /// Only in a standalone proxy.
    pub explain: Option<Explain>,
    /// Where switchovers are asked for.
    pub desk: Arc<Desk>,
    /// Ends every watch.
    pub stop: CancellationToken,
    /// Runs the watches.
    pub tracker: TaskTracker,
}

pub(super) type Reply<T> = Result<Response<T>, Status>;

impl Service {
    /// The service over a core; its watches run on `tracker` and end with `stop`.
    #[must_use]
    pub fn new(
        core: &Core,
        about: About,
        (explain, desk): (Option<Explain>, Arc<Desk>),
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let Core { keeper, fleet, feed, snapshots, leading, budgets: _, counts: _, servers: _ } =
            core.clone();
        Self { keeper, fleet, feed, snapshots, leading, about, explain, desk, stop, tracker }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}

#[tonic::async_trait]
impl Management for Service {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusReply> {
        let (snapshot, fleet) = (self.snapshot(), self.fleet.list());
        let connected: Vec<_> = fleet.iter().filter(|dataplane| dataplane.connected).collect();
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let nodes = |which: fn(&&helios_proto::model::NodeState) -> bool| {
            count(snapshot.nodes.iter().filter(which).count())
        };
        let sum = |of: fn(&v1::Status) -> u32| {
            connected.iter().map(|dataplane| of(&dataplane.status)).fold(0, u32::saturating_add)
        };
        let About { cluster, program, version, standalone, started } = self.about.clone();
        let standing = self.keeper.standing();
        let mut problems = show::problems(&snapshot, &fleet, standalone);
        problems.extend(show::problems_of_store(&standing, *self.leading.borrow()));
        Ok(Response::new(v1::StatusReply {
            cluster,
            program: program.to_owned(),
            version: version.to_owned(),
            standalone,
            config_revision: snapshot.config_revision,
            revision: snapshot.revision,
            epoch: snapshot.epoch,
            timeline: snapshot.timeline,
            primary: snapshot.primary().map(|node| node.node.name.to_string()).unwrap_or_default(),
            nodes: nodes(|_| true),
            nodes_up: nodes(|node| node.health == Health::Up),
            nodes_down: nodes(|node| node.health == Health::Down),
            nodes_drained: nodes(|node| node.ops.drained),
            dataplanes: count(connected.len()),
            dataplanes_synced: count(
                connected.iter().filter(|d| show::is_synced(d, snapshot.revision)).count(),
            ),
            clients: sum(|status| status.clients),
            active: sum(|status| status.active),
            idle: sum(|status| status.idle),
            waiting: sum(|status| status.waiting),
            uptime_ms: show::millis(started.elapsed()),
            problems,
            store: standing.kind.to_owned(),
            store_up: standing.up,
            control_planes: standing.members,
            leader: standing.leader.unwrap_or_default(),
            provider: snapshot.authority.as_ref().map(|_| "patroni".to_owned()).unwrap_or_default(),
            provider_up: snapshot.authority.as_ref().is_some_and(|authority| authority.up),
            lock_holder: snapshot.authority.as_ref().and_then(|a| a.holder.clone()).unwrap_or_default(),
        }))
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Reply<v1::ListNodesReply> {
        Ok(Response::new(show::nodes(&self.snapshot(), &self.fleet.list(), Instant::now())))
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "AddNode", |sent: &v1::AddNodeRequest| {
            let role = wire::to_role(sent.role).map_or("?", Role::word);
            (format!("{} {role} at {}:{}", sent.name, sent.host, sent.port), sent.wait)
        })?;
        let result = self.add(&change, sent).await;
        self.finish(change, result).await
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "RemoveNode", |sent: &v1::RemoveNodeRequest| {
            (format!("{}{}", sent.name, if sent.force { " by force" } else { "" }), sent.wait)
        })?;
        let result = self.remove(&change, &sent).await;
        self.finish(change, result).await
    }

    async fn accept_primary(&self, request: Request<v1::AcceptPrimaryRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "AcceptPrimary", |sent: &v1::AcceptPrimaryRequest| {
            (sent.name.clone(), sent.wait)
        })?;
        let result = self.accept(&change, &sent.name).await;
        self.finish(change, result).await
    }

    async fn set_node(&self, request: Request<v1::SetNodeRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "SetNode", |sent: &v1::SetNodeRequest| {
            let drained = sent.drained.map_or("", |drained| if drained { " drain" } else { " undrain" });
            let weight = sent.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
            let reset = if sent.reset_weight { " weight as configured" } else { "" };
            (format!("{}{drained}{weight}{reset}", sent.name), sent.wait)
        })?;
        let result = self.set(&change, &sent).await;
        self.finish(change, result).await
    }

    async fn list_pools(&self, _: Request<v1::ListPoolsRequest>) -> Reply<v1::ListPoolsReply> {
        Ok(Response::new(show::pools(&self.snapshot(), &self.fleet.list())))
    }

    async fn pool_op(&self, request: Request<v1::PoolOpRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "PoolOp", |sent: &v1::PoolOpRequest| {
            let op = match Op::try_from(sent.op) {
                Ok(Op::Pause) => "pause",
                Ok(Op::Resume) => "resume",
                Ok(Op::Reconnect) => "reconnect",
                Ok(Op::Resize) if sent.size.is_none() => "resize as configured",
                Ok(Op::Resize) => "resize",
                Ok(Op::Unspecified) | Err(_) => "?",
            };
            let node = if sent.node.is_empty() { "every node" } else { &sent.node };
            let size = sent.size.map(|size| format!(" to {size}")).unwrap_or_default();
            (format!("{op} {node}{size}"), sent.wait)
        })?;
        let result = self.operate(&change, &sent).await;
        self.finish(change, result).await
    }

    async fn list_caches(&self, _: Request<v1::ListCachesRequest>) -> Reply<v1::ListCachesReply> {
        Ok(Response::new(show::caches(&self.fleet.list())))
    }

    async fn flush_caches(&self, request: Request<v1::FlushCachesRequest>) -> Reply<v1::ChangeReply> {
        let (change, _) = Change::of(request, "FlushCaches", |sent: &v1::FlushCachesRequest| {
            ("of every data plane".to_owned(), sent.wait)
        })?;
        let result = self.flush_caches().await;
        self.finish(change, result).await
    }

    async fn list_dataplanes(&self, _: Request<v1::ListDataplanesRequest>) -> Reply<v1::ListDataplanesReply> {
        let revision = self.snapshot().revision;
        Ok(Response::new(show::dataplanes(revision, &self.fleet.list(), Instant::now())))
    }

    async fn get_config(&self, request: Request<v1::GetConfigRequest>) -> Reply<v1::ConfigReply> {
        let revision = request.into_inner().revision;
        let document = self.keeper.revision(revision).await.map_err(|refusal| show::status(&refusal))?;
        let current = self.keeper.desired().await.revision();
        let text = document::redacted(&document.text).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(v1::ConfigReply { revision: Some(show::revision(document.meta, current)), text }))
    }

    async fn validate_config(
        &self,
        request: Request<v1::ValidateConfigRequest>,
    ) -> Reply<v1::ValidateConfigReply> {
        let (problems, warnings) = match self.keeper.check(&request.into_inner().text).await {
            Ok((_, warnings)) => (Vec::new(), warnings),
            Err(refusal) => (show::invalid(refusal)?, Vec::new()),
        };
        Ok(Response::new(v1::ValidateConfigReply { problems, warnings }))
    }

    async fn diff_config(&self, request: Request<v1::DiffConfigRequest>) -> Reply<v1::DiffConfigReply> {
        let v1::DiffConfigRequest { text, against } = request.into_inner();
        let old = self.keeper.revision(against).await.map_err(|refusal| show::status(&refusal))?;
        let against = old.meta.revision;
        let (new, problems) = if text.is_empty() {
            (self.keeper.desired().await.text, Vec::new())
        } else {
            match self.keeper.check(&text).await {
                Ok((text, _)) => (text, Vec::new()),
                Err(refusal) => (old.text.clone(), show::invalid(refusal)?),
            }
        };
        let unified = document::diff((&format!("revision {against}"), &old.text), ("new", &new));
        let unified = unified.map_err(|error| Status::internal(error.to_string()))?;
        let (added_nodes, removed_nodes) = show::node_changes(&old.text, &new);
        Ok(Response::new(v1::DiffConfigReply { against, unified, problems, added_nodes, removed_nodes }))
    }

    async fn apply_config(&self, request: Request<v1::ApplyConfigRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "ApplyConfig", |sent: &v1::ApplyConfigRequest| {
            let comment = if sent.comment.is_empty() { "no comment" } else { &sent.comment };
            (format!("{} bytes: {comment}", sent.text.len()), sent.wait)
        })?;
        let asked = change.request(&sent.comment, sent.expected_revision, sent.dry_run);
        let result = self.keeper.apply(&asked, &sent.text).await;
        self.finish(change, result).await
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Reply<v1::HistoryReply> {
        let limit = request.into_inner().limit;
        let limit = usize::try_from(if limit == 0 { 20 } else { limit }).unwrap_or(usize::MAX);
        let current = self.keeper.desired().await.revision();
        let history = self.keeper.history(limit).await.map_err(|refusal| show::status(&refusal))?;
        let revisions = history.into_iter().map(|meta| show::revision(meta, current)).collect();
        Ok(Response::new(v1::HistoryReply { revisions }))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Reply<v1::ChangeReply> {
        let (change, sent) = Change::of(request, "Rollback", |sent: &v1::RollbackRequest| {
            let to = if sent.revision == 0 { "the one before".to_owned() } else { sent.revision.to_string() };
            (format!("to revision {to}"), sent.wait)
        })?;
        let comment = format!("rollback {}", change.detail);
        let asked = change.request(&comment, sent.expected_revision, sent.dry_run);
        let result = self.keeper.rollback(&asked, sent.revision).await;
        self.finish(change, result).await
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Reply<v1::ExplainReply> {
        let Some(explain) = &self.explain else {
            return Err(Status::unimplemented(
                "a control plane judges no statements; ask a standalone heliosdb-proxy",
            ));
        };
        let v1::ExplainRequest { sql, user, database } = request.into_inner();
        let Explained { node, reason, kind, verdict, revision } = explain(&sql, &user, &database);
        let node = node.unwrap_or_default();
        let (reason, kind, verdict) = (reason.to_owned(), kind.to_owned(), verdict.to_owned());
        Ok(Response::new(v1::ExplainReply { node, reason, kind, verdict, revision }))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Reply<v1::AuditReply> {
        let v1::AuditRequest { limit, actor } = request.into_inner();
        let limit = usize::try_from(if limit == 0 { 50 } else { limit }).unwrap_or(usize::MAX);
        let records = self.keeper.audited(limit, actor).await.map_err(|refusal| show::status(&refusal))?;
        Ok(Response::new(v1::AuditReply { entries: records.into_iter().map(show::audit).collect() }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Reply<v1::EventsReply> {
        let limit = request.into_inner().limit;
        let limit = usize::try_from(if limit == 0 { 50 } else { limit }).unwrap_or(usize::MAX);
        Ok(Response::new(v1::EventsReply { events: self.feed.recent(limit) }))
    }

    type SwitchoverStream = ReceiverStream<Result<v1::SwitchoverEvent, Status>>;

    async fn switchover(&self, request: Request<v1::SwitchoverRequest>) -> Reply<Self::SwitchoverStream> {
        self.hand_over(request)
    }

    type WatchStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        let recent = usize::try_from(request.into_inner().recent).unwrap_or(usize::MAX);
        let (to_watcher, outgoing) = mpsc::channel(16);
        let (past, mut events) = self.feed.subscribe(recent);
        let mut past = past.into_iter();
        let (feed, stop) = (Arc::clone(&self.feed), self.stop.clone());
        self.tracker.spawn(async move {
            let mut event = feed.event(Kind::Watching, "", "watching");
            loop {
                let sent = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    sent = to_watcher.send(Ok(event)) => sent,
                };
                let next = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = to_watcher.closed() => return,
                    next = async { match past.next() { Some(event) => Ok(event), None => events.recv().await } } => next,
                };
                event = match (sent, next) {
                    (Err(_), _) | (_, Err(broadcast::error::RecvError::Closed)) => return,
                    (Ok(()), Ok(event)) => event,
                    (Ok(()), Err(broadcast::error::RecvError::Lagged(lost))) => {
                        feed.event(Kind::Gap, "", &format!("{lost} events were lost: read faster"))
                    }
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
