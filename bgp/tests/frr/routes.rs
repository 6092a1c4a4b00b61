//! Routes come and go as the router sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bellrock_bgp::{Attributes, Peer, PeerAsn, Refusal, State, StopReason};
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::*;

#[test]
fn routes_come_change_and_go_in_frr_and_its_kernel() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let peer = lab.spawn(
        config(),
        routes(&["198.51.100.1/32", "198.51.100.2/32", "198.51.100.3/32"]),
    );
    let status = wait_established(&peer);
    assert_eq!(status.peer_router_id, Some(ROUTER.parse().unwrap()));
    assert_eq!(
        (status.peer_asn, status.hold_time),
        (Some(64513), Some(Duration::from_secs(90)))
    );

    wait_kernel(
        &lab.router,
        &["198.51.100.1", "198.51.100.2", "198.51.100.3"],
    );
    let all = frr.json("show bgp ipv4 unicast json").unwrap();
    for n in 1..=3 {
        let route = &all["routes"][format!("198.51.100.{n}/32")][0];
        assert_eq!(route["path"], "64512", "{all}");
        assert_eq!(route["origin"], "IGP");
        assert_eq!(route["nexthops"][0]["ip"], NODE);
        assert_eq!(route["valid"], true);
    }
    assert!(kernel(&lab.router).unwrap()[0].contains(&format!("via {NODE} dev eth0")));

    lab.runtime.block_on(peer.withdraw(net("198.51.100.2/32")));
    wait_kernel(&lab.router, &["198.51.100.1", "198.51.100.3"]);

    let tagged = Attributes {
        communities: BTreeSet::from([64512 << 16 | 7]),
        ..Default::default()
    };
    lab.runtime
        .block_on(peer.announce(net("198.51.100.1/32"), tagged));
    wait_for("the community in FRR", LONG, || {
        let path = path(&frr, "198.51.100.1/32");
        ensure!(path["community"]["string"] == "64512:7", "{path}");
        Ok(())
    });

    // Route refresh: FRR asks for everything again, and keeps what it had.
    let before = peer.status().borrow().messages_sent.update;
    frr.vtysh(&format!("clear bgp ipv4 unicast {NODE} in"))
        .unwrap();
    let status = wait_status(&peer, "routes sent again", |status| {
        status.messages_received.route_refresh == 1 && status.messages_sent.update == before + 2
    });
    assert_eq!(status.prefixes_sent, 2);
    wait_kernel(&lab.router, &["198.51.100.1", "198.51.100.3"]);

    let text = Some("node drained".to_owned());
    lab.runtime
        .block_on(peer.stop(StopReason::AdministrativeShutdown(text)));
    wait_kernel(&lab.router, &[]);
    let neighbor = neighbor(&frr, NODE);
    assert_eq!(
        neighbor["lastResetDueTo"], "BGP Notification received",
        "{neighbor}"
    );
    assert_eq!(
        neighbor["lastNotificationReason"],
        "Cease/Administrative Shutdown"
    );
    assert_eq!(neighbor["lastShutdownDescription"], "node drained");
}

