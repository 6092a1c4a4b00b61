use super::*;
use crate::types::Eligibility;
use netlink_packet_route::link::{InfoKind, LinkHeader};
use rtnetlink::packet_core::Parseable;

const UP: LinkFlags = LinkFlags::Up.union(LinkFlags::LowerUp);

fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader {
        index,
        link_layer_type: LinkLayerType::Ether,
        flags,
        ..LinkHeader::default()
    };
    let mac = vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()];
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac),
    ];
    message
}

fn with(mut message: LinkMessage, attributes: &[LinkAttribute]) -> LinkMessage {
    message.attributes.extend_from_slice(attributes);
    message
}

fn address(index: u32, local: [u8; 4], length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = length;
    message.attributes = vec![AddressAttribute::Local(local.into())];
    message
}

fn names(table: &Table) -> Vec<String> {
    let exclude = crate::default_exclusions();
    table
        .interfaces(&exclude)
        .into_iter()
        .map(|interface| interface.name)
        .collect()
}

#[test]
fn what_is_no_ethernet_host_of_its_own_is_not_served() {
    let port = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)]);
    let member = LinkAttribute::Controller(1);
    let mut raw = link(9, "tun0", UP);
    raw.header.link_layer_type = LinkLayerType::None;
    let mut zero = link(10, "zero", UP);
    zero.attributes[1] = LinkAttribute::Address(vec![0; 6]);
    let cases = [
        (link(1, "eth0", UP), true),
        (link(1, "eth0", LinkFlags::Up), true),
        (link(1, "eth0", LinkFlags::LowerUp), false),
        (link(1, "eth0", UP | LinkFlags::Noarp), false),
        (link(1, "eth0", UP | LinkFlags::Loopback), false),
        (
            with(
                link(1, "eth0", UP),
                &[member.clone(), port(InfoPortKind::Bond)],
            ),
            false,
        ),
        (
            with(
                link(1, "eth0", UP),
                &[member.clone(), port(InfoPortKind::Bridge)],
            ),
            false,
        ),
        (
            with(
                link(1, "eth0", UP),
                &[member.clone(), port(InfoPortKind::Team)],
            ),
            false,
        ),
        (
            with(link(1, "eth0", UP), std::slice::from_ref(&member)),
            false,
        ),
        (
            with(link(1, "eth0", UP), &[member, port(InfoPortKind::Vrf)]),
            true,
        ),
        (
            with(
                link(1, "bond0", UP | LinkFlags::Controller),
                &[LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                    InfoKind::Bond,
                )])],
            ),
            true,
        ),
        (raw, false),
        (zero, false),
        (link(1, "vethab12", UP), false),
        (link(1, "cali123", UP), false),
        (link(1, "lo", UP), false),
        (link(1, "lovely0", UP), true),
    ];
    for (message, served) in cases {
        let mut table = Table::default();
        table.apply(&RouteNetlinkMessage::NewLink(message.clone()));
        assert_eq!(!names(&table).is_empty(), served, "{message:?}");
    }
}

/// What a kernel told of a bond in mode balance-rr: the header, and
/// IFLA_LINKINFO with its kind and the first of its options.
const BOND: &[u8] = &[
    0x00, 0x00, 0x01, 0x00, 0x18, 0x00, 0x00, 0x00, 0x43, 0x14, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x1c, 0x00, 0x12, 0x00, 0x09, 0x00, 0x01, 0x00, 0x62, 0x6f, 0x6e, 0x64, 0x00, 0x00, 0x00, 0x00,
    0x0c, 0x00, 0x02, 0x00, 0x05, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// What it told of a member: a veth whose port kind is bond.
const BOND_PORT: &[u8] = &[
    0x00, 0x00, 0x01, 0x00, 0x15, 0x00, 0x00, 0x00, 0x43, 0x18, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x54, 0x00, 0x12, 0x00, 0x09, 0x00, 0x01, 0x00, 0x76, 0x65, 0x74, 0x68, 0x00, 0x00, 0x00, 0x00,
    0x09, 0x00, 0x04, 0x00, 0x62, 0x6f, 0x6e, 0x64, 0x00, 0x00, 0x00, 0x00, 0x38, 0x00, 0x05, 0x00,
    0x05, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x08, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x04, 0x00, 0x00, 0x23, 0x45, 0x67,
    0x89, 0x1a, 0x00, 0x00, 0x06, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x09, 0x00,
    0x00, 0x00, 0x00, 0x00,
];

/// A recorded message, and the attributes that were left out of the record:
/// IFLA_IFNAME, IFLA_ADDRESS, and IFLA_MASTER of a member.
fn recorded(bytes: &[u8], name: &str, master: Option<u32>) -> RouteNetlinkMessage {
    let mut bytes = bytes.to_vec();
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap();
        bytes.extend(length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()));
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    };
    attribute(1, &[0x00, 0x23, 0x45, 0x67, 0x89, 0x1a]);
    attribute(3, format!("{name}\0").as_bytes());
    if let Some(master) = master {
        attribute(10, &master.to_ne_bytes());
    }
    RouteNetlinkMessage::NewLink(LinkMessage::parse(&bytes).unwrap())
}

#[test]
fn of_a_bond_the_bond_is_served_and_not_its_members() {
    let bond = recorded(BOND, "bond0", None);
    let members = [
        recorded(BOND_PORT, "eth0", Some(24)),
        // Before its master is told, its flags tell.
        recorded(BOND_PORT, "eth0", None),
    ];
    for member in members {
        let mut table = Table::default();
        assert!(table.apply(&member));
        assert_eq!(names(&table), [""; 0]);
        assert!(table.apply(&bond));
        assert_eq!(names(&table), ["bond0"]);
    }
    // Taken out of the bond it is a host's interface like any other.
    let mut table = Table::default();
    table.apply(&recorded(BOND_PORT, "eth0", Some(24)));
    assert!(table.apply(&RouteNetlinkMessage::NewLink(link(21, "eth0", UP))));
    assert_eq!(names(&table), ["eth0"]);
}

