//! One VirtualIP: its pool and its place on the local segment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bellrock_api::selectors::{allows, any_matches, matches};
use bellrock_api::{Claim as VipClaim, L2Placement, VirtualIPSpec};

use super::{Core, Write};
use crate::ipam::ServiceKey;
use crate::placement::Candidate;
use crate::view::AdvertisementView;

impl Core {
    /// The write that gives a VirtualIP the pool and the placement that it should have, if it
    /// has others. One that nobody claims is left as it was made.
    pub(super) fn decide_vip(&mut self, ip: IpAddr) -> Vec<Write> {
        let Some(vip) = self.vips.get(&ip).cloned() else {
            return Vec::new();
        };
        if vip.spec.claims.is_empty() {
            let unused = self
                .allocator
                .holding(ip)
                .is_none_or(|h| h.claims.is_empty());
            // One of ours from which somebody took the claims goes like one that is released.
            let delete = Write::DeleteVip {
                ip,
                version: vip.version,
            };
            let rests = vip.released.is_some() && self.allocator.rest(ip).is_some();
            return if vip.managed && unused && !rests {
                vec![delete]
            } else {
                Vec::new()
            };
        }
        let mut spec = vip.spec.clone();
        self.refresh(ip, &mut spec);
        if spec == vip.spec {
            return Vec::new();
        }
        vec![Write::PatchVip {
            ip,
            version: vip.version,
            spec: Box::new(spec),
            released: None,
        }]
    }

    /// Brings pool and placement of `spec` up to date.
    pub(super) fn refresh(&mut self, ip: IpAddr, spec: &mut VirtualIPSpec) {
        spec.pool = self.pool_for(ip, spec.pool.clone());
        spec.l2 = self.placed(ip, spec.pool.as_deref(), &spec.claims);
    }

    /// The pool that an address belongs to: the one recorded as long as it holds the address,
    /// else one that does (a pool was renamed, or split), else the one recorded.
    pub(super) fn pool_for(&self, ip: IpAddr, recorded: Option<String>) -> Option<String> {
        let still = recorded
            .as_ref()
            .and_then(|name| self.allocator.pool(name))
            .is_some_and(|pool| pool.contains(ip));
        if still {
            return recorded;
        }
        self.allocator
            .pools_of(ip)
            .next()
            .map(|pool| pool.name.clone())
            .or(recorded)
    }

    /// Where `ip` should live; `None` when no L2Advertisement announces it from any node.
    pub(super) fn placed(
        &mut self,
        ip: IpAddr,
        pool: Option<&str>,
        claims: &[VipClaim],
    ) -> Option<L2Placement> {
        let chosen = if self.is_selective() {
            let candidates = self.candidates(pool, claims);
            self.placement.place(ip, &candidates)
        } else {
            let key = pool.map(str::to_owned);
            if !self.candidates.contains_key(&key) {
                let candidates = self.candidates(pool, claims);
                self.candidates.insert(key.clone(), candidates);
            }
            let candidates = self
                .candidates
                .get(&key)
                .map(Vec::as_slice)
                .unwrap_or_default();
            self.placement.place(ip, candidates)
        };
        chosen.map(|choice| L2Placement {
            node: choice.node.clone(),
            successors: choice.successors.clone(),
        })
    }

    /// Whether the labels of Services decide who announces.
    pub(super) fn is_selective(&self) -> bool {
        let mut ads = self.advertisements.values();
        ads.any(|ad| !ad.spec.service_selectors.is_empty())
    }

    /// The nodes that an L2Advertisement lets announce an address of `pool` for one of `claims`.
    fn candidates(&self, pool: Option<&str>, claims: &[VipClaim]) -> Vec<Candidate> {
        let covering: Vec<&AdvertisementView> = self
            .advertisements
            .values()
            .filter(|ad| self.covers_pool(ad, pool) && self.covers_any(ad, claims))
            .collect();
        let mut weights: BTreeMap<&String, u32> = BTreeMap::new();
        for (name, node) in &self.nodes {
            if node.unusable || (node.excluded && !self.settings.ignore_exclude_label) {
                continue;
            }
            for ad in &covering {
                if !allows(&ad.spec.node_selectors, &node.labels) {
                    continue;
                }
                let preferred = ad.spec.preferred_node_selectors.iter();
                let weight: u32 = preferred
                    .filter(|p| matches(&p.preference, &node.labels))
                    .map(|p| u32::try_from(p.weight).unwrap_or(0))
                    .sum();
                *weights.entry(name).or_default() += weight;
            }
        }
        weights
            .into_iter()
            .map(|(node, weight)| Candidate {
                node: node.clone(),
                weight,
            })
            .collect()
    }

    fn covers_pool(&self, ad: &AdvertisementView, pool: Option<&str>) -> bool {
        let spec = &ad.spec;
        if spec.ip_address_pools.is_empty() && spec.ip_address_pool_selectors.is_empty() {
            return true;
        }
        let Some(pool) = pool else {
            return false;
        };
        spec.ip_address_pools.iter().any(|name| name == pool)
            || self
                .pools
                .labels(pool)
                .is_some_and(|labels| any_matches(&spec.ip_address_pool_selectors, labels))
    }

    fn covers_any(&self, ad: &AdvertisementView, claims: &[VipClaim]) -> bool {
        ad.spec.service_selectors.is_empty()
            || claims.iter().any(|claim| {
                self.services
                    .get(&ServiceKey::new(&claim.namespace, &claim.name))
                    .is_some_and(|s| any_matches(&ad.spec.service_selectors, &s.labels))
            })
    }
}
