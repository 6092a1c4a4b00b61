//! What the world outside Bellrock sees: the kernel's tables, the router, the
//! API server. Tests and the demo judge by these, never by our own logs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::Value;

use crate::lab::{Lab, program};

/// The external address in a Service's status.
pub fn external_address(service: &Service) -> Option<Ipv4Addr> {
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    status
        .ingress
        .as_ref()?
        .iter()
        .find_map(|ingress| ingress.ip.as_ref()?.parse().ok())
}

impl Lab {
    /// The Services of the default namespace.
    pub fn services(&self) -> Api<Service> {
        Api::namespaced(self.admin(), "default")
    }

    /// Creates a Service and waits for its external address by a watch; the
    /// address, and the time from sending the request to seeing it.
    pub fn create_service(&self, service: &Value) -> Result<(Ipv4Addr, Duration)> {
        let service: Service = serde_json::from_value(service.clone())?;
        let name = service.name_any();
        self.block_on(async {
            let api = self.services();
            let start = Instant::now();
            let created = api.create(&PostParams::default(), &service).await?;
            let wait = async {
                let params = WatchParams::default().fields(&format!("metadata.name={name}"));
                let version = created.resource_version().unwrap_or_default();
                let mut events = std::pin::pin!(api.watch(&params, &version).await?);
                while let Some(event) = events.try_next().await? {
                    if let WatchEvent::Modified(now) | WatchEvent::Added(now) = event
                        && let Some(address) = external_address(&now)
                    {
                        return Ok(address);
                    }
                }
                bail!("the watch ended")
            };
            let address = tokio::time::timeout(Duration::from_secs(30), wait)
                .await
                .with_context(|| format!("Service {name} has no address after 30 s"))??;
            Ok((address, start.elapsed()))
        })
    }

    /// Deletes a Service of the default namespace.
    pub fn delete_service(&self, name: &str) -> Result<()> {
        self.block_on(self.services().delete(name, &DeleteParams::default()))?;
        Ok(())
    }

    /// Waits until a Service of the default namespace has an address.
    pub fn address_of_service(&self, name: &str) -> Result<Ipv4Addr> {
        self.until(
            "the Service has an address",
            Duration::from_secs(30),
            || {
                let service = self.block_on(self.services().get(name))?;
                external_address(&service).with_context(|| format!("{name} has none"))
            },
        )
    }

    /// The hardware address of a host's `eth1`.
    pub fn mac(&self, host: &str) -> Result<String> {
        let links = json(&self.host(host).sh("ip -j link show dev eth1")?)?;
        text(&links[0]["address"]).context("no hardware address")
    }

    /// The node whose hardware address a client has in its neighbour table.
    pub fn neighbour(&self, client: &str, address: impl Into<IpAddr>) -> Result<String> {
        let address = address.into();
        let entries = json(
            &self
                .host(client)
                .sh(&format!("ip -j neigh show {address}"))?,
        )?;
        let mac = text(&entries[0]["lladdr"])
            .with_context(|| format!("{client} has no entry for {address}"))?;
        for node in self.nodes() {
            if self.mac(node)? == mac {
                return Ok(node.to_owned());
            }
        }
        bail!("{address} is at {mac}, which is no node's")
    }

    /// The nodes from which FRR has a valid path for `address`/32.
    pub fn bgp_paths(&self, router: &str, address: Ipv4Addr) -> Result<BTreeSet<String>> {
        let shown = self
            .frr(router)
            .json(&format!("show bgp ipv4 unicast {address}/32 json"))?;
        let hops = shown["paths"].as_array().into_iter().flatten();
        let hops = hops
            .filter(|path| path["valid"].as_bool() == Some(true))
            .filter_map(|path| text(&path["nexthops"][0]["ip"]));
        self.node_names(hops)
    }

    /// The nodes that the router's kernel sends packets for `address` to.
    pub fn kernel_paths(&self, router: &str, address: Ipv4Addr) -> Result<BTreeSet<String>> {
        let shown = json(
            &self
                .host(router)
                .sh(&format!("ip -j route show {address}/32"))?,
        )?;
        let route = &shown[0];
        let several = route["nexthops"].as_array().into_iter().flatten();
        let hops = several
            .chain([route])
            .filter_map(|hop| text(&hop["gateway"]));
        self.node_names(hops)
    }

    fn node_names(&self, hops: impl Iterator<Item = String>) -> Result<BTreeSet<String>> {
        let names: BTreeMap<String, &str> = self
            .nodes()
            .into_iter()
            .map(|node| (self.address(node).to_string(), node))
            .collect();
        hops.map(|hop| {
            let name = names
                .get(&hop)
                .with_context(|| format!("next hop {hop} is no node"))?;
            Ok((*name).to_owned())
        })
        .collect()
    }

    /// Waits until the router has paths for `address` from exactly `nodes`, in
    /// FRR and in its kernel.
    pub fn until_routed(&self, router: &str, address: Ipv4Addr, nodes: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        self.until("the router has the paths", Duration::from_secs(30), || {
            let (bgp, kernel) = (
                self.bgp_paths(router, address)?,
                self.kernel_paths(router, address)?,
            );
            ensure!(bgp == wanted, "FRR has paths from {bgp:?}, not {wanted:?}");
            ensure!(
                kernel == wanted,
                "the kernel has next hops {kernel:?}, not {wanted:?}"
            );
            Ok(())
        })
    }

    /// A node's nftables tables of Bellrock, those of second chances among
    /// them, as `nft -j` lists them; nothing if there is none.
    pub fn forwarding_table(&self, node: &str) -> Result<Option<String>> {
        let all = self.host(node).sh("nft -j list ruleset")?;
        let listed = json(&all)?;
        let ours = listed["nftables"].as_array().into_iter().flatten();
        let ours: Vec<&Value> = ours
            .filter(|item| {
                item.as_object()
                    .into_iter()
                    .flatten()
                    .any(|(kind, object)| {
                        object["table"] == "bellrock"
                            || (kind == "table" && object["name"] == "bellrock")
                    })
            })
            .collect();
        Ok((!ours.is_empty())
            .then(|| serde_json::to_string(&ours))
            .transpose()?)
    }

    /// Whether a node's forwarding table mentions an address.
    pub fn forwards(&self, node: &str, address: Ipv4Addr) -> Result<bool> {
        let Some(tables) = self.forwarding_table(node)? else {
            return Ok(false);
        };
        // A second chance for the address forwards nothing by itself.
        let items: Vec<Value> = serde_json::from_str(&tables)?;
        let inet = |item: &Value| {
            let mut objects = item.as_object().into_iter().flatten();
            objects.any(|(_, object)| object["family"] == "inet")
        };
        let items: Vec<&Value> = items.iter().filter(|item| inet(item)).collect();
        let table = serde_json::to_string(&items)?;
        Ok(table.contains(&format!("\"{address}\"")))
    }

    /// Runs `bellrock ARGS` against the lab's cluster: exit code, output,
    /// errors.
    pub fn bellrock(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let output = Command::new(program("bellrock", "BELLROCK_BIN")?)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .output()
            .context("run bellrock")?;
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// The reason that `bellrock why` gives for a node and way (`l2`, `bgp`).
    pub fn why(&self, target: &str) -> Result<Value> {
        let (code, out, err) = self.bellrock(&["why", target, "-o", "json"])?;
        ensure!(code == 0 || code == 1, "bellrock why {target}: {err}");
        json(&out)
    }
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
