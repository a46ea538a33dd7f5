//! From the wire to a snapshot. Resources are judged one by one: a bad one is refused with its reason and the version
//! held before stays, the others count. What comes out is whole; what would go back is refused as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::v1::{self, resource::Body};
use super::{check, send, words};
use crate::model::{
    Authority, HealthSettings, Hold, Node, NodeName, NodeOps, NodeState, Role, Settings, Snapshot,
    TopologyKey,
};

/// A resource, or a whole message (`snapshot`), that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Name of the resource.
    pub name: String,
    /// Why, in words for an operator; holds no secret.
    pub reason: String,
}

/// A snapshot to put in force, and what of the message is not in it.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Whole and consistent.
    pub snapshot: Snapshot,
    /// What was refused.
    pub rejected: Vec<Refused>,
}

impl TryFrom<v1::Full> for Snapshot {
    type Error = Refused;

    /// All of the message, or the first thing that is wrong with it.
    fn try_from(sent: v1::Full) -> Result<Self, Refused> {
        let Accepted { snapshot, rejected } = accept(sent, None, Instant::now())?;
        rejected.into_iter().next().map_or(Ok(snapshot), Err)
    }
}

/// Takes a whole snapshot; `held` is the one in force.
///
/// # Errors
/// It goes back, is damaged, or nothing useful is left of it.
pub fn accept(sent: v1::Full, held: Option<&Snapshot>, now: Instant) -> Result<Accepted, Refused> {
    let v1::Full { config_revision, sha256, resources, topology } = sent;
    if send::hash(&resources) != sha256 {
        return Err(whole("its hash does not match its resources".to_owned()));
    }
    let topology = topology.ok_or_else(|| whole("it has no topology".to_owned()))?;
    if let Some(held) = held {
        forward(&topology, held)?;
    }
    let mut draft = Draft {
        held,
        settings: None,
        settings_seen: false,
        health: None,
        nodes: Vec::new(),
        rejected: Vec::new(),
    };
    for resource in resources {
        draft.take(resource);
    }
    let (settings, configured) = (draft.settings.take(), std::mem::take(&mut draft.nodes));
    let health = draft.health.take().or_else(|| held.map(|held| Arc::clone(&held.health)));
    let rejected = draft.rejected;
    let missing = |what: &str| {
        let why: Vec<_> = rejected.iter().map(|r| format!("; {}: {}", r.name, r.reason)).collect();
        whole(format!("it has no usable {what}{}", why.concat()))
    };
    let settings = settings.ok_or_else(|| missing("settings"))?;
    if configured.is_empty() {
        return Err(missing("node"));
    }
    let refused = |name: &str| rejected.iter().any(|r| r.name.strip_prefix("node/") == Some(name));
    let (nodes, primary) = states(&configured, &topology, &refused, now)?;
    let snapshot = Snapshot {
        revision: topology.revision,
        config_revision,
        epoch: topology.epoch,
        timeline: topology.timeline,
        incarnation: topology.incarnation,
        system: topology.system,
        last_primary: last_primary(&topology),
        settings: Arc::new(settings),
        health: health.unwrap_or_default(),
        nodes,
        primary,
        hold: hold(&topology, now),
        authority: authority(&topology),
        cache_flush: topology.cache_flush,
    };
    Ok(Accepted { snapshot, rejected })
}

/// Takes what is known about the nodes; their configuration stays as it is in `held`.
///
/// # Errors
/// It goes back, or does not fit the nodes held.
pub fn accept_topology(sent: &v1::Topology, held: &Snapshot, now: Instant) -> Result<Snapshot, Refused> {
    forward(sent, held)?;
    let configured: Vec<_> = held.nodes.iter().map(|state| (Arc::clone(&state.node), state.ops)).collect();
    // The control plane may know nodes that were refused here.
    let unknown = |name: &str| held.nodes.iter().all(|state| state.node.name.as_str() != name);
    let (nodes, primary) = states(&configured, sent, &unknown, now)?;
    let v1::Topology { revision, epoch, timeline, incarnation, system, .. } = *sent;
    let last_primary = last_primary(sent);
    Ok(Snapshot {
        revision,
        epoch,
        timeline,
        incarnation,
        system,
        last_primary,
        nodes,
        primary,
        hold: hold(sent, now),
        authority: authority(sent),
        cache_flush: sent.cache_flush,
        ..held.clone()
    })
}

