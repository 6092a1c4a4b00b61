//! Nodes that hear nobody: a cable that fails in one direction, or all others dead.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(dead_code, reason = "the bus serves other tests too")]

mod bus;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bellrock_arp::frame::{Arp, Ethernet};
use bellrock_arp::ownership::Input;
use bellrock_arp::{Cause, Event, Instant, MacAddr, State};
use bus::{BOUND, Bus, STRANGER, arp_of, assignment, mac, ms, recorded, v4, vip};

const V: fn() -> IpAddr = || vip(1);

/// How often node `of` announced an address since `since`.
fn announced(bus: &Bus, of: usize, address: IpAddr, since: Instant) -> usize {
    let announcement = Arp::announcement(mac(of), v4(address));
    bus.sent
        .iter()
        .filter(|(at, from, frame)| {
            *at > since && *from == of && arp_of(frame) == Some(announcement)
        })
        .count()
}

/// Frames that reach node 0.
fn none_to_the_first(frame: &[u8]) -> bool {
    Ethernet::decode(frame).unwrap().source != mac(0)
}

#[test]
fn an_owner_that_hears_nobody_says_so_and_the_next_takes_over_for_good() {
    let mut bus = Bus::settled(2, 30);
    let start = bus.now;
    bus.record_sent = true;
    // Node 1's frames do not come to node 0, which is heard.
    bus.drop = Some(none_to_the_first);
    let took = bus
        .run_until(ms(1_000), |bus| bus.state(1, V()) == State::Own)
        .unwrap();
    assert!(took <= BOUND, "{took:?}");
    assert_eq!(bus.state(0, V()), State::Deaf);
    let deaf = bus.now;
    bus.run(Duration::from_secs(130));
    assert_eq!(
        announced(&bus, 0, V(), deaf),
        0,
        "it would draw clients to it"
    );
    assert!(announced(&bus, 1, V(), deaf) > 5);
    assert!(matches!(
        bus.events_of(1, start)[..],
        [Event::Owned {
            cause: Cause::OwnerDeaf,
            ..
        }]
    ));
    bus.drop = None;
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [1]);
}

/// Both nodes hear nobody; node 0 held the address, node 1 took it, and node 0
/// has read so. The epoch that it read.
fn told_of_the_takeover(seed: u64) -> (Bus, u64) {
    let mut bus = Bus::settled(2, seed);
    bus.nodes[1].part = 1;
    let took = bus.run_until(ms(1_000), |bus| bus.state(1, V()) == State::Own);
    assert!(took.is_some_and(|took| took <= BOUND), "{took:?}");
    assert_eq!(bus.state(0, V()), State::Deaf);
    let epoch = bus.view(1, V()).epoch;
    let mut told = assignment(&[0, 1]);
    told.recorded = recorded(1, epoch);
    bus.assign(0, V(), told);
    bus.run(ms(500));
    assert_eq!(bus.state(0, V()), State::Deaf);
    (bus, epoch)
}

#[test]
fn an_owner_that_read_of_the_takeover_while_it_was_cut_off_takes_nothing_back() {
    let (mut bus, epoch) = told_of_the_takeover(43);
    bus.nodes[1].part = 0;
    bus.run(ms(500));
    let healed = bus.now;
    bus.run(ms(10_000));
    assert_eq!(bus.owners(V()), [1]);
    assert_eq!(bus.view(1, V()).epoch, epoch);
    assert!(bus.events_of(0, healed).is_empty());
}

#[test]
fn an_owner_that_read_of_a_takeover_for_which_nobody_stands_claims_above_it() {
    let (mut bus, epoch) = told_of_the_takeover(44);
    // Node 1 starts anew, and has been told of nothing.
    bus.kill(1);
    bus.nodes[1].told.clear();
    bus.nodes[1].part = 0;
    bus.start(1);
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [0]);
    assert!(bus.view(0, V()).epoch > epoch);
}

