//! What kube-proxy promises of traffic from outside, as tables. Tests named
//! `row_N` are rows of the checklist of Kubernetes semantics.

use bellrock_forward::ExternalPolicy;

use super::*;
use crate::cluster::Hints;

fn settings(kube_proxy: bool) -> Settings {
    Settings {
        surroundings: Surroundings {
            kube_proxy,
            ..Surroundings::default()
        },
        ..Settings::default()
    }
}

fn planned(fixture: &Fixture, node: &str, settings: &Settings) -> ServicePlan {
    plan_service(&fixture.0, node, &key(), settings, false)
}

/// Last octets of the endpoints that node `me` sends to: (Cluster, Local).
fn chosen(fixture: &Fixture, me: &str) -> (Vec<u8>, Vec<u8>) {
    let port = fixture.plan(me).forward.unwrap().ports.remove(0);
    let last = |list: Vec<forward::Endpoint>| {
        let octets = list.iter().map(|e| match e.address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        });
        octets.collect()
    };
    (last(port.endpoints), last(port.local_endpoints))
}

fn hinted(address: &str, node: &str, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    Endpoint {
        hints: Some(Box::new(Hints {
            zones: owned(zones),
            nodes: owned(nodes),
        })),
        ..endpoint(address, node)
    }
}

fn unready(address: &str, node: &str) -> Endpoint {
    Endpoint {
        ready: false,
        ..endpoint(address, node)
    }
}

/// Zone a: n1 and n2; zone b: n3.
fn zoned() -> Fixture {
    let mut fixture = Fixture::new();
    for (node, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
        fixture.node(node, |node| {
            node.labels
                .insert("topology.kubernetes.io/zone".into(), zone.into());
        });
    }
    fixture
}

#[test]
fn row_5_policy_local_is_for_outside_and_callers_inside_get_any_endpoint() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    assert_eq!(
        fixture.plan("n1").forward.unwrap().policy,
        ExternalPolicy::Local
    );
    // Both lists reach the forwarder: it tells callers apart.
    fixture.endpoints(vec![
        endpoint("10.244.1.5", "n1"),
        endpoint("10.244.2.6", "n2"),
    ]);
    assert_eq!(chosen(&fixture, "n1"), (vec![5, 6], vec![5]));
    assert_eq!(chosen(&fixture, "n3"), (vec![5, 6], vec![]));
    assert_eq!(fixture.refusals("n3"), [Some(Reason::NoLocalEndpoint); 2]);
}

#[test]
fn row_6_the_first_of_ready_and_terminating_within_the_scope_of_the_policy() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    let all = |kinds: [fn(&str, &str) -> Endpoint; 2]| {
        vec![kinds[0]("10.244.1.5", "n1"), kinds[1]("10.244.2.6", "n2")]
    };
    type Case = ([fn(&str, &str) -> Endpoint; 2], (Vec<u8>, Vec<u8>));
    let cases: [Case; 6] = [
        ([endpoint, endpoint], (vec![5, 6], vec![5])),
        // Ready elsewhere, terminating here: each scope has its own choice.
        ([terminating, endpoint], (vec![6], vec![5])),
        ([endpoint, terminating], (vec![5], vec![5])),
        ([terminating, terminating], (vec![5, 6], vec![5])),
        ([unready, terminating], (vec![6], vec![])),
        ([unready, unready], (vec![], vec![])),
    ];
    for (kinds, expected) in cases {
        fixture.endpoints(all(kinds));
        assert_eq!(chosen(&fixture, "n1"), expected);
    }
}

#[test]
fn row_7_the_health_check_port_counts_ready_local_endpoints_where_kube_proxy_is_not() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::Service(
        key(),
        Some(Service {
            health_check_port: Some(31234),
            ..service(TrafficPolicy::Local)
        }),
    ));
    fixture.endpoints(vec![
        endpoint("10.244.1.5", "n1"),
        endpoint("10.244.1.6", "n1"),
        endpoint("2001:db8::7", "n1"),
        terminating("10.244.1.8", "n1"),
        terminating("10.244.2.9", "n2"),
    ]);
    let asked =
        |node: &str, kube_proxy: bool| planned(&fixture, node, &settings(kube_proxy)).health;
    let check = |v4, v6| {
        Some(HealthCheck {
            port: 31234,
            endpoints_v4: v4,
            endpoints_v6: v6,
        })
    };
    assert_eq!(asked("n1", false), check(2, 1));
    // Only terminating ones remain there: served, and not counted.
    assert_eq!(asked("n2", false), check(0, 0));
    assert_eq!(chosen(&fixture, "n2").1, [9]);
    assert_eq!(asked("n3", false), check(0, 0));
    assert_eq!(asked("n1", true), None);
    for forwarding in [Forwarding::KubeProxy, Forwarding::None] {
        let settings = Settings {
            forwarding,
            ..settings(false)
        };
        assert_eq!(planned(&fixture, "n1", &settings).health, None);
    }
}

