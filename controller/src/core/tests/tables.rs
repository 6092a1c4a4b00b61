//! What a Service sees, case by case. Every case ends with a second pass and a restart that must
//! write nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, Controller, Fate, address, in_pool, ips, sharing};
use crate::core::Write;
use crate::ipam::{Family, ServiceKey, Usage};

const T0: Duration = Duration::from_secs(1_000_000);

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.put_namespace("default", &[]);
    for node in ["n1", "n2", "n3"] {
        cluster.put_node(node, json!({}));
    }
    cluster.put_advertisement("all", json!({}));
    cluster.put_pool(
        "main",
        json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": "0s" }),
    );
    cluster
}

fn run(cluster: &mut Cluster) -> Controller {
    let mut controller = Controller::start(cluster, T0);
    controller.settle(cluster);
    controller
}

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

#[test]
fn services_share_an_address_under_one_key() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let udp = json!({ "ports": [{ "port": 53, "protocol": "UDP" }] });
    let tcp = json!({ "ports": [{ "port": 53, "protocol": "TCP" }] });
    let (a, b) = (
        cluster.put_service("dns-udp", udp, sharing("dns")),
        cluster.put_service("dns-tcp", tcp.clone(), sharing("dns")),
    );
    // Both are decided before either is written: the second waits for the first one's create.
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&a), cluster.addresses(&b));
    let shared = cluster.addresses(&a)[0].clone();
    assert_eq!(
        cluster.claims(&shared).unwrap(),
        ["default/dns-udp", "default/dns-tcp"]
    );
    assert_eq!(
        cluster.writes.len(),
        4,
        "create, status, claim, status: {:?}",
        cluster.writes
    );
    // The same port: no.
    let c = cluster.put_service(
        "clash",
        tcp,
        json!({
            "bellrock.dev/sharing-key": "dns", "bellrock.dev/load-balancer-ips": shared,
        }),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&c).unwrap().1, "SharingConflict");
    // One leaves, the other stays; the last one takes the VirtualIP along.
    cluster.delete_service(&a);
    controller.settle(&mut cluster);
    assert_eq!(cluster.claims(&shared).unwrap(), ["default/dns-tcp"]);
    cluster.delete_service(&c);
    cluster.delete_service(&b);
    controller.settle_for_good(&mut cluster);
    assert!(cluster.vips.is_empty());
}

#[test]
fn a_virtual_ip_made_by_hand_reserves_its_address_and_outlives_its_service() {
    let mut cluster = cluster();
    cluster.put_vip_by_hand("192.0.2.0", &["default/web"]);
    cluster.put_vip_by_hand("192.0.2.1", &[]);
    let mut controller = run(&mut cluster);
    let other = cluster.put_service("other", json!({}), json!({}));
    let thief = cluster.put_service("thief", json!({}), ips("192.0.2.0"));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&other), ["192.0.2.2"]);
    assert_eq!(cluster.condition(&thief).unwrap().1, "AddressReserved");
    for round in 0..2 {
        let web = cluster.put_service("web", json!({}), json!({}));
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.addresses(&web), ["192.0.2.0"], "round {round}");
        let claim = cluster.vips["192.0.2.0"].spec.claims[0].clone();
        assert_eq!(claim.uid, cluster.services[&web].metadata.uid);
        cluster.delete_service(&web);
        controller.settle_for_good(&mut cluster);
        let kept = &cluster.vips["192.0.2.0"].spec.claims;
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].uid, None);
    }
    // One without claims goes to who asks for it by name, and to nobody else.
    let asks = cluster.put_service("asks", json!({}), ips("192.0.2.1"));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&asks), ["192.0.2.1"]);
}

