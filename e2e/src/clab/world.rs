//! The deployed topology: its hosts, the cluster on them, the router's view.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::docker::{finish, path, run};
use super::{PATIENCE, checkout};
use crate::demo::screen::Screen;
use crate::netns::Netns;
use crate::parts::{self, Part};
use crate::probe::{self, Answer};
use crate::topology::{Role, Topology};

const TOPOLOGY: &str = "e2e/topologies/cluster.clab.yml";

/// The running lab.
#[derive(Debug)]
pub(super) struct World {
    folder: PathBuf,
    kubeconfig: PathBuf,
    topology: Topology,
    nodes: Vec<String>,
}

impl World {
    /// Deploys the topology.
    pub(super) fn deploy(folder: &Path, screen: &mut Screen) -> Result<Self> {
        let topology = Topology::load(&checkout().join(TOPOLOGY))?;
        let nodes: Vec<String> = topology.with_role(Role::Node).map(str::to_owned).collect();
        screen.check("containerlab deploys the topology", || {
            let start = Instant::now();
            containerlab(folder, &["deploy", "--reconfigure"])?;
            Ok(((), took(start)))
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            kubeconfig: folder.join("kubeconfig"),
            topology,
            nodes,
        })
    }

    /// Waits until all nodes are Ready.
    pub(super) fn join(&self, screen: &mut Screen) -> Result<()> {
        screen.check("kubelets have joined, all nodes are Ready", || {
            let start = Instant::now();
            self.until("there is a kubeconfig", PATIENCE, || {
                self.fetch_kubeconfig()
            })?;
            self.until_nodes_ready()?;
            Ok(((), took(start)))
        })
    }

    fn fetch_kubeconfig(&self) -> Result<()> {
        let text = self.exec("cp", &["cat", "/etc/kubernetes/admin.conf"])?;
        let inside = self.address("cp")?;
        let outside = run(
            "docker",
            [
                "inspect",
                "--format",
                "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                &container("cp"),
            ],
        )?;
        let text = text.replace(&format!("//{inside}:"), &format!("//{}:", outside.trim()));
        std::fs::write(&self.kubeconfig, text)?;
        self.kubectl(&["get", "--raw", "/readyz"]).map(drop)
    }

    /// Waits until all nodes have joined, are Ready and know their pods'
    /// addresses.
    pub(super) fn until_nodes_ready(&self) -> Result<()> {
        self.until("the nodes are Ready", PATIENCE, || {
            let list = self.kubectl_json(&["get", "nodes"])?;
            let ready = items(&list)
                .filter(|node| condition(node, "Ready") && node["spec"]["podCIDR"].is_string())
                .count();
            ensure!(
                ready == self.nodes.len(),
                "{ready} of {} are",
                self.nodes.len()
            );
            Ok(())
        })
    }

    /// The lab's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the nodes.
    pub(super) fn nodes(&self) -> Vec<&str> {
        self.nodes.iter().map(String::as_str).collect()
    }

    /// A host's address on the segment, as the topology has it.
    pub(super) fn address(&self, host: &str) -> Result<Ipv4Addr> {
        let node = self.topology.nodes.get(host).context("no such host")?;
        let mut words = node
            .exec
            .iter()
            .filter_map(|line| line.strip_prefix("ip addr add "));
        let (address, _) = words
            .next()
            .and_then(|rest| rest.split_once('/'))
            .with_context(|| format!("{host} has no address"))?;
        Ok(address.parse()?)
    }

    /// Runs a program in a host.
    pub(super) fn exec(&self, host: &str, args: &[&str]) -> Result<String> {
        let name = container(host);
        let mut all = vec!["exec", &name];
        all.extend(args);
        run("docker", all)
    }

    /// Runs a shell line in a host.
    pub(super) fn sh(&self, host: &str, line: &str) -> Result<String> {
        self.exec(host, &["bash", "-euo", "pipefail", "-c", line])
    }

