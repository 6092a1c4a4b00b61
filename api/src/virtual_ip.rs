//! `VirtualIP`: one object per allocated address. Creating it is the lock.

#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a public copy of the struct inside a function"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::{self, AddressError};

/// Claims of one VirtualIP, at most.
pub const MAX_CLAIMS: usize = 256;

/// Ports of one claim, at most.
pub const MAX_PORTS: usize = 1024;

/// Characters of a sharing key, at most.
pub const MAX_SHARING_KEY: usize = 253;

/// Labels of a claim's selector, at most.
pub const MAX_SELECTOR: usize = 64;

/// An allocated address, written by the controller (or by a user, to reserve it).
///
/// The object is named after the address ([`virtual_ip_name`](crate::virtual_ip_name)), and a rule
/// ties the two together, so an address can be given out once only.
#[derive(
    CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "VirtualIP",
    plural = "virtualips",
    shortname = "vip",
    status = "VirtualIPStatus",
    derive = "PartialEq",
    category = "bellrock",
    doc = "An address that is given to Services, or reserved for them. Its name is the address.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(
        name = "Namespace",
        type_ = "string",
        json_path = ".spec.claims[0].namespace",
        description = "Namespace of the first Service that holds the address"
    ),
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".spec.claims[0].name",
        description = "The first Service that holds the address"
    ),
    printcolumn(name = "Desired", type_ = "string", json_path = ".spec.l2.node"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".status.owner"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Cause", type_ = "string", json_path = ".status.cause", priority = 1),
    validation = Rule::new("!isIP(self.spec.address) || (ip(self.spec.address).family() == 4 ? self.metadata.name == self.spec.address : (self.metadata.name.matches('^([0-9a-f]{4}-){7}[0-9a-f]{4}$') && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address)))").message("the name must be the address: as it is for IPv4, as eight groups of four lower-case hex digits joined by dashes for IPv6")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPSpec {
    /// The address, in canonical form.
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self) && ip.isCanonical(self)").message("address must be an IP address in canonical form, such as 192.0.2.10 or 2001:db8::10"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("address cannot be changed"))]
    pub address: String,

    /// Name of the pool that the address was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pool: Option<String>,

    /// The Services that hold the address; more than one share it. None: the address is reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_CLAIMS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub claims: Vec<Claim>,

    /// Where the address should live on the local segment. Absent: it is not announced there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2Placement>,
}

/// A Service's hold on an address. Matched by namespace and name, so that it outlives a backup and
/// restore, which bring a new uid.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Namespace of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,

    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// The Service's uid when the claim was made. Absent on claims made ahead of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub uid: Option<String>,

    /// Ports that the Service uses on the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS), extend("x-kubernetes-list-type" = "atomic"))]
    pub ports: Vec<PortClaim>,

    /// Services may share the address only under the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_SHARING_KEY))]
    pub sharing_key: Option<String>,

    /// The Service's `externalTrafficPolicy`, on which those who share must agree. Absent on claims
    /// without a sharing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,

    /// The Service's `selector`, on which those who share must agree where the policy is `Local`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = MAX_SELECTOR,
        "additionalProperties" = { "type": "string", "maxLength": 63 }
    ))]
    pub selector: BTreeMap<String, String>,
}

/// Which nodes pass on what arrives for an address: `externalTrafficPolicy` of a Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any node.
    Cluster,
    /// Those with a pod of the Service.
    Local,
}

/// A port of an address.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "camelCase")]
pub struct PortClaim {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// A transport protocol.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol of this name; an absent one means TCP in Kubernetes.
    #[must_use]
    pub fn from_kubernetes(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the controller wants an address to live on the local segment.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct L2Placement {
    /// The node that should answer.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,

    /// The nodes that take over, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub successors: Vec<String>,
}

/// What the owning speaker says about an address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPStatus {
    /// The node that answers for the address on the local segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub owner: Option<String>,

    /// Raised by every claim; the higher one wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub epoch: Option<i64>,

    /// When the owner took the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,

    /// Why the owner took the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub cause: Option<String>,
}

impl VirtualIPSpec {
    /// The address, parsed.
    ///
    /// # Errors
    /// As [`address::parse_address`]; the API server lets no such object in.
    pub fn ip(&self) -> Result<IpAddr, AddressError> {
        address::parse_address(&self.address)
    }

    /// The claim of a Service, if it has one.
    #[must_use]
    pub fn claim_of(&self, namespace: &str, name: &str) -> Option<&Claim> {
        self.claims
            .iter()
            .find(|claim| claim.namespace == namespace && claim.name == name)
    }
}
