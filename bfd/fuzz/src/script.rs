//! A script of packets, changes and time for the sessions of one node, and
//! what must hold whatever it says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use bellrock_bfd::packet::{Control, Diagnostic};
use bellrock_bfd::{
    Datagram, Engine, Instant, Output, Path, Port, Role, SessionId, Settings, State, Timers,
};

const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
const SESSIONS: u64 = 3;

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn interval(&mut self) -> Option<Duration> {
        const ALL: [u64; 6] = [1, 10, 50, 300, 1000, 60_000];
        let index = usize::from(self.byte()?) % ALL.len();
        Some(Duration::from_millis(ALL[index]))
    }
}

fn peer(n: u64) -> IpAddr {
    let last = u8::try_from(n).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last + 1))
}

fn path(n: u64) -> Path {
    if n == 2 {
        Path::multi(peer(n), OURS, 250)
    } else {
        Path::single(peer(n))
    }
}

struct World {
    engine: Engine,
    now: Instant,
    started: Instant,
    /// Packets by session, and the fastest that it was ever told to send.
    sent: BTreeMap<SessionId, u64>,
    asked: u64,
}

impl World {
    /// Takes what is to be done, and checks it.
    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            if let Output::Send(id, packet) = output {
                let control = match Control::decode(&packet) {
                    Ok(decoded) => decoded.control,
                    Err(discard) => panic!("we sent what must be discarded: {discard:?}"),
                };
                assert!(!(control.poll && control.final_answer));
                assert!(!control.demand && !control.control_plane_independent);
                assert!(control.state == State::Up || control.desired_min_tx >= 1_000_000);
                *self.sent.entry(id).or_default() += 1;
            }
        }
        let due = self.engine.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "nothing is overdue");
    }

    fn tick(&mut self) {
        self.engine.timeout(self.now);
        self.drain();
    }

    /// A packet that is right but for what the script says.
    fn packet(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (head, flags, whose) = (script.byte()?, script.byte()?, script.byte()?);
        let n = u64::from(whose) % SESSIONS;
        let status = self.engine.status(self.now);
        let known = status.get(&SessionId::new(n));
        let your_discriminator = match head % 8 {
            0 => None,
            1 => NonZeroU32::new(u32::from(flags) + 1),
            _ => known.map(|status| status.discriminator),
        };
        let wish = script.interval()?;
        let limit = script.interval()?;
        let micros = |interval: Duration| u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        let control = Control {
            diagnostic: Diagnostic::None,
            state: State::ALL[usize::from(flags >> 6)],
            poll: flags & 1 != 0,
            final_answer: flags & 2 != 0,
            control_plane_independent: flags & 4 != 0,
            demand: flags & 8 != 0,
            multiplier: NonZeroU8::new(whose).unwrap_or(NonZeroU8::MIN),
            my_discriminator: NonZeroU32::new(u32::from(head / 8) + 1).unwrap_or(NonZeroU32::MIN),
            your_discriminator,
            desired_min_tx: micros(wish),
            required_min_rx: if flags & 16 != 0 { 0 } else { micros(limit) },
            required_min_echo_rx: 0,
        };
        self.datagram(n, &control.encode());
        Some(())
    }

    fn datagram(&mut self, n: u64, payload: &[u8]) {
        let datagram = Datagram {
            port: Port::of(path(n).hops),
            source: peer(n),
            destination: OURS,
            interface: 1,
            ttl: 255,
            payload,
        };
        self.asked += 1;
        let _ = self.engine.receive(&datagram, self.now);
        self.tick();
    }

    fn settings(script: &mut Script<'_>) -> Option<Settings> {
        let bits = script.byte()?;
        Some(Settings {
            timers: Timers {
                transmit: script.interval()?,
                receive: script.interval()?,
                multiplier: NonZeroU8::new(bits >> 2).unwrap_or(NonZeroU8::MIN),
            },
            role: if bits & 1 == 0 {
                Role::Active
            } else {
                Role::Passive
            },
            enabled: bits & 2 == 0,
        })
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let what = script.byte()?;
        let id = SessionId::new(u64::from(what >> 4) % SESSIONS);
        match what % 8 {
            0..=2 => self.packet(script)?,
            3 => {
                // Time, in jumps and then deadline by deadline.
                let end = self.now + script.interval()?;
                while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
                    self.now = self.now.max(at);
                    self.tick();
                }
                self.now = end;
            }
            4 => {
                self.now = self.now + script.interval()?;
                self.tick();
            }
            5 => {
                let settings = Self::settings(script)?;
                self.asked += 1;
                self.engine.change(id, settings, self.now);
                self.tick();
            }
            6 => {
                self.asked += 1;
                self.engine.remove(id, self.now);
                self.tick();
            }
            _ => {
                let n = u64::from(what >> 4) % SESSIONS;
                let settings = Self::settings(script)?;
                self.asked += 1;
                self.engine.add(id, path(n), None, settings, self.now);
                self.tick();
            }
        }
        Some(())
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut number = 0;
    let started = Instant::from_start(Duration::from_secs(1));
    let mut world = World {
        engine: Engine::new(move || {
            number += 1;
            number
        }),
        now: started,
        started,
        sent: BTreeMap::new(),
        asked: 0,
    };
    for n in 0..SESSIONS {
        world.engine.add(
            SessionId::new(n),
            path(n),
            None,
            Settings::default(),
            started,
        );
    }
    world.tick();
    let mut script = Script(data);
    while world.step(&mut script).is_some() {}
    // No session sends faster than 1 ms less jitter, but for at most two
    // packets for each thing that happened to it.
    let most = world.now.since(world.started).as_micros() / 750;
    for sent in world.sent.values() {
        let limit = most + u128::from(2 * world.asked) + 2;
        assert!(u128::from(*sent) <= limit, "{sent} packets of {limit}");
    }
}
