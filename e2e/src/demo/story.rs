//! The story: an address, ARP, BGP, a policy, a pulled cable, a reason, and
//! nothing left behind.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::screen::Screen;
use crate::lab::{Lab, service};
use crate::probe::{Pace, Prober};
use crate::suite::{POOL, configuration};

const SOON: Duration = Duration::from_secs(20);
/// What this release promises for a pulled cable.
const MOST_OUTAGE: Duration = Duration::from_secs(2);

pub(super) fn tell(lab: &Lab, screen: &mut Screen, without: Option<&str>) -> Result<()> {
    install(lab, screen, without)?;
    let address = by_arp(lab, screen)?;
    by_bgp(lab, screen, address)?;
    local(lab, screen, address)?;
    pull_cable(lab, screen, address)?;
    explain(lab, screen, address)?;
    delete(lab, screen, address)
}

fn install(lab: &Lab, screen: &mut Screen, without: Option<&str>) -> Result<()> {
    screen.chapter("Bellrock: the chart rendered by helm, its processes with the chart's rights");
    lab.install("")?;
    lab.apply(&configuration())?;
    let speakers: Vec<&str> = lab
        .nodes()
        .into_iter()
        .filter(|node| Some(*node) != without)
        .collect();
    screen.check("controller and speakers are ready", || {
        let start = Instant::now();
        lab.start_controller()?;
        for node in &speakers {
            lab.start_speaker(node)?;
        }
        Ok((
            (),
            format!(
                "{} of them after {}",
                speakers.len() + 1,
                ms(start.elapsed())
            ),
        ))
    })?;
    lab.deploy("web", 2, &[])?;
    let pods = lab.pods("web")?;
    let places: Vec<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    screen.note(&format!(
        "two pods answer HTTP and UDP, on {}",
        places.join(" and ")
    ));
    Ok(())
}

fn by_arp(lab: &Lab, screen: &mut Screen) -> Result<Ipv4Addr> {
    screen.chapter("kubectl apply: a Service of type LoadBalancer; a client on the segment (ARP)");
    let capture = lab.capture("c1", "eth1", "arp")?;
    let manifest = service("web", "web", &json!({ "type": "LoadBalancer" }));
    let start = Instant::now();
    let address = screen.check("the API server shows an address", || {
        let (address, took) = lab.create_service(&manifest)?;
        ensure!(
            POOL.contains(&address),
            "{address} is not in the pool {POOL}"
        );
        Ok((address, format!("{address} after {}", ms(took))))
    })?;
    screen.check("the first HTTP answer on the segment", || {
        let answer = lab.until("HTTP answers", SOON, || lab.http("c1", address, 80))?;
        Ok((
            (),
            format!("from {} after {}", answer.pod, ms(start.elapsed())),
        ))
    })?;
    screen.check("UDP answers too", || {
        let answer = lab.until("UDP answers", SOON, || lab.udp("c1", address, 80))?;
        Ok(((), format!("from {}", answer.pod)))
    })?;
    screen.check("the client's kernel has a node's hardware address", || {
        let owner = lab.neighbour("c1", address)?;
        Ok(((), format!("{} is {owner}'s", lab.mac(&owner)?)))
    })?;
    screen.check(
        "Wireshark decodes one node's replies and announcements",
        || {
            let owner = lab.neighbour("c1", address)?;
            lab.until("the announcements are captured", SOON, || {
                // An announcement may have come before the client asked.
                lab.host("c1")
                    .sh(&format!("arping -c 1 -w 5 -I eth1 {address}"))?;
                let filter = format!("arp.src.proto_ipv4 == {address}");
                let fields = ["arp.src.hw_mac", "arp.opcode", "arp.isannouncement"];
                let frames = capture.decode(&filter, &fields)?;
                let senders: BTreeSet<&String> = frames.iter().map(|frame| &frame[0]).collect();
                ensure!(senders.len() == 1, "frames from {senders:?}");
                ensure!(
                    senders.contains(&lab.mac(&owner)?),
                    "{senders:?} is not {owner}"
                );
                let count = |wanted: &str| frames.iter().filter(|frame| frame[1] == wanted).count();
                let (announcements, replies) = (count("1"), count("2"));
                ensure!(
                    announcements > 0 && replies > 0,
                    "{announcements} and {replies}"
                );
                Ok((
                    (),
                    format!("{replies} replies, {announcements} announcements"),
                ))
            })
        },
    )?;
    Ok(address)
}

