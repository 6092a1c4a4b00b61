//! `BGPAdvertisement`: announce addresses to routers.

#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a public copy of the struct inside a function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::selectors;

/// Which addresses are announced to which peers, and with what attributes. An empty spec announces
/// every address as a host route to every peer.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "BGPAdvertisement",
    plural = "bgpadvertisements",
    namespaced,
    derive = "PartialEq",
    category = "bellrock",
    doc = "Announces addresses to routers, by BGP.",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(
        name = "Pool Selectors",
        type_ = "string",
        json_path = ".spec.ipAddressPoolSelectors",
        priority = 1
    ),
    printcolumn(name = "Peers", type_ = "string", json_path = ".spec.peers"),
    printcolumn(name = "Local Pref", type_ = "integer", json_path = ".spec.localPref"),
    printcolumn(
        name = "Communities",
        type_ = "string",
        json_path = ".spec.communities"
    ),
    printcolumn(
        name = "Node Selectors",
        type_ = "string",
        json_path = ".spec.nodeSelectors",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(validation = Rule::new("!has(self.serviceSelectors) || self.serviceSelectors.size() == 0 || (self.aggregationLength == 32 && self.aggregationLengthV6 == 128)").message("serviceSelectors cannot be combined with aggregation: an aggregate covers Services that the selector does not"))]
#[serde(rename_all = "camelCase")]
pub struct BGPAdvertisementSpec {
    /// Prefix length of what is announced for an IPv4 address.
    #[serde(default = "host_v4")]
    #[schemars(range(min = 1, max = 32))]
    pub aggregation_length: u8,

    /// Prefix length of what is announced for an IPv6 address.
    #[serde(default = "host_v6")]
    #[schemars(range(min = 1, max = 128))]
    pub aggregation_length_v6: u8,

    /// LOCAL_PREF, sent to internal peers only. Absent: none is sent by this advertisement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub local_pref: Option<u32>,

    /// Communities to attach: standard ("64512:100"), large ("large:64512:1:2"), extended
    /// ("rt:64512:100", "soo:64512:100"), or the name of a Community alias.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 64)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new("self.all(c, !c.contains(':') || c.matches('^([0-9]{1,5}:[0-9]{1,5}|large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}|(rt|soo):[0-9]{1,10}:[0-9]{1,10})$'))").message("each community must be ASN:VALUE, large:A:B:C, rt:ASN:VALUE, soo:ASN:VALUE, or the name of an alias"))]
    #[x_kube(validation = Rule::new("self.all(c, !c.matches('^[0-9]{1,5}:[0-9]{1,5}$') || c.split(':').all(n, int(n) <= 65535))").message("both halves of a standard community must be at most 65535"))]
    #[x_kube(validation = Rule::new("self.all(c, !c.matches('^(large|rt|soo)(:[0-9]{1,10}){2,3}$') || c.split(':').all(n, !n.matches('^[0-9]+$') || int(n) <= 4294967295))").message("each number of a large or extended community must be at most 4294967295"))]
    pub communities: Vec<String>,

    /// How many times the own AS number is put in front of the AS path, beyond the one that is
    /// always there.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16))]
    pub as_path_prepend: u8,

    /// Send the link-bandwidth extended community with the number of ready local endpoints, so
    /// that routers spread flows by endpoints, not by nodes.
    #[serde(default)]
    pub weight_by_endpoints: bool,

    /// Names of pools. With `ipAddressPoolSelectors` empty too: all pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub ip_address_pools: Vec<String>,

    /// Selectors over the labels of pools, in addition to the names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Selectors over the labels of nodes that may announce. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub node_selectors: Vec<LabelSelector>,

    /// Names of BGPPeers to announce to. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub peers: Vec<String>,

    /// Selectors over the labels of Services. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub service_selectors: Vec<LabelSelector>,
}

impl Default for BGPAdvertisementSpec {
    fn default() -> Self {
        Self {
            aggregation_length: host_v4(),
            aggregation_length_v6: host_v6(),
            local_pref: None,
            communities: Vec::new(),
            as_path_prepend: 0,
            weight_by_endpoints: false,
            ip_address_pools: Vec::new(),
            ip_address_pool_selectors: Vec::new(),
            node_selectors: Vec::new(),
            peers: Vec::new(),
            service_selectors: Vec::new(),
        }
    }
}

fn host_v4() -> u8 {
    32
}

fn host_v6() -> u8 {
    128
}
