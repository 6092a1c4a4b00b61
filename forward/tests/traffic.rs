//! Real traffic through the table: a client, two nodes, pods, each in a
//! namespace of its own.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use bellrock_e2e::netns::{Netns, as_root};
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Port, Protocol, Service};
use common::lab::{Addresses, Answer, Lab, PATIENCE, SILENCE, call, connect, echo, enter};
use common::{ip, key, port};

const L4: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const NODE_PORT: u16 = 30_080;

/// TCP and UDP on port 80, with node ports.
fn service(a: &Addresses, policy: ExternalPolicy, endpoints: &[Endpoint]) -> Service {
    Service {
        addresses: [a.vip].into(),
        ports: L4
            .map(|protocol| Port {
                node_port: Some(NODE_PORT),
                ..port(protocol, 80, endpoints)
            })
            .into(),
        policy,
        ..Service::default()
    }
}

fn with(lab: &Lab, service: &Service) -> Forwarder {
    let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
    let all = [(key("web"), service.clone())].into();
    let report = forwarder.sync(&Lab::node(), &all).unwrap();
    assert_eq!((report.programmed, report.refused), (1, BTreeMap::new()));
    forwarder
}

fn ask(from: &Netns, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
    from.run(|| call(protocol, to, PATIENCE)).unwrap()
}

/// All answers that turn up, until those expected have.
fn answers(from: &Netns, protocol: Protocol, to: SocketAddr, expected: &[Answer]) {
    let expected: BTreeSet<Answer> = expected.iter().cloned().collect();
    let mut seen = BTreeSet::new();
    // With two endpoints, 40 calls that all reach one: once in 10^11.
    for _ in 0..40 {
        seen.insert(ask(from, protocol, to).unwrap());
        if seen == expected && seen.len() > 1 {
            break;
        }
    }
    assert_eq!(seen, expected, "{protocol} to {to}");
}

/// That nobody answers, and nobody refuses.
fn silence(from: &Netns, protocol: Protocol, to: SocketAddr) {
    let error = from
        .run(|| call(protocol, to, SILENCE))
        .unwrap()
        .unwrap_err();
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    assert!(
        matches!(
            kind,
            Some(std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)
        ),
        "{protocol} to {to}: {error}"
    );
}

/// That the connection is refused: a reset, or port unreachable. A datagram
/// of the node itself is refused before it leaves the system call.
fn refused(from: &Netns, protocol: Protocol, to: SocketAddr) {
    let error = ask(from, protocol, to).unwrap_err();
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    assert!(
        matches!(
            kind,
            Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::PermissionDenied)
        ),
        "{protocol} to {to}: {error}"
    );
}

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

/// A second Service with one, two and three endpoints on its ports, so that
/// the chains of those classes stay, and their counters with them.
fn anchor(a: &Addresses) -> Service {
    let all = [a.pod_a(), a.pod_b(), a.pod_c()];
    Service {
        addresses: [ip("203.0.113.77")].into(),
        ports: (1..=3)
            .map(|n| port(Protocol::Tcp, n, &all[..usize::from(n)]))
            .collect(),
        ..Service::default()
    }
}

/// Packets that came to a class's chain and found no endpoint.
fn misses(lab: &Lab) -> u64 {
    let text = lab.node1.sh("nft -j list table inet bellrock").unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = json["nftables"].as_array().unwrap();
    items
        .iter()
        .map(|item| &item["rule"])
        .filter(|rule| {
            rule["chain"]
                .as_str()
                .is_some_and(|chain| chain.starts_with("cluster"))
        })
        .filter_map(|rule| rule["expr"][0]["counter"]["packets"].as_u64())
        .sum()
}

/// As clients of UDP do: a datagram may be lost, but not refused.
fn ask_again(to: SocketAddr) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call(Protocol::Udp, to, PATIENCE / 4) {
            Ok(_) => return Ok(()),
            Err(error) => {
                let kind = error
                    .downcast_ref::<std::io::Error>()
                    .map(std::io::Error::kind);
                if tries == 4 || kind != Some(std::io::ErrorKind::WouldBlock) {
                    return Err(error);
                }
            }
        }
    }
}

/// Clients at work until dropped: new connections by TCP and UDP without a
/// pause, and one TCP connection that stays.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Load {
    fn start(lab: &Lab, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for protocol in [Some(Protocol::Tcp), Some(Protocol::Udp), None] {
            let stop = stop.clone();
            let path = lab.client.path();
            let (ready, started) = std::sync::mpsc::channel();
            threads.push(std::thread::spawn(move || -> Result<u64> {
                enter(&path)?;
                let mut count = 0;
                let mut stream = None;
                while !stop.load(Ordering::Relaxed) {
                    match (protocol, &mut stream) {
                        (Some(Protocol::Udp), _) => ask_again(to)?,
                        (Some(protocol), _) => drop(call(protocol, to, PATIENCE)?),
                        (None, None) => stream = Some(connect(to, PATIENCE)?.0),
                        (None, Some(stream)) => echo(stream, "still there?")?,
                    }
                    count += 1;
                    let _ = ready.send(());
                }
                Ok(count)
            }));
            started.recv_timeout(PATIENCE).unwrap();
        }
        Self { stop, threads }
    }

    /// Stops; fails if anything failed. Returns how much was asked.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap().unwrap())
            .sum()
    }
}

