//! FRR's `bfdd` and BIRD.

use std::time::Duration;

use anyhow::ensure;
use bellrock_bfd::packet::Diagnostic;
use bellrock_bfd::{Change, DownReason, Path, SessionId, Settings, State};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{as_root, wait_for};

use crate::kind::{Kind, Router, Timers};
use crate::lab::{
    Lab, NODE, NODE_FAR, NODE_LINK, NODE_V6, PATIENCE, ROUTER, ROUTER_FAR, ROUTER_LINK, ROUTER_V6,
    Speaker, both, ip, on_link, settings,
};

/// The routers have no real-time priority: on a busy machine they may be silent
/// for a second, which is no failure of ours.
const PATIENT: u8 = 20;

const PEERS: [&str; 3] = [NODE, NODE_V6, NODE_LINK];

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A session of each sort with one router.
fn sessions(node: &Speaker, with: Settings) -> [SessionId; 3] {
    let paths = [
        Path::single(ip(ROUTER)),
        Path {
            local: Some(ip(NODE_V6)),
            ..Path::single(ip(ROUTER_V6))
        },
        on_link(ROUTER_LINK),
    ];
    paths.map(|path| node.handle.add(path, with).unwrap())
}

fn up_and_down_by_silence(kind: Kind) {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let node = Speaker::start(&lab.node);
    let ids = sessions(&node, both(60, 100, PATIENT));
    let timers = Timers {
        transmit: 80,
        receive: 90,
        multiplier: PATIENT,
    };
    let router = Router::start(kind, &lab.router, &PEERS, timers);
    for (id, peer) in ids.iter().zip(PEERS) {
        let status = node.wait_up(*id);
        // Each side's wish or the other's limit, whichever is slower.
        assert_eq!(status.intervals.transmit, Some(ms(90)), "{peer}");
        let detection = ms(100) * u32::from(PATIENT);
        node.wait(*id, "the router's timers", |s| {
            s.intervals.detection == Some(detection)
        });
        router.wait_state(peer, "up");
    }
    lab.silence();
    for (id, peer) in ids.iter().zip(PEERS) {
        let down = node.wait(*id, "the session to be down", |s| s.state == State::Down);
        assert_eq!(
            down.last_down,
            Some(DownReason::DetectionTimeExpired),
            "{peer}"
        );
        assert_eq!(down.counters.ups, 1, "{peer}: it did not flap");
        wait_for("the router to say so", PATIENCE, || {
            let state = router.state(peer)?;
            ensure!(state != "up", "{peer}: {state}");
            Ok(())
        });
    }
    lab.heal();
    for (id, peer) in ids.iter().zip(PEERS) {
        node.wait_up(*id);
        router.wait_state(peer, "up");
    }
    assert_eq!(node.handle.snapshot().discards.values().sum::<u64>(), 0);
}

fn admin_down_of_ours(kind: Kind) {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let mut node = Speaker::start(&lab.node);
    let id = node
        .handle
        .add(Path::single(ip(ROUTER)), settings(100, PATIENT))
        .unwrap();
    let router = Router::start(kind, &lab.router, &[NODE], Timers::of(100, PATIENT));
    node.wait_up(id);
    node.expect(id, Change::Up);
    router.wait_state(NODE, "up");
    let off = Settings {
        enabled: false,
        ..settings(100, PATIENT)
    };
    node.handle.change(id, off).unwrap();
    assert_eq!(node.expect_down(id), DownReason::AdminDown);
    router.wait_state(NODE, "down");
    // The router knows that it was on purpose.
    let status = node.wait(id, "the router to answer", |s| {
        s.remote.state == State::Down
    });
    assert_eq!(
        status.remote.diagnostic,
        Diagnostic::NeighborSignaledSessionDown
    );
    node.handle.change(id, settings(100, PATIENT)).unwrap();
    node.expect(id, Change::Up);
    router.wait_state(NODE, "up");
    // Taking it away says the same.
    node.handle.remove(id);
    router.wait_state(NODE, "down");
}

