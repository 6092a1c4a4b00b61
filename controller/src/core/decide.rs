//! One Service: what it should have, and the writes that make it so.
//!
//! A new Service takes two writes: create the VirtualIP, patch the status. What is right already
//! is not written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bellrock_api::annotations::{CONDITION_LOAD_BALANCER, FINALIZER_CLEANUP};
use bellrock_api::{AllocationReason, Claim as VipClaim, VirtualIPSpec};
use k8s_openapi::api::core::v1::LoadBalancerIngress;

use super::{Core, OurCondition, Refused, StatusPatch, Write};
use crate::ipam::{Backend, Claim, Family, Refusal, Request, ServiceKey, Settlement};
use crate::view::{Release, ServiceView, VipView, vip_claim};

impl Core {
    /// Decides for a Service, enters the decision into the book, and returns the writes.
    pub(super) fn decide_service(&mut self, key: &ServiceKey) -> Vec<Write> {
        match self.ours(key) {
            Some(service) => {
                // The view is put back below: it is taken out to be read beside the changing book.
                let service = service.clone();
                let wanted = self.settings.cleanup_finalizer;
                let amiss = service.is_held() != wanted && !service.leaving;
                // Always alone: it makes a new version. Before anything is given (KEP-980), ...
                if amiss && wanted {
                    return vec![finalize(key, &service, true)];
                }
                let mut writes = self.decide_ours(key, &service);
                // ... and no more once it is switched off, if nothing else is to do: the right to
                // may have gone with it.
                if amiss && writes.is_empty() {
                    writes.push(finalize(key, &service, false));
                }
                writes
            }
            None => self.decide_not_ours(key),
        }
    }

    fn decide_ours(&mut self, key: &ServiceKey, service: &ServiceView) -> Vec<Write> {
        let before = service.status_addresses();
        let request = Request {
            service: key,
            namespace_labels: self.namespaces.get(&key.namespace),
            service_labels: &service.labels,
            claim: &service.claim,
            families: &service.families,
            require_both: service.require_both,
            addresses: service.addresses.as_deref().unwrap_or_default(),
            unreadable: service.addresses.as_ref().err(),
            pools: &service.pools,
            before: &before,
        };
        let settlement = self.allocator.settle(&request, self.now);
        let mut writes = Vec::new();
        let mut have: Vec<IpAddr> = settlement.keep.clone();
        have.extend(settlement.take.iter().map(|pick| pick.address));
        have.sort_by_key(|ip| service.families.iter().position(|f| *f == Family::of(*ip)));
        for ip in &have {
            self.claim(*ip, key, service.claim.clone());
        }
        self.wanted
            .insert(key.clone(), have.iter().copied().collect());
        for ip in &have {
            let picked = settlement.take.iter().find(|pick| pick.address == *ip);
            let claim = vip_claim(key, &service.version.uid, &service.claim);
            writes.extend(self.hold(*ip, claim, picked.map(|pick| pick.pool.clone())));
        }
        self.allocations += u64::try_from(settlement.take.len()).unwrap_or(u64::MAX);
        let over = || {
            let asked = service.addresses.as_deref().unwrap_or_default();
            asked
                .iter()
                .copied()
                .filter(|ip| !have.contains(ip))
                .collect()
        };
        let refused = settlement.refusal.as_ref().map(|r| Refused {
            reason: r.reason(),
            over: over(),
        });
        self.note_refusal(key, refused);
        writes.extend(self.status(key, service, &have, &settlement));
        for ip in &settlement.give_up {
            writes.extend(self.reserve_or_let_go(*ip, key));
        }
        writes
    }

    fn decide_not_ours(&mut self, key: &ServiceKey) -> Vec<Write> {
        self.wanted.remove(key);
        self.note_refusal(key, None);
        let held: Vec<IpAddr> = self.allocator.held_by(key).collect();
        let mut writes = Vec::new();
        if let Some(service) = self.services.get(key)
            && let Some(condition) = service.condition()
        {
            // It was ours: what we wrote goes. What somebody else wrote since stays.
            let ours = !service.is_load_balancer
                || condition.status == "True"
                || service
                    .status_addresses()
                    .iter()
                    .all(|ip| held.contains(ip));
            writes.push(Write::PatchStatus(Box::new(StatusPatch {
                service: key.clone(),
                version: service.version.clone(),
                ingress: (ours && !service.ingress.is_empty()).then(Vec::new),
                others: others(service),
                condition: None,
                event: None,
            })));
        }
        for ip in held {
            writes.extend(self.reserve_or_let_go(ip, key));
        }
        let held = self.services.get(key).filter(|service| service.is_held());
        if let (Some(service), true) = (held, writes.is_empty()) {
            // Nothing of ours is left to clean up.
            writes.push(finalize(key, service, false));
        }
        writes
    }

