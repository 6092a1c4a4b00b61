//! What a session is told, and why that may be refused.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The shortest and the longest interval.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(60);

/// How far away the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hops {
    /// On a network that we are on too: UDP port 3784, TTL 255 (RFC 5881).
    Single,
    /// Anywhere: UDP port 4784 (RFC 5883).
    Multi {
        /// The lowest TTL or hop limit that is taken.
        minimum_ttl: u8,
    },
}

/// Between which addresses a session runs. One session a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Path {
    /// The peer's address.
    pub peer: IpAddr,
    /// Our address; `None`: as the route to the peer has it.
    pub local: Option<IpAddr>,
    /// The interface's name; needed for a link-local peer.
    pub interface: Option<String>,
    /// How far away the peer is.
    pub hops: Hops,
}

impl Path {
    /// To a peer one hop away.
    pub fn single(peer: IpAddr) -> Self {
        Self {
            peer,
            local: None,
            interface: None,
            hops: Hops::Single,
        }
    }

    /// To a peer that may be several hops away.
    pub fn multi(peer: IpAddr, local: IpAddr, minimum_ttl: u8) -> Self {
        Self {
            peer,
            local: Some(local),
            interface: None,
            hops: Hops::Multi { minimum_ttl },
        }
    }

    /// Whether a session can run on it.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(&self) -> Result<(), Invalid> {
        let Self { peer, local, .. } = self;
        for address in std::iter::once(peer).chain(local) {
            if address.is_unspecified() || address.is_multicast() {
                return Err(Invalid::Address);
            }
        }
        if local.is_some_and(|local| local.is_ipv4() != peer.is_ipv4()) {
            return Err(Invalid::Families);
        }
        let multi = matches!(self.hops, Hops::Multi { .. });
        if link_local(*peer) {
            if multi {
                return Err(Invalid::LinkLocalMultihop);
            }
            if self.interface.is_none() {
                return Err(Invalid::LinkLocal);
            }
        }
        if self.hops == (Hops::Multi { minimum_ttl: 0 }) {
            return Err(Invalid::MinimumTtl);
        }
        Ok(())
    }
}

/// Whether an address means nothing without its link.
pub(crate) fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The timers of our end; what is used is negotiated with the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// Desired Min TX: we would not send more often (1 ms to 60 s). While the
    /// session is not up it is at least a second.
    pub transmit: Duration,
    /// Required Min RX: the peer must not send more often (1 ms to 60 s).
    pub receive: Duration,
    /// Detect Mult: so many packets of ours must be missing before the peer
    /// calls the session down.
    pub multiplier: NonZeroU8,
}

impl Timers {
    /// Whether they are within their limits.
    ///
    /// # Errors
    /// An interval outside 1 ms to 60 s.
    pub fn validate(&self) -> Result<(), Invalid> {
        if INTERVALS.contains(&self.transmit) && INTERVALS.contains(&self.receive) {
            Ok(())
        } else {
            Err(Invalid::Interval)
        }
    }
}

impl Default for Timers {
    /// 300 ms both ways, three times.
    fn default() -> Self {
        Self {
            transmit: Duration::from_millis(300),
            receive: Duration::from_millis(300),
            multiplier: NonZeroU8::MIN.saturating_add(2),
        }
    }
}

/// Who begins (RFC 5880 section 6.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// We send whether the peer is heard or not.
    #[default]
    Active,
    /// We send once the peer is heard.
    Passive,
}

/// What can be changed while a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its timers.
    pub timers: Timers,
    /// Who begins.
    pub role: Role,
    /// `false` holds it in AdminDown (RFC 5880 section 6.8.16).
    pub enabled: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timers: Timers::default(),
            role: Role::default(),
            enabled: true,
        }
    }
}

/// Why a session cannot be as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An address of nobody, or of a group.
    #[error("the address is not that of a host")]
    Address,
    /// IPv4 at one end and IPv6 at the other.
    #[error("both addresses must be of one family")]
    Families,
    /// An address that many links may have.
    #[error("a link-local peer needs an interface")]
    LinkLocal,
    /// An address that routers do not route.
    #[error("a link-local peer is one hop away, not several")]
    LinkLocalMultihop,
    /// A TTL that no packet arrives with.
    #[error("the least TTL is 1")]
    MinimumTtl,
    /// An interval that is too short or too long.
    #[error("intervals are from 1 ms to 60 s")]
    Interval,
}
