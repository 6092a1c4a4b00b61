//! Services, EndpointSlices and Nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bellrock_api::annotations::{DRAIN, LABEL_SERVICE_NAME, is_set};
use bellrock_forward::{Protocol, ServiceKey};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, Service as ApiService};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointHints, EndpointSlice};
use kube::ResourceExt;

use super::invalid;
use crate::cluster::{
    Change, Endpoint, Hints, Node, Service, ServiceKind, ServicePort, Slice, TrafficPolicy,
};
use crate::watch::Parsed;

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// A Service; gone, if it is of a type that nobody reaches from outside. One
/// that asks for what cannot be is refused whole: the API server lets none
/// such through, so half of it would be a guess.
pub fn service(object: &ApiService) -> Parsed {
    let key = ServiceKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    };
    let Some((kind, spec)) = reachable(object) else {
        return Parsed::Change(Change::Service(key, None));
    };
    let ports: Result<Vec<_>, _> = spec.ports.iter().flatten().map(service_port).collect();
    let ports = match ports {
        Ok(ports) => ports,
        Err(message) => return invalid(Change::Service(key, None), message),
    };
    let policy = match spec.external_traffic_policy.as_deref() {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    };
    let service = Service {
        kind,
        labels: object.labels().clone(),
        policy,
        affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        source_ranges: source_ranges(object, spec),
        health_check_port: spec
            .health_check_node_port
            .and_then(port_number)
            .filter(|_| kind == ServiceKind::LoadBalancer && policy == TrafficPolicy::Local),
        ports,
    };
    Parsed::Change(Change::Service(key, Some(service)))
}

fn reachable(object: &ApiService) -> Option<(ServiceKind, &core::ServiceSpec)> {
    let spec = object.spec.as_ref()?;
    match spec.type_.as_deref()? {
        "LoadBalancer" => Some((ServiceKind::LoadBalancer, spec)),
        "NodePort" => Some((ServiceKind::NodePort, spec)),
        _ => None,
    }
}

fn service_port(port: &core::ServicePort) -> Result<ServicePort, String> {
    let name = port.name.clone().unwrap_or_default();
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        return Err(format!(
            "port {name:?} has the unknown protocol {protocol:?}"
        ));
    };
    let number = |number: i32| {
        port_number(number).ok_or_else(|| format!("port {name:?} has the number {number}"))
    };
    Ok(ServicePort {
        protocol,
        port: number(port.port)?,
        // 0 stands for none.
        node_port: match port.node_port {
            None | Some(0) => None,
            Some(node_port) => Some(number(node_port)?),
        },
        name,
    })
}

/// The annotation that came before `spec.loadBalancerSourceRanges`.
const LEGACY_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// The source ranges, or those of the annotation where the field is empty.
/// One that does not parse leaves none: whom to let in is not known then.
fn source_ranges(object: &ApiService, spec: &core::ServiceSpec) -> Option<Vec<IpNet>> {
    let field = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .map(String::as_str);
    let annotation = object.annotations().get(LEGACY_SOURCE_RANGES);
    let listed = annotation.into_iter().flat_map(|text| text.split(','));
    let mut ranges: Vec<&str> = field.map(str::trim).collect();
    if ranges.is_empty() {
        ranges = listed
            .map(str::trim)
            .filter(|range| !range.is_empty())
            .collect();
    }
    ranges.into_iter().map(|range| range.parse().ok()).collect()
}

/// An EndpointSlice; gone, if it belongs to no Service. What of it cannot be
/// used is left out: the rest must not go stale over it.
pub fn slice(object: &EndpointSlice) -> Parsed {
    let slice = ServiceKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    };
    Parsed::Change(Change::Slice(slice, slice_content(object)))
}

fn slice_content(object: &EndpointSlice) -> Option<(ServiceKey, Slice)> {
    let key = ServiceKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.labels().get(LABEL_SERVICE_NAME)?.clone(),
    };
    if object.address_type == "FQDN" {
        let names = Slice {
            names: true,
            ..Slice::default()
        };
        return Some((key, names));
    }
    let ports = object.ports.iter().flatten().filter_map(|port| {
        let name = port.name.clone().unwrap_or_default();
        Some((
            (name, protocol(port.protocol.as_deref())?),
            port_number(port.port?)?,
        ))
    });
    let slice = Slice {
        ports: ports.collect(),
        endpoints: object.endpoints.iter().filter_map(endpoint).collect(),
        names: false,
    };
    Some((key, slice))
}

fn endpoint(endpoint: &ApiEndpoint) -> Option<Endpoint> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Unset means ready, and serving. A Service that publishes addresses that
    // are not ready has them marked ready.
    let ready = conditions.ready != Some(false);
    let terminating = conditions.terminating == Some(true);
    Some(Endpoint {
        address: endpoint.addresses.first()?.parse().ok().filter(unicast)?,
        node: endpoint.node_name.clone(),
        ready,
        serving_terminating: !ready && terminating && conditions.serving != Some(false),
        hints: endpoint.hints.as_ref().and_then(hints),
    })
}

/// Whether connections can be sent there at all.
fn unicast(address: &IpAddr) -> bool {
    let beyond_the_link = match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    beyond_the_link
        && !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
}

fn hints(hints: &EndpointHints) -> Option<Box<Hints>> {
    let zones = hints.for_zones.iter().flatten();
    let nodes = hints.for_nodes.iter().flatten();
    let hints = Hints {
        zones: zones.map(|zone| zone.name.clone()).collect(),
        nodes: nodes.map(|node| node.name.clone()).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

/// A Node.
pub fn node(object: &core::Node) -> Parsed {
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let networks = spec.pod_cidrs.into_iter().flatten().chain(spec.pod_cidr);
    let networks: BTreeSet<_> = networks.filter_map(|cidr| cidr.parse().ok()).collect();
    let addresses = |kind: &'static str| {
        let all = status.addresses.iter().flatten();
        all.filter(move |address| address.type_ == kind)
            .filter_map(|address| address.address.parse::<IpAddr>().ok())
    };
    let first = |v4: bool| {
        addresses("InternalIP")
            .chain(addresses("ExternalIP"))
            .find(|address| address.is_ipv4() == v4)
    };
    let node = Node {
        labels: object.labels().clone(),
        addresses: addresses("InternalIP").collect(),
        primary: [first(true), first(false)].into_iter().flatten().collect(),
        pod_networks: networks.into_iter().collect(),
        network_unavailable: status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "NetworkUnavailable" && c.status == "True"),
        taints: spec
            .taints
            .into_iter()
            .flatten()
            .map(|taint| taint.key)
            .collect(),
        deleting: object.metadata.deletion_timestamp.is_some(),
        drained: is_set(object.annotations(), DRAIN),
    };
    Parsed::Change(Change::Node(object.name_any(), Some(node)))
}

#[cfg(test)]
mod tests;
