//! An independent decoder reads what we write.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::{BTreeMap, BTreeSet};

use bellrock_bgp::Attributes;
use bellrock_bgp::message::{Context, Family, Message, Notification, Open};
use bellrock_bgp::rib::{AdjRibOut, RibSession};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::capabilities::BgpCapability;
use netgauze_bgp_pkt::community::{ExtendedCommunity, TransitiveTwoOctetExtendedCommunity};
use netgauze_bgp_pkt::path_attribute::{MpReach, MpUnreach, PathAttributeValue};
use netgauze_bgp_pkt::wire::deserializer::{BgpParsingContext, BgpParsingIgnoredErrors};
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use proptest::collection::btree_set;
use proptest::prelude::*;

fn oracle(message: &Message, context: Context) -> BgpMessage {
    let mut octets = Vec::new();
    message.encode(context, &mut octets).unwrap();
    let mut theirs = BgpParsingContext::default();
    theirs.set_asn4(context.four_octet_as);
    let mut reader = SliceReader::new(&octets);
    let decoded = BgpMessage::parse(&mut reader, &mut theirs)
        .unwrap_or_else(|error| panic!("{message:?} as {octets:02x?}: {error:?}"));
    assert_eq!(*theirs.parsing_errors(), BgpParsingIgnoredErrors::default());
    decoded
}

#[test]
fn the_oracle_reads_our_open_keepalive_and_notification() {
    let context = Context {
        four_octet_as: true,
        internal: false,
        ..Context::BEFORE_OPEN
    };
    for asn in [64512, 4_200_000_001] {
        let open = Open::new(asn, 90, [192, 0, 2, 1].into());
        let BgpMessage::Open(read) = oracle(&Message::Open(open), context) else {
            panic!()
        };
        assert_eq!((read.my_asn4(), read.hold_time()), (asn, 90));
        assert_eq!(read.bgp_id(), std::net::Ipv4Addr::new(192, 0, 2, 1));
        let capabilities = read.capabilities();
        assert_eq!(capabilities.len(), 4);
        assert!(
            capabilities
                .iter()
                .any(|c| matches!(c, BgpCapability::RouteRefresh))
        );
        let families = capabilities
            .iter()
            .filter(|c| matches!(c, BgpCapability::MultiProtocolExtensions(_)));
        assert_eq!(families.count(), 2);
    }
    assert!(matches!(
        oracle(&Message::Keepalive, context),
        BgpMessage::KeepAlive
    ));
    for notification in [
        Notification::hold_timer_expired(),
        Notification::administrative_shutdown(Some("bye")),
        Notification::peer_deconfigured(),
    ] {
        let read = oracle(&Message::Notification(notification), context);
        assert!(matches!(read, BgpMessage::Notification(_)));
    }
}

/// Next hop, path, preference, communities, large and extended ones.
type Route = (
    String,
    Vec<u32>,
    Option<u32>,
    Vec<u32>,
    (Vec<[u32; 3]>, Vec<u32>),
);

/// A route target of AS 64512.
fn route_target(value: u32) -> [u8; 8] {
    let [a, b, c, d] = value.to_be_bytes();
    [0, 2, 252, 0, a, b, c, d]
}

