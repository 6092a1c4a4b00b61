//! MetalLB in the lab, as its documentation recommends it, with all rights: to
//! measure beside ours.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::parts::{self, Part};
use crate::process::{Process, Task};

const NAMESPACE: &str = "metallb-system";
/// Of the gossip between speakers; any text.
const GOSSIP_KEY: &str = "c2VjcmV0IG9mIGEgbGFiLCBrbm93biB0byBhbGw=";

/// Its kinds, a pool, and an L2Advertisement with a spec.
pub fn install(lab: &Lab, addresses: &[&str], advertisement: &Value) -> Result<()> {
    parts::ensure(&[Part::Metallb, Part::MetallbSpeaker], &|line| {
        eprintln!("{line}");
    })?;
    let source = parts::source(Part::Metallb, "go.universe.tf/metallb")?;
    let crds = source.join("config/crd/bases").display().to_string();
    lab.kubectl(&["apply", "--server-side", "-f", &crds])?;
    lab.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ])?;
    lab.kubectl(&["create", "namespace", NAMESPACE])?;
    // The controller looks for the Deployment that it runs as.
    let labels = json!({ "app": "metallb" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "controller", "namespace": NAMESPACE },
        "spec": {
            "replicas": 0, "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "controller", "image": "none" }] },
            },
        },
    });
    lab.apply(&deployment.to_string())?;
    let object = |kind: &str, spec: &Value| {
        json!({
            "apiVersion": "metallb.io/v1beta1", "kind": kind,
            "metadata": { "name": "main", "namespace": NAMESPACE }, "spec": spec,
        })
        .to_string()
    };
    lab.apply(&object("IPAddressPool", &json!({ "addresses": addresses })))?;
    lab.apply(&object("L2Advertisement", advertisement))?;
    Ok(())
}

/// Its controller.
pub fn controller(lab: &Lab) -> Result<Arc<Process>> {
    let env = [
        ("METALLB_NAMESPACE", NAMESPACE.to_owned()),
        ("METALLB_DEPLOYMENT", "controller".to_owned()),
        ("METALLB_ML_SECRET_NAME", "memberlist".to_owned()),
    ];
    let args = [
        "--port=7472",
        "--log-level=info",
        "--webhook-mode=disabled",
        "--disable-cert-rotation=true",
    ];
    start(lab, "cp", "metallb-controller", Part::Metallb, &args, &env)
}

/// Its speakers on some nodes. They find each other by the Pods that they run
/// as.
pub fn speakers(lab: &Lab, nodes: &[&str]) -> Result<Vec<Arc<Process>>> {
    let folder = lab.dir().join("metallb");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("secretkey"), GOSSIP_KEY)?;
    for node in nodes {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("speaker-{node}"), "namespace": NAMESPACE,
                "labels": { "app": "metallb", "component": "speaker" },
            },
            "spec": {
                "nodeName": node, "hostNetwork": true,
                "containers": [{ "name": "speaker", "image": "none" }],
            },
        });
        lab.apply(&pod.to_string())?;
    }
    lab.kubectl(&[
        "wait",
        "--namespace",
        NAMESPACE,
        "--for=condition=Ready",
        "--timeout=60s",
        "pod",
        "--all",
    ])?;
    let one = |node: &&str| {
        let address = lab.address(node).to_string();
        let env = [
            ("METALLB_NODE_NAME", (*node).to_owned()),
            ("METALLB_POD_NAME", format!("speaker-{node}")),
            ("METALLB_NAMESPACE", NAMESPACE.to_owned()),
            ("METALLB_HOST", address.clone()),
            ("METALLB_ML_BIND_ADDR", address),
            (
                "METALLB_ML_LABELS",
                "app=metallb,component=speaker".to_owned(),
            ),
            ("METALLB_ML_SECRET_KEY_PATH", folder.display().to_string()),
            ("METALLB_BGP_TYPE", "native".to_owned()),
        ];
        let args = ["--port=7472", "--log-level=info"];
        let name = format!("metallb-speaker-{node}");
        start(lab, node, &name, Part::MetallbSpeaker, &args, &env)
            .with_context(|| format!("MetalLB's speaker on {node}"))
    };
    nodes.iter().map(one).collect()
}

fn start(
    lab: &Lab,
    host: &str,
    name: &str,
    part: Part,
    args: &[&str],
    env: &[(&str, String)],
) -> Result<Arc<Process>> {
    let kubeconfig = lab.cluster.identity("admin").display().to_string();
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .chain([("KUBECONFIG".to_owned(), kubeconfig)])
        .collect();
    lab.start_process(
        host,
        Task {
            name: name.to_owned(),
            program: parts::path(part)?,
            args: args.iter().map(Into::into).collect(),
            env,
            ..Task::default()
        },
    )
}