#[test]
fn a_restart_adopts_what_the_virtual_ips_record() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let keys: Vec<ServiceKey> = (0..5)
        .map(|n| cluster.put_service(&format!("s{n}"), json!({}), json!({})))
        .collect();
    controller.settle(&mut cluster);
    let before: Vec<_> = keys.iter().map(|k| cluster.addresses(k)).collect();
    cluster.writes.clear();
    // While the controller is away: one Service goes, one is restored from a backup with a new
    // uid and no status, one comes.
    cluster.delete_service(&keys[1]);
    let restored = keys[2].clone();
    cluster.delete_service(&restored);
    cluster.put_service("s2", json!({}), json!({}));
    cluster.put_service("a-new-one", json!({}), json!({}));
    let mut controller = Controller::start(&mut cluster, T0);
    controller.settle_for_good(&mut cluster);
    for (index, key) in keys.iter().enumerate().filter(|(index, _)| *index != 1) {
        assert_eq!(cluster.addresses(key), before[index], "{key}");
    }
    assert_eq!(cluster.vips.len(), 5);
    // Delete one, claim and status of the restored one, create and status of the new one.
    assert_eq!(cluster.writes.len(), 5, "{:#?}", cluster.writes);
}

#[test]
fn a_virtual_ip_that_is_deleted_by_hand_comes_back_with_the_same_address() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    cluster.put_service("first", json!({}), json!({}));
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle(&mut cluster);
    cluster.delete_vip("192.0.2.1");
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
    assert_eq!(cluster.claims("192.0.2.1").unwrap(), ["default/web"]);
    // Even while the controller was away: the status remembers.
    cluster.delete_vip("192.0.2.0");
    cluster.delete_vip("192.0.2.1");
    let mut controller = Controller::start(&mut cluster, T0);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
}

#[test]
fn pool_edits_stop_nothing_that_runs() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle(&mut cluster);
    for spec in [
        json!({ "addresses": ["192.0.2.4/30"] }),
        json!({ "addresses": ["192.0.2.0/29"], "serviceAllocation": { "namespaces": ["other"] } }),
        json!({ "addresses": ["not an address"] }),
        json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": 7 }),
    ] {
        cluster.put_pool("main", spec.clone());
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.addresses(&web), ["192.0.2.0"], "{spec}");
    }
    let patches = controller.core.pool_patches();
    assert!(!patches[0].accepted);
    assert_eq!(patches[0].reason.as_str(), "AddressInvalid");
    cluster.put_pool("main", json!({ "addresses": ["192.0.2.4/30"] }));
    controller.settle_for_good(&mut cluster);
    let patches = controller.core.pool_patches();
    assert_eq!(patches[0].reason.as_str(), "AddressesInUseOutside");
    assert!(
        patches[0].message.contains("192.0.2.0"),
        "{}",
        patches[0].message
    );
    // The pool is renamed: the record follows, so that advertisements go on covering it.
    cluster.delete_pool("main");
    cluster.put_pool("renamed", json!({ "addresses": ["192.0.2.0/29"] }));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    assert_eq!(
        cluster.vips["192.0.2.0"].spec.pool.as_deref(),
        Some("renamed")
    );
}

#[test]
fn a_pool_for_selected_namespaces_serves_them_only_and_as_soon_as_they_match() {
    let mut cluster = Cluster::default();
    cluster.put_namespace("default", &[]);
    cluster.put_pool(
        "tenant",
        json!({
            "addresses": ["192.0.2.0/29"],
            "serviceAllocation": { "namespaceSelectors": [{ "matchLabels": { "team": "x" } }] },
        }),
    );
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    let early = cluster.put_service("not-yet/web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    for key in [&web, &early] {
        assert_eq!(cluster.condition(key).unwrap().1, "PoolNotForService");
    }
    cluster.put_namespace("not-yet", &[("team", "x")]);
    controller.settle_for_good(&mut cluster);
    assert!(cluster.addresses(&web).is_empty());
    assert_eq!(cluster.addresses(&early), ["192.0.2.0"]);
    // The label goes: who has an address keeps it.
    cluster.put_namespace("not-yet", &[]);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&early), ["192.0.2.0"]);
}

