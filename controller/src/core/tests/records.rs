//! What is recorded, adopted, reserved and placed, case by case. Every case ends with a second pass and a restart that must
//! write nothing.

use std::time::Duration;

use bellrock_api::annotations::{ADDRESS_POOL, SHARING_KEY};
use serde_json::json;

use super::cluster::{Cluster, address, cluster, ips};
use super::runner::{Controller, Fate, T0, run};
use crate::core::Change;
use crate::ipam::{Family, ServiceKey};

#[test]
fn a_pool_that_is_deleted_takes_no_address_from_its_place() {
    let mut cluster = cluster();
    cluster.label_pool("main", &[("env", "prod")]);
    let selectors = json!([{ "matchLabels": { "env": "prod" } }]);
    let selects = json!({ "ipAddressPoolSelectors": selectors });
    cluster.put_advertisement("all", selects);
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let place = cluster.vips["192.0.2.0"].spec.l2.clone();
    assert!(place.is_some());
    cluster.delete_pool("main");
    controller.settle(&mut cluster);
    assert_eq!(cluster.vips["192.0.2.0"].spec.l2, place);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    // Made again it has the labels that it has now.
    cluster.put_pool("main", json!({ "addresses": ["192.0.2.0/29"] }));
    controller.settle(&mut cluster);
    assert_eq!(cluster.vips["192.0.2.0"].spec.l2, None);
}

/// Helm does not bring definitions up to date: the API server may drop what it does not know.
#[test]
fn an_older_definition_of_a_virtual_ip_costs_no_writes_without_end() {
    let mut cluster = cluster();
    cluster.forgets = true;
    let mut controller = run(&mut cluster);
    let ports = |port: u16| json!({ "ports": [{ "port": port }] });
    let key = json!({ SHARING_KEY: "k" });
    let keys =
        [80, 81, 82].map(|port| cluster.put_service(&format!("s{port}"), ports(port), key.clone()));
    controller.settle_for_good(&mut cluster);
    for key in &keys {
        assert_eq!(cluster.addresses(key), ["192.0.2.0"]);
    }
    let idle = cluster.idle;
    for _ in 0..10 {
        for (key, port) in keys.iter().zip([80, 81, 82]) {
            cluster.label_service(key, &[("app", "x")]);
            cluster.put_service(&key.name, ports(port), json!({ SHARING_KEY: "k" }));
        }
        controller.settle(&mut cluster);
    }
    assert_eq!(cluster.idle, idle);
    // A start finds it out by a write that changes nothing.
    let mut controller = run(&mut cluster);
    controller.settle_for_good(&mut cluster);
    assert!(cluster.idle <= idle + 3 * keys.len(), "{}", cluster.idle);
}

#[test]
fn a_release_in_a_full_pool_is_told_to_nobody_who_waits_on() {
    let mut cluster = cluster();
    let spec = json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": "60s" });
    cluster.put_pool("main", spec);
    let mut controller = run(&mut cluster);
    let keys: Vec<ServiceKey> = (0..20)
        .map(|n| cluster.put_service(&format!("s{n:02}"), json!({}), json!({})))
        .collect();
    controller.settle_for_good(&mut cluster);
    let (reason, message) = {
        let (_, reason, message) = cluster.condition(&keys[19]).unwrap();
        (reason, message)
    };
    assert_eq!(reason, "PoolExhausted");
    assert!(
        message.contains("rests for its reuseDelay, 60s"),
        "{message}"
    );
    cluster.writes.clear();
    cluster.delete_service(&keys[0]);
    controller.settle(&mut cluster);
    assert_eq!(cluster.writes.len(), 1, "it rests: {:?}", cluster.writes);
    controller.now += Duration::from_secs(61);
    controller.settle(&mut cluster);
    // The record of the rest goes; one who waited has it: its record, its status.
    assert_eq!(cluster.writes.len(), 4, "{:?}", cluster.writes);
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
fn who_shows_an_address_of_which_no_record_is_left_has_it_before_anybody_new() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    // While no controller looks on, all records are lost, and somebody comes who is looked at
    // before by every other order.
    cluster.delete_vip("192.0.2.0");
    let new = cluster.put_service("a-new-one", json!({}), json!({}));
    let mut controller = Controller::start(&mut cluster, T0);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    assert_eq!(cluster.addresses(&new), ["192.0.2.1"]);
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
fn placement_follows_the_labels_of_services_where_an_advertisement_selects_them() {
    let mut cluster = cluster();
    let selector = json!([{ "matchLabels": { "exposed": "yes" } }]);
    cluster.put_advertisement("all", json!({ "serviceSelectors": selector }));
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    for (labels, placed) in [
        (&[][..], false),
        (&[("exposed", "yes")], true),
        (&[("exposed", "no")], false),
    ] {
        cluster.label_service(&web, labels);
        controller.settle_for_good(&mut cluster);
        let l2 = &cluster.vips["192.0.2.0"].spec.l2;
        assert_eq!(l2.is_some(), placed, "{labels:?}");
    }
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

#[test]
fn after_a_restore_of_the_store_the_lists_are_believed_though_their_versions_are_older() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let kept = cluster.put_service("kept", json!({}), json!({}));
    let deleted = cluster.put_service("deleted", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let backup = cluster.backup();

    // What the restore undoes: a request, a deletion, a new Service, and many versions.
    cluster.put_service("kept", json!({}), ips("192.0.2.6"));
    cluster.delete_service(&deleted);
    let lost = cluster.put_service("lost", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    for _ in 0..20 {
        cluster.touch_service(&kept);
        cluster.touch_vip("192.0.2.6");
    }
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&kept), ["192.0.2.6"]);
    assert!(!cluster.addresses(&lost).is_empty());

    cluster = backup;
    cluster.relist();
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes, [], "what is restored is right as it is");
    assert_eq!(cluster.addresses(&kept), ["192.0.2.0"]);
    assert_eq!(cluster.addresses(&deleted), ["192.0.2.1"]);
    // And what comes next is written on the versions that are there.
    cluster.put_service("kept", json!({}), ips("192.0.2.5"));
    cluster.delete_service(&deleted);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&kept), ["192.0.2.5"]);
    assert_eq!(cluster.vips.len(), 1);
}

