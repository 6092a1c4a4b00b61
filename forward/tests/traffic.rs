//! Real traffic through the table: a client, two nodes, pods, each in a
//! namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::collections::BTreeSet;

use bellrock_e2e::netns::as_root;
use bellrock_forward::{ExternalPolicy, Protocol, Service};
use common::ask::{L4, answers, ask, refused, silence};
use common::lab::{Addresses, Answer, Lab};
use common::{NODE_PORT, key, service, with};

#[test]
fn cluster_reaches_any_endpoint_and_hides_the_client_only_from_remote_ones() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let endpoints = [a.pod_a(), a.pod_c()];
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &endpoints));
        let expected = [Answer::new("a", a.client), Answer::new("c", a.node1)];
        for protocol in L4 {
            answers(&lab.client, protocol, (a.vip, 80).into(), &expected);
            answers(
                &lab.client,
                protocol,
                (a.node1, NODE_PORT).into(),
                &expected,
            );
        }
    }
}

#[test]
fn local_reaches_endpoints_of_this_node_only_and_keeps_the_client() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let endpoints = [a.pod_a(), a.pod_b(), a.pod_c()];
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Local, &endpoints));
        let expected = [Answer::new("a", a.client), Answer::new("b", a.client)];
        for protocol in L4 {
            answers(&lab.client, protocol, (a.vip, 80).into(), &expected);
            answers(
                &lab.client,
                protocol,
                (a.node1, NODE_PORT).into(),
                &expected,
            );
        }
    }
}

#[test]
fn local_without_an_endpoint_here_drops_but_serves_pods_and_the_node_itself() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Local, &[a.pod_c()]));
        for protocol in L4 {
            for to in [(a.vip, 80).into(), (a.node1, NODE_PORT).into()] {
                silence(&lab.client, protocol, to);
                answers(&lab.a, protocol, to, &[Answer::new("c", a.a)]);
                answers(&lab.node1, protocol, to, &[Answer::new("c", a.node1)]);
            }
        }
    }
}

#[test]
fn pods_and_the_node_itself_reach_a_service_by_its_external_address() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let endpoints = [a.pod_b(), a.pod_c()];
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &endpoints));
        for protocol in L4 {
            for to in [(a.vip, 80).into(), (a.node1, NODE_PORT).into()] {
                let expected = [Answer::new("b", a.a), Answer::new("c", a.a)];
                answers(&lab.a, protocol, to, &expected);
                let from: BTreeSet<String> = (0..40)
                    .map(|_| ask(&lab.node1, protocol, to).unwrap().pod)
                    .collect();
                assert_eq!(from, ["b".to_owned(), "c".to_owned()].into());
            }
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let _forwarder = with(&lab, &service(&a, policy, &[a.pod_a()]));
            for protocol in L4 {
                for to in [(a.vip, 80).into(), (a.node1, NODE_PORT).into()] {
                    let answer = ask(&lab.a, protocol, to).unwrap();
                    assert_eq!(answer.pod, "a");
                    assert_ne!(answer.client, a.a, "a pod that hears itself answers itself");
                }
            }
        }
    }
}

#[test]
fn a_port_that_no_service_has_is_rejected_and_never_routed_on() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &[a.pod_a()]));
        let received = || -> u64 {
            let text = lab
                .node1
                .sh("cat /sys/class/net/eth0/statistics/rx_packets")
                .unwrap();
            text.trim().parse().unwrap()
        };
        for protocol in L4 {
            let before = received();
            for from in [&lab.client, &lab.a, &lab.node1] {
                refused(from, protocol, (a.vip, 81).into());
            }
            let count = received() - before;
            assert!(count < 20, "node1 received {count} packets");
        }
    }
}

#[test]
fn a_service_without_endpoints_is_rejected() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let _forwarder = with(&lab, &service(&a, policy, &[]));
            for protocol in L4 {
                for from in [&lab.client, &lab.a, &lab.node1] {
                    refused(from, protocol, (a.vip, 80).into());
                    refused(from, protocol, (a.node1, NODE_PORT).into());
                }
            }
        }
    }
}

