//! The interfaces of this machine, kept up to date by netlink events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::oneshot;

use crate::MacAddr;
use crate::types::Assignment;

/// An interface that addresses can be served on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) carrier: bool,
    pub(crate) addresses: BTreeSet<(Ipv4Addr, u8)>,
}

impl Interface {
    /// Whether `address` is in a subnet of the interface.
    fn contains(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|(own, length)| {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub((*length).into()))
                .unwrap_or(0);
            own.to_bits() & mask == address.to_bits() & mask
        })
    }
}

/// The interfaces that serve `address`: those whose subnet contains it; if
/// there is none, all that have an IPv4 address.
pub(crate) fn serving(
    address: IpAddr,
    assignment: &Assignment,
    interfaces: &[Interface],
) -> BTreeSet<u32> {
    let IpAddr::V4(address) = address else {
        return BTreeSet::new();
    };
    let allowed = || {
        interfaces.iter().filter(|interface| {
            assignment
                .interfaces
                .as_ref()
                .is_none_or(|names| names.contains(&interface.name))
        })
    };
    let near: BTreeSet<u32> = allowed()
        .filter(|i| i.contains(address))
        .map(|i| i.index)
        .collect();
    if near.is_empty() {
        allowed()
            .filter(|i| !i.addresses.is_empty())
            .map(|i| i.index)
            .collect()
    } else {
        near
    }
}

/// Whether `name` is excluded: a pattern that ends in `*` is a prefix, any
/// other a whole name.
fn excluded(name: &str, patterns: &[String]) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    mac: Option<MacAddr>,
    carrier: bool,
    /// Ethernet that speaks ARP, is up, and is no part of a bridge or bond.
    suitable: bool,
}

/// What the kernel said of its links and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, BTreeSet<(Ipv4Addr, u8)>>,
}

impl Table {
    /// Takes in one message; whether it changed anything.
    pub(crate) fn apply(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) if is_device(link) => {
                let index = link.header.index;
                let link = read_link(link);
                self.links.insert(index, link.clone()) != Some(link)
            }
            RouteNetlinkMessage::DelLink(link) if is_device(link) => {
                self.addresses.remove(&link.header.index);
                self.links.remove(&link.header.index).is_some()
            }
            RouteNetlinkMessage::NewAddress(address) => {
                let Some(own) = read_address(address) else {
                    return false;
                };
                self.addresses
                    .entry(address.header.index)
                    .or_default()
                    .insert(own)
            }
            RouteNetlinkMessage::DelAddress(address) => {
                let Some(own) = read_address(address) else {
                    return false;
                };
                self.addresses
                    .get_mut(&address.header.index)
                    .is_some_and(|addresses| addresses.remove(&own))
            }
            _ => false,
        }
    }

    /// The interfaces to serve on, by index.
    pub(crate) fn interfaces(&self, exclude: &[String]) -> Vec<Interface> {
        let usable = |(index, link): (&u32, &Link)| {
            let mac = link.mac?;
            if !link.suitable || excluded(&link.name, exclude) {
                return None;
            }
            Some(Interface {
                index: *index,
                name: link.name.clone(),
                mac,
                carrier: link.carrier,
                addresses: self.addresses.get(index).cloned().unwrap_or_default(),
            })
        };
        self.links.iter().filter_map(usable).collect()
    }

    /// The hardware addresses of all links.
    pub(crate) fn macs(&self) -> BTreeSet<MacAddr> {
        self.links.values().filter_map(|link| link.mac).collect()
    }
}

/// A bridge tells of its ports' membership in messages of its own family;
/// these are not about the device.
fn is_device(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
}

fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        mac: None,
        carrier: flags.contains(LinkFlags::LowerUp),
        suitable: message.header.link_layer_type == LinkLayerType::Ether
            && flags.contains(LinkFlags::Up)
            && !flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp),
    };
    let mut member = false;
    let mut routed = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.first_chunk::<6>().map(|mac| MacAddr::from(*mac));
            }
            LinkAttribute::Controller(index) => member = *index != 0,
            // A VRF's members are still hosts of their own.
            LinkAttribute::LinkInfo(infos) => {
                routed = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    link.suitable &= !member || routed;
    link.mac = link.mac.filter(|mac| !mac.is_zero());
    link
}

