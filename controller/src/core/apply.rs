//! News from the cluster: what it changes in the state, and what must be looked at because of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bellrock_api::{Claim as VipClaim, L2Placement, parse_virtual_ip_name};

use super::{Change, Core, Kind, Work};
use crate::ipam::{Claim, Family, ServiceKey, may_share};
use crate::placement::Choice;
use crate::view::{Labels, NodeView, Release, ServiceView, Version, VipView, recorded_terms};

impl Core {
    /// Takes in what the cluster says.
    pub fn apply(&mut self, change: Change, now: std::time::Duration) {
        self.now = now;
        match change {
            Change::Listing(kind) => self.listing(kind),
            Change::Service(key, view) => {
                let source = Source::watched(&self.services_since, &key);
                self.apply_service(key, *view, source);
            }
            Change::Namespace(name, labels) => self.apply_namespace(&name, labels),
            Change::Node(name, view) => self.apply_node(&name, Some(view)),
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
            Change::VirtualIp(ip, view) => {
                let source = Source::watched(&self.vips_since, &ip);
                self.apply_vip(ip, *view, source);
            }
            Change::Gone(kind, namespace, name, uid) => {
                self.gone(kind, &namespace, &name, Some(&uid));
            }
            Change::Complete(kind, present) => self.complete(kind, &present),
        }
    }

    /// Notes that we deleted the VirtualIP of this uid, or found it gone; the watch says so later.
    pub fn vip_deleted(&mut self, ip: IpAddr, uid: &str, now: std::time::Duration) {
        self.now = now;
        note(&mut self.vips_since, &ip);
        if self.vips.get(&ip).is_some_and(|vip| vip.version.uid == uid) {
            self.buried.insert(ip, uid.to_owned());
            self.remove_vip(ip);
        }
    }

    /// Takes in a Service as our own write returned it, unless it is gone by now.
    pub fn service_written(&mut self, key: &ServiceKey, view: ServiceView) {
        note(&mut self.services_since, key);
        if self
            .services
            .get(key)
            .is_some_and(|present| present.version.is_older_than(&view.version))
        {
            self.apply_service(key.clone(), view, Source::News);
        }
    }

    /// Takes in a Service as it was read after a write to the version `refused` was refused. While
    /// that still is what is known, what was read replaces it, older or not.
    pub fn service_reread(&mut self, key: &ServiceKey, view: ServiceView, refused: &Version) {
        let Some(present) = self.services.get(key) else {
            return;
        };
        if present.version == *refused {
            self.apply_service(key.clone(), view, Source::Truth);
        } else {
            self.service_written(key, view);
        }
    }

    /// Takes in a VirtualIP as our own write returned it, unless another one was made since.
    /// `remembers`: see [`crate::view::remembers`].
    pub fn vip_written(
        &mut self,
        ip: IpAddr,
        view: VipView,
        remembers: Option<bool>,
        now: std::time::Duration,
    ) {
        self.now = now;
        note(&mut self.vips_since, &ip);
        if let Some(remembers) = remembers {
            self.forgetful = !remembers;
        }
        let known = self.vips.get(&ip).map(|vip| &vip.version);
        if known.is_some_and(|known| known.uid != view.version.uid && view.version.is_before(known))
        {
            return;
        }
        self.apply_vip(ip, view, Source::News);
    }

    /// Takes in a VirtualIP as it was read after a write to the version `refused` was refused
    /// (`None`: it should not have been there at all). While that still is what is known, what was
    /// read replaces it, older or not.
    pub fn vip_reread(
        &mut self,
        ip: IpAddr,
        view: VipView,
        refused: Option<&Version>,
        now: std::time::Duration,
    ) {
        self.now = now;
        let known = self.vips.get(&ip).map(|vip| &vip.version);
        let source = if known == refused {
            Source::Truth
        } else {
            Source::News
        };
        self.apply_vip(ip, view, source);
    }

