//! The machine against the RFC's text, packet by packet.

mod demand;
mod table;
mod timers;

use std::num::{NonZeroU8, NonZeroU32};

use super::*;
use crate::config::Timers;

const OURS: u32 = 0x1111;
const THEIRS: u32 = 0x2222;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn settings(transmit: u64, receive: u64, multiplier: u8) -> Settings {
    Settings {
        timers: Timers {
            transmit: ms(transmit),
            receive: ms(receive),
            multiplier: NonZeroU8::new(multiplier).unwrap(),
        },
        ..Settings::default()
    }
}

/// The peer's packet: 50 ms both ways, three times, once it is up.
fn packet(state: State) -> Control {
    let interval = if state == State::Up {
        50_000
    } else {
        1_000_000
    };
    Control {
        diagnostic: Diagnostic::None,
        state,
        poll: false,
        final_answer: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(THEIRS).unwrap(),
        your_discriminator: NonZeroU32::new(OURS),
        desired_min_tx: interval,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

/// A machine, and the time.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Instant::from_start(ms(1_000_000));
        let discriminator = NonZeroU32::new(OURS).unwrap();
        Self {
            session: Session::new(discriminator, settings, 7, now),
            now,
        }
    }

    /// In a state, with nothing left to do, no Poll Sequence, and its timers
    /// those of the settings.
    fn in_state(state: State, settings: Settings) -> Self {
        let mut bench = Self::new(settings);
        bench.run(Duration::ZERO);
        match state {
            State::AdminDown => {
                bench.configure(Settings {
                    enabled: false,
                    ..settings
                });
            }
            State::Down => {}
            State::Init => drop(bench.receive(packet(State::Down))),
            State::Up => {
                bench.receive(packet(State::Init));
                bench.acknowledge();
            }
        }
        assert_eq!(bench.session.state(), state);
        bench
    }

    /// The peer answers polls, if there are any.
    fn acknowledge(&mut self) {
        let mut round = packet(State::Up);
        while self.session.polls() {
            self.run(ms(60));
            round.final_answer = true;
            self.receive(round);
            round.final_answer = false;
            self.receive(round);
        }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.session.handle(input, self.now);
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    fn receive(&mut self, control: Control) -> Vec<Output> {
        self.input(Input::Received(control))
    }

    fn configure(&mut self, settings: Settings) -> Vec<Output> {
        self.input(Input::Settings(settings))
    }

    /// Lets time pass, deadline by deadline; what came out, and when.
    fn run(&mut self, duration: Duration) -> Vec<(Instant, Output)> {
        let end = self.now + duration;
        let mut all = Vec::new();
        while let Some(at) = self.session.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let now = self.now;
            all.extend(self.input(Input::Timeout).into_iter().map(|o| (now, o)));
        }
        self.now = end;
        all
    }

    /// Lets time pass while the peer says the same thing every 20 ms.
    fn run_with(&mut self, duration: Duration, heard: Control) -> Vec<(Instant, Output)> {
        let end = self.now + duration;
        let mut all = Vec::new();
        while self.now < end {
            let now = self.now;
            all.extend(self.receive(heard).into_iter().map(|o| (now, o)));
            all.extend(self.run(ms(20)));
        }
        all
    }
}

fn sent(outputs: &[Output]) -> Vec<Control> {
    let controls = outputs.iter().filter_map(|output| match output {
        Output::Send(control) => Some(*control),
        Output::Changed(_) => None,
    });
    controls.collect()
}

fn told(outputs: &[Output]) -> Vec<Change> {
    let changes = outputs.iter().filter_map(|output| match output {
        Output::Send(_) => None,
        Output::Changed(change) => Some(*change),
    });
    changes.collect()
}

fn untimed(outputs: Vec<(Instant, Output)>) -> Vec<Output> {
    outputs.into_iter().map(|(_, output)| output).collect()
}

/// Times between packets.
fn gaps(outputs: &[(Instant, Output)]) -> Vec<Duration> {
    let times: Vec<Instant> = outputs
        .iter()
        .filter(|(_, output)| matches!(output, Output::Send(_)))
        .map(|(at, _)| *at)
        .collect();
    times
        .windows(2)
        .map(|pair| pair[1].since(pair[0]))
        .collect()
}
