//! Figures, beside other speakers of the same routes in the same run, as lines
//! `bench: NAME VALUE UNIT`. Needs root, FRR and BIRD.
//!
//! ```text
//! make bench-bgp
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement reads the clock, prints, and fails loudly"
)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bellrock_bgp::message::{Context, Family};
use bellrock_bgp::rib::{AdjRibOut, RibSession};
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig, StopReason};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, veth};
use ipnet::IpNet;
use tokio::runtime::Runtime;

const NODE: &str = "192.0.2.10";
const ROUTER: &str = "192.0.2.1";
const RUNS: usize = 5;
const ROUTES: u32 = 100_000;
const CHANGES: usize = 300;
const DEADLINE: Duration = Duration::from_secs(120);

fn main() {
    let mut missed = Vec::new();
    let mut line = |name: &str, value: f64, unit: &str, most: f64| {
        println!("bench: bgp.{name} {value:.2} {unit}");
        if value > most {
            missed.push(format!(
                "bgp.{name} is {value:.2}, at most {most} was wanted"
            ));
        }
    };
    line("updates_10k_v4", updates(v4), "UPDATEs", 13.0);
    line("updates_10k_v6", updates(v6), "UPDATEs", 43.0);

    let (mut ours, mut bird, mut frr) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(load(Speaker::Ours));
        bird.push(load(Speaker::Bird));
        frr.push(load(Speaker::Frr));
    }
    let (ours, bird, frr) = (median(ours), median(bird), median(frr));
    println!("100,000 routes: ours {ours:.3} s, BIRD {bird:.3} s, FRR {frr:.3} s");
    line("routes_100k_vs_bird", ours / bird, "ratio", 1.5);
    line("routes_100k_vs_frr", ours / frr, "ratio", 0.5);

    let (announce, withdraw) = changes();
    line("announce_p99_ms", p99(announce), "ms", 5.0);
    line("withdraw_p99_ms", p99(withdraw), "ms", 5.0);

    line("rss_idle_mb", resident(1), "MB", 6.0);
    line("rss_10k_mb", resident(10_000), "MB", 10.0);
    assert!(missed.is_empty(), "missed: {missed:#?}");
}

fn v4(n: u32) -> IpNet {
    let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
    IpNet::new(address.into(), 32).unwrap()
}

fn v6(n: u32) -> IpNet {
    let address = std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n));
    IpNet::new(address.into(), 128).unwrap()
}

/// UPDATEs of at most 4096 octets for 10,000 routes.
fn updates(prefix: fn(u32) -> IpNet) -> f64 {
    let mut rib = AdjRibOut::default();
    for n in 0..10_000 {
        rib.announce(prefix(n), Attributes::default());
    }
    rib.open(RibSession {
        local: NODE.parse().unwrap(),
        peer: ROUTER.parse().unwrap(),
        local_asn: 64512,
        families: Family::ALL.to_vec(),
        context: Context::BEFORE_OPEN,
        enhanced_refresh: false,
        next_hop_v4: None,
        next_hop_v6: Some("2001:db8::10".parse().unwrap()),
        role: None,
    });
    let count = std::iter::from_fn(|| rib.next_update()).count();
    // Without End-of-RIB of both families.
    f64::from(u32::try_from(count - 2).unwrap())
}

/// Two hosts on one cable.
fn ground() -> (Netns, Netns) {
    let (node, router) = (Netns::new("node").unwrap(), Netns::new("router").unwrap());
    veth(&node, "eth0", &router, "eth0").unwrap();
    node.sh(&format!("ip addr add {NODE}/24 dev eth0")).unwrap();
    router
        .sh(&format!("ip addr add {ROUTER}/24 dev eth0"))
        .unwrap();
    (node, router)
}

fn receiver(router: &Netns, kernel: bool) -> Bird {
    let kernel = if kernel {
        "protocol kernel { ipv4 { import none; export all; }; }\n"
    } else {
        ""
    };
    let config = format!(
        "router id {ROUTER};\nprotocol device {{}}\n{kernel}\
         protocol bgp node {{\n local {ROUTER} as 64513;\n neighbor {NODE} as 64512;\n \
         passive;\n ipv4 {{ import all; export none; }};\n}}\n"
    );
    Bird::start(router, &config).unwrap()
}

fn config() -> PeerConfig {
    let mut config = PeerConfig::new(
        ROUTER.parse().unwrap(),
        64512,
        PeerAsn::Exact(64513),
        NODE.parse().unwrap(),
    );
    config.connect_retry = Duration::from_secs(1);
    config
}

fn runtime_in(node: &Netns) -> Runtime {
    node.run(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    })
    .unwrap()
}

