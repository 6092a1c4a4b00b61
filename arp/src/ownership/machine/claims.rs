//! The rows of what peers say.

use std::time::Duration;

use super::clock::LATE;
use super::{Action, Machine, Phase};
use crate::MacAddr;
use crate::time::{Instant, Timers};
use crate::types::Cause;

/// When an address is looked at again that a live peer answered for without
/// having it in its list.
const RETRY_UNLISTED: Duration = Duration::from_secs(1);

impl Machine {
    /// A live peer's claim is above this node's, or above all that this node
    /// knows of.
    pub(super) fn outdone(&mut self, node: String, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Idle { retry } => {
                *retry = None;
                self.resume = false;
            }
            Phase::Wait { .. } | Phase::Probe { .. } | Phase::Blocked { .. } => {
                self.idle(None, actions);
            }
            Phase::Own { .. } | Phase::Deaf => {
                self.lose(Cause::HigherClaim, Some(node), actions);
            }
            Phase::Give { .. } => self.lose(Cause::HandedOver, Some(node), actions),
        }
    }

    /// A live peer's claim is lower. Who is in line stays there: clients have
    /// heard of a later owner, and only a new claim brings them back.
    pub(super) fn contradict(
        &mut self,
        mac: MacAddr,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match self.phase {
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Blocked { .. } => {}
            Phase::Own { .. } => self.reassert(mac, now, timers, actions),
            Phase::Deaf => self.hearing(actions),
            Phase::Give { to, .. } => actions.push(Action::HandOver(to)),
        }
    }

    /// Clients may have missed where it is, or follow somebody else: announces
    /// anew, from the announcement of number `from` on if that was out already.
    pub(super) fn announce_anew(&mut self, from: usize, now: Instant, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Own {
                since,
                announced,
                due,
            } => {
                (*since, *announced, *due) = (now, from.min(*announced), None);
                actions.push(Action::Transmit);
            }
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// A live peer answers or announces: it has the address, whatever its list
    /// says.
    pub(super) fn peer_answers(
        &mut self,
        mac: MacAddr,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match self.phase {
            Phase::Idle { .. } | Phase::Give { .. } | Phase::Blocked { .. } => {}
            Phase::Wait { .. } | Phase::Probe { .. } => {
                self.idle(Some(now + RETRY_UNLISTED), actions);
            }
            Phase::Deaf => self.hearing(actions),
            Phase::Own { .. } => self.reassert(mac, now, timers, actions),
        }
    }

    /// A live peer means to claim it.
    pub(super) fn peer_probes(
        &mut self,
        outranks: bool,
        mac: MacAddr,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.phase {
            Phase::Idle { .. } | Phase::Blocked { .. } => {}
            Phase::Wait { until, delay } => {
                if outranks {
                    *delay = (*delay).max(timers.stagger);
                    *until = now + *delay;
                }
            }
            Phase::Probe { .. } => {
                if outranks {
                    let delay = timers.stagger;
                    self.phase = Phase::Wait {
                        until: now + delay,
                        delay,
                    };
                }
            }
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } => {
                actions.push(Action::ClaimTo(mac));
            }
        }
    }

    /// The silent owner is heard after all.
    pub(super) fn silent_answers(
        &mut self,
        mac: MacAddr,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.phase {
            Phase::Probe { due, asked, .. } => {
                if !*asked {
                    *asked = true;
                    if let Some(due) = due {
                        *due = (*due).max(now + timers.probe_interval);
                    }
                    actions.push(Action::Ask(mac));
                }
            }
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Own { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// A lower claim: tell that peer, and bring clients back that it took.
    fn reassert(&mut self, mac: MacAddr, now: Instant, timers: &Timers, actions: &mut Vec<Action>) {
        if self
            .reasserted
            .is_none_or(|at| now.since(at) >= timers.hello)
        {
            self.reasserted = Some(now);
            actions.push(Action::ClaimTo(mac));
            self.announce_anew(LATE, now, actions);
        }
    }
}
