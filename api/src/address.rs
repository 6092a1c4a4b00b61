//! Addresses: the entries of a pool, and the names of [`VirtualIP`](crate::VirtualIP)s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first address.
    pub start: IpAddr,
    /// The last address; never before `start`, and of the same family.
    pub end: IpAddr,
}

/// Why a text is not an address, a range or a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is empty.
    #[error("empty address: write a CIDR, a range or an address, such as \"192.0.2.0/24\"")]
    Empty,
    /// A part of the text is not an IP address.
    #[error("{text:?} is not an ip address")]
    NotAnAddress {
        /// The part that does not parse.
        text: String,
    },
    /// The prefix length is not a number, or too long for the family.
    #[error("prefix length {length:?} of {text:?} is not between 0 and {max}")]
    BadLength {
        /// The whole entry.
        text: String,
        /// The length as written.
        length: String,
        /// 32 or 128.
        max: u8,
    },
    /// The two ends are of different families.
    #[error("{text:?} mixes ipv4 and ipv6: both ends of a range must be of one family")]
    MixedFamilies {
        /// The whole entry.
        text: String,
    },
    /// The range ends before it starts.
    #[error("range {text:?} ends before it starts")]
    Reversed {
        /// The whole entry.
        text: String,
    },
    /// The address is an IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`).
    #[error("{text:?} is an ipv4-mapped ipv6 address: write the ipv4 address")]
    Ipv4Mapped {
        /// The part concerned.
        text: String,
    },
    /// Not the name of a VirtualIP.
    #[error(
        "{text:?} is not a virtual ip name: want an ipv4 address, or eight groups of four hex digits joined by dashes"
    )]
    NotAName {
        /// The name as given.
        text: String,
    },
}

impl AddressRange {
    /// Whether `address` lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        same_family(self.start, address) && self.start <= address && address <= self.end
    }

    /// Whether the two ranges have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        same_family(self.start, other.start) && self.start <= other.end && other.start <= self.end
    }

    /// Whether the range holds IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.start.is_ipv4()
    }

    /// Number of addresses; `u128::MAX` for all of IPv6, which is one short.
    #[must_use]
    pub fn size(&self) -> u128 {
        to_bits(self.end)
            .saturating_sub(to_bits(self.start))
            .saturating_add(1)
    }
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            write!(f, "{}", self.start)
        } else {
            write!(f, "{}-{}", self.start, self.end)
        }
    }
}

impl FromStr for AddressRange {
    type Err = AddressError;

    /// Reads a pool entry: `192.0.2.0/24`, `192.0.2.10-192.0.2.20` (spaces around the dash are
    /// allowed) or `192.0.2.7`. Host bits of a prefix are ignored, as MetalLB does.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if let Some((address, length)) = text.split_once('/') {
            return prefix(text, parse_address(address)?, length);
        }
        let Some((start, end)) = text.split_once('-') else {
            let address = parse_address(text)?;
            return Ok(Self {
                start: address,
                end: address,
            });
        };
        let (start, end) = (parse_address(start.trim())?, parse_address(end.trim())?);
        if !same_family(start, end) {
            return Err(AddressError::MixedFamilies {
                text: text.to_owned(),
            });
        }
        if start > end {
            return Err(AddressError::Reversed {
                text: text.to_owned(),
            });
        }
        Ok(Self { start, end })
    }
}

fn prefix(text: &str, address: IpAddr, length: &str) -> Result<AddressRange, AddressError> {
    let max: u8 = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty()
        && length.bytes().all(|b| b.is_ascii_digit())
        && (length == "0" || !length.starts_with('0'));
    let bits = length
        .parse::<u8>()
        .ok()
        .filter(|bits| digits && *bits <= max)
        .ok_or_else(|| AddressError::BadLength {
            text: text.to_owned(),
            length: length.to_owned(),
            max,
        })?;
    // The host part as a mask of ones; a shift by the full width leaves none of it or all of it.
    Ok(match address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            AddressRange {
                start: Ipv4Addr::from_bits(v4.to_bits() & !host).into(),
                end: Ipv4Addr::from_bits(v4.to_bits() | host).into(),
            }
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            AddressRange {
                start: Ipv6Addr::from_bits(v6.to_bits() & !host).into(),
                end: Ipv6Addr::from_bits(v6.to_bits() | host).into(),
            }
        }
    })
}

/// Reads one address. No zone, no leading zeros, no IPv4-mapped IPv6.
///
/// # Errors
/// [`AddressError::NotAnAddress`] or [`AddressError::Ipv4Mapped`].
pub fn parse_address(text: &str) -> Result<IpAddr, AddressError> {
    let address: IpAddr = text.parse().map_err(|_| AddressError::NotAnAddress {
        text: text.to_owned(),
    })?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(AddressError::Ipv4Mapped {
            text: text.to_owned(),
        }),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(address),
    }
}

