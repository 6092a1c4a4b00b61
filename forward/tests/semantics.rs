//! What kube-proxy promises for external traffic, beyond the plain cases of
//! `traffic.rs`: shapes of Services, where endpoints live, SCTP, odd input.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use bellrock_e2e::netns::as_root;
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Port, Protocol, Service};
use common::ask::{L4, answers, ask, refused, silence};
use common::lab::{Addresses, Answer, Lab, PATIENCE, PORT, SILENCE};
use common::sctp::{CLIENT_PORT, Packet, Raw};
use common::{NODE_PORT, key, port, service, with};

/// Packets that node1 received from its segment.
fn received(lab: &Lab) -> u64 {
    let text = lab
        .node1
        .sh("cat /sys/class/net/eth0/statistics/rx_packets")
        .unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn one_port_number_leads_to_other_endpoints_by_protocol() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mixed = Service {
            ports: vec![
                port(Protocol::Tcp, 53, &[a.pod_a()]),
                port(Protocol::Udp, 53, &[a.pod_b()]),
            ],
            ..service(&a, ExternalPolicy::Cluster, &[])
        };
        let mut forwarder = with(&lab, &mixed);
        let to = (a.vip, 53).into();
        assert_eq!(ask(&lab.client, Protocol::Tcp, to).unwrap().pod, "a");
        assert_eq!(ask(&lab.client, Protocol::Udp, to).unwrap().pod, "b");
        let mut tcp = mixed;
        tcp.ports.pop();
        forwarder.apply([(key("web"), Some(tcp))].into()).unwrap();
        assert_eq!(ask(&lab.client, Protocol::Tcp, to).unwrap().pod, "a");
        refused(&lab.client, Protocol::Udp, to);
    }
}

#[test]
fn services_that_share_an_address_do_not_disturb_each_other() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let of = |number, policy, endpoint| Service {
            ports: L4.map(|l4| port(l4, number, &[endpoint])).into(),
            ..service(&a, policy, &[])
        };
        let web = of(80, ExternalPolicy::Cluster, a.pod_a());
        let dns = of(53, ExternalPolicy::Local, a.pod_b());
        let mut forwarder = with(&lab, &web);
        forwarder
            .apply([(key("dns"), Some(dns.clone()))].into())
            .unwrap();
        for l4 in L4 {
            assert_eq!(ask(&lab.client, l4, (a.vip, 80).into()).unwrap().pod, "a");
            assert_eq!(ask(&lab.client, l4, (a.vip, 53).into()).unwrap().pod, "b");
        }
        forwarder.apply([(key("web"), None)].into()).unwrap();
        for l4 in L4 {
            refused(&lab.client, l4, (a.vip, 80).into());
            let answer = ask(&lab.client, l4, (a.vip, 53).into()).unwrap();
            assert_eq!(answer, Answer::new("b", a.client));
        }
        // The address stays ours as long as one Service has it.
        lab.client.sh(&format!("ping -c 1 -W 5 {}", a.vip)).unwrap();
        forwarder.apply([(key("dns"), None)].into()).unwrap();
        lab.client
            .sh(&format!("ping -c 1 -W 1 {}", a.vip))
            .unwrap_err();
    }
}

