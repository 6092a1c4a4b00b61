//! The story: from an image and a chart to a Service that answers, through
//! what a cluster does to its pods, and back to nothing.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::docker::run;
use super::world::{World, condition, items, took};
use super::{PATIENCE, checkout, options, rights};
use crate::demo::screen::Screen;
use crate::pods::{deployment, service};
use crate::probe::{Pace, Prober, Report};

/// Where the README installs Bellrock.
pub(super) const NAMESPACE: &str = "bellrock-system";
pub(super) const SOON: Duration = Duration::from_secs(60);
/// The Service of the README.
pub(super) const SERVICE: &str = "web";
/// The most that an uncompressed image may measure.
const MOST_IMAGE_MB: f64 = 30.0;

pub(super) fn tell(world: &World, image: &Path, screen: &mut Screen) -> Result<()> {
    load(world, image, screen)?;
    let address = install(world, screen)?;
    reach(world, screen, address)?;
    may(world, screen)?;
    local(world, screen, address)?;
    replace(world, screen, address)?;
    reboot(world, screen, address)?;
    options::tell(world, screen, address)?;
    screen.check(
        "every right that was given was used, none was missing",
        || Ok(((), rights::check_use(world)?)),
    )?;
    uninstall(world, screen, address)
}

/// A line that `make bench` and people read.
fn bench(name: &str, value: f64, unit: &str) {
    println!("bench: {name} {value:.1} {unit}");
}

fn load(world: &World, image: &Path, screen: &mut Screen) -> Result<()> {
    screen.chapter("The image: the archive of `make image`, for Docker and for nodes alike");
    let archive = image.to_string_lossy().into_owned();
    let config = run(
        "tar",
        [
            "--extract",
            "--to-stdout",
            "--file",
            &archive,
            "manifest.json",
        ],
    )?;
    let config: Value = serde_json::from_str(&config)?;
    let blob = config[0]["Config"]
        .as_str()
        .context("no configuration")?
        .to_owned();
    let name = config[0]["RepoTags"][0]
        .as_str()
        .context("no name")?
        .to_owned();
    screen.check(
        "Docker loads it under the digest of its configuration",
        || {
            run("docker", ["load", "--quiet", "--input", &archive])?;
            let id = run("docker", ["image", "inspect", "--format", "{{.Id}}", &name])?;
            let wanted = blob.replace("blobs/", "").replace('/', ":");
            ensure!(id.trim() == wanted, "its id is {id}, not {wanted}");
            Ok(((), name.clone()))
        },
    )?;
    screen.check("it is small", || {
        let size = run(
            "docker",
            ["image", "inspect", "--format", "{{.Size}}", &name],
        )?;
        let megabytes = size.trim().parse::<f64>()? / 1e6;
        ensure!(megabytes <= MOST_IMAGE_MB, "{megabytes:.1} MB");
        bench("ship.image_mb", megabytes, "MB");
        Ok(((), format!("{megabytes:.1} MB")))
    })?;
    screen.check("it runs read-only, without rights, without network", || {
        let confined = [
            "run",
            "--rm",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--network",
            "none",
            "--security-opt",
            "no-new-privileges",
            &name,
        ];
        let help = run("docker", confined.into_iter().chain(["--help"]))?;
        ensure!(help.contains("speaker"), "--help says {help:?}");
        let kinds = run("docker", confined.into_iter().chain(["crds"]))?;
        let kinds = kinds.matches("kind: CustomResourceDefinition").count();
        ensure!(kinds == 8, "{kinds} kinds");
        Ok(((), format!("--help, and crds: {kinds} kinds")))
    })?;
    screen.check("the nodes' containerd takes the same archive", || {
        for node in world.nodes() {
            world.feed(node, image, "ctr --namespace k8s.io images import -")?;
        }
        Ok(((), world.nodes().join(", ")))
    })
}

