//! The table itself: what the kernel and `nft` make of what we write.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bellrock_e2e::netns::{Netns, as_root};
use bellrock_forward::{
    Error, ExternalPolicy, Forwarder, Node, Port, Protocol, Report, Service, ServiceKey,
};
use common::{ip, key, local, node, port, shapes};
use serde_json::Value;

type Services = BTreeMap<ServiceKey, Service>;

fn open(host: &Netns) -> Forwarder {
    host.run(Forwarder::open).unwrap().unwrap()
}

/// What a new process finds to do: nothing, if the table is as it should be.
fn assert_nothing_to_do(host: &Netns, node: &Node, services: &Services) {
    let report = open(host).sync(node, services).unwrap();
    let done = (
        report.batches,
        report.elements_added,
        report.elements_deleted,
    );
    assert_eq!((report.replaced, done), (None, (0, 0, 0)));
}

/// Sets and maps as `nft` lists them, elements as compact JSON.
fn listed(host: &Netns) -> BTreeMap<String, BTreeSet<String>> {
    host.sh("nft list ruleset").unwrap();
    let text = host.sh("nft -j list table inet bellrock").unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let mut all = BTreeMap::new();
    for item in json["nftables"].as_array().unwrap() {
        let set = if item["map"].is_object() {
            &item["map"]
        } else {
            &item["set"]
        };
        if let Some(name) = set["name"].as_str() {
            let elements = set["elem"].as_array().map_or(&[][..], Vec::as_slice);
            all.insert(
                name.to_owned(),
                elements.iter().map(Value::to_string).collect(),
            );
        }
    }
    all
}

