//! Frames to groups are filtered between nodes: an address is left to the node
//! that answers for it, and it is told why.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(dead_code, reason = "the bus serves other tests too")]

mod bus;

use std::net::IpAddr;
use std::time::Duration;

use bellrock_arp::frame::{ETHERTYPE, Ethernet, GROUP};
use bellrock_arp::{Event, Instant, State};
use bus::{Bus, assignment, mac, ms, name, vip};

const V: fn() -> IpAddr = || vip(1);

/// What node 0 sends to the group.
fn groups_of_the_first(frame: &[u8]) -> bool {
    let ethernet = Ethernet::decode(frame).unwrap();
    ethernet.source == mac(0) && ethernet.destination == GROUP && ethernet.ethertype == ETHERTYPE
}

fn filtered(bus: &Bus, of: usize, since: Instant) -> Vec<(IpAddr, String)> {
    let events = bus.events_of(of, since).into_iter();
    events
        .filter_map(|event| match event {
            Event::HelloFiltered { address, node, .. } => Some((address, node)),
            _ => None,
        })
        .collect()
}

/// Nodes 0 and 1; 0 has two addresses, and its HELLOs do not come.
fn filter(seed: u64) -> Bus {
    let mut bus = Bus::settled(2, seed);
    for node in 0..2 {
        bus.assign(node, vip(2), assignment(&[0, 1]));
    }
    bus.run(ms(2_000));
    assert_eq!(bus.owners(vip(2)), [0]);
    assert_eq!(bus.view(1, V()).filtered, None);
    bus.drop = Some(groups_of_the_first);
    bus
}

#[test]
fn nothing_is_claimed_from_a_node_that_answers_unheard_and_each_address_says_so_once() {
    for seed in 0..20 {
        let mut bus = filter(seed);
        let start = bus.now;
        let noted = bus.run_until(ms(3_000), |bus| {
            [1, 2].map(|n| bus.view(1, vip(n)).filtered) == [Some(name(0)), Some(name(0))]
        });
        assert!(noted.is_some(), "seed {seed}");
        // It stays so, whatever is tried meanwhile.
        for _ in 0..200 {
            bus.run(ms(57));
            for n in [1, 2] {
                let view = bus.view(1, vip(n));
                assert_eq!(view.filtered, Some(name(0)), "seed {seed}: {view:?}");
            }
        }
        bus.run(Duration::from_secs(180));
        assert_eq!([bus.owners(V()), bus.owners(vip(2))], [[0], [0]]);
        let mut told = filtered(&bus, 1, start);
        told.sort();
        assert_eq!(told, [(V(), name(0)), (vip(2), name(0))], "seed {seed}");
        // Nor is it called silent and heard again in turns.
        let steady = Instant::from_start(start.since(Instant(0)) + ms(5_000));
        let news = bus
            .peers
            .iter()
            .filter(|(at, of, _)| *at >= steady && *of == 1);
        assert_eq!(news.count(), 0, "seed {seed}");
        assert_eq!(
            bus.view(0, V()).filtered,
            None,
            "the owner is kept from nothing"
        );
    }
}

#[test]
fn it_ends_when_the_hello_comes() {
    let mut bus = filter(3);
    bus.run_until(ms(3_000), |bus| bus.view(1, V()).filtered.is_some())
        .unwrap();
    bus.drop = None;
    let took = bus.run_until(ms(1_000), |bus| bus.view(1, V()).filtered.is_none());
    assert!(took.unwrap() <= ms(150), "{took:?}");
    assert_eq!(bus.view(1, V()).state, State::Idle);
    // A filter that comes and goes is told at most once a minute.
    let first = filtered(&bus, 1, Instant(0)).len();
    for _ in 0..5 {
        bus.drop = Some(groups_of_the_first);
        bus.run(ms(3_000));
        assert_eq!(bus.view(1, V()).filtered, Some(name(0)));
        bus.drop = None;
        bus.run(ms(500));
    }
    assert!(filtered(&bus, 1, Instant(0)).len() <= first.max(2));
}

#[test]
fn it_ends_when_the_address_is_claimed_and_then_the_node_is_called_silent() {
    let mut bus = filter(4);
    bus.run_until(ms(3_000), |bus| bus.view(1, vip(2)).filtered.is_some())
        .unwrap();
    bus.run(ms(3_000));
    let died = bus.now;
    bus.kill(0);
    bus.run_until(ms(5_000), |bus| {
        bus.owners(V()) == [1] && bus.owners(vip(2)) == [1]
    })
    .unwrap();
    for n in [1, 2] {
        assert_eq!(bus.view(1, vip(n)).filtered, None);
    }
    bus.run(ms(500));
    let silent = bus.peers.iter().any(|(at, of, event)| {
        *at >= died
            && *of == 1
            && matches!(event, Event::PeerSilent { node, .. } if *node == name(0))
    });
    assert!(silent, "{:?}", bus.peers);
}

#[test]
fn it_ends_where_another_node_claims_it() {
    let mut bus = Bus::settled(3, 5);
    bus.drop = Some(groups_of_the_first);
    bus.run_until(ms(5_000), |bus| {
        [1, 2].map(|node| bus.view(node, V()).filtered) == [Some(name(0)), Some(name(0))]
    })
    .unwrap();
    bus.kill(0);
    bus.run_until(ms(5_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    bus.run(ms(500));
    assert_eq!(bus.view(2, V()).owner, Some(name(1)));
    assert_eq!(bus.view(2, V()).filtered, None);
}
