//! One pod: a namespace on the node, the echo server inside, and the Pod's
//! status as a kubelet would report it.
//!
//! ```text
//! namespace, server started -> Running, not Ready -> probe -> Ready
//! deletion asked            -> SIGTERM, still probed (KEP-1669), SIGKILL after
//!                              the grace period
//! server ended              -> not Ready, terminated; Pod deleted with grace 0
//! server ended by itself    -> not Ready, started again
//! ```

use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::probe::Probe;
use super::{Agent, run_program};
use crate::process::lock;

const PATIENCE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(500);
/// How often a pod is probed until it first was ready.
const EAGER: Duration = Duration::from_millis(100);

/// A pod that this node runs. Dropping it ends the pod at once.
#[derive(Debug)]
pub(super) struct Handle {
    pod: watch::Sender<Pod>,
}

impl Handle {
    pub(super) fn start(client: Client, agent: Arc<Agent>, pod: Pod) -> Self {
        let (sender, receiver) = watch::channel(pod);
        tokio::spawn(async move {
            let mut sandbox = Sandbox::new(client, agent, receiver);
            let name = sandbox.name.clone();
            if let Err(error) = sandbox.live().await {
                eprintln!("pod {name}: {error:#}");
            }
            sandbox.remove().await;
        });
        Self { pod: sender }
    }

    /// The Pod object changed.
    pub(super) fn update(&self, pod: Pod) {
        let _ = self.pod.send(pod);
    }
}

/// The pod's state as its status shows it.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    ready: bool,
    running: bool,
    restarts: u32,
    /// Status of the pod's readiness gates, which others write.
    gates: bool,
}

struct Sandbox {
    client: Client,
    agent: Arc<Agent>,
    pods: watch::Receiver<Pod>,
    name: String,
    uid: String,
    netns: String,
    cable: String,
    host_network: bool,
    /// One of each family.
    addresses: Vec<IpAddr>,
    since: Timestamp,
}

impl Sandbox {
    fn new(client: Client, agent: Arc<Agent>, pods: watch::Receiver<Pod>) -> Self {
        let pod = pods.borrow().clone();
        let uid = pod.uid().unwrap_or_default();
        let short: String = uid.chars().filter(|c| *c != '-').take(8).collect();
        let host_network = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or_default();
        let netns = if host_network {
            format!("{}-{}", agent.prefix, agent.node)
        } else {
            format!("{}-{}-{}-{short}", agent.prefix, agent.node, pod.name_any())
        };
        Self {
            name: pod.name_any(),
            netns,
            cable: format!("pod{short}"),
            addresses: agent.node_addresses.clone(),
            client,
            agent,
            pods,
            uid,
            host_network,
            since: Timestamp::now(),
        }
    }

    fn pod(&self) -> Pod {
        self.pods.borrow().clone()
    }

