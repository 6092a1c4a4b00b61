//! Bellrock in the lab: the whole path from a Service to an answer, and what
//! happens when a part of it fails. Judged by the kernel, FRR, captures and
//! the API server.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_api::VirtualIP;
use bellrock_e2e::bellrock::Workload;
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, program, service};
use bellrock_e2e::probe::{Connections, Pace, Prober, Report};
use bellrock_e2e::suite::{NAMESPACE, POOL, configuration};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// A lab with Bellrock installed, and the lock that keeps others waiting:
/// each test wants the whole machine.
struct World {
    lab: Lab,
    controller: Workload,
    speakers: BTreeMap<String, Workload>,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    fn up(kube_proxy: KubeProxy) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::up(&Options {
            kube_proxy,
            ..Options::default()
        })
        .unwrap();
        lab.install("").unwrap();
        lab.apply(&configuration()).unwrap();
        let (controller, speakers) = lab.start_bellrock().unwrap();
        Self {
            lab,
            controller,
            speakers,
            _turn: turn,
        }
    }

    /// Two pods and a Service of type LoadBalancer before them.
    fn web(&self) -> Ipv4Addr {
        self.lab.deploy("web", 2, &[]).unwrap();
        self.service("web")
    }

    fn service(&self, name: &str) -> Ipv4Addr {
        let manifest = service(name, "web", &json!({ "type": "LoadBalancer" }));
        self.lab.create_service(&manifest).unwrap().0
    }

    fn until<T>(&self, what: &str, condition: impl FnMut() -> Result<T>) -> T {
        self.lab.until(what, SOON, condition).unwrap()
    }

    fn answers(&self, client: &str, address: Ipv4Addr) {
        self.until("HTTP answers", || self.lab.http(client, address, 80));
        self.until("UDP answers", || self.lab.udp(client, address, 80));
    }

    /// Routed to by every node, answered on the segment.
    fn is_announced(&self, address: Ipv4Addr) {
        self.lab
            .until_routed("r1", address, &self.lab.nodes())
            .unwrap();
        for client in ["c1", "c2"] {
            self.answers(client, address);
        }
    }

    /// No route, no answer to ARP.
    fn is_not_announced(&self, address: Ipv4Addr) {
        self.lab.until_routed("r1", address, &[]).unwrap();
        self.until("nobody answers ARP", || {
            let asked = format!("arping -c 1 -w 1 -I eth1 {address} || true");
            let said = self.lab.host("c1").sh(&asked)?;
            ensure!(said.contains("Received 0 response"), "{said}");
            Ok(())
        });
    }

    fn owner(&self, address: Ipv4Addr) -> String {
        self.until("the client knows an owner", || {
            self.lab.neighbour("c1", address)
        })
    }

    fn policy(&self, name: &str, policy: &str) {
        let patch = json!({ "spec": { "externalTrafficPolicy": policy } }).to_string();
        self.lab
            .kubectl(&["patch", "service", name, "-p", &patch])
            .unwrap();
    }

    fn scale(&self, replicas: u32) {
        let count = format!("--replicas={replicas}");
        self.lab
            .kubectl(&["scale", "deployment", "web", &count])
            .unwrap();
    }

    /// Nodes with a pod of the Deployment `web`.
    fn nodes_with_pods(&self) -> Vec<String> {
        let pods = self.lab.pods("web").unwrap();
        let nodes: BTreeSet<String> = pods.into_iter().map(|pod| pod.node).collect();
        nodes.into_iter().collect()
    }

    fn condition(&self, name: &str) -> Result<(String, String, String)> {
        let object = self.lab.kubectl_json(&["get", "service", name])?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ours = conditions
            .into_iter()
            .find(|c| c["type"] == "bellrock.dev/LoadBalancer");
        let ours = ours.context("no condition of ours")?;
        let text = |field: &str| ours[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// Probes by UDP while something happens and for 50 answers after it.
    fn probed(&self, client: &str, address: Ipv4Addr, happens: impl FnOnce()) -> Report {
        let target = SocketAddr::new(address.into(), 80);
        let prober = Prober::start(self.lab.host(client), target, Pace::default()).unwrap();
        let answered = |more: u64| {
            let before = prober.answered();
            self.until("probes are answered", || {
                ensure!(
                    prober.answered() >= before + more,
                    "{} answered",
                    prober.answered()
                );
                Ok(())
            });
        };
        answered(50);
        happens();
        answered(50);
        prober.stop().unwrap()
    }
}

fn lost(report: &Report) -> usize {
    report.sent - report.answered
}

#[test]
fn a_service_answers_by_arp_and_bgp_beside_kube_proxy_in_nftables_mode() {
    whole_path(KubeProxy::Nftables);
}

#[test]
fn a_service_answers_by_arp_and_bgp_beside_kube_proxy_in_iptables_mode() {
    whole_path(KubeProxy::Iptables);
}

#[test]
fn a_service_answers_by_arp_and_bgp_without_kube_proxy() {
    whole_path(KubeProxy::None);
}

fn whole_path(kube_proxy: KubeProxy) {
    let world = World::up(kube_proxy);
    let lab = &world.lab;
    let arp = lab.capture("c1", "eth1", "arp").unwrap();
    let bgp = lab.capture("r1", "eth1", "tcp port 179").unwrap();
    let address = world.web();
    assert!(POOL.contains(&address), "{address}");
    world.is_announced(address);

    status_is_complete(&world, address);
    arp_frames_are_right(&world, &arp, address);
    bgp_messages_are_right(&world, &bgp, address);
    node_port_answers(&world);
    unserved_port_is_refused(&world, address);
    local_keeps_the_client_address(&world, address);
    no_pods_no_announcement(&world, address);
    deleted_leaves_nothing(&world, address);
}

fn status_is_complete(world: &World, address: Ipv4Addr) {
    let object = world.lab.kubectl_json(&["get", "service", "web"]).unwrap();
    assert_eq!(
        object["status"]["loadBalancer"]["ingress"],
        json!([{ "ip": address.to_string(), "ipMode": "VIP" }])
    );
    let (status, reason, _) = world.condition("web").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Allocated"));
    assert_eq!(
        object["metadata"]["finalizers"],
        Value::Null,
        "no finalizer of ours"
    );
    let owner = world.owner(address);
    world.until("the owner is on record", || {
        let vip = world
            .lab
            .kubectl_json(&["get", "virtualip", &address.to_string()])?;
        ensure!(vip["status"]["owner"] == json!(owner), "{}", vip["status"]);
        Ok(())
    });
}

fn arp_frames_are_right(
    world: &World,
    capture: &bellrock_e2e::capture::Capture,
    address: Ipv4Addr,
) {
    let owner = world.lab.mac(&world.owner(address)).unwrap();
    let client = world.lab.mac("c1").unwrap();
    let filter = format!("arp.src.proto_ipv4 == {address}");
    let fields = [
        "arp.opcode",
        "eth.src",
        "eth.dst",
        "arp.src.hw_mac",
        "arp.dst.proto_ipv4",
    ];
    world.until("a reply and an announcement are captured", || {
        // An announcement may have come before the client asked.
        world
            .lab
            .host("c1")
            .sh(&format!("arping -c 1 -w 5 -I eth1 {address}"))?;
        let frames = capture.decode(&filter, &fields)?;
        let client_address = world.lab.address("c1").to_string();
        let reply = ["2", &owner, &client, &owner, &client_address];
        let announcement = [
            "1",
            &owner,
            "ff:ff:ff:ff:ff:ff",
            &owner,
            &address.to_string(),
        ];
        let has = |wanted: &[&str]| frames.iter().any(|frame| frame == wanted);
        ensure!(has(&reply) && has(&announcement), "{frames:?}");
        let all = |frame: &Vec<String>| *frame == reply || *frame == announcement;
        // The router asks too: its replies differ in the asker only.
        let foreign = frames.iter().filter(|frame| frame[3] != owner);
        ensure!(foreign.count() == 0, "{frames:?}");
        ensure!(frames.iter().any(all));
        Ok(())
    });
    assert_eq!(
        capture
            .decode("_ws.malformed", &["frame.number"])
            .unwrap()
            .len(),
        0
    );
}

fn bgp_messages_are_right(
    world: &World,
    capture: &bellrock_e2e::capture::Capture,
    address: Ipv4Addr,
) {
    world.until("an UPDATE from each node is captured", || {
        let filter = format!("bgp.type == 2 && bgp.nlri_prefix == {address}");
        let fields = [
            "ip.src",
            "bgp.update.path_attribute.next_hop",
            "bgp.mp_reach_nlri_ipv4_prefix",
        ];
        let frames = capture.decode(&filter, &fields)?;
        for node in world.lab.nodes() {
            let own = world.lab.address(node).to_string();
            let sent = frames
                .iter()
                .any(|frame| frame[0] == own && frame[1].contains(&own));
            ensure!(sent, "none from {node}: {frames:?}");
        }
        Ok(())
    });
    assert_eq!(
        capture
            .decode("_ws.malformed", &["frame.number"])
            .unwrap()
            .len(),
        0
    );
}

fn node_port_answers(world: &World) {
    let object = world.lab.kubectl_json(&["get", "service", "web"]).unwrap();
    for port in object["spec"]["ports"].as_array().unwrap() {
        let number = u16::try_from(port["nodePort"].as_u64().unwrap()).unwrap();
        for node in world.lab.nodes() {
            let address = world.lab.address(node);
            match port["name"].as_str().unwrap() {
                "http" => drop(world.lab.http("c1", address, number).unwrap()),
                "udp" => drop(world.lab.udp("c1", address, number).unwrap()),
                _ => {}
            }
        }
    }
}

fn unserved_port_is_refused(world: &World, address: Ipv4Addr) {
    for client in ["c1", "c2"] {
        let target = SocketAddr::new(address.into(), 12345);
        let result = world
            .lab
            .host(client)
            .run(|| std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5)))
            .unwrap();
        let kind = result.map(drop).map_err(|error| error.kind());
        assert_eq!(kind, Err(std::io::ErrorKind::ConnectionRefused), "{client}");
    }
}

