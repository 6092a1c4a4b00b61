//! Changes under traffic: what is open stays open, what is asked is answered.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bellrock_e2e::netns::as_root;
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Protocol, Service};
use common::lab::{Addresses, Lab, PATIENCE, call, connect, echo, enter};
use common::{ip, key, port, service, with};

/// A second Service with one, two and three endpoints on its ports, so that
/// the chains of those classes stay, and their counters with them.
fn anchor(a: &Addresses) -> Service {
    let all = [a.pod_a(), a.pod_b(), a.pod_c()];
    Service {
        addresses: [match a.vip {
            IpAddr::V4(_) => ip("203.0.113.77"),
            IpAddr::V6(_) => ip("2001:db8:113::77"),
        }]
        .into(),
        ports: (1..=3)
            .map(|n| port(Protocol::Tcp, n, &all[..usize::from(n)]))
            .collect(),
        ..Service::default()
    }
}

/// Packets that came to a chain that leads on and found no way.
fn misses(lab: &Lab) -> u64 {
    let text = lab.node1.sh("nft -j list table inet bellrock").unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = json["nftables"].as_array().unwrap();
    let leading = ["outside", "inside", "cluster"];
    items
        .iter()
        .map(|item| &item["rule"])
        .filter(|rule| {
            rule["chain"]
                .as_str()
                .is_some_and(|name| leading.iter().any(|lead| name.starts_with(lead)))
        })
        .filter_map(|rule| rule["expr"][0]["counter"]["packets"].as_u64())
        .sum()
}

/// As clients of UDP do: a datagram may be lost, but not refused.
fn ask_again(to: SocketAddr) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call(Protocol::Udp, to, PATIENCE / 4) {
            Ok(_) => return Ok(()),
            Err(error) => {
                let kind = error
                    .downcast_ref::<std::io::Error>()
                    .map(std::io::Error::kind);
                if tries == 4 || kind != Some(std::io::ErrorKind::WouldBlock) {
                    return Err(error);
                }
            }
        }
    }
}

/// Clients at work until dropped: new connections by TCP and UDP without a
/// pause, and one TCP connection that stays.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Load {
    fn start(lab: &Lab, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for protocol in [Some(Protocol::Tcp), Some(Protocol::Udp), None] {
            let stop = stop.clone();
            let path = lab.client.path();
            let (ready, started) = std::sync::mpsc::channel();
            threads.push(std::thread::spawn(move || -> Result<u64> {
                enter(&path)?;
                let mut count = 0;
                let mut stream = None;
                while !stop.load(Ordering::Relaxed) {
                    match (protocol, &mut stream) {
                        (Some(Protocol::Udp), _) => ask_again(to)?,
                        (Some(protocol), _) => drop(
                            call(protocol, to, PATIENCE).with_context(|| protocol.to_string())?,
                        ),
                        (None, None) => stream = Some(connect(to, PATIENCE)?.0),
                        (None, Some(stream)) => echo(stream, "still there?")?,
                    }
                    count += 1;
                    let _ = ready.send(());
                }
                Ok(count)
            }));
            started.recv_timeout(PATIENCE).unwrap();
        }
        Self { stop, threads }
    }

    /// Stops; fails if anything failed. Returns how much was asked.
    fn stop(self, lab: &Lab) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap().unwrap_or_else(|error| {
                    let unserved = lab.node1.sh("nft list chain inet bellrock unserved");
                    panic!("{error:#}; {}", unserved.unwrap())
                })
            })
            .sum()
    }
}

#[test]
fn a_restart_and_a_new_version_lose_nothing() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let web = service(
            &a,
            ExternalPolicy::Cluster,
            &[a.pod_a(), a.pod_b(), a.pod_c()],
        );
        let all = [(key("web"), web), (key("anchor"), anchor(&a))].into();
        let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
        forwarder.sync(&Lab::node(), &all).unwrap();
        let load = Load::start(&lab, (a.vip, 80).into());
        for round in 0..20 {
            drop(forwarder);
            if round % 5 == 4 {
                // As if another version had made it: all of it is replaced.
                lab.node1.sh("nft add chain inet bellrock other").unwrap();
            }
            forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
            let report = forwarder.sync(&Lab::node(), &all).unwrap();
            assert_eq!(report.replaced.is_some(), round % 5 == 4, "{report:?}");
            assert_eq!(report.batches, if round % 5 == 4 { 2 } else { 0 });
        }
        let asked = load.stop(&lab);
        assert!(asked > 100, "only {asked}");
        assert_eq!(misses(&lab), 0);
    }
}

