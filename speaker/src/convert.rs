//! From API objects to the snapshot's types. Everything that a decision does
//! not need is dropped here.

mod kubernetes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use bellrock_api::{
    BFDProfile, BGPAdvertisement, BGPPeer, Community, CommunityError, DynamicAsn, L2Advertisement,
    VirtualIP,
};
use bellrock_bgp::message::Role;
use bellrock_bgp::{MAX_PASSWORD, Password, PeerAsn};
use bellrock_forward::ServiceKey;
use k8s_openapi::api::core::v1 as core;
use kube::ResourceExt;
use kube::api::DynamicObject;

use crate::cluster::{self, Change, CommunityName, PeerPassword, Scope, VirtualIp};
use crate::watch::Parsed;
pub use kubernetes::{node, service, slice};

/// A VirtualIP.
pub fn virtual_ip(object: &VirtualIP) -> Parsed {
    let name = object.name_any();
    let Ok(address) = bellrock_api::parse_virtual_ip_name(&name) else {
        return Parsed::Ignored;
    };
    // The schema ties the name to the address; an object that says otherwise
    // is not a record of anything.
    if object.spec.ip() != Ok(address) {
        return invalid(
            Change::VirtualIp(address, None),
            format!(
                "its name and spec.address {:?} disagree",
                object.spec.address
            ),
        );
    }
    let created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_second());
    let status = object.status.clone().unwrap_or_default();
    let claims = object.spec.claims.iter().map(|claim| ServiceKey {
        namespace: claim.namespace.clone(),
        name: claim.name.clone(),
    });
    let l2 = object.spec.l2.clone();
    let recorded = status
        .owner
        .zip(status.epoch.and_then(|epoch| u64::try_from(epoch).ok()));
    let vip = VirtualIp {
        pool: object.spec.pool.clone(),
        claims: claims.collect(),
        desired: l2.as_ref().map(|l2| l2.node.clone()),
        successors: l2.map(|l2| l2.successors).unwrap_or_default(),
        created: created
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or_default(),
        recorded,
    };
    Parsed::Change(Change::VirtualIp(address, Some(vip)))
}

/// An of which only the labels matter here.
pub fn pool(object: &DynamicObject) -> Parsed {
    Parsed::Change(Change::Pool(
        object.name_any(),
        Some(object.labels().clone()),
    ))
}

/// A VirtualIP of this name is gone.
pub fn no_virtual_ip(name: &str) -> Option<Change> {
    let address = bellrock_api::parse_virtual_ip_name(name).ok()?;
    Some(Change::VirtualIp(address, None))
}

/// An L2Advertisement is gone.
pub fn no_l2(name: &str) -> Option<Change> {
    Some(Change::L2Advertisement(name.to_owned(), None))
}

/// A BGPAdvertisement is gone.
pub fn no_bgp(name: &str) -> Option<Change> {
    Some(Change::BgpAdvertisement(name.to_owned(), None))
}

/// A BGPPeer is gone.
pub fn no_peer(name: &str) -> Option<Change> {
    Some(Change::Peer(name.to_owned(), None))
}

/// A Community is gone.
pub fn no_community(name: &str) -> Option<Change> {
    Some(Change::Community(name.to_owned(), None))
}

/// An L2Advertisement.
pub fn l2_advertisement(object: &L2Advertisement) -> Parsed {
    let spec = &object.spec;
    let ad = cluster::L2Advertisement {
        scope: Scope {
            pools: spec.ip_address_pools.iter().cloned().collect(),
            pool_selectors: spec.ip_address_pool_selectors.clone(),
            service_selectors: spec.service_selectors.clone(),
            node_selectors: spec.node_selectors.clone(),
        },
        interfaces: spec.interfaces.iter().cloned().collect(),
    };
    Parsed::Change(Change::L2Advertisement(object.name_any(), Some(ad)))
}

/// A BGPAdvertisement. One that does not parse is refused whole: half a policy
/// would be another policy.
pub fn bgp_advertisement(object: &BGPAdvertisement) -> Parsed {
    let spec = &object.spec;
    let change = |ad| Change::BgpAdvertisement(object.name_any(), ad);
    if !(1..=32).contains(&spec.aggregation_length) {
        return invalid(change(None), "aggregationLength must be 1 to 32".to_owned());
    }
    if !(1..=128).contains(&spec.aggregation_length_v6) {
        let message = "aggregationLengthV6 must be 1 to 128";
        return invalid(change(None), message.to_owned());
    }
    let mut communities = BTreeSet::new();
    for text in &spec.communities {
        match community(text) {
            Ok(name) => communities.insert(name),
            Err(message) => return invalid(change(None), message),
        };
    }
    Parsed::Change(change(Some(cluster::BgpAdvertisement {
        scope: Scope {
            pools: spec.ip_address_pools.iter().cloned().collect(),
            pool_selectors: spec.ip_address_pool_selectors.clone(),
            service_selectors: spec.service_selectors.clone(),
            node_selectors: spec.node_selectors.clone(),
        },
        peers: spec.peers.iter().cloned().collect(),
        aggregation_length: spec.aggregation_length,
        aggregation_length_v6: spec.aggregation_length_v6,
        local_pref: spec.local_pref,
        prepend: spec.as_path_prepend,
        weight_by_endpoints: spec.weight_by_endpoints,
        communities,
    })))
}

