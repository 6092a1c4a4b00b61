//! MetalLB's nodes, whose cables are pulled the same way.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::world::{AFTER, CLIENT, NODES, both, probed};
use crate::figures::{Figures, percentile};
use crate::lab::Lab;
use crate::metallb;
use crate::process::Process;

/// Its own addresses, so that nothing of ours is left where it answers.
const THEIRS: RangeInclusive<IpAddr> =
    IpAddr::V4(Ipv4Addr::new(10, 10, 0, 64))..=IpAddr::V4(Ipv4Addr::new(10, 10, 0, 127));
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn measure(lab: &Lab, pulls: usize, figures: &mut Figures) -> Result<()> {
    let nodes = json!({ "nodeSelectors": [{ "matchExpressions": [{
        "key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n4"],
    }] }] });
    metallb::install(lab, &["10.10.0.64/26", "fd10::2:0/112"], &nodes)?;
    let controller = metallb::controller(lab)?;
    let speakers = metallb::speakers(lab, &lab.nodes())?;
    let address = lab.until("MetalLB's address is there", PATIENCE, || {
        let service = lab.block_on(lab.services().get("web"))?;
        let [v4, _] = both(&service).context("none")?;
        ensure!(THEIRS.contains(&v4), "{v4} is ours");
        Ok(v4)
    })?;
    lab.until("it answers", PATIENCE, || lab.http(CLIENT, address, 80))?;
    let mut outages = Vec::new();
    for _ in 0..pulls {
        // Who answers now, whatever the client remembers.
        lab.host(CLIENT).sh("ip neigh flush dev eth1")?;
        lab.until("it answers", PATIENCE, || lab.http(CLIENT, address, 80))?;
        let owner = lab.neighbour(CLIENT, address)?;
        ensure!(NODES.contains(&owner.as_str()), "{owner} answers");
        let before = joins(&speakers, &owner)?;
        let report = probed(lab, address, AFTER, || lab.cut(&owner))?;
        outages.push(report.longest_ms());
        lab.heal(&owner)?;
        lab.until("the others have the node back", PATIENCE, || {
            let now = joins(&speakers, &owner)?;
            ensure!(now > before, "{owner} has not joined");
            Ok(())
        })?;
    }
    figures.note("l2.metallb_pull_p50_ms", percentile(&outages, 50));
    for process in speakers.iter().chain([&controller]) {
        process.kill9()?;
    }
    Ok(())
}

/// How often the other speakers said that a node joined.
fn joins(speakers: &[Arc<Process>], node: &str) -> Result<usize> {
    let told = format!(r#""node event":"NodeJoin","node name":"{node}""#);
    let mut joins = 0;
    for speaker in speakers {
        joins += std::fs::read_to_string(speaker.log())?
            .matches(&told)
            .count();
    }
    Ok(joins)
}
