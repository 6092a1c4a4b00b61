//! Second chances: connections that were open when their address moved.
//!
//! The client's route plays the switch that learned the new owner's address:
//! first it leads to node1, then to node2.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use bellrock_e2e::netns::{Netns, as_root, wait_for};
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Node, SecondChance, Service};
use common::ask::{L4, ask};
use common::lab::{Addresses, Answer, Lab, PATIENCE, connect, echo};
use common::{ip, key, service, with};

/// node2 as the forwarder there sees it.
fn as_node2() -> Node {
    Node {
        node_port_addresses: [Addresses::v4().node2, Addresses::v6().node2].into(),
        local_pod_networks: ["10.244.2.0/24", "fd00:244:0:2::/64"]
            .map(|n| n.parse().unwrap())
            .into(),
        ..Lab::node()
    }
}

/// The Service on both nodes; each sees other endpoints as its own.
fn web(a: &Addresses, here: fn(&Addresses, IpAddr) -> bool) -> Service {
    let endpoints = [a.pod_a(), a.pod_c()].map(|e| Endpoint {
        local: here(a, e.address),
        ..e
    });
    service(a, ExternalPolicy::Cluster, &endpoints)
}

fn on_node2(lab: &Lab, a: &Addresses) -> Forwarder {
    let mut forwarder = lab.node2.run(Forwarder::open).unwrap().unwrap();
    let services = [(key("web"), web(a, |a, e| e == a.c))].into();
    forwarder.sync(&as_node2(), &services).unwrap();
    forwarder
}

/// Leads the client's packets to another node; for the rest of the machine
/// nothing changes.
fn move_to(lab: &Lab, a: &Addresses, node: IpAddr) {
    lab.client
        .sh(&format!("ip route replace {} via {node}", a.vip))
        .unwrap();
}

fn index(host: &Netns, device: &str) -> u32 {
    let path = format!("cat /sys/class/net/{device}/ifindex");
    // `ip netns exec` mounts the namespace's own sysfs.
    host.sh(&path).unwrap().trim().parse().unwrap()
}

fn chances(lab: &Lab, a: &Addresses, lasts: Duration) -> BTreeMap<IpAddr, SecondChance> {
    let chance = SecondChance {
        interface: index(&lab.node2, "eth0"),
        previous: a.node1,
        lasts,
    };
    [(a.vip, chance)].into()
}

const HOUR: Duration = Duration::from_secs(3600);

/// Connections to the Service of which each pod holds some.
fn open(lab: &Lab, a: &Addresses) -> Vec<TcpStream> {
    let (mut streams, mut pods) = (Vec::new(), BTreeMap::new());
    while streams.len() < 16 || pods.len() < 2 {
        let (stream, answer) = lab
            .client
            .run(|| connect((a.vip, 80).into(), PATIENCE))
            .unwrap()
            .unwrap();
        *pods.entry(answer.pod).or_insert(0) += 1;
        streams.push(stream);
        assert!(streams.len() < 60, "{pods:?}");
    }
    streams
}

fn echoes(streams: &mut [TcpStream], text: &str) {
    for stream in streams {
        echo(stream, text).unwrap();
    }
}

/// The elements that `nft` lists of a family's map; none without a table.
fn listed(host: &Netns, a: &Addresses) -> String {
    host.sh("nft list ruleset").unwrap();
    host.sh("nft -j list ruleset").unwrap();
    let family = if a.vip.is_ipv4() { "ip" } else { "ip6" };
    let table = host.sh("nft list tables").unwrap();
    if !table
        .lines()
        .any(|l| l == format!("table {family} bellrock"))
    {
        return String::new();
    }
    host.sh(&format!("nft list map {family} bellrock previous"))
        .unwrap()
}

