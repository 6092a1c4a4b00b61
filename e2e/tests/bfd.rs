//! BFD in the lab: a profile and a peer at the API server, FRR at the other
//! end, and a node that falls silent.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::suite::{NAMESPACE, configuration};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// What a node's SpeakerStatus says of its session.
fn session(lab: &Lab, node: &str) -> Result<Value> {
    let status = lab.kubectl_json(&["get", "speakerstatus", node])?;
    Ok(status["status"]["sessions"][0].clone())
}

/// How many BFD sessions FRR has up.
fn up_at_the_router(lab: &Lab) -> Result<usize> {
    let peers = lab.frr("r1").json("show bfd peers json")?;
    let peers = peers.as_array().context("a list")?.clone();
    Ok(peers.iter().filter(|peer| peer["status"] == "up").count())
}

#[test]
fn a_profile_is_obeyed_and_shown_and_a_silent_node_is_left_long_before_the_hold_time() {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })
    .unwrap();
    lab.install("").unwrap();
    lab.apply(&configuration()).unwrap();
    let _bellrock = lab.start_bellrock().unwrap();
    lab.deploy("web", 2, &[]).unwrap();
    let manifest = service("web", "web", &json!({ "type": "LoadBalancer" }));
    let (address, _) = lab.create_service(&manifest).unwrap();
    lab.until_routed("r1", address, &lab.nodes()).unwrap();

    // Named before it is there: the session is held, and says what is missing.
    let frr = "router bgp 64500\n neighbor NODES bfd\n neighbor NODES bfd profile lab\nexit\n";
    lab.frr("r1").apply(frr).unwrap();
    let patch = json!({ "spec": { "bfdProfile": "lab", "holdTime": "90s" } }).to_string();
    let peer = [
        "patch",
        "bgppeer",
        "r1",
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
    ];
    lab.kubectl(&[&peer[..], &[patch.as_str()]].concat())
        .unwrap();
    lab.until("the missing profile is told", SOON, || {
        let (_, out, err) = lab.bellrock(&["status"])?;
        ensure!(out.contains("BFDProfile lab does not exist"), "{out}{err}");
        Ok(())
    })
    .unwrap();
    lab.until_routed("r1", address, &lab.nodes()).unwrap();

    let profile = json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "BFDProfile",
        "metadata": { "name": "lab", "namespace": NAMESPACE },
        "spec": { "receiveInterval": 100, "transmitInterval": 100, "detectMultiplier": 10 },
    });
    lab.apply(&profile.to_string()).unwrap();
    lab.until("BFD is up at both ends", SOON, || {
        for node in lab.nodes() {
            let session = session(&lab, node)?;
            ensure!(
                session["bfd"]["state"] == "Up" && session["bfd"]["detectionTime"] == 1000,
                "{node}: {session}"
            );
        }
        let up = up_at_the_router(&lab)?;
        ensure!(
            up == lab.nodes().len(),
            "{up} sessions are up at the router"
        );
        Ok(())
    })
    .unwrap();
    let (_, out, _) = lab.bellrock(&["status"]).unwrap();
    assert!(out.contains("Up: notices within 1000 ms"), "{out}");

    // Nobody is told that n3 is silent.
    let silent = Instant::now();
    lab.cut("n3").unwrap();
    let others: Vec<&str> = lab
        .nodes()
        .into_iter()
        .filter(|node| *node != "n3")
        .collect();
    lab.until_routed("r1", address, &others).unwrap();
    assert!(
        silent.elapsed() < Duration::from_secs(30),
        "the hold time is 90 s"
    );
    lab.heal("n3").unwrap();
    lab.until_routed("r1", address, &lab.nodes()).unwrap();
    lab.until("BFD watches n3 again", SOON, || {
        let session = session(&lab, "n3")?;
        let bfd = &session["bfd"];
        ensure!(bfd["state"] == "Up", "{session}");
        Ok(())
    })
    .unwrap();
}
