//! Peers that BFD watches.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_bfd::{Change, DownReason, State};
use bellrock_e2e::netns::{Netns, as_root, wait_for};
use bellrock_speaker::convert;
use serde_json::{Value, json};

use crate::world::{LONG, World, ours, parsed};

/// FRR whose BFD is there, and whose BGP goes by it if it says so.
fn frr(neighbor: &str) -> String {
    format!(
        "bfd\n peer 192.0.2.10\n  transmit-interval 50\n  receive-interval 50\n  \
         detect-multiplier 20\nexit\n\
         router bgp 64513\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n \
         bgp graceful-restart\n neighbor 192.0.2.10 remote-as 64512\n \
         neighbor 192.0.2.10 passive\n {neighbor}exit\n"
    )
}

const BFD: &str = "neighbor 192.0.2.10 bfd\n ";

fn profile(world: &mut World, name: &str, spec: &Value) {
    let object = ours("BFDProfile", name, spec);
    world.apply(parsed(object, convert::bfd_profile));
}

/// A peer that is watched, and its route in the router's kernel.
fn watched(frr: &str) -> World {
    let mut world = World::new(frr);
    // Patient: not all of it is about time, and the machine may be busy.
    let fast = json!({ "receiveInterval": 50, "transmitInterval": 50, "detectMultiplier": 20 });
    profile(&mut world, "fast", &fast);
    let peer = json!({
        "peerAddress": "192.0.2.1", "bfdProfile": "fast", "enableGracefulRestart": true,
    });
    world.peer("tor", &peer);
    world.advertise("all", &json!({}));
    world.turn();
    world.wait_kernel(&["198.51.100.1"]);
    wait_up(&mut world);
    world
}

fn wait_up(world: &mut World) {
    wait_for("BFD", LONG, || {
        world.watch();
        let status = world.watched("tor");
        let state = status.as_ref().map(|status| status.state);
        ensure!(state == Some(State::Up), "{status:?}");
        Ok(())
    });
}

/// Drops what matches in a namespace, without anybody being told.
fn cut(ns: &Netns, what: &str) {
    ns.sh(&format!(
        "nft add table inet cut; \
         nft 'add chain inet cut in {{ type filter hook prerouting priority -400; }}'; \
         nft add rule inet cut in {what} drop"
    ))
    .unwrap();
}

fn mend(ns: &Netns) {
    ns.sh("nft delete table inet cut").unwrap();
}

/// Waits for our end of the session; how long that took.
fn wait_told(world: &mut World) -> Duration {
    let start = Instant::now();
    wait_for("the end of the session", LONG, || {
        world.watch();
        let status = world.bgp.status()["tor"].1.clone();
        ensure!(status.messages_sent.notification == 1, "{status:?}");
        Ok(())
    });
    let expired = Change::Down(DownReason::DetectionTimeExpired);
    assert_eq!(world.changes.last(), Some(&("tor".to_owned(), expired)));
    start.elapsed()
}

#[test]
fn a_path_that_fails_in_silence_ends_the_session_and_the_route_long_before_the_hold_time() {
    if !as_root() {
        return;
    }
    let mut world = watched(&frr(BFD));
    let (node, router) = (world.node.name().to_owned(), world.router.name().to_owned());
    for name in [&node, &router] {
        cut(&Netns::of_others(name), "iifname eth0");
    }
    let took = wait_told(&mut world);
    println!("noticed after {took:?}");
    assert!(took < Duration::from_secs(30), "the hold time is 90 s");
    world.wait_kernel(&[]);

    for name in [&node, &router] {
        mend(&Netns::of_others(name));
    }
    wait_up(&mut world);
    world.wait_kernel(&["198.51.100.1"]);
}

#[test]
fn the_peer_is_told_why_and_does_not_keep_the_routes() {
    if !as_root() {
        return;
    }
    // FRR's BGP does not look at BFD: what it knows, it has from us.
    let mut world = watched(&format!("debug bgp neighbor-events\n{}", frr("")));
    let node = Netns::of_others(world.node.name());
    cut(&node, "udp dport 3784");
    wait_told(&mut world);
    wait_for("FRR's word for it", LONG, || {
        world.watch();
        let log = std::fs::read_to_string(world.frr.log("bgpd"))?;
        let told =
            "NOTIFICATION(Hard Reset): received from neighbor 192.0.2.10 6/10 (Cease/BFD Down)";
        ensure!(log.contains(told), "{log}");
        Ok(())
    });
    // BGP comes back by itself: BFD that is not up keeps nobody out (RFC 5882
    // section 4.1).
    world.wait_established("tor");
    world.wait_kernel(&["198.51.100.1"]);
    mend(&node);
    wait_up(&mut world);
    assert_eq!(world.bgp.status()["tor"].1.messages_sent.notification, 1);
}

