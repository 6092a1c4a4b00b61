//! What there is to say of an address that no Service has: whose it was, for
//! whom it is kept, and whether a Service may get it at all.

use std::net::IpAddr;

use bellrock_api::annotations::{CONDITION_ACCEPTED, RELEASED_AT, RELEASED_BY};
use bellrock_api::{AddressRange, IPAddressPool, VirtualIP};
use bellrock_controller::{MANAGED_BY_LABEL, MANAGED_BY_VALUE};
use bellrock_forward::ServiceKey;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::dump::Dump;

/// An address that no VirtualIP records, or one that nobody claims.
pub(super) fn unclaimed(dump: &Dump, address: IpAddr) -> String {
    match record(dump, address) {
        Some(vip) if managed(vip) => released(dump, address, vip),
        Some(_) => format!("{address} is reserved by a VirtualIP that no Service claims"),
        None => unrecorded(dump, address),
    }
}

/// An address that is claimed for a Service that is not there.
pub(super) fn claimed_ahead(dump: &Dump, address: IpAddr, key: &ServiceKey) -> String {
    let ServiceKey { namespace, name } = key;
    if record(dump, address).is_some_and(managed) {
        format!(
            "{address} was given to {namespace}/{name}, and there is no such Service any more: \
             the controller releases it when it sees that"
        )
    } else {
        format!(
            "{address} is reserved for {namespace}/{name} by its VirtualIP, and there is no such \
             Service now"
        )
    }
}

fn record(dump: &Dump, address: IpAddr) -> Option<&VirtualIP> {
    dump.virtual_ips
        .iter()
        .find(|vip| vip.spec.ip() == Ok(address))
}

/// Whether the controller made it, and deletes it when nobody holds it.
fn managed(vip: &VirtualIP) -> bool {
    let label = vip.labels().get(MANAGED_BY_LABEL);
    label.is_some_and(|value| value == MANAGED_BY_VALUE)
}

fn released(dump: &Dump, address: IpAddr, vip: &VirtualIP) -> String {
    let annotation = |name: &str| vip.annotations().get(name);
    let at: Option<Timestamp> = annotation(RELEASED_AT).and_then(|text| text.parse().ok());
    let Some(at) = at else {
        return format!("{address} has a VirtualIP that no Service claims: it is about to be free");
    };
    let by = annotation(RELEASED_BY).map_or("its last Service", String::as_str);
    let delay = pools_with(dump, address).map(|pool| pool.spec.reuse_delay.as_std());
    let until = SignedDuration::try_from(delay.max().unwrap_or_default())
        .ok()
        .and_then(|delay| at.checked_add(delay).ok())
        .unwrap_or(Timestamp::MAX);
    if until.as_second() < dump.moment {
        format!("{address} has rested since {by} released it at {at:.0}: it is about to be free")
    } else {
        format!(
            "{address} rests until {until:.0}: {by} released it at {at:.0}, and nobody else may \
             have it before"
        )
    }
}

fn unrecorded(dump: &Dump, address: IpAddr) -> String {
    if let Some(node) = dump.nodes.iter().find(|node| has(node, address)) {
        let node = node.name_any();
        return format!("{address} is an address of node {node}: no Service gets it");
    }
    let accepted = |pool: &&IPAddressPool| verdict(pool).is_some_and(|c| c.status == "True");
    // Of pools that overlap, one is accepted, and counts.
    let pool = pools_with(dump, address)
        .find(accepted)
        .or_else(|| pools_with(dump, address).next());
    let Some(pool) = pool else {
        return format!("{address} is in no IPAddressPool and no Service has it");
    };
    let name = pool.name_any();
    match verdict(pool) {
        None => format!(
            "{address} is in pool {name}, which the controller has not looked at: is it running?"
        ),
        Some(condition) if condition.status != "True" => format!(
            "{address} is in pool {name}, which is not accepted as it is written ({}: {})",
            condition.reason, condition.message
        ),
        Some(_) if pool.spec.avoid_buggy_ips && is_buggy(address) => format!(
            "{address} ends in .0 or .255: no Service gets it, pool {name} has avoidBuggyIPs"
        ),
        Some(_) => format!("{address} is free: no Service has it (pool {name})"),
    }
}

fn has(node: &Node, address: IpAddr) -> bool {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"))
        .any(|a| a.address.parse() == Ok(address))
}

fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets(), [_, _, _, 0 | 255]))
}

/// The pools that hold an address, as they are written.
fn pools_with(dump: &Dump, address: IpAddr) -> impl Iterator<Item = &IPAddressPool> {
    dump.pools.iter().filter(move |pool| {
        let entries = pool.spec.addresses.iter();
        entries
            .filter_map(|entry| entry.parse::<AddressRange>().ok())
            .any(|range| range.contains(address))
    })
}

/// What the controller says of a pool as it is written now.
fn verdict(pool: &IPAddressPool) -> Option<&Condition> {
    let conditions = pool.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == CONDITION_ACCEPTED)
        .find(|condition| condition.observed_generation == pool.metadata.generation)
}
