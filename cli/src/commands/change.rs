//! Nodes and pools: lists, and changes to them. A change prints the revision and how many data planes have it; its exit
//! code says whether all do.

use helios_proto::wire::v1::{self, pool_op_request::Op};
use tokio::time::{Instant, sleep};

use super::Done;
use super::look::{list_nodes, unknown};
use super::watch::{self, Item};
use crate::args::Watch;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::render::{fleet, nodes, records};
use crate::tree;
use crate::verbs::{NodeVerb, PoolVerb, Pools, RoleWord, Until, Wait};
use crate::words;

/// How often a drained node's connections are counted.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

/// What data planes tell of their connections may be a second old, and be on its way for a while: earlier than this after
/// the acknowledgement, nothing in use may mean that a connection was taken just before it.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(3);

/// How a request waits.
pub(super) fn wait(session: &Session, wait: Wait) -> Option<v1::Wait> {
    let timeout_ms = if wait.wait == Until::None { 0 } else { words::as_ms(session.timeout) };
    Some(v1::Wait { timeout_ms })
}

/// Refuses `--wait idle` where nothing becomes idle.
pub(super) fn no_idle(wait: Wait) -> Result<(), Failure> {
    if wait.wait == Until::Idle {
        return Err(Failure::usage("--wait idle is for node drain only"));
    }
    Ok(())
}

/// Prints how a change ended.
pub(super) fn tell(out: Out, wait: Wait, what: &str, name: &str, reply: &v1::ChangeReply) -> Done {
    reply.warnings.iter().for_each(|warning| out.note(&format!("note: {warning}")));
    let waited = wait.wait != Until::None;
    out.show(|| tree::of(reply), || name.to_owned(), |_| records::change(what, reply, waited))?;
    for v1::Refusal { dataplane, resource, reason } in &reply.refused {
        out.note(&format!("data plane {dataplane} refused {resource}: {reason}"));
    }
    if !waited || (reply.acknowledged >= reply.dataplanes && reply.refused.is_empty()) {
        return Ok(Exit::Ok);
    }
    let missing = reply.dataplanes.saturating_sub(reply.acknowledged);
    let text = if missing > 0 {
        format!(
            "{} did not acknowledge it in time (see --timeout, heliosctl dataplane list)",
            words::count(missing, "data plane")
        )
    } else {
        "a data plane refused a part of it, see heliosctl dataplane list".to_owned()
    };
    Err(Failure::new(Exit::Degraded, text))
}

/// Prints what a dry run found.
pub(super) fn tell_dry(out: Out, what: &str, name: &str, reply: &v1::ChangeReply) -> Done {
    reply.warnings.iter().for_each(|warning| out.note(&format!("note: {warning}")));
    let words =
        if reply.changed { format!("{what}: would be done") } else { format!("{what}: nothing to do") };
    out.show(|| tree::of(reply), || name.to_owned(), |_| words)?;
    Ok(if reply.changed { Exit::Differences } else { Exit::Ok })
}

pub(super) async fn node(out: Out, session: &mut Session, verb: NodeVerb) -> Done {
    match verb {
        NodeVerb::List { watch } => nodes_list(out, session, watch).await,
        NodeVerb::Get { name } => {
            let all = list_nodes(session).await?.nodes;
            let known: Vec<&str> = all.iter().map(|node| node.name.as_str()).collect();
            let found = all.iter().find(|n| n.name == name).ok_or_else(|| unknown("node", &name, &known))?;
            out.show(|| tree::of(found), || name.clone(), |out| nodes::one(found, out.color))?;
            Ok(Exit::Ok)
        }
        NodeVerb::Add { address, role, name, weight, dry_run, wait: until } => {
            no_idle(until)?;
            let (host, port) = host_port(&address)?;
            let role = match role {
                RoleWord::Primary => v1::Role::Primary,
                RoleWord::Standby => v1::Role::Standby,
                RoleWord::Replica => v1::Role::Replica,
            };
            let shown = if name.is_empty() { address.clone() } else { name.clone() };
            let wait = wait(session, until);
            let request = v1::AddNodeRequest { name, host, port, role: role.into(), weight, dry_run, wait };
            let reply = session.change(async |c| c.add_node(request).await).await?;
            let what = format!("node {shown} added");
            if dry_run {
                tell_dry(out, &what, &shown, &reply)
            } else {
                tell(out, until, &what, &shown, &reply)
            }
        }
        NodeVerb::Remove { name, force, dry_run, yes, wait: until } => {
            no_idle(until)?;
            if !dry_run {
                out.confirm(yes, &format!("node {name} will be taken out of the configuration"))?;
            }
            let wait = wait(session, until);
            let request = v1::RemoveNodeRequest { name: name.clone(), force, dry_run, wait };
            let reply = session.change(async |c| c.remove_node(request).await).await?;
            let what = format!("node {name} removed");
            if dry_run { tell_dry(out, &what, &name, &reply) } else { tell(out, until, &what, &name, &reply) }
        }
        NodeVerb::Drain { name, wait } => drain(out, session, name, wait).await,
        NodeVerb::Undrain { name, wait: until } => {
            no_idle(until)?;
            let request = v1::SetNodeRequest { drained: Some(false), ..v1::SetNodeRequest::default() };
            set(out, session, (name, request), until, "undrained").await
        }
        NodeVerb::SetWeight { name, weight, reset, wait: until } => {
            no_idle(until)?;
            let request = v1::SetNodeRequest { weight, reset_weight: reset, ..v1::SetNodeRequest::default() };
            let what = weight.map_or("has its configured weight".to_owned(), |w| format!("has weight {w}"));
            set(out, session, (name, request), until, &what).await
        }
    }
}