fn install(world: &World, screen: &mut Screen) -> Result<Ipv4Addr> {
    screen.chapter("The README's commands, with the real helm and kubectl");
    world.kubectl_with(&["apply", "-f", "-"], &pods(2))?;
    world.until("the Deployment is available", PATIENCE, || deployed(world))?;
    let commands = readme()?;
    for line in commands.lines().filter(|line| line.starts_with(['h', 'k'])) {
        screen.note(&format!("$ {line}"));
    }
    let folder = world.folder().join("reader");
    std::fs::create_dir_all(&folder)?;
    for name in ["charts", "docs"] {
        std::os::unix::fs::symlink(checkout().join(name), folder.join(name))?;
    }
    let start = Instant::now();
    world.script(&commands, &folder)?;
    let address = screen.check("the Service has an address", || {
        let address = world.until("the Service has an address", SOON, || {
            external(world, SERVICE)
        })?;
        Ok((address, format!("{address} {}", took(start))))
    })?;
    screen.check("the first answer, since `helm install` was typed", || {
        world.until("curl answers", SOON, || world.curl("c1", address))?;
        let seconds = start.elapsed().as_secs_f64();
        bench("ship.install_to_first_answer_s", seconds, "s");
        Ok(((), took(start)))
    })?;
    screen.check("all pods are ready, none has restarted", || {
        Ok((
            (),
            world.until("all pods are ready", SOON, || settled(world))?,
        ))
    })?;
    Ok(address)
}

fn reach(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("Reached from outside");
    let manifest = service(SERVICE, SERVICE, &json!({ "type": "LoadBalancer" }));
    // By the server: kubectl alone takes 80/TCP and 80/UDP for one port.
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    world.kubectl_with(&apply, &manifest.to_string())?;
    screen.check("curl through ARP, from a client on the segment", || {
        let answer = world.until("HTTP answers", SOON, || world.http("c1", address))?;
        world.curl("c1", address)?;
        let owner = world.neighbour("c1", address)?;
        Ok(((), format!("{} by {owner}", answer.pod)))
    })?;
    screen.check("every speaker's own token lets it report", || {
        world.until("the API has the owner and the reports", SOON, || {
            let owner = world.neighbour("c1", address)?;
            let vip = world.kubectl_json(&["get", "virtualip", &address.to_string()])?;
            ensure!(
                vip["status"]["owner"] == owner.as_str(),
                "the owner is {owner}, the VirtualIP says {}",
                vip["status"]["owner"]
            );
            for node in world.nodes() {
                let report = world.kubectl_json(&["get", "speakerstatus", node])?;
                ensure!(
                    report["status"]["renewed"].is_string(),
                    "{node} has not reported: {report}"
                );
            }
            Ok((
                (),
                format!("owner {owner}, reports of {}", world.nodes().join(", ")),
            ))
        })
    })?;
    screen.check("curl through FRR, from a client behind the router", || {
        world.until_routed(address, &world.nodes())?;
        world.until("curl answers", SOON, || world.curl("c2", address))?;
        Ok(((), format!("paths from {}", world.nodes().join(", "))))
    })?;
    screen.check(
        "a second Service gets another address, and gives it back",
        || {
            let manifest = service("second", SERVICE, &json!({ "type": "LoadBalancer" }));
            world.kubectl_with(&apply, &manifest.to_string())?;
            let second = world.until("it has an address", SOON, || external(world, "second"))?;
            ensure!(second != address, "it has the first one's");
            world.until("curl answers", SOON, || world.curl("c1", second))?;
            world.kubectl(&["delete", "service", "second"])?;
            world.until("its VirtualIP is gone", SOON, || {
                let left = world.kubectl(&["get", "virtualips", "-o", "name"])?;
                ensure!(left.lines().count() == 1, "{left}");
                Ok(())
            })?;
            Ok(((), second.to_string()))
        },
    )
}

