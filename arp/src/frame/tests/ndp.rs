//! Neighbour Discovery, both ways.

use etherparse::{Icmpv6Type, TransportSlice};

use super::*;

const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0x0a, 0xb0c0, 0x10);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
const NONCE: Nonce = [1, 2, 3, 4, 5, 6];
/// Ethernet and IPv6.
const HEADERS: usize = 14 + 40;

fn question() -> Solicitation {
    Solicitation {
        mac: B,
        source: CLIENT6,
        target: VIP6,
        nonce: None,
    }
}

fn probe() -> Solicitation {
    Solicitation::probe(A, VIP6, NONCE)
}

fn announcement() -> Advertisement {
    Advertisement::announcement(A, VIP6)
}

fn decode_ndp(frame: &[u8]) -> Result<Ndp, FrameError> {
    Ndp::decode(&Ethernet::decode(frame)?)
}

#[test]
fn neighbour_discovery_frames_are_these_bytes_both_ways() {
    let vip = VIP6.octets();
    let group = [
        0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xc0, 0x00, 0x10,
    ];
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let ip = [0x60, 0, 0, 0, 0, 32, 58, 255];
    let mac = [2, 0, 0, 0, 0, 0x0a];
    let cases: [(&str, Ndp, Vec<u8>, Vec<u8>); 3] = [
        (
            "probe",
            Ndp::Solicitation(probe()),
            probe().frame(),
            [
                &[0x33, 0x33, 0xff, 0xc0, 0x00, 0x10][..],
                &mac,
                &[0x86, 0xdd], //
                &ip,
                &[0; 16],
                &group, // from ::
                &[135, 0, 0x84, 0x2f, 0, 0, 0, 0],
                &vip,                       //
                &[14, 1, 1, 2, 3, 4, 5, 6], // nonce
            ]
            .concat(),
        ),
        (
            "announcement",
            Ndp::Advertisement(announcement()),
            announcement().frame(),
            [
                &[0x33, 0x33, 0, 0, 0, 1][..],
                &mac,
                &[0x86, 0xdd], //
                &ip,
                &vip,
                &all_nodes, //
                &[136, 0, 0x97, 0x6e, 0x20, 0, 0, 0],
                &vip,                         // override
                &[2, 1, 2, 0, 0, 0, 0, 0x0a], // target link-layer address
            ]
            .concat(),
        ),
        (
            "answer",
            Ndp::Advertisement(question().answer(A)),
            question().answer(A).frame(),
            [
                &[2, 0, 0, 0, 0, 0x0b][..],
                &mac,
                &[0x86, 0xdd], //
                &ip,
                &vip,
                &CLIENT6.octets(), //
                &[136, 0, 0x28, 0x20, 0x60, 0, 0, 0],
                &vip, // solicited, override
                &[2, 1, 2, 0, 0, 0, 0, 0x0a],
            ]
            .concat(),
        ),
    ];
    for (name, ndp, frame, bytes) in cases {
        assert_eq!(frame, bytes, "{name}");
        assert_eq!(decode_ndp(&bytes), Ok(ndp), "{name}");
    }
}

#[test]
fn who_probes_is_answered_by_telling_all() {
    assert_eq!(probe().answer(B), Advertisement::announcement(B, VIP6));
    assert!(probe().is_probe());
    assert!(!question().is_probe());
}

#[test]
fn groups_are_derived_from_the_last_three_octets() {
    let group: Ipv6Addr = "ff02::1:ffc0:10".parse().unwrap();
    assert_eq!(solicited_node(VIP6), group);
    assert_eq!(group_mac(group), MacAddr(0x33, 0x33, 0xff, 0xc0, 0, 0x10));
}

