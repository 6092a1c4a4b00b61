//! Which endpoints take a Service's traffic.

use std::collections::BTreeSet;

use bellrock_forward as forward;

use crate::cluster::{Cluster, Endpoint, Service};

/// The usable endpoints of a Service, port by port in the Service's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usable {
    /// One entry for each port of the Service.
    pub ports: Vec<UsablePort>,
}

/// The usable endpoints of one port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsablePort {
    /// For policy Cluster and callers inside the cluster.
    pub cluster: Vec<forward::Endpoint>,
    /// For policy Local.
    pub local: Vec<forward::Endpoint>,
    /// A local IPv4 endpoint is ready.
    ready_here_v4: bool,
    /// A local IPv6 endpoint is ready.
    ready_here_v6: bool,
}

impl Usable {
    /// Whether any port has an endpoint of the family.
    pub fn anywhere(&self, v4: bool) -> bool {
        self.ports
            .iter()
            .any(|port| port.cluster.iter().any(|e| e.address.is_ipv4() == v4))
    }

    /// Whether any port has a ready endpoint of the family on this node.
    pub fn ready_here(&self, v4: bool) -> bool {
        self.ports.iter().any(|port| {
            if v4 {
                port.ready_here_v4
            } else {
                port.ready_here_v6
            }
        })
    }
}

impl Usable {
    /// How many ready endpoints of the family are on this node.
    pub fn count_here(&self, v4: bool) -> u32 {
        if !self.ready_here(v4) {
            return 0;
        }
        let local = self.ports.iter().flat_map(|port| &port.local);
        let addresses: BTreeSet<_> = local
            .map(|endpoint| endpoint.address)
            .filter(|address| address.is_ipv4() == v4)
            .collect();
        u32::try_from(addresses.len()).unwrap_or(u32::MAX)
    }
}

/// Chooses endpoints as KEP-1669 says, within each policy's scope: those that
/// are ready; if none is, those that terminate and still serve.
pub fn usable(cluster: &Cluster, key: &forward::ServiceKey, service: &Service, me: &str) -> Usable {
    let slices = cluster.slices.get(key);
    let ports = service
        .ports
        .iter()
        .map(|port| {
            let lookup = (port.name.clone(), port.protocol);
            let all: Vec<(&Endpoint, u16)> = slices
                .into_iter()
                .flat_map(|slices| slices.values())
                .filter_map(|slice| Some((slice, *slice.ports.get(&lookup)?)))
                .flat_map(|(slice, number)| slice.endpoints.iter().map(move |e| (e, number)))
                .collect();
            let here = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(me);
            let ready_here = |v4| {
                all.iter()
                    .any(|(e, _)| here(e) && e.ready && e.address.is_ipv4() == v4)
            };
            UsablePort {
                cluster: choose(&all, me, |_| true),
                local: choose(&all, me, here),
                ready_here_v4: ready_here(true),
                ready_here_v6: ready_here(false),
            }
        })
        .collect();
    Usable { ports }
}

/// Per family, so that a family whose pods are not ready yet does not hide
/// behind the other.
fn choose(
    all: &[(&Endpoint, u16)],
    me: &str,
    in_scope: impl Fn(&Endpoint) -> bool,
) -> Vec<forward::Endpoint> {
    let pick = |v4: bool, wanted: fn(&Endpoint) -> bool| -> BTreeSet<forward::Endpoint> {
        all.iter()
            .filter(|(e, _)| e.address.is_ipv4() == v4 && wanted(e) && in_scope(e))
            .map(|(e, port)| forward::Endpoint {
                address: e.address,
                port: *port,
                local: e.node.as_deref() == Some(me),
            })
            .collect()
    };
    [true, false]
        .into_iter()
        .flat_map(|v4| {
            let ready = pick(v4, |e| e.ready);
            if ready.is_empty() {
                pick(v4, |e| e.serving_terminating)
            } else {
                ready
            }
        })
        .collect()
}
