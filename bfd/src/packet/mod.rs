//! BFD Control packets on the wire (RFC 5880 section 4). Pure, cannot panic.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-----+---------+---+-+-+-+-+-+-+---------------+---------------+
//! |Vers |  Diag   |Sta|P|F|C|A|D|M|  Detect Mult  |    Length     |
//! +-----+---------+---+-+-+-+-+-+-+---------------+---------------+
//! |                       My Discriminator                        |
//! |                      Your Discriminator                       |
//! |                    Desired Min TX Interval                    |
//! |                   Required Min RX Interval                    |
//! |                 Required Min Echo RX Interval                 |
//! +---------------+---------------+-------------------------------+
//! |   Auth Type   |   Auth Len    |   Authentication Data...      |  if A is set
//! +---------------+---------------+-------------------------------+
//! ```
//!
//! Intervals are in microseconds.

use std::fmt;
use std::num::{NonZeroU8, NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::discard::Discard;

#[cfg(test)]
mod tests;

/// Names a session at one of its ends. Never zero (RFC 5880 section 6.8.1).
pub type Discriminator = NonZeroU32;

/// Octets of a packet without an authentication section.
pub const LENGTH: usize = 24;
/// The least length of one with it.
const LENGTH_AUTHENTICATED: usize = 26;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// State of a session (RFC 5880 section 4.1, Sta).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Held down by whoever runs the system: no failure of the path.
    AdminDown,
    /// The peer is not heard, or says that it is down.
    Down,
    /// The peer is heard, and may not hear us.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    fn code(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }

    /// From the two top bits of the second octet.
    fn from_flags(flags: u8) -> Self {
        match (flags & 0x80 != 0, flags & 0x40 != 0) {
            (false, false) => Self::AdminDown,
            (false, true) => Self::Down,
            (true, false) => Self::Init,
            (true, true) => Self::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a session's state changed last (RFC 5880 section 4.1, Diag).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Diagnostic {
    /// 0.
    None,
    /// 1: no packet came for the Detection Time.
    ControlDetectionTimeExpired,
    /// 2.
    EchoFunctionFailed,
    /// 3: the peer said Down or AdminDown.
    NeighborSignaledSessionDown,
    /// 4.
    ForwardingPlaneReset,
    /// 5.
    PathDown,
    /// 6.
    ConcatenatedPathDown,
    /// 7.
    AdministrativelyDown,
    /// 8.
    ReverseConcatenatedPathDown,
    /// 9 to 31.
    Other(u8),
}

impl Diagnostic {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::ControlDetectionTimeExpired => 1,
            Self::EchoFunctionFailed => 2,
            Self::NeighborSignaledSessionDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Other(code) => code & 0x1f,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::ControlDetectionTimeExpired,
            2 => Self::EchoFunctionFailed,
            3 => Self::NeighborSignaledSessionDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::None => "no diagnostic",
            Self::ControlDetectionTimeExpired => "control detection time expired",
            Self::EchoFunctionFailed => "echo function failed",
            Self::NeighborSignaledSessionDown => "neighbor signaled session down",
            Self::ForwardingPlaneReset => "forwarding plane reset",
            Self::PathDown => "path down",
            Self::ConcatenatedPathDown => "concatenated path down",
            Self::AdministrativelyDown => "administratively down",
            Self::ReverseConcatenatedPathDown => "reverse concatenated path down",
            Self::Other(code) => return write!(f, "diagnostic {code}"),
        };
        f.write_str(text)
    }
}

/// A Control packet's mandatory section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Why the sender's state changed last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: the sender wants an answer with F.
    pub poll: bool,
    /// F: the answer.
    pub final_answer: bool,
    /// C: the sender's BFD survives its control plane.
    pub control_plane_independent: bool,
    /// D: the sender wants no periodic packets.
    pub demand: bool,
    /// The sender's multiplier.
    pub multiplier: NonZeroU8,
    /// The sender's discriminator.
    pub my_discriminator: Discriminator,
    /// The receiver's, once the sender knows it.
    pub your_discriminator: Option<Discriminator>,
    /// Microseconds.
    pub desired_min_tx: u32,
    /// Microseconds; 0: send nothing periodically.
    pub required_min_rx: u32,
    /// Microseconds; 0: the sender returns no Echo packets.
    pub required_min_echo_rx: u32,
}

/// What a datagram held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Its mandatory section.
    pub control: Control,
    /// The type of its authentication section, if it says that it has one.
    pub authentication: Option<u8>,
}

impl Control {
    /// As it goes out: version 1, no authentication section, not multipoint.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut octets = [0; LENGTH];
        let flag = |set, bit| if set { bit } else { 0 };
        let flags = self.state.code() << 6
            | flag(self.poll, POLL)
            | flag(self.final_answer, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, DEMAND);
        let head = [
            VERSION << 5 | self.diagnostic.code(),
            flags,
            self.multiplier.get(),
            24,
        ];
        let words = [
            u32::from_be_bytes(head),
            self.my_discriminator.get(),
            self.your_discriminator.map_or(0, Discriminator::get),
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (place, word) in octets.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        octets
    }

    /// Reads the payload of a datagram, with those checks of RFC 5880 section
    /// 6.8.6 that need no session, in its order. Octets beyond Length are
    /// ignored.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn decode(payload: &[u8]) -> Result<Decoded, Discard> {
        let octet = |at: usize| payload.get(at).copied();
        let head = octet(0).ok_or(Discard::LengthShort)?;
        if head >> 5 != VERSION {
            return Err(Discard::Version);
        }
        let flags = octet(1).ok_or(Discard::LengthShort)?;
        let length = usize::from(octet(3).ok_or(Discard::LengthShort)?);
        let authenticated = flags & AUTHENTICATION != 0;
        let least = if authenticated {
            LENGTH_AUTHENTICATED
        } else {
            LENGTH
        };
        if length < least {
            return Err(Discard::LengthShort);
        }
        if length > payload.len() {
            return Err(Discard::LengthBeyond);
        }
        let multiplier = octet(2)
            .and_then(NonZeroU8::new)
            .ok_or(Discard::Multiplier)?;
        if flags & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        let word = |at: usize| {
            payload
                .get(at..at + 4)
                .and_then(|octets| octets.try_into().ok())
                .map_or(0, u32::from_be_bytes)
        };
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(Discard::MyDiscriminator)?;
        let control = Self {
            diagnostic: Diagnostic::from_code(head & 0x1f),
            state: State::from_flags(flags),
            poll: flags & POLL != 0,
            final_answer: flags & FINAL != 0,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            multiplier,
            my_discriminator,
            your_discriminator: NonZeroU32::new(word(8)),
            desired_min_tx: word(12),
            required_min_rx: word(16),
            required_min_echo_rx: word(20),
        };
        let authentication = octet(LENGTH).filter(|_| authenticated);
        Ok(Decoded {
            control,
            authentication,
        })
    }
}
