//! The lab itself, before anything of Bellrock runs in it.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_e2e::bellrock::NAMESPACE;
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::ground;
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::netns::wait_for;
use bellrock_e2e::probe::{Connections, Pace, Prober};
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// One lab test at a time: each wants the whole machine.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn up(kube_proxy: KubeProxy) -> Lab {
    let options = Options {
        kube_proxy,
        ..Options::default()
    };
    Lab::up(&options).unwrap()
}

/// The pods that answer until all of `lab`'s pods of `app` have.
fn everyone_answers(lab: &Lab, app: &str, ask: impl Fn() -> Result<String>) {
    let pods: BTreeSet<String> = lab
        .pods(app)
        .unwrap()
        .into_iter()
        .map(|pod| pod.name)
        .collect();
    let mut seen = BTreeSet::new();
    wait_for("an answer from every pod", SOON, || {
        seen.insert(ask()?);
        ensure!(seen == pods, "{seen:?} of {pods:?}");
        Ok(())
    });
}

fn node_port(lab: &Lab, name: &str, port: &str) -> u16 {
    let service = lab.kubectl_json(&["get", "service", name]).unwrap();
    let ports = service["spec"]["ports"].as_array().unwrap();
    let found = ports.iter().find(|p| p["name"] == port).unwrap();
    u16::try_from(found["nodePort"].as_u64().unwrap()).unwrap()
}

fn endpoints(lab: &Lab, name: &str) -> Result<Vec<Value>> {
    let selector = format!("kubernetes.io/service-name={name}");
    let slices = lab.kubectl_json(&["get", "endpointslices", "-l", &selector])?;
    let slices = slices["items"].as_array().context("no items")?;
    Ok(slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .collect())
}

/// What a lab would leave behind if it left anything.
fn leftovers(id: &str, dir: &Path) -> Vec<String> {
    let mut left = ground::namespaces(id).unwrap();
    left.extend(Some(dir.display().to_string()).filter(|_| dir.exists()));
    let mark = format!("bl{id}");
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        left.extend(Some(name).filter(|name| name.starts_with(&format!("frr-{mark}-"))));
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&mark) || line.contains(&format!("bellrock-lab-{id}")) {
            left.push(line);
        }
    }
    left
}

