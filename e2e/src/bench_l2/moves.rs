//! What is done on purpose, and crashes: nothing may be lost.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use bellrock_api::virtual_ip_name;
use serde_json::json;

use super::world::{AFTER, CLIENT, NODES, World, lost, number};
use crate::figures::Figures;
use crate::probe::Connections;

const CONNECTIONS: usize = 200;
const TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const PATIENCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(30);

/// Probes lost and connections reset.
#[derive(Default)]
struct Cost {
    lost: f64,
    reset: f64,
}

pub(super) fn measure(world: &mut World<'_>, times: usize, figures: &mut Figures) -> Result<()> {
    let addresses = world.addresses("web")?;
    let (mut moved, mut drained, mut rolled, mut killed) = Default::default();
    for _ in 0..times {
        for address in addresses {
            let world = &*world;
            add(world, address, &mut moved, || plan_move(world, address))?;
            add(world, address, &mut drained, || drain(world, address))?;
            add(world, address, &mut killed, || kill(world, address))?;
        }
    }
    for n in 0..times {
        let address = addresses[n % 2];
        cost(world, address, &mut rolled, roll_out)?;
    }
    figures.note("l2.move_lost", moved.lost);
    figures.note("l2.move_tcp_reset", moved.reset);
    figures.note("l2.drain_lost", drained.lost);
    figures.note("l2.rollout_lost", rolled.lost);
    figures.note("l2.rollout_tcp_reset", rolled.reset);
    figures.note("l2.kill_lost", killed.lost);
    figures.note("l2.kill_tcp_reset", killed.reset);
    Ok(())
}

fn add(
    world: &World<'_>,
    address: IpAddr,
    sum: &mut Cost,
    event: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut connections = open(world, address)?;
    sum.lost += lost(&world.probed(address, AFTER, event)?);
    sum.reset += number(CONNECTIONS - connections.alive(PATIENCE));
    Ok(())
}

/// The same for what changes the world.
fn cost(
    world: &mut World<'_>,
    address: IpAddr,
    sum: &mut Cost,
    event: impl FnOnce(&mut World<'_>) -> Result<()>,
) -> Result<()> {
    let mut connections = open(world, address)?;
    let lab = world.lab;
    let report = super::world::probed(lab, address, AFTER, || event(world))?;
    sum.lost += lost(&report);
    sum.reset += number(CONNECTIONS - connections.alive(PATIENCE));
    Ok(())
}

fn open(world: &World<'_>, address: IpAddr) -> Result<Connections> {
    let stream = SocketAddr::new(address, 81);
    Connections::open(world.lab.host(CLIENT), stream, CONNECTIONS)
}

/// The address is wanted on another node.
fn plan_move(world: &World<'_>, address: IpAddr) -> Result<()> {
    let owner = world.owner(address)?;
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != owner).collect();
    let (first, rest) = others.split_first().context("one node only")?;
    let successors: Vec<&str> = rest.iter().copied().chain([owner.as_str()]).collect();
    let patch = json!({ "spec": { "l2": { "node": first, "successors": successors } } });
    let (name, patch) = (virtual_ip_name(address), patch.to_string());
    world
        .lab
        .kubectl(&["patch", "virtualip", &name, "--type=merge", "-p", &patch])?;
    world.moved(address, &owner)?;
    Ok(())
}

/// The autoscaler is about to delete the node, and thinks better of it.
fn drain(world: &World<'_>, address: IpAddr) -> Result<()> {
    let owner = world.owner(address)?;
    let taint = format!("{TAINT}=1:NoSchedule");
    world.lab.kubectl(&["taint", "nodes", &owner, &taint])?;
    world.moved(address, &owner)?;
    let gone = format!("{TAINT}-");
    world.lab.kubectl(&["taint", "nodes", &owner, &gone])?;
    Ok(())
}

/// The speaker dies, another node takes over, and it comes back.
fn kill(world: &World<'_>, address: IpAddr) -> Result<()> {
    let owner = world.owner(address)?;
    let speaker = world.speakers.get(&owner).context("its speaker")?;
    speaker.kill9()?;
    world.moved(address, &owner)?;
    speaker.restart()
}

/// A rollout with `maxSurge: 1`: on each node a new speaker, then the end of
/// the old one.
fn roll_out(world: &mut World<'_>) -> Result<()> {
    for node in world.lab.nodes() {
        world.started += 1;
        let new = world.lab.start_next_speaker(node, world.started)?;
        if let Some(old) = world.speakers.insert(node.to_owned(), new) {
            old.terminate(SOON)?;
        }
    }
    Ok(())
}
