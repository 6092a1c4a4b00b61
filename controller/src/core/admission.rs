//! What only other objects tell about an object of ours: the decision of the webhook, pure.
//!
//! What one object tells by itself is in the schemas, and the API server looks at it without us.
//! Nothing here is needed for safety: a pool that overlaps is not put into force, whoever lets it
//! in, and an edit never stops what runs. It is here so that a mistake is refused at the moment at
//! which it is made.

use std::net::IpAddr;

use bellrock_api::{AddressRange, IPAddressPoolSpec};

use super::Core;
use crate::ipam::Pool;
use crate::pools;

/// Addresses that a refusal names before it says "and N more".
const MAX_NAMED: usize = 10;

/// What is about to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// An IPAddressPool: what it said and what it is to say, either absent.
    Pool {
        /// Its name.
        name: String,
        /// Before.
        old: Option<Box<IPAddressPoolSpec>>,
        /// After; `None` when it is deleted.
        new: Option<Box<IPAddressPoolSpec>>,
    },
    /// An advertisement, which is to name these pools.
    Advertisement {
        /// The pools.
        pools: Vec<String>,
    },
}

/// What is to be answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Why it may not be written; empty if it may.
    pub refusals: Vec<String>,
    /// What looks wrong, though it may be written.
    pub warnings: Vec<String>,
}

impl Core {
    /// Judges what is about to be written, by what is known of the other objects; `None` while not
    /// everything has been read. Of a pool that is edited only new ranges are looked at, so that
    /// one that was wrong before can be mended bit by bit.
    #[must_use]
    pub fn judge(&self, subject: &Subject, service_cidrs: &[AddressRange]) -> Option<Judgement> {
        if !self.is_synced() {
            return None;
        }
        let mut judgement = Judgement::default();
        match subject {
            Subject::Advertisement { pools } => {
                let unknown = pools.iter().filter(|name| self.pools.view(name).is_none());
                judgement.warnings.extend(unknown.map(|name| {
                    format!("there is no IPAddressPool {name}: nothing of it is announced until there is")
                }));
            }
            Subject::Pool { name, old, new } => {
                // What did not parse was never in force, and holds no address.
                let old = old.as_ref().and_then(|old| pools::parse(name, old).ok());
                let new = new.as_ref().map(|new| pools::parse(name, new)).transpose();
                match new {
                    Err((_, message)) => judgement.refusals.push(message),
                    Ok(new) => {
                        if let Some(new) = &new {
                            self.judge_ranges(new, old.as_ref(), service_cidrs, &mut judgement);
                        }
                        judgement
                            .refusals
                            .extend(self.orphans(name, old.as_ref(), new.as_ref()));
                    }
                }
            }
        }
        Some(judgement)
    }

    fn judge_ranges(
        &self,
        new: &Pool,
        old: Option<&Pool>,
        service_cidrs: &[AddressRange],
        judgement: &mut Judgement,
    ) {
        let had = |range: &AddressRange| {
            old.is_some_and(|old| {
                let mut ranges = old.ranges.iter();
                ranges.any(|o| o.contains(range.start) && o.contains(range.end))
            })
        };
        for range in new.ranges.iter().filter(|range| !had(range)) {
            for (name, view) in self.pools.views().filter(|(name, _)| **name != new.name) {
                let other = view
                    .spec
                    .as_ref()
                    .ok()
                    .and_then(|s| pools::parse(name, s).ok());
                let ranges = other.iter().flat_map(|pool| &pool.ranges);
                for other in ranges.filter(|other| other.overlaps(range)) {
                    judgement.refusals.push(format!(
                        "{range} overlaps with {other} of pool {name}: an address may belong to one pool only"
                    ));
                }
            }
            for (name, node) in &self.nodes {
                for ip in node.addresses.iter().filter(|ip| range.contains(**ip)) {
                    judgement.refusals.push(format!(
                        "{range} contains {ip}, which is an address of node {name}: leave it out, for example by two ranges"
                    ));
                }
                for pods in node.pod_cidrs.iter().filter(|pods| pods.overlaps(range)) {
                    judgement.refusals.push(format!(
                        "{range} overlaps with {pods}, the pods of node {name}"
                    ));
                }
            }
            for cidr in service_cidrs.iter().filter(|cidr| cidr.overlaps(range)) {
                judgement.refusals.push(format!(
                    "{range} overlaps with {cidr}, the cluster's own ServiceCIDR"
                ));
            }
        }
    }

    /// The addresses in use that would lie in no pool any more.
    fn orphans(&self, name: &str, old: Option<&Pool>, new: Option<&Pool>) -> Option<String> {
        let old = old?;
        let lost = |ip: IpAddr| {
            let elsewhere = |pool: &Pool| pool.name != name && pool.contains(ip);
            old.contains(ip)
                && !new.is_some_and(|new| new.contains(ip))
                && !self.pools.in_force().any(elsewhere)
        };
        let mut count = 0;
        let mut named = Vec::new();
        for (ip, vip) in &self.vips {
            if vip.spec.claims.is_empty() || !lost(*ip) {
                continue;
            }
            count += 1;
            if named.len() < MAX_NAMED {
                let holders: Vec<String> = vip
                    .spec
                    .claims
                    .iter()
                    .map(|claim| format!("{}/{}", claim.namespace, claim.name))
                    .collect();
                named.push(format!("{ip} ({})", holders.join(", ")));
            }
        }
        let more = match count - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (count > 0).then(|| {
            format!(
                "in use, and in no pool after this: {}{more}; move or delete these Services first",
                named.join(", ")
            )
        })
    }
}