fn local_keeps_the_client_address(world: &World, address: Ipv4Addr) {
    let lab = &world.lab;
    world.policy("web", "Local");
    let nodes = world.nodes_with_pods();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    assert_eq!(nodes.len(), 2, "two pods on two of three nodes");
    lab.until_routed("r1", address, &nodes).unwrap();
    for client in ["c1", "c2"] {
        world.answers(client, address);
        for _ in 0..10 {
            let own = lab.address(client);
            assert_eq!(lab.http(client, address, 80).unwrap().client.ip(), own);
            assert_eq!(lab.udp(client, address, 80).unwrap().client.ip(), own);
        }
    }
    // Callers on a node get the policy Cluster, also where no pod runs.
    for node in lab.nodes() {
        world.answers(node, address);
    }
    world.policy("web", "Cluster");
    world.is_announced(address);
}

fn no_pods_no_announcement(world: &World, address: Ipv4Addr) {
    world.scale(0);
    world.is_not_announced(address);
    assert_eq!(
        world.lab.address_of_service("web").unwrap(),
        address,
        "the address stays"
    );
    world.scale(2);
    world.is_announced(address);
}

fn deleted_leaves_nothing(world: &World, address: Ipv4Addr) {
    // A released address rests for a minute by default.
    let rest = json!({ "spec": { "reuseDelay": "2s" } }).to_string();
    world
        .lab
        .kubectl(&[
            "-n",
            NAMESPACE,
            "patch",
            "ipaddresspool",
            "lab",
            "--type=merge",
            "-p",
            &rest,
        ])
        .unwrap();
    world.lab.delete_service("web").unwrap();
    world.is_not_announced(address);
    world.until("the VirtualIP is gone", || {
        let left = world.lab.kubectl(&["get", "virtualips", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    });
    for node in world.lab.nodes() {
        world.until("the node forgets the address", || {
            ensure!(
                !world.lab.forwards(node, address)?,
                "{node} forwards {address}"
            );
            Ok(())
        });
    }
}

#[test]
fn killing_controller_or_speaker_moves_no_address_and_breaks_no_flow_elsewhere() {
    let mut world = World::up(KubeProxy::Nftables);
    let address = world.web();
    world.is_announced(address);
    let owner = world.owner(address);
    let stream = SocketAddr::new(address.into(), 81);
    let mut flows = Connections::open(world.lab.host("c1"), stream, 20).unwrap();

    let bystander = world
        .lab
        .nodes()
        .into_iter()
        .find(|node| *node != owner)
        .unwrap()
        .to_owned();
    let report = world.probed("c1", address, || {
        let speaker = &world.speakers[&bystander];
        speaker.kill9().unwrap();
        world.until("the router notices", || {
            ensure!(!world.lab.bgp_paths("r1", address)?.contains(&bystander));
            Ok(())
        });
        speaker.restart().unwrap();
        world.is_announced(address);
    });
    assert_eq!(lost(&report), 0, "{report:?}");
    assert_eq!(
        flows.alive(Duration::from_secs(5)),
        20,
        "flows through {owner}"
    );

    let report = world.probed("c1", address, || {
        world.controller.kill9().unwrap();
        let manifest = service("later", "web", &json!({ "type": "LoadBalancer" })).to_string();
        world.lab.apply(&manifest).unwrap();
        world.controller.restart().unwrap();
        let later = world.lab.address_of_service("later").unwrap();
        assert_ne!(later, address);
    });
    assert_eq!(lost(&report), 0, "{report:?}");
    assert_eq!(world.lab.address_of_service("web").unwrap(), address);
    assert_eq!(world.owner(address), owner);
    assert_eq!(flows.alive(Duration::from_secs(5)), 20);

    // A rollout: the next speaker goes on with what the owner's holds.
    let vip = ["get", "virtualip", &address.to_string()];
    let held = world.lab.kubectl_json(&vip).unwrap()["status"].clone();
    let last = world.speakers.remove(&owner).unwrap();
    let mut next = None;
    let report = world.probed("c1", address, || {
        next = Some(world.lab.start_next_speaker(&owner, 2).unwrap());
        let status = last.terminate(Duration::from_secs(10)).unwrap();
        assert!(status.success(), "{status}");
        world.is_announced(address);
    });
    world.speakers.insert(owner.clone(), next.unwrap());
    assert_eq!(lost(&report), 0, "{report:?}");
    assert_eq!(world.owner(address), owner);
    let holds = world.lab.kubectl_json(&vip).unwrap()["status"].clone();
    assert_eq!(holds, held, "nothing moved");
    assert_eq!(flows.alive(Duration::from_secs(5)), 20);

    // The owner's own speaker: the address stays, another node answers.
    let report = world.probed("c1", address, || {
        world.speakers[&owner].kill9().unwrap();
        world.until("another node answers", || {
            ensure!(world.lab.neighbour("c1", address)? != owner);
            Ok(())
        });
        world.speakers[&owner].restart().unwrap();
    });
    assert!(report.longest_ms() <= 2000.0, "{report:?}");
    assert_eq!(world.lab.address_of_service("web").unwrap(), address);
    world.is_announced(address);
    assert_ne!(world.owner(address), owner, "it is not taken back");

    // An orderly end hands over too, and says goodbye to the router.
    let owner = world.owner(address);
    let speaker = world.speakers.remove(&owner).unwrap();
    let report = world.probed("c1", address, || {
        let status = speaker.terminate(Duration::from_secs(10)).unwrap();
        assert!(status.success(), "{status}");
    });
    assert!(report.longest_ms() <= 2000.0, "{report:?}");
    let neighbor = world.lab.address(&owner);
    let shown = world
        .lab
        .frr("r1")
        .json(&format!("show bgp neighbors {neighbor} json"))
        .unwrap();
    let text = shown.to_string();
    assert!(text.contains("Administrative Shutdown"), "{text}");
}

#[test]
fn a_pulled_cable_costs_at_most_two_seconds_and_the_address_stays_when_it_is_back() {
    let world = World::up(KubeProxy::Nftables);
    let address = world.web();
    world.is_announced(address);
    for round in 1..=3 {
        let owner = world.owner(address);
        // The endpoints must not sit on the node that is cut.
        world.lab.keep_pods_off("web", &owner).unwrap();
        world.answers("c1", address);
        let report = world.probed("c1", address, || {
            world.lab.cut(&owner).unwrap();
            world.until("another node answers", || {
                ensure!(world.lab.neighbour("c1", address)? != owner);
                Ok(())
            });
        });
        println!(
            "round {round}: outage {:.0} ms, {} probes lost",
            report.longest_ms(),
            lost(&report)
        );
        assert!(
            report.longest_ms() > 0.0,
            "was the cable pulled? {report:?}"
        );
        assert!(report.longest_ms() <= 2000.0, "{report:?}");
        let successor = world.owner(address);
        let report = world.probed("c1", address, || {
            world.lab.heal(&owner).unwrap();
            world
                .lab
                .until_routed("r1", address, &world.lab.nodes())
                .unwrap();
        });
        assert_eq!(lost(&report), 0, "{report:?}");
        assert_eq!(world.owner(address), successor, "it is not taken back");
    }
}

#[test]
fn bad_input_has_a_reason_and_disturbs_nothing() {
    let world = World::up(KubeProxy::Nftables);
    let lab = &world.lab;
    let address = world.web();
    world.is_announced(address);
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
        })
        .to_string()
    };
    let report = world.probed("c1", address, || {
        // A pool that does not parse is refused by the API server itself,
        let pool = object(
            "IPAddressPool",
            "bad",
            json!({ "addresses": ["10.0.0.9-"] }),
        );
        let error = format!("{:#}", lab.apply(&pool).unwrap_err());
        assert!(error.contains("spec.addresses"), "{error}");
        // and what its rules cannot see, by the controller.
        let range = "2001:db8::9-2001:db8::1";
        lab.apply(&object(
            "IPAddressPool",
            "backwards",
            json!({ "addresses": [range] }),
        ))
        .unwrap();
        world.until("the pool is refused", || {
            let pool = lab.kubectl_json(&["-n", NAMESPACE, "get", "ipaddresspool", "backwards"])?;
            let conditions = pool["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let accepted = conditions.iter().find(|c| c["type"] == "Accepted");
            let accepted = accepted.with_context(|| format!("no condition: {}", pool["status"]))?;
            ensure!(accepted["status"] == "False", "{accepted}");
            ensure!(accepted["reason"] == "AddressInvalid", "{accepted}");
            Ok(())
        });

        // A Service that asks for what no pool has.
        let request = json!({ "type": "LoadBalancer", "loadBalancerIP": "203.0.113.7" });
        lab.apply(&service("stuck", "web", &request).to_string())
            .unwrap();
        world.until("the Service has a reason", || {
            let (status, reason, message) = world.condition("stuck")?;
            ensure!(
                status == "False" && reason == "AddressNotInPool",
                "{status} {reason}"
            );
            ensure!(message.contains("203.0.113.7"), "{message}");
            Ok(())
        });
        world.until("an Event tells it", || {
            let events = lab.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
            ensure!(events.contains("AddressNotInPool"), "{events}");
            Ok(())
        });
        let (_, said, _) = lab.bellrock(&["why", "svc/stuck"]).unwrap();
        assert!(said.contains("AddressNotInPool"), "{said}");
        assert!(world.controller.log_tail(200).contains("AddressNotInPool"));

        // An address that the router has: it would be cut off.
        let pool = json!({ "addresses": ["10.10.0.254"], "autoAssign": false });
        lab.apply(&object("IPAddressPool", "router", pool)).unwrap();
        let request = json!({ "type": "LoadBalancer", "loadBalancerIP": "10.10.0.254" });
        lab.apply(&service("greedy", "web", &request).to_string())
            .unwrap();
        world.until("nobody announces the router's address", || {
            let answer = lab.why("svc/greedy")?;
            let nodes = answer["services"][0]["addresses"][0]["nodes"]
                .as_array()
                .cloned();
            let nodes = nodes.context("it has no address yet")?;
            for node in &nodes {
                ensure!(node["l2"]["reason"] == "AddressTaken", "{node}");
            }
            Ok(())
        });
        for node in lab.nodes() {
            assert!(
                !lab.forwards(node, [10, 10, 0, 254].into()).unwrap(),
                "{node}"
            );
        }

        // A router that refuses, and one that asks for what we cannot do.
        let dead = json!({
            "myASN": 64512, "peerASN": 64500, "peerAddress": "10.10.0.254", "peerPort": 1790,
            "connectTime": "1s",
        });
        lab.apply(&object("BGPPeer", "refuses", dead)).unwrap();
        let vrf = json!({
            "myASN": 64512, "peerASN": 64500, "peerAddress": "10.10.0.253", "password": "hush",
            "vrf": "red",
        });
        lab.apply(&object("BGPPeer", "vrf", vrf)).unwrap();
        // Asked for by name, with the speakers' own rights.
        let asks_more = json!({
            "myASN": 64512, "peerASN": 64500, "peerAddress": "10.10.0.252",
            "passwordSecret": { "name": "absent" },
        });
        lab.apply(&object("BGPPeer", "asks-more", asks_more))
            .unwrap();
        world.until("each node tells what is wrong", || {
            for node in lab.nodes() {
                let object = lab.kubectl_json(&["get", "speakerstatus", node])?;
                let status = &object["status"];
                let sessions = status["sessions"].as_array().context("no sessions")?;
                let of = |peer: &str| sessions.iter().find(|s| s["peer"] == peer);
                let refused = of("refuses").context("no session yet")?.to_string();
                ensure!(refused.contains("connection refused"), "{refused}");
                let good = of("r1").context("no session with r1")?;
                ensure!(good["state"] == "Established", "{good}");
                let message = status["configuration"].to_string();
                ensure!(message.contains("vrf is not supported"), "{message}");
                ensure!(!message.contains("hush"), "{message}");
                ensure!(
                    message.contains("absent: there is no such Secret"),
                    "{message}"
                );
            }
            Ok(())
        });
    });
    assert_eq!(lost(&report), 0, "{report:?}");
    world.until("Events on the peer tell it", || {
        let field = "--field-selector=involvedObject.name=vrf";
        let path = "jsonpath={.items[*].message}";
        let events = lab.kubectl(&["-n", NAMESPACE, "get", "events", field, "-o", path])?;
        ensure!(events.contains("vrf is not supported"), "{events:?}");
        Ok(())
    });
    world.is_announced(address);
}