fn spawn(runtime: &Runtime, routes: BTreeMap<IpNet, Attributes>) -> Peer {
    let _guard = runtime.enter();
    Peer::spawn(config(), routes).unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Speaker {
    Ours,
    Bird,
    Frr,
}

/// Seconds from the session to the receiver's last route, the speaker's table
/// loaded before.
fn load(speaker: Speaker) -> f64 {
    let (node, router) = ground();
    match speaker {
        Speaker::Ours => {
            let receiver = receiver(&router, false);
            let runtime = runtime_in(&node);
            let routes = (0..ROUTES).map(|n| (v4(n), Attributes::default()));
            let peer = spawn(&runtime, routes.collect());
            let seconds = until_loaded(&receiver);
            runtime.block_on(peer.stop(StopReason::PeerDeconfigured));
            seconds
        }
        Speaker::Bird => {
            let mut text = format!(
                "router id {NODE};\nprotocol device {{}}\n\
                 protocol bgp uplink {{\n disabled;\n local {NODE} as 64512;\n \
                 neighbor {ROUTER} as 64513;\n connect delay time 1;\n \
                 ipv4 {{ import none; export all; }};\n}}\nprotocol static {{\n ipv4;\n"
            );
            for n in 0..ROUTES {
                writeln!(text, " route {} blackhole;", v4(n)).unwrap();
            }
            text += "}\n";
            let sender = Bird::start(&node, &text).unwrap();
            wait(|| {
                sender
                    .birdc("show route count")
                    .unwrap()
                    .contains("100000 of")
            });
            let receiver = receiver(&router, false);
            sender.birdc("enable uplink").unwrap();
            until_loaded(&receiver)
        }
        Speaker::Frr => {
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
            let sender = Frr::start(&node, &text).unwrap();
            let receiver = receiver(&router, false);
            let start = format!("router bgp 64512\n no neighbor {ROUTER} shutdown\nexit\n");
            sender.apply(&start).unwrap();
            until_loaded(&receiver)
        }
    }
}

fn until_loaded(receiver: &Bird) -> f64 {
    wait(|| {
        receiver
            .birdc("show protocols node")
            .unwrap()
            .contains("Established")
    });
    let start = Instant::now();
    wait(|| {
        receiver
            .birdc("show route count")
            .unwrap()
            .contains("100000 of")
    });
    start.elapsed().as_secs_f64()
}

fn wait(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "nothing within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A process that ends with the measurement.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Milliseconds from one call to the peer's kernel, for announcements and for
/// withdrawals.
fn changes() -> (Vec<f64>, Vec<f64>) {
    let (node, router) = ground();
    let _receiver = receiver(&router, true);
    let mut monitor = router
        .command("ip")
        .args(["-o", "monitor", "route"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = monitor.stdout.take().unwrap();
    let _monitor = Process(monitor);
    let (seen, events) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if seen.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    // It takes a moment until the monitor hears anything.
    router.sh("ip link set lo up").unwrap();
    wait(|| {
        let line = "ip route replace 203.0.113.1 dev lo; ip route del 203.0.113.1 dev lo";
        router.sh(line).unwrap();
        events.try_recv().is_ok()
    });
    let runtime = runtime_in(&node);
    let peer = spawn(&runtime, BTreeMap::new());
    let mut status = peer.status();
    wait(|| status.borrow_and_update().messages_sent.update >= 1);
    let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let prefix = v4(u32::try_from(n).unwrap());
        let name = prefix.addr().to_string();
        for (times, attributes) in [
            (&mut announced, Some(Attributes::default())),
            (&mut withdrawn, None),
        ] {
            let gone = attributes.is_none();
            let start = Instant::now();
            runtime.block_on(peer.change(vec![(prefix, attributes)]));
            let at = loop {
                let (at, line) = events.recv_timeout(DEADLINE).unwrap();
                let mut words = line.split_whitespace();
                let deleted = line.starts_with("Deleted");
                if deleted == gone && words.any(|word| word == name) {
                    break at;
                }
            };
            times.push((at - start).as_secs_f64() * 1000.0);
        }
    }
    (announced, withdrawn)
}

/// Resident megabytes of the example `announce` with this many routes at one
/// peer.
fn resident(routes: u32) -> f64 {
    let (node, router) = ground();
    let receiver = receiver(&router, false);
    let program = std::env::current_exe().unwrap().with_file_name("announce");
    let child = node
        .command(program.to_str().unwrap())
        .args([
            "--peer",
            ROUTER,
            "--local-asn",
            "64512",
            "--peer-asn",
            "64513",
        ])
        .args(["--prefix", "10.0.0.0/32", "--count", &routes.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Process(child);
    let wanted = format!("{routes} of");
    wait(|| {
        receiver
            .birdc("show route count")
            .unwrap()
            .contains(&wanted)
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<f64>().unwrap() * 1024.0 / 1_000_000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}
