//! Addresses in the lab: who may have them, what the book says of them, and that a tenant cannot
//! reach those of another. Judged by the API server.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bellrock_api::{SpeakerStatus, VirtualIP, virtual_ip_name};
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options, service};
use bellrock_e2e::suite::NAMESPACE;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn lab() -> Lab {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })
    .unwrap();
    lab.install("").unwrap();
    lab
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
    })
}

/// A LoadBalancer Service with one port, as its owner would write it.
fn wish(namespace: &str, name: &str, port: u16, annotations: &Value) -> Value {
    let spec = json!({ "type": "LoadBalancer", "ports": [{ "port": port }] });
    let mut service = service(name, "web", &spec);
    service["metadata"]["namespace"] = json!(namespace);
    service["metadata"]["annotations"] = annotations.clone();
    service
}

/// What became of a Service: its address, or the reason why it has none.
fn outcome(lab: &Lab, namespace: &str, name: &str) -> Result<String> {
    let api: Api<Service> = Api::namespaced(lab.admin(), namespace);
    let status = lab.block_on(api.get(name))?.status.unwrap_or_default();
    let ingress = status.load_balancer.and_then(|lb| lb.ingress);
    if let Some(first) = ingress.into_iter().flatten().next() {
        return first.ip.context("no address");
    }
    let conditions = status.conditions.unwrap_or_default();
    let ours = conditions
        .into_iter()
        .find(|c| c.type_ == "bellrock.dev/LoadBalancer");
    Ok(ours.context("not looked at yet")?.reason)
}

fn until_outcome(lab: &Lab, namespace: &str, name: &str, expected: &str) {
    lab.until(
        &format!("{namespace}/{name} is at {expected}"),
        SOON,
        || {
            let found = outcome(lab, namespace, name)?;
            ensure!(found == expected, "{found}");
            Ok(())
        },
    )
    .unwrap();
}

/// The claims of the VirtualIP of an address, as `namespace/name`.
fn holders(lab: &Lab, address: &str) -> Vec<String> {
    let vips: Api<VirtualIP> = Api::all(lab.admin());
    let name = virtual_ip_name(address.parse().unwrap());
    let vip = lab.block_on(vips.get(&name)).unwrap();
    let claims = vip.spec.claims.iter();
    claims
        .map(|c| format!("{}/{}", c.namespace, c.name))
        .collect()
}

const TENANT: &str = "--as=system:serviceaccount:tenant-b:tenant";

