//! The interfaces of this machine, kept up to date by netlink events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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
    pub(crate) addresses: BTreeSet<(IpAddr, u8)>,
}

impl Interface {
    /// Whether `address` is in a subnet of the interface.
    fn contains(&self, address: IpAddr) -> bool {
        let near = |(own, length): &(IpAddr, u8)| in_subnet(*own, *length, address);
        self.addresses.iter().any(near)
    }

    /// Whether the interface has an address of the family of `address`. Every
    /// interface has an IPv6 link-local one, so that says nothing.
    fn speaks_family_of(&self, address: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|(own, _)| tells(*own) && own.is_ipv4() == address.is_ipv4())
    }

    /// Whether there are others on the link with addresses of that family, as
    /// far as its own tell. A host's /32 is the end of a pod's cable, or a
    /// tunnel's, on each node another.
    fn has_subnet_of_family(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, length)| {
            let whole = if own.is_ipv4() { 32 } else { 128 };
            tells(*own) && own.is_ipv4() == address.is_ipv4() && *length < whole
        })
    }
}

/// Whether an interface's own address says of which family it is.
fn tells(own: IpAddr) -> bool {
    match own {
        IpAddr::V4(_) => true,
        IpAddr::V6(own) => !own.is_unicast_link_local(),
    }
}

/// Whether `address` is in the subnet of `length` bits around `own`.
fn in_subnet(own: IpAddr, length: u8, address: IpAddr) -> bool {
    // The bits that may differ; all of them where the length is 0.
    let host = |width: u32| width.saturating_sub(length.into());
    match (own, address) {
        (IpAddr::V4(own), IpAddr::V4(address)) => (own.to_bits() ^ address.to_bits())
            .checked_shr(host(32))
            .is_none_or(|rest| rest == 0),
        (IpAddr::V6(own), IpAddr::V6(address)) => (own.to_bits() ^ address.to_bits())
            .checked_shr(host(128))
            .is_none_or(|rest| rest == 0),
        _ => false,
    }
}

/// The interfaces that serve `address`: those whose subnet contains it; if
/// there is none, all that have a subnet of its family, or those that are named
/// and have an address of it.
pub(crate) fn serving(
    address: IpAddr,
    assignment: &Assignment,
    interfaces: &[Interface],
) -> BTreeSet<u32> {
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
            .filter(|i| match assignment.interfaces {
                Some(_) => i.speaks_family_of(address),
                None => i.has_subnet_of_family(address),
            })
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
    addresses: BTreeMap<u32, BTreeSet<(IpAddr, u8)>>,
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
            && !flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp | LinkFlags::Port),
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

fn read_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            // The other end of a point-to-point link, or the same as local.
            AddressAttribute::Address(other) => address = address.or(Some(*other)),
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
    let (connection, handle, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
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
mod tests;