#[test]
fn wireshark_decodes_all_that_we_send_and_finds_nothing_malformed() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let capture = Capture::start(&lab.node);
    let mut wanted = routes(&["198.51.100.1/32"]);
    wanted.insert(
        net("198.51.100.128/25"),
        Attributes {
            communities: BTreeSet::from([64512 << 16 | 7, 0xffff_ff01]),
            ..Attributes::default()
        },
    );
    let peer = lab.spawn(config(), wanted);
    wait_kernel(&lab.router, &["198.51.100.1", "198.51.100.128/25"]);
    lab.runtime
        .block_on(peer.withdraw(net("198.51.100.128/25")));
    wait_kernel(&lab.router, &["198.51.100.1"]);
    lab.runtime
        .block_on(peer.stop(StopReason::PeerDeconfigured));
    wait_for("the reason in FRR", LONG, || {
        let reason = neighbor(&frr, NODE)["lastNotificationReason"].clone();
        ensure!(reason == "Cease/Peer De-configured", "{reason}");
        Ok(())
    });

    let ours = format!("ip.src == {NODE} && bgp");
    wait_for("the NOTIFICATION in the capture", LONG, || {
        let fields = ["bgp.notify.major_error", "bgp.notify.minor_error_cease"];
        let seen = capture.read(&format!("{ours} && bgp.type == 3"), &fields)?;
        ensure!(seen == ["6\t3"], "{seen:?}");
        Ok(())
    });
    assert_eq!(
        capture
            .read("_ws.malformed && bgp", &["frame.number"])
            .unwrap(),
        [""; 0]
    );

    let open = capture
        .read(
            &format!("{ours} && bgp.type == 1"),
            &[
                "bgp.open.myas",
                "bgp.open.holdtime",
                "bgp.open.identifier",
                "bgp.cap.type",
            ],
        )
        .unwrap();
    // FRR turns connections away until a second after its configuration.
    let expected = format!("64512\t90\t{NODE}\t1,1,2,6,65,70");
    assert!(
        !open.is_empty() && open.iter().all(|line| *line == expected),
        "{open:?}"
    );
    let ttl = capture.read(&ours, &["ip.ttl", "ip.dsfield.dscp"]).unwrap();
    assert!(ttl.iter().all(|line| line == "1\t48"), "{ttl:?}");

    let fields = [
        "bgp.nlri_prefix",
        "bgp.prefix_length",
        "bgp.update.path_attribute.type_code",
        "bgp.update.path_attribute.origin",
        "bgp.update.path_attribute.as_path_segment.as4",
        "bgp.update.path_attribute.next_hop",
        "bgp.update.path_attribute.community_as",
        "bgp.update.path_attribute.community_value",
        "bgp.update.path_attribute.community_wellknown",
        "bgp.withdrawn_prefix",
    ];
    // Wireshark joins the fields of one packet with commas.
    let updates = capture
        .read(&format!("{ours} && bgp.type == 2"), &fields)
        .unwrap();
    let columns = |column: usize| -> String {
        let cells: Vec<_> = updates
            .iter()
            .filter_map(|line| line.split('\t').nth(column))
            .collect();
        cells
            .into_iter()
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(columns(0), "198.51.100.1,198.51.100.128", "{updates:?}");
    assert_eq!(columns(1), "32,25,25", "{updates:?}");
    assert_eq!(columns(2), "1,2,3,1,2,3,8", "{updates:?}");
    assert_eq!(columns(3), "0,0", "{updates:?}");
    assert_eq!(columns(4), "64512,64512", "{updates:?}");
    assert_eq!(columns(5), format!("{NODE},{NODE}"), "{updates:?}");
    assert_eq!(
        (columns(6), columns(7)),
        ("64512".into(), "7".into()),
        "{updates:?}"
    );
    assert_eq!(columns(8), "0xffffff01", "NO_EXPORT: {updates:?}");
    assert_eq!(columns(9), "198.51.100.128", "{updates:?}");
}

