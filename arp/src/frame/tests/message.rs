//! The frames among nodes.

use super::*;

pub(super) fn credentials() -> Credentials {
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
        Body::Handover(entries()),
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
}
