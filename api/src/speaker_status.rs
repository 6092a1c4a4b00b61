//! `SpeakerStatus`: what one speaker sees and does. One per node, named after it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reason::AnnouncementReason;

/// Most interfaces that a status lists.
pub const MAX_INTERFACES: usize = 128;
/// Most subnets of an interface that a status lists.
pub const MAX_SUBNETS: usize = 64;
/// Most sessions that a status lists.
pub const MAX_SESSIONS: usize = 128;
/// Most addresses that a status lists; the rest are counted in `addressesOmitted`.
pub const MAX_ADDRESSES: usize = 1024;
/// Most refusals that a status lists; the rest are counted in `refusalsOmitted`.
pub const MAX_REFUSALS: usize = 256;
/// Most warnings that a status lists.
pub const MAX_WARNINGS: usize = 32;
/// Most peers that a status lists; the rest are counted in `peersOmitted`.
pub const MAX_PEERS: usize = 512;
/// Most transitions that a status lists: the latest.
pub const MAX_TRANSITIONS: usize = 256;
/// Longest message, in characters.
pub const MAX_MESSAGE: usize = 1024;

/// A SpeakerStatus has no spec: nobody configures it.
#[derive(
    CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "SpeakerStatus",
    plural = "speakerstatuses",
    no_spec,
    status = "SpeakerStatusStatus",
    derive = "PartialEq",
    category = "bellrock",
    doc = "What the speaker of the node of this name sees and does. Written by that speaker only.",
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(
        name = "Configuration",
        type_ = "boolean",
        json_path = ".status.configuration.accepted"
    ),
    printcolumn(
        name = "Forwarding",
        type_ = "boolean",
        json_path = ".status.forwarding.ready"
    ),
    printcolumn(
        name = "Services",
        type_ = "integer",
        json_path = ".status.forwarding.services"
    ),
    printcolumn(name = "Renewed", type_ = "date", json_path = ".status.renewed"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct SpeakerStatusSpec {}

/// What a speaker sees and does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerStatusStatus {
    /// The node.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub node: String,

    /// Version of the speaker.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub version: String,

    /// When the speaker wrote this last. It does so every minute, also if nothing changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Time>,

    /// Network interfaces that addresses can be announced on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_INTERFACES), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<InterfaceStatus>,

    /// BGP sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SESSIONS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["peer"]))]
    pub sessions: Vec<SessionStatus>,

    /// Whether the configuration in the API is the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationStatus>,

    /// Addresses of the local segment that this speaker is concerned with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address"]))]
    pub addresses: Vec<AddressStatus>,

    /// Addresses that the list had no room for.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub addresses_omitted: u32,

    /// Nodes that this speaker hears on the local segments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PEERS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node", "interface"]))]
    pub peers: Vec<SegmentPeer>,

    /// Peers that the list had no room for.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub peers_omitted: u32,

    /// What happened last to addresses of the local segment here, the latest first: a few
    /// entries for each address, since the speaker started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_TRANSITIONS), extend("x-kubernetes-list-type" = "atomic"))]
    pub transitions: Vec<Transition>,

    /// Services that this speaker does not announce or forward, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_REFUSALS), extend("x-kubernetes-list-type" = "atomic"))]
    pub refusals: Vec<Refusal>,

    /// Refusals that the list had no room for.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub refusals_omitted: u32,

    /// The node's packet forwarding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<ForwardingStatus>,
}

/// A network interface of the node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name of the interface.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// Link-layer address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub mac: Option<String>,
    /// Subnets of the interface's addresses, as CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MAX_SUBNETS),
        inner(length(max = 49)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub subnets: Vec<String>,
}

/// A BGP session.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Name of the BGPPeer.
    #[schemars(length(min = 1, max = 253))]
    pub peer: String,
    /// Address of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub address: Option<String>,
    /// State of the session (RFC 4271 8.2.2).
    pub state: SessionState,
    /// When the session came into this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// What last ended the session, or kept it from coming up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE))]
    pub last_error: Option<String>,
    /// Prefixes announced to the peer.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub prefixes: u32,
    /// The BFD session that watches the peer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BfdStatus>,
}

/// A BFD session (RFC 5880). Times are in milliseconds.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BfdStatus {
    /// State of our end.
    pub state: BfdState,
    /// When it came up or went down last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Negotiated time between our packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub transmit_interval: Option<u32>,
    /// Negotiated silence of the peer after which the session is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub detection_time: Option<u32>,
    /// How often it went down.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub downs: u32,
    /// Why it went down last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE))]
    pub last_down: Option<String>,
    /// What keeps it from sending or hearing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE))]
    pub error: Option<String>,
}

