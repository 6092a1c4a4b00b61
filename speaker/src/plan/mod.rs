//! The decision of a speaker, pure: from the snapshot to what this node
//! forwards, answers for on the segment and announces by BGP, with a reason
//! for every "no".
//!
//! `bellrock why` runs the same functions for every node, on a live cluster
//! or on a dump of one.

mod bgp;
mod endpoints;
mod node;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_bgp::Attributes;
use bellrock_forward as forward;
use ipnet::IpNet;

use crate::cluster::{Cluster, Service, TrafficPolicy, VirtualIp};
pub use bgp::{merge_services, peers_of};
pub use endpoints::{Usable, usable};
pub use node::{forward_node, unfit};

/// How an address reaches the outside world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// ARP on the segment.
    L2,
    /// Routes to BGP peers.
    Bgp,
}

/// Settings of the speaker that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Announce although the node carries the label
    /// `node.kubernetes.io/exclude-from-external-load-balancers`. For
    /// clusters of one node, where kubeadm puts it on that one.
    pub ignore_exclude_label: bool,
    /// Pod networks beside those of `Node.spec.podCIDRs`.
    pub pod_networks: Vec<IpNet>,
    /// Addresses that somebody uses: gateways, the API server. Those of nodes
    /// and BGP peers are known anyway.
    pub protected: BTreeSet<IpAddr>,
}

/// What one Service means for one node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServicePlan {
    /// What to forward; nothing for a Service without an address of ours.
    pub forward: Option<forward::Service>,
    /// Each of its addresses on the segment.
    pub l2: BTreeMap<IpAddr, L2Intent>,
    /// Routes by BGPPeer name.
    pub routes: BTreeMap<String, BTreeMap<IpNet, Attributes>>,
    /// A line for each address and way.
    pub verdicts: Vec<Verdict>,
}

/// What a node does for an address on the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L2Intent {
    /// May answer, if the ownership protocol makes it the owner.
    pub eligible: bool,
    /// Only on these interfaces; `None`: on all.
    pub interfaces: Option<BTreeSet<String>>,
}

/// The outcome for one address and way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The address; `None` where the Service has none.
    pub address: Option<IpAddr>,
    /// By which protocol.
    pub way: Way,
    /// `None`: this node may announce it.
    pub refused: Option<Reason>,
    /// The BGPPeers that it is meant for.
    pub peers: BTreeSet<String>,
    /// What the reason's own sentence cannot know.
    pub detail: Option<String>,
}

impl Verdict {
    fn new(address: Option<IpAddr>, way: Way, refused: Option<Reason>) -> Self {
        Self {
            address,
            way,
            refused,
            peers: BTreeSet::new(),
            detail: None,
        }
    }
}

/// Plans one Service for node `me`.
pub fn plan_service(
    cluster: &Cluster,
    me: &str,
    key: &forward::ServiceKey,
    settings: &Settings,
    forwarding_refused: bool,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let Some(service) = cluster.services.get(key) else {
        return plan;
    };
    let addresses: Vec<_> = cluster.addresses(key).collect();
    if addresses.is_empty() {
        for way in [Way::L2, Way::Bgp] {
            plan.verdicts
                .push(Verdict::new(None, way, Some(Reason::NoVirtualIP)));
        }
        return plan;
    }
    let usable = usable(cluster, key, service, me);
    let free = |address: &IpAddr| !taken(cluster, settings, *address);
    if service.source_ranges.is_some() {
        let addresses = addresses
            .iter()
            .map(|(address, _)| *address)
            .filter(free)
            .collect();
        plan.forward = Some(forward_service(service, addresses, &usable));
    }

    for (address, vip) in addresses {
        let common = unfit(cluster, me, settings)
            .or(taken(cluster, settings, address).then_some(Reason::AddressTaken))
            .or(service
                .source_ranges
                .is_none()
                .then_some(Reason::SourceRangesInvalid))
            .or_else(|| lacks_endpoint(service, &usable, address))
            .or(forwarding_refused.then_some(Reason::ForwardingRefused));
        plan_l2(cluster, me, service, (address, vip), common, &mut plan);
        let weight = match service.policy {
            TrafficPolicy::Local => Some(usable.count_here(address.is_ipv4())),
            // Every node passes on to every endpoint: none is worth more.
            TrafficPolicy::Cluster => None,
        };
        let found = bgp::Found {
            service,
            address,
            vip,
            weight,
        };
        bgp::plan(cluster, me, &found, common, &mut plan);
    }
    plan
}