#[test]
fn an_external_address_answers_echo_requests() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &[a.pod_a()]));
        for from in [&lab.client, &lab.a, &lab.node1] {
            from.sh(&format!("ping -c 1 -W 5 {}", a.vip)).unwrap();
        }
        let unknown = a.vip.to_string().replace("10", "99");
        lab.client
            .sh(&format!("ping -c 1 -W 1 {unknown}"))
            .unwrap_err();
    }
}

#[test]
fn source_ranges_bind_on_external_addresses_and_not_on_node_ports() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let plain = service(&a, policy, &[a.pod_a()]);
            let client = ipnet::IpNet::from(a.client);
            let others = match client {
                ipnet::IpNet::V4(_) => "198.18.0.0/15",
                ipnet::IpNet::V6(_) => "2001:db8:5::/48",
            }
            .parse()
            .unwrap();
            let denied = Service {
                source_ranges: vec![others],
                ..plain.clone()
            };
            let allowed = Service {
                source_ranges: vec![others, client, client],
                ..plain
            };
            let mut forwarder = with(&lab, &denied);
            for protocol in L4 {
                silence(&lab.client, protocol, (a.vip, 80).into());
                ask(&lab.client, protocol, (a.node1, NODE_PORT).into()).unwrap();
            }
            forwarder
                .apply([(key("web"), Some(allowed))].into())
                .unwrap();
            for protocol in L4 {
                let answer = ask(&lab.client, protocol, (a.vip, 80).into()).unwrap();
                assert_eq!(answer, Answer::new("a", a.client));
            }
            forwarder
                .apply([(key("web"), Some(denied))].into())
                .unwrap();
            for protocol in L4 {
                silence(&lab.client, protocol, (a.vip, 80).into());
            }
        }
    }
}

#[test]
fn with_affinity_a_client_keeps_its_endpoint_and_clients_spread() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut service = service(
            &a,
            ExternalPolicy::Cluster,
            &[a.pod_a(), a.pod_b(), a.pod_c()],
        );
        service.affinity = true;
        let mut forwarder = with(&lab, &service);
        let mut seen = BTreeSet::new();
        for client in 0..40 {
            // Another address for the client, and a route back to it.
            let source = match a.client {
                std::net::IpAddr::V4(_) => format!("192.0.2.{}/32", 150 + client),
                std::net::IpAddr::V6(_) => format!("2001:db8::{}/128", 150 + client),
            };
            let nodad = if a.client.is_ipv6() { "nodad" } else { "" };
            let (vip, family) = (a.vip, if a.client.is_ipv6() { "-6" } else { "-4" });
            let plain = source.split('/').next().unwrap();
            let via = a.node1;
            lab.client
                .sh(&format!(
                    "ip addr add {source} dev eth0 {nodad}; \
                     ip {family} route replace {vip} via {via} src {plain}"
                ))
                .unwrap();
            let to = (vip, 80).into();
            let first = ask(&lab.client, Protocol::Tcp, to).unwrap().pod;
            for protocol in [Protocol::Tcp, Protocol::Tcp, Protocol::Tcp] {
                assert_eq!(ask(&lab.client, protocol, to).unwrap().pod, first);
            }
            seen.insert(first.clone());
            if client < 5 && first != "a" {
                // Another endpoint's end does not move this client.
                let mut fewer = service.clone();
                for port in &mut fewer.ports {
                    port.endpoints.retain(|e| e.address != a.a);
                }
                forwarder.apply([(key("web"), Some(fewer))].into()).unwrap();
                assert_eq!(ask(&lab.client, Protocol::Tcp, to).unwrap().pod, first);
                forwarder
                    .apply([(key("web"), Some(service.clone()))].into())
                    .unwrap();
            }
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        let vip = a.vip;
        let family = if vip.is_ipv6() { "-6" } else { "-4" };
        lab.client
            .sh(&format!("ip {family} route del {vip}"))
            .unwrap();
    }
}
