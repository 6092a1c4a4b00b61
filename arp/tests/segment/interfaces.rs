//! Interfaces that come, go and change.
#![allow(
    clippy::disallowed_methods,
    reason = "what a client waits is measured by the clock"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_arp::{Cause, Event, Handle, State};
use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};

use super::lab::{Lab, PATIENCE, V4, V6, assignment, at_once, config, host, switch};

/// The addresses of a second segment: the served one, and the subnet's prefix.
const SECOND: [(&str, &str); 2] = [
    ("10.8.0.200", "10.8.0."),
    ("2001:db8:8::c0:200", "2001:db8:8::"),
];

/// What the client must see within a second. A busy machine may be late by
/// itself, but not three times.
fn within_a_second(what: &str, vip: IpAddr, mut event: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let time = event();
        println!("{what}, {vip}: {} ms", time.as_millis());
        if time <= Duration::from_secs(1) {
            return;
        }
        took.push(time);
    }
    panic!("{what}, {vip}: {took:?}");
}

#[test]
fn an_interface_that_comes_after_the_start_answers_and_one_that_goes_is_given_up() {
    if as_root() {
        for (vip, prefix) in SECOND {
            come_and_go(vip.parse().unwrap(), prefix);
        }
    }
}

fn come_and_go(vip: IpAddr, prefix: &str) {
    let mut lab = Lab::new(vip, 1);
    lab.assign_all();
    // Where there is an interface, while none has the subnet.
    lab.nodes[0].wait_state(vip, State::Own, &["eth1"]);
    let owned = lab.nodes[0].event();
    assert!(matches!(&owned, Event::Owned { interface, .. } if interface == "eth1"));

    let (length, how) = (if vip.is_ipv4() { 24 } else { 64 }, at_once(vip));
    let add = |ns: &Netns, last: u8| {
        let address = format!("{prefix}{last}/{length}");
        ns.sh(&format!("ip addr add {address} dev eth2 {how}"))
            .unwrap();
    };
    within_a_second("a new interface", vip, || {
        let start = Instant::now();
        veth(&lab.nodes[0].ns, "eth2", &lab.client, "eth2").unwrap();
        add(&lab.client, 99);
        add(&lab.nodes[0].ns, 1);
        let prober = lab.hopeful_prober();
        lab.answered(&prober, 1);
        let took = start.elapsed();
        lab.nodes[0].wait_state(vip, State::Own, &["eth2"]);
        drop(prober);
        // And it goes.
        lab.nodes[0].ns.sh("ip link delete eth2").unwrap();
        lab.nodes[0].wait_state(vip, State::Own, &["eth1"]);
        took
    });
    let told: Vec<Event> = std::iter::from_fn(|| lab.nodes[0].next_event()).collect();
    assert!(
        told.iter().any(|event| matches!(
            event,
            Event::Lost { cause: Cause::Removed, interface, .. } if interface == "eth1"
        )),
        "{told:?}"
    );
}

#[test]
fn a_flap_or_another_hardware_address_costs_less_than_a_second() {
    if as_root() {
        flap_and_change(V4);
        flap_and_change(V6);
    }
}

fn flap_and_change(vip: IpAddr) {
    let lab = Lab::settled(vip, 1);
    let prober = lab.prober();
    within_a_second("a flap", vip, || {
        lab.switch.sh("ip link set p1 down").unwrap();
        wait_for("the lost carrier", PATIENCE, || {
            let state = lab.nodes[0].state(vip)?.state;
            ensure!(state == State::Idle, "{state}");
            Ok(())
        });
        // So that the client depends on what the node says.
        lab.client.sh("ip neigh flush dev eth1").unwrap();
        let start = Instant::now();
        lab.switch.sh("ip link set p1 up").unwrap();
        lab.wait_neighbour(&lab.nodes[0].mac);
        lab.answered(&prober, 1);
        start.elapsed()
    });

    let mut new = 0;
    within_a_second("a new hardware address", vip, || {
        new += 1;
        let mac = format!("02:00:00:00:07:0{new}");
        let start = Instant::now();
        lab.nodes[0]
            .ns
            .sh(&format!("ip link set eth1 address {mac}"))
            .unwrap();
        lab.wait_neighbour(&mac);
        lab.answered(&prober, 1);
        let took = start.elapsed();
        let snapshot = lab.nodes[0].handle.snapshot();
        assert_eq!(snapshot.interfaces["eth1"].mac.to_string(), mac);
        took
    });
}