#[test]
fn a_service_without_an_address_is_served_on_its_node_port() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let of = |policy, endpoints: &[Endpoint]| Service {
            addresses: BTreeSet::new(),
            ..service(&a, policy, endpoints)
        };
        let mut forwarder = with(&lab, &of(ExternalPolicy::Cluster, &[a.pod_a(), a.pod_c()]));
        let to = (a.node1, NODE_PORT).into();
        for l4 in L4 {
            let expected = [Answer::new("a", a.client), Answer::new("c", a.node1)];
            answers(&lab.client, l4, to, &expected);
            answers(
                &lab.b,
                l4,
                to,
                &[Answer::new("a", a.b), Answer::new("c", a.b)],
            );
            assert!(["a", "c"].contains(&ask(&lab.node1, l4, to).unwrap().pod.as_str()));
            // The node's other ports are none of our business.
            let own = ask(&lab.client, l4, (a.node1, PORT).into()).unwrap();
            assert_eq!(own, Answer::new("node1", a.client));
        }
        refused(&lab.client, Protocol::Tcp, (a.node1, NODE_PORT + 1).into());
        let local = of(ExternalPolicy::Local, &[a.pod_c()]);
        forwarder.apply([(key("web"), Some(local))].into()).unwrap();
        for l4 in L4 {
            silence(&lab.client, l4, to);
            answers(&lab.a, l4, to, &[Answer::new("c", a.a)]);
        }
        let local = of(ExternalPolicy::Local, &[a.pod_b(), a.pod_c()]);
        forwarder.apply([(key("web"), Some(local))].into()).unwrap();
        for l4 in L4 {
            answers(&lab.client, l4, to, &[Answer::new("b", a.client)]);
        }
    }
}

#[test]
fn without_node_ports_the_external_address_alone_is_served() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut web = service(&a, ExternalPolicy::Cluster, &[a.pod_a()]);
        for port in &mut web.ports {
            port.node_port = None;
        }
        let _forwarder = with(&lab, &web);
        for l4 in L4 {
            assert_eq!(ask(&lab.client, l4, (a.vip, 80).into()).unwrap().pod, "a");
            refused(&lab.client, l4, (a.node1, NODE_PORT).into());
        }
    }
}

#[test]
fn endpoints_on_the_host_network_are_reached_by_everyone() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let here = Endpoint {
            address: a.node1,
            port: PORT,
            local: true,
        };
        let there = Endpoint {
            address: a.node2,
            port: PORT,
            local: false,
        };
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let _forwarder = with(&lab, &service(&a, policy, &[here, there]));
            for to in [(a.vip, 80).into(), (a.node1, NODE_PORT).into()] {
                for l4 in L4 {
                    let mut expected = vec![Answer::new("node1", a.client)];
                    if policy == ExternalPolicy::Cluster {
                        expected.push(Answer::new("node2", a.node1));
                    }
                    answers(&lab.client, l4, to, &expected);
                    let expected = [Answer::new("node1", a.a), Answer::new("node2", a.a)];
                    answers(&lab.a, l4, to, &expected);
                    // A process of the node reaches its own neighbour, too.
                    let seen: BTreeSet<String> = (0..40)
                        .map(|_| ask(&lab.node1, l4, to).unwrap().pod)
                        .collect();
                    assert_eq!(seen, ["node1".to_owned(), "node2".to_owned()].into());
                }
            }
        }
    }
}

#[test]
fn an_endpoint_beside_the_client_is_reached_and_answers_through_the_node() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    // A hand-made slice of a Service without selector: the endpoint is no pod,
    // and its own way back to the client does not pass the node.
    for a in Addresses::both() {
        let outside = Endpoint {
            address: a.node2,
            port: PORT,
            local: false,
        };
        let _forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &[outside]));
        for l4 in L4 {
            let answer = ask(&lab.client, l4, (a.vip, 80).into()).unwrap();
            assert_eq!(answer, Answer::new("node2", a.node1));
        }
    }
}

#[test]
fn with_affinity_the_transport_protocol_does_not_matter() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let mut web = service(&a, policy, &[a.pod_a(), a.pod_b(), a.pod_c()]);
            web.affinity = true;
            let _forwarder = with(&lab, &web);
            // A flow of the round before, whose port comes by chance again, would
            // go on to its own endpoint.
            lab.node1.sh("conntrack -F").unwrap();
            let seen: BTreeSet<String> = (0..10)
                .flat_map(|_| L4)
                .map(|l4| ask(&lab.client, l4, (a.vip, 80).into()).unwrap().pod)
                .collect();
            assert_eq!(seen.len(), 1, "{seen:?}");
        }
    }
}

