//! Peers that answer while their HELLO does not come: something on the way
//! filters frames to groups. Nothing is claimed from them, and for each address
//! it is told why not. What is noted here is for those who ask; it decides
//! nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::super::machine::Trigger;
use super::{Record, Segment};
use crate::MacAddr;
use crate::time::Instant;
use crate::types::Event;

/// How often it is told of an address.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Who answers for an address without being heard.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    by: Option<MacAddr>,
    told: Option<Instant>,
}

impl Filtered {
    pub(super) fn by(&self) -> Option<MacAddr> {
        self.by
    }
}

impl Segment {
    /// A peer whose HELLOs do not come answers for an address. It lives: it
    /// spoke when it was asked.
    pub(super) fn filtered(&mut self, mac: MacAddr, address: IpAddr, now: Instant) {
        self.count("hello_filtered");
        if let Some(record) = self.records.get_mut(&address)
            && let Some(peer) = self.peers.get(mac)
        {
            let Filtered { by, told } = &mut record.filtered;
            let news = by.replace(mac) != Some(mac);
            if news && told.is_none_or(|at| now.since(at) >= TELL_EVERY) {
                *told = Some(now);
                let node = peer.node.to_string();
                self.tell(|interface| Event::HelloFiltered {
                    address,
                    node,
                    interface,
                });
            }
        }
        self.step(address, Trigger::PeerAnswer { mac }, now);
    }

    /// The node that keeps `record`'s address from being claimed, by name.
    pub(super) fn filtered_by(&self, record: &Record) -> Option<String> {
        let peer = self.peers.get(record.filtered.by?)?;
        Some(peer.node.to_string())
    }

    /// The stations that answer for some address without being heard.
    pub(super) fn filtered_peers(&self) -> BTreeSet<MacAddr> {
        if !self.peers.any_filtered() {
            return BTreeSet::new();
        }
        let records = self.records.values();
        records.filter_map(|record| record.filtered.by).collect()
    }

    /// A HELLO of the peer came through.
    pub(super) fn hello_comes(&mut self, mac: MacAddr) {
        for record in self.records.values_mut() {
            if record.filtered.by == Some(mac) {
                record.filtered.by = None;
            }
        }
    }

    /// Somebody who is heard, or this node, has the address now: the peer did
    /// not answer for it any more. It may have died.
    pub(super) fn not_filtered(&mut self, address: IpAddr, now: Instant) {
        let record = self.records.get_mut(&address);
        if record.is_some_and(|record| record.filtered.by.take().is_some()) {
            self.tell_peers(now);
        }
    }

    /// What was seen before the carrier went tells nothing.
    pub(super) fn forget_filtered(&mut self) {
        for record in self.records.values_mut() {
            record.filtered.by = None;
        }
    }
}
