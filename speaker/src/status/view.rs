//! A picture of the speaker at one moment, and what others make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bellrock_api::NodeReason;
use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_api::speaker_status as api;
use bellrock_arp::{Event, State};
use bellrock_bgp::PeerStatus;
use bellrock_bgp::message::Family;
use bellrock_forward::ServiceKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use crate::history::{History, Transition};
use crate::plan::{Verdict, Way};
use crate::watch::Kind;

/// The speaker's state, as the rest of the world may see it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The node.
    pub node: String,
    /// Everything has been listed and the kernel carries it.
    pub ready: bool,
    /// Another speaker of the node is there, and tells of it.
    pub standby: bool,
    /// Kinds that have not been listed yet.
    pub waiting: BTreeSet<Kind>,
    /// Services that the forwarding carries.
    pub services: usize,
    /// Why the forwarding table is not what it should be.
    pub forwarding_error: Option<String>,
    /// What was found on the node that may keep traffic from arriving.
    pub warnings: Vec<(NodeReason, String)>,
    /// Services that the kernel refuses, and why.
    pub refused: BTreeMap<ServiceKey, String>,
    /// Objects that cannot be used, and why.
    pub invalid: BTreeMap<(Kind, String), String>,
    /// BGPPeers that cannot be used on this node, and why.
    pub unusable_peers: BTreeMap<String, String>,
    /// The outcome for each address and way.
    pub verdicts: Vec<(ServiceKey, Verdict)>,
    /// BGP sessions by peer name.
    pub sessions: BTreeMap<String, (IpAddr, PeerStatus)>,
    /// BFD sessions with BGP peers.
    pub bfd: crate::apply::bfd::Shown,
    /// What the routing table says about sessions that are not up.
    pub hints: BTreeMap<String, &'static str>,
    /// The segment.
    pub segment: bellrock_arp::Snapshot,
    /// What happened there.
    pub history: Arc<History>,
}

impl View {
    /// Before anything is known.
    pub fn starting(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            waiting: Kind::ALL.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Why the speaker is not ready, in words; `None` when it is.
    pub fn not_ready(&self) -> Option<String> {
        if self.ready {
            return None;
        }
        if !self.waiting.is_empty() {
            let kinds: Vec<String> = self
                .waiting
                .iter()
                .map(|kind| format!("{kind:?}"))
                .collect();
            return Some(format!(
                "waiting for the API server to list: {}",
                kinds.join(", ")
            ));
        }
        let why = self
            .forwarding_error
            .as_deref()
            .unwrap_or("first load in progress");
        Some(format!("forwarding is not programmed yet: {why}"))
    }

    /// The reason for one verdict, as it really stands: a node that may
    /// announce on the segment is not for that the owner of the address.
    pub fn reason(&self, verdict: &Verdict) -> Reason {
        if let Some(refused) = verdict.refused {
            return refused;
        }
        match verdict.way {
            Way::Bgp => {
                let up = || {
                    let sessions = verdict.peers.iter().filter_map(|p| self.sessions.get(p));
                    sessions
                        .map(|(_, status)| status)
                        .filter(|status| status.state == bellrock_bgp::State::Established)
                };
                let family = verdict.address.map(Family::of);
                let carries =
                    |status: &PeerStatus| family.is_some_and(|f| status.families.contains(&f));
                let refused = |peer: &String| self.unusable_peers.contains_key(peer);
                if up().any(carries) {
                    Reason::Announced
                } else if !verdict.peers.is_empty() && verdict.peers.iter().all(refused) {
                    Reason::PeerInvalid
                } else if up().next().is_some() {
                    Reason::FamilyUnsupported
                } else {
                    Reason::SessionDown
                }
            }
            Way::L2 => {
                let address = verdict.address.and_then(|a| self.segment.addresses.get(&a));
                let filtered = address.is_some_and(|address| address.filtered.is_some());
                match address.map(|address| address.state) {
                    None => Reason::NoInterface,
                    Some(State::Own | State::Deaf | State::Give) => Reason::Announced,
                    Some(State::Idle | State::Wait | State::Probe) if filtered => {
                        Reason::HelloFiltered
                    }
                    Some(State::Idle) => Reason::Standby,
                    Some(State::Wait | State::Probe) => Reason::Verifying,
                    Some(State::Blocked) => Reason::HeldByForeignHost,
                }
            }
        }
    }

    /// The object that this picture is published as.
    pub fn to_api(&self) -> api::SpeakerStatusStatus {
        let mut status = api::SpeakerStatusStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interfaces: self.interfaces(),
            sessions: self.sessions(),
            configuration: Some(self.configuration()),
            forwarding: Some(api::ForwardingStatus {
                ready: self.ready && self.forwarding_error.is_none(),
                services: count(self.services),
                message: self.forwarding_error.as_deref().map(bounded),
                warnings: self
                    .warnings
                    .iter()
                    .take(api::MAX_WARNINGS)
                    .map(|(reason, words)| api::Warning {
                        reason: reason.as_str().to_owned(),
                        message: bounded(words),
                    })
                    .collect(),
            }),
            ..api::SpeakerStatusStatus::default()
        };
        let addresses = self
            .segment
            .addresses
            .iter()
            .map(|(address, state)| api::AddressStatus {
                address: address.to_string(),
                state: address_state(state.state),
                epoch: i64::try_from(state.epoch).unwrap_or(i64::MAX),
                rank: state.rank.map(count),
            });
        (status.addresses, status.addresses_omitted) = first(addresses, api::MAX_ADDRESSES);
        (status.peers, status.peers_omitted) = self.peers();
        let latest = self.history.latest(api::MAX_TRANSITIONS);
        status.transitions = latest.into_iter().filter_map(transition).collect();
        // First what only this speaker knows: it must not be crowded out by
        // what anybody can work out from the objects.
        let refusals = self
            .verdicts
            .iter()
            .map(|(key, verdict)| (key, verdict, self.reason(verdict)));
        let (mut own, plain): (Vec<_>, Vec<_>) = refusals
            .filter(|(_, _, reason)| {
                !matches!(
                    reason,
                    Reason::Announced | Reason::Standby | Reason::NoAdvertisement
                )
            })
            .partition(|(_, _, reason)| only_here(*reason));
        own.extend(plain);
        let refusals = own.into_iter().map(|(key, verdict, reason)| api::Refusal {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            address: verdict.address.map(|address| address.to_string()),
            protocol: match verdict.way {
                Way::L2 => api::RefusalProtocol::L2,
                Way::Bgp => api::RefusalProtocol::Bgp,
            },
            reason: reason.as_str().to_owned(),
            message: bounded(&self.message(key, verdict, reason)),
        });
        (status.refusals, status.refusals_omitted) = first(refusals, api::MAX_REFUSALS);
        status
    }

