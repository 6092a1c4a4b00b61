//! The machine of one session (RFC 5880 section 6.8). Pure: it is told the
//! time and the packets, and what it wants done comes out of
//! [`Session::poll_output`].
//!
//! ```text
//!                              +--+
//!                              |  | Up, AdminDown, timer
//!                              |  v
//!                      Down  +------+  Init
//!               +------------|      |------------+
//!               |            | Down |            |
//!               |  +-------->|      |<--------+  |
//!               |  |         +------+         |  |
//!               |  | AdminDown,    AdminDown, |  |
//!               |  | timer        Down, timer |  |
//!               v  |                          |  v
//!             +------+                      +------+
//!        +----|      |                      |      |----+
//!    Down|    | Init |--------------------->|  Up  |    |Init, Up
//!        +--->|      | Init, Up             |      |<---+
//!             +------+                      +------+
//! ```
//!
//! What is written on an arrow is the peer's state in a packet, or the
//! Detection Time passing in silence. AdminDown is entered and left by
//! [`Settings::enabled`](crate::Settings) alone.
//!
//! Not here, and the peer is told so: Echo (Required Min Echo RX is 0),
//! authentication (A is never set, and packets that have it do not come this
//! far), Demand mode of our own (D is never set; a peer's is honoured). C is
//! never set: this code shares its fate with the control plane.

mod event;
mod poll;
#[cfg(test)]
mod tests;
mod timing;

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{Role, Settings};
use crate::packet::{Control, Diagnostic, Discriminator, State};
use crate::random::Random;
use crate::time::Instant;

pub use self::event::{Change, DownReason, Input, Intervals, Output, Remote};
use self::poll::Poll;
use self::timing::{Timing, micros};

/// The machine of one session.
#[derive(Debug)]
pub struct Session {
    /// bfd.LocalDiscr.
    discriminator: Discriminator,
    settings: Settings,
    /// bfd.SessionState.
    state: State,
    /// bfd.LocalDiag.
    diagnostic: Diagnostic,
    remote: Remote,
    /// When a packet came last.
    heard: Option<Instant>,
    poll: Poll,
    timing: Timing,
    /// When the next periodic packet is due.
    transmit: Option<Instant>,
    /// For which interval that was computed.
    paced: Option<Duration>,
    /// The last periodic packet, and any that left for a change of state.
    last_sent: Option<Instant>,
    /// What the peer was told last, without P and F.
    told: Option<Control>,
    /// What the owner was told last.
    intervals: Intervals,
    outputs: VecDeque<Output>,
    random: Random,
}

impl Session {
    /// In Down, or AdminDown if the settings say so. `seed` feeds the jitter.
    /// The settings' timers must be [valid](crate::Timers::validate).
    pub fn new(discriminator: Discriminator, settings: Settings, seed: u64, now: Instant) -> Self {
        let (state, diagnostic) = if settings.enabled {
            (State::Down, Diagnostic::None)
        } else {
            (State::AdminDown, Diagnostic::AdministrativelyDown)
        };
        let mut session = Self {
            discriminator,
            settings,
            state,
            diagnostic,
            remote: Remote::UNHEARD,
            heard: None,
            poll: Poll::Idle,
            timing: Timing::new(&settings.timers),
            transmit: None,
            paced: None,
            last_sent: None,
            told: None,
            intervals: Intervals::default(),
            outputs: VecDeque::new(),
            random: Random(seed),
        };
        session.settle(now);
        session
    }

    /// bfd.SessionState.
    pub fn state(&self) -> State {
        self.state
    }

    /// bfd.LocalDiag.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// What is known of the other end.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What both ends settled.
    pub fn intervals(&self) -> Intervals {
        Intervals {
            transmit: self.transmit_interval(),
            detection: self.detection_time(),
        }
    }

    /// A Poll Sequence runs.
    pub fn polls(&self) -> bool {
        self.poll.is_active()
    }

    /// How long the peer waits for us before it calls the session down.
    pub fn remote_detection_time(&self) -> Duration {
        let interval = self.timing.transmit_interval(&self.remote);
        interval * u32::from(self.settings.timers.multiplier.get())
    }

