//! What the demo and the tests have in common: one pool, announced both ways,
//! and the router as a peer.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::lab::Lab;

/// Where Bellrock runs.
pub const NAMESPACE: &str = "bellrock-system";

/// Addresses of the segment that no host has.
pub const POOL: Pool = Pool {
    first: Ipv4Addr::new(10, 10, 0, 100),
    last: Ipv4Addr::new(10, 10, 0, 179),
};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Pool {
    /// Whether it holds an address.
    pub fn contains(&self, address: &Ipv4Addr) -> bool {
        (self.first..=self.last).contains(address)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A pool, advertisements both ways and the router of the default topology, as
/// a user would write them.
pub fn configuration() -> String {
    let object = |kind: &str, name: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "bellrock.dev/v1beta1",
            "kind": kind,
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": spec,
        })
    };
    let objects = [
        object(
            "IPAddressPool",
            "lab",
            json!({ "addresses": [POOL.to_string()] }),
        ),
        object("L2Advertisement", "lab", json!({})),
        object("BGPAdvertisement", "lab", json!({})),
        object(
            "BGPPeer",
            "r1",
            json!({
                "myASN": 64512,
                "peerASN": 64500,
                "peerAddress": "10.10.0.254",
                "holdTime": "9s",
                "connectTime": "1s",
            }),
        ),
    ];
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

impl Lab {
    /// Moves the pods of a Deployment off a node and waits until they are
    /// gone from there.
    pub fn keep_pods_off(&self, app: &str, node: &str) -> Result<()> {
        let patch = json!({ "spec": { "template": { "spec": { "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{
                "matchExpressions": [{
                    "key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node],
                }],
            }] },
        } } } } } });
        self.kubectl(&["patch", "deployment", app, "-p", &patch.to_string()])?;
        self.until("the pods have moved", Duration::from_secs(60), || {
            let deployment = self.kubectl_json(&["get", "deployment", app])?;
            let (spec, status) = (&deployment["spec"], &deployment["status"]);
            ensure!(
                status["observedGeneration"] == deployment["metadata"]["generation"]
                    && status["updatedReplicas"] == spec["replicas"]
                    && status["availableReplicas"] == spec["replicas"]
                    && status["replicas"] == spec["replicas"],
                "{status}"
            );
            let pods = self.kubectl_json(&["get", "pods", "-l", &format!("app={app}")])?;
            let left = pods["items"].as_array().into_iter().flatten();
            ensure!(
                left.filter(|pod| pod["spec"]["nodeName"] == node).count() == 0,
                "pods are still on {node}"
            );
            Ok(())
        })
    }
}
