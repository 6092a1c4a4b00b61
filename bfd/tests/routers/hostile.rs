//! Datagrams of somebody who means no good.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_bfd::packet::Control;
use bellrock_bfd::{Discard, Path, SessionId, State};
use bellrock_e2e::netns::{as_root, wait_for};

use crate::lab::{Lab, NODE, PATIENCE, ROUTER, Speaker, ip, settings};

/// An octet of a datagram, as it is to be.
type Change = (usize, u8);

fn sessions(lab: &Lab) -> (Speaker, SessionId, Speaker) {
    let (node, router) = (Speaker::start(&lab.node), Speaker::start(&lab.router));
    // Where real-time priority is not allowed, a busy machine may be late.
    let prompt = node.handle.snapshot().no_real_time.is_none();
    let with = settings(50, if prompt { 3 } else { 40 });
    let id = node.handle.add(Path::single(ip(ROUTER)), with).unwrap();
    router.handle.add(Path::single(ip(NODE)), with).unwrap();
    node.wait_up(id);
    (node, id, router)
}

/// A socket on the router's side, in the place of the router.
fn attacker(lab: &Lab, ttl: u32) -> UdpSocket {
    let socket = lab
        .router
        .run(|| UdpSocket::bind((ROUTER, 0)))
        .unwrap()
        .unwrap();
    socket2::SockRef::from(&socket).set_ttl_v4(ttl).unwrap();
    socket
}

/// A Down from the peer for this session: what takes it down, unless
/// something is wrong with it.
fn forged(node: &Speaker, id: SessionId) -> Vec<u8> {
    let status = node.status(id).unwrap();
    let mut octets = vec![0x20, 0x40, 3, 24];
    octets.extend(status.remote.discriminator.unwrap().get().to_be_bytes());
    octets.extend(status.discriminator.get().to_be_bytes());
    octets.extend([0, 0x0f, 0x42, 0x40, 0, 0, 0xc3, 0x50, 0, 0, 0, 0]);
    assert!(Control::decode(&octets).is_ok());
    octets
}

#[test]
fn what_must_be_discarded_takes_nothing_down_and_is_counted() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let (node, id, _router) = sessions(&lab);
    let good = forged(&node, id);
    let with = |changes: &[Change]| {
        let mut octets = good.clone();
        for (at, value) in changes {
            octets[*at] = *value;
        }
        octets
    };
    let mut authenticated = with(&[(1, 0x44), (3, 28)]);
    authenticated.extend([1, 4, 1, b'x']);
    let unknown: [Change; 4] = [8, 9, 10, 11].map(|at| (at, good[at] ^ 0xff));
    let zero: [Change; 4] = [8, 9, 10, 11].map(|at| (at, 0));
    let anonymous = with(&[&[(1, 0xc0)][..], &zero].concat());
    let datagrams = [
        (Discard::LengthShort, Vec::new()),
        (Discard::LengthBeyond, good[..23].to_vec()),
        (Discard::LengthBeyond, with(&[(3, 255)])),
        (Discard::LengthShort, with(&[(3, 23)])),
        (Discard::Version, with(&[(0, 0x00)])),
        (Discard::Version, with(&[(0, 0xe0)])),
        (Discard::Multiplier, with(&[(2, 0)])),
        (Discard::Multipoint, with(&[(1, 0x41)])),
        (
            Discard::MyDiscriminator,
            with(&[(4, 0), (5, 0), (6, 0), (7, 0)]),
        ),
        (Discard::YourDiscriminator, with(&unknown)),
        (Discard::NoDiscriminator, anonymous),
        (Discard::Authentication, authenticated),
    ];
    let near = attacker(&lab, 255);
    let mut expected = BTreeMap::new();
    for (kind, octets) in &datagrams {
        near.send_to(octets, (NODE, 3784)).unwrap();
        *expected.entry(*kind).or_insert(0) += 1;
    }
    // A stranger, and somebody further away.
    lab.router.sh("ip addr add 192.0.2.66/24 dev eth0").unwrap();
    let stranger = lab
        .router
        .run(|| UdpSocket::bind(("192.0.2.66", 0)))
        .unwrap()
        .unwrap();
    socket2::SockRef::from(&stranger).set_ttl_v4(255).unwrap();
    stranger.send_to(&with(&zero), (NODE, 3784)).unwrap();
    expected.insert(Discard::UnknownPeer, 1);
    let far = attacker(&lab, 254);
    far.send_to(&good, (NODE, 3784)).unwrap();
    expected.insert(Discard::HopLimit, 1);
    wait_for("all to be counted", PATIENCE, || {
        let discards = node.handle.snapshot().discards;
        ensure!(discards == expected, "{discards:?}");
        Ok(())
    });
    let status = node.status(id).unwrap();
    assert_eq!((status.state, status.counters.downs), (State::Up, 0));
    // That very packet, with nothing wrong, would have.
    near.send_to(&good, (NODE, 3784)).unwrap();
    node.wait(id, "the session to go down", |status| {
        status.counters.downs == 1
    });
}

#[test]
fn a_flood_takes_nothing_down() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let (node, id, router) = sessions(&lab);
    let good = forged(&node, id);
    let far = attacker(&lab, 254);
    let (mut sent, start) = (0_u64, Instant::now());
    // Twenty Detection Times. The sender would take a core and leave the rest
    // of the machine none; it pauses now and then.
    while start.elapsed() < Duration::from_secs(3) {
        for _ in 0..2000 {
            if far.send_to(&good, (NODE, 3784)).is_ok() {
                sent += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let rate = sent / start.elapsed().as_secs().max(1);
    let discarded = wait_for("the flood to be counted", PATIENCE, || {
        let discards = node.handle.snapshot().discards;
        let count = discards
            .get(&Discard::HopLimit)
            .copied()
            .unwrap_or_default();
        ensure!(count > sent / 100, "{count} of {sent}");
        Ok(count)
    });
    println!("{rate} datagrams a second, {discarded} of {sent} read and discarded");
    for (speaker, name) in [(&node, "node"), (&router, "router")] {
        let sessions = speaker.handle.snapshot().sessions;
        let downs: u64 = sessions.values().map(|status| status.counters.downs).sum();
        assert_eq!(downs, 0, "{name}: {sessions:?}");
    }
}
