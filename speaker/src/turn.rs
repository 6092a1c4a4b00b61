//! One turn of the speaker, pure: from changes to steps, in the order that
//! keeps traffic whole.
//!
//! ```text
//! take() ... begin() -> steps that withdraw, and what to forward
//!            the caller applies both
//!            confirm(report) -> steps that announce
//! ```
//!
//! What must not be announced any longer goes before the forwarding changes.
//! What is new is announced when the kernel has confirmed the forwarding that
//! it needs; if that fails it stays unannounced, and is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_forward::{Node, Service, ServiceKey};

use crate::cluster::{Change, Cluster, Dirty, Slice};
use crate::plan::{self, ServicePlan, Settings, Surroundings, Verdict};

/// What the speaker knows and has decided.
#[derive(Debug)]
pub struct Turn {
    me: String,
    settings: Settings,
    cluster: Cluster,
    dirty: Dirty,
    /// The table has been made ours once since the start.
    adopted: bool,
    /// It may not be as we left it.
    doubtful: bool,
    /// What is applied to the segment and the peers.
    plans: BTreeMap<ServiceKey, ServicePlan>,
    /// What the kernel has confirmed.
    carried: BTreeMap<ServiceKey, Service>,
    /// What the kernel refuses, and why.
    refused: BTreeMap<ServiceKey, String>,
    /// Services whose forwarding, as planned, is not confirmed.
    unconfirmed: BTreeSet<ServiceKey>,
}

/// A Service whose announcements change.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Which.
    pub service: ServiceKey,
    /// What is applied now.
    pub before: ServicePlan,
    /// What shall be.
    pub now: ServicePlan,
}

/// What to hand to the kernel.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forward {
    /// The node's own entries, if they changed.
    pub node: Option<Node>,
    /// These Services; `None`: take it away. Everything, if `whole`.
    pub services: BTreeMap<ServiceKey, Option<Service>>,
    /// The table is not known to be ours: make it exactly this.
    pub whole: bool,
}

impl Forward {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The first half of a turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Begun {
    /// To apply first.
    pub steps: Vec<Step>,
    /// To forward then.
    pub forward: Forward,
    /// The set of BGP peers may have changed.
    pub peers: bool,
}

impl Turn {
    /// Nothing known yet.
    pub fn new(me: String, settings: Settings) -> Self {
        Self {
            me,
            settings,
            cluster: Cluster::default(),
            dirty: Dirty {
                all: true,
                node: true,
                peers: true,
                ..Dirty::default()
            },
            adopted: false,
            doubtful: false,
            plans: BTreeMap::new(),
            carried: BTreeMap::new(),
            refused: BTreeMap::new(),
            unconfirmed: BTreeSet::new(),
        }
    }

    /// The snapshot.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether the kernel has carried everything once since the start.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Services in force in the kernel.
    pub fn carried(&self) -> usize {
        self.carried.len()
    }

    /// What the kernel refuses, and why.
    pub fn refused(&self) -> &BTreeMap<ServiceKey, String> {
        &self.refused
    }

    /// Every verdict as applied.
    pub fn verdicts(&self) -> Vec<(ServiceKey, Verdict)> {
        let one = |(key, plan): (&ServiceKey, &ServicePlan)| -> Vec<_> {
            plan.verdicts
                .iter()
                .map(|verdict| (key.clone(), verdict.clone()))
                .collect()
        };
        self.plans.iter().flat_map(one).collect()
    }

    /// Takes a change in.
    pub fn take(&mut self, change: Change) {
        self.cluster.apply(change, &self.me, &mut self.dirty);
    }

    /// Addresses that must not be announced whatever a pool says.
    pub fn protect(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.settings.protected != addresses {
            self.settings.protected = addresses;
            self.dirty.all = true;
        }
    }

    /// What the speaker has found on its node.
    pub fn surround(&mut self, surroundings: Surroundings) {
        if self.settings.surroundings != surroundings {
            self.settings.surroundings = surroundings;
            self.dirty.all = true;
            self.dirty.node = true;
        }
    }

    /// Nodes that the segment calls silent. What has no endpoint there stays.
    pub fn hush(&mut self, nodes: BTreeSet<String>) {
        let news: BTreeSet<String> = self
            .settings
            .silent
            .symmetric_difference(&nodes)
            .cloned()
            .collect();
        if news.is_empty() {
            return;
        }
        self.settings.silent = nodes;
        let there = |slice: &Slice| {
            let mut endpoints = slice.endpoints.iter();
            endpoints.any(|e| e.node.as_ref().is_some_and(|node| news.contains(node)))
        };
        for (key, slices) in &self.cluster.slices {
            if slices.values().any(there) {
                self.dirty.services.insert(key.clone());
            }
        }
    }

    /// Settings, with all that was found.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where node ports of this node listen.
    pub fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        plan::node_port_addresses(&self.cluster, &self.me, &self.settings)
    }

    /// Has all of the table read and made right. What is announced stays so.
    pub fn doubt(&mut self) {
        self.doubtful = true;
        self.dirty.all = true;
        self.carried.clear();
    }

    /// Tries again what the kernel refused.
    pub fn retry(&mut self) {
        self.unconfirmed.extend(self.refused.keys().cloned());
    }

