//! Services that share an address, case by case. Every case ends with a second pass and a restart
//! that must write nothing.

use serde_json::{Value, json};

use super::cluster::{Cluster, cluster, sharing};
use super::runner::{Controller, T0, run};
use crate::ipam::ServiceKey;

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

fn local(app: &str) -> Value {
    json!({ "externalTrafficPolicy": "Local", "selector": { "app": app } })
}

/// Two sharers, `a` and `b`, with such policies.
fn pair(policy: &Value) -> (Cluster, [ServiceKey; 2]) {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let keys = [("a", 80), ("b", 81)].map(|(name, port)| put(&mut cluster, name, port, policy));
    controller.settle_for_good(&mut cluster);
    for key in &keys {
        assert_eq!(cluster.addresses(key), ["192.0.2.0"]);
    }
    (cluster, keys)
}

fn put(cluster: &mut Cluster, name: &str, port: u16, policy: &Value) -> ServiceKey {
    let mut spec = policy.clone();
    spec["ports"] = json!([{ "port": port }]);
    cluster.put_service(name, spec, sharing("k"))
}

#[test]
fn who_changes_its_policy_leaves_and_the_other_stays_whoever_looks_on() {
    let cluster_wide = json!({});
    for (before, after) in [
        (&cluster_wide, &local("x")),
        (&local("x"), &cluster_wide),
        (&local("x"), &local("y")),
    ] {
        for changes in 0..2 {
            for looks_on in [true, false] {
                let (mut cluster, keys) = pair(before);
                let mut controller = Controller::start(&mut cluster, T0);
                controller.settle(&mut cluster);
                let name = keys[changes].name.clone();
                put(
                    &mut cluster,
                    &name,
                    80 + u16::try_from(changes).unwrap(),
                    after,
                );
                if !looks_on {
                    controller = Controller::start(&mut cluster, T0);
                }
                controller.settle_for_good(&mut cluster);
                let case = format!("{before} -> {after}, {name}, {looks_on}");
                assert_eq!(
                    cluster.addresses(&keys[1 - changes]),
                    ["192.0.2.0"],
                    "{case}"
                );
                assert_eq!(cluster.addresses(&keys[changes]), ["192.0.2.1"], "{case}");
            }
        }
    }
}

fn ports(count: u16) -> Value {
    let ports: Vec<Value> = (1..=count).map(|n| json!({ "port": n })).collect();
    json!({ "ports": ports })
}

fn labels(count: usize) -> Value {
    let labels = (0..count).map(|n| (format!("l{n}"), json!("x")));
    json!({ "externalTrafficPolicy": "Local", "selector": Value::Object(labels.collect()) })
}

/// The API server would refuse the VirtualIP, and the controller would try for ever.
#[test]
fn what_a_virtual_ip_cannot_record_is_refused_and_costs_nothing_that_is_held() {
    let key = |count: usize| sharing(&"k".repeat(count));
    for (fits, too_large, words) in [
        (
            (ports(1024), sharing("")),
            (ports(1025), sharing("")),
            "1025 ports",
        ),
        (
            (json!({}), key(253)),
            (json!({}), key(254)),
            "254 characters",
        ),
        ((labels(64), key(1)), (labels(65), key(1)), "65 labels"),
    ] {
        let mut cluster = cluster();
        let mut controller = run(&mut cluster);
        let web = cluster.put_service("web", too_large.0.clone(), too_large.1.clone());
        controller.settle_for_good(&mut cluster);
        let (met, reason, message) = cluster.condition(&web).unwrap();
        assert_eq!((met, reason.as_str()), (false, "RequestTooLarge"));
        assert!(message.contains(words), "{message}");
        assert!(cluster.vips.is_empty(), "{:?}", cluster.vips);

        cluster.put_service("web", fits.0, fits.1);
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.condition(&web).unwrap().1, "Allocated");
        assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);

        cluster.put_service("web", too_large.0, too_large.1);
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.condition(&web).unwrap().1, "RequestTooLarge");
        assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    }
}