#[test]
fn open_connections_survive_a_move_and_new_ones_go_to_the_new_owner() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let _node1 = with(&lab, &web(&a, |a, e| e == a.a));
        let mut node2 = on_node2(&lab, &a);
        move_to(&lab, &a, a.node1);
        let mut streams = open(&lab, &a);

        let refused = node2.set_second_chances(&chances(&lab, &a, HOUR)).unwrap();
        assert_eq!(refused, BTreeMap::new());
        move_to(&lab, &a, a.node2);
        echoes(&mut streams, "after the move");
        // What is sent by both ways round is the same for every packet size.
        echoes(&mut streams, &"x".repeat(500));
        for protocol in L4 {
            for _ in 0..8 {
                let answer = ask(&lab.client, protocol, (a.vip, 80).into()).unwrap();
                // node2 translates: it hides the client from a pod elsewhere.
                let at_c = Answer::new("c", a.client);
                let at_a = Answer::new("a", a.node2);
                assert!([at_c, at_a].contains(&answer), "{answer:?}");
            }
        }
        assert!(listed(&lab.node2, &a).contains(&a.node1.to_string()));

        // Connections to the new owner are its own, also while there is a
        // second chance for others.
        let mut new = open(&lab, &a);
        echoes(&mut new, "new ones");
        // One that is closed leaves no trace that a later one could fall over.
        drop(streams.pop());
        echoes(&mut streams, "after another was closed");

        // Back again, as when the previous owner has restarted.
        let before = node2.set_second_chances(&BTreeMap::new()).unwrap();
        assert_eq!(before, BTreeMap::new());
        move_to(&lab, &a, a.node1);
        echoes(&mut streams, "back again");
    }
}

#[test]
fn without_a_second_chance_and_after_its_removal_connections_end_at_once() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        // All connections lead to the pod on node2, by way of node1: the pod
        // knows them by node1's address.
        let only = |here| {
            service(
                &a,
                ExternalPolicy::Cluster,
                &[Endpoint {
                    local: here,
                    ..a.pod_c()
                }],
            )
        };
        let _node1 = with(&lab, &only(false));
        let mut node2 = lab.node2.run(Forwarder::open).unwrap().unwrap();
        let services = [(key("web"), only(true))].into();
        node2.sync(&as_node2(), &services).unwrap();

        for removed in [false, true] {
            move_to(&lab, &a, a.node1);
            let (mut stream, _) = lab
                .client
                .run(|| connect((a.vip, 80).into(), PATIENCE))
                .unwrap()
                .unwrap();
            if removed {
                node2.set_second_chances(&chances(&lab, &a, HOUR)).unwrap();
                move_to(&lab, &a, a.node2);
                echo(&mut stream, "with a chance").unwrap();
                node2.set_second_chances(&BTreeMap::new()).unwrap();
                assert_eq!(listed(&lab.node2, &a), "");
            } else {
                move_to(&lab, &a, a.node2);
            }
            let error = echo(&mut stream, "without").unwrap_err();
            let kind = error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{error}");
        }
    }
}

/// The packets that a node passed on to the previous owner.
fn passed_on(host: &Netns, a: &Addresses) -> u64 {
    let family = if a.vip.is_ipv4() { "ip" } else { "ip6" };
    let chain = host
        .sh(&format!("nft list chain {family} bellrock second_chance"))
        .unwrap();
    let (_, after) = chain.split_once("counter packets ").unwrap();
    let count = after.split(' ').next().unwrap();
    count.parse().unwrap()
}

fn sent(host: &Netns) -> u64 {
    let path = "cat /sys/class/net/eth0/statistics/tx_packets";
    host.sh(path).unwrap().trim().parse().unwrap()
}

#[test]
fn what_goes_round_between_nodes_that_name_each_other_ends() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut node1 = with(&lab, &web(&a, |a, e| e == a.a));
        let mut node2 = on_node2(&lab, &a);
        move_to(&lab, &a, a.node1);
        let mut streams = open(&lab, &a);
        node2.set_second_chances(&chances(&lab, &a, HOUR)).unwrap();
        let back = SecondChance {
            interface: index(&lab.node1, "eth0"),
            previous: a.node2,
            lasts: HOUR,
        };
        node1.set_second_chances(&[(a.vip, back)].into()).unwrap();
        // Neither kernel knows the connections.
        for node in [&lab.node1, &lab.node2] {
            node.sh("conntrack -F").unwrap();
        }
        let before = sent(&lab.client);
        for stream in &mut streams {
            stream.write_all(b"round and round").unwrap();
        }
        // No answer: time enough to go round many thousand times.
        let first = streams.first_mut().unwrap();
        first
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        first.read_exact(&mut [0]).unwrap_err();
        // A hop limit of 64, less one at each node.
        let copies = passed_on(&lab.node1, &a) + passed_on(&lab.node2, &a);
        let packets = sent(&lab.client) - before;
        assert!(copies >= 32 * 16, "{copies} copies");
        assert!(
            copies <= 64 * packets,
            "{copies} copies of {packets} packets"
        );
    }
}

