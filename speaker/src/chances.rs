//! Which established TCP connections to give a second chance, pure.
//!
//! A connection that was open when its address moved is known to the kernel of
//! the node that had the address, and to no other. As long as that kernel
//! lives, because the move was planned or only the speaker crashed, the new
//! owner sends packets of connections that it does not know there
//! ([`bellrock_forward::SecondChance`]). That must be in place before clients
//! turn to the new owner: so it is there already when a move is expected.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bellrock_arp::{Event, InterfaceState};
use bellrock_forward::SecondChance;
use ipnet::IpNet;

use crate::cluster::{Cluster, Node, VirtualIp};
use crate::plan::{self, Settings};

/// How long connections may go on through the node that they were opened by.
pub const LASTS: Duration = Duration::from_secs(3600);
/// How long after its sign a move is expected: a voluntary one waits 5 s for
/// its turn at the most. A sign may stand for ever without a move, and while
/// two nodes name each other, packets of unknown connections go round between
/// them.
pub const EXPECTED: Duration = Duration::from_secs(10);

/// An address that moved here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moved {
    from: String,
    interface: String,
    at: Duration,
}

/// The signs that an address is about to leave its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signs {
    silent: bool,
    unfit: bool,
    wanted_here: bool,
}

impl Signs {
    /// Whether one is there that was not.
    fn any_beyond(self, old: Self) -> bool {
        (self.silent && !old.silent)
            || (self.unfit && !old.unfit)
            || (self.wanted_here && !old.wanted_here)
    }
}

/// An address that another node owns.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    owner: String,
    signs: Signs,
    /// When the last sign came up. What was there when the address was first
    /// seen, or came to this owner, announces nothing.
    came: Option<Duration>,
}

/// What moved here, and from where.
#[derive(Debug, Default)]
pub struct Chances {
    /// The addresses that this node owns; how they came, if another node had
    /// them whose kernel lives.
    owned: BTreeMap<IpAddr, Option<Moved>>,
    /// The addresses that may move here.
    others: BTreeMap<IpAddr, Watched>,
}

impl Chances {
    /// Takes in what the segment tells, at a time of a clock that never goes
    /// back. Returns whether it was about ownership.
    pub fn take(&mut self, event: &Event, now: Duration) -> bool {
        match event {
            Event::Owned {
                address,
                from,
                interface,
                ..
            } => {
                let moved = from.clone().map(|from| Moved {
                    from,
                    interface: interface.clone(),
                    at: now,
                });
                // Owned again after a doubt: what it was moved from stays.
                let known = self.owned.entry(*address).or_default();
                *known = moved.or_else(|| known.take());
                true
            }
            Event::Lost { address, .. } => {
                self.owned.remove(address);
                true
            }
            _ => false,
        }
    }

    /// The nodes whose kernels have to live, each with an address that moved
    /// here from there.
    pub fn nodes(&self) -> BTreeMap<&str, IpAddr> {
        let owned = self.owned.iter();
        owned
            .filter_map(|(address, moved)| Some((moved.as_ref()?.from.as_str(), *address)))
            .collect()
    }

    /// A node's kernel does not answer: its connections are over.
    pub fn died(&mut self, node: &str) {
        for moved in self.owned.values_mut() {
            moved.take_if(|moved| moved.from == node);
        }
    }

    /// The chances that shall be in force.
    pub fn wanted(
        &mut self,
        cluster: &Cluster,
        me: &str,
        settings: &Settings,
        interfaces: &BTreeMap<String, InterfaceState>,
        now: Duration,
    ) -> BTreeMap<IpAddr, SecondChance> {
        self.watch_others(cluster, me, settings, now);
        let mut wanted = BTreeMap::new();
        for (address, moved) in &self.owned {
            let Some(moved) = moved else { continue };
            let Some(left) = LASTS.checked_sub(now.saturating_sub(moved.at)) else {
                continue;
            };
            let on = interfaces.get(&moved.interface);
            wanted.extend(chance(cluster, &moved.from, *address, on, left));
        }
        for (address, other) in &self.others {
            let expected = |came| now.saturating_sub(came) < EXPECTED;
            if !self.owned.contains_key(address) && other.came.is_some_and(expected) {
                let all = interfaces.values();
                wanted.extend(chance(cluster, &other.owner, *address, all, LASTS));
            }
        }
        wanted.retain(|_, chance| !chance.lasts.is_zero());
        wanted
    }

    /// Notes which signs are new.
    fn watch_others(&mut self, cluster: &Cluster, me: &str, settings: &Settings, now: Duration) {
        let elsewhere = |vip: &VirtualIp| {
            let owner = vip.recorded.as_ref().map(|(owner, _)| owner.as_str());
            owner.is_some_and(|owner| owner != me)
        };
        let there = &cluster.virtual_ips;
        self.others
            .retain(|address, _| there.get(address).is_some_and(elsewhere));
        for (address, vip) in there.iter().filter(|(_, vip)| elsewhere(vip)) {
            let Some((owner, _)) = &vip.recorded else {
                continue;
            };
            let signs = Signs {
                silent: settings.silent.contains(owner),
                unfit: plan::unfit(cluster, owner, settings).is_some(),
                wanted_here: vip.desired.as_deref() == Some(me),
            };
            match self.others.get_mut(address) {
                Some(known) if known.owner == *owner => {
                    if signs.any_beyond(known.signs) {
                        known.came = Some(now);
                    }
                    known.signs = signs;
                }
                Some(_) | None => {
                    let (owner, came) = (owner.clone(), None);
                    self.others.insert(*address, Watched { owner, signs, came });
                }
            }
        }
    }
}

/// The second chance at `node`, if it is a neighbour on one of the interfaces.
fn chance<'a>(
    cluster: &Cluster,
    node: &str,
    address: IpAddr,
    interfaces: impl IntoIterator<Item = &'a InterfaceState>,
    lasts: Duration,
) -> Option<(IpAddr, SecondChance)> {
    let node = cluster.nodes.get(node)?;
    interfaces.into_iter().find_map(|interface| {
        let previous = neighbour(node, interface, address)?;
        let chance = SecondChance {
            interface: interface.index,
            previous,
            lasts,
        };
        Some((address, chance))
    })
}

/// A node's address of the same family as `address` in a subnet of the
/// interface.
fn neighbour(node: &Node, interface: &InterfaceState, address: IpAddr) -> Option<IpAddr> {
    let subnets = || {
        let all = interface.addresses.iter();
        all.filter_map(|(own, length)| IpNet::new(*own, *length).ok())
    };
    let mut candidates = node.addresses.iter().copied();
    candidates.find(|ip| {
        ip.is_ipv4() == address.is_ipv4()
            && *ip != address
            && subnets().any(|subnet| subnet.contains(ip))
    })
}

#[cfg(test)]
mod tests;
