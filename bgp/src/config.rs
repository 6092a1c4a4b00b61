//! What a session is told: its peer and its routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{Family, Role};

/// A configuration that no session can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// RFC 7607.
    #[error("an AS number is 0")]
    ZeroAsn,
    /// RFC 6286.
    #[error("the router id is 0.0.0.0")]
    ZeroRouterId,
    /// RFC 4271 section 4.2.
    #[error("hold time {0:?}: it must be 0 or 3 to 65535 seconds")]
    HoldTime(Duration),
    /// RFC 4271 section 4.4.
    #[error(
        "keepalive time {keepalive:?}: it must be at least 1 s and below the hold time {hold:?}"
    )]
    KeepaliveTime {
        /// As configured.
        keepalive: Duration,
        /// As configured.
        hold: Duration,
    },
    /// A retry without a pause would be a loop.
    #[error("connect retry time {0:?}: it must be 1 to 65535 seconds")]
    ConnectRetry(Duration),
    /// An IPv4 peer and an IPv6 source address, or the reverse.
    #[error("peer {peer} and source address {address} are of different families")]
    SourceFamily {
        /// The peer.
        peer: IpAddr,
        /// Our configured address.
        address: IpAddr,
    },
    /// RFC 2385; the kernel takes no more.
    #[error("the password has {0} octets: it must have 1 to 80")]
    Password(usize),
    /// RFC 4724: the field has 12 bits.
    #[error("restart time {0:?}: it must be 1 to 4095 seconds")]
    RestartTime(Duration),
    /// RFC 5082.
    #[error("ttl security of {0} hops: it must be 1 to 254, and the peer not `multihop`")]
    TtlSecurity(u8),
    /// A session for no family would carry nothing.
    #[error("no address family is to be announced")]
    NoFamily,
}

/// Longest TCP MD5 password, in octets.
pub const MAX_PASSWORD: usize = 80;

/// A TCP MD5 password (RFC 2385). It is never written anywhere: not by
/// `Debug`, not by `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Any text; [`PeerConfig::validate`] knows the limits.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What the kernel is told.
    pub(crate) fn octets(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Graceful restart as the restarting side (RFC 4724): the peer keeps our
/// routes while our process restarts, because our forwarding goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// How long the peer keeps routes without a session: 1 s to 4095 s.
    pub time: Duration,
    /// This process continues the forwarding of an earlier one. It decides the
    /// R and F bits until the first session is up; after that the forwarding
    /// is known to go on.
    pub resumed: bool,
}

/// Which AS the peer may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerAsn {
    /// Exactly this one.
    Exact(u32),
    /// Our own.
    Internal,
    /// Any but our own.
    External,
}

impl PeerAsn {
    /// Whether a peer that says `asn` is the one that was meant.
    pub fn accepts(self, asn: u32, local_asn: u32) -> bool {
        match self {
            Self::Exact(wanted) => asn == wanted,
            Self::Internal => asn == local_asn,
            Self::External => asn != local_asn,
        }
    }

    /// Whether such a peer is in our own AS.
    pub fn is_internal(self, local_asn: u32) -> bool {
        self.accepts(local_asn, local_asn)
    }
}

impl std::fmt::Display for PeerAsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(asn) => write!(f, "{asn}"),
            Self::Internal => f.write_str("our own"),
            Self::External => f.write_str("any but our own"),
        }
    }
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's port, usually 179.
    pub port: u16,
    /// Our address toward the peer; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Our AS.
    pub local_asn: u32,
    /// The peer's AS.
    pub peer_asn: PeerAsn,
    /// BGP identifier: unique in the AS, the same for all sessions, not zero.
    pub router_id: Ipv4Addr,
    /// Proposed hold time: 0 (no hold timer), or 3 s to 65535 s; fractions of
    /// a second are dropped. The smaller of both sides' is used.
    pub hold_time: Duration,
    /// Longest interval between KEEPALIVEs; a third of the hold time if
    /// `None`. At least 1 s.
    pub keepalive_time: Option<Duration>,
    /// Pause before the next attempt to connect, and how long one may take.
    /// A quarter of it is random.
    pub connect_retry: Duration,
    /// The peer may be more than one hop away. Without it, packets to a peer
    /// in another AS leave with a TTL of 1.
    pub multihop: bool,
    /// Families to announce, where the peer takes them too.
    pub families: BTreeSet<Family>,
    /// Next hop for IPv4 routes on a session over IPv6. Without it they need
    /// a peer that takes IPv6 next hops (RFC 8950).
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Next hop for IPv6 routes on a session over IPv4.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// TCP MD5 password (RFC 2385).
    #[serde(skip)]
    pub password: Option<Password>,
    /// Graceful restart; `None`: the peer drops our routes with the session.
    pub restart: Option<Restart>,
    /// GTSM (RFC 5082): packets leave with a TTL of 255, and those of the peer
    /// count only if they crossed at most this many hops (1: on the link).
    /// Both sides must agree.
    pub ttl_security: Option<u8>,
    /// Our role toward a peer in another AS (RFC 9234).
    pub role: Option<Role>,
    /// Offer messages of up to 65535 octets (RFC 8654).
    pub extended_messages: bool,
}

