//! The messages of BGP-4 on the wire: RFC 4271 section 4.
//!
//! ```text
//!  0                16        18     19                       length
//! +------------------+---------+------+------------------------+
//! | marker, all ones | length  | type | body                   |
//! +------------------+---------+------+------------------------+
//! ```
//!
//! Decoding never panics and never trusts a length. An error *is* the
//! NOTIFICATION that the RFC asks for. An UPDATE with errors that RFC 7606
//! lets a session survive decodes, and carries them as [`Fault`]s.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic,
        reason = "tests may panic"
    )
)]

mod attribute;
mod notification;
mod open;
pub(crate) mod prefix;
mod reader;
mod update;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::attribute::{Fault, Origin, PathAttributes, Segment, SegmentKind, Treatment};
pub use self::notification::Notification;
pub use self::open::{AS_TRANS, Capability, GracefulRestart, Open, RestartFamily, Role};
pub use self::update::{Reach, ReachIpv4, Unreach, Update};

use self::reader::Reader;

/// Octets before the body.
pub const HEADER_LEN: usize = 19;
/// Longest message without RFC 8654.
pub const MAX_LEN: usize = 4096;
/// Longest message with it; OPEN and KEEPALIVE stay below [`MAX_LEN`].
pub const MAX_EXTENDED_LEN: usize = 65535;
const MARKER: [u8; 16] = [0xff; 16];

/// An address family that this speaker announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// Address family identifier.
    pub const fn afi(self) -> u16 {
        match self {
            Self::Ipv4Unicast => 1,
            Self::Ipv6Unicast => 2,
        }
    }

    /// Subsequent address family identifier: unicast.
    pub const fn safi(self) -> u8 {
        1
    }

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4Unicast,
            IpAddr::V6(_) => Self::Ipv6Unicast,
        }
    }
}

/// What both OPENs settled that changes how messages are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// AS numbers in AS_PATH have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in our own AS.
    pub internal: bool,
    /// Messages may have up to 65535 octets (RFC 8654).
    pub extended: bool,
    /// IPv4 prefixes may have an IPv6 next hop (RFC 8950).
    pub ipv6_next_hop: bool,
}

impl Context {
    /// What holds until both OPENs have come.
    pub const BEFORE_OPEN: Self = Self {
        four_octet_as: true,
        internal: false,
        extended: false,
        ipv6_next_hop: false,
    };

    /// Longest message, in octets.
    pub const fn max_len(self) -> usize {
        if self.extended {
            MAX_EXTENDED_LEN
        } else {
            MAX_LEN
        }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time; boxing would cost an allocation a message"
)]
pub enum Message {
    /// Type 1.
    Open(Open),
    /// Type 2.
    Update(Update),
    /// Type 3.
    Notification(Notification),
    /// Type 4.
    Keepalive,
    /// Type 5 (RFC 2918).
    RouteRefresh(RouteRefresh),
}

/// A ROUTE-REFRESH: the sender wants all routes of one family again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRefresh {
    /// Address family identifier.
    pub afi: u16,
    /// 0 in RFC 2918; others belong to RFC 7313.
    pub subtype: u8,
    /// Subsequent address family identifier.
    pub safi: u8,
}

impl RouteRefresh {
    /// Asks for all routes.
    pub const REQUEST: u8 = 0;
    /// Beginning of route refresh (RFC 7313): all routes follow.
    pub const BEGIN: u8 = 1;
    /// End of route refresh: what was not sent since its beginning is gone.
    pub const END: u8 = 2;

    /// A message of this subtype for one family.
    pub const fn of(family: Family, subtype: u8) -> Self {
        Self {
            afi: family.afi(),
            subtype,
            safi: family.safi(),
        }
    }
}

/// The message does not fit into the negotiated length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message is longer than the peer takes")]
pub struct TooLong;

impl Message {
    const OPEN: u8 = 1;
    const UPDATE: u8 = 2;
    const NOTIFICATION: u8 = 3;
    const KEEPALIVE: u8 = 4;
    const ROUTE_REFRESH: u8 = 5;

    /// Appends the message to `out`, which is unchanged on an error.
    pub fn encode(&self, context: Context, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let start = out.len();
        let done = self.put(context, out, start);
        if done.is_none() {
            out.truncate(start);
        }
        done.ok_or(TooLong)
    }

