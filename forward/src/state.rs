//! What is in force: the Services whose content the table holds. Pure.
//!
//! Content is a function of Services and node, so that only those are kept:
//! a Service's old content is built again when it changes. Work is in
//! proportion to the Services that change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::content::{self, Content, Entry, Front, Value};
use crate::diff::{self, Action, Op, Owned, When};
use crate::family::Family;
use crate::model::{Endpoint, ExternalPolicy, Node, Protocol, Service, ServiceKey};

/// A Service and what becomes of it; none takes it away.
pub(crate) type Change = (Arc<ServiceKey>, Option<Arc<Service>>);

/// Who asks for a front. The first by name has it.
#[derive(Clone, Debug)]
struct Claims {
    winner: Arc<ServiceKey>,
    others: BTreeSet<Arc<ServiceKey>>,
}

/// Services in force, and what they share.
#[derive(Debug, Default)]
pub(crate) struct State {
    node: Node,
    services: BTreeMap<Arc<ServiceKey>, Arc<Service>>,
    claims: BTreeMap<Front, Claims>,
    shared: BTreeMap<Entry, usize>,
    /// Fronts that a Service asks for and another has.
    lost: BTreeMap<Arc<ServiceKey>, BTreeSet<Front>>,
}

impl State {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    pub(crate) fn services(&self) -> &BTreeMap<Arc<ServiceKey>, Arc<Service>> {
        &self.services
    }

    /// Services of which another, first by name, has a front; with a sentence
    /// that says so.
    pub(crate) fn conflicts(&self) -> impl Iterator<Item = (&ServiceKey, String)> {
        self.lost.iter().filter_map(|(key, fronts)| {
            let front = fronts.first()?;
            let winner = &self.claims.get(front)?.winner;
            Some((
                key.as_ref(),
                format!("{front} belongs to Service {winner}."),
            ))
        })
    }

    /// Changes the node's networks. The addresses for node ports must be the
    /// same: they are part of every Service's content.
    pub(crate) fn change_networks(&mut self, node: Node, ops: &mut Vec<Op>) {
        diff::of_node(&content::of_node(&self.node), &content::of_node(&node), ops);
        self.node = node;
    }

    /// Makes the changes and returns the operations that carry them out, and
    /// the changes that take them back.
    pub(crate) fn change(&mut self, changes: &[Change], ops: &mut Vec<Op>) -> Vec<Change> {
        // A front can pass to or from Services that do not change.
        let mut affected: BTreeSet<Arc<ServiceKey>> = BTreeSet::new();
        for (key, service) in changes {
            affected.insert(key.clone());
            for service in self.services.get(key).into_iter().chain(service) {
                for (front, ..) in content::fronts(&self.node, service) {
                    if let Some(claims) = self.claims.get(&front) {
                        affected.insert(claims.winner.clone());
                        affected.extend(claims.others.iter().cloned());
                    }
                }
            }
        }

        let mut shared: BTreeMap<Entry, (isize, Arc<ServiceKey>)> = BTreeMap::new();
        let old = self.content(&affected, |entry, key| {
            shared.entry(entry).or_insert_with(|| (0, key.clone())).0 -= 1;
        });
        let undo = changes
            .iter()
            .map(|(key, service)| self.swap(key, service.clone()))
            .collect();
        let new = self.content(&affected, |entry, key| {
            let (count, owner) = shared.entry(entry).or_insert_with(|| (0, key.clone()));
            *count += 1;
            *owner = key.clone();
        });

        for (entry, (change, owner)) in shared {
            let was = self.shared.get(&entry).copied().unwrap_or_default();
            let is = was.saturating_add_signed(change);
            let action = match (was, is) {
                (0, 1..) => Action::Add(Value::Member),
                (1.., 0) => Action::Delete(When::Later),
                _ => {
                    if is > 0 {
                        self.shared.insert(entry, is);
                    }
                    continue;
                }
            };
            if is > 0 {
                self.shared.insert(entry, is);
            } else {
                self.shared.remove(&entry);
            }
            ops.push(Op {
                entry,
                action,
                owner: Some(owner),
            });
        }
        diff::owned(&old, &new, ops);
        undo
    }

    /// The content of some Services: their own entries in order, and each
    /// shared one by a call.
    fn content(
        &self,
        keys: &BTreeSet<Arc<ServiceKey>>,
        mut share: impl FnMut(Entry, &Arc<ServiceKey>),
    ) -> Owned {
        let mut all = Owned::new();
        for key in keys {
            for (entry, value) in self.content_of(key) {
                if entry.is_shared() {
                    share(entry, key);
                } else {
                    all.push((entry, value, key.clone()));
                }
            }
        }
        all.sort_unstable_by_key(|(entry, ..)| *entry);
        all
    }

    fn content_of(&self, key: &Arc<ServiceKey>) -> Content {
        self.services.get(key).map_or_else(Content::new, |service| {
            content::of_service(&self.node, service, |front| {
                self.claims
                    .get(front)
                    .is_some_and(|claims| claims.winner == *key)
            })
        })
    }

    /// Puts a Service in place of the one before; returns the change back.
    fn swap(&mut self, key: &Arc<ServiceKey>, service: Option<Arc<Service>>) -> Change {
        let before = self.services.remove(key);
        if let Some(before) = &before {
            for front in self.fronts(before) {
                self.disclaim(front, key);
            }
        }
        if let Some(service) = service {
            for front in self.fronts(&service) {
                self.claim(front, key);
            }
            self.services.insert(key.clone(), service);
        }
        (key.clone(), before)
    }

