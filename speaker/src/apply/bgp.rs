//! BGP peers: one session each, and the routes that Services want there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use bellrock_bgp::{Attributes, Peer, PeerConfig, PeerStatus, StopReason};
use bellrock_forward::ServiceKey;
use ipnet::IpNet;

use crate::cluster::{self, Cluster};
use crate::plan;

type Routes = BTreeMap<String, BTreeMap<IpNet, Attributes>>;

/// The sessions of this node.
#[derive(Debug, Default)]
pub struct Bgp {
    sessions: BTreeMap<String, Session>,
    /// By peer and prefix, what each Service wants announced. Services share
    /// a prefix when they share an address or an aggregate.
    wanted: BTreeMap<String, BTreeMap<IpNet, BTreeMap<ServiceKey, Attributes>>>,
    /// Prefixes by peer that changed since the last [`Bgp::flush`].
    touched: BTreeMap<String, BTreeSet<IpNet>>,
    /// Peers whose settings the session refuses, and why.
    refused: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Session {
    config: PeerConfig,
    peer: Peer,
}

impl Bgp {
    /// Starts, ends and restarts sessions so that they are those of node `me`.
    /// A session whose configuration did not change is not touched.
    pub async fn set_peers(&mut self, cluster: &Cluster, me: &str) {
        let wanted: BTreeMap<String, PeerConfig> = plan::peers_of(cluster, me)
            .filter_map(|name| {
                let config = peer_config(cluster, me, cluster.peers.get(name)?)?;
                Some((name.clone(), config))
            })
            .collect();
        let ended: Vec<String> = self
            .sessions
            .iter()
            .filter(|(name, session)| wanted.get(*name) != Some(&session.config))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            if let Some(session) = self.sessions.remove(&name) {
                session.peer.stop(StopReason::PeerDeconfigured).await;
            }
        }
        self.refused.retain(|name, _| wanted.contains_key(name));
        for (name, config) in wanted {
            if self.sessions.contains_key(&name) {
                continue;
            }
            match Peer::spawn(config.clone(), self.routes(&name)) {
                Ok(peer) => {
                    self.refused.remove(&name);
                    self.sessions.insert(name, Session { config, peer });
                }
                Err(error) => {
                    tracing::error!(peer = name, %error, "BGPPeer cannot be used on this node");
                    self.refused.insert(name, error.to_string());
                }
            }
        }
    }

    fn routes(&self, peer: &str) -> BTreeMap<IpNet, Attributes> {
        self.wanted
            .get(peer)
            .into_iter()
            .flatten()
            .filter_map(|(prefix, services)| Some((*prefix, merged(services)?)))
            .collect()
    }

    /// Replaces what one Service wants announced; [`Bgp::flush`] sends it.
    pub fn set(&mut self, key: &ServiceKey, before: &Routes, now: &Routes) {
        for (peer, routes) in before {
            for prefix in routes.keys() {
                let still = now
                    .get(peer)
                    .is_some_and(|routes| routes.contains_key(prefix));
                if !still {
                    remove(&mut self.wanted, peer, prefix, key);
                    self.touched
                        .entry(peer.clone())
                        .or_default()
                        .insert(*prefix);
                }
            }
        }
        for (peer, routes) in now {
            for (prefix, attributes) in routes {
                let services = self
                    .wanted
                    .entry(peer.clone())
                    .or_default()
                    .entry(*prefix)
                    .or_default();
                if services.insert(key.clone(), attributes.clone()).as_ref() != Some(attributes) {
                    self.touched
                        .entry(peer.clone())
                        .or_default()
                        .insert(*prefix);
                }
            }
        }
    }

    /// Hands each session the changes since the last time, all at once, so
    /// that they share UPDATEs.
    pub async fn flush(&mut self) {
        for (peer, prefixes) in std::mem::take(&mut self.touched) {
            let Some(session) = self.sessions.get(&peer) else {
                continue;
            };
            let wanted = self.wanted.get(&peer);
            let now = |prefix: &IpNet| wanted.and_then(|w| w.get(prefix)).and_then(merged);
            let changes = prefixes
                .iter()
                .map(|prefix| (*prefix, now(prefix)))
                .collect();
            session.peer.change(changes).await;
        }
    }

    /// Peers that cannot be used on this node, and why.
    pub fn refused(&self) -> &BTreeMap<String, String> {
        &self.refused
    }

    /// Each session's state, by peer name.
    pub fn status(&self) -> BTreeMap<String, (IpAddr, PeerStatus)> {
        self.sessions
            .iter()
            .map(|(name, session)| {
                let status = session.peer.status().borrow().clone();
                (name.clone(), (session.config.address, status))
            })
            .collect()
    }

    /// Ends every session with a NOTIFICATION, all at once.
    pub async fn stop(&mut self) {
        let stops = std::mem::take(&mut self.sessions)
            .into_values()
            .map(|session| session.peer.stop(StopReason::AdministrativeShutdown(None)));
        futures_util::future::join_all(stops).await;
    }
}

fn remove(
    wanted: &mut BTreeMap<String, BTreeMap<IpNet, BTreeMap<ServiceKey, Attributes>>>,
    peer: &str,
    prefix: &IpNet,
    key: &ServiceKey,
) {
    let Some(routes) = wanted.get_mut(peer) else {
        return;
    };
    if let Some(services) = routes.get_mut(prefix) {
        services.remove(key);
        if services.is_empty() {
            routes.remove(prefix);
        }
    }
    if routes.is_empty() {
        wanted.remove(peer);
    }
}

fn merged(services: &BTreeMap<ServiceKey, Attributes>) -> Option<Attributes> {
    let mut all = services.values();
    let mut merged = all.next()?.clone();
    for attributes in all {
        plan::merge_attributes(&mut merged, attributes);
    }
    Some(merged)
}

/// Nothing while the node has no IPv4 address to be known by.
fn peer_config(cluster: &Cluster, me: &str, peer: &cluster::Peer) -> Option<PeerConfig> {
    let first_v4 = || -> Option<Ipv4Addr> {
        cluster
            .nodes
            .get(me)?
            .addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
    };
    let router_id = peer.router_id.or_else(first_v4)?;
    let mut config = PeerConfig::new(peer.address, peer.local_asn, peer.peer_asn, router_id);
    config.port = peer.port;
    config.source = peer.source;
    config.hold_time = peer.hold_time;
    config.keepalive_time = peer.keepalive_time;
    if let Some(retry) = peer.connect_time {
        config.connect_retry = retry;
    }
    config.multihop = peer.multihop;
    Some(config)
}
