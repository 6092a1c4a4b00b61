//! The content of the table: what one Service, or the node, puts into which
//! set or map. Pure.
//!
//! A packet to one of our addresses is looked up three times:
//!
//! ```text
//! (address . protocol . port)             -> class           a kind of chain and its size
//! class                                   -> chain           a handful of chains
//! (address . protocol . port . slot)      -> endpoint        slot = random or hash, mod size
//! ```
//!
//! so that the number of rules does not grow with the number of Services.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::family::Family;
use crate::model::{Endpoint, ExternalPolicy, Node, Port, Protocol, Service};
use crate::slots;

/// What a client dials: an address of ours, a protocol and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Front {
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}/{}", self.address, self.port, self.protocol)
    }
}

/// Which of a front's two endpoint lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// All endpoints.
    Cluster,
    /// Those of this node.
    Local,
}

/// How a slot of the endpoint list is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pick {
    /// At random, for each connection.
    Random,
    /// By a hash of the client's address.
    Client,
}

/// What a connection meets once its front is known: the name of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    /// Whether the client must be in the front's source ranges. Sorts first,
    /// because the chain for it goes on to the one without.
    pub(crate) restricted: bool,
    pub(crate) family: Family,
    pub(crate) scope: Scope,
    pub(crate) pick: Pick,
    /// Slots of the endpoint list; none of them drops everything.
    pub(crate) slots: u32,
}

impl Class {
    /// The most slots that a class can have.
    pub(crate) const MAX_SLOTS: u32 = (1 << 20) - 1;

    /// The value in the class maps. nftables shows it as a traffic class,
    /// whose upper half no one's qdiscs use.
    pub(crate) fn id(self) -> u32 {
        0xbe00_0000
            | u32::from(self.family == Family::V6) << 23
            | u32::from(self.scope == Scope::Local) << 22
            | u32::from(self.pick == Pick::Client) << 21
            | u32::from(self.restricted) << 20
            | self.slots.min(Self::MAX_SLOTS)
    }

    /// The class with this [`Class::id`].
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        let bit = |n: u32| id & (1 << n) != 0;
        (id >> 24 == 0xbe).then(|| Self {
            restricted: bit(20),
            family: if bit(23) { Family::V6 } else { Family::V4 },
            scope: if bit(22) {
                Scope::Local
            } else {
                Scope::Cluster
            },
            pick: if bit(21) { Pick::Client } else { Pick::Random },
            slots: id & Self::MAX_SLOTS,
        })
    }

    /// The same without source ranges.
    pub(crate) fn unrestricted(self) -> Self {
        Self {
            restricted: false,
            ..self
        }
    }

    /// The name of its chain, such as `cluster4_2` or `local6_sticky64_limited`.
    pub(crate) fn chain(self) -> String {
        format!(
            "{}{}_{}{}{}",
            match self.scope {
                Scope::Cluster => "cluster",
                Scope::Local => "local",
            },
            self.family.digit(),
            match self.pick {
                Pick::Random => "",
                Pick::Client => "sticky",
            },
            self.slots,
            if self.restricted { "_limited" } else { "" },
        )
    }
}

/// Addresses from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) first: IpAddr,
    pub(crate) last: IpAddr,
}

impl Range {
    /// What sorts before any other.
    pub(crate) const LEAST: Self = Self {
        first: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        last: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };

    fn of(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

/// One of the node's own networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Network {
    /// Pods of any node.
    Pods,
    /// Pods of this node.
    LocalPods,
}

/// One unit of content: an element of a set, the key of an element of a map,
/// or the chain of a class (with its rules and its element of `chain_of`).
///
/// The first group has one owner each, the second is shared between Services
/// and counted, the third is the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// The front is served: `ours`.
    Ours(Front),
    /// The front's class: `class`.
    Class(Front),
    /// Another class for callers inside the cluster: `class_in`.
    ClassInside(Front),
    /// A slot of the front's endpoint list: `endpoints` or `endpoints_local`.
    Endpoint(Front, Scope, u32),
    /// A source range of the front: `sources`.
    Source(Front, Range),

    /// An external address: `addresses`.
    Address(IpAddr),
    /// The address of an endpoint on this node: `local`.
    Local(IpAddr),
    /// A pod that may reach itself through a Service: `hairpin`.
    Hairpin(IpAddr),
    /// The chain of a class.
    Chain(Class),

    /// Pod networks: `pods` or `local_pods`.
    Network(Network, Range),
}