    /// Whether [`Turn::begin`] has something to do.
    pub fn is_due(&self) -> bool {
        !self.dirty.is_empty() || !self.unconfirmed.is_empty() || !self.adopted
    }

    /// Plans what changed.
    pub fn begin(&mut self) -> Begun {
        let dirty = std::mem::take(&mut self.dirty);
        let mut keys: BTreeSet<ServiceKey> = dirty.services;
        keys.extend(self.unconfirmed.iter().cloned());
        if dirty.all {
            keys.extend(
                self.cluster
                    .services
                    .keys()
                    .chain(self.plans.keys())
                    .cloned(),
            );
        }
        let mut begun = Begun {
            peers: dirty.peers,
            ..Begun::default()
        };
        for key in keys {
            let new = self.wanted(&key);
            let confirmed = new.forward.as_ref() == self.carried.get(&key);
            if !confirmed || self.unconfirmed.contains(&key) {
                begun
                    .forward
                    .services
                    .insert(key.clone(), new.forward.clone());
                self.unconfirmed.insert(key.clone());
            }
            let old = self.plans.get(&key).cloned().unwrap_or_default();
            let now = if confirmed { new } else { gate(&old, new) };
            begun.steps.extend(self.step(key, now));
        }
        if !self.adopted || self.doubtful {
            begun.forward.whole = true;
        }
        if dirty.node || begun.forward.whole {
            begun.forward.node = Some(plan::forward_node(&self.cluster, &self.me, &self.settings));
        }
        begun
    }

    /// What the kernel made of `forward`: the complete list of refusals, or
    /// an error, after which nothing is known to have changed.
    pub fn confirm(
        &mut self,
        forward: Forward,
        refused: Result<&BTreeMap<ServiceKey, String>, ()>,
    ) -> Vec<Step> {
        let Ok(refused) = refused else {
            self.dirty.node |= forward.node.is_some();
            return Vec::new();
        };
        self.adopted = true;
        self.doubtful &= !forward.whole;
        let mut keys: BTreeSet<ServiceKey> = forward.services.keys().cloned().collect();
        // A refusal may come or go with another Service's change.
        let changed = |key: &&ServiceKey| self.refused.get(*key) != refused.get(*key);
        keys.extend(
            self.refused
                .keys()
                .chain(refused.keys())
                .filter(changed)
                .cloned(),
        );
        for (key, service) in forward.services {
            self.unconfirmed.remove(&key);
            match service {
                Some(service) if !refused.contains_key(&key) => {
                    self.carried.insert(key, service);
                }
                _ => {
                    self.carried.remove(&key);
                }
            }
        }
        for key in &keys {
            if refused.contains_key(key) {
                self.carried.remove(key);
            } else if self.refused.contains_key(key) && !self.carried.contains_key(key) {
                // In force now, because what stood in its way is gone.
                if let Some(service) = self.wanted(key).forward {
                    self.carried.insert(key.clone(), service);
                }
            }
        }
        self.refused.clone_from(refused);
        keys.into_iter()
            .filter_map(|key| self.announce(key))
            .collect()
    }

    /// After a confirmation nothing is held back, but what changed meanwhile.
    fn announce(&mut self, key: ServiceKey) -> Option<Step> {
        let new = self.wanted(&key);
        let old = self.plans.get(&key).cloned().unwrap_or_default();
        let confirmed =
            new.forward.as_ref() == self.carried.get(&key) || self.refused.contains_key(&key);
        let now = if confirmed { new } else { gate(&old, new) };
        self.step(key, now)
    }

    fn wanted(&self, key: &ServiceKey) -> ServicePlan {
        let refused = self.refused.contains_key(key);
        plan::plan_service(&self.cluster, &self.me, key, &self.settings, refused)
    }

    fn step(&mut self, service: ServiceKey, now: ServicePlan) -> Option<Step> {
        let gone = !self.cluster.services.contains_key(&service);
        let before = if gone {
            self.plans.remove(&service).unwrap_or_default()
        } else {
            self.plans
                .insert(service.clone(), now.clone())
                .unwrap_or_default()
        };
        // The segment also wants to know of placement, which no plan holds.
        let placed = !now.l2.is_empty();
        (before != now || placed).then_some(Step {
            service,
            before,
            now,
        })
    }
}

/// `new`, but for what `old` did not announce yet.
fn gate(old: &ServicePlan, mut new: ServicePlan) -> ServicePlan {
    let announced = |verdict: &Verdict| {
        old.verdicts.iter().any(|before| {
            before.refused.is_none()
                && (before.address, before.way) == (verdict.address, verdict.way)
        })
    };
    for verdict in &mut new.verdicts {
        if verdict.refused.is_none() && !announced(verdict) {
            verdict.refused = Some(Reason::ForwardingNotReady);
        }
    }
    for (address, intent) in &mut new.l2 {
        intent.eligible &= old.l2.get(address).is_some_and(|before| before.eligible);
    }
    for (peer, routes) in &mut new.routes {
        let before = old.routes.get(peer);
        routes.retain(|prefix, _| before.is_some_and(|before| before.contains_key(prefix)));
    }
    new.routes.retain(|_, routes| !routes.is_empty());
    new
}

#[cfg(test)]
mod tests;
