//! One address on one segment: the state table.
//!
//! A total function of (state, trigger); it does not know about frames, peers
//! or the queue, which [`super::Segment`] has. The module above draws the
//! table; the tests go through every cell. Each row of the table is a function:
//! what others say is in `claims`, the own time in `clock`, planned moves in
//! `giving`, what goes wrong in `trouble`.

mod claims;
mod clock;
mod giving;
mod trouble;
mod words;

use crate::MacAddr;
use crate::time::{Instant, Timers};
use crate::types::{Cause, State};

use clock::LATE;
pub(super) use words::{Action, Phase, Trigger};

/// Epochs of one object: more than an address can have owners. Those of an
/// object that is made a second later come after them.
pub(super) const EPOCHS: u64 = 1 << 20;

/// An address's ownership on one segment.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    phase: Phase,
    entered: Instant,
    /// Epochs of this object's life are above it.
    base: u64,
    /// The highest epoch heard, recorded or claimed; at least `base`.
    highest: u64,
    /// Who claimed with it; nobody, if it is `base`.
    claimant: String,
    /// This node's claim; counts while it owns, or means to go on owning.
    epoch: u64,
    /// The claim to go on with when the carrier returns.
    resume: bool,
    /// Why the current claim is made, or why the last ended.
    cause: Option<Cause>,
    foreign: Option<(MacAddr, Instant)>,
    defended: Option<Instant>,
    reasserted: Option<Instant>,
    blocked_told: bool,
}

