#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests may panic: that is how they fail"
)]

mod ndp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, NetSlice, SlicedPacket};
use proptest::prelude::*;

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

fn credentials() -> Credentials {
    Credentials::new("test", b"secret")
}

fn message(body: Body) -> Message {
    Message {
        node: "node-a".to_owned(),
        incarnation: 7,
        seq: 9,
        body,
    }
}

fn hello() -> Message {
    message(Body::Hello {
        deaf: false,
        leaving: true,
        count: 2,
        digest: 0x0102_0304_0506_0708,
    })
}

fn encode(message: &Message) -> Vec<u8> {
    message.frame(&credentials(), ETHERTYPE, A, GROUP)
}

fn decode(frame: &[u8]) -> Result<Message, FrameError> {
    let ethernet = Ethernet::decode(frame)?;
    Message::decode(&credentials(), ethernet.source, ethernet.payload)
}

#[test]
fn a_hello_is_these_bytes() {
    let frame = encode(&hello());
    let cluster = [0x9f, 0x86, 0xd0, 0x81, 0x88, 0x4c, 0x7d, 0x65]; // sha256sum of "test"
    let expected = [
        &[
            3, 0x42, 0x52, 0x4b, 0x88, 0xb5, 2, 0, 0, 0, 0, 0x0a, 0x88, 0xb5,
        ][..],
        &[1, 1, 2, 6, 0, 12, 0, 0],
        &cluster,
        &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9],
        b"node-a",
        &[0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    .concat();
    assert_eq!(frame[..expected.len()], expected);
    assert_eq!(frame.len(), expected.len() + 16);
    let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
    let link = sliced.link.unwrap();
    assert_eq!(
        link.to_header().unwrap().ethernet2().unwrap().ether_type,
        EtherType(0x88b5)
    );
    assert_eq!(decode(&frame).unwrap(), hello());
}

fn entries() -> Vec<Entry> {
    vec![
        (IpAddr::V4(VIP), 1 << 40),
        (
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
            3,
        ),
    ]
}

fn all_bodies() -> Vec<Body> {
    vec![
        hello().body,
        Body::Hello {
            deaf: true,
            leaving: false,
            count: 0,
            digest: 0,
        },
        Body::Claim(entries()),
        Body::Release {
            removed: true,
            entries: entries(),
        },
        Body::Release {
            removed: false,
            entries: vec![],
        },
        Body::Sync,
        Body::Stale { known: 1 << 60 },
        Body::SyncAnswer {
            from: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            to: IpAddr::V6(Ipv6Addr::from([0xff; 16])),
            entries: entries(),
        },
    ]
}

#[test]
fn every_kind_survives_the_way_and_ethernets_padding() {
    for body in all_bodies() {
        let sent = message(body);
        let mut frame = encode(&sent);
        assert_eq!(decode(&frame).as_ref(), Ok(&sent));
        frame.extend([0; 40]);
        assert_eq!(decode(&frame), Ok(sent));
    }
}

#[test]
fn a_frame_with_any_bit_changed_is_refused() {
    for body in all_bodies() {
        let frame = encode(&message(body));
        for bit in 6 * 8..frame.len() * 8 {
            if (12 * 8..14 * 8).contains(&bit) {
                continue; // the EtherType: such a frame does not come here
            }
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            decode(&changed).expect_err("a changed frame");
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_truncated() {
    for body in all_bodies() {
        let frame = encode(&message(body));
        for length in 14..frame.len() {
            assert_eq!(
                decode(&frame[..length]),
                Err(FrameError::Truncated),
                "{length} bytes"
            );
        }
    }
}

#[test]
fn what_is_not_believed_has_a_kind() {
    let frame = encode(&hello());
    let ethernet = Ethernet::decode(&frame).unwrap();
    let with = |credentials: &Credentials, source| {
        Message::decode(credentials, source, ethernet.payload).unwrap_err()
    };
    assert_eq!(
        with(&Credentials::new("other", b"secret"), A),
        FrameError::OtherCluster
    );
    assert_eq!(
        with(&Credentials::new("test", b"guess"), A),
        FrameError::Tag
    );
    assert_eq!(
        with(&credentials(), B),
        FrameError::Tag,
        "replayed from another station"
    );

    let mut version = frame.clone();
    version[14] = 2;
    assert_eq!(decode(&version), Err(FrameError::Version));
}

/// A frame whose payload was changed and then signed with the right key.
fn signed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let frame = encode(&message(Body::Claim(entries())));
    let mut payload = frame[14..frame.len() - 16].to_vec();
    change(&mut payload);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret");
    let tag = ring::hmac::sign(&key, &[&A.octets()[..], &payload].concat());
    [&frame[..14], &payload, &tag.as_ref()[..16]].concat()
}

#[test]
fn authentic_nonsense_is_refused_by_kind() {
    assert!(decode(&signed(|_| {})).is_ok());
    assert_eq!(
        decode(&signed(|payload| payload[1] = 99)),
        Err(FrameError::Kind)
    );
    let no_name = signed(|payload| {
        payload[3] = 0;
        payload.drain(32..38);
    });
    assert_eq!(decode(&no_name), Err(FrameError::Body));
    assert_eq!(
        decode(&signed(|payload| payload[32] = 0xff)),
        Err(FrameError::Body),
        "not UTF-8"
    );
    let half_entry = signed(|payload| {
        payload[5] -= 1;
        payload.pop();
    });
    assert_eq!(decode(&half_entry), Err(FrameError::Body));
    let too_many = signed(|payload| {
        payload.truncate(38);
        payload.extend(vec![0; (ENTRIES + 1) * 24]);
        payload[4..6].copy_from_slice(&u16::to_be_bytes(33 * 24));
    });
    assert_eq!(decode(&too_many), Err(FrameError::Body));
    let trailing = signed(|payload| {
        payload[1] = 4; // SYNC has no body
    });
    assert_eq!(decode(&trailing), Err(FrameError::Body));
}

#[test]
fn the_longest_frame_fits_an_mtu_of_1280() {
    let longest = Message {
        node: "n".repeat(300),
        incarnation: u64::MAX,
        seq: u64::MAX,
        body: Body::SyncAnswer {
            from: entries()[0].0,
            to: entries()[1].0,
            entries: vec![entries()[0]; 100],
        },
    };
    let frame = encode(&longest);
    assert!(frame.len() <= 1280 + 14, "{}", frame.len());
    let read = decode(&frame).unwrap();
    assert_eq!(read.node.len(), 253);
    assert!(matches!(read.body, Body::SyncAnswer { entries, .. } if entries.len() == ENTRIES));
}

#[test]
fn the_key_does_not_show_in_debug_output() {
    assert!(!format!("{:?}", Credentials::new("c", b"hunter2")).contains("hunter2"));
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
    fn no_authentic_body_makes_the_parser_panic(
        kind in 0..8_u8,
        name in 0..40_u8,
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let _ = decode(&signed(|payload| {
            payload.truncate(32);
            payload[1] = kind;
            payload[3] = name;
            payload[4..6].copy_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
            payload.extend(vec![b'x'; name.into()]);
            payload.extend(&body);
        }));
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