    /// What the sentence of a reason cannot know.
    fn message(&self, key: &ServiceKey, verdict: &Verdict, reason: Reason) -> String {
        match reason {
            Reason::ForwardingRefused => self.refused.get(key).cloned().unwrap_or_default(),
            Reason::HeldByForeignHost => verdict
                .address
                .and_then(|address| self.segment.addresses.get(&address)?.foreign)
                .map(|mac| format!("{mac} answers for it"))
                .unwrap_or_default(),
            Reason::HelloFiltered => verdict
                .address
                .and_then(|address| self.segment.addresses.get(&address)?.filtered.as_deref())
                .map(|node| format!("{node} answers for it"))
                .unwrap_or_default(),
            Reason::PeerInvalid => verdict
                .peers
                .iter()
                .filter_map(|peer| Some(format!("{peer}: {}", self.unusable_peers.get(peer)?)))
                .collect::<Vec<_>>()
                .join("; "),
            Reason::SessionDown => self
                .sessions
                .iter()
                .filter(|(peer, _)| verdict.peers.contains(*peer))
                .map(|(peer, (_, status))| {
                    let error = self.last_error(peer, status);
                    format!(
                        "{peer}: {}",
                        error.as_deref().unwrap_or("not established yet")
                    )
                })
                .collect::<Vec<_>>()
                .join("; "),
            _ => verdict.detail.clone().unwrap_or_default(),
        }
    }

    fn interfaces(&self) -> Vec<api::InterfaceStatus> {
        self.segment
            .interfaces
            .values()
            .take(api::MAX_INTERFACES)
            .map(|interface| api::InterfaceStatus {
                name: interface.name.clone(),
                mac: Some(interface.mac.to_string()),
                subnets: interface
                    .addresses
                    .iter()
                    .filter(|(address, _)| !is_link_local(address))
                    .take(api::MAX_SUBNETS)
                    .map(|(address, length)| format!("{address}/{length}"))
                    .collect(),
            })
            .collect()
    }

    /// Who is heard where. A node may have several stations on a segment.
    fn peers(&self) -> (Vec<api::SegmentPeer>, u32) {
        let mut heard: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for interface in self.segment.interfaces.values() {
            for peer in &interface.peers {
                let holds = heard.entry((&peer.node, &interface.name)).or_default();
                *holds = holds.saturating_add(peer.holds);
            }
        }
        let peers = heard.into_iter().map(|((node, interface), holds)| {
            let (node, interface) = (node.to_owned(), interface.to_owned());
            api::SegmentPeer {
                node,
                interface,
                holds: count(holds),
            }
        });
        first(peers, api::MAX_PEERS)
    }

    fn sessions(&self) -> Vec<api::SessionStatus> {
        self.sessions
            .iter()
            .take(api::MAX_SESSIONS)
            .map(|(peer, (address, status))| api::SessionStatus {
                peer: peer.clone(),
                address: Some(address.to_string()),
                state: session_state(status.state),
                since: time(status.since),
                last_error: self.last_error(peer, status).as_deref().map(bounded),
                prefixes: count(status.prefixes_sent),
                bfd: self.bfd(peer),
            })
            .collect()
    }