/// Vouches for a node as the primary.
pub(super) async fn accept(
    out: Out,
    session: &mut Session,
    (name, yes): (String, bool),
    until: Wait,
) -> Done {
    no_idle(until)?;
    out.confirm(yes, &format!("{name} will take the writes; what only other nodes have is lost to clients"))?;
    let request = v1::AcceptPrimaryRequest { name: name.clone(), wait: wait(session, until) };
    let reply = session.change(async |c| c.accept_primary(request).await).await?;
    tell(out, until, &format!("node {name} accepted as the primary"), &name, &reply)
}

async fn set(
    out: Out,
    session: &mut Session,
    (name, request): (String, v1::SetNodeRequest),
    until: Wait,
    what: &str,
) -> Done {
    let request = v1::SetNodeRequest { name: name.clone(), wait: wait(session, until), ..request };
    let reply = session.change(async |c| c.set_node(request).await).await?;
    tell(out, until, &format!("node {name} {what}"), &name, &reply)
}

async fn drain(out: Out, session: &mut Session, name: String, until: Wait) -> Done {
    let request = v1::SetNodeRequest { drained: Some(true), ..v1::SetNodeRequest::default() };
    let done = set(out, session, (name.clone(), request), until, "drained").await?;
    if until.wait != Until::Idle {
        return Ok(done);
    }
    let acknowledged = Instant::now();
    let limit = session.timeout.max(SETTLED);
    let mut told = None;
    loop {
        let all = list_nodes(session).await?.nodes;
        let active = all.iter().find(|node| node.name == name).map_or(0, |node| node.active);
        if active == 0 && acknowledged.elapsed() >= SETTLED {
            out.note(&format!("no connection to {name} is in use"));
            return Ok(done);
        }
        if active > 0 && told != Some(active) {
            out.note(&format!("{} to {name} in use", words::count(active, "connection")));
            told = Some(active);
        }
        if acknowledged.elapsed() >= limit {
            let text = format!(
                "{} to {name} in use after {:?} (see --timeout)",
                words::count(active, "connection"),
                session.timeout
            );
            return Err(Failure::new(Exit::Degraded, text));
        }
        sleep(LOOK).await;
    }
}

/// `host`, `host:port` or `[ipv6]:port`; port 0 is the default one.
fn host_port(address: &str) -> Result<(String, u32), Failure> {
    let wrong = || Failure::usage(format!("{address:?} is no address such as db-1, db-1:5432 or [::1]:5432"));
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
            match after {
                "" => (host, None),
                after => (host, Some(after.strip_prefix(':').ok_or_else(wrong)?)),
            }
        }
        None => match address.split_once(':') {
            Some((_, rest)) if rest.contains(':') => (address, None),
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port =
        port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)).transpose()?;
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.unwrap_or(0).into()))
}

async fn nodes_list(out: Out, session: &mut Session, watch: Watch) -> Done {
    let wide = out.is_wide();
    if watch.watch {
        return watch::list(out, session, watch.interval, nodes::header(wide), async |session| {
            let item = |n: v1::NodeInfo| Item {
                mark: format!(
                    "{:?}",
                    (n.role, n.configured_role, n.primary, n.health, n.weight, n.ops, &n.host, n.port)
                ),
                row: nodes::row(&n, wide),
                tree: tree::of(&n),
                key: n.name,
            };
            Ok(list_nodes(session).await?.nodes.into_iter().map(item).collect())
        })
        .await;
    }
    let reply = list_nodes(session).await?;
    let names = || reply.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>().join("\n");
    out.show(|| tree::of(&reply), names, |out| nodes::table(&reply.nodes, wide).render(out.color))?;
    Ok(Exit::Ok)
}