#[test]
fn a_refused_write_is_enough_to_learn_of_a_restore() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    let leaves = cluster.put_service("leaves", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let backup = cluster.backup();
    for _ in 0..20 {
        cluster.touch_service(&web);
        cluster.touch_vip("192.0.2.1");
    }
    controller.settle_for_good(&mut cluster);

    // The watches do not tell. The writes find it out: of a status, of a VirtualIP.
    cluster = backup;
    cluster.put_node(
        "n1",
        json!({ "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.0" },
        ]}}),
    );
    cluster.delete_service(&leaves);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&web).unwrap().1, "AddressOfNode");
    assert!(cluster.claims("192.0.2.1").is_none());
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
}

/// The answer to a write arrives when its object is gone and another one made.
#[test]
fn a_late_answer_about_an_earlier_virtual_ip_undoes_nothing() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    let earlier = cluster.vips["192.0.2.0"].clone();
    cluster.delete_vip("192.0.2.0");
    cluster.put_vip_by_hand("192.0.2.0", &["default/web"]);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    let writes = cluster.writes.len();
    let ip = address("192.0.2.0");
    controller.core.vip_written(ip, earlier, None, T0);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes.len(), writes);
}

/// Who follows keeps its numbers right, and takes nothing up for later.
#[test]
fn a_follower_sees_rests_end_and_decides_nothing() {
    let mut cluster = cluster();
    let spec = json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": "60s" });
    cluster.put_pool("main", spec);
    let mut leader = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    leader.settle(&mut cluster);
    cluster.delete_service(&web);
    leader.settle(&mut cluster);
    let mut follower = Controller::start(&mut cluster, T0);
    let free = |follower: &Controller| {
        let usage = follower.core.allocator().usage("main", Family::V4);
        usage.unwrap().available
    };
    follower.core.look_on(T0);
    assert_eq!(free(&follower), 7);
    follower.core.look_on(T0 + Duration::from_secs(61));
    assert_eq!(free(&follower), 8);
    assert_eq!(follower.core.next(T0 + Duration::from_secs(62)), None);
}

#[test]
fn a_list_from_before_a_write_of_ours_does_not_undo_it() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    let old = cluster.put_service("old", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    cluster.put_service("web", json!({}), ips("192.0.2.6"));
    cluster.delete_service(&old);
    while controller.hear(&mut cluster) {}
    // The lists are made, then the writes, then the lists arrive, then the news since.
    let listing = cluster.listing();
    for change in listing.iter().filter(|c| matches!(c, Change::Listing(_))) {
        controller.core.apply(change.clone(), T0);
    }
    while controller.think() {}
    while controller.plans() > 0 {
        controller.act(&mut cluster, 0, Fate::Made);
    }
    let writes = cluster.writes.len();
    for change in listing
        .into_iter()
        .filter(|c| !matches!(c, Change::Listing(_)))
    {
        controller.core.apply(change, T0);
    }
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.6"]);
    assert_eq!(cluster.vips.len(), 1);
    let again = cluster.writes.split_off(writes);
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn who_takes_over_moves_nothing_though_it_has_not_heard_of_the_last_writes() {
    let mut cluster = cluster();
    let old = cluster.put_service("old", json!({}), json!({}));
    let mut leader = run(&mut cluster);
    leader.settle_for_good(&mut cluster);
    // A follower that hears of this only: a Service waits, and the lowest address is free.
    let mut follower = Controller::start(&mut cluster, T0);
    let web = cluster.put_service("web", json!({}), json!({}));
    for change in cluster.news.iter().cloned() {
        follower.core.apply(change, T0);
    }
    leader.settle(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
    cluster.delete_service(&old);
    for change in cluster.news.iter().cloned() {
        follower.core.apply(change, T0);
    }
    leader.settle(&mut cluster);
    cluster.writes.clear();
    follower.take_up(&mut cluster);
    follower.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes, []);
    assert_eq!(cluster.addresses(&web), ["192.0.2.1"]);
}

#[test]
fn a_decision_that_was_not_written_is_forgotten_with_the_lease() {
    let mut cluster = cluster();
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.hear(&mut cluster);
    assert!(controller.think());
    controller.core.stand_down();
    let holding = controller.core.allocator().holding(address("192.0.2.0"));
    assert!(holding.is_none(), "{holding:?}");
    // Meanwhile another controller gave the address to another Service.
    let mut other = Controller::start(&mut cluster, T0);
    let first = cluster.put_service("first", json!({}), ips("192.0.2.0"));
    other.hear(&mut cluster);
    other.settle(&mut cluster);
    let (had_web, had_first) = (cluster.addresses(&web), cluster.addresses(&first));
    cluster.writes.clear();
    controller.lose(&mut cluster);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes, []);
    assert_eq!(
        (cluster.addresses(&web), cluster.addresses(&first)),
        (had_web, had_first)
    );
}

