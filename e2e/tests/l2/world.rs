//! A lab with one Service, and how its segment is watched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bellrock_arp::MacAddr;
use bellrock_e2e::bellrock::Workload;
use bellrock_e2e::capture::Capture;
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::probe::{Pace, Prober, Report};
use bellrock_e2e::suite::{NAMESPACE, POOL};
use serde_json::{Value, json};

use crate::asker::Asker;
use crate::seen::Seen;

pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The nodes of the segment that the pool is of.
pub(crate) const NEAR: [&str; 3] = ["n1", "n2", "n3"];
/// The node of the other one, and the client there.
pub(crate) const FAR: [&str; 2] = ["n4", "c3"];
/// Answers in a row from one node, without any from another: a second.
const SETTLED: usize = 50;
/// Questions in which all announcements after a claim or a heal are over, the
/// last of which is due after 2.2 s.
pub(crate) const LATER: usize = 150;
/// What pods and the management network have is no segment.
const VALUES: &str = "speaker: {excludeInterfaces: [mgmt, pod]}";

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) speakers: BTreeMap<String, Workload>,
    pub(crate) address: Ipv4Addr,
    _controller: Workload,
    /// Nodes by hardware address.
    nodes: BTreeMap<String, String>,
    /// The other segment from the beginning to the end.
    far: Option<Capture>,
    /// Each lab wants the whole machine.
    _turn: MutexGuard<'static, ()>,
}

/// A lab before Bellrock runs in it.
pub(crate) struct Prepared {
    pub(crate) lab: Lab,
    turn: MutexGuard<'static, ()>,
}

