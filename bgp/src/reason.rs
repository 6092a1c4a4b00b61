//! Why a session is not up: every "no" has a name and a sentence.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::PeerAsn;
use crate::message::Notification;

/// Why we end a session on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// Cease, Administrative Shutdown; the text reaches the peer's operator
    /// (RFC 9003).
    AdministrativeShutdown(Option<String>),
    /// Cease, Peer De-configured: the peer is no longer wanted.
    PeerDeconfigured,
    /// Cease, Other Configuration Change: a session with other settings
    /// follows.
    ConfigurationChange,
    /// Cease, Connection Collision Resolution: the other connection to this
    /// peer stays.
    Collision,
    /// Cease, BFD Down (RFC 9384): the path to the peer has failed.
    BfdDown,
    /// Our process ends and another one continues. Where graceful restart was
    /// negotiated the connection closes without a NOTIFICATION, so that the
    /// peer keeps our routes; elsewhere this is an administrative shutdown.
    Restart,
}

impl StopReason {
    /// What the peer is told.
    pub(crate) fn notification(&self) -> Notification {
        match self {
            Self::AdministrativeShutdown(text) => {
                Notification::administrative_shutdown(text.as_deref())
            }
            Self::PeerDeconfigured => Notification::peer_deconfigured(),
            Self::ConfigurationChange => Notification::configuration_change(),
            Self::Collision => Notification::collision(),
            Self::BfdDown => Notification::bfd_down(),
            Self::Restart => Notification::administrative_shutdown(Some("restart")),
        }
    }

    /// Whether the peer must not keep routes for a graceful restart.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::AdministrativeShutdown(_) | Self::PeerDeconfigured | Self::BfdDown => true,
            Self::ConfigurationChange | Self::Collision | Self::Restart => false,
        }
    }
}

/// What the kernel said about a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpFailure {
    /// Nobody listens there.
    Refused,
    /// No route, or no neighbour answered.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The peer closed it.
    Closed,
    /// The peer reset it.
    Reset,
    /// We do not have the configured source address.
    NoSuchSource,
    /// Something else, in the kernel's words.
    Other(String),
}

/// Why a session went down, or an attempt to bring it up failed. Its `Display`
/// is one line for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownReason {
    /// The TCP connection failed.
    Tcp(TcpFailure),
    /// The attempt to connect took longer than the connect retry time.
    ConnectTimedOut(Duration),
    /// The peer was silent for the hold time.
    HoldTimerExpired(Duration),
    /// Nothing could be sent for this long (RFC 9687).
    SendHoldTimerExpired(Duration),
    /// The peer ended it.
    NotificationReceived(Notification),
    /// The peer sent something that ends a session; this is what we answered.
    ProtocolError(Notification),
    /// The peer is in another AS than configured.
    BadPeerAs {
        /// What its OPEN said.
        got: u32,
        /// What was configured.
        expected: PeerAsn,
    },
    /// The two sides' roles do not go together (RFC 9234).
    RoleMismatch,
    /// A peer in our own AS has our own BGP identifier.
    SameRouterId,
    /// We ended it.
    Stopped(StopReason),
}

impl fmt::Display for TcpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Unreachable => "no route to the peer",
            Self::TimedOut => "connection timed out",
            Self::Closed => "connection closed by the peer",
            Self::Reset => "connection reset by the peer",
            Self::NoSuchSource => "this machine does not have the configured source address",
            Self::Other(words) => return write!(f, "connection failed: {words}"),
        })
    }
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(failure) => write!(f, "{failure}"),
            Self::ConnectTimedOut(after) => {
                write!(f, "connection timed out: no answer within {after:?}")
            }
            Self::HoldTimerExpired(after) => {
                write!(
                    f,
                    "hold timer expired: nothing heard from the peer for {after:?}"
                )
            }
            Self::SendHoldTimerExpired(after) => {
                write!(
                    f,
                    "send hold timer expired: the peer read nothing for {after:?}"
                )
            }
            Self::NotificationReceived(notification) => {
                write!(f, "the peer ended the session: {notification}")
            }
            Self::ProtocolError(notification) => {
                write!(f, "the peer broke the protocol: {notification}")
            }
            Self::BadPeerAs { got, expected } => {
                write!(f, "bad peer AS: it is {got}, configured is {expected}")
            }
            Self::RoleMismatch => f.write_str("the peer's role does not go with ours"),
            Self::SameRouterId => f.write_str("the peer has our own router id"),
            Self::Stopped(StopReason::AdministrativeShutdown(None)) => {
                f.write_str("stopped: administrative shutdown")
            }
            Self::Stopped(StopReason::AdministrativeShutdown(Some(text))) => {
                write!(f, "stopped: administrative shutdown, saying {text:?}")
            }
            Self::Stopped(StopReason::PeerDeconfigured) => {
                f.write_str("stopped: the peer is no longer configured")
            }
            Self::Stopped(StopReason::ConfigurationChange) => {
                f.write_str("stopped: the peer's configuration changed")
            }
            Self::Stopped(StopReason::Collision) => {
                f.write_str("stopped: another connection to the peer stays")
            }
            Self::Stopped(StopReason::BfdDown) => {
                f.write_str("BFD says that the path to the peer has failed")
            }
            Self::Stopped(StopReason::Restart) => f.write_str("stopped: this process restarts"),
        }
    }
}