    async fn live(&mut self) -> Result<()> {
        let pod = self.pod();
        if matches!(phase(&pod), Some("Succeeded" | "Failed")) {
            return self.wait_for_deletion().await;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            // It never ran here.
            return self.delete().await;
        }
        let probe = Probe::of(&pod)?;
        if !self.host_network {
            self.addresses = lock(&self.agent.addresses).take(&self.uid)?;
            self.wire().await?;
        }
        let mut restarts = 0;
        loop {
            let child = self.serve(&pod)?;
            if !self.attend(child, &probe, restarts).await? {
                return Ok(());
            }
            restarts += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Makes the pod's namespace and its cable to the node.
    async fn wire(&self) -> Result<()> {
        let (netns, cable) = (&self.netns, &self.cable);
        let mut script = format!(
            "ip netns add {netns}
             ip link add {cable} type veth peer name eth0 netns {netns}
             ip link set {cable} up
             ip -n {netns} link set lo up
             ip -n {netns} link set eth0 up\n"
        );
        let gateways = lock(&self.agent.addresses).gateways();
        for (address, gateway) in self.addresses.iter().zip(gateways) {
            let (length, nodad) = match address {
                IpAddr::V4(_) => (32, ""),
                IpAddr::V6(_) => (128, "nodad"),
            };
            script += &format!(
                "ip addr add {gateway}/{length} dev {cable} {nodad}
                 ip route add {address} dev {cable}
                 ip -n {netns} addr add {address}/{length} dev eth0 {nodad}
                 ip -n {netns} route add {gateway} dev eth0
                 ip -n {netns} route add default via {gateway}\n"
            );
        }
        run_program("sh", &["-ec", &script])
            .await
            .context("make the pod's namespace")
    }

    /// Starts the echo server inside. Arguments and environment of other
    /// images are not for it.
    fn serve(&self, pod: &Pod) -> Result<Child> {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let ours = container.filter(|c| {
            c.image
                .as_deref()
                .is_some_and(|image| image.starts_with(crate::pods::ECHO))
        });
        let mut command = Command::new("ip");
        command
            .args([
                "netns",
                "exec",
                &self.netns,
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
            ])
            .arg(&self.agent.program)
            .args(["echo", "--name", &self.name])
            .args(ours.and_then(|c| c.args.clone()).unwrap_or_default())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command.spawn().context("start the echo server")
    }

    /// Probes and reports until the server ended. Whether it is to be started
    /// again.
    async fn attend(&mut self, mut child: Child, probe: &Probe, restarts: u32) -> Result<bool> {
        let mut shown: Option<Shown> = None;
        let mut ready = false;
        let (mut good, mut bad) = (0, 0);
        let mut probe_at = Instant::now();
        let mut report_at = Instant::now();
        let mut deadline: Option<Instant> = None;
        loop {
            let wanted = Shown {
                ready,
                running: true,
                restarts,
                gates: gates(&self.pod()),
            };
            if shown.as_ref() != Some(&wanted) && Instant::now() >= report_at {
                match self.report(&wanted).await {
                    Ok(()) => shown = Some(wanted.clone()),
                    Err(error) => {
                        eprintln!("pod {}: {error:#}", self.name);
                        report_at = Instant::now() + RETRY;
                    }
                }
            }
            let dirty = shown.as_ref() != Some(&wanted);
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                status = child.wait() => {
                    let status = status?;
                    if deadline.is_none() {
                        eprintln!("pod {}: its server ended: {status}", self.name);
                        let ended = Shown { ready: false, ..wanted };
                        let _ = self.report(&ended).await;
                        return Ok(true);
                    }
                    break;
                }
                changed = self.pods.changed() => {
                    if changed.is_err() {
                        // The Pod object is gone.
                        child.kill().await?;
                        return Ok(false);
                    }
                    let pod = self.pod();
                    if deadline.is_none() && pod.metadata.deletion_timestamp.is_some() {
                        deadline = Some(Instant::now() + grace(&pod));
                        terminate(&child);
                    }
                }
                () = sleep_until(deadline.unwrap_or(far)) => {
                    child.kill().await?;
                    break;
                }
                () = sleep_until(probe_at) => {
                    let Some(&address) = self.addresses.first() else {
                        anyhow::bail!("no address");
                    };
                    if probe.once(address).await {
                        (good, bad) = (good + 1, 0);
                        ready |= good >= probe.successes;
                    } else {
                        (good, bad) = (0, bad + 1);
                        ready &= bad < probe.failures;
                    }
                    let seen = shown.as_ref().is_some_and(|shown| shown.ready);
                    let pause = if ready || seen { probe.period } else { EAGER };
                    probe_at = Instant::now() + pause.min(probe.period);
                }
                () = sleep_until(report_at), if dirty => {}
            }
        }
        let ended = Shown {
            ready: false,
            running: false,
            restarts,
            gates: true,
        };
        self.persist(&ended).await?;
        Ok(false)
    }

    /// Reports the end and deletes the Pod, however long the API is away.
    async fn persist(&mut self, ended: &Shown) -> Result<()> {
        loop {
            if self.pods.has_changed().is_err() {
                return Ok(());
            }
            let result = match self.report(ended).await {
                Ok(()) => self.delete().await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("pod {}: {error:#}", self.name),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn wait_for_deletion(&mut self) -> Result<()> {
        let deleted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        if self.pods.wait_for(deleted).await.is_ok() {
            self.delete().await?;
        }
        Ok(())
    }

    fn api(&self) -> Api<Pod> {
        let namespace = self.pod().namespace().unwrap_or_default();
        Api::namespaced(self.client.clone(), &namespace)
    }

    async fn delete(&self) -> Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match tokio::time::timeout(PATIENCE, self.api().delete(&self.name, &params)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error).context("delete the pod"),
        }
    }

    async fn report(&self, shown: &Shown) -> Result<()> {
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": self.uid},
            "status": self.status(shown),
        }));
        let api = self.api();
        let params = PatchParams::default();
        let request = api.patch_status(&self.name, &params, &patch);
        match tokio::time::timeout(PATIENCE, request).await? {
            Ok(_) => Ok(()),
            // Gone, or another pod of that name by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error).context("report the status"),
        }
    }

    fn status(&self, shown: &Shown) -> Value {
        let pod = self.pod();
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let (since, now) = (Time(self.since), Time(Timestamp::now()));
        let condition = |kind: &str, holds: bool| {
            json!({
                "type": kind,
                "status": if holds { "True" } else { "False" },
                "lastTransitionTime": now,
            })
        };
        let state = if shown.running {
            json!({"running": {"startedAt": since}, "terminated": null})
        } else {
            json!({"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}, "running": null})
        };
        let all = |addresses: &[IpAddr]| -> Vec<Value> {
            addresses.iter().map(|ip| json!({"ip": ip})).collect()
        };
        let node = &self.agent.node_addresses;
        json!({
            "phase": if shown.running { "Running" } else { "Succeeded" },
            "podIP": self.addresses.first(),
            "podIPs": all(&self.addresses),
            "hostIP": node.first(),
            "hostIPs": all(node),
            "startTime": since,
            "conditions": [
                condition("PodScheduled", true),
                condition("PodReadyToStartContainers", shown.running),
                condition("Initialized", true),
                condition("ContainersReady", shown.ready),
                condition("Ready", shown.ready && shown.gates),
            ],
            "containerStatuses": [{
                "name": container.map_or("", |c| c.name.as_str()),
                "image": container.and_then(|c| c.image.as_deref()).unwrap_or_default(),
                "imageID": "",
                "containerID": format!("netns://{}", self.netns),
                "ready": shown.ready,
                "started": shown.running,
                "restartCount": shown.restarts,
                "state": state,
            }],
        })
    }

    /// Takes the namespace down. The kernel removes the cable with it.
    async fn remove(&self) {
        if !self.host_network {
            // Fails where it was never made.
            let _ = run_program("ip", &["netns", "delete", &self.netns]).await;
            let _ = run_program("ip", &["link", "delete", &self.cable]).await;
            lock(&self.agent.addresses).release(&self.uid);
        }
    }
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn grace(pod: &Pod) -> Duration {
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether all readiness gates hold.
fn gates(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    gates.into_iter().flatten().all(|gate| {
        conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == gate.condition_type && c.status == "True")
    })
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}