async fn list_pools(session: &mut Session) -> Result<v1::ListPoolsReply, Failure> {
    let mut reply = session.call(async |c| c.list_pools(v1::ListPoolsRequest {}).await).await?;
    let node = |pool: &v1::PoolInfo| pool.status.as_ref().map(|status| status.node.clone());
    let order: Vec<Option<String>> = reply.pools.iter().map(node).collect();
    // Node by node, in the order of the configuration; within a node, data planes stay in order.
    reply.pools.sort_by_key(|pool| order.iter().position(|name| *name == node(pool)));
    Ok(reply)
}

fn pool_name(pool: &v1::PoolInfo) -> String {
    format!("{}/{}", pool.status.as_ref().map_or("", |status| status.node.as_str()), pool.dataplane)
}

fn show_pools(out: Out, reply: &v1::ListPoolsReply) -> Done {
    let names = || reply.pools.iter().map(pool_name).collect::<Vec<_>>().join("\n");
    out.show(|| tree::of(reply), names, |out| fleet::pools(&reply.pools).render(out.color))?;
    Ok(Exit::Ok)
}

pub(super) async fn pool(out: Out, session: &mut Session, verb: PoolVerb) -> Done {
    match verb {
        PoolVerb::List { watch: Watch { watch: true, interval } } => {
            watch::list(out, session, interval, fleet::pools_header(), async |session| {
                let item = |pool: v1::PoolInfo| Item {
                    key: pool_name(&pool),
                    mark: format!("{pool:?}"),
                    row: fleet::pool_row(&pool),
                    tree: tree::of(&pool),
                };
                Ok(list_pools(session).await?.pools.into_iter().map(item).collect())
            })
            .await
        }
        PoolVerb::List { .. } => show_pools(out, &list_pools(session).await?),
        PoolVerb::Get { node } => {
            let mut reply = list_pools(session).await?;
            reply.pools.retain(|pool| pool.status.as_ref().is_some_and(|status| status.node == node));
            if reply.pools.is_empty() {
                let all = list_nodes(session).await?.nodes;
                let known: Vec<&str> = all.iter().map(|node| node.name.as_str()).collect();
                if !known.contains(&node.as_str()) {
                    return Err(unknown("node", &node, &known));
                }
            }
            show_pools(out, &reply)
        }
        PoolVerb::Resize { node, size, reset: _, wait } => {
            let what =
                size.map_or("set to the configured size".to_owned(), |size| format!("set to size {size}"));
            operate(out, session, (Op::Resize, node, size), wait, &what).await
        }
        PoolVerb::Pause { pools, wait } => {
            operate(out, session, (Op::Pause, of(pools), None), wait, "paused").await
        }
        PoolVerb::Resume { pools, wait } => {
            operate(out, session, (Op::Resume, of(pools), None), wait, "resumed").await
        }
        PoolVerb::Reconnect { pools, wait } => {
            operate(out, session, (Op::Reconnect, of(pools), None), wait, "told to reconnect").await
        }
    }
}

/// The node meant; empty: every one.
fn of(pools: Pools) -> String {
    pools.node.unwrap_or_default()
}

async fn operate(
    out: Out,
    session: &mut Session,
    (op, node, size): (Op, String, Option<u32>),
    until: Wait,
    what: &str,
) -> Done {
    no_idle(until)?;
    let request = v1::PoolOpRequest { op: op.into(), node: node.clone(), size, wait: wait(session, until) };
    let reply = session.change(async |c| c.pool_op(request).await).await?;
    let of = if node.is_empty() { "pools of every node".to_owned() } else { format!("pool of {node}") };
    tell(out, until, &format!("{of} {what}"), &node, &reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, host, port) in [
            ("db", "db", 0),
            ("db:5433", "db", 5433),
            ("[::1]:5433", "::1", 5433),
            ("[::1]", "::1", 0),
            ("::1", "::1", 0),
            ("127.0.0.1:1", "127.0.0.1", 1),
        ] {
            assert_eq!(host_port(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in ["", ":1", "db:", "db:0", "db:x", "db:70000", "[::1", "[::1]5", "[]:1"] {
            assert_eq!(host_port(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