fn may(world: &World, screen: &mut Screen) -> Result<()> {
    screen.chapter("Rights: as docs/rights.md lists them, and no others");
    screen.check(
        "capabilities, user, seccomp, read-only root, from /proc",
        || Ok(((), rights::check_processes(world)?)),
    )?;
    for account in ["controller", "speaker"] {
        screen.check(
            &format!("kubectl auth can-i --list: the {account}'s account"),
            || Ok(((), rights::check_account(world, account, None)?)),
        )?;
    }
    let mut memory: Vec<(String, f64)> = Vec::new();
    for node in world.nodes() {
        for process in rights::processes(world, node)? {
            memory.push((process.command.clone(), process.resident_mb()?));
        }
    }
    for name in ["controller", "speaker"] {
        let of = memory.iter().filter(|(command, _)| command == name);
        let most = of.map(|(_, megabytes)| *megabytes).fold(0.0, f64::max);
        bench(&format!("ship.{name}_rss_1_mb"), most, "MB");
    }
    Ok(())
}

fn local(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("externalTrafficPolicy: Local, pods on one node only");
    let nodes = world.nodes();
    let (with, without) = (nodes[0], nodes[1]);
    place(world, Some(with))?;
    policy(world, "Local")?;
    screen.check("FRR keeps the path of the node with pods only", || {
        world.until_routed(address, &[with])?;
        Ok(((), with.to_owned()))
    })?;
    for client in ["c1", "c2"] {
        screen.check(
            &format!("{client}: the pod sees the client's own address"),
            || {
                let own = world.address(client)?;
                let answer = world.until("the pod sees the client", SOON, || {
                    let answer = world.http(client, address)?;
                    ensure!(answer.client.ip() == own, "it sees {}", answer.client);
                    Ok(answer)
                })?;
                Ok(((), format!("{} at {}", answer.client.ip(), answer.pod)))
            },
        )?;
    }
    screen.check("the address is owned where the pods are", || {
        let owner = world.until("the owner has pods", SOON, || {
            let owner = world.neighbour("c1", address)?;
            ensure!(owner == with, "{owner} has no pods");
            Ok(owner)
        })?;
        Ok(((), format!("{owner}, not {without}")))
    })?;
    policy(world, "Cluster")?;
    place(world, None)?;
    world.until_routed(address, &nodes)
}

fn replace(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("Pods of Bellrock come and go");
    let owner = world.neighbour("c1", address)?;
    let report = probed(world, address, || {
        let pod = speaker_on(world, &owner)?;
        world.kubectl(&["delete", "pod", "--namespace", NAMESPACE, &pod])?;
        world.until("another speaker is ready", PATIENCE, || {
            let now = speaker_on(world, &owner)?;
            ensure!(now != pod, "{pod} is still there");
            settled(world)
        })
    })?;
    screen.check("the owner's speaker is deleted: service goes on", || {
        ensure!(
            report.longest_ms() < 2000.0,
            "silent for {:.0} ms",
            report.longest_ms()
        );
        same(world, address)?;
        Ok(((), lost(&report)))
    })?;
    let early = Cell::new(0);
    let report = probed(world, address, || {
        let set = "daemonset/bellrock-speaker";
        world.kubectl(&["rollout", "restart", "--namespace", NAMESPACE, set])?;
        world.until("the rollout is over", PATIENCE, || {
            early.set(early.get() + usize::from(ready_too_early(world)?));
            let status = [
                "rollout",
                "status",
                "--namespace",
                NAMESPACE,
                set,
                "--watch=false",
            ];
            let said = world.kubectl(&status)?;
            ensure!(said.contains("successfully rolled out"), "{said}");
            settled(world)
        })
    })?;
    screen.check(
        "all speakers are rolled, each new one ready before the old leaves",
        || {
            ensure!(
                early.get() == 0,
                "an old speaker left before the new one was ready"
            );
            ensure!(
                report.longest_ms() < 2000.0,
                "silent for {:.0} ms",
                report.longest_ms()
            );
            same(world, address)?;
            bench(
                "ship.rollout_l2_lost",
                count(report.sent - report.answered),
                "probes",
            );
            Ok(((), lost(&report)))
        },
    )?;
    screen.check("nothing has restarted", || Ok(((), settled(world)?)))
}

