//! What else is on a node, and what becomes of forwarding when that changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::probe::{By, Connections, Pace, Prober};
use bellrock_e2e::suite::NAMESPACE;
use serde_json::{Value, json};

use crate::cases::healthy;
use crate::objects;
use crate::world::Expect::{self, Lost, Pods};
use crate::world::From::OutsideBy;
use crate::world::To::{Address, NodePort};
use crate::world::{Forwarding, SOON, Seen, World};

const WEB: Expect = Pods(&["web-1", "web-2"], Seen::Any);

/// A busy machine may answer late; what is lost is lost for good.
const PATIENT: Pace = Pace {
    every: Duration::from_millis(10),
    patience: Duration::from_secs(3),
};

/// What Docker and a careful administrator leave on a node.
const FIREWALL: &str = "
nft add table ip filter
nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
nft add chain ip filter DOCKER-USER
nft add rule ip filter FORWARD jump DOCKER-USER";

#[test]
fn what_others_do_to_a_node_is_told_and_made_good() {
    let mut world = World::up(KubeProxy::None, Forwarding::Nftables).unwrap();
    world.see(OutsideBy("n1"), Address("cluster"), WEB).unwrap();
    rules_that_drop_are_named(&world).unwrap();
    a_flushed_table_comes_back(&world).unwrap();
    an_address_that_the_kernel_answers_for_is_told(&world).unwrap();
    odd_objects_disturb_nothing(&world).unwrap();
    without_kube_proxy_nobody_forwards(&mut world).unwrap();
}

fn rules_that_drop_are_named(w: &World) -> Result<()> {
    let node = w.lab.host("n1");
    node.sh(FIREWALL)?;
    w.see(OutsideBy("n1"), Address("cluster"), Lost)?;
    w.lab.until("the status names them", SOON, || {
        let warnings = w.warnings("n1")?;
        for (reason, place) in [
            ("ForwardPolicyDrop", "chain FORWARD of table ip filter"),
            ("DockerRules", "chain DOCKER-USER of table ip filter"),
        ] {
            let message = warnings
                .get(reason)
                .with_context(|| format!("{warnings:?}"))?;
            ensure!(message.contains(place), "{message}");
        }
        Ok(())
    })?;
    let (_, said, _) = w.lab.bellrock(&["why", "svc/cluster"])?;
    ensure!(
        said.contains("n1: ForwardPolicyDrop (chain FORWARD of table ip filter"),
        "{said}"
    );
    // What the reason's sentence tells to do helps.
    node.sh(
        "nft add rule ip filter DOCKER-USER ip daddr 10.244.0.0/16 accept
         nft add rule ip filter DOCKER-USER ip saddr 10.244.0.0/16 accept",
    )?;
    w.see(OutsideBy("n1"), Address("cluster"), WEB)?;
    node.sh("nft delete table ip filter")?;
    w.lab.until("the status tells no more of them", SOON, || {
        let warnings = w.warnings("n1")?;
        ensure!(warnings.is_empty(), "{warnings:?}");
        Ok(())
    })
}

fn a_flushed_table_comes_back(w: &World) -> Result<()> {
    let address = w.address("cluster")?;
    w.lab.host("n1").sh("nft flush ruleset")?;
    let took = w.timed("the table is back", || {
        ensure!(w.lab.forwards("n1", address)?, "{address} is not in it");
        Ok(())
    })?;
    eprintln!("flushed table back after {} ms", took.as_millis());
    ensure!(took <= Duration::from_secs(1), "it took {took:?}");
    w.see(OutsideBy("n1"), Address("cluster"), WEB)?;
    w.lab.until("the status tells it", SOON, || {
        let warnings = w.warnings("n1")?;
        let message = warnings.get("TableChanged");
        let message = message.with_context(|| format!("{warnings:?}"))?;
        ensure!(message.ends_with(": 1"), "{message}");
        Ok(())
    })
}

/// As in kube-proxy's IPVS mode without strictARP.
fn an_address_that_the_kernel_answers_for_is_told(w: &World) -> Result<()> {
    let address = w.address("cluster")?;
    let node = w.lab.host("n2");
    node.sh(&format!(
        "ip link add kube-ipvs0 type bridge && ip addr add {address}/32 dev kube-ipvs0"
    ))?;
    let reason = || -> Result<(String, String)> {
        let answer = w.lab.why("svc/cluster")?;
        let nodes = answer["services"][0]["addresses"][0]["nodes"].as_array();
        let of_n2 = nodes
            .into_iter()
            .flatten()
            .find(|node| node["node"] == "n2");
        let of_n2 = of_n2.context("no n2")?;
        let of = |way: &str| of_n2[way]["reason"].as_str().unwrap_or_default().to_owned();
        Ok((of("l2"), of("bgp")))
    };
    w.lab.until("the reason is told", SOON, || {
        let (l2, bgp) = reason()?;
        ensure!(l2 == "AnsweredByKernel" && bgp == "Announced", "{l2} {bgp}");
        Ok(())
    })?;
    // What strictARP does.
    node.sh("sysctl -qw net.ipv4.conf.all.arp_ignore=1")?;
    w.lab.until("the reason is gone", SOON, || {
        let (l2, _) = reason()?;
        ensure!(["Announced", "Standby"].contains(&l2.as_str()), "{l2}");
        Ok(())
    })?;
    node.sh("ip link delete kube-ipvs0 && sysctl -qw net.ipv4.conf.all.arp_ignore=0")?;
    Ok(())
}