#[test]
fn row_7_the_health_check_port_does_not_need_an_address() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::VirtualIp(ADDRESS.parse().unwrap(), None));
    let service = Service {
        health_check_port: Some(31234),
        ..service(TrafficPolicy::Local)
    };
    fixture.apply(Change::Service(key(), Some(service)));
    let health = planned(&fixture, "n1", &settings(false)).health.unwrap();
    assert_eq!(health.endpoints(true), 1);
}

#[test]
fn row_8_a_node_that_is_to_be_deleted_is_not_announced_from_and_goes_on_forwarding() {
    let mut fixture = Fixture::new();
    let before = fixture.plan("n1").forward;
    fixture.node("n1", |node| {
        node.taints.insert("ToBeDeletedByClusterAutoscaler".into());
    });
    assert_eq!(fixture.refusals("n1"), [Some(Reason::NodeBeingDeleted); 2]);
    assert_eq!(fixture.plan("n1").forward, before);
}

#[test]
fn row_11_without_node_ports_the_address_is_served_and_given_ones_are_honoured() {
    let mut fixture = Fixture::new();
    let with = |node_port| Service {
        ports: vec![ServicePort {
            node_port,
            ..service(TrafficPolicy::Cluster).ports[0].clone()
        }],
        ..service(TrafficPolicy::Cluster)
    };
    for node_port in [None, Some(30080)] {
        fixture.apply(Change::Service(key(), Some(with(node_port))));
        let forward = fixture.plan("n1").forward.unwrap();
        assert_eq!(forward.ports[0].node_port, node_port);
        assert_eq!(forward.addresses.len(), 1);
        assert_eq!(fixture.refusals("n1"), [None, None]);
    }
}

#[test]
fn row_13_hints_for_the_node_come_before_those_for_its_zone() {
    let mut fixture = zoned();
    fixture.endpoints(vec![
        hinted("10.244.1.5", "n1", &["a"], &["n1"]),
        hinted("10.244.2.6", "n2", &["a"], &["n2"]),
        hinted("10.244.3.7", "n3", &["b"], &["n3"]),
    ]);
    for (node, expected) in [("n1", 5), ("n2", 6), ("n3", 7)] {
        assert_eq!(chosen(&fixture, node).0, [expected], "{node}");
    }
    // No endpoint is for this node: its zone decides.
    fixture.endpoints(vec![
        hinted("10.244.2.6", "n2", &["a"], &["n2"]),
        hinted("10.244.3.7", "n3", &["b"], &["n3"]),
    ]);
    assert_eq!(chosen(&fixture, "n1").0, [6]);
}

#[test]
fn row_13_hints_count_only_if_all_ready_endpoints_have_them_and_one_is_for_here() {
    type Case = (Vec<Endpoint>, Vec<u8>);
    let far = || hinted("10.244.3.7", "n3", &["b"], &[]);
    let near = || hinted("10.244.2.6", "n2", &["a"], &[]);
    let bare = || endpoint("10.244.1.5", "n1");
    let cases: [Case; 6] = [
        (vec![near(), far()], vec![6]),
        // Half way through a change of the slices.
        (vec![near(), far(), bare()], vec![5, 6, 7]),
        (vec![far()], vec![7]),
        // Node hints on some, zone hints on all.
        (
            vec![hinted("10.244.1.5", "n1", &["b"], &["n1"]), near(), far()],
            vec![6],
        ),
        // Endpoints that are not ready have no say.
        (vec![near(), far(), unready("10.244.1.5", "n1")], vec![6]),
        (
            vec![near(), far(), terminating("10.244.1.5", "n1")],
            vec![6],
        ),
    ];
    for (endpoints, expected) in cases {
        let mut fixture = zoned();
        fixture.endpoints(endpoints.clone());
        assert_eq!(chosen(&fixture, "n1").0, expected, "{endpoints:?}");
    }
    // A node whose zone is not known heeds no zone.
    let mut fixture = Fixture::new();
    fixture.endpoints(vec![near(), far()]);
    assert_eq!(chosen(&fixture, "n1").0, [6, 7]);
}

