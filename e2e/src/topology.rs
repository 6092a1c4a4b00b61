//! Topology files in containerlab's format.
//!
//! The lab reads the part of the format that it needs and refuses fields that
//! it would have to ignore. What each node is to the lab says the label
//! `bellrock.dev/role`; addresses and routes are `exec` lines, and a router's
//! FRR configuration is the file bound to `/etc/frr/frr.conf`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The label that gives a node its [`Role`].
pub const ROLE: &str = "bellrock.dev/role";
const FRR: &str = "/etc/frr/frr.conf";

/// What a node of the topology is to the lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// A Kubernetes node.
    Node,
    /// A host outside the cluster.
    Client,
    /// Runs FRR, forwards.
    Router,
    /// Runs etcd, the API server, the managers.
    ControlPlane,
    /// A bridge.
    Switch,
}

/// A topology, checked.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Its name.
    pub name: String,
    /// Its nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Its cables.
    pub links: Vec<Link>,
}

/// A node of a topology.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub role: Role,
    /// Labels, without the role.
    pub labels: BTreeMap<String, String>,
    /// Lines to run inside once the cables are in.
    pub exec: Vec<String>,
    /// The FRR configuration of a router.
    pub frr: Option<PathBuf>,
}

/// A cable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// One end.
    pub a: End,
    /// The other end.
    pub b: End,
}

/// An end of a cable.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct End {
    /// The node's name.
    pub node: String,
    /// Its interface.
    pub interface: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default, rename = "mgmt")]
    _mgmt: Option<serde_json::Value>,
    topology: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    defaults: Definition,
    #[serde(default)]
    kinds: BTreeMap<String, Definition>,
    #[serde(default)]
    groups: BTreeMap<String, Definition>,
    nodes: BTreeMap<String, Option<Definition>>,
    #[serde(default)]
    links: Vec<RawLink>,
}

/// What may be said of a node, its kind, its group, and all nodes.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    kind: Option<String>,
    group: Option<String>,
    #[serde(rename = "image")]
    _image: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    exec: Vec<String>,
    #[serde(default)]
    binds: Vec<String>,
    // What a container is told; hosts that are namespaces have no use for it.
    #[serde(default, rename = "env")]
    _env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    endpoints: Vec<String>,
}

impl Topology {
    /// Reads a topology file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read topology {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(|| format!("topology {}", path.display()))
    }

    /// Parses a topology; relative paths in it start at `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let file: File = serde_saphyr::from_str(text)?;
        ensure!(!file.name.is_empty(), "the topology has no name");
        let nodes = file
            .topology
            .nodes
            .iter()
            .map(|(name, node)| {
                let layers = file.topology.layers(node.clone().unwrap_or_default());
                let node = resolve(&layers, folder).with_context(|| format!("node {name}"))?;
                Ok((name.clone(), node))
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let links = file
            .topology
            .links
            .iter()
            .map(|link| Link::parse(&link.endpoints))
            .collect::<Result<Vec<_>>>()?;
        let topology = Self {
            name: file.name,
            nodes,
            links,
        };
        topology.check()?;
        Ok(topology)
    }

    fn check(&self) -> Result<()> {
        for name in self.nodes.keys() {
            let valid = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            ensure!(
                valid,
                "node {name:?}: use lower-case letters, digits and dashes"
            );
        }
        let mut ends = BTreeSet::new();
        for end in self.links.iter().flat_map(|link| [&link.a, &link.b]) {
            ensure!(
                self.nodes.contains_key(&end.node),
                "a link ends at {:?}, which is no node",
                end.node
            );
            ensure!(
                !end.interface.is_empty() && end.interface.len() < 16,
                "interface {:?} of {}: 1 to 15 characters",
                end.interface,
                end.node
            );
            ensure!(
                ends.insert(end),
                "two links end at {}:{}",
                end.node,
                end.interface
            );
        }
        for name in self.with_role(Role::Node) {
            ensure!(
                self.switch_port(name).is_some(),
                "node {name}: its eth1 must be plugged into a switch"
            );
        }
        let planes = self.with_role(Role::ControlPlane).count();
        ensure!(
            planes == 1,
            "{planes} nodes have the role control-plane, want 1"
        );
        Ok(())
    }

    /// The names of the nodes of a role, in order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &str> {
        self.nodes
            .iter()
            .filter(move |(_, node)| node.role == role)
            .map(|(name, _)| name.as_str())
    }

    /// The switch and its port that a host's `eth1` is plugged into.
    pub fn switch_port(&self, host: &str) -> Option<&End> {
        let is_switch = |end: &End| {
            self.nodes
                .get(&end.node)
                .is_some_and(|node| node.role == Role::Switch)
        };
        let is_host = |end: &End| end.node == host && end.interface == "eth1";
        self.links.iter().find_map(|link| match (&link.a, &link.b) {
            (a, b) if is_host(a) && is_switch(b) => Some(b),
            (a, b) if is_host(b) && is_switch(a) => Some(a),
            _ => None,
        })
    }
}

