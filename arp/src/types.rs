//! What goes in and what comes out: the vocabulary of the public interface.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::MacAddr;

/// Whether this node may hold an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Eligibility {
    /// It may: its forwarding carries the address.
    Eligible,
    /// It is about to go: it holds what it holds until another node does, and
    /// takes nothing new.
    Yielding,
    /// It may not: a held address goes to a successor or, if none takes it at
    /// once, to nobody.
    Ineligible,
}

/// The last claim that was recorded outside the segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The node that held the address.
    pub owner: String,
    /// The epoch of its claim.
    pub epoch: u64,
}

/// An address and who may hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The node that should come first.
    pub desired: Option<String>,
    /// Who comes next, in this order. A node in neither place comes after
    /// them, by rendezvous hash.
    pub successors: Vec<String>,
    /// When the address's object was created: seconds since 1970. Claims made
    /// for an older object of the same address lose.
    pub created: u64,
    /// The last claim on record. If it is this node's, the node tries to go on
    /// with it at start.
    pub recorded: Option<Recorded>,
    /// Whether this node may hold it now.
    pub eligibility: Eligibility,
    /// The interfaces that may serve it; `None`: any.
    pub interfaces: Option<BTreeSet<String>>,
}

/// Why an address was claimed or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// Nobody had it yet.
    FirstClaim,
    /// The owner was not heard for the dead time.
    OwnerSilent,
    /// The owner said that it hears nobody.
    OwnerDeaf,
    /// The owner said that it leaves.
    OwnerLeft,
    /// The owner gave the address up.
    OwnerReleased,
    /// The record names this node as owner, and nobody else answers for it.
    Restart,
    /// Ownership was in doubt after this node's own loop stood still.
    Frozen,
    /// Ownership was in doubt after the interface changed or lost its carrier.
    LinkChange,
    /// Ownership was in doubt after this node heard nobody for a while.
    Deaf,
    /// The owner handed it over; or this node did.
    HandedOver,
    /// The address is wanted on another node.
    Wanted,
    /// A live peer has a higher claim.
    HigherClaim,
    /// This node may no longer hold it.
    Ineligible,
    /// The address is gone, or not for this interface any more.
    Removed,
    /// This node leaves.
    Shutdown,
}

impl Cause {
    /// One word for metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstClaim => "FirstClaim",
            Self::OwnerSilent => "OwnerSilent",
            Self::OwnerDeaf => "OwnerDeaf",
            Self::OwnerLeft => "OwnerLeft",
            Self::OwnerReleased => "OwnerReleased",
            Self::Restart => "Restart",
            Self::Frozen => "Frozen",
            Self::LinkChange => "LinkChange",
            Self::Deaf => "Deaf",
            Self::HandedOver => "HandedOver",
            Self::Wanted => "Wanted",
            Self::HigherClaim => "HigherClaim",
            Self::Ineligible => "Ineligible",
            Self::Removed => "Removed",
            Self::Shutdown => "Shutdown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A change that somebody outside should know of. Only changes are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// This node answers for the address now.
    Owned {
        /// The address.
        address: IpAddr,
        /// The epoch of the claim.
        epoch: u64,
        /// Why it was claimed.
        cause: Cause,
        /// The other node that was known to have it last.
        from: Option<String>,
        /// Where.
        interface: String,
    },
    /// This node stopped to answer for the address.
    Lost {
        /// The address.
        address: IpAddr,
        /// Why.
        cause: Cause,
        /// The peer whose claim is higher, if that is the cause.
        to: Option<String>,
        /// Where.
        interface: String,
    },
    /// A host that is none of ours has the address: it is not claimed.
    Blocked {
        /// The address.
        address: IpAddr,
        /// The host.
        mac: MacAddr,
        /// Where.
        interface: String,
    },
    /// The host that blocked the address does not answer for it any more, or
    /// the address is not wanted here any more.
    Unblocked {
        /// The address.
        address: IpAddr,
        /// Where.
        interface: String,
    },
    /// A peer answers for the address, but its HELLO does not come: something
    /// on the way filters frames to groups. Nothing is claimed from it. Told
    /// when that begins for an address, at most once a minute.
    HelloFiltered {
        /// The address.
        address: IpAddr,
        /// The peer.
        node: String,
        /// Where.
        interface: String,
    },
    /// A host that is none of ours uses an address that this node or a peer
    /// holds, or that this node is about to take over. A held address is
    /// defended and kept.
    ForeignClaim {
        /// The address.
        address: IpAddr,
        /// The host.
        mac: MacAddr,
        /// Where.
        interface: String,
    },
    /// Another node is heard, and hears.
    PeerHeard {
        /// The node.
        node: String,
        /// Where.
        interface: String,
    },
    /// Another node is not heard any more, or says that it hears nobody, and
    /// did not say that it leaves. Told when this node hears something: it is
    /// not the one that is cut off.
    PeerSilent {
        /// The node.
        node: String,
        /// Where.
        interface: String,
    },
}

