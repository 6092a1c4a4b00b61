//! `BGPPeer`: a router that speakers hold a session with.

#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a public copy of the struct inside a function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::selectors;

/// A BGP peer, and how to talk to it. Every node that `nodeSelectors` match holds a session of its own.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "BGPPeer",
    plural = "bgppeers",
    namespaced,
    derive = "PartialEq",
    category = "bellrock",
    doc = "A router that the speakers hold BGP sessions with.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.peerAddress"),
    printcolumn(
        name = "Interface",
        type_ = "string",
        json_path = ".spec.interface",
        priority = 1
    ),
    printcolumn(name = "ASN", type_ = "integer", json_path = ".spec.peerASN"),
    printcolumn(name = "My ASN", type_ = "integer", json_path = ".spec.myASN"),
    printcolumn(name = "BFD Profile", type_ = "string", json_path = ".spec.bfdProfile"),
    printcolumn(
        name = "Multi Hop",
        type_ = "boolean",
        json_path = ".spec.ebgpMultiHop",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(validation = Rule::new("has(self.peerAddress) != has(self.interface)").message("set exactly one of peerAddress and interface"))]
#[x_kube(validation = Rule::new("has(self.peerASN) != has(self.dynamicASN)").message("set exactly one of peerASN and dynamicASN"))]
#[x_kube(validation = Rule::new("!has(self.password) || !has(self.passwordSecret)").message("set at most one of password and passwordSecret"))]
#[x_kube(validation = Rule::new("!has(self.keepaliveTime) || !has(self.holdTime) || duration(self.keepaliveTime) <= duration(self.holdTime)").message("keepaliveTime must not be longer than holdTime"))]
#[x_kube(validation = Rule::new("!self.ebgpMultiHop || !has(self.peerASN) || self.peerASN != self.myASN").message("ebgpMultiHop is for external peers: peerASN equals myASN"))]
#[x_kube(validation = Rule::new("!self.ebgpMultiHop || !has(self.dynamicASN) || self.dynamicASN != 'internal'").message("ebgpMultiHop is for external peers: dynamicASN is internal"))]
#[x_kube(validation = Rule::new("!has(self.localASN) || self.localASN != self.myASN").message("localASN must differ from myASN; leave it out to use myASN"))]
#[x_kube(validation = Rule::new("!has(self.sourceAddress) || !has(self.peerAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || ip(self.sourceAddress).family() == ip(self.peerAddress).family()").message("sourceAddress and peerAddress must be of one address family"))]
#[x_kube(validation = Rule::new("!self.ebgpMultiHop || !has(self.ttlSecurityHops)").message("ttlSecurityHops says how far away the peer may be; leave out ebgpMultiHop"))]
#[x_kube(validation = Rule::new("!has(self.role) || ((!has(self.peerASN) || self.peerASN != (has(self.localASN) ? self.localASN : self.myASN)) && (!has(self.dynamicASN) || self.dynamicASN != 'internal'))").message("role is for external peers"))]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerSpec {
    /// AS number of this side.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 1, max = 4_294_967_295_i64))]
    pub my_asn: u32,

    /// AS number of the peer.
    #[serde(default, rename = "peerASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_i64))]
    pub peer_asn: Option<u32>,

    /// Accept the AS number that the peer names: `internal` one that equals ours, `external` any other.
    #[serde(
        default,
        rename = "dynamicASN",
        skip_serializing_if = "Option::is_none"
    )]
    pub dynamic_asn: Option<DynamicAsn>,

    /// Present this AS number to the peer instead of `myASN` (RFC 7705, neither prepended nor shown
    /// beside it).
    #[serde(default, rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_i64))]
    pub local_asn: Option<u32>,

    /// Address of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("peerAddress must be an IP address"))]
    pub peer_address: Option<String>,

    /// Interface whose only neighbour is the peer, for sessions without addresses (RFC 8950, RFC 4861).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^\s/]+$"))]
    pub interface: Option<String>,

    /// Address of this side. Absent: the kernel's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self)").message("sourceAddress must be an IP address"))]
    pub source_address: Option<String>,

    /// TCP port of the peer.
    #[serde(default = "bgp_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub peer_port: u16,

    /// Hold time to propose: 0, or at least 3 s (RFC 4271 4.2). Absent: three times `keepaliveTime`,
    /// else 90 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) == duration('0s') || (duration(self) >= duration('3s') && duration(self) <= duration('65535s'))").message("holdTime must be 0 or between 3s and 65535s"))]
    pub hold_time: Option<Duration>,

    /// Time between keepalives, at most the hold time. Absent: a third of the hold time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('65535s')").message("keepaliveTime must be at most 65535s"))]
    pub keepalive_time: Option<Duration>,

    /// Time between attempts to connect, from 1 s to 65535 s in whole seconds. Absent: 120 s, with
    /// jitter (RFC 4271 10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('65535s') && duration(self).getMilliseconds() % 1000 == 0").message("connectTime must be a whole number of seconds between 1s and 65535s"))]
    pub connect_time: Option<Duration>,

    /// BGP identifier of this side, written as an IPv4 address. Absent: the node's IPv4 address.
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'").message("routerID must be written as an IPv4 address other than 0.0.0.0"))]
    pub router_id: Option<String>,

    /// Selectors over the labels of nodes that hold a session. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub node_selectors: Vec<LabelSelector>,

    /// TCP MD5 password (RFC 2385) in clear text; prefer `passwordSecret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub password: Option<String>,

    /// Secret of type kubernetes.io/basic-auth in the same namespace, whose `password` is the TCP
    /// MD5 password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret: Option<SecretReference>,

    /// Name of the BFDProfile to watch the peer with. Absent: no BFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub bfd_profile: Option<String>,

    /// Ask the peer to keep our routes over a restart of the speaker (RFC 4724). Cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("enableGracefulRestart cannot be changed; delete the peer and create it anew"))]
    pub enable_graceful_restart: bool,

    /// The external peer may be more than one hop away.
    #[serde(default)]
    pub ebgp_multi_hop: bool,

    /// Take no packet of the session that has come over more than this many hops, and send so that the
    /// peer can do the same (GTSM, RFC 5082): 1 for a peer on the segment. The peer must be told, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 254))]
    pub ttl_security_hops: Option<u8>,

    /// Role of this side toward an external peer (RFC 9234): the session comes up only if the peer, where
    /// it has a role, has the one that fits, and routes carry the mark by which leaks are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,

    /// Linux VRF device to hold the session in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^\s/]+$"))]
    pub vrf: Option<String>,

    /// Accepted for compatibility and without effect: each family is announced where the peer
    /// takes it.
    #[serde(default, rename = "disableMP")]
    pub disable_mp: bool,

    /// Announce both address families over this one session.
    #[serde(default)]
    pub dual_stack_address_family: bool,
}

/// Which AS number to accept from a peer.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DynamicAsn {
    /// One that equals ours.
    Internal,
    /// Any other than ours.
    External,
}

/// A side's role on a session between two AS: RFC 9234 section 3.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sells transit to the peer.
    Provider,
    /// Redistributes routes among its clients.
    RouteServer,
    /// Client of a route server.
    RouteServerClient,
    /// Buys transit from the peer.
    Customer,
    /// Exchanges its own and its customers' routes.
    Peer,
}

/// A Secret in the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn bgp_port() -> u16 {
    179
}
