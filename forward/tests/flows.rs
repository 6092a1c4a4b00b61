//! What the kernel remembers of UDP flows, after a change.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::Result;
use bellrock_e2e::netns::{Netns, as_root, wait_for};
use bellrock_forward::{Endpoint, ExternalPolicy, Forwarder, Report, Service};
use common::lab::{Addresses, Lab, PATIENCE, connect, echo};
use common::{NODE_PORT, ip, key, service, with};

/// One flow: a socket of its own, whose datagrams the kernel takes together.
struct Flow(UdpSocket);

impl Flow {
    fn open(from: &Netns, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() {
            ip("0.0.0.0")
        } else {
            ip("::")
        };
        let socket = from
            .run(|| -> Result<UdpSocket> {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect(to)?;
                Ok(socket)
            })
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The pod that answers.
    fn ask(&self) -> String {
        self.0.send(b"hello").unwrap();
        let mut bytes = [0; 64];
        let n = self.0.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..n]).unwrap();
        text.split(' ').next().unwrap().to_owned()
    }
}

fn web(a: &Addresses, endpoints: &[Endpoint]) -> Service {
    service(a, ExternalPolicy::Cluster, endpoints)
}

fn change(forwarder: &mut Forwarder, to: Service) -> Report {
    let report = forwarder.apply([(key("web"), Some(to))].into()).unwrap();
    assert_eq!(report.flows_kept, None);
    report
}

#[test]
fn a_flow_of_an_endpoint_that_goes_moves_and_a_connection_by_tcp_does_not() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        for policy in [ExternalPolicy::Cluster, ExternalPolicy::Local] {
            let only = |endpoint| service(&a, policy, &[endpoint]);
            let mut forwarder = with(&lab, &only(a.pod_a()));
            let flows: Vec<Flow> = [
                (&lab.client, (a.vip, 80)),
                (&lab.client, (a.node1, NODE_PORT)),
                (&lab.c, (a.node1, NODE_PORT)),
            ]
            .map(|(from, to)| Flow::open(from, to.into()))
            .into();
            let (mut stream, _) = lab
                .client
                .run(|| connect((a.vip, 80).into(), PATIENCE))
                .unwrap()
                .unwrap();
            assert!(flows.iter().all(|flow| flow.ask() == "a"));
            let report = change(&mut forwarder, only(a.pod_b()));
            assert_eq!(report.flows_cleared, flows.len());
            assert!(flows.iter().all(|flow| flow.ask() == "b"));
            echo(&mut stream, "as before").unwrap();
        }
    }
}

#[test]
fn a_flow_stays_while_others_lose_their_endpoints() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let all = [a.pod_a(), a.pod_b(), a.pod_c()];
        let mut forwarder = with(&lab, &web(&a, &all));
        for _ in 0..6 {
            let flow = Flow::open(&lab.client, (a.vip, 80).into());
            let pod = flow.ask();
            let stays = ["a", "b", "c"].iter().position(|name| *name == pod);
            // Alone, with one other, and under another policy.
            for less in 1..3 {
                let mut fewer = all.to_vec();
                fewer.rotate_left(stays.unwrap());
                fewer.truncate(less);
                change(&mut forwarder, web(&a, &fewer));
                assert_eq!(flow.ask(), pod);
            }
            let local = service(&a, ExternalPolicy::Local, &all);
            change(&mut forwarder, local);
            assert_eq!(flow.ask(), pod);
            let mut sticky = web(&a, &all);
            sticky.affinity = true;
            change(&mut forwarder, sticky);
            assert_eq!(flow.ask(), pod);
            change(&mut forwarder, web(&a, &all));
            assert_eq!(flow.ask(), pod);
        }
    }
}

