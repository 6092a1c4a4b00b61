//! Pulled cables.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::wire::Wire;
use super::world::{AFTER, CLIENT, World, lost, number};
use crate::figures::{Figures, percentile};
use crate::probe::{Connections, Report};

/// Long connections that are open meanwhile. Those through the node that is
/// cut do not survive it.
const CONNECTIONS: usize = 200;

/// Cables of both families' owners, their return, and endpoints on the node
/// that is cut.
pub(super) fn measure(world: &World<'_>, pulls: usize, figures: &mut Figures) -> Result<()> {
    let mut healed = 0.0;
    for (family, address) in ["v4", "v6"].into_iter().zip(world.addresses("web")?) {
        let mut outages = Vec::new();
        for _ in 0..pulls {
            let (report, heal) = pull(world, address, AFTER)?;
            outages.push(report.longest_ms());
            healed += lost(&heal);
        }
        figures.note(
            &format!("l2.pull_{family}_p50_ms"),
            percentile(&outages, 50),
        );
        figures.note(
            &format!("l2.pull_{family}_max_ms"),
            percentile(&outages, 100),
        );
    }
    figures.note("l2.heal_lost", healed);

    let mut whole: f64 = 0.0;
    for _ in 0..3 {
        for address in world.addresses("wide")? {
            let (report, _) = pull(world, address, 3 * AFTER)?;
            whole = whole.max(until_whole(&report));
            // The pods there answer again before the next is cut.
            world.settle()?;
        }
    }
    figures.note("l2.pull_endpoint_on_cut_node_ms", whole);
    Ok(())
}

/// From the first lost probe to the end of the last outage.
fn until_whole(report: &Report) -> f64 {
    let start = report.outages.first().map_or(0.0, |o| o.start_ms);
    let end = report.outages.iter().map(|o| o.start_ms + o.length_ms);
    end.fold(0.0, f64::max) - start
}

/// Pulls the cable of an address's owner and plugs it in again: what was
/// probed at the one and at the other.
fn pull(world: &World<'_>, address: IpAddr, after: u64) -> Result<(Report, Report)> {
    let owner = world.owner(address)?;
    let stream = SocketAddr::new(address, 81);
    let connections = Connections::open(world.lab.host(CLIENT), stream, CONNECTIONS)?;
    let pulled = world.probed(address, after, || world.lab.cut(&owner))?;
    drop(connections);
    world.moved(address, &owner)?;
    let healed = world.probed(address, 2 * AFTER, || world.lab.heal(&owner))?;
    Ok((pulled, healed))
}

/// Both cores are busy for so long: nobody is called dead for it.
pub(super) fn busy(world: &World<'_>, minutes: u64, figures: &mut Figures) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let burners: Vec<_> = (0..std::thread::available_parallelism()?.get())
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let before = epochs(world)?;
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        world.lab.ground.check()?;
    }
    let after = epochs(world);
    stop.store(true, Ordering::Relaxed);
    for burner in burners {
        let _ = burner.join();
    }
    // Each claim raises the epoch of its address by one or more.
    let claims: i64 = after?.iter().zip(&before).map(|(a, b)| a - b).sum();
    figures.note("l2.false_claims", number(usize::try_from(claims)?));
    Ok(())
}

fn epochs(world: &World<'_>) -> Result<Vec<i64>> {
    let list = world.lab.kubectl_json(&["get", "virtualips"])?;
    let items = list["items"].as_array().context("no items")?;
    let epoch = |vip: &serde_json::Value| vip["status"]["epoch"].as_i64().context("no epoch");
    items.iter().map(epoch).collect()
}

/// 20,000 ARP requests a second meanwhile, half of them for our address.
pub(super) fn flooded(world: &World<'_>, pulls: usize, figures: &mut Figures) -> Result<()> {
    let [address, _] = world.addresses("web")?;
    let IpAddr::V4(ours) = address else {
        anyhow::bail!("{address} is no IPv4 address");
    };
    let wire = Wire::open(world.lab, CLIENT)?;
    let stop = AtomicBool::new(false);
    let mut longest: f64 = 0.0;
    let (sent, took) = std::thread::scope(|scope| -> Result<(u64, Duration)> {
        let start = Instant::now();
        let flood = scope.spawn(|| wire.flood(ours, &stop));
        let measured = (0..pulls).try_for_each(|_| {
            let (report, _) = pull(world, address, AFTER)?;
            longest = longest.max(report.longest_ms());
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let took = start.elapsed();
        let sent = match flood.join() {
            Ok(sent) => sent?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        measured?;
        Ok((sent, took))
    })?;
    eprintln!("flood: {sent} requests in {took:.1?}");
    figures.note("l2.flood_pull_max_ms", longest);
    Ok(())
}

/// The same with the fast timers.
pub(super) fn tuned(world: &World<'_>, pulls: usize, figures: &mut Figures) -> Result<()> {
    let mut longest: f64 = 0.0;
    for address in world.addresses("web")? {
        for _ in 0..pulls {
            let (report, _) = pull(world, address, AFTER)?;
            longest = longest.max(report.longest_ms());
        }
    }
    figures.note("l2.tuned_max_ms", longest);
    Ok(())
}
