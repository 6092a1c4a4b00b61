//! What is made of what a node has.

use super::*;

fn interfaces(list: &[(&str, &[&str])]) -> Interfaces {
    list.iter()
        .map(|(name, addresses)| {
            let addresses = addresses.iter().map(|a| a.parse().unwrap());
            ((*name).to_owned(), addresses.collect())
        })
        .collect()
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|a| a.parse().unwrap()).collect()
}

#[test]
fn row_23_an_address_on_a_dummy_interface_is_answered_unless_arp_ignore_says_no() {
    let addresses = interfaces(&[
        ("eth1", &["10.0.0.1", "2001:db8::1"]),
        ("kube-ipvs0", &["192.0.2.10", "2001:db8::10"]),
    ]);
    let own = ["10.0.0.1", "2001:db8::1"];
    for (ignore, expected) in [
        // kube-proxy in IPVS mode without strictARP.
        (0, &["10.0.0.1", "192.0.2.10", "2001:db8::1"][..]),
        (1, &own),
        (2, &own),
        (3, &["10.0.0.1", "192.0.2.10", "2001:db8::1"]),
        (8, &["2001:db8::1"]),
    ] {
        let answered = answered(&addresses, &[("eth1".to_owned(), ignore)].into());
        assert_eq!(answered, set(expected), "arp_ignore {ignore}");
    }
    assert!(super::answered(&addresses, &BTreeMap::new()).is_empty());
}

#[test]
fn only_addresses_that_are_announced_are_looked_at_for_who_answers() {
    let found = Found {
        addresses: interfaces(&[
            ("eth1", &["10.0.0.1"]),
            ("kube-ipvs0", &["192.0.2.10", "192.0.2.11"]),
        ]),
        arp_ignore: [("eth1".to_owned(), 0)].into(),
        ..Found::default()
    };
    let ours: IpAddr = "192.0.2.10".parse().unwrap();
    let (surroundings, warnings) = judge(&found, KubeProxy::Detect, &Settings::default(), |a| {
        *a == ours
    });
    assert_eq!(surroundings.answered, set(&["192.0.2.10"]));
    assert!(warnings.is_empty() && !surroundings.kube_proxy);
}

#[test]
fn what_lies_around_a_node_are_the_subnets_that_others_are_in_too() {
    let addresses = ["10.0.0.7/24", "2001:db8::7/64", "fe80::7/64", "10.0.0.9/32"];
    let parsed = addresses.map(|text| text.parse::<IpNet>().unwrap());
    let interface = InterfaceState {
        name: "eth1".to_owned(),
        index: 2,
        mac: [2, 0, 0, 0, 0, 1].into(),
        carrier: true,
        addresses: parsed.map(|net| (net.addr(), net.prefix_len())).to_vec(),
        peers: Vec::new(),
    };
    let found = subnets([&interface].into_iter());
    let expected = ["10.0.0.0/24", "2001:db8::/64"].map(|text| text.parse().unwrap());
    assert_eq!(found, expected.into());
}

#[test]
fn node_ports_may_listen_on_all_of_the_nodes_addresses_that_packets_come_to() {
    let addresses = interfaces(&[
        ("lo", &["127.0.0.1", "::1", "198.51.100.7"]),
        ("eth1", &["10.0.0.1", "fe80::1", "2001:db8::1"]),
        ("eth2", &["172.16.0.1"]),
        ("kube-ipvs0", &["10.96.0.1"]),
    ]);
    let listen = |networks: &[&str]| {
        let settings = Settings {
            node_port_networks: networks.iter().map(|n| n.parse().unwrap()).collect(),
            ..Settings::default()
        };
        for_node_ports(&addresses, &settings)
    };
    assert_eq!(listen(&[]), set(&[]));
    assert_eq!(listen(&["172.16.0.0/12"]), set(&["172.16.0.1"]));
    assert_eq!(
        listen(&["0.0.0.0/0"]),
        set(&["10.0.0.1", "172.16.0.1", "198.51.100.7"])
    );
    assert_eq!(listen(&["::/0"]), set(&["2001:db8::1"]));
}

#[test]
fn kube_proxy_is_found_by_its_rules_or_its_answer_and_the_setting_overrules_both() {
    let rules = Found {
        chains: vec![Chain {
            family: "ip",
            table: "kube-proxy".to_owned(),
            name: "services".to_owned(),
            drops_forwarded: false,
        }],
        ..Found::default()
    };
    let port = |answered_before| Found {
        health_port: true,
        answered_before,
        ..Found::default()
    };
    let nothing = Found::default();
    for (found, configured, expected) in [
        (&nothing, KubeProxy::Detect, false),
        (&rules, KubeProxy::Detect, true),
        (&port(true), KubeProxy::Detect, true),
        // It has just been started, and has no rules yet.
        (&port(false), KubeProxy::Detect, false),
        (&nothing, KubeProxy::Present, true),
        (&rules, KubeProxy::Absent, false),
    ] {
        let (surroundings, _) = judge(found, configured, &Settings::default(), |_| false);
        assert_eq!(surroundings.kube_proxy, expected, "{configured:?}");
    }
    // Where it was at work before, as is assumed at the start, it still is.
    let settings = Settings {
        surroundings: Surroundings {
            kube_proxy: true,
            ..Surroundings::default()
        },
        ..Settings::default()
    };
    let (surroundings, _) = judge(&port(false), KubeProxy::Detect, &settings, |_| false);
    assert!(surroundings.kube_proxy);
}

#[test]
fn forwarding_that_is_left_to_a_kube_proxy_that_is_not_there_has_its_reason() {
    let reasons = |forwarding, found: &Found| -> Vec<NodeReason> {
        let settings = Settings {
            forwarding,
            ..Settings::default()
        };
        let (_, warnings) = judge(found, KubeProxy::Detect, &settings, |_| false);
        warnings.into_iter().map(|(reason, _)| reason).collect()
    };
    let nothing = Found::default();
    let port = Found {
        health_port: true,
        answered_before: true,
        ..Found::default()
    };
    assert_eq!(
        reasons(Forwarding::KubeProxy, &nothing),
        [NodeReason::KubeProxyMissing]
    );
    assert_eq!(reasons(Forwarding::KubeProxy, &port), []);
    assert_eq!(reasons(Forwarding::Nftables, &nothing), []);
    assert_eq!(reasons(Forwarding::None, &nothing), []);
}

#[test]
fn kube_proxy_answers_in_a_way_of_its_own() {
    let healthy = "HTTP/1.0 200 OK\r\n\r\n{\"lastUpdated\": \"2026-01-01\",\"nodeEligible\": true}";
    let sick = "HTTP/1.0 503 Service Unavailable\r\n\r\n{\"lastUpdated\": \"2026-01-01\"}";
    assert!(is_kube_proxy(healthy) && is_kube_proxy(sick));
    for other in ["", "HTTP/1.1 200 OK\r\n\r\nok\n", "\"lastUpdated\""] {
        assert!(!is_kube_proxy(other), "{other:?}");
    }
}