/// A community as an advertisement writes it: numbers, or an alias.
fn community(text: &str) -> Result<CommunityName, String> {
    match text.parse() {
        Ok(value) => Ok(CommunityName::Value(value)),
        Err(error) if text.contains(':') => Err(CommunityError::to_string(&error)),
        Err(_) => Ok(CommunityName::Alias(text.to_owned())),
    }
}

/// A Community object: aliases.
pub fn communities(object: &Community) -> Parsed {
    let change = |aliases| Change::Community(object.name_any(), aliases);
    let mut aliases = BTreeMap::new();
    for alias in &object.spec.communities {
        match community(&alias.value) {
            Ok(CommunityName::Value(value)) => {
                aliases.insert(alias.name.clone(), value);
            }
            Ok(CommunityName::Alias(value)) => {
                return invalid(change(None), format!("{value:?} is not a community"));
            }
            Err(message) => return invalid(change(None), message),
        }
    }
    Parsed::Change(change(Some(aliases)))
}

/// A BFDProfile.
pub fn bfd_profile(object: &BFDProfile) -> Parsed {
    let spec = &object.spec;
    let change = |profile| Change::BfdProfile(object.name_any(), profile);
    let milliseconds = |n: u32| Duration::from_millis(u64::from(n));
    let Some(multiplier) = NonZeroU8::new(spec.detect_multiplier) else {
        return invalid(change(None), "detectMultiplier must not be 0".to_owned());
    };
    let timers = bellrock_bfd::Timers {
        transmit: milliseconds(spec.transmit_interval),
        receive: milliseconds(spec.receive_interval),
        multiplier,
    };
    if let Err(error) = timers.validate() {
        return invalid(change(None), error.to_string());
    }
    if spec.minimum_ttl == 0 {
        return invalid(change(None), "minimumTtl must not be 0".to_owned());
    }
    Parsed::Change(change(Some(cluster::BfdProfile {
        settings: bellrock_bfd::Settings {
            timers,
            role: if spec.passive_mode {
                bellrock_bfd::Role::Passive
            } else {
                bellrock_bfd::Role::Active
            },
            enabled: true,
        },
        minimum_ttl: spec.minimum_ttl,
        echo: spec.echo_mode,
    })))
}

/// The BFDProfile of this name is gone, or cannot be used.
pub fn no_bfd_profile(name: &str) -> Option<Change> {
    Some(Change::BfdProfile(name.to_owned(), None))
}

/// A BGPPeer. One that asks for what this release does not do is refused: a
/// session in another VRF is not what was asked for.
pub fn bgp_peer(object: &BGPPeer) -> Parsed {
    let change = |peer| Change::Peer(object.name_any(), peer);
    match parse_peer(object) {
        Ok(peer) => Parsed::Change(change(Some(peer))),
        Err(message) => invalid(change(None), message),
    }
}

fn parse_peer(object: &BGPPeer) -> Result<cluster::Peer, String> {
    let spec = &object.spec;
    let asked_for = [
        ("interface", spec.interface.is_some()),
        ("vrf", spec.vrf.is_some()),
    ];
    if let Some((field, _)) = asked_for.iter().find(|(_, asked)| *asked) {
        return Err(unsupported(field));
    }
    let address = |field: &str, text: &str| -> Result<IpAddr, String> {
        text.parse()
            .map_err(|_| format!("{field} {text:?} is not an IP address"))
    };
    let peer_address = spec
        .peer_address
        .as_deref()
        .ok_or("peerAddress is missing")?;
    let seconds = bellrock_api::Duration::as_std;
    let hold_time = spec.hold_time.map(seconds);
    let keepalive_time = spec.keepalive_time.map(seconds);
    Ok(cluster::Peer {
        node_selectors: spec.node_selectors.clone(),
        address: address("peerAddress", peer_address)?,
        port: spec.peer_port,
        source: spec
            .source_address
            .as_deref()
            .map(|text| address("sourceAddress", text))
            .transpose()?,
        // RFC 7705, `no-prepend replace-as`: the peer sees no other number.
        local_asn: spec.local_asn.unwrap_or(spec.my_asn),
        peer_asn: match (spec.peer_asn, spec.dynamic_asn) {
            (Some(asn), None) => PeerAsn::Exact(asn),
            (None, Some(DynamicAsn::Internal)) => PeerAsn::Internal,
            (None, Some(DynamicAsn::External)) => PeerAsn::External,
            _ => return Err("exactly one of peerASN and dynamicASN is needed".to_owned()),
        },
        router_id: spec
            .router_id
            .as_deref()
            .map(|id| {
                id.parse()
                    .map_err(|_| format!("routerID {id:?} is not an IPv4 address"))
            })
            .transpose()?,
        // As MetalLB: of two times, the one given sets the other.
        hold_time: hold_time
            .or(keepalive_time.map(|keepalive| keepalive * 3))
            .unwrap_or(Duration::from_secs(90)),
        keepalive_time,
        connect_time: spec.connect_time.map(seconds),
        multihop: spec.ebgp_multi_hop,
        ttl_security: spec.ttl_security_hops,
        role: spec.role.map(role),
        dual_stack: spec.dual_stack_address_family,
        password: match (&spec.password, &spec.password_secret) {
            (None, None) => None,
            (Some(text), None) => Some(PeerPassword::Text(password(text)?)),
            (None, Some(secret)) => Some(PeerPassword::Secret(secret.name.clone())),
            (Some(_), Some(_)) => {
                return Err("password and passwordSecret exclude each other".to_owned());
            }
        },
        graceful_restart: spec.enable_graceful_restart,
        bfd_profile: spec.bfd_profile.clone(),
    })
}

