//! OPEN: who we are and what we can do, RFC 4271 section 4.2.
//!
//! ```text
//!  version 1 | my AS 2 | hold time 2 | BGP identifier 4 | parameters' length 1 | parameters
//! ```
//!
//! With RFC 9072 the length octet is 255 (any non-zero value is accepted), an
//! octet 255 follows, then a length of two octets, and each parameter has a
//! length of two octets as well.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use super::{Family, Notification};

const VERSION: u8 = 4;
const PARAMETER_CAPABILITIES: u8 = 2;
const EXTENDED: u8 = 255;
/// Stands for an AS number that does not fit two octets (RFC 6793).
pub const AS_TRANS: u16 = 23456;

/// An OPEN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// My Autonomous System, `AS_TRANS` if it does not fit.
    pub my_as: u16,
    /// Proposed hold time in seconds: 0, or 3 and more.
    pub hold_time: u16,
    /// BGP identifier, not zero.
    pub router_id: Ipv4Addr,
    /// In the order in which they are on the wire.
    pub capabilities: Vec<Capability>,
}

/// A capability (RFC 5492).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capability {
    /// Multiprotocol extensions for one address family (RFC 4760), code 1.
    MultiProtocol {
        /// Address family identifier.
        afi: u16,
        /// Subsequent address family identifier.
        safi: u8,
    },
    /// Route refresh (RFC 2918), code 2.
    RouteRefresh,
    /// Four-octet AS numbers, and the sender's own (RFC 6793), code 65.
    FourOctetAs(u32),
    /// IPv6 next hops for other families (RFC 8950), code 5: AFI and SAFI of
    /// the routes, AFI of the next hop.
    ExtendedNextHop(Vec<(u16, u16, u16)>),
    /// Messages of up to 65535 octets (RFC 8654), code 6.
    ExtendedMessage,
    /// The sender's role toward us (RFC 9234), code 9.
    Role(u8),
    /// Graceful restart (RFC 4724, RFC 8538), code 64.
    GracefulRestart(GracefulRestart),
    /// Enhanced route refresh (RFC 7313), code 70.
    EnhancedRouteRefresh,
    /// Any other; ignored.
    Unknown {
        /// Capability code.
        code: u8,
        /// Its value.
        value: Vec<u8>,
    },
}

/// What a speaker says about its restarts: RFC 4724 section 3.
///
/// ```text
///  flags 4 bits: R, N | restart time 12 bits | (AFI 2 | SAFI 1 | flags 1: F)*
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestart {
    /// R: the sender has restarted.
    pub restarted: bool,
    /// N: a NOTIFICATION other than Hard Reset keeps routes too (RFC 8538).
    pub notification: bool,
    /// Seconds until the sender expects to be back, at most 4095.
    pub time: u16,
    /// Families whose routes are to be kept.
    pub families: Vec<RestartFamily>,
}

/// One family of a [`GracefulRestart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartFamily {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
    /// F: the sender's forwarding state survived its restart.
    pub forwarding: bool,
}

impl GracefulRestart {
    fn read(value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let first = reader.u16()?;
        let mut families = Vec::new();
        while !reader.is_empty() {
            families.push(RestartFamily {
                afi: reader.u16()?,
                safi: reader.u8()?,
                forwarding: reader.u8()? & 0x80 != 0,
            });
        }
        Some(Self {
            restarted: first & 0x8000 != 0,
            notification: first & 0x4000 != 0,
            time: first & 0x0fff,
            families,
        })
    }

    fn put(&self, out: &mut Vec<u8>) -> Option<()> {
        let length = self.families.len().checked_mul(4)?.checked_add(2)?;
        out.extend([64, u8::try_from(length).ok()?]);
        let flag = |set, bit: u16| if set { bit } else { 0 };
        let first =
            flag(self.restarted, 0x8000) | flag(self.notification, 0x4000) | self.time.min(0x0fff);
        out.extend(first.to_be_bytes());
        for family in &self.families {
            out.extend(family.afi.to_be_bytes());
            out.extend([family.safi, if family.forwarding { 0x80 } else { 0 }]);
        }
        Some(())
    }
}

/// The sender's role on a session between two AS: RFC 9234 section 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Sells transit to the peer.
    Provider,
    /// Redistributes routes among its clients.
    RouteServer,
    /// Client of a route server.
    RouteServerClient,
    /// Buys transit from the peer.
    Customer,
    /// Exchanges its own and its customers' routes.
    Peer,
}

