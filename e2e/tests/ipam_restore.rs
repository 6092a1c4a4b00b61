//! Backup and restore, and a controller that was away: what is right already is not written, and
//! what is not is put right in one pass. Writes are counted by the API server's audit log.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_api::VirtualIP;
use bellrock_e2e::audit::Entry;
use bellrock_e2e::cluster::{ApiOptions, KubeProxy};
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::suite::NAMESPACE;
use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn manifest(name: &str) -> Value {
    service(name, "web", &json!({ "type": "LoadBalancer" }))
}

fn list(items: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

/// The address of each LoadBalancer Service, once each has one and the records say the same.
fn settled(lab: &Lab) -> BTreeMap<String, String> {
    lab.until("status and record agree", SOON, || {
        let (services, vips) = lab.block_on(async {
            let services: Api<Service> = Api::namespaced(lab.admin(), "default");
            let vips: Api<VirtualIP> = Api::all(lab.admin());
            let all = ListParams::default();
            Ok::<_, kube::Error>((services.list(&all).await?, vips.list(&all).await?))
        })?;
        let mut told = BTreeMap::new();
        for service in services {
            let name = service.name_any();
            let balanced = service.spec.and_then(|s| s.type_).as_deref() == Some("LoadBalancer");
            let status = service.status.unwrap_or_default();
            let ingress = status.load_balancer.and_then(|lb| lb.ingress);
            let address = ingress.into_iter().flatten().next().and_then(|i| i.ip);
            if balanced {
                told.insert(
                    name.clone(),
                    address.with_context(|| format!("{name} has none"))?,
                );
            } else {
                let conditions = status.conditions.unwrap_or_default();
                ensure!(conditions.is_empty(), "{name} still carries our condition");
            }
        }
        let mut recorded = BTreeMap::new();
        for vip in vips {
            for claim in vip.spec.claims.iter().filter(|claim| claim.uid.is_some()) {
                recorded.insert(claim.name.clone(), vip.spec.address.clone());
            }
        }
        ensure!(told == recorded, "status {told:?}, record {recorded:?}");
        Ok(told)
    })
    .unwrap()
}

/// The controller's writes about addresses since a mark, as `verb resource name`, and a new mark:
/// objects, and what it says about Services in Events, which are named after them.
fn writes(lab: &Lab, mark: usize) -> (Vec<String>, usize) {
    let (entries, mark) = lab.audit(mark).unwrap();
    let ours = |entry: &&Entry| {
        entry.by_controller() && (entry.is_allocation() || entry.is_event_in("default"))
    };
    let lines = entries.iter().filter(ours).map(|e| {
        assert!(
            e.succeeded(),
            "refused: {} {} {}: {}",
            e.verb,
            e.resource,
            e.name,
            e.code
        );
        let name = match e.name.split_once('.') {
            Some((service, _)) if e.resource == "events" => service,
            _ => &e.name,
        };
        format!("{} {} {name}", e.verb, e.resource)
    });
    (lines.collect(), mark)
}

/// How many of `lines` there are of each verb and resource.
fn count(lines: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        let (kind, _) = line.rsplit_once(' ').unwrap();
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    counts
}

fn release_all(lab: &Lab, kept: usize) {
    lab.until("all that is not reserved is released", SOON, || {
        let vips: Api<VirtualIP> = Api::all(lab.admin());
        let vips = lab.block_on(vips.list(&ListParams::default()))?;
        ensure!(vips.items.len() == kept, "{} VirtualIPs", vips.items.len());
        let uids = vips
            .iter()
            .flat_map(|v| &v.spec.claims)
            .filter(|c| c.uid.is_some());
        ensure!(uids.count() == 0, "claims of Services that are gone");
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_right_is_not_written_and_what_is_reserved_comes_back() -> Result<()> {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        api: ApiOptions {
            audit: true,
            ..ApiOptions::default()
        },
        ..Options::default()
    })?;
    lab.install("")?;
    let pool = json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "IPAddressPool",
        "metadata": { "name": "main", "namespace": NAMESPACE },
        "spec": { "addresses": ["192.0.2.0/24"], "reuseDelay": "0s" },
    });
    lab.apply(&pool.to_string())?;
    let controller = lab.start_controller()?;

    // Ten Services, of which two are reserved ahead and two while they run.
    let reserved = |n: u8| {
        let address = format!("192.0.2.{}", 100 + n);
        json!({
            "apiVersion": "bellrock.dev/v1beta1", "kind": "VirtualIP",
            "metadata": { "name": address },
            "spec": { "address": address, "claims": [{ "namespace": "default", "name": format!("s{n}") }] },
        })
    };
    lab.apply(&list(&[reserved(0), reserved(1)]))?;
    lab.until("the controller knows the reservations", SOON, || {
        let pool = lab.kubectl_json(&["get", "ipaddresspool", "main", "-n", NAMESPACE])?;
        let used = &pool["status"]["assignedIPv4"];
        ensure!(*used == 2, "{used} are used");
        Ok(())
    })?;
    let services: Vec<Value> = (0..10).map(|n| manifest(&format!("s{n}"))).collect();
    lab.apply(&list(&services))?;
    let before = settled(&lab);
    assert_eq!(before.len(), 10);
    assert_eq!(before["s0"], "192.0.2.100");
    for name in ["s2", "s3"] {
        lab.kubectl(&[
            "label",
            "virtualip",
            &before[name],
            "app.kubernetes.io/managed-by-",
        ])?;
    }

    // A backup, the end of all Services, and a restore in another order.
    let backup = lab.kubectl_json(&["get", "services", "-l", "!component"])?;
    lab.kubectl(&["delete", "services", "-l", "!component"])?;
    release_all(&lab, 4);
    let mut items: Vec<Value> = backup["items"].as_array().context("no items")?.clone();
    items.reverse();
    for item in &mut items {
        let kept = json!({ "name": item["metadata"]["name"], "namespace": "default" });
        item["metadata"] = kept;
        item["status"] = Value::Null;
        for field in ["clusterIP", "clusterIPs"] {
            item["spec"][field] = Value::Null;
        }
    }
    lab.kubectl_with(&["create", "-f", "-"], &list(&items))?;
    let after = settled(&lab);
    assert_eq!(after.len(), 10);
    for name in ["s0", "s1", "s2", "s3"] {
        assert_eq!(after[name], before[name], "{name} was reserved");
    }

    // The controller is away while Services come, go, and change their type.
    controller.terminate(Duration::from_secs(10))?;
    let (_, mark) = writes(&lab, 0);
    for name in ["s5", "s6", "s7"] {
        lab.delete_service(name)?;
    }
    lab.kubectl(&[
        "patch",
        "service",
        "s8",
        "-p",
        r#"{"spec":{"type":"ClusterIP"}}"#,
    ])?;
    let new: Vec<Value> = (0..5).map(|n| manifest(&format!("new-{n}"))).collect();
    lab.apply(&list(&new))?;
    controller.restart()?;
    let now = settled(&lab);
    assert_eq!(now.len(), 11);
    for (name, address) in after.iter().filter(|(name, _)| now.contains_key(*name)) {
        assert_eq!(now[name], *address, "{name} did not move");
    }
    lab.until("the released addresses are gone", SOON, || {
        let vips: Api<VirtualIP> = Api::all(lab.admin());
        let found = lab.block_on(vips.list(&ListParams::default()))?.items.len();
        ensure!(found == 11, "{found}");
        Ok(())
    })?;
    let expected: BTreeMap<String, usize> = [
        ("create virtualips", 5),
        ("delete virtualips", 4),
        // The five new ones, and the condition of the one that is none of ours any more.
        ("patch services/status", 6),
        // The five new ones: of what is as it was there is nothing to say.
        ("create events", 5),
    ]
    .map(|(kind, n)| (kind.to_owned(), n))
    .into();
    // Events come after the addresses.
    let mark = lab.until("what is new is written and said", SOON, || {
        let (made, mark) = writes(&lab, mark);
        ensure!(count(&made) == expected, "{made:#?}");
        Ok(mark)
    })?;

    // Away and back with nothing to do, then the API server anew under a controller that runs.
    controller.terminate(Duration::from_secs(10))?;
    controller.restart()?;
    let mark = only_new(&lab, mark, "back")?;
    lab.restart_api()?;
    only_new(&lab, mark, "last")?;
    Ok(())
}

/// Creates a Service: all that is written since the mark is about it. What is new is served, and by
/// then everything that is old has been looked at. Events are published in the order in which they
/// were said: one about what is old would come before.
fn only_new(lab: &Lab, mark: usize, name: &str) -> Result<usize> {
    let (address, _) = lab.create_service(&manifest(name))?;
    lab.until("what is said of it is in the log", SOON, || {
        let (made, mark) = writes(lab, mark);
        let expected = [
            format!("create virtualips {address}"),
            format!("patch services/status {name}"),
            format!("create events {name}"),
        ];
        ensure!(made == expected, "{made:?}");
        Ok(mark)
    })
}
