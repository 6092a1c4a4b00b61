//! Figures, beside other speakers of the same routes in the same run, as lines
//! `bench: NAME VALUE UNIT`. Needs root, FRR, BIRD and Go.
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

mod changes;
mod load;
mod peers;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bellrock_bgp::message::{Context, Family};
use bellrock_bgp::rib::{AdjRibOut, RibSession};
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::netns::{Netns, veth};
use changes::changes;
use ipnet::IpNet;
use load::{Speaker, load};
use peers::flaps;
use tokio::runtime::Runtime;

const NODE: &str = "192.0.2.10";
const ROUTER: &str = "192.0.2.1";
const RUNS: usize = 5;
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

    let mut seconds = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        for (speaker, seconds) in Speaker::ALL.into_iter().zip(&mut seconds) {
            seconds.push(load(speaker));
        }
    }
    let [ours, bird, gobgp, frr] = seconds.map(median);
    println!(
        "100,000 routes: ours {ours:.3} s, BIRD {bird:.3} s, GoBGP {gobgp:.3} s, FRR {frr:.3} s"
    );
    line("routes_100k_vs_bird", ours / bird, "ratio", 1.5);
    line("routes_100k_vs_gobgp", ours / gobgp, "ratio", 0.5);
    line("routes_100k_vs_frr", ours / frr, "ratio", 0.5);

    let (announce, withdraw) = changes();
    line("announce_p99_ms", p99(announce), "ms", 5.0);
    line("withdraw_p99_ms", p99(withdraw), "ms", 5.0);

    line("rss_idle_mb", resident(1), "MB", 6.0);
    line("rss_10k_mb", resident(10_000), "MB", 10.0);

    line("peers_500_flaps", flaps(), "flaps", 0.0);
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
