//! Prefixes as (length in bits, as few octets as that needs), RFC 4271
//! section 4.3 and RFC 4760 section 5.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::reader::Reader;

/// Octets that a prefix of this many bits takes after its length octet.
fn octets(bits: u8) -> usize {
    usize::from(bits.div_ceil(8))
}

/// Octets on the wire of a prefix of this many bits, its length octet included.
pub(crate) fn wire_len(bits: u8) -> usize {
    octets(bits).saturating_add(1)
}

/// One address family's way to be a prefix on the wire.
pub(super) trait WirePrefix: Sized {
    fn from_wire(bits: u8, octets: &[u8]) -> Option<Self>;
    fn put(&self, out: &mut Vec<u8>);
}

impl WirePrefix for Ipv4Net {
    fn from_wire(bits: u8, octets: &[u8]) -> Option<Self> {
        let address = Ipv4Addr::from(padded::<4>(octets)?);
        Some(Self::new(address, bits).ok()?.trunc())
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(self.prefix_len(), &self.network().octets(), out);
    }
}

impl WirePrefix for Ipv6Net {
    fn from_wire(bits: u8, octets: &[u8]) -> Option<Self> {
        let address = Ipv6Addr::from(padded::<16>(octets)?);
        Some(Self::new(address, bits).ok()?.trunc())
    }

    fn put(&self, out: &mut Vec<u8>) {
        put(self.prefix_len(), &self.network().octets(), out);
    }
}

fn padded<const N: usize>(octets: &[u8]) -> Option<[u8; N]> {
    let mut all = [0; N];
    all.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(all)
}

fn put(bits: u8, address: &[u8], out: &mut Vec<u8>) {
    out.push(bits);
    out.extend(address.iter().take(octets(bits)));
}

/// Reads prefixes to the end of the field; `None` if one is longer than its
/// family allows or than the field. Bits beyond the length are ignored.
pub(super) fn read_all<P: WirePrefix>(field: &[u8]) -> Option<Vec<P>> {
    let mut reader = Reader::new(field);
    let mut prefixes = Vec::new();
    while !reader.is_empty() {
        let bits = reader.u8()?;
        prefixes.push(P::from_wire(bits, reader.bytes(octets(bits))?)?);
    }
    Some(prefixes)
}
