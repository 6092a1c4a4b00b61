//! The Node object, its lease, and routes to the other nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::parts::VERSION;

use super::{Agent, run_program, watching};

const PERIOD: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(4);
const MANAGER: &str = "bellrock-lab-agent";

/// Registers the node, then renews its lease and status every 10 s.
pub(super) async fn heartbeat(client: &Client, agent: &Agent, labels: BTreeMap<String, String>) {
    let mut registered = false;
    loop {
        let beat = async {
            if !registered {
                register(client, agent, &labels).await?;
                registered = true;
            }
            renew(client, agent).await?;
            report(client, agent).await
        };
        let pause = match tokio::time::timeout(PATIENCE, beat).await {
            Ok(Ok(())) => PERIOD,
            Ok(Err(error)) => {
                eprintln!("heartbeat: {error:#}");
                Duration::from_millis(300)
            }
            Err(_) => {
                eprintln!("heartbeat: no answer within {PATIENCE:?}");
                Duration::from_millis(300)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn register(client: &Client, agent: &Agent, labels: &BTreeMap<String, String>) -> Result<()> {
    let mut all = labels.clone();
    all.extend(
        [
            ("kubernetes.io/hostname", agent.node.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": agent.node, "labels": all},
        "spec": {"podCIDR": agent.pod_cidrs.first(), "podCIDRs": agent.pod_cidrs},
        "status": status(agent),
    }))?;
    let api: Api<Node> = Api::all(client.clone());
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).context("register the node"),
    }
}

/// This machine's architecture by Kubernetes' name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status(agent: &Agent) -> Value {
    let (now, since) = (Time(Timestamp::now()), Time(agent.since));
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
        })
    };
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "250", "ephemeral-storage": "64Gi"});
    let internal = agent.node_addresses.iter();
    let mut addresses: Vec<Value> = internal
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": agent.node}));
    json!({
        "capacity": room,
        "allocatable": room,
        "addresses": addresses,
        "conditions": [
            condition("Ready", "True", "KubeletReady"),
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        ],
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "osImage": "bellrock lab",
            "kubeletVersion": VERSION, "kubeProxyVersion": "", "containerRuntimeVersion": "netns://1",
            "kernelVersion": "", "bootID": "", "machineID": "", "systemUUID": "",
        },
    })
}

async fn report(client: &Client, agent: &Agent) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let patch = Patch::Strategic(json!({"status": status(agent)}));
    api.patch_status(&agent.node, &PatchParams::default(), &patch)
        .await
        .context("report the node's status")?;
    Ok(())
}

async fn renew(client: &Client, agent: &Agent) -> Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": agent.node},
        "spec": {
            "holderIdentity": agent.node,
            "leaseDurationSeconds": 40,
            "renewTime": MicroTime(Timestamp::now()),
        },
    });
    api.patch(
        &agent.node,
        &PatchParams::apply(MANAGER).force(),
        &Patch::Apply(lease),
    )
    .await
    .context("renew the lease")?;
    Ok(())
}

/// A node's pod CIDR and the address to reach it by.
type Route = (String, String);

/// Keeps routes to the pods of every other node.
pub(super) async fn routes(client: &Client, agent: &Agent) {
    let events = watcher(Api::<Node>::all(client.clone()), watching());
    pin_mut!(events);
    let mut known: BTreeMap<String, Vec<Route>> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let result = match event {
            Ok(Event::Apply(node) | Event::InitApply(node)) => {
                reach(agent, &mut known, &node).await
            }
            Ok(Event::Delete(node)) => forget(&mut known, &node.name_any()).await,
            Ok(Event::Init | Event::InitDone) => Ok(()),
            Err(error) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Err(error.into())
            }
        };
        if let Err(error) = result {
            eprintln!("routes: {error:#}");
        }
    }
}

async fn reach(agent: &Agent, known: &mut BTreeMap<String, Vec<Route>>, node: &Node) -> Result<()> {
    let name = node.name_any();
    let routes = routes_to(node);
    if name == agent.node || known.get(&name).map_or(&[][..], |routes| routes) == routes {
        return Ok(());
    }
    forget(known, &name).await?;
    for (cidr, via) in &routes {
        run_program("ip", &["route", "replace", cidr, "via", via]).await?;
    }
    known.insert(name, routes);
    Ok(())
}

async fn forget(known: &mut BTreeMap<String, Vec<Route>>, name: &str) -> Result<()> {
    for (cidr, via) in known.remove(name).unwrap_or_default() {
        run_program("ip", &["route", "del", &cidr, "via", &via]).await?;
    }
    Ok(())
}

/// A node's pod CIDRs, each with the node's address of its family.
fn routes_to(node: &Node) -> Vec<Route> {
    let cidrs = node.spec.iter().flat_map(|spec| &spec.pod_cidrs).flatten();
    let addresses = || {
        let all = node.status.iter().flat_map(|status| &status.addresses);
        all.flatten().filter(|a| a.type_ == "InternalIP")
    };
    cidrs
        .filter_map(|cidr| {
            let family = |text: &str| text.contains(':');
            let via = addresses().find(|a| family(&a.address) == family(cidr))?;
            Some((cidr.clone(), via.address.clone()))
        })
        .collect()
}