fn reboot(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("Both nodes' containers are restarted: tables, cables, control groups are new");
    for node in world.nodes() {
        let start = Instant::now();
        world.reboot(node)?;
        screen.check(&format!("{node} is back, its pods run again"), || {
            world.until("the node forwards", PATIENCE, || {
                ensure!(table(world, node)?, "it has no table yet");
                Ok(())
            })?;
            world.until_nodes_ready()?;
            world.until("all pods are ready", PATIENCE, || {
                deployed(world)?;
                ready(world)
            })?;
            Ok(((), took(start)))
        })?;
    }
    screen.check(
        "the same Service answers at the same address, by ARP and by FRR",
        || {
            same(world, address)?;
            world.until_routed(address, &world.nodes())?;
            for client in ["c1", "c2"] {
                world.until("curl answers", SOON, || world.curl(client, address))?;
            }
            Ok(((), address.to_string()))
        },
    )
}

fn uninstall(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("helm uninstall");
    let start = Instant::now();
    let folder = world.folder().join("reader");
    world.script(
        &format!("helm uninstall bellrock --namespace {NAMESPACE} --wait"),
        &folder,
    )?;
    screen.check("its pods are gone", || {
        world.until("the pods are gone", PATIENCE, || {
            let pods = world.kubectl(&["get", "pods", "--namespace", NAMESPACE, "-o", "name"])?;
            ensure!(pods.is_empty(), "{pods}");
            Ok(())
        })?;
        Ok(((), took(start)))
    })?;
    screen.check("no node has a table of ours", || {
        for node in world.nodes() {
            ensure!(!table(world, node)?, "{node} has one");
        }
        Ok(((), world.nodes().join(", ")))
    })?;
    screen.check("FRR has no route", || {
        world.until("FRR forgets the routes", SOON, || {
            let routes = world.routes()?;
            ensure!(routes.is_empty(), "{routes:?}");
            Ok(())
        })?;
        let kernel = world.exec("r1", &["ip", "route", "show", "proto", "bgp"])?;
        ensure!(kernel.is_empty(), "its kernel has {kernel}");
        Ok(((), "nor has its kernel".to_owned()))
    })?;
    screen.check("nobody answers for the address", || {
        let line = format!("arping -c 2 -w 3 -I eth1 {address} || true");
        let said = world.sh("c1", &line)?;
        ensure!(
            said.contains("Sent 2 probes") && !said.contains("reply from"),
            "{said}"
        );
        // The way there is open: a node answers.
        let node = world.address(world.nodes()[0])?;
        world.sh("c2", &format!("ping -c 1 -W 5 {node}"))?;
        ensure!(
            world.curl("c2", address).is_err(),
            "curl answers through the router"
        );
        Ok(((), address.to_string()))
    })?;
    screen.check(
        "no object has a finalizer of ours, no webhook, policy or role is left",
        || {
            let (objects, left) = remains(world)?;
            ensure!(left.is_empty(), "{left:#?}");
            Ok(((), format!("{objects} objects looked at")))
        },
    )
}

