//! What leaves the node, as Wireshark decodes it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use bellrock_bfd::Path;
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{as_root, wait_for};

use crate::kind::{Kind, Router, Timers};
use crate::lab::{
    Lab, NODE, NODE_LINK, NODE_V6, PATIENCE, ROUTER, ROUTER_LINK, ROUTER_V6, Speaker, ip, on_link,
    settings,
};

/// Times between packets that are no answers, while the session is up: what
/// leaves for a change of state is not on the schedule.
fn gaps(capture: &Capture, source: &str) -> Result<Vec<f64>> {
    let fields = ["frame.time_epoch", "bfd.sta"];
    let packets = capture.decode(&format!("{source} && bfd.flags.f == 0"), &fields)?;
    let mut gaps = Vec::new();
    for pair in packets.windows(2) {
        if pair.iter().all(|packet| packet[1] == "0x03") {
            gaps.push(pair[1][0].parse::<f64>()? - pair[0][0].parse::<f64>()?);
        }
    }
    Ok(gaps)
}

/// Some are late on a busy machine, none is early; most are as drawn.
fn check_jitter(name: &str, gaps: &[f64], interval: f64, most: f64) {
    let mut shares: Vec<f64> = gaps.iter().map(|gap| gap / interval).collect();
    shares.sort_by(f64::total_cmp);
    let at = |percent: usize| shares[shares.len() * percent / 100];
    let mean = shares.iter().sum::<f64>() / f64::from(u32::try_from(shares.len()).unwrap());
    println!(
        "{name}: {} packets, {:.1} % to {:.1} % of the interval, median {:.1} %, mean {:.1} %",
        shares.len(),
        shares[0] * 100.0,
        shares[shares.len() - 1] * 100.0,
        at(50) * 100.0,
        mean * 100.0
    );
    // What delays the capture makes the next packet seem early, by as much.
    assert!(shares.len() > 240, "{name}: {}", shares.len());
    assert!(at(2) > 0.74, "{name}: {:?}", &shares[..5]);
    assert!(at(90) <= most + 0.01, "{name}: {}", at(90));
    let middle = f64::midpoint(0.75, most);
    assert!((at(50) - middle).abs() < 0.03, "{name}: {}", at(50));
    // The whole range is used, evenly.
    let quarter = (most - 0.75) / 4.0;
    assert!(
        (at(25) - (0.75 + quarter)).abs() < 0.03,
        "{name}: {}",
        at(25)
    );
    assert!(
        (at(75) - (most - quarter)).abs() < 0.03,
        "{name}: {}",
        at(75)
    );
}

#[test]
fn intervals_are_jittered_by_a_quarter_or_with_multiplier_1_by_10_to_25_percent() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let node = Speaker::start(&lab.node);
    let three = node
        .handle
        .add(Path::single(ip(ROUTER)), settings(40, 3))
        .unwrap();
    let one = node
        .handle
        .add(Path::single(ip(ROUTER_V6)), settings(40, 1))
        .unwrap();
    let router = Speaker::start(&lab.router);
    for peer in [NODE, NODE_V6] {
        router
            .handle
            .add(Path::single(ip(peer)), settings(40, 3))
            .unwrap();
    }
    let capture = Capture::start(&lab.node, "eth0", "udp port 3784").unwrap();
    let (v4, v6) = (
        format!("ip.src == {NODE}"),
        format!("ipv6.src == {NODE_V6}"),
    );
    wait_for("packets of both sessions", PATIENCE, || {
        for id in [three, one] {
            let status = node.status(id)?;
            ensure!(status.counters.sent >= 320, "{status:?}");
        }
        Ok(())
    });
    check_jitter("multiplier 3", &gaps(&capture, &v4).unwrap(), 0.04, 1.0);
    check_jitter("multiplier 1", &gaps(&capture, &v6).unwrap(), 0.04, 0.9);
}

#[test]
fn packets_leave_with_ttl_255_from_one_port_of_the_range_for_each_session() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    let node = Speaker::start(&lab.node);
    let paths = [
        Path::single(ip(ROUTER)),
        Path::single(ip(ROUTER_V6)),
        on_link(ROUTER_LINK),
    ];
    let capture = Capture::start(&lab.node, "eth0", "udp port 3784").unwrap();
    let ids = paths.map(|path| node.handle.add(path, settings(50, 3)).unwrap());
    let peers = [NODE, NODE_V6, NODE_LINK];
    let _router = Router::start(Kind::Bird, &lab.router, &peers, Timers::of(50, 3));
    for id in ids {
        node.wait_up(id);
    }
    let fields = [
        "udp.srcport",
        "udp.dstport",
        "ip.ttl",
        "ipv6.hlim",
        "ip.dsfield.dscp",
        "ipv6.tclass.dscp",
        "bfd.version",
        "bfd.message_length",
        "bfd.flags.c",
        "bfd.flags.a",
        "bfd.flags.d",
        "bfd.flags.m",
        "bfd.required_min_echo_interval",
    ];
    let mut ports = BTreeSet::new();
    for (source, v4) in [
        (format!("ip.src == {NODE}"), true),
        (format!("ipv6.src == {NODE_V6}"), false),
        (format!("ipv6.src == {NODE_LINK}"), false),
    ] {
        let packets = wait_for("twenty packets", PATIENCE, || {
            let packets = capture.decode(&format!("{source} && bfd"), &fields)?;
            ensure!(packets.len() >= 20, "{}", packets.len());
            Ok(packets)
        });
        // All fields are the same in all packets of a session.
        let distinct: BTreeSet<&Vec<String>> = packets.iter().collect();
        assert_eq!(distinct.len(), 1, "{distinct:?}");
        let (v4_ttl, v6_ttl) = if v4 { ("255", "") } else { ("", "255") };
        let (v4_dscp, v6_dscp) = if v4 { ("48", "") } else { ("", "48") };
        let rest = [
            "3784", v4_ttl, v6_ttl, v4_dscp, v6_dscp, "1", "24", "0", "0", "0", "0", "0",
        ];
        let packet = &packets[0];
        assert_eq!(packet[1..], rest.map(str::to_owned), "{source}");
        let port: u16 = packet[0].parse().unwrap();
        assert!(port >= 49152, "{port}");
        ports.insert(port);
    }
    assert_eq!(ports.len(), 3, "each session has its own");
    // Not one packet that nobody can decode.
    assert_eq!(
        capture
            .decode("_ws.malformed", &["frame.number"])
            .unwrap()
            .len(),
        0
    );
}
