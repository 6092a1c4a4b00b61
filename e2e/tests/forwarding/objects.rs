//! The pods and Services of the cases.
//!
//! ```text
//! n1: web-1, drain-1   n2: web-2, drain-2, host (on the host's network)   n3: caller, unready
//! ```

use std::net::IpAddr;

use bellrock_e2e::lab::{ECHO, service};
use serde_json::{Value, json};

pub(crate) fn list(objects: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

fn pod(name: &str, node: &str, app: &str, args: &[&str]) -> Value {
    let probe =
        |port: u16| json!({ "httpGet": { "path": "/ready", "port": port }, "periodSeconds": 1 });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": app, "pod": name } },
        "spec": {
            "nodeName": node,
            // As long as the drain time of those that drain, and longer than any test.
            "terminationGracePeriodSeconds": if app == "drain" { 300 } else { 1 },
            "containers": [{
                "name": "echo", "image": ECHO, "args": args,
                "readinessProbe": probe(8080),
            }],
        },
    })
}

pub(crate) fn pods() -> Vec<Value> {
    let mut host = pod(
        "host",
        "n2",
        "host",
        &["--http=8085", "--udp=8085", "--tcp=8086"],
    );
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] = json!(8085);
    let mut caller = pod("caller", "n3", "caller", &[]);
    let mut all = vec![
        pod("web-1", "n1", "web", &[]),
        pod("web-2", "n2", "web", &[]),
        pod("unready", "n3", "web", &["--unready"]),
        pod("drain-1", "n1", "drain", &["--drain=290"]),
        pod("drain-2", "n2", "drain", &["--drain=290"]),
    ];
    // One endpoint in each zone, for Services with hints.
    for pod in all.iter_mut().take(2).chain([&mut caller]) {
        pod["metadata"]["labels"]["zoned"] = json!("yes");
    }
    all.extend([host, caller]);
    all
}

/// A LoadBalancer Service before the pods of `app`; `spec` adds to it.
fn balanced(name: &str, app: &str, spec: &Value) -> Value {
    let mut service = service(name, app, &json!({ "type": "LoadBalancer" }));
    for (key, value) in spec.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

fn of_type(kind: &str, name: &str, spec: &Value) -> Value {
    let mut service = balanced(name, "web", spec);
    service["spec"]["type"] = json!(kind);
    service
}

/// One that shares its address, and has one port of the two protocols.
fn shared(name: &str, pod: &str, protocol: &str) -> Value {
    let port = json!([{ "port": 80, "targetPort": 8080, "protocol": protocol }]);
    let mut service = balanced(
        name,
        "web",
        &json!({ "selector": { "pod": pod }, "ports": port }),
    );
    service["metadata"]["annotations"] = json!({ "bellrock.dev/sharing-key": "shared" });
    service
}

pub(crate) fn services() -> Vec<Value> {
    let local = json!({ "externalTrafficPolicy": "Local" });
    let both_at = |target: u16| {
        json!([
            { "name": "http", "port": 80, "targetPort": target, "protocol": "TCP" },
            { "name": "udp", "port": 80, "targetPort": target, "protocol": "UDP" },
        ])
    };
    let only_web_1 = json!({ "selector": { "pod": "web-1" } });
    let only_web_1_local =
        json!({ "selector": { "pod": "web-1" }, "externalTrafficPolicy": "Local" });
    let zoned = |distribution: &str| json!({ "selector": { "zoned": "yes" }, "trafficDistribution": distribution });
    let without_selector = json!({ "selector": null });
    let last_port = json!([
        { "name": "http", "port": 65535, "targetPort": 8080, "protocol": "TCP" },
        { "name": "udp", "port": 65535, "targetPort": 8080, "protocol": "UDP" },
    ]);
    vec![
        balanced("cluster", "web", &json!({})),
        balanced("local", "web", &local),
        of_type("NodePort", "ports", &json!({})),
        of_type("NodePort", "ports-local", &local),
        balanced("self", "web", &only_web_1),
        balanced("self-local", "web", &only_web_1_local),
        balanced("nobody", "nobody", &json!({})),
        balanced("nobody-local", "nobody", &local),
        balanced("draining", "drain", &json!({})),
        balanced("draining-local", "drain", &local),
        balanced("same-zone", "web", &zoned("PreferSameZone")),
        balanced("same-node", "web", &zoned("PreferSameNode")),
        balanced("sticky", "web", &json!({ "sessionAffinity": "ClientIP" })),
        balanced(
            "open-to-c1",
            "web",
            &json!({ "loadBalancerSourceRanges": ["10.10.0.50/32"] }),
        ),
        balanced(
            "open-to-others",
            "web",
            &json!({ "loadBalancerSourceRanges": ["203.0.113.0/24"] }),
        ),
        shared("shared-tcp", "web-1", "TCP"),
        shared("shared-udp", "web-2", "UDP"),
        balanced(
            "no-node-ports",
            "web",
            &json!({ "allocateLoadBalancerNodePorts": false }),
        ),
        balanced(
            "inner-local",
            "web",
            &json!({ "internalTrafficPolicy": "Local" }),
        ),
        balanced("host", "host", &json!({ "ports": both_at(8085) })),
        balanced("by-hand", "web", &without_selector),
        balanced("mirrored", "web", &without_selector),
        balanced("odd", "web", &without_selector),
        balanced("last-port", "web", &json!({ "ports": last_port })),
        of_type("ClusterIP", "inner", &json!({})),
        of_type("ClusterIP", "headless", &json!({ "clusterIP": "None" })),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "elsewhere", "namespace": "default" },
            "spec": { "type": "ExternalName", "externalName": "www.example.com" },
        }),
    ]
}

fn slice(name: &str, service: &str, kind: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": kind,
        "endpoints": endpoints,
        "ports": [
            { "name": "http", "port": 8080, "protocol": "TCP" },
            { "name": "udp", "port": 8080, "protocol": "UDP" },
        ],
    })
}

/// Endpoints that people write: a slice, the older kind that a controller
/// mirrors into slices, and odd ones beside a good one.
pub(crate) fn slices(first: IpAddr, second: IpAddr) -> Vec<Value> {
    let (first, second) = (first.to_string(), second.to_string());
    let twice = [first.clone(), second.clone(), first.clone()];
    vec![
        slice(
            "by-hand",
            "by-hand",
            "IPv4",
            &[first.clone(), second.clone()],
        ),
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": "mirrored", "namespace": "default" },
            "subsets": [{
                "addresses": [{ "ip": first }, { "ip": second }],
                "ports": [
                    { "name": "http", "port": 8080, "protocol": "TCP" },
                    { "name": "udp", "port": 8080, "protocol": "UDP" },
                ],
            }],
        }),
        slice("odd-names", "odd", "FQDN", &["www.example.com".to_owned()]),
        slice(
            "odd-other-family",
            "odd",
            "IPv6",
            &["2001:db8::5".to_owned()],
        ),
        slice("odd-twice", "odd", "IPv4", &twice),
    ]
}

/// A slice as large as the API server lets it be, of addresses that no pod
/// has.
pub(crate) fn thousand(service: &str) -> Value {
    let addresses: Vec<String> = (0..1000)
        .map(|n| format!("10.244.{}.{}", 200 + n / 250, 1 + n % 250))
        .collect();
    slice("thousand", service, "IPv4", &addresses)
}
