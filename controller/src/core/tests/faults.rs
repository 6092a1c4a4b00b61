//! Histories by chance: Services, pools and VirtualIPs come, change and go, writes fail before or
//! after they are made, watches lag, the controller restarts. Whatever happens, no address is ever
//! held unlawfully or moved unasked, and in the end everything is right and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::VirtualIPSpec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::cluster::{Cluster, ips};
use super::runner::{Controller, Fate};
use crate::ipam::{Backend, Claim, ServiceKey, may_share};
use crate::view::{ServiceView, VipView, recorded_terms};

#[derive(Debug, Clone)]
enum Op {
    /// Create or change Service n.
    Put(u8, Shape),
    Delete(u8),
    /// Change Service n into a ClusterIP Service.
    Retire(u8),
    Pool(u8),
    DeleteVip(u8),
    TouchVip(u8),
    TouchService(u8),
    /// Let the controller hear, think and act so many times, with such fates.
    Run(Vec<(u8, Fate)>),
    Restart,
    /// The controller loses its lease in the middle of what it does, and has it again.
    Lose,
    Wait,
}

#[derive(Debug, Clone, PartialEq)]
struct Shape {
    dual: bool,
    require: bool,
    share: Option<u8>,
    port: u16,
    address: Option<u8>,
    local: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.4, 0u8..2),
        80u16..83,
        prop::option::weighted(0.3, 0u8..8),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(dual, require, share, port, address, local)| Shape {
            dual,
            require,
            share,
            port,
            address,
            local,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let fate =
        prop_oneof![6 => Just(Fate::Made), 1 => Just(Fate::Lost), 1 => Just(Fate::Unanswered)];
    prop_oneof![
        6 => (0u8..8, shape()).prop_map(|(n, s)| Op::Put(n, s)),
        3 => (0u8..8).prop_map(Op::Delete),
        1 => (0u8..8).prop_map(Op::Retire),
        1 => (0u8..3).prop_map(Op::Pool),
        1 => (0u8..8).prop_map(Op::DeleteVip),
        1 => (0u8..8).prop_map(Op::TouchVip),
        1 => (0u8..8).prop_map(Op::TouchService),
        8 => prop::collection::vec((any::<u8>(), fate), 1..12).prop_map(Op::Run),
        1 => Just(Op::Restart),
        1 => Just(Op::Lose),
        1 => Just(Op::Wait),
    ]
}

fn put(cluster: &mut Cluster, n: u8, shape: &Shape) -> ServiceKey {
    let families: &[&str] = if shape.dual {
        &["IPv4", "IPv6"]
    } else {
        &["IPv4"]
    };
    let policy = match (shape.dual, shape.require) {
        (true, true) => "RequireDualStack",
        (true, false) => "PreferDualStack",
        (false, _) => "SingleStack",
    };
    let mut annotations = match shape.address {
        Some(a) => ips(&format!("192.0.2.{a}")),
        None => json!({}),
    };
    if let Some(key) = shape.share {
        annotations["bellrock.dev/sharing-key"] = json!(format!("k{key}"));
    }
    let spec: Value = json!({
        "ipFamilies": families, "ipFamilyPolicy": policy, "ports": [{ "port": shape.port }],
        "externalTrafficPolicy": if shape.local { "Local" } else { "Cluster" },
        "selector": { "app": "web" },
    });
    cluster.put_service(&format!("s{n}"), spec, annotations)
}

fn pool(cluster: &mut Cluster, variant: u8) {
    let spec = match variant {
        0 => json!({ "addresses": ["192.0.2.0/30", "2001:db8::/126"], "reuseDelay": "10s" }),
        1 => json!({ "addresses": ["192.0.2.0/29"], "reuseDelay": "0s" }),
        _ => json!({ "addresses": ["192.0.2.2-192.0.2.5", "broken"] }),
    };
    cluster.put_pool("main", spec);
}

/// The recorded claims of every VirtualIP are lawful: pairwise shareable on the recorded terms.
fn check_lawful(cluster: &Cluster) -> Result<(), TestCaseError> {
    for vip in cluster.vips.values() {
        let claims: Vec<(ServiceKey, Claim)> = vip.spec.claims.iter().map(terms).collect();
        for (i, (ka, a)) in claims.iter().enumerate() {
            for (kb, b) in &claims[i + 1..] {
                prop_assert_eq!(may_share((ka, a), (kb, b)), Ok(()), "{}", vip.spec.address);
            }
        }
    }
    Ok(())
}

/// A recorded claim. Who shares has its policy recorded: one without could share with nobody.
fn terms(claim: &bellrock_api::Claim) -> (ServiceKey, Claim) {
    let terms = recorded_terms(claim, &Backend::Unknown);
    (ServiceKey::new(&claim.namespace, &claim.name), terms)
}

