//! Neighbour Discovery (RFC 4861, RFC 4862 section 5.4, RFC 7527).
//!
//! Options are read here and not by `pnet`, whose option parser computes a
//! length in eight bits: an option of 256 bytes or more overflows it.

use std::net::Ipv6Addr;

use pnet::packet::icmpv6::ndp::{
    Icmpv6Codes, MutableNeighborAdvertPacket, MutableNeighborSolicitPacket, NdpOption,
    NdpOptionType, NdpOptionTypes, NeighborAdvertFlags, NeighborAdvertPacket,
    NeighborSolicitPacket,
};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types, MutableIcmpv6Packet, checksum};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};

use super::{Ethernet, FrameError, IPV6};
use crate::MacAddr;

/// What an Enhanced DAD probe carries, so that its sender knows it again (RFC
/// 7527 section 4.1).
pub type Nonce = [u8; 6];

/// All nodes of the segment (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The only hop limit of Neighbour Discovery: a router would have lowered it,
/// so the sender is on the segment (RFC 4861 section 11.2).
const HOP_LIMIT: u8 = 255;
const IPV6_HEADER: usize = 40;
/// A message without options.
const FIXED: usize = 24;
/// An option's length counts in these. All options that we send have one.
const OPTION_UNIT: usize = 8;
/// RFC 3971 section 5.3.2.
const NONCE: NdpOptionType = NdpOptionType(14);

/// The group that hears solicitations for `target` (RFC 4291 section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The hardware address of an IPv6 group (RFC 2464 section 7).
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr(0x33, 0x33, a, b, c, d)
}

/// A Neighbour Discovery message that is about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// Asks.
    Solicitation(Solicitation),
    /// Answers, or announces.
    Advertisement(Advertisement),
}

/// "Who has `target`?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// The hardware address of who asks: its source link-layer address option,
    /// else the frame's source.
    pub mac: MacAddr,
    /// Its address; `::` in a probe (Duplicate Address Detection).
    pub source: Ipv6Addr,
    /// What it asks for.
    pub target: Ipv6Addr,
    /// By what it knows its own probe again.
    pub nonce: Option<Nonce>,
}

/// "I have `target`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The hardware address of who has it: its target link-layer address
    /// option, else the frame's source.
    pub mac: MacAddr,
    /// What it has.
    pub target: Ipv6Addr,
    /// Whom it answers; `None`: it tells all nodes.
    pub to: Option<(MacAddr, Ipv6Addr)>,
}

impl Solicitation {
    /// Asks whether anybody has `target`, without claiming it (RFC 4862
    /// section 5.4.2). It leaves every neighbour table as it is.
    pub fn probe(mac: MacAddr, target: Ipv6Addr, nonce: Nonce) -> Self {
        Self {
            mac,
            source: Ipv6Addr::UNSPECIFIED,
            target,
            nonce: Some(nonce),
        }
    }

    /// Whether it is a probe.
    pub fn is_probe(&self) -> bool {
        self.source.is_unspecified()
    }

    /// The answer: `mac` has what was asked for. One who has no address yet is
    /// answered by telling all (RFC 4861 section 7.2.4).
    pub fn answer(&self, mac: MacAddr) -> Advertisement {
        Advertisement {
            mac,
            target: self.target,
            to: (!self.is_probe()).then_some((self.mac, self.source)),
        }
    }

    /// The whole frame, to the target's solicited-node group.
    pub fn frame(&self) -> Vec<u8> {
        let mut options = Vec::new();
        if !self.is_probe() {
            options.push(option(NdpOptionTypes::SourceLLAddr, self.mac.octets()));
        }
        options.extend(self.nonce.map(|nonce| option(NONCE, nonce)));
        let mut message = vec![0; room(&options)];
        if let Some(mut packet) = MutableNeighborSolicitPacket::new(&mut message) {
            packet.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
            packet.set_target_addr(self.target);
            packet.set_options(&options);
        }
        let group = solicited_node(self.target);
        frame(self.mac, group_mac(group), self.source, group, &mut message)
    }
}

impl Advertisement {
    /// Tells all nodes that `mac` has `address` (RFC 4861 section 7.2.6).
    pub fn announcement(mac: MacAddr, address: Ipv6Addr) -> Self {
        Self {
            mac,
            target: address,
            to: None,
        }
    }

    /// The whole frame. It overrides what a neighbour table has, and has the
    /// target link-layer address: Linux ignores an announcement without
    /// either.
    pub fn frame(&self) -> Vec<u8> {
        let options = [option(NdpOptionTypes::TargetLLAddr, self.mac.octets())];
        let (mac, to, solicited) = match self.to {
            Some((mac, to)) => (mac, to, NeighborAdvertFlags::Solicited),
            None => (group_mac(ALL_NODES), ALL_NODES, 0),
        };
        let mut message = vec![0; room(&options)];
        if let Some(mut packet) = MutableNeighborAdvertPacket::new(&mut message) {
            packet.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
            packet.set_flags(NeighborAdvertFlags::Override | solicited);
            packet.set_target_addr(self.target);
            packet.set_options(&options);
        }
        frame(self.mac, mac, self.target, to, &mut message)
    }
}

