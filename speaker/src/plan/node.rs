//! Whether a node may announce at all: one function for ARP and BGP alike.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bellrock_api::annotations::{
    LABEL_EXCLUDE_NODE, TAINT_OUT_OF_SERVICE, TAINT_TO_BE_DELETED, is_set,
};
use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_forward as forward;
use ipnet::IpNet;

use super::{Forwarding, Settings};
use crate::cluster::Cluster;

/// Why node `me` must not announce anything, if so.
///
/// Cordoning a node changes nothing: pods that run go on running, and so does
/// their traffic.
pub fn unfit(cluster: &Cluster, me: &str, settings: &Settings) -> Option<Reason> {
    let Some(node) = cluster.nodes.get(me) else {
        return Some(Reason::NodeUnknown);
    };
    if is_set(&node.labels, LABEL_EXCLUDE_NODE) && !settings.ignore_exclude_label {
        return Some(Reason::NodeExcluded);
    }
    if node.network_unavailable {
        return Some(Reason::NodeNetworkUnavailable);
    }
    if node.taints.contains(TAINT_OUT_OF_SERVICE) {
        return Some(Reason::NodeOutOfService);
    }
    if node.deleting || node.taints.contains(TAINT_TO_BE_DELETED) {
        return Some(Reason::NodeBeingDeleted);
    }
    if node.drained {
        return Some(Reason::NodeDrained);
    }
    None
}

/// Whether an address lies on a segment that this node is not on: in a subnet of
/// other nodes, and in none of this node's. The API does not say how long their
/// subnets are; as long as those here.
pub fn elsewhere(cluster: &Cluster, settings: &Settings, address: IpAddr) -> bool {
    let subnets = || {
        let all = settings.surroundings.subnets.iter();
        all.filter(|subnet| subnet.addr().is_ipv4() == address.is_ipv4())
    };
    let here = |address: &IpAddr| subnets().any(|subnet| subnet.contains(address));
    let near = |node: &IpAddr| {
        let lengths = subnets().map(IpNet::prefix_len);
        let mut theirs = lengths.filter_map(|length| IpNet::new(*node, length).ok());
        theirs.any(|subnet| subnet.contains(&address))
    };
    let mut nodes = cluster.nodes.values().flat_map(|node| &node.addresses);
    !here(&address) && nodes.any(|node| near(node) && !here(node))
}

/// The node-wide part of the forwarding table of node `me`.
pub fn forward_node(cluster: &Cluster, me: &str, settings: &Settings) -> forward::Node {
    if settings.forwarding != Forwarding::Nftables {
        return forward::Node::default();
    }
    forward::Node {
        node_port_addresses: node_port_addresses(cluster, me, settings),
        pod_networks: cluster
            .nodes
            .values()
            .flat_map(|n| n.pod_networks.clone())
            .chain(settings.pod_networks.iter().copied())
            .collect(),
        local_pod_networks: cluster
            .nodes
            .get(me)
            .map(|node| node.pod_networks.clone())
            .unwrap_or_default(),
    }
}

/// Where node ports of node `me` listen: on its primary addresses, as those of
/// kube-proxy's nftables mode, or on all that are in the given networks. Never
/// on an address that a Service has.
pub fn node_port_addresses(cluster: &Cluster, me: &str, settings: &Settings) -> BTreeSet<IpAddr> {
    let networks = &settings.node_port_networks;
    let own = if networks.is_empty() {
        let node = cluster.nodes.get(me);
        node.map(|node| node.primary.clone()).unwrap_or_default()
    } else {
        let all = settings.surroundings.addresses.iter().copied();
        all.filter(|address| networks.iter().any(|network| network.contains(address)))
            .collect()
    };
    own.into_iter()
        .filter(|address| !cluster.virtual_ips.contains_key(address))
        .collect()
}
