//! The two address families, and what differs between their headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(crate) const fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Bytes of an address.
    pub(crate) const fn width(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The digit that ends the names of sets and chains.
    pub(crate) const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    /// Reads an address from exactly its bytes.
    pub(crate) fn address(self, bytes: &[u8]) -> Option<IpAddr> {
        match self {
            Self::V4 => <[u8; 4]>::try_from(bytes)
                .ok()
                .map(|b| Ipv4Addr::from(b).into()),
            Self::V6 => <[u8; 16]>::try_from(bytes)
                .ok()
                .map(|b| Ipv6Addr::from(b).into()),
        }
    }

    /// The highest address.
    pub(crate) const fn last(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::BROADCAST),
            Self::V6 => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        }
    }
}

/// Appends the bytes of an address.
pub(crate) fn push_address(to: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(a) => to.extend_from_slice(&a.octets()),
        IpAddr::V6(a) => to.extend_from_slice(&a.octets()),
    }
}

/// The next address, if there is one.
pub(crate) fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_add(1)
            .map(|b| Ipv4Addr::from_bits(b).into()),
        IpAddr::V6(a) => a
            .to_bits()
            .checked_add(1)
            .map(|b| Ipv6Addr::from_bits(b).into()),
    }
}

/// The address before, if there is one.
pub(crate) fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a
            .to_bits()
            .checked_sub(1)
            .map(|b| Ipv4Addr::from_bits(b).into()),
        IpAddr::V6(a) => a
            .to_bits()
            .checked_sub(1)
            .map(|b| Ipv6Addr::from_bits(b).into()),
    }
}
