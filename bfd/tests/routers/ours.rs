//! The driver against itself.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_bfd::packet::Diagnostic;
use bellrock_bfd::{
    Change, Discard, DownReason, Error, Handle, MAX_SESSIONS, Path, Settings, State,
};
use bellrock_e2e::netns::{Netns, as_root, wait_for};

use crate::lab::{
    Lab, NODE, NODE_V6, PATIENCE, ROUTER, ROUTER_V6, Speaker, deafen, ip, on_link, settings,
};

/// Both ends, up over IPv4.
fn pair(lab: &Lab, with: Settings) -> [(Speaker, bellrock_bfd::SessionId); 2] {
    let ends = [(&lab.node, ROUTER), (&lab.router, NODE)].map(|(ns, peer)| {
        let speaker = Speaker::start(ns);
        let id = speaker.handle.add(Path::single(ip(peer)), with).unwrap();
        (speaker, id)
    });
    ends.map(|(mut speaker, id)| {
        speaker.wait_up(id);
        speaker.expect(id, Change::Up);
        (speaker, id)
    })
}

#[test]
fn silence_is_noticed_within_the_detection_time_at_both_ends() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let mut ends = pair(&lab, settings(50, 3));
    let cut = Instant::now();
    lab.silence();
    for (speaker, id) in &mut ends {
        assert_eq!(speaker.expect_down(*id), DownReason::DetectionTimeExpired);
    }
    println!("down at both ends {:?} after the cut began", cut.elapsed());
    lab.heal();
    for (speaker, id) in &mut ends {
        speaker.expect(*id, Change::Up);
        let status = speaker.wait_up(*id);
        assert_eq!(status.last_down, Some(DownReason::DetectionTimeExpired));
        assert_eq!(status.intervals.detection, Some(Duration::from_millis(150)));
    }
}

#[test]
fn a_path_that_fails_in_one_direction_is_down_at_both_ends() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let [(mut node, id), (mut router, other)] = pair(&lab, settings(50, 3));
    deafen(&lab.node);
    assert_eq!(node.expect_down(id), DownReason::DetectionTimeExpired);
    let told = DownReason::PeerDown(Diagnostic::ControlDetectionTimeExpired);
    assert_eq!(router.expect_down(other), told);
}

#[test]
fn a_driver_that_ends_on_purpose_is_no_failure_for_its_peers() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let [(node, _), (mut router, other)] = pair(&lab, settings(50, 3));
    let start = Instant::now();
    node.handle.shutdown(PATIENCE).unwrap();
    println!("left within {:?}", start.elapsed());
    let planned = DownReason::PeerAdminDown(Diagnostic::AdministrativelyDown);
    assert_eq!(router.expect_down(other), planned);
    assert!(!planned.is_failure());
    // The next one finds its peer.
    let mut again = Speaker::start(&lab.node);
    let id = again
        .handle
        .add(Path::single(ip(ROUTER)), settings(50, 3))
        .unwrap();
    again.expect(id, Change::Up);
    router.expect(other, Change::Up);
}

#[test]
fn an_interface_that_goes_and_comes_back_with_another_index_is_found_again() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let peers = [(&lab.node, ROUTER), (&lab.router, NODE)];
    let mut ends = peers.map(|(ns, peer)| {
        let speaker = Speaker::start(ns);
        let id = speaker.handle.add(on_link(peer), settings(50, 3)).unwrap();
        (speaker, id)
    });
    for (speaker, id) in &mut ends {
        speaker.expect(*id, Change::Up);
    }
    let ports = |ns: &Netns| ns.sh("ss -Huan | awk '{print $4 $5}' | sort").unwrap();
    let before = ports(&lab.node);
    lab.node.sh("ip link delete eth0").unwrap();
    for (speaker, id) in &mut ends {
        speaker.expect_down(*id);
    }
    let (node, id) = (&ends[0].0, ends[0].1);
    node.wait(id, "the status to say why", |status| status.error.is_some());
    bellrock_e2e::netns::veth(&lab.node, "eth0", &lab.router, "eth0").unwrap();
    for (ns, address) in [(&lab.node, NODE), (&lab.router, ROUTER)] {
        ns.sh(&format!("ip addr add {address}/24 dev eth0"))
            .unwrap();
    }
    for (speaker, id) in &mut ends {
        speaker.expect(*id, Change::Up);
    }
    let status = ends[0].0.wait_up(id);
    assert_eq!(status.error, None);
    assert_eq!(ports(&lab.node), before, "the source port is the same");
}

#[test]
fn a_port_that_somebody_has_is_said_and_taken_when_it_is_free() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let taken = lab.node.run(|| UdpSocket::bind("0.0.0.0:3784")).unwrap();
    let mut node = Speaker::start(&lab.node);
    let router = Speaker::start(&lab.router);
    let id = node
        .handle
        .add(Path::single(ip(ROUTER)), settings(50, 3))
        .unwrap();
    router
        .handle
        .add(Path::single(ip(NODE)), settings(50, 3))
        .unwrap();
    let status = node.wait(id, "the reason", |status| status.error.is_some());
    let error = status.error.unwrap();
    assert!(
        error.contains("3784") && error.contains("in use"),
        "{error}"
    );
    drop(taken);
    node.expect(id, Change::Up);
    assert_eq!(node.wait_up(id).error, None);
}