impl Entry {
    /// Whether several Services can hold the entry together.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Address(_) | Self::Local(_) | Self::Hairpin(_) | Self::Chain(_) => true,
            Self::Ours(_)
            | Self::Class(_)
            | Self::ClassInside(_)
            | Self::Endpoint(..)
            | Self::Source(..)
            | Self::Network(..) => false,
        }
    }
}

/// What an entry maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    /// Nothing: the entry is an element of a set, or a chain.
    Member,
    /// The class of a front.
    Class(Class),
    /// Where a slot leads.
    Endpoint(IpAddr, u16),
}

/// Entries with their values, in order, each entry once.
pub(crate) type Content = Vec<(Entry, Value)>;

/// The node's own entries.
pub(crate) fn of_node(node: &Node) -> Content {
    let mut content = Content::new();
    for (network, nets) in [
        (Network::Pods, &node.pod_networks),
        (Network::LocalPods, &node.local_pod_networks),
    ] {
        for family in Family::ALL {
            for range in merge(nets, family) {
                content.push((Entry::Network(network, range), Value::Member));
            }
        }
    }
    content.sort_unstable();
    content
}

/// The fronts that a Service asks for, each with its port and whether source
/// ranges bind there.
pub(crate) fn fronts<'a>(
    node: &'a Node,
    service: &'a Service,
) -> impl Iterator<Item = (Front, &'a Port, bool)> {
    service.ports.iter().flat_map(|port| {
        let external = service
            .addresses
            .iter()
            .map(|&address| (address, port.port, true));
        let node_port = port.node_port.into_iter().flat_map(|number| {
            node.node_port_addresses
                .iter()
                .map(move |&address| (address, number, false))
        });
        external
            .chain(node_port)
            .map(move |(address, number, external)| {
                (
                    Front {
                        address,
                        protocol: port.protocol,
                        port: number,
                    },
                    port,
                    external,
                )
            })
    })
}

/// Why a Service cannot be forwarded as it stands; a sentence without its
/// full stop.
pub(crate) fn refusal(node: &Node, service: &Service) -> Option<String> {
    let mut seen = BTreeSet::new();
    for (front, _, _) in fronts(node, service) {
        let a = front.address;
        if a.is_unspecified() || a.is_loopback() || a.is_multicast() {
            return Some(format!("{a} is not an address that a Service can have"));
        }
        if !seen.insert(front) {
            return Some(format!("two of its ports claim {front}"));
        }
    }
    for port in &service.ports {
        let endpoints = || port.endpoints.iter().chain(&port.local_endpoints);
        if port.port == 0 || port.node_port == Some(0) || endpoints().any(|e| e.port == 0) {
            return Some(format!(
                "port {:?} uses the number 0, which is not a port",
                port.name
            ));
        }
        if let Some(e) =
            endpoints().find(|e| e.address.is_unspecified() || e.address.is_multicast())
        {
            return Some(format!(
                "port {:?} has the endpoint {}",
                port.name, e.address
            ));
        }
        if port.endpoints.len().max(port.local_endpoints.len()) > slots::MAX_ENDPOINTS {
            return Some(format!(
                "port {:?} has more than {} endpoints",
                port.name,
                slots::MAX_ENDPOINTS
            ));
        }
    }
    None
}

/// The entries of a Service, without those of fronts that it does not win.
pub(crate) fn of_service(node: &Node, service: &Service, wins: impl Fn(&Front) -> bool) -> Content {
    let mut content = Content::new();
    let mut shared = BTreeSet::new();
    let ranges = Family::ALL.map(|family| (family, merge(&service.source_ranges, family)));
    shared.extend(service.addresses.iter().map(|&a| Entry::Address(a)));

    // A port's fronts of one family share their lists, which are long to lay
    // out: they come one after the other, or nearly so.
    let mut laid_out: [Option<(&Port, Rc<Lists>)>; 2] = [None, None];
    for (front, port, external) in fronts(node, service) {
        if !wins(&front) {
            continue;
        }
        let family = Family::of(front.address);
        let known = &mut laid_out[usize::from(family == Family::V6)];
        let lists = match known {
            Some((of, lists)) if std::ptr::eq(*of, port) => Rc::clone(lists),
            _ => {
                let lists = Rc::new(Lists::of(service, port, family));
                *known = Some((port, Rc::clone(&lists)));
                lists
            }
        };
        let Lists::Some { outside, inside } = &*lists else {
            // Not ours: the guard rejects it.
            continue;
        };
        for e in &port.endpoints {
            share_local(&mut shared, e, family);
        }
        if service.policy == ExternalPolicy::Local {
            for e in &port.local_endpoints {
                share_local(&mut shared, e, family);
            }
        }

        let ranges: &[Range] = ranges
            .iter()
            .find(|(f, _)| external && *f == family)
            .map_or(&[], |(_, ranges)| ranges.as_slice());
        content.push((Entry::Ours(front), Value::Member));
        content.extend(
            ranges
                .iter()
                .map(|&r| (Entry::Source(front, r), Value::Member)),
        );
        let restricted = !ranges.is_empty();
        let mut add = |list: &List, entry: Entry| {
            // A class that drops everything needs no source ranges before it.
            let class = Class {
                restricted: restricted && list.class.slots > 0,
                ..list.class
            };
            content.push((entry, Value::Class(class)));
            shared.insert(Entry::Chain(class));
            shared.insert(Entry::Chain(class.unrestricted()));
            for (slot, &(address, port)) in (0..).zip(&list.slots) {
                content.push((
                    Entry::Endpoint(front, class.scope, slot),
                    Value::Endpoint(address, port),
                ));
            }
        };
        add(outside, Entry::Class(front));
        if let Some(inside) = inside {
            add(inside, Entry::ClassInside(front));
        }
    }
    content.extend(shared.into_iter().map(|entry| (entry, Value::Member)));
    content.sort_unstable();
    content
}

