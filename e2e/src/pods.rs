//! Pods of the lab: Deployments of the echo server, Services before them.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{Lab, PATIENCE};

/// The image whose containers are the lab's echo server, with the container's
/// arguments. Containers of other images run it without.
pub const ECHO: &str = "bellrock-lab/echo";

/// Where a pod is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodPlace {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
}

/// A Deployment of echo pods labelled `app=NAME`, with the ports that the echo
/// server has by default.
pub fn deployment(name: &str, replicas: u32, args: &[&str]) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app": name}},
                    }],
                    "containers": [{
                        "name": "echo",
                        "image": ECHO,
                        "args": args,
                        "ports": [
                            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                            {"name": "udp", "containerPort": 8080, "protocol": "UDP"},
                            {"name": "stream", "containerPort": 8081, "protocol": "TCP"},
                        ],
                    }],
                },
            },
        },
    })
}

/// A Service for such pods: HTTP on 80, UDP on 80, the stream port on 81.
/// `spec` adds to its spec, or replaces parts of it.
pub fn service(name: &str, app: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"app": app},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
                {"name": "stream", "port": 81, "targetPort": 8081, "protocol": "TCP"},
            ],
        },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

impl Lab {
    /// Runs a Deployment of echo pods labelled `app=NAME` and waits until all
    /// are available. `args` are the echo server's, such as `--drain=3`.
    pub fn deploy(&self, name: &str, replicas: u32, args: &[&str]) -> Result<()> {
        self.apply(&deployment(name, replicas, args).to_string())?;
        self.until("the pods are ready", PATIENCE, || {
            let object = self.kubectl_json(&["get", "deployment", name])?;
            let status = &object["status"];
            let count = |field: &str| status[field].as_u64().unwrap_or(0);
            ensure!(
                status["observedGeneration"] == object["metadata"]["generation"]
                    && count("availableReplicas") == u64::from(replicas)
                    && count("updatedReplicas") == u64::from(replicas)
                    && count("replicas") == u64::from(replicas),
                "{name}: {status}"
            );
            Ok(())
        })
    }

    /// The running pods with a label `app=NAME`: name, node, address.
    pub fn pods(&self, app: &str) -> Result<Vec<PodPlace>> {
        let selector = format!("app={app}");
        let list = self.kubectl_json(&["get", "pods", "-l", &selector])?;
        list["items"]
            .as_array()
            .context("no items")?
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                Ok(PodPlace {
                    name: text(&pod["metadata"]["name"]),
                    node: text(&pod["spec"]["nodeName"]),
                    address: text(&pod["status"]["podIP"]).parse()?,
                })
            })
            .collect()
    }
}
