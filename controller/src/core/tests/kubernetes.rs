//! What Kubernetes promises of a load balancer, as far as addresses go: one test for each
//! promise. What it promises of forwarding is tested with the forwarding.

use bellrock_api::annotations::FINALIZER_CLEANUP;
use bellrock_api::virtual_ip_name;
use serde_json::{Value, json};

use super::cluster::{Cluster, address, cluster, ips, sharing};
use super::runner::run;
use crate::core::Write;
use crate::ipam::ServiceKey;

/// KEP-1959: a default provider serves Services without a class and ignores every class that is
/// not its own; what a Service had under our class goes when the class does.
#[test]
fn load_balancer_class_decides_who_serves() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let classless = cluster.put_service("classless", json!({}), json!({}));
    let ours = json!({ "loadBalancerClass": "bellrock.dev/bellrock" });
    let classed = cluster.put_service("classed", ours.clone(), json!({}));
    let theirs = json!({ "loadBalancerClass": "example.com/other" });
    let foreign = cluster.put_service("foreign", theirs, json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&classless), ["192.0.2.0"]);
    assert_eq!(cluster.addresses(&classed), ["192.0.2.1"]);
    assert_eq!(cluster.condition(&foreign), None);
    let touched = |write: &Write| matches!(write, Write::PatchStatus(p) if p.service == foreign);
    assert!(!cluster.writes.iter().any(touched), "left alone");
    // A class is wiped with the type, and given anew with it.
    cluster.put_service("classed", json!({ "type": "ClusterIP" }), json!({}));
    controller.settle_for_good(&mut cluster);
    assert!(cluster.addresses(&classed).is_empty() && cluster.condition(&classed).is_none());
    assert_eq!(cluster.claims("192.0.2.1"), None);
    cluster.put_service("classed", ours, json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&classed), ["192.0.2.1"]);
}

/// KEP-1860: packets arrive with the address as their destination, so `ipMode` is `VIP`, written
/// out, and only beside an `ip`.
#[test]
fn ip_mode_is_written() {
    let mut cluster = cluster();
    cluster.put_pool("six", json!({ "addresses": ["2001:db8::/64"] }));
    let mut controller = run(&mut cluster);
    let families = json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack" });
    let web = cluster.put_service("web", families, json!({}));
    controller.settle_for_good(&mut cluster);
    let status = cluster.services[&web].status.clone().unwrap();
    assert_eq!(
        serde_json::to_value(status.load_balancer).unwrap(),
        json!({ "ingress": [
            { "ip": "192.0.2.0", "ipMode": "VIP" }, { "ip": "2001:db8::", "ipMode": "VIP" },
        ] })
    );
}

/// KEP-1435: TCP, UDP and SCTP on one port of one address, in one Service and in several. No port
/// is ever refused alone, so no `ports[]` is written: where it is, every port must have an entry.
#[test]
fn protocols_mix_on_one_address_and_port() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let port = |protocol: &str| json!({ "name": protocol, "port": 53, "protocol": protocol });
    let all = json!({ "ports": [port("TCP"), port("UDP"), port("SCTP")] });
    let dns = cluster.put_service("dns", all, json!({}));
    let apart = ["TCP", "UDP", "SCTP"].map(|protocol| {
        let name = format!("sip-{}", protocol.to_lowercase());
        cluster.put_service(&name, json!({ "ports": [port(protocol)] }), sharing("sip"))
    });
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&dns), ["192.0.2.0"]);
    let ports: Vec<String> = cluster.vips["192.0.2.0"].spec.claims[0]
        .ports
        .iter()
        .map(|p| format!("{}/{}", p.port, p.protocol))
        .collect();
    assert_eq!(ports, ["53/TCP", "53/UDP", "53/SCTP"]);
    for key in apart {
        assert_eq!(cluster.addresses(&key), ["192.0.2.1"], "{key}");
        let status = cluster.services[&key].status.clone().unwrap();
        let ingress = status.load_balancer.unwrap().ingress.unwrap();
        assert!(ingress.iter().all(|entry| entry.ports.is_none()));
        let types: Vec<String> = status
            .conditions
            .unwrap()
            .into_iter()
            .map(|c| c.type_)
            .collect();
        assert_eq!(types, ["bellrock.dev/LoadBalancer"]);
    }
}

/// KEP-1864: an address does not depend on node ports, be there none, some, or all.
#[test]
fn node_ports_are_not_needed() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let mut spec = json!({ "allocateLoadBalancerNodePorts": false, "ports": [{ "port": 80 }] });
    let web = cluster.put_service("web", spec.clone(), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    let before = cluster.writes.len();
    spec["ports"] = json!([{ "port": 80, "nodePort": 30080 }]);
    cluster.put_service("web", spec.clone(), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes.len(), before, "a node port changes nothing");
}

/// KEP-563: one address per family of the Service, in its order; preferring degrades, requiring
/// does not; the second family comes and goes live.
#[test]
fn dual_stack_follows_the_policy() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let dual = |policy: &str, families: &[&str]| json!({ "ipFamilyPolicy": policy, "ipFamilies": families });
    let prefers = cluster.put_service("p", dual("PreferDualStack", &["IPv4", "IPv6"]), json!({}));
    let requires = cluster.put_service("r", dual("RequireDualStack", &["IPv6", "IPv4"]), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&prefers), ["192.0.2.0"]);
    assert!(cluster.addresses(&requires).is_empty());
    cluster.put_pool("six", json!({ "addresses": ["2001:db8::/64"] }));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&prefers), ["192.0.2.0", "2001:db8::"]);
    assert_eq!(cluster.addresses(&requires), ["2001:db8::1", "192.0.2.1"]);
    cluster.put_service("r", dual("SingleStack", &["IPv6"]), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&requires), ["2001:db8::1"]);
    assert_eq!(cluster.claims("192.0.2.1"), None);
}