fn read_address(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => address = Some(*local),
            // The other end of a point-to-point link, or the same as local.
            AddressAttribute::Address(IpAddr::V4(other)) => address = address.or(Some(*other)),
            _ => {}
        }
    }
    Some((address?, message.header.prefix_len))
}

/// Publishes the table now and after each change, until `stop` resolves or
/// its sender is dropped. After an error it starts again.
pub(crate) async fn watch(
    mut publish: impl FnMut(Result<&Table, &str>),
    stop: oneshot::Receiver<()>,
) {
    let follow = async {
        loop {
            if let Err(error) = follow(&mut publish).await {
                publish(Err(&error.to_string()));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        _ = stop => {}
        () = follow => {}
    }
}

async fn follow(
    publish: &mut impl FnMut(Result<&Table, &str>),
) -> Result<(), Box<dyn std::error::Error>> {
    let (connection, handle, mut messages) =
        new_multicast_connection(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr])?;
    let connection = AbortOnDrop(tokio::spawn(connection));
    loop {
        // Subscribed first, read then: a change in between is told, and
        // applying it twice is no harm.
        let mut table = Table::default();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            table.apply(&RouteNetlinkMessage::NewLink(link));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            table.apply(&RouteNetlinkMessage::NewAddress(address));
        }
        publish(Ok(&table));
        loop {
            match messages.next().await.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(message)) => {
                    if table.apply(&message) {
                        publish(Ok(&table));
                    }
                }
                // Events were lost: read everything again.
                Some(NetlinkPayload::Overrun(_)) => break,
                Some(_) => {}
                None => {
                    drop(connection);
                    return Err("the netlink socket is closed".into());
                }
            }
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Eligibility;
    use netlink_packet_route::link::{InfoKind, LinkHeader};

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
            BTreeSet::from([(Ipv4Addr::new(10, 0, 0, 1), 24)])
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
    fn an_address_is_served_where_its_subnet_is_else_everywhere() {
        let interface = |index: u32, name: &str, own: &[([u8; 4], u8)]| Interface {
            index,
            name: name.to_owned(),
            mac: MacAddr::zero(),
            carrier: true,
            addresses: own
                .iter()
                .map(|(own, length)| ((*own).into(), *length))
                .collect(),
        };
        let interfaces = [
            interface(1, "a", &[([10, 0, 0, 1], 24)]),
            interface(2, "b", &[([10, 0, 1, 1], 24), ([172, 16, 0, 1], 32)]),
            interface(3, "c", &[]),
            interface(4, "d", &[([10, 0, 0, 2], 25)]),
        ];
        type Case<'a> = (&'a str, Option<&'a [&'a str]>, &'a [u32]);
        let cases: [Case<'_>; 8] = [
            ("10.0.0.9", None, &[1, 4]),
            ("10.0.0.200", None, &[1]),
            ("10.0.1.9", None, &[2]),
            ("192.0.2.1", None, &[1, 2, 4]),
            ("192.0.2.1", Some(&["b", "c"]), &[2]),
            ("10.0.0.9", Some(&["d", "nowhere"]), &[4]),
            ("10.0.0.9", Some(&[]), &[]),
            ("2001:db8::1", None, &[]),
        ];
        for (address, names, expected) in cases {
            let assignment = Assignment {
                desired: None,
                successors: Vec::new(),
                created: 0,
                recorded: None,
                eligibility: Eligibility::Eligible,
                interfaces: names
                    .map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            };
            let served = serving(address.parse().unwrap(), &assignment, &interfaces);
            assert_eq!(
                served.into_iter().collect::<Vec<_>>(),
                expected,
                "{address} {names:?}"
            );
        }
    }
}
