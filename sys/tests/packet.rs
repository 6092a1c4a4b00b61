//! Packet sockets against the kernel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of a test fail loudly"
)]

use std::os::fd::AsFd;
use std::time::Duration;

use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};
use bellrock_sys::packet::PacketSocket;
use bellrock_sys::wait;

const OURS: u16 = 0x88b5;
const GROUP: [u8; 6] = [0x03, 0x42, 0x52, 0x4b, 0x88, 0xb5];
const BROADCAST: [u8; 6] = [0xff; 6];

fn index(ns: &Netns, device: &str) -> u32 {
    let index = ns
        .sh(&format!("cat /sys/class/net/{device}/ifindex"))
        .unwrap();
    index.trim().parse().unwrap()
}

fn open(ns: &Netns, device: &str) -> PacketSocket {
    let index = index(ns, device);
    ns.run(|| PacketSocket::open(index, OURS, &[GROUP]))
        .unwrap()
        .unwrap()
}

fn mac(ns: &Netns, device: &str) -> [u8; 6] {
    let text = ns
        .sh(&format!("cat /sys/class/net/{device}/address"))
        .unwrap();
    let octets: Vec<u8> = text
        .trim()
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).unwrap())
        .collect();
    octets.try_into().unwrap()
}

fn frame(to: [u8; 6], from: [u8; 6], rest: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], rest].concat()
}

fn next(socket: &PacketSocket) -> Vec<u8> {
    let mut ready = Vec::new();
    wait::readable(&[socket.as_fd()], Some(Duration::from_secs(10)), &mut ready).unwrap();
    let mut buffer = [0; 1514];
    let length = socket
        .receive(&mut buffer)
        .unwrap()
        .expect("a frame within 10 s");
    buffer[..length].to_vec()
}

#[test]
fn only_whole_untagged_frames_of_the_ethertype_that_are_meant_for_this_host_arrive() {
    if !as_root() {
        return;
    }
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "eth0", &b, "eth0").unwrap();
    // What the hardware filter would keep out must be kept out by ours too.
    b.sh("ip link set eth0 promisc on").unwrap();
    let (sender, receiver) = (open(&a, "eth0"), open(&b, "eth0"));
    let (from, to) = (mac(&a, "eth0"), mac(&b, "eth0"));
    wait_for("carrier", Duration::from_secs(10), || {
        a.sh("ip link show eth0 | grep -q LOWER_UP")
    });

    let unwanted: [Vec<u8>; 4] = [
        // another protocol (ARP)
        frame(BROADCAST, from, &[0x08, 0x06, 1]),
        // another host's
        frame([2, 0, 0, 0, 0, 9], from, &[0x88, 0xb5, 2]),
        // tagged for VLAN 7
        frame(BROADCAST, from, &[0x81, 0x00, 0x00, 0x07, 0x88, 0xb5, 3]),
        // our own direction
        frame(to, from, &[0x08, 0x00, 4]),
    ];
    for unwanted in &unwanted {
        sender.send(unwanted).unwrap();
    }
    receiver.send(&frame(from, to, &[0x88, 0xb5, 5])).unwrap();
    let wanted = [
        frame(to, from, &[0x88, 0xb5, 6]),
        frame(BROADCAST, from, &[0x88, 0xb5, 7]),
        frame(GROUP, from, &[0x88, 0xb5, 8]),
    ];
    for wanted in &wanted {
        sender.send(wanted).unwrap();
    }
    for wanted in &wanted {
        assert_eq!(&next(&receiver), wanted);
    }
    assert_eq!(receiver.receive(&mut [0; 64]).unwrap(), None);
    assert_eq!(
        next(&sender),
        frame(from, to, &[0x88, 0xb5, 5]),
        "and the other way"
    );
}

#[test]
fn of_ipv6_only_neighbour_solicitations_and_advertisements_arrive() {
    if !as_root() {
        return;
    }
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    // The kernels shall not speak of themselves here.
    for ns in [&a, &b] {
        ns.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
            .unwrap();
    }
    veth(&a, "eth0", &b, "eth0").unwrap();
    b.sh("ip link set eth0 promisc on").unwrap();
    let sender = open(&a, "eth0");
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let receiver = index(&b, "eth0");
    let receiver = b
        .run(|| PacketSocket::open_neighbour_discovery(receiver, &[group]))
        .unwrap()
        .unwrap();
    let (from, to) = (mac(&a, "eth0"), mac(&b, "eth0"));
    wait_for("carrier", Duration::from_secs(10), || {
        a.sh("ip link show eth0 | grep -q LOWER_UP")
    });

    let packet = |next_header: u8, kind: u8, mark: u8| {
        let mut packet = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, next_header, 255];
        packet.extend([0; 32]);
        packet.extend([kind, 0, 0, mark]);
        packet.extend([0; 20]);
        packet
    };
    let other_host = [2, 0, 0, 0, 0, 9];
    let tagged = [&[0x81, 0x00, 0x00, 0x07][..], &packet(58, 135, 1)].concat();
    let unwanted = [
        frame(group, from, &tagged),
        frame(other_host, from, &packet(58, 135, 2)),
        frame(group, from, &packet(58, 134, 3)), // router advertisement
        frame(group, from, &packet(58, 137, 4)), // redirect
        frame(to, from, &packet(58, 128, 5)),    // echo request
        frame(to, from, &packet(6, 135, 6)),     // TCP
        frame(to, from, &packet(44, 135, 7)),    // fragment
        frame(to, from, &packet(58, 135, 8)[..42]), // cut before its type
        frame(to, from, &[0x08, 0x06, 9]),       // ARP
    ];
    let wanted = [
        frame(group, from, &packet(58, 135, 10)),
        frame(to, from, &packet(58, 136, 11)),
        frame(BROADCAST, from, &packet(58, 135, 12)),
    ];
    for frame in unwanted.iter().chain(&wanted) {
        sender.send(frame).unwrap();
    }
    for wanted in &wanted {
        assert_eq!(&next(&receiver), wanted);
    }
    assert_eq!(receiver.receive(&mut [0; 64]).unwrap(), None);
}

#[test]
fn a_group_is_joined_on_the_interface() {
    if !as_root() {
        return;
    }
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "eth0", &b, "eth0").unwrap();
    let socket = open(&a, "eth0");
    let joined = a.sh("ip maddress show dev eth0").unwrap();
    assert!(joined.contains("03:42:52:4b:88:b5"), "{joined}");
    drop(socket);
    let joined = a.sh("ip maddress show dev eth0").unwrap();
    assert!(!joined.contains("03:42:52:4b:88:b5"), "{joined}");
}

#[test]
fn a_removed_interface_is_told_once_and_does_not_spin() {
    if !as_root() {
        return;
    }
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "eth0", &b, "eth0").unwrap();
    let socket = open(&a, "eth0");
    a.sh("ip link delete eth0").unwrap();
    let mut ready = Vec::new();
    wait::readable(&[socket.as_fd()], Some(Duration::from_secs(10)), &mut ready).unwrap();
    assert_eq!(ready, [true]);
    let error = socket
        .receive(&mut [0; 64])
        .expect_err("the interface is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkDown);
    wait::readable(
        &[socket.as_fd()],
        Some(Duration::from_millis(20)),
        &mut ready,
    )
    .unwrap();
    assert_eq!(ready, [false]);
    assert!(socket.send(&[0; 14]).is_err());
}