#[test]
fn a_flow_that_was_there_before_its_service_is_served_once_it_is() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        // Nothing translates: the kernel remembers it so, and the client's own
        // datagram comes back to it, which nobody reads.
        let flow = Flow::open(&lab.client, (a.vip, 80).into());
        let mut forwarder = lab.node1.run(Forwarder::open).unwrap().unwrap();
        forwarder.sync(&Lab::node(), &[].into()).unwrap();
        flow.0.send(b"too early").unwrap();
        wait_for("an entry of the flow", PATIENCE, || {
            let port = flow.0.local_addr()?.port();
            let family = if a.vip.is_ipv4() { "ipv4" } else { "ipv6" };
            let list = lab.node1.sh(&format!(
                "conntrack -L -f {family} -p udp --sport {port} 2>&1"
            ))?;
            anyhow::ensure!(list.contains(&format!("dport={}", 80)), "{list}");
            Ok(())
        });
        let report = change(&mut forwarder, web(&a, &[a.pod_a()]));
        assert_eq!(report.flows_cleared, 1);
        assert_eq!(flow.ask(), "a");
    }
}

#[test]
fn what_went_while_no_process_was_there_is_cleared_by_the_next() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        drop(with(&lab, &web(&a, &[a.pod_a()])));
        let flow = Flow::open(&lab.client, (a.vip, 80).into());
        assert_eq!(flow.ask(), "a");
        drop(with(&lab, &web(&a, &[a.pod_b()])));
        assert_eq!(flow.ask(), "b");
        // Without endpoints the next datagram is refused, not lost.
        let _forwarder = with(&lab, &web(&a, &[]));
        flow.0.send(b"hello").unwrap();
        let error = flow.0.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn flows_by_the_hundred_and_of_many_fronts_are_cleared_in_one_call() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut many = web(&a, &[a.pod_a()]);
        let udp = many.ports.pop().unwrap();
        many.ports.extend((0..8).map(|n| bellrock_forward::Port {
            port: 1_000 + n,
            node_port: None,
            ..udp.clone()
        }));
        let mut forwarder = with(&lab, &many);
        let flows: Vec<Flow> = (0..600)
            .map(|n| Flow::open(&lab.client, (a.vip, 1_000 + n % 8).into()))
            .collect();
        assert!(flows.iter().all(|flow| flow.ask() == "a"));
        for port in &mut many.ports {
            port.endpoints = vec![a.pod_b()];
        }
        let report = change(&mut forwarder, many);
        assert_eq!(report.flows_cleared, flows.len());
        assert!(flows.iter().all(|flow| flow.ask() == "b"));
    }
}

/// An entry as a packet confirms it that looked up its endpoint before a change:
/// from the client to pod `a`.
fn confirm_late(lab: &Lab, a: &Addresses) {
    let (client, vip, pod) = (a.client, a.vip, a.a);
    lab.node1
        .sh(&format!(
            "conntrack -I -p udp -t 120 -s {client} -d {vip} --sport 4444 --dport 80 \
             -r {pod} -q {client} --reply-port-src 8080 --reply-port-dst 4444"
        ))
        .unwrap();
}

fn wait_for_its_end(lab: &Lab, a: &Addresses, forwarder: &mut Forwarder) {
    let family = if a.vip.is_ipv4() { "ipv4" } else { "ipv6" };
    wait_for("the entry's end", PATIENCE, || {
        assert!(!forwarder.check()?);
        let list = lab
            .node1
            .sh(&format!("conntrack -L -f {family} -p udp --sport 4444"))?;
        anyhow::ensure!(list.is_empty(), "{list}");
        Ok(())
    });
}

#[test]
fn what_a_process_did_not_live_to_clear_is_cleared_by_the_next() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let now = web(&a, &[a.pod_b()]);
        drop(with(&lab, &now));
        confirm_late(&lab, &a);
        // The table is right: nothing but the entry tells.
        let mut next = lab.node1.run(Forwarder::open).unwrap().unwrap();
        let all = [(key("web"), now)].into();
        let report = next.sync(&Lab::node(), &all).unwrap();
        assert_eq!(report.batches, 0);
        wait_for_its_end(&lab, &a, &mut next);
    }
}

#[test]
fn a_flow_that_slips_in_during_a_change_is_cleared_a_second_later() {
    if !as_root() {
        return;
    }
    let lab = Lab::new();
    for a in Addresses::both() {
        let mut forwarder = with(&lab, &web(&a, &[a.pod_a()]));
        change(&mut forwarder, web(&a, &[a.pod_b()]));
        confirm_late(&lab, &a);
        wait_for_its_end(&lab, &a, &mut forwarder);
    }
}