    /// When to call `handle` with [`Input::Timeout`] at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.transmit.into_iter().chain(self.detection()).min()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes one input at one time.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Received(control) => self.receive(&control, now),
            Input::Timeout => self.timeout(now),
            Input::Settings(settings) => self.configure(settings),
        }
        self.settle(now);
    }

    /// RFC 5880 section 6.8.6, from "Set bfd.RemoteDiscr" on.
    fn receive(&mut self, control: &Control, now: Instant) {
        let was_admin_down = self.remote.state == State::AdminDown;
        self.remote = Remote::of(control);
        self.heard = Some(now);
        if self.poll.heard(control.final_answer) {
            self.timing.acknowledged();
        }
        match (self.state, control.state) {
            (State::AdminDown, _) => return,
            (State::Down, State::AdminDown) => {
                if !was_admin_down {
                    self.tell(Change::PeerAdminDown);
                }
            }
            (State::Init | State::Up, State::AdminDown) => {
                let reason = DownReason::PeerAdminDown(control.diagnostic);
                self.go_down(Diagnostic::NeighborSignaledSessionDown, reason);
            }
            (State::Down, State::Down) => self.enter(State::Init),
            (State::Down | State::Init, State::Init) | (State::Init, State::Up) => {
                self.diagnostic = Diagnostic::None;
                self.enter(State::Up);
                self.intervals = self.intervals();
                self.tell(Change::Up);
            }
            (State::Up, State::Down) => {
                let reason = DownReason::PeerDown(control.diagnostic);
                self.go_down(Diagnostic::NeighborSignaledSessionDown, reason);
            }
            (State::Down, State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
        }
        if control.poll {
            // Without respect to the transmission timer or any other limit.
            let mut answer = self.contents();
            self.told = Some(answer);
            answer.final_answer = true;
            self.outputs.push_back(Output::Send(answer));
        }
    }

    fn timeout(&mut self, now: Instant) {
        if self.detection().is_some_and(|at| at <= now) {
            self.expire();
        }
        if self.transmit.is_some_and(|at| at <= now) {
            self.send(now);
        }
    }

    /// The Detection Time has passed in silence (RFC 5880 sections 6.8.1,
    /// 6.8.4 and 6.8.18).
    fn expire(&mut self) {
        self.remote = Remote::UNHEARD;
        self.heard = None;
        self.poll = Poll::Idle;
        match self.state {
            State::Init | State::Up => self.go_down(
                Diagnostic::ControlDetectionTimeExpired,
                DownReason::DetectionTimeExpired,
            ),
            State::AdminDown | State::Down => {}
        }
    }

    fn configure(&mut self, settings: Settings) {
        let multiplier = self.settings.timers.multiplier;
        self.settings = settings;
        match (self.state, settings.enabled) {
            (State::AdminDown, true) => self.enter(State::Down),
            (State::Down | State::Init | State::Up, false) => {
                let was = self.state;
                self.diagnostic = Diagnostic::AdministrativelyDown;
                self.enter(State::AdminDown);
                if was != State::Down {
                    self.tell(Change::Down(DownReason::AdminDown));
                }
            }
            (State::AdminDown, false) | (State::Down | State::Init | State::Up, true) => {
                self.renew_timing();
            }
        }
        if multiplier != settings.timers.multiplier {
            self.poll.request();
        }
    }

    fn go_down(&mut self, diagnostic: Diagnostic, reason: DownReason) {
        self.diagnostic = diagnostic;
        self.enter(State::Down);
        self.tell(Change::Down(reason));
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.renew_timing();
    }

    /// Brings what is advertised in line with state and settings.
    fn renew_timing(&mut self) {
        let up = self.state == State::Up;
        if self.timing.advertise(&self.settings.timers, up) {
            self.poll.request();
        }
    }

    /// After each input: says at once what the peer should know at once, sets
    /// the transmission timer, and tells the owner of new intervals.
    fn settle(&mut self, now: Instant) {
        let contents = self.contents();
        let differs = self.told.is_some_and(|told| told != contents);
        if differs && self.remote_demands() {
            // RFC 5880 section 6.6: nothing periodic would carry it.
            self.poll.request();
        }
        let urgent = self.told.is_some_and(|told| {
            (told.state, told.diagnostic, told.your_discriminator)
                != (
                    contents.state,
                    contents.diagnostic,
                    contents.your_discriminator,
                )
        });
        if urgent && self.may_send() && self.remote.required_min_rx > 0 {
            self.send(now);
        }
        self.pace(now);
        let intervals = self.intervals();
        if self.state == State::Up && intervals != self.intervals {
            self.intervals = intervals;
            self.tell(Change::Intervals(intervals));
        }
    }

    /// Sets the transmission timer if the interval is another than it was set
    /// for: a shorter one counts from the last packet (RFC 5880 section 6.8.3).
    fn pace(&mut self, now: Instant) {
        let interval = self.transmit_interval();
        if interval == self.paced && interval.is_some() == self.transmit.is_some() {
            return;
        }
        self.paced = interval;
        self.transmit = interval.map(|interval| {
            let next = self.last_sent.map(|at| at + self.jittered(interval));
            next.map_or(now, |at| at.max(now))
        });
    }

    fn send(&mut self, now: Instant) {
        let mut packet = self.contents();
        self.told = Some(packet);
        // A peer that is not heard would not answer.
        packet.poll = self.poll.is_active() && self.remote.discriminator.is_some();
        if packet.poll {
            self.poll.sent();
        }
        self.outputs.push_back(Output::Send(packet));
        self.last_sent = Some(now);
        self.paced = self.transmit_interval();
        self.transmit = self.paced.map(|interval| now + self.jittered(interval));
    }

    fn jittered(&mut self, interval: Duration) -> Duration {
        let single = self.settings.timers.multiplier.get() == 1;
        timing::jittered(interval, single, self.random.next())
    }

    /// The next packet, without P and F (RFC 5880 section 6.8.7).
    fn contents(&self) -> Control {
        Control {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: false,
            final_answer: false,
            control_plane_independent: false,
            demand: false,
            multiplier: self.settings.timers.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: micros(self.timing.desired_min_tx),
            required_min_rx: micros(self.timing.required_min_rx),
            required_min_echo_rx: 0,
        }
    }

    /// Not a passive end that waits for the peer.
    fn may_send(&self) -> bool {
        self.settings.role == Role::Active || self.remote.discriminator.is_some()
    }

    /// Demand mode is active on the remote system.
    fn remote_demands(&self) -> bool {
        self.remote.demand && self.state == State::Up && self.remote.state == State::Up
    }

    /// Between periodic packets; `None` while there are none.
    fn transmit_interval(&self) -> Option<Duration> {
        let quiet = self.remote.required_min_rx == 0
            || !self.may_send()
            || self.remote_demands() && !self.poll.is_active();
        (!quiet).then(|| self.timing.transmit_interval(&self.remote))
    }

    /// RFC 5880 section 6.8.4.
    fn detection_time(&self) -> Option<Duration> {
        let multiplier = u32::from(self.remote.multiplier);
        self.heard
            .map(|_| self.timing.receive_interval(&self.remote) * multiplier)
    }

    fn detection(&self) -> Option<Instant> {
        Some(self.heard? + self.detection_time()?)
    }

    fn tell(&mut self, change: Change) {
        self.outputs.push_back(Output::Changed(change));
    }
}
