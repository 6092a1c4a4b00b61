//! A host on the segment that means no good: what it sends is counted by kind,
//! and never acted on wrongly.

use std::net::IpAddr;

use anyhow::ensure;
use bellrock_arp::frame::{
    Advertisement, Arp, Body, Credentials, ETHERTYPE, Ethernet, GROUP, Message, Solicitation,
};
use bellrock_arp::{Cause, Event, MacAddr, State};
use bellrock_e2e::netns::{Netns, as_root, wait_for};
use bellrock_sys::packet::PacketSocket;

use super::lab::{KEY, Lab, PATIENCE, V4, V6, assignment, host, mac, switch};

/// A station that sends whatever it likes.
struct Attacker {
    socket: PacketSocket,
    mac: MacAddr,
    _ns: Netns,
}

impl Attacker {
    fn new(lab: &Lab) -> Self {
        let ns = host(&lab.switch, "attacker", "attacker", 66);
        let index = ns.sh("cat /sys/class/net/eth1/ifindex").unwrap();
        let index = index.trim().parse().unwrap();
        let open = || PacketSocket::open(index, ETHERTYPE, &[GROUP.octets()]);
        Self {
            socket: ns.run(open).unwrap().unwrap(),
            mac: mac(&ns, "eth1").parse().unwrap(),
            _ns: ns,
        }
    }

    /// The next frame of a node to its peers.
    fn overhear(&self, of: MacAddr) -> Vec<u8> {
        let mut buffer = [0; 2048];
        wait_for("a frame to the group", PATIENCE, || {
            let length = self.socket.receive(&mut buffer)?;
            let frame = &buffer[..length.unwrap_or(0)];
            ensure!(Ethernet::decode(frame)?.source == of);
            Ok(frame.to_vec())
        })
    }

    /// A claim to all that there is, in the name of `node`.
    fn claim(&self, node: &str, cluster: &str, key: &[u8]) -> Vec<u8> {
        let message = Message {
            node: node.to_owned(),
            incarnation: u64::MAX,
            seq: u64::MAX,
            body: Body::Claim(vec![(V4, u64::MAX), (V6, u64::MAX)]),
        };
        message.frame(&Credentials::new(cluster, key), ETHERTYPE, self.mac, GROUP)
    }
}

fn with(frame: &[u8], offset: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[offset] = byte;
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0, 0, 7]);
    frame
}

fn v4(address: IpAddr) -> std::net::Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => panic!("an IPv4 address"),
    }
}

fn v6(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => panic!("an IPv6 address"),
    }
}

#[test]
fn forged_damaged_and_spoofed_frames_are_counted_and_move_nothing() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::steady(switch(), V4, 2).settle();
    for node in &lab.nodes {
        node.handle.assign(V6, assignment(&["node-1", "node-2"]));
    }
    let owns_both = |lab: &Lab| {
        wait_for("the owner of both", PATIENCE, || {
            for vip in [V4, V6] {
                let state = lab.nodes[0].state(vip)?;
                ensure!(state.state == State::Own, "{vip}: {state:?}");
            }
            Ok(())
        });
    };
    owns_both(&lab);
    let epoch = lab.nodes[0].state(V4).unwrap().epoch;
    let attacker = Attacker::new(&lab);
    let prober = lab.prober();
    let owner: MacAddr = lab.nodes[0].mac.parse().unwrap();

    let arp = Arp::announcement(attacker.mac, v4(V4)).frame();
    let tell = Advertisement::announcement(attacker.mac, v6(V6)).frame();
    let ask = Solicitation::probe(attacker.mac, v6(V6), [7; 6]).frame();
    let hello = attacker.overhear(lab.nodes[1].mac.parse().unwrap());
    let noise = |ethertype| {
        Ethernet {
            destination: MacAddr::broadcast(),
            source: attacker.mac,
            ethertype,
            payload: &[0xff; 1500],
        }
        .encode()
    };
    let mut looped = Advertisement::announcement(owner, v6(V6)).frame();
    looped[6..12].copy_from_slice(&attacker.mac.octets());
    // By the counter that must tell of them, and how often.
    let cases: [(&str, u64, Vec<Vec<u8>>); 14] = [
        (
            "other_cluster",
            1,
            vec![attacker.claim("node-2", "other", KEY)],
        ),
        (
            "tag",
            3,
            vec![
                attacker.claim("node-2", "test", b"a guess of some length"),
                attacker.claim("stranger", "test", b"another guess of it"),
                with(&hello, 6, hello[6] ^ 2), // as another station
            ],
        ),
        ("replay", 1, vec![hello.clone()]),
        (
            "truncated",
            2,
            vec![hello[..60].to_vec(), arp[..30].to_vec()],
        ),
        ("version", 1, vec![noise(ETHERTYPE)]),
        ("arp_format", 2, vec![with(&arp, 15, 6), noise(0x0806)]),
        ("arp_operation", 1, vec![with(&arp, 21, 9)]),
        ("arp_sender", 1, vec![with(&arp, 22, 0xff)]),
        (
            "ndp_hop_limit",
            2,
            vec![with(&tell, 21, 64), with(&ask, 21, 0)],
        ),
        (
            "ndp_checksum",
            2,
            vec![with(&tell, 70, 9), with(&ask, 57, 9)],
        ),
        ("looped", 1, vec![looped]),
        ("foreign_claims", 2, vec![arp.clone(), tell.clone()]),
        // Who looks for duplicates is told, and that is all.
        ("answers", 1, vec![ask.clone()]),
        // The kernel keeps these away.
        (
            "ethertype",
            0,
            vec![tagged(&arp), tagged(&ask), tagged(&hello)],
        ),
    ];
    let counter = |lab: &Lab, name: &str| {
        let counters = lab.nodes[0].handle.snapshot().counters;
        counters.get(name).copied().unwrap_or(0)
    };
    for (name, times, frames) in cases {
        let before = counter(&lab, name);
        for frame in &frames {
            attacker.socket.send(frame).unwrap();
        }
        wait_for(name, PATIENCE, || {
            let told = counter(&lab, name) - before;
            ensure!(told >= times, "{told} of {times}");
            Ok(())
        });
    }
    lab.answered(&prober, 50);
    // The spoofed announcement was answered by one of the owner's.
    lab.wait_neighbour(&lab.nodes[0].mac);
    owns_both(&lab);
    assert_eq!(lab.nodes[0].state(V4).unwrap().epoch, epoch);
    let peers = lab.nodes[0].handle.snapshot().interfaces["eth1"]
        .peers
        .len();
    assert_eq!(peers, 1, "a forged frame makes no peer");
    assert_eq!(lab.nodes[1].handle.snapshot().counters.get("claims"), None);
    let lost =
        |event: &Event| matches!(event, Event::Lost { cause, .. } if *cause != Cause::Frozen);
    while let Some(event) = lab.nodes[0].next_event() {
        assert!(!lost(&event), "{event:?}");
    }
}
