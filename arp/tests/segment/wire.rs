//! What is on the wire, as Wireshark's decoder reads it, and what the client's
//! kernel makes of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::ensure;
use bellrock_arp::{Cause, Event};
use bellrock_e2e::capture::Capture;
use bellrock_e2e::netns::{as_root, wait_for};

use super::lab::{CREATED, Lab, PATIENCE, V4, V6, host, mac, neighbour, switch};

#[test]
fn the_client_gets_the_owners_hardware_address_and_wireshark_reads_every_frame() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::steady(switch(), V4, 3);
    let capture = Capture::start(&lab.client, "eth1", "arp or ether proto 0x88b5").unwrap();
    lab.assign_all();
    lab.wait_owner(0);

    let said = lab
        .client
        .sh(&format!("arping -c 3 -w 10 -I eth1 {V4}"))
        .unwrap();
    let owner = lab.nodes[0].mac.clone();
    assert_eq!(said.to_lowercase().matches(&owner).count(), 3, "{said}");
    assert!(
        said.contains("Received 3 response(s)"),
        "one answer each: {said}"
    );
    let prober = lab.prober();
    assert_eq!(neighbour(&lab.client, V4).unwrap().0, owner);
    let report = prober.stop().unwrap();
    assert_eq!(report.pods.keys().collect::<Vec<_>>(), ["node-1"]);

    // RFC 826, RFC 5227, as Wireshark decodes them.
    let fields = [
        "eth.dst",
        "eth.src",
        "arp.opcode",
        "arp.hw.type",
        "arp.proto.type",
        "arp.src.hw_mac",
        "arp.src.proto_ipv4",
        "arp.dst.hw_mac",
        "arp.dst.proto_ipv4",
    ];
    let client = mac(&lab.client, "eth1");
    let vip = V4.to_string();
    let replies = wait_for("replies in the capture", PATIENCE, || {
        let filter = format!("arp.opcode == 2 && arp.src.proto_ipv4 == {vip}");
        let replies = capture.decode(&filter, &fields)?;
        ensure!(replies.len() >= 4, "{replies:?}");
        Ok(replies)
    });
    for reply in replies {
        let expected = [
            &client,
            &owner,
            "2",
            "1",
            "0x0800",
            &owner,
            &vip,
            &client,
            "10.7.0.99",
        ];
        assert_eq!(reply, expected);
    }
    let zero = "00:00:00:00:00:00";
    let all = "ff:ff:ff:ff:ff:ff";
    let announcements = wait_for("announcements in the capture", PATIENCE, || {
        let announcements = capture.decode("arp.isannouncement == 1", &fields)?;
        ensure!(announcements.len() >= 4, "{announcements:?}");
        Ok(announcements)
    });
    for announcement in announcements {
        assert_eq!(
            announcement,
            [all, &owner, "1", "1", "0x0800", &owner, &vip, zero, &vip]
        );
    }
    let asked = format!("arp.isprobe == 1 && arp.dst.proto_ipv4 == {vip}");
    let probes = capture.decode(&asked, &fields).unwrap();
    // Again, where a busy machine let the node stand still.
    assert!(probes.len() >= 2, "{probes:?}");
    for probe in probes {
        assert_eq!(
            probe,
            [
                all, &owner, "1", "1", "0x0800", &owner, "0.0.0.0", zero, &vip
            ]
        );
    }
    assert_eq!(
        capture
            .decode("_ws.malformed", &["frame.number"])
            .unwrap()
            .len(),
        0
    );
    let claimed: BTreeSet<String> = capture
        .decode(&format!("arp.src.proto_ipv4 == {vip}"), &["eth.src"])
        .unwrap()
        .concat()
        .into_iter()
        .collect();
    assert_eq!(
        claimed.into_iter().collect::<Vec<_>>(),
        std::slice::from_ref(&owner),
        "nobody else"
    );
    let hellos = capture
        .decode("eth.type == 0x88b5", &["eth.dst", "eth.src"])
        .unwrap();
    for node in &lab.nodes {
        let hello = ["03:42:52:4b:88:b5".to_owned(), node.mac.clone()];
        assert!(
            hellos.iter().any(|frame| frame[..] == hello),
            "of {}",
            node.name
        );
    }

    let event = lab.nodes[0].event();
    let epoch = (CREATED << 20) + 1;
    let interface = "eth1".to_owned();
    let owned = Event::Owned {
        address: V4,
        epoch,
        cause: Cause::FirstClaim,
        from: None,
        interface,
    };
    assert_eq!(event, owned);
    lab.nodes[1].no_event();
    let snapshot = lab.nodes[0].handle.snapshot();
    let interface = &snapshot.interfaces["eth1"];
    assert_eq!(interface.mac.to_string(), owner);
    let own = (IpAddr::from([10, 7, 0, 1]), 24);
    assert!(interface.addresses.contains(&own), "{interface:?}");
    let peers: Vec<&str> = interface
        .peers
        .iter()
        .map(|peer| peer.node.as_str())
        .collect();
    assert_eq!(
        BTreeSet::from_iter(peers),
        BTreeSet::from(["node-2", "node-3"])
    );
    assert!(snapshot.counters["answers"] >= 4, "{:?}", snapshot.counters);
}