/// Timers change at either side while the session is up: each is told by a
/// Poll Sequence, and nothing goes down.
fn timers_change_while_it_is_up(kind: Kind) {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let node = Speaker::start(&lab.node);
    let id = node
        .handle
        .add(Path::single(ip(ROUTER)), settings(100, PATIENT))
        .unwrap();
    let router = Router::start(kind, &lab.router, &[NODE], Timers::of(100, PATIENT));
    node.wait_up(id);
    node.wait(id, "the router's timers", |s| {
        s.intervals.detection == Some(ms(2000))
    });
    let capture = Capture::start(&lab.node, "eth0", "udp port 3784").unwrap();

    // Ours: slower to send, then faster to hear.
    for (with, transmit, detection) in [
        (both(250, 100, PATIENT), 250, 2000),
        (both(250, 400, PATIENT), 250, 8000),
        (both(70, 100, PATIENT), 100, 2000),
    ] {
        node.handle.change(id, with).unwrap();
        let what = "our change to be in force";
        node.wait(id, what, |s| {
            let wanted = (Some(ms(transmit)), Some(ms(detection)));
            !s.polling && (s.intervals.transmit, s.intervals.detection) == wanted
        });
    }
    let wish = |from: &str, micros: u64, flag: &str| {
        format!("ip.src == {from} && bfd.desired_min_tx_interval == {micros} && {flag} == 1")
    };
    let seen = |what: &str, filter: &str| {
        wait_for(what, PATIENCE, || {
            let found = capture.decode(filter, &["frame.number"])?;
            ensure!(!found.is_empty(), "{filter}");
            Ok(found.len())
        })
    };
    for micros in [250_000, 70_000] {
        seen("our poll", &wish(NODE, micros, "bfd.flags.p"));
    }
    seen(
        "the router's answer",
        &format!("ip.src == {ROUTER} && bfd.flags.f == 1"),
    );

    // The router's.
    let slower = Timers {
        transmit: 300,
        receive: 350,
        multiplier: PATIENT,
    };
    router.configure(&[NODE], slower);
    node.wait(id, "the router's change to be in force", |s| {
        (s.intervals.transmit, s.intervals.detection) == (Some(ms(350)), Some(ms(6000)))
    });
    seen("the router's poll", &wish(ROUTER, 300_000, "bfd.flags.p"));
    seen("our answer", &wish(NODE, 70_000, "bfd.flags.f"));
    let status = node.wait_up(id);
    assert_eq!((status.counters.ups, status.counters.downs), (1, 0));
    router.wait_state(NODE, "up");
    // Wireshark finds nothing wrong with any packet, and never P and F at once.
    let wrong = capture.decode(
        "_ws.malformed || (bfd.flags.p == 1 && bfd.flags.f == 1)",
        &["ip.src"],
    );
    assert!(wrong.unwrap().iter().all(|packet| packet[0] != NODE));
}

fn multihop(kind: Kind) {
    if !as_root() {
        return;
    }
    let lab = Lab::far();
    let node = Speaker::start(&lab.node);
    let path = |ttl| Path::multi(ip(ROUTER_FAR), ip(NODE_FAR), ttl);
    // There is one router between. BIRD sends with the system's TTL.
    let arrives_with = match kind {
        Kind::Frr => 254,
        Kind::Bird => 63,
    };
    let id = node
        .handle
        .add(path(arrives_with), settings(100, PATIENT))
        .unwrap();
    let capture = Capture::start(&lab.node, "eth0", "udp").unwrap();
    let router = Router::start(kind, &lab.router, &[NODE_FAR], Timers::of(100, PATIENT));
    node.wait_up(id);
    router.wait_state(NODE_FAR, "up");
    let ours = capture.decode(
        &format!("ip.src == {NODE_FAR} && bfd"),
        &["udp.dstport", "ip.ttl"],
    );
    assert!(
        ours.unwrap()
            .iter()
            .all(|fields| fields == &["4784", "255"])
    );
    // A packet that comes over one hop more than is allowed is not taken.
    node.handle.remove(id);
    router.wait_state(NODE_FAR, "down");
    let id = node
        .handle
        .add(path(arrives_with + 1), settings(100, PATIENT))
        .unwrap();
    wait_for("packets to be discarded", PATIENCE, || {
        let snapshot = node.handle.snapshot();
        let kind = bellrock_bfd::Discard::MinimumTtl;
        let count = snapshot.discards.get(&kind).copied().unwrap_or_default();
        ensure!(count >= 2, "{:?}", snapshot.discards);
        Ok(())
    });
    assert_eq!(node.status(id).unwrap().state, State::Down);
}

#[test]
fn frr_up_and_down_by_silence_over_ipv4_ipv6_and_link_local() {
    up_and_down_by_silence(Kind::Frr);
}

#[test]
fn bird_up_and_down_by_silence_over_ipv4_ipv6_and_link_local() {
    up_and_down_by_silence(Kind::Bird);
}

#[test]
fn frr_is_told_admin_down() {
    admin_down_of_ours(Kind::Frr);
}

#[test]
fn bird_is_told_admin_down() {
    admin_down_of_ours(Kind::Bird);
}

#[test]
fn frr_timers_change_both_ways_by_poll_sequences() {
    timers_change_while_it_is_up(Kind::Frr);
}

#[test]
fn bird_timers_change_both_ways_by_poll_sequences() {
    timers_change_while_it_is_up(Kind::Bird);
}

#[test]
fn frr_multihop() {
    multihop(Kind::Frr);
}

#[test]
fn bird_multihop() {
    multihop(Kind::Bird);
}

#[test]
fn admin_down_of_frr_is_no_failure() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let mut node = Speaker::start(&lab.node);
    let id = node
        .handle
        .add(Path::single(ip(ROUTER)), settings(100, PATIENT))
        .unwrap();
    let router = Router::start(Kind::Frr, &lab.router, &[NODE], Timers::of(100, PATIENT));
    node.expect(id, Change::Up);
    let Router::Frr(frr) = &router else {
        panic!("it is FRR");
    };
    let tell = |line: &str| {
        frr.apply(&format!("bfd\n peer {NODE}\n  {line}\n"))
            .unwrap();
    };
    tell("shutdown");
    let reason = node.expect_down(id);
    assert!(matches!(reason, DownReason::PeerAdminDown(_)), "{reason:?}");
    assert!(!reason.is_failure());
    node.wait(id, "the peer's state", |s| {
        s.remote.state == State::AdminDown
    });
    tell("no shutdown");
    node.expect(id, Change::Up);
}