#[test]
fn who_outlives_all_others_takes_their_addresses_and_answers_on_for_its_own() {
    let mut bus = Bus::settled(2, 31);
    bus.assign(0, vip(2), assignment(&[1, 0]));
    bus.assign(1, vip(2), assignment(&[1, 0]));
    bus.run(ms(3_000));
    assert_eq!(bus.owners(vip(2)), [1]);
    bus.kill(1);
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(vip(2)) == [0])
        .unwrap();
    assert!(took <= BOUND, "{took:?}");
    assert_eq!(bus.state(0, V()), State::Deaf);
    assert_eq!(bus.state(0, vip(2)), State::Own);
    // The other returns: what was held meanwhile is asked for, and kept.
    bus.start(1);
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [0]);
    assert_eq!(bus.owners(vip(2)), [0]);
}

/// Two nodes and a host, of which node 0 has heard. Node 1, which held address
/// 2, is dead, and node 0 has it.
fn survivor(seed: u64, host: Option<Ipv4Addr>) -> Bus {
    let mut bus = Bus::settled(2, seed);
    for index in 0..2 {
        bus.assign(index, vip(2), assignment(&[1, 0]));
    }
    bus.run(ms(3_000));
    assert_eq!(bus.owners(vip(2)), [1]);
    bus.stranger = host;
    if let Some(host) = host {
        let asks = Arp {
            sender: host,
            ..Arp::probe(STRANGER, Ipv4Addr::new(10, 0, 200, 1))
        };
        bus.inject(1, &asks.frame());
    }
    bus.record_sent = true;
    bus.kill(1);
    let took = bus.run_until(ms(1_000), |bus| bus.owners(vip(2)) == [0]);
    assert!(took.is_some_and(|took| took <= BOUND), "{took:?}");
    bus
}

#[test]
fn a_survivor_announces_what_it_took_as_long_as_a_host_is_heard() {
    let mut bus = survivor(36, Some(Ipv4Addr::new(10, 0, 200, 7)));
    let took = bus.now;
    bus.run(Duration::from_secs(130));
    assert_eq!(bus.state(0, vip(2)), State::Own);
    assert!(announced(&bus, 0, vip(2), took) >= 6);
}

#[test]
fn a_survivor_where_no_host_was_ever_heard_has_nothing_to_go_by_and_goes_on() {
    let mut bus = survivor(37, None);
    let took = bus.now;
    bus.run(Duration::from_secs(130));
    assert_eq!(bus.state(0, vip(2)), State::Own);
    assert!(announced(&bus, 0, vip(2), took) >= 6);
}

#[test]
fn an_address_that_was_heard_of_before_it_was_told_is_no_host_to_ask() {
    let mut bus = Bus::new(2, 61);
    bus.start(0);
    bus.run(ms(10));
    // Before its first HELLO nobody knows that this station is a node.
    let told = Arp::announcement(mac(1), v4(V()));
    bus.inject(1, &told.frame());
    bus.run(ms(10));
    bus.start(1);
    for index in 0..2 {
        bus.assign(index, V(), assignment(&[1, 0]));
    }
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [1]);
    bus.kill(1);
    let took = bus.run_until(ms(1_000), |bus| bus.owners(V()) == [0]);
    assert!(took.is_some_and(|took| took <= BOUND), "{took:?}");
}

#[test]
fn what_once_came_in_proves_nothing_when_nothing_comes_any_more() {
    let host = Ipv4Addr::new(10, 0, 200, 7);
    let mut bus = survivor(38, Some(host));
    // The way to node 0 fails.
    bus.stranger = None;
    bus.run(ms(201));
    let cut = bus.now;
    let mut told = assignment(&[1, 0]);
    told.recorded = recorded(1, (told.created << 20) + 1);
    bus.assign(0, vip(3), told);
    bus.run(Duration::from_secs(130));
    let ours = |state: State| matches!(state, State::Own | State::Deaf | State::Give);
    assert!(
        !ours(bus.state(0, vip(3))),
        "it would not hear who has the address"
    );
    assert_eq!(
        announced(&bus, 0, vip(2), cut),
        0,
        "it would draw clients from who has taken it meanwhile"
    );
    assert_eq!(bus.owners(vip(2)), [0], "who asks it, reaches it");
    // It goes on asking for a sign, and floods nobody.
    let question = Arp::probe(mac(0), host);
    let asked = bus
        .sent
        .iter()
        .filter(|(at, from, frame)| *at > cut && *from == 0 && arp_of(frame) == Some(question));
    let asked = asked.count();
    assert!((130..=150).contains(&asked), "{asked} in 130 s");

    // Signs come again.
    bus.stranger = Some(host);
    let took = bus.run_until(ms(2_000), |bus| bus.owners(vip(3)) == [0]);
    assert!(took.is_some(), "{:?}", bus.state(0, vip(3)));
    bus.run(ms(3_000));
    assert!(announced(&bus, 0, vip(2), cut) > 0);
    assert!(announced(&bus, 0, vip(3), cut) >= 5);
}

