//! (octets, struct) pairs, both ways, and what must hold for all messages.

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::message::*;

fn nets<N: std::str::FromStr>(prefixes: &[&str]) -> Vec<N>
where
    N::Err: std::fmt::Debug,
{
    prefixes
        .iter()
        .map(|prefix| prefix.parse().unwrap())
        .collect()
}

fn sequence(asns: &[u32]) -> Option<Vec<Segment>> {
    Some(vec![Segment {
        kind: SegmentKind::Sequence,
        asns: asns.to_vec(),
    }])
}

fn external() -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: sequence(&[64512]),
        next_hop: Some("192.0.2.1".parse().unwrap()),
        ..PathAttributes::default()
    }
}

/// Body, message type, context, struct: written by hand from the RFCs.
fn pairs() -> Vec<(&'static str, u8, Context, Message)> {
    let family = |afi| Capability::MultiProtocol { afi, safi: 1 };
    let v6 = |prefixes: &[&str]| Reach {
        next_hop: "2001:db8::1".parse().unwrap(),
        link_local: None,
        prefixes: nets(prefixes),
    };
    vec![
        ("", 4, EXTERNAL, Message::Keepalive),
        (
            "04 fc00 005a c0000201 16 02 14 0104 00010001 0104 00020001 0200 4104 0000fc00",
            1,
            EXTERNAL,
            Message::Open(Open::new(64512, 90, "192.0.2.1".parse().unwrap())),
        ),
        (
            "04 5ba0 0000 0a000001 16 02 14 0104 00010001 0104 00020001 0200 4104 fa56ea01",
            1,
            EXTERNAL,
            Message::Open(Open::new(4_200_000_001, 0, "10.0.0.1".parse().unwrap())),
        ),
        (
            "04 fc00 0003 c0000201 00",
            1,
            EXTERNAL,
            Message::Open(Open {
                my_as: 64512,
                hold_time: 3,
                router_id: "192.0.2.1".parse().unwrap(),
                capabilities: vec![],
            }),
        ),
        (
            // A duplicate is legal, an unknown capability is kept.
            "04 fc00 005a c0000201 12 02 10 0104 00010001 0104 00010001 4902 0102",
            1,
            EXTERNAL,
            Message::Open(Open {
                my_as: 64512,
                hold_time: 90,
                router_id: "192.0.2.1".parse().unwrap(),
                capabilities: vec![
                    family(1),
                    family(1),
                    Capability::Unknown {
                        code: 73,
                        value: vec![1, 2],
                    },
                ],
            }),
        ),
        (
            "06 02",
            3,
            EXTERNAL,
            Message::Notification(Notification::new(6, 2)),
        ),
        (
            "06 02 03 627965",
            3,
            EXTERNAL,
            Message::Notification(Notification::administrative_shutdown(Some("bye"))),
        ),
        (
            "0001 00 01",
            5,
            EXTERNAL,
            Message::RouteRefresh(RouteRefresh {
                afi: 1,
                subtype: 0,
                safi: 1,
            }),
        ),
        (
            "0000 0000",
            2,
            EXTERNAL,
            Message::Update(Update::end_of_rib(Family::Ipv4Unicast)),
        ),
        (
            "0000 0006 800f 03 0002 01",
            2,
            EXTERNAL,
            Message::Update(Update::end_of_rib(Family::Ipv6Unicast)),
        ),
        (
            "000d 20 c6336401 18 cb0071 00 09 0a80 0000",
            2,
            EXTERNAL,
            Message::Update(Update {
                withdrawn: nets(&[
                    "198.51.100.1/32",
                    "203.0.113.0/24",
                    "0.0.0.0/0",
                    "10.128.0.0/9",
                ]),
                ..Update::default()
            }),
        ),
        (
            "0000 0014 400101 00 400206 0201 0000fc00 400304 c0000201 20 c6336401",
            2,
            EXTERNAL,
            Message::Update(Update {
                attributes: external(),
                nlri: nets(&["198.51.100.1/32"]),
                ..Update::default()
            }),
        ),
        (
            "0000 0024 400101 00 400200 400304 c0000201 400504 00000064
             c0080c fc000007 ffffff01 ffffff02 20 c6336401",
            2,
            INTERNAL,
            Message::Update(Update {
                attributes: PathAttributes {
                    as_path: Some(vec![]),
                    local_pref: Some(100),
                    communities: vec![0xfc00_0007, 0xffff_ff01, 0xffff_ff02],
                    ..external()
                },
                nlri: nets(&["198.51.100.1/32"]),
                ..Update::default()
            }),
        ),
        (
            "0000 0034 800e 26 0002 01 10 20010db8000000000000000000000001 00
             80 20010db8000100000000000000000001 400101 00 400204 0201fc00",
            2,
            OLD,
            Message::Update(Update {
                reach: Some(v6(&["2001:db8:1::1/128"])),
                attributes: PathAttributes {
                    next_hop: None,
                    ..external()
                },
                ..Update::default()
            }),
        ),
        (
            "0000 000d 800f 0a 0002 01 30 20010db80001",
            2,
            EXTERNAL,
            Message::Update(Update {
                unreach: Some(Unreach {
                    prefixes: nets(&["2001:db8:1::/48"]),
                }),
                ..Update::default()
            }),
        ),
    ]
}