#[test]
fn row_13_hints_bind_neither_terminating_endpoints_nor_policy_local() {
    let mut fixture = zoned();
    let there = |endpoint: Endpoint| Endpoint {
        hints: hinted("10.0.0.9", "x", &["b"], &["n3"]).hints,
        ..endpoint
    };
    fixture.endpoints(vec![
        there(terminating("10.244.1.5", "n1")),
        there(terminating("10.244.3.7", "n3")),
    ]);
    assert_eq!(chosen(&fixture, "n1").0, [5, 7]);
    // Each is meant for the other's node.
    fixture.endpoints(vec![
        hinted("10.244.1.5", "n1", &["b"], &["n3"]),
        hinted("10.244.3.7", "n3", &["a"], &["n1"]),
    ]);
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    assert_eq!(chosen(&fixture, "n1"), (vec![7], vec![5]));
    assert_eq!(chosen(&fixture, "n3"), (vec![5], vec![7]));
    assert_eq!(fixture.refusals("n1"), [None, None]);
}

#[test]
fn row_15_slices_are_merged_and_an_endpoint_counts_once() {
    let mut fixture = Fixture::new();
    let ports: BTreeMap<_, _> = [((String::new(), Protocol::Tcp), 8080)].into();
    // An endpoint on its way from one slice to another, and a slice of names.
    let more = slice(
        ports.clone(),
        vec![
            terminating("10.244.2.5", "n2"),
            endpoint("10.244.3.7", "n3"),
        ],
    );
    let names = Slice {
        names: true,
        ..Slice::default()
    };
    for (name, slice) in [("web-2", more), ("web-3", names)] {
        let change = Change::Slice(ServiceKey::new("default", name), Some((key(), slice)));
        fixture.apply(change);
    }
    let addresses: Vec<String> = fixture.plan("n1").forward.unwrap().ports[0]
        .endpoints
        .iter()
        .map(|e| e.address.to_string())
        .collect();
    assert_eq!(addresses, ["10.244.1.5", "10.244.2.5", "10.244.3.7"]);

    let thousand = (0..1000u32).map(|n| {
        let address = format!("10.244.{}.{}", n / 250, n % 250 + 1);
        endpoint(&address, "n2")
    });
    fixture.endpoints(thousand.collect());
    assert_eq!(chosen(&fixture, "n1").0.len(), 1000);
}

#[test]
fn row_15_names_instead_of_addresses_are_ignored_with_words() {
    let mut fixture = Fixture::new();
    fixture.endpoints(vec![]);
    let names = Slice {
        names: true,
        ..Slice::default()
    };
    let name = ServiceKey::new("default", "web-names");
    fixture.apply(Change::Slice(name, Some((key(), names))));
    let verdict = fixture.plan("n1").verdicts.remove(0);
    assert_eq!(verdict.refused, Some(Reason::NoEndpoint));
    assert!(verdict.detail.unwrap().contains("FQDN"));
}

#[test]
fn row_17_and_18_source_ranges_and_affinity_reach_the_forwarder() {
    let mut fixture = Fixture::new();
    let ranges: Vec<IpNet> = vec![
        "198.51.100.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    let service = Service {
        affinity: true,
        source_ranges: Some(ranges.clone()),
        ..service(TrafficPolicy::Cluster)
    };
    fixture.apply(Change::Service(key(), Some(service)));
    let forward = fixture.plan("n1").forward.unwrap();
    assert!(forward.affinity);
    assert_eq!(forward.source_ranges, ranges);
}

#[test]
fn row_23_node_ports_listen_on_primary_addresses_or_in_the_given_networks() {
    let mut fixture = Fixture::new();
    fixture.node("n1", |node| {
        node.addresses.insert("10.0.1.1".parse().unwrap());
    });
    let listen = |settings: &Settings| -> Vec<String> {
        let node = forward_node(&fixture.0, "n1", settings);
        let all = node.node_port_addresses.iter();
        all.map(IpAddr::to_string).collect()
    };
    assert_eq!(listen(&Settings::default()), ["10.0.0.1"]);
    let mut settings = Settings {
        node_port_networks: vec!["10.0.1.0/24".parse().unwrap()],
        ..Settings::default()
    };
    settings.surroundings.addresses = ["10.0.1.1".parse().unwrap()].into();
    assert_eq!(listen(&settings), ["10.0.1.1"]);
    settings.forwarding = Forwarding::None;
    assert!(listen(&settings).is_empty());
}