impl Machine {
    pub(super) fn new(base: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Idle { retry: None },
            entered: now,
            base,
            highest: base,
            claimant: String::new(),
            epoch: 0,
            resume: false,
            cause: None,
            foreign: None,
            defended: None,
            reasserted: None,
            blocked_told: false,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Idle { .. } => State::Idle,
            Phase::Wait { .. } => State::Wait,
            Phase::Probe { .. } => State::Probe,
            Phase::Own { .. } => State::Own,
            Phase::Deaf => State::Deaf,
            Phase::Give { .. } => State::Give,
            Phase::Blocked { .. } => State::Blocked,
        }
    }

    pub(super) fn entered(&self) -> Instant {
        self.entered
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Whether `epoch` is of an object that was made after the one that this
    /// node was told of. Then it may not take the address: what it knows of the
    /// Service behind it may be of another one.
    pub(super) fn is_of_newer_object(&self, epoch: u64) -> bool {
        epoch / EPOCHS > self.base / EPOCHS
    }

    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause
    }

    pub(super) fn foreign(&self) -> Option<MacAddr> {
        self.foreign.map(|(mac, _)| mac)
    }

    /// The highest epoch known.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether nobody of ours is known to have had it.
    pub(super) fn is_first(&self) -> bool {
        self.highest == self.base
    }

    /// The epoch that it is owned with: this node answers.
    pub(super) fn owned(&self) -> Option<u64> {
        match self.phase {
            Phase::Own { .. } | Phase::Deaf | Phase::Give { .. } => Some(self.epoch),
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Blocked { .. } => None,
        }
    }

    /// Whom it is being handed over to, and whether this node must let go.
    pub(super) fn gives(&self) -> Option<(MacAddr, bool)> {
        match self.phase {
            Phase::Give { to, hard, .. } => Some((to, hard)),
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Own { .. }
            | Phase::Deaf
            | Phase::Blocked { .. } => None,
        }
    }

    /// The epoch that a peer's claim is compared with. A node that has none
    /// yields to any claim that [is current](Self::is_current).
    pub(super) fn claim(&self) -> Option<u64> {
        match self.phase {
            Phase::Own { .. }
            | Phase::Deaf
            | Phase::Give { .. }
            | Phase::Probe { keep: true, .. } => Some(self.epoch),
            Phase::Idle { .. }
            | Phase::Wait { .. }
            | Phase::Probe { .. }
            | Phase::Blocked { .. } => None,
        }
    }

    /// When [`Trigger::Due`] is to come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle { retry } => retry,
            Phase::Wait { until, .. } => Some(until),
            Phase::Probe { due, .. } | Phase::Own { due, .. } => due,
            Phase::Blocked { retry } => Some(retry),
            Phase::Deaf => None,
            Phase::Give { due, .. } => Some(due),
        }
    }

    /// Whether a claim is not below any that is known of: whoever makes a lower
    /// one has missed that the address moved on, and clients have not.
    pub(super) fn is_current(&self, epoch: u64, node: &str) -> bool {
        (epoch, node) >= (self.highest, self.claimant.as_str())
    }

    /// A claim was heard or read.
    pub(super) fn learn(&mut self, epoch: u64, node: &str) {
        if epoch > self.base && self.is_current(epoch, node) {
            self.highest = epoch;
            node.clone_into(&mut self.claimant);
        }
    }

    /// The claim of an earlier life of this node, `me`.
    pub(super) fn recall(&mut self, epoch: u64, me: &str) {
        self.learn(epoch, me);
        self.epoch = epoch;
    }

    /// The address's object is `base` old; a younger one than before voids all
    /// older claims, so a held address is claimed anew.
    pub(super) fn rebase(&mut self, base: u64, now: Instant) -> Vec<Action> {
        if base > self.base {
            self.base = base;
            if base > self.highest {
                self.highest = base;
                self.claimant.clear();
            }
        }
        self.raise(now)
    }

    /// Claims a held address anew, if there was a higher claim that no live
    /// peer stands for: clients may have followed it. A node that hears nobody
    /// cannot know who lives; it only follows the object.
    pub(super) fn raise(&mut self, now: Instant) -> Vec<Action> {
        let deaf = matches!(self.phase, Phase::Deaf) && self.epoch > self.base;
        if deaf || self.owned().is_none_or(|epoch| epoch >= self.highest) {
            return Vec::new();
        }
        self.epoch = self.highest.saturating_add(1);
        self.highest = self.epoch;
        self.claimant.clear();
        let mut actions = vec![Action::Claim];
        self.announce_anew(0, now, &mut actions);
        actions
    }

    /// One cell of the table.
    pub(super) fn step(&mut self, trigger: Trigger, now: Instant, timers: &Timers) -> Vec<Action> {
        let before = self.state();
        let mut actions = Vec::new();
        let out = &mut actions;
        match trigger {
            Trigger::Unowned { delay, cause } => self.unowned(delay, cause, now),
            Trigger::Due { hears } => self.due(hears, now, timers, out),
            Trigger::Transmitted => self.transmitted(now, timers),
            Trigger::Claim {
                higher: true, node, ..
            } => self.outdone(node, out),
            Trigger::Claim {
                higher: false, mac, ..
            } => self.contradict(mac, now, timers, out),
            Trigger::PeerReleased => self.announce_anew(0, now, out),
            Trigger::Healed => self.announce_anew(LATE, now, out),
            Trigger::PeerAnswer { mac } => self.peer_answers(mac, now, timers, out),
            Trigger::PeerProbe { outranks, mac } => {
                self.peer_probes(outranks, mac, now, timers, out);
            }
            Trigger::SilentAnswer { mac } => self.silent_answers(mac, now, timers, out),
            Trigger::Deaf => self.deaf(),
            Trigger::Hearing => self.hearing(out),
            Trigger::Give { to, hard, cause } => self.give(to, hard, cause, now, out),
            Trigger::Keep => self.keep(now, timers),
            Trigger::HandOver { mac } => self.take_over(mac, now, out),
            Trigger::Foreign { mac } => self.foreign_host(mac, now, out),
            Trigger::Doubt { cause } => self.doubt(cause, now, timers, out),
            Trigger::LinkDown => self.link_down(out),
            Trigger::Resume { cause } => self.resume(cause, out),
            Trigger::GoOn { epoch } => self.go_on(epoch, now, timers, out),
            Trigger::Stop { cause } => self.stop(cause, out),
        }
        if self.state() != before {
            self.entered = now;
        }
        actions
    }

    fn idle(&mut self, retry: Option<Instant>, actions: &mut Vec<Action>) {
        self.phase = Phase::Idle { retry };
        self.unblock(actions);
    }

    fn probe(&mut self, keep: bool, actions: &mut Vec<Action>) {
        self.resume = false;
        self.phase = Phase::Probe {
            sent: 0,
            due: None,
            keep,
            asked: false,
        };
        actions.push(Action::Transmit);
    }

    fn lose(&mut self, cause: Cause, to: Option<String>, actions: &mut Vec<Action>) {
        self.phase = Phase::Idle { retry: None };
        self.cause = Some(cause);
        actions.push(Action::Lost(cause, to));
        actions.push(Action::Release {
            epoch: self.epoch,
            removed: cause == Cause::Removed,
        });
    }

    fn unblock(&mut self, actions: &mut Vec<Action>) {
        if self.blocked_told {
            self.blocked_told = false;
            self.foreign = None;
            actions.push(Action::Unblocked);
        }
    }

    #[cfg(test)]
    fn in_phase(phase: Phase, epoch: u64) -> Self {
        let mut machine = Self::new(100, Instant(0));
        machine.blocked_told = matches!(phase, Phase::Blocked { .. });
        machine.phase = phase;
        machine.epoch = epoch;
        machine.highest = epoch.max(100);
        machine
    }
}

#[cfg(test)]
mod tests;