/// The fields of a Neighbour Discovery message, and whether Wireshark finds
/// the checksum good.
const NDP: [&str; 12] = [
    "eth.dst",
    "eth.src",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.hlim",
    "icmpv6.nd.ns.target_address",
    "icmpv6.nd.na.target_address",
    "icmpv6.nd.na.flag.r",
    "icmpv6.nd.na.flag.s",
    "icmpv6.nd.na.flag.o",
    "icmpv6.opt.linkaddr",
    "icmpv6.checksum.status",
];

/// Decodes messages that match; flags as 0 or 1 in every release of Wireshark.
fn neighbour_discovery(capture: &Capture, filter: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let mut messages = capture.decode(filter, &NDP)?;
    for field in messages.iter_mut().flatten() {
        match field.as_str() {
            "True" => "1".clone_into(field),
            "False" => "0".clone_into(field),
            _ => {}
        }
    }
    Ok(messages)
}

#[test]
fn neighbour_discovery_is_what_wireshark_and_the_clients_kernel_expect() {
    if !as_root() {
        return;
    }
    let lab = Lab::steady(switch(), V6, 3);
    let capture = Capture::start(&lab.client, "eth1", "icmp6").unwrap();
    lab.assign_all();
    lab.wait_owner(0);
    let owner = lab.nodes[0].mac.as_str();
    let prober = lab.prober();
    assert_eq!(neighbour(&lab.client, V6).unwrap().0, owner);
    let report = prober.stop().unwrap();
    assert_eq!(report.pods.keys().collect::<Vec<_>>(), ["node-1"]);

    let vip = V6.to_string();
    let (client, client_mac) = ("2001:db8:7::99", mac(&lab.client, "eth1"));
    let (group, group_mac) = ("ff02::1:ffc0:200", "33:33:ff:c0:02:00");
    let (all, all_mac) = ("ff02::1", "33:33:00:00:00:01");
    let told = format!("icmpv6.nd.na.target_address == {vip}");
    // RFC 4861 section 7.2.4: solicited, override.
    let filter = format!("{told} && ipv6.dst == {client}");
    let answer = wait_for("an answer in the capture", PATIENCE, || {
        let answers = neighbour_discovery(&capture, &filter)?;
        ensure!(!answers.is_empty());
        Ok(answers)
    })
    .remove(0);
    let hops = "255";
    assert_eq!(
        answer,
        [
            &client_mac,
            owner,
            &vip,
            client,
            hops,
            "",
            &vip,
            "0",
            "1",
            "1",
            owner,
            "1"
        ]
    );
    // Section 7.2.6: unsolicited, override.
    let filter = format!("{told} && ipv6.dst == {all}");
    let announcements = wait_for("announcements in the capture", PATIENCE, || {
        let announcements = neighbour_discovery(&capture, &filter)?;
        ensure!(announcements.len() >= 4, "{announcements:?}");
        Ok(announcements)
    });
    for announcement in announcements {
        assert_eq!(
            announcement,
            [
                all_mac, owner, &vip, all, hops, "", &vip, "0", "0", "1", owner, "1"
            ]
        );
    }
    // RFC 4862 section 5.4.2, RFC 7527.
    let asked = format!("icmpv6.nd.ns.target_address == {vip}");
    let probes = neighbour_discovery(&capture, &format!("{asked} && ipv6.src == ::")).unwrap();
    assert!(probes.len() >= 2, "{probes:?}");
    for probe in probes {
        assert_eq!(
            probe,
            [
                group_mac, owner, "::", group, hops, &vip, "", "", "", "", "", "1"
            ]
        );
    }
    let nonces = capture
        .decode(&format!("{asked} && icmpv6.opt.nonce"), &["eth.src"])
        .unwrap();
    assert!(nonces.len() >= 2, "{nonces:?}");
    assert!(nonces.iter().all(|of| of[..] == [owner]), "{nonces:?}");

    // Neighbour Unreachability Detection asks the address itself.
    lab.client
        .sh(&format!(
            "ip neigh replace {vip} lladdr {owner} dev eth1 nud probe"
        ))
        .unwrap();
    wait_for("reachability to be confirmed", PATIENCE, || {
        let (mac, state) = neighbour(&lab.client, V6)?;
        ensure!(mac == owner && state == "REACHABLE", "{mac} {state}");
        Ok(())
    });
    wait_for("the unicast question in the capture", PATIENCE, || {
        let asked = format!("{asked} && eth.dst == {owner} && ipv6.dst == {vip}");
        ensure!(!capture.decode(&asked, &["frame.number"])?.is_empty());
        Ok(())
    });
    let claimed: BTreeSet<String> = capture
        .decode(&told, &["eth.src"])
        .unwrap()
        .concat()
        .into_iter()
        .collect();
    assert_eq!(
        claimed.into_iter().collect::<Vec<_>>(),
        [owner],
        "nobody else"
    );
    // The client itself may refuse an answer that came too late for it.
    let errors = format!("_ws.malformed || (icmpv6.type < 128 && eth.src != {client_mac})");
    let errors = capture.decode(&errors, &["frame.number"]).unwrap();
    assert_eq!(errors.len(), 0, "none is malformed, no ICMPv6 error");
}

