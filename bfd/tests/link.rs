//! Two engines on a link that loses, delays and reorders, in virtual time.
#![allow(clippy::unwrap_used, reason = "tests fail loudly")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use bellrock_bfd::{
    Change, Datagram, DownReason, Engine, Instant, Output, Path, Port, Role, SessionId,
    SessionStatus, Settings, State, Timers,
};
use proptest::prelude::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Evenly from 0 to `most`.
    fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap();
        Duration::from_nanos(self.next() % (nanos + 1))
    }

    fn percent(&mut self) -> u64 {
        self.next() % 100
    }
}

#[derive(Debug, Clone, Copy)]
struct Link {
    /// Percent of the packets.
    loss: u64,
    /// Each packet takes a random time up to this.
    delay: Duration,
    /// Later packets may arrive first.
    reorder: bool,
}

struct World {
    ends: [Engine; 2],
    link: Link,
    /// This end hears nothing any more.
    deaf: Option<usize>,
    now: Instant,
    /// By time of arrival; the receiving end and the packet.
    air: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    /// The latest arrival at each end.
    last: [Instant; 2],
    count: u64,
    chance: Generator,
    events: Vec<(Instant, usize, Change)>,
}

fn name(end: usize) -> SessionId {
    SessionId::new(u64::try_from(end).unwrap())
}

impl World {
    fn new(settings: [Settings; 2], link: Link, seed: u64) -> Self {
        let engine = |salt: u64| {
            let mut chance = Generator(seed.wrapping_mul(2).wrapping_add(salt) | 1);
            Engine::new(move || chance.next())
        };
        let now = Instant::from_start(Duration::from_secs(1));
        let mut ends = [engine(0x1234_5678_0000), engine(0x8765_4321_0000)];
        for (n, (end, peer)) in ends.iter_mut().zip([B, A]).enumerate() {
            end.add(name(n), Path::single(peer), None, settings[n], now);
        }
        Self {
            ends,
            link,
            deaf: None,
            now,
            air: BTreeMap::new(),
            last: [now; 2],
            count: 0,
            chance: Generator(seed | 1),
            events: Vec::new(),
        }
    }

    fn flush(&mut self) {
        for end in 0..2 {
            while let Some(output) = self.ends[end].poll_output() {
                match output {
                    Output::Send(_, packet) => self.send(1 - end, packet.to_vec()),
                    Output::Event(event) => self.events.push((self.now, end, event.change)),
                    Output::Gone(_) => {}
                }
            }
        }
    }

    fn send(&mut self, to: usize, packet: Vec<u8>) {
        if self.chance.percent() < self.link.loss || self.deaf == Some(to) {
            return;
        }
        let mut at = self.now + self.chance.up_to(self.link.delay);
        if !self.link.reorder {
            at = at.max(self.last[to]);
            self.last[to] = at;
        }
        self.count += 1;
        self.air.insert((at, self.count), (to, packet));
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.flush();
        loop {
            let deadlines = self.ends.iter().filter_map(Engine::next_deadline);
            let arrival = self.air.keys().next().map(|(at, _)| *at);
            let Some(at) = deadlines.chain(arrival).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            // A packet that arrives as a timer runs out was in time.
            while let Some(entry) = self.air.first_entry()
                && entry.key().0 <= self.now
            {
                let (to, packet) = entry.remove();
                let (source, destination) = if to == 0 { (B, A) } else { (A, B) };
                let datagram = Datagram {
                    port: Port::SingleHop,
                    source,
                    destination,
                    interface: 1,
                    ttl: 255,
                    payload: &packet,
                };
                // A late packet of an older session is discarded.
                let _ = self.ends[to].receive(&datagram, self.now);
            }
            for engine in &mut self.ends {
                engine.timeout(self.now);
            }
            self.flush();
        }
        self.now = end;
    }

    fn status(&self, end: usize) -> SessionStatus {
        self.ends[end].status(self.now)[&name(end)].clone()
    }

    fn both_up(&self) -> bool {
        (0..2).all(|end| self.status(end).state == State::Up)
    }

    fn downs(&self) -> Vec<(Instant, usize, DownReason)> {
        let downs = self
            .events
            .iter()
            .filter_map(|(at, end, change)| match change {
                Change::Down(reason) => Some((*at, *end, *reason)),
                Change::Up | Change::PeerAdminDown | Change::Intervals(_) => None,
            });
        downs.collect()
    }