#[test]
fn an_unreachable_api_server_is_told_and_not_died_of() {
    let world = World::up(KubeProxy::Nftables);
    let address = world.web();
    world.is_announced(address);
    let report = world.probed("c1", address, || {
        // The whole control plane goes silent.
        world.lab.cut("cp").unwrap();
        // A speaker that starts now waits, and its node's forwarding stays.
        let owner = world.owner(address);
        let bystander = world
            .lab
            .nodes()
            .into_iter()
            .find(|node| *node != owner)
            .unwrap();
        let speaker = &world.speakers[bystander];
        speaker.kill9().unwrap();
        speaker.respawn().unwrap();
        let target = SocketAddr::new(world.lab.address(bystander).into(), 9618);
        world.until("it says what it waits for", || {
            let asked = world
                .lab
                .host(bystander)
                .run(|| bellrock_e2e::probe::request("GET", target, "/readyz"))?;
            let (status, body) = asked?;
            ensure!(
                status == 503 && body.contains("API server"),
                "{status} {body}"
            );
            Ok(())
        });
        assert!(
            world.lab.forwards(bystander, address).unwrap(),
            "the table outlives its speaker"
        );
        assert_eq!(world.owner(address), owner);
        world.lab.heal("cp").unwrap();
        world.is_announced(address);
    });
    assert_eq!(lost(&report), 0, "{report:?}");
}