/// `spec.loadBalancerIP` is deprecated and honoured: alone, and beside an annotation that contains
/// it.
#[test]
fn load_balancer_ip_is_honoured() {
    let mut cluster = cluster();
    cluster.put_pool("six", json!({ "addresses": ["2001:db8::/64"] }));
    let mut controller = run(&mut cluster);
    let old = cluster.put_service("old", json!({ "loadBalancerIP": "192.0.2.5" }), json!({}));
    let both = cluster.put_service(
        "both",
        json!({
            "loadBalancerIP": "192.0.2.6", "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
        }),
        ips("2001:db8::7,192.0.2.6"),
    );
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&old), ["192.0.2.5"]);
    assert_eq!(cluster.addresses(&both), ["192.0.2.6", "2001:db8::7"]);
}

/// KEP-4858: what we write is canonical, however it was asked for; leading zeros and addresses of
/// one family dressed as the other are not read at all.
#[test]
fn addresses_are_canonical() {
    let mut cluster = cluster();
    cluster.put_pool(
        "six",
        json!({ "addresses": ["2001:DB8:0:0::-2001:0db8::000f"] }),
    );
    let mut controller = run(&mut cluster);
    let six = |list: &str, cluster: &mut super::cluster::Cluster| {
        cluster.put_service("six", json!({ "ipFamilies": ["IPv6"] }), ips(list))
    };
    let key = six("2001:DB8:0::000A", &mut cluster);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&key), ["2001:db8::a"]);
    let name = virtual_ip_name(address("2001:db8::a"));
    assert_eq!(name, "2001-0db8-0000-0000-0000-0000-0000-000a");
    assert_eq!(cluster.vips[&name].spec.address, "2001:db8::a");
    for bad in [
        "192.0.2.01",
        "::ffff:192.0.2.1",
        "192.0.2.1/32",
        "0300.0.2.1",
    ] {
        let key = six(bad, &mut cluster);
        controller.settle_for_good(&mut cluster);
        assert_eq!(
            cluster.condition(&key).unwrap().1,
            "AddressInvalid",
            "{bad}"
        );
        assert_eq!(cluster.addresses(&key), ["2001:db8::a"], "{bad}");
    }
}

/// KEP-5311: names may begin with a digit. No object of ours is named after a Service.
#[test]
fn names_may_begin_with_a_digit() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let names = [
        "7",
        "0-a",
        "192-0-2-1",
        "a0123456789012345678901234567890123456789012345678901234567890",
    ];
    let keys = names.map(|name| cluster.put_service(name, json!({}), json!({})));
    controller.settle_for_good(&mut cluster);
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(cluster.addresses(key), [format!("192.0.2.{n}")]);
        let claims: Value = json!(cluster.claims(&format!("192.0.2.{n}")));
        assert_eq!(claims, json!([format!("default/{}", names[n])]));
    }
}

/// KEP-980, where the operator wants it: the finalizer is there before an address is, and goes
/// after it, when the Service is deleted or is no load balancer any more; off again, it is stripped.
#[test]
fn a_cleanup_finalizer_holds_a_service_until_its_address_is_released() {
    let mut cluster = cluster();
    let off = run(&mut cluster);
    drop(off);
    cluster.cleanup_finalizer = true;
    let mut controller = run(&mut cluster);
    let held = |cluster: &Cluster, key: &ServiceKey| {
        let finalizers = cluster.services[key].metadata.finalizers.clone();
        finalizers.unwrap_or_default()
    };
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let [
        Write::PatchFinalizers { .. },
        Write::CreateVip(_),
        Write::PatchStatus(_),
    ] = &cluster.writes[..]
    else {
        panic!("{:?}", cluster.writes);
    };
    assert_eq!(held(&cluster, &web), [FINALIZER_CLEANUP]);

    // Another type: the address goes, then the finalizer.
    cluster.writes.clear();
    cluster.put_service("web", json!({ "type": "ClusterIP" }), json!({}));
    controller.settle_for_good(&mut cluster);
    assert!(held(&cluster, &web).is_empty());
    assert_eq!(cluster.claims("192.0.2.0"), None);
    let last = cluster.writes.last();
    assert!(
        matches!(last, Some(Write::PatchFinalizers { .. })),
        "{last:?}"
    );

    // Deleted, refused or served: it goes when it holds nothing, and its address is free.
    let refused = cluster.put_service("refused", json!({}), ips("203.0.113.1"));
    cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    assert_eq!(held(&cluster, &refused), [FINALIZER_CLEANUP]);
    for key in [&web, &refused] {
        cluster.delete_service(key);
        assert!(cluster.services.contains_key(key), "held");
    }
    controller.settle_for_good(&mut cluster);
    assert!(cluster.services.is_empty() && cluster.vips.is_empty());

    // It goes with the option, and those of others stay.
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let meta = &mut cluster.services.get_mut(&web).unwrap().metadata;
    let theirs = "service.kubernetes.io/load-balancer-cleanup".to_owned();
    meta.finalizers.as_mut().unwrap().insert(0, theirs.clone());
    cluster.cleanup_finalizer = false;
    let mut controller = run(&mut cluster);
    controller.settle_for_good(&mut cluster);
    assert_eq!(held(&cluster, &web), [theirs]);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
}
