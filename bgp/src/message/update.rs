//! UPDATE: routes come and go, RFC 4271 section 4.3, RFC 4760.
//!
//! ```text
//!  withdrawn length 2 | withdrawn | attributes' length 2 | attributes | NLRI to the end
//! ```

use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::attribute::{self, Fault, PathAttributes, Treatment};
use super::prefix::{self, WirePrefix};
use super::reader::Reader;
use super::{Context, Family, Notification};

const ATTRIBUTE_LIST: u8 = 1;
const MISSING: u8 = 3;
const NETWORK_FIELD: u8 = 10;

/// An UPDATE.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// IPv4 prefixes that are gone.
    pub withdrawn: Vec<Ipv4Net>,
    /// MP_REACH_NLRI for IPv6 unicast.
    pub reach: Option<Reach>,
    /// MP_REACH_NLRI for IPv4 unicast with an IPv6 next hop (RFC 8950).
    pub reach_ipv4: Option<ReachIpv4>,
    /// MP_UNREACH_NLRI for IPv6 unicast.
    pub unreach: Option<Unreach>,
    /// Shared by all prefixes that are announced.
    pub attributes: PathAttributes,
    /// IPv4 prefixes that are announced.
    pub nlri: Vec<Ipv4Net>,
    /// What was wrong with it and survived; found by decoding, never sent.
    pub faults: Vec<Fault>,
}

/// IPv6 prefixes that are announced, with their next hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Global next hop.
    pub next_hop: Ipv6Addr,
    /// Link-local next hop beside it (RFC 2545 section 3).
    pub link_local: Option<Ipv6Addr>,
    /// The prefixes.
    pub prefixes: Vec<Ipv6Net>,
}

/// IPv4 prefixes that are announced with an IPv6 next hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachIpv4 {
    /// Global next hop.
    pub next_hop: Ipv6Addr,
    /// Link-local next hop beside it.
    pub link_local: Option<Ipv6Addr>,
    /// The prefixes.
    pub prefixes: Vec<Ipv4Net>,
}

/// IPv6 prefixes that are gone. None at all: End-of-RIB (RFC 4724 section 2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreach {
    /// The prefixes.
    pub prefixes: Vec<Ipv6Net>,
}

impl Update {
    /// End-of-RIB of one family (RFC 4724 section 2).
    pub fn end_of_rib(family: Family) -> Self {
        match family {
            Family::Ipv4Unicast => Self::default(),
            Family::Ipv6Unicast => Self {
                unreach: Some(Unreach::default()),
                ..Self::default()
            },
        }
    }

    /// Whether RFC 7606 makes its routes count as withdrawn.
    pub fn is_treated_as_withdraw(&self) -> bool {
        self.faults
            .iter()
            .any(|fault| fault.treatment == Treatment::TreatAsWithdraw)
    }

    pub(super) fn decode(body: &[u8], context: Context) -> Result<Self, Notification> {
        let bad_lengths = || Notification::new(3, ATTRIBUTE_LIST);
        let bad_network = || Notification::new(3, NETWORK_FIELD);
        let mut reader = Reader::new(body);
        let mut field = || {
            let length = reader.u16()?;
            reader.bytes(usize::from(length))
        };
        let withdrawn = field().ok_or_else(bad_lengths)?;
        let attributes = field().ok_or_else(bad_lengths)?;
        let mut update = Self {
            withdrawn: prefix::read_all(withdrawn).ok_or_else(bad_network)?,
            nlri: prefix::read_all(reader.rest()).ok_or_else(bad_network)?,
            ..Self::default()
        };
        let outcome = attribute::read_all(attributes, context, &mut update)?;

        let reach = outcome.has(attribute::MP_REACH);
        let announces = !update.nlri.is_empty() || reach;
        let mut missing = None;
        for (kind, needed) in [
            (attribute::ORIGIN, announces),
            (attribute::AS_PATH, announces),
            (attribute::NEXT_HOP, !update.nlri.is_empty()),
        ] {
            if needed && !outcome.has(kind) {
                missing.get_or_insert(Notification::with_data(3, MISSING, [kind]));
                let treatment = Treatment::TreatAsWithdraw;
                update.faults.push(Fault {
                    attribute: kind,
                    treatment,
                });
            }
        }
        match outcome.withdraw.clone().or(missing) {
            // Nothing tells which routes to withdraw (RFC 7606 section 5.2).
            Some(error) if !announces && outcome.any_but_unreach() => Err(error),
            Some(_) | None => Ok(update),
        }
    }

