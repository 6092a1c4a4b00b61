//! Two nodes with unequal shares: the router's kernel balances by them.

use anyhow::ensure;
use bellrock_bgp::{Attributes, Peer, PeerAsn, PeerConfig};
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, as_root, veth, wait_for};

use crate::kind::LONG;
use crate::setup::{ROUTER, net, runtime_in};

#[test]
fn frr_turns_weights_into_kernel_weights() {
    if !as_root() {
        return;
    }
    let router = Netns::new("router").unwrap();
    router.bridge("br0").unwrap();
    router
        .sh(&format!("ip addr add {ROUTER}/24 dev br0"))
        .unwrap();
    let nodes = [("192.0.2.10", 1), ("192.0.2.11", 3)];
    let mut text =
        format!("router bgp 64513\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n");
    for (address, _) in nodes {
        text += &format!(" neighbor {address} remote-as 64512\n neighbor {address} passive\n");
    }
    text += " address-family ipv4 unicast\n  maximum-paths 8\n exit-address-family\nexit\n";
    let _frr = Frr::start(&router, &text).unwrap();
    let _running: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(n, (address, weight))| {
            let node = Netns::new("node").unwrap();
            veth(&node, "eth0", &router, &format!("port{n}")).unwrap();
            router
                .sh(&format!("ip link set port{n} master br0"))
                .unwrap();
            node.sh(&format!("ip addr add {address}/24 dev eth0"))
                .unwrap();
            let runtime = runtime_in(&node);
            let mut config = PeerConfig::new(
                ROUTER.parse().unwrap(),
                64512,
                PeerAsn::Exact(64513),
                address.parse().unwrap(),
            );
            config.connect_retry = std::time::Duration::from_secs(1);
            let attributes = Attributes {
                weight: Some(*weight),
                ..Attributes::default()
            };
            let peer = {
                let _guard = runtime.enter();
                Peer::spawn(config, [(net("198.51.100.1/32"), attributes)].into()).unwrap()
            };
            (node, runtime, peer)
        })
        .collect();
    wait_for("weights of one to three in the kernel", LONG, || {
        let said = router.sh("ip route show 198.51.100.1")?;
        let weight = |address: &str| -> Option<u32> {
            let line = said.lines().find(|line| line.contains(address))?;
            let mut words = line.split_whitespace();
            words.find(|word| *word == "weight")?;
            words.next()?.parse().ok()
        };
        let weights = (weight("192.0.2.10"), weight("192.0.2.11"));
        let (Some(one), Some(three)) = weights else {
            anyhow::bail!("{said}");
        };
        ensure!(one > 0 && three == 3 * one, "{said}");
        Ok(())
    });
}