#[test]
fn two_announcers_of_one_address_become_two_next_hops() {
    if !as_root() {
        return;
    }
    let router = Netns::new("router").unwrap();
    router.bridge("br0").unwrap();
    router
        .sh(&format!("ip addr add {ROUTER}/24 dev br0"))
        .unwrap();
    let addresses = ["192.0.2.10", "192.0.2.11"];
    let frr = Frr::start(&router, &frr_config(&addresses, "64512")).unwrap();
    let nodes: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(n, address)| {
            let node = Netns::new("node").unwrap();
            veth(&node, "eth0", &router, &format!("port{n}")).unwrap();
            router
                .sh(&format!("ip link set port{n} master br0"))
                .unwrap();
            node.sh(&format!("ip addr add {address}/24 dev eth0"))
                .unwrap();
            let runtime = runtime_in(&node);
            let mut config = config();
            config.router_id = address.parse().unwrap();
            let peer = {
                let _guard = runtime.enter();
                Peer::spawn(config, routes(&["198.51.100.1/32"])).unwrap()
            };
            (node, runtime, peer)
        })
        .collect();
    wait_for("two next hops in the kernel", LONG, || {
        let text = router.sh("ip route show 198.51.100.1")?;
        ensure!(
            addresses
                .iter()
                .all(|address| text.contains(&format!("nexthop via {address}")))
        );
        Ok(())
    });
    // One leaves: the other carries on.
    let mut nodes = nodes.into_iter();
    let (_first, runtime, peer) = nodes.next().unwrap();
    runtime.block_on(peer.stop(StopReason::PeerDeconfigured));
    wait_for("one next hop in the kernel", LONG, || {
        let text = router.sh("ip route show 198.51.100.1")?;
        ensure!(
            text.contains("via 192.0.2.11") && !text.contains("192.0.2.10"),
            "{text}"
        );
        Ok(())
    });
    drop((nodes, frr));
}

#[test]
fn inside_one_as_the_local_preference_arrives_and_the_path_is_empty() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = Frr::start(&lab.router, &frr_config(&[NODE], "64513")).unwrap();
    let mut config = config();
    config.local_asn = 64513;
    config.peer_asn = PeerAsn::Internal;
    let mut wanted = routes(&["198.51.100.1/32"]);
    let preferred = Attributes {
        local_pref: Some(250),
        ..Attributes::default()
    };
    wanted.insert(net("198.51.100.2/32"), preferred);
    let _peer = lab.spawn(config, wanted);
    wait_kernel(&lab.router, &["198.51.100.1", "198.51.100.2"]);
    for (prefix, preference) in [("198.51.100.1/32", 100), ("198.51.100.2/32", 250)] {
        let path = path(&frr, prefix);
        assert_eq!(path["locPrf"], preference, "{path}");
        assert_eq!(path["aspath"]["string"], "Local", "{path}");
    }
}

#[test]
fn ipv6_routes_and_ipv4_routes_with_a_next_hop_cross_an_ipv6_session() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let text = format!(
        "router bgp 64513\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n \
         neighbor 2001:db8::10 remote-as 4200000001\n neighbor 2001:db8::10 passive\n \
         address-family ipv6 unicast\n  neighbor 2001:db8::10 activate\n \
         exit-address-family\nexit\n"
    );
    let frr = Frr::start(&lab.router, &text).unwrap();
    let mut config = config();
    config.address = "2001:db8::1".parse().unwrap();
    config.source = Some("2001:db8::10".parse().unwrap());
    config.local_asn = 4_200_000_001;
    let mut wanted = routes(&["2001:db8:1::1/128", "2001:db8:1::/48", "198.51.100.1/32"]);
    let explicit = Attributes {
        next_hop: Some(NODE.parse().unwrap()),
        ..Attributes::default()
    };
    wanted.insert(net("198.51.100.2/32"), explicit);
    let peer = lab.spawn(config, wanted);
    wait_kernel(
        &lab.router,
        &["198.51.100.2", "2001:db8:1::/48", "2001:db8:1::1"],
    );
    let status = peer.status().borrow().clone();
    assert_eq!(status.prefixes_sent, 3);
    assert_eq!(
        status.prefixes_refused,
        BTreeMap::from([(Refusal::NoNextHop, 1)])
    );
    let all = frr.json("show bgp ipv6 unicast json").unwrap();
    assert_eq!(
        all["routes"]["2001:db8:1::1/128"][0]["path"], "4200000001",
        "{all}"
    );

    lab.runtime.block_on(peer.change(vec![
        (net("2001:db8:1::1/128"), None),
        (net("198.51.100.2/32"), None),
    ]));
    wait_kernel(&lab.router, &["2001:db8:1::/48"]);
}

