//! Services for tests.
#![allow(dead_code, reason = "each test crate uses its part")]

pub(crate) mod ask;
pub(crate) mod lab;
pub(crate) mod sctp;

use std::collections::BTreeMap;
use std::net::IpAddr;

use bellrock_forward::{
    Endpoint, ExternalPolicy, Forwarder, Node, Port, Protocol, Service, ServiceKey,
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

pub(crate) fn node() -> Node {
    Node {
        node_port_addresses: [ip("192.0.2.11"), ip("2001:db8::11")].into(),
        pod_networks: ["10.244.0.0/16", "10.245.1.0/24", "fd00:244::/48"]
            .map(|n| n.parse().unwrap())
            .into(),
        local_pod_networks: ["10.244.1.0/24", "fd00:244:0:1::/64"]
            .map(|n| n.parse().unwrap())
            .into(),
    }
}

pub(crate) const NODE_PORT: u16 = 30_080;

/// TCP and UDP on port 80, with node ports.
pub(crate) fn service(
    a: &lab::Addresses,
    policy: ExternalPolicy,
    endpoints: &[Endpoint],
) -> Service {
    Service {
        addresses: [a.vip].into(),
        ports: [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| Port {
                node_port: Some(NODE_PORT),
                ..port(protocol, 80, endpoints)
            })
            .into(),
        policy,
        ..Service::default()
    }
}

/// A forwarder on node1 that carries one Service, `web`.
pub(crate) fn with(lab: &lab::Lab, service: &Service) -> Forwarder {
    let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
    let all = [(key("web"), service.clone())].into();
    let report = forwarder.sync(&lab::Lab::node(), &all).unwrap();
    assert_eq!((report.programmed, report.refused), (1, BTreeMap::new()));
    forwarder
}

pub(crate) fn port(protocol: Protocol, port: u16, endpoints: &[Endpoint]) -> Port {
    Port {
        name: format!("{protocol}-{port}"),
        protocol,
        port,
        node_port: None,
        endpoints: endpoints.to_vec(),
        local_endpoints: endpoints.iter().filter(|e| e.local).copied().collect(),
    }
}

pub(crate) fn local(address: &str, port: u16) -> Endpoint {
    Endpoint {
        address: ip(address),
        port,
        local: true,
    }
}

pub(crate) fn remote(address: &str, port: u16) -> Endpoint {
    Endpoint {
        address: ip(address),
        port,
        local: false,
    }
}

/// One Service of every shape: policies, families, protocols, affinity,
/// ranges, with and without endpoints.
pub(crate) fn shapes() -> BTreeMap<ServiceKey, Service> {
    let here4 = local("10.244.1.5", 8080);
    let there4 = remote("10.244.2.5", 8080);
    let here6 = local("fd00:244:0:1::5", 8080);
    let there6 = remote("fd00:244:0:2::5", 8080);
    let lists: [(&str, Vec<Endpoint>); 4] = [
        ("none", vec![]),
        ("here", vec![here4, here6]),
        ("there", vec![there4, there6]),
        ("both", vec![here4, there4, here6, there6]),
    ];
    let mut all = BTreeMap::new();
    let mut number = 0;
    for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
        for affinity in [false, true] {
            for ranges in [&[][..], &["10.0.0.0/8", "10.1.0.0/16", "2001:db8:1::/48"]] {
                for (name, endpoints) in &lists {
                    number += 1;
                    let ports = Protocol::ALL
                        .map(|protocol| Port {
                            node_port: Some(30_000 + number),
                            ..port(protocol, 80, endpoints)
                        })
                        .into();
                    all.insert(
                        key(&format!("{policy:?}-{affinity}-{}-{name}", ranges.len())),
                        Service {
                            addresses: [
                                ip(&format!("203.0.113.{number}")),
                                ip(&format!("2001:db8:113::{number}")),
                            ]
                            .into(),
                            ports,
                            policy,
                            affinity,
                            source_ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
                        },
                    );
                }
            }
        }
    }
    all
}

/// So many Services with two endpoints each.
pub(crate) fn many(count: u32) -> BTreeMap<ServiceKey, Service> {
    (0..count)
        .map(|n| {
            let pod = |at: u32| std::net::Ipv4Addr::from_bits(0x0af4_0000 + 2 * n + at);
            let endpoints = [0, 1].map(|at| Endpoint {
                address: pod(at).into(),
                port: 8080,
                local: at == 0 && n % 50 == 0,
            });
            let service = Service {
                addresses: [std::net::Ipv4Addr::from_bits(0xcb00_0000 + n).into()].into(),
                ports: vec![port(Protocol::Tcp, 80, &endpoints)],
                policy: if n % 10 == 9 {
                    ExternalPolicy::Local
                } else {
                    ExternalPolicy::Cluster
                },
                ..Service::default()
            };
            (key(&format!("s{n:06}")), service)
        })
        .collect()
}
