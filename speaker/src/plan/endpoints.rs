//! Which endpoints take a Service's traffic.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bellrock_forward as forward;

use crate::cluster::{Cluster, Endpoint, Hints, Service};

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
    /// Endpoints of this node that are ready.
    ready_here: BTreeSet<IpAddr>,
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
        self.count_here(v4) > 0
    }

    /// How many ready endpoints of the family are on this node.
    pub fn count_here(&self, v4: bool) -> u32 {
        let ready: BTreeSet<_> = self
            .ports
            .iter()
            .flat_map(|port| &port.ready_here)
            .filter(|address| address.is_ipv4() == v4)
            .collect();
        u32::try_from(ready.len()).unwrap_or(u32::MAX)
    }
}

/// An endpoint and its number for the port in question.
type Offer<'a> = (&'a Endpoint, u16);

/// Chooses endpoints as KEP-1669 says, within each policy's scope: those that
/// are ready; if none is, those that terminate and still serve. Of the whole
/// cluster's, hints may narrow down the ready ones, and those on `silent` nodes
/// are passed over.
pub fn usable(
    cluster: &Cluster,
    key: &forward::ServiceKey,
    service: &Service,
    me: &str,
    silent: &BTreeSet<String>,
) -> Usable {
    let slices = cluster.slices.get(key);
    let zone = cluster.nodes.get(me).and_then(|node| node.zone());
    let ports = service
        .ports
        .iter()
        .map(|port| {
            let lookup = (port.name.clone(), port.protocol);
            let all: Vec<Offer<'_>> = slices
                .into_iter()
                .flat_map(|slices| slices.values())
                .filter_map(|slice| Some((slice, *slice.ports.get(&lookup)?)))
                .flat_map(|(slice, number)| slice.endpoints.iter().map(move |e| (e, number)))
                .collect();
            let mut usable = UsablePort::default();
            // Per family, so that a family whose pods are not ready yet does
            // not hide behind the other.
            for v4 in [true, false] {
                let family = || {
                    all.iter()
                        .copied()
                        .filter(|(e, _)| e.address.is_ipv4() == v4)
                };
                let ready: Vec<_> = family().filter(|(e, _)| e.ready).collect();
                let terminating: Vec<_> = family().filter(|(e, _)| e.serving_terminating).collect();
                let here = |(e, _): &Offer<'_>| e.node.as_deref() == Some(me);

                let chosen = if ready.is_empty() {
                    audible(&terminating, me, silent)
                } else {
                    nearby(&audible(&ready, me, silent), me, zone)
                };
                usable.cluster.extend(targets(&chosen, me));

                let ready_here: Vec<_> = ready.iter().copied().filter(here).collect();
                let terminating_here: Vec<_> = terminating.iter().copied().filter(here).collect();
                let chosen = if ready_here.is_empty() {
                    &terminating_here
                } else {
                    &ready_here
                };
                usable.local.extend(targets(chosen, me));
                usable
                    .ready_here
                    .extend(ready_here.iter().map(|(e, _)| e.address));
            }
            usable
        })
        .collect();
    Usable { ports }
}

/// Of endpoints, those on nodes that are not silent, unless most nodes that
/// have some are: then it is the segment's word that is in doubt.
fn audible<'a>(all: &[Offer<'a>], me: &str, silent: &BTreeSet<String>) -> Vec<Offer<'a>> {
    let is_silent = |(e, _): &Offer<'_>| {
        let node = e.node.as_deref().filter(|node| *node != me);
        node.is_some_and(|node| silent.contains(node))
    };
    let nodes = |wanted: bool| -> BTreeSet<Option<&str>> {
        let some = all.iter().filter(|offer| is_silent(offer) == wanted);
        some.map(|(e, _)| e.node.as_deref()).collect()
    };
    if nodes(true).len() > nodes(false).len() {
        return all.to_vec();
    }
    let rest = all.iter().copied();
    rest.filter(|offer| !is_silent(offer)).collect()
}

/// Of ready endpoints, those that the hints mean for this node; else those
/// that they mean for its zone; else all. A kind of hint counts only if every
/// endpoint has it: otherwise the slices are half way through a change. These
/// are kube-proxy's rules (KEP-4444, KEP-3015).
fn nearby<'a>(ready: &[Offer<'a>], me: &str, zone: Option<&str>) -> Vec<Offer<'a>> {
    let narrowed = |names: fn(&Hints) -> &[String], name: &str| {
        let hinted = |endpoint: &'a Endpoint| endpoint.hints.as_deref().map(names).unwrap_or(&[]);
        if ready.iter().any(|(e, _)| hinted(e).is_empty()) {
            return None;
        }
        let meant = |(e, _): &Offer<'a>| hinted(e).iter().any(|hint| hint == name);
        let chosen: Vec<_> = ready.iter().copied().filter(meant).collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    narrowed(|hints| &hints.nodes, me)
        .or_else(|| narrowed(|hints| &hints.zones, zone?))
        .unwrap_or_else(|| ready.to_vec())
}

/// In order, each once: an endpoint may be in two slices for a while.
fn targets(offers: &[Offer<'_>], me: &str) -> BTreeSet<forward::Endpoint> {
    offers
        .iter()
        .map(|(endpoint, port)| forward::Endpoint {
            address: endpoint.address,
            port: *port,
            local: endpoint.node.as_deref() == Some(me),
        })
        .collect()
}