/// An older control plane names only the primary of now.
fn last_primary(sent: &v1::Topology) -> Option<NodeName> {
    [&sent.last_primary, &sent.primary].into_iter().find(|name| !name.is_empty()).map(|n| NodeName::new(n))
}

/// Longest hold that is obeyed, whoever asks for it.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

fn hold(sent: &v1::Topology, now: Instant) -> Option<Hold> {
    let v1::Hold { node, left_us } = sent.hold.as_ref()?;
    let left = Duration::from_micros(*left_us).min(LONGEST_HOLD);
    (!left.is_zero()).then(|| Hold { node: NodeName::new(node), until: now + left })
}

fn authority(sent: &v1::Topology) -> Option<Authority> {
    let v1::Authority { up, holder } = sent.authority.as_ref()?;
    Some(Authority { up: *up, holder: Some(holder.clone()).filter(|name| !name.is_empty()) })
}

fn whole(reason: String) -> Refused {
    Refused { name: "snapshot".to_owned(), reason }
}

/// Nothing goes back: neither the revision nor the topology.
fn forward(sent: &v1::Topology, held: &Snapshot) -> Result<(), Refused> {
    if sent.revision <= held.revision {
        return Err(whole(format!(
            "its revision {} is not newer than {}, which is in force",
            sent.revision, held.revision
        )));
    }
    let key = TopologyKey { incarnation: sent.incarnation, timeline: sent.timeline, epoch: sent.epoch };
    if key < held.key() {
        let words = |key: TopologyKey| {
            let TopologyKey { incarnation, timeline, epoch } = key;
            format!("incarnation {incarnation}, timeline {timeline}, epoch {epoch}")
        };
        let (sent, held) = (words(key), words(held.key()));
        return Err(whole(format!("its topology ({sent}) is older than the one in force ({held})")));
    }
    Ok(())
}

/// A snapshot's configuration in the making.
struct Draft<'a> {
    held: Option<&'a Snapshot>,
    settings: Option<Settings>,
    settings_seen: bool,
    health: Option<Arc<HealthSettings>>,
    nodes: Vec<(Arc<Node>, NodeOps)>,
    rejected: Vec<Refused>,
}

