//! A thousand addresses on one node, whose cable is pulled.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_arp::MacAddr;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::wire::Wire;
use super::world::{CLIENT, World, number};
use crate::figures::Figures;
use crate::lab::Lab;

const COUNT: usize = 1_000;
const CLIENTS: usize = 24;
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const PATIENCE: Duration = Duration::from_secs(180);
/// The node that has them all.
const FIRST: &str = "n1";
const OTHERS: [&str; 2] = ["n2", "n3"];

pub(super) fn measure(world: &World<'_>, figures: &mut Figures) -> Result<()> {
    let lab = world.lab;
    // They are placed while the others may not announce.
    for node in OTHERS {
        lab.kubectl(&["label", "node", node, &format!("{EXCLUDE}=")])?;
    }
    let wire = Wire::open(lab, CLIENT)?;
    let first: MacAddr = lab.mac(FIRST)?.parse()?;
    create(lab)?;
    let addresses: Vec<Ipv4Addr> = lab.until("all are placed", PATIENCE, || placed(lab, 0))?;
    let (found, _) = wire.census(&addresses, None, PATIENCE)?;
    ensure!(found.values().all(|mac| *mac == first), "{found:?}");
    for node in OTHERS {
        lab.kubectl(&["label", "node", node, &format!("{EXCLUDE}-")])?;
    }
    lab.until("all have successors", PATIENCE, || {
        placed(lab, OTHERS.len())
    })?;
    world.settle()?;
    // Nothing moved by that.
    let (found, _) = wire.census(&addresses, None, PATIENCE)?;
    ensure!(found.values().all(|mac| *mac == first), "some have moved");

    lab.cut(FIRST)?;
    let (found, took) = wire.census(&addresses, Some(first), Duration::from_secs(30))?;
    figures.note("l2.pull_1000_ms", took.as_secs_f64() * 1000.0);
    let mut shares: BTreeMap<MacAddr, usize> = BTreeMap::new();
    for mac in found.into_values() {
        *shares.entry(mac).or_default() += 1;
    }
    let share = COUNT.div_ceil(OTHERS.len()) + 1;
    let over = shares.values().map(|held| held.saturating_sub(share)).max();
    figures.note("l2.pull_1000_over_share", number(over.unwrap_or(COUNT)));
    lab.heal(FIRST)?;
    delete(lab)?;
    world.settle()
}

fn api(lab: &Lab) -> Api<Service> {
    Api::default_namespaced(lab.admin())
}

fn create(lab: &Lab) -> Result<()> {
    let api = api(lab);
    let all = stream::iter(0..COUNT).map(Ok);
    lab.block_on(all.try_for_each_concurrent(CLIENTS, |n| {
        let api = api.clone();
        async move {
            let service: Service = serde_json::from_value(json!({
                "metadata": {
                    "name": format!("many-{n}"),
                    "annotations": { "bellrock.dev/address-pool": "many" },
                },
                "spec": {
                    "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                    "selector": { "app": "web" },
                    "ports": [{ "port": 80, "targetPort": 8080 }],
                },
            }))?;
            api.create(&PostParams::default(), &service).await?;
            anyhow::Ok(())
        }
    }))
}

fn delete(lab: &Lab) -> Result<()> {
    let api = api(lab);
    let all = stream::iter(0..COUNT).map(Ok);
    lab.block_on(all.try_for_each_concurrent(CLIENTS, |n| {
        let api = api.clone();
        async move {
            let name = format!("many-{n}");
            api.delete(&name, &DeleteParams::default()).await?;
            anyhow::Ok(())
        }
    }))
}

/// The addresses, once all are on the first node with so many successors.
fn placed(lab: &Lab, successors: usize) -> Result<Vec<Ipv4Addr>> {
    let list = lab.kubectl_json(&["get", "virtualips"])?;
    let items = list["items"].as_array().context("no items")?;
    let of_pool = items.iter().filter(|vip| vip["spec"]["pool"] == "many");
    let addresses = of_pool
        .map(|vip| {
            let l2 = &vip["spec"]["l2"];
            let next = l2["successors"].as_array().map_or(0, Vec::len);
            ensure!(l2["node"] == FIRST && next == successors, "{l2}");
            ensure!(vip["status"]["owner"] == FIRST, "{}", vip["status"]);
            Ok(vip["spec"]["address"]
                .as_str()
                .unwrap_or_default()
                .parse()?)
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(addresses.len() == COUNT, "{} of {COUNT}", addresses.len());
    Ok(addresses)
}
