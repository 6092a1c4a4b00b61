//! The part of the cluster that a speaker decides from: a typed, trimmed
//! snapshot, and which Services each change touches.
//!
//! Objects are projected as they arrive and then dropped: an endpoint costs
//! tens of bytes here, not the kilobyte of its API object.

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bellrock_api::CommunityValue;
use bellrock_bgp::message::Role;
use bellrock_bgp::{Password, PeerAsn};
use bellrock_forward::ServiceKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub use objects::{Endpoint, Hints, Node, Service, ServiceKind, ServicePort, Slice, TrafficPolicy};

/// An allocated address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualIp {
    /// Pool it was taken from.
    pub pool: Option<String>,
    /// The Services that hold it.
    pub claims: BTreeSet<ServiceKey>,
    /// Where the controller wants it answered on the segment.
    pub desired: Option<String>,
    /// Who comes next, in this order.
    pub successors: Vec<String>,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// Owner and epoch that were recorded last.
    pub recorded: Option<(String, u64)>,
}

/// Labels of a pool. Its addresses are the controller's business.
pub type PoolLabels = BTreeMap<String, String>;

/// Which pools, Services and nodes an advertisement speaks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scope {
    /// `ipAddressPools`.
    pub pools: BTreeSet<String>,
    /// `ipAddressPoolSelectors`; with `pools` empty too, every pool.
    pub pool_selectors: Vec<LabelSelector>,
    /// `serviceSelectors`; empty: every Service.
    pub service_selectors: Vec<LabelSelector>,
    /// `nodeSelectors`; empty: every node.
    pub node_selectors: Vec<LabelSelector>,
}

/// An L2Advertisement.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct L2Advertisement {
    /// What it speaks for.
    pub scope: Scope,
    /// Interfaces to answer on; empty: all.
    pub interfaces: BTreeSet<String>,
}

/// A BGPAdvertisement.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BgpAdvertisement {
    /// What it speaks for.
    pub scope: Scope,
    /// Names of BGPPeers; empty: all.
    pub peers: BTreeSet<String>,
    /// Prefix length that IPv4 addresses are announced with.
    pub aggregation_length: u8,
    /// Prefix length that IPv6 addresses are announced with.
    pub aggregation_length_v6: u8,
    /// LOCAL_PREF towards internal peers.
    pub local_pref: Option<u32>,
    /// How many times more than once the own AS is in the path; 0: no opinion.
    pub prepend: u8,
    /// Announce the number of ready local endpoints as a weight.
    pub weight_by_endpoints: bool,
    /// Its communities.
    pub communities: BTreeSet<CommunityName>,
}

/// A community, by its numbers or by an alias.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommunityName {
    /// The numbers.
    Value(CommunityValue),
    /// The name that a Community object gives it.
    Alias(String),
}

/// A BGPPeer.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Nodes that hold a session with it; empty: all.
    pub node_selectors: Vec<LabelSelector>,
    /// Its address.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// Address to connect from.
    pub source: Option<IpAddr>,
    /// Our AS number.
    pub local_asn: u32,
    /// Its AS number.
    pub peer_asn: PeerAsn,
    /// BGP identifier; by default the node's IPv4 address.
    pub router_id: Option<Ipv4Addr>,
    /// Hold time that we offer.
    pub hold_time: Duration,
    /// Keepalive interval; by default a third of the hold time.
    pub keepalive_time: Option<Duration>,
    /// Time between attempts to connect.
    pub connect_time: Option<Duration>,
    /// More than one hop away.
    pub multihop: bool,
    /// At most so many hops away, and both sides see to it (GTSM, RFC 5082).
    pub ttl_security: Option<u8>,
    /// Our role toward it (RFC 9234).
    pub role: Option<Role>,
    /// Both families on this one session, not just that of its addresses.
    pub dual_stack: bool,
    /// TCP MD5 password.
    pub password: Option<PeerPassword>,
    /// Ask the peer to keep our routes while the speaker restarts.
    pub graceful_restart: bool,
    /// The BFDProfile that it is watched with.
    pub bfd_profile: Option<String>,
}

impl Peer {
    /// A peer on the segment, with the defaults.
    pub fn new(address: IpAddr, local_asn: u32, peer_asn: PeerAsn) -> Self {
        Self {
            node_selectors: Vec::new(),
            address,
            port: 179,
            source: None,
            local_asn,
            peer_asn,
            router_id: None,
            hold_time: Duration::from_secs(90),
            keepalive_time: None,
            connect_time: None,
            multihop: false,
            ttl_security: None,
            role: None,
            dual_stack: false,
            password: None,
            graceful_restart: false,
            bfd_profile: None,
        }
    }
}

