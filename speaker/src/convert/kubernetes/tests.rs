//! What Services, slices and Nodes turn into.

use serde_json::{Value, json};

use super::*;

fn parsed(spec: &Value) -> Result<Option<Service>, String> {
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": spec,
    });
    match service(&serde_json::from_value(object).unwrap()) {
        Parsed::Change(Change::Service(_, service)) => Ok(service),
        Parsed::Invalid { message, .. } => Err(message),
        other => panic!("{other:?}"),
    }
}

fn sliced(object: &Value) -> Slice {
    let mut all = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "endpoints": [],
    });
    let fields = object.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    match slice(&serde_json::from_value(all).unwrap()) {
        Parsed::Change(Change::Slice(_, Some((key, slice)))) => {
            assert_eq!(key, ServiceKey::new("default", "web"));
            slice
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_types_that_are_reached_from_outside_are_taken() {
    let kind = |spec: Value| parsed(&spec).unwrap().map(|service| service.kind);
    let load_balancer = Some(ServiceKind::LoadBalancer);
    assert_eq!(kind(json!({ "type": "LoadBalancer" })), load_balancer);
    let node_port = Some(ServiceKind::NodePort);
    assert_eq!(kind(json!({ "type": "NodePort" })), node_port);
    for other in [
        json!({ "type": "ClusterIP" }),
        json!({ "type": "ClusterIP", "clusterIP": "None" }),
        json!({ "type": "ExternalName", "externalName": "example.com" }),
        // Addresses that others route here are none of ours.
        json!({ "type": "ClusterIP", "externalIPs": ["192.0.2.10"] }),
        json!({}),
    ] {
        assert_eq!(kind(other.clone()), None, "{other}");
    }
}

#[test]
fn row_12_the_policy_of_internal_traffic_changes_nothing() {
    let spec = |policy: &str| {
        json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": policy, "ports": [{ "port": 80 }],
        })
    };
    assert_eq!(parsed(&spec("Local")), parsed(&spec("Cluster")));
    let service = parsed(&spec("Local")).unwrap().unwrap();
    assert_eq!(service.policy, TrafficPolicy::Cluster);
}

#[test]
fn row_13_what_a_service_says_of_distribution_is_left_to_the_hints() {
    let spec = |field: Option<&str>| json!({ "type": "LoadBalancer", "trafficDistribution": field, "ports": [{ "port": 80 }] });
    assert_eq!(parsed(&spec(Some("PreferSameNode"))), parsed(&spec(None)));
}

#[test]
fn row_11_a_node_port_is_what_the_service_has() {
    let spec = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [
            { "name": "a", "port": 80 },
            { "name": "b", "port": 81, "nodePort": 0 },
            { "name": "c", "port": 82, "nodePort": 30082 },
        ],
    });
    let ports = parsed(&spec).unwrap().unwrap().ports;
    let node_ports: Vec<_> = ports.iter().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [None, None, Some(30082)]);
}

#[test]
fn row_7_the_health_check_port_is_for_policy_local_alone() {
    for (kind, policy, expected) in [
        ("LoadBalancer", "Local", Some(31234)),
        ("LoadBalancer", "Cluster", None),
        ("NodePort", "Local", None),
    ] {
        let spec = json!({
            "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31234,
        });
        let service = parsed(&spec).unwrap().unwrap();
        assert_eq!(service.health_check_port, expected, "{kind} {policy}");
    }
}

#[test]
fn ports_are_sixteen_bits_and_protocols_are_three() {
    let port = |port: Value| parsed(&json!({ "type": "LoadBalancer", "ports": [port] }));
    for number in [1, 65535] {
        let service = port(json!({ "port": number })).unwrap().unwrap();
        assert_eq!(i32::from(service.ports[0].port), number);
        assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    }
    for (bad, words) in [
        (
            json!({ "name": "x", "port": 0 }),
            "port \"x\" has the number 0",
        ),
        (json!({ "port": 65536 }), "port \"\" has the number 65536"),
        (json!({ "port": -1 }), "port \"\" has the number -1"),
        (
            json!({ "port": 80, "nodePort": 70000 }),
            "port \"\" has the number 70000",
        ),
        (
            json!({ "name": "x", "port": 80, "protocol": "DCCP" }),
            "port \"x\" has the unknown protocol \"DCCP\"",
        ),
    ] {
        assert_eq!(port(bad).unwrap_err(), words);
    }
}

#[test]
fn row_15_unset_conditions_mean_ready_and_serving() {
    type Case = (Value, (bool, bool));
    // ready, serving and terminating
    let cases: [Case; 7] = [
        (json!({}), (true, false)),
        (json!({ "ready": true }), (true, false)),
        (json!({ "ready": false }), (false, false)),
        (
            json!({ "ready": false, "terminating": true }),
            (false, true),
        ),
        (
            json!({ "ready": false, "serving": true, "terminating": true }),
            (false, true),
        ),
        (
            json!({ "ready": false, "serving": false, "terminating": true }),
            (false, false),
        ),
        // Published although it is not ready: marked ready.
        (
            json!({ "ready": true, "serving": false, "terminating": true }),
            (true, false),
        ),
    ];
    for (conditions, expected) in cases {
        let slice = sliced(&json!({
            "endpoints": [{ "addresses": ["10.244.1.5"], "conditions": conditions }],
        }));
        let endpoint = &slice.endpoints[0];
        let found = (endpoint.ready, endpoint.serving_terminating);
        assert_eq!(found, expected, "{conditions}");
        assert_eq!(endpoint.node, None);
    }
}

