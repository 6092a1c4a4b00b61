#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests may panic: that is how they fail"
)]

mod message;
mod ndp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, NetSlice, SlicedPacket};
use proptest::prelude::*;

use self::message::credentials;
use super::*;

const A: MacAddr = MacAddr(0x02, 0, 0, 0, 0, 0x0a);
const B: MacAddr = MacAddr(0x02, 0, 0, 0, 0, 0x0b);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

fn question() -> Arp {
    Arp {
        sender: CLIENT,
        ..Arp::probe(B, VIP)
    }
}

#[test]
fn arp_frames_are_these_bytes_both_ways() {
    let cases: [(&str, Arp, [u8; 42]); 3] = [
        (
            "probe",
            Arp::probe(A, VIP),
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x0a, 8, 6, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
                2, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, // sender
                0, 0, 0, 0, 0, 0, 192, 0, 2, 10, // target
            ],
        ),
        (
            "announcement",
            Arp::announcement(A, VIP),
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x0a, 8, 6, //
                0, 1, 8, 0, 6, 4, 0, 1, //
                2, 0, 0, 0, 0, 0x0a, 192, 0, 2, 10, //
                0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
            ],
        ),
        (
            "answer",
            question().answer(A),
            [
                2, 0, 0, 0, 0, 0x0b, 2, 0, 0, 0, 0, 0x0a, 8, 6, //
                0, 1, 8, 0, 6, 4, 0, 2, //
                2, 0, 0, 0, 0, 0x0a, 192, 0, 2, 10, //
                2, 0, 0, 0, 0, 0x0b, 192, 0, 2, 99,
            ],
        ),
    ];
    for (name, arp, bytes) in cases {
        assert_eq!(arp.frame(), bytes, "{name}");
        let ethernet = Ethernet::decode(&bytes).unwrap();
        assert_eq!(ethernet.ethertype, ARP, "{name}");
        assert_eq!(Arp::decode(ethernet.payload).unwrap(), arp, "{name}");
    }
}

/// What another decoder makes of our ARP.
#[test]
fn another_decoder_reads_our_arp_as_we_meant_it() {
    for arp in [
        Arp::probe(A, VIP),
        Arp::announcement(A, VIP),
        question().answer(A),
    ] {
        let frame = arp.frame();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Arp(slice)) = sliced.net else {
            panic!("{sliced:?}")
        };
        let read = slice.to_packet().try_eth_ipv4().unwrap();
        assert_eq!(read.sender_mac, arp.sender_mac.octets());
        assert_eq!(read.sender_ipv4, arp.sender.octets());
        assert_eq!(read.target_mac, arp.target_mac.octets());
        assert_eq!(read.target_ipv4, arp.target.octets());
        let operation = if arp.operation == Operation::Request {
            1
        } else {
            2
        };
        assert_eq!(read.operation.0, operation);
    }
}

#[test]
fn only_a_probe_has_no_sender_address() {
    assert!(Arp::probe(A, VIP).is_probe());
    assert!(!Arp::announcement(A, VIP).is_probe());
    assert!(!question().is_probe());
    assert!(!Arp::probe(A, VIP).answer(B).is_probe());
}

#[test]
fn arp_that_is_not_sound_is_refused_by_kind() {
    let good = question().frame();
    let change = |offset: usize, byte: u8| {
        let mut frame = good.clone();
        frame[14 + offset] = byte;
        frame
    };
    let cases = [
        ("hardware type", change(1, 6), FrameError::ArpFormat),
        ("protocol type", change(2, 0x86), FrameError::ArpFormat),
        ("hardware length", change(4, 8), FrameError::ArpFormat),
        ("protocol length", change(5, 16), FrameError::ArpFormat),
        ("operation 3 (RARP)", change(7, 3), FrameError::ArpOperation),
        ("sender is a group", change(8, 3), FrameError::ArpSender),
        ("cut", good[..41].to_vec(), FrameError::Truncated),
    ];
    for (name, frame, expected) in cases {
        let ethernet = Ethernet::decode(&frame).unwrap();
        assert_eq!(Arp::decode(ethernet.payload), Err(expected), "{name}");
    }
    let mut padded = good;
    padded.resize(60, 0xee);
    assert_eq!(
        Arp::decode(&padded[14..]),
        Ok(question()),
        "padding is no matter"
    );
    assert_eq!(Ethernet::decode(&[0; 13]), Err(FrameError::Truncated));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(ethernet) = Ethernet::decode(&frame) {
            let _ = Arp::decode(ethernet.payload);
            let _ = Ndp::decode(&ethernet);
            let _ = Message::decode(&credentials(), ethernet.source, ethernet.payload);
        }
    }

    #[test]
    fn arp_is_read_as_it_was_written(
        reply: bool, sender_mac in any::<[u8; 6]>(), target_mac in any::<[u8; 6]>(),
        sender in any::<[u8; 4]>(), target in any::<[u8; 4]>(),
    ) {
        let arp = Arp {
            operation: if reply { Operation::Reply } else { Operation::Request },
            sender_mac: MacAddr::from(sender_mac),
            sender: sender.into(),
            target_mac: MacAddr::from(target_mac),
            target: target.into(),
        };
        let frame = arp.frame();
        let read = Arp::decode(Ethernet::decode(&frame).unwrap().payload);
        if arp.sender_mac.is_multicast() || arp.sender_mac.is_zero() {
            prop_assert_eq!(read, Err(FrameError::ArpSender));
        } else {
            prop_assert_eq!(read, Ok(arp));
        }
    }
}
