//! The rows of the state's own time: in line, probing, claiming, announcing.

use std::time::Duration;

use super::{Action, Machine, Phase};
use crate::time::{Instant, Timers};
use crate::types::Cause;

/// Announcements after a claim, counted from it. Two close to it for a lost
/// frame, two beyond Linux's locktime (1 s), in which a neighbour entry that
/// changed may not change again.
pub(super) const ANNOUNCE_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1_100),
    Duration::from_millis(2_200),
];

/// The first of them that is beyond the locktime.
pub(super) const LATE: usize = 3;

/// When the next announcement is due, of an address held `since`.
pub(super) fn announce_at(
    since: Instant,
    announced: usize,
    now: Instant,
    timers: &Timers,
) -> Instant {
    match ANNOUNCE_AT.get(announced) {
        Some(at) => (since + *at).max(now),
        None => now + timers.announce_every,
    }
}

impl Machine {
    /// No live peer has it in its list, and this node may hold it. Told again
    /// in WAIT when nodes of a better rank fell silent: there are fewer to wait
    /// for.
    pub(super) fn unowned(&mut self, delay: Duration, cause: Cause, now: Instant) {
        match &mut self.phase {
            Phase::Idle { .. } => {
                self.cause = Some(cause);
                self.phase = Phase::Wait {
                    until: now + delay,
                    delay,
                };
            }
            Phase::Wait { until, .. } => *until = (*until).min(now + delay),
            Phase::Probe { .. }
            | Phase::Own { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// The time in the phase has come. An answer to the probes counts as silence
    /// only where this node would have heard it.
    pub(super) fn due(
        &mut self,
        hears: bool,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.phase {
            Phase::Idle { retry } => {
                *retry = None;
                actions.push(Action::Reconsider);
            }
            Phase::Wait { until, .. } if !hears => *until = now + timers.hello,
            Phase::Wait { .. } | Phase::Blocked { .. } => self.probe(false, actions),
            Phase::Probe {
                sent, due, keep, ..
            } => {
                if *sent < timers.probes {
                    *due = None;
                    actions.push(Action::Transmit);
                } else if hears {
                    let keep = *keep;
                    self.own(keep, now, actions);
                } else if *keep {
                    *due = Some(now + timers.hello);
                } else {
                    let delay = timers.hello;
                    self.phase = Phase::Wait {
                        until: now + delay,
                        delay,
                    };
                }
            }
            Phase::Deaf => {}
            Phase::Give { .. } => self.ask_again(now, actions),
            // It may be the one that is cut off: as in DEAF.
            Phase::Own { due, .. } if !hears => *due = Some(now + timers.hello),
            Phase::Own { due, .. } => {
                *due = None;
                actions.push(Action::Transmit);
            }
        }
    }

    /// The queued probe or announcement is out.
    pub(super) fn transmitted(&mut self, now: Instant, timers: &Timers) {
        match &mut self.phase {
            Phase::Probe { sent, due, .. } => {
                *sent = sent.saturating_add(1);
                *due = Some(now + timers.probe_interval);
            }
            Phase::Own {
                since,
                announced,
                due,
            } => {
                // One between two of them takes the place of none: it was for
                // another reason.
                if announce_at(*since, *announced, now, timers) <= now {
                    *announced = announced.saturating_add(1);
                }
                *due = Some(announce_at(*since, *announced, now, timers));
            }
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// The process before this one answered a moment ago: so does this one,
    /// unverified. Late announcements are made again, as it may have left some.
    pub(super) fn go_on(
        &mut self,
        epoch: u64,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match self.phase {
            Phase::Idle { .. } | Phase::Wait { .. } | Phase::Probe { .. } => {
                // The record may lack it.
                let recorded = epoch == self.epoch;
                self.epoch = epoch;
                self.cause = Some(Cause::Restart);
                if epoch > self.highest {
                    self.highest = epoch;
                    self.claimant.clear();
                }
                self.phase = Phase::Own {
                    since: now,
                    announced: LATE,
                    due: Some(announce_at(now, LATE, now, timers)),
                };
                if !recorded {
                    actions.push(Action::Owned {
                        cause: Cause::Restart,
                        from: String::new(),
                    });
                }
            }
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } | Phase::Blocked { .. } => {}
        }
    }

    pub(super) fn own(&mut self, keep: bool, now: Instant, actions: &mut Vec<Action>) {
        // A higher claim, for which nobody stood up, drew clients too.
        if !keep || self.epoch < self.highest {
            self.epoch = self.highest.saturating_add(1);
        }
        let mut from = String::new();
        if self.epoch > self.highest {
            self.highest = self.epoch;
            from = std::mem::take(&mut self.claimant);
        }
        self.phase = Phase::Own {
            since: now,
            announced: 0,
            due: None,
        };
        self.foreign = None;
        self.defended = None;
        self.reasserted = None;
        self.unblock(actions);
        let cause = self.cause.unwrap_or(Cause::FirstClaim);
        actions.push(Action::Owned { cause, from });
        actions.push(Action::Claim);
        actions.push(Action::Transmit);
    }
}