#[test]
fn wrong_flags_exit_with_2_and_say_what_is_right() {
    for (args, told) in [
        (&["speaker"][..], "--node-name"),
        (
            &[
                "speaker",
                "--node-name",
                "n1",
                "--key-file",
                "k",
                "--ethertype",
                "zz",
            ],
            "hexadecimal",
        ),
        (&["controller", "--listen", "nowhere"], "--listen"),
        (&["announce"], "unrecognized subcommand"),
        (&["why"], "TARGET"),
    ] {
        let output = Command::new(program("bellrock", "BELLROCK_BIN").unwrap())
            .args(args)
            .env_remove("BELLROCK_NODE_NAME")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(told), "{args:?}: {said}");
    }
}

#[test]
fn a_speaker_may_write_its_own_node_only() {
    let world = World::up(KubeProxy::Nftables);
    let address = world.web();
    world.is_announced(address);
    let owner = world.owner(address);
    let vip = address.to_string();
    let client = world.lab.client_of(&world.speakers[&owner]).unwrap();
    let virtual_ips: Api<VirtualIP> = Api::all(client);
    let claim = |owner: &str| {
        let patch = Patch::Merge(json!({ "status": { "owner": owner, "epoch": 1 } }));
        let params = PatchParams::default();
        world
            .lab
            .block_on(virtual_ips.patch_status(&vip, &params, &patch))
    };
    let other = world
        .lab
        .nodes()
        .into_iter()
        .find(|node| *node != owner)
        .unwrap();
    let error = claim(other).unwrap_err().to_string();
    assert!(error.contains("denied"), "{error}");
    claim(&owner).unwrap();
}

