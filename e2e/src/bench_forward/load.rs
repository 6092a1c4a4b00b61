//! Full loads, one more, adoption after a restart, memory: the crate alone in a
//! namespace.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Node, Protocol, Service, ServiceKey};

use super::{Figures, median, service};
use crate::bench::mb;
use crate::netns::Netns;

type Services = BTreeMap<ServiceKey, Service>;

/// How many Services are added one after the other for the time of one.
const MORE: u32 = 100;

fn one(n: u32, endpoints: u32) -> (ServiceKey, Service) {
    let list: Vec<Endpoint> = (0..endpoints)
        .map(|at| Endpoint {
            address: Ipv4Addr::from_bits(0x0a00_0000 + endpoints * n + at).into(),
            port: 8080,
            local: at == 0 && n.is_multiple_of(50),
        })
        .collect();
    let address = Ipv4Addr::from_bits(0xc612_0000 + n);
    let mut service = service(address, 80, Protocol::Tcp, &list);
    if n % 10 == 9 {
        service.policy = ExternalPolicy::Local;
    }
    (ServiceKey::new("default", format!("s{n:06}")), service)
}

fn many(count: u32, endpoints: u32) -> Services {
    (0..count).map(|n| one(n, endpoints)).collect()
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmRSS")?.parse()?)
}

fn node() -> Result<Node> {
    Ok(Node {
        node_port_addresses: [Ipv4Addr::new(192, 0, 2, 11).into()].into(),
        pod_networks: vec!["10.0.0.0/8".parse()?],
        local_pod_networks: vec!["10.1.0.0/24".parse()?],
    })
}

/// A forwarder on a host of its own with all Services, and how long it took.
fn load(host: &Netns, services: &Services) -> Result<(Forwarder, Duration)> {
    let mut forwarder = host.run(Forwarder::open)??;
    let node = node()?;
    let start = Instant::now();
    let report = forwarder.sync(&node, services)?;
    let took = start.elapsed();
    ensure!(report.programmed == services.len(), "{report:?}");
    Ok((forwarder, took))
}

/// The usual time of one more, in ms.
fn one_more(forwarder: &mut Forwarder, after: u32) -> Result<f64> {
    let mut times = Vec::new();
    for n in after..after + MORE {
        let (key, service) = one(n, 2);
        let change = [(key, Some(service))].into();
        let start = Instant::now();
        let report = forwarder.apply(change)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(report.batches == 1, "{report:?}");
    }
    Ok(median(times))
}

pub(super) fn measure(figures: &mut Figures) -> Result<()> {
    let ten = many(10_000, 2);
    let host = Netns::new("load")?;
    let before = resident()?;
    let (mut forwarder, took) = load(&host, &ten)?;
    let grown = resident()?.saturating_sub(before);
    figures.note("forward.load_10k_s", took.as_secs_f64());
    figures.note("forward.rss_10k_mb", mb(grown));
    figures.note("forward.one_more_10k_ms", one_more(&mut forwarder, 10_000)?);
    drop(forwarder);

    // The table has 100 more by now; a restart finds all of it.
    let all = many(10_000 + MORE, 2);
    let (forwarder, took) = load(&host, &all)?;
    figures.note("forward.adopt_10k_s", took.as_secs_f64());
    drop((forwarder, host));

    let host = Netns::new("load")?;
    let (mut forwarder, took) = load(&host, &many(100_000, 2))?;
    figures.note("forward.load_100k_s", took.as_secs_f64());
    let more = one_more(&mut forwarder, 100_000)?;
    figures.note("forward.one_more_100k_ms", more);
    drop((forwarder, host));

    let host = Netns::new("load")?;
    let (_forwarder, took) = load(&host, &many(5_000, 50))?;
    figures.note("forward.load_5k_x50_s", took.as_secs_f64());
    Ok(())
}
