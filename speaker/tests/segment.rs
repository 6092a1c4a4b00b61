//! An IPv6 address on the segment: from API objects to a pod's answer, and
//! over to the next node when the owner's cable is pulled.
//!
//! ```text
//!   client ──── switch ──┬── n1
//!                        └── n2 ── pod
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use bellrock_arp::{Config, EventReceiver, Handle, State};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};
use bellrock_e2e::probe::{Pace, Prober};
use bellrock_speaker::apply::forward::Forwarding;
use bellrock_speaker::apply::l2::L2;
use bellrock_speaker::cluster::Change;
use bellrock_speaker::convert;
use bellrock_speaker::plan::{Forwarding as Mode, Settings};
use bellrock_speaker::turn::{Step, Turn};
use bellrock_speaker::watch::Parsed;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;

const LONG: Duration = Duration::from_secs(30);
const VIP: &str = "2001:db8::c0:200";
const POD: &str = "fd00:244:0:2::2";

fn parsed<K: DeserializeOwned>(object: Value, parse: fn(&K) -> Parsed) -> Change {
    match parse(&serde_json::from_value(object).unwrap()) {
        Parsed::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

fn ours(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": kind,
        "metadata": { "name": name, "namespace": "bellrock-system" }, "spec": spec,
    })
}

/// What the API server says.
fn objects() -> Vec<Change> {
    let node = |number: u8| {
        let address = json!({ "type": "InternalIP", "address": format!("2001:db8::{number}") });
        let object = json!({
            "metadata": { "name": format!("n{number}") },
            "spec": { "podCIDRs": [format!("fd00:244:0:{number}::/64")] },
            "status": { "addresses": [address] },
        });
        parsed(object, convert::node)
    };
    let service = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Cluster",
            "ports": [{ "port": 80, "protocol": "UDP" }],
        },
    });
    let slice = json!({
        "metadata": {
            "name": "web-6", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv6",
        "endpoints": [{ "addresses": [POD], "nodeName": "n2" }],
        "ports": [{ "name": "", "port": 8080, "protocol": "UDP" }],
    });
    let vip = json!({
        "address": VIP, "l2": { "node": "n1", "successors": ["n2"] },
        "claims": [{ "namespace": "default", "name": "web", "uid": "1" }],
    });
    let vip = ours("VirtualIP", "2001-0db8-0000-0000-0000-0000-00c0-0200", &vip);
    vec![
        node(1),
        node(2),
        parsed(service, convert::service),
        parsed(slice, convert::slice),
        parsed(vip, convert::virtual_ip),
        parsed(
            ours("L2Advertisement", "all", &json!({})),
            convert::l2_advertisement,
        ),
    ]
}

/// A node, and its speaker but for the watches.
struct Node {
    turn: Turn,
    l2: L2,
    forwarding: Forwarding,
    _events: EventReceiver,
    ns: Netns,
}

impl Node {
    fn new(switch: &Netns, number: u8) -> Self {
        let name = format!("n{number}");
        let ns = host(switch, &name, number);
        ns.sh("sysctl -qw net.ipv6.conf.all.forwarding=1").unwrap();
        let config = Config::new(&name, "test", b"a key of some length".to_vec());
        let (handle, events) = ns.run(|| Handle::start(config)).unwrap().unwrap();
        Self {
            turn: Turn::new(name, Settings::default()),
            l2: L2::new(handle),
            forwarding: ns
                .run(|| Forwarding::start(Mode::Nftables))
                .unwrap()
                .unwrap(),
            _events: events,
            ns,
        }
    }

    /// One turn of the speaker's loop.
    fn apply(&mut self, runtime: &Runtime, changes: Vec<Change>) {
        for change in changes {
            self.turn.take(change);
        }
        let begun = self.turn.begin();
        self.announce(begun.steps);
        let services = begun.forward.services.clone().into_iter();
        let services = services.filter_map(|(key, service)| Some((key, service?)));
        let node = begun.forward.node.clone().unwrap();
        let report = runtime
            .block_on(self.forwarding.sync(node, services.collect()))
            .unwrap();
        let steps = self.turn.confirm(begun.forward, Ok(&report.refused));
        self.announce(steps);
    }

    fn announce(&mut self, steps: Vec<Step>) {
        for step in steps {
            let (before, now) = (&step.before.l2, &step.now.l2);
            self.l2.set(self.turn.cluster(), &step.service, before, now);
        }
    }