fn by_bgp(lab: &Lab, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("The same address behind the router (BGP): every node announces it");
    let nodes = lab.nodes();
    screen.check("FRR has a route from each node", || {
        let wanted: BTreeSet<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        let start = Instant::now();
        lab.until("FRR has the routes", SOON, || {
            let paths = lab.bgp_paths("r1", address)?;
            ensure!(
                paths == wanted,
                "expected routes from {wanted:?}, FRR has {paths:?}"
            );
            Ok(())
        })?;
        let waited = start.elapsed();
        Ok((
            (),
            format!("{address}/32 via {} ({})", nodes.join(", "), ms(waited)),
        ))
    })?;
    screen.check("the router's kernel balances over them (ECMP)", || {
        lab.until_routed("r1", address, &nodes)?;
        Ok(((), format!("{} next hops", nodes.len())))
    })?;
    screen.check("HTTP and UDP answer through the router", || {
        let answer = lab.until("HTTP answers", SOON, || lab.http("c2", address, 80))?;
        lab.until("UDP answers", SOON, || lab.udp("c2", address, 80))?;
        Ok(((), format!("from {}", answer.pod)))
    })?;
    screen.check("many connections enter by every node", || {
        let filter = format!("tcp and dst host {address} and tcp[tcpflags] == tcp-syn");
        let capture = lab.capture("r1", "eth1", &filter)?;
        let used = lab.until("each node got a connection", SOON, || {
            for _ in 0..10 {
                lab.http("c2", address, 80)?;
            }
            let frames = capture.decode("tcp.flags.syn == 1", &["eth.dst"])?;
            let used: BTreeSet<String> = frames.into_iter().flatten().collect();
            ensure!(used.len() == nodes.len(), "entered by {used:?} only");
            Ok(used)
        })?;
        Ok(((), format!("{} of {} nodes", used.len(), nodes.len())))
    })
}

fn local(lab: &Lab, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("externalTrafficPolicy: Local");
    let policy = |policy: &str| {
        let patch = json!({ "spec": { "externalTrafficPolicy": policy } }).to_string();
        lab.kubectl(&["patch", "service", "web", "-p", &patch])
    };
    let pods = lab.pods("web")?;
    let with_pods: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    let with_pods: Vec<&str> = with_pods.into_iter().collect();
    policy("Local")?;
    screen.check("only nodes with a ready pod announce", || {
        lab.until_routed("r1", address, &with_pods)?;
        Ok(((), with_pods.join(", ")))
    })?;
    screen.check("the pod sees the client's own address", || {
        let from = |client: &str| -> Result<String> {
            let answer = lab.until("HTTP answers", SOON, || lab.http(client, address, 80))?;
            let (seen, own) = (answer.client.ip(), lab.address(client));
            ensure!(seen == own, "{client} is {own}, {} saw {seen}", answer.pod);
            Ok(seen.to_string())
        };
        Ok(((), format!("{} and {}", from("c1")?, from("c2")?)))
    })?;
    policy("Cluster")?;
    screen.check("back to Cluster: every node announces again", || {
        lab.until_routed("r1", address, &lab.nodes())?;
        Ok(((), lab.nodes().join(", ")))
    })
}