/// A BFDProfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BfdProfile {
    /// Timers, and who begins.
    pub settings: bellrock_bfd::Settings,
    /// The lowest TTL that is taken of peers more than one hop away.
    pub minimum_ttl: u8,
    /// Echo packets are asked for.
    pub echo: bool,
}

/// Where a password is.
#[derive(Debug, Clone, PartialEq)]
pub enum PeerPassword {
    /// In the BGPPeer itself.
    Text(Password),
    /// In the Secret of this name.
    Secret(String),
}

/// What is known of a Secret that a BGPPeer names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PasswordSecret {
    /// The last password that it held.
    pub password: Option<Password>,
    /// Why it cannot be read now; then the last one stays in force.
    pub problem: Option<String>,
}

/// One object that changed; `None` where it is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A Service; one without ports on nodes or balancers counts as gone.
    Service(ServiceKey, Option<Service>),
    /// An EndpointSlice by namespace and name, and the Service that it
    /// belongs to.
    Slice(ServiceKey, Option<(ServiceKey, Slice)>),
    /// A Node.
    Node(String, Option<Node>),
    /// A VirtualIP.
    VirtualIp(IpAddr, Option<VirtualIp>),
    /// An IPAddressPool.
    Pool(String, Option<PoolLabels>),
    /// An L2Advertisement.
    L2Advertisement(String, Option<L2Advertisement>),
    /// A BGPAdvertisement.
    BgpAdvertisement(String, Option<BgpAdvertisement>),
    /// A BGPPeer.
    Peer(String, Option<Peer>),
    /// A BFDProfile.
    BfdProfile(String, Option<BfdProfile>),
    /// A Community object: communities by alias.
    Community(String, Option<BTreeMap<String, CommunityValue>>),
    /// The Secret of a peer's password, or why it cannot be read.
    Password(String, Result<Password, String>),
}

/// What has to be planned again after changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// These Services.
    pub services: BTreeSet<ServiceKey>,
    /// Every Service: an advertisement, a pool or this node changed.
    pub all: bool,
    /// The node's own table entries: addresses or pod networks.
    pub node: bool,
    /// The set of BGP peers of this node.
    pub peers: bool,
}

impl Dirty {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The snapshot.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Services of type LoadBalancer and NodePort.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Slices by Service, then by slice name.
    pub slices: BTreeMap<ServiceKey, BTreeMap<String, Slice>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// VirtualIPs by address.
    pub virtual_ips: BTreeMap<IpAddr, VirtualIp>,
    /// Pools by name.
    pub pools: BTreeMap<String, PoolLabels>,
    /// L2Advertisements by name.
    pub l2_advertisements: BTreeMap<String, L2Advertisement>,
    /// BGPAdvertisements by name.
    pub bgp_advertisements: BTreeMap<String, BgpAdvertisement>,
    /// BGPPeers by name.
    pub peers: BTreeMap<String, Peer>,
    /// BFDProfiles by name.
    pub bfd_profiles: BTreeMap<String, BfdProfile>,
    communities: BTreeMap<String, BTreeMap<String, CommunityValue>>,
    /// Secrets that peers name, as far as they were looked at.
    pub passwords: BTreeMap<String, PasswordSecret>,
    by_service: BTreeMap<ServiceKey, BTreeSet<IpAddr>>,
    /// The Service of each slice, by the slice's namespace and name.
    slice_owner: BTreeMap<ServiceKey, ServiceKey>,
}

