//! The rows of what goes wrong: foreign hosts, doubts, cables, and the end.

use std::time::Duration;

use super::{Action, Machine, Phase};
use crate::MacAddr;
use crate::time::{Instant, Timers};
use crate::types::Cause;

/// How often a held address is defended against a foreign host (RFC 5227
/// DEFEND_INTERVAL), and how often such a host is reported.
const DEFEND_EVERY: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// When an address that a foreign host has is tried again: one that nobody of
/// ours had before, and one that clients may be using (RFC 5227
/// RATE_LIMIT_INTERVAL for the first).
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_TAKEOVER: Duration = Duration::from_secs(1);

impl Machine {
    /// A host that is none of ours has the address.
    pub(super) fn foreign_host(&mut self, mac: MacAddr, now: Instant, actions: &mut Vec<Action>) {
        let first = self.is_first();
        match &mut self.phase {
            Phase::Idle { .. } | Phase::Deaf | Phase::Give { .. } => {
                self.report(mac, now, actions);
            }
            Phase::Wait { .. } => {
                self.report(mac, now, actions);
                let retry = if first { RETRY_FIRST } else { RETRY_TAKEOVER };
                self.idle(Some(now + retry), actions);
            }
            Phase::Probe { .. } if first => {
                self.phase = Phase::Blocked {
                    retry: now + RETRY_FIRST,
                };
                self.block(mac, now, actions);
            }
            Phase::Probe { .. } => {
                self.report(mac, now, actions);
                let delay = RETRY_TAKEOVER;
                self.phase = Phase::Wait {
                    until: now + delay,
                    delay,
                };
            }
            Phase::Own { due, .. } => {
                if self.defended.is_none_or(|at| now.since(at) >= DEFEND_EVERY) {
                    self.defended = Some(now);
                    *due = None;
                    actions.push(Action::Transmit);
                }
                self.report(mac, now, actions);
            }
            Phase::Blocked { .. } => self.block(mac, now, actions),
        }
    }

    /// Is it still this node's?
    pub(super) fn doubt(
        &mut self,
        cause: Cause,
        now: Instant,
        timers: &Timers,
        actions: &mut Vec<Action>,
    ) {
        match self.phase {
            Phase::Idle { .. } | Phase::Blocked { .. } => {}
            Phase::Wait { .. } => self.idle(Some(now + timers.dead_after()), actions),
            Phase::Probe { keep, .. } => self.probe(keep, actions),
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } => {
                actions.push(Action::Lost(cause, None));
                self.cause = Some(cause);
                self.probe(true, actions);
            }
        }
    }

    /// The carrier went.
    pub(super) fn link_down(&mut self, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Idle { .. } | Phase::Wait { .. } | Phase::Blocked { .. } => {
                self.idle(None, actions);
            }
            Phase::Probe { keep, .. } => {
                self.resume = keep;
                self.idle(None, actions);
            }
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } => {
                self.lose(Cause::LinkChange, None, actions);
                self.resume = true;
            }
        }
    }

    /// This node held it when it stopped, or when the carrier went.
    pub(super) fn resume(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Idle { .. } => {
                if cause == Cause::Restart || self.resume {
                    self.cause = Some(cause);
                    self.probe(true, actions);
                }
            }
            Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Own { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// This node hears no other any more. It may be the one that is cut off:
    /// an announcement would draw clients to it that others serve.
    pub(super) fn deaf(&mut self) {
        match self.phase {
            Phase::Own { .. } => self.phase = Phase::Deaf,
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// Others are heard again: they may have claimed meanwhile. What was claimed
    /// while deaf goes on being answered for: who returns asks for it just now.
    pub(super) fn hearing(&mut self, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Deaf => {
                actions.push(Action::Lost(Cause::Deaf, None));
                self.cause = Some(Cause::Deaf);
                self.probe(true, actions);
            }
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Own { .. }
            | Phase::Give { .. }
            | Phase::Blocked { .. } => {}
        }
    }

    /// This node must not hold it.
    pub(super) fn stop(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Blocked { .. } => {
                self.resume = false;
                self.idle(None, actions);
            }
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } => {
                self.lose(cause, None, actions);
            }
        }
    }

    fn report(&mut self, mac: MacAddr, now: Instant, actions: &mut Vec<Action>) {
        if self
            .foreign
            .is_none_or(|(known, at)| known != mac || now.since(at) >= REPORT_EVERY)
        {
            self.foreign = Some((mac, now));
            actions.push(Action::ForeignClaim(mac));
        }
    }

    fn block(&mut self, mac: MacAddr, now: Instant, actions: &mut Vec<Action>) {
        if !self.blocked_told || self.foreign() != Some(mac) {
            self.blocked_told = true;
            actions.push(Action::Blocked(mac));
        }
        self.foreign = Some((mac, now));
    }
}