    fn change(&mut self, end: usize, settings: Settings) {
        self.ends[end].change(name(end), settings, self.now);
        self.flush();
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn settings() -> impl Strategy<Value = Settings> {
    (10..400_u64, 10..400_u64, 1..6_u8).prop_map(|(transmit, receive, multiplier)| Settings {
        timers: Timers {
            transmit: ms(transmit),
            receive: ms(receive),
            multiplier: NonZeroU8::new(multiplier).unwrap(),
        },
        ..Settings::default()
    })
}

/// With multiplier 1 a packet may be late by a tenth of an interval only; the
/// shortest here is 10 ms.
const TENTH: Duration = Duration::from_micros(900);

fn no_loss(delay: Duration, reorder: bool) -> Link {
    Link {
        loss: 0,
        delay,
        reorder,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn without_loss_both_come_up_within_seconds_and_never_flap(
        a in settings(), b in settings(), reorder in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut world = World::new([a, b], no_loss(TENTH, reorder), seed);
        world.run(ms(2500));
        prop_assert!(world.both_up(), "{:?}", world.status(0));
        // While both come up, a Down that is overtaken by the Init after it
        // takes the session down again, as the RFC has it.
        let settled = world.downs().len();
        prop_assert!(reorder || settled == 0);
        world.run(ms(60_000));
        prop_assert!(world.both_up());
        prop_assert_eq!(&world.downs()[settled..], []);
        // Each knows the other's name, and what both settled fits together.
        let (ours, theirs) = (world.status(0), world.status(1));
        prop_assert_eq!(ours.remote.discriminator, Some(theirs.discriminator));
        prop_assert_eq!(theirs.remote.discriminator, Some(ours.discriminator));
        prop_assert_eq!(ours.intervals.transmit, Some(a.timers.transmit.max(b.timers.receive)));
        prop_assert_eq!(
            theirs.intervals.detection,
            ours.intervals.transmit.map(|t| t * u32::from(a.timers.multiplier.get()))
        );
        prop_assert!(!ours.polling && !theirs.polling);
    }

    #[test]
    fn without_loss_no_change_of_timers_makes_it_flap(
        a in settings(), b in settings(), seed in any::<u64>(),
        changes in proptest::collection::vec((0..2_usize, settings(), 0..300_u64), 1..20),
    ) {
        let mut world = World::new([a, b], no_loss(TENTH, false), seed);
        world.run(ms(2500));
        prop_assert!(world.both_up());
        for (end, settings, pause) in changes {
            world.change(end, settings);
            world.run(ms(pause));
        }
        world.run(ms(10_000));
        prop_assert!(world.both_up());
        prop_assert_eq!(world.downs(), []);
        // All that was changed is in force at both ends.
        for end in 0..2 {
            let (ours, theirs) = (world.status(end), world.status(1 - end));
            let (us, peer) = (ours.settings.timers, theirs.settings.timers);
            let interval = us.transmit.max(peer.receive);
            prop_assert_eq!(ours.intervals.transmit, Some(interval));
            prop_assert_eq!(
                theirs.intervals.detection,
                Some(interval * u32::from(us.multiplier.get()))
            );
            prop_assert!(!ours.polling);
        }
    }

    #[test]
    fn once_loss_ends_both_agree(
        a in settings(), b in settings(), seed in any::<u64>(),
        loss in 0..100_u64, delay in 0..2000_u64, passive in any::<bool>(),
    ) {
        let mut b = b;
        if passive {
            b.role = Role::Passive;
        }
        let bad = Link { loss, delay: ms(delay), reorder: true };
        let mut world = World::new([a, b], bad, seed);
        world.run(ms(20_000));
        world.link = no_loss(TENTH, true);
        world.run(ms(20_000));
        prop_assert!(world.both_up(), "{:?} {:?}", world.status(0), world.status(1));
        let downs = world.downs().len();
        world.run(ms(20_000));
        prop_assert_eq!(world.downs().len(), downs);
    }

    #[test]
    fn a_link_that_goes_silent_is_noticed_within_the_detection_time_and_not_before(
        a in settings(), b in settings(), seed in any::<u64>(), age in 0..3000_u64,
    ) {
        let mut world = World::new([a, b], no_loss(TENTH, false), seed);
        world.run(ms(5000 + age));
        prop_assert!(world.both_up());
        let detection = [0, 1].map(|end| world.status(end).intervals.detection.unwrap());
        let cut = world.now;
        world.link.loss = 100;
        world.run(ms(5000));
        let downs = world.downs();
        prop_assert_eq!(downs.len(), 2);
        for (at, end, reason) in downs {
            prop_assert_eq!(reason, DownReason::DetectionTimeExpired);
            let after = at.since(cut);
            prop_assert!(after <= detection[end] + TENTH, "{:?}", after);
            // The last packet was sent an interval before the cut at most.
            let multiplier = [b, a][end].timers.multiplier.get();
            let interval = detection[end] / u32::from(multiplier);
            prop_assert!(after + interval >= detection[end], "{:?}", after);
        }
    }

    #[test]
    fn a_link_that_fails_in_one_direction_is_noticed_at_both_ends(
        a in settings(), b in settings(), seed in any::<u64>(),
    ) {
        let mut world = World::new([a, b], no_loss(TENTH, false), seed);
        world.run(ms(5000));
        prop_assert!(world.both_up());
        let detection = world.status(0).intervals.detection.unwrap();
        let cut = world.now;
        world.deaf = Some(0);
        world.run(detection + ms(2));
        let downs = world.downs();
        prop_assert_eq!(downs.len(), 2);
        prop_assert_eq!(downs[0].2, DownReason::DetectionTimeExpired);
        prop_assert!(downs[0].0.since(cut) <= detection + TENTH);
        prop_assert!(matches!(downs[1].2, DownReason::PeerDown(_)), "{:?}", downs[1].2);
        prop_assert!(downs[1].0.since(downs[0].0) <= ms(2), "told at once");
    }

    #[test]
    fn a_planned_stop_is_no_failure_for_the_peer(
        a in settings(), b in settings(), seed in any::<u64>(),
    ) {
        let mut world = World::new([a, b], no_loss(TENTH, false), seed);
        world.run(ms(5000));
        let now = world.now;
        world.ends[0].remove(name(0), now);
        world.run(ms(1000));
        let downs = world.downs();
        prop_assert_eq!(downs.len(), 1);
        prop_assert!(!downs[0].2.is_failure(), "{:?}", downs[0].2);
        prop_assert!(!world.ends[0].leaves(), "the goodbye was acknowledged");
        // It comes back.
        world.ends[0].add(name(0), Path::single(B), None, a, world.now);
        world.run(ms(2500));
        prop_assert!(world.both_up());
    }
}