    fn bfd(&self, peer: &str) -> Option<api::BfdStatus> {
        let (since, status) = self.bfd.sessions.get(peer)?;
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Some(api::BfdStatus {
            state: match status.state {
                bellrock_bfd::State::AdminDown => api::BfdState::AdminDown,
                bellrock_bfd::State::Down => api::BfdState::Down,
                bellrock_bfd::State::Init => api::BfdState::Init,
                bellrock_bfd::State::Up => api::BfdState::Up,
            },
            since: time(*since),
            transmit_interval: status.intervals.transmit.map(milliseconds),
            detection_time: status.intervals.detection.map(milliseconds),
            downs: u32::try_from(status.counters.downs).unwrap_or(u32::MAX),
            last_down: status.last_down.map(|reason| reason.to_string()),
            error: status.error.as_deref().map(bounded),
        })
    }

    /// Why the session is not up, or was not the last time.
    fn last_error(&self, peer: &str, status: &PeerStatus) -> Option<String> {
        match (status.last_error.clone(), self.hints.get(peer)) {
            (Some(error), Some(hint)) => Some(format!("{error}; {hint}")),
            (error, hint) => error.or(hint.map(|hint| (*hint).to_owned())),
        }
    }

    fn configuration(&self) -> api::ConfigurationStatus {
        let message = self
            .invalid
            .iter()
            .map(|((kind, name), message)| format!("{kind:?} {name}: {message}"))
            .chain(
                self.unusable_peers
                    .iter()
                    .map(|(n, why)| format!("BgpPeer {n}: {why}")),
            )
            .collect::<Vec<_>>()
            .join("; ");
        api::ConfigurationStatus {
            accepted: self.invalid.is_empty() && self.unusable_peers.is_empty(),
            message: (!message.is_empty()).then(|| bounded(&message)),
        }
    }
}

/// Reasons that come from the node itself, not from the objects in the API.
pub fn only_here(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ForwardingNotReady
            | Reason::ForwardingRefused
            | Reason::NoInterface
            | Reason::HeldByForeignHost
            | Reason::HelloFiltered
            | Reason::Verifying
            | Reason::SessionDown
            | Reason::PeerInvalid
            | Reason::AddressTaken
            | Reason::AnsweredByKernel
    )
}

/// Every interface has one, so it tells nothing.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn first<T>(items: impl Iterator<Item = T>, limit: usize) -> (Vec<T>, u32) {
    let mut items = items;
    let kept: Vec<T> = items.by_ref().take(limit).collect();
    (kept, count(items.count()))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Cuts a text to what the schema allows, on a character's edge.
fn bounded(text: &str) -> String {
    text.chars().take(api::MAX_MESSAGE).collect()
}

fn time(at: std::time::SystemTime) -> Option<Time> {
    k8s_openapi::jiff::Timestamp::try_from(at).ok().map(Time)
}

fn transition(Transition { at, event }: &Transition) -> Option<api::Transition> {
    let (change, cause, other, interface) = match event {
        Event::Owned {
            cause,
            from,
            interface,
            ..
        } => (api::Change::Owned, Some(cause), from.clone(), interface),
        Event::Lost {
            cause,
            to,
            interface,
            ..
        } => (api::Change::Lost, Some(cause), to.clone(), interface),
        Event::Blocked { mac, interface, .. } => {
            (api::Change::Blocked, None, Some(mac.to_string()), interface)
        }
        Event::Unblocked { interface, .. } => (api::Change::Unblocked, None, None, interface),
        Event::ForeignClaim { mac, interface, .. } => {
            let mac = Some(mac.to_string());
            (api::Change::ForeignClaim, None, mac, interface)
        }
        Event::HelloFiltered {
            node, interface, ..
        } => {
            let node = Some(node.clone());
            (api::Change::HelloFiltered, None, node, interface)
        }
        Event::PeerHeard { .. } | Event::PeerSilent { .. } => return None,
    };
    Some(api::Transition {
        address: event.address()?.to_string(),
        time: MicroTime(*at),
        change,
        cause: cause.map(ToString::to_string),
        other,
        interface: interface.clone(),
    })
}

fn session_state(state: bellrock_bgp::State) -> api::SessionState {
    match state {
        bellrock_bgp::State::Idle => api::SessionState::Idle,
        bellrock_bgp::State::Connect => api::SessionState::Connect,
        bellrock_bgp::State::Active => api::SessionState::Active,
        bellrock_bgp::State::OpenSent => api::SessionState::OpenSent,
        bellrock_bgp::State::OpenConfirm => api::SessionState::OpenConfirm,
        bellrock_bgp::State::Established => api::SessionState::Established,
    }
}

fn address_state(state: State) -> api::AddressState {
    match state {
        State::Idle => api::AddressState::Idle,
        State::Wait => api::AddressState::Wait,
        State::Probe => api::AddressState::Probe,
        State::Blocked => api::AddressState::Blocked,
        // It answers.
        State::Own | State::Deaf | State::Give => api::AddressState::Own,
    }
}

#[cfg(test)]
mod tests;