impl Ndp {
    /// Parses a frame of [`IPV6`], with the validity rules of RFC 4861
    /// sections 7.1.1 and 7.1.2. Bytes after the packet are padding.
    pub fn decode(ethernet: &Ethernet<'_>) -> Result<Self, FrameError> {
        let ip = Ipv6Packet::new(ethernet.payload).ok_or(FrameError::Truncated)?;
        // Extension headers have no use here, and a fragment may not carry
        // Neighbour Discovery (RFC 6980 section 5).
        if ip.get_version() != 6 || ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
            return Err(FrameError::NdpFormat);
        }
        let length = usize::from(ip.get_payload_length());
        let message = ethernet
            .payload
            .get(IPV6_HEADER..IPV6_HEADER.saturating_add(length))
            .ok_or(FrameError::Truncated)?;
        let icmp = Icmpv6Packet::new(message).ok_or(FrameError::NdpFormat)?;
        let (source, destination) = (ip.get_source(), ip.get_destination());
        if ip.get_hop_limit() != HOP_LIMIT {
            return Err(FrameError::NdpHopLimit);
        }
        if icmp.get_checksum() != checksum(&icmp, &source, &destination) {
            return Err(FrameError::NdpChecksum);
        }
        if icmp.get_icmpv6_code() != Icmpv6Codes::NoCode {
            return Err(FrameError::NdpFormat);
        }
        let options = Options::decode(message.get(FIXED..).ok_or(FrameError::NdpFormat)?)?;
        match icmp.get_icmpv6_type() {
            Icmpv6Types::NeighborSolicit => {
                let packet = NeighborSolicitPacket::new(message).ok_or(FrameError::NdpFormat)?;
                let target = packet.get_target_addr();
                let probe = source.is_unspecified();
                let misplaced = probe
                    && (destination != solicited_node(target) || options.source_mac.is_some());
                if target.is_multicast() || source.is_multicast() || misplaced {
                    return Err(FrameError::NdpAddresses);
                }
                Ok(Self::Solicitation(Solicitation {
                    mac: station(options.source_mac.unwrap_or(ethernet.source))?,
                    source,
                    target,
                    nonce: options.nonce,
                }))
            }
            Icmpv6Types::NeighborAdvert => {
                let packet = NeighborAdvertPacket::new(message).ok_or(FrameError::NdpFormat)?;
                let target = packet.get_target_addr();
                let solicited = packet.get_flags() & NeighborAdvertFlags::Solicited != 0;
                if target.is_multicast()
                    || source.is_multicast()
                    || (destination.is_multicast() && solicited)
                {
                    return Err(FrameError::NdpAddresses);
                }
                Ok(Self::Advertisement(Advertisement {
                    mac: station(options.target_mac.unwrap_or(ethernet.source))?,
                    target,
                    to: (!destination.is_multicast())
                        .then_some((ethernet.destination, destination)),
                }))
            }
            _ => Err(FrameError::NdpFormat),
        }
    }
}

/// The options that matter here; of several of a kind the first.
#[derive(Default)]
struct Options {
    source_mac: Option<MacAddr>,
    target_mac: Option<MacAddr>,
    nonce: Option<Nonce>,
}

impl Options {
    fn decode(mut bytes: &[u8]) -> Result<Self, FrameError> {
        let mut options = Self::default();
        while !bytes.is_empty() {
            let (kind, length) = match bytes {
                [kind, length, ..] if *length > 0 => (*kind, usize::from(*length)),
                _ => return Err(FrameError::NdpFormat),
            };
            let (one, rest) = bytes
                .split_at_checked(length.saturating_mul(OPTION_UNIT))
                .ok_or(FrameError::NdpFormat)?;
            bytes = rest;
            let data: Option<[u8; 6]> = one.get(2..).and_then(|data| data.try_into().ok());
            let mac = || data.map(MacAddr::from).ok_or(FrameError::NdpFormat);
            match NdpOptionType(kind) {
                NdpOptionTypes::SourceLLAddr if options.source_mac.is_none() => {
                    options.source_mac = Some(mac()?);
                }
                NdpOptionTypes::TargetLLAddr if options.target_mac.is_none() => {
                    options.target_mac = Some(mac()?);
                }
                // One of another length is not ours, and nobody's mistake.
                NONCE if options.nonce.is_none() => options.nonce = data,
                _ => {}
            }
        }
        Ok(options)
    }
}

/// A hardware address that one station can have.
fn station(mac: MacAddr) -> Result<MacAddr, FrameError> {
    if mac.is_multicast() || mac.is_zero() {
        return Err(FrameError::NdpSender);
    }
    Ok(mac)
}

fn option(option_type: NdpOptionType, data: [u8; 6]) -> NdpOption {
    NdpOption {
        option_type,
        length: 1,
        data: data.to_vec(),
    }
}

fn room(options: &[NdpOption]) -> usize {
    FIXED.saturating_add(options.len().saturating_mul(OPTION_UNIT))
}

/// Puts `message` into IPv6 and Ethernet.
fn frame(
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    message: &mut [u8],
) -> Vec<u8> {
    if let Some(mut packet) = MutableIcmpv6Packet::new(message) {
        let sum = checksum(&packet.to_immutable(), &source, &destination);
        packet.set_checksum(sum);
    }
    let mut payload = vec![0; IPV6_HEADER.saturating_add(message.len())];
    if let Some(mut packet) = MutableIpv6Packet::new(&mut payload) {
        packet.set_version(6);
        packet.set_next_header(IpNextHeaderProtocols::Icmpv6);
        packet.set_payload_length(u16::try_from(message.len()).unwrap_or(u16::MAX));
        packet.set_hop_limit(HOP_LIMIT);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.set_payload(message);
    }
    Ethernet {
        destination: destination_mac,
        source: source_mac,
        ethertype: IPV6,
        payload: &payload,
    }
    .encode()
}