#[test]
fn a_tenant_cannot_take_the_address_of_another() {
    let lab = lab();
    let fence = json!({ "namespaces": ["tenant-a"] });
    let nobody = json!({ "namespaceSelectors": [{ "matchLabels": { "team": "none" } }] });
    let manifests = [
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "tenant-a" } }),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "tenant-b" } }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "tenant", "namespace": "tenant-b" } }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "tenant", "namespace": "tenant-b" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin" },
            "subjects": [{ "kind": "ServiceAccount", "name": "tenant", "namespace": "tenant-b" }],
        }),
        object(
            "IPAddressPool",
            "a",
            &json!({ "addresses": ["192.0.2.0/28"], "serviceAllocation": fence }),
        ),
        object(
            "IPAddressPool",
            "common",
            &json!({ "addresses": ["198.51.100.0/28"] }),
        ),
        object(
            "IPAddressPool",
            "nobody",
            &json!({ "addresses": ["203.0.113.0/28"], "serviceAllocation": nobody }),
        ),
        wish("tenant-a", "own", 80, &json!({})),
        wish(
            "tenant-a",
            "shared",
            80,
            &json!({
                "bellrock.dev/address-pool": "common", "bellrock.dev/sharing-key": "k",
            }),
        ),
    ];
    for manifest in manifests {
        lab.apply(&manifest.to_string()).unwrap();
    }
    let _controller = lab.start_controller().unwrap();
    until_outcome(&lab, "tenant-a", "own", "192.0.2.0");
    until_outcome(&lab, "tenant-a", "shared", "198.51.100.0");

    // By what a tenant may write into its own Services.
    let (ips, pool, key) = (
        "bellrock.dev/load-balancer-ips",
        "bellrock.dev/address-pool",
        "bellrock.dev/sharing-key",
    );
    for (name, annotations, expected) in [
        (
            "by-address",
            json!({ ips: "192.0.2.0" }),
            "PoolNotForService",
        ),
        ("free-one", json!({ ips: "192.0.2.5" }), "PoolNotForService"),
        ("by-pool", json!({ pool: "a" }), "PoolNotForService"),
        ("no-match", json!({ pool: "nobody" }), "PoolNotForService"),
        (
            "by-key",
            json!({ key: "k", ips: "198.51.100.0" }),
            "SharingConflict",
        ),
        ("in-use", json!({ ips: "198.51.100.0" }), "AddressInUse"),
        // The same key elsewhere is another key: an address of its own.
        ("same-key", json!({ key: "k" }), "198.51.100.1"),
    ] {
        let manifest = wish("tenant-b", name, 81, &annotations).to_string();
        lab.kubectl_with(&["create", TENANT, "-f", "-"], &manifest)
            .unwrap();
        until_outcome(&lab, "tenant-b", name, expected);
    }

    // By what it may not write, and would.
    let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.0"}]}}}"#;
    let edit = [
        "patch",
        "service",
        "same-key",
        "-n",
        "tenant-b",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    let refused = |args: &[&str], input: &str, part: &str| {
        let said = lab.kubectl_with(args, input).unwrap_err().to_string();
        assert!(said.contains(part), "{args:?}: {said}");
    };
    refused(&[&edit[..], &[TENANT]].concat(), "", "forbidden");
    let vip = |address: &str| {
        let claims = json!([{ "namespace": "tenant-b", "name": "same-key" }]);
        json!({
            "apiVersion": "bellrock.dev/v1beta1", "kind": "VirtualIP",
            "metadata": { "name": address }, "spec": { "address": address, "claims": claims },
        })
        .to_string()
    };
    refused(
        &["create", TENANT, "-f", "-"],
        &vip("192.0.2.0"),
        "forbidden",
    );
    refused(
        &["create", TENANT, "-f", "-"],
        &vip("192.0.2.6"),
        "forbidden",
    );
    let take = r#"{"spec":{"claims":[{"namespace":"tenant-b","name":"same-key"}]}}"#;
    let patch = [
        "patch",
        "virtualip",
        "192.0.2.0",
        "--type=merge",
        "-p",
        take,
    ];
    refused(&[&patch[..], &[TENANT]].concat(), "", "forbidden");
    refused(
        &["delete", "virtualip", "192.0.2.0", TENANT],
        "",
        "forbidden",
    );

    // Even with the right to: the record is the lock, and a status is no record.
    refused(&["create", "-f", "-"], &vip("192.0.2.0"), "already exists");
    lab.kubectl(&edit).unwrap();
    until_outcome(&lab, "tenant-b", "same-key", "198.51.100.1");

    assert_eq!(holders(&lab, "192.0.2.0"), ["tenant-a/own"]);
    assert_eq!(holders(&lab, "198.51.100.0"), ["tenant-a/shared"]);
    until_outcome(&lab, "tenant-a", "own", "192.0.2.0");
    until_outcome(&lab, "tenant-a", "shared", "198.51.100.0");
}

/// Writes the owner of an address with the rights of a speaker.
fn set_owner(lab: &Lab, client: &Client, address: &str, owner: &Value) -> Result<()> {
    let vips: Api<VirtualIP> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "status": { "owner": owner } }));
    lab.block_on(vips.patch_status(address, &PatchParams::default(), &patch))?;
    Ok(())
}

/// The account of the speakers, without the node that their tokens name.
fn nameless(lab: &Lab) -> Client {
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    lab.block_on(async {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        let account = format!("system:serviceaccount:{NAMESPACE}:bellrock-speaker");
        config.auth_info.impersonate = Some(account);
        Client::try_from(config).unwrap()
    })
}

