//! News from the cluster: what it changes in the state, and what must be looked at because of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bellrock_api::{Claim as VipClaim, L2Placement, parse_virtual_ip_name};

use super::{Change, Core, Kind, Work};
use crate::ipam::{Claim, Family, ServiceKey, may_share};
use crate::placement::Choice;
use crate::view::{Labels, ServiceView, Version, VipView};

impl Core {
    /// Takes in what the cluster says.
    pub fn apply(&mut self, change: Change, now: std::time::Duration) {
        self.now = now;
        match change {
            Change::Service(key, view) => self.apply_service(key, *view),
            Change::Namespace(name, labels) => self.apply_namespace(&name, labels),
            Change::Node(name, view) => {
                if self.nodes.get(&name) != Some(&view) {
                    self.nodes.insert(name, view);
                    self.placing_changed();
                }
            }
            Change::L2Advertisement(name, view) => {
                if self.advertisements.get(&name) != Some(&*view) {
                    self.advertisements.insert(name, *view);
                    self.placing_changed();
                }
            }
            Change::Pool(name, view) => {
                if self.pools.set(&name, Some(*view)) {
                    self.pools_changed();
                }
            }
            Change::VirtualIp(ip, view) => self.apply_vip(ip, *view),
            Change::Gone(kind, namespace, name, uid) => {
                self.gone(kind, &namespace, &name, Some(&uid));
            }
            Change::Complete(kind, present) => self.complete(kind, &present),
        }
    }

    /// Notes that we deleted the VirtualIP of this uid, or found it gone; the watch says so later.
    pub fn vip_deleted(&mut self, ip: IpAddr, uid: &str, now: std::time::Duration) {
        self.now = now;
        if self.vips.get(&ip).is_some_and(|vip| vip.version.uid == uid) {
            self.buried.insert(ip, uid.to_owned());
            self.remove_vip(ip);
        }
    }

    /// Takes in a Service as our own write returned it, unless it is gone by now.
    pub fn service_written(&mut self, key: &ServiceKey, view: ServiceView) {
        if self
            .services
            .get(key)
            .is_some_and(|present| present.version.is_older_than(&view.version))
        {
            self.apply_service(key.clone(), view);
        }
    }

    fn apply_service(&mut self, key: ServiceKey, view: ServiceView) {
        if let Some(present) = self.services.get(&key)
            && (view.version.is_older_than(&present.version) || view == *present)
        {
            return;
        }
        let quiet = self
            .services
            .get(&key)
            .is_some_and(|present| view.same_but_version(present));
        if view.is_load_balancer || view.condition().is_some() {
            self.services.insert(key.clone(), view);
        } else if self.services.remove(&key).is_none() {
            // Most Services of most clusters are none of our business, and cost nothing.
            return;
        }
        if !quiet {
            self.queue.push(Work::Service(key));
        }
    }

    fn apply_namespace(&mut self, name: &str, labels: Labels) {
        if self.namespaces.get(name) == Some(&labels) {
            return;
        }
        self.namespaces.insert(name.to_owned(), labels);
        // Who holds an address keeps it; who waits may be served now.
        let waiting: Vec<ServiceKey> = self
            .refused
            .keys()
            .filter(|key| key.namespace == name)
            .cloned()
            .collect();
        for key in waiting {
            self.queue.push(Work::Service(key));
        }
    }

    fn apply_vip(&mut self, ip: IpAddr, view: VipView) {
        if self.buried.get(&ip) == Some(&view.version.uid) {
            return;
        }
        if let Some(present) = self.vips.get(&ip)
            && (view.version.is_older_than(&present.version) || view == *present)
        {
            return;
        }
        if let Some(L2Placement { node, successors }) = view.spec.l2.clone() {
            self.placement.set(ip, Choice { node, successors });
        }
        let before = self.vips.insert(ip, view);
        self.follow_vip(ip);
        self.queue.push(Work::Vip(ip));
        let vip = &self.vips[&ip];
        let same = |before: VipView| {
            before.spec.pool == vip.spec.pool && before.spec.claims == vip.spec.claims
        };
        if !before.is_some_and(same) {
            // Their conditions name the pool, and their claims may not say what they should: an
            // earlier write of ours whose answer was lost may arrive here.
            for claim in &vip.spec.claims {
                self.queue.push(Work::Service(ServiceKey::new(
                    &claim.namespace,
                    &claim.name,
                )));
            }
        }
    }

