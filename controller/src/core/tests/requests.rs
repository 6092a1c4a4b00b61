//! What a Service asks for and gets, case by case. Every case ends with a second pass and a restart that must
//! write nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{cluster, in_pool, ips};
use super::runner::{T0, run};
use crate::core::Write;
use crate::ipam::{Family, ServiceKey, Usage};

#[test]
fn a_new_service_takes_two_writes() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let [Write::CreateVip(spec), Write::PatchStatus(patch)] = &cluster.writes[..] else {
        panic!("{:?}", cluster.writes);
    };
    assert_eq!(
        serde_json::to_value(spec).unwrap(),
        json!({
            "address": "192.0.2.0",
            "pool": "main",
            "claims": [{
                "namespace": "default", "name": "web",
                "uid": cluster.services[&web].metadata.uid,
                "ports": [{ "protocol": "TCP", "port": 80 }],
            }],
            "l2": { "node": "n1", "successors": ["n2", "n3"] },
        })
    );
    assert_eq!(
        serde_json::to_value(&patch.ingress).unwrap(),
        json!([{ "ip": "192.0.2.0", "ipMode": "VIP" }])
    );
    assert!(patch.event.is_some());
    let (met, reason, message) = cluster.condition(&web).unwrap();
    assert_eq!(
        (met, reason.as_str(), message.as_str()),
        (true, "Allocated", "192.0.2.0 from pool main")
    );
}

#[test]
fn a_deleted_service_frees_its_address_with_one_write() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle(&mut cluster);
    cluster.writes.clear();
    cluster.delete_service(&web);
    controller.settle_for_good(&mut cluster);
    assert!(
        matches!(&cluster.writes[..], [Write::DeleteVip { .. }]),
        "{:?}",
        cluster.writes
    );
    assert!(cluster.vips.is_empty());
    assert_eq!(
        controller.core.allocator().usage("main", Family::V4),
        Some(Usage {
            assigned: 0,
            available: 8
        })
    );
}

#[test]
fn a_service_that_is_not_ours_any_more_gives_everything_back() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle(&mut cluster);
    cluster.put_service("web", json!({ "type": "ClusterIP" }), json!({}));
    controller.settle_for_good(&mut cluster);
    assert!(cluster.vips.is_empty());
    assert!(cluster.addresses(&web).is_empty());
    assert_eq!(cluster.condition(&web), None);
}

#[test]
fn classes_decide_who_is_served() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let served = |name: &str, class: Value| (name.to_owned(), class);
    for (name, class) in [
        served("none", Value::Null),
        served("ours", json!("bellrock.dev/bellrock")),
        served("theirs", json!("example.com/other")),
    ] {
        cluster.put_service(&name, json!({ "loadBalancerClass": class }), json!({}));
    }
    controller.settle_for_good(&mut cluster);
    let key = |name: &str| ServiceKey::new("default", name);
    assert_eq!(cluster.addresses(&key("none")).len(), 1);
    assert_eq!(cluster.addresses(&key("ours")).len(), 1);
    assert!(cluster.addresses(&key("theirs")).is_empty());
    assert_eq!(
        cluster.condition(&key("theirs")),
        None,
        "another provider's Service is left alone"
    );
}

#[test]
fn a_refusal_is_told_once_with_its_reason_and_ends_when_its_cause_does() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), in_pool("later"));
    controller.settle_for_good(&mut cluster);
    let (met, reason, message) = cluster.condition(&web).unwrap();
    assert!(!met);
    assert_eq!(reason, "PoolNotFound");
    assert!(
        message.contains("\"later\"") && message.contains("main"),
        "{message}"
    );
    assert_eq!(cluster.writes.len(), 1);
    assert_eq!(controller.core.census().pending, 1);
    // An unrelated pool changes nothing for it but the message, which names the pools there are.
    cluster.put_pool(
        "later",
        json!({ "addresses": ["198.51.100.7"], "autoAssign": false }),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["198.51.100.7"]);
    assert_eq!(cluster.condition(&web).unwrap().1, "Allocated");
    assert_eq!(controller.core.census().pending, 0);
}

#[test]
fn who_waits_for_an_address_gets_one_when_it_becomes_free() {
    let mut cluster = cluster();
    cluster.put_pool(
        "main",
        json!({ "addresses": ["192.0.2.1"], "reuseDelay": "30s" }),
    );
    let mut controller = run(&mut cluster);
    let first = cluster.put_service("first", json!({}), json!({}));
    controller.settle(&mut cluster);
    let second = cluster.put_service("second", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&second).unwrap().1, "PoolExhausted");
    cluster.delete_service(&first);
    controller.settle(&mut cluster);
    assert!(cluster.addresses(&second).is_empty());
    assert!(cluster.condition(&second).unwrap().2.contains("reuseDelay"));
    assert_eq!(
        controller.core.next_deadline(),
        Some(T0 + Duration::from_secs(30))
    );
    controller.now = T0 + Duration::from_secs(30);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&second), ["192.0.2.1"]);
}