    /// Puts a file into a host through the standard input of a shell line.
    pub(super) fn feed(&self, host: &str, file: &Path, line: &str) -> Result<String> {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec docker exec --interactive \"$1\" sh -ec \"$2\" <\"$3\"",
            "sh",
            &container(host),
            line,
        ]);
        finish(command.arg(file), "")
    }

    /// The kubectl of the lab's Kubernetes, as the cluster's admin.
    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    /// The same with input.
    pub(super) fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(parts::path(Part::Kubectl)?);
        finish(
            command.args(args).env("KUBECONFIG", &self.kubeconfig),
            input,
        )
    }

    /// `kubectl ARGS -o json`.
    pub(super) fn kubectl_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// A shell script with kubectl and helm, as a user of the cluster has
    /// them, run in `folder`.
    pub(super) fn script(&self, text: &str, folder: &Path) -> Result<String> {
        let mut command = Command::new("bash");
        let (kubectl, helm) = (parts::path(Part::Kubectl)?, parts::path(Part::Helm)?);
        let folders = [&kubectl, &helm].map(|tool| {
            let folder = tool.parent().unwrap_or(Path::new("/"));
            folder.display().to_string()
        });
        command
            .args(["-euo", "pipefail", "-c", "PATH=$0:$PATH; eval \"$1\""])
            .arg(folders.join(":"))
            .arg(text)
            .current_dir(folder)
            .env("KUBECONFIG", &self.kubeconfig);
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(home, self.folder.join("helm"));
        }
        finish(&mut command, "")
    }

    /// The network namespace of a host. Good until its container restarts.
    pub(super) fn netns(&self, host: &str) -> Netns {
        // containerlab keeps a name for each.
        Netns::of_others(&container(host))
    }

    /// One HTTP request from a host.
    pub(super) fn http(&self, client: &str, address: Ipv4Addr) -> Result<Answer> {
        probe::http(&self.netns(client), SocketAddr::new(address.into(), 80))
    }

    /// `curl` run inside a host's container.
    pub(super) fn curl(&self, client: &str, address: Ipv4Addr) -> Result<String> {
        let url = format!("http://{address}/");
        self.exec(
            client,
            &[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "2",
                &url,
            ],
        )
    }

    /// The node whose hardware address a client has in its neighbour table.
    pub(super) fn neighbour(&self, client: &str, address: Ipv4Addr) -> Result<String> {
        let entry = self.sh(client, &format!("ip -j neigh show {address} dev eth1"))?;
        let entry: Value = serde_json::from_str(&entry)?;
        let hardware = entry[0]["lladdr"].as_str().context("no entry")?.to_owned();
        for node in &self.nodes {
            if self.sh(node, "cat /sys/class/net/eth1/address")?.trim() == hardware {
                return Ok(node.clone());
            }
        }
        bail!("{address} is at {hardware}, which is no node's")
    }

    /// What FRR has learned: for each prefix the nodes that announce it.
    pub(super) fn routes(&self) -> Result<Vec<(String, BTreeSet<String>)>> {
        let shown = self.exec("r1", &["vtysh", "-c", "show bgp ipv4 unicast json"])?;
        let shown: Value = serde_json::from_str(&shown)?;
        let mut routes = Vec::new();
        for (prefix, paths) in shown["routes"].as_object().into_iter().flatten() {
            let mut nodes = BTreeSet::new();
            for path in paths.as_array().into_iter().flatten() {
                let hop = path["nexthops"][0]["ip"].as_str().unwrap_or_default();
                for node in &self.nodes {
                    if self.address(node)?.to_string() == hop {
                        nodes.insert(node.clone());
                    }
                }
            }
            routes.push((prefix.clone(), nodes));
        }
        Ok(routes)
    }

    /// Waits until FRR has paths for `address` from exactly `nodes`.
    pub(super) fn until_routed(&self, address: Ipv4Addr, nodes: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        self.until("FRR has the paths", PATIENCE, || {
            let prefix = format!("{address}/32");
            let routes = self.routes()?;
            let found = routes.iter().find(|(name, _)| *name == prefix);
            let found = found.map(|(_, nodes)| nodes.clone()).unwrap_or_default();
            ensure!(
                found == wanted,
                "it has paths from {found:?}, not {wanted:?}"
            );
            Ok(())
        })
    }

    /// Restarts a node's container, as a machine that was switched off and
    /// on, and plugs its cable in again.
    pub(super) fn reboot(&self, node: &str) -> Result<()> {
        let name = container(node);
        run("docker", ["restart", "-t", "0", &name])?;
        let (ours, other) = (
            format!("{name}:eth1"),
            format!("{}:{node}", container("segment")),
        );
        containerlab(
            &self.folder,
            &["tools", "veth", "create", "-a", &ours, "-b", &other],
        )?;
        self.exec(
            "segment",
            &["ip", "link", "set", node, "master", "br0", "up"],
        )?;
        for line in &self.topology.nodes[node].exec {
            self.sh(node, line)?;
        }
        Ok(())
    }

    /// Polls `condition` until it yields a value, or `within` has passed.
    pub(super) fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            match condition() {
                Ok(value) => return Ok(value),
                Err(error) if start.elapsed() > within => {
                    return Err(error.context(format!("waited {within:?} until {what}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// How to use it.
    pub(super) fn usage(&self) -> Result<String> {
        let mut text = String::from("the cluster lab is up; Ctrl-C ends it\n");
        let mut line = |what: &str, how: String| text.push_str(&format!("  {what:<9} {how}\n"));
        let kubectl = parts::path(Part::Kubectl)?;
        let config = self.kubeconfig.display();
        let mut enter = String::new();
        // The first process of namespaces of its own.
        if std::process::id() == 1 {
            let script = self.folder.join("enter");
            let folder = self.folder.display();
            let text = format!(
                "#!/bin/sh\npid=$(pgrep --newest --full 'cluster inside --folder {folder}')\n\
                 exec nsenter --mount --net --pid --target \"$pid\" -- \"$@\"\n"
            );
            std::fs::write(&script, text)?;
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
            enter = format!("{} ", script.display());
        }
        line(
            "kubectl",
            format!(
                "{enter}{} --kubeconfig {config} get nodes",
                kubectl.display()
            ),
        );
        line(
            "enter",
            format!("{enter}docker exec -it {} bash", container("n1")),
        );
        line(
            "router",
            format!("{enter}docker exec -it {} vtysh", container("r1")),
        );
        Ok(text)
    }

    /// Copies what may tell why something failed to a folder that stays.
    pub(super) fn keep_logs(&self) -> Result<PathBuf> {
        let logs = tempfile::Builder::new()
            .prefix("bellrock-cluster-logs-")
            .tempdir()?
            .keep();
        let save = |name: &str, text: Result<String>| {
            let text = text.unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = std::fs::write(logs.join(name), text);
        };
        for host in self.topology.nodes.keys() {
            save(
                &format!("{host}.log"),
                run("docker", ["logs", &container(host)]),
            );
            let target = logs.join(host);
            let source = format!("{}:/var/log/bellrock-lab", container(host));
            let _ = run("docker", ["cp", &source, &target.to_string_lossy()]);
            save(
                &format!("{host}.net"),
                self.sh(host, "ip addr; ip route; ip neigh; nft list tables || true"),
            );
        }
        // Of an engine of our own.
        let _ = std::fs::copy(self.folder.join("dockerd.log"), logs.join("dockerd.log"));
        save(
            "router.txt",
            self.exec(
                "r1",
                &[
                    "vtysh",
                    "-c",
                    "show bgp summary",
                    "-c",
                    "show bgp ipv4 unicast",
                ],
            ),
        );
        save(
            "objects.txt",
            self.kubectl(&[
                "get",
                "all,virtualips,speakerstatuses,events",
                "-A",
                "-o",
                "wide",
            ]),
        );
        save("describe.txt", self.kubectl(&["describe", "pods", "-A"]));
        if let Ok(pods) =
            self.kubectl(&["get", "pods", "-n", super::story::NAMESPACE, "-o", "name"])
        {
            for pod in pods.lines() {
                let name = pod.replace('/', "-");
                let args = ["logs", "-n", super::story::NAMESPACE, pod];
                save(&format!("{name}.log"), self.kubectl(&args));
                save(
                    &format!("{name}.previous.log"),
                    self.kubectl(&[&args[..], &["--previous"]].concat()),
                );
            }
        }
        Ok(logs)
    }
}

/// Ends a topology that runs in somebody else's engine, and removes its
/// images from there.
pub(super) fn destroy(folder: &Path) {
    if let Err(error) = containerlab(folder, &["destroy", "--cleanup"]) {
        eprintln!("{error:#}");
    }
    for image in ["node", "router", "base"] {
        let _ = run(
            "docker",
            ["image", "rm", "--force", &format!("bellrock-lab/{image}")],
        );
    }
}

fn containerlab(folder: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
        .arg(parts::path(Part::Containerlab)?)
        .args(args)
        .env("CLAB_LABDIR_BASE", folder)
        .env("CLAB_VERSION_CHECK", "disable")
        .env("PATH", path());
    if args.first() != Some(&"tools") {
        command.arg("--topo").arg(checkout().join(TOPOLOGY));
    }
    let said = finish(&mut command, "")?;
    // A line that fails inside a host is no failure to containerlab.
    ensure!(!said.contains("Failed to execute command"), "{said}");
    Ok(said)
}

fn container(host: &str) -> String {
    format!("clab-bellrock-{host}")
}

/// The items of a list.
pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Whether an object's condition is True.
pub(super) fn condition(object: &Value, name: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter()
        .flatten()
        .any(|one| one["type"] == name && one["status"] == "True")
}

/// The time since `start`, for people.
pub(super) fn took(start: Instant) -> String {
    format!("after {:.1} s", start.elapsed().as_secs_f64())
}
