//! What each fuzz target does with its input. The tests of `bellrock-arp`
//! replay the corpus through the same functions.
//!
//! Random bytes rarely have the right checksum or tag, so the targets put in
//! what an attacker could put in: the parsers behind are what is tested.

mod script;

use bellrock_arp::MacAddr;
use bellrock_arp::frame::{Arp, Credentials, ETHERTYPE, Ethernet, GROUP, Message, Ndp};

const KEY: &[u8] = b"a key of some length";
const SOURCE: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
/// Ethernet and IPv6.
const HEADERS: usize = 54;

/// A frame of ARP: what is understood is written as it was read.
pub fn arp(data: &[u8]) {
    let Ok(ethernet) = Ethernet::decode(data) else {
        return;
    };
    assert_eq!(ethernet.encode(), data);
    if let Ok(arp) = Arp::decode(ethernet.payload) {
        let frame = arp.frame();
        let again = Ethernet::decode(&frame).map(|ethernet| Arp::decode(ethernet.payload));
        assert_eq!(again, Ok(Ok(arp)));
    }
}

/// A frame of Neighbour Discovery, its length and checksum put right.
pub fn ndp(data: &[u8]) {
    for frame in [data.to_vec(), whole(data)] {
        let Ok(ethernet) = Ethernet::decode(&frame) else {
            continue;
        };
        let Ok(ndp) = Ndp::decode(&ethernet) else {
            continue;
        };
        let again = match ndp {
            Ndp::Solicitation(asks) => asks.frame(),
            Ndp::Advertisement(tells) => tells.frame(),
        };
        let again = Ethernet::decode(&again).map(|ethernet| Ndp::decode(&ethernet));
        assert_eq!(again, Ok(Ok(ndp)));
    }
}

/// A frame among nodes, signed with the right key.
pub fn message(data: &[u8]) {
    let credentials = Credentials::new("test", KEY);
    let _ = Message::decode(&credentials, SOURCE, data);
    let Ok(message) = Message::decode(&credentials, SOURCE, &signed(data)) else {
        return;
    };
    let frame = message.frame(&credentials, ETHERTYPE, SOURCE, GROUP);
    let again = Ethernet::decode(&frame)
        .map(|ethernet| Message::decode(&credentials, ethernet.source, ethernet.payload));
    assert_eq!(again, Ok(Ok(message)));
}

/// A script of frames, assignments, link changes and time for one node.
pub fn segment(data: &[u8]) {
    script::run(data);
}

/// With the lengths and the checksum of a sound packet.
fn whole(data: &[u8]) -> Vec<u8> {
    let mut frame = data.to_vec();
    let Some(length) = frame.len().checked_sub(HEADERS) else {
        return frame;
    };
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame[14] = 0x60 | frame[14] & 0x0f;
    let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    frame[18..20].copy_from_slice(&length);
    frame[20..22].copy_from_slice(&[58, 255]);
    if frame.len() >= HEADERS + 4 {
        frame[56..58].fill(0);
        let pseudo = [&[0, 0, 0, 58][..], &length];
        let all = [&frame[22..], pseudo.concat().as_slice()].concat();
        // An odd byte is followed by zero, not by the pseudo header: it sits
        // at the end in a sum of its own.
        let (packet, tail) = all.split_at(all.len() - 6);
        let sum = packet.chunks(2).chain(tail.chunks(2)).map(|pair| {
            u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default())
        });
        let mut sum: u32 = sum.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).unwrap_or_default();
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// With version, cluster, length of the body and tag as they must be.
fn signed(data: &[u8]) -> Vec<u8> {
    let mut payload = data.to_vec();
    if payload.len() < 32 {
        return payload;
    }
    payload[0] = 1;
    let cluster = ring::digest::digest(&ring::digest::SHA256, b"test");
    payload[8..16].copy_from_slice(&cluster.as_ref()[..8]);
    if let Some(body) = payload.len().checked_sub(32 + usize::from(payload[3])) {
        let body = u16::try_from(body).unwrap_or(u16::MAX);
        payload[4..6].copy_from_slice(&body.to_be_bytes());
    }
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, KEY);
    let tag = ring::hmac::sign(&key, &[&SOURCE.octets()[..], &payload].concat());
    payload.extend(&tag.as_ref()[..16]);
    payload
}
