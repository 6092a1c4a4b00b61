//! Whatever ends a session has its name, and a pause after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_bgp::{Peer, PeerAsn, State};
use bellrock_e2e::netns::{as_root, wait_for};
use nix::sys::signal::Signal;

use crate::lab::*;

#[test]
fn a_frozen_router_is_dropped_at_the_hold_time_and_found_again() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let capture = Capture::start(&lab.node);
    let mut config = config();
    config.hold_time = Duration::from_secs(3);
    let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
    assert_eq!(
        wait_established(&peer).hold_time,
        Some(Duration::from_secs(3))
    );

    let frozen = Instant::now();
    frr.signal("bgpd", Signal::SIGSTOP).unwrap();
    let status = wait_status(&peer, "the end", |status| {
        status.state != State::Established
    });
    let silence = frozen.elapsed();
    assert_eq!(
        status.last_error.as_deref(),
        Some("hold timer expired: nothing heard from the peer for 3s")
    );
    // FRR's last KEEPALIVE was up to a second old.
    assert!(silence >= Duration::from_millis(1900), "after {silence:?}");
    wait_for("NOTIFICATION 4 on the wire", LONG, || {
        let filter = format!("ip.src == {NODE} && bgp.type == 3");
        let seen = capture.read(&filter, &["bgp.notify.major_error"])?;
        ensure!(seen.first().is_some_and(|error| error == "4"), "{seen:?}");
        Ok(())
    });

    frr.signal("bgpd", Signal::SIGCONT).unwrap();
    wait_established(&peer);
    wait_kernel(&lab.router, &["198.51.100.1"]);
}

#[test]
fn a_router_that_no_longer_hears_us_drops_our_routes_at_the_hold_time() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let mut config = config();
    config.hold_time = Duration::from_secs(3);
    let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
    let opens = wait_established(&peer).messages_sent.open;
    wait_kernel(&lab.router, &["198.51.100.1"]);
    // Well past the hold time, it holds only because both sides keep it.
    let kept = wait_status(&peer, "keepalives", |status| {
        status.messages_sent.keepalive >= 6 && status.messages_received.keepalive >= 6
    });
    assert_eq!(
        (kept.state, kept.messages_sent.open),
        (State::Established, opens)
    );

    lab.router
        .sh("nft add table inet cut
             nft add chain inet cut in '{ type filter hook input priority 0; }'
             nft add rule inet cut in tcp dport 179 drop")
        .unwrap();
    wait_kernel(&lab.router, &[]);
    let neighbor = neighbor(&frr, NODE);
    assert_eq!(
        neighbor["lastNotificationReason"], "Hold Timer Expired",
        "{neighbor}"
    );
    let status = wait_status(&peer, "the end", |status| {
        status.state != State::Established
    });
    // We hear its NOTIFICATION, or its own timer's silence, whatever comes first:
    // its kernel holds small segments back while ours are not acknowledged.
    let reason = status.last_error.unwrap();
    assert!(
        reason.to_lowercase().contains("hold timer expired"),
        "{reason}"
    );
}

#[test]
fn a_wrong_as_is_named_and_tried_again_ever_more_slowly() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let _frr = frr(&lab);
    let capture = Capture::start(&lab.node);
    let mut config = config();
    config.peer_asn = PeerAsn::Exact(64999);
    let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
    wait_status(&peer, "a NOTIFICATION", |status| {
        status.messages_sent.notification >= 1
    });
    let first = Instant::now();
    let status = wait_status(&peer, "the third", |status| {
        status.messages_sent.notification >= 3
    });
    // Pauses of 1 s and 2 s, a quarter of them random.
    assert!(
        first.elapsed() >= Duration::from_millis(2200),
        "after {:?}",
        first.elapsed()
    );
    assert_eq!(
        status.last_error.as_deref(),
        Some("bad peer AS: it is 64513, configured is 64999")
    );
    wait_for("NOTIFICATION 2/2 on the wire", LONG, || {
        let fields = ["bgp.notify.major_error", "bgp.notify.minor_error_open"];
        let filter = format!("ip.src == {NODE} && bgp.type == 3");
        let seen = capture.read(&filter, &fields)?;
        ensure!(
            seen.len() >= 3 && seen.iter().all(|line| line == "2\t2"),
            "{seen:?}"
        );
        Ok(())
    });
}

#[test]
fn a_router_without_bgp_refuses_and_is_found_once_it_has_it() {
    if !as_root() {
        return;
    }
    let lab = lab();
    lab.router
        .sh("nft add table inet count
             nft add chain inet count in '{ type filter hook input priority 0; }'
             nft add rule inet count in tcp dport 179 tcp flags syn counter")
        .unwrap();
    let peer = lab.spawn(config(), routes(&["198.51.100.1/32"]));
    let start = Instant::now();
    let status = wait_status(&peer, "a reason", |status| status.last_error.is_some());
    assert_eq!(status.last_error.as_deref(), Some("connection refused"));
    wait_for("the third SYN", LONG, || {
        let text = lab.router.sh("nft list table inet count")?;
        let count = text
            .split("packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        ensure!(
            count.is_some_and(|count| count.parse::<u32>().is_ok_and(|n| n >= 3)),
            "{text}"
        );
        Ok(())
    });
    assert!(
        start.elapsed() >= Duration::from_millis(1500),
        "after {:?}",
        start.elapsed()
    );

    let _frr = frr(&lab);
    wait_established(&peer);
    wait_kernel(&lab.router, &["198.51.100.1"]);
}

#[test]
fn an_address_where_nobody_lives_is_no_route_to_the_peer() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let mut config = config();
    config.address = "192.0.2.99".parse().unwrap();
    config.connect_retry = Duration::from_secs(10);
    let mut without_source = config.clone();
    without_source.source = Some("192.0.2.77".parse().unwrap());
    let nobody = lab.spawn(config, BTreeMap::new());
    let not_ours = lab.spawn(without_source, BTreeMap::new());
    let reason = |peer: &Peer| {
        wait_status(peer, "a reason", |status| status.last_error.is_some())
            .last_error
            .unwrap()
    };
    assert_eq!(reason(&nobody), "no route to the peer");
    assert_eq!(
        reason(&not_ours),
        "this machine does not have the configured source address"
    );
}