    /// The write that makes the VirtualIP of `ip` carry `claim`, if it does not yet.
    fn hold(&mut self, ip: IpAddr, claim: VipClaim, picked_pool: Option<String>) -> Option<Write> {
        let Some(vip) = self.vips.get(&ip) else {
            let pool = picked_pool.or_else(|| self.pool_for(ip, None));
            let claims = vec![claim];
            let l2 = self.placed(ip, pool.as_deref(), &claims);
            return Some(Write::CreateVip(Box::new(VirtualIPSpec {
                address: ip.to_string(),
                pool,
                claims,
                l2,
            })));
        };
        let present = vip.spec.claim_of(&claim.namespace, &claim.name);
        // What the API server drops would be written again and again.
        let same = |present: &VipClaim| {
            *present == claim
                || (self.forgetful && without_policy(present) == without_policy(&claim))
        };
        if present.is_some_and(same) {
            return None;
        }
        let vip = vip.clone();
        let mut claims = vip.spec.claims.clone();
        match claims
            .iter_mut()
            .find(|c| c.namespace == claim.namespace && c.name == claim.name)
        {
            Some(present) => *present = claim,
            None => claims.push(claim),
        }
        Some(self.rewrite(ip, &vip, claims))
    }

    /// The write that takes `key`'s claim off the VirtualIP of `ip`. One that we made goes with
    /// its last claim, or rests first.
    fn let_go(&mut self, ip: IpAddr, key: &ServiceKey) -> Option<Write> {
        let recorded = self
            .vips
            .get(&ip)
            .filter(|vip| vip.spec.claim_of(&key.namespace, &key.name).is_some());
        let Some(vip) = recorded else {
            // Only decided, never written.
            self.release(ip, key);
            return None;
        };
        let vip = vip.clone();
        let mut claims = vip.spec.claims.clone();
        claims.retain(|c| c.namespace != key.namespace || c.name != key.name);
        self.drop_orphans(ip, &vip, &mut claims);
        if claims.is_empty() && vip.managed {
            if self.allocator.reuse_delay(ip).is_zero() {
                return Some(Write::DeleteVip {
                    ip,
                    version: vip.version,
                });
            }
            let mut spec = vip.spec;
            spec.claims = claims;
            spec.l2 = None;
            return Some(Write::PatchVip {
                ip,
                version: vip.version,
                spec: Box::new(spec),
                released: Some(self.release_by(key)),
            });
        }
        Some(self.rewrite(ip, &vip, claims))
    }

    /// As [`Core::let_go`], but on a VirtualIP that was made by hand a Service keeps its place: one
    /// that comes back, or is to have the address again, finds it.
    fn reserve_or_let_go(&mut self, ip: IpAddr, key: &ServiceKey) -> Option<Write> {
        let Some(vip) = self.vips.get(&ip).filter(|vip| !vip.managed).cloned() else {
            return self.let_go(ip, key);
        };
        let Some(claim) = vip.spec.claim_of(&key.namespace, &key.name) else {
            return self.let_go(ip, key);
        };
        self.claim(ip, key, Claim::default());
        let kept = VipClaim {
            namespace: claim.namespace.clone(),
            name: claim.name.clone(),
            ..VipClaim::default()
        };
        if *claim == kept {
            return None;
        }
        let mut claims = vip.spec.claims.clone();
        for claim in &mut claims {
            if claim.namespace == key.namespace && claim.name == key.name {
                claim.clone_from(&kept);
            }
        }
        Some(self.rewrite(ip, &vip, claims))
    }

    /// The patch that gives a VirtualIP these claims, and the pool and placement that it should
    /// have with them. The claims of all sharers are brought up to date together: whoever joins was
    /// admitted on the terms that the others have now, not on those that were written last.
    fn rewrite(&mut self, ip: IpAddr, vip: &VipView, mut claims: Vec<VipClaim>) -> Write {
        self.drop_orphans(ip, vip, &mut claims);
        for claim in &mut claims {
            let key = ServiceKey::new(&claim.namespace, &claim.name);
            let terms = self.allocator.holding(ip).and_then(|h| h.claims.get(&key));
            if let (true, Some(service), Some(terms)) =
                (self.wants(&key, ip), self.ours(&key), terms)
            {
                *claim = vip_claim(&key, &service.version.uid, terms);
            }
        }
        let mut spec = vip.spec.clone();
        spec.claims = claims;
        self.refresh(ip, &mut spec);
        Write::PatchVip {
            ip,
            version: vip.version.clone(),
            spec: Box::new(spec),
            released: None,
        }
    }

    fn release_by(&self, key: &ServiceKey) -> Release {
        let millis = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        Release {
            at: std::time::Duration::from_millis(millis),
            by: Some(key.clone()),
        }
    }

