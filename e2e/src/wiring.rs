//! Hosts and cables: made from the topology, pulled and plugged in again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ground::Ground;
use crate::lab::Lab;
use crate::netns::{Netns, veth};
use crate::topology::{End, Link, Role, Topology};

const BRIDGE: &str = "br0";

/// Makes the hosts, their cables, and runs their `exec` lines.
pub(crate) fn wire(ground: &Ground, topology: &Topology) -> Result<BTreeMap<String, Netns>> {
    let mut hosts = BTreeMap::new();
    for (name, node) in &topology.nodes {
        let host = Netns::named(&ground.netns(name))?;
        match node.role {
            Role::Switch => host.bridge(BRIDGE)?,
            Role::Node | Role::Router => {
                host.sh(
                    "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 \
                     net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.all.forwarding=1",
                )?;
            }
            Role::Client | Role::ControlPlane => {}
        }
        hosts.insert(name.clone(), host);
    }
    for link in &topology.links {
        let (a, b) = (&link.a, &link.b);
        veth(&hosts[&a.node], &a.interface, &hosts[&b.node], &b.interface)?;
        for end in [a, b] {
            if topology.nodes[&end.node].role == Role::Switch {
                hosts[&end.node].sh(&format!("ip link set {} master {BRIDGE}", end.interface))?;
            }
        }
    }
    for (name, node) in &topology.nodes {
        // Addresses first: routes of a group come before its nodes' own lines.
        let (addresses, rest): (Vec<_>, Vec<_>) = node
            .exec
            .iter()
            .partition(|line| line.starts_with("ip addr "));
        let lines: Vec<&str> = addresses
            .into_iter()
            .chain(rest)
            .map(String::as_str)
            .collect();
        if !lines.is_empty() {
            hosts[name].sh(&lines.join("\n"))?;
        }
    }
    Ok(hosts)
}

/// What a host's `eth1` has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// The first addresses of each host's `eth1`, as the kernel has them.
pub(crate) fn addresses(
    hosts: &BTreeMap<String, Netns>,
    topology: &Topology,
) -> Result<BTreeMap<String, Addresses>> {
    let mut addresses = BTreeMap::new();
    for (name, node) in &topology.nodes {
        if node.role == Role::Switch {
            continue;
        }
        let first = |family: &str| -> Result<Option<String>> {
            let line = format!("ip -j {family} addr show dev eth1 scope global");
            let shown: Value = serde_json::from_str(&hosts[name].sh(&line)?)?;
            let local = shown[0]["addr_info"][0]["local"].as_str();
            Ok(local.map(str::to_owned))
        };
        let v4 = first("-4")?.with_context(|| format!("{name} has no IPv4 address on eth1"))?;
        let v6 = first("-6")?.map(|text| text.parse()).transpose()?;
        let v4 = v4.parse()?;
        addresses.insert(name.clone(), Addresses { v4, v6 });
    }
    Ok(addresses)
}

impl Lab {
    /// Pulls the cable of a host's `eth1` out of the switch: the host sees
    /// only silence.
    pub fn cut(&self, host: &str) -> Result<()> {
        let port = self.port(host)?;
        self.host(&port.node)
            .sh(&format!("ip link set {} nomaster", port.interface))?;
        Ok(())
    }

    /// Plugs it in again.
    pub fn heal(&self, host: &str) -> Result<()> {
        let port = self.port(host)?;
        self.host(&port.node).sh(&format!(
            "ip link set {0} up && ip link set {0} master {BRIDGE}",
            port.interface
        ))?;
        Ok(())
    }

    /// Takes the link of a host's `eth1` down at the switch: the host sees its
    /// carrier go. [`Lab::heal`] brings it back.
    pub fn link_down(&self, host: &str) -> Result<()> {
        let port = self.port(host)?;
        self.host(&port.node)
            .sh(&format!("ip link set {} down", port.interface))?;
        Ok(())
    }

    /// Loses every frame that a host sends on its `eth1`; it hears as before.
    pub fn mute(&self, host: &str) -> Result<()> {
        self.one_way(host, "iifname")
    }

    /// Loses every frame that is sent to a host's `eth1`; others hear it as
    /// before.
    pub fn deafen(&self, host: &str) -> Result<()> {
        self.one_way(host, "oifname")
    }

    fn one_way(&self, host: &str, direction: &str) -> Result<()> {
        let port = self.port(host)?;
        self.host(&port.node).sh(&format!(
            "nft 'add table bridge {0}; \
             add chain bridge {0} lost {{ type filter hook forward priority 0; }}; \
             add rule bridge {0} lost {direction} {0} drop'",
            port.interface
        ))?;
        Ok(())
    }

    /// Ends what [`Lab::mute`] or [`Lab::deafen`] did to a host.
    pub fn both_ways(&self, host: &str) -> Result<()> {
        let port = self.port(host)?;
        self.host(&port.node)
            .sh(&format!("nft delete table bridge {}", port.interface))?;
        Ok(())
    }

    /// Pulls the cable between two switches at the first: each has silence
    /// there.
    pub fn part(&self, one: &str, other: &str) -> Result<()> {
        let port = self.trunk(one, other)?;
        self.host(one)
            .sh(&format!("ip link set {} nomaster", port.interface))?;
        Ok(())
    }

    /// Plugs it in again.
    pub fn join(&self, one: &str, other: &str) -> Result<()> {
        let port = self.trunk(one, other)?;
        self.host(one)
            .sh(&format!("ip link set {} master {BRIDGE}", port.interface))?;
        Ok(())
    }

    /// The end at `one` of its cable to `other`.
    fn trunk(&self, one: &str, other: &str) -> Result<&End> {
        let links = &self.topology().links;
        links
            .iter()
            .flat_map(|Link { a, b }| [(a, b), (b, a)])
            .find_map(|(end, peer)| (end.node == one && peer.node == other).then_some(end))
            .with_context(|| format!("no cable joins {one} and {other}"))
    }

    fn port(&self, host: &str) -> Result<&End> {
        self.topology()
            .switch_port(host)
            .with_context(|| format!("{host} is not on a switch"))
    }
}