    fn gone(&mut self, kind: Kind, namespace: &str, name: &str, uid: Option<&str>) {
        match kind {
            Kind::Service => {
                let key = ServiceKey::new(namespace, name);
                let same = |v: &Version| uid.is_none_or(|uid| uid == v.uid);
                if self.services.get(&key).is_some_and(|s| same(&s.version)) {
                    self.services.remove(&key);
                    self.queue.push(Work::Service(key));
                }
            }
            Kind::Namespace => {
                self.namespaces.remove(name);
            }
            Kind::Node => {
                if self.nodes.remove(name).is_some() {
                    self.placing_changed();
                }
            }
            Kind::L2Advertisement => {
                if self.advertisements.remove(name).is_some() {
                    self.placing_changed();
                }
            }
            Kind::Pool => {
                if self.pools.set(name, None) {
                    self.pools_changed();
                }
            }
            Kind::VirtualIp => {
                let Ok(ip) = parse_virtual_ip_name(name) else {
                    return;
                };
                if uid.is_none() || self.buried.get(&ip).map(String::as_str) == uid {
                    self.buried.remove(&ip);
                }
                let same = |v: &Version| uid.is_none_or(|uid| uid == v.uid);
                if self.vips.get(&ip).is_some_and(|vip| same(&vip.version)) {
                    self.remove_vip(ip);
                }
            }
        }
    }

    fn complete(&mut self, kind: Kind, present: &BTreeSet<(String, String)>) {
        let names: Vec<(String, String)> = match kind {
            Kind::Service => {
                let keys = self.services.keys();
                keys.map(|k| (k.namespace.clone(), k.name.clone()))
                    .collect()
            }
            Kind::Namespace => bare(self.namespaces.keys()),
            Kind::Node => bare(self.nodes.keys()),
            Kind::L2Advertisement => bare(self.advertisements.keys()),
            Kind::Pool => bare(self.pools.views().map(|(name, _)| name)),
            Kind::VirtualIp => {
                let known = self.vips.keys().chain(self.buried.keys());
                known
                    .map(|ip| (String::new(), bellrock_api::virtual_ip_name(*ip)))
                    .collect()
            }
        };
        for (namespace, name) in names {
            if !present.contains(&(namespace.clone(), name.clone())) {
                self.gone(kind, &namespace, &name, None);
            }
        }
        let was_synced = self.is_synced();
        self.synced.insert(kind);
        if !was_synced && self.is_synced() {
            self.first_pass();
        }
    }

    /// Everything is known: adopt what the VirtualIPs record, then look at every Service, those
    /// who wait longest first, and at every VirtualIP.
    fn first_pass(&mut self) {
        self.allocator
            .set_pools(self.pools.in_force().cloned().collect());
        let ips: Vec<IpAddr> = self.vips.keys().copied().collect();
        for ip in ips {
            self.follow_vip(ip);
            self.queue.push(Work::Vip(ip));
        }
        let mut order: Vec<(i64, ServiceKey)> = self
            .services
            .iter()
            .map(|(key, view)| (view.created, key.clone()))
            .collect();
        order.sort();
        self.queue.clear_services();
        // First who holds something already: it is theirs before anybody new gets an address.
        let (holders, others): (Vec<_>, Vec<_>) = order
            .into_iter()
            .partition(|(_, key)| self.allocator.held_by(key).next().is_some());
        for (_, key) in holders.into_iter().chain(others) {
            self.queue.push(Work::Service(key));
        }
        let orphans: Vec<ServiceKey> = self
            .vips
            .values()
            .flat_map(|vip| &vip.spec.claims)
            .map(|claim| ServiceKey::new(&claim.namespace, &claim.name))
            .filter(|key| !self.services.contains_key(key))
            .collect();
        for key in orphans {
            self.queue.push(Work::Service(key));
        }
    }

    fn pools_changed(&mut self) {
        if !self.is_synced() {
            return;
        }
        self.allocator
            .set_pools(self.pools.in_force().cloned().collect());
        self.retry_refused = true;
        self.placing_changed();
    }

    /// Something changed that placement or the recorded pool depends on.
    fn placing_changed(&mut self) {
        self.candidates.clear();
        if self.is_synced() {
            for ip in self.vips.keys() {
                self.queue.push(Work::Vip(*ip));
            }
        }
    }

    /// The VirtualIP of `ip` is gone. Who should hold the address keeps it, and it is recorded
    /// again.
    fn remove_vip(&mut self, ip: IpAddr) {
        self.vips.remove(&ip);
        self.follow_vip(ip);
        self.after_release(ip);
    }

    pub(super) fn release(&mut self, ip: IpAddr, key: &ServiceKey) {
        self.allocator.release(ip, key, self.now);
        self.tell_awaiting(ip, key);
        self.after_release(ip);
    }