impl Event {
    /// The address it is about, if it is about one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Owned { address, .. }
            | Self::Lost { address, .. }
            | Self::Blocked { address, .. }
            | Self::Unblocked { address, .. }
            | Self::HelloFiltered { address, .. }
            | Self::ForeignClaim { address, .. } => Some(*address),
            Self::PeerHeard { .. } | Self::PeerSilent { .. } => None,
        }
    }
}

/// Where an address's ownership machine stands; see [`crate::ownership`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Silent.
    Idle,
    /// A foreign host has the address; silent.
    Blocked,
    /// Silent, and will probe if no node of a better rank claims first.
    Wait,
    /// Silent, asking whether anybody has the address.
    Probe,
    /// Answers, but does not announce: this node hears no other.
    Deaf,
    /// Answers, and hands over to another node.
    Give,
    /// Answers and announces.
    Own,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "IDLE",
            Self::Blocked => "BLOCKED",
            Self::Wait => "WAIT",
            Self::Probe => "PROBE",
            Self::Deaf => "DEAF",
            Self::Give => "GIVE",
            Self::Own => "OWN",
        })
    }
}

/// One address as this node sees it. Where several interfaces serve it, the
/// state is of the one that is nearest to owning it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressState {
    /// Where it stands.
    pub state: State,
    /// The highest epoch known: this node's own in state OWN, else heard or
    /// recorded.
    pub epoch: u64,
    /// Who holds it: this node, or the peer with the highest claim heard.
    pub owner: Option<String>,
    /// This node's place among the nodes heard now; 1 claims first. Told while
    /// it counts: in WAIT and PROBE.
    pub rank: Option<usize>,
    /// When `state` was entered.
    pub since: SystemTime,
    /// Why the address was claimed, or last lost.
    pub cause: Option<Cause>,
    /// A foreign host seen with it.
    pub foreign: Option<MacAddr>,
    /// A node that answers for it while its HELLO does not come: nothing is
    /// claimed from it.
    pub filtered: Option<String>,
    /// The interfaces that may serve it here.
    pub interfaces: Vec<String>,
}

/// A peer heard on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// Its node name.
    pub node: String,
    /// Its hardware address there.
    pub mac: MacAddr,
    /// Since it was last heard.
    pub heard: Duration,
    /// How many addresses it holds, as it says.
    pub holds: usize,
}

/// An interface that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Its addresses and prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The live peers heard there, by node name.
    pub peers: Vec<PeerState>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// By address.
    pub addresses: BTreeMap<IpAddr, AddressState>,
    /// By interface name.
    pub interfaces: BTreeMap<String, InterfaceState>,
    /// Sums over the interfaces, by name (a metric's label).
    pub counters: BTreeMap<String, u64>,
}

/// What the process of a node leaves to the next one on an interface, so that it
/// goes on as the same speaker: nothing moves, and peers notice nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// In whose name the frames were sent.
    pub incarnation: u64,
    /// The sequence of the last of them.
    pub seq: u64,
    /// The addresses that it answers for, and their epochs.
    pub claims: BTreeMap<IpAddr, u64>,
}

/// What a process leaves to the next one, by interface name.
pub type Estate = BTreeMap<String, Held>;
