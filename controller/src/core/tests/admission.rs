//! What the webhook would say to a write, case by case.

use serde_json::{Value, json};

use super::cluster::{Cluster, cluster, in_pool};
use super::runner::run;
use crate::core::{Core, Judgement, Settings, Subject};

/// Pool main is 192.0.2.0/29 and has a Service; node n1 is 198.51.100.7, its pods 10.244.1.0/24.
fn world() -> Cluster {
    let mut cluster = cluster();
    let addresses = json!([{ "type": "InternalIP", "address": "198.51.100.7" }]);
    cluster.put_node(
        "n1",
        json!({ "spec": { "podCIDRs": ["10.244.1.0/24"] }, "status": { "addresses": addresses } }),
    );
    cluster
}

fn pool(name: &str, old: Option<Value>, new: Option<Value>) -> Subject {
    let spec = |spec: Option<Value>| spec.map(|s| serde_json::from_value(s).unwrap());
    Subject::Pool {
        name: name.to_owned(),
        old: spec(old),
        new: spec(new),
    }
}

fn of(addresses: &[&str]) -> Option<Value> {
    Some(json!({ "addresses": addresses }))
}

fn judge(core: &Core, subject: &Subject) -> Judgement {
    let cidrs = ["10.96.0.0/16", "fd96::/112"].map(|cidr| cidr.parse().unwrap());
    core.judge(subject, &cidrs).unwrap()
}

#[test]
fn a_new_range_may_overlap_with_nothing_that_is_somebody_elses() {
    let mut cluster = world();
    let controller = run(&mut cluster);
    for (addresses, refused) in [
        (vec!["203.0.113.0/24", "2001:db8:7::/64"], None),
        // The segment of a node, but not its address.
        (vec!["198.51.100.100-198.51.100.199"], None),
        (vec!["192.0.2.4-192.0.2.20"], Some("of pool main")),
        (
            vec!["198.51.100.0/24"],
            Some("198.51.100.7, which is an address of node n1"),
        ),
        (vec!["10.244.0.0/16"], Some("the pods of node n1")),
        (vec!["10.96.7.1"], Some("the cluster's own ServiceCIDR")),
        (
            vec!["fd96::10-fd96::20"],
            Some("the cluster's own ServiceCIDR"),
        ),
        (
            vec!["203.0.113.0/24", "203.0.113.7"],
            Some("of the same pool"),
        ),
        // The schema cannot tell.
        (
            vec!["2001:db8::9-2001:db8::1"],
            Some("ends before it starts"),
        ),
    ] {
        let judgement = judge(&controller.core, &pool("new", None, of(&addresses)));
        match refused {
            None => assert_eq!(judgement, Judgement::default(), "{addresses:?}"),
            Some(part) => {
                let said = judgement.refusals.join("; ");
                assert!(said.contains(part), "{addresses:?}: {said}");
            }
        }
    }
}

#[test]
fn an_edit_is_judged_by_what_is_new_in_it() {
    let mut cluster = world();
    // Both were there before this webhook was.
    cluster.put_pool(
        "wrong",
        json!({ "addresses": ["198.51.100.0/24", "192.0.2.0/30"] }),
    );
    let controller = run(&mut cluster);
    let old = of(&["198.51.100.0/24", "192.0.2.0/30"]);
    for (new, good) in [
        (&["198.51.100.0/24", "192.0.2.0/30"][..], true),
        (&["198.51.100.0/25", "192.0.2.0/30"], true),
        (&["198.51.100.8-198.51.100.255"], true),
        (&["198.51.100.0/24", "192.0.2.0/29"], false),
        (&["198.51.100.0/23"], false),
    ] {
        let judgement = judge(&controller.core, &pool("wrong", old.clone(), of(new)));
        assert_eq!(
            judgement.refusals.is_empty(),
            good,
            "{new:?}: {judgement:?}"
        );
    }
}

#[test]
fn what_is_in_use_may_not_fall_out_of_its_pool() {
    let mut cluster = world();
    cluster.put_pool("many", json!({ "addresses": ["203.0.113.0/24"] }));
    let mut controller = run(&mut cluster);
    let web = cluster.put_service("web", json!({}), json!({}));
    for n in 0..12 {
        cluster.put_service(&format!("m{n}"), json!({}), in_pool("many"));
    }
    controller.settle(&mut cluster);
    assert_eq!(cluster.addresses(&web), ["192.0.2.0"]);
    let main = of(&["192.0.2.0/29"]);
    for (new, good) in [
        (of(&["192.0.2.0/30"]), true),
        (of(&["192.0.2.0-192.0.2.3", "192.0.2.5"]), true),
        (of(&["192.0.2.1-192.0.2.7"]), false),
        (None, false),
    ] {
        let judgement = judge(&controller.core, &pool("main", main.clone(), new.clone()));
        if good {
            assert_eq!(judgement, Judgement::default(), "{new:?}");
        } else {
            let [said] = &judgement.refusals[..] else {
                panic!("{judgement:?}");
            };
            assert!(said.contains("192.0.2.0 (default/web)"), "{said}");
        }
    }
    // A long list is cut.
    let judgement = judge(
        &controller.core,
        &pool("many", of(&["203.0.113.0/24"]), None),
    );
    let said = judgement.refusals.join("; ");
    assert!(said.contains("203.0.113.9 (default/m"), "{said}");
    assert!(said.contains("and 2 more"), "{said}");
    // Nothing is in use any more.
    cluster.delete_service(&web);
    controller.settle(&mut cluster);
    assert_eq!(
        judge(&controller.core, &pool("main", main, None)),
        Judgement::default()
    );
}

#[test]
fn an_advertisement_of_a_pool_that_is_not_there_is_warned_of() {
    let mut cluster = world();
    let controller = run(&mut cluster);
    let of = |pools: &[&str]| Subject::Advertisement {
        pools: pools.iter().map(|p| (*p).to_owned()).collect(),
    };
    for names in [&[][..], &["main"]] {
        assert_eq!(judge(&controller.core, &of(names)), Judgement::default());
    }
    let judgement = judge(&controller.core, &of(&["main", "mian"]));
    assert!(judgement.refusals.is_empty(), "it may come later");
    assert_eq!(judgement.warnings.len(), 1);
    assert!(judgement.warnings[0].contains("IPAddressPool mian"));
}

#[test]
fn nothing_is_judged_before_everything_is_read() {
    let core = Core::new(Settings::default());
    assert_eq!(
        core.judge(&pool("new", None, of(&["192.0.2.0/24"])), &[]),
        None
    );
}