    fn wait_owner(&self, vip: IpAddr) {
        wait_for("the owner", LONG, || {
            let snapshot = self.l2.handle().snapshot();
            let state = snapshot.addresses.get(&vip).context("not served")?;
            ensure!(state.state == State::Own, "{state:?}");
            Ok(())
        });
    }
}

fn host(switch: &Netns, role: &str, number: u8) -> Netns {
    let ns = Netns::new(role).unwrap();
    ns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        .unwrap();
    let port = format!("p{number}");
    veth(&ns, "eth1", switch, &port).unwrap();
    switch
        .sh(&format!("ip link set {port} master br0"))
        .unwrap();
    ns.sh(&format!("ip addr add 2001:db8::{number}/64 dev eth1 nodad"))
        .unwrap();
    ns
}

/// A pod that says who it is.
fn pod(runtime: &Runtime, node: &Netns) -> Netns {
    let pod = Netns::new("pod").unwrap();
    veth(&pod, "eth0", node, "cni0").unwrap();
    node.sh("ip addr add fd00:244:0:2::1/64 dev cni0 nodad")
        .unwrap();
    pod.sh(&format!(
        "ip addr add {POD}/64 dev eth0 nodad; ip route add default via fd00:244:0:2::1"
    ))
    .unwrap();
    let socket = pod
        .run(|| std::net::UdpSocket::bind("[::]:8080"))
        .unwrap()
        .unwrap();
    socket.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let socket = UdpSocket::from_std(socket)?;
        let mut buffer = [0; 64];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            let answer = format!("pod {client} {text}");
            socket.send_to(answer.as_bytes(), client).await?;
        }
        #[allow(unreachable_code, reason = "it gives the block its type")]
        Ok::<(), std::io::Error>(())
    });
    pod
}

#[test]
fn an_ipv6_address_is_served_on_the_segment_and_moves_when_its_owner_is_cut_off() {
    if !as_root() {
        return;
    }
    let runtime = Runtime::new().unwrap();
    let switch = Netns::new("switch").unwrap();
    switch.bridge("br0").unwrap();
    let client = host(&switch, "client", 99);
    let mut nodes = [1, 2].map(|number| Node::new(&switch, number));
    nodes[0]
        .ns
        .sh("ip route add fd00:244:0:2::/64 via 2001:db8::2")
        .unwrap();
    let _pod = pod(&runtime, &nodes[1].ns);
    for node in &mut nodes {
        node.apply(&runtime, objects());
    }
    let vip: IpAddr = VIP.parse().unwrap();
    nodes[0].wait_owner(vip);

    let mac = client.sh("cat /sys/class/net/eth1/address").unwrap();
    let errors = Capture::start(&client, "eth1", "icmp6 and ip6[40] < 128").unwrap();
    let pace = Pace {
        every: Duration::from_millis(5),
        patience: Duration::from_millis(400),
    };
    let prober = Prober::start(&client, SocketAddr::new(vip, 80), pace).unwrap();
    let answered = |more: u64| {
        let wanted = prober.answered() + more;
        wait_for("answers", LONG, || {
            ensure!(prober.answered() >= wanted);
            Ok(())
        });
    };
    answered(50);
    // Its kernel asks the address itself whether it is still there.
    client
        .sh(&format!(
            "ip neigh change {VIP} lladdr $(ip neigh show {VIP} | sed 's/.*lladdr \\([^ ]*\\).*/\\1/') \
             dev eth1 nud probe"
        ))
        .unwrap();
    wait_for("reachability to be confirmed", LONG, || {
        let said = client.sh(&format!("ip neigh show {VIP}"))?;
        ensure!(said.contains("REACHABLE"), "{said}");
        Ok(())
    });
    answered(50);
    switch.sh("ip link set p1 nomaster").unwrap();
    nodes[1].wait_owner(vip);
    answered(50);
    let report = prober.stop().unwrap();
    println!("cable pull: {:.0} ms", report.longest_ms());
    assert!(
        (100.0..=2_000.0).contains(&report.longest_ms()),
        "{report:?}"
    );
    assert_eq!(report.pods.keys().collect::<Vec<_>>(), ["pod"]);
    // The client itself may refuse an answer that came too late for it.
    let of_nodes = format!("eth.src != {}", mac.trim());
    let errors = errors.decode(&of_nodes, &["icmpv6.type"]).unwrap();
    assert_eq!(errors.len(), 0, "no ICMPv6 error: {errors:?}");
}
