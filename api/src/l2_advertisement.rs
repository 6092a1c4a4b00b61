//! `L2Advertisement`: announce addresses on the local segment, by ARP and NDP.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selectors;

/// Which addresses are announced on the local segment, from which nodes. An empty spec announces
/// every address from every node.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    namespaced,
    derive = "PartialEq",
    category = "bellrock",
    doc = "Announces addresses on the local network segment, by ARP and NDP.",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(
        name = "Pool Selectors",
        type_ = "string",
        json_path = ".spec.ipAddressPoolSelectors",
        priority = 1
    ),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
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
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
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

    /// Nodes to prefer among those that may announce; the weights of all that match are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub preferred_node_selectors: Vec<PreferredNodeSelector>,

    /// Names of host interfaces to announce on. Empty: every interface with a subnet that holds
    /// the address, else every suitable one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 15), regex(pattern = r"^[^\s/]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub interfaces: Vec<String>,

    /// Selectors over the labels of Services. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub service_selectors: Vec<LabelSelector>,
}

/// A soft preference for some nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodeSelector {
    /// How much the preference counts.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    /// Selector over the labels of nodes; an empty one matches all.
    #[schemars(schema_with = "selectors::selector_schema")]
    pub preference: LabelSelector,
}
