//! VirtualIPs made by hand. Every case ends with a second pass and a restart that must write
//! nothing.

use bellrock_api::annotations::SHARING_KEY;
use serde_json::json;

use super::cluster::{cluster, ips};
use super::runner::run;

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
fn an_address_reserved_for_several_is_shared_by_those_who_may_also_after_a_restart() {
    let mut cluster = cluster();
    cluster.put_vip_by_hand("192.0.2.5", &["default/dns-udp", "default/dns-tcp"]);
    // Restored while no controller runs.
    let ports = |protocol: &str| json!({ "ports": [{ "port": 53, "protocol": protocol }] });
    let keys = ["UDP", "TCP"].map(|protocol| {
        let name = format!("dns-{}", protocol.to_lowercase());
        cluster.put_service(&name, ports(protocol), json!({ SHARING_KEY: "dns" }))
    });
    let mut controller = run(&mut cluster);
    for key in &keys {
        assert_eq!(cluster.addresses(key), ["192.0.2.5"], "{key}");
    }
    controller.settle_for_good(&mut cluster);
    for key in &keys {
        cluster.delete_service(key);
    }
    controller.settle_for_good(&mut cluster);
    let kept = cluster.claims("192.0.2.5").unwrap();
    assert_eq!(kept, ["default/dns-udp", "default/dns-tcp"]);
}

#[test]
fn who_is_named_beside_one_that_runs_moves_nothing_and_keeps_its_place() {
    let mut cluster = cluster();
    cluster.put_vip_by_hand("192.0.2.5", &["default/blue", "default/green"]);
    let mut controller = run(&mut cluster);
    let blue = cluster.put_service("blue", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&blue), ["192.0.2.5"]);
    // The other comes while no controller runs; they share nothing.
    let green = cluster.put_service("green", json!({}), json!({}));
    let mut controller = run(&mut cluster);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&blue), ["192.0.2.5"]);
    assert_eq!(cluster.addresses(&green), ["192.0.2.0"]);
    let both = ["default/blue", "default/green"];
    assert_eq!(cluster.claims("192.0.2.5").unwrap(), both);
    cluster.delete_service(&blue);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.claims("192.0.2.5").unwrap(), both);
    assert_eq!(cluster.addresses(&green), ["192.0.2.0"], "it runs");
}

#[test]
fn a_place_that_somebody_wrote_by_hand_for_one_that_runs_elsewhere_stays() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    cluster.put_vip_by_hand("192.0.2.6", &["default/web"]);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    assert_eq!(cluster.claims("192.0.2.6").unwrap(), ["default/web"]);
    let thief = cluster.put_service("thief", json!({}), ips("192.0.2.6"));
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&thief).unwrap().1, "AddressReserved");
    // It goes there when it asks for it, and keeps its place when it asks for another one.
    for (asked, there) in [("192.0.2.6", true), ("192.0.2.3", false)] {
        cluster.put_service("web", json!({}), ips(asked));
        controller.settle_for_good(&mut cluster);
        assert_eq!(cluster.addresses(&web), [asked]);
        let claim = &cluster.vips["192.0.2.6"].spec.claims[0];
        assert_eq!(claim.uid.is_some(), there);
    }
}