    /// Takes off the claims of Services that are gone or not ours any more, or were so when the
    /// book last looked; on a VirtualIP made by hand they are reservations.
    fn drop_orphans(&self, ip: IpAddr, vip: &VipView, claims: &mut Vec<VipClaim>) {
        if !vip.managed {
            return;
        }
        let known = |key: &ServiceKey| {
            let claim = self.allocator.holding(ip).and_then(|h| h.claims.get(key));
            // One that is not in the book yet is the one that is being added.
            claim.is_none_or(|claim| claim.backend != Backend::Unknown)
        };
        claims.retain(|c| {
            let key = ServiceKey::new(&c.namespace, &c.name);
            self.ours(&key).is_some() && known(&key)
        });
    }

    fn note_refusal(&mut self, key: &ServiceKey, now: Option<Refused>) {
        let before = self.refused.get(key);
        if before == now.as_ref() {
            return;
        }
        if let Some(now) = &now
            && before.map(|r| r.reason) != Some(now.reason)
        {
            self.refusals.push(now.reason);
        }
        for ip in self.refused.remove(key).into_iter().flat_map(|r| r.over) {
            if let Some(waiting) = self.awaited.get_mut(&ip) {
                waiting.remove(key);
                if waiting.is_empty() {
                    self.awaited.remove(&ip);
                }
            }
        }
        if let Some(now) = now {
            for ip in &now.over {
                self.awaited.entry(*ip).or_default().insert(key.clone());
            }
            self.refused.insert(key.clone(), now);
        }
    }

    /// The status write, if the status is not right already.
    fn status(
        &self,
        key: &ServiceKey,
        service: &ServiceView,
        have: &[IpAddr],
        settlement: &Settlement,
    ) -> Option<Write> {
        let ingress: Vec<LoadBalancerIngress> = have
            .iter()
            .map(|ip| LoadBalancerIngress {
                ip: Some(ip.to_string()),
                ip_mode: Some("VIP".to_owned()),
                ..LoadBalancerIngress::default()
            })
            .collect();
        let (met, reason, message) = verdict(service, have, settlement, |ip| {
            let picked = settlement.take.iter().find(|pick| pick.address == ip);
            let recorded = self.vips.get(&ip).and_then(|vip| vip.spec.pool.clone());
            picked
                .map(|pick| pick.pool.clone())
                .or_else(|| self.pool_for(ip, recorded))
        });
        let present = service.condition();
        let told = present.is_some_and(|c| {
            (c.status == "True") == met && c.reason == reason.as_str() && c.message == message
        });
        if told && service.ingress == ingress {
            return None;
        }
        let since = present
            .filter(|c| (c.status == "True") == met)
            .map(|c| c.last_transition_time.clone());
        Some(Write::PatchStatus(Box::new(StatusPatch {
            service: key.clone(),
            version: service.version.clone(),
            ingress: (service.ingress != ingress).then_some(ingress),
            others: others(service),
            event: (!told).then(|| (reason, message.clone())),
            condition: Some(OurCondition {
                met,
                reason,
                message,
                since,
            }),
        })))
    }
}

fn without_policy(claim: &VipClaim) -> VipClaim {
    VipClaim {
        external_traffic_policy: None,
        selector: BTreeMap::new(),
        ..claim.clone()
    }
}

/// The write that adds the cleanup finalizer, or takes it off.
fn finalize(key: &ServiceKey, service: &ServiceView, on: bool) -> Write {
    let mut finalizers = service.finalizers.clone();
    finalizers.retain(|name| name != FINALIZER_CLEANUP);
    if on {
        finalizers.push(FINALIZER_CLEANUP.to_owned());
    }
    Write::PatchFinalizers {
        service: key.clone(),
        version: service.version.clone(),
        finalizers,
    }
}

fn others(service: &ServiceView) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let ours = |type_: &str| type_ == CONDITION_LOAD_BALANCER;
    service
        .conditions
        .iter()
        .filter(|c| !ours(&c.type_))
        .cloned()
        .collect()
}

/// Whether the request is met, the reason, and the message: what it has, and what it has not.
fn verdict(
    service: &ServiceView,
    have: &[IpAddr],
    settlement: &Settlement,
    pool_of: impl Fn(IpAddr) -> Option<String>,
) -> (bool, AllocationReason, String) {
    let addresses = have
        .iter()
        .map(|ip| match pool_of(*ip) {
            Some(pool) => format!("{ip} from pool {pool}"),
            None => ip.to_string(),
        })
        .collect::<Vec<_>>()
        .join(", ");
    let Some(refusal) = &settlement.refusal else {
        return (true, AllocationReason::Allocated, addresses);
    };
    let reason = refusal.reason();
    if have.is_empty() {
        return (false, reason, refusal.to_string());
    }
    // Two families preferred, one to be had, and nothing else amiss: that is what the policy
    // allows. The message tells.
    let missing = service
        .families
        .iter()
        .any(|f| !have.iter().any(|ip| Family::of(*ip) == *f));
    let by_rule = matches!(refusal, Refusal::NoneFits { .. });
    if missing && by_rule && !service.require_both {
        return (
            true,
            AllocationReason::Allocated,
            format!("{addresses}; {refusal}"),
        );
    }
    (false, reason, format!("keeps {addresses}; {refusal}"))
}
