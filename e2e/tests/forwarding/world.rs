//! A lab with the pods and Services that every case asks, and how it asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bellrock_e2e::bellrock::Workload;
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options};
use bellrock_e2e::netns::Netns;
use bellrock_e2e::probe::{By, Outcome, ask};
use bellrock_e2e::suite::configuration;
use serde_json::{Value, json};

use crate::objects;

pub(crate) const BOTH: [By; 2] = [By::Tcp, By::Udp];
/// How long the objects and their changes may take to reach every kernel.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Without an answer for so long, a question is lost.
const PATIENCE: Duration = Duration::from_millis(700);
/// Questions within which every endpoint of a few has been met: with two of
/// them, all but 1 in 2^60 runs.
const QUESTIONS: usize = 60;

/// The flag of the speaker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Forwarding {
    Nftables,
    KubeProxy,
}

impl Forwarding {
    pub(crate) fn values(self) -> &'static str {
        match self {
            Self::Nftables => "speaker: {forwarding: nftables}",
            Self::KubeProxy => "speaker: {forwarding: kube-proxy}",
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    /// The client on the segment; its packets enter the cluster at this node.
    OutsideBy(&'static str),
    /// A pod.
    Pod(&'static str),
    /// A node itself.
    Node(&'static str),
}

/// What is asked: a Service, at its address or at its node port of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    Address(&'static str),
    NodePort(&'static str, &'static str),
}

/// Which address of the client the pod shall see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// The client's own.
    Own,
    /// Another's.
    Other,
    /// Its own on the node where the question came in, another's elsewhere.
    OwnIfOnNode(&'static str),
    Any,
}

/// What shall become of the questions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// Exactly these pods answer.
    Pods(&'static [&'static str], Seen),
    Refused,
    Lost,
}

struct Pod {
    node: String,
    address: IpAddr,
    netns: Netns,
}

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) speakers: BTreeMap<String, Workload>,
    _controller: Workload,
    pods: BTreeMap<String, Pod>,
    addresses: BTreeMap<String, Ipv4Addr>,
    services: BTreeMap<String, Value>,
    rollouts: u32,
    /// Each lab wants the whole machine.
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn up(kube_proxy: KubeProxy, forwarding: Forwarding) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::up(&Options {
            kube_proxy,
            ..Options::default()
        })?;
        lab.install(forwarding.values())?;
        lab.apply(&configuration())?;
        // The client sends where it is told to, not where a node would have
        // it send.
        lab.host("c1").sh(
            "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth1.accept_redirects=0",
        )?;
        // Nor do the nodes tell it, and their refusals come at once: the kernel
        // counts redirects and refusals together, and limits them.
        for node in lab.nodes() {
            lab.host(node).sh(
                "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth1.send_redirects=0 net.ipv4.icmp_ratelimit=0",
            )?;
        }
        let (controller, speakers) = lab.start_bellrock()?;
        let mut world = Self {
            lab,
            speakers,
            _controller: controller,
            pods: BTreeMap::new(),
            addresses: BTreeMap::new(),
            services: BTreeMap::new(),
            rollouts: 0,
            _turn: turn,
        };
        world.fill()?;
        Ok(world)
    }

    fn fill(&mut self) -> Result<()> {
        self.lab.apply(&objects::list(&objects::pods()))?;
        self.lab.apply(&objects::list(&objects::services()))?;
        self.pods = self.lab.until("the pods are as they shall be", SOON, || {
            let list = self.lab.kubectl_json(&["get", "pods"])?;
            let pods = list["items"].as_array().context("no pods")?;
            pods.iter().map(|pod| self.pod(pod)).collect()
        })?;
        // Slices that no controller makes name the pods' addresses.
        let web = |pod: &str| self.address_of_pod(pod);
        let by_hand = objects::slices(web("web-1")?, web("web-2")?);
        self.lab.apply(&objects::list(&by_hand))?;
        let (addresses, services) = self.lab.until("the Services have addresses", SOON, || {
            let list = self.lab.kubectl_json(&["get", "services"])?;
            let items = list["items"].as_array().context("no Services")?;
            let (mut addresses, mut services) = (BTreeMap::new(), BTreeMap::new());
            for item in items {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                if item["spec"]["type"] == "LoadBalancer" {
                    let ip = item["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
                    let ip = ip.with_context(|| format!("{name} has no address"))?;
                    addresses.insert(name.to_owned(), ip.parse()?);
                }
                services.insert(name.to_owned(), item.clone());
            }
            Ok((addresses, services))
        })?;
        (self.addresses, self.services) = (addresses, services);
        Ok(())
    }

    /// A pod that is Ready, or that never shall be.
    fn pod(&self, pod: &Value) -> Result<(String, Pod)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, node) = (
            text(&pod["metadata"]["name"]),
            text(&pod["spec"]["nodeName"]),
        );
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        ensure!(ready || name.starts_with("unready"), "{name} is not ready");
        let uid: String = text(&pod["metadata"]["uid"]).replace('-', "");
        let short = uid.get(..8).context("no uid")?;
        let host = self.lab.host(&node);
        let netns = match pod["spec"]["hostNetwork"].as_bool() {
            Some(true) => host.name().to_owned(),
            _ => format!("{}-{name}-{short}", host.name()),
        };
        let pod = Pod {
            address: text(&pod["status"]["podIP"])
                .parse()
                .with_context(|| format!("{name} has no address"))?,
            netns: Netns::of_others(&netns),
            node,
        };
        Ok((name, pod))
    }

    fn of<'a, T>(map: &'a BTreeMap<String, T>, name: &str) -> Result<&'a T> {
        map.get(name).with_context(|| format!("there is no {name}"))
    }

    pub(crate) fn address_of_pod(&self, pod: &str) -> Result<IpAddr> {
        Ok(Self::of(&self.pods, pod)?.address)
    }

    pub(crate) fn address(&self, service: &str) -> Result<Ipv4Addr> {
        Ok(*Self::of(&self.addresses, service)?)
    }

    pub(crate) fn service(&self, service: &str) -> Result<&Value> {
        Self::of(&self.services, service)
    }

    fn host(&self, from: From) -> Result<&Netns> {
        Ok(match from {
            From::OutsideBy(_) => self.lab.host("c1"),
            From::Pod(pod) => &Self::of(&self.pods, pod)?.netns,
            From::Node(node) => self.lab.host(node),
        })
    }

    fn own_address(&self, from: From) -> Result<IpAddr> {
        Ok(match from {
            From::OutsideBy(_) => self.lab.address("c1").into(),
            From::Pod(pod) => self.address_of_pod(pod)?,
            From::Node(node) => self.lab.address(node).into(),
        })
    }

    /// Sends what the client outside has for `address` by way of `node`.
    pub(crate) fn send_by(&self, node: &str, address: Ipv4Addr) -> Result<()> {
        let gateway = self.lab.address(node);
        let line = format!("ip route replace {address}/32 via {gateway}");
        self.lab.host("c1").sh(&line)?;
        Ok(())
    }

    fn socket(&self, to: To, by: By) -> Result<SocketAddr> {
        let (service, node) = match to {
            To::Address(service) => (service, None),
            To::NodePort(service, node) => (service, Some(node)),
        };
        let protocol = match by {
            By::Tcp => "TCP",
            By::Udp => "UDP",
        };
        let ports = self.service(service)?["spec"]["ports"].as_array();
        let port = ports
            .into_iter()
            .flatten()
            .find(|port| port["protocol"] == protocol)
            .with_context(|| format!("{service} has no {protocol} port"))?;
        let (address, number) = match node {
            None => (self.address(service)?, &port["port"]),
            Some(node) => (self.lab.address(node), &port["nodePort"]),
        };
        let number = number.as_u64().context("no such port")?;
        Ok(SocketAddr::new(address.into(), u16::try_from(number)?))
    }

    /// Asks once.
    pub(crate) fn ask(&self, from: From, by: By, to: SocketAddr) -> Result<Outcome> {
        if let (From::OutsideBy(node), IpAddr::V4(address)) = (from, to.ip())
            && self.addresses.values().any(|known| *known == address)
        {
            self.send_by(node, address)?;
        }
        ask(self.host(from)?, by, to, PATIENCE)
    }

    /// The node port of a Service.
    pub(crate) fn node_port(&self, service: &'static str, by: By) -> Result<u16> {
        Ok(self.socket(To::NodePort(service, "n1"), by)?.port())
    }

    /// Waits until questions by TCP and UDP become what is expected.
    pub(crate) fn see(&self, from: From, to: To, expected: Expect) -> Result<()> {
        BOTH.into_iter()
            .try_for_each(|by| self.see_by(by, from, to, expected))
    }

    /// Waits until questions become what is expected.
    pub(crate) fn see_by(&self, by: By, from: From, to: To, expected: Expect) -> Result<()> {
        let socket = self.socket(to, by)?;
        self.see_at(by, from, socket, expected)
            .with_context(|| format!("{by:?} from {from:?} to {to:?}, expecting {expected:?}"))
    }

    /// The same for any address and port.
    pub(crate) fn see_at(
        &self,
        by: By,
        from: From,
        to: SocketAddr,
        expected: Expect,
    ) -> Result<()> {
        self.lab
            .until("the questions become so", SOON, || match expected {
                Expect::Pods(pods, seen) => self.pods_answer(by, from, to, pods, seen),
                Expect::Refused => self.becomes(by, from, to, &Outcome::Refused),
                Expect::Lost => self.becomes(by, from, to, &Outcome::Lost),
            })
    }

    fn becomes(&self, by: By, from: From, to: SocketAddr, expected: &Outcome) -> Result<()> {
        let outcome = self.ask(from, by, to)?;
        ensure!(outcome == *expected, "{outcome:?}");
        Ok(())
    }

    fn pods_answer(
        &self,
        by: By,
        from: From,
        to: SocketAddr,
        pods: &[&str],
        seen: Seen,
    ) -> Result<()> {
        let own = self.own_address(from)?;
        let mut met = BTreeSet::new();
        for _ in 0..QUESTIONS {
            let answer = match self.ask(from, by, to)? {
                Outcome::Answered(answer) => answer,
                other => bail!("{other:?}"),
            };
            ensure!(pods.contains(&answer.pod.as_str()), "{answer:?}");
            let kept = answer.client.ip() == own;
            let here = |node| Self::of(&self.pods, &answer.pod).map(|pod| pod.node == node);
            let right = match seen {
                Seen::Own => kept,
                Seen::Other => !kept,
                Seen::OwnIfOnNode(node) => kept == here(node)?,
                Seen::Any => true,
            };
            ensure!(right, "{answer:?} for {own}");
            met.insert(answer.pod);
            if met.len() == pods.len() {
                return Ok(());
            }
        }
        bail!("only {met:?} answered")
    }

    /// Measures a condition from now until it holds.
    pub(crate) fn timed(
        &self,
        what: &str,
        condition: impl FnMut() -> Result<()>,
    ) -> Result<Duration> {
        let start = Instant::now();
        self.lab.until(what, SOON, condition)?;
        Ok(start.elapsed())
    }

    /// What a node's speaker has found there: reasons and messages.
    pub(crate) fn warnings(&self, node: &str) -> Result<BTreeMap<String, String>> {
        let status = self.lab.kubectl_json(&["get", "speakerstatus", node])?;
        let list = status["status"]["forwarding"]["warnings"].as_array();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pair = |warning: &Value| (text(&warning["reason"]), text(&warning["message"]));
        Ok(list.into_iter().flatten().map(pair).collect())
    }

    pub(crate) fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.lab
            .kubectl(&["patch", kind, name, "--type=merge", "-p", &patch])?;
        Ok(())
    }

    /// Replaces the speakers by ones with another flag, node by node, as a
    /// rollout does: the new one is there before the old one leaves.
    pub(crate) fn roll_out(&mut self, values: &str) -> Result<()> {
        self.lab.install(values)?;
        self.rollouts += 1;
        for node in self.lab.nodes() {
            let next = self.lab.start_next_speaker(node, self.rollouts)?;
            if let Some(old) = self.speakers.insert(node.to_owned(), next) {
                let status = old.terminate(Duration::from_secs(10))?;
                ensure!(status.success(), "speaker of {node}: {status}");
            }
        }
        Ok(())
    }
}

/// The Service's health check port on each node: status and answer.
pub(crate) fn health(world: &World, service: &str, node: &str) -> Result<(u16, String, Value)> {
    let port = world.service(service)?["spec"]["healthCheckNodePort"].as_u64();
    let port = u16::try_from(port.context("no healthCheckNodePort")?)?;
    let at = SocketAddr::new(world.lab.address(node).into(), port);
    let patience = Duration::from_secs(2);
    let asked = world
        .lab
        .host("c1")
        .run(|| bellrock_e2e::probe::exchange("GET", at, "/", patience))?;
    let (status, head, body) = asked?;
    let body: Value = serde_json::from_str(&body).unwrap_or(json!(body));
    Ok((status, head.to_ascii_lowercase(), body))
}
