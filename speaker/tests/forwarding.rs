//! The forwarding thread puts back what somebody else takes away.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_e2e::netns::{Netns, as_root, wait_for};
use bellrock_forward::{Endpoint, Node, Port, Protocol, Service, ServiceKey};
use bellrock_speaker::apply::forward::Forwarding;
use bellrock_speaker::plan;
use tokio::runtime::Runtime;

const LONG: Duration = Duration::from_secs(30);

fn services(count: u8) -> BTreeMap<ServiceKey, Service> {
    let service = |n: u8| Service {
        addresses: [[203, 0, 113, n].into()].into(),
        ports: vec![Port {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            endpoints: vec![Endpoint {
                address: [10, 244, 1, n].into(),
                port: 8080,
                local: true,
            }],
            local_endpoints: vec![],
        }],
        ..Service::default()
    };
    (1..=count)
        .map(|n| (ServiceKey::new("default", format!("s{n}")), service(n)))
        .collect()
}

fn elements(host: &Netns) -> Result<usize> {
    let text = host.sh("nft -j list map inet bellrock endpoints4")?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let items = json["nftables"].as_array().context("no list")?;
    let lists = items.iter().filter_map(|i| i["map"]["elem"].as_array());
    Ok(lists.map(Vec::len).sum())
}

#[test]
fn a_flushed_table_is_back_within_a_second_and_said_so_once() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let runtime = Runtime::new().unwrap();
    let forwarding = host
        .run(|| Forwarding::start(plan::Forwarding::Nftables))
        .unwrap()
        .unwrap();
    let report = runtime
        .block_on(forwarding.sync(Node::default(), services(200)))
        .unwrap();
    assert_eq!((report.programmed, report.replaced), (200, None));
    for (deed, why) in [
        ("nft flush ruleset", Some("someone removed it")),
        (
            "nft flush chain inet bellrock inbound",
            Some("its chain \"inbound\" has other rules"),
        ),
        (
            "nft delete table inet bellrock; nft add table inet bellrock",
            Some("another version made it"),
        ),
        ("nft flush map inet bellrock endpoints4", None),
    ] {
        let before = host.sh("nft -s list ruleset").unwrap();
        host.sh(deed).unwrap();
        let gone = Instant::now();
        let took = wait_for("the table to be whole again", LONG, || {
            let at = gone.elapsed();
            ensure!(elements(&host)? == 200, "{} elements", elements(&host)?);
            Ok(at)
        });
        assert!(took < Duration::from_secs(1), "{deed}: {took:?}");
        wait_for("the same ruleset as before", LONG, || {
            let now = host.sh("nft -s list ruleset")?;
            ensure!(sorted(&now) == sorted(&before), "{now}");
            Ok(())
        });
        let report = runtime.block_on(forwarding.check()).unwrap();
        assert_eq!(report.replaced.as_deref(), why, "{deed}");
        assert!(report.batches > 0 && report.programmed == 200, "{report:?}");
        let report = runtime.block_on(forwarding.check()).unwrap();
        assert_eq!(report.batches, 0, "told twice");
    }
}

#[test]
fn a_change_that_meets_a_flushed_table_tells_of_it_if_no_look_did() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let runtime = Runtime::new().unwrap();
    let forwarding = host
        .run(|| Forwarding::start(plan::Forwarding::Nftables))
        .unwrap()
        .unwrap();
    let mut all = services(200);
    runtime
        .block_on(forwarding.sync(Node::default(), all.clone()))
        .unwrap();
    // Most of the changes come before the next look.
    let mut by_change = 0;
    for _ in 0..10 {
        host.sh("nft flush ruleset").unwrap();
        let (gone, _) = all.pop_first().unwrap();
        let change = runtime
            .block_on(forwarding.apply([(gone, None)].into()))
            .unwrap();
        assert_eq!((change.programmed, change.refused.len()), (all.len(), 0));
        assert_eq!(elements(&host).unwrap(), all.len());
        let look = runtime.block_on(forwarding.check()).unwrap();
        by_change += usize::from(change.replaced.is_some());
        let told = [change.replaced, look.replaced];
        let told: Vec<String> = told.into_iter().flatten().collect();
        assert_eq!(told, ["someone removed it"]);
    }
    assert!(by_change > 0, "every look came first");
}

/// Sets list their elements in no order that lasts.
fn sorted(ruleset: &str) -> Vec<&str> {
    let mut words: Vec<&str> = ruleset
        .split([',', '\n', '{', '}'])
        .map(str::trim)
        .collect();
    words.sort_unstable();
    words
}
