//! Hosts that are none of ours.

use std::net::IpAddr;

use anyhow::ensure;
use bellrock_arp::{Event, State};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{Netns, as_root, wait_for};

use super::lab::{Lab, Node, PATIENCE, V4, V6, at_once, host, mac, neighbour, switch};

/// Whom the kernel of `ns` finds to have `address`.
fn resolve(ns: &Netns, address: IpAddr) -> String {
    wait_for("the address's resolution", PATIENCE, || {
        // Nobody need answer the ping itself.
        let _ = ns.sh(&format!("ping -c 1 -W 1 {address}"));
        Ok(neighbour(ns, address)?.0)
    })
}

#[test]
fn an_address_that_another_host_has_is_blocked_with_its_hardware_address() {
    if as_root() {
        blocked(V4);
        blocked(V6);
    }
}

fn blocked(vip: IpAddr) {
    let mut lab = Lab::steady(switch(), vip, 2);
    let stranger = host(&lab.switch, "stranger", "stranger", 66);
    let length = if vip.is_ipv4() { 24 } else { 64 };
    stranger
        .sh(&format!(
            "ip addr add {vip}/{length} dev eth1 {}",
            at_once(vip)
        ))
        .unwrap();
    let foreign = mac(&stranger, "eth1");
    lab.assign_all();
    let event = lab.nodes[0].event();
    let Event::Blocked {
        address,
        mac,
        interface,
    } = &event
    else {
        panic!("{event:?}")
    };
    assert_eq!(
        (*address, mac.to_string(), interface.as_str()),
        (vip, foreign.clone(), "eth1")
    );
    let state = lab.nodes[0].state(vip).unwrap();
    assert_eq!(state.state, State::Blocked);
    assert_eq!(state.foreign.unwrap().to_string(), foreign);
    assert_eq!(resolve(&lab.client, vip), foreign);
    let answered = |node: &Node| node.handle.snapshot().counters.contains_key("answers");
    assert!(!lab.nodes.iter().any(answered), "nobody of ours answers");
}

#[test]
fn a_host_that_looks_for_duplicates_does_not_take_a_held_address() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::steady(switch(), V6, 2).settle();
    lab.nodes[0].event();
    // An announcement would tell it before it has asked.
    wait_for("the last of the first announcements", PATIENCE, || {
        let counters = lab.nodes[0].handle.snapshot().counters;
        ensure!(counters["announcements"] >= 5, "{counters:?}");
        Ok(())
    });
    let stranger = host(&lab.switch, "stranger", "stranger", 66);
    let capture = Capture::start(&lab.client, "eth1", "icmp6").unwrap();
    // The kernel does Duplicate Address Detection (RFC 4862), with a nonce.
    stranger
        .sh(&format!(
            "sysctl -qw net.ipv6.conf.eth1.accept_dad=1 net.ipv6.conf.eth1.dad_transmits=3
             ip addr add {V6}/64 dev eth1"
        ))
        .unwrap();
    wait_for("the duplicate to be found", PATIENCE, || {
        let said = stranger.sh("ip -6 addr show dev eth1")?;
        ensure!(said.contains("dadfailed"), "{said}");
        Ok(())
    });
    let owner = lab.nodes[0].mac.clone();
    let answer = wait_for("the answer to all", PATIENCE, || {
        let asked = format!("ipv6.src == :: && icmpv6.nd.ns.target_address == {V6}");
        let first = capture.decode(&asked, &["frame.number"])?;
        let first = first.first().map(|fields| fields[0].clone());
        let after = first.ok_or_else(|| anyhow::anyhow!("no question yet"))?;
        let answers = capture.decode(
            &format!("icmpv6.type == 136 && frame.number > {after}"),
            &[
                "eth.src",
                "ipv6.dst",
                "icmpv6.nd.na.target_address",
                "icmpv6.nd.na.flag.s",
                "icmpv6.nd.na.flag.o",
            ],
        )?;
        answers
            .into_iter()
            .next()
            .ok_or_else(|| anyhow::anyhow!("no answer yet"))
    });
    let vip = V6.to_string();
    let (no, yes) = (&answer[3], &answer[4]);
    assert_eq!(answer[..3], [owner, "ff02::1".to_owned(), vip]);
    assert!(["0", "False"].contains(&no.as_str()), "{answer:?}");
    assert!(["1", "True"].contains(&yes.as_str()), "{answer:?}");
    lab.wait_owner(0);
    lab.nodes[0].no_event();
}
