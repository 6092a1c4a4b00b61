//! What the speaker finds on its node: kube-proxy or none, addresses, and what
//! may keep traffic from arriving.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use bellrock_api::NodeReason;
use bellrock_arp::InterfaceState;
use ipnet::IpNet;

use crate::ask;
use crate::netfilter::{self, Chain};
use crate::plan::{Forwarding, Settings, Surroundings};
use crate::routes::Routes;

/// Where kube-proxy says how it is, if nobody told it otherwise.
const KUBE_PROXY_HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_256);
/// Longer than its answer is.
const ANSWER: u64 = 4096;
/// Where kube-proxy keeps the addresses of Services in IPVS mode.
const IPVS_INTERFACE: &str = "kube-ipvs0";
/// Where the kernel keeps the settings of its interfaces.
const SYSCTL: &str = "/proc/sys/net/ipv4/conf";

/// Whether kube-proxy is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum KubeProxy {
    /// Look for its rules and its health port.
    #[default]
    Detect,
    /// It is, or something stands in for it.
    Present,
    /// It is not.
    Absent,
}

/// Addresses by interface.
pub(crate) type Interfaces = BTreeMap<String, BTreeSet<IpAddr>>;

/// What was read from the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// All nftables chains.
    pub(crate) chains: Vec<Chain>,
    /// kube-proxy answers at its health port.
    pub(crate) health_port: bool,
    /// It did at the look before this one.
    pub(crate) answered_before: bool,
    /// Addresses by interface.
    pub(crate) addresses: Interfaces,
    /// `arp_ignore` of each interface that addresses are announced on.
    pub(crate) arp_ignore: BTreeMap<String, u8>,
    /// Subnets of those interfaces.
    pub(crate) subnets: BTreeSet<IpNet>,
}

/// What it means for plans, and what to tell.
pub(crate) fn judge(
    found: &Found,
    configured: KubeProxy,
    settings: &Settings,
    announced: impl Fn(&IpAddr) -> bool,
) -> (Surroundings, Vec<(NodeReason, String)>) {
    // It answers before it has made its first rules. Until the next look what
    // is its own is better served by us.
    let at_work = found.health_port && (found.answered_before || settings.surroundings.kube_proxy);
    let kube_proxy = match configured {
        KubeProxy::Present => true,
        KubeProxy::Absent => false,
        KubeProxy::Detect => at_work || netfilter::has_kube_proxy(&found.chains),
    };
    let mut warnings = netfilter::obstacles(&found.chains);
    if settings.forwarding == Forwarding::KubeProxy && !kube_proxy {
        let nothing = format!("no table or chain of its own, no answer at {KUBE_PROXY_HEALTH}");
        warnings.push((NodeReason::KubeProxyMissing, nothing));
    }
    let mut answered = answered(&found.addresses, &found.arp_ignore);
    // The rest changes with every Service where kube-proxy is in IPVS mode.
    answered.retain(announced);
    let surroundings = Surroundings {
        kube_proxy,
        addresses: for_node_ports(&found.addresses, settings),
        answered,
        subnets: found.subnets.clone(),
    };
    (surroundings, warnings)
}

/// Reads all of it. `segment` are the interfaces that addresses are announced
/// on. An error leaves what is known in force.
pub(crate) async fn look(
    routes: &Routes,
    segment: BTreeMap<String, InterfaceState>,
) -> Result<Found> {
    let subnets = subnets(segment.values());
    let read = tokio::task::spawn_blocking(move || -> Result<_> {
        let mut ignores = BTreeMap::new();
        for name in segment.into_keys() {
            // An interface may go while it is looked at.
            match arp_ignore(&name) {
                Ok(ignore) => drop(ignores.insert(name, ignore)),
                Err(error) => tracing::debug!(error = format!("{error:#}"), "arp_ignore not known"),
            }
        }
        Ok((netfilter::chains()?, ignores))
    });
    let (chains, arp_ignore) = read.await??;
    Ok(Found {
        chains,
        health_port: kube_proxy_answers().await,
        answered_before: false,
        addresses: routes.addresses().await?,
        arp_ignore,
        subnets,
    })
}

/// What an IPv6 link-local address or a host's own prefix says of others on the
/// link is nothing.
fn subnets<'a>(interfaces: impl Iterator<Item = &'a InterfaceState>) -> BTreeSet<IpNet> {
    let addresses = interfaces.flat_map(|interface| &interface.addresses);
    let all = addresses.filter_map(|(address, length)| IpNet::new(*address, *length).ok());
    let link_local = |subnet: &IpNet| match subnet {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.addr().is_unicast_link_local(),
    };
    all.filter(|subnet| subnet.prefix_len() < subnet.max_prefix_len() && !link_local(subnet))
        .map(|subnet| subnet.trunc())
        .collect()
}

/// Addresses of the node in the networks where node ports shall listen.
fn for_node_ports(interfaces: &Interfaces, settings: &Settings) -> BTreeSet<IpAddr> {
    let networks = &settings.node_port_networks;
    interfaces
        .iter()
        .filter(|(name, _)| *name != IPVS_INTERFACE)
        .flat_map(|(_, addresses)| addresses)
        // Packets to these do not come from outside.
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .filter(|address| networks.iter().any(|network| network.contains(*address)))
        .copied()
        .collect()
}

/// Addresses for which the kernel answers ARP requests, or neighbour
/// solicitations, on one of the given interfaces. `arp_ignore`: 0 answers for
/// any address of the node, 1 and 2 for those of the interface itself, 8 never.
fn answered(addresses: &Interfaces, arp_ignore: &BTreeMap<String, u8>) -> BTreeSet<IpAddr> {
    let any = arp_ignore
        .values()
        .any(|ignore| !matches!(ignore, 1 | 2 | 8));
    let own = |name: &String| arp_ignore.get(name).is_some_and(|ignore| *ignore != 8);
    let all = addresses
        .iter()
        .flat_map(|(name, addresses)| addresses.iter().map(move |address| (name, *address)));
    all.filter(|(name, address)| match address {
        IpAddr::V4(_) => any || own(name),
        IpAddr::V6(_) => arp_ignore.contains_key(*name),
    })
    .map(|(_, address)| address)
    .collect()
}

/// `arp_ignore` as it works on an interface: the larger of its own value and
/// that of all.
fn arp_ignore(interface: &str) -> Result<u8> {
    let read = |name: &str| -> Result<u8> {
        let path = Path::new(SYSCTL).join(name).join("arp_ignore");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().context("arp_ignore is not a number")
    };
    Ok(read("all")?.max(read(interface)?))
}

/// Whether kube-proxy, or what serves the same in its place, answers at its
/// health port, be it well or not.
async fn kube_proxy_answers() -> bool {
    let answer = ask::get(KUBE_PROXY_HEALTH, "/healthz", ANSWER).await;
    answer.is_ok_and(|answer| is_kube_proxy(&answer))
}

fn is_kube_proxy(answer: &str) -> bool {
    answer.starts_with("HTTP/1.") && answer.contains("\"lastUpdated\"")
}

#[cfg(test)]
mod tests;