impl PeerConfig {
    /// A session with the defaults: port 179, hold time 90 s, keepalive a
    /// third of it, connect retry 5 s, one hop.
    pub fn new(address: IpAddr, local_asn: u32, peer_asn: PeerAsn, router_id: Ipv4Addr) -> Self {
        Self {
            address,
            port: 179,
            source: None,
            local_asn,
            peer_asn,
            router_id,
            hold_time: Duration::from_secs(90),
            keepalive_time: None,
            connect_retry: Duration::from_secs(5),
            multihop: false,
            families: Family::ALL.into(),
            next_hop_v4: None,
            next_hop_v6: None,
            password: None,
            restart: None,
            ttl_security: None,
            role: None,
            extended_messages: true,
        }
    }

    /// Refuses what the RFCs forbid. [`Peer::spawn`](crate::Peer::spawn) calls
    /// it.
    ///
    /// # Errors
    /// One variant of [`Error`] per rule.
    pub fn validate(&self) -> Result<(), Error> {
        if self.local_asn == 0 || self.peer_asn == PeerAsn::Exact(0) {
            return Err(Error::ZeroAsn);
        }
        if self.router_id.is_unspecified() {
            return Err(Error::ZeroRouterId);
        }
        let hold = self.hold_time;
        if !matches!(hold.as_secs(), 0 | 3..=65535) || (hold.as_secs() == 0 && !hold.is_zero()) {
            return Err(Error::HoldTime(hold));
        }
        if let Some(keepalive) = self.keepalive_time
            && (keepalive < Duration::from_secs(1) || (keepalive >= hold && !hold.is_zero()))
        {
            return Err(Error::KeepaliveTime { keepalive, hold });
        }
        if !matches!(self.connect_retry.as_secs(), 1..=65535) {
            return Err(Error::ConnectRetry(self.connect_retry));
        }
        if let Some(address) = self.source
            && address.is_ipv4() != self.address.is_ipv4()
        {
            return Err(Error::SourceFamily {
                peer: self.address,
                address,
            });
        }
        if self.families.is_empty() {
            return Err(Error::NoFamily);
        }
        if let Some(password) = &self.password
            && !(1..=MAX_PASSWORD).contains(&password.octets().len())
        {
            return Err(Error::Password(password.octets().len()));
        }
        if let Some(restart) = self.restart
            && !matches!(restart.time.as_secs(), 1..=4095)
        {
            return Err(Error::RestartTime(restart.time));
        }
        if let Some(hops) = self.ttl_security
            && (self.multihop || !matches!(hops, 1..=254))
        {
            return Err(Error::TtlSecurity(hops));
        }
        Ok(())
    }

    /// The hold time for the OPEN.
    pub(crate) fn hold_seconds(&self) -> u16 {
        u16::try_from(self.hold_time.as_secs()).unwrap_or(u16::MAX)
    }
}

/// What is announced about a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attributes {
    /// Next hop; `None` means our own address on the session, or that of the
    /// configuration where the session's is of the other family.
    pub next_hop: Option<IpAddr>,
    /// LOCAL_PREF, for peers in our own AS only; 100 if `None`.
    pub local_pref: Option<u32>,
    /// Communities (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Extended communities (RFC 4360).
    pub extended_communities: BTreeSet<[u8; 8]>,
    /// Large communities (RFC 8092).
    pub large_communities: BTreeSet<[u32; 3]>,
    /// How many times more than once our AS is in the path, toward peers in
    /// another AS.
    pub prepend: u8,
    /// Share of the traffic that we can take, as the link-bandwidth extended
    /// community: this many times 1 Mbit/s.
    pub weight: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rfcs_forbid_is_refused_with_its_reason() {
        let good = PeerConfig::new(
            "192.0.2.1".parse().unwrap(),
            64512,
            PeerAsn::External,
            Ipv4Addr::new(192, 0, 2, 2),
        );
        assert_eq!(good.validate(), Ok(()));
        let seconds = Duration::from_secs;
        type Case = (fn(&mut PeerConfig), Error);
        let cases: [Case; 9] = [
            (|c| c.local_asn = 0, Error::ZeroAsn),
            (|c| c.peer_asn = PeerAsn::Exact(0), Error::ZeroAsn),
            (|c| c.router_id = Ipv4Addr::UNSPECIFIED, Error::ZeroRouterId),
            (
                |c| c.hold_time = Duration::from_secs(2),
                Error::HoldTime(seconds(2)),
            ),
            (
                |c| c.hold_time = Duration::from_millis(500),
                Error::HoldTime(Duration::from_millis(500)),
            ),
            (
                |c| c.hold_time = Duration::from_secs(65536),
                Error::HoldTime(seconds(65536)),
            ),
            (
                |c| c.keepalive_time = Some(Duration::from_secs(90)),
                Error::KeepaliveTime {
                    keepalive: seconds(90),
                    hold: seconds(90),
                },
            ),
            (
                |c| c.connect_retry = Duration::ZERO,
                Error::ConnectRetry(Duration::ZERO),
            ),
            (
                |c| c.source = Some("2001:db8::1".parse().unwrap()),
                Error::SourceFamily {
                    peer: "192.0.2.1".parse().unwrap(),
                    address: "2001:db8::1".parse().unwrap(),
                },
            ),
        ];
        for (change, error) in cases {
            let mut config = good.clone();
            change(&mut config);
            assert_eq!(config.validate(), Err(error));
        }
        let mut off = good;
        off.hold_time = Duration::ZERO;
        assert_eq!(off.validate(), Ok(()), "hold time 0 turns the timer off");
    }
}
