//! What a session looks like from outside.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::fsm::State;
use crate::message::{Family, Message};
use crate::rib::Refusal;

/// Messages by type, since the peer was spawned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageCounts {
    /// OPEN.
    pub open: u64,
    /// UPDATE, End-of-RIB included.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH.
    pub route_refresh: u64,
}

impl MessageCounts {
    pub(crate) fn count(&mut self, message: &Message) {
        let counter = match message {
            Message::Open(_) => &mut self.open,
            Message::Update(_) => &mut self.update,
            Message::Notification(_) => &mut self.notification,
            Message::Keepalive => &mut self.keepalive,
            Message::RouteRefresh(_) => &mut self.route_refresh,
        };
        *counter += 1;
    }

    /// Each type's name, as in metrics, and count.
    pub fn by_type(&self) -> [(&'static str, u64); 5] {
        [
            ("open", self.open),
            ("update", self.update),
            ("notification", self.notification),
            ("keepalive", self.keepalive),
            ("route_refresh", self.route_refresh),
        ]
    }
}

/// A session's condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// State of RFC 4271 section 8.2.2.
    pub state: State,
    /// Since when it is in that state.
    pub since: SystemTime,
    /// Why the session, or the last attempt, failed; kept after it is up again.
    pub last_error: Option<String>,
    /// The peer's BGP identifier, while it is known.
    pub peer_router_id: Option<Ipv4Addr>,
    /// The peer's AS, while it is known.
    pub peer_asn: Option<u32>,
    /// Negotiated hold time; `None` if it is off or there is no session.
    pub hold_time: Option<Duration>,
    /// Families whose routes the session carries: both sides take them, and
    /// there is a next hop.
    pub families: Vec<Family>,
    /// The peer keeps our routes over a restart (RFC 4724).
    pub graceful_restart: bool,
    /// Prefixes that the peer should have.
    pub prefixes_wanted: usize,
    /// Prefixes that were sent to it in this session and not withdrawn.
    pub prefixes_sent: usize,
    /// Changes that wait for the peer to read.
    pub prefixes_pending: usize,
    /// Prefixes that cannot be sent to it, by reason.
    pub prefixes_refused: BTreeMap<Refusal, usize>,
    /// What we sent.
    pub messages_sent: MessageCounts,
    /// What the peer sent.
    pub messages_received: MessageCounts,
    /// UPDATEs from the peer with errors that RFC 7606 lets a session survive.
    pub malformed_updates: u64,
}

impl PeerStatus {
    pub(crate) fn new(since: SystemTime) -> Self {
        Self {
            state: State::Idle,
            since,
            last_error: None,
            peer_router_id: None,
            peer_asn: None,
            hold_time: None,
            families: Vec::new(),
            graceful_restart: false,
            prefixes_wanted: 0,
            prefixes_sent: 0,
            prefixes_pending: 0,
            prefixes_refused: BTreeMap::new(),
            messages_sent: MessageCounts::default(),
            messages_received: MessageCounts::default(),
            malformed_updates: 0,
        }
    }
}