fn pull_cable(lab: &Lab, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("The owner's cable is pulled; a client probes every 10 ms");
    // The endpoints must not sit on the node that is cut.
    let owner = lab.neighbour("c1", address)?;
    lab.keep_pods_off("web", &owner)?;
    lab.until("HTTP answers", SOON, || lab.http("c1", address, 80))?;
    let owner = lab.neighbour("c1", address)?;
    let target = SocketAddr::new(address.into(), 80);
    let prober = Prober::start(lab.host("c1"), target, Pace::default())?;
    let answered = |more: u64| {
        let before = prober.answered();
        lab.until("probes are answered", SOON, || {
            ensure!(
                prober.answered() >= before + more,
                "{} answered",
                prober.answered()
            );
            Ok(())
        })
    };
    answered(50)?;
    lab.cut(&owner)?;
    let successor = lab.until("another node answers", SOON, || {
        let now = lab.neighbour("c1", address)?;
        ensure!(now != owner, "the client still has {owner}'s address");
        Ok(now)
    })?;
    answered(50)?;
    let report = prober.stop()?;
    screen.check("another node takes the address over", || {
        Ok(((), format!("{owner} -> {successor}")))
    })?;
    screen.check("the outage, as the client saw it", || {
        let outage = report.longest_ms();
        ensure!(outage > 0.0, "no probe was lost: was the cable pulled?");
        ensure!(
            outage <= MOST_OUTAGE.as_secs_f64() * 1000.0,
            "{outage:.0} ms, expected at most {MOST_OUTAGE:?}"
        );
        let mut said = format!(
            "{outage:.0} ms, {} probes lost",
            report.sent - report.answered
        );
        if report.outages.len() > 1 {
            let all = report.outages.iter();
            let all: Vec<_> = all
                .map(|o| format!("{:.0} ms after {:.0} ms", o.length_ms, o.start_ms))
                .collect();
            said = format!("{said}: {}", all.join(", "));
        }
        Ok(((), said))
    })?;
    let prober = Prober::start(lab.host("c1"), target, Pace::default())?;
    lab.heal(&owner)?;
    lab.until_routed("r1", address, &lab.nodes())?;
    let before = prober.answered();
    lab.until("probes are answered", SOON, || {
        ensure!(
            prober.answered() >= before + 50,
            "{} answered",
            prober.answered()
        );
        Ok(())
    })?;
    let report = prober.stop()?;
    screen.check("the cable is back: the address stays where it is", || {
        let now = lab.neighbour("c1", address)?;
        ensure!(now == successor, "it went from {successor} to {now}");
        let lost = report.sent - report.answered;
        Ok(((), format!("{now}, {lost} of {} probes lost", report.sent)))
    })
}

fn explain(lab: &Lab, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("bellrock why");
    let request = json!({ "type": "LoadBalancer", "loadBalancerIP": "203.0.113.7" });
    lab.apply(&service("stuck", "web", &request).to_string())?;
    screen
        .check("a Service that cannot get an address has a reason", || {
            let reason = lab.until("the Service has a condition", SOON, || {
                let service = lab.kubectl_json(&["get", "service", "stuck"])?;
                let conditions = service["status"]["conditions"].as_array().cloned();
                let conditions = conditions.unwrap_or_default();
                let ours = conditions
                    .iter()
                    .find(|c| c["type"] == "bellrock.dev/LoadBalancer");
                Ok(ours.context("no condition yet")?["reason"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned())
            })?;
            ensure!(
                reason == "AddressNotInPool",
                "the condition says {reason:?}"
            );
            let (_, said, errors) = lab.bellrock(&["why", "svc/stuck"])?;
            ensure!(
                said.contains(&reason),
                "`bellrock why` said {said:?} {errors:?}"
            );
            Ok((said, reason))
        })
        .map(|said| {
            for line in said.lines().filter(|line| !line.trim().is_empty()) {
                screen.note(line);
            }
        })?;
    lab.delete_service("stuck")?;
    screen.check("for the other Service it names the kernel's owner", || {
        let owner = lab.neighbour("c1", address)?;
        lab.until("`bellrock why` agrees", SOON, || {
            let answer = lab.why(&address.to_string())?;
            let said = answer["services"][0]["addresses"][0]["owner"].clone();
            ensure!(
                said == Value::String(owner.clone()),
                "it says {said}, the client {owner}"
            );
            Ok(())
        })?;
        Ok(((), owner))
    })
}

fn delete(lab: &Lab, screen: &mut Screen, address: Ipv4Addr) -> Result<()> {
    screen.chapter("kubectl delete: nothing is left behind");
    lab.delete_service("web")?;
    screen.check("the address is free", || {
        lab.until("nobody claims a VirtualIP", SOON, || {
            let claims = "jsonpath={.items[*].spec.claims[*].name}";
            let left = lab.kubectl(&["get", "virtualips", "-o", claims])?;
            ensure!(left.is_empty(), "left: {left}");
            Ok(())
        })?;
        Ok(((), format!("no Service claims {address}")))
    })?;
    screen.check("the routes are gone, in FRR and in its kernel", || {
        lab.until_routed("r1", address, &[])?;
        Ok(((), format!("no {address}/32")))
    })?;
    screen.check("no node forwards it, none answers ARP", || {
        for node in lab.nodes() {
            lab.until("the table forgets the address", SOON, || {
                ensure!(
                    !lab.forwards(node, address)?,
                    "{node} still forwards {address}"
                );
                Ok(())
            })?;
        }
        let asked = lab
            .host("c1")
            .sh(&format!("arping -c 2 -w 3 -I eth1 {address} || true"))?;
        if asked.contains("reply from") {
            bail!("somebody answers: {asked}");
        }
        Ok(((), lab.nodes().join(", ")))
    })
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}