    fn put(&self, context: Context, out: &mut Vec<u8>, start: usize) -> Option<()> {
        out.extend(MARKER);
        out.extend([0, 0]);
        match self {
            Self::Open(open) => {
                out.push(Self::OPEN);
                open.put(out)?;
            }
            Self::Update(update) => {
                out.push(Self::UPDATE);
                update.put(context, out)?;
            }
            Self::Notification(notification) => {
                out.push(Self::NOTIFICATION);
                notification.put(context, out);
            }
            Self::Keepalive => out.push(Self::KEEPALIVE),
            Self::RouteRefresh(refresh) => {
                out.push(Self::ROUTE_REFRESH);
                out.extend(refresh.afi.to_be_bytes());
                out.extend([refresh.subtype, refresh.safi]);
            }
        }
        let length = out
            .len()
            .checked_sub(start)
            .filter(|length| *length <= self.max_len(context))?;
        let field = start.checked_add(MARKER.len())?;
        let field = out.get_mut(field..)?.first_chunk_mut::<2>()?;
        *field = u16::try_from(length).ok()?.to_be_bytes();
        Some(())
    }

    fn max_len(&self, context: Context) -> usize {
        match self {
            Self::Open(_) | Self::Keepalive => MAX_LEN,
            Self::Update(_) | Self::Notification(_) | Self::RouteRefresh(_) => context.max_len(),
        }
    }

    /// Decodes one whole message, header included.
    pub fn decode(message: &[u8], context: Context) -> Result<Self, Notification> {
        let Some(length) = frame(message, context)? else {
            return Err(bad_length(u16::try_from(message.len()).unwrap_or(u16::MAX)));
        };
        let mut reader = Reader::new(message);
        let whole = reader.bytes(length).filter(|_| reader.is_empty());
        let mut body = Reader::new(whole.ok_or_else(|| bad_length(0))?);
        let kind = body
            .bytes(MARKER.len().saturating_add(2))
            .and_then(|_| body.u8());
        match (kind, body.rest()) {
            (Some(Self::OPEN), body) => Open::decode(body).map(Self::Open),
            (Some(Self::UPDATE), body) => Update::decode(body, context).map(Self::Update),
            (Some(Self::NOTIFICATION), body) => Notification::decode(body)
                .map(Self::Notification)
                .ok_or_else(|| bad_length(u16::try_from(length).unwrap_or(u16::MAX))),
            (Some(Self::KEEPALIVE), _) => Ok(Self::Keepalive),
            (Some(Self::ROUTE_REFRESH), [a, b, subtype, safi]) => {
                let afi = u16::from_be_bytes([*a, *b]);
                Ok(Self::RouteRefresh(RouteRefresh {
                    afi,
                    subtype: *subtype,
                    safi: *safi,
                }))
            }
            (Some(Self::ROUTE_REFRESH), _) => Err(Notification::with_data(7, 1, message)),
            (Some(kind), _) => Err(Notification::with_data(1, 3, [kind])),
            (None, _) => Err(bad_length(0)),
        }
    }
}

fn bad_length(length: u16) -> Notification {
    Notification::with_data(1, 2, length.to_be_bytes())
}

/// Looks at the header in front of `bytes` (RFC 4271 section 6.1): the length
/// of the message, or `None` while the header is not complete.
fn frame(bytes: &[u8], context: Context) -> Result<Option<usize>, Notification> {
    // A wrong marker shows before all of it has come.
    if bytes.iter().take(MARKER.len()).any(|octet| *octet != 0xff) {
        return Err(Notification::new(1, 1));
    }
    let mut reader = Reader::new(bytes);
    let marker = reader.bytes(MARKER.len());
    let (Some(_), Some(length), Some(kind)) = (marker, reader.u16(), reader.u8()) else {
        return Ok(None);
    };
    let bad = || Err(bad_length(length));
    if usize::from(length) < HEADER_LEN || usize::from(length) > context.max_len() {
        return bad();
    }
    match kind {
        Message::OPEN if length < 29 || usize::from(length) > MAX_LEN => bad(),
        Message::UPDATE if length < 23 => bad(),
        Message::NOTIFICATION if length < 21 => bad(),
        Message::KEEPALIVE if length != 19 => bad(),
        Message::OPEN
        | Message::UPDATE
        | Message::NOTIFICATION
        | Message::KEEPALIVE
        | Message::ROUTE_REFRESH => Ok(Some(usize::from(length))),
        unknown => Err(Notification::with_data(1, 3, [unknown])),
    }
}

/// Cuts a stream of octets into messages.
///
/// It holds at most what was pushed and not yet taken; a caller that takes all
/// messages after each push holds less than one message.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received octets.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// The next whole message, or the NOTIFICATION that ends the session.
    /// After an error nothing more can be read.
    pub fn next(&mut self, context: Context) -> Option<Result<Message, Notification>> {
        let length = match frame(&self.buffer, context) {
            Ok(length) => length?,
            Err(error) => return Some(Err(error)),
        };
        let message = self.buffer.get(..length)?;
        let decoded = Message::decode(message, context);
        self.buffer.drain(..length);
        Some(decoded)
    }
}