#[test]
fn why_and_status_tell_the_same_live_and_from_a_dump() {
    let world = World::up(KubeProxy::Nftables);
    let lab = &world.lab;
    let address = world.web();
    world.is_announced(address);
    let owner = world.owner(address);
    let excluded = lab.nodes().into_iter().find(|node| *node != owner).unwrap();
    let label = "node.kubernetes.io/exclude-from-external-load-balancers=";
    lab.kubectl(&["label", "node", excluded, label]).unwrap();
    let others: Vec<&str> = lab
        .nodes()
        .into_iter()
        .filter(|node| *node != excluded)
        .collect();
    lab.until_routed("r1", address, &others).unwrap();
    let live = world.until("the answer is complete", || {
        let answer = lab.why("svc/web")?;
        let shown = &answer["services"][0]["addresses"][0];
        ensure!(shown["owner"] == json!(owner), "{shown}");
        for node in shown["nodes"].as_array().context("no nodes")? {
            let (name, l2, bgp) = (&node["node"], &node["l2"]["reason"], &node["bgp"]["reason"]);
            let wanted = if *name == json!(owner) {
                ("Announced", "Announced")
            } else if *name == json!(excluded) {
                ("NodeExcluded", "NodeExcluded")
            } else {
                ("Standby", "Announced")
            };
            ensure!(
                (l2.as_str(), bgp.as_str()) == (Some(wanted.0), Some(wanted.1)),
                "{node}"
            );
        }
        Ok(answer)
    });
    let kinds = "svc,endpointslices,nodes,virtualips,ipaddresspools,l2advertisements,\
                 bgpadvertisements,bgppeers,communities,speakerstatuses";
    let dump = lab.kubectl(&["get", "-A", "-o", "yaml", kinds]).unwrap();
    let file = lab.dir().join("dump.yaml");
    std::fs::write(&file, dump).unwrap();
    let offline = |args: &[&str]| -> Value {
        let file = file.display().to_string();
        let args = [args, &["-o", "json", "-f", &file]].concat();
        let output = Command::new(program("bellrock", "BELLROCK_BIN").unwrap())
            .args(&args)
            .env("KUBECONFIG", "/nowhere")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(offline(&["why", &address.to_string()]), live);
    let status = offline(&["status"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(status["sessions"].as_array().unwrap().len(), 3);
    assert_eq!(status["pools"][0]["assigned"], 1);
}

#[test]
fn the_demo_fails_and_says_where_when_a_speaker_is_missing() {
    let output = Command::new(bellrock_e2e::lab::lab_program().unwrap())
        .args(["demo", "--without-speaker", "n2"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("FAIL  FRR has a route from each node"),
        "{said}"
    );
    assert!(errors.contains("expected routes from"), "{errors}");
    assert!(errors.contains("logs in "), "{errors}");
    assert!(!said.contains("checks passed"), "{said}");
}