#[test]
fn a_speaker_writes_no_owner_but_its_own_node() {
    let lab = lab();
    let vip = json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "VirtualIP",
        "metadata": { "name": "192.0.2.1" }, "spec": { "address": "192.0.2.1" },
    });
    lab.apply(&vip.to_string()).unwrap();
    // It is only asked for its token.
    let speaker = lab.start_speaker("n1").unwrap();
    let client = lab.client_of(&speaker).unwrap();
    speaker.kill9().unwrap();
    let write = |client: &Client, owner: &str| {
        let owner = if owner.is_empty() {
            Value::Null
        } else {
            json!(owner)
        };
        set_owner(&lab, client, "192.0.2.1", &owner).map_err(|error| error.to_string())
    };
    // A policy is in force a moment after it was created.
    lab.until("the policy is in force", SOON, || {
        match write(&client, "n2") {
            Ok(()) => bail!("n1 could write n2 as the owner"),
            Err(error) => {
                ensure!(
                    error.contains("the speaker of node n1 may write only itself as the owner"),
                    "{error}"
                );
                Ok(())
            }
        }
    })
    .unwrap();
    let admin = lab.admin();
    let denied = "may write only itself";
    // Who writes, what, over what: whether that is refused.
    for (before, owner, refused) in [
        ("", "n1", false),
        ("n1", "", false),
        ("n1", "n2", true),
        ("n2", "n1", false),
        ("n2", "", true),
        ("n2", "n3", true),
        ("n2", "n2", true),
    ] {
        write(&admin, before).unwrap();
        match (write(&client, owner), refused) {
            (Ok(()), false) => {}
            (Err(error), true) if error.contains(denied) => {}
            (said, _) => panic!("{before:?} -> {owner:?}: {said:?}"),
        }
    }
    // A token of the account that names no node may write nothing; nor is the spec a speaker's.
    let said = write(&nameless(&lab), "n1").unwrap_err();
    assert!(said.contains("names no node"), "{said}");
    let vips: Api<VirtualIP> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "spec": { "pool": "x" } }));
    let said = lab.block_on(vips.patch("192.0.2.1", &PatchParams::default(), &patch));
    let said = said.unwrap_err().to_string();
    assert!(said.contains("cannot patch resource"), "{said}");
    // Its own SpeakerStatus, and no other.
    let denied = "may write only its own status";
    let statuses: Api<SpeakerStatus> = Api::all(client);
    let all: Api<SpeakerStatus> = Api::all(admin);
    let params = PatchParams::apply("test").force();
    for (node, allowed) in [("n1", true), ("n2", false)] {
        let object = json!({
            "apiVersion": "bellrock.dev/v1beta1", "kind": "SpeakerStatus",
            "metadata": { "name": node },
        });
        let said = lab.block_on(statuses.patch(node, &params, &Patch::Apply(&object)));
        match (said, allowed) {
            (Ok(_), true) => {}
            (Err(error), false) if error.to_string().contains(denied) => {}
            (said, _) => panic!("{node}: {said:?}"),
        }
        // There it is, for what comes next.
        lab.block_on(all.patch(node, &params, &Patch::Apply(&object)))
            .unwrap();
    }
    // Whose status, of which node it says to be: whether that is refused.
    for (name, node, refused) in [
        ("n1", "n1", false),
        ("n1", "n2", true),
        ("n2", "n2", true),
        ("n2", "n1", true),
    ] {
        let patch = Patch::Merge(json!({ "status": { "node": node } }));
        let said = lab.block_on(statuses.patch_status(name, &PatchParams::default(), &patch));
        match (said, refused) {
            (Ok(_), false) => {}
            (Err(error), true) if error.to_string().contains(denied) => {}
            (said, _) => panic!("{name}, as of {node}: {said:?}"),
        }
    }
}

/// The YAML blocks of a page, each with what its comments promise: `namespace/name` and outcome.
fn examples(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```yaml") => block = Some(String::new()),
            (Some(text), "```") => {
                found.push((std::mem::take(text), Vec::new()));
                block = None;
            }
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, line) => {
                let promise = line
                    .strip_prefix("<!-- ")
                    .and_then(|l| l.strip_suffix(" -->"));
                if let Some((who, what)) = promise.and_then(|p| p.split_once(": ")) {
                    let (_, promises) = found.last_mut().unwrap();
                    promises.push((who.to_owned(), what.to_owned()));
                }
            }
        }
    }
    found
}