/// One INIT to the front, as the pod sees it, and the INIT ACK, as the client
/// sees it.
fn associate(client: &Raw, pod: &Raw, to: SocketAddr, from: u16) -> Option<(IpAddr, IpAddr)> {
    let init = Packet::init(from, to.port());
    client.send(&init, to.ip());
    let (seen, sender) = pod.packet(PATIENCE).unwrap()?;
    assert_eq!((seen.to, seen.kind), (PORT, 1));
    pod.send(&seen.answer(), sender);
    let (back, from) = client.packet(PATIENCE).unwrap()?;
    assert_eq!(back, init.answer());
    Some((sender, from))
}

#[test]
fn an_sctp_association_is_forwarded_there_and_back() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let client = Raw::sctp(&lab.client, a.client);
        let fronts = [
            SocketAddr::new(a.vip, 36_412),
            SocketAddr::new(a.node1, NODE_PORT),
        ];
        let sctp = |policy, endpoints: &[Endpoint]| Service {
            ports: vec![Port {
                node_port: Some(NODE_PORT),
                ..port(Protocol::Sctp, 36_412, endpoints)
            }],
            ..service(&a, policy, &[])
        };
        // Each association from a port of its own.
        let mut from = CLIENT_PORT..;
        let (cluster, local) = (ExternalPolicy::Cluster, ExternalPolicy::Local);
        for (host, endpoints, policy, sees) in [
            (&lab.a, &[a.pod_a()][..], cluster, a.client),
            (&lab.c, &[a.pod_c()], cluster, a.node1),
            (&lab.a, &[a.pod_a(), a.pod_c()], local, a.client),
        ] {
            let pod = Raw::sctp(host, a.client);
            let _forwarder = with(&lab, &sctp(policy, endpoints));
            for to in fronts {
                let (seen, back) =
                    associate(&client, &pod, to, from.next().unwrap()).expect("an INIT ACK");
                assert_eq!((seen, back), (sees, to.ip()), "to {to}, {policy:?}");
            }
        }
        // Policy Local without an endpoint here drops, and rejects nothing.
        let pod = Raw::sctp(&lab.c, a.client);
        let _forwarder = with(&lab, &sctp(local, &[a.pod_c()]));
        for to in fronts {
            client.send(&Packet::init(from.next().unwrap(), to.port()), to.ip());
            assert_eq!(pod.packet(SILENCE).unwrap(), None);
            assert_eq!(client.packet(SILENCE).unwrap(), None);
        }
    }
}

#[test]
fn sctp_to_a_port_that_nobody_serves_is_rejected_and_goes_round_no_loop() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let sctp = Service {
            ports: vec![port(Protocol::Sctp, 36_412, &[a.pod_a()])],
            ..service(&a, ExternalPolicy::Cluster, &[])
        };
        let _forwarder = with(&lab, &sctp);
        let client = Raw::sctp(&lab.client, a.client);
        let icmp = Raw::icmp(&lab.client, a.client);
        let before = received(&lab);
        client.send(&Packet::init(CLIENT_PORT, 36_413), a.vip);
        // Destination unreachable, port unreachable: RFC 792, RFC 4443.
        let expected = if a.vip.is_ipv4() { [3, 3] } else { [1, 4] };
        loop {
            let (bytes, _) = icmp.receive(PATIENCE).unwrap().expect("an ICMP error");
            // Neighbour discovery is ICMPv6 too.
            if bytes[0] == expected[0] {
                assert_eq!(bytes[..2], expected);
                break;
            }
        }
        assert_eq!(client.packet(SILENCE).unwrap(), None);
        // A loop through the router would be some 64 packets.
        let count = received(&lab) - before;
        assert!(count < 15, "node1 received {count} packets");
    }
}