    /// The value of an MP_REACH_NLRI. `None` if it is malformed; other
    /// families are checked as far as that is possible, and ignored.
    pub(super) fn read_reach(&mut self, value: &[u8], context: Context) -> Option<()> {
        let mut reader = Reader::new(value);
        let family = (reader.u16()?, reader.u8()?);
        let length = reader.u8()?;
        let next_hop = reader.bytes(usize::from(length))?;
        reader.u8()?; // reserved
        let prefixes = reader.rest();
        match family {
            (1, 1) if length == 4 => {
                prefix::read_all::<Ipv4Net>(prefixes)?;
            }
            (1, 1) if context.ipv6_next_hop => {
                let (next_hop, link_local) = read_next_hop(next_hop)?;
                self.reach_ipv4 = Some(ReachIpv4 {
                    next_hop,
                    link_local,
                    prefixes: prefix::read_all(prefixes)?,
                });
            }
            (1, 1) => return None,
            (2, 1) => {
                let (next_hop, link_local) = read_next_hop(next_hop)?;
                self.reach = Some(Reach {
                    next_hop,
                    link_local,
                    prefixes: prefix::read_all(prefixes)?,
                });
            }
            _ => {}
        }
        Some(())
    }

    /// The value of an MP_UNREACH_NLRI, likewise.
    pub(super) fn read_unreach(&mut self, value: &[u8]) -> Option<()> {
        let mut reader = Reader::new(value);
        let family = (reader.u16()?, reader.u8()?);
        let prefixes = reader.rest();
        match family {
            (1, 1) => prefix::read_all::<Ipv4Net>(prefixes).map(drop)?,
            (2, 1) => {
                self.unreach = Some(Unreach {
                    prefixes: prefix::read_all(prefixes)?,
                });
            }
            _ => {}
        }
        Some(())
    }

    pub(super) fn put(&self, context: Context, out: &mut Vec<u8>) -> Option<()> {
        put_counted(out, |out| put_prefixes(&self.withdrawn, out))?;
        put_counted(out, |out| {
            // First, so that a receiver finds them whatever follows (RFC 7606
            // section 5.1).
            if let Some(unreach) = &self.unreach {
                attribute::put_optional(attribute::MP_UNREACH, out, |out| {
                    put_family(Family::Ipv6Unicast, out);
                    put_prefixes(&unreach.prefixes, out)
                })?;
            }
            if let Some(reach) = &self.reach {
                attribute::put_optional(attribute::MP_REACH, out, |out| {
                    put_family(Family::Ipv6Unicast, out);
                    put_next_hop(reach.next_hop, reach.link_local, out);
                    put_prefixes(&reach.prefixes, out)
                })?;
            }
            if let Some(reach) = &self.reach_ipv4 {
                attribute::put_optional(attribute::MP_REACH, out, |out| {
                    put_family(Family::Ipv4Unicast, out);
                    put_next_hop(reach.next_hop, reach.link_local, out);
                    put_prefixes(&reach.prefixes, out)
                })?;
            }
            self.attributes.put(context, out)
        })?;
        put_prefixes(&self.nlri, out)
    }
}

/// A global next hop, and a link-local one if the field is long enough (RFC
/// 2545 section 3).
fn read_next_hop(field: &[u8]) -> Option<(Ipv6Addr, Option<Ipv6Addr>)> {
    let mut reader = Reader::new(field);
    let global = reader.array::<16>().map(Ipv6Addr::from)?;
    let link_local = reader.array::<16>().map(Ipv6Addr::from);
    reader.is_empty().then_some((global, link_local))
}

/// Length and next hop, and the reserved octet behind them.
fn put_next_hop(global: Ipv6Addr, link_local: Option<Ipv6Addr>, out: &mut Vec<u8>) {
    out.push(if link_local.is_some() { 32 } else { 16 });
    out.extend(global.octets());
    out.extend(link_local.iter().flat_map(Ipv6Addr::octets));
    out.push(0);
}

fn put_family(family: Family, out: &mut Vec<u8>) {
    out.extend(family.afi().to_be_bytes());
    out.push(family.safi());
}

fn put_prefixes<P: WirePrefix>(prefixes: &[P], out: &mut Vec<u8>) -> Option<()> {
    for prefix in prefixes {
        prefix.put(out);
    }
    Some(())
}

/// Appends what `write` appends, with its length in two octets before it.
fn put_counted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<()> {
    let mut value = Vec::new();
    write(&mut value)?;
    out.extend(u16::try_from(value.len()).ok()?.to_be_bytes());
    out.extend(value);
    Some(())
}