#[test]
fn ten_thousand_addresses_take_thirteen_updates() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let peer = lab.spawn(config(), BTreeMap::new());
    wait_established(&peer);
    let before = wait_status(&peer, "End-of-RIB", |status| {
        status.messages_sent.update == 1
    });
    assert_eq!(before.state, State::Established);

    let prefixes: Vec<IpNet> = (0..10_000_u32)
        .map(|n| net(&format!("10.0.{}.{}/32", n / 250, n % 250)))
        .collect();
    let count = || -> anyhow::Result<u64> {
        let summary = frr.json("show bgp ipv4 unicast summary json")?;
        Ok(summary["peers"][NODE]["pfxRcd"].as_u64().unwrap_or(0))
    };
    let routes = prefixes
        .iter()
        .map(|prefix| (*prefix, Some(Attributes::default())))
        .collect();
    let start = Instant::now();
    lab.runtime.block_on(peer.change(routes));
    let sent = wait_status(&peer, "all sent", |status| status.prefixes_sent == 10_000);
    let sent_after = start.elapsed();
    wait_for("all in FRR", LONG, || {
        let count = count()?;
        ensure!(count == 10_000, "{count}");
        Ok(())
    });
    let received_after = start.elapsed();
    let updates = sent.messages_sent.update - before.messages_sent.update;
    println!(
        "10000 /32s: {updates} UPDATEs, sent after {sent_after:?}, in FRR after {received_after:?}"
    );
    assert!(updates <= 13, "{updates} UPDATEs");

    let start = Instant::now();
    lab.runtime
        .block_on(peer.change(prefixes.iter().map(|prefix| (*prefix, None)).collect()));
    wait_for("all gone from FRR", LONG, || {
        let count = count()?;
        ensure!(count == 0, "{count}");
        Ok(())
    });
    let after = wait_status(&peer, "all withdrawn", |status| status.prefixes_sent == 0);
    let updates = after.messages_sent.update - sent.messages_sent.update;
    println!(
        "10000 withdrawn: {updates} UPDATEs, gone from FRR after {:?}",
        start.elapsed()
    );
    assert!(updates <= 13, "{updates} UPDATEs");
    wait_for("the kernel's routes gone", Duration::from_secs(120), || {
        let left = kernel(&lab.router)?.len();
        ensure!(left == 0, "{left} routes");
        Ok(())
    });
}

#[test]
fn the_example_announces_until_ctrl_c_and_says_goodbye() {
    if !as_root() {
        return;
    }
    let lab = lab();
    let frr = frr(&lab);
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/announce");
    assert!(
        program.exists(),
        "build the example first: cargo build -p bellrock-bgp --example announce"
    );
    let child = lab
        .node
        .command(program.to_str().unwrap())
        .args([
            "--peer",
            ROUTER,
            "--source",
            NODE,
            "--local-asn",
            "64512",
            "--peer-asn",
            "64513",
        ])
        .args([
            "--prefix",
            "198.51.100.0/31",
            "--count",
            "2",
            "--community",
            "64512:7",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut example = Process(child);
    wait_kernel(&lab.router, &["198.51.100.0/31", "198.51.100.2/31"]);
    assert_eq!(
        path(&frr, "198.51.100.2/31")["community"]["string"],
        "64512:7"
    );
    let pid = Pid::from_raw(example.0.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert!(example.0.wait().unwrap().success());
    let mut said = String::new();
    example
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("Established: 2 of 2 prefixes sent"), "{said}");
    assert!(said.ends_with("session ended\n"), "{said}");
    wait_kernel(&lab.router, &[]);
    let neighbor = neighbor(&frr, NODE);
    assert_eq!(
        neighbor["lastNotificationReason"], "Cease/Administrative Shutdown",
        "{neighbor}"
    );
}
