//! What this node decides: whether to get in line for an address.

use std::net::IpAddr;
use std::time::Duration;

use super::super::machine::Trigger;
use super::Segment;
use crate::time::Instant;
use crate::types::{Cause, Eligibility, State};

impl Segment {
    pub(super) fn reconsider_all(
        &mut self,
        addresses: Vec<IpAddr>,
        delay: Duration,
        cause: Cause,
        now: Instant,
    ) {
        for address in addresses {
            self.reconsider(address, delay, cause, now);
        }
    }

    /// Whether nobody has `address` and this node may; then it gets in line.
    pub(super) fn reconsider(
        &mut self,
        address: IpAddr,
        extra: Duration,
        cause: Cause,
        now: Instant,
    ) {
        if !self.up || self.leaving || self.draining || self.listening.is_some() {
            return;
        }
        let Some(record) = self.records.get(&address) else {
            return;
        };
        let machine = &record.machine;
        if record.assignment.eligibility != Eligibility::Eligible
            || !matches!(machine.state(), State::Idle | State::Wait)
            || machine.is_of_newer_object(machine.highest())
            || self
                .peers
                .holder(address, machine.base())
                .is_some_and(|(epoch, node)| machine.is_current(epoch, node))
        {
            return;
        }
        let rank = self.rank(address, &record.assignment);
        let behind = u32::try_from(rank.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut delay = extra + self.config.timers.stagger.saturating_mul(behind);
        let mut cause = cause;
        if machine.is_first() {
            cause = Cause::FirstClaim;
            let elsewhere = record.assignment.desired.as_deref().is_some_and(|desired| {
                desired != self.config.node && self.peers.candidates().contains(desired)
            });
            if elsewhere {
                delay += self.config.timers.first_claim_grace;
            }
        }
        self.step(address, Trigger::Unowned { delay, cause }, now);
    }

    pub(super) fn step(&mut self, address: IpAddr, trigger: Trigger, now: Instant) {
        let Some(record) = self.records.get_mut(&address) else {
            return;
        };
        let claim = record.machine.claim();
        let actions = record.machine.step(trigger, now, &self.config.timers);
        let deadline = record.machine.deadline();
        if deadline != record.deadline {
            if let Some(at) = record.deadline {
                self.deadlines.remove(&(at, address));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, address));
            }
            record.deadline = deadline;
        }
        if record.machine.claim() != claim {
            self.note_claim(address);
        }
        for action in actions {
            self.perform(address, action, now);
        }
    }

    /// Brings what HELLO says in line with the address's state. An address
    /// that this node means to go on owning is in the list while it is
    /// probed: a short doubt moves nothing.
    pub(super) fn note_claim(&mut self, address: IpAddr) {
        match self
            .records
            .get(&address)
            .and_then(|record| record.machine.claim())
        {
            Some(epoch) => self.holdings.insert(address, epoch),
            None => {
                self.holdings.remove(address);
                self.claims.remove(&address);
            }
        }
    }
}