/// State of a BFD session (RFC 5880 section 6.2).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BfdState {
    /// Held down on purpose.
    AdminDown,
    /// The peer is not heard.
    #[default]
    Down,
    /// The peer is heard, and does not hear us yet.
    Init,
    /// Both hear each other.
    Up,
}

/// State of a BGP session (RFC 4271 8.2.2).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionState {
    /// Not trying.
    #[default]
    Idle,
    /// Connecting.
    Connect,
    /// Waiting to connect again.
    Active,
    /// Our OPEN is sent.
    OpenSent,
    /// The peer's OPEN is accepted.
    OpenConfirm,
    /// Up.
    Established,
}

/// Whether the configuration in the API is the one in force.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationStatus {
    /// If not, the last good configuration is in force.
    pub accepted: bool,
    /// What is wrong with the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: Option<String>,
}

/// How a speaker stands to an address of the local segment.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// The address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// State of the ownership protocol.
    pub state: AddressState,
    /// Highest epoch seen for the address.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// This node's place among those that may claim the address now; 1 claims first. Told
    /// while the node is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rank: Option<u32>,
}

/// A node that is heard on a segment.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SegmentPeer {
    /// Its name.
    #[schemars(length(min = 1, max = 255))]
    pub node: String,
    /// The interface that it is heard on.
    #[schemars(length(min = 1, max = 15))]
    pub interface: String,
    /// How many addresses it holds there, as it says.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub holds: u32,
}

/// A change of an address of the local segment.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// The address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// When it was seen.
    pub time: MicroTime,
    /// What changed.
    pub change: Change,
    /// Why, in one word: of ownership only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub cause: Option<String>,
    /// The other one concerned: the node that had the address before or has it now, or the
    /// node or the hardware address that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub other: Option<String>,
    /// The interface.
    #[schemars(length(max = 15))]
    pub interface: String,
}

/// How an address of the local segment changed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This node answers for it now.
    Owned,
    /// This node does not answer for it any more.
    Lost,
    /// A foreign host has it: it is not claimed.
    Blocked,
    /// The foreign host is gone.
    Unblocked,
    /// A foreign host uses it too.
    ForeignClaim,
    /// A node answers for it whose HELLO does not come: it is not claimed.
    HelloFiltered,
}

/// State of the ownership protocol for one address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressState {
    /// Silent: another node owns the address, or nobody should.
    #[default]
    Idle,
    /// Silent: waiting for this node's turn to claim.
    Wait,
    /// Silent: checking that nobody holds the address.
    Probe,
    /// Silent: a host that is none of ours holds the address.
    Blocked,
    /// Owner: answers and announces.
    Own,
    /// Owner that hears no other speaker: answers, never announces.
    Deaf,
    /// Owner that hands the address over: answers until the successor does.
    Give,
}

/// A Service that is not announced or forwarded here.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Namespace of the Service.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The address concerned. Absent: all of them, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub address: Option<String>,
    /// What is refused.
    pub protocol: RefusalProtocol,
    /// Name of an [`AnnouncementReason`]. A string, so that a status of a newer speaker can be read.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// The particulars.
    #[serde(default)]
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}

impl Refusal {
    /// The reason, if this version knows it.
    #[must_use]
    pub fn known_reason(&self) -> Option<AnnouncementReason> {
        self.reason.parse().ok()
    }
}

/// What a refusal is about.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum RefusalProtocol {
    /// The local segment: ARP and NDP.
    L2,
    /// Routers: BGP.
    #[serde(rename = "BGP")]
    Bgp,
    /// The node's packet forwarding.
    Forwarding,
}

/// The node's packet forwarding.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ForwardingStatus {
    /// Whether the kernel carries the table that the plan wants.
    pub ready: bool,
    /// Services carried.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub services: u32,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: Option<String>,
    /// What was found on the node that may keep traffic from arriving.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_WARNINGS), extend("x-kubernetes-list-type" = "atomic"))]
    pub warnings: Vec<Warning>,
}

/// Something on the node that may keep traffic from arriving.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// A [`NodeReason`](crate::NodeReason)'s name.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What the reason's own sentence cannot know, such as a table and a chain.
    #[serde(default)]
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}
