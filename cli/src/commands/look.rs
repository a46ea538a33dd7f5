//! Commands that only read, but for one that `topology` has. Each asks once, or follows a stream.

use helios_proto::wire::v1;
use v1::event::Kind;

use super::Done;
use super::change;
use super::watch::{self, Item};
use crate::args::Watch;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::render::status::{self as screen, Picture};
use crate::render::{fleet, nodes, records};
use crate::table::{cell, pairs};
use crate::tree::{self, Tree};
use crate::verbs::{DataplaneVerb, TopologyVerb};

/// Everything about a fleet at this moment.
pub(super) async fn picture(session: &mut Session) -> Result<Picture, Failure> {
    let status = session.call(async |c| c.status(v1::StatusRequest {}).await).await?;
    let nodes = list_nodes(session).await?.nodes;
    let dataplanes = list_dataplanes(session).await?.dataplanes;
    Ok(Picture { status, nodes, dataplanes })
}

pub(super) async fn list_nodes(session: &mut Session) -> Result<v1::ListNodesReply, Failure> {
    session.call(async |c| c.list_nodes(v1::ListNodesRequest {}).await).await
}

async fn list_dataplanes(session: &mut Session) -> Result<v1::ListDataplanesReply, Failure> {
    session.call(async |c| c.list_dataplanes(v1::ListDataplanesRequest {}).await).await
}

/// There is no such thing; these there are.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> Failure {
    let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
    Failure::new(Exit::NotFound, format!("there is no {what} {name:?} (known: {known})"))
}

pub(super) async fn status(out: Out, session: &mut Session) -> Done {
    let Picture { status, nodes, .. } = picture(session).await?;
    let state = || if status.problems.is_empty() { "ok" } else { "degraded" }.to_owned();
    out.show(|| tree::of(&status), state, |out| screen::status(&status, &nodes, out.color))?;
    Ok(if status.problems.is_empty() { Exit::Ok } else { Exit::Degraded })
}

pub(super) async fn check(out: Out, session: &mut Session) -> Done {
    let checks = screen::checks(&picture(session).await?);
    let failed = checks.iter().any(|check| check.result == screen::Result::Failed);
    let tree = || {
        let one = |check: &screen::Check| {
            Tree::map([
                ("check", Tree::text(check.name)),
                ("result", Tree::text(check.result.word())),
                ("detail", Tree::text(&check.detail)),
            ])
        };
        Tree::map([("ok", Tree::Bool(!failed)), ("checks", Tree::List(checks.iter().map(one).collect()))])
    };
    let wrong = checks.iter().filter(|check| check.result == screen::Result::Failed);
    let names = || wrong.map(|check| check.name).collect::<Vec<_>>().join("\n");
    out.show(tree, names, |out| screen::check_table(&checks).render(out.color))?;
    Ok(if failed { Exit::Degraded } else { Exit::Ok })
}

pub(super) async fn dataplane(out: Out, session: &mut Session, verb: DataplaneVerb) -> Done {
    match verb {
        DataplaneVerb::List { watch: Watch { watch: true, interval } } => {
            let wide = out.is_wide();
            watch::list(out, session, interval, fleet::dataplanes_header(wide), async |session| {
                let all = list_dataplanes(session).await?.dataplanes;
                let item = |d: v1::DataplaneInfo| Item {
                    mark: format!(
                        "{:?}",
                        (d.connected, d.synced, d.revision, d.draining, &d.refused, &d.boot_id)
                    ),
                    row: fleet::dataplane_row(&d, wide),
                    tree: tree::of(&d),
                    key: d.id,
                };
                Ok(all.into_iter().map(item).collect())
            })
            .await
        }
        DataplaneVerb::List { .. } => {
            let reply = list_dataplanes(session).await?;
            let names = || reply.dataplanes.iter().map(|d| d.id.clone()).collect::<Vec<_>>().join("\n");
            let table = |out: Out| fleet::dataplanes(&reply.dataplanes, out.is_wide()).render(out.color);
            out.show(|| tree::of(&reply), names, table)?;
            Ok(Exit::Ok)
        }
        DataplaneVerb::Get { id } => {
            let all = list_dataplanes(session).await?.dataplanes;
            let known: Vec<&str> = all.iter().map(|d| d.id.as_str()).collect();
            let found = all.iter().find(|d| d.id == id).ok_or_else(|| unknown("data plane", &id, &known))?;
            out.show(|| tree::of(found), || id.clone(), |out| fleet::dataplane(found, out.color))?;
            Ok(Exit::Ok)
        }
    }
}

