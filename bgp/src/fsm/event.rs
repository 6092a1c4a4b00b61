//! What goes into the state machine, and what comes out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{Context, Family, Message, Notification};
use crate::reason::{DownReason, StopReason, TcpFailure};

/// The states of RFC 4271 section 8.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Not started, stopped, or pausing after a session that failed.
    Idle,
    /// A connection is being opened.
    Connect,
    /// Waiting for ConnectRetry.
    Active,
    /// Our OPEN is out.
    OpenSent,
    /// The peer's OPEN was good.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// What happens to the machine. Serialisable, so that a run can be recorded
/// and replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time; boxing would cost an allocation a message"
)]
pub enum Input {
    /// ManualStart (event 1).
    Start,
    /// ManualStop (event 2).
    Stop(StopReason),
    /// Tcp_CR_Acked (event 16): connected from this address of ours.
    TcpConnected(IpAddr),
    /// TcpConnectionFails (event 18), in any state.
    TcpFailed(TcpFailure),
    /// A whole message (events 19, 25, 26, 27).
    Received(Message),
    /// Octets that are no message (events 21, 22, 28): the answer to them.
    Malformed(Notification),
    /// The connection took some of what was to be sent.
    Written,
    /// Time has passed (events 9, 10, 11, 13 and the send hold timer).
    Tick,
}

/// What the machine wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time; boxing would cost an allocation a message"
)]
pub enum Output {
    /// Open a connection to the peer.
    Connect,
    /// Send this message after all earlier ones.
    Send(Message),
    /// Close the connection, or give up opening it; what is to be sent still
    /// goes out if the peer takes it soon.
    Close,
    /// The session is up.
    Up(Session),
    /// It went down, or an attempt failed.
    Down(DownReason),
    /// The peer wants all routes of a family again (RFC 2918).
    Refresh(Family),
}

/// What both sides settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Our address on the connection.
    pub local: IpAddr,
    /// The peer's AS.
    pub peer_asn: u32,
    /// The peer's BGP identifier.
    pub peer_router_id: Ipv4Addr,
    /// Negotiated hold time; `None`: off.
    pub hold_time: Option<Duration>,
    /// Families that both sides take.
    pub families: Vec<Family>,
    /// How messages are read and written.
    pub context: Context,
    /// A refresh begins and ends with messages of its own (RFC 7313).
    pub enhanced_refresh: bool,
    /// The peer keeps our routes over a restart (RFC 4724).
    pub graceful_restart: bool,
    /// And over a NOTIFICATION that is no Hard Reset (RFC 8538).
    pub graceful_notification: bool,
}