/// The row of an object in a table that kubectl prints, by the names of the columns.
fn row(table: &str, name: &str) -> Result<BTreeMap<String, String>> {
    let header = table.lines().next().context("no table")?;
    let line = table
        .lines()
        .skip(1)
        .find(|line| line.split_whitespace().next() == Some(name))
        .with_context(|| format!("no {name} in:\n{table}"))?;
    // A column begins after two spaces or more; its name may have one inside.
    let begins = |at: usize| !header[at..].starts_with(' ') && header[..at].ends_with("  ");
    let starts: Vec<usize> = (0..header.len())
        .filter(|&at| at == 0 || begins(at))
        .collect();
    let ends = starts[1..].iter().copied().chain([usize::MAX]);
    let cell = |text: &str, start: usize, end: usize| {
        let end = end.min(text.len());
        text.get(start..end).unwrap_or_default().trim().to_owned()
    };
    Ok(starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| (cell(header, start, end), cell(line, start, end)))
        .collect())
}

/// Waits for a row of `kubectl get`, all of it but the columns of times.
fn until_row(lab: &Lab, get: &[&str], name: &str, expected: &[(&str, &str)]) {
    lab.until(&format!("{name} is in the table"), SOON, || {
        let mut found = row(&lab.kubectl(&[&["get"], get].concat())?, name)?;
        let time = found.remove("AGE").or_else(|| found.remove("SINCE"));
        ensure!(
            time.is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit())),
            "no time"
        );
        let all: BTreeMap<String, String> = expected
            .iter()
            .chain([("NAME", name)].iter())
            .map(|(column, cell)| ((*column).to_owned(), (*cell).to_owned()))
            .collect();
        ensure!(found == all, "{found:?}");
        Ok(())
    })
    .unwrap();
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The objects of the README: any Service gets an address of its pool. They are gone afterwards.
fn the_readme_works(lab: &Lab) {
    let examples = examples(&page("README.md"));
    let [(block, _)] = examples.as_slice() else {
        panic!("{examples:?}");
    };
    lab.apply(block).unwrap();
    let manifest = wish("default", "any", 80, &json!({}));
    lab.apply(&manifest.to_string()).unwrap();
    until_outcome(lab, "default", "any", "192.0.2.10");
    lab.kubectl_with(&["delete", "-f", "-"], block).unwrap();
    lab.delete_service("any").unwrap();
    lab.until("the address is free", SOON, || {
        let vips = lab.kubectl(&["get", "virtualips", "-o", "name"])?;
        ensure!(vips.is_empty(), "{vips}");
        Ok(())
    })
    .unwrap();
}

/// What `bellrock why` says of an address that no Service has.
fn noted(lab: &Lab, address: &str, part: &str) {
    let why = lab.why(address).unwrap();
    let note = why["notes"][0].as_str().unwrap_or_default();
    assert!(
        why["services"] == json!([]) && note.starts_with(&format!("{address} {part}")),
        "{why}"
    );
}

#[test]
fn every_example_of_the_readme_and_of_the_page_on_pools_works() {
    let lab = lab();
    let _controller = lab.start_controller().unwrap();
    the_readme_works(&lab);
    let page = page("docs/pools.md");
    let examples = examples(&page);
    let promised: usize = examples.iter().map(|(_, promises)| promises.len()).sum();
    assert!(examples.len() >= 8 && promised >= 10, "{promised}");
    for (block, promises) in examples {
        lab.apply(&block).unwrap();
        for (service, expected) in promises {
            let (namespace, name) = service.split_once('/').unwrap();
            until_outcome(&lab, namespace, name, &expected);
        }
    }
    // The reasons that the page explains are those that there are.
    let reasons = bellrock_api::AllocationReason::ALL.iter();
    for reason in reasons.map(|r| r.as_str()).chain(["NotSeen"]) {
        let told = page.contains(&format!("`{reason}`"));
        assert!(told, "{reason} is not explained");
    }
    what_the_page_says_to_look_at_is_there(&lab, &page);
    // A Service that runs keeps its address over its deletion when its VirtualIP is made the
    // user's own.
    lab.kubectl(&[
        "label",
        "virtualip",
        "192.0.2.1",
        "app.kubernetes.io/managed-by-",
    ])
    .unwrap();
    lab.delete_service("web").unwrap();
    lab.until("the claim is kept ahead of the Service", SOON, || {
        let vip = lab.kubectl_json(&["get", "virtualip", "192.0.2.1"])?;
        let claims = &vip["spec"]["claims"];
        ensure!(
            *claims == json!([{ "namespace": "default", "name": "web" }]),
            "{claims}"
        );
        Ok(())
    })
    .unwrap();
    noted(&lab, "192.0.2.1", "is reserved for default/web");
}