#[test]
fn row_15_a_slice_of_names_says_so_and_has_no_endpoint() {
    let slice = sliced(&json!({
        "addressType": "FQDN",
        "endpoints": [{ "addresses": ["web.example.com"] }],
        "ports": [{ "name": "", "port": 80 }],
    }));
    assert!(slice.names && slice.endpoints.is_empty());
}

#[test]
fn what_of_a_slice_cannot_be_used_is_left_out_and_the_rest_stays() {
    let addresses = [
        "10.244.1.5",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "169.254.1.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "nonsense",
        "10.244.1.6",
    ];
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }))
        .collect();
    let slice = sliced(&json!({
        "endpoints": endpoints,
        "ports": [
            { "name": "zero", "port": 0 },
            { "name": "odd", "port": 80, "protocol": "DCCP" },
            { "name": "all" },
            { "name": "last", "port": 65535, "protocol": "SCTP" },
        ],
    }));
    let left: Vec<String> = slice
        .endpoints
        .iter()
        .map(|e| e.address.to_string())
        .collect();
    assert_eq!(left, ["10.244.1.5", "10.244.1.6"]);
    let last = ("last".to_owned(), Protocol::Sctp);
    assert_eq!(slice.ports, [(last, 65535)].into());
}

#[test]
fn row_13_hints_are_kept_and_most_endpoints_have_none() {
    let slice = sliced(&json!({
        "endpoints": [
            { "addresses": ["10.244.1.5"], "hints": {
                "forZones": [{ "name": "a" }, { "name": "b" }], "forNodes": [{ "name": "n1" }],
            } },
            { "addresses": ["10.244.1.6"], "hints": {} },
            { "addresses": ["10.244.1.7"] },
        ],
    }));
    let hints: Vec<_> = slice.endpoints.into_iter().map(|e| e.hints).collect();
    let expected = Hints {
        zones: vec!["a".to_owned(), "b".to_owned()],
        nodes: vec!["n1".to_owned()],
    };
    assert_eq!(hints, [Some(Box::new(expected)), None, None]);
}

#[test]
fn row_17_source_ranges_come_from_the_field_or_the_older_annotation() {
    let ranges = |field: Value, annotation: &str| {
        let object = json!({
            "metadata": { "name": "web", "annotations": { LEGACY_SOURCE_RANGES: annotation } },
            "spec": { "type": "LoadBalancer", "loadBalancerSourceRanges": field },
        });
        match service(&serde_json::from_value(object).unwrap()) {
            Parsed::Change(Change::Service(_, Some(service))) => service.source_ranges,
            other => panic!("{other:?}"),
        }
    };
    let nets = |list: &[&str]| -> Option<Vec<IpNet>> {
        Some(list.iter().map(|net| net.parse().unwrap()).collect())
    };
    assert_eq!(ranges(json!(null), ""), nets(&[]));
    let both = ranges(json!([" 10.0.0.0/8 "]), "192.0.2.0/24");
    assert_eq!(both, nets(&["10.0.0.0/8"]));
    let listed = ranges(json!([]), "192.0.2.0/24, 2001:db8::/32,");
    assert_eq!(listed, nets(&["192.0.2.0/24", "2001:db8::/32"]));
    assert_eq!(ranges(json!(["10.0.0.0"]), ""), None);
}

#[test]
fn row_18_affinity_is_by_the_clients_address_or_none() {
    for (field, expected) in [("ClientIP", true), ("None", false)] {
        let spec = json!({
            "type": "LoadBalancer", "sessionAffinity": field,
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
        });
        assert_eq!(parsed(&spec).unwrap().unwrap().affinity, expected);
    }
}

#[test]
fn row_23_primary_addresses_are_the_first_of_each_family() {
    let primary = |addresses: Value| {
        let object = json!({ "metadata": { "name": "n1" }, "status": { "addresses": addresses } });
        match node(&serde_json::from_value(object).unwrap()) {
            Parsed::Change(Change::Node(_, Some(node))) => {
                let all = node.primary.iter();
                all.map(IpAddr::to_string).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let address = |kind: &str, address: &str| json!({ "type": kind, "address": address });
    let both = json!([
        address("Hostname", "n1"),
        address("ExternalIP", "203.0.113.1"),
        address("InternalIP", "10.0.0.9"),
        address("InternalIP", "2001:db8::9"),
        address("InternalIP", "10.0.0.1"),
    ]);
    assert_eq!(primary(both), ["10.0.0.9", "2001:db8::9"]);
    let outside = json!([address("ExternalIP", "203.0.113.1")]);
    assert_eq!(primary(outside), ["203.0.113.1"]);
    assert!(primary(json!([])).is_empty());
}
