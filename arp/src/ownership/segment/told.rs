//! What this node is told: assignments, its link, to leave.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::super::machine::{EPOCHS, Machine, Trigger};
use super::filter::Filtered;
use super::giving::Moves;
use super::{Output, Record, Segment};
use crate::MacAddr;
use crate::time::Instant;
use crate::types::{Assignment, Cause, Eligibility};

impl Segment {
    pub(super) fn assign(&mut self, address: IpAddr, assignment: Assignment, now: Instant) {
        let base = assignment.created.saturating_mul(EPOCHS);
        let new = !self.records.contains_key(&address);
        if new {
            self.no_host(address);
        }
        let record = self.records.entry(address).or_insert_with(|| Record {
            machine: Machine::new(base, now),
            assignment: assignment.clone(),
            deadline: None,
            queued: false,
            moves: Moves::default(),
            filtered: Filtered::default(),
        });
        let mut mine = false;
        if let Some(recorded) = &assignment.recorded
            && recorded.epoch > base
        {
            mine = recorded.owner == self.config.node;
            record.machine.learn(recorded.epoch, &recorded.owner);
            if new && mine {
                record.machine.recall(recorded.epoch, &recorded.owner);
            }
        }
        let held = self.held.remove(&address);
        let goes_on = held.filter(|epoch| new && *epoch > base);
        if let Some((epoch, node)) = self.peers.holder(address, base) {
            record.machine.learn(epoch, node);
        }
        let actions = record.machine.rebase(base, now);
        let eligibility = assignment.eligibility;
        let owned = record.machine.owned().is_some();
        let old = (!new).then_some(&record.assignment);
        record.moves.told(old, &assignment);
        record.assignment = assignment;
        for action in actions {
            self.perform(address, action, now);
        }
        self.note_claim(address);
        let cause = Cause::Ineligible;
        if eligibility == Eligibility::Ineligible && owned && self.give(address, true, cause, now) {
            // It answers until the successor does.
        } else if eligibility == Eligibility::Yielding && owned {
            self.make_moves(now);
        } else if eligibility != Eligibility::Eligible {
            self.step(address, Trigger::Stop { cause }, now);
        } else if owned {
            self.make_moves(now);
        } else if let Some(epoch) = goes_on.filter(|_| self.up && !self.leaving && !self.draining) {
            self.step(address, Trigger::GoOn { epoch }, now);
        } else if new && mine && self.up && !self.leaving && !self.draining {
            self.step(
                address,
                Trigger::Resume {
                    cause: Cause::Restart,
                },
                now,
            );
        } else {
            self.reconsider(address, Duration::ZERO, Cause::OwnerReleased, now);
        }
    }

    pub(super) fn remove(&mut self, address: IpAddr, now: Instant) {
        self.step(
            address,
            Trigger::Stop {
                cause: Cause::Removed,
            },
            now,
        );
        if let Some(record) = self.records.remove(&address)
            && let Some(at) = record.deadline
        {
            self.deadlines.remove(&(at, address));
        }
    }

    pub(super) fn link(&mut self, up: bool, mac: MacAddr, local: BTreeSet<MacAddr>, now: Instant) {
        let moved = mac != self.config.mac;
        self.config.mac = mac;
        self.local = local;
        self.local.insert(mac);
        match (self.up, up) {
            (false, false) => {}
            (true, false) => {
                self.up = false;
                self.forget_filtered();
                self.hearing.deaf = false;
                self.for_all(now, |_| Trigger::LinkDown);
                self.queue.clear();
                for record in self.records.values_mut() {
                    record.queued = false;
                }
                self.outputs
                    .retain(|output| matches!(output, Output::Event(_)));
            }
            (false, true) => {
                self.up = true;
                self.round = now;
                self.peers.pardon(now);
                self.silent = None;
                self.listening = Some((0, now + self.config.timers.dead_after()));
                self.for_all(now, |assignment| match assignment.eligibility {
                    Eligibility::Eligible => Trigger::Resume {
                        cause: Cause::LinkChange,
                    },
                    Eligibility::Yielding | Eligibility::Ineligible => Trigger::Stop {
                        cause: Cause::Ineligible,
                    },
                });
            }
            (true, true) if moved => {
                self.doubt(Cause::LinkChange, now);
                // Before any probe: a hardware address that peers do not know
                // is a foreign host's.
                self.hello(false);
            }
            (true, true) => {}
        }
    }

    pub(super) fn shutdown(&mut self, now: Instant) {
        self.leaving = true;
        self.hello(true);
        self.for_all(now, |_| Trigger::Stop {
            cause: Cause::Shutdown,
        });
        self.queue.clear();
    }

    pub(super) fn for_all(&mut self, now: Instant, trigger: impl Fn(&Assignment) -> Trigger) {
        let all: Vec<(IpAddr, Trigger)> = self
            .records
            .iter()
            .map(|(address, record)| (*address, trigger(&record.assignment)))
            .collect();
        for (address, trigger) in all {
            self.step(address, trigger, now);
        }
    }
}
