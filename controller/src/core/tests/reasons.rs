//! Every reason, produced, and the sentence that a user reads in the Service's condition, in its
//! Event and in `bellrock why`.

use bellrock_api::AllocationReason as Reason;
use serde_json::{Value, json};

use super::cluster::{Cluster, cluster, in_pool, ips, sharing};
use super::runner::run;
use crate::core::Write;

struct Row {
    reason: Reason,
    /// What is there before the Service.
    before: fn(&mut Cluster),
    spec: Value,
    annotations: Value,
    message: &'static str,
}

fn nothing(_: &mut Cluster) {}

/// Pool `main` has one address, and a Service holds it.
fn full(cluster: &mut Cluster) {
    cluster.put_pool("main", json!({ "addresses": ["192.0.2.0"] }));
    cluster.put_service("first", json!({}), sharing("k"));
}

fn both(policy: &str) -> Value {
    json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": policy })
}

fn rows() -> Vec<Row> {
    let row = |reason, before, spec, annotations, message| Row {
        reason,
        before,
        spec,
        annotations,
        message,
    };
    let plain = || json!({});
    vec![
        row(
            Reason::Allocated,
            nothing,
            plain(),
            plain(),
            "192.0.2.0 from pool main",
        ),
        row(
            Reason::Allocated,
            nothing,
            both("PreferDualStack"),
            plain(),
            "192.0.2.0 from pool main; no pool has an IPv6 address for this service: main has no address of this family; add addresses of this family to a pool, or change the service's ipFamilyPolicy",
        ),
        row(
            Reason::NoPool,
            |c| c.delete_pool("main"),
            plain(),
            plain(),
            "no IPAddressPool is in force: create one with addresses of your network, or correct those whose condition Accepted is False",
        ),
        row(
            Reason::NoPool,
            |c| {
                c.put_pool(
                    "main",
                    json!({ "addresses": ["192.0.2.0"], "autoAssign": false }),
                );
            },
            plain(),
            plain(),
            "no pool has an IPv4 address for this service: main has autoAssign: false and must be asked for; ask for a pool in the annotation bellrock.dev/address-pool",
        ),
        row(
            Reason::PoolNotFound,
            nothing,
            plain(),
            in_pool("gold"),
            "there is no pool \"gold\" (pools: main): correct the bellrock.dev/address-pool annotation or create the pool",
        ),
        row(
            Reason::PoolExhausted,
            full,
            plain(),
            plain(),
            "no pool has an IPv4 address for this service: main has no free address (a released one rests for its reuseDelay, 60s); add addresses to a pool, or delete services that need none",
        ),
        row(
            Reason::PoolNotForService,
            |c| {
                let allocation = json!({ "namespaces": ["other"] });
                c.put_pool(
                    "main",
                    json!({ "addresses": ["192.0.2.0/30"], "serviceAllocation": allocation }),
                );
            },
            plain(),
            plain(),
            "no pool has an IPv4 address for this service: main does not serve this namespace; change a pool's serviceAllocation, or the labels that it selects",
        ),
        row(
            Reason::PoolNotForService,
            |c| {
                let selector = json!([{ "matchLabels": { "app": "dns" } }]);
                c.put_pool(
                    "main",
                    json!({ "addresses": ["192.0.2.0/30"], "serviceAllocation": { "serviceSelectors": selector } }),
                );
            },
            plain(),
            ips("192.0.2.1"),
            "192.0.2.1 belongs to pool main, which does not serve services with these labels: ask for another address, or change the pool's serviceAllocation",
        ),
        row(
            Reason::AddressNotInPool,
            nothing,
            plain(),
            ips("198.51.100.1"),
            "198.51.100.1 lies in no pool: ask for an address of a pool, or add it to one",
        ),
        row(
            Reason::AddressInUse,
            full,
            plain(),
            ips("192.0.2.0"),
            "192.0.2.0 is held by service default/first, which does not share it with this one: choose another address, or give both the same sharing key",
        ),
        row(
            Reason::AddressReserved,
            |c| c.put_vip_by_hand("192.0.2.0", &["shop/web"]),
            plain(),
            ips("192.0.2.0"),
            "192.0.2.0 is reserved for service shop/web by its VirtualIP: add this service to the claims there, or ask for another address",
        ),
        row(
            Reason::AddressResting,
            |c| {
                c.put_pool(
                    "main",
                    json!({ "addresses": ["192.0.2.0"], "reuseDelay": "60s" }),
                );
                let gone = c.put_service("gone", json!({}), json!({}));
                run(c);
                c.delete_service(&gone);
                run(c);
            },
            plain(),
            ips("192.0.2.0"),
            "192.0.2.0 was released a moment ago and rests for the reuseDelay of pool main; it is assigned then",
        ),
        row(
            Reason::AddressInvalid,
            nothing,
            plain(),
            ips("192.0.2.1,192.0.2.2"),
            "192.0.2.1 and 192.0.2.2 are requested: ask for at most one address of each family",
        ),
        row(
            Reason::AddressOfNode,
            |c| {
                let addresses = json!([{ "type": "InternalIP", "address": "192.0.2.1" }]);
                c.put_node("n1", json!({ "status": { "addresses": addresses } }));
            },
            plain(),
            ips("192.0.2.1"),
            "192.0.2.1 belongs to node n1 and is not announced, which would cut the node off: ask for another address, and take this one out of the pool",
        ),
        row(
            Reason::AddressBuggy,
            |c| {
                c.put_pool(
                    "main",
                    json!({ "addresses": ["192.0.2.0/30"], "avoidBuggyIPs": true }),
                );
            },
            plain(),
            ips("192.0.2.0"),
            "192.0.2.0 ends in .0 or .255, which pool main keeps back: ask for another address, or set its avoidBuggyIPs to false",
        ),
        row(
            Reason::ConflictingRequest,
            nothing,
            json!({ "loadBalancerIP": "192.0.2.2" }),
            ips("192.0.2.1"),
            "spec.loadBalancerIP and the annotation bellrock.dev/load-balancer-ips ask for different addresses: keep one of them",
        ),
        row(
            Reason::SharingConflict,
            full,
            plain(),
            json!({ "bellrock.dev/sharing-key": "k", "bellrock.dev/load-balancer-ips": "192.0.2.0" }),
            "192.0.2.0 is held by service default/first, which uses port 80/TCP too: choose another port or address",
        ),
        row(
            Reason::SharingConflict,
            full,
            json!({ "externalTrafficPolicy": "Local", "ports": [{ "port": 81 }] }),
            json!({ "bellrock.dev/sharing-key": "k", "bellrock.dev/load-balancer-ips": "192.0.2.0" }),
            "192.0.2.0 is held by service default/first: services share an address only if all have externalTrafficPolicy Cluster, or all have Local and the same selector",
        ),
        row(
            Reason::FamilyUnavailable,
            nothing,
            both("RequireDualStack"),
            plain(),
            "no pool has an IPv6 address for this service: main has no address of this family; add addresses of this family to a pool, or change the service's ipFamilyPolicy",
        ),
        row(
            Reason::FamilyMismatch,
            nothing,
            plain(),
            ips("2001:db8::1"),
            "2001:db8::1 is requested, but the service is IPv4 only: change the address or spec.ipFamilies",
        ),
        row(
            Reason::RequestTooLarge,
            nothing,
            plain(),
            sharing(&"k".repeat(300)),
            "the annotation bellrock.dev/sharing-key has 300 characters: at most 253 are recorded, shorten it",
        ),
        row(
            Reason::RequestTooLarge,
            nothing,
            plain(),
            in_pool(
                &(1..=17)
                    .map(|n| format!("p{n}"))
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            "the annotation bellrock.dev/address-pool names 17 pools: at most 16 are looked at, name fewer",
        ),
        row(
            Reason::NoClusterIP,
            nothing,
            json!({ "clusterIPs": ["None"], "ipFamilies": ["IPv4"] }),
            plain(),
            "the service has no cluster IP, hence no address family: a headless service cannot have an external address",
        ),
    ]
}

#[test]
fn every_reason_is_produced_and_says_what_is_wrong_and_what_to_do() {
    for row in rows() {
        let mut cluster = cluster();
        (row.before)(&mut cluster);
        let mut controller = run(&mut cluster);
        let web = cluster.put_service("web", row.spec, row.annotations);
        controller.settle_for_good(&mut cluster);
        let (met, reason, message) = cluster.condition(&web).unwrap();
        assert_eq!(
            (reason.as_str(), message.as_str()),
            (row.reason.as_str(), row.message)
        );
        assert_eq!(met, row.reason == Reason::Allocated, "{message}");
        // The Event says the same, once.
        let events: Vec<_> = cluster
            .writes
            .iter()
            .filter_map(|write| match write {
                Write::PatchStatus(patch) if patch.service == web => patch.event.clone(),
                _ => None,
            })
            .collect();
        assert_eq!(events, [(row.reason, row.message.to_owned())]);
        let told = controller.core.refused_by_reason();
        assert_eq!(
            told.get(&row.reason).copied().unwrap_or(0),
            u64::from(!met),
            "the metric of {reason}"
        );
    }
}

#[test]
fn no_reason_is_left_out() {
    let produced: Vec<Reason> = rows().into_iter().map(|row| row.reason).collect();
    for reason in Reason::ALL {
        // The one that `bellrock why` gives for a Service that the controller does not look at.
        let elsewhere = *reason == Reason::NotLoadBalancer;
        assert!(produced.contains(reason) || elsewhere, "{reason}");
    }
}
