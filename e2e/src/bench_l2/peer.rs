//! MetalLB's nodes, whose cables are pulled the same way.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::world::{AFTER, CLIENT, NODES, both, probed};
use crate::figures::{Figures, percentile};
use crate::lab::Lab;
use crate::metallb;

const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn measure(lab: &Lab, pulls: usize, figures: &mut Figures) -> Result<()> {
    let nodes = json!({ "nodeSelectors": [{ "matchExpressions": [{
        "key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n4"],
    }] }] });
    // Its own addresses, so that nothing of ours is left where it answers.
    metallb::install(lab, &["10.10.0.64/26", "fd10::2:0/112"], &nodes)?;
    let controller = metallb::controller(lab)?;
    let speakers = metallb::speakers(lab, &lab.nodes())?;
    let address = lab.until("MetalLB's address is there", PATIENCE, || {
        let service = lab.block_on(lab.services().get("web"))?;
        let [v4, _] = both(&service).unwrap_or([[0; 4].into(), [0; 4].into()]);
        ensure!(
            v4.to_string().starts_with("10.10.0.6") || v4.to_string().starts_with("10.10.0.7"),
            "{v4}"
        );
        Ok(v4)
    })?;
    lab.until("it answers", PATIENCE, || lab.http(CLIENT, address, 80))?;
    let mut outages = Vec::new();
    for _ in 0..pulls {
        let owner = lab.neighbour(CLIENT, address)?;
        ensure!(NODES.contains(&owner.as_str()), "{owner} answers");
        let report = probed(lab, address, AFTER, || lab.cut(&owner))?;
        outages.push(report.longest_ms());
        lab.heal(&owner)?;
        // It always takes the address back.
        lab.until("the node has its address back", PATIENCE, || {
            let now = lab.neighbour(CLIENT, address)?;
            ensure!(now == owner, "{now}");
            Ok(())
        })?;
    }
    figures.note("l2.metallb_pull_p50_ms", percentile(&outages, 50));
    for process in speakers.iter().chain([&controller]) {
        process.kill9()?;
    }
    Ok(())
}
