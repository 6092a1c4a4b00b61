//! The vocabulary of Bellrock: its custom resources, annotations, labels and reasons. No I/O.
//!
//! Every other crate speaks of the cluster in the words defined here. The Rust types are the
//! source of the `CustomResourceDefinition`s ([`crds`]); the chart's YAML is generated from them
//! ([`crd_yaml`]) and checked for drift.
//!
//! | kind | scope | written by |
//! |---|---|---|
//! | [`IPAddressPool`] | namespaced | the user; its status by the controller |
//! | [`L2Advertisement`], [`BGPAdvertisement`], [`BGPPeer`], [`BFDProfile`], [`Community`] | namespaced | the user |
//! | [`VirtualIP`] | cluster | spec by the controller (or a user, to reserve an address), status by the owning speaker |
//! | [`SpeakerStatus`] | cluster | the speaker of the node it is named after |
//!
//! Field names follow MetalLB wherever the meaning is the same. What one object can say about
//! itself is checked by the API server through CEL rules in the schema; what CEL cannot say
//! (the order of two IPv6 addresses, overlapping pools) is checked by [`address`] and by the
//! controller, with a [`reason`].

#![allow(
    clippy::duplicated_attributes,
    reason = "each printcolumn repeats the keys of the others"
)]

pub mod address;
pub mod annotations;
pub mod bfd_profile;
pub mod bgp_advertisement;
pub mod bgp_peer;
pub mod community;
mod crd;
pub mod duration;
pub mod ip_address_pool;
pub mod l2_advertisement;
pub mod reason;
pub mod selectors;
pub mod speaker_status;
pub mod virtual_ip;

pub use address::{AddressError, AddressRange, parse_virtual_ip_name, virtual_ip_name};
pub use bfd_profile::{BFDProfile, BFDProfileSpec};
pub use bgp_advertisement::{BGPAdvertisement, BGPAdvertisementSpec};
pub use bgp_peer::{BGPPeer, BGPPeerSpec, DynamicAsn, Role, SecretReference};
pub use community::{Community, CommunityAlias, CommunityError, CommunitySpec, CommunityValue};
pub use crd::{crd_yaml, crds};
pub use duration::{Duration, DurationError};
pub use ip_address_pool::{
    IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, ServiceAllocation,
};
pub use l2_advertisement::{L2Advertisement, L2AdvertisementSpec, PreferredNodeSelector};
pub use reason::{AllocationReason, AnnouncementReason, NodeReason, PoolReason};
pub use speaker_status::{
    AddressState, AddressStatus, BfdState, BfdStatus, Change, ConfigurationStatus,
    ForwardingStatus, InterfaceStatus, Refusal, RefusalProtocol, SegmentPeer, SessionState,
    SessionStatus, SpeakerStatus, SpeakerStatusSpec, SpeakerStatusStatus, Transition,
};
pub use virtual_ip::{
    Claim, L2Placement, MAX_CLAIMS, MAX_PORTS, MAX_SELECTOR, MAX_SHARING_KEY, PortClaim, Protocol,
    TrafficPolicy, VirtualIP, VirtualIPSpec, VirtualIPStatus,
};

/// The API group of every kind of ours.
pub const GROUP: &str = "bellrock.dev";

/// The one served version of every kind of ours.
pub const VERSION: &str = "v1beta1";