    /// The UDP fronts of all Services.
    pub(crate) fn udp_fronts(&self) -> impl Iterator<Item = Front> {
        let udp = |front: &&Front| front.protocol == Protocol::Udp;
        self.claims.keys().filter(udp).copied()
    }

    /// All endpoints to which a front leads, for callers anywhere.
    pub(crate) fn ends(&self, front: &Front) -> BTreeSet<(IpAddr, u16)> {
        let service = self
            .claims
            .get(front)
            .and_then(|claims| self.services.get(&claims.winner));
        let Some(service) = service else {
            return BTreeSet::new();
        };
        content::fronts(&self.node, service)
            .filter(|(of, ..)| of == front)
            .flat_map(|(_, port, _)| {
                let local: &[Endpoint] = match service.policy {
                    ExternalPolicy::Cluster => &[],
                    ExternalPolicy::Local => &port.local_endpoints,
                };
                port.endpoints.iter().chain(local)
            })
            .filter(|e| Family::of(e.address) == Family::of(front.address))
            .map(|e| (e.address, e.port))
            .collect()
    }

    fn fronts(&self, service: &Service) -> Vec<Front> {
        content::fronts(&self.node, service)
            .map(|(front, ..)| front)
            .collect()
    }

    fn claim(&mut self, front: Front, key: &Arc<ServiceKey>) {
        let Some(claims) = self.claims.get_mut(&front) else {
            let claims = Claims {
                winner: key.clone(),
                others: BTreeSet::new(),
            };
            self.claims.insert(front, claims);
            return;
        };
        let loser = if *key < claims.winner {
            std::mem::replace(&mut claims.winner, key.clone())
        } else {
            key.clone()
        };
        claims.others.insert(loser.clone());
        self.lost.entry(loser).or_default().insert(front);
    }

    fn disclaim(&mut self, front: Front, key: &Arc<ServiceKey>) {
        let Some(claims) = self.claims.get_mut(&front) else {
            return;
        };
        if claims.winner == *key {
            match claims.others.pop_first() {
                Some(next) => {
                    claims.winner = next.clone();
                    self.found(front, &next);
                }
                None => {
                    self.claims.remove(&front);
                }
            }
        } else {
            claims.others.remove(key);
            self.found(front, key);
        }
    }

    /// A Service has no longer lost a front.
    fn found(&mut self, front: Front, key: &Arc<ServiceKey>) {
        if let Some(fronts) = self.lost.get_mut(key) {
            fronts.remove(&front);
            if fronts.is_empty() {
                self.lost.remove(key);
            }
        }
    }

    /// All of the content.
    pub(crate) fn whole(&self) -> BTreeMap<Entry, Value> {
        let mut all: BTreeMap<Entry, Value> = content::of_node(&self.node).into_iter().collect();
        for key in self.services.keys() {
            all.extend(self.content_of(key));
        }
        all
    }
}

/// Turns operations that start from nothing into those that start from what
/// is there. Returns them, and the entries that they use.
pub(crate) fn adopt(ops: Vec<Op>, there: &BTreeMap<Entry, Value>) -> (Vec<Op>, Vec<Entry>) {
    let mut left = Vec::new();
    let mut used = Vec::new();
    let mut restricted: BTreeMap<Front, Arc<ServiceKey>> = BTreeMap::new();
    let mut wanted: BTreeSet<Entry> = BTreeSet::new();
    let mut classes = Vec::new();
    let mut inside = BTreeSet::new();
    for op in ops {
        let Action::Add(value) = op.action else {
            left.push(op);
            continue;
        };
        if let (Entry::Source(front, _), Some(owner)) = (op.entry, &op.owner) {
            restricted.insert(front, owner.clone());
            wanted.insert(op.entry);
        }
        if let Entry::ClassInside(front) = op.entry {
            inside.insert(front);
        }
        if let (Entry::Class(front), Some(owner)) = (op.entry, &op.owner) {
            classes.push((front, value, owner.clone()));
        }
        match there.get(&op.entry) {
            None => left.push(op),
            Some(is) => {
                used.push(op.entry);
                if *is != value {
                    left.push(Op {
                        action: Action::Replace(value),
                        ..op
                    });
                }
            }
        }
    }
    for (front, owner) in restricted {
        let ranges = there
            .range(Entry::Source(front, content::Range::LEAST)..)
            .map(|(entry, _)| *entry)
            .take_while(|entry| matches!(entry, Entry::Source(f, _) if *f == front));
        for entry in ranges.filter(|entry| !wanted.contains(entry)) {
            used.push(entry);
            let action = Action::Delete(When::Now);
            left.push(Op {
                entry,
                action,
                owner: Some(owner.clone()),
            });
        }
    }
    for (front, class, owner) in classes {
        let entry = Entry::ClassInside(front);
        if !inside.contains(&front) && there.get(&entry).is_some_and(|is| *is != class) {
            left.push(diff::follow(entry, class, owner));
        }
    }
    (left, used)
}

/// The operations that take away what nothing wants.
pub(crate) fn leftovers(there: &BTreeMap<Entry, Value>) -> Vec<Op> {
    there
        .keys()
        .map(|&entry| {
            let when = if matches!(entry, Entry::Ours(_)) {
                When::Now
            } else {
                When::Later
            };
            Op {
                entry,
                action: Action::Delete(when),
                owner: None,
            }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
