//! What the pools should say of themselves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bellrock_api::annotations::CONDITION_ACCEPTED;
use bellrock_api::{IPAddressPoolStatus, PoolReason};

use super::Core;
use crate::ipam::Family;
use crate::view::Version;

/// A pool whose status is not right.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolPatch {
    /// The pool.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Its generation.
    pub generation: Option<i64>,
    /// Counters; the conditions in it are those of others.
    pub status: IPAddressPoolStatus,
    /// Whether it is in force as written.
    pub accepted: bool,
    /// Why.
    pub reason: PoolReason,
    /// What to do.
    pub message: String,
    /// Since when, if `accepted` does not change.
    pub since: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    /// True when the condition is news.
    pub news: bool,
}

/// Addresses that a message names before it says "and N more".
const MAX_NAMED: usize = 10;

impl Core {
    /// The pools whose status must be written.
    #[must_use]
    pub fn pool_patches(&self) -> Vec<PoolPatch> {
        let mut outside: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for (ip, vip) in &self.vips {
            if let Some(pool) = vip.spec.pool.as_deref()
                && vip.at_rest().is_none()
                && !self.allocator.pool(pool).is_some_and(|p| p.contains(*ip))
            {
                outside.entry(pool).or_default().push(*ip);
            }
        }
        let none = Vec::new();
        self.pools
            .views()
            .filter_map(|(name, _)| {
                self.pool_patch(name, outside.get(name.as_str()).unwrap_or(&none))
            })
            .collect()
    }

    fn pool_patch(&self, name: &str, outside: &[IpAddr]) -> Option<PoolPatch> {
        let view = self.pools.view(name)?;
        let verdict = self.pools.verdict(name)?;
        let (mut reason, mut message) = (verdict.reason, verdict.message.clone());
        if reason == PoolReason::Accepted && !outside.is_empty() {
            let named: Vec<String> = outside
                .iter()
                .take(MAX_NAMED)
                .map(ToString::to_string)
                .collect();
            let more = outside.len().saturating_sub(MAX_NAMED);
            reason = PoolReason::AddressesInUseOutside;
            message = format!("in use, but not in the pool any more: {}", named.join(", "));
            if more > 0 {
                message = format!("{message} and {more} more");
            }
        }
        let accepted = verdict.reason == PoolReason::Accepted;
        if !accepted {
            let rest = if verdict.earlier_in_force {
                "the version before stays in force"
            } else {
                "the pool is not in force"
            };
            message = format!("{message}; {rest}");
        }
        let count = |family| self.allocator.usage(name, family).unwrap_or_default();
        let (v4, v6) = (count(Family::V4), count(Family::V6));
        let small = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
        let present = view
            .status
            .conditions
            .iter()
            .find(|c| c.type_ == CONDITION_ACCEPTED);
        let told = present.is_some_and(|c| {
            (c.status == "True") == accepted
                && c.reason == reason.as_str()
                && c.message == message
                && c.observed_generation == view.generation
        });
        let conditions = view
            .status
            .conditions
            .iter()
            .filter(|c| c.type_ != CONDITION_ACCEPTED);
        let status = IPAddressPoolStatus {
            assigned_ipv4: small(v4.assigned),
            assigned_ipv6: small(v6.assigned),
            available_ipv4: small(v4.available),
            available_ipv6: small(v6.available),
            conditions: conditions.cloned().collect(),
        };
        let counted = IPAddressPoolStatus {
            conditions: view.status.conditions.clone(),
            ..status.clone()
        };
        if told && counted == view.status {
            return None;
        }
        let same_reason =
            present.is_some_and(|c| c.reason == reason.as_str() && c.message == message);
        Some(PoolPatch {
            name: name.to_owned(),
            version: view.version.clone(),
            generation: view.generation,
            status,
            accepted,
            reason,
            message,
            since: present
                .filter(|c| (c.status == "True") == accepted)
                .map(|c| c.last_transition_time.clone()),
            news: !same_reason,
        })
    }
}
