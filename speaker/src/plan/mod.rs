//! The decision of a speaker, pure: from the snapshot to what this node
//! forwards, answers for on the segment and announces by BGP, with a reason
//! for every "no".
//!
//! `bellrock why` runs the same functions for every node, on a live cluster
//! or on a dump of one.

pub mod bfd;
mod bgp;
mod endpoints;
mod health;
mod node;
mod scope;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_bgp::Attributes;
use bellrock_forward as forward;
use ipnet::IpNet;

use crate::cluster::{Cluster, Service, ServiceKind, Slice, TrafficPolicy, VirtualIp};
pub use bgp::{merge_services, peers_of};
pub use endpoints::{Usable, usable};
pub use health::HealthCheck;
pub use node::{elsewhere, forward_node, node_port_addresses, unfit};
pub use settings::{Forwarding, Settings, Surroundings};

/// How an address reaches the outside world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// ARP on the segment.
    L2,
    /// Routes to BGP peers.
    Bgp,
}

/// What one Service means for one node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServicePlan {
    /// What to forward. Of a Service without an address of ours only its node
    /// ports, where kube-proxy does not forward them.
    pub forward: Option<forward::Service>,
    /// What its health check port says, where kube-proxy does not serve it.
    pub health: Option<HealthCheck>,
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
    /// The node is about to go: it may hold what it holds until another node
    /// does.
    pub yields: bool,
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
    let usable = usable(cluster, key, service, me, &settings.silent);
    plan.health = health::check(service, &usable, settings);
    let addresses: Vec<_> = match service.kind {
        ServiceKind::LoadBalancer => cluster.addresses(key).collect(),
        ServiceKind::NodePort => Vec::new(),
    };
    if addresses.is_empty() {
        let has_node_ports = service.ports.iter().any(|port| port.node_port.is_some());
        if has_node_ports && settings.replaces_kube_proxy() {
            plan.forward = Some(forward_service(service, BTreeSet::new(), &usable));
        }
        if service.kind == ServiceKind::LoadBalancer {
            for way in [Way::L2, Way::Bgp] {
                plan.verdicts
                    .push(Verdict::new(None, way, Some(Reason::NoVirtualIP)));
            }
        }
        return plan;
    }
    let free = |address: &IpAddr| !taken(cluster, settings, *address);
    if service.source_ranges.is_some() && settings.forwarding == Forwarding::Nftables {
        let addresses = addresses
            .iter()
            .map(|(address, _)| *address)
            .filter(free)
            .collect();
        plan.forward = Some(forward_service(service, addresses, &usable));
    }

    for (address, vip) in addresses {
        let leaves = unfit(cluster, me, settings);
        let rest = taken(cluster, settings, address)
            .then_some(Reason::AddressTaken)
            .or(service
                .source_ranges
                .is_none()
                .then_some(Reason::SourceRangesInvalid))
            .or_else(|| lacks_endpoint(service, &usable, address))
            .or(forwarding_refused.then_some(Reason::ForwardingRefused));
        let common = leaves.or(rest);
        // What only concerns the segment.
        let answered = settings.surroundings.answered.contains(&address);
        let on_segment = common.or(answered.then_some(Reason::AnsweredByKernel));
        // Who is drained serves on as well as before, until another does.
        let drained = matches!(
            leaves,
            Some(Reason::NodeBeingDeleted | Reason::NodeOutOfService | Reason::NodeDrained)
        );
        let yields = drained && rest.is_none() && !answered;
        let place = Place {
            address,
            vip,
            elsewhere: elsewhere(cluster, settings, address),
        };
        plan_l2(
            cluster,
            me,
            service,
            &place,
            (on_segment, yields),
            &mut plan,
        );
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
    if cluster.slices.get(key).is_some_and(only_names) {
        for verdict in &mut plan.verdicts {
            if verdict.refused == Some(Reason::NoEndpoint) {
                verdict.detail = Some(ONLY_NAMES.to_owned());
            }
        }
    }
    plan
}

const ELSEWHERE: &str = "it lies in a subnet of other nodes";
const ONLY_NAMES: &str = "its EndpointSlices hold names (addressType FQDN), not addresses";

fn only_names(slices: &BTreeMap<String, Slice>) -> bool {
    slices.values().any(|slice| slice.names) && slices.values().all(|s| s.endpoints.is_empty())
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

/// An address, and whether it lies on another segment than the node.
struct Place<'a> {
    address: IpAddr,
    vip: &'a VirtualIp,
    elsewhere: bool,
}

fn plan_l2(
    cluster: &Cluster,
    me: &str,
    service: &Service,
    place: &Place<'_>,
    (common, yields): (Option<Reason>, bool),
    plan: &mut ServicePlan,
) {
    let covering: Vec<_> = cluster
        .l2_advertisements
        .values()
        .filter(|ad| scope::covers(&ad.scope, cluster, place.vip, service))
        .collect();
    let here: Vec<_> = covering
        .iter()
        .filter(|ad| scope::selects(&ad.scope, cluster, me))
        .collect();
    // Who names an interface knows that the address is there.
    let anywhere = here.iter().any(|ad| ad.interfaces.is_empty());
    let elsewhere = place.elsewhere && anywhere;
    let refused = covering
        .is_empty()
        .then_some(Reason::NoAdvertisement)
        .or(here.is_empty().then_some(Reason::NodeNotSelected))
        .or(common)
        .or(elsewhere.then_some(Reason::NoInterface));
    let interfaces = if anywhere {
        None
    } else {
        Some(
            here.iter()
                .flat_map(|ad| ad.interfaces.iter().cloned())
                .collect(),
        )
    };
    plan.l2.insert(
        place.address,
        L2Intent {
            eligible: refused.is_none(),
            yields: yields && refused == common,
            interfaces,
        },
    );
    let mut verdict = Verdict::new(Some(place.address), Way::L2, refused);
    if refused == Some(Reason::NoInterface) {
        verdict.detail = Some(ELSEWHERE.to_owned());
    }
    plan.verdicts.push(verdict);
}

#[cfg(test)]
mod tests;
