//! Connections beside kube-proxy: the same 10,000 Services on three nodes, one
//! with kube-proxy's nftables mode, one with its iptables mode, one with ours.
//!
//! ```text
//! client ── node n1 (kube-proxy nftables) ── pods
//! client ── node n2 (kube-proxy iptables) ── pods
//! client ── node n3 (ours)                ── pods
//! ```
//!
//! The pods are on no node, so that everybody has to translate both ways. The
//! three take turns in short slices, so that what disturbs one disturbs all.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bellrock_forward::{Endpoint, Forwarder, Node, Protocol, ServiceKey};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use socket2::SockRef;

use super::peer::listen;
use super::{Figures, median, percentile, service};
use crate::cluster::KubeProxy;
use crate::lab::{Lab, Options};
use crate::netns::{Netns, veth};
use crate::probe;

pub(super) const SOON: Duration = Duration::from_secs(10);
/// For kube-proxy's first synchronisation.
const LONG: Duration = Duration::from_secs(900);
const SERVICES: u32 = 10_000;
const ROUNDS: usize = 5;
/// Turns of each in a round.
const TURNS: usize = 50;
/// Connections of a turn.
const TURN: usize = 200;
/// Turns of each, and their length, for connections a second.
const RATE_TURNS: usize = 6;
const RATE_TURN: Duration = Duration::from_millis(500);
const RATE_THREADS: usize = 4;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc612_4000 + n)
}

fn pods(n: u32) -> [Ipv4Addr; 2] {
    [0, 1].map(|at| Ipv4Addr::from_bits(0x0af4_8000 + 2 * n + at))
}

async fn create(client: &Client) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let (services, slices) = (&services, &slices);
    stream::iter(0..SERVICES)
        .map(|n| async move {
            let name = format!("s{n:05}");
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
                "endpoints": [{ "addresses": [pods(n)[0]] }, { "addresses": [pods(n)[1]] }],
            });
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
                "spec": {
                    "externalIPs": [address(n)],
                    "ports": [{ "port": 80, "targetPort": 8080 }],
                },
            });
            let post = PostParams::default();
            slices
                .create(&post, &serde_json::from_value(slice)?)
                .await?;
            services
                .create(&post, &serde_json::from_value(service)?)
                .await?;
            anyhow::Ok(())
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
}

/// Accepts and closes.
struct Pods {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Pods {
    fn start(host: &Netns) -> Result<Self> {
        let listener = host.run(|| listen(8080))??;
        SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2)
            .map(|_| {
                let listener = listener.try_clone()?;
                let stop = Arc::clone(&stop);
                Ok(std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = listener.accept();
                    }
                }))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { stop, threads })
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Who forwards on a node, with a client and pods of its own.
struct Contender<'a> {
    name: &'static str,
    node: &'a Netns,
    client: Netns,
    _servers: Pods,
    _pods: Netns,
}

impl<'a> Contender<'a> {
    fn new(name: &'static str, node: &'a Netns, number: usize) -> Result<Self> {
        let (client, pods) = (Netns::new("client")?, Netns::new("pods")?);
        veth(&client, "eth0", node, "bclient")?;
        veth(&pods, "eth0", node, "bpods")?;
        let link = |side: u8| format!("198.19.{}", 2 * number + usize::from(side));
        let (c, p) = (link(0), link(1));
        node.sh(&format!(
            "ip addr add {c}.1/24 dev bclient; ip addr add {p}.1/24 dev bpods; \
             sysctl -qw net.ipv4.ip_forward=1; ip route add 10.244.128.0/17 via {p}.2"
        ))?;
        client.sh(&format!(
            "ip addr add {c}.2/24 dev eth0; ip route add default via {c}.1"
        ))?;
        pods.sh(&format!(
            "ip addr add {p}.2/24 dev eth0; ip route add default via {p}.1; \
             ip route add local 10.244.128.0/17 dev lo"
        ))?;
        Ok(Self {
            name,
            node,
            client,
            _servers: Pods::start(&pods)?,
            _pods: pods,
        })
    }

    /// Waits until Services are served from the first to the last.
    fn serves(&self, lab: &Lab) -> Result<()> {
        let sample: Vec<u32> = (0..SERVICES).step_by(99).chain([SERVICES - 1]).collect();
        lab.until(&format!("{} serves", self.name), LONG, || {
            self.client.run(|| {
                sample
                    .iter()
                    .try_for_each(|n| connect(*n, Duration::from_millis(500)).map(drop))
            })??;
            Ok(())
        })
    }

    /// The times of some connections.
    fn turn(&self, random: &mut Random) -> Result<Vec<Duration>> {
        let order: Vec<u32> = (0..TURN).map(|_| random.below(SERVICES)).collect();
        let all: Result<Vec<Duration>> = self
            .client
            .run(|| order.iter().map(|n| connect(*n, SOON)).collect())?;
        all.with_context(|| format!("{} did not forward", self.name))
    }

    /// Connections in some time.
    fn rate(&self, random: &mut Random) -> Result<f64> {
        let seeds: Vec<u64> = (0..RATE_THREADS).map(|_| random.next()).collect();
        let start = Instant::now();
        let count = self.client.run(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = seeds
                    .into_iter()
                    .map(|seed| {
                        scope.spawn(move || -> Result<u32> {
                            let (mut random, mut count) = (Random(seed), 0);
                            while start.elapsed() < RATE_TURN {
                                connect(random.below(SERVICES), SOON)?;
                                count += 1;
                            }
                            Ok(count)
                        })
                    })
                    .collect();
                let mut sum = 0;
                for thread in threads {
                    match thread.join() {
                        Ok(count) => sum += count?,
                        Err(_) => bail!("a client panicked"),
                    }
                }
                Ok(sum)
            })
        })??;
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }

    /// Forgets all connections, so that nobody's table fills up.
    fn forget(&self) -> Result<()> {
        self.node.sh("conntrack -F 2>&1")?;
        Ok(())
    }
}