/// What the oracle makes of one UPDATE.
fn apply(read: &BgpMessage, routes: &mut BTreeMap<IpNet, Route>) {
    let BgpMessage::Update(update) = read else {
        panic!("{read:?}")
    };
    for gone in update.withdraw_routes() {
        assert!(
            routes
                .remove(&IpNet::V4(gone.network().address()))
                .is_some()
        );
    }
    let (mut path, mut preference, mut communities) = (vec![], None, vec![]);
    let mut next_hop = String::new();
    let mut six = Vec::new();
    let mut more = (vec![], vec![]);
    for attribute in update.path_attributes() {
        match attribute.value() {
            PathAttributeValue::Origin(_) => {}
            PathAttributeValue::AsPath(value) => path = asns(value),
            PathAttributeValue::NextHop(value) => next_hop = value.next_hop().to_string(),
            PathAttributeValue::LocalPreference(value) => preference = Some(value.metric()),
            PathAttributeValue::Communities(value) => {
                communities = value.communities().iter().map(|c| c.value()).collect();
            }
            PathAttributeValue::LargeCommunities(value) => {
                let all = value.communities().iter();
                more.0 = all
                    .map(|c| [c.global_admin(), c.local_data1(), c.local_data2()])
                    .collect();
            }
            PathAttributeValue::ExtendedCommunities(value) => {
                let all = value.communities().iter();
                more.1 = all
                    .map(|community| match community {
                        ExtendedCommunity::TransitiveTwoOctet(
                            TransitiveTwoOctetExtendedCommunity::RouteTarget {
                                global_admin: 64512,
                                local_admin,
                            },
                        ) => *local_admin,
                        other => panic!("{other:?}"),
                    })
                    .collect();
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast {
                next_hop_global,
                nlri,
                ..
            }) => {
                next_hop = next_hop_global.to_string();
                six.extend(nlri.iter().map(|net| net.network().address()));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                for gone in nlri {
                    assert!(
                        routes
                            .remove(&IpNet::V6(gone.network().address()))
                            .is_some()
                    );
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let new = update
        .nlri()
        .iter()
        .map(|net| IpNet::V4(net.network().address()));
    for prefix in new.chain(six.into_iter().map(IpNet::V6)) {
        let route = (
            next_hop.clone(),
            path.clone(),
            preference,
            communities.clone(),
            more.clone(),
        );
        routes.insert(prefix, route);
    }
}

fn asns(path: &netgauze_bgp_pkt::path_attribute::AsPath) -> Vec<u32> {
    use netgauze_bgp_pkt::path_attribute::AsPath;
    match path {
        AsPath::As2PathSegments(segments) => segments
            .iter()
            .flat_map(|segment| segment.as_numbers().iter().map(|asn| u32::from(*asn)))
            .collect(),
        AsPath::As4PathSegments(segments) => segments
            .iter()
            .flat_map(|segment| segment.as_numbers().to_vec())
            .collect(),
    }
}

proptest! {
    // The upper half holds the multicast addresses, which the oracle refuses.
    #[test]
    fn the_oracle_ends_up_with_the_routes_that_we_meant(
        four in btree_set(any::<(u32, u8)>().prop_map(|(address, bits)| {
            IpNet::V4(Ipv4Net::new((address >> 1).into(), bits % 33).unwrap().trunc())
        }), 0..1200),
        six in btree_set(any::<(u128, u8)>().prop_map(|(address, bits)| {
            IpNet::V6(Ipv6Net::new((address >> 1).into(), bits % 129).unwrap().trunc())
        }), 0..400),
        communities in btree_set(any::<u32>(), 0..80),
        large in btree_set(any::<[u32; 3]>(), 0..20),
        extended in btree_set(any::<u32>(), 0..20),
        prepend in 0..17_u8,
        local_pref: Option<u32>,
        internal: bool,
        four_octet_as: bool,
    ) {
        let context = Context {four_octet_as, internal, ..Context::BEFORE_OPEN};
        let attributes = |next_hop: &str| Attributes {
            next_hop: Some(next_hop.parse().unwrap()),
            local_pref,
            communities: communities.clone(),
            large_communities: large.clone(),
            extended_communities: extended.iter().map(|value| route_target(*value)).collect(),
            prepend,
            weight: None,
        };
        let mut rib = AdjRibOut::default();
        let mut expected = BTreeMap::new();
        for (prefixes, next_hop) in [(&four, "192.0.2.10"), (&six, "2001:db8::10")] {
            for prefix in prefixes {
                rib.announce(*prefix, attributes(next_hop));
                let path = if internal { vec![] } else { vec![64512; usize::from(prepend) + 1] };
                let preference = internal.then_some(local_pref.unwrap_or(100));
                let communities: Vec<u32> = communities.iter().copied().collect();
                let more = (large.iter().copied().collect(), extended.iter().copied().collect());
                expected.insert(*prefix, (next_hop.to_owned(), path, preference, communities, more));
            }
        }
        rib.open(RibSession {
            local: "192.0.2.10".parse().unwrap(),
            peer: "192.0.2.1".parse().unwrap(),
            local_asn: 64512,
            families: Family::ALL.to_vec(),
            context,
            enhanced_refresh: false,
            next_hop_v4: None,
            next_hop_v6: None,
            role: None,
        });
        let mut routes = BTreeMap::new();
        while let Some(update) = rib.next_update() {
            apply(&oracle(&Message::Update(update), context), &mut routes);
        }
        prop_assert_eq!(&routes, &expected);
        // Half of them go.
        let gone: BTreeSet<IpNet> = four.iter().chain(&six).copied().step_by(2).collect();
        for prefix in &gone {
            rib.withdraw(*prefix);
            expected.remove(prefix);
        }
        while let Some(update) = rib.next_update() {
            apply(&oracle(&Message::Update(update), context), &mut routes);
        }
        prop_assert_eq!(&routes, &expected);
    }
}
