//! Routes: which prefixes a Service's address means for which peer, and with
//! what attributes.
//!
//! Several advertisements may speak for one prefix toward one peer. Their
//! communities add up. `localPref` and `asPathPrepend` of those that have an
//! opinion must agree: if they do not, no choice between them would be the
//! user's, so the address is not announced, and the verdict names both sides.
//! Services that share a prefix are merged by [`merge_services`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_api::CommunityValue;
use bellrock_api::community::AsSpecific;
use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_bgp::Attributes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{ServicePlan, Verdict, Way, scope};
use crate::cluster::{BgpAdvertisement, Cluster, Peer, Service, VirtualIp};

/// One address of one Service.
pub(super) struct Found<'a> {
    pub(super) service: &'a Service,
    pub(super) address: IpAddr,
    pub(super) vip: &'a VirtualIp,
    /// Its share of traffic on this node, if nodes differ in that.
    pub(super) weight: Option<u32>,
}

/// One advertisement toward one peer.
struct Target<'a> {
    name: &'a str,
    ad: &'a BgpAdvertisement,
    peer: &'a str,
    prefix: IpNet,
}

pub(super) fn plan(
    cluster: &Cluster,
    me: &str,
    found: &Found<'_>,
    common: Option<Reason>,
    plan: &mut ServicePlan,
) {
    let covering: Vec<_> = cluster
        .bgp_advertisements
        .iter()
        .filter(|(_, ad)| scope::covers(&ad.scope, cluster, found.vip, found.service))
        .collect();
    let here: Vec<_> = covering
        .iter()
        .filter(|(_, ad)| scope::selects(&ad.scope, cluster, me))
        .collect();
    let sessions: BTreeSet<&String> = peers_of(cluster, me).collect();
    let asked: Vec<Target<'_>> = here
        .iter()
        .flat_map(|(name, ad)| {
            sessions
                .iter()
                .filter(|peer| ad.peers.is_empty() || ad.peers.contains(**peer))
                .map(move |peer| Target {
                    name,
                    ad,
                    peer,
                    prefix: prefix(ad, found.address),
                })
        })
        .collect();
    let no_peer = asked.is_empty();
    let targets: Vec<Target<'_>> = asked
        .into_iter()
        .filter(|target| {
            let peer = cluster.peers.get(target.peer);
            peer.is_some_and(|peer| carries(cluster, me, peer, found.address))
        })
        .collect();
    let mut refused = covering
        .is_empty()
        .then_some(Reason::NoAdvertisement)
        .or(here.is_empty().then_some(Reason::NodeNotSelected))
        .or(common)
        .or(no_peer.then_some(Reason::NoPeer))
        .or(targets.is_empty().then_some(Reason::FamilyUnsupported))
        .or(targets
            .iter()
            .flat_map(|target| &target.ad.communities)
            .any(|name| cluster.community(name).is_none())
            .then_some(Reason::CommunityUnknown));
    let mut detail = None;
    if refused.is_none() {
        detail = conflict(&targets);
        refused = detail
            .is_some()
            .then_some(Reason::ConflictingAdvertisements);
    }
    let peers = targets.iter().map(|t| t.peer.to_owned()).collect();
    if refused.is_none() {
        for target in &targets {
            let routes = plan.routes.entry(target.peer.to_owned()).or_default();
            let attributes = routes.entry(target.prefix).or_default();
            add(cluster, target.ad, found.weight, attributes);
        }
    }
    plan.verdicts.push(Verdict {
        peers,
        detail,
        ..Verdict::new(Some(found.address), Way::Bgp, refused)
    });
}

/// The BGPPeers that node `me` holds a session with.
pub fn peers_of<'a>(cluster: &'a Cluster, me: &'a str) -> impl Iterator<Item = &'a String> {
    cluster
        .peers
        .iter()
        .filter(move |(_, peer)| scope::node_selected(&peer.node_selectors, cluster, me))
        .map(|(name, _)| name)
}

/// Whether a session with the peer can carry routes of the address's family:
/// its own family always; the other one if the peer is to take both, and this
/// node has a next hop for it. IPv4 routes over IPv6 may do without one (RFC
/// 8950); whether the peer agrees shows when the session is up.
fn carries(cluster: &Cluster, me: &str, peer: &Peer, address: IpAddr) -> bool {
    if peer.address.is_ipv4() == address.is_ipv4() {
        return true;
    }
    let has_next_hop = || {
        let node = cluster.nodes.get(me);
        node.is_some_and(|node| {
            let mut own = node.addresses.iter();
            own.any(|own| own.is_ipv4() == address.is_ipv4())
        })
    };
    peer.dual_stack && (address.is_ipv4() || has_next_hop())
}