#[test]
fn a_peer_that_is_held_down_on_purpose_keeps_its_session() {
    if !as_root() {
        return;
    }
    let mut world = watched(&frr(""));
    let opens = world.opens();
    world
        .frr
        .apply("bfd\n peer 192.0.2.10\n  shutdown\n")
        .unwrap();
    wait_for("the peer's word", LONG, || {
        world.watch();
        let planned = |(_, change): &(String, Change)| matches!(change, Change::Down(reason) if !reason.is_failure());
        ensure!(world.changes.iter().any(planned), "{:?}", world.changes);
        Ok(())
    });
    world
        .frr
        .apply("bfd\n peer 192.0.2.10\n  no shutdown\n")
        .unwrap();
    wait_up(&mut world);
    world.wait_established("tor");
    assert_eq!(world.opens(), opens, "the same session");
}

#[test]
fn a_profile_may_change_come_and_go_while_the_session_is_up() {
    if !as_root() {
        return;
    }
    let mut world = watched(&frr(""));
    let opens = world.opens();
    let detection = |world: &World| world.watched("tor").unwrap().intervals.detection;
    assert_eq!(detection(&world), Some(Duration::from_secs(1)));
    let slow = json!({ "receiveInterval": 200, "transmitInterval": 200, "detectMultiplier": 20 });
    profile(&mut world, "fast", &slow);
    world.turn();
    wait_for("the new timers", LONG, || {
        world.watch();
        let detection = detection(&world);
        ensure!(detection == Some(Duration::from_secs(4)), "{detection:?}");
        Ok(())
    });
    assert_eq!(world.watched("tor").unwrap().counters.downs, 0);

    let none = convert::no_bfd_profile("fast").unwrap();
    world.apply(none);
    world.turn();
    let problem = world.bfd.problems()["tor"].clone();
    assert!(
        problem.contains("BFDProfile fast does not exist"),
        "{problem}"
    );
    assert!(world.watched("tor").is_none());
    world.wait_established("tor");

    profile(&mut world, "fast", &slow);
    world.turn();
    assert!(world.bfd.problems().is_empty());
    wait_up(&mut world);
    assert_eq!(world.opens(), opens, "the same session");
}

#[test]
fn a_speaker_that_restarts_is_no_failure_and_its_routes_stay() {
    if !as_root() {
        return;
    }
    // Our BFD shares the fate of our control plane, and says so (C is 0): with
    // this line FRR minds it.
    let minds = "neighbor 192.0.2.10 bfd check-control-plane-failure\n ";
    let mut world = watched(&frr(&format!("{BFD}{minds}")));
    wait_for("FRR's BFD", LONG, || {
        let said = world.says("show bfd peers brief");
        ensure!(said.contains("up"), "{said}");
        Ok(())
    });
    let mut monitor = monitor_routes(world.router.command("ip"));
    let (bgp, bfd) = (&mut world.bgp, std::mem::take(&mut world.bfd));
    world.runtime.block_on(async {
        bgp.stop(false).await;
        bfd.stop().await;
    });
    wait_for("FRR's BFD to know", LONG, || {
        let said = world.says("show bfd peers brief");
        ensure!(!said.contains("up"), "{said}");
        Ok(())
    });
    world.wait_kernel(&["198.51.100.1"]);
    // The next one.
    world.bgp.set_resumed();
    world.turn();
    world.wait_established("tor");
    wait_up(&mut world);
    world.wait_kernel(&["198.51.100.1"]);
    monitor.kill().unwrap();
    let output = monitor.wait_with_output().unwrap();
    let changes = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!changes.contains("Deleted"), "{changes}");
}

/// All changes of routes, until it is ended.
fn monitor_routes(mut ip: std::process::Command) -> std::process::Child {
    ip.args(["monitor", "route"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}