#[test]
fn what_was_claimed_while_deaf_is_answered_for_when_its_last_owner_returns() {
    for seed in 39..60 {
        let mut bus = survivor(seed, None);
        bus.link(1, false);
        bus.start(1);
        bus.link(1, true);
        let back = bus.now;
        bus.run(ms(1_000));
        assert_eq!(bus.owners(vip(2)), [0]);
        let moved =
            |event: &Event| matches!(event, Event::Owned { address, .. } if *address == vip(2));
        assert!(!bus.events_of(1, back).iter().any(moved), "seed {seed}");
        assert!(!bus.ever_two_owners(), "seed {seed}");
    }
}

/// The nodes that node `of` was told to hear (`true`) or to have fallen silent.
fn told_of_peers(bus: &Bus, of: usize, since: Instant) -> Vec<(String, bool)> {
    let told = bus.peers.iter();
    told.filter(|(at, to, _)| *at >= since && *to == of)
        .filter_map(|(_, _, event)| match event {
            Event::PeerHeard { node, .. } => Some((node.clone(), true)),
            Event::PeerSilent { node, .. } => Some((node.clone(), false)),
            _ => None,
        })
        .collect()
}

fn told(list: &[(&str, bool)]) -> Vec<(String, bool)> {
    let list = list.iter();
    list.map(|(node, heard)| ((*node).to_owned(), *heard))
        .collect()
}

#[test]
fn who_is_heard_and_who_fell_silent_is_told_once_by_those_who_hear() {
    let mut bus = Bus::settled(3, 7);
    let [a, b, c] = [0, 1, 2].map(bus::name);
    let mut first = told_of_peers(&bus, 0, Instant(0));
    first.sort();
    assert_eq!(first, told(&[(&b, true), (&c, true)]));

    // A cable: those that hear each other say it of the third one. That one says
    // it of both: on a segment without hosts it has nothing to go by.
    let cut = bus.now;
    bus.nodes[2].part = 1;
    bus.run(ms(360));
    for (node, other) in [(0, &b), (1, &a)] {
        assert_eq!(
            told_of_peers(&bus, node, cut),
            told(&[(&c, false)]),
            "{other}"
        );
    }
    bus.run(Duration::from_secs(5));
    assert_eq!(
        told_of_peers(&bus, 2, cut),
        told(&[(&a, false), (&b, false)])
    );
    let healed = bus.now;
    bus.nodes[2].part = 0;
    bus.run(ms(500));
    assert_eq!(told_of_peers(&bus, 0, healed), told(&[(&c, true)]));

    // Who once heard a host and hears none now has no word about anybody.
    let cut = bus.now;
    let host = Arp::announcement(MacAddr(2, 9, 9, 9, 9, 9), Ipv4Addr::new(10, 0, 0, 77));
    bus.inject(0, &host.frame());
    bus.run(ms(10));
    bus.nodes[2].part = 1;
    bus.run(Duration::from_secs(5));
    assert_eq!(told_of_peers(&bus, 2, cut), []);
    bus.nodes[2].part = 0;
    bus.run(Duration::from_secs(1));

    // Who says goodbye is not silent.
    let left = bus.now;
    bus.feed(1, Input::Shutdown);
    bus.kill(1);
    bus.run(Duration::from_secs(2));
    assert_eq!(told_of_peers(&bus, 0, left), []);
}
