//! BGP peers: one session each, and the routes that Services want there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use bellrock_bgp::message::Family;
use bellrock_bgp::{
    Attributes, Listener, Peer, PeerConfig, PeerStatus, Restart, State, StopReason,
};
use bellrock_forward::ServiceKey;
use ipnet::IpNet;

use crate::cluster::{self, Cluster, PeerPassword};
use crate::plan;

/// How long a peer keeps our routes without a session, where it was asked to: a
/// new speaker is there in seconds, an image may have to be pulled first.
const RESTART_TIME: Duration = Duration::from_secs(120);
/// How long routes stay, marked with GRACEFUL_SHUTDOWN, on a node that leaves.
pub const DRAIN: Duration = Duration::from_secs(3);

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
    /// Peers whose settings cannot be used, or not as they are now, and why.
    refused: BTreeMap<String, String>,
    /// The forwarding of an earlier speaker was found in the kernel.
    resumed: bool,
    /// Where peers may connect to us; an error while that is not possible.
    doors: BTreeMap<SocketAddr, Result<Listener, String>>,
}

#[derive(Debug)]
struct Session {
    config: PeerConfig,
    peer: Peer,
}

impl Bgp {
    /// No sessions yet. Peers may open theirs at these addresses, once
    /// [`Bgp::listen`] has succeeded.
    pub fn at(addresses: &[SocketAddr]) -> Self {
        let closed = |address: &SocketAddr| (*address, Err("not listening yet".to_owned()));
        Self {
            doors: addresses.iter().map(closed).collect(),
            ..Self::default()
        }
    }

    /// Listens where that has not succeeded yet: the port may still be that of
    /// the speaker that this one replaces.
    pub fn listen(&mut self) {
        for (address, door) in &mut self.doors {
            let Err(known) = door else { continue };
            match Listener::bind(*address) {
                Ok(listener) => {
                    tracing::info!(%address, "listening for BGP");
                    for (name, session) in &self.sessions {
                        attach(&listener, name, &session.peer);
                    }
                    *door = Ok(listener);
                }
                Err(error) => {
                    let error = error.to_string();
                    if *known != error {
                        tracing::warn!(%address, error, "not listening for BGP; trying again");
                    }
                    *known = error;
                }
            }
        }
    }

    fn open_doors(&self) -> impl Iterator<Item = &Listener> {
        self.doors.values().filter_map(|door| door.as_ref().ok())
    }

    /// Starts, ends and restarts sessions so that they are those of node `me`.
    /// A session whose configuration did not change is not touched.
    pub async fn set_peers(&mut self, cluster: &Cluster, me: &str) {
        let mut wanted: BTreeMap<String, PeerConfig> = BTreeMap::new();
        let mut refused = BTreeMap::new();
        for name in plan::peers_of(cluster, me) {
            let Some(peer) = cluster.peers.get(name) else {
                continue;
            };
            let (config, problem) = self.peer_config(cluster, me, peer);
            if let Some(problem) = problem {
                tracing::warn!(peer = name, problem, "BGPPeer not as it should be");
                refused.insert(name.clone(), problem);
            }
            if let Some(config) = config {
                wanted.insert(name.clone(), config);
            }
        }
        self.refused = refused;
        let ended: Vec<String> = self
            .sessions
            .iter()
            .filter(|(name, session)| wanted.get(*name) != Some(&session.config))
            .map(|(name, _)| name.clone())
            .collect();
        let mut stops = Vec::new();
        for name in ended {
            let reason = if wanted.contains_key(&name) {
                StopReason::ConfigurationChange
            } else {
                StopReason::PeerDeconfigured
            };
            if let Some(session) = self.sessions.remove(&name) {
                self.open_doors()
                    .for_each(|door| door.detach(session.config.address));
                stops.push(session.peer.stop(reason));
            }
        }
        futures_util::future::join_all(stops).await;
        for (name, config) in wanted {
            if self.sessions.contains_key(&name) {
                continue;
            }
            match Peer::spawn(config.clone(), self.routes(&name)) {
                Ok(peer) => {
                    self.open_doors()
                        .for_each(|door| attach(door, &name, &peer));
                    self.sessions.insert(name, Session { config, peer });
                }
                Err(error) => {
                    tracing::error!(peer = name, %error, "BGPPeer cannot be used on this node");
                    self.refused.insert(name, error.to_string());
                }
            }
        }
    }

