//! A script of connections, messages, routes and time for one peer, carried
//! out as the driver does, and what must hold whatever it says.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use bellrock_bgp::fsm::{Input, Output};
use bellrock_bgp::message::{Decoder, Message, Open};
use bellrock_bgp::pair::{Pair, Slot};
use bellrock_bgp::rib::{AdjRibOut, RibSession};
use bellrock_bgp::{Attributes, PeerAsn, PeerConfig, Restart, State, StopReason, TcpFailure};
use ipnet::{IpNet, Ipv4Net};

const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PEER_ASN: u32 = 64_513;

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn slot(&mut self) -> Option<Slot> {
        Some(if self.byte()? & 1 == 0 {
            Slot::Active
        } else {
            Slot::Passive
        })
    }

    fn bytes(&mut self, count: u8) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(self.0.len().min(usize::from(count)));
        self.0 = rest;
        taken
    }
}

/// How far a connection is, as the driver sees it.
#[derive(Debug, Default)]
enum Link {
    #[default]
    None,
    Connecting,
    Open(Decoder),
}

struct World {
    config: PeerConfig,
    pair: Pair,
    rib: AdjRibOut,
    active: Link,
    passive: Link,
    started: bool,
    now: Instant,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "a moment to begin with")]
    fn new(config: PeerConfig) -> Self {
        let now = Instant::now();
        let mut pair = Pair::new(&config, 7);
        pair.start(now);
        Self {
            pair,
            config,
            rib: AdjRibOut::default(),
            active: Link::None,
            passive: Link::None,
            started: true,
            now,
        }
    }

    fn link(&mut self, slot: Slot) -> &mut Link {
        match slot {
            Slot::Active => &mut self.active,
            Slot::Passive => &mut self.passive,
        }
    }

    /// Does what the machines want, and looks at them.
    fn act(&mut self, mut accepted: bool) {
        while let Some((slot, output)) = self.pair.poll_output() {
            match output {
                Output::Connect => {
                    assert_eq!(slot, Slot::Active);
                    assert!(self.started, "nobody wants a session");
                    self.active = Link::Connecting;
                }
                Output::Send(message) => {
                    if slot == Slot::Passive && accepted && matches!(message, Message::Open(_)) {
                        accepted = false;
                        self.passive = Link::Open(Decoder::default());
                    }
                    self.send(slot, &message);
                }
                Output::Close => *self.link(slot) = Link::None,
                Output::Up(session) => {
                    assert_eq!(self.pair.up(), Some(slot));
                    assert_eq!(session.peer_asn, PEER_ASN);
                    self.rib.open(RibSession {
                        local: session.local,
                        peer: PEER,
                        local_asn: self.config.local_asn,
                        families: session.families,
                        context: session.context,
                        enhanced_refresh: session.enhanced_refresh,
                        next_hop_v4: None,
                        next_hop_v6: None,
                        role: self.config.role,
                    });
                }
                Output::Down(reason) => {
                    assert!(!reason.to_string().is_empty());
                    if self.pair.up().is_none() {
                        self.rib.close();
                    }
                }
                Output::Refresh(family) => self.rib.refresh(family),
            }
        }
        assert_eq!(
            self.pair.up().is_some(),
            self.pair.state() == State::Established
        );
        if let Some(slot) = self.pair.up() {
            while let Some(message) = self.rib.next_message() {
                self.send(slot, &message);
            }
            assert_eq!(self.rib.pending(), 0);
            let refused: usize = self.rib.refused().values().sum();
            assert_eq!(self.rib.sent() + refused, self.rib.wanted());
        }
    }

    fn send(&mut self, slot: Slot, message: &Message) {
        let context = self.pair.context(slot);
        assert!(
            matches!(self.link(slot), Link::Open(_)),
            "{message:?} without a connection"
        );
        let mut octets = Vec::new();
        assert_eq!(message.encode(context, &mut octets), Ok(()));
    }

    fn input(&mut self, slot: Slot, input: Input) {
        self.pair.handle(slot, input, self.now);
        self.act(false);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.pair.tick(self.now);
        self.act(false);
        let due = self.pair.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "nothing is overdue");
    }

    /// The peer's octets, as they come.
    fn receive(&mut self, slot: Slot, octets: &[u8]) {
        if let Link::Open(decoder) = self.link(slot) {
            decoder.push(octets);
        }
        loop {
            let context = self.pair.context(slot);
            let Link::Open(decoder) = self.link(slot) else {
                return;
            };
            match decoder.next(context) {
                None => return,
                Some(Ok(message)) => self.input(slot, Input::Received(message)),
                Some(Err(notification)) => self.input(slot, Input::Malformed(notification)),
            }
        }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        match script.byte()? % 12 {
            0 => {
                const TIMES: [u64; 6] = [1, 500, 5_000, 30_000, 90_000, 300_000];
                let index = usize::from(script.byte()?) % TIMES.len();
                self.pass(Duration::from_millis(TIMES[index]));
            }
            1 => {
                let taken = self.pair.accept(OURS, self.now);
                if taken {
                    // What a replaced connection still had to say is said.
                    self.act(true);
                }
            }
            2 => {
                if matches!(self.active, Link::Connecting) {
                    self.active = Link::Open(Decoder::default());
                    self.input(Slot::Active, Input::TcpConnected(OURS));
                }
            }
            3 => {
                let slot = script.slot()?;
                if !matches!(self.link(slot), Link::None) {
                    *self.link(slot) = Link::None;
                    self.input(slot, Input::TcpFailed(TcpFailure::Reset));
                }
            }
            4 => {
                // A header that fits, and a body of the script's.
                let slot = script.slot()?;
                let kind = script.byte()? % 6;
                let count = script.byte()?;
                let body = script.bytes(count);
                let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
                let mut octets = vec![0xff; 16];
                octets.extend(length.to_be_bytes());
                octets.push(kind);
                octets.extend(body);
                self.receive(slot, &octets);
            }
            5 => {
                let slot = script.slot()?;
                let count = script.byte()?;
                let octets = script.bytes(count);
                self.receive(slot, octets);
            }
            6 => self.open(script)?,
            7 => {
                let slot = script.slot()?;
                self.message(slot, &Message::Keepalive);
            }
            8 => {
                let route = script.byte()?;
                let prefix: IpNet =
                    Ipv4Net::new_assert([203, 0, 113, route >> 1].into(), 32).into();
                if route & 1 == 0 {
                    self.rib.withdraw(prefix);
                } else {
                    let communities = [u32::from(script.byte()?)].into();
                    self.rib.announce(
                        prefix,
                        Attributes {
                            communities,
                            ..Attributes::default()
                        },
                    );
                }
                self.act(false);
            }
            9 => {
                let reason = match script.byte()? % 4 {
                    0 => StopReason::AdministrativeShutdown(Some("maintenance".to_owned())),
                    1 => StopReason::PeerDeconfigured,
                    2 => StopReason::ConfigurationChange,
                    _ => StopReason::Restart,
                };
                self.started = false;
                self.pair.stop(&reason, self.now);
                self.act(false);
                assert_eq!(self.pair.state(), State::Idle);
                assert_eq!(self.pair.next_deadline(), None);
            }
            10 => {
                if !self.started {
                    self.started = true;
                    self.pair.start(self.now);
                    self.act(false);
                }
            }
            _ => {
                let slot = script.slot()?;
                if matches!(self.link(slot), Link::Open(_)) {
                    self.input(slot, Input::Written);
                }
            }
        }
        Some(())
    }

    fn message(&mut self, slot: Slot, message: &Message) {
        let mut octets = Vec::new();
        let context = self.pair.context(slot);
        if message.encode(context, &mut octets).is_ok() {
            self.receive(slot, &octets);
        }
    }

    /// An OPEN of the peer that is right but for what the script says.
    fn open(&mut self, script: &mut Script<'_>) -> Option<()> {
        let slot = script.slot()?;
        let bits = script.byte()?;
        let router_id = [192, 0, 2, if bits & 1 == 0 { 1 } else { 200 }];
        let hold_time = [0, 3, 90, 9][usize::from(bits >> 1 & 3)];
        let mut open = Open::new(PEER_ASN, hold_time, router_id.into());
        if bits & 8 != 0 {
            let index = usize::from(script.byte()?) % open.capabilities.len();
            open.capabilities.remove(index);
        }
        self.message(slot, &Message::Open(open));
        Some(())
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut script = Script(data);
    let Some(bits) = script.byte() else {
        return;
    };
    let router_id = Ipv4Addr::new(192, 0, 2, 10);
    let mut config = PeerConfig::new(PEER, 64_512, PeerAsn::Exact(PEER_ASN), router_id);
    if bits & 1 != 0 {
        config.restart = Some(Restart {
            time: Duration::from_secs(120),
            resumed: bits & 2 != 0,
        });
    }
    config.extended_messages = bits & 4 == 0;
    let mut world = World::new(config);
    world.act(false);
    while world.step(&mut script).is_some() {}
    // Whatever has happened, it can be ended.
    world.started = false;
    world.pair.stop(&StopReason::PeerDeconfigured, world.now);
    world.act(false);
    assert_eq!(world.pair.state(), State::Idle);
}
