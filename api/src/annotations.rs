//! Names that Bellrock reads or writes on objects that are not its own.

use std::collections::BTreeMap;

/// Service annotation: allocate from the pool of this name.
pub const ADDRESS_POOL: &str = "bellrock.dev/address-pool";

/// Service annotation: comma-separated addresses to allocate, at most one per family.
pub const LOAD_BALANCER_IPS: &str = "bellrock.dev/load-balancer-ips";

/// Service annotation: Services with the same key may share one address.
pub const SHARING_KEY: &str = "bellrock.dev/sharing-key";

/// On a VirtualIP of the controller that nobody claims any more: when its last claim went (RFC
/// 3339). It is deleted, and its address free, when the `reuseDelay` of its pool has passed.
pub const RELEASED_AT: &str = "bellrock.dev/released-at";

/// Beside [`RELEASED_AT`]: the Service that held it last (`namespace/name`), and may have it back
/// at once.
pub const RELEASED_BY: &str = "bellrock.dev/released-by";

/// Type of the condition that the controller keeps in `Service.status.conditions`.
/// Its reason is an [`AllocationReason`](crate::AllocationReason).
pub const CONDITION_LOAD_BALANCER: &str = "bellrock.dev/LoadBalancer";

/// Type of the condition that the controller keeps in `IPAddressPool.status.conditions`.
/// Its reason is a [`PoolReason`](crate::PoolReason).
pub const CONDITION_ACCEPTED: &str = "Accepted";

/// Reporting controller of the controller's Events, and its field manager.
pub const CONTROLLER_NAME: &str = "bellrock-controller";

/// Reporting controller of a speaker's Events, and its field manager.
pub const SPEAKER_NAME: &str = "bellrock-speaker";

/// Node label (a boolean; empty means true): announce nothing from this node (KEP-1143).
pub const LABEL_EXCLUDE_NODE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Node annotation (a boolean; empty means true): the node hands its addresses to others, and
/// takes none, until the annotation goes.
pub const DRAIN: &str = "bellrock.dev/drain";

/// Whether a boolean label or annotation is there and not false. What does not parse is true, as
/// the cloud controllers have it.
#[must_use]
pub fn is_set(of: &BTreeMap<String, String>, name: &str) -> bool {
    of.get(name).is_some_and(|value| {
        !matches!(
            value.as_str(),
            "0" | "f" | "F" | "false" | "False" | "FALSE"
        )
    })
}

/// Node taint: the node is known to be down (KEP-2268).
pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Node taint: the cluster autoscaler is about to delete the node.
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Node condition: the network of the node is not set up.
pub const NODE_NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// EndpointSlice label: the Service it belongs to.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Finalizer that holds a Service until its addresses are released, where the operator wants it
/// (KEP-980). It is not `service.kubernetes.io/load-balancer-cleanup`, which others may have put
/// there and must take off themselves.
pub const FINALIZER_CLEANUP: &str = "bellrock.dev/load-balancer-cleanup";