#[test]
fn placement_follows_nodes_and_advertisements_and_moves_nothing_needlessly() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    for n in 0..6 {
        cluster.put_service(&format!("s{n}"), json!({}), json!({}));
    }
    controller.settle_for_good(&mut cluster);
    let desired = |cluster: &Cluster| -> Vec<Option<String>> {
        cluster
            .vips
            .values()
            .map(|v| v.spec.l2.as_ref().map(|l2| l2.node.clone()))
            .collect()
    };
    let nodes = |names: &[&str]| -> Vec<Option<String>> {
        names.iter().map(|n| Some((*n).to_owned())).collect()
    };
    assert_eq!(
        desired(&cluster),
        nodes(&["n1", "n2", "n3", "n1", "n2", "n3"])
    );
    // Cordoned, not ready: nothing. Out of service: its addresses go to their successors.
    let writes = cluster.writes.len();
    cluster.put_node("n1", json!({ "spec": { "unschedulable": true } }));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes.len(), writes);
    cluster.put_node(
        "n1",
        json!({ "spec": { "taints": [
        { "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }
    ] } }),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(
        desired(&cluster),
        nodes(&["n2", "n2", "n3", "n3", "n2", "n3"])
    );
    // It returns: it becomes a successor, nothing flaps back.
    cluster.put_node("n1", json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(
        desired(&cluster),
        nodes(&["n2", "n2", "n3", "n3", "n2", "n3"])
    );
    assert!(
        cluster
            .vips
            .values()
            .all(|v| v.spec.l2.as_ref().unwrap().successors.len() == 2)
    );
    cluster.delete_node("n2");
    controller.settle_for_good(&mut cluster);
    assert!(desired(&cluster).iter().all(|n| n.as_deref() != Some("n2")));
    // No advertisement covers the pool on the segment: no placement.
    cluster.put_advertisement("all", json!({ "ipAddressPools": ["other"] }));
    controller.settle_for_good(&mut cluster);
    assert!(desired(&cluster).iter().all(Option::is_none));
    cluster.put_advertisement("all", json!({
        "ipAddressPools": ["main"],
        "preferredNodeSelectors": [{ "weight": 5, "preference": { "matchLabels": { "edge": "yes" } } }],
    }));
    cluster.put_node("n4", json!({ "metadata": { "labels": { "edge": "yes" } } }));
    controller.settle_for_good(&mut cluster);
    assert_eq!(desired(&cluster).len(), 6);
    assert!(desired(&cluster).iter().all(Option::is_some));
}

#[test]
fn an_answer_that_is_lost_costs_nothing() {
    for fate in [Fate::Lost, Fate::Unanswered] {
        for failing in 0..2 {
            let mut cluster = cluster();
            let mut controller = run(&mut cluster);
            let web = cluster.put_service("web", json!({}), json!({}));
            controller.hear(&mut cluster);
            assert!(controller.think());
            for write in 0..=failing {
                controller.act(
                    &mut cluster,
                    0,
                    if write == failing { fate } else { Fate::Made },
                );
            }
            controller.settle_for_good(&mut cluster);
            assert_eq!(cluster.addresses(&web), ["192.0.2.0"], "{fate:?} {failing}");
            assert_eq!(cluster.vips.len(), 1);
        }
    }
}

#[test]
fn an_address_that_somebody_else_took_first_is_left_to_them() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.hear(&mut cluster);
    assert!(controller.think());
    // Between decision and write, an administrator reserves the very address.
    cluster.put_vip_by_hand("192.0.2.0", &["elsewhere/db"]);
    controller.act(&mut cluster, 0, Fate::Made);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
    assert_eq!(cluster.claims("192.0.2.0").unwrap(), ["elsewhere/db"]);
    assert!(
        controller
            .core
            .allocator()
            .holding(address("192.0.2.0"))
            .unwrap()
            .recorded
    );
}

#[test]
fn an_old_version_from_a_slow_watch_does_not_undo_what_was_written() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.hear(&mut cluster);
    // The watch lags behind all of this: touch, create, patch.
    cluster.touch_service(&web);
    assert!(controller.think());
    controller.act(&mut cluster, 0, Fate::Made);
    controller.act(&mut cluster, 0, Fate::Made);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    // Deleted by us, told again by the watch as it was: it is not brought back.
    cluster.touch_vip("192.0.2.0");
    cluster.delete_service(&web);
    controller.settle_for_good(&mut cluster);
    assert!(cluster.vips.is_empty());
    assert!(
        controller
            .core
            .allocator()
            .holding(address("192.0.2.0"))
            .is_none()
    );
}
