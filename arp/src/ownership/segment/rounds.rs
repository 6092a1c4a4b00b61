//! The node's own rounds: HELLOs out, who fell silent, and whether this loop
//! itself stood still.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::super::machine::Trigger;
use super::{Output, Record, Segment};
use crate::time::Instant;
use crate::types::{Cause, State};

impl Segment {
    pub(super) fn check_late(&mut self, now: Instant) {
        if !self.up || self.leaving || now.since(self.round) <= self.config.timers.dead_after() / 2
        {
            return;
        }
        self.count("late");
        self.round = now;
        self.doubt(Cause::Frozen, now);
    }

    /// Nothing that was believed a moment ago is certain now.
    pub(super) fn doubt(&mut self, cause: Cause, now: Instant) {
        self.peers.pardon(now);
        self.silent = None;
        self.outputs
            .retain(|output| matches!(output, Output::Event(_)));
        self.for_all(now, |_| Trigger::Doubt { cause });
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        if !self.up || self.leaving {
            return;
        }
        if now >= self.round {
            // What is assigned later was not meant to go on.
            self.held.clear();
            self.hello(false);
            self.listen_for_hosts(now);
            self.heal_later(now);
            self.make_moves(now);
            self.peers.round();
            self.silent = self.peers.next_silent(&self.config.timers);
            if let Some((rounds, _)) = &mut self.listening {
                *rounds = rounds.saturating_add(1);
            }
            let next = self.round + self.config.timers.hello;
            self.round = if next > now {
                next
            } else {
                now + self.config.timers.hello
            };
        }
        if self.silent.is_some_and(|at| now >= at) {
            let silent = self.peers.silent(&self.config.timers, now);
            // Those who wait have fewer to wait for now.
            let waits = |(address, record): (&IpAddr, &Record)| {
                (record.machine.state() == State::Wait).then_some(*address)
            };
            let mut orphans: BTreeSet<IpAddr> = self.records.iter().filter_map(waits).collect();
            let fell = !silent.is_empty();
            // All of them first: ranks must not count the dead.
            for mac in silent {
                self.count("peer_silent");
                orphans.extend(self.peers.bury(mac));
            }
            self.silent = self.peers.next_silent(&self.config.timers);
            if fell && !self.peers.any_live() {
                self.went_deaf(now);
            }
            // Clients of what a rival held follow it still.
            for address in &orphans {
                self.step(*address, Trigger::PeerReleased, now);
            }
            let orphans = orphans.into_iter().collect();
            self.reconsider_all(orphans, Duration::ZERO, Cause::OwnerSilent, now);
        }
        if let Some((rounds, until)) = self.listening
            && rounds >= self.config.timers.misses
            && now >= until
        {
            self.listening = None;
            let all: Vec<IpAddr> = self.records.keys().copied().collect();
            self.reconsider_all(all, Duration::ZERO, Cause::OwnerSilent, now);
        }
        while let Some((at, address)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(record) = self.records.get_mut(&address) {
                record.deadline = None;
            }
            let hears = self.hears(now);
            self.step(address, Trigger::Due { hears }, now);
        }
        self.tell_peers(now);
    }
}