#[test]
fn hand_written_octets_and_structs_are_the_same_both_ways() {
    for (body, kind, context, expected) in pairs() {
        let octets = message(kind, &hex(body));
        let mut encoded = Vec::new();
        expected.encode(context, &mut encoded).unwrap();
        assert_eq!(encoded, octets, "{expected:?}");
        assert_eq!(Message::decode(&octets, context), Ok(expected));
    }
}

#[test]
fn an_old_speaker_gets_as_trans_and_the_true_path_beside_it() {
    let sent = Message::Update(Update {
        attributes: PathAttributes {
            as_path: sequence(&[4_200_000_001, 64512]),
            ..external()
        },
        nlri: nets(&["198.51.100.1/32"]),
        ..Update::default()
    });
    let mut octets = Vec::new();
    sent.encode(OLD, &mut octets).unwrap();
    let expected = update(
        "400101 00 400206 0202 5ba0 fc00 400304 c0000201 c0110a 0202 fa56ea01 0000fc00",
        "20 c6336401",
    );
    assert_eq!(octets, expected);
    let Ok(Message::Update(received)) = Message::decode(&octets, OLD) else {
        panic!()
    };
    assert_eq!(received.attributes.as_path, sequence(&[23456, 64512]));
    assert_eq!(received.faults, []);
}

#[test]
fn the_extended_parameter_length_is_read_whatever_the_old_length_says_and_written_if_needed() {
    let base = "04 fc00 005a c0000201";
    let parameters = "ff 000a 02 0007 0104 00010001 46 00 ";
    // RFC 9072: the old length may be anything but zero.
    for old_length in ["ff", "0d", "01"] {
        let parameters = parameters.replace("0007", "0008").replace("000a", "000b");
        let octets = message(1, &hex(&format!("{base} {old_length} {parameters}")));
        let Ok(Message::Open(open)) = Message::decode(&octets, EXTERNAL) else {
            panic!("{old_length}")
        };
        assert!(open.has_family(Family::Ipv4Unicast) && !open.has_family(Family::Ipv6Unicast));
    }
    let mut open = Open::new(64512, 90, "192.0.2.1".parse().unwrap());
    open.capabilities
        .extend((0..15).map(|_| Capability::Unknown {
            code: 200,
            value: vec![7; 250],
        }));
    let mut octets = Vec::new();
    Message::Open(open.clone())
        .encode(EXTERNAL, &mut octets)
        .unwrap();
    assert_eq!(octets[28..30], [255, 255]);
    assert_eq!(
        Message::decode(&octets, EXTERNAL),
        Ok(Message::Open(open.clone()))
    );

    open.capabilities
        .extend((0..2).map(|_| Capability::Unknown {
            code: 200,
            value: vec![7; 250],
        }));
    assert_eq!(
        Message::Open(open).encode(EXTERNAL, &mut octets),
        Err(TooLong)
    );
}