/// How long one takes to open. It is reset after: no state stays at the client.
fn connect(n: u32, within: Duration) -> Result<Duration> {
    let to = SocketAddr::from((address(n), 80));
    let start = Instant::now();
    let stream = TcpStream::connect_timeout(&to, within).with_context(|| to.to_string())?;
    let took = start.elapsed();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(took)
}

/// Numbers without an order (Knuth's MMIX generator), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.next() % u64::from(end)).unwrap_or_default()
    }
}

/// What kube-proxy itself says of its configuration.
fn configuration(node: &Netns, mode: &str) -> Result<String> {
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_249));
    let (status, body) = node.run(|| probe::request("GET", metrics, "/configz"))??;
    ensure!(status == 200, "kube-proxy's configuration: {status} {body}");
    let start = body.find('{').context("no JSON")?;
    let end = body.rfind('}').context("no JSON")?;
    let all: Value = serde_json::from_str(&body[start..=end])?;
    let config = &all["kubeproxy.config.k8s.io"];
    Ok(json!({
        "mode": config["mode"],
        mode: config[mode],
        "configSyncPeriod": config["configSyncPeriod"],
        "conntrack": config["conntrack"],
    })
    .to_string())
}

fn start_kube_proxy(lab: &Lab, contender: &Contender<'_>, node: &str, mode: &str) -> Result<()> {
    let proxy: KubeProxy = mode.parse().map_err(anyhow::Error::msg)?;
    let start = Instant::now();
    lab.cluster.start_proxy(node, proxy)?;
    contender.serves(lab)?;
    println!(
        "path: kube-proxy {mode} serves {SERVICES} Services {:.1} s after its start; {}",
        start.elapsed().as_secs_f64(),
        configuration(contender.node, mode)?
    );
    Ok(())
}

fn start_ours(lab: &Lab, contender: &Contender<'_>) -> Result<Forwarder> {
    let services = (0..SERVICES)
        .map(|n| {
            let endpoints = pods(n).map(|pod| Endpoint {
                address: pod.into(),
                port: 8080,
                local: false,
            });
            let service = service(address(n), 80, Protocol::Tcp, &endpoints);
            (ServiceKey::new("default", format!("s{n:05}")), service)
        })
        .collect::<BTreeMap<_, _>>();
    let node = Node {
        pod_networks: vec!["10.244.0.0/16".parse()?],
        ..Node::default()
    };
    let start = Instant::now();
    let mut forwarder = contender.node.run(Forwarder::open)??;
    forwarder.sync(&node, &services)?;
    contender.serves(lab)?;
    println!(
        "path: ours serves {SERVICES} Services {:.1} s after its start",
        start.elapsed().as_secs_f64()
    );
    Ok(forwarder)
}

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })?;
    let measured = compare(&lab, figures);
    if measured.is_err() {
        lab.keep_logs();
    }
    measured.with_context(|| format!("logs in {}", lab.dir().join("logs").display()))
}

fn compare(lab: &Lab, figures: &mut Figures) -> Result<()> {
    let start = Instant::now();
    lab.block_on(create(&lab.admin()))?;
    println!(
        "path: {SERVICES} Services with externalIPs and their EndpointSlices created in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let contenders = [
        Contender::new("kube-proxy nftables", lab.host("n1"), 1)?,
        Contender::new("kube-proxy iptables", lab.host("n2"), 2)?,
        Contender::new("ours", lab.host("n3"), 3)?,
    ];
    let [nftables, iptables, ours] = &contenders;
    start_kube_proxy(lab, nftables, "n1", "nftables")?;
    start_kube_proxy(lab, iptables, "n2", "iptables")?;
    let _forwarder = start_ours(lab, ours)?;

    let mut random = Random(1);
    let (mut p50, mut p99, mut rate) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut times: [Vec<Duration>; 3] = Default::default();
        for turn in 0..TURNS {
            for at in (0..3).map(|n| (n + turn) % 3) {
                times[at].extend(contenders[at].turn(&mut random)?);
            }
        }
        let mut rates: [Vec<f64>; 3] = Default::default();
        for turn in 0..RATE_TURNS {
            for at in (0..3).map(|n| (n + turn) % 3) {
                contenders[at].forget()?;
                rates[at].push(contenders[at].rate(&mut random)?);
            }
        }
        let half = times.each_ref().map(|times| percentile(times, 50));
        let most = times.each_ref().map(|times| percentile(times, 99));
        let rates = rates.map(median);
        for (at, contender) in contenders.iter().enumerate() {
            println!(
                "path: round {}: {:<20} first packet p50 {:.1} us, p99 {:.1} us; {:.0} connections a second",
                round + 1,
                contender.name,
                half[at],
                most[at],
                rates[at]
            );
        }
        p50.push(half[2] / half[0]);
        p99.push(most[2] / most[0]);
        rate.push(rates[2] / rates[0]);
    }
    figures.note("forward.first_packet_p50_vs_kubeproxy", median(p50));
    figures.note("forward.first_packet_p99_vs_kubeproxy", median(p99));
    figures.note("forward.conns_per_s_vs_kubeproxy", median(rate));
    Ok(())
}
