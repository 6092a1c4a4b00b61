//! What must be true of traffic from outside, whoever forwards it: each case
//! once, and where kube-proxy alone does otherwise, what it does and why.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::probe::By;
use serde_json::json;

use crate::world::Expect::{Lost, Pods, Refused};
use crate::world::From::{Node, OutsideBy, Pod};
use crate::world::To::{Address, NodePort};
use crate::world::{Seen, World, health};

type Check = fn(&World) -> Result<()>;

pub(crate) struct Case {
    /// What holds.
    pub(crate) name: &'static str,
    pub(crate) ours: Check,
    /// Nothing: kube-proxy does the same.
    pub(crate) theirs: Option<Theirs>,
}

/// What kube-proxy does where it differs.
pub(crate) struct Theirs {
    pub(crate) does: &'static str,
    pub(crate) why: &'static str,
    pub(crate) check: Check,
    /// In this mode only.
    mode: Option<KubeProxy>,
}

impl Case {
    /// What must hold of kube-proxy alone in this mode.
    pub(crate) fn of_kube_proxy(&self, mode: KubeProxy) -> Check {
        let differs = |theirs: &&Theirs| theirs.mode.is_none_or(|only| only == mode);
        self.theirs
            .as_ref()
            .filter(differs)
            .map_or(self.ours, |theirs| theirs.check)
    }
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const WEB: &[&str] = &["web-1", "web-2"];

const fn same(name: &'static str, ours: Check) -> Case {
    Case {
        name,
        ours,
        theirs: None,
    }
}

const fn differs(
    name: &'static str,
    ours: Check,
    (does, why): (&'static str, &'static str),
    check: Check,
) -> Case {
    Case {
        name,
        ours,
        theirs: Some(Theirs {
            does,
            why,
            check,
            mode: None,
        }),
    }
}

const fn differs_in(
    mode: KubeProxy,
    name: &'static str,
    ours: Check,
    (does, why): (&'static str, &'static str),
    check: Check,
) -> Case {
    Case {
        name,
        ours,
        theirs: Some(Theirs {
            does,
            why,
            check,
            mode: Some(mode),
        }),
    }
}

/// All of them. The last ones change what the others look at.
pub(crate) const CASES: &[Case] = &[
    differs(
        "Policy Cluster: every node leads to every ready endpoint, and the client keeps its address where the endpoint is on that node",
        |w| cluster(w, Seen::OwnIfOnNode),
        (
            "hides the client from every endpoint",
            "it masquerades before it knows the endpoint; the reply of one on this node passes here anyway",
        ),
        |w| cluster(w, |_| Seen::Other),
    ),
    differs(
        "Policy Cluster: pods and nodes reach every ready endpoint, and a pod keeps its address",
        |w| inside(w, Seen::Own),
        (
            "hides the pod from every endpoint",
            "likewise: the replies to a pod of this node pass here anyway",
        ),
        |w| inside(w, Seen::Other),
    ),
    same(
        "Policy Local: a node leads to its own endpoints, the client keeps its address, and a node without one drops",
        local,
    ),
    same(
        "Policy Local: pods and nodes reach every endpoint, where none is beside them too",
        |w| {
            for to in [Address("local"), NodePort("local", "n3")] {
                w.see(Pod("caller"), to, Pods(WEB, Seen::Any))?;
                w.see(Node("n3"), to, Pods(WEB, Seen::Any))?;
            }
            Ok(())
        },
    ),
    same("A pod reaches itself, under both policies", |w| {
        for to in [
            Address("self"),
            Address("self-local"),
            NodePort("self", "n1"),
            NodePort("self-local", "n1"),
        ] {
            w.see(Pod("web-1"), to, Pods(&["web-1"], Seen::Other))?;
        }
        Ok(())
    }),
    same(
        "A NodePort Service is served on every node, and its policy Local is heeded",
        node_port_services,
    ),
    same(
        "Without any endpoint, policy Cluster rejects, from outside and from pods",
        |w| {
            for to in [Address("nobody"), NodePort("nobody", "n1")] {
                w.see(OutsideBy("n1"), to, Refused)?;
            }
            w.see(Pod("caller"), Address("nobody"), Refused)
        },
    ),
    differs_in(
        KubeProxy::Iptables,
        "Without any endpoint, the address rejects what a node itself sends",
        |w| w.see(Node("n2"), Address("nobody"), Refused),
        (
            "rejects it in nftables mode only; in iptables mode it is lost",
            "its iptables rules that reject for an address are at the input and forward hooks, which a node's own packets do not pass",
        ),
        |w| w.see(Node("n2"), Address("nobody"), Lost),
    ),
    same(
        "Without any endpoint at all, policy Local rejects too",
        |w| {
            for to in [Address("nobody-local"), NodePort("nobody-local", "n1")] {
                w.see(OutsideBy("n1"), to, Refused)?;
            }
            Ok(())
        },
    ),
    differs(
        "A port of an address that no Service has is rejected",
        |w| unserved(w, Refused),
        (
            "lets it pass to the default route",
            "it knows ports, not addresses; the packet goes round between node and router until its TTL ends",
        ),
        |w| unserved(w, Lost),
    ),
    differs(
        "An address answers echo requests",
        |w| echo(w, true),
        ("does not", "it translates Services' ports only"),
        |w| echo(w, false),
    ),
    differs(
        "Session affinity: a client keeps its endpoint, through every node and over protocols",
        |w| {
            let first = stuck(w, "n1", By::Tcp)?;
            for node in NODES {
                for by in [By::Tcp, By::Udp] {
                    let pod = stuck(w, node, by)?;
                    ensure!(pod == first, "{pod} by {node} and {by:?}, {first} before");
                }
            }
            Ok(())
        },
        (
            "keeps it on each node and for each port by itself, for `timeoutSeconds`",
            "it remembers on the node what it chose; we choose by a hash of the client's address, the same everywhere",
        ),
        |w| {
            for node in NODES {
                for by in [By::Tcp, By::Udp] {
                    stuck(w, node, by)?;
                }
            }
            Ok(())
        },
    ),
    same(
        "Source ranges bind on the address, for callers inside too, and not on the node port",
        |w| {
            w.see(OutsideBy("n1"), Address("open-to-c1"), Pods(WEB, Seen::Any))?;
            w.see(OutsideBy("n1"), Address("open-to-others"), Lost)?;
            w.see(Pod("caller"), Address("open-to-others"), Lost)?;
            w.see(
                OutsideBy("n1"),
                NodePort("open-to-others", "n1"),
                Pods(WEB, Seen::Any),
            )
        },
    ),
    same(
        "TCP and UDP on one port of a shared address lead to Services of their own",
        |w| {
            let (tcp, udp) = (w.address("shared-tcp")?, w.address("shared-udp")?);
            ensure!(tcp == udp, "{tcp} and {udp}");
            let seen = Seen::Any;
            for from in [OutsideBy("n3"), Pod("caller"), Node("n3")] {
                w.see_by(By::Tcp, from, Address("shared-tcp"), Pods(&["web-1"], seen))?;
                w.see_by(By::Udp, from, Address("shared-udp"), Pods(&["web-2"], seen))?;
            }
            Ok(())
        },
    ),
    same("Without node ports the address is served", |w| {
        let ports = &w.service("no-node-ports")?["spec"]["ports"];
        ensure!(ports[0]["nodePort"].is_null(), "{ports}");
        w.see(
            OutsideBy("n3"),
            Address("no-node-ports"),
            Pods(WEB, Seen::Any),
        )
    }),
    same(
        "internalTrafficPolicy says nothing about the address",
        |w| {
            for from in [OutsideBy("n3"), Pod("caller"), Node("n3")] {
                w.see(from, Address("inner-local"), Pods(WEB, Seen::Any))?;
            }
            Ok(())
        },
    ),
    same(
        "Endpoints on the host's network are reached, from their own node too",
        |w| {
            for from in [OutsideBy("n1"), OutsideBy("n2"), Pod("caller"), Node("n2")] {
                w.see(from, Address("host"), Pods(&["host"], Seen::Any))?;
            }
            w.see(
                OutsideBy("n3"),
                NodePort("host", "n3"),
                Pods(&["host"], Seen::Any),
            )
        },
    ),
    same(
        "Slices made by hand and mirrored Endpoints count, also without a node's name",
        |w| {
            for service in ["by-hand", "mirrored"] {
                w.see(OutsideBy("n3"), Address(service), Pods(WEB, Seen::Any))?;
            }
            Ok(())
        },
    ),
    same(
        "Of slices with names, of another family and with duplicates, what can be used is used",
        |w| w.see(OutsideBy("n1"), Address("odd"), Pods(WEB, Seen::Any)),
    ),
    same("The last port number is one as any other", |w| {
        w.see(OutsideBy("n1"), Address("last-port"), Pods(WEB, Seen::Any))
    }),
    same("Hints: a node sends to its own zone or itself", |w| {
        for (service, from, pod) in [
            ("same-zone", "n1", &["web-1"]),
            ("same-zone", "n2", &["web-2"]),
            ("same-zone", "n3", &["caller"]),
            ("same-node", "n1", &["web-1"]),
            ("same-node", "n3", &["caller"]),
        ] {
            w.see(OutsideBy(from), Address(service), Pods(pod, Seen::Any))?;
        }
        w.see(
            Node("n2"),
            Address("same-zone"),
            Pods(&["web-2"], Seen::Any),
        )
    }),
    same(
        "Headless, ExternalName and ClusterIP Services get no address",
        untouched,
    ),
    same(
        "The health check port counts the node's ready endpoints",
        |w| {
            for (node, expected) in [("n1", 1), ("n2", 1), ("n3", 0)] {
                healthy(w, "local", node, expected)?;
            }
            Ok(())
        },
    ),
    same(
        "Ready endpoints come before terminating ones, which serve where no other is left; health checks fail then",
        terminating,
    ),
];

fn cluster(w: &World, seen: fn(&'static str) -> Seen) -> Result<()> {
    for node in NODES {
        for to in [Address("cluster"), NodePort("cluster", node)] {
            w.see(OutsideBy(node), to, Pods(WEB, seen(node)))?;
        }
    }
    Ok(())
}

fn inside(w: &World, seen: Seen) -> Result<()> {
    for to in [Address("cluster"), NodePort("cluster", "n3")] {
        w.see(Pod("caller"), to, Pods(WEB, seen))?;
        w.see(Node("n3"), to, Pods(WEB, Seen::Any))?;
    }
    Ok(())
}

fn local(w: &World) -> Result<()> {
    for (node, pod) in [("n1", &["web-1"]), ("n2", &["web-2"])] {
        for to in [Address("local"), NodePort("local", node)] {
            w.see(OutsideBy(node), to, Pods(pod, Seen::Own))?;
        }
    }
    for to in [Address("local"), NodePort("local", "n3")] {
        w.see(OutsideBy("n3"), to, Lost)?;
    }
    Ok(())
}

fn node_port_services(w: &World) -> Result<()> {
    for node in NODES {
        let any = Pods(WEB, Seen::Any);
        w.see(OutsideBy(node), NodePort("ports", node), any)?;
    }
    w.see(Pod("caller"), NodePort("ports", "n3"), Pods(WEB, Seen::Any))?;
    let own = Pods(&["web-1"], Seen::Own);
    w.see(OutsideBy("n1"), NodePort("ports-local", "n1"), own)?;
    w.see(OutsideBy("n3"), NodePort("ports-local", "n3"), Lost)?;
    w.see(
        Node("n3"),
        NodePort("ports-local", "n3"),
        Pods(WEB, Seen::Any),
    )
}

fn unserved(w: &World, expected: crate::world::Expect) -> Result<()> {
    let at = SocketAddr::new(w.address("cluster")?.into(), 4711);
    crate::world::BOTH
        .into_iter()
        .try_for_each(|by| w.see_at(by, OutsideBy("n1"), at, expected))
}

fn echo(w: &World, answered: bool) -> Result<()> {
    let address = w.address("cluster")?;
    w.send_by("n1", address)?;
    let said = w
        .lab
        .host("c1")
        .sh(&format!("ping -c 1 -W 1 {address} || true"))?;
    ensure!(said.contains("1 received") == answered, "{said}");
    Ok(())
}

/// The pod that 10 questions in a row lead to.
fn stuck(w: &World, node: &'static str, by: By) -> Result<String> {
    let socket = SocketAddr::new(w.address("sticky")?.into(), 80);
    w.lab.until("affinity holds", crate::world::SOON, || {
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..10 {
            match w.ask(OutsideBy(node), by, socket)? {
                bellrock_e2e::probe::Outcome::Answered(answer) => pods.insert(answer.pod),
                other => anyhow::bail!("{other:?}"),
            };
        }
        ensure!(pods.len() == 1, "{pods:?} by {node}");
        pods.pop_first().context("nobody")
    })
}

fn untouched(w: &World) -> Result<()> {
    for name in ["inner", "headless", "elsewhere"] {
        let status = &w.service(name)?["status"];
        ensure!(status["conditions"].is_null(), "{name}: {status}");
        ensure!(status["loadBalancer"] == json!({}), "{name}: {status}");
    }
    let inner = w.service("inner")?["spec"]["clusterIP"].as_str();
    let inner = inner.context("inner has no address")?.parse()?;
    for node in NODES {
        ensure!(!w.lab.forwards(node, inner)?, "{node} forwards {inner}");
    }
    Ok(())
}

pub(crate) fn healthy(w: &World, service: &str, node: &str, expected: u64) -> Result<()> {
    w.lab
        .until("the health check says so", crate::world::SOON, || {
            let (status, head, body) = health(w, service, node)?;
            let wanted = if expected > 0 { 200 } else { 503 };
            ensure!(status == wanted, "{node}: {status} {body}");
            ensure!(body["localEndpoints"] == json!(expected), "{node}: {body}");
            ensure!(body["serviceProxyHealthy"] == json!(true), "{node}: {body}");
            ensure!(
                body["service"] == json!({ "namespace": "default", "name": service }),
                "{body}"
            );
            let weight = format!("x-load-balancing-endpoint-weight: {expected}");
            ensure!(head.contains(&weight), "{node}: {head}");
            ensure!(head.contains("content-type: application/json"), "{head}");
            Ok(())
        })
}

/// drain-1 goes first, then drain-2; both serve on for minutes.
fn terminating(w: &World) -> Result<()> {
    let delete = |pod: &str| w.lab.kubectl(&["delete", "pod", pod, "--wait=false"]);
    delete("drain-1")?;
    w.see(
        OutsideBy("n1"),
        Address("draining"),
        Pods(&["drain-2"], Seen::Any),
    )?;
    // The only one beside the client's node is one that terminates.
    w.see(
        OutsideBy("n1"),
        Address("draining-local"),
        Pods(&["drain-1"], Seen::Own),
    )?;
    healthy(w, "draining-local", "n1", 0)?;
    healthy(w, "draining-local", "n2", 1)?;
    delete("drain-2")?;
    let both = &["drain-1", "drain-2"];
    for node in NODES {
        w.see(OutsideBy(node), Address("draining"), Pods(both, Seen::Any))?;
    }
    w.see(
        OutsideBy("n1"),
        NodePort("draining-local", "n1"),
        Pods(&["drain-1"], Seen::Own),
    )?;
    healthy(w, "draining-local", "n2", 0)
}