#[test]
fn a_message_that_is_too_long_leaves_the_buffer_as_it_was() {
    let long = Message::Update(Update {
        withdrawn: vec!["198.51.100.1/32".parse().unwrap(); 815],
        ..Update::default()
    });
    let mut out = vec![1, 2, 3];
    assert_eq!(long.encode(EXTERNAL, &mut out), Err(TooLong));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn a_stream_in_single_octets_gives_the_same_messages() {
    let mut stream = Vec::new();
    let messages: Vec<_> = pairs()
        .into_iter()
        .filter(|pair| pair.2 == EXTERNAL)
        .collect();
    for (_, _, context, message) in &messages {
        message.encode(*context, &mut stream).unwrap();
    }
    let mut decoder = Decoder::default();
    let mut decoded = Vec::new();
    for octet in stream {
        decoder.push(&[octet]);
        decoded.extend(std::iter::from_fn(|| decoder.next(EXTERNAL)).map(Result::unwrap));
    }
    let expected: Vec<_> = messages
        .into_iter()
        .map(|(_, _, _, message)| message)
        .collect();
    assert_eq!(decoded, expected);
}

fn prefix4() -> impl Strategy<Value = Ipv4Net> {
    (any::<[u8; 4]>(), 0..=32_u8)
        .prop_map(|(address, bits)| Ipv4Net::new(address.into(), bits).unwrap().trunc())
}

fn prefix6() -> impl Strategy<Value = Ipv6Net> {
    (any::<[u8; 16]>(), 0..=128_u8)
        .prop_map(|(address, bits)| Ipv6Net::new(address.into(), bits).unwrap().trunc())
}

prop_compose! {
    fn attributes()(
        origin in prop::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]),
        path in vec((any::<bool>(), vec(1..=u32::MAX, 1..=255)), 0..3),
        next_hop in any::<[u8; 4]>(),
        local_pref in proptest::option::of(any::<u32>()),
        communities in vec(any::<u32>(), 0..70),
        extended_communities in vec(any::<[u8; 8]>(), 0..40),
        large_communities in vec(any::<[u32; 3]>(), 0..30),
        only_to_customer in proptest::option::of(any::<u32>()),
    ) -> PathAttributes {
        let kind = |set| if set { SegmentKind::Set } else { SegmentKind::Sequence };
        let path = path.into_iter().map(|(set, asns)| Segment { kind: kind(set), asns });
        PathAttributes {
            origin: Some(origin),
            as_path: Some(path.collect()),
            next_hop: Some(next_hop.into()),
            local_pref,
            communities,
            extended_communities,
            large_communities,
            only_to_customer,
        }
    }
}

prop_compose! {
    fn any_update()(
        withdrawn in vec(prefix4(), 0..20),
        unreach in proptest::option::of(vec(prefix6(), 0..20)),
        reach in proptest::option::of((any::<[u8; 16]>(), any::<Option<[u8; 16]>>(), vec(prefix6(), 0..20))),
        attributes in attributes(),
        nlri in vec(prefix4(), 1..20),
    ) -> Update {
        Update {
            withdrawn,
            unreach: unreach.map(|prefixes| Unreach { prefixes }),
            reach: reach.map(|(next_hop, link_local, prefixes)| Reach {
                next_hop: next_hop.into(),
                link_local: link_local.map(Into::into),
                prefixes,
            }),
            reach_ipv4: None,
            attributes,
            nlri,
            faults: vec![],
        }
    }
}

proptest! {
    #[test]
    fn an_update_survives_the_wire(update in any_update()) {
        let mut octets = Vec::new();
        let sent = Message::Update(update);
        prop_assume!(sent.encode(INTERNAL, &mut octets).is_ok());
        prop_assert!(octets.len() <= MAX_LEN);
        prop_assert_eq!(Message::decode(&octets, INTERNAL), Ok(sent));
    }

    #[test]
    fn no_octets_panic_and_what_decodes_can_be_written_again(
        kind in 0..8_u8, body in vec(any::<u8>(), 0..200), four_octet_as: bool, internal: bool,
    ) {
        let context = Context {four_octet_as, internal, ..Context::BEFORE_OPEN};
        if let Ok(decoded) = Message::decode(&message(kind, &body), context) {
            let mut again = Vec::new();
            let _ = decoded.encode(context, &mut again);
        }
        let _ = Message::decode(&body, context);
    }

    #[test]
    fn a_good_update_with_broken_octets_does_not_panic(
        update in any_update(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut octets = Vec::new();
        prop_assume!(Message::Update(update).encode(INTERNAL, &mut octets).is_ok());
        for (at, octet) in changes {
            let at = 19 + at.index(octets.len() - 19);
            octets[at] = octet;
        }
        if let Err(answer) = Message::decode(&octets, EXTERNAL) {
            prop_assert_eq!(answer.code, 3, "{}", answer);
        }
    }

    #[test]
    fn a_stream_cut_anywhere_does_not_panic_and_stays_small(
        chunks in vec(vec(any::<u8>(), 0..64), 0..64), honest: bool,
    ) {
        let mut decoder = Decoder::default();
        for chunk in chunks {
            if honest {
                decoder.push(&message(4, &[]));
            }
            decoder.push(&chunk);
            while let Some(decoded) = decoder.next(EXTERNAL) {
                if decoded.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