fn odd_objects_disturb_nothing(w: &World) -> Result<()> {
    let target = SocketAddr::new(w.address("cluster")?.into(), 80);
    w.send_by("n1", w.address("cluster")?)?;
    let prober = Prober::start(w.lab.host("c1"), target, PATIENT)?;
    // What the API server does not let through, with a clear word.
    for (port, field) in [
        (json!({ "port": 0 }), "port"),
        (json!({ "port": 65536 }), "port"),
        (json!({ "port": 80, "protocol": "DCCP" }), "protocol"),
    ] {
        let patch = json!({ "spec": { "ports": [port] } });
        let error = w.patch("service", "odd", &patch).err();
        let error = error.with_context(|| format!("{port} was taken"))?;
        let told = format!("{error:#}");
        ensure!(told.contains(&format!("spec.ports[0].{field}")), "{told}");
    }
    // As many endpoints as a slice can have.
    w.lab.apply(&objects::thousand("odd").to_string())?;
    let odd = w.address("odd")?.to_string();
    w.lab.until("all of them are in the table", SOON, || {
        let table = w.lab.forwarding_table("n1")?.context("no table")?;
        let count = table.matches("\"10.244.20").count();
        ensure!(table.contains(&odd) && count >= 1000, "{count} of 1000");
        Ok(())
    })?;
    let status = w.lab.kubectl_json(&["get", "speakerstatus", "n1"])?;
    let forwarding = &status["status"]["forwarding"];
    ensure!(forwarding["ready"] == json!(true), "{forwarding}");
    w.lab.kubectl(&["delete", "endpointslice", "thousand"])?;
    w.see(OutsideBy("n1"), Address("odd"), WEB)?;
    let report = prober.stop()?;
    ensure!(
        report.answered == report.sent && report.sent > 0,
        "{report:?}"
    );
    Ok(())
}

fn without_kube_proxy_nobody_forwards(w: &mut World) -> Result<()> {
    w.roll_out(Forwarding::KubeProxy.values())?;
    let address = w.address("cluster")?;
    w.lab.until("it is told on every node", SOON, || {
        for node in w.lab.nodes() {
            let warnings = w.warnings(node)?;
            let told = warnings.contains_key("KubeProxyMissing");
            ensure!(told, "{node}: {warnings:?}");
            ensure!(!w.lab.forwards(node, address)?, "{node} forwards");
        }
        Ok(())
    })
}

#[test]
fn node_ports_listen_where_told_and_pass_to_a_kube_proxy_that_comes_later() {
    let mut world = World::up(KubeProxy::None, Forwarding::Nftables).unwrap();
    node_ports_listen_where_told(&mut world).unwrap();
    kube_proxy_takes_its_part_without_loss(&world).unwrap();
}

/// At the primary address, and at others only on wish.
fn node_ports_listen_where_told(w: &mut World) -> Result<()> {
    let second = Ipv4Addr::new(10, 30, 0, 11);
    let gateway = w.lab.address("n1");
    w.lab
        .host("n1")
        .sh(&format!("ip addr add {second}/32 dev eth1"))?;
    w.lab
        .host("c1")
        .sh(&format!("ip route add {second}/32 via {gateway}"))?;
    let port = w.node_port("ports", By::Tcp)?;
    let see = |w: &World, address: Ipv4Addr, expected| {
        let at = SocketAddr::new(address.into(), port);
        w.see_at(By::Tcp, OutsideBy("n1"), at, expected)
    };
    see(w, gateway, WEB)?;
    see(w, second, Expect::Refused)?;
    w.roll_out("speaker: {nodePortAddresses: [10.30.0.0/24]}")?;
    see(w, second, WEB)?;
    see(w, gateway, Expect::Refused)?;
    w.roll_out("")?;
    see(w, gateway, WEB)?;
    see(w, second, Expect::Refused)
}