fn chains(host: &Netns) -> BTreeSet<String> {
    let text = host.sh("nft -j list chains").unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let items = json["nftables"].as_array().unwrap();
    items
        .iter()
        .filter_map(|i| i["chain"]["name"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Written from the meaning of the table, not from the code that fills it.
fn expected(node: &Node, services: &Services) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in services.values().filter(|s| !s.affinity) {
        for port in &service.ports {
            let vips = service.addresses.iter().map(|a| (*a, port.port));
            let node_ports = node
                .node_port_addresses
                .iter()
                .filter_map(|a| port.node_port.map(|number| (*a, number)));
            for (address, number) in vips.chain(node_ports) {
                let family = if address.is_ipv4() { '4' } else { '6' };
                let same =
                    |e: &&bellrock_forward::Endpoint| e.address.is_ipv4() == address.is_ipv4();
                let protocol = port.protocol;
                if port.endpoints.iter().filter(same).count() == 0 {
                    continue;
                }
                let front = format!(r#""{address}","{protocol}",{number}"#);
                all.entry(format!("ours{family}"))
                    .or_default()
                    .insert(format!(r#"{{"concat":[{front}]}}"#));
                let mut list = |name: &str, endpoints: &[bellrock_forward::Endpoint]| {
                    let mut sorted: Vec<_> = endpoints.iter().filter(same).collect();
                    sorted.sort();
                    for (slot, e) in sorted.iter().enumerate() {
                        all.entry(format!("{name}{family}"))
                            .or_default()
                            .insert(format!(
                                r#"[{{"concat":[{front},{slot}]}},{{"concat":["{}",{}]}}]"#,
                                e.address, e.port
                            ));
                    }
                };
                list("endpoints", &port.endpoints);
                if service.policy == ExternalPolicy::Local {
                    list("endpoints_local", &port.local_endpoints);
                }
            }
        }
    }
    for service in services.values() {
        for address in &service.addresses {
            let family = if address.is_ipv4() { '4' } else { '6' };
            all.entry(format!("addresses{family}"))
                .or_default()
                .insert(format!(r#""{address}""#));
        }
        for e in service
            .ports
            .iter()
            .flat_map(|p| &p.endpoints)
            .filter(|e| e.local)
        {
            let family = if e.address.is_ipv4() { '4' } else { '6' };
            let a = e.address;
            all.entry(format!("local{family}"))
                .or_default()
                .insert(format!(r#""{a}""#));
            all.entry(format!("hairpin{family}"))
                .or_default()
                .insert(format!(r#"{{"concat":["{a}","{a}"]}}"#));
        }
    }
    all
}

/// Compares what `nft` lists with what is expected, except for affinity,
/// whose slots are many and whose fronts are not in [`expected`].
fn assert_listed(host: &Netns, node: &Node, services: &Services) {
    let listed = listed(host);
    let expected = expected(node, services);
    for name in [
        "addresses",
        "local",
        "hairpin",
        "ours",
        "endpoints",
        "endpoints_local",
    ] {
        for family in ['4', '6'] {
            let name = format!("{name}{family}");
            let wanted = expected.get(&name).cloned().unwrap_or_default();
            assert_eq!(listed[&name], wanted, "{name}");
        }
    }
}

#[test]
fn nft_lists_every_shape_as_it_was_meant() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let report = forwarder.sync(&node(), &shapes()).unwrap();
    assert_eq!(
        (report.programmed, report.refused),
        (shapes().len(), BTreeMap::new())
    );
    host.sh("nft list ruleset").unwrap();
    host.sh("nft -j list ruleset").unwrap();
    assert_nothing_to_do(&host, &node(), &shapes());

    let plain: Services = shapes().into_iter().filter(|(_, s)| !s.affinity).collect();
    let gone = shapes()
        .into_iter()
        .filter(|(_, s)| s.affinity)
        .map(|(key, _)| (key, None));
    forwarder.apply(gone.collect()).unwrap();
    assert_listed(&host, &node(), &plain);
    let listed = listed(&host);
    assert_eq!(
        listed["sources4"]
            .iter()
            .filter(|e| e.contains("203.0.113.8"))
            .count(),
        3,
        "10.1.0.0/16 is in 10.0.0.0/8: one range for each of three protocols"
    );
    assert_eq!(listed["pods4"].len(), 2);
    assert_eq!(listed["local_pods6"].len(), 1);
    assert_nothing_to_do(&host, &node(), &plain);
}

#[test]
fn every_shape_becomes_every_other_and_goes_without_a_trace() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let empty = forwarder.sync(&node(), &Services::new()).unwrap();
    assert_eq!(empty.programmed, 0);
    let (empty, fixed) = (listed(&host), chains(&host));
    // All on the addresses and ports of one.
    let all: Vec<Service> = shapes().into_values().collect();
    let mut all: Vec<Option<Service>> = all
        .iter()
        .map(|service| {
            let mut service = service.clone();
            service.addresses = all[0].addresses.clone();
            for port in &mut service.ports {
                port.node_port = Some(30_001);
            }
            Some(service)
        })
        .step_by(3)
        .collect();
    all.push(None);
    let mut is = None;
    for from in 0..all.len() {
        for to in 0..all.len() {
            for state in [from, to] {
                let report = forwarder
                    .apply([(key("web"), all[state].clone())].into())
                    .unwrap();
                assert_eq!(report.refused, BTreeMap::new());
                if is == Some(state) {
                    assert_eq!(report.batches, 0);
                }
                is = Some(state);
            }
            let wanted = all[to].iter().map(|s| (key("web"), s.clone())).collect();
            assert_nothing_to_do(&host, &node(), &wanted);
        }
    }
    assert_eq!(is, Some(all.len() - 1), "the last is no Service");
    assert_eq!(listed(&host), empty);
    assert_eq!(chains(&host), fixed);
}

#[test]
fn someone_elses_changes_are_seen_and_put_right() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let services: Services = shapes().into_iter().take(12).collect();
    forwarder.sync(&node(), &services).unwrap();
    assert!(!forwarder.check().unwrap());

    host.sh("nft add table ip other; nft add chain ip other c; nft add rule ip other c accept")
        .unwrap();
    assert!(
        !forwarder.check().unwrap(),
        "another table is none of our business"
    );

    for deed in [
        "nft flush ruleset",
        "nft delete table inet bellrock",
        "nft flush chain inet bellrock inbound",
        "nft add rule inet bellrock guard accept",
        "nft insert rule inet bellrock cluster4_1 drop",
        "nft add chain inet bellrock mine",
        "nft add set inet bellrock mine '{ type ipv4_addr; }'",
        "nft delete element inet bellrock ours4 '{ 203.0.113.2 . tcp . 80 }'",
        "nft add element inet bellrock addresses4 '{ 198.51.100.1 }'",
        "nft flush map inet bellrock endpoints4",
        "nft flush set inet bellrock pods4",
    ] {
        host.sh(deed).unwrap();
        if kernel() >= (6, 17) || !deed.contains("element") && !deed.contains("flush map") {
            assert!(forwarder.check().unwrap(), "not seen: {deed}");
        }
        let report = forwarder.sync(&node(), &services).unwrap();
        assert_eq!(report.programmed, services.len());
        assert!(report.batches > 0, "{deed}");
        assert!(!forwarder.check().unwrap());
        assert_nothing_to_do(&host, &node(), &services);
    }
    // A value alone is seen by a synchronisation only.
    host.sh(
        "nft delete element inet bellrock endpoints4 '{ 203.0.113.2 . tcp . 80 . 0 }'; \
         nft add element inet bellrock endpoints4 '{ 203.0.113.2 . tcp . 80 . 0 : 10.9.9.9 . 1 }'",
    )
    .unwrap();
    let report = forwarder.sync(&node(), &services).unwrap();
    assert_eq!((report.elements_added, report.elements_deleted), (1, 1));
}

fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text
        .split(['.', '-'])
        .map(|n| n.trim().parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_change_on_a_table_that_was_flushed_brings_all_of_it_back() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let mut services: Services = shapes().into_iter().take(4).collect();
    forwarder.sync(&node(), &services).unwrap();
    for deed in ["nft flush ruleset", "nft flush set inet bellrock ours4"] {
        host.sh(deed).unwrap();
        let name = services.keys().next().unwrap().clone();
        services.remove(&name);
        let report = forwarder.apply([(name, None)].into()).unwrap();
        assert_eq!(report.programmed, services.len());
        assert_nothing_to_do(&host, &node(), &services);
    }
}

#[test]
fn a_table_of_another_version_is_replaced() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    for other in [
        "table inet bellrock { }",
        "table inet bellrock { comment \"bellrock forwarding, layout 0000000000000000\"; chain x { }; }",
    ] {
        host.sh(&format!("nft flush ruleset; echo '{other}' | nft -f -"))
            .unwrap();
        let report = open(&host).sync(&node(), &shapes()).unwrap();
        assert_eq!((report.programmed, report.batches), (shapes().len(), 2));
        assert!(!chains(&host).contains("x"));
        assert_nothing_to_do(&host, &node(), &shapes());
        let report = open(&host).sync(&node(), &Services::new()).unwrap();
        assert!(report.elements_deleted > 0);
    }
    host.sh("nft flush ruleset; nft add table inet bellrock")
        .unwrap();
    let report = open(&host).sync(&node(), &Services::new()).unwrap();
    assert_eq!((report.programmed, report.batches), (0, 2));
    assert_nothing_to_do(&host, &node(), &Services::new());
}

#[test]
fn services_that_cannot_be_are_refused_and_disturb_nothing() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let web = |address: &str, ports: Vec<Port>| Service {
        addresses: [ip(address)].into(),
        ports,
        ..Service::default()
    };
    let here = local("10.244.1.5", 8080);
    let good = web("203.0.113.1", vec![port(Protocol::Tcp, 80, &[here])]);
    let mut services: Services = [
        (key("good"), good.clone()),
        (
            key("zero"),
            web("203.0.113.2", vec![port(Protocol::Tcp, 0, &[here])]),
        ),
        (
            key("zero-end"),
            web(
                "203.0.113.3",
                vec![port(Protocol::Tcp, 1, &[local("10.0.0.1", 0)])],
            ),
        ),
        (
            key("loop"),
            web("127.0.0.1", vec![port(Protocol::Tcp, 80, &[here])]),
        ),
        (
            key("twice"),
            web(
                "203.0.113.4",
                vec![
                    port(Protocol::Tcp, 80, &[here]),
                    port(Protocol::Tcp, 80, &[]),
                ],
            ),
        ),
        (
            key("zz-thief"),
            web("203.0.113.1", vec![port(Protocol::Tcp, 80, &[here])]),
        ),
    ]
    .into();
    let report = forwarder.sync(&node(), &services).unwrap();
    let sentences: Vec<String> = report
        .refused
        .iter()
        .map(|(key, why)| format!("{}: {why}", key.name))
        .collect();
    assert_eq!(
        sentences,
        [
            "loop: 127.0.0.1 is not an address that a Service can have.",
            "twice: Two of its ports claim 203.0.113.4 port 80/tcp.",
            "zero: Port \"tcp-0\" uses the number 0, which is not a port.",
            "zero-end: Port \"tcp-1\" uses the number 0, which is not a port.",
            "zz-thief: 203.0.113.1 port 80/tcp belongs to Service default/good.",
        ]
    );
    assert_eq!(report.programmed, 1);

    // What was in force stays when its successor cannot be.
    let mut bad = good;
    bad.ports[0].port = 0;
    let report = forwarder.apply([(key("good"), Some(bad))].into()).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (0, 6));
    services.retain(|key, _| key.name == "good");
    assert_listed(&host, &node(), &services);
    let report = forwarder.apply([(key("good"), None)].into()).unwrap();
    assert_eq!(
        (report.programmed, report.refused.len()),
        (1, 4),
        "the thief comes into it"
    );
}

#[test]
fn the_node_can_change() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let services = shapes();
    forwarder.sync(&node(), &services).unwrap();
    let mut other = node();
    other.pod_networks = ["10.244.0.0/15", "10.0.0.0/8", "10.247.0.0/16"]
        .map(|n| n.parse().unwrap())
        .into();
    let report = forwarder.set_node(&other).unwrap();
    assert_eq!((report.batches, report.programmed), (1, services.len()));
    assert_nothing_to_do(&host, &other, &services);
    other.node_port_addresses = [ip("192.0.2.12"), ip("192.0.2.13")].into();
    let report = forwarder.set_node(&other).unwrap();
    assert_eq!(report.programmed, services.len());
    assert_nothing_to_do(&host, &other, &services);
    let ports: BTreeSet<IpAddr> = listed(&host)["ours4"]
        .iter()
        .filter_map(|e| e.split('"').nth(3).map(ip))
        .filter(|a| a.to_string().starts_with("192"))
        .collect();
    assert_eq!(ports, other.node_port_addresses);
    let nothing = forwarder.set_node(&other).unwrap();
    assert_eq!(nothing.batches, 0);
}

#[test]
fn many_services_are_loaded_in_batches_and_adopted_as_they_are() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let mut services = common::many(2_500);
    let report = forwarder.sync(&node(), &services).unwrap();
    // The layout, the chains, and three times up to a thousand.
    assert_eq!((report.programmed, report.batches), (2_500, 5));
    assert_nothing_to_do(&host, &node(), &services);

    // One more costs one more, whatever there is.
    let (name, one) = common::many(2_501).pop_last().unwrap();
    let report = forwarder
        .apply([(name.clone(), Some(one.clone()))].into())
        .unwrap();
    assert_eq!((report.programmed, report.batches), (2_501, 1));
    assert!(report.elements_added < 12, "{report:?}");
    services.insert(name, one);
    assert_nothing_to_do(&host, &node(), &services);

    // All at once, on a table that is not ours.
    host.sh("nft flush ruleset; nft add table inet bellrock")
        .unwrap();
    let report = forwarder.sync(&node(), &services).unwrap();
    assert_eq!((report.programmed, report.batches), (2_501, 2));
    let all = services.keys().map(|key| (key.clone(), None)).collect();
    let report = forwarder.apply(all).unwrap();
    assert_eq!(report.programmed, 0);
    assert_nothing_to_do(&host, &node(), &Services::new());
}

#[test]
fn nothing_is_touched_before_all_is_known_and_removal_removes_all() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    open(&host).sync(&node(), &shapes()).unwrap();
    let before = listed(&host);
    let mut forwarder = open(&host);
    assert!(matches!(
        forwarder.apply(BTreeMap::new()),
        Err(Error::NotSynced)
    ));
    assert!(matches!(forwarder.set_node(&node()), Err(Error::NotSynced)));
    assert!(!forwarder.check().unwrap());
    drop(forwarder);
    assert_eq!(listed(&host), before);

    host.run(Forwarder::remove_table).unwrap().unwrap();
    assert_eq!(host.sh("nft list ruleset").unwrap(), "");
    host.run(Forwarder::remove_table).unwrap().unwrap();
    let report: Report = open(&host).sync(&node(), &shapes()).unwrap();
    assert_eq!(report.programmed, shapes().len());
}
