//! The webhook in the lab: what the real API server refuses because the controller says so, and
//! that nothing waits for a controller that is not there.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bellrock_e2e::cluster::{KubeProxy, POD_CIDR, SERVICE_CIDR};
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::suite::NAMESPACE;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const WEBHOOK: &str = "bellrock-webhook";

fn pool(name: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "IPAddressPool",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "addresses": addresses, "reuseDelay": "0s" },
    })
}

/// Where the controller listens: its process is no pod that Kubernetes could find.
fn point_at(lab: &Lab, port: u16) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": WEBHOOK, "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": WEBHOOK },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [lab.address("cp")], "conditions": { "ready": true } }],
        "ports": [{ "name": "webhook", "port": port, "protocol": "TCP" }],
    });
    lab.apply(&slice.to_string()).unwrap();
}

/// Fails unless the API server refuses the pool, naming `part`.
fn refused(lab: &Lab, pool: &Value, part: &str) -> Result<()> {
    let args = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        "-",
    ];
    let said = match lab.kubectl_with(&args, &pool.to_string()) {
        Ok(said) => said,
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        said.contains("denied the request") && said.contains(part),
        "{said}"
    );
    Ok(())
}

fn certificate(lab: &Lab) -> Result<String> {
    let secret = lab.kubectl_json(&["get", "secret", WEBHOOK, "-n", NAMESPACE])?;
    let text = secret["data"]["tls.crt"].as_str();
    text.map(str::to_owned).context("the Secret is empty")
}

#[test]
fn the_api_server_refuses_what_only_other_objects_tell() {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })
    .unwrap();
    lab.install("webhook: {enabled: true}").unwrap();
    point_at(&lab, 9616);
    // Nobody is there to ask yet, and nobody waits.
    lab.apply(&pool("main", &["192.0.2.0/28"]).to_string())
        .unwrap();
    let first = lab.start_controller().unwrap();

    let inside = pool("other", &["192.0.2.8-192.0.2.40"]);
    lab.until("the webhook is asked", SOON, || {
        refused(&lab, &inside, "of pool main")
    })
    .unwrap();
    let node = lab.address("n1").to_string();
    for (addresses, part) in [
        (node.as_str(), "which is an address of node n1"),
        (POD_CIDR, "the pods of node n1"),
        (SERVICE_CIDR, "the cluster's own ServiceCIDR"),
        ("2001:db8::9-2001:db8::1", "ends before it starts"),
    ] {
        refused(&lab, &pool("other", &[addresses]), part).unwrap();
    }
    lab.apply(&pool("other", &["198.51.100.0/24"]).to_string())
        .unwrap();

    // What is in use stays in its pool.
    lab.create_service(&service("web", "web", &json!({ "type": "LoadBalancer" })))
        .unwrap();
    lab.until("the record is known to the webhook", SOON, || {
        refused(
            &lab,
            &pool("main", &["192.0.2.1-192.0.2.15"]),
            "192.0.2.0 (default/web)",
        )
    })
    .unwrap();
    lab.apply(&pool("main", &["192.0.2.0/29"]).to_string())
        .unwrap();
    let delete = ["delete", "ipaddresspool", "main", "-n", NAMESPACE];
    let error = lab.kubectl(&delete).unwrap_err().to_string();
    assert!(error.contains("192.0.2.0 (default/web)"), "{error}");
    lab.delete_service("web").unwrap();
    lab.until("the pool may go", SOON, || lab.kubectl(&delete))
        .unwrap();

    // References are warned of: the pool may come later.
    let advertisement = json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "L2Advertisement",
        "metadata": { "name": "main", "namespace": NAMESPACE },
        "spec": { "ipAddressPools": ["mian"] },
    })
    .to_string();
    let strict = ["apply", "--warnings-as-errors", "-f", "-"];
    let error = lab.kubectl_with(&strict, &advertisement).unwrap_err();
    assert!(
        format!("{error:#}").contains("IPAddressPool mian"),
        "{error:#}"
    );
    lab.kubectl(&["get", "l2advertisement", "main", "-n", NAMESPACE])
        .unwrap();

    // Only our own kinds pass here.
    let hooks = lab
        .kubectl_json(&["get", "validatingwebhookconfiguration", WEBHOOK])
        .unwrap();
    for rule in hooks["webhooks"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["apiGroups"], json!(["bellrock.dev"]));
    }

    // A certificate that is about to end is replaced, and nobody is left unbelieved.
    let old = certificate(&lab).unwrap();
    let soon = k8s_openapi::ByteString(b"2001-01-01T00:00:00Z".to_vec());
    let patch = json!({ "data": { "ends": soon } }).to_string();
    lab.kubectl(&[
        "patch",
        "secret",
        WEBHOOK,
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        &patch,
    ])
    .unwrap();
    first.restart().unwrap();
    lab.until("the certificate is a new one", SOON, || {
        ensure!(certificate(&lab)? != old);
        Ok(())
    })
    .unwrap();
    let inside = pool("third", &["198.51.100.7"]);
    lab.until("the new one is believed", SOON, || {
        refused(&lab, &inside, "of pool other")
    })
    .unwrap();

    // Every replica answers, with the same certificate, leader or not.
    let second = lab.start_second_controller().unwrap();
    point_at(&lab, 9615);
    first.terminate(Duration::from_secs(10)).unwrap();
    lab.until("the other one answers", SOON, || {
        refused(&lab, &inside, "of pool other")
    })
    .unwrap();
    second.kill9().unwrap();
    lab.until("nobody is asked and nobody waits", SOON, || {
        lab.apply(&inside.to_string())
    })
    .unwrap();
}