/// Topology as data: what of the status concerns it, and the nodes.
fn topology_tree(status: &v1::StatusReply, nodes: &[v1::NodeInfo]) -> Tree {
    Tree::map([
        ("cluster", Tree::text(&status.cluster)),
        ("primary", if status.primary.is_empty() { Tree::Null } else { Tree::text(&status.primary) }),
        ("epoch", Tree::Whole(status.epoch)),
        ("timeline", Tree::Whole(status.timeline.into())),
        ("revision", Tree::Whole(status.revision)),
        ("nodes", Tree::List(nodes.iter().map(tree::of).collect())),
    ])
}

pub(super) async fn topology(out: Out, session: &mut Session, verb: TopologyVerb) -> Done {
    match verb {
        TopologyVerb::Show => {
            let Picture { status, nodes, .. } = picture(session).await?;
            let table = |out: Out| nodes::topology(&status, &nodes, out.color);
            out.show(|| topology_tree(&status, &nodes), || status.primary.clone(), table)?;
            Ok(Exit::Ok)
        }
        TopologyVerb::Accept { node, yes, wait } => change::accept(out, session, (node, yes), wait).await,
        TopologyVerb::Watch => {
            follow(out, session, 0, |kind| {
                matches!(kind, Kind::Topology | Kind::Health | Kind::Gap | Kind::Watching)
            })
            .await
        }
    }
}

/// Prints events until the service is gone.
async fn follow(out: Out, session: &mut Session, recent: u32, wanted: fn(Kind) -> bool) -> Done {
    let mut events = session.call(async |c| c.watch(v1::WatchRequest { recent }).await).await?;
    loop {
        let next = tokio::select! {
            next = events.message() => next.map_err(|status| session.failure(&status))?,
            interrupted = tokio::signal::ctrl_c() => {
                if interrupted.is_ok() { return Ok(Exit::Ok) }
                continue;
            }
        };
        let Some(event) = next else {
            return Err(Failure::new(Exit::Unavailable, format!("{} ended the watch", session.endpoint)));
        };
        match Kind::try_from(event.kind).unwrap_or(Kind::Unspecified) {
            // That the watch is set is a word about the data.
            Kind::Watching => out.note("watching; Ctrl-C ends it"),
            kind if wanted(kind) => out.one(&tree::of(&event), &records::event(&event, out.color))?,
            _ => {}
        }
    }
}

pub(super) async fn events(out: Out, session: &mut Session, watch: bool, limit: u32) -> Done {
    if watch {
        return follow(out, session, limit, |_| true).await;
    }
    let reply = session.call(async |c| c.events(v1::EventsRequest { limit }).await).await?;
    let names = || reply.events.iter().map(|event| event.subject.clone()).collect::<Vec<_>>().join("\n");
    let lines = |out: Out| {
        let lines: Vec<String> = reply.events.iter().map(|event| records::event(event, out.color)).collect();
        lines.join("\n")
    };
    out.show(|| tree::of(&reply), names, lines)?;
    if reply.events.is_empty() {
        out.note("nothing has happened since the service started");
    }
    Ok(Exit::Ok)
}

pub(super) async fn audit(out: Out, session: &mut Session, actor: Option<String>, limit: u32) -> Done {
    let request = v1::AuditRequest { limit, actor: actor.unwrap_or_default() };
    let reply = session.call(async |c| c.audit(request).await).await?;
    let names = || reply.entries.iter().map(|entry| entry.verb.clone()).collect::<Vec<_>>().join("\n");
    out.show(|| tree::of(&reply), names, |out| records::audit(&reply.entries).render(out.color))?;
    Ok(Exit::Ok)
}

pub(super) async fn explain(
    out: Out,
    session: &mut Session,
    sql: String,
    user: String,
    database: String,
) -> Done {
    let reply = session.call(async |c| c.explain(v1::ExplainRequest { sql, user, database }).await).await?;
    let node = if reply.node.is_empty() { "none now: the statement would wait" } else { &reply.node };
    let table = |out: Out| {
        let all = [
            ("node", cell(node)),
            ("reason", cell(&reply.reason)),
            ("counts as", cell(&reply.kind)),
            ("verdict", cell(&reply.verdict)),
            ("revision", cell(reply.revision)),
        ];
        pairs(&all, out.color)
    };
    out.show(|| tree::of(&reply), || reply.node.clone(), table)?;
    Ok(Exit::Ok)
}
