//! Planned moves: who wants an address elsewhere, and who gets it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::machine::Trigger;
use super::super::rank;
use super::Segment;
use crate::MacAddr;
use crate::frame::Entry;
use crate::time::Instant;
use crate::types::{Assignment, Cause, Eligibility};

/// From one planned move of an address to the next.
const HOLD_DOWN: Duration = Duration::from_secs(5);

/// Where a held address should go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// To any successor.
    Away,
    /// To this node.
    To(String),
}

/// What is known of an address's planned moves.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    wish: Option<Wish>,
    /// Who did not take it.
    tried: BTreeSet<Arc<str>>,
    /// No planned move before.
    not_before: Instant,
}

impl Moves {
    /// Takes in a new assignment. A desired node counts when it *changes*: an
    /// address that was taken over does not go back because its first owner
    /// returns.
    pub(super) fn told(&mut self, old: Option<&Assignment>, new: &Assignment) {
        match new.eligibility {
            Eligibility::Yielding => self.wish = Some(Wish::Away),
            Eligibility::Eligible => {
                let changed = old.is_some_and(|old| old.desired != new.desired);
                let asks = |wish: &Wish| match wish {
                    Wish::Away => false,
                    Wish::To(node) => new.desired.as_ref() == Some(node),
                };
                self.wish = match &new.desired {
                    Some(desired) if changed => Some(Wish::To(desired.clone())),
                    _ => self.wish.take().filter(asks),
                };
            }
            Eligibility::Ineligible => self.wish = None,
        }
    }
}

impl Segment {
    /// Starts the planned moves that can be made now.
    pub(super) fn make_moves(&mut self, now: Instant) {
        if self.draining || self.hearing.deaf {
            return;
        }
        let wishes = |(address, wish): (&IpAddr, Wish)| (*address, wish);
        let due: Vec<(IpAddr, Wish)> = self
            .records
            .iter()
            .filter(|(_, record)| record.machine.owned().is_some())
            .filter(|(_, record)| record.machine.gives().is_none())
            .filter(|(_, record)| now >= record.moves.not_before)
            .filter_map(|(address, record)| Some((address, record.moves.wish.clone()?)))
            .map(wishes)
            .collect();
        for (address, wish) in due {
            match wish {
                Wish::Away => {
                    self.give(address, false, Cause::Ineligible, now);
                }
                Wish::To(node) if node == self.config.node => {
                    if let Some(record) = self.records.get_mut(&address) {
                        record.moves.wish = None;
                    }
                }
                Wish::To(node) => {
                    if let Some(to) = self.peers.station(&node) {
                        let (hard, cause) = (false, Cause::Wanted);
                        self.step(address, Trigger::Give { to, hard, cause }, now);
                    }
                }
            }
        }
    }

    /// Hands a held address to its first successor; whether there is one.
    pub(super) fn give(&mut self, address: IpAddr, hard: bool, cause: Cause, now: Instant) -> bool {
        let Some(to) = self.successor(address) else {
            return false;
        };
        self.step(address, Trigger::Give { to, hard, cause }, now);
        true
    }

    /// The first in the order among the nodes heard now that have not let it
    /// pass.
    fn successor(&self, address: IpAddr) -> Option<MacAddr> {
        let record = self.records.get(&address)?;
        let tried = &record.moves.tried;
        let mut left = self
            .peers
            .candidates()
            .iter()
            .filter(|n| !tried.contains(*n));
        let mut best = left.next()?;
        for node in left {
            if rank::before(&record.assignment, address, node, best) {
                best = node;
            }
        }
        self.peers.station(best)
    }

    /// The peer that was asked did not take it.
    pub(super) fn give_on(&mut self, address: IpAddr, now: Instant) {
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        let Some((to, hard)) = record.machine.gives() else {
            return;
        };
        let cause = record.machine.cause().unwrap_or(Cause::Ineligible);
        if let Some(peer) = self.peers.get(to) {
            record.moves.tried.insert(peer.node.clone());
        }
        let wanted = cause == Cause::Wanted;
        if !hard && !wanted && self.give(address, hard, cause, now) {
            return;
        }
        if let Some(record) = self.records.get_mut(&address) {
            record.moves.tried.clear();
            record.moves.not_before = now + HOLD_DOWN;
        }
        if hard || self.draining {
            self.step(address, Trigger::Stop { cause }, now);
        } else {
            self.step(address, Trigger::Keep, now);
        }
    }

    /// This node came to hold an address.
    pub(super) fn moved_here(&mut self, address: IpAddr, cause: Cause, now: Instant) {
        if let Some(record) = self.records.get_mut(&address) {
            record.moves.tried.clear();
            if cause == Cause::HandedOver {
                record.moves.not_before = now + HOLD_DOWN;
            }
        }
    }

    /// A live owner wants this node to have an address.
    pub(super) fn handed(&mut self, mac: MacAddr, (address, epoch): Entry, now: Instant) {
        let Some(peer) = self.peers.get(mac) else {
            return;
        };
        let (node, deaf) = (peer.node.clone(), peer.deaf);
        self.peers.holds(mac, (address, epoch));
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        let machine = &mut record.machine;
        let may = record.assignment.eligibility == Eligibility::Eligible && !self.draining;
        let may = may && !machine.is_of_newer_object(epoch);
        let held = machine.owned().is_some_and(|mine| mine > epoch);
        if may && !deaf && epoch > machine.base() && (held || machine.is_current(epoch, &node)) {
            machine.learn(epoch, &node);
            self.step(address, Trigger::HandOver { mac }, now);
        }
    }

    /// This node is about to leave: everything goes to successors, as far as
    /// there are any.
    pub(super) fn drain(&mut self, now: Instant) {
        self.draining = true;
        let all: Vec<IpAddr> = self.records.keys().copied().collect();
        for address in all {
            let owned = |record: &super::Record| record.machine.owned().is_some();
            let held = self.records.get(&address).is_some_and(owned);
            let cause = Cause::Shutdown;
            if !held || self.hearing.deaf || !self.give(address, false, cause, now) {
                self.step(address, Trigger::Stop { cause }, now);
            }
        }
    }
}