#[test]
fn a_change_of_wish_moves_the_address_and_an_impossible_wish_does_not() {
    let mut cluster = cluster();
    cluster.put_pool(
        "other",
        json!({ "addresses": ["198.51.100.0/30"], "autoAssign": false }),
    );
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle(&mut cluster);
    for (annotations, expected, reason) in [
        (ips("192.0.2.5"), "192.0.2.5", "Allocated"),
        (json!({}), "192.0.2.5", "Allocated"),
        (ips("10.9.9.9"), "192.0.2.5", "AddressNotInPool"),
        (ips("nonsense"), "192.0.2.5", "AddressInvalid"),
        (in_pool("other"), "198.51.100.0", "Allocated"),
        (in_pool("nowhere"), "198.51.100.0", "PoolNotFound"),
        (json!({}), "198.51.100.0", "Allocated"),
    ] {
        cluster.put_service("web", json!({}), annotations.clone());
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.addresses(&web), [expected], "{annotations}");
        let (met, got, message) = cluster.condition(&web).unwrap();
        assert_eq!(got, reason, "{annotations}");
        assert_eq!(met, reason == "Allocated");
        assert!(message.contains(expected), "{message}");
        assert_eq!(cluster.vips.len(), 1, "{annotations}");
    }
    cluster.put_service("web", json!({ "loadBalancerIP": "192.0.2.3" }), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.3"]);
    cluster.put_service(
        "web",
        json!({ "loadBalancerIP": "192.0.2.3" }),
        ips("192.0.2.4"),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&web).unwrap().1, "ConflictingRequest");
    assert_eq!(cluster.addresses(&web), ["192.0.2.3"]);
}

#[test]
fn families_follow_the_policy_live_and_in_the_order_of_the_service() {
    let mut cluster = cluster();
    cluster.put_pool("six", json!({ "addresses": ["2001:db8::/64"] }));
    let mut controller = run(&mut cluster);
    let families =
        |list: &[&str], policy: &str| json!({ "ipFamilies": list, "ipFamilyPolicy": policy });
    for (spec, expected) in [
        (families(&["IPv6"], "PreferDualStack"), vec!["2001:db8::"]),
        (
            families(&["IPv6", "IPv4"], "PreferDualStack"),
            vec!["2001:db8::", "192.0.2.0"],
        ),
        (
            families(&["IPv6", "IPv4"], "RequireDualStack"),
            vec!["2001:db8::", "192.0.2.0"],
        ),
        (families(&["IPv6"], "SingleStack"), vec!["2001:db8::"]),
    ] {
        let web = cluster.put_service("web", spec.clone(), json!({}));
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.addresses(&web), expected, "{spec}");
        assert_eq!(cluster.condition(&web).unwrap().1, "Allocated", "{spec}");
    }
    // Preferred, but one family cannot be had: that is met, and told. Required: it is not.
    cluster.delete_pool("six");
    let prefers = cluster.put_service(
        "p",
        families(&["IPv4", "IPv6"], "PreferDualStack"),
        json!({}),
    );
    let requires = cluster.put_service(
        "r",
        families(&["IPv4", "IPv6"], "RequireDualStack"),
        json!({}),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&prefers).len(), 1);
    let (met, reason, message) = cluster.condition(&prefers).unwrap();
    assert!(
        met && reason == "Allocated" && message.contains("IPv6"),
        "{message}"
    );
    assert!(cluster.addresses(&requires).is_empty());
    assert_eq!(cluster.condition(&requires).unwrap().1, "FamilyUnavailable");
    // It comes: both are completed, and the first address of each stays.
    cluster.put_pool("six", json!({ "addresses": ["2001:db8:1::/64"] }));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&prefers), ["192.0.2.0", "2001:db8:1::"]);
    assert_eq!(cluster.addresses(&requires), ["192.0.2.1", "2001:db8:1::1"]);
}

fn node(addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|a| json!({ "type": "InternalIP", "address": a }))
        .collect();
    json!({ "status": { "addresses": addresses } })
}

#[test]
fn a_node_that_comes_by_the_address_of_a_service_is_told_of_and_moves_nothing() {
    let mut cluster = cluster();
    cluster.put_node("n1", node(&["192.0.2.0"]));
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    let named = cluster.put_service("named", json!({}), ips("192.0.2.7"));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);

    cluster.put_node("n2", node(&["192.0.2.1", "192.0.2.7"]));
    controller.settle_for_good(&mut cluster);
    for (key, address) in [(&web, "192.0.2.1"), (&named, "192.0.2.7")] {
        assert_eq!(cluster.addresses(key), [address]);
        assert!(cluster.claims(address).is_some());
        let (met, reason, message) = cluster.condition(key).unwrap();
        assert_eq!((met, reason.as_str()), (false, "AddressOfNode"));
        assert!(message.contains("belongs to node n2"), "{message}");
        let told = cluster.writes.iter().filter(|write| {
            matches!(write, Write::PatchStatus(patch) if patch.service == *key && patch.event.is_some())
        });
        assert_eq!(told.count(), 2, "allocated, then of a node: once each");
    }
    // The Service asks for another address, and the node goes.
    cluster.put_service("named", json!({}), ips("192.0.2.6"));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&named), ["192.0.2.6"]);
    cluster.delete_node("n2");
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
    assert_eq!(cluster.condition(&web).unwrap().1, "Allocated");
}

#[test]
fn who_asks_for_the_address_of_a_node_waits_until_the_node_has_it_no_more() {
    let mut cluster = cluster();
    cluster.put_node("n1", node(&["192.0.2.4"]));
    // Not even a reservation by hand hands it out.
    cluster.put_vip_by_hand("192.0.2.4", &["default/web"]);
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), ips("192.0.2.4"));
    controller.settle_for_good(&mut cluster);
    assert!(cluster.addresses(&web).is_empty());
    assert_eq!(cluster.condition(&web).unwrap().1, "AddressOfNode");
    assert_eq!(cluster.claims("192.0.2.4").unwrap(), ["default/web"]);
    cluster.put_node("n1", node(&["192.0.2.3"]));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.4"]);
}