/// Whether somebody uses the address already whom announcing it, or dropping
/// what is sent to it, would cut off.
fn taken(cluster: &Cluster, settings: &Settings, address: IpAddr) -> bool {
    settings.protected.contains(&address)
        || cluster
            .nodes
            .values()
            .any(|node| node.addresses.contains(&address))
        || cluster.peers.values().any(|peer| peer.address == address)
}

/// Why no endpoint takes this address's traffic on this node.
///
/// Under policy Local the node must have a *ready* endpoint: while only
/// terminating ones remain they are still served, and no longer announced
/// (KEP-1669). Under policy Cluster any node can pass traffic on.
fn lacks_endpoint(service: &Service, usable: &Usable, address: IpAddr) -> Option<Reason> {
    let v4 = address.is_ipv4();
    match service.policy {
        TrafficPolicy::Cluster if usable.anywhere(v4) => None,
        TrafficPolicy::Cluster => Some(Reason::NoEndpoint),
        TrafficPolicy::Local if usable.ready_here(v4) => None,
        TrafficPolicy::Local if usable.anywhere(v4) => Some(Reason::NoLocalEndpoint),
        TrafficPolicy::Local => Some(Reason::NoEndpoint),
    }
}

fn forward_service(
    service: &Service,
    addresses: BTreeSet<IpAddr>,
    usable: &Usable,
) -> forward::Service {
    forward::Service {
        addresses,
        ports: service
            .ports
            .iter()
            .zip(&usable.ports)
            .map(|(port, usable)| forward::Port {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                node_port: port.node_port,
                endpoints: usable.cluster.clone(),
                local_endpoints: usable.local.clone(),
            })
            .collect(),
        policy: match service.policy {
            TrafficPolicy::Cluster => forward::ExternalPolicy::Cluster,
            TrafficPolicy::Local => forward::ExternalPolicy::Local,
        },
        affinity: service.affinity,
        source_ranges: service.source_ranges.clone().unwrap_or_default(),
    }
}

fn plan_l2(
    cluster: &Cluster,
    me: &str,
    service: &Service,
    (address, vip): (IpAddr, &VirtualIp),
    common: Option<Reason>,
    plan: &mut ServicePlan,
) {
    let family = (!address.is_ipv4()).then_some(Reason::FamilyUnsupported);
    let covering: Vec<_> = cluster
        .l2_advertisements
        .values()
        .filter(|ad| scope::covers(&ad.scope, cluster, vip, service))
        .collect();
    let here: Vec<_> = covering
        .iter()
        .filter(|ad| scope::selects(&ad.scope, cluster, me))
        .collect();
    let refused = family
        .or(covering.is_empty().then_some(Reason::NoAdvertisement))
        .or(here.is_empty().then_some(Reason::NodeNotSelected))
        .or(common);
    let interfaces = if here.iter().any(|ad| ad.interfaces.is_empty()) {
        None
    } else {
        Some(
            here.iter()
                .flat_map(|ad| ad.interfaces.iter().cloned())
                .collect(),
        )
    };
    plan.l2.insert(
        address,
        L2Intent {
            eligible: refused.is_none(),
            interfaces,
        },
    );
    plan.verdicts
        .push(Verdict::new(Some(address), Way::L2, refused));
}

#[cfg(test)]
mod tests;