/// The shell blocks of the README's section on installing.
fn readme() -> Result<String> {
    let text = std::fs::read_to_string(checkout().join("README.md"))?;
    let (_, rest) = text
        .split_once("\n## Install\n")
        .context("no section Install")?;
    let section = rest.split("\n## ").next().unwrap_or_default();
    let blocks: Vec<&str> = section
        .split("```sh\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .collect();
    ensure!(
        !blocks.is_empty(),
        "the README's section Install has no commands"
    );
    Ok(blocks.concat())
}

/// The Deployment behind the Service, as YAML for kubectl.
fn pods(replicas: u32) -> String {
    let mut pods = deployment(SERVICE, replicas, &[]);
    pods["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    pods.to_string()
}

fn deployed(world: &World) -> Result<()> {
    let object = world.kubectl_json(&["get", "deployment", SERVICE])?;
    let (status, replicas) = (&object["status"], &object["spec"]["replicas"]);
    ensure!(
        status["observedGeneration"] == object["metadata"]["generation"]
            && status["availableReplicas"] == *replicas
            && status["updatedReplicas"] == *replicas
            && status["replicas"] == *replicas,
        "{status}"
    );
    Ok(())
}

/// Puts the pods of the Deployment on one node, or anywhere.
fn place(world: &World, node: Option<&str>) -> Result<()> {
    let selector = node.map(|node| json!({ "kubernetes.io/hostname": node }));
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } });
    world.kubectl(&[
        "patch",
        "deployment",
        SERVICE,
        "--patch",
        &patch.to_string(),
    ])?;
    world.until("the pods have moved", PATIENCE, || {
        deployed(world)?;
        let pods = world.kubectl_json(&["get", "pods", "--selector", "app=web"])?;
        let away =
            items(&pods).filter(|pod| node.is_some_and(|node| pod["spec"]["nodeName"] != node));
        let away = away.count();
        ensure!(away == 0, "{away} pods are elsewhere");
        Ok(())
    })
}

fn policy(world: &World, policy: &str) -> Result<()> {
    let patch = json!({ "spec": { "externalTrafficPolicy": policy } });
    let patch = patch.to_string();
    world
        .kubectl(&["patch", "service", SERVICE, "--patch", &patch])
        .map(drop)
}

fn external(world: &World, name: &str) -> Result<Ipv4Addr> {
    let service = world.kubectl_json(&["get", "service", name])?;
    let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
    Ok(ip.context("it has none")?.parse()?)
}

fn same(world: &World, address: Ipv4Addr) -> Result<()> {
    let now = external(world, SERVICE)?;
    ensure!(now == address, "the address went from {address} to {now}");
    Ok(())
}

/// That all pods of Bellrock are there and ready.
fn ready(world: &World) -> Result<Vec<Value>> {
    let set = world.kubectl_json(&[
        "get",
        "daemonset",
        "bellrock-speaker",
        "--namespace",
        NAMESPACE,
    ])?;
    let deployment = world.kubectl_json(&[
        "get",
        "deployment",
        "bellrock-controller",
        "--namespace",
        NAMESPACE,
    ])?;
    let controllers = deployment["spec"]["replicas"]
        .as_u64()
        .context("no replicas")?;
    let pods = world.kubectl_json(&["get", "pods", "--namespace", NAMESPACE])?;
    let pods: Vec<Value> = items(&pods).cloned().collect();
    let wanted = world.nodes().len() + usize::try_from(controllers)?;
    ensure!(
        set["status"]["numberReady"] == world.nodes().len() && pods.len() == wanted,
        "{} pods, want {wanted}; speakers: {}",
        pods.len(),
        set["status"]
    );
    for pod in &pods {
        ensure!(
            condition(pod, "Ready"),
            "{} is not",
            pod["metadata"]["name"]
        );
    }
    Ok(pods)
}

/// The same, and no container has restarted.
fn settled(world: &World) -> Result<String> {
    unrestarted(&ready(world)?)
}

/// The same of the controllers alone: the speakers' containers started again
/// with their nodes.
pub(super) fn controllers_settled(world: &World) -> Result<String> {
    let mut pods = ready(world)?;
    let component = "app.kubernetes.io/component";
    pods.retain(|pod| pod["metadata"]["labels"][component] == "controller");
    ensure!(!pods.is_empty(), "no pod has the label {component}");
    unrestarted(&pods)
}

