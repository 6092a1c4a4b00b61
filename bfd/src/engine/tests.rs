//! Which datagram is for which session, and what is discarded.

use std::num::NonZeroU8;
use std::time::Duration;

use super::*;
use crate::Timers;
use crate::packet::Diagnostic;
use crate::session::{Change, DownReason};

const NOW: Instant = Instant(1_000_000_000_000);
const ETH0: u32 = 7;
const ETH1: u32 = 8;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id(n: u64) -> SessionId {
    SessionId::new(n)
}

fn engine() -> Engine {
    let mut next = 0;
    Engine::new(move || {
        next += 1;
        next
    })
}

/// An engine with a session on each path, numbered from 1.
fn with(paths: &[(Path, Option<u32>)]) -> Engine {
    let mut engine = engine();
    for (n, (path, interface)) in (1..).zip(paths) {
        engine.add(id(n), path.clone(), *interface, Settings::default(), NOW);
    }
    engine.timeout(NOW);
    drain(&mut engine);
    engine
}

fn drain(engine: &mut Engine) -> Vec<Output> {
    std::iter::from_fn(|| engine.poll_output()).collect()
}

fn discriminator(engine: &Engine, n: u64) -> Discriminator {
    engine.status(NOW)[&id(n)].discriminator
}

fn control(state: State, your_discriminator: Option<Discriminator>) -> Control {
    Control {
        diagnostic: Diagnostic::None,
        state,
        poll: false,
        final_answer: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(0x7777).unwrap(),
        your_discriminator,
        desired_min_tx: 1_000_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

struct From {
    port: Port,
    source: &'static str,
    destination: &'static str,
    interface: u32,
    ttl: u8,
}

const PEER: From = From {
    port: Port::SingleHop,
    source: "192.0.2.1",
    destination: "192.0.2.10",
    interface: ETH0,
    ttl: 255,
};

fn receive(engine: &mut Engine, from: &From, payload: &[u8]) -> Result<u64, Discard> {
    let datagram = Datagram {
        port: from.port,
        source: ip(from.source),
        destination: ip(from.destination),
        interface: from.interface,
        ttl: from.ttl,
        payload,
    };
    engine.receive(&datagram, NOW).map(|id| id.0)
}

fn bootstrap(engine: &mut Engine, from: &From) -> Result<u64, Discard> {
    receive(engine, from, &control(State::Down, None).encode())
}

#[test]
fn the_first_packet_is_matched_by_address_interface_and_port() {
    let peer = ip("192.0.2.1");
    let on = |interface: &str| Path {
        interface: Some(interface.to_owned()),
        ..Path::single(peer)
    };
    let mut engine = with(&[
        (Path::single(peer), None),
        (on("eth1"), Some(ETH1)),
        (Path::multi(peer, ip("192.0.2.10"), 254), None),
        (Path::multi(peer, ip("192.0.2.20"), 254), None),
    ]);
    let multi = |destination| From {
        port: Port::Multihop,
        destination,
        ..PEER
    };
    let cases = [
        (PEER, Ok(1)),
        (
            From {
                interface: ETH1,
                ..PEER
            },
            Ok(2),
        ),
        (multi("192.0.2.10"), Ok(3)),
        (multi("192.0.2.20"), Ok(4)),
        (multi("192.0.2.30"), Err(Discard::UnknownPeer)),
        (
            From {
                source: "192.0.2.2",
                ..PEER
            },
            Err(Discard::UnknownPeer),
        ),
    ];
    for (from, expected) in cases {
        assert_eq!(bootstrap(&mut engine, &from), expected);
    }
    assert_eq!(engine.discards()[&Discard::UnknownPeer], 2);
}

#[test]
fn after_that_the_discriminator_alone_decides() {
    let mut engine = with(&[
        (Path::single(ip("192.0.2.1")), None),
        (Path::single(ip("192.0.2.2")), None),
    ]);
    let second = discriminator(&engine, 2);
    let packet = control(State::Init, Some(second)).encode();
    // From the first one's address, by another interface, to another address.
    let moved = From {
        interface: ETH1,
        destination: "192.0.2.99",
        ..PEER
    };
    assert_eq!(receive(&mut engine, &moved, &packet), Ok(2));
    let status = engine.status(NOW);
    assert_eq!(status[&id(2)].state, State::Up);
    assert_eq!(status[&id(1)].state, State::Down);
    assert_eq!(status[&id(1)].counters.received, 0);
}

/// RFC 5881 section 5, RFC 5880 section 6.8.6, RFC 5883 section 5: each row
/// fails all later checks that it can fail, too.
#[test]
fn discards_follow_the_order_of_the_rfcs_and_are_counted_by_kind() {
    let mut engine = with(&[
        (Path::single(ip("192.0.2.1")), None),
        (Path::multi(ip("192.0.2.1"), ip("192.0.2.10"), 250), None),
    ]);
    let (single, multi) = (discriminator(&engine, 1), discriminator(&engine, 2));
    let unknown = NonZeroU32::new(0xdead_beef);
    let far = From { ttl: 254, ..PEER };
    let stranger = From {
        source: "192.0.2.66",
        ..PEER
    };
    let multihop = |ttl| From {
        port: Port::Multihop,
        ttl,
        ..PEER
    };
    // Changes octets of a packet, and gives it an authentication section.
    let bad = |control: Control, changes: &[(usize, u8)]| {
        let mut octets = control.encode().to_vec();
        octets.extend([1, 4, 1, 0]);
        octets[1] |= 0x04;
        octets[3] = 28;
        for (at, value) in changes {
            octets[*at] = *value;
        }
        octets
    };
    let up = control(State::Up, unknown);
    let rows = [
        (
            &far,
            bad(up, &[(0, 0), (1, 0xc5), (2, 0), (3, 9), (7, 0)]),
            Discard::HopLimit,
        ),
        (
            &PEER,
            bad(up, &[(0, 0), (1, 0xc5), (2, 0), (3, 9), (6, 0), (7, 0)]),
            Discard::Version,
        ),
        (
            &PEER,
            bad(up, &[(1, 0xc5), (2, 0), (3, 25), (6, 0), (7, 0)]),
            Discard::LengthShort,
        ),
        (
            &PEER,
            bad(up, &[(1, 0xc5), (2, 0), (3, 29), (6, 0), (7, 0)]),
            Discard::LengthBeyond,
        ),
        (
            &PEER,
            bad(up, &[(1, 0xc5), (2, 0), (6, 0), (7, 0)]),
            Discard::Multiplier,
        ),
        (
            &PEER,
            bad(up, &[(1, 0xc5), (6, 0), (7, 0)]),
            Discard::Multipoint,
        ),
        (&PEER, bad(up, &[(6, 0), (7, 0)]), Discard::MyDiscriminator),
        (&PEER, bad(up, &[]), Discard::YourDiscriminator),
        (
            &stranger,
            bad(control(State::Up, None), &[]),
            Discard::NoDiscriminator,
        ),
        (
            &stranger,
            bad(control(State::Init, None), &[]),
            Discard::NoDiscriminator,
        ),
        (
            &stranger,
            bad(control(State::Down, None), &[]),
            Discard::UnknownPeer,
        ),
        (
            &stranger,
            bad(control(State::AdminDown, None), &[]),
            Discard::UnknownPeer,
        ),
        (
            &PEER,
            bad(control(State::Down, None), &[]),
            Discard::Authentication,
        ),
        (
            &PEER,
            bad(control(State::Up, Some(single)), &[]),
            Discard::Authentication,
        ),
        // A name of the other port's session is no name on this one.
        (
            &PEER,
            control(State::Up, Some(multi)).encode().to_vec(),
            Discard::YourDiscriminator,
        ),
        (
            &multihop(255),
            control(State::Up, Some(single)).encode().to_vec(),
            Discard::YourDiscriminator,
        ),
        (
            &multihop(249),
            bad(control(State::Up, Some(multi)), &[]),
            Discard::Authentication,
        ),
        (
            &multihop(249),
            control(State::Up, Some(multi)).encode().to_vec(),
            Discard::MinimumTtl,
        ),
    ];
    let mut counted = Discards::new();
    for (from, octets, discard) in rows {
        assert_eq!(
            receive(&mut engine, from, &octets),
            Err(discard),
            "{octets:02x?}"
        );
        *counted.entry(discard).or_default() += 1;
    }
    assert_eq!(engine.discards(), &counted);
    assert_eq!(counted.len(), Discard::ALL.len(), "every kind occurred");
    // None of it touched a session.
    assert_eq!(drain(&mut engine), []);
    for status in engine.status(NOW).values() {
        assert_eq!(status.state, State::Down);
        assert_eq!(status.counters.received, 0);
    }
    // And what is right is taken.
    let least = control(State::Init, Some(multi)).encode();
    assert_eq!(receive(&mut engine, &multihop(250), &least), Ok(2));
}

#[test]
fn discriminators_are_unique_and_never_zero() {
    // A source that repeats itself, and zero.
    let mut numbers = [0, 5, 5, 5, 0, 6, 6, 1 << 40, 7].into_iter().cycle();
    let mut engine = Engine::new(move || numbers.next().unwrap_or(0));
    for n in 1..=3 {
        let peer = ip(&format!("192.0.2.{n}"));
        engine.add(id(n), Path::single(peer), None, Settings::default(), NOW);
    }
    let all: BTreeSet<u32> = (1..=3).map(|n| discriminator(&engine, n).get()).collect();
    assert_eq!(all, BTreeSet::from([5, 6, 7]));
}

fn up(engine: &mut Engine, n: u64) -> Discriminator {
    let ours = discriminator(engine, n);
    receive(engine, &PEER, &control(State::Init, Some(ours)).encode()).unwrap();
    let outputs = drain(engine);
    let event = Event {
        session: id(n),
        change: Change::Up,
    };
    assert!(outputs.contains(&Output::Event(event)));
    ours
}

fn states_sent(outputs: &[Output]) -> Vec<(State, Diagnostic)> {
    let sent = outputs.iter().filter_map(|output| match output {
        Output::Send(_, octets) => Some(Control::decode(octets).unwrap().control),
        Output::Event(_) | Output::Gone(_) => None,
    });
    sent.map(|control| (control.state, control.diagnostic))
        .collect()
}

#[test]
fn one_that_is_removed_says_admin_down_until_the_peer_knows() {
    let mut engine = with(&[(Path::single(ip("192.0.2.1")), None)]);
    let ours = up(&mut engine, 1);
    engine.remove(id(1), NOW);
    let said = (State::AdminDown, Diagnostic::AdministrativelyDown);
    // No event: the owner asked for it.
    let outputs = drain(&mut engine);
    assert_eq!(states_sent(&outputs), [said]);
    assert_eq!(outputs.len(), 1);
    assert!(engine.leaves() && engine.status(NOW).is_empty());
    // What was on its way is heard, and does not end it.
    receive(&mut engine, &PEER, &control(State::Up, Some(ours)).encode()).unwrap();
    assert_eq!(drain(&mut engine), []);
    receive(
        &mut engine,
        &PEER,
        &control(State::Down, Some(ours)).encode(),
    )
    .unwrap();
    assert_eq!(drain(&mut engine), [Output::Gone(id(1))]);
    assert!(!engine.leaves());
    assert_eq!(engine.next_deadline(), None);
    assert_eq!(bootstrap(&mut engine, &PEER), Err(Discard::UnknownPeer));
}

#[test]
fn one_that_is_removed_waits_no_longer_than_the_peer_would() {
    let mut engine = with(&[(Path::single(ip("192.0.2.1")), None)]);
    up(&mut engine, 1);
    engine.remove(id(1), NOW);
    drain(&mut engine);
    let mut at = NOW;
    while let Some(next) = engine.next_deadline() {
        at = next;
        engine.timeout(at);
    }
    // The peer's 1 s three times, which is more than our 300 ms three times.
    assert_eq!(at.since(NOW), Duration::from_secs(3));
    assert_eq!(drain(&mut engine).last(), Some(&Output::Gone(id(1))));
}

#[test]
fn one_whose_peer_is_not_up_leaves_at_once() {
    let mut engine = with(&[(Path::single(ip("192.0.2.1")), None)]);
    engine.remove(id(1), NOW);
    let outputs = drain(&mut engine);
    assert_eq!(states_sent(&outputs).len(), 1);
    assert_eq!(outputs.last(), Some(&Output::Gone(id(1))));
}

#[test]
fn one_that_comes_back_ends_the_goodbye_of_the_one_before() {
    let path = Path::single(ip("192.0.2.1"));
    let mut engine = with(&[(path.clone(), None)]);
    up(&mut engine, 1);
    engine.remove(id(1), NOW);
    drain(&mut engine);
    engine.add(id(2), path, None, Settings::default(), NOW);
    assert!(!engine.leaves());
    assert_eq!(drain(&mut engine), [Output::Gone(id(1))]);
    assert_eq!(bootstrap(&mut engine, &PEER), Ok(2));
}

#[test]
fn five_hundred_sessions_are_due_each_at_its_own_time() {
    let mut seed = 1_u64;
    let mut engine = Engine::new(move || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        seed ^ seed >> 29
    });
    for n in 1..=500 {
        let peer = IpAddr::from([
            10,
            0,
            u8::try_from(n / 250).unwrap(),
            u8::try_from(n % 250).unwrap(),
        ]);
        engine.add(id(n), Path::single(peer), None, Settings::default(), NOW);
    }
    let mut at = NOW;
    let end = NOW + Duration::from_secs(20);
    while let Some(next) = engine.next_deadline().filter(|next| *next <= end) {
        assert!(next >= at, "time goes forward");
        at = next;
        engine.timeout(at);
        assert!(engine.next_deadline() > Some(at), "what is due is done");
    }
    for status in engine.status(end).values() {
        assert!((20..=28).contains(&status.counters.sent), "{status:?}");
    }
}

#[test]
fn the_status_says_why_it_went_down_and_how_often() {
    let mut engine = with(&[(Path::single(ip("192.0.2.1")), None)]);
    let ours = up(&mut engine, 1);
    let fast = Timers {
        transmit: Duration::from_millis(10),
        ..Timers::default()
    };
    let settings = Settings {
        timers: fast,
        ..Settings::default()
    };
    engine.change(id(1), settings, NOW);
    assert_eq!(engine.status(NOW)[&id(1)].settings, settings);
    let mut down = control(State::Down, Some(ours));
    down.diagnostic = Diagnostic::PathDown;
    receive(&mut engine, &PEER, &down.encode()).unwrap();
    let status = &engine.status(NOW + Duration::from_secs(2))[&id(1)];
    assert_eq!(status.state, State::Down);
    assert_eq!(status.lasts, Duration::from_secs(2));
    assert_eq!(
        status.last_down,
        Some(DownReason::PeerDown(Diagnostic::PathDown))
    );
    assert_eq!((status.counters.ups, status.counters.downs), (1, 1));
    assert_eq!(status.remote.diagnostic, Diagnostic::PathDown);
}