#[test]
fn duplicates_and_the_last_port_are_served_and_a_thousand_endpoints_programmed() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        // The same two pods a hundred times over, and on the highest port.
        let twice: Vec<Endpoint> = [a.pod_a(), a.pod_b()].repeat(100);
        let web = Service {
            ports: L4.map(|l4| port(l4, u16::MAX, &twice)).into(),
            ..service(&a, ExternalPolicy::Cluster, &[])
        };
        let forwarder = with(&lab, &web);
        let expected = [Answer::new("a", a.client), Answer::new("b", a.client)];
        for l4 in L4 {
            answers(&lab.client, l4, (a.vip, u16::MAX).into(), &expected);
        }
        drop(forwarder);

        // More endpoints than a slice holds by default: a chain of a thousand
        // slots. Few of them are real, so nobody calls.
        let thousand: Vec<Endpoint> = (0..999_u16)
            .map(|n| Endpoint {
                port: 10_000 + n,
                ..a.pod_a()
            })
            .chain([a.pod_a()])
            .collect();
        let web = Service {
            ports: vec![port(Protocol::Udp, 80, &thousand)],
            ..service(&a, ExternalPolicy::Cluster, &[])
        };
        let forwarder = with(&lab, &web);
        let text = lab.node1.sh("nft list table inet bellrock").unwrap();
        let family = if a.vip.is_ipv4() { '4' } else { '6' };
        assert!(text.contains(&format!("chain cluster{family}_1000 ")));
        drop(forwarder);
        // Nothing is left over for a new process to do.
        let mut next = lab.node1.run(Forwarder::open).unwrap().unwrap();
        let report = next
            .sync(&Lab::node(), &[(key("web"), web)].into())
            .unwrap();
        assert_eq!((report.batches, report.refused), (0, BTreeMap::new()));
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_a_sentence_and_disturbs_nobody() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let good = service(&a, ExternalPolicy::Cluster, &[a.pod_a()]);
        let mut forwarder = with(&lab, &good);
        let bad = |change: &dyn Fn(&mut Port)| {
            let mut port = port(Protocol::Tcp, 8443, &[a.pod_b()]);
            change(&mut port);
            Service {
                ports: vec![port],
                ..good.clone()
            }
        };
        let multicast = if a.vip.is_ipv4() {
            "224.0.0.1"
        } else {
            "ff02::1"
        };
        for (service, why) in [
            (bad(&|p| p.port = 0), "not a port"),
            (bad(&|p| p.node_port = Some(0)), "not a port"),
            (bad(&|p| p.endpoints[0].port = 0), "not a port"),
            (
                bad(&|p| p.endpoints[0].address = multicast.parse().unwrap()),
                "has the endpoint",
            ),
            (
                Service {
                    addresses: [multicast.parse().unwrap()].into(),
                    ..good.clone()
                },
                "not an address that a Service can have",
            ),
        ] {
            let report = forwarder
                .apply([(key("bad"), Some(service))].into())
                .unwrap();
            let said = &report.refused[&key("bad")];
            assert!(said.contains(why), "{said}");
            assert_eq!(report.programmed, 1);
            for l4 in L4 {
                assert_eq!(ask(&lab.client, l4, (a.vip, 80).into()).unwrap().pod, "a");
            }
        }
    }
}

#[test]
fn endpoints_of_the_other_family_are_left_to_the_other_address() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let [four, six] = Addresses::both();
    let endpoints = [four.pod_a(), six.pod_b()];
    let dual = Service {
        addresses: [four.vip, six.vip].into(),
        ..service(&four, ExternalPolicy::Cluster, &endpoints)
    };
    let mut forwarder = with(&lab, &dual);
    for l4 in L4 {
        assert_eq!(
            ask(&lab.client, l4, (four.vip, 80).into()).unwrap().pod,
            "a"
        );
        assert_eq!(ask(&lab.client, l4, (six.vip, 80).into()).unwrap().pod, "b");
    }
    // A family that loses its last endpoint is rejected; the other goes on.
    let mut one = dual;
    for port in &mut one.ports {
        port.endpoints.retain(|e| e.address.is_ipv4());
    }
    forwarder.apply([(key("web"), Some(one))].into()).unwrap();
    for l4 in L4 {
        assert_eq!(
            ask(&lab.client, l4, (four.vip, 80).into()).unwrap().pod,
            "a"
        );
        refused(&lab.client, l4, (six.vip, 80).into());
    }
}
