//! What goes into a session's machine, and what comes out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::packet::{Control, Diagnostic, Discriminator, State};

/// What happens to a session. Serialisable, so that a run can be recorded and
/// replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A packet that no check discarded came for it.
    Received(Control),
    /// Time has passed.
    Timeout,
    /// Its settings, new or not.
    Settings(Settings),
}

/// What it wants done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Send this now.
    Send(Control),
    /// Tell the owner.
    Changed(Change),
}

/// What its owner wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Both ends hear each other.
    Up,
    /// They did, or began to, and do no more.
    Down(DownReason),
    /// It was not up, and the peer now says that it is held down on purpose:
    /// the path may be good (RFC 5882 section 3.2).
    PeerAdminDown,
    /// What both ends settled changed while it was up.
    Intervals(Intervals),
}

/// Why a session went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DownReason {
    /// No packet came for the Detection Time: the path has failed, or the peer.
    DetectionTimeExpired,
    /// The peer says that it is down, and why.
    PeerDown(Diagnostic),
    /// The peer is held down on purpose: no failure (RFC 5882 section 3.2).
    PeerAdminDown(Diagnostic),
    /// We hold it down on purpose.
    AdminDown,
}

impl DownReason {
    /// Whether what relies on the path should leave it (RFC 5882 section 3.2).
    pub fn is_failure(self) -> bool {
        match self {
            Self::DetectionTimeExpired | Self::PeerDown(_) => true,
            Self::PeerAdminDown(_) | Self::AdminDown => false,
        }
    }
}

impl std::fmt::Display for DownReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DetectionTimeExpired => f.write_str("nothing came for the detection time"),
            Self::PeerDown(diagnostic) => write!(f, "the peer is down: {diagnostic}"),
            Self::PeerAdminDown(diagnostic) => {
                write!(f, "the peer is held down: {diagnostic}")
            }
            Self::AdminDown => f.write_str("held down by its configuration"),
        }
    }
}

/// What both ends settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intervals {
    /// Between our packets, before jitter shortens it; `None`: none are sent
    /// periodically.
    pub transmit: Option<Duration>,
    /// Silence of the peer after which the session is down; `None` while the
    /// peer is not heard.
    pub detection: Option<Duration>,
}

/// What is known of the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// bfd.RemoteSessionState.
    pub state: State,
    /// bfd.RemoteDiscr; `None` until it is heard, and after its silence.
    pub discriminator: Option<Discriminator>,
    /// Why its state changed last, as it says.
    pub diagnostic: Diagnostic,
    /// bfd.RemoteDemandMode.
    pub demand: bool,
    /// Its BFD survives its control plane, as it says (C).
    pub control_plane_independent: bool,
    /// bfd.RemoteMinRxInterval, in microseconds.
    pub required_min_rx: u32,
    /// Desired Min TX of its last packet, in microseconds.
    pub desired_min_tx: u32,
    /// Detect Mult of its last packet.
    pub multiplier: u8,
}

impl Remote {
    /// Of a peer that has not been heard (RFC 5880 section 6.8.1).
    pub(crate) const UNHEARD: Self = Self {
        state: State::Down,
        discriminator: None,
        diagnostic: Diagnostic::None,
        demand: false,
        control_plane_independent: false,
        required_min_rx: 1,
        desired_min_tx: 0,
        multiplier: 0,
    };

    pub(crate) fn of(control: &Control) -> Self {
        Self {
            state: control.state,
            discriminator: Some(control.my_discriminator),
            diagnostic: control.diagnostic,
            demand: control.demand,
            control_plane_independent: control.control_plane_independent,
            required_min_rx: control.required_min_rx,
            desired_min_tx: control.desired_min_tx,
            multiplier: control.multiplier.get(),
        }
    }
}