fn kube_proxy_takes_its_part_without_loss(w: &World) -> Result<()> {
    healthy(w, "local", "n1", 1)?;
    let (node, port) = (w.lab.address("n1"), w.node_port("ports", By::Udp)?);
    let ours = || -> Result<bool> {
        let table = w.lab.forwarding_table("n1")?.context("no table")?;
        Ok(table.contains(&format!("\"{node}\",\"udp\",{port}")))
    };
    ensure!(ours()?, "the node port is not in the table");
    let target = SocketAddr::new(node.into(), port);
    let prober = Prober::start(w.lab.host("c1"), target, PATIENT)?;
    w.lab.start_kube_proxy(KubeProxy::Nftables)?;
    w.lab.until("the node port is left to it", SOON, || {
        ensure!(!ours()?, "still ours");
        Ok(())
    })?;
    w.see(OutsideBy("n1"), NodePort("ports", "n1"), WEB)?;
    let report = prober.stop()?;
    ensure!(report.answered == report.sent, "{report:?}");
    // It tries for its health check ports whenever something changes.
    let change = json!({ "spec": { "sessionAffinity": "None" } });
    w.patch("service", "sticky", &change)?;
    healthy(w, "local", "n1", 1)?;
    w.see(OutsideBy("n1"), Address("cluster"), WEB)
}

#[test]
fn who_forwards_can_be_changed_without_loss_and_only_uninstalling_ends_it() {
    let mut world = World::up(KubeProxy::Nftables, Forwarding::Nftables).unwrap();
    world.see(OutsideBy("n3"), Address("cluster"), WEB).unwrap();
    let address = world.address("cluster").unwrap();
    world.send_by("n3", address).unwrap();
    let client = world.lab.host("c1");
    let stream = SocketAddr::new(address.into(), 81);
    let mut flows = Connections::open(client, stream, 20).unwrap();
    for (forwarding, ours) in [(Forwarding::KubeProxy, false), (Forwarding::Nftables, true)] {
        let target = SocketAddr::new(address.into(), 80);
        let prober = Prober::start(world.lab.host("c1"), target, PATIENT).unwrap();
        world.roll_out(forwarding.values()).unwrap();
        world
            .lab
            .until("the table is there or gone", SOON, || {
                for node in world.lab.nodes() {
                    ensure!(world.lab.forwards(node, address)? == ours, "{node}");
                }
                Ok(())
            })
            .unwrap();
        let before = prober.answered();
        world
            .lab
            .until("more probes are answered", SOON, || {
                ensure!(prober.answered() >= before + 50);
                Ok(())
            })
            .unwrap();
        let report = prober.stop().unwrap();
        assert_eq!(report.answered, report.sent, "{forwarding:?}: {report:?}");
        assert_eq!(flows.alive(Duration::from_secs(5)), 20, "{forwarding:?}");
    }
    restarts_leave_the_table_and_uninstalling_takes_it(&world).unwrap();
}

fn restarts_leave_the_table_and_uninstalling_takes_it(w: &World) -> Result<()> {
    // As the chart has it, but for no node: its containers are the processes
    // that run already.
    let labels = json!({ "app": "speaker" });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "bellrock-speaker", "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "nodeSelector": { "kubernetes.io/os": "none" },
                    "containers": [{ "name": "speaker", "image": "bellrock" }],
                },
            },
        },
    });
    w.lab.apply(&set.to_string())?;
    let speaker = w.speakers.get("n3").context("no speaker on n3")?;
    let before = handles(w, "n3")?;
    ensure!(!before.is_empty(), "no table");
    // It sees the DaemonSet now.
    speaker.kill9()?;
    speaker.restart()?;
    ensure!(handles(w, "n3")? == before, "the table was made anew");
    w.see(OutsideBy("n3"), Address("cluster"), WEB)?;
    w.lab.kubectl(&[
        "delete",
        "daemonset",
        "bellrock-speaker",
        "--namespace",
        NAMESPACE,
    ])?;
    let status = speaker.terminate(Duration::from_secs(10))?;
    ensure!(status.success(), "{status}");
    let left = w.lab.forwarding_table("n3")?;
    ensure!(left.is_none(), "{left:?}");
    ensure!(w.lab.forwards("n1", w.address("cluster")?)?, "n1's too");
    Ok(())
}

/// What the kernel numbers anew when it is made anew, of the table that forwards.
/// Those of second chances end with the speaker that gave them.
fn handles(w: &World, node: &str) -> Result<Vec<String>> {
    let table = w.lab.forwarding_table(node)?.context("no table")?;
    let items: Vec<Value> = serde_json::from_str(&table)?;
    let of = |item: &Value| {
        let (kind, object) = item.as_object()?.iter().next()?;
        if object["family"] != "inet" {
            return None;
        }
        Some(format!("{kind} {} {}", object["name"], object["handle"]))
    };
    Ok(items.iter().filter_map(of).collect())
}