/// What the fronts of one port and family lead to.
enum Lists {
    /// Nothing, from anywhere.
    None,
    Some {
        outside: List,
        /// Another list for callers inside the cluster.
        inside: Option<List>,
    },
}

impl Lists {
    fn of(service: &Service, port: &Port, family: Family) -> Self {
        let all = usable(&port.endpoints, family);
        match service.policy {
            ExternalPolicy::Cluster if all.is_empty() => Self::None,
            ExternalPolicy::Cluster => Self::Some {
                outside: list(Scope::Cluster, &all, service, family),
                inside: None,
            },
            ExternalPolicy::Local => {
                let local = usable(&port.local_endpoints, family);
                if all.is_empty() && local.is_empty() {
                    return Self::None;
                }
                Self::Some {
                    outside: list(Scope::Local, &local, service, family),
                    inside: (!all.is_empty()).then(|| list(Scope::Cluster, &all, service, family)),
                }
            }
        }
    }
}

/// An endpoint list laid out in slots.
struct List {
    class: Class,
    slots: Vec<(IpAddr, u16)>,
}

fn list(scope: Scope, endpoints: &[(IpAddr, u16)], service: &Service, family: Family) -> List {
    let (pick, slots) = if service.affinity && endpoints.len() > 1 {
        (Pick::Client, slots::sticky(endpoints))
    } else {
        (Pick::Random, endpoints.to_vec())
    };
    let count = u32::try_from(slots.len())
        .unwrap_or(Class::MAX_SLOTS)
        .min(Class::MAX_SLOTS);
    List {
        class: Class {
            restricted: false,
            family,
            scope,
            pick,
            slots: count,
        },
        slots,
    }
}

/// The endpoints of a family, sorted, each once.
fn usable(endpoints: &[Endpoint], family: Family) -> Vec<(IpAddr, u16)> {
    let mut list: Vec<_> = endpoints
        .iter()
        .filter(|e| Family::of(e.address) == family)
        .map(|e| (e.address, e.port))
        .collect();
    list.sort_unstable();
    list.dedup();
    list
}

fn share_local(shared: &mut BTreeSet<Entry>, endpoint: &Endpoint, family: Family) {
    if endpoint.local && Family::of(endpoint.address) == family {
        shared.insert(Entry::Local(endpoint.address));
        shared.insert(Entry::Hairpin(endpoint.address));
    }
}

/// The networks of a family, merged until none touches another's addresses.
/// nftables refuses nested ranges, Kubernetes does not.
fn merge(nets: &[IpNet], family: Family) -> Vec<Range> {
    match family {
        Family::V4 => {
            let nets: Vec<Ipv4Net> = nets
                .iter()
                .filter_map(|net| match net {
                    IpNet::V4(net) => Some(net.trunc()),
                    IpNet::V6(_) => None,
                })
                .collect();
            Ipv4Net::aggregate(&nets)
                .into_iter()
                .map(|n| Range::of(n.into()))
                .collect()
        }
        Family::V6 => {
            let nets: Vec<Ipv6Net> = nets
                .iter()
                .filter_map(|net| match net {
                    IpNet::V6(net) => Some(net.trunc()),
                    IpNet::V4(_) => None,
                })
                .collect();
            Ipv6Net::aggregate(&nets)
                .into_iter()
                .map(|n| Range::of(n.into()))
                .collect()
        }
    }
}
