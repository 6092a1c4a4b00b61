//! The frames on the wire, built and parsed.
//!
//! ARP (RFC 826) and, for IPv6, Neighbour Discovery (RFC 4861): to answer
//! clients, to ask before a claim and to announce. And one EtherType of our
//! own, among nodes.
//!
//! # Our own frames
//!
//! EtherType 0x88B5 (IEEE 802 local experimental) unless configured otherwise;
//! to the group [`GROUP`], or to one station. Integers are big-endian.
//!
//! ```text
//! offset  bytes  field
//!      0      6  destination                        \
//!      6      6  source            (authenticated)   | Ethernet
//!     12      2  EtherType                          /
//!      0      1  version, 1
//!      1      1  kind: 1 HELLO, 2 CLAIM, 3 RELEASE, 4 SYNC, 5 SYNC answer,
//!                6 STALE, 7 HANDOVER
//!      2      1  flags: HELLO 0x01 deaf, 0x02 leaving; RELEASE 0x01 removed
//!      3      1  n, length of the node's name, 1 to 253
//!      4      2  b, length of the body
//!      6      2  zero
//!      8      8  cluster: SHA-256 of its name, first 8 bytes
//!     16      8  incarnation: grows with each start of the node's process
//!     24      8  seq: grows with each frame of the incarnation
//!     32      n  the node's name, UTF-8
//!   32+n      b  body
//! 32+n+b     16  tag: HMAC-SHA256 over source address and all before, first 16 bytes
//!                (then anything: Ethernet pads short frames)
//! ```
//!
//! | kind | to | body |
//! |---|---|---|
//! | HELLO | group, each interval | count (4), digest (8) of all that the sender holds |
//! | CLAIM | group, or the holder of a lower claim | entries that the sender holds now |
//! | HANDOVER | the successor | entries that the sender holds and gives |
//! | RELEASE | group | entries that it holds no more |
//! | SYNC | one peer, whose digest differs from what is known of it | none |
//! | STALE | who spoke as an earlier incarnation of itself | the incarnation known (8) |
//! | SYNC answer | who asked | from (16), to (16): "all that I hold in this range is", entries |
//!
//! An entry is an address (16; IPv4 as `::ffff:a.b.c.d`) and an epoch (8).
//! Ranges order IPv4 before IPv6. A frame has at most [`ENTRIES`] entries, so
//! that it fits an MTU of 1280; a long list takes several frames, each of
//! them true on its own.
//!
//! A frame of another cluster, with a wrong tag, or not newer than the last
//! one of its incarnation, is counted and never acted on.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod arp;
mod message;
mod ndp;
#[cfg(test)]
mod tests;

use pnet::packet::ethernet::{EtherType, EthernetPacket, MutableEthernetPacket};

use crate::MacAddr;

pub use arp::{Arp, Operation};
pub use message::{Body, Credentials, Entry, Message, entry_digest};
pub use ndp::{ALL_NODES, Advertisement, Ndp, Nonce, Solicitation, group_mac, solicited_node};

/// The group address of our own frames: locally administered, and none that
/// bridges filter.
pub const GROUP: MacAddr = MacAddr(0x03, 0x42, 0x52, 0x4b, 0x88, 0xb5);

/// The EtherType of our own frames, unless configured otherwise.
pub const ETHERTYPE: u16 = 0x88b5;

/// The EtherType of ARP.
pub const ARP: u16 = 0x0806;

/// The EtherType of IPv6, which carries Neighbour Discovery.
pub const IPV6: u16 = 0x86dd;

/// The most entries in one frame.
pub const ENTRIES: usize = 32;

const ETHERNET_HEADER: usize = 14;

/// Why a frame was not understood, or not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its headers or its own length fields say.
    #[error("frame is truncated")]
    Truncated,
    /// None of ARP, IPv6 and our own (a VLAN tag included).
    #[error("frame has another ethertype")]
    EtherType,
    /// ARP for other hardware than Ethernet or another protocol than IPv4, or
    /// with lengths that contradict these.
    #[error("arp is not of ethernet and ipv4")]
    ArpFormat,
    /// ARP that is neither request nor reply.
    #[error("arp operation is unknown")]
    ArpOperation,
    /// ARP whose sender cannot be a station: a group address, or zero.
    #[error("arp sender is not a station")]
    ArpSender,
    /// IPv6 that is no Neighbour Solicitation or Advertisement, or one whose
    /// fields or options contradict each other.
    #[error("packet is no sound neighbour discovery")]
    NdpFormat,
    /// Neighbour Discovery that crossed a router, or was made to.
    #[error("hop limit of neighbour discovery is not 255")]
    NdpHopLimit,
    /// Neighbour Discovery that was damaged on the way.
    #[error("checksum of neighbour discovery is wrong")]
    NdpChecksum,
    /// Addresses that RFC 4861 section 7.1 does not allow together.
    #[error("addresses of neighbour discovery do not go together")]
    NdpAddresses,
    /// Neighbour Discovery whose sender cannot be a station: a group address,
    /// or zero.
    #[error("neighbour discovery sender is not a station")]
    NdpSender,
    /// A version of our own frames that this code does not know.
    #[error("version is unknown")]
    Version,
    /// Another cluster's frame.
    #[error("frame is of another cluster")]
    OtherCluster,
    /// The tag is not what the key makes of this frame.
    #[error("authentication tag is wrong")]
    Tag,
    /// Authentic, but of a kind that this code does not know.
    #[error("kind is unknown")]
    Kind,
    /// Authentic, but its node name or body does not follow the format.
    #[error("body is malformed")]
    Body,
}

impl FrameError {
    /// One word, for a counter.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::EtherType => "ethertype",
            Self::ArpFormat => "arp_format",
            Self::ArpOperation => "arp_operation",
            Self::ArpSender => "arp_sender",
            Self::NdpFormat => "ndp_format",
            Self::NdpHopLimit => "ndp_hop_limit",
            Self::NdpChecksum => "ndp_checksum",
            Self::NdpAddresses => "ndp_addresses",
            Self::NdpSender => "ndp_sender",
            Self::Version => "version",
            Self::OtherCluster => "other_cluster",
            Self::Tag => "tag",
            Self::Kind => "kind",
            Self::Body => "body",
        }
    }
}

/// An Ethernet frame, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet<'a> {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What is inside.
    pub ethertype: u16,
    /// The rest, padding included.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Takes `frame` apart.
    pub fn decode(frame: &'a [u8]) -> Result<Self, FrameError> {
        let packet = EthernetPacket::new(frame).ok_or(FrameError::Truncated)?;
        Ok(Self {
            destination: packet.get_destination(),
            source: packet.get_source(),
            ethertype: packet.get_ethertype().0,
            payload: frame.get(ETHERNET_HEADER..).unwrap_or_default(),
        })
    }

    /// The bytes of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_HEADER.saturating_add(self.payload.len())];
        if let Some(mut packet) = MutableEthernetPacket::new(&mut frame) {
            packet.set_destination(self.destination);
            packet.set_source(self.source);
            packet.set_ethertype(EtherType(self.ethertype));
            packet.set_payload(self.payload);
        }
        frame
    }
}