#[test]
fn another_decoder_reads_our_neighbour_discovery_as_we_meant_it() {
    let cases = [
        (probe().frame(), "::", "ff02::1:ffc0:10"),
        (question().frame(), "2001:db8::99", "ff02::1:ffc0:10"),
        (announcement().frame(), "2001:db8::a:b0c0:10", "ff02::1"),
        (
            question().answer(A).frame(),
            "2001:db8::a:b0c0:10",
            "2001:db8::99",
        ),
    ];
    for (frame, source, destination) in cases {
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &sliced.net else {
            panic!("{sliced:?}")
        };
        let ip = ip.header().to_header();
        assert_eq!(ip.hop_limit, 255);
        assert_eq!(ip.source_addr(), source.parse::<Ipv6Addr>().unwrap());
        let destination: Ipv6Addr = destination.parse().unwrap();
        assert_eq!(ip.destination_addr(), destination);
        let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else {
            panic!("{sliced:?}")
        };
        assert!(icmp.is_checksum_valid(ip.source, ip.destination));
        match icmp.icmp_type() {
            Icmpv6Type::NeighborSolicitation => {}
            Icmpv6Type::NeighborAdvertisement(header) => {
                assert!(header.r#override && !header.router);
                assert_eq!(header.solicited, !destination.is_multicast());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A frame of which the ICMPv6 message was changed, and the checksum after it.
fn changed(frame: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = frame[HEADERS..].to_vec();
    change(&mut message);
    let mut frame = frame[..HEADERS].to_vec();
    let length = u16::try_from(message.len()).unwrap();
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame.extend(message);
    checked(frame)
}

/// With the checksum that makes it whole.
fn checked(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < HEADERS + 4 {
        return frame;
    }
    frame[HEADERS + 2..HEADERS + 4].fill(0);
    let pseudo = [&frame[22..HEADERS], &[0, 0], &frame[18..20], &[0, 0, 0, 58]].concat();
    let bytes = [&pseudo[..], &frame[HEADERS..]].concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    frame[HEADERS + 2..HEADERS + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn with(frame: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn neighbour_discovery_that_is_not_sound_is_refused_by_kind() {
    use FrameError::*;
    let (ask, probe, tell) = (question().frame(), probe().frame(), announcement().frame());
    let answer = question().answer(A).frame();
    let fixed = checked; // The checksum is not what is wrong.
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5).octets();
    let cases: Vec<(&str, Vec<u8>, FrameError)> = vec![
        ("version 4", with(&ask, 14, &[0x45]), NdpFormat),
        ("an extension header", with(&ask, 20, &[0]), NdpFormat),
        ("a fragment", with(&ask, 20, &[44]), NdpFormat),
        ("hop limit 254", with(&ask, 21, &[254]), NdpHopLimit),
        ("hop limit 0", with(&tell, 21, &[0]), NdpHopLimit),
        ("checksum", with(&ask, 56, &[0xff, 0xff]), NdpChecksum),
        ("checksum 0", with(&tell, 56, &[0, 0]), NdpChecksum),
        ("another target", with(&ask, 77, &[0x11]), NdpChecksum),
        ("code 1", fixed(with(&ask, 55, &[1])), NdpFormat),
        ("redirect", fixed(with(&ask, 54, &[137])), NdpFormat),
        ("echo", fixed(with(&ask, 54, &[128])), NdpFormat),
        ("no header", ask[..53].to_vec(), Truncated),
        ("cut in the target", ask[..70].to_vec(), Truncated),
        (
            "20 bytes",
            changed(&ask, |message| message.truncate(20)),
            NdpFormat,
        ),
        (
            "2 bytes",
            changed(&ask, |message| message.truncate(2)),
            NdpFormat,
        ),
        (
            "0 bytes",
            changed(&ask, |message| message.clear()),
            NdpFormat,
        ),
        ("option length 0", fixed(with(&ask, 79, &[0])), NdpFormat),
        ("option too long", fixed(with(&ask, 79, &[2])), NdpFormat),
        // 32 * 8 is 0 in eight bits.
        ("option of 256", fixed(with(&ask, 79, &[32])), NdpFormat),
        ("option of 2040", fixed(with(&ask, 79, &[255])), NdpFormat),
        (
            "half an option",
            changed(&ask, |message| message.push(1)),
            NdpFormat,
        ),
        (
            "a hardware address of 14 bytes",
            changed(&ask, |message| {
                message[25] = 2;
                message.extend([0; 8]);
            }),
            NdpFormat,
        ),
        (
            "a hardware address of a group",
            fixed(with(&ask, 80, &[0x33])),
            NdpSender,
        ),
        (
            "no hardware address",
            fixed(with(&ask, 80, &[0; 6])),
            NdpSender,
        ),
        ("probe by a group", fixed(with(&probe, 6, &[3])), NdpSender),
        (
            "announced for a group",
            fixed(with(&tell, 80, &[0xff])),
            NdpSender,
        ),
        (
            "question for a group",
            fixed(with(&ask, 62, &group)),
            NdpAddresses,
        ),
        (
            "group announced",
            fixed(with(&tell, 62, &group)),
            NdpAddresses,
        ),
        (
            "question by a group",
            fixed(with(&ask, 22, &group)),
            NdpAddresses,
        ),
        (
            "announced by a group",
            fixed(with(&tell, 22, &group)),
            NdpAddresses,
        ),
        (
            "probe with a source link-layer address",
            fixed(with(&probe, 78, &[1])),
            NdpAddresses,
        ),
        (
            "probe to one host",
            fixed(with(&probe, 38, &VIP6.octets())),
            NdpAddresses,
        ),
        (
            "probe to another group",
            fixed(with(&probe, 53, &[0x11])),
            NdpAddresses,
        ),
        (
            "all are told that they asked",
            fixed(with(&tell, 58, &[0x60])),
            NdpAddresses,
        ),
    ];
    for (name, frame, expected) in cases {
        assert_eq!(decode_ndp(&frame), Err(expected), "{name}");
    }
    // The table's own checksum is right: it leaves a sound frame as it is.
    for frame in [ask, probe, tell, answer] {
        assert_eq!(checked(frame.clone()), frame);
        assert!(decode_ndp(&frame).is_ok());
    }
}

#[test]
fn what_may_be_different_is_taken() {
    let asks = Ok(Ndp::Solicitation(question()));
    let frame = question().frame();
    let mut padded = frame.clone();
    padded.extend([0xee; 9]);
    assert_eq!(decode_ndp(&padded), asks, "padding is no matter");
    let unicast = checked(with(&frame, 38, &VIP6.octets()));
    assert_eq!(decode_ndp(&unicast), asks, "NUD asks the address itself");
    let bare = changed(&frame, |message| message.truncate(24));
    assert_eq!(decode_ndp(&bare), asks, "NUD need not tell who asks");
    let unknown = changed(&frame, |message| {
        message.extend([200, 2]);
        message.extend([7; 14]);
    });
    assert_eq!(decode_ndp(&unknown), asks, "an unknown option is skipped");
    let long_nonce = changed(&frame, |message| {
        message.extend([14, 2]);
        message.extend([7; 14]);
    });
    assert_eq!(decode_ndp(&long_nonce), asks, "a nonce of another length");

    let tells = Ok(Ndp::Advertisement(announcement()));
    let bare = changed(&announcement().frame(), |message| message.truncate(24));
    assert_eq!(decode_ndp(&bare), tells, "Ethernet tells who has it");
    let weak = checked(with(&announcement().frame(), 58, &[0]));
    assert_eq!(decode_ndp(&weak), tells, "a proxy does not override");
}

fn any_address() -> impl Strategy<Value = Ipv6Addr> {
    any::<[u8; 16]>().prop_map(|mut octets| {
        octets[0] &= 0x3f; // No group.
        Ipv6Addr::from(octets)
    })
}

fn any_station() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(|mut octets| {
        octets[0] = octets[0] & !1 | 2; // No group, not zero.
        MacAddr::from(octets)
    })
}

proptest! {
    #[test]
    fn neighbour_discovery_is_read_as_it_was_written(
        mac in any_station(), other in any_station(), source in any_address(),
        target in any_address(), probe: bool, nonce in any::<Option<[u8; 6]>>(),
    ) {
        let source = if probe { Ipv6Addr::UNSPECIFIED } else { source };
        let asks = Solicitation { mac, source, target, nonce };
        prop_assert_eq!(decode_ndp(&asks.frame()), Ok(Ndp::Solicitation(asks)));
        let tells = asks.answer(other);
        prop_assert_eq!(decode_ndp(&tells.frame()), Ok(Ndp::Advertisement(tells)));
    }

    /// Beyond the checksum, which keeps random bytes out.
    #[test]
    fn no_message_makes_the_parser_panic(
        kind in 133..138_u8,
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let frame = changed(&announcement().frame(), |message| {
            *message = vec![kind, 0, 0, 0];
            message.extend(&body);
        });
        let read = decode_ndp(&frame);
        prop_assert!(read != Err(FrameError::NdpChecksum), "{:?}", read);
    }

    #[test]
    fn no_options_make_the_parser_panic(
        options in proptest::collection::vec((any::<u8>(), 0..40_u8, 0..300_usize), 0..6),
    ) {
        let frame = changed(&announcement().frame(), |message| {
            message.truncate(24);
            for (kind, length, bytes) in options {
                message.extend([kind, length]);
                message.resize(message.len() + bytes, 0x5a);
            }
        });
        let _ = decode_ndp(&frame);
    }
}