    fn after_release(&mut self, ip: IpAddr) {
        if self.allocator.holding(ip).is_none() {
            self.placement.remove(ip);
        }
        // Whoever waits for an address may have this one, or share it, or learn when.
        self.retry_refused = true;
    }

    /// Makes the book say of `ip` what its VirtualIP says, and what is wanted beyond that.
    fn follow_vip(&mut self, ip: IpAddr) {
        let vip = self.vips.get(&ip);
        let recorded: Vec<(ServiceKey, VipClaim)> = vip
            .into_iter()
            .flat_map(|vip| &vip.spec.claims)
            .map(|claim| {
                (
                    ServiceKey::new(&claim.namespace, &claim.name),
                    claim.clone(),
                )
            })
            .collect();
        if vip.is_some() {
            self.allocator.record(ip);
        }
        for (key, claim) in &recorded {
            if !self.wants(key, ip) {
                let claim = self.claim_of(key, claim);
                self.claim(ip, key, claim);
                self.queue.push(Work::Service(key.clone()));
            }
        }
        let held: Vec<ServiceKey> = self
            .allocator
            .holding(ip)
            .into_iter()
            .flat_map(|holding| holding.claims.keys().cloned())
            .filter(|key| recorded.iter().all(|(recorded, _)| recorded != key))
            .collect();
        for key in held {
            if self.wants(&key, ip) {
                self.queue.push(Work::Service(key.clone()));
            }
            if !self.wants(&key, ip) || !self.may_join(ip, &key, &recorded) {
                if let Some(wanted) = self.wanted.get_mut(&key) {
                    wanted.remove(&ip);
                }
                self.release(ip, &key);
            }
        }
        if !self.vips.contains_key(&ip) {
            self.allocator.unrecord(ip, self.now);
        }
    }

    /// Whether a Service that was given `ip` by a decision that is not written yet may still have
    /// it, beside those whom its VirtualIP names now.
    fn may_join(&self, ip: IpAddr, key: &ServiceKey, recorded: &[(ServiceKey, VipClaim)]) -> bool {
        // Somebody reserved it by hand in the meantime, for whoever asks for it by name.
        if recorded.is_empty() && self.vips.get(&ip).is_some_and(|vip| !vip.managed) {
            return false;
        }
        let Some(holding) = self.allocator.holding(ip) else {
            return false;
        };
        let Some(mine) = holding.claims.get(key) else {
            return false;
        };
        recorded.iter().all(|(other, _)| {
            let theirs = holding.claims.get(other);
            theirs.is_some_and(|theirs| may_share((key, mine), (other, theirs)).is_ok())
        })
    }

    /// Enters a claim into the book, and sees to it that who was refused is told what is true now.
    pub(super) fn claim(&mut self, ip: IpAddr, key: &ServiceKey, claim: Claim) {
        let was_at_rest = self.allocator.rest(ip).is_some();
        let was_held = self.allocator.holding(ip).is_some();
        if !self.allocator.claim(ip, key, claim) {
            return;
        }
        self.tell_awaiting(ip, key);
        let family = Family::of(ip);
        let mut usages = self
            .allocator
            .pools_of(ip)
            .filter_map(|pool| self.allocator.usage(&pool.name, family));
        if was_at_rest || (!was_held && usages.any(|usage| usage.available == 0)) {
            self.retry_refused = true;
        }
    }

    fn tell_awaiting(&mut self, ip: IpAddr, but: &ServiceKey) {
        for key in self.awaited.get(&ip).into_iter().flatten() {
            if key != but {
                self.queue.push(Work::Service(key.clone()));
            }
        }
    }

    pub(super) fn wants(&self, key: &ServiceKey, ip: IpAddr) -> bool {
        self.wanted.get(key).is_some_and(|ips| ips.contains(&ip))
    }

    /// The terms of a recorded claim. Of a Service that is not there, nothing is known but that it
    /// is kept a place.
    fn claim_of(&self, key: &ServiceKey, recorded: &VipClaim) -> Claim {
        match self.ours(key) {
            Some(service) => Claim {
                ports: recorded
                    .ports
                    .iter()
                    .map(|p| (p.protocol, p.port))
                    .collect(),
                sharing_key: recorded.sharing_key.clone(),
                backend: service.claim.backend.clone(),
            },
            None => Claim::default(),
        }
    }
}

fn bare<'a>(names: impl Iterator<Item = &'a String>) -> Vec<(String, String)> {
    names.map(|name| (String::new(), name.clone())).collect()
}