#[test]
fn a_switch_that_snoops_on_mld_passes_solicitations_also_after_a_flap() {
    if !as_root() {
        return;
    }
    let switch = switch();
    // It queries, so it forwards to who has reported; times in 10 ms.
    switch
        .sh("sysctl -qw net.ipv6.conf.br0.accept_dad=0
             ip link set br0 down
             ip link set br0 type bridge mcast_snooping 1 \
               mcast_query_response_interval 10 mcast_startup_query_interval 10
             ip link set br0 type bridge mcast_querier 1
             ip link set br0 up")
        .unwrap();
    let lab = Lab::steady(switch, V6, 1);
    let bystander = host(&lab.switch, "bystander", "bystander", 77);
    let capture = Capture::start(&bystander, "eth1", "icmp6").unwrap();
    let owner = lab.nodes[0].mac.clone();
    let reported = || {
        wait_for("the report at the switch", PATIENCE, || {
            let groups = lab.switch.sh("bridge mdb show dev br0")?;
            let ours =
                |line: &str| line.contains(" port p1 ") && line.contains(" grp ff02::1:ffc0:200 ");
            ensure!(groups.lines().any(ours), "{groups}");
            Ok(())
        });
    };
    let resolved = || {
        lab.client.sh("ip neigh flush dev eth1").unwrap();
        wait_for("the address's resolution", PATIENCE, || {
            let _ = lab.client.sh(&format!("ping -c 1 -W 1 {V6}"));
            let (mac, _) = neighbour(&lab.client, V6)?;
            ensure!(mac == owner, "{mac}");
            Ok(())
        });
    };
    lab.assign_all();
    lab.wait_owner(0);
    reported();
    resolved();
    lab.switch.sh("ip link set p1 down").unwrap();
    wait_for("the lost carrier", PATIENCE, || {
        ensure!(!lab.nodes[0].handle.snapshot().interfaces["eth1"].carrier);
        Ok(())
    });
    lab.switch.sh("ip link set p1 up").unwrap();
    lab.wait_owner(0);
    reported();
    resolved();

    // What was for the group alone came to nobody else.
    wait_for("an announcement at the bystander's", PATIENCE, || {
        let told = format!("icmpv6.nd.na.target_address == {V6}");
        ensure!(!capture.decode(&told, &["frame.number"])?.is_empty());
        Ok(())
    });
    let asked = format!(
        "icmpv6.nd.ns.target_address == {V6} && eth.src == {}",
        mac(&lab.client, "eth1")
    );
    let asked = capture.decode(&asked, &["frame.number"]).unwrap();
    assert_eq!(asked.len(), 0, "the switch floods, so this proves nothing");
}
