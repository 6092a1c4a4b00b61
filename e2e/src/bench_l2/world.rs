//! The lab of the bench with Bellrock in it, and what is done to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::bellrock::{NAMESPACE, Workload};
use crate::lab::{Lab, deployment, service};
use crate::probe::{Pace, Prober, Report};

pub(super) const CLIENT: &str = "c1";
/// The nodes that answer for addresses.
pub(super) const NODES: [&str; 3] = ["n1", "n2", "n3"];
const SOON: Duration = Duration::from_secs(60);
/// Probes answered before anything is done.
const BEFORE: u64 = 30;
/// Answered probes that end a measurement: a second, in which all is settled.
pub(super) const AFTER: u64 = 100;

pub(super) struct World<'a> {
    pub(super) lab: &'a Lab,
    controller: Workload,
    pub(super) speakers: BTreeMap<String, Workload>,
    /// Speakers started so far beside others.
    pub(super) started: u32,
}

impl<'a> World<'a> {
    /// Bellrock, a Service `web` of both families whose pods are on n4, and a
    /// Service `wide` with a pod on each of the other nodes.
    pub(super) fn start(lab: &'a Lab) -> Result<Self> {
        lab.install("")?;
        lab.apply(&configuration().to_string())?;
        let (controller, speakers) = lab.start_bellrock()?;
        deploy(lab)?;
        let world = Self {
            lab,
            controller,
            speakers,
            started: 0,
        };
        world.settle()?;
        Ok(world)
    }

    /// Ends all speakers, and starts them with other values of the chart.
    pub(super) fn restart(&mut self, values: &str) -> Result<()> {
        self.lab.install(values)?;
        for speaker in std::mem::take(&mut self.speakers).into_values() {
            speaker.terminate(SOON)?;
        }
        for node in self.lab.nodes() {
            self.started += 1;
            let speaker = self.lab.start_next_speaker(node, self.started)?;
            self.speakers.insert(node.to_owned(), speaker);
        }
        self.settle()
    }

    /// Ends Bellrock.
    pub(super) fn end(self) -> Result<()> {
        for speaker in self.speakers.into_values() {
            speaker.terminate(SOON)?;
        }
        self.controller.terminate(SOON)?;
        Ok(())
    }

    /// The addresses of a Service: IPv4, IPv6.
    pub(super) fn addresses(&self, name: &str) -> Result<[IpAddr; 2]> {
        self.lab.until("the Service has addresses", SOON, || {
            let service = self.lab.block_on(self.lab.services().get(name))?;
            both(&service).with_context(|| format!("{name} has not both"))
        })
    }

    /// Waits until both Services answer by both families.
    pub(super) fn settle(&self) -> Result<()> {
        for name in ["web", "wide"] {
            for address in self.addresses(name)? {
                self.lab.until("the Service answers", SOON, || {
                    self.lab.http(CLIENT, address, 80)
                })?;
            }
        }
        Ok(())
    }

    /// The node that the client sends to.
    pub(super) fn owner(&self, address: IpAddr) -> Result<String> {
        self.lab.until("the client has the owner", SOON, || {
            self.lab.neighbour(CLIENT, address)
        })
    }

    /// Waits until the client sends to another node than this.
    pub(super) fn moved(&self, address: IpAddr, from: &str) -> Result<String> {
        self.lab.until("another node answers", SOON, || {
            let owner = self.lab.neighbour(CLIENT, address)?;
            ensure!(owner != from, "still {from}");
            Ok(owner)
        })
    }

    /// Probes an address while something is done to it, and until so many
    /// further probes are answered.
    pub(super) fn probed(
        &self,
        address: IpAddr,
        after: u64,
        event: impl FnOnce() -> Result<()>,
    ) -> Result<Report> {
        probed(self.lab, address, after, event)
    }
}

/// The same for whoever announces the address.
pub(super) fn probed(
    lab: &Lab,
    address: IpAddr,
    after: u64,
    event: impl FnOnce() -> Result<()>,
) -> Result<Report> {
    let target = SocketAddr::new(address, 80);
    let prober = Prober::start(lab.host(CLIENT), target, Pace::default())?;
    let answered = |more: u64| {
        let before = prober.answered();
        lab.until("probes are answered", SOON, || {
            let now = prober.answered() - before;
            ensure!(now >= more, "{now} of {more}");
            Ok(())
        })
    };
    answered(BEFORE)?;
    event()?;
    answered(after)?;
    prober.stop()
}

/// Probes that were not answered.
pub(super) fn lost(report: &Report) -> f64 {
    number(report.sent - report.answered)
}

pub(super) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// Both addresses in a Service's status.
pub(super) fn both(service: &Service) -> Option<[IpAddr; 2]> {
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    let ingress = status.ingress.iter().flatten();
    let all: Vec<IpAddr> = ingress
        .filter_map(|i| i.ip.as_ref()?.parse().ok())
        .collect();
    let v4 = all.iter().find(|ip| ip.is_ipv4())?;
    let v6 = all.iter().find(|ip| ip.is_ipv6())?;
    Some([*v4, *v6])
}

/// Deployments and Services of the bench.
pub(super) fn deploy(lab: &Lab) -> Result<()> {
    let hosts = |operator: &str| {
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [{
                "key": "kubernetes.io/hostname", "operator": operator, "values": ["n4"],
            }] }],
        } } })
    };
    for (name, replicas, operator) in [("web", 2, "In"), ("wide", 3, "NotIn")] {
        let mut pods = deployment(name, replicas, &[]);
        pods["spec"]["template"]["spec"]["affinity"] = hosts(operator);
        lab.apply(&pods.to_string())?;
        let spec = json!({ "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack" });
        lab.apply(&service(name, name, &spec).to_string())?;
        lab.kubectl(&[
            "rollout",
            "status",
            "--timeout=120s",
            &format!("deployment/{name}"),
        ])?;
    }
    Ok(())
}

/// Pools and the advertisement.
fn configuration() -> Value {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
        })
    };
    let nodes = json!([{ "matchExpressions": [{
        "key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n4"],
    }] }]);
    let some = json!({ "addresses": ["10.10.0.128/25", "fd10::1:0/112"] });
    let many = json!({ "addresses": ["10.10.4.0/22"], "autoAssign": false });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        object("IPAddressPool", "some", some),
        object("IPAddressPool", "many", many),
        object("L2Advertisement", "all", json!({ "nodeSelectors": nodes })),
    ] })
}
