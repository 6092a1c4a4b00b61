//! The two connections that we and the peer may open to each other at once,
//! and which of them stays: RFC 4271 section 6.8. Pure.
//!
//! ```text
//!   active    Fsm that connects, and tries again
//!   passive   Fsm that waits for a connection of the peer's
//!             an OPEN on one while the other has sent its own: collision
//!             one is up: the other yields until it goes down
//! ```
//!
//! The connection stays that the side with the higher BGP identifier opened;
//! with equal identifiers, that of the higher AS number (RFC 6286). One that
//! is established stays whatever the identifiers, unless the peer has told
//! that it restarts gracefully: then the new connection means that it did, and
//! takes the place of the old one (RFC 4724 section 5).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use crate::config::PeerConfig;
use crate::fsm::{Fsm, Input, Output, Session, State};
use crate::message::{Context, Message, Open};
use crate::reason::{DownReason, StopReason, TcpFailure};

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// We did.
    Active,
    /// The peer did.
    Passive,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Active, Self::Passive];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
        }
    }
}

/// The state machines of one peer.
#[derive(Debug)]
pub struct Pair {
    router_id: u32,
    asn: u32,
    active: Fsm,
    passive: Fsm,
    outputs: VecDeque<(Slot, Output)>,
    /// The connection whose session is up.
    up: Option<Slot>,
    /// The active side rests for the sake of the passive one.
    yielded: bool,
    started: bool,
}

impl Pair {
    /// Machines in Idle. See [`Fsm::new`].
    pub fn new(config: &PeerConfig, seed: u64) -> Self {
        Self {
            router_id: config.router_id.to_bits(),
            asn: config.local_asn,
            active: Fsm::new(config.clone(), seed),
            passive: Fsm::passive(config.clone(), seed.rotate_left(32)),
            outputs: VecDeque::new(),
            up: None,
            yielded: false,
            started: false,
        }
    }

    fn get(&self, slot: Slot) -> &Fsm {
        match slot {
            Slot::Active => &self.active,
            Slot::Passive => &self.passive,
        }
    }

    fn get_mut(&mut self, slot: Slot) -> &mut Fsm {
        match slot {
            Slot::Active => &mut self.active,
            Slot::Passive => &mut self.passive,
        }
    }

    /// The state of the connection that is further.
    pub fn state(&self) -> State {
        self.active.state().max(self.passive.state())
    }

    /// The connection whose session is up.
    pub fn up(&self) -> Option<Slot> {
        self.up
    }

    /// What was settled on the connection that is further.
    pub fn session(&self) -> Option<&Session> {
        match self.up {
            Some(slot) => self.get(slot).session(),
            None => self.active.session().or(self.passive.session()),
        }
    }

    /// How the next message on a connection is to be read and written.
    pub fn context(&self, slot: Slot) -> Context {
        self.get(slot).context()
    }