impl Body {
    /// From the most general to the node itself.
    fn layers(&self, node: Definition) -> Vec<Definition> {
        let group = node.group.as_ref().and_then(|group| self.groups.get(group));
        let kind = node
            .kind
            .as_ref()
            .or_else(|| group?.kind.as_ref())
            .or(self.defaults.kind.as_ref())
            .and_then(|kind| self.kinds.get(kind));
        let mut layers = vec![self.defaults.clone()];
        layers.extend(kind.cloned());
        layers.extend(group.cloned());
        layers.push(node);
        layers
    }
}

fn resolve(layers: &[Definition], folder: &Path) -> Result<Node> {
    let mut labels = BTreeMap::new();
    let (mut exec, mut binds, mut kind) = (Vec::new(), Vec::new(), "linux");
    for layer in layers {
        labels.extend(layer.labels.clone());
        exec.extend(layer.exec.iter().cloned());
        binds.extend(layer.binds.iter());
        kind = layer.kind.as_deref().unwrap_or(kind);
    }
    let role = match (kind, labels.remove(ROLE).as_deref()) {
        ("bridge", None | Some("switch")) | ("linux", Some("switch")) => Role::Switch,
        ("linux", Some("node")) => Role::Node,
        ("linux", Some("client")) => Role::Client,
        ("linux", Some("router")) => Role::Router,
        ("linux", Some("control-plane")) => Role::ControlPlane,
        (kind, role) => bail!(
            "kind {kind:?} with label {ROLE} {role:?}: want `bridge`, or `linux` with \
             node, client, router, switch or control-plane"
        ),
    };
    let mut frr = None;
    for bind in binds {
        let mut parts = bind.split(':');
        let (source, target) = (parts.next().unwrap_or_default(), parts.next());
        ensure!(
            role == Role::Router && target == Some(FRR),
            "bind {bind:?}: only a router's {FRR} can be bound"
        );
        frr = Some(folder.join(source));
    }
    ensure!(
        role != Role::Router || frr.is_some(),
        "a router needs a bind for {FRR}"
    );
    Ok(Node {
        role,
        labels,
        exec,
        frr,
    })
}

impl Link {
    fn parse(endpoints: &[String]) -> Result<Self> {
        let [a, b] = endpoints else {
            bail!(
                "a link has two endpoints, not {}: {endpoints:?}",
                endpoints.len()
            );
        };
        Ok(Self {
            a: End::parse(a)?,
            b: End::parse(b)?,
        })
    }
}

impl End {
    fn parse(text: &str) -> Result<Self> {
        let (node, interface) = text
            .split_once(':')
            .with_context(|| format!("endpoint {text:?} is not node:interface"))?;
        Ok(Self {
            node: node.to_owned(),
            interface: interface.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
name: small
topology:
  defaults: {kind: linux}
  kinds:
    linux: {image: "debian:12", exec: ["first"]}
  groups:
    workers: {labels: {bellrock.dev/role: node, zone: a}}
  nodes:
    sw: {kind: bridge}
    cp: {labels: {bellrock.dev/role: control-plane}}
    n1: {group: workers, labels: {zone: b}, exec: ["second"]}
  links:
    - endpoints: ["cp:eth1", "sw:cp"]
    - endpoints: ["sw:n1", "n1:eth1"]
"#;

    fn parse(text: &str) -> Result<Topology> {
        Topology::parse(text, Path::new("/somewhere"))
    }

    #[test]
    fn defaults_kinds_groups_and_nodes_add_up_and_the_nearest_wins() {
        let topology = parse(SMALL).unwrap();
        let n1 = &topology.nodes["n1"];
        assert_eq!(n1.role, Role::Node);
        assert_eq!(n1.exec, ["first", "second"]);
        assert_eq!(n1.labels, BTreeMap::from([("zone".into(), "b".into())]));
        assert_eq!(topology.nodes["sw"].role, Role::Switch);
        assert_eq!(topology.switch_port("n1").unwrap().interface, "n1");
        assert_eq!(topology.switch_port("sw"), None);
    }

    #[test]
    fn what_the_lab_cannot_build_is_refused_with_the_reason() {
        let cases = [
            ("sw:n1", "nowhere:n1", "which is no node"),
            ("sw:cp", "sw:n1", "two links end at sw:n1"),
            (
                "sw:n1",
                "sw:a-name-too-long-for-linux",
                "1 to 15 characters",
            ),
            ("\"sw:n1\", ", "", "two endpoints, not 1"),
            (
                "role: control-plane",
                "role: boss",
                "want `bridge`, or `linux`",
            ),
            (
                "role: control-plane",
                "role: client",
                "0 nodes have the role",
            ),
            ("{kind: bridge}", "{kind: bridge, cpu: 1}", "cpu"),
            (
                "role: control-plane",
                "role: router",
                "a router needs a bind",
            ),
            ("n1:eth1", "n1:eth2", "must be plugged into a switch"),
        ];
        for (from, to, reason) in cases {
            assert!(SMALL.contains(from), "{from}");
            let error = parse(&SMALL.replace(from, to)).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(reason), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn the_shipped_topologies_are_sound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().ends_with(".clab.yml") {
                let topology = Topology::load(&path).unwrap();
                for frr in topology.nodes.values().filter_map(|node| node.frr.as_ref()) {
                    assert!(frr.exists(), "{}", frr.display());
                }
                found += 1;
            }
        }
        assert!(found > 0);
    }
}
