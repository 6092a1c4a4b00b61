//! Two of our own speakers against each other, in memory: both connect, and
//! events come in any order.
#![allow(
    clippy::disallowed_methods,
    reason = "an instant to count from; no test waits for one"
)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::PeerAsn;
use crate::message::Notification;

fn config(n: u8) -> PeerConfig {
    PeerConfig::new(
        IpAddr::from([192, 0, 2, 3 - n]),
        64511 + u32::from(n),
        PeerAsn::External,
        [192, 0, 2, n].into(),
    )
}

/// A connection: who opened it, and messages on their way to each end.
#[derive(Debug, Default)]
struct Wire {
    open: [bool; 2],
    /// Reset: each end is told at its next step.
    cut: bool,
    queues: [VecDeque<Message>; 2],
}

/// Both speakers and the wires between them: wire `n` was opened by speaker
/// `n`.
struct World {
    now: Instant,
    ends: [Pair; 2],
    wires: [Wire; 2],
    connecting: [bool; 2],
}

fn slot(speaker: usize, wire: usize) -> Slot {
    if speaker == wire {
        Slot::Active
    } else {
        Slot::Passive
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            now: Instant::now(),
            ends: [Pair::new(&config(1), seed), Pair::new(&config(2), !seed)],
            wires: [Wire::default(), Wire::default()],
            connecting: [false; 2],
        };
        for speaker in 0..2 {
            world.ends[speaker].start(world.now);
            world.outputs(speaker);
        }
        world
    }

    fn outputs(&mut self, speaker: usize) {
        while let Some((at, output)) = self.ends[speaker].poll_output() {
            let wire = match at {
                Slot::Active => speaker,
                Slot::Passive => 1 - speaker,
            };
            match output {
                Output::Connect => self.connecting[speaker] = true,
                Output::Send(message) => {
                    if self.wires[wire].open[1 - speaker] && !self.wires[wire].cut {
                        self.wires[wire].queues[1 - speaker].push_back(message);
                    }
                }
                Output::Close => {
                    if at == Slot::Active {
                        self.connecting[speaker] = false;
                    }
                    self.wires[wire].open[speaker] = false;
                    self.wires[wire].queues[speaker].clear();
                }
                Output::Up(_) | Output::Down(_) | Output::Refresh(_) => {}
            }
        }
    }

    /// One thing that can happen, chosen by `choice`; whether anything did.
    fn step(&mut self, choice: usize) -> bool {
        let mut possible: Vec<(usize, usize, bool)> = Vec::new();
        for speaker in 0..2 {
            if self.connecting[speaker] {
                possible.push((speaker, speaker, true));
            }
            for wire in 0..2 {
                let ended = !self.wires[wire].open[1 - speaker] || self.wires[wire].cut;
                let has = !self.wires[wire].queues[speaker].is_empty();
                if self.wires[wire].open[speaker] && (has || ended) {
                    possible.push((speaker, wire, false));
                }
            }
        }
        if possible.is_empty() {
            return false;
        }
        let (speaker, wire, connects) = possible[choice % possible.len()];
        let local = IpAddr::from([192, 0, 2, 1]);
        if connects {
            self.connecting[speaker] = false;
            self.wires[wire] = Wire {
                open: [true, true],
                ..Wire::default()
            };
            if !self.ends[1 - speaker].accept(local, self.now) {
                self.wires[wire].open[1 - speaker] = false;
            }
            self.ends[speaker].handle(Slot::Active, Input::TcpConnected(local), self.now);
            self.outputs(speaker);
            self.outputs(1 - speaker);
        } else {
            let input = match self.wires[wire].queues[speaker].pop_front() {
                Some(message) => Input::Received(message),
                None => {
                    self.wires[wire].open[speaker] = false;
                    Input::TcpFailed(TcpFailure::Closed)
                }
            };
            self.ends[speaker].handle(slot(speaker, wire), input, self.now);
            self.outputs(speaker);
        }
        true
    }

    fn tick(&mut self, pause: Duration) {
        self.now += pause;
        for speaker in 0..2 {
            self.ends[speaker].tick(self.now);
            self.outputs(speaker);
        }
    }

    fn settle(&mut self) {
        for round in 0..400 {
            while self.step(round) {}
            if self.ends.iter().all(|end| end.up().is_some()) {
                return;
            }
            self.tick(Duration::from_secs(1));
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let ups: Vec<_> = self.ends.iter().map(Pair::up).collect();
        prop_assert!(ups.iter().all(Option::is_some), "{:?}", self.ends);
        prop_assert_eq!(ups[0], ups[1].map(Slot::other), "one connection");
        let open = self.wires.iter().filter(|wire| wire.open == [true; 2]);
        prop_assert_eq!(open.count(), 1, "and no other: {:?}", self.wires);
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_the_order_one_connection_stays_and_both_agree_which(
        choices in proptest::collection::vec(any::<usize>(), 0..60), seed: u64,
    ) {
        let mut world = World::new(seed);
        for choice in choices {
            world.step(choice);
        }
        world.settle();
        world.check()?;
    }

    #[test]
    fn after_any_loss_they_find_each_other_again(
        choices in proptest::collection::vec((any::<usize>(), 0..20_u8), 0..120), seed: u64,
    ) {
        let mut world = World::new(seed);
        for (choice, fault) in choices {
            match fault {
                0 | 1 => {
                    let wire = &mut world.wires[usize::from(fault)];
                    wire.cut = true;
                    wire.queues.iter_mut().for_each(VecDeque::clear);
                }
                2 => world.tick(Duration::from_secs(7)),
                _ => drop(world.step(choice)),
            }
        }
        world.settle();
        world.check()?;
    }
}

#[test]
fn the_connection_of_the_higher_identifier_stays() {
    let mut world = World::new(1);
    // Both connect before either has read an OPEN.
    for speaker in 0..2 {
        assert!(world.connecting[speaker]);
    }
    let local = IpAddr::from([192, 0, 2, 1]);
    for speaker in 0..2 {
        world.connecting[speaker] = false;
        world.wires[speaker].open = [true; 2];
        assert!(world.ends[1 - speaker].accept(local, world.now));
    }
    for speaker in 0..2 {
        let input = Input::TcpConnected(local);
        world.ends[speaker].handle(Slot::Active, input, world.now);
    }
    for speaker in 0..2 {
        world.outputs(speaker);
    }
    world.settle();
    world.check().unwrap();
    // 192.0.2.2 opened it.
    assert_eq!(world.ends[1].up(), Some(Slot::Active));
    assert_eq!(world.ends[0].up(), Some(Slot::Passive));
}

#[test]
fn an_established_session_stays_and_the_newcomer_is_told_why() {
    let mut world = World::new(1);
    world.settle();
    let Some(Slot::Active) = world.ends[0].up() else {
        // The other way round: nothing else to show.
        let now = world.now;
        assert!(!world.ends[0].accept(IpAddr::from([192, 0, 2, 1]), now));
        return;
    };
    let now = world.now;
    assert!(world.ends[0].accept(IpAddr::from([192, 0, 2, 1]), now));
    let open = Open::new(64513, 90, [192, 0, 2, 2].into());
    let input = Input::Received(Message::Open(open));
    world.ends[0].handle(Slot::Passive, input, now);
    let mut told = None;
    while let Some((slot, output)) = world.ends[0].poll_output() {
        if let Output::Send(Message::Notification(sent)) = output {
            told = Some((slot, sent));
        }
    }
    assert_eq!(told, Some((Slot::Passive, Notification::new(6, 7))));
    assert_eq!(world.ends[0].up(), Some(Slot::Active));
}

#[test]
fn a_peer_that_fails_on_its_own_connections_is_let_in_ever_more_rarely() {
    let now = Instant::now();
    let mut pair = Pair::new(&config(1), 1);
    pair.start(now);
    let local = IpAddr::from([192, 0, 2, 1]);
    let (mut at, mut accepted) = (now, 0);
    for _ in 0..100 {
        if pair.accept(local, at) {
            accepted += 1;
            let failed = Input::TcpFailed(TcpFailure::Reset);
            pair.handle(Slot::Passive, failed, at);
        }
        at += Duration::from_secs(1);
    }
    assert!((4..=9).contains(&accepted), "{accepted} in 100 s");
}
