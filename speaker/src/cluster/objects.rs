//! Objects of Kubernetes itself, trimmed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_forward::Protocol;
use ipnet::IpNet;

/// `spec.externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    Cluster,
    /// Only endpoints of the node that the packet reached.
    Local,
}

/// `spec.type`, of the types that reach outside of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// Ports on every node.
    NodePort,
    /// Addresses of its own, and mostly ports on every node too.
    LoadBalancer,
}

/// A Service that can be reached from outside, as far as speakers care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its type.
    pub kind: ServiceKind,
    /// Its labels, for `serviceSelectors`.
    pub labels: BTreeMap<String, String>,
    /// `externalTrafficPolicy`.
    pub policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    /// `loadBalancerSourceRanges`; `None` if one of them does not parse.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `healthCheckNodePort`: where balancers ask whether this node has
    /// endpoints. Only under policy Local.
    pub health_check_port: Option<u16>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where the Service has one port.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the load balancer's address.
    pub port: u16,
    /// The port on every node, if allocated.
    pub node_port: Option<u16>,
}

/// What one EndpointSlice says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    /// Port number by (port name, protocol).
    pub ports: BTreeMap<(String, Protocol), u16>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// It holds names instead of addresses (`addressType: FQDN`), of which no
    /// use is made.
    pub names: bool,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's address. A slice's endpoint has interchangeable addresses;
    /// the first one is used, as kube-proxy does.
    pub address: IpAddr,
    /// Where it runs, if the slice says so.
    pub node: Option<String>,
    /// Takes new traffic: ready and not terminating.
    pub ready: bool,
    /// Terminating but still serving (KEP-1669): used when none is ready.
    pub serving_terminating: bool,
    /// Whose traffic it is meant for, if that is said. Boxed: most endpoints
    /// have none, and there are many endpoints.
    pub hints: Option<Box<Hints>>,
}

/// An endpoint's hints: the zones (KEP-4444) and nodes (KEP-3015) that should
/// use it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// `forZones`.
    pub zones: Vec<String>,
    /// `forNodes`.
    pub nodes: Vec<String>,
}

/// A node, as far as announcing cares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// InternalIP addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The first address of each family: an InternalIP, else an ExternalIP.
    pub primary: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_networks: Vec<IpNet>,
    /// Condition NetworkUnavailable is true.
    pub network_unavailable: bool,
    /// Keys of its taints.
    pub taints: BTreeSet<String>,
    /// Has a deletion timestamp.
    pub deleting: bool,
    /// Carries the annotation `bellrock.dev/drain`.
    pub drained: bool,
}

impl Node {
    /// The zone that it says it is in.
    pub fn zone(&self) -> Option<&str> {
        self.labels
            .get("topology.kubernetes.io/zone")
            .map(String::as_str)
    }
}
