//! What the caller says: Services and the node. No Kubernetes types.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name in the namespace.
    pub name: String,
}

impl ServiceKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `externalTrafficPolicy`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum ExternalPolicy {
    /// Any endpoint in the cluster.
    #[default]
    Cluster,
    /// Only endpoints of this node, with the client's own address. Callers
    /// inside the cluster (pods, the node itself) still reach any endpoint.
    Local,
}

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, protocol number 6.
    Tcp,
    /// UDP, protocol number 17.
    Udp,
    /// SCTP, protocol number 132.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number, if it is one of ours.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where a connection can go: one pod's address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
    /// Whether the pod runs on this node.
    pub local: bool,
}

/// One port of a Service.
///
/// The endpoints are those to use: the caller has already chosen the ready
/// ones, or the serving and terminating ones where none is ready (KEP-1669),
/// and heeded hints. The two lists are separate because that choice is made
/// within each scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the Service's external addresses.
    pub port: u16,
    /// The port on the node's own addresses.
    pub node_port: Option<u16>,
    /// Usable endpoints in the whole cluster, of either address family.
    pub endpoints: Vec<Endpoint>,
    /// Usable endpoints of this node, for [`ExternalPolicy::Local`].
    pub local_endpoints: Vec<Endpoint>,
}

/// One Service, as this node must forward it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// External addresses; none for a Service that has node ports only.
    pub addresses: BTreeSet<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its `externalTrafficPolicy`.
    pub policy: ExternalPolicy,
    /// `sessionAffinity: ClientIP`. Stateless and the same on every node: a
    /// client keeps its endpoint for as long as the endpoint is there, with no
    /// timeout; a scale-up from n endpoints moves about 1 client in n + 1.
    pub affinity: bool,
    /// `loadBalancerSourceRanges`. They bind on the external addresses, not
    /// on node ports. A family of which there is no range is not restricted,
    /// as in kube-proxy.
    pub source_ranges: Vec<IpNet>,
}

/// What the node itself contributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's addresses on which node ports listen.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// The pod networks of all nodes. A caller from there is inside the
    /// cluster: `externalTrafficPolicy: Local` does not bind it.
    pub pod_networks: Vec<IpNet>,
    /// The networks of the pods on this node. What they send and receive
    /// passes this node, so that they need no source NAT. Leaving out a
    /// network costs the client's address, never a connection.
    pub local_pod_networks: Vec<IpNet>,
}