    /// The forwarding of an earlier speaker carries on (RFC 4724: the R and F
    /// bits of the sessions that start from now on).
    pub fn set_resumed(&mut self) {
        self.resumed = true;
    }

    /// This node leaves: routes are marked, and withdrawn [`DRAIN`] later.
    pub async fn drain(&self) {
        for session in self.sessions.values() {
            session.peer.drain(DRAIN).await;
        }
    }

    /// BFD says that the path to a peer has failed.
    pub async fn bfd_down(&self, peer: &str) {
        if let Some(session) = self.sessions.get(peer) {
            session.peer.bfd_down().await;
        }
    }

    /// Since when the session with this peer is up.
    pub fn established(&self, peer: &str) -> Option<SystemTime> {
        let status = self.sessions.get(peer)?.peer.status();
        let status = status.borrow();
        (status.state == State::Established).then_some(status.since)
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

    /// Peers that cannot be used on this node, or not as they are now, and
    /// addresses that cannot be listened on, and why.
    pub fn refused(&self) -> BTreeMap<String, String> {
        let closed = self.doors.iter().filter_map(|(address, door)| {
            let error = door.as_ref().err()?;
            Some((format!("at {address}"), error.clone()))
        });
        let peers = self.refused.clone();
        peers.into_iter().chain(closed).collect()
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

    /// Ends every session, all at once: for good if the node leaves, for a
    /// restart otherwise.
    pub async fn stop(&mut self, leaving: bool) {
        let reason = if leaving {
            StopReason::AdministrativeShutdown(Some("node leaves".to_owned()))
        } else {
            StopReason::Restart
        };
        let stops = std::mem::take(&mut self.sessions)
            .into_values()
            .map(|session| session.peer.stop(reason.clone()));
        futures_util::future::join_all(stops).await;
    }

    /// A session's settings, and what is wrong with them. Without settings no
    /// session is held.
    fn peer_config(
        &self,
        cluster: &Cluster,
        me: &str,
        peer: &cluster::Peer,
    ) -> (Option<PeerConfig>, Option<String>) {
        let Some(node) = cluster.nodes.get(me) else {
            return (None, None);
        };
        let first_v4 = node.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let first_v6 = node.addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        });
        let router_id = peer
            .router_id
            .or(first_v4)
            .unwrap_or_else(|| router_id_of(me));
        let mut config = PeerConfig::new(peer.address, peer.local_asn, peer.peer_asn, router_id);
        config.port = peer.port;
        config.source = peer.source;
        config.hold_time = peer.hold_time;
        config.keepalive_time = peer.keepalive_time;
        if let Some(retry) = peer.connect_time {
            config.connect_retry = retry;
        }
        config.multihop = peer.multihop;
        config.ttl_security = peer.ttl_security;
        config.role = peer.role;
        if peer.dual_stack {
            config.next_hop_v4 = first_v4.filter(|_| peer.address.is_ipv6());
            config.next_hop_v6 = first_v6.filter(|_| peer.address.is_ipv4());
        } else {
            config.families = [Family::of(peer.address)].into();
        }
        config.restart = peer.graceful_restart.then_some(Restart {
            time: RESTART_TIME,
            resumed: self.resumed,
        });
        match &peer.password {
            None => (Some(config), None),
            Some(PeerPassword::Text(password)) => {
                config.password = Some(password.clone());
                (Some(config), None)
            }
            Some(PeerPassword::Secret(name)) => {
                let known = cluster.passwords.get(name).cloned().unwrap_or_default();
                let problem = known.problem.map(|why| format!("Secret {name}: {why}"));
                config.password = known.password;
                // A session without its password is not what was asked for.
                let usable = config.password.is_some().then_some(config);
                (usable, problem)
            }
        }
    }
}

/// A BGP identifier for a node without an IPv4 address: the same at every
/// start, and as good as unique (FNV-1a of its name).
fn router_id_of(node: &str) -> Ipv4Addr {
    let hash = node.bytes().fold(0x811c_9dc5_u32, |hash, octet| {
        (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
    });
    Ipv4Addr::from(hash.max(1))
}

fn attach(listener: &Listener, name: &str, peer: &Peer) {
    if let Err(error) = listener.attach(peer) {
        tracing::error!(peer = name, %error, "connections of the peer are not taken");
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
        plan::merge_services(&mut merged, attributes);
    }
    Some(merged)
}