#[test]
fn unsuitable_interfaces_are_not_served() {
    if !as_root() {
        return;
    }
    let switch = switch();
    let ns = host(&switch, "node", "p1", 1);
    // Each veth's other end is a "veth...", which is excluded by name.
    ns.sh("ip link add br-lan type bridge
         ip link add uplink address 02:00:00:00:00:77 type bridge
         ip link add member type veth peer name veth-m
         ip link add down type veth peer name veth-d
         ip link add noarp type veth peer name veth-n
         ip link set member master uplink
         ip link set noarp arp off
         for i in br-lan uplink member veth-m veth-d noarp veth-n; do ip link set $i up; done")
        .unwrap();
    let (handle, _events) = ns.run(|| Handle::start(config("node"))).unwrap().unwrap();
    let names = || -> Vec<String> { handle.snapshot().interfaces.into_keys().collect() };
    assert_eq!(names(), ["eth1", "uplink"]);

    // Membership can change.
    ns.sh("ip link set member nomaster && ip link set noarp arp on")
        .unwrap();
    wait_for("the change", PATIENCE, || {
        let names = names();
        ensure!(names == ["eth1", "member", "noarp", "uplink"], "{names:?}");
        Ok(())
    });
    ns.sh("ip link set eth1 down && ip link set eth1 name lan && ip link set lan up")
        .unwrap();
    wait_for("the new name", PATIENCE, || {
        let names = names();
        ensure!(names == ["lan", "member", "noarp", "uplink"], "{names:?}");
        Ok(())
    });
}

#[test]
fn an_address_limited_to_an_interface_is_served_there_alone() {
    if !as_root() {
        return;
    }
    let switch = switch();
    let ns = host(&switch, "node", "p1", 1);
    veth(&ns, "lan2", &switch, "p2").unwrap();
    ns.sh("ip addr add 10.7.0.9/24 dev lan2").unwrap();
    let (handle, _events) = ns.run(|| Handle::start(config("node"))).unwrap().unwrap();
    let served = |interfaces: Option<&[&str]>| {
        let mut told = assignment(&["node"]);
        told.interfaces =
            interfaces.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        handle.assign(V4, told);
        handle.snapshot().addresses[&V4].interfaces.clone()
    };
    let both = served(None);
    assert_eq!(
        BTreeSet::from_iter(both),
        BTreeSet::from(["eth1".to_owned(), "lan2".to_owned()])
    );
    assert_eq!(served(Some(&["lan2"])), ["lan2"]);
    assert_eq!(served(Some(&["none"])).len(), 0);
    handle.remove(V4);
    assert_eq!(handle.snapshot().addresses.len(), 0);
}

#[test]
fn hundreds_of_solicited_node_groups_are_joined_and_left() {
    if !as_root() {
        return;
    }
    let switch = switch();
    let ns = host(&switch, "node", "p1", 1);
    let (handle, _events) = ns.run(|| Handle::start(config("node"))).unwrap().unwrap();
    // Two addresses each that share a group.
    let addresses = |group: u16| {
        [7, 8].map(|subnet| IpAddr::from([0x2001, 0xdb8, subnet, 0, 0, 0, 0xc0, group]))
    };
    let joined = || -> usize {
        let said = ns.sh("ip maddress show dev eth1").unwrap();
        said.matches("inet6 ff02::1:ffc0:").count()
    };
    for address in (0..300).flat_map(addresses) {
        handle.assign(address, assignment(&["node"]));
    }
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.addresses.len(), joined()), (600, 300));
    assert_eq!(snapshot.counters.get("group_errors"), None);
    for group in 0..300 {
        handle.remove(addresses(group)[0]);
    }
    assert_eq!((handle.snapshot().addresses.len(), joined()), (300, 300));
    for group in 1..300 {
        handle.remove(addresses(group)[1]);
    }
    assert_eq!((handle.snapshot().addresses.len(), joined()), (1, 1));
}