#[test]
fn a_restart_and_a_new_version_lose_nothing() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let web = service(
            &a,
            ExternalPolicy::Cluster,
            &[a.pod_a(), a.pod_b(), a.pod_c()],
        );
        let all = [(key("web"), web), (key("anchor"), anchor(&a))].into();
        let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
        forwarder.sync(&Lab::node(), &all).unwrap();
        let load = Load::start(&lab, (a.vip, 80).into());
        for round in 0..20 {
            drop(forwarder);
            if round % 5 == 4 {
                // As if another version had made it: all of it is replaced.
                lab.node1.sh("nft add chain inet bellrock other").unwrap();
            }
            forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
            let report = forwarder.sync(&Lab::node(), &all).unwrap();
            assert_eq!(report.replaced.is_some(), round % 5 == 4, "{report:?}");
            assert_eq!(report.batches, if round % 5 == 4 { 2 } else { 0 });
        }
        let asked = load.stop();
        assert!(asked > 100, "only {asked}");
        assert_eq!(misses(&lab), 0);
    }
}

#[test]
fn endpoints_come_and_go_under_load_and_no_packet_misses() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let all = [a.pod_a(), a.pod_b(), a.pod_c()];
        // The front keeps its endpoints on pods that stay up, so that whatever
        // is picked answers.
        let lists: [&[Endpoint]; 6] = [
            &all,
            &all[1..],
            &all[2..],
            &all[..1],
            &all[..2],
            &[all[0], all[2]],
        ];
        let web = |list| service(&a, ExternalPolicy::Cluster, list);
        let services = [(key("web"), web(lists[0])), (key("anchor"), anchor(&a))].into();
        let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
        forwarder.sync(&Lab::node(), &services).unwrap();
        let load = Load::start(&lab, (a.vip, 80).into());
        let flood = Flood::start(&lab, (a.vip, 80).into());
        for round in 1..150 {
            let mut next = web(lists[round % lists.len()]);
            if round % 7 == 0 {
                next.policy = ExternalPolicy::Local;
            }
            if round % 11 == 0 {
                next.source_ranges = vec![ipnet::IpNet::from(a.client)];
            }
            if round % 7 == 0 && round % lists.len() == 2 {
                // Only a remote endpoint: nothing to do under Local.
                continue;
            }
            let report = forwarder.apply([(key("web"), Some(next))].into()).unwrap();
            assert!(
                report.refused.is_empty() && report.batches > 0,
                "{report:?}"
            );
        }
        let sent = flood.stop();
        let asked = load.stop();
        assert!(sent > 1_000 && asked > 100, "only {sent} and {asked}");
        assert_eq!(misses(&lab), 0, "of {sent} packets and {asked} connections");
    }
}

#[test]
fn a_connection_lives_through_every_change_that_is_not_its_endpoints() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let all = [a.pod_a(), a.pod_b(), a.pod_c()];
        let web = |policy, list: &[Endpoint]| (key("web"), Some(service(&a, policy, list)));
        let mut forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &all[..1]));
        let (mut stream, answer) = lab
            .client
            .run(|| connect((a.vip, 80).into(), PATIENCE))
            .unwrap()
            .unwrap();
        assert_eq!(answer.pod, "a");
        let cluster = ExternalPolicy::Cluster;
        let mut sticky = service(&a, cluster, &all);
        sticky.affinity = true;
        for change in [
            web(cluster, &all),
            web(ExternalPolicy::Local, &all),
            (key("web"), Some(sticky)),
            (key("anchor"), Some(anchor(&a))),
            web(cluster, &all[..1]),
            (key("anchor"), None),
            // Even without the Service: conntrack carries what is open.
            (key("web"), None),
        ] {
            forwarder.apply([change].into()).unwrap();
            echo(&mut stream, "after a change").unwrap();
        }
        forwarder
            .set_node(&bellrock_forward::Node::default())
            .unwrap();
        // Some other translation, such as kube-proxy's, keeps the kernel's going.
        lab.node1
            .sh("nft add table inet other; \
                 nft add chain inet other in '{ type nat hook prerouting priority -100; }'; \
                 nft add chain inet other out '{ type nat hook postrouting priority 100; }'; \
                 nft add rule inet other out ip daddr 198.51.100.1 masquerade")
            .unwrap();
        lab.node1.run(Forwarder::remove_table).unwrap().unwrap();
        echo(&mut stream, "without a table").unwrap();
        lab.node1.sh("nft delete table inet other").unwrap();
    }
}

/// Datagrams, each of a flow of its own, without waiting for answers.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Flood {
    fn start(lab: &Lab, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (lab.client.path(), stop.clone());
        let any = if to.is_ipv4() {
            ip("0.0.0.0")
        } else {
            ip("::")
        };
        let thread = std::thread::spawn(move || -> Result<u64> {
            enter(&path)?;
            let mut sent = 0;
            // Bounded, so that the connection table is not the test.
            while !stopped.load(Ordering::Relaxed) && sent < 40_000 {
                let socket = UdpSocket::bind((any, 0))?;
                // A full queue is the machine's, not ours.
                sent += u64::from(socket.send_to(b"x", to).is_ok());
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}