/// The tables, the condition, the Event, and the same words by `why`.
fn what_the_page_says_to_look_at_is_there(lab: &Lab, page: &str) {
    let ranges = r#"["192.0.2.0/25","192.0.2.200-192.0.2.219","192.0.2.230","2001:db8:0:1::/64"]"#;
    // 149 IPv4 addresses without that which ends in .0, and of IPv6 more than can be counted.
    for (pool, auto, addresses, used, free, free6) in [
        ("main", "true", ranges, "4", "144", "9223372036854775807"),
        ("shop", "true", r#"["198.51.100.0/28"]"#, "1", "15", "0"),
        ("public", "false", r#"["203.0.113.0/28"]"#, "2", "14", "0"),
    ] {
        let expected = [
            ("AUTO ASSIGN", auto),
            ("ADDRESSES", addresses),
            ("USED IPV4", used),
            ("FREE IPV4", free),
            ("USED IPV6", "0"),
            ("FREE IPV6", free6),
            ("ACCEPTED", "True"),
        ];
        until_row(lab, &["ipaddresspools", "-n", NAMESPACE], pool, &expected);
    }

    // No speaker runs here: what the one of n2 would write is written for it.
    lab.apply(&object("L2Advertisement", "all", &json!({})).to_string())
        .unwrap();
    let address = "198.51.100.0";
    let vips: Api<VirtualIP> = Api::all(lab.admin());
    let desired = lab
        .until("the address has a place", SOON, || {
            let l2 = lab.block_on(vips.get(address))?.spec.l2;
            Ok(l2.context("it has none")?.node)
        })
        .unwrap();
    let status = Patch::Merge(json!({ "status": {
        "owner": "n2", "epoch": 1, "since": "2026-01-01T00:00:00Z", "cause": "first claim",
    } }));
    lab.block_on(vips.patch_status(address, &PatchParams::default(), &status))
        .unwrap();
    let expected = [
        ("ADDRESS", address),
        ("POOL", "shop"),
        ("NAMESPACE", "shop"),
        ("SERVICE", "checkout"),
        ("DESIRED", &desired),
        ("OWNER", "n2"),
    ];
    until_row(lab, &["virtualips"], address, &expected);

    let (reason, message) = (
        "PoolNotForService",
        "198.51.100.1 belongs to pool shop, which does not serve this namespace",
    );
    let path = r#"{.status.conditions[?(@.type=="bellrock.dev/LoadBalancer")]}"#;
    let told = format!("kubectl get service curious -o jsonpath='{path}'");
    assert!(page.contains(&told), "the page says otherwise");
    let said = lab
        .kubectl(&[
            "get",
            "service",
            "curious",
            "-o",
            &format!("jsonpath={path}"),
        ])
        .unwrap();
    let condition: Value = serde_json::from_str(&said).unwrap();
    let words = condition["message"].as_str().unwrap_or_default();
    assert!(
        condition["status"] == "False"
            && condition["reason"] == reason
            && words.starts_with(message),
        "{said}"
    );
    lab.until("the Event is there", SOON, || {
        let described = lab.kubectl(&["describe", "service", "curious"])?;
        let (_, events) = described.split_once("\nEvents:").context("no Events")?;
        ensure!(
            events.contains(reason) && events.contains(words),
            "{described}"
        );
        Ok(())
    })
    .unwrap();
    let why = lab.why("svc/curious").unwrap();
    let allocation = &why["services"][0]["allocation"];
    assert!(
        allocation["reason"] == reason && allocation["message"] == words,
        "{why}"
    );

    noted(lab, "192.0.2.0", "ends in .0 or .255");
    noted(lab, "192.0.2.99", "is free");
    lab.delete_service("by-address").unwrap();
    lab.until("its address rests", SOON, || {
        let vip = lab.block_on(vips.get("203.0.113.7"))?;
        ensure!(vip.spec.claims.is_empty(), "it is claimed");
        Ok(())
    })
    .unwrap();
    noted(lab, "203.0.113.7", "rests until ");
}
