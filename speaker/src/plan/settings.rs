//! What decisions depend on beside the objects in the API.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Who forwards what is sent to our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarding {
    /// The speaker, by a table of its own.
    #[default]
    Nftables,
    /// kube-proxy, by what it makes of `status.loadBalancer`.
    KubeProxy,
    /// Somebody else, such as a network plugin that replaces kube-proxy.
    None,
}

impl FromStr for Forwarding {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "kube-proxy" => Ok(Self::KubeProxy),
            "none" => Ok(Self::None),
            _ => Err("not one of nftables, kube-proxy, none"),
        }
    }
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
    /// Who forwards.
    pub forwarding: Forwarding,
    /// Node ports listen on the node's addresses in these networks; empty: on
    /// its primary addresses.
    pub node_port_networks: Vec<IpNet>,
    /// What the speaker has found on its node.
    pub surroundings: Surroundings,
    /// Nodes that the segment calls silent.
    pub silent: BTreeSet<String>,
}

impl Settings {
    /// Whether the speaker does what kube-proxy would do for traffic from
    /// outside: node ports of every Service, health check ports.
    pub fn replaces_kube_proxy(&self) -> bool {
        self.forwarding == Forwarding::Nftables && !self.surroundings.kube_proxy
    }
}

/// What a speaker finds on its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// kube-proxy, or what stands in for it, is there.
    pub kube_proxy: bool,
    /// The node's own addresses that node ports can listen on.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses that this node's kernel answers ARP for by itself.
    pub answered: BTreeSet<IpAddr>,
    /// The subnets of the interfaces that addresses are announced on.
    pub subnets: BTreeSet<IpNet>,
}
