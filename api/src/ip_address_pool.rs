//! `IPAddressPool`: addresses that may be given to Services.

#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a public copy of the struct inside a function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::{AddressError, AddressRange};
use crate::duration::Duration;
use crate::selectors;

/// The addresses of a pool, and which Services may have them.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    namespaced,
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    category = "bellrock",
    doc = "Addresses that Bellrock may give to Services of type LoadBalancer.",
    printcolumn(
        name = "Auto Assign",
        type_ = "boolean",
        json_path = ".spec.autoAssign"
    ),
    printcolumn(
        name = "Avoid Buggy IPs",
        type_ = "boolean",
        json_path = ".spec.avoidBuggyIPs",
        priority = 1
    ),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(
        name = "Used IPv4",
        type_ = "integer",
        json_path = ".status.assignedIPv4"
    ),
    printcolumn(
        name = "Free IPv4",
        type_ = "integer",
        json_path = ".status.availableIPv4"
    ),
    printcolumn(
        name = "Used IPv6",
        type_ = "integer",
        json_path = ".status.assignedIPv6"
    ),
    printcolumn(
        name = "Free IPv6",
        type_ = "integer",
        json_path = ".status.availableIPv6"
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolSpec {
    /// Addresses of the pool, each a CIDR ("192.0.2.0/24"), a range ("192.0.2.10-192.0.2.20") or a
    /// single address. Both families may be mixed.
    #[schemars(
        length(min = 1, max = 128),
        inner(length(min = 2, max = 96)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new("self.all(e, isCIDR(e) || isIP(e) || (e.split('-').size() == 2 && e.split('-').all(p, isIP(p.trim()))))").message("each entry must be a CIDR, an address, or a range of two addresses joined by a dash, such as 192.0.2.10-192.0.2.20"))]
    #[x_kube(validation = Rule::new("self.all(e, e.split('-').size() != 2 || !e.split('-').all(p, isIP(p.trim())) || ip(e.split('-')[0].trim()).family() == ip(e.split('-')[1].trim()).family())").message("both ends of a range must be of one address family"))]
    #[x_kube(validation = Rule::new(ipv4_order_rule()).message("a range must not end before it starts"))]
    pub addresses: Vec<String>,

    /// Whether Services that ask for no pool may get an address from this one.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Never give out IPv4 addresses that end in .0 or .255, which some old routers refuse.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Which Services may have addresses of this pool. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,

    /// How long a freed address rests before it is given out again, so that caches and clients
    /// forget it.
    #[serde(default = "default_reuse_delay")]
    pub reuse_delay: Duration,
}

/// Which Services may have addresses of a pool, and in what order pools are tried.
///
/// Namespaces (by name or by label) and Services must both match where both are given. A selector
/// that matches nothing gives the pool to nobody.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Pools with a lower number are tried first; 0 is last.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub priority: i32,

    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 63)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub namespaces: Vec<String>,

    /// Selectors over the labels of namespaces; one match is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Selectors over the labels of Services; one match is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors::selectors_schema")]
    pub service_selectors: Vec<LabelSelector>,
}

/// What the controller says about a pool.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// IPv4 addresses in use.
    #[serde(default, rename = "assignedIPv4")]
    pub assigned_ipv4: i64,
    /// IPv6 addresses in use.
    #[serde(default, rename = "assignedIPv6")]
    pub assigned_ipv6: i64,
    /// IPv4 addresses that could still be given out.
    #[serde(default, rename = "availableIPv4")]
    pub available_ipv4: i64,
    /// IPv6 addresses that could still be given out, at most 2^63-1.
    #[serde(default, rename = "availableIPv6")]
    pub available_ipv6: i64,
    /// `Accepted` says whether the pool is in force, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl IPAddressPoolSpec {
    /// The entries of the pool as ranges, in the order written.
    ///
    /// # Errors
    /// The first entry that does not parse.
    pub fn ranges(&self) -> Result<Vec<AddressRange>, AddressError> {
        self.addresses.iter().map(|entry| entry.parse()).collect()
    }
}

/// The ends of IPv4 ranges as numbers, compared. Written out octet by octet: the API server prices
/// a nested `map` beyond its budget. (CEL cannot order IPv6 addresses; the controller does.)
fn ipv4_order_rule() -> String {
    let end = |end: u8| {
        [(0, 16_777_216), (1, 65_536), (2, 256), (3, 1)]
            .map(|(octet, weight)| {
                format!("int(e.split('-')[{end}].trim().split('.')[{octet}]) * {weight}")
            })
            .join(" + ")
    };
    format!(
        "self.all(e, !e.matches('^[0-9. ]+-[0-9. ]+$') || !e.split('-').all(p, isIP(p.trim())) || {} <= {})",
        end(0),
        end(1)
    )
}

fn yes() -> bool {
    true
}

fn default_reuse_delay() -> Duration {
    Duration::from_secs(60)
}