impl Cluster {
    /// The addresses that the allocator recorded for a Service, in order.
    ///
    /// Only a VirtualIP gives a Service an address; what its status claims
    /// counts for nothing (CVE-2020-8554).
    pub fn addresses(&self, service: &ServiceKey) -> impl Iterator<Item = (IpAddr, &VirtualIp)> {
        self.by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|address| Some((*address, self.virtual_ips.get(address)?)))
    }

    fn is_pool_in_use(&self, name: &str) -> bool {
        let mut vips = self.virtual_ips.values();
        vips.any(|vip| vip.pool.as_deref() == Some(name))
    }

    /// A community's numbers, if they are known.
    pub fn community(&self, name: &CommunityName) -> Option<CommunityValue> {
        match name {
            CommunityName::Value(value) => Some(*value),
            CommunityName::Alias(alias) => self
                .communities
                .values()
                .find_map(|aliases| aliases.get(alias))
                .copied(),
        }
    }

    fn set_slice(&mut self, owner: ServiceKey, name: &str, new: Option<Slice>, dirty: &mut Dirty) {
        let slices = self.slices.entry(owner.clone()).or_default();
        let changed = replace(slices, name.to_owned(), new);
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
        if changed && self.services.contains_key(&owner) {
            dirty.services.insert(owner);
        }
    }

    /// Takes in one change and notes what it touches, seen from node `me`.
    pub fn apply(&mut self, change: Change, me: &str, dirty: &mut Dirty) {
        match change {
            Change::Service(key, new) => {
                if replace(&mut self.services, key.clone(), new) {
                    dirty.services.insert(key);
                }
            }
            Change::Slice(slice, new) => {
                let before = self.slice_owner.get(&slice).cloned();
                let (owner, new) = new.unzip();
                if let Some(before) = before
                    && Some(&before) != owner.as_ref()
                {
                    self.set_slice(before, &slice.name, None, dirty);
                    self.slice_owner.remove(&slice);
                }
                if let Some(owner) = owner {
                    self.slice_owner.insert(slice.clone(), owner.clone());
                    self.set_slice(owner, &slice.name, new, dirty);
                }
            }
            Change::Node(name, new) => {
                let before = self.nodes.get(&name).cloned();
                if replace(&mut self.nodes, name.clone(), new) {
                    let own = name == me;
                    let now = self.nodes.get(&name);
                    let networks = |node: Option<&Node>| node.map(|n| n.pod_networks.clone());
                    dirty.all |= own;
                    dirty.peers |= own;
                    dirty.node |= own || networks(before.as_ref()) != networks(now);
                    // No node's address may be announced.
                    let addresses = |node: Option<&Node>| node.map(|n| n.addresses.clone());
                    dirty.all |= addresses(before.as_ref()) != addresses(now);
                }
            }
            Change::VirtualIp(address, new) => {
                let claims =
                    |vip: Option<&VirtualIp>| vip.map(|vip| vip.claims.clone()).unwrap_or_default();
                let before = claims(self.virtual_ips.get(&address));
                if !replace(&mut self.virtual_ips, address, new) {
                    return;
                }
                let now = claims(self.virtual_ips.get(&address));
                for key in before.difference(&now) {
                    if let Some(addresses) = self.by_service.get_mut(key) {
                        addresses.remove(&address);
                        if addresses.is_empty() {
                            self.by_service.remove(key);
                        }
                    }
                }
                for key in &now {
                    self.by_service
                        .entry(key.clone())
                        .or_default()
                        .insert(address);
                }
                dirty.services.extend(before.into_iter().chain(now));
            }
            // By its labels advertisements go on covering its addresses: a pool that is deleted
            // takes nothing from the wire.
            Change::Pool(name, None) if self.is_pool_in_use(&name) => {}
            Change::Pool(name, new) => dirty.all |= replace(&mut self.pools, name, new),
            Change::L2Advertisement(name, new) => {
                dirty.all |= replace(&mut self.l2_advertisements, name, new);
            }
            Change::BgpAdvertisement(name, new) => {
                dirty.all |= replace(&mut self.bgp_advertisements, name, new);
            }
            Change::Peer(name, new) => {
                // Which peers a Service goes to depends on which exist.
                let changed = replace(&mut self.peers, name, new);
                dirty.peers |= changed;
                dirty.all |= changed;
            }
            Change::BfdProfile(name, new) => {
                dirty.peers |= replace(&mut self.bfd_profiles, name, new);
            }
            Change::Community(name, new) => {
                dirty.all |= replace(&mut self.communities, name, new);
            }
            Change::Password(name, read) => {
                let known = self.passwords.entry(name).or_default();
                let before = known.clone();
                match read {
                    Ok(password) => {
                        known.password = Some(password);
                        known.problem = None;
                    }
                    Err(problem) => known.problem = Some(problem),
                }
                dirty.peers |= *known != before;
            }
        }
    }
}

/// Puts `new` in the place of `key`; whether that changed anything.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, new: Option<V>) -> bool {
    match new {
        Some(new) => match map.get_mut(&key) {
            Some(old) if *old == new => false,
            Some(old) => {
                *old = new;
                true
            }
            None => {
                map.insert(key, new);
                true
            }
        },
        None => map.remove(&key).is_some(),
    }
}