#[test]
fn it_ends_by_itself_also_when_nobody_is_left() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut node2 = on_node2(&lab, &a);
        let lasts = Duration::from_secs(2);
        let chance = chances(&lab, &a, lasts);
        node2.set_second_chances(&chance).unwrap();
        // Asked for again it does not begin anew.
        node2.set_second_chances(&chance).unwrap();
        assert!(listed(&lab.node2, &a).contains(&a.node1.to_string()));
        drop(node2);
        let deadline = lasts + PATIENCE;
        wait_for("the end of the second chance", deadline, || {
            let text = listed(&lab.node2, &a);
            ensure!(!text.contains(&a.node1.to_string()), "{text}");
            Ok(())
        });
        // What an earlier process left is removed by the next.
        assert_ne!(listed(&lab.node2, &a), "");
        drop(on_node2(&lab, &a));
        assert_eq!(listed(&lab.node2, &a), "");
    }
}

#[test]
fn what_someone_else_flushes_comes_back_until_its_time() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut node2 = on_node2(&lab, &a);
        node2.set_second_chances(&chances(&lab, &a, HOUR)).unwrap();
        let family = if a.vip.is_ipv4() { "ip" } else { "ip6" };
        for harm in [
            format!("nft delete table {family} bellrock"),
            format!("nft flush map {family} bellrock previous"),
            format!("nft flush chain {family} bellrock second_chance"),
            format!("nft add chain {family} bellrock other"),
            "nft flush ruleset".to_owned(),
        ] {
            assert!(!node2.check().unwrap());
            lab.node2.sh(&harm).unwrap();
            assert!(node2.check().unwrap(), "{harm}");
            node2.apply(BTreeMap::new()).unwrap();
            assert!(!node2.check().unwrap(), "{harm}");
            assert!(listed(&lab.node2, &a).contains(&a.node1.to_string()));
        }
        // And by uninstalling all of it goes.
        lab.node2.run(Forwarder::remove_table).unwrap().unwrap();
        assert_eq!(lab.node2.sh("nft list ruleset").unwrap(), "");
    }
}

#[test]
fn chances_that_cannot_be_are_refused_and_the_others_are_in_force() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let a = Addresses::v4();
    let mut node2 = lab.node2.run(Forwarder::open).unwrap().unwrap();
    let good = chances(&lab, &a, HOUR);
    assert!(node2.set_second_chances(&good).is_err(), "before a sync");
    node2.sync(&as_node2(), &BTreeMap::new()).unwrap();
    let base = good[&a.vip];
    let mut all = good;
    let cases = [
        (
            "203.0.113.20",
            "family",
            SecondChance {
                previous: ip("2001:db8::11"),
                ..base
            },
        ),
        (
            "203.0.113.21",
            "the one that moved",
            SecondChance {
                previous: ip("203.0.113.21"),
                ..base
            },
        ),
        (
            "203.0.113.22",
            "neighbour",
            SecondChance {
                previous: ip("224.0.0.1"),
                ..base
            },
        ),
        (
            "203.0.113.23",
            "index 0",
            SecondChance {
                interface: 0,
                ..base
            },
        ),
        (
            "203.0.113.24",
            "some time",
            SecondChance {
                lasts: Duration::ZERO,
                ..base
            },
        ),
    ];
    for (address, _, chance) in &cases {
        all.insert(ip(address), *chance);
    }
    // More than one message holds, all to the same previous owner.
    for n in 0..1_000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0xc612_0000 + n);
        all.insert(address.into(), base);
    }
    let refused = node2.set_second_chances(&all).unwrap();
    assert_eq!(refused.len(), cases.len());
    for (address, words, _) in &cases {
        let why = &refused[&ip(address)];
        assert!(why.contains(words) && why.ends_with('.'), "{why}");
    }
    let text = listed(&lab.node2, &a);
    let count = text.matches(&a.node1.to_string()).count();
    assert_eq!(count, 1_001, "{text}");
}