    /// When to call [`Pair::tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let passive = self.passive_lives().then(|| self.passive.next_deadline());
        let both = [self.active.next_deadline(), passive.flatten()];
        both.into_iter().flatten().min()
    }

    fn passive_lives(&self) -> bool {
        self.passive.state() != State::Idle
    }

    /// What is to be done next, and on which connection.
    pub fn poll_output(&mut self) -> Option<(Slot, Output)> {
        self.outputs.pop_front()
    }

    /// Begins to connect.
    pub fn start(&mut self, now: Instant) {
        self.started = true;
        self.feed(Slot::Active, Input::Start, now);
    }

    /// Ends both connections until the next start.
    pub fn stop(&mut self, reason: &StopReason, now: Instant) {
        self.started = false;
        self.yielded = false;
        if self.passive_lives() {
            self.feed(Slot::Passive, Input::Stop(reason.clone()), now);
        }
        self.feed(Slot::Active, Input::Stop(reason.clone()), now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.feed(Slot::Active, Input::Tick, now);
        if self.passive_lives() {
            self.feed(Slot::Passive, Input::Tick, now);
        }
    }

    /// The peer has connected to `local`. `false`: refuse it, because there is
    /// such a connection already, or the last one failed a moment ago.
    pub fn accept(&mut self, local: IpAddr, now: Instant) -> bool {
        if !self.started || self.passive.rests(now) {
            return false;
        }
        if self.passive.state() == State::Established && self.restarts_gracefully(Slot::Passive) {
            self.feed(Slot::Passive, Input::TcpFailed(TcpFailure::Closed), now);
        } else if self.passive_lives() {
            return false;
        }
        self.passive.accept(local, now);
        self.drain(Slot::Passive, now);
        true
    }

    fn restarts_gracefully(&self, slot: Slot) -> bool {
        let session = self.get(slot).session();
        session.is_some_and(|session| session.graceful_restart)
    }

    /// Takes one input of one connection.
    pub fn handle(&mut self, slot: Slot, input: Input, now: Instant) {
        if let Input::Received(Message::Open(open)) = &input
            && let Some(loser) = self.collision(slot, open)
        {
            let gone = match self.get(loser).state() {
                // It is dead already: the peer has started anew.
                State::Established => Input::TcpFailed(TcpFailure::Closed),
                _ => Input::Stop(StopReason::Collision),
            };
            self.yielded |= loser == Slot::Active;
            self.feed(loser, gone, now);
            if loser == slot {
                return;
            }
        }
        self.feed(slot, input, now);
    }

    /// Which connection goes, now that an OPEN has come on `slot`.
    fn collision(&self, slot: Slot, open: &Open) -> Option<Slot> {
        if self.get(slot).state() != State::OpenSent {
            return None;
        }
        let other = slot.other();
        match self.get(other).state() {
            State::Established if self.restarts_gracefully(other) => Some(other),
            State::Established => Some(slot),
            State::OpenSent | State::OpenConfirm => {
                let ours = (self.router_id, self.asn);
                let theirs = (open.router_id.to_bits(), open.asn());
                Some(if ours > theirs {
                    Slot::Passive
                } else {
                    Slot::Active
                })
            }
            State::Idle | State::Connect | State::Active => None,
        }
    }

    fn feed(&mut self, slot: Slot, input: Input, now: Instant) {
        self.get_mut(slot).handle(input, now);
        self.drain(slot, now);
    }

    /// Passes on what a machine wants, and keeps the other one in step.
    fn drain(&mut self, slot: Slot, now: Instant) {
        while let Some(output) = self.get_mut(slot).poll_output() {
            let (mut rise, mut fall) = (false, false);
            match &output {
                Output::Up(_) => {
                    self.up = Some(slot);
                    rise = true;
                }
                // The session is not down: the other connection carries it.
                Output::Down(DownReason::Stopped(StopReason::Collision)) => continue,
                Output::Down(_) => {
                    if self.up == Some(slot) {
                        self.up = None;
                    }
                    fall = slot == Slot::Passive;
                }
                Output::Connect | Output::Send(_) | Output::Close | Output::Refresh(_) => {}
            }
            self.outputs.push_back((slot, output));
            if rise {
                self.get_mut(slot.other()).was_up();
                self.rest(slot.other(), now);
            }
            if fall && std::mem::take(&mut self.yielded) && self.started {
                self.feed(Slot::Active, Input::Start, now);
            }
        }
    }

    /// The other connection's session is up.
    fn rest(&mut self, slot: Slot, now: Instant) {
        match slot {
            Slot::Active => {
                self.yielded = true;
                self.feed(slot, Input::Stop(StopReason::Collision), now);
            }
            Slot::Passive if self.passive_lives() => {
                self.feed(slot, Input::Stop(StopReason::Collision), now);
            }
            Slot::Passive => {}
        }
    }
}

#[cfg(test)]
mod tests;