/// The first disagreement, in words.
fn conflict(targets: &[Target<'_>]) -> Option<String> {
    let mut seen: BTreeMap<(&str, IpNet), Vec<&Target<'_>>> = BTreeMap::new();
    for target in targets {
        let key = (target.peer, target.prefix);
        seen.entry(key).or_default().push(target);
    }
    seen.into_iter().find_map(|((peer, prefix), targets)| {
        let local_pref = |t: &Target<'_>| t.ad.local_pref;
        let prepend = |t: &Target<'_>| (t.ad.prepend > 0).then_some(u32::from(t.ad.prepend));
        let found = disagree("localPref", &targets, local_pref)
            .or_else(|| disagree("asPathPrepend", &targets, prepend))?;
        Some(format!("{prefix} to {peer}: {found}"))
    })
}

fn disagree(
    field: &str,
    targets: &[&Target<'_>],
    opinion: impl Fn(&Target<'_>) -> Option<u32>,
) -> Option<String> {
    let mut opinions = targets
        .iter()
        .filter_map(|target| Some((target.name, opinion(target)?)));
    let (first, wanted) = opinions.next()?;
    let (other, instead) = opinions.find(|(_, value)| *value != wanted)?;
    Some(format!(
        "{first} wants {field} {wanted}, {other} wants {instead}"
    ))
}

fn prefix(ad: &BgpAdvertisement, address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(v4) => Ipv4Net::new(v4, ad.aggregation_length)
            .unwrap_or(Ipv4Net::from(v4))
            .trunc()
            .into(),
        IpAddr::V6(v6) => Ipv6Net::new(v6, ad.aggregation_length_v6)
            .unwrap_or(Ipv6Net::from(v6))
            .trunc()
            .into(),
    }
}

/// Adds what one advertisement says.
fn add(cluster: &Cluster, ad: &BgpAdvertisement, weight: Option<u32>, into: &mut Attributes) {
    into.local_pref = into.local_pref.or(ad.local_pref);
    into.prepend = into.prepend.max(ad.prepend);
    if ad.weight_by_endpoints {
        into.weight = weight;
    }
    for name in &ad.communities {
        match cluster.community(name) {
            Some(CommunityValue::Standard(high, low)) => {
                into.communities
                    .insert(u32::from(high) << 16 | u32::from(low));
            }
            Some(CommunityValue::Large(a, b, c)) => {
                into.large_communities.insert([a, b, c]);
            }
            Some(CommunityValue::RouteTarget(numbers)) => {
                into.extended_communities.insert(extended(2, numbers));
            }
            Some(CommunityValue::SiteOfOrigin(numbers)) => {
                into.extended_communities.insert(extended(3, numbers));
            }
            None => {}
        }
    }
}

/// A transitive AS-specific extended community (RFC 4360 section 3.1, RFC
/// 5668).
fn extended(subtype: u8, numbers: AsSpecific) -> [u8; 8] {
    match numbers {
        AsSpecific::TwoOctet(asn, value) => {
            let ([a, b], [c, d, e, f]) = (asn.to_be_bytes(), value.to_be_bytes());
            [0x00, subtype, a, b, c, d, e, f]
        }
        AsSpecific::FourOctet(asn, value) => {
            let ([a, b, c, d], [e, f]) = (asn.to_be_bytes(), value.to_be_bytes());
            [0x02, subtype, a, b, c, d, e, f]
        }
    }
}

/// Several Services in one prefix, because they share an address or an
/// aggregate: communities and weights add up; the highest local preference and
/// the shortest path count, as they would for the router.
pub fn merge_services(into: &mut Attributes, other: &Attributes) {
    into.communities.extend(&other.communities);
    into.large_communities.extend(&other.large_communities);
    into.extended_communities
        .extend(&other.extended_communities);
    into.local_pref = into.local_pref.max(other.local_pref);
    into.prepend = into.prepend.min(other.prepend);
    into.weight = match (into.weight, other.weight) {
        (Some(one), Some(two)) => Some(one.saturating_add(two)),
        (one, two) => one.or(two),
    };
}
