//! The node agent: what the lab runs in the kubelet's place.
//!
//! One process per node, inside the node's namespace, so that its API traffic
//! passes through the node's own cable and stops when that is cut. It
//! registers the Node, renews its lease and status every 10 s, keeps routes to
//! the other nodes' pods, and runs the node's pods as network namespaces with
//! the echo server inside.

mod node;
mod pod;
mod probe;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, ResourceExt};
use tokio::process::Command;

/// The node agent's flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    #[arg(long)]
    pub node: String,
    /// The node's address, its InternalIP
    #[arg(long)]
    pub address: Ipv4Addr,
    /// The node's pod addresses, a /24
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: String,
    /// The node's second address, if pods have one, too
    #[arg(long, requires = "pod_cidr6")]
    pub address6: Option<Ipv6Addr>,
    /// The node's second pod addresses, a /64
    #[arg(long, value_name = "CIDR", requires = "address6")]
    pub pod_cidr6: Option<String>,
    /// What the names of the lab's namespaces start with
    #[arg(long, value_name = "PREFIX")]
    pub prefix: String,
    /// Label for the Node object (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// How to reach the API
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
}

/// What all tasks of an agent share.
#[derive(Debug)]
struct Agent {
    node: String,
    /// One of each family.
    node_addresses: Vec<IpAddr>,
    pod_cidrs: Vec<String>,
    prefix: String,
    program: PathBuf,
    since: Timestamp,
    addresses: Mutex<Addresses>,
}

/// The node's pod addresses.
#[derive(Debug)]
struct Addresses {
    /// The first three octets.
    net: [u8; 3],
    /// The same hosts of the second family, if there is one.
    net6: Option<Ipv6Addr>,
    used: BTreeMap<u8, String>,
    last: u8,
}

impl Addresses {
    fn parse(cidr: &str, cidr6: Option<&str>) -> Result<Self> {
        let net6 = cidr6.map(|cidr| -> Result<Ipv6Addr> {
            let address = cidr.strip_suffix("/64").context("want a /64")?;
            Ok(address.parse()?)
        });
        let (address, length) = cidr.split_once('/').context("pod CIDR without a length")?;
        let [a, b, c, d] = address.parse::<Ipv4Addr>()?.octets();
        ensure!(length == "24" && d == 0, "pod CIDR {cidr}: want a.b.c.0/24");
        Ok(Self {
            net: [a, b, c],
            net6: net6.transpose().context("second pod CIDR")?,
            used: BTreeMap::new(),
            last: 1,
        })
    }

    /// The addresses of a host, one of each family.
    fn at(&self, host: u8) -> Vec<IpAddr> {
        let [a, b, c] = self.net;
        let second = self
            .net6
            .map(|net| Ipv6Addr::from_bits(net.to_bits() | u128::from(host)).into());
        let first = IpAddr::from(Ipv4Addr::new(a, b, c, host));
        [first].into_iter().chain(second).collect()
    }

    /// The addresses of the node's end of every pod's cable.
    fn gateways(&self) -> Vec<IpAddr> {
        self.at(1)
    }

    /// The next free addresses after those given last, so that freed ones
    /// rest as long as possible.
    fn take(&mut self, uid: &str) -> Result<Vec<IpAddr>> {
        let order = (self.last.saturating_add(1)..=254).chain(2..=self.last);
        for host in order.filter(|&host| host >= 2) {
            if let Entry::Vacant(free) = self.used.entry(host) {
                free.insert(uid.to_owned());
                self.last = host;
                return Ok(self.at(host));
            }
        }
        bail!("no pod address is free")
    }

    fn release(&mut self, uid: &str) {
        self.used.retain(|_, owner| owner != uid);
    }
}

