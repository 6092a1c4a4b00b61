//! Two controllers in the lab: one leads, the other takes over when it ends,
//! dies or freezes, and no address moves. Judged by the API server.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_api::VirtualIP;
use bellrock_e2e::bellrock::Workload;
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::suite::{NAMESPACE, configuration};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

fn lease(lab: &Lab) -> Result<LeaseSpec> {
    let api: Api<Lease> = Api::namespaced(lab.admin(), NAMESPACE);
    let lease = lab.block_on(api.get("bellrock-controller"))?;
    lease.spec.context("an empty lease")
}

/// Waits until `who` leads, and says since when.
fn until_leads(lab: &Lab, who: &str) -> Timestamp {
    lab.until(&format!("{who} leads"), SOON, || {
        let spec = lease(lab)?;
        ensure!(spec.holder_identity.as_deref() == Some(who), "{spec:?}");
        Ok(spec.acquire_time.context("no time")?.0)
    })
    .unwrap()
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    from.duration_until(to).as_secs_f64()
}

fn create(lab: &Lab, name: &str) -> Ipv4Addr {
    let manifest = service(name, "web", &json!({ "type": "LoadBalancer" }));
    lab.create_service(&manifest).unwrap().0
}

/// The address of each Service, which is recorded for it and for nobody else.
fn addresses(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let (services, vips) = lab.block_on(async {
        let services: Api<Service> = Api::namespaced(lab.admin(), "default");
        let vips: Api<VirtualIP> = Api::all(lab.admin());
        let all = ListParams::default();
        Ok::<_, kube::Error>((services.list(&all).await?, vips.list(&all).await?))
    })?;
    let mut recorded = BTreeMap::new();
    for vip in vips {
        if vip.annotations().contains_key("bellrock.dev/released-at") {
            continue;
        }
        let [claim] = vip.spec.claims.as_slice() else {
            anyhow::bail!("claims of {}: {:?}", vip.spec.address, vip.spec.claims);
        };
        let twice = recorded.insert(claim.name.clone(), vip.spec.address.clone());
        ensure!(twice.is_none(), "{} has two addresses", claim.name);
    }
    let mut told = BTreeMap::new();
    for service in services {
        let name = service.name_any();
        let spec = service.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("LoadBalancer") {
            let status = service.status.unwrap_or_default();
            let ingress = status.load_balancer.and_then(|lb| lb.ingress);
            let first = ingress.into_iter().flatten().next();
            told.insert(name, first.and_then(|i| i.ip).context("no address")?);
        }
    }
    ensure!(told == recorded, "status {told:?}, record {recorded:?}");
    Ok(told)
}

/// Nothing that had an address has another now.
fn all_stayed(lab: &Lab, before: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let now = lab
        .until("status and record agree", SOON, || addresses(lab))
        .unwrap();
    for (name, address) in before {
        assert_eq!(now.get(name), Some(address), "{name}");
    }
    now
}

fn log_of(controller: &Workload) -> String {
    controller.log_tail(1000)
}

#[test]
fn a_second_controller_takes_over_from_one_that_dies_ends_or_freezes() {
    let lab = Lab::up(&Options::default()).unwrap();
    lab.install("").unwrap();
    lab.apply(&configuration()).unwrap();
    let a = lab.start_controller().unwrap();
    until_leads(&lab, "bellrock-controller");
    // Ready is who has read everything, leader or not.
    let b = lab.start_second_controller().unwrap();
    for n in 0..5 {
        create(&lab, &format!("s{n}"));
    }
    let mut had = all_stayed(&lab, &BTreeMap::new());
    assert_eq!(had.len(), 5);

    // It dies.
    let died = Instant::now();
    a.kill9().unwrap();
    create(&lab, "after-a-crash");
    let taken = died.elapsed();
    println!("killed: the other allocates after {taken:.2?}");
    assert!(taken < Duration::from_secs(15), "{taken:?}");
    until_leads(&lab, "bellrock-controller-2");
    a.restart().unwrap();
    had = all_stayed(&lab, &had);

    // It ends.
    let ended = Timestamp::now();
    b.signal(Signal::SIGTERM).unwrap();
    let took_over = seconds(ended, until_leads(&lab, "bellrock-controller"));
    println!("SIGTERM: the other leads after {took_over:.2} s");
    assert!(took_over < 2.0, "{took_over}");
    create(&lab, "after-an-end");
    b.terminate(Duration::from_secs(10)).ok();
    b.restart().unwrap();
    had = all_stayed(&lab, &had);

    // It freezes in the middle of its work, past its lease, and thaws.
    let many: Vec<_> = (0..40)
        .map(|n| service(&format!("m{n}"), "web", &json!({ "type": "LoadBalancer" })))
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": many }).to_string();
    let stop_it = std::thread::scope(|scope| {
        scope.spawn(|| lab.apply(&list).unwrap());
        lab.until("some have addresses", SOON, || {
            let vips: Api<VirtualIP> = Api::all(lab.admin());
            let count = lab.block_on(vips.list(&ListParams::default()))?.items.len();
            ensure!(count > had.len() + 2, "{count}");
            Ok(())
        })
        .unwrap();
        a.signal(Signal::SIGSTOP)
    });
    stop_it.unwrap();
    until_leads(&lab, "bellrock-controller-2");
    had = all_stayed(&lab, &had);
    assert_eq!(had.len(), 47);
    a.signal(Signal::SIGCONT).unwrap();
    lab.until("the thawed one knows", SOON, || {
        ensure!(log_of(&a).contains("leads no more"), "{}", log_of(&a));
        Ok(())
    })
    .unwrap();
    create(&lab, "after-a-thaw");
    had = all_stayed(&lab, &had);

    // And it takes up again.
    b.kill9().unwrap();
    create(&lab, "in-the-end");
    until_leads(&lab, "bellrock-controller");
    had = all_stayed(&lab, &had);
    assert_eq!(had.len(), 49);

    // A released address, the lowest of all, rests whoever leads; its Service has it back.
    let released = had.remove("s0").unwrap();
    b.restart().unwrap();
    lab.delete_service("s0").unwrap();
    lab.until("the record says who left", SOON, || {
        let vips: Api<VirtualIP> = Api::all(lab.admin());
        let vip = lab.block_on(vips.get(&released))?;
        let by = vip.annotations().get("bellrock.dev/released-by");
        ensure!(vip.spec.claims.is_empty(), "{:?}", vip.spec.claims);
        ensure!(by.is_some_and(|by| by == "default/s0"), "{by:?}");
        Ok(())
    })
    .unwrap();
    a.kill9().unwrap();
    assert_ne!(create(&lab, "another").to_string(), released);
    assert_eq!(create(&lab, "s0").to_string(), released);
    all_stayed(&lab, &had);
}
