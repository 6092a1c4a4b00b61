//! Endpoint lists that shrink under a flood.
//!
//! ```text
//! client ── node ── a host that swallows what is forwarded
//! ```
//!
//! The flood's packets are dropped right after their translation, before the
//! kernel remembers them: each is the first of its flow, and looks everything
//! up. Beside it some flows that last are remembered and forwarded. A miss is a
//! packet that came to the end of one of our chains, or a datagram of a flow
//! that was not forwarded.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bellrock_forward::{Endpoint, Forwarder, Node, Protocol, Service, ServiceKey};
use serde_json::Value;

use super::{Figures, service};
use crate::netns::{Netns, veth};

const FRONT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const FLOOD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FLOWS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const MOST: u8 = 8;
const LASTS: Duration = Duration::from_secs(10);
/// Packets a second that the flood must reach.
const RATE: f64 = 200_000.0;

fn endpoints(count: u8) -> Vec<Endpoint> {
    (1..=count)
        .map(|n| Endpoint {
            address: Ipv4Addr::new(10, 244, 1, n).into(),
            port: 8080,
            local: true,
        })
        .collect()
}

fn web(count: u8) -> Service {
    service(FRONT, 53, Protocol::Udp, &endpoints(count))
}

/// Services of every size, so that the chains stay, and their counters.
fn anchor() -> Service {
    let mut all = service(Ipv4Addr::new(203, 0, 113, 99), 1, Protocol::Tcp, &[]);
    let port = all.ports.remove(0);
    for n in 1..=MOST {
        let mut port = port.clone();
        port.port = n.into();
        port.endpoints = endpoints(n);
        all.ports.push(port);
    }
    all
}

fn hosts() -> Result<[Netns; 3]> {
    let hosts = [
        Netns::new("client")?,
        Netns::new("node")?,
        Netns::new("pods")?,
    ];
    let [client, node, pods] = &hosts;
    veth(client, "eth0", node, "eth0")?;
    veth(pods, "eth0", node, "out")?;
    pods.sh("ip addr add 192.168.0.2/24 dev eth0")?;
    client.sh(&format!(
        "ip addr add {FLOOD}/24 dev eth0; ip addr add {FLOWS}/24 dev eth0; \
         ip route add default via 192.0.2.1"
    ))?;
    node.sh(
        "ip addr add 192.0.2.1/24 dev eth0; sysctl -qw net.ipv4.ip_forward=1; \
         ip addr add 192.168.0.1/24 dev out; ip route add 10.244.1.0/24 via 192.168.0.2",
    )?;
    node.sh(&format!(
        "nft add table inet sink; \
         nft add chain inet sink in '{{ type filter hook prerouting priority -98; }}'; \
         nft add rule inet sink in ip saddr {FLOOD} udp dport 8080 counter drop; \
         nft add chain inet sink through '{{ type filter hook forward priority 0; }}'; \
         nft add rule inet sink through ip saddr {FLOWS} udp dport 8080 counter"
    ))?;
    Ok(hosts)
}

/// The packets that the counters of chains with these names have seen.
fn counted(node: &Netns, table: &str, wanted: &[&str]) -> Result<u64> {
    let text = node.sh(&format!("nft -j list table inet {table}"))?;
    let json: Value = serde_json::from_str(&text)?;
    let items = json["nftables"].as_array().context("no table")?;
    let counters = items
        .iter()
        .map(|item| &item["rule"])
        .filter(|rule| {
            let chain = rule["chain"].as_str().unwrap_or_default();
            wanted.iter().any(|name| chain.starts_with(name))
        })
        .flat_map(|rule| rule["expr"].as_array().into_iter().flatten());
    Ok(counters
        .filter_map(|expr| expr["counter"]["packets"].as_u64())
        .sum())
}

/// Threads that send until they are stopped.
struct Senders {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Senders {
    /// Each thread sends by its sockets in turn, and rests after each round.
    fn start(
        client: &Netns,
        from: Ipv4Addr,
        threads: usize,
        sockets: usize,
        rest: Option<Duration>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let mut handles = Vec::new();
        for _ in 0..threads {
            let open = || -> Result<Vec<UdpSocket>> {
                (0..sockets)
                    .map(|_| {
                        let socket = UdpSocket::bind((from, 0))?;
                        socket.connect((FRONT, 53))?;
                        Ok(socket)
                    })
                    .collect()
            };
            let sockets = client.run(open)??;
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            handles.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for socket in &sockets {
                        socket.send(b"x").context("send")?;
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(rest) = rest {
                        std::thread::sleep(rest);
                    }
                }
                Ok(())
            }));
        }
        Ok(Self {
            stop,
            sent,
            threads: handles,
        })
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a sender panicked"),
            }
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let [client, node, _pods] = hosts()?;
    let key = |name| ServiceKey::new("default", name);
    let mut forwarder = node.run(Forwarder::open)??;
    let all = [(key("web"), web(MOST)), (key("anchor"), anchor())].into();
    forwarder.sync(&Node::default(), &all)?;

    let flood = Senders::start(&client, FLOOD, 2, 1, None)?;
    let rest = Some(Duration::from_millis(10));
    let flows = Senders::start(&client, FLOWS, 1, 64, rest)?;
    let start = Instant::now();
    let (mut shrinks, mut cleared) = (0_u32, 0);
    while start.elapsed() < LASTS {
        for count in (1..MOST).rev() {
            let report = forwarder.apply([(key("web"), Some(web(count)))].into())?;
            ensure!(report.refused.is_empty(), "{report:?}");
            shrinks += 1;
            cleared += report.flows_cleared;
        }
        forwarder.apply([(key("web"), Some(web(MOST)))].into())?;
    }
    let took = start.elapsed().as_secs_f64();
    let sent = flood.stop()?;
    let by_flows = flows.stop()?;

    let translated = counted(&node, "sink", &["in"])?;
    let forwarded = counted(&node, "sink", &["through"])?;
    let ends = ["outside", "inside", "cluster", "unserved", "guard"];
    let missed = counted(&node, "bellrock", &ends)?;
    let rate = f64::from(u32::try_from(sent)?) / took;
    println!(
        "shrink: {shrinks} shrinks in {took:.1} s under {rate:.0} packets a second; \
         {translated} of {sent} translated; {forwarded} of {by_flows} datagrams of 64 flows \
         forwarded, of which {cleared} moved"
    );
    let lost = sent.saturating_sub(translated) + by_flows.saturating_sub(forwarded);
    figures.note(
        "forward.shrink_misses",
        f64::from(u32::try_from(missed.max(lost))?),
    );
    ensure!(
        rate >= RATE,
        "the flood reached only {rate:.0} packets a second, {RATE:.0} are wanted"
    );
    Ok(())
}
