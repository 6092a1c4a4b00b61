//! What is off by default: the webhook, which the API server asks in a pod of
//! the controller, and the finalizer on Services. Switched on by an upgrade of
//! the release; the story's uninstallation finds both, and takes them away.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::rights;
use super::story::{NAMESPACE, SERVICE, SOON, controllers_settled};
use super::world::{World, took};
use crate::demo::screen::Screen;

/// The finalizer of `controller.cleanupFinalizer`.
const FINALIZER: &str = "bellrock.dev/load-balancer-cleanup";

pub(super) fn tell(world: &World, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("helm upgrade: webhook.enabled and controller.cleanupFinalizer");
    let start = Instant::now();
    let upgrade = format!(
        "helm upgrade bellrock charts/bellrock --namespace {NAMESPACE} --values values.yaml \
         --set webhook.enabled=true --set controller.cleanupFinalizer=true --wait"
    );
    world.script(&upgrade, &world.folder().join("reader"))?;
    screen.check("the controllers are replaced, none has restarted", || {
        let pods = world.until("all pods are ready", SOON, || controllers_settled(world))?;
        Ok(((), format!("{pods} {}", took(start))))
    })?;
    // Asked without being done: what gets through disturbs nothing.
    let other = json!({
        "apiVersion": "bellrock.dev/v1beta1",
        "kind": "IPAddressPool",
        "metadata": { "name": "other", "namespace": NAMESPACE },
        "spec": { "addresses": [address] },
    });
    screen.check("the API server refuses a pool that overlaps", || {
        let said = world.until("the webhook is asked", SOON, || {
            let create = ["create", "--dry-run=server", "-f", "-"];
            refused(
                world.kubectl_with(&create, &other.to_string()),
                "of pool main",
            )
        })?;
        Ok(((), said))
    })?;
    let without = json!({ "spec": { "addresses": ["192.0.2.200-192.0.2.210"] } });
    screen.check(
        "and an edit that would leave the Service without a pool",
        || {
            let patch = [
                "patch",
                "ipaddresspool",
                "main",
                "--namespace",
                NAMESPACE,
                "--dry-run=server",
                "--type=merge",
                "--patch",
                &without.to_string(),
            ];
            let held = format!("{address} (default/{SERVICE})");
            Ok(((), refused(world.kubectl(&patch), &held)?))
        },
    )?;
    screen.check("the Service is held until its address is released", || {
        world.until("it has the finalizer", SOON, || {
            let service = world.kubectl_json(&["get", "service", SERVICE])?;
            let all = service["metadata"]["finalizers"].to_string();
            ensure!(all.contains(FINALIZER), "it has {all}");
            Ok(((), FINALIZER.to_owned()))
        })
    })?;
    let options = "controller account, both options";
    screen.check("kubectl auth can-i --list: the rows that they add", || {
        let rows = rights::check_account(world, "controller", Some(options))?;
        Ok(((), rows))
    })
}

/// The webhook's words, which have this part.
fn refused(answer: Result<String>, part: &str) -> Result<String> {
    let Err(error) = answer else {
        anyhow::bail!("the API server takes it");
    };
    let said = format!("{error:#}");
    ensure!(said.contains(part), "{said}");
    let words = said.split("denied the request: ").last().unwrap_or(&said);
    Ok(words.trim().to_owned())
}
