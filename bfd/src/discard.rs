//! Why a datagram was discarded, and how many were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a datagram was discarded: the first check that it failed, in the order
/// in which they are made (RFC 5881 section 5, then RFC 5880 section 6.8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Discard {
    /// It came to the single-hop port with a TTL or hop limit that is not 255
    /// (GTSM, RFC 5881 section 5).
    HopLimit,
    /// Its version is not 1.
    Version,
    /// Its Length is below 24, or 26 with an authentication section; or it has
    /// no Length at all.
    LengthShort,
    /// Its Length is greater than the datagram.
    LengthBeyond,
    /// Its Detect Mult is 0.
    Multiplier,
    /// It is a multipoint packet.
    Multipoint,
    /// Its My Discriminator is 0.
    MyDiscriminator,
    /// Its Your Discriminator is of no session of ours on this port.
    YourDiscriminator,
    /// Its Your Discriminator is 0, yet the sender is in Init or Up.
    NoDiscriminator,
    /// Its Your Discriminator is 0, and there is no session with the sender.
    UnknownPeer,
    /// It has an authentication section; no session of ours has one.
    Authentication,
    /// It came over more hops than its session allows (RFC 5883 section 5).
    MinimumTtl,
}

impl Discard {
    /// All of them, in the order in which they are checked.
    pub const ALL: [Self; 12] = [
        Self::HopLimit,
        Self::Version,
        Self::LengthShort,
        Self::LengthBeyond,
        Self::Multiplier,
        Self::Multipoint,
        Self::MyDiscriminator,
        Self::YourDiscriminator,
        Self::NoDiscriminator,
        Self::UnknownPeer,
        Self::Authentication,
        Self::MinimumTtl,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HopLimit => "hop_limit",
            Self::Version => "version",
            Self::LengthShort => "length_short",
            Self::LengthBeyond => "length_beyond",
            Self::Multiplier => "multiplier",
            Self::Multipoint => "multipoint",
            Self::MyDiscriminator => "my_discriminator",
            Self::YourDiscriminator => "your_discriminator",
            Self::NoDiscriminator => "no_discriminator",
            Self::UnknownPeer => "unknown_peer",
            Self::Authentication => "authentication",
            Self::MinimumTtl => "minimum_ttl",
        }
    }
}

/// Datagrams by the reason for which they were discarded.
pub type Discards = BTreeMap<Discard, u64>;