    fn listing(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services_since = Some(BTreeSet::new()),
            Kind::VirtualIp => self.vips_since = Some(BTreeSet::new()),
            // Nothing of these is taken in but from their watches, in order.
            Kind::Namespace | Kind::Node | Kind::Pool | Kind::L2Advertisement => {}
        }
    }

    fn apply_service(&mut self, key: ServiceKey, view: ServiceView, source: Source) {
        if let Some(present) = self.services.get(&key)
            && (source.is_outdated(&view.version, &present.version) || view == *present)
        {
            return;
        }
        let quiet = self
            .services
            .get(&key)
            .is_some_and(|present| view.same_but_version(present));
        if self
            .services
            .get(&key)
            .is_some_and(|present| present.labels != view.labels)
        {
            self.labels_changed(&key);
        }
        if view.is_load_balancer || view.condition().is_some() || view.is_held() {
            self.services.insert(key.clone(), view);
        } else if self.services.remove(&key).is_none() {
            // Most Services of most clusters are none of our business, and cost nothing.
            return;
        }
        if !quiet {
            self.queue.push(Work::Service(key));
        }
    }

    /// An advertisement that selects Services may select this one now, or no more.
    fn labels_changed(&mut self, key: &ServiceKey) {
        if self.is_selective() {
            for ip in self.allocator.held_by(key) {
                self.queue.push(Work::Vip(ip));
            }
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

    /// Takes in a node, or that it is gone. Addresses that it came by or lost are looked at again:
    /// by those who hold them, and by those who wait.
    fn apply_node(&mut self, name: &str, view: Option<NodeView>) {
        if self.nodes.get(name) == view.as_ref() {
            return;
        }
        let has = view
            .as_ref()
            .map(|v| v.addresses.clone())
            .unwrap_or_default();
        let before = match view {
            Some(view) => self.nodes.insert(name.to_owned(), view),
            None => self.nodes.remove(name),
        };
        let had = before.map(|v| v.addresses).unwrap_or_default();
        for ip in has.difference(&had) {
            self.allocator.node_has(*ip, name);
        }
        for ip in had.difference(&has) {
            self.allocator.node_has_not(*ip, name);
        }
        for ip in has.symmetric_difference(&had) {
            let holding = self.allocator.holding(*ip);
            for key in holding.into_iter().flat_map(|h| h.claims.keys()) {
                self.queue.push(Work::Service(key.clone()));
            }
            self.retry_refused = true;
        }
        self.placing_changed();
    }

    fn apply_vip(&mut self, ip: IpAddr, view: VipView, source: Source) {
        if self.buried.get(&ip) == Some(&view.version.uid) {
            if source == Source::News {
                return;
            }
            // A restore dug it up.
            self.buried.remove(&ip);
        }
        if let Some(present) = self.vips.get(&ip)
            && (source.is_outdated(&view.version, &present.version) || view == *present)
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
            Kind::Node => self.apply_node(name, None),
            Kind::L2Advertisement => {
                if self.advertisements.remove(name).is_some() {
                    self.placing_changed();
                }
            }
            Kind::Pool => {
                let mut vips = self.vips.values();
                let in_use = vips.any(|vip| vip.spec.pool.as_deref() == Some(name));
                if self.pools.remove(name, in_use) {
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
        match kind {
            Kind::Service => self.services_since = None,
            Kind::VirtualIp => self.vips_since = None,
            Kind::Namespace | Kind::Node | Kind::Pool | Kind::L2Advertisement => {}
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
        // First who holds something already, then who shows an address whose record is lost, or was
        // another provider's: it is theirs before anybody new gets one.
        order.sort_by_key(|(_, key)| {
            let holds = self.allocator.held_by(key).next().is_some();
            let shows = self
                .services
                .get(key)
                .is_some_and(|s| !s.ingress.is_empty());
            (!holds, !shows)
        });
        for (_, key) in order {
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
        // Their rests are as long as the pools say now.
        let resting = self.vips.iter().filter(|(_, vip)| vip.at_rest().is_some());
        for ip in resting.map(|(ip, _)| *ip).collect::<Vec<_>>() {
            self.follow_vip(ip);
        }
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
        let at_rest = self.vips.get(&ip).and_then(VipView::at_rest).cloned();
        if let Some(Release { at, by }) = at_rest {
            // What was decided of it is given up: its rest goes on, or is over.
            self.allocator.lay_to_rest(ip, at, by, self.now);
            self.queue.push(Work::Vip(ip));
        }
        self.tell_awaiting(ip, key);
        let service = self.services.get(key);
        if service.is_some_and(|service| service.is_held() && !self.is_ours(service)) {
            // It waits for this.
            self.queue.push(Work::Service(key.clone()));
        }
        self.after_release(ip);
    }

    fn after_release(&mut self, ip: IpAddr) {
        if self.allocator.holding(ip).is_none() {
            self.placement.remove(ip);
        }
        // Whoever waits for an address may have this one, or share it, or learn when.
        self.retry_refused = true;
    }

    /// As [`Core::follow_vip`], for every address that is recorded or held.
    pub(super) fn follow_all(&mut self) {
        let held = self.allocator.held_addresses();
        let ips: BTreeSet<IpAddr> = held.chain(self.vips.keys().copied()).collect();
        for ip in ips {
            self.follow_vip(ip);
        }
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
        let by_hand = vip.is_some_and(|vip| !vip.managed);
        let at_rest = vip.and_then(VipView::at_rest).cloned();
        if vip.is_some() && at_rest.is_none() {
            self.allocator.record(ip);
        }
        for (key, claim) in &recorded {
            if !self.wants(key, ip) {
                let claim = self.claim_of(key, claim, by_hand);
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
        match at_rest {
            Some(Release { at, by }) => self.allocator.lay_to_rest(ip, at, by, self.now),
            None if !self.vips.contains_key(&ip) => self.allocator.unrecord(ip, self.now),
            None => {}
        }
    }

    /// Whether a Service that was given `ip` by a decision that is not written yet may still have
    /// it, beside those whom its VirtualIP names now.
    fn may_join(&self, ip: IpAddr, key: &ServiceKey, recorded: &[(ServiceKey, VipClaim)]) -> bool {
        // Somebody reserved it by hand in the meantime, for whoever asks for it by name.
        if recorded.is_empty() && self.vips.get(&ip).is_some_and(|vip| !vip.managed) {
            return false;
        }
        // The last of those whom it would have joined has left: it rests for everybody else.
        if let Some(Release { at, by }) = self.vips.get(&ip).and_then(VipView::at_rest)
            && by.as_ref() != Some(key)
            && at.saturating_add(self.allocator.reuse_delay(ip)) > self.now
        {
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
    /// is kept a place; as little says a claim that was written by hand, until its Service has been
    /// decided.
    fn claim_of(&self, key: &ServiceKey, recorded: &VipClaim, by_hand: bool) -> Claim {
        let unwritten = by_hand && recorded.uid.is_none();
        match self.ours(key).filter(|_| !unwritten) {
            Some(service) => recorded_terms(recorded, &service.claim.backend),
            None => Claim::default(),
        }
    }
}

/// Where a view of an object comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A watch, or the answer to a write: versions tell which is newer.
    News,
    /// A list, or a read because a write was refused: this is how it is. After a restore of the
    /// cluster's store versions begin anew at an older one.
    Truth,
}

impl Source {
    /// What a watch tells of `what`, given what our writes changed since a list began.
    fn watched<K: Ord>(since: &Option<BTreeSet<K>>, what: &K) -> Self {
        match since {
            Some(since) if !since.contains(what) => Self::Truth,
            Some(_) | None => Self::News,
        }
    }

    fn is_outdated(self, view: &Version, present: &Version) -> bool {
        self == Self::News && view.is_older_than(present)
    }
}

fn note<K: Ord + Clone>(since: &mut Option<BTreeSet<K>>, what: &K) {
    if let Some(since) = since {
        since.insert(what.clone());
    }
}

fn bare<'a>(names: impl Iterator<Item = &'a String>) -> Vec<(String, String)> {
    names.map(|name| (String::new(), name.clone())).collect()
}