impl World {
    /// A lab with what is to be configured, before Bellrock runs.
    pub(crate) fn prepare(topology: &str) -> Result<Prepared> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let file = format!("topologies/{topology}.clab.yml");
        let lab = Lab::up(&Options {
            topology: Path::new(env!("CARGO_MANIFEST_DIR")).join(file),
            kube_proxy: KubeProxy::None,
            ..Options::default()
        })?;
        lab.install(VALUES)?;
        lab.apply(&configuration())?;
        Ok(Prepared { lab, turn })
    }

    /// All of it, with an owner that answers.
    pub(crate) fn up(topology: &str) -> Result<Self> {
        let prepared = Self::prepare(topology)?;
        let lab = &prepared.lab;
        // The nodes here have no route to pods there.
        lab.kubectl(&["taint", "nodes", FAR[0], "far=:NoSchedule"])?;
        let far = lab.capture(FAR[1], "eth1", "arp")?;
        lab.deploy("web", 3, &[])?;
        let places: BTreeSet<String> = lab.pods("web")?.into_iter().map(|pod| pod.node).collect();
        ensure!(
            places.iter().eq(NEAR),
            "a pod on each of {NEAR:?}, not on {places:?}"
        );
        let mut world = prepared.start()?;
        world.far = Some(far);
        for client in ["c1", "c2", "c3"] {
            world.answers(client)?;
        }
        Ok(world)
    }

    pub(crate) fn is_node(&self, mac: MacAddr) -> Result<String> {
        let node = self.nodes.get(&mac.to_string());
        node.cloned()
            .with_context(|| format!("{mac} answers, which is no node's"))
    }

    pub(crate) fn until<T>(&self, what: &str, condition: impl FnMut() -> Result<T>) -> Result<T> {
        self.lab.until(what, SOON, condition)
    }

    pub(crate) fn answers(&self, client: &str) -> Result<()> {
        self.until("HTTP answers", || self.lab.http(client, self.address, 80))?;
        self.until("UDP answers", || self.lab.udp(client, self.address, 80))?;
        Ok(())
    }

    /// Captures ARP and the speakers' frames on `eth1` of hosts.
    pub(crate) fn watch<const N: usize>(&self, hosts: [&str; N]) -> Result<[Capture; N]> {
        let captures: Result<Vec<Capture>> = hosts
            .iter()
            .map(|host| self.lab.capture(host, "eth1", "arp or ether proto 0x88b5"))
            .collect();
        captures?
            .try_into()
            .map_err(|_| anyhow::anyhow!("a capture for each host"))
    }

    pub(crate) fn seen(&self, capture: Capture) -> Result<Seen> {
        Seen::read(capture, &self.nodes, &self.address.to_string())
    }

    /// All that passed the other segment so far.
    pub(crate) fn seen_far(&mut self) -> Result<Seen> {
        let capture = self.far.take().context("it was read already")?;
        self.seen(capture)
    }

    pub(crate) fn asker(&self, host: &str) -> Result<Asker> {
        Asker::start(&self.lab, host, self.address)
    }

    /// Waits until one node answers, and has for a second no other.
    pub(crate) fn alone(&self, asker: &Asker) -> Result<String> {
        self.until("one node alone answers", || self.answering(asker))
    }

    /// The same, when it is another than `old`.
    pub(crate) fn relieved(&self, asker: &Asker, old: &str) -> Result<String> {
        self.until("another node alone answers", || {
            let node = self.answering(asker)?;
            ensure!(node != old, "still {old}");
            Ok(node)
        })
    }

    /// The node that gave the last answers, all of them.
    pub(crate) fn answering(&self, asker: &Asker) -> Result<String> {
        let heard = asker.heard();
        let last: BTreeSet<MacAddr> = heard.answers.iter().rev().take(SETTLED).copied().collect();
        ensure!(
            heard.answers.len() >= SETTLED,
            "{} answers",
            heard.answers.len()
        );
        let mut last = last.into_iter();
        match (last.next(), last.next()) {
            (Some(one), None) => self.is_node(one),
            (one, other) => anyhow::bail!("{one:?} and {other:?} answer"),
        }
    }

    /// Waits until so many further questions were asked.
    pub(crate) fn asked(&self, asker: &Asker, more: usize) -> Result<()> {
        let before = asker.heard().asked;
        self.until("questions are asked", || {
            let asked = asker.heard().asked - before;
            ensure!(asked >= more, "{asked} of {more}");
            Ok(())
        })
    }

    /// Begins to probe from a client; probes have been answered.
    pub(crate) fn prober(&self, client: &str) -> Result<Prober> {
        let target = SocketAddr::new(self.address.into(), 80);
        let prober = Prober::start(self.lab.host(client), target, Pace::default())?;
        self.answered(&prober)?;
        Ok(prober)
    }

    /// Waits until 50 further probes are answered.
    pub(crate) fn answered(&self, prober: &Prober) -> Result<()> {
        let before = prober.answered();
        self.until("probes are answered", || {
            let more = prober.answered() - before;
            ensure!(more >= 50, "{more} answered");
            Ok(())
        })
    }

    /// Waits until the VirtualIP has this node on record.
    pub(crate) fn recorded(&self, owner: &str) -> Result<()> {
        self.until("the owner is on record", || {
            let record = self.record()?;
            ensure!(record["owner"] == json!(owner), "{record}, not {owner}");
            Ok(())
        })
    }

    /// The VirtualIP's status.
    pub(crate) fn record(&self) -> Result<Value> {
        let name = self.address.to_string();
        let object = self.lab.kubectl_json(&["get", "virtualip", &name])?;
        Ok(object["status"].clone())
    }
}

impl Prepared {
    /// Starts Bellrock, and makes the Service.
    pub(crate) fn start(self) -> Result<World> {
        let lab = self.lab;
        let started = lab.start_bellrock();
        if started.is_err() {
            lab.keep_logs();
        }
        let (controller, speakers) = started?;
        let manifest = service("web", "web", &json!({ "type": "LoadBalancer" }));
        let (address, _) = lab.create_service(&manifest)?;
        ensure!(POOL.contains(&address), "{address}");
        let mut nodes = BTreeMap::new();
        for node in lab.nodes() {
            nodes.insert(lab.mac(node)?, node.to_owned());
        }
        Ok(World {
            lab,
            speakers,
            address,
            _controller: controller,
            nodes,
            far: None,
            _turn: self.turn,
        })
    }
}

fn configuration() -> String {
    let object = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "bellrock.dev/v1beta1",
            "kind": kind,
            "metadata": { "name": "lab", "namespace": NAMESPACE },
            "spec": spec,
        })
    };
    let objects = [
        object("IPAddressPool", json!({ "addresses": [POOL.to_string()] })),
        object("L2Advertisement", json!({})),
    ];
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

/// Seconds since 1970, as captures have them.
pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

pub(crate) fn lost(report: &Report) -> usize {
    report.sent - report.answered
}