#[test]
fn endpoints_come_and_go_under_load_and_no_packet_misses() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    // With chains that stay, and with chains that come and go.
    for (a, anchored) in Addresses::both()
        .into_iter()
        .flat_map(|a| [(a, true), (a, false)])
    {
        let all = [a.pod_a(), a.pod_b(), a.pod_c()];
        // The front keeps its endpoints on pods that stay up, so that whatever
        // is picked answers.
        let lists: [&[Endpoint]; 6] = [
            &all,
            &all[1..],
            &all[2..],
            &all[..1],
            &all[..2],
            &[all[0], all[2]],
        ];
        let web = |list| service(&a, ExternalPolicy::Cluster, list);
        let mut services = BTreeMap::from([(key("web"), web(lists[0]))]);
        if anchored {
            services.insert(key("anchor"), anchor(&a));
        }
        let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
        forwarder.sync(&Lab::node(), &services).unwrap();
        let load = Load::start(&lab, (a.vip, 80).into());
        let flood = Flood::start(&lab, (a.vip, 80).into());
        for round in 1..36 {
            let mut next = web(lists[round % lists.len()]);
            if round % 7 == 0 {
                next.policy = ExternalPolicy::Local;
            }
            if round % 11 == 0 {
                next.source_ranges = vec![ipnet::IpNet::from(a.client)];
            }
            if round % 7 == 0 && round % lists.len() == 2 {
                // Only a remote endpoint: nothing to do under Local.
                continue;
            }
            let report = forwarder.apply([(key("web"), Some(next))].into()).unwrap();
            assert!(
                report.refused.is_empty() && report.batches > 0,
                "{report:?}"
            );
        }
        let sent = flood.stop();
        let asked = load.stop(&lab);
        assert!(sent > 1_000 && asked > 100, "only {sent} and {asked}");
        assert_eq!(misses(&lab), 0, "of {sent} packets and {asked} connections");
    }
}

#[test]
fn a_connection_lives_through_every_change_that_is_not_its_endpoints() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let all = [a.pod_a(), a.pod_b(), a.pod_c()];
        let web = |policy, list: &[Endpoint]| (key("web"), Some(service(&a, policy, list)));
        let mut forwarder = with(&lab, &service(&a, ExternalPolicy::Cluster, &all[..1]));
        let (mut stream, answer) = lab
            .client
            .run(|| connect((a.vip, 80).into(), PATIENCE))
            .unwrap()
            .unwrap();
        assert_eq!(answer.pod, "a");
        let cluster = ExternalPolicy::Cluster;
        let mut sticky = service(&a, cluster, &all);
        sticky.affinity = true;
        for change in [
            web(cluster, &all),
            web(ExternalPolicy::Local, &all),
            (key("web"), Some(sticky)),
            (key("anchor"), Some(anchor(&a))),
            web(cluster, &all[..1]),
            (key("anchor"), None),
            // Even without the Service: conntrack carries what is open.
            (key("web"), None),
        ] {
            forwarder.apply([change].into()).unwrap();
            echo(&mut stream, "after a change").unwrap();
        }
        forwarder
            .set_node(&bellrock_forward::Node::default())
            .unwrap();
        // Some other translation, such as kube-proxy's, keeps the kernel's going.
        lab.node1
            .sh("nft add table inet other; \
                 nft add chain inet other in '{ type nat hook prerouting priority -100; }'; \
                 nft add chain inet other out '{ type nat hook postrouting priority 100; }'; \
                 nft add rule inet other out ip daddr 198.51.100.1 masquerade")
            .unwrap();
        lab.node1.run(Forwarder::remove_table).unwrap().unwrap();
        echo(&mut stream, "without a table").unwrap();
        lab.node1.sh("nft delete table inet other").unwrap();
    }
}

/// Datagrams, each of a flow of its own, without waiting for answers.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Flood {
    fn start(lab: &Lab, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (lab.client.path(), stop.clone());
        let any = if to.is_ipv4() {
            ip("0.0.0.0")
        } else {
            ip("::")
        };
        let thread = std::thread::spawn(move || -> Result<u64> {
            enter(&path)?;
            let mut sent = 0;
            // Bounded, so that the connection table is not the test.
            while !stopped.load(Ordering::Relaxed) && sent < 10_000 {
                let socket = UdpSocket::bind((any, 0))?;
                // A full queue is the machine's, not ours.
                sent += u64::from(socket.send_to(b"x", to).is_ok());
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}
