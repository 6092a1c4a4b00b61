//! How soon a receiver has all routes of a speaker.

use std::fmt::Write;
use std::time::Instant;

use bellrock_bgp::{Attributes, StopReason};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::gobgp::Gobgp;
use bellrock_e2e::netns::Netns;

use crate::{NODE, ROUTER, ground, receiver, runtime_in, spawn, v4, wait};

const ROUTES: u32 = 100_000;
/// Who fills the table of a speaker that reads no file.
const FEEDER: &str = "192.0.2.11";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Speaker {
    Ours,
    Bird,
    Gobgp,
    Frr,
}

impl Speaker {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Bird, Self::Gobgp, Self::Frr];
}

/// Seconds from the session to the receiver's last route, the speaker's table
/// loaded before.
pub(crate) fn load(speaker: Speaker) -> f64 {
    let (node, router) = ground();
    match speaker {
        Speaker::Ours => ours(&node, &router),
        Speaker::Bird => bird(&node, &router),
        Speaker::Gobgp => gobgp(&node, &router),
        Speaker::Frr => frr(&node, &router),
    }
}

fn ours(node: &Netns, router: &Netns) -> f64 {
    let receiver = receiver(router, false);
    let runtime = runtime_in(node);
    let routes = (0..ROUTES).map(|n| (v4(n), Attributes::default()));
    let peer = spawn(&runtime, routes.collect());
    let seconds = until_loaded(&receiver);
    runtime.block_on(peer.stop(StopReason::PeerDeconfigured));
    seconds
}

/// BIRD with all routes, and a session to `to` that is off.
fn bird_with_routes(node: &Netns, own: &str, asn: u32, to: &str, to_asn: u32) -> Bird {
    let mut text = format!(
        "router id {own};\nprotocol device {{}}\n\
         protocol bgp uplink {{\n disabled;\n strict bind on;\n local {own} as {asn};\n \
         neighbor {to} as {to_asn};\n connect delay time 1;\n \
         ipv4 {{ import none; export all; }};\n}}\nprotocol static {{\n ipv4;\n"
    );
    for n in 0..ROUTES {
        writeln!(text, " route {} blackhole;", v4(n)).unwrap();
    }
    text += "}\n";
    let sender = Bird::start(node, &text).unwrap();
    wait_loaded(&sender);
    sender
}

fn bird(node: &Netns, router: &Netns) -> f64 {
    let sender = bird_with_routes(node, NODE, 64512, ROUTER, 64513);
    let receiver = receiver(router, false);
    sender.birdc("enable uplink").unwrap();
    until_loaded(&receiver)
}

/// GoBGP takes routes one by one from its command line, so a BIRD beside it
/// fills its table.
fn gobgp(node: &Netns, router: &Netns) -> f64 {
    node.sh(&format!(
        "ip link set lo up; ip addr add {FEEDER}/24 dev eth0"
    ))
    .unwrap();
    let neighbor = |address: &str, asn: u32, down: bool| {
        format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\n\
             peer-as = {asn}\nadmin-down = {down}\n\
             [neighbors.transport.config]\npassive-mode = {}\nlocal-address = \"{NODE}\"\n\
             [neighbors.timers.config]\nconnect-retry = 1\nidle-hold-time-after-reset = 1\n",
            !down
        )
    };
    let text = format!(
        "[global.config]\nas = 64512\nrouter-id = \"{NODE}\"\n\
         local-address-list = [\"{NODE}\"]\n{}{}",
        neighbor(FEEDER, 64514, false),
        neighbor(ROUTER, 64513, true)
    );
    let sender = Gobgp::start(node, &text).unwrap();
    let feeder = bird_with_routes(node, FEEDER, 64514, NODE, 64512);
    feeder.birdc("enable uplink").unwrap();
    wait(|| {
        let summary = sender.json("global rib summary").unwrap();
        summary["num_path"].as_u64() == Some(u64::from(ROUTES))
    });
    let receiver = receiver(router, false);
    sender.gobgp(&format!("neighbor {ROUTER} enable")).unwrap();
    until_loaded(&receiver)
}

fn frr(node: &Netns, router: &Netns) -> f64 {
    let mut text = format!(
        "router bgp 64512\n bgp router-id {NODE}\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n neighbor {ROUTER} remote-as 64513\n \
         neighbor {ROUTER} timers connect 1\n neighbor {ROUTER} shutdown\n \
         address-family ipv4 unicast\n"
    );
    for n in 0..ROUTES {
        writeln!(text, "  network {}", v4(n)).unwrap();
    }
    text += " exit-address-family\nexit\n";
    let sender = Frr::start(node, &text).unwrap();
    let receiver = receiver(router, false);
    let start = format!("router bgp 64512\n no neighbor {ROUTER} shutdown\nexit\n");
    sender.apply(&start).unwrap();
    until_loaded(&receiver)
}

fn wait_loaded(bird: &Bird) {
    wait(|| {
        let count = bird.birdc("show route count").unwrap();
        count.contains("100000 of")
    });
}

fn until_loaded(receiver: &Bird) -> f64 {
    wait(|| {
        receiver
            .birdc("show protocols node")
            .unwrap()
            .contains("Established")
    });
    let start = Instant::now();
    wait_loaded(receiver);
    start.elapsed().as_secs_f64()
}