impl Role {
    /// Its value on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Provider => 0,
            Self::RouteServer => 1,
            Self::RouteServerClient => 2,
            Self::Customer => 3,
            Self::Peer => 4,
        }
    }

    /// Whether the other side may say `theirs` (RFC 9234 section 4.2).
    pub const fn fits(self, theirs: u8) -> bool {
        let wanted = match self {
            Self::Provider => Self::Customer,
            Self::RouteServer => Self::RouteServerClient,
            Self::RouteServerClient => Self::RouteServer,
            Self::Customer => Self::Provider,
            Self::Peer => Self::Peer,
        };
        wanted.code() == theirs
    }

    /// Whether routes to the other side are marked "only to customer" (RFC
    /// 9234 section 5).
    pub const fn marks(self) -> bool {
        match self {
            Self::Provider | Self::RouteServer | Self::Peer => true,
            Self::RouteServerClient | Self::Customer => false,
        }
    }
}

impl Open {
    /// An OPEN with the capabilities that this speaker has: IPv4 and IPv6
    /// unicast, route refresh, four-octet AS numbers.
    pub fn new(asn: u32, hold_time: u16, router_id: Ipv4Addr) -> Self {
        let family = |family: Family| Capability::MultiProtocol {
            afi: family.afi(),
            safi: family.safi(),
        };
        Self {
            my_as: u16::try_from(asn).unwrap_or(AS_TRANS),
            hold_time,
            router_id,
            capabilities: vec![
                family(Family::Ipv4Unicast),
                family(Family::Ipv6Unicast),
                Capability::RouteRefresh,
                Capability::FourOctetAs(asn),
            ],
        }
    }

    /// The sender's AS number: the one in its four-octet capability if it has
    /// one. Duplicates are legal (RFC 5492); the last wins.
    pub fn asn(&self) -> u32 {
        self.four_octet_asn().unwrap_or(u32::from(self.my_as))
    }

    /// The AS number in the four-octet capability.
    pub fn four_octet_asn(&self) -> Option<u32> {
        self.capabilities
            .iter()
            .rev()
            .find_map(|capability| match capability {
                Capability::FourOctetAs(asn) => Some(*asn),
                _ => None,
            })
    }

    /// Whether the sender takes routes of this family. Without any
    /// multiprotocol capability a speaker means IPv4 unicast (RFC 4760
    /// section 8).
    pub fn has_family(&self, family: Family) -> bool {
        let mut families = self
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::MultiProtocol { afi, safi } => Some((*afi, *safi)),
                _ => None,
            });
        let wanted = (family.afi(), family.safi());
        match families.next() {
            None => family == Family::Ipv4Unicast,
            Some(first) => first == wanted || families.any(|other| other == wanted),
        }
    }

    /// What the sender says about its restarts. One instance is legal; of
    /// several the last counts (RFC 4724 section 3).
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        let mut all = self.capabilities.iter().rev();
        all.find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// The sender's role; an error if it names several (RFC 9234 section 4.2).
    pub fn role(&self) -> Result<Option<u8>, Notification> {
        let mut roles = self
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::Role(role) => Some(*role),
                _ => None,
            });
        let first = roles.next();
        if roles.any(|other| Some(other) != first) {
            return Err(Notification::new(2, 11));
        }
        Ok(first)
    }

    /// Whether the sender takes IPv4 unicast routes with an IPv6 next hop.
    pub fn has_ipv6_next_hop(&self) -> bool {
        self.capabilities.iter().any(|capability| match capability {
            Capability::ExtendedNextHop(triples) => triples.contains(&(1, 1, 2)),
            _ => false,
        })
    }

    /// Whether this very capability is there.
    pub fn has(&self, capability: &Capability) -> bool {
        self.capabilities.contains(capability)
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, Notification> {
        let malformed = || Notification::new(2, 0);
        let mut reader = Reader::new(body);
        let version = reader.u8().ok_or_else(malformed)?;
        if version != VERSION {
            return Err(Notification::with_data(
                2,
                1,
                u16::from(VERSION).to_be_bytes(),
            ));
        }
        let my_as = reader.u16().ok_or_else(malformed)?;
        let hold_time = reader.u16().ok_or_else(malformed)?;
        let router_id = Ipv4Addr::from(reader.u32().ok_or_else(malformed)?);
        if my_as == 0 {
            return Err(Notification::new(2, 2));
        }
        if matches!(hold_time, 1 | 2) {
            return Err(Notification::with_data(2, 6, hold_time.to_be_bytes()));
        }
        if router_id.is_unspecified() {
            return Err(Notification::with_data(2, 3, router_id.octets()));
        }
        let capabilities = parameters(&mut reader)?;
        let open = Self {
            my_as,
            hold_time,
            router_id,
            capabilities,
        };
        if open.asn() == 0 {
            return Err(Notification::new(2, 2)); // RFC 7607
        }
        Ok(open)
    }

    /// One parameter with all capabilities; in the RFC 9072 form only when
    /// they do not fit the old one. `None` if they do not fit at all.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Option<()> {
        out.push(VERSION);
        out.extend(self.my_as.to_be_bytes());
        out.extend(self.hold_time.to_be_bytes());
        out.extend(self.router_id.octets());
        let mut all = Vec::new();
        for capability in &self.capabilities {
            capability.put(&mut all)?;
        }
        if all.is_empty() {
            out.push(0);
        } else if let Some(length) = u8::try_from(all.len()).ok().filter(|len| *len <= 253) {
            out.extend([length.saturating_add(2), PARAMETER_CAPABILITIES, length]);
        } else {
            let length = u16::try_from(all.len()).ok()?;
            out.extend([EXTENDED, EXTENDED]);
            out.extend(length.checked_add(3)?.to_be_bytes());
            out.push(PARAMETER_CAPABILITIES);
            out.extend(length.to_be_bytes());
        }
        out.extend(all);
        Some(())
    }
}

