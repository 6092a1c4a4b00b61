//! What sessions look like from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Path, Settings};
use crate::discard::Discards;
use crate::packet::{Diagnostic, Discriminator, State};
use crate::session::{Change, DownReason, Intervals, Remote};

/// Names a session at its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub(crate) u64);

impl SessionId {
    /// The `n`th name, for who drives an [`Engine`](crate::Engine) without a
    /// [`Handle`](crate::Handle).
    pub fn new(n: u64) -> Self {
        Self(n)
    }
}

/// What a session's owner is told, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which session.
    pub session: SessionId,
    /// What happened to it.
    pub change: Change,
}

/// What a session counted since it was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Control packets that were to be sent.
    pub sent: u64,
    /// Those among them that the system refused to send.
    pub send_errors: u64,
    /// Control packets that no check discarded.
    pub received: u64,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down, for any reason.
    pub downs: u64,
}

/// A session's condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its path.
    pub path: Path,
    /// Its settings.
    pub settings: Settings,
    /// Our state.
    pub state: State,
    /// For how long it has been in that state.
    pub lasts: Duration,
    /// Why our state changed last, as the peer is told.
    pub diagnostic: Diagnostic,
    /// Our discriminator.
    pub discriminator: Discriminator,
    /// What is known of the peer.
    pub remote: Remote,
    /// What both ends settled.
    pub intervals: Intervals,
    /// A Poll Sequence runs: the peer has not yet acknowledged a change.
    pub polling: bool,
    /// Why it went down last; kept after it is up again.
    pub last_down: Option<DownReason>,
    /// What it counted.
    pub counters: Counters,
    /// Why it can neither send nor receive, if so.
    pub error: Option<String>,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The sessions.
    pub sessions: BTreeMap<SessionId, SessionStatus>,
    /// Datagrams that reached no session, by reason.
    pub discards: Discards,
    /// Events that nobody took in time.
    pub events_dropped: u64,
    /// Why the driver's thread has no real-time priority, if so: on a busy
    /// machine it may then be late.
    pub no_real_time: Option<String>,
}