fn unrestarted(pods: &[Value]) -> Result<String> {
    for pod in pods {
        for container in pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let restarts = &container["restartCount"];
            if *restarts != 0 {
                bail!("{} has restarted {restarts} times", pod["metadata"]["name"]);
            }
        }
    }
    Ok(format!("{} pods", pods.len()))
}

/// The pod of a node's speaker that is not on its way out.
fn speaker_on(world: &World, node: &str) -> Result<String> {
    let selector = "app.kubernetes.io/component=speaker";
    let pods = world.kubectl_json(&[
        "get",
        "pods",
        "--namespace",
        NAMESPACE,
        "--selector",
        selector,
    ])?;
    items(&pods)
        .find(|pod| {
            pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
        })
        .and_then(|pod| pod["metadata"]["name"].as_str())
        .map(str::to_owned)
        .with_context(|| format!("no speaker on {node}"))
}

/// Whether a node has a speaker that leaves but none that is ready.
fn ready_too_early(world: &World) -> Result<bool> {
    let selector = "app.kubernetes.io/component=speaker";
    let pods = world.kubectl_json(&[
        "get",
        "pods",
        "--namespace",
        NAMESPACE,
        "--selector",
        selector,
    ])?;
    Ok(world.nodes().iter().any(|node| {
        let here: Vec<&Value> = items(&pods)
            .filter(|pod| pod["spec"]["nodeName"] == *node)
            .collect();
        let leaving = |pod: &&&Value| !pod["metadata"]["deletionTimestamp"].is_null();
        let stays_ready = here
            .iter()
            .any(|pod| !leaving(&pod) && condition(pod, "Ready"));
        here.iter().any(|pod| leaving(&pod)) && !stays_ready
    }))
}

/// Probes by UDP from the segment while `work` goes on.
fn probed<T>(world: &World, address: Ipv4Addr, work: impl FnOnce() -> Result<T>) -> Result<Report> {
    let target = SocketAddr::new(address.into(), 80);
    let netns = world.netns("c1");
    let prober = Prober::start(&netns, target, Pace::default())?;
    let answered = |more: u64| {
        let before = prober.answered();
        world.until("probes are answered", SOON, || {
            let now = prober.answered();
            ensure!(now >= before + more, "{} of {more}", now - before);
            Ok(())
        })
    };
    answered(50)?;
    work()?;
    answered(100)?;
    prober.stop()
}

fn lost(report: &Report) -> String {
    format!(
        "{} of {} probes lost, at most {:.0} ms in a row",
        report.sent - report.answered,
        report.sent,
        report.longest_ms()
    )
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

/// Whether a node's kernel has a table of Bellrock.
fn table(world: &World, node: &str) -> Result<bool> {
    let tables = world.exec(node, &["nft", "list", "tables"])?;
    Ok(tables
        .lines()
        .any(|line| line.split_whitespace().any(|word| word == "bellrock")))
}

/// How many objects the cluster has in all, and what of them is still ours
/// though it should not be.
fn remains(world: &World) -> Result<(usize, BTreeSet<String>)> {
    let kinds = world.kubectl(&["api-resources", "--verbs", "list", "--output", "name"])?;
    let (mut objects, mut left) = (0, BTreeSet::new());
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !kind.starts_with("events"))
        .collect();
    let list = world.kubectl_json(&["get", &kinds.join(","), "--all-namespaces"])?;
    for object in items(&list) {
        objects += 1;
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let finalizers = object["metadata"]["finalizers"].to_string();
        let group = object["apiVersion"].as_str().unwrap_or_default();
        let instance = &object["metadata"]["labels"]["app.kubernetes.io/instance"];
        if finalizers.contains("bellrock") {
            left.insert(format!("{name}: finalizers {finalizers}"));
        } else if instance == "bellrock" {
            left.insert(format!("{name}: of the release"));
        } else if group.starts_with("admissionregistration") && name.contains("bellrock") {
            left.insert(name);
        }
    }
    Ok((objects, left))
}
