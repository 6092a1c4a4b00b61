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
use std::net::Ipv4Addr;
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
    address: Ipv4Addr,
    pod_cidr: String,
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
    used: BTreeMap<u8, String>,
    last: u8,
}

impl Addresses {
    fn parse(cidr: &str) -> Result<Self> {
        let (address, length) = cidr.split_once('/').context("pod CIDR without a length")?;
        let [a, b, c, d] = address.parse::<Ipv4Addr>()?.octets();
        ensure!(length == "24" && d == 0, "pod CIDR {cidr}: want a.b.c.0/24");
        Ok(Self {
            net: [a, b, c],
            used: BTreeMap::new(),
            last: 1,
        })
    }

    fn at(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, host)
    }

    /// The address of the node's end of every pod's cable.
    fn gateway(&self) -> Ipv4Addr {
        self.at(1)
    }

    /// The next free address after the one given last, so that a freed address
    /// rests as long as possible.
    fn take(&mut self, uid: &str) -> Result<Ipv4Addr> {
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
    let addresses = Addresses::parse(&args.pod_cidr)?;
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
        address: args.address,
        pod_cidr: args.pod_cidr,
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

    #[test]
    fn a_freed_pod_address_rests_until_the_others_were_used() {
        let mut addresses = Addresses::parse("10.244.1.0/24").unwrap();
        assert_eq!(addresses.take("a").unwrap().to_string(), "10.244.1.2");
        addresses.release("a");
        for host in 3..=254 {
            assert_eq!(addresses.take("b").unwrap().octets()[3], host);
        }
        assert_eq!(addresses.take("c").unwrap().to_string(), "10.244.1.2");
        assert!(addresses.take("d").is_err());
    }

    #[test]
    fn a_pod_cidr_that_is_no_24_is_refused() {
        for cidr in ["10.244.1.0", "10.244.0.0/16", "10.244.1.1/24", "fd00::/64"] {
            assert!(Addresses::parse(cidr).is_err(), "{cidr}");
        }
    }
}