fn holders(cluster: &Cluster) -> BTreeMap<ServiceKey, BTreeSet<IpAddr>> {
    let mut map: BTreeMap<ServiceKey, BTreeSet<IpAddr>> = BTreeMap::new();
    for vip in cluster.vips.values() {
        let VirtualIPSpec { claims, .. } = &vip.spec;
        for claim in claims {
            let key = ServiceKey::new(&claim.namespace, &claim.name);
            map.entry(key).or_default().insert(vip.spec.ip().unwrap());
        }
    }
    map
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_happens_every_address_is_lawful_and_in_the_end_everything_is_right(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        let mut cluster = Cluster::default();
        cluster.put_namespace("default", &[]);
        cluster.put_node("n1", json!({}));
        cluster.put_node("n2", json!({}));
        cluster.put_advertisement("all", json!({}));
        pool(&mut cluster, 0);
        let mut controller = Controller::start(&mut cluster, Duration::from_secs(1_000));
        // Services that asked for nothing new since they were last settled, and what they had.
        for op in ops {
            match op {
                Op::Put(n, shape) => { put(&mut cluster, n, &shape); }
                Op::Delete(n) => cluster.delete_service(&ServiceKey::new("default", format!("s{n}"))),
                Op::Retire(n) => {
                    let key = ServiceKey::new("default", format!("s{n}"));
                    if cluster.services.contains_key(&key) {
                        cluster.put_service(&key.name, json!({ "type": "ClusterIP" }), json!({}));
                    }
                }
                Op::Pool(variant) => pool(&mut cluster, variant),
                Op::DeleteVip(n) => cluster.delete_vip(&format!("192.0.2.{n}")),
                Op::TouchVip(n) => cluster.touch_vip(&format!("192.0.2.{n}")),
                Op::TouchService(n) => {
                    cluster.touch_service(&ServiceKey::new("default", format!("s{n}")));
                }
                Op::Restart => controller = Controller::start(&mut cluster, controller.now),
                Op::Lose => controller.lose(&mut cluster),
                Op::Wait => controller.now += Duration::from_secs(6),
                Op::Run(steps) => {
                    for (which, fate) in steps {
                        match which % 3 {
                            0 => { controller.hear(&mut cluster); }
                            1 => { controller.think(); }
                            _ => {}
                        }
                        if controller.plans() > 0 && which % 2 == 0 {
                            let plan = usize::from(which / 3) % controller.plans();
                            controller.act(&mut cluster, plan, fate);
                            check_lawful(&cluster)?;
                        }
                    }
                }
            }
        }
        // The last good version of a broken pool does not outlive a restart: end with a good one.
        pool(&mut cluster, 1);
        controller.settle_for_good(&mut cluster);
        check_lawful(&cluster)?;
        // Status and record agree, for all, and nothing is left over.
        let held = holders(&cluster);
        for (key, service) in &cluster.services {
            let view = ServiceView::of(service).unwrap().1;
            let told: BTreeSet<IpAddr> = view.status_addresses().into_iter().collect();
            prop_assert_eq!(told.clone(), held.get(key).cloned().unwrap_or_default(), "{}", key);
            if view.is_load_balancer {
                prop_assert!(view.condition().is_some());
                prop_assert!(told.len() <= view.families.len());
            } else {
                prop_assert!(told.is_empty() && view.condition().is_none());
            }
        }
        for key in held.keys() {
            prop_assert!(cluster.services.contains_key(key), "{} is gone and holds an address", key);
        }
        let kept = |v: &VipView| !v.spec.claims.is_empty() || v.at_rest().is_some();
        prop_assert!(cluster.vips.values().all(kept));
        // Nothing moves unasked: pools change, controllers restart, everything is touched.
        let before: BTreeMap<ServiceKey, Vec<String>> =
            cluster.services.keys().map(|k| (k.clone(), cluster.addresses(k))).collect();
        for variant in [2, 1, 0] {
            pool(&mut cluster, variant);
            for key in before.keys() {
                cluster.touch_service(key);
            }
            controller = Controller::start(&mut cluster, controller.now);
            controller.settle_for_good(&mut cluster);
            for (key, had) in &before {
                for address in had {
                    let has = cluster.addresses(key);
                    let asked = ServiceView::of(&cluster.services[key]).unwrap().1.addresses.unwrap();
                    let moved_on_request = asked.iter().any(|a| has.contains(&a.to_string()));
                    prop_assert!(has.contains(address) || moved_on_request, "{} lost {}", key, address);
                }
            }
        }
    }
}
