//! From BGPPeer, BFDProfile and BGPAdvertisement to the wire: API objects in,
//! FRR's view out.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may panic"
)]

mod watched;
mod world;

use std::net::{SocketAddr, TcpListener};

use anyhow::ensure;
use bellrock_bgp::Password;
use bellrock_e2e::netns::{as_root, wait_for};
use bellrock_speaker::apply::bgp::Bgp;
use bellrock_speaker::cluster::Change;
use serde_json::json;

use world::{LONG, World};

fn frr(six: &str, four: &str) -> String {
    format!(
        "router bgp 64513\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n \
         neighbor 2001:db8::10 remote-as 64512\n neighbor 2001:db8::10 passive\n \
         neighbor 192.0.2.10 remote-as {four}\n neighbor 192.0.2.10 passive\n {six}\
         address-family ipv4 unicast\n  no neighbor 2001:db8::10 activate\n  \
         exit-address-family\n address-family ipv6 unicast\n  \
         neighbor 2001:db8::10 activate\n  neighbor 192.0.2.10 activate\n \
         exit-address-family\nexit\n"
    )
}

#[test]
fn a_password_from_a_secret_guards_an_ipv6_session_and_may_change() {
    if !as_root() {
        return;
    }
    let password = "neighbor 2001:db8::10 password first\n ";
    let mut world = World::new(&frr(password, "64512"));
    world.advertise("all", &json!({ "aggregationLengthV6": 64 }));
    let secret = json!({ "peerAddress": "2001:db8::1", "passwordSecret": { "name": "tor" } });
    world.peer("six", &secret);
    world.peer("four", &json!({ "peerAddress": "192.0.2.1" }));
    world.turn();
    world.wait_kernel(&["198.51.100.1"]);
    assert!(
        !world.bgp.status().contains_key("six"),
        "no session without"
    );

    let missing = "there is no such Secret".to_owned();
    world.apply(Change::Password("tor".into(), Err(missing)));
    world.turn();
    let refused = world.bgp.refused()["six"].clone();
    assert_eq!(refused, "Secret tor: there is no such Secret");

    world.apply(Change::Password("tor".into(), Ok(Password::new("first"))));
    world.turn();
    world.wait_established("six");
    world.wait_kernel(&["198.51.100.1", "2001:db8:5::/64"]);
    assert!(world.bgp.refused().is_empty());

    // The password changes on both sides; the other session does not notice.
    let four = world.opens()["four"];
    let line = "router bgp 64513\n neighbor 2001:db8::10 password second\nexit\n";
    world.frr.apply(line).unwrap();
    world.apply(Change::Password("tor".into(), Ok(Password::new("second"))));
    world.turn();
    world.wait_established("six");
    world.wait_kernel(&["198.51.100.1", "2001:db8:5::/64"]);
    assert_eq!(world.opens()["four"], four);
    world.wait_established("four");

    // A Secret that goes leaves the last password in force, and is told.
    let six = world.opens()["six"];
    let gone = "it is gone".to_owned();
    world.apply(Change::Password("tor".into(), Err(gone)));
    world.turn();
    assert!(world.bgp.refused()["six"].contains("it is gone"));
    assert_eq!(world.opens()["six"], six);
}

#[test]
fn policy_and_another_as_reach_the_router_and_a_change_of_it_is_only_a_difference() {
    if !as_root() {
        return;
    }
    let mut world = World::new(&frr("", "65000"));
    let peer = json!({
        "peerAddress": "192.0.2.1", "localASN": 65000, "dualStackAddressFamily": true,
    });
    world.peer("four", &peer);
    let policy = json!({
        "communities": ["64512:7", "large:64512:8:9", "rt:64512:10"],
        "asPathPrepend": 1, "weightByEndpoints": true,
    });
    world.advertise("policy", &policy);
    world.turn();
    world.wait_kernel(&["198.51.100.1", "2001:db8:5::1"]);
    let said = world.says("show bgp ipv4 unicast 198.51.100.1/32");
    for words in [
        "65000 65000",
        "Community: 64512:7",
        "Large Community: 64512:8:9",
        "RT:64512:10",
        "LB:65000:250000",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let said = world.says("show bgp ipv6 unicast 2001:db8:5::1/128");
    assert!(said.contains("2001:db8::10 from 192.0.2.10"), "{said}");
    assert!(said.contains("LB:65000:125000"), "one endpoint: {said}");

    let before = world.bgp.status()["four"].1.clone();
    world.advertise("policy", &json!({ "communities": ["64512:8"] }));
    world.turn();
    wait_for("the new community", LONG, || {
        let said = world.says("show bgp ipv4 unicast 198.51.100.1/32");
        ensure!(said.contains("Community: 64512:8\n"), "{said}");
        Ok(())
    });
    let after = world.bgp.status()["four"].1.clone();
    assert_eq!(after.messages_sent.open, before.messages_sent.open);
    let updates = after.messages_sent.update - before.messages_sent.update;
    assert!(updates <= 2, "one for each family, not {updates}");

    // Two that disagree: the route goes, with a reason.
    world.advertise("policy", &json!({ "localPref": 100 }));
    world.advertise("other", &json!({ "localPref": 200 }));
    world.turn();
    world.wait_kernel(&[]);
}

#[test]
fn a_router_may_open_the_session_once_the_port_is_free() {
    if !as_root() {
        return;
    }
    let config = "router bgp 64513\n bgp router-id 192.0.2.1\n no bgp ebgp-requires-policy\n \
                  neighbor 192.0.2.10 remote-as 64512\n \
                  neighbor 192.0.2.10 timers connect 1\nexit\n";
    let mut world = World::new(config);
    let port: SocketAddr = "192.0.2.10:179".parse().unwrap();
    world.bgp = Bgp::at(&[port]);
    let taken = world.node.run(|| TcpListener::bind(port)).unwrap().unwrap();
    world.listen();
    world.advertise("all", &json!({}));
    // Nobody listens there: the router's own connection must do.
    world.peer("tor", &json!({ "peerAddress": "192.0.2.1", "peerPort": 1 }));
    world.turn();
    let refused = world.bgp.refused();
    let why = &refused["at 192.0.2.10:179"];
    assert!(why.contains("in use"), "{refused:?}");
    assert!(
        !world.bgp.status().is_empty(),
        "the session is tried all the same"
    );

    drop(taken);
    wait_for("the port", LONG, || {
        world.listen();
        let refused = world.bgp.refused();
        ensure!(refused.is_empty(), "{refused:?}");
        Ok(())
    });
    world.wait_established("tor");
    world.wait_kernel(&["198.51.100.1"]);
}