/// Runs the agent until it is killed.
pub fn run(args: Args) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    let client = client(&args.kubeconfig).await?;
    let addresses = Addresses::parse(&args.pod_cidr, args.pod_cidr6.as_deref())?;
    let second = args.address6.map(IpAddr::from);
    let labels = args
        .labels
        .iter()
        .map(|label| {
            let (key, value) = label.split_once('=').context("label without `=`")?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    let agent = Arc::new(Agent {
        node: args.node,
        node_addresses: [args.address.into()].into_iter().chain(second).collect(),
        pod_cidrs: [args.pod_cidr].into_iter().chain(args.pod_cidr6).collect(),
        prefix: args.prefix,
        program: std::env::current_exe()?,
        since: Timestamp::now(),
        addresses: Mutex::new(addresses),
    });
    tokio::join!(
        node::heartbeat(&client, &agent, labels),
        node::routes(&client, &agent),
        pods(&client, &agent),
    );
    Ok(())
}

/// A client that notices within seconds when its cable was cut.
async fn client(kubeconfig: &PathBuf) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(3));
    config.write_timeout = Some(Duration::from_secs(5));
    Ok(Client::try_from(config)?)
}

/// Watches last 20 s, so that a watch that a cut silenced is noticed soon.
fn watching() -> watcher::Config {
    watcher::Config::default().timeout(20)
}

/// Runs every pod of this node in a task of its own.
async fn pods(client: &Client, agent: &Arc<Agent>) {
    let api: Api<Pod> = Api::all(client.clone());
    let mine = watching().fields(&format!("spec.nodeName={}", agent.node));
    let events = watcher(api, mine);
    pin_mut!(events);
    let mut running: BTreeMap<String, pod::Handle> = BTreeMap::new();
    let mut listed: Vec<String> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.uid());
                apply(client, agent, &mut running, pod);
            }
            Ok(Event::InitDone) => {
                // What is no longer listed was deleted while we did not watch.
                running.retain(|uid, _| listed.contains(uid));
            }
            Ok(Event::Apply(pod)) => apply(client, agent, &mut running, pod),
            Ok(Event::Delete(pod)) => {
                running.remove(&pod.uid().unwrap_or_default());
            }
            Err(error) => {
                eprintln!("watching pods: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

fn apply(
    client: &Client,
    agent: &Arc<Agent>,
    running: &mut BTreeMap<String, pod::Handle>,
    pod: Pod,
) {
    let uid = pod.uid().unwrap_or_default();
    match running.get(&uid) {
        Some(handle) => handle.update(pod),
        None => {
            let handle = pod::Handle::start(client.clone(), Arc::clone(agent), pod);
            running.insert(uid, handle);
        }
    }
}

/// Runs a program to its end; an error holds what it said.
async fn run_program(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().await?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_freed_pod_address_rests_until_the_others_were_used() {
        let mut addresses = Addresses::parse("10.244.1.0/24", None).unwrap();
        assert_eq!(texts(&addresses.take("a").unwrap()), ["10.244.1.2"]);
        addresses.release("a");
        for host in 3..=254 {
            let taken = addresses.take("b").unwrap();
            assert_eq!(texts(&taken), [format!("10.244.1.{host}")]);
        }
        assert_eq!(texts(&addresses.take("c").unwrap()), ["10.244.1.2"]);
        assert!(addresses.take("d").is_err());
    }

    #[test]
    fn pods_have_an_address_of_each_family_that_the_node_has() {
        let mut addresses = Addresses::parse("10.244.1.0/24", Some("fd10:244:1::/64")).unwrap();
        assert_eq!(
            texts(&addresses.gateways()),
            ["10.244.1.1", "fd10:244:1::1"]
        );
        let taken = addresses.take("a").unwrap();
        assert_eq!(texts(&taken), ["10.244.1.2", "fd10:244:1::2"]);
    }

    #[test]
    fn a_pod_cidr_of_another_length_is_refused() {
        for cidr in ["10.244.1.0", "10.244.0.0/16", "10.244.1.1/24", "fd00::/64"] {
            assert!(Addresses::parse(cidr, None).is_err(), "{cidr}");
        }
        assert!(Addresses::parse("10.244.1.0/24", Some("fd00::/48")).is_err());
    }
}
