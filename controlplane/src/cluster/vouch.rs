//! An operator's word for a node, where probes cannot tell who is the primary: when it may be given, and for how long it
//! counts. Part of the cluster's state; pure.

use helios_proto::model::{Acceptance, Health, Role, TopologyKey};

use super::Cluster;
use crate::health::Facts;
use crate::member::Member;
use crate::primary::{Doubt, Vouched};

/// Why an operator's word for a node is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Objection {
    /// There is no such node.
    Unknown,
    /// In words.
    NotNow(String),
}

impl Cluster {
    /// Whom an operator vouches for, as long as the topology is the one that it was said of, or led to.
    pub(super) fn vouched(&self) -> Option<(Vouched, Acceptance)> {
        let accepted = |member: &Member| member.state.ops.accepted;
        let index = self.members.iter().position(|member| accepted(member).is_some())?;
        let member = self.members.get(index)?;
        let acceptance = accepted(member)?;
        let Acceptance { from, to, system } = acceptance;
        if ![from, to].contains(&(self.key.incarnation, self.key.timeline)) {
            return None;
        }
        let as_then = |facts: &Facts| (facts.system, facts.timeline) == (system, to.1);
        let shown = member.takes_writes() && member.facts.as_ref().is_some_and(as_then);
        Some((Vouched { index, shown, ceiling: from.1.max(to.1) }, acceptance))
    }

    /// What an operator who vouches for this node says, or why that is not to be said now.
    pub fn acceptance(&self, name: &str) -> Result<Acceptance, Objection> {
        let no = |text: &str| Err(Objection::NotNow(text.to_owned()));
        let Some(member) = self.members.iter().find(|member| member.state.node.name.as_str() == name) else {
            return Err(Objection::Unknown);
        };
        if self.spec.health.patroni.is_some() {
            return no("Patroni says who is the primary: use patronictl");
        }
        if let Some(primary) = self.primary.and_then(|primary| self.members.get(primary)) {
            let primary = &primary.state.node.name;
            return no(&format!(
                "{primary} is the primary and nothing speaks against it; see heliosctl switchover"
            ));
        }
        if self.doubt == Some(Doubt::Waiting) {
            return no("not every node has been looked at yet: try again in a moment");
        }
        if member.state.node.role == Role::Replica {
            return no("it is configured as a replica, which is never the primary: change its role first");
        }
        match member.facts.filter(|_| member.verdict.health() != Health::Down) {
            None => {
                let error = member.state.last_error.as_deref().unwrap_or("no probe has logged in there");
                no(&format!("nothing is known of it: {error}"))
            }
            Some(facts) if facts.in_recovery => no("it is in recovery: promote it first"),
            Some(facts) => {
                let TopologyKey { incarnation, timeline, .. } = self.key;
                let anew = facts.timeline < timeline || self.system.is_some_and(|own| own != facts.system);
                let to = if anew { incarnation.saturating_add(1) } else { incarnation };
                let system = facts.system;
                Ok(Acceptance { from: (incarnation, timeline), to: (to, facts.timeline), system })
            }
        }
    }
}
