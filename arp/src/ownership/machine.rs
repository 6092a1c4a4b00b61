//! One address on one segment: the state table.
//!
//! A total function of (state, trigger); it does not know about frames, peers
//! or the queue, which [`super::Segment`] has. The module above draws the
//! table; the tests below it go through every cell.

use std::time::Duration;

use crate::MacAddr;
use crate::time::{Instant, Timers};
use crate::types::{Cause, State};

/// Announcements after a claim, counted from it. Two close to it for a lost
/// frame, two beyond Linux's locktime (1 s), in which a neighbour entry that
/// changed may not change again.
const ANNOUNCE_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1_100),
    Duration::from_millis(2_200),
];
/// How often a held address is defended against a foreign host (RFC 5227
/// DEFEND_INTERVAL), and how often such a host is reported.
const DEFEND_EVERY: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// When an address that a foreign host has is tried again: one that nobody of
/// ours had before, and one that clients may be using (RFC 5227
/// RATE_LIMIT_INTERVAL for the first).
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_TAKEOVER: Duration = Duration::from_secs(1);
/// When an address is looked at again that a live peer answered for without
/// having it in its list.
const RETRY_UNLISTED: Duration = Duration::from_secs(1);

/// The state, with what only that state has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Silent. Looked at again at `retry`.
    Idle { retry: Option<Instant> },
    /// Silent; probes at `until` unless somebody claims.
    Wait { until: Instant, delay: Duration },
    /// Silent; `sent` probes are out; the next step is due at `due`, or a
    /// probe is queued. `keep`: goes on with its old epoch. `asked`: a silent
    /// owner was given the chance to speak.
    Probe {
        sent: u8,
        due: Option<Instant>,
        keep: bool,
        asked: bool,
    },
    /// Answers; `announced` announcements are out; the next is due at `due`,
    /// or queued.
    Own {
        since: Instant,
        announced: usize,
        due: Option<Instant>,
    },
    /// A foreign host has it; tried again at `retry`.
    Blocked { retry: Instant },
}

/// What happens to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// No live peer has it in its list, and this node may hold it.
    Unowned { delay: Duration, cause: Cause },
    /// The time in the phase has come.
    Due,
    /// The queued probe or announcement was sent.
    Transmitted,
    /// A live peer holds it, with a claim above or below this node's.
    Claim {
        higher: bool,
        node: String,
        mac: MacAddr,
    },
    /// A live peer's hardware address answered or announced.
    PeerAnswer { mac: MacAddr },
    /// A live peer probes.
    PeerProbe { outranks: bool, mac: MacAddr },
    /// A silent peer's hardware address answered or announced.
    SilentAnswer { mac: MacAddr },
    /// A host that is none of ours has the address.
    Foreign { mac: MacAddr },
    /// This node's loop stood still, or its hardware address changed.
    Doubt { cause: Cause },
    /// The carrier went: nothing is heard, nothing can be said.
    LinkDown,
    /// This node held it when it stopped, or when the carrier went.
    Resume { cause: Cause },
    /// This node must not hold it.
    Stop { cause: Cause },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Queue the probe or announcement that the state calls for.
    Transmit,
    /// Tell all peers of the claim.
    Claim,
    /// Tell one peer of the claim.
    ClaimTo(MacAddr),
    /// Tell all peers that the claim is given up.
    Release { epoch: u64, removed: bool },
    /// Ask a silent peer whether it lives.
    Ask(MacAddr),
    /// See whether it is unowned.
    Reconsider,
    /// This node answers from now on.
    Owned(Cause),
    /// This node answers no more.
    Lost(Cause, Option<String>),
    /// A foreign host keeps this node from claiming.
    Blocked(MacAddr),
    /// It does no more.
    Unblocked,
    /// A foreign host uses the address.
    ForeignClaim(MacAddr),
}

