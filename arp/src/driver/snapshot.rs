//! What the driver tells of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::Driver;
use super::port::Port;
use crate::links::Interface;
use crate::time::Instant;
use crate::types::{AddressState, InterfaceState, Snapshot, State};

impl Driver {
    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let wall = SystemTime::now();
        let mut counters: BTreeMap<String, u64> = self
            .counters
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        for port in self.ports.values() {
            for (name, count) in port.segment.counters() {
                let sum = counters.entry((*name).to_owned()).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        let interface = |port: &Port| InterfaceState {
            peers: port.segment.peers(now),
            ..waiting(&port.interface)
        };
        Snapshot {
            addresses: self
                .served
                .iter()
                .map(|(address, indexes)| (*address, self.address(*address, indexes, now, wall)))
                .collect(),
            interfaces: self
                .ports
                .values()
                .map(interface)
                .chain(self.interfaces.iter().filter(|_| self.standby).map(waiting))
                .map(|interface| (interface.name.clone(), interface))
                .collect(),
            counters,
        }
    }

    fn address(
        &self,
        address: IpAddr,
        indexes: &BTreeSet<u32>,
        now: Instant,
        wall: SystemTime,
    ) -> AddressState {
        let ports = || indexes.iter().filter_map(|index| self.ports.get(index));
        let views = ports().filter_map(|port| port.segment.address(address));
        let mut views: Vec<_> = views.collect();
        views.sort_by_key(|view| view.state);
        let foreign = views.iter().find_map(|view| view.foreign);
        let filtered = views.iter().find_map(|view| view.filtered.clone());
        let owner = views.iter().rev().find_map(|view| view.owner.clone());
        let best = views.pop();
        let since = best
            .as_ref()
            .map_or(Duration::ZERO, |view| now.since(view.entered));
        AddressState {
            state: best.as_ref().map_or(State::Idle, |view| view.state),
            epoch: best.as_ref().map_or(0, |view| view.epoch),
            owner,
            rank: best.as_ref().and_then(|view| view.rank),
            since: wall.checked_sub(since).unwrap_or(wall),
            cause: best.as_ref().and_then(|view| view.cause),
            foreign,
            filtered,
            interfaces: ports().map(|port| port.interface.name.clone()).collect(),
        }
    }
}

/// An interface that nothing is heard on.
fn waiting(interface: &Interface) -> InterfaceState {
    InterfaceState {
        name: interface.name.clone(),
        index: interface.index,
        mac: interface.mac,
        carrier: interface.carrier,
        addresses: interface.addresses.iter().copied().collect(),
        peers: Vec::new(),
    }
}