#[test]
fn sessions_are_refused_with_their_reason() {
    if !as_root() {
        return;
    }
    let lab = Netns::new("node").unwrap();
    let (handle, _events) = lab.run(Handle::start).unwrap().unwrap();
    let plain = Settings::default();
    let refused = |path: Path, with: Settings| handle.add(path, with).unwrap_err().to_string();
    let link = Path::single(ip("fe80::1"));
    assert_eq!(refused(link, plain), "a link-local peer needs an interface");
    let path = Path::single(ip(ROUTER));
    for interval in [0, 61_000] {
        let slow = settings(interval, 3);
        assert_eq!(
            refused(path.clone(), slow),
            "intervals are from 1 ms to 60 s"
        );
    }
    let mixed = Path {
        local: Some(ip(NODE_V6)),
        ..path.clone()
    };
    assert_eq!(
        refused(mixed, plain),
        "both addresses must be of one family"
    );
    let id = handle.add(path.clone(), plain).unwrap();
    let twice = refused(path.clone(), plain);
    assert_eq!(twice, "there is a session on that path already");
    handle.remove(id);
    assert!(matches!(handle.change(id, plain), Err(Error::Unknown)));
    let id = handle.add(path, plain).unwrap();
    handle.remove(id);
    let session = |n: usize| {
        let [.., a, b] = n.to_be_bytes();
        handle.add(Path::single([198, 18, a, b].into()), plain)
    };
    for n in 0..MAX_SESSIONS {
        session(n).unwrap();
    }
    assert!(matches!(session(MAX_SESSIONS), Err(Error::TooMany)));
    assert_eq!(handle.snapshot().sessions.len(), MAX_SESSIONS);
}

#[test]
fn five_hundred_sessions_come_up_and_stay_up() {
    if !as_root() {
        return;
    }
    const SESSIONS: usize = 500;
    let lab = Lab::new();
    let address = |side: u8, n: usize| {
        let [.., a, b] = n.to_be_bytes();
        std::net::IpAddr::from([10, side, a, b])
    };
    let with = settings(300, 5);
    let ends = [(&lab.node, 1, 2), (&lab.router, 2, 1)].map(|(ns, own, other)| {
        let all: Vec<String> = (0..SESSIONS)
            .map(|n| format!("addr add {}/32 dev lo\n", address(own, n)))
            .collect();
        // By way of one neighbour: a thousand more would fill the kernel's
        // table, which all namespaces share.
        let gateway = if own == 1 { ROUTER } else { NODE };
        ns.sh(&format!("ip route add 10.{other}.0.0/16 via {gateway}"))
            .unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), all.concat()).unwrap();
        ns.sh(&format!("ip -batch {}", file.path().display()))
            .unwrap();
        let speaker = Speaker::start(ns);
        for n in 0..SESSIONS {
            let path = Path {
                local: Some(address(own, n)),
                ..Path::single(address(other, n))
            };
            speaker.handle.add(path, with).unwrap();
        }
        speaker
    });
    for speaker in &ends {
        wait_for("all sessions to be up", PATIENCE, || {
            let sessions = speaker.handle.snapshot().sessions;
            let up = sessions.values().filter(|s| s.state == State::Up).count();
            ensure!(up == SESSIONS, "{up} of {SESSIONS}");
            Ok(())
        });
    }
    // Some Detection Times later they still are.
    let count = |speaker: &Speaker| {
        let sessions = speaker.handle.snapshot().sessions;
        let received = sessions.values().map(|s| s.counters.received).min();
        (
            received.unwrap(),
            sessions.values().map(|s| s.counters.downs).sum::<u64>(),
        )
    };
    let (start, _) = count(&ends[0]);
    wait_for("ten packets more of each", PATIENCE, || {
        let (received, _) = count(&ends[0]);
        ensure!(received >= start + 10, "{received} after {start}");
        Ok(())
    });
    for speaker in &ends {
        assert_eq!(count(speaker).1, 0, "no session went down");
        // But what came before its session was there.
        let discards = speaker.handle.snapshot().discards;
        let kinds: Vec<_> = discards.into_keys().collect();
        assert!(
            kinds.iter().all(|kind| *kind == Discard::UnknownPeer),
            "{kinds:?}"
        );
    }
}

#[test]
fn ipv6_and_passive_ends_come_up_too() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let mut node = Speaker::start(&lab.node);
    let router = Speaker::start(&lab.router);
    let passive = Settings {
        role: bellrock_bfd::Role::Passive,
        ..settings(50, 3)
    };
    let id = node
        .handle
        .add(Path::single(ip(ROUTER_V6)), passive)
        .unwrap();
    node.wait(id, "the session to be there", |status| {
        status.counters.sent == 0
    });
    router
        .handle
        .add(Path::single(ip(NODE_V6)), settings(50, 3))
        .unwrap();
    node.expect(id, Change::Up);
}