#[test]
fn a_released_address_rests_across_restarts_and_its_record_goes_when_the_rest_is_over() {
    let mut cluster = cluster();
    let spec = json!({ "addresses": ["192.0.2.0-192.0.2.1"], "reuseDelay": "60s" });
    cluster.put_pool("main", spec);
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    controller.settle_for_good(&mut cluster);
    controller.now += Duration::from_millis(1_500);
    cluster.writes.clear();
    cluster.delete_service(&web);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.writes.len(), 1);
    assert_eq!(cluster.claims("192.0.2.0").unwrap(), Vec::<String>::new());

    // Another controller, half a minute later: others do not get the address, nor by name.
    let mut other = Controller::start(&mut cluster, controller.now + Duration::from_secs(30));
    other.settle_for_good(&mut cluster);
    let usage = other.core.allocator().usage("main", Family::V4).unwrap();
    assert_eq!((usage.assigned, usage.available), (0, 1));
    let named = cluster.put_service("named", json!({}), ips("192.0.2.0"));
    let next = cluster.put_service("next", json!({}), json!({}));
    let late = cluster.put_service("late", json!({}), json!({}));
    other.settle_for_good(&mut cluster);
    assert_eq!(cluster.condition(&named).unwrap().1, "AddressResting");
    assert_eq!(cluster.addresses(&next), ["192.0.2.1"]);
    assert!(cluster.addresses(&late).is_empty());
    cluster.delete_service(&named);
    other.settle_for_good(&mut cluster);

    // Its last holder has it back at once, and then it rests anew.
    cluster.put_service("web", json!({}), json!({}));
    other.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    assert_eq!(cluster.vips["192.0.2.0"].released, None);
    cluster.delete_service(&web);
    other.settle_for_good(&mut cluster);
    assert!(cluster.addresses(&late).is_empty());

    // The rest ends: who waits gets the address; and a record that nobody takes over is deleted.
    let mut last = Controller::start(&mut cluster, other.now + Duration::from_millis(59_999));
    last.settle_for_good(&mut cluster);
    assert!(cluster.addresses(&late).is_empty());
    last.now += Duration::from_millis(1);
    assert_eq!(last.core.next_deadline(), Some(last.now));
    last.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&late), ["192.0.2.0"]);
    cluster.delete_service(&late);
    last.settle_for_good(&mut cluster);
    last.now += Duration::from_secs(60);
    last.settle_for_good(&mut cluster);
    assert_eq!(cluster.vips.len(), 1);
    assert_eq!(last.core.next_deadline(), None);
}

#[test]
fn who_was_about_to_join_an_address_finds_it_at_rest_when_its_last_holder_left() {
    let mut cluster = cluster();
    cluster.put_pool(
        "rests",
        json!({ "addresses": ["198.51.100.0/29"], "reuseDelay": "60s" }),
    );
    let mut controller = run(&mut cluster);
    let wish = json!({ ADDRESS_POOL: "rests", SHARING_KEY: "k" });
    let first = cluster.put_service("first", json!({}), wish.clone());
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&first), ["198.51.100.0"]);
    // The write that lays it to rest is under way when the other one is decided.
    cluster.delete_service(&first);
    while controller.hear(&mut cluster) {}
    assert!(controller.think());
    let second = cluster.put_service("second", json!({ "ports": [{ "port": 81 }] }), wish);
    while controller.hear(&mut cluster) || controller.think() {}
    assert_eq!(controller.plans(), 1, "the record is busy");
    controller.act(&mut cluster, 0, Fate::Made);
    controller.settle_for_good(&mut cluster);
    assert_eq!(cluster.addresses(&second), ["198.51.100.1"]);
    assert_eq!(cluster.claims("198.51.100.0"), Some(vec![]));
}