fn role(role: bellrock_api::Role) -> Role {
    match role {
        bellrock_api::Role::Provider => Role::Provider,
        bellrock_api::Role::RouteServer => Role::RouteServer,
        bellrock_api::Role::RouteServerClient => Role::RouteServerClient,
        bellrock_api::Role::Customer => Role::Customer,
        bellrock_api::Role::Peer => Role::Peer,
    }
}

/// A password that the kernel takes. What it says is in no message.
fn password(text: &str) -> Result<Password, String> {
    match text.len() {
        1..=MAX_PASSWORD => Ok(Password::new(text)),
        length => Err(format!(
            "the password has {length} octets; TCP MD5 takes 1 to {MAX_PASSWORD}"
        )),
    }
}

/// The password in a Secret, or why there is none.
pub fn password_secret(object: &core::Secret) -> Result<Password, String> {
    const BASIC_AUTH: &str = "kubernetes.io/basic-auth";
    if object.type_.as_deref() != Some(BASIC_AUTH) {
        return Err(format!("the Secret is not of type {BASIC_AUTH}"));
    }
    let data = object.data.as_ref().and_then(|data| data.get("password"));
    let octets = data.ok_or("the Secret has no key \"password\"")?;
    let text = std::str::from_utf8(&octets.0).map_err(|_| "the password is not UTF-8")?;
    password(text)
}

fn unsupported(what: &str) -> String {
    format!("{what} is not supported by this release")
}

fn invalid(identity: Change, message: String) -> Parsed {
    Parsed::Invalid { identity, message }
}

/// The same change, with the object gone.
pub fn gone(change: Change) -> Change {
    match change {
        Change::Service(key, _) => Change::Service(key, None),
        Change::Slice(slice, _) => Change::Slice(slice, None),
        Change::Node(name, _) => Change::Node(name, None),
        Change::VirtualIp(address, _) => Change::VirtualIp(address, None),
        Change::Pool(name, _) => Change::Pool(name, None),
        Change::L2Advertisement(name, _) => Change::L2Advertisement(name, None),
        Change::BgpAdvertisement(name, _) => Change::BgpAdvertisement(name, None),
        Change::Peer(name, _) => Change::Peer(name, None),
        Change::BfdProfile(name, _) => Change::BfdProfile(name, None),
        Change::Community(name, _) => Change::Community(name, None),
        Change::Password(name, _) => Change::Password(name, Err("it is gone".to_owned())),
    }
}

/// What identifies the object of a change within its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A Service.
    Service(ServiceKey),
    /// An EndpointSlice, by namespace and name.
    Slice(ServiceKey),
    /// A VirtualIP.
    VirtualIp(IpAddr),
    /// Anything else, by name.
    Name(String),
}

/// What identifies the object of `change`.
pub fn identity(change: &Change) -> Identity {
    match change {
        Change::Service(key, _) => Identity::Service(key.clone()),
        Change::Slice(slice, _) => Identity::Slice(slice.clone()),
        Change::VirtualIp(address, _) => Identity::VirtualIp(*address),
        Change::Node(name, _)
        | Change::Pool(name, _)
        | Change::L2Advertisement(name, _)
        | Change::BgpAdvertisement(name, _)
        | Change::Peer(name, _)
        | Change::BfdProfile(name, _)
        | Change::Community(name, _)
        | Change::Password(name, _) => Identity::Name(name.clone()),
    }
}