impl Draft<'_> {
    fn take(&mut self, resource: v1::Resource) {
        let v1::Resource { name, body } = resource;
        let reason = match body {
            Some(Body::Settings(sent)) => self.take_settings(sent),
            Some(Body::User(sent)) => self.take_user(sent),
            Some(Body::Database(sent)) => self.take_database(sent),
            Some(Body::Node(sent)) => self.take_node(sent),
            None => Err("is of a kind that this version does not know".to_owned()),
        };
        if let Err(reason) = reason {
            self.rejected.push(Refused { name, reason });
        }
    }

    /// Settings come first: users and databases belong to them.
    fn take_settings(&mut self, sent: v1::Settings) -> Result<(), String> {
        if std::mem::replace(&mut self.settings_seen, true) {
            return Err("is there twice".to_owned());
        }
        let health = sent.health.clone().map(check::health).transpose();
        let checked = health.and_then(|health| {
            let settings = check::settings(sent)?;
            self.health = health.map(Arc::new);
            Ok(settings)
        });
        let held = || {
            let held = self.held?.settings.as_ref().clone();
            Some(Settings { users: Vec::new(), databases: Vec::new(), ..held })
        };
        match checked {
            Ok(settings) => {
                self.settings = Some(settings);
                Ok(())
            }
            Err(reason) => {
                self.settings = held();
                Err(reason)
            }
        }
    }

    fn take_user(&mut self, sent: v1::User) -> Result<(), String> {
        let name = sent.name.clone();
        let Some(settings) = &mut self.settings else { return Err("comes before the settings".to_owned()) };
        if settings.users.iter().any(|user| user.name == name) {
            return Err("is there twice".to_owned());
        }
        match check::user(sent) {
            Ok(user) => {
                settings.users.push(user);
                Ok(())
            }
            Err(reason) => {
                let held = self.held.and_then(|h| h.settings.users.iter().find(|user| user.name == name));
                settings.users.extend(held.cloned());
                Err(reason)
            }
        }
    }

    fn take_database(&mut self, sent: v1::Database) -> Result<(), String> {
        let name = sent.name.clone();
        let Some(settings) = &mut self.settings else { return Err("comes before the settings".to_owned()) };
        if settings.databases.iter().any(|database| database.name == name) {
            return Err("is there twice".to_owned());
        }
        match check::database(sent) {
            Ok(database) => {
                settings.databases.push(database);
                Ok(())
            }
            Err(reason) => {
                let held = self.held.and_then(|h| h.settings.databases.iter().find(|d| d.name == name));
                settings.databases.extend(held.cloned());
                Err(reason)
            }
        }
    }

    fn take_node(&mut self, sent: v1::Node) -> Result<(), String> {
        let name = NodeName::new(&sent.name);
        if self.nodes.iter().any(|(node, _)| node.name == name) {
            return Err("is there twice".to_owned());
        }
        let second_primary = |node: &Node| {
            node.role == Role::Primary && self.nodes.iter().any(|(n, _)| n.role == Role::Primary)
        };
        let checked = check::node(sent).and_then(|(node, ops)| {
            if second_primary(&node) {
                Err("is a second node with the role primary".to_owned())
            } else {
                Ok((node, ops))
            }
        });
        match checked {
            Ok(node) => {
                self.nodes.push(node);
                Ok(())
            }
            Err(reason) => {
                let held = self.held.and_then(|h| h.nodes.iter().find(|state| state.node.name == name));
                let held = held.filter(|state| !second_primary(&state.node));
                let held = held.map(|state| (Arc::clone(&state.node), state.ops));
                self.nodes.extend(held);
                Err(reason)
            }
        }
    }
}

/// The nodes with their states, and the index of the primary. `gone` tells which names may be missing.
fn states(
    configured: &[(Arc<Node>, NodeOps)],
    topology: &v1::Topology,
    gone: &dyn Fn(&str) -> bool,
    now: Instant,
) -> Result<(Vec<NodeState>, Option<usize>), Refused> {
    let sent: HashMap<&str, &v1::NodeState> =
        topology.nodes.iter().map(|state| (state.node.as_str(), state)).collect();
    let mut nodes = Vec::with_capacity(configured.len());
    for (node, ops) in configured {
        nodes.push(match sent.get(node.name.as_str()) {
            Some(state) => state_of(node, *ops, state, now)?,
            None => NodeState::unknown(Arc::clone(node), *ops),
        });
    }
    let named = topology.primary.as_str();
    let primary = configured.iter().position(|(node, _)| node.name.as_str() == named);
    if primary.is_none() && !named.is_empty() && !gone(named) {
        return Err(whole(format!("its primary {named:?} is none of its nodes")));
    }
    Ok((nodes, primary))
}

fn state_of(
    node: &Arc<Node>,
    ops: NodeOps,
    sent: &v1::NodeState,
    now: Instant,
) -> Result<NodeState, Refused> {
    let strange = |what: &str| whole(format!("node {} has an unknown {what}", node.name));
    let ago = |us: Option<u64>| us.and_then(|us| now.checked_sub(Duration::from_micros(us)));
    Ok(NodeState {
        role: words::to_role(sent.role).ok_or_else(|| strange("role"))?,
        health: words::to_health(sent.health).ok_or_else(|| strange("health"))?,
        recovered_at: ago(sent.recovered_us_ago),
        latency: sent.latency_us.map(Duration::from_micros),
        lag_bytes: sent.lag_bytes,
        lag: sent.lag_us.map(Duration::from_micros),
        probed_at: ago(sent.probed_us_ago),
        last_error: Some(sent.last_error.as_str()).filter(|text| !text.is_empty()).map(Into::into),
        ..NodeState::unknown(Arc::clone(node), ops)
    })
}