/// The name of the VirtualIP of an address: the address itself for IPv4, eight full groups joined
/// by dashes for IPv6 (`2001-0db8-0000-0000-0000-0000-0000-0010`), so that an address has exactly
/// one name and creating the object is a lock.
#[must_use]
pub fn virtual_ip_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:04x}")).join("-"),
    }
}

/// The address that a VirtualIP of this name stands for: the inverse of [`virtual_ip_name`].
///
/// # Errors
/// [`AddressError::NotAName`] for anything that `virtual_ip_name` never returns.
pub fn parse_virtual_ip_name(name: &str) -> Result<IpAddr, AddressError> {
    let address = if name.contains('-') {
        name.replace('-', ":")
            .parse::<Ipv6Addr>()
            .ok()
            .map(IpAddr::V6)
    } else {
        name.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    };
    address
        .filter(|address| virtual_ip_name(*address) == name)
        .ok_or_else(|| AddressError::NotAName {
            text: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> Result<(String, String), AddressError> {
        text.parse::<AddressRange>()
            .map(|r| (r.start.to_string(), r.end.to_string()))
    }

    #[test]
    fn prefixes_ranges_and_single_addresses_parse() {
        for (text, start, end) in [
            ("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
            ("192.0.2.77/24", "192.0.2.0", "192.0.2.255"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.7"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("192.0.2.10-192.0.2.20", "192.0.2.10", "192.0.2.20"),
            (" 192.0.2.10 - 192.0.2.20 ", "192.0.2.10", "192.0.2.20"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
            ("2001:db8::/126", "2001:db8::", "2001:db8::3"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::1", "2001:db8::ff"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(
                range(text),
                Ok((start.to_owned(), end.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let whole = |text: &str| text.to_owned();
        assert_eq!(range("  "), Err(AddressError::Empty));
        for text in [
            "192.0.2",
            "example",
            "192.0.2.01",
            "fe80::1%eth0",
            "192.0.2.256",
        ] {
            assert_eq!(
                range(text),
                Err(AddressError::NotAnAddress { text: whole(text) }),
                "{text}"
            );
        }
        for (text, length, max) in [
            ("192.0.2.0/33", "33", 32),
            ("192.0.2.0/", "", 32),
            ("192.0.2.0/+8", "+8", 32),
            ("192.0.2.0/08", "08", 32),
            ("2001:db8::/129", "129", 128),
        ] {
            let (text, length) = (whole(text), whole(length));
            assert_eq!(
                range(&text),
                Err(AddressError::BadLength {
                    text: text.clone(),
                    length,
                    max
                })
            );
        }
        let text = whole("192.0.2.1-2001:db8::1");
        assert_eq!(range(&text), Err(AddressError::MixedFamilies { text }));
        let text = whole("192.0.2.9-192.0.2.1");
        assert_eq!(range(&text), Err(AddressError::Reversed { text }));
        let text = whole("::ffff:192.0.2.1");
        assert_eq!(range(&text), Err(AddressError::Ipv4Mapped { text }));
    }

    #[test]
    fn families_never_mix_in_comparisons() {
        let all_v4: AddressRange = "0.0.0.0/0".parse().unwrap();
        let all_v6: AddressRange = "::/0".parse().unwrap();
        assert!(!all_v4.overlaps(&all_v6));
        assert!(!all_v6.contains("192.0.2.1".parse().unwrap()));
        assert_eq!(all_v4.size(), 1 << 32);
        assert_eq!(all_v6.size(), u128::MAX);
    }

    #[test]
    fn an_address_has_exactly_one_name() {
        for (address, name) in [
            ("192.0.2.10", "192.0.2.10"),
            ("2001:db8::10", "2001-0db8-0000-0000-0000-0000-0000-0010"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(virtual_ip_name(address), name);
            assert_eq!(parse_virtual_ip_name(name), Ok(address));
        }
        for name in [
            "",
            "192.0.2.010",
            "2001-db8--10",
            "2001-0DB8-0000-0000-0000-0000-0000-0010",
            "2001:db8::10",
            "web",
        ] {
            assert!(parse_virtual_ip_name(name).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_name_reads_back(address in any::<IpAddr>()) {
            prop_assert_eq!(parse_virtual_ip_name(&virtual_ip_name(address)), Ok(address));
        }

        #[test]
        fn a_printed_range_reads_back(a in any::<u32>(), b in any::<u32>()) {
            let (start, end) = (Ipv4Addr::from_bits(a.min(b)), Ipv4Addr::from_bits(a.max(b)));
            let range = AddressRange { start: start.into(), end: end.into() };
            prop_assert_eq!(range.to_string().parse::<AddressRange>(), Ok(range));
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = text.parse::<AddressRange>();
            let _ = parse_virtual_ip_name(&text);
        }
    }
}
