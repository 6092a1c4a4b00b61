//! The cleanup finalizer in the lab, with the rights that the chart gives: it holds a Service until
//! its address is released, and nothing is held when Bellrock is gone.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::time::Duration;

use anyhow::{Result, ensure};
use bellrock_api::annotations::FINALIZER_CLEANUP;
use bellrock_e2e::bellrock::Workload;
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, program, service};
use bellrock_e2e::suite::{NAMESPACE, configuration};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

fn get(lab: &Lab, kind: &str, name: &str) -> Result<Value> {
    lab.kubectl_json(&["get", kind, name])
}

fn is_held(service: &Value) -> bool {
    let finalizers = service["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|all| all.iter().any(|name| name == FINALIZER_CLEANUP))
}

fn until_gone(lab: &Lab, kind: &str, name: &str) {
    lab.until(&format!("{name} is gone"), SOON, || {
        ensure!(get(lab, kind, name).is_err());
        Ok(())
    })
    .unwrap();
}

fn with_finalizers() -> (Lab, Workload) {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })
    .unwrap();
    lab.install("controller: {cleanupFinalizer: true}").unwrap();
    lab.apply(&configuration()).unwrap();
    let controller = lab.start_controller().unwrap();
    (lab, controller)
}

/// `false` takes the right to write finalizers away: `strip` comes before.
#[test]
fn the_cleanup_finalizer_is_stripped_before_it_is_switched_off() {
    let (lab, controller) = with_finalizers();
    let web = service("web", "web", &json!({ "type": "LoadBalancer" }));
    lab.create_service(&web).unwrap();
    assert!(is_held(&get(&lab, "service", "web").unwrap()));
    controller.terminate(Duration::from_secs(10)).unwrap();
    lab.install("controller: {cleanupFinalizer: strip}")
        .unwrap();
    let controller = lab.start_controller().unwrap();
    lab.until("the finalizer is off", SOON, || {
        ensure!(!is_held(&get(&lab, "service", "web").unwrap()));
        Ok(())
    })
    .unwrap();
    lab.address_of_service("web").unwrap();
    controller.terminate(Duration::from_secs(10)).unwrap();
    lab.install("controller: {cleanupFinalizer: false}")
        .unwrap();
    let _controller = lab.start_controller().unwrap();
    lab.kubectl(&["delete", "service", "web"]).unwrap();
    until_gone(&lab, "service", "web");
}

#[test]
fn the_cleanup_finalizer_is_an_option_and_gone_before_an_uninstallation() {
    let (lab, controller) = with_finalizers();
    let wish = |name: &str| service(name, "web", &json!({ "type": "LoadBalancer" }));
    for name in ["one", "two", "three"] {
        lab.create_service(&wish(name)).unwrap();
        assert!(is_held(&get(&lab, "service", name).unwrap()), "{name}");
    }

    // While nobody is there to release its address, a deleted Service stays.
    let address = lab.address_of_service("one").unwrap().to_string();
    controller.kill9().unwrap();
    lab.kubectl(&["delete", "service", "one", "--wait=false"])
        .unwrap();
    let leaving = get(&lab, "service", "one").unwrap();
    assert!(leaving["metadata"]["deletionTimestamp"].is_string());
    controller.restart().unwrap();
    until_gone(&lab, "service", "one");
    let record = get(&lab, "virtualip", &address);
    let claims = record
        .map(|vip| vip["spec"]["claims"].clone())
        .unwrap_or_default();
    assert!(claims.as_array().is_none_or(Vec::is_empty), "{claims}");

    // As the chart's Job does it before an uninstallation, while the controller still runs.
    let output = lab
        .host("cp")
        .command(
            program("bellrock", "BELLROCK_BIN")
                .unwrap()
                .to_str()
                .unwrap(),
        )
        .args(["controller", "--namespace", NAMESPACE, "--strip-finalizers"])
        .env("KUBECONFIG", controller.kubeconfig())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for name in ["two", "three"] {
        assert!(!is_held(&get(&lab, "service", name).unwrap()), "{name}");
        lab.address_of_service(name).unwrap();
    }
    // Nobody puts it on again: a change makes a controller that leads look.
    lab.kubectl(&["label", "service", "two", "seen=true"])
        .unwrap();
    lab.kubectl(&["create", "service", "loadbalancer", "late", "--tcp=80"])
        .unwrap();
    lab.until("the controller knows that it leads no more", SOON, || {
        ensure!(controller.log_tail(100).contains("leads no more"));
        Ok(())
    })
    .unwrap();
    controller.terminate(Duration::from_secs(10)).unwrap();
    for name in ["two", "three", "late"] {
        assert!(!is_held(&get(&lab, "service", name).unwrap()), "{name}");
        lab.kubectl(&["delete", "service", name]).unwrap();
        until_gone(&lab, "service", name);
    }
}