fn parameters(reader: &mut Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::new(2, 0);
    let mut length = usize::from(reader.u8().ok_or_else(malformed)?);
    let mut peek = reader.clone();
    let extended = length != 0 && peek.u8() == Some(EXTENDED);
    if extended {
        length = usize::from(peek.u16().ok_or_else(malformed)?);
        *reader = peek;
    }
    if length != reader.len() {
        return Err(malformed());
    }
    let mut capabilities = Vec::new();
    while !reader.is_empty() {
        let kind = reader.u8().ok_or_else(malformed)?;
        let length = if extended {
            reader.u16()
        } else {
            reader.u8().map(u16::from)
        };
        let value = length.and_then(|length| reader.bytes(usize::from(length)));
        let mut value = Reader::new(value.ok_or_else(malformed)?);
        if kind != PARAMETER_CAPABILITIES {
            return Err(Notification::new(2, 4));
        }
        while !value.is_empty() {
            capabilities.push(Capability::read(&mut value).ok_or_else(malformed)?);
        }
    }
    Ok(capabilities)
}

fn read_triples(value: &[u8]) -> Option<Vec<(u16, u16, u16)>> {
    let mut reader = Reader::new(value);
    let mut triples = Vec::new();
    while !reader.is_empty() {
        triples.push((reader.u16()?, reader.u16()?, reader.u16()?));
    }
    Some(triples)
}

impl Capability {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let code = reader.u8()?;
        let length = reader.u8()?;
        let value = reader.bytes(usize::from(length))?;
        Some(match (code, value) {
            (1, [a, b, _reserved, safi]) => Self::MultiProtocol {
                afi: u16::from_be_bytes([*a, *b]),
                safi: *safi,
            },
            (2, []) => Self::RouteRefresh,
            (65, [a, b, c, d]) => Self::FourOctetAs(u32::from_be_bytes([*a, *b, *c, *d])),
            (6, []) => Self::ExtendedMessage,
            (9, [role]) => Self::Role(*role),
            (70, []) => Self::EnhancedRouteRefresh,
            (1 | 2 | 65, _) => return None,
            // What a session can do without is ignored if it makes no sense.
            (code, value) => Self::read_list(code, value).unwrap_or_else(|| Self::Unknown {
                code,
                value: value.to_vec(),
            }),
        })
    }

    fn read_list(code: u8, value: &[u8]) -> Option<Self> {
        match code {
            5 => read_triples(value).map(Self::ExtendedNextHop),
            64 => GracefulRestart::read(value).map(Self::GracefulRestart),
            _ => None,
        }
    }

    fn put(&self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::MultiProtocol { afi, safi } => {
                out.extend([1, 4]);
                out.extend(afi.to_be_bytes());
                out.extend([0, *safi]);
            }
            Self::RouteRefresh => out.extend([2, 0]),
            Self::FourOctetAs(asn) => {
                out.extend([65, 4]);
                out.extend(asn.to_be_bytes());
            }
            Self::ExtendedNextHop(triples) => {
                let length = triples.len().checked_mul(6)?;
                out.extend([5, u8::try_from(length).ok()?]);
                for (afi, safi, next_hop) in triples {
                    out.extend(afi.to_be_bytes());
                    out.extend(safi.to_be_bytes());
                    out.extend(next_hop.to_be_bytes());
                }
            }
            Self::ExtendedMessage => out.extend([6, 0]),
            Self::Role(role) => out.extend([9, 1, *role]),
            Self::GracefulRestart(restart) => restart.put(out)?,
            Self::EnhancedRouteRefresh => out.extend([70, 0]),
            Self::Unknown { code, value } => {
                out.extend([*code, u8::try_from(value.len()).ok()?]);
                out.extend(value);
            }
        }
        Some(())
    }
}