#[test]
fn pods_answer_through_kube_proxy_from_inside_and_outside() {
    let _turn = alone();
    let lab = up(KubeProxy::Nftables);
    let (id, dir) = (lab.id().to_owned(), lab.dir().to_owned());
    assert_eq!(lab.nodes(), ["n1", "n2", "n3"]);

    lab.deploy("web", 3, &[]).unwrap();
    let nodes: BTreeSet<_> = lab
        .pods("web")
        .unwrap()
        .into_iter()
        .map(|pod| pod.node)
        .collect();
    assert_eq!(nodes.len(), 3, "the scheduler spread the pods");
    let spec = json!({"type": "NodePort"});
    lab.apply(&service("web", "web", &spec).to_string())
        .unwrap();

    // ClusterIP, from a node and from a pod of another node.
    let web = lab.kubectl_json(&["get", "service", "web"]).unwrap();
    let cluster: std::net::IpAddr = web["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    everyone_answers(&lab, "web", || Ok(lab.http("n1", cluster, 80)?.pod));
    everyone_answers(&lab, "web", || Ok(lab.udp("n2", cluster, 80)?.pod));

    // NodePort, from the segment and from behind the router.
    let (http, udp) = (
        node_port(&lab, "web", "http"),
        node_port(&lab, "web", "udp"),
    );
    for client in ["c1", "c2"] {
        let node = lab.address("n3");
        everyone_answers(&lab, "web", || Ok(lab.http(client, node, http)?.pod));
        everyone_answers(&lab, "web", || Ok(lab.udp(client, node, udp)?.pod));
    }

    // The router runs, knows its neighbours, and none of them speaks BGP yet.
    let summary = lab
        .frr("r1")
        .json("show bgp ipv4 unicast summary json")
        .unwrap();
    let peers = summary["peers"].as_object().unwrap();
    assert_eq!(
        peers.keys().collect::<Vec<_>>(),
        ["10.10.0.11", "10.10.0.12", "10.10.0.13"]
    );
    assert!(
        peers.values().all(|peer| peer["state"] != "Established"),
        "{summary}"
    );

    // An unready pod leaves the endpoints, a ready one comes back.
    let pod = lab.pods("web").unwrap().remove(0);
    let server = SocketAddr::new(pod.address, 8080);
    let switch = |path: &str| {
        lab.host(&pod.node)
            .run(|| bellrock_e2e::probe::request("POST", server, path))
            .unwrap()
            .unwrap();
    };
    let ready = |count: usize| {
        wait_for("the endpoints", SOON, || {
            let all = endpoints(&lab, "web")?;
            let ready = all
                .iter()
                .filter(|e| e["conditions"]["ready"] == true)
                .count();
            ensure!(ready == count, "{ready} ready of {}", all.len());
            Ok(())
        });
    };
    switch("/unready");
    ready(2);
    switch("/ready");
    ready(3);

    drop(lab);
    assert_eq!(leftovers(&id, &dir), Vec::<String>::new());
}

#[test]
fn kube_proxy_carries_node_ports_in_its_iptables_mode_too() {
    let _turn = alone();
    let lab = up(KubeProxy::Iptables);
    lab.deploy("web", 2, &[]).unwrap();
    let spec = json!({"type": "NodePort"});
    lab.apply(&service("web", "web", &spec).to_string())
        .unwrap();
    let (port, node) = (node_port(&lab, "web", "http"), lab.address("n1"));
    everyone_answers(&lab, "web", || Ok(lab.http("c1", node, port)?.pod));
    let rules = lab.host("n1").sh("iptables-save -t nat").unwrap();
    assert!(rules.contains("KUBE-SERVICES"), "{rules}");
}

#[test]
fn a_pod_serves_while_it_terminates_and_a_crashed_one_comes_back() {
    let _turn = alone();
    let lab = up(KubeProxy::None);
    lab.deploy("web", 1, &["--drain=5"]).unwrap();
    lab.apply(&service("web", "web", &json!({})).to_string())
        .unwrap();
    let pod = lab.pods("web").unwrap().remove(0);
    let server = SocketAddr::new(pod.address, 8080);
    let node = lab.host(&pod.node);

    lab.kubectl(&["delete", "pod", &pod.name, "--wait=false"])
        .unwrap();
    wait_for("serving and terminating", SOON, || {
        let all = endpoints(&lab, "web")?;
        let old = all
            .iter()
            .find(|e| e["targetRef"]["name"] == pod.name.as_str());
        let conditions = &old.context("no endpoint")?["conditions"];
        ensure!(
            *conditions == json!({"ready": false, "serving": true, "terminating": true}),
            "{conditions}"
        );
        Ok(())
    });
    assert_eq!(
        bellrock_e2e::probe::http(node, server).unwrap().pod,
        pod.name
    );
    wait_for("the pod to be gone", SOON, || {
        ensure!(
            lab.kubectl(&["get", "pod", &pod.name]).is_err(),
            "it is there"
        );
        ensure!(
            bellrock_e2e::probe::http(node, server).is_err(),
            "it answers"
        );
        Ok(())
    });

    // The one that took its place crashes.
    let pod = lab.pods("web").unwrap().remove(0);
    let server = SocketAddr::new(pod.address, 8080);
    let node = lab.host(&pod.node);
    wait_for("an answer", SOON, || {
        bellrock_e2e::probe::http(node, server)
    });
    let namespace: Vec<String> = ground::namespaces(lab.id())
        .unwrap()
        .into_iter()
        .filter(|name| name.contains(&pod.name))
        .collect();
    let servers = ground::processes_in(&namespace);
    assert_eq!(servers.len(), 1, "{namespace:?}");
    for pid in servers {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    wait_for("it runs again, ready", SOON, || {
        let object = lab.kubectl_json(&["get", "pod", &pod.name])?;
        let status = &object["status"]["containerStatuses"][0];
        ensure!(
            status["restartCount"] == 1 && status["ready"] == true,
            "{status}"
        );
        Ok(())
    });
}

#[test]
fn a_cut_cable_silences_the_node_for_clients_and_for_the_api() {
    let _turn = alone();
    let lab = up(KubeProxy::Nftables);
    lab.deploy("web", 3, &[]).unwrap();
    let spec = json!({"type": "NodePort"});
    lab.apply(&service("web", "web", &spec).to_string())
        .unwrap();
    let node = lab.address("n1");
    let (udp, stream) = (
        node_port(&lab, "web", "udp"),
        node_port(&lab, "web", "stream"),
    );
    wait_for("the node port", SOON, || lab.udp("c1", node, udp).map(drop));
    let renewed = || {
        let lease = lab.kubectl_json(&["get", "lease", "n1", "-n", "kube-node-lease"]);
        lease.unwrap()["spec"]["renewTime"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    let mut connections =
        Connections::open(lab.host("c1"), SocketAddr::new(node.into(), stream), 5).unwrap();
    let server = SocketAddr::new(node.into(), udp);
    let prober = Prober::start(lab.host("c1"), server, Pace::default()).unwrap();
    let until = |more: u64| {
        let goal = prober.answered() + more;
        wait_for("answers", SOON, || {
            ensure!(prober.answered() >= goal, "{} answers", prober.answered());
            Ok(())
        });
    };
    until(50);
    let pulled = Instant::now();
    lab.cut("n1").unwrap();
    wait_for("the lease to miss a renewal", SOON, || {
        let at: Timestamp = renewed().parse()?;
        let age = Timestamp::now().duration_since(at);
        ensure!(age.as_secs() > 15, "renewed {age:?} ago");
        Ok(())
    });
    let held = pulled.elapsed();
    let healed = Timestamp::now();
    lab.heal("n1").unwrap();
    until(50);
    let report = prober.stop().unwrap();
    let [outage] = report.outages.as_slice() else {
        panic!("one outage was made: {:?}", report.outages);
    };
    assert!(
        outage.length_ms > 900.0 * held.as_secs_f64() && outage.lost > 100,
        "{outage:?} of a cut that lasted {held:?}"
    );
    assert_eq!(connections.alive(Duration::from_secs(60)), 5);
    wait_for("a renewal", SOON, || {
        ensure!(renewed().parse::<Timestamp>()? > healed);
        Ok(())
    });
}

#[test]
fn the_chart_installs_and_installing_again_keeps_its_key() {
    let _turn = alone();
    let lab = up(KubeProxy::None);
    lab.install("logLevel: debug").unwrap();
    let key = || {
        let secret = lab.kubectl_json(&["get", "secret", "-n", NAMESPACE, "bellrock-l2"]);
        secret.unwrap()["data"]["key"].as_str().unwrap().to_owned()
    };
    let first = key();
    lab.install("").unwrap();
    assert_eq!(key(), first);
    let kinds = lab
        .kubectl(&["api-resources", "--api-group=bellrock.dev", "-o", "name"])
        .unwrap();
    assert_eq!(kinds.lines().count(), 8, "{kinds}");
    let nobody = lab
        .kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"])
        .unwrap();
    assert_eq!(nobody, "", "the workloads run as processes, not as pods");
    let error = lab.install("noSuchValue: {").unwrap_err();
    assert!(format!("{error:#}").contains("helm template"), "{error:#}");
}

#[test]
fn two_labs_at_once_do_not_collide() {
    let _turn = alone();
    let one = up(KubeProxy::None);
    let two = up(KubeProxy::None);
    assert_ne!(one.id(), two.id());
    one.deploy("only-in-one", 1, &[]).unwrap();
    two.deploy("only-in-two", 1, &[]).unwrap();
    let names = |lab: &Lab| lab.kubectl(&["get", "deployments", "-o", "name"]).unwrap();
    assert_eq!(names(&one).trim(), "deployment.apps/only-in-one");
    assert_eq!(names(&two).trim(), "deployment.apps/only-in-two");
    // The end of one is not the end of the other.
    drop(one);
    let pod = two.pods("only-in-two").unwrap().remove(0);
    assert_eq!(
        two.http(&pod.node, pod.address, 8080).unwrap().pod,
        pod.name
    );
}

/// A lab of another process: its process and its id once it is up.
fn lab_process() -> (std::process::Child, String) {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let mut child = Command::new(env!("CARGO_BIN_EXE_bellrock-lab"))
        .args(["up", "--kube-proxy", "none", "--ready-file"])
        .arg(&ready)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let usage = wait_for("the lab to be up", 2 * SOON, || {
        if let Some(status) = child.try_wait()? {
            panic!("it ended: {status}");
        }
        let text = std::fs::read_to_string(&ready)?;
        ensure!(text.ends_with('\n'), "half written");
        Ok(text)
    });
    let id = usage
        .strip_prefix("lab ")
        .unwrap()
        .split(':')
        .next()
        .unwrap();
    (child, id.to_owned())
}

fn signal_ends_the_lab(signal: Signal) {
    let _turn = alone();
    let (mut child, id) = lab_process();
    let dir = std::env::temp_dir().join(format!("bellrock-lab-{id}"));
    assert!(!leftovers(&id, &dir).is_empty());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success());
    if signal == Signal::SIGKILL {
        // Only its folder, with the logs, may stay until `down`.
        wait_for("the watchdog to clean up", SOON, || {
            let left = leftovers(&id, Path::new("/nonexistent"));
            ensure!(left.iter().all(|left| left.starts_with("frr-")), "{left:?}");
            Ok(())
        });
        let down = Command::new(env!("CARGO_BIN_EXE_bellrock-lab"))
            .args(["down", &id])
            .status()
            .unwrap();
        assert!(down.success());
    }
    assert_eq!(leftovers(&id, &dir), Vec::<String>::new());
}

#[test]
fn a_killed_lab_leaves_only_its_logs_and_down_removes_them() {
    signal_ends_the_lab(Signal::SIGKILL);
}

#[test]
fn an_interrupted_lab_leaves_nothing() {
    signal_ends_the_lab(Signal::SIGINT);
}

#[test]
fn wrong_flags_exit_2_and_say_what_is_wanted() {
    let cases: [(&[&str], &str); 3] = [
        (
            &["up", "--kube-proxy", "ipvs"],
            "nftables, iptables or none",
        ),
        (&["parts", "--path", "kubectx"], "kube-apiserver"),
        (&["down"], "--all"),
    ];
    for (args, hint) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_bellrock-lab"))
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(hint), "{args:?}: {said}");
    }
}