#[test]
fn row_23_an_address_that_the_kernel_answers_for_is_not_answered_for_by_us_too() {
    let fixture = Fixture::new();
    let mut settings = settings(true);
    settings.surroundings.answered = [ADDRESS.parse().unwrap()].into();
    let plan = planned(&fixture, "n1", &settings);
    let refused: Vec<_> = plan.verdicts.iter().map(|v| (v.way, v.refused)).collect();
    // Routes lead to this node alone: BGP is none the worse.
    assert_eq!(
        refused,
        [(Way::L2, Some(Reason::AnsweredByKernel)), (Way::Bgp, None)]
    );
    assert!(!plan.l2[&ADDRESS.parse().unwrap()].eligible);
}

#[test]
fn node_ports_of_other_services_are_ours_only_without_kube_proxy() {
    let mut pending = Fixture::new();
    pending.apply(Change::VirtualIp(ADDRESS.parse().unwrap(), None));
    let mut node_port = Fixture::new();
    let service = Service {
        kind: ServiceKind::NodePort,
        ..service(TrafficPolicy::Local)
    };
    node_port.apply(Change::Service(key(), Some(service)));

    for fixture in [&pending, &node_port] {
        let forward = planned(fixture, "n1", &settings(false)).forward.unwrap();
        assert!(forward.addresses.is_empty());
        assert_eq!(forward.ports[0].node_port, Some(30080));
        assert_eq!(forward.ports[0].endpoints.len(), 2);
        assert_eq!(planned(fixture, "n1", &settings(true)).forward, None);
    }
    // One of another class, or that waits for an address, says so; a NodePort
    // Service asks for none, whatever VirtualIP names it.
    let plan = planned(&pending, "n1", &settings(false));
    assert!(plan.l2.is_empty() && plan.routes.is_empty());
    let reason = Some(Reason::NoVirtualIP);
    assert!(plan.verdicts.iter().all(|v| v.refused == reason) && plan.verdicts.len() == 2);
    let plan = planned(&node_port, "n1", &settings(false));
    assert!(plan.l2.is_empty() && plan.routes.is_empty() && plan.verdicts.is_empty());
    assert_eq!(plan.forward.unwrap().policy, ExternalPolicy::Local);
}

#[test]
fn where_others_forward_the_address_is_announced_all_the_same() {
    let fixture = Fixture::new();
    for forwarding in [Forwarding::KubeProxy, Forwarding::None] {
        let settings = Settings {
            forwarding,
            ..Settings::default()
        };
        let plan = planned(&fixture, "n1", &settings);
        assert_eq!(plan.forward, None);
        assert!(plan.verdicts.iter().all(|v| v.refused.is_none()));
        assert_eq!(
            forward_node(&fixture.0, "n1", &settings),
            forward::Node::default()
        );
    }
}

#[test]
fn endpoints_on_silent_nodes_are_passed_over_unless_most_are_silent() {
    let mut fixture = Fixture::new();
    let (near, far, last) = (
        endpoint("10.244.1.5", "n1"),
        endpoint("10.244.2.6", "n2"),
        endpoint("10.244.3.7", "n3"),
    );
    let all = vec![near.clone(), far.clone(), last.clone()];
    let two = vec![far.clone(), last.clone()];
    let gone = vec![
        terminating("10.244.2.6", "n2"),
        terminating("10.244.3.7", "n3"),
    ];
    type Case<'a> = (&'a [Endpoint], &'a [&'a str], &'a [u8]);
    let cases: [Case<'_>; 8] = [
        (&all, &["n2"], &[5, 7]),
        // Two of three: it is the segment's word that is in doubt.
        (&all, &["n2", "n3"], &[5, 6, 7]),
        // This node knows better of itself.
        (&all, &["n1"], &[5, 6, 7]),
        (&all, &["n9"], &[5, 6, 7]),
        (&two, &["n2"], &[7]),
        (&two, &["n2", "n3"], &[6, 7]),
        (&two[..1], &["n2"], &[6]),
        (&gone, &["n2"], &[7]),
    ];
    for (endpoints, silent, expected) in cases {
        fixture.endpoints(endpoints.to_vec());
        let settings = Settings {
            silent: silent.iter().map(|node| (*node).to_owned()).collect(),
            ..Settings::default()
        };
        let plan = planned(&fixture, "n1", &settings);
        let port = plan.forward.unwrap().ports.remove(0);
        let octets = port.endpoints.iter().map(|e| match e.address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        });
        let octets: Vec<u8> = octets.collect();
        assert_eq!(octets, expected, "{silent:?} of {endpoints:?}");
        assert!(
            plan.verdicts
                .iter()
                .all(|verdict| verdict.refused.is_none())
        );
    }
}