#[test]
fn a_change_is_told_once_and_a_bridges_own_messages_are_none() {
    let mut table = Table::default();
    let new = RouteNetlinkMessage::NewLink(link(4, "eth0", UP));
    assert!(table.apply(&new));
    assert!(!table.apply(&new));
    let own = RouteNetlinkMessage::NewAddress(address(4, [10, 0, 0, 1], 24));
    assert!(table.apply(&own));
    assert!(!table.apply(&own));
    let interfaces = table.interfaces(&[]);
    assert_eq!(
        interfaces[0].addresses,
        BTreeSet::from([("10.0.0.1".parse().unwrap(), 24)])
    );
    assert!(interfaces[0].carrier);

    // Leaving a bridge is told as the deletion of a link of that family.
    let mut left = link(4, "eth0", UP);
    left.header.interface_family = AddressFamily::Bridge;
    assert!(!table.apply(&RouteNetlinkMessage::DelLink(left)));
    assert_eq!(names(&table), ["eth0"]);

    assert!(table.apply(&RouteNetlinkMessage::NewLink(link(
        4,
        "eth0",
        LinkFlags::Up
    ))));
    assert!(!table.interfaces(&[])[0].carrier);
    let gone = RouteNetlinkMessage::DelAddress(address(4, [10, 0, 0, 1], 24));
    assert!(table.apply(&gone));
    assert!(!table.apply(&gone));
    assert!(table.apply(&RouteNetlinkMessage::DelLink(link(4, "eth0", UP))));
    assert_eq!(table.interfaces(&[]), []);
    assert!(table.macs().is_empty());
}

#[test]
fn a_subnet_has_the_bits_that_its_length_says() {
    let cases = [
        ("10.0.0.1", 0, "192.0.2.1", true),
        ("10.0.0.1", 31, "10.0.0.0", true),
        ("10.0.0.1", 32, "10.0.0.1", true),
        ("10.0.0.1", 32, "10.0.0.0", false),
        ("::1", 0, "2001:db8::1", true),
        ("2001:db8::1", 128, "2001:db8::1", true),
        ("2001:db8::1", 128, "2001:db8::", false),
        ("2001:db8::1", 33, "2001:db8:7fff::", true),
        ("2001:db8::1", 33, "2001:db8:8000::", false),
        ("10.0.0.1", 0, "::1", false),
        // Not what a kernel says; and no panic.
        ("10.0.0.1", 200, "10.0.0.1", true),
        ("::1", 200, "::", false),
    ];
    for (own, length, address, inside) in cases {
        let found = in_subnet(own.parse().unwrap(), length, address.parse().unwrap());
        assert_eq!(found, inside, "{address} in {own}/{length}");
    }
}

#[test]
fn an_address_is_served_where_its_subnet_is_else_where_any_is() {
    let interface = |index: u32, name: &str, own: &[(&str, u8)]| Interface {
        index,
        name: name.to_owned(),
        mac: MacAddr::zero(),
        carrier: true,
        addresses: own
            .iter()
            .map(|(own, length)| (own.parse().unwrap(), *length))
            .collect(),
    };
    let interfaces = [
        interface(1, "a", &[("10.0.0.1", 24), ("fe80::1", 64)]),
        interface(2, "b", &[("10.0.1.1", 24), ("172.16.0.1", 32)]),
        interface(3, "c", &[]),
        interface(4, "d", &[("10.0.0.2", 25), ("2001:db8::4", 64)]),
        interface(5, "e", &[("fe80::5", 64), ("2001:db8::5", 120)]),
        interface(6, "f", &[("2001:db8:0:1::6", 64)]),
        interface(7, "pod", &[("10.244.1.1", 32), ("2001:db8:244::1", 128)]),
    ];
    type Case<'a> = (&'a str, Option<&'a [&'a str]>, &'a [u32]);
    let cases: [Case<'_>; 16] = [
        ("10.0.0.9", None, &[1, 4]),
        ("10.0.0.200", None, &[1]),
        ("10.0.1.9", None, &[2]),
        ("192.0.2.1", None, &[1, 2, 4]),
        ("192.0.2.1", Some(&["b", "c"]), &[2]),
        ("10.0.0.9", Some(&["d", "nowhere"]), &[4]),
        ("10.0.0.9", Some(&[]), &[]),
        ("2001:db8::9", None, &[4, 5]),
        ("2001:db8::9:9", None, &[4]),
        ("2001:db8:0:1::9", None, &[6]),
        ("2001:db8:0:1::9", Some(&["a", "b", "c"]), &[]),
        // A link-local address alone makes no IPv6 host of it.
        ("2001:db8:1::9", None, &[4, 5, 6]),
        ("2001:db8:1::9", Some(&["a", "e"]), &[5]),
        ("fe80::9", None, &[1, 5]),
        // Where a cable ends at a pod there is nobody else, unless it is named.
        ("192.0.2.1", Some(&["pod"]), &[7]),
        ("2001:db8:1::9", Some(&["pod", "f"]), &[6, 7]),
    ];
    for (address, names, expected) in cases {
        let assignment = Assignment {
            desired: None,
            successors: Vec::new(),
            created: 0,
            recorded: None,
            eligibility: Eligibility::Eligible,
            interfaces: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        };
        let served = serving(address.parse().unwrap(), &assignment, &interfaces);
        assert_eq!(
            served.into_iter().collect::<Vec<_>>(),
            expected,
            "{address} {names:?}"
        );
    }
}
