//! The rows of planned moves. Both nodes answer and both forward while the
//! address is handed over: clients notice nothing.

use std::time::Duration;

use super::clock::{ANNOUNCE_AT, announce_at};
use super::{Action, Machine, Phase};
use crate::MacAddr;
use crate::time::{Instant, Timers};
use crate::types::Cause;

/// When a hand-over is repeated for the first time.
const FIRST: Duration = Duration::from_millis(20);
/// How long a successor may take, before the next is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where this node can serve nobody: a release is faster then.
const HASTE: Duration = Duration::from_millis(60);

impl Machine {
    /// A live peer is to have it.
    pub(super) fn give(
        &mut self,
        to: MacAddr,
        hard: bool,
        cause: Cause,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (since, announced) = match self.phase {
            Phase::Own {
                since, announced, ..
            }
            | Phase::Give {
                since, announced, ..
            } => (since, announced),
            Phase::Deaf => (now, ANNOUNCE_AT.len()),
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Blocked { .. } => return,
        };
        self.cause = Some(cause);
        self.phase = Phase::Give {
            to,
            due: now + FIRST,
            every: FIRST,
            until: now + if hard { HASTE } else { PATIENCE },
            hard,
            since,
            announced,
        };
        actions.push(Action::HandOver(to));
    }

    /// It was asked, and has not claimed yet.
    pub(super) fn ask_again(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Phase::Give {
            to,
            due,
            every,
            until,
            ..
        } = &mut self.phase
        {
            if now >= *until {
                actions.push(Action::GiveOn);
            } else {
                *every = every.saturating_mul(2);
                *due = (now + *every).min(*until);
                actions.push(Action::HandOver(*to));
            }
        }
    }

    /// Nobody takes it, and this node may keep it. It goes on announcing where
    /// it stopped: some client may need what is left.
    pub(super) fn keep(&mut self, now: Instant, timers: &Timers) {
        match self.phase {
            Phase::Give {
                since, announced, ..
            } => {
                self.phase = Phase::Own {
                    since,
                    announced,
                    due: Some(announce_at(since, announced, now, timers)),
                };
            }
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Own { .. }
            | Phase::Deaf
            | Phase::Blocked { .. } => {}
        }
    }

    /// The live owner hands it over: nobody needs to be asked.
    pub(super) fn take_over(&mut self, mac: MacAddr, now: Instant, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Idle { .. } | Phase::Wait { .. } | Phase::Probe { .. } => {
                self.cause = Some(Cause::HandedOver);
                self.own(false, now, actions);
            }
            // It has not heard of the claim, or claimed above it meanwhile.
            Phase::Own { .. } | Phase::Deaf => {
                if self.highest >= self.epoch && !self.claimant.is_empty() {
                    self.epoch = self.highest.saturating_add(1);
                    self.highest = self.epoch;
                    self.claimant.clear();
                    actions.push(Action::Claim);
                    self.announce_anew(0, now, actions);
                }
                actions.push(Action::ClaimTo(mac));
            }
            Phase::Give { .. } | Phase::Blocked { .. } => {}
        }
    }
}