/// An address's ownership on one segment.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    phase: Phase,
    entered: Instant,
    /// Epochs of this object's life are above it.
    base: u64,
    /// The highest epoch heard, recorded or claimed; at least `base`.
    highest: u64,
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
            Phase::Blocked { .. } => State::Blocked,
        }
    }

    pub(super) fn entered(&self) -> Instant {
        self.entered
    }

    pub(super) fn base(&self) -> u64 {
        self.base
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

    /// The epoch that it is owned with.
    pub(super) fn owned(&self) -> Option<u64> {
        matches!(self.phase, Phase::Own { .. }).then_some(self.epoch)
    }

    /// The epoch that a peer's claim is compared with. A node that has none
    /// yields to any claim made for the same object.
    pub(super) fn claim(&self) -> Option<u64> {
        match self.phase {
            Phase::Own { .. } | Phase::Probe { keep: true, .. } => Some(self.epoch),
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
        }
    }

    /// An epoch was heard or read.
    pub(super) fn learn(&mut self, epoch: u64) {
        self.highest = self.highest.max(epoch);
    }

    /// The claim of an earlier life of this node.
    pub(super) fn recall(&mut self, epoch: u64) {
        self.learn(epoch);
        self.epoch = epoch;
    }

    /// The address's object is `base` old; a younger one than before voids all
    /// older claims, so a held address is claimed anew.
    pub(super) fn rebase(&mut self, base: u64) -> Vec<Action> {
        if base <= self.base {
            return Vec::new();
        }
        self.base = base;
        self.highest = self.highest.max(base);
        if self.owned().is_some_and(|epoch| epoch <= base) {
            self.epoch = self.highest.saturating_add(1);
            self.highest = self.epoch;
            return vec![Action::Claim];
        }
        Vec::new()
    }

    pub(super) fn step(&mut self, trigger: Trigger, now: Instant, timers: &Timers) -> Vec<Action> {
        use Phase::{Blocked, Idle, Own, Probe, Wait};
        let mut actions = Vec::new();
        let before = self.state();
        match (&mut self.phase, trigger) {
            // Nobody has it.
            (Idle { .. }, Trigger::Unowned { delay, cause }) => {
                self.cause = Some(cause);
                self.phase = Wait {
                    until: now + delay,
                    delay,
                };
            }
            (Wait { .. } | Probe { .. } | Own { .. } | Blocked { .. }, Trigger::Unowned { .. }) => {
            }

            // The state's own time.
            (Idle { retry }, Trigger::Due) => {
                *retry = None;
                actions.push(Action::Reconsider);
            }
            (Wait { .. } | Blocked { .. }, Trigger::Due) => self.probe(false, &mut actions),
            (
                Probe {
                    sent, due, keep, ..
                },
                Trigger::Due,
            ) => {
                if *sent < timers.probes {
                    *due = None;
                    actions.push(Action::Transmit);
                } else {
                    let keep = *keep;
                    self.own(keep, now, &mut actions);
                }
            }
            (Own { due, .. }, Trigger::Due) => {
                *due = None;
                actions.push(Action::Transmit);
            }

            // A queued frame is out.
            (Probe { sent, due, .. }, Trigger::Transmitted) => {
                *sent = sent.saturating_add(1);
                *due = Some(now + timers.probe_interval);
            }
            (
                Own {
                    since,
                    announced,
                    due,
                },
                Trigger::Transmitted,
            ) => {
                *announced = announced.saturating_add(1);
                *due = Some(match ANNOUNCE_AT.get(*announced) {
                    Some(at) => (*since + *at).max(now),
                    None => now + timers.announce_every,
                });
            }
            (Idle { .. } | Wait { .. } | Blocked { .. }, Trigger::Transmitted) => {}

            // A live peer's claim.
            (Idle { retry }, Trigger::Claim { higher, .. }) => {
                if higher {
                    *retry = None;
                    self.resume = false;
                }
            }
            (Wait { .. } | Probe { .. } | Blocked { .. }, Trigger::Claim { higher, .. }) => {
                if higher {
                    self.idle(None, &mut actions);
                }
            }
            (
                Own { .. },
                Trigger::Claim {
                    higher: true, node, ..
                },
            ) => {
                self.lose(Cause::HigherClaim, Some(node), &mut actions);
            }
            (
                Own { .. },
                Trigger::Claim {
                    higher: false, mac, ..
                },
            ) => {
                self.reassert(mac, now, timers, &mut actions);
            }

            // A live peer's answer or announcement: it has the address,
            // whatever its list says.
            (Idle { .. } | Blocked { .. }, Trigger::PeerAnswer { .. }) => {}
            (Wait { .. } | Probe { .. }, Trigger::PeerAnswer { .. }) => {
                self.idle(Some(now + RETRY_UNLISTED), &mut actions);
            }
            (Own { .. }, Trigger::PeerAnswer { mac }) => {
                self.reassert(mac, now, timers, &mut actions);
            }

            // A live peer means to claim it.
            (Idle { .. } | Blocked { .. }, Trigger::PeerProbe { .. }) => {}
            (Wait { until, delay }, Trigger::PeerProbe { outranks, .. }) => {
                if outranks {
                    *delay = (*delay).max(timers.stagger);
                    *until = now + *delay;
                }
            }
            (Probe { .. }, Trigger::PeerProbe { outranks, .. }) => {
                if outranks {
                    let delay = timers.stagger;
                    self.phase = Wait {
                        until: now + delay,
                        delay,
                    };
                }
            }
            (Own { .. }, Trigger::PeerProbe { mac, .. }) => actions.push(Action::ClaimTo(mac)),

            // The silent owner is heard after all.
            (Probe { due, asked, .. }, Trigger::SilentAnswer { mac }) => {
                if !*asked {
                    *asked = true;
                    if let Some(due) = due {
                        *due = (*due).max(now + timers.probe_interval);
                    }
                    actions.push(Action::Ask(mac));
                }
            }
            (
                Idle { .. } | Wait { .. } | Own { .. } | Blocked { .. },
                Trigger::SilentAnswer { .. },
            ) => {}

            // Somebody else's host.
            (Idle { .. }, Trigger::Foreign { mac }) => self.report(mac, now, &mut actions),
            (Wait { .. }, Trigger::Foreign { mac }) => {
                self.report(mac, now, &mut actions);
                let retry = if self.is_first() {
                    RETRY_FIRST
                } else {
                    RETRY_TAKEOVER
                };
                self.idle(Some(now + retry), &mut actions);
            }
            (Probe { .. }, Trigger::Foreign { mac }) => {
                if self.is_first() {
                    self.phase = Blocked {
                        retry: now + RETRY_FIRST,
                    };
                    self.block(mac, now, &mut actions);
                } else {
                    self.report(mac, now, &mut actions);
                    let delay = RETRY_TAKEOVER;
                    self.phase = Wait {
                        until: now + delay,
                        delay,
                    };
                }
            }
            (Own { due, .. }, Trigger::Foreign { mac }) => {
                if self.defended.is_none_or(|at| now.since(at) >= DEFEND_EVERY) {
                    self.defended = Some(now);
                    *due = None;
                    actions.push(Action::Transmit);
                }
                self.report(mac, now, &mut actions);
            }
            (Blocked { .. }, Trigger::Foreign { mac }) => self.block(mac, now, &mut actions),

            // Is it still this node's?
            (Idle { .. } | Blocked { .. }, Trigger::Doubt { .. }) => {}
            (Wait { .. }, Trigger::Doubt { .. }) => {
                self.idle(Some(now + timers.dead_after()), &mut actions);
            }
            (Probe { keep, .. }, Trigger::Doubt { .. }) => {
                let keep = *keep;
                self.probe(keep, &mut actions);
            }
            (Own { .. }, Trigger::Doubt { cause }) => {
                actions.push(Action::Lost(cause, None));
                self.cause = Some(cause);
                self.probe(true, &mut actions);
            }

            // The cable.
            (Idle { .. } | Wait { .. } | Blocked { .. }, Trigger::LinkDown) => {
                self.idle(None, &mut actions);
            }
            (Probe { keep, .. }, Trigger::LinkDown) => {
                self.resume = *keep;
                self.idle(None, &mut actions);
            }
            (Own { .. }, Trigger::LinkDown) => {
                self.lose(Cause::LinkChange, None, &mut actions);
                self.resume = true;
            }
            (Idle { .. }, Trigger::Resume { cause }) => {
                if cause == Cause::Restart || self.resume {
                    self.cause = Some(cause);
                    self.probe(true, &mut actions);
                }
            }
            (Wait { .. } | Probe { .. } | Own { .. } | Blocked { .. }, Trigger::Resume { .. }) => {}

            // Not for this node.
            (Idle { .. } | Wait { .. } | Probe { .. } | Blocked { .. }, Trigger::Stop { .. }) => {
                self.resume = false;
                self.idle(None, &mut actions);
            }
            (Own { .. }, Trigger::Stop { cause }) => {
                self.lose(cause, None, &mut actions);
            }
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

    fn own(&mut self, keep: bool, now: Instant, actions: &mut Vec<Action>) {
        if !keep {
            self.epoch = self.highest.saturating_add(1);
        }
        self.learn(self.epoch);
        self.phase = Phase::Own {
            since: now,
            announced: 0,
            due: None,
        };
        self.foreign = None;
        self.defended = None;
        self.reasserted = None;
        self.unblock(actions);
        actions.push(Action::Owned(self.cause.unwrap_or(Cause::FirstClaim)));
        actions.push(Action::Claim);
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

    /// A lower claim: tell that peer, and bring clients back that it took.
    fn reassert(&mut self, mac: MacAddr, now: Instant, timers: &Timers, actions: &mut Vec<Action>) {
        if self
            .reasserted
            .is_none_or(|at| now.since(at) >= timers.hello)
        {
            self.reasserted = Some(now);
            actions.push(Action::ClaimTo(mac));
            if let Phase::Own { due, .. } = &mut self.phase {
                *due = None;
                actions.push(Action::Transmit);
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
#[path = "machine_tests.rs"]
mod tests;
