//! What the segment is published as.

use std::time::SystemTime;

use bellrock_arp::{AddressState, Cause, InterfaceState, MacAddr, PeerState};
use k8s_openapi::jiff::Timestamp;

use super::*;

fn address(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn stands(state: State) -> AddressState {
    AddressState {
        state,
        epoch: 7,
        owner: None,
        rank: None,
        since: SystemTime::UNIX_EPOCH,
        cause: None,
        foreign: None,
        filtered: None,
        interfaces: vec!["eth0".to_owned()],
    }
}

fn verdict(n: u8) -> Verdict {
    Verdict {
        address: Some(address(n)),
        way: Way::L2,
        refused: None,
        peers: BTreeSet::new(),
        detail: None,
    }
}

#[test]
fn a_node_that_answers_unheard_is_the_reason_as_long_as_this_node_does_not() {
    for (state, expected) in [
        (State::Idle, Reason::HelloFiltered),
        (State::Wait, Reason::HelloFiltered),
        (State::Probe, Reason::HelloFiltered),
        (State::Blocked, Reason::HeldByForeignHost),
        (State::Own, Reason::Announced),
    ] {
        let mut view = View::starting("n1");
        let mut at = stands(state);
        at.filtered = Some("n2".to_owned());
        view.segment.addresses.insert(address(1), at);
        view.verdicts = vec![(ServiceKey::new("default", "web"), verdict(1))];
        assert_eq!(view.reason(&verdict(1)), expected, "{state}");
        if expected == Reason::HelloFiltered {
            let refusals = view.to_api().refusals;
            let told: Vec<_> = refusals.iter().map(|r| (&*r.reason, &*r.message)).collect();
            assert_eq!(told, [("HelloFiltered", "n2 answers for it")], "{state}");
            assert!(only_here(expected));
            let metric = r#"addresses{protocol="l2",reason="HelloFiltered"} 1"#;
            assert!(view.metrics().unwrap().contains(metric), "{state}");
        }
    }
}

#[test]
fn a_rank_is_told_while_there_is_one() {
    let mut view = View::starting("n1");
    let waits = AddressState {
        rank: Some(2),
        ..stands(State::Wait)
    };
    view.segment.addresses.insert(address(1), waits);
    view.segment
        .addresses
        .insert(address(2), stands(State::Own));
    let ranks: Vec<_> = view.to_api().addresses.iter().map(|a| a.rank).collect();
    assert_eq!(ranks, [Some(2), None]);
}

fn hears(interface: &str, peers: &[(&str, usize)]) -> InterfaceState {
    let peer = |(last, (node, holds)): (usize, &(&str, usize))| PeerState {
        node: (*node).to_owned(),
        mac: MacAddr(2, 0, 0, 0, 0, u8::try_from(last % 256).unwrap()),
        heard: Duration::ZERO,
        holds: *holds,
    };
    InterfaceState {
        name: interface.to_owned(),
        index: 2,
        mac: MacAddr(2, 0, 0, 0, 0, 1),
        carrier: true,
        addresses: Vec::new(),
        peers: peers.iter().enumerate().map(peer).collect(),
    }
}

#[test]
fn who_is_heard_is_listed_once_for_each_interface_up_to_the_bound() {
    let mut view = View::starting("n1");
    // Two stations of n2 on one segment.
    let eth0 = hears("eth0", &[("n2", 1), ("n2", 2), ("n3", 0)]);
    view.segment.interfaces.insert("eth0".to_owned(), eth0);
    let eth1 = hears("eth1", &[("n2", 5)]);
    view.segment.interfaces.insert("eth1".to_owned(), eth1);
    let status = view.to_api();
    let heard: Vec<_> = status
        .peers
        .iter()
        .map(|peer| (&*peer.node, &*peer.interface, peer.holds))
        .collect();
    assert_eq!(
        heard,
        [("n2", "eth0", 3), ("n2", "eth1", 5), ("n3", "eth0", 0)]
    );
    assert_eq!(status.peers_omitted, 0);

    let names: Vec<String> = (0..api::MAX_PEERS + 3).map(|n| format!("n{n}")).collect();
    let many: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    view.segment.interfaces = [("eth0".to_owned(), hears("eth0", &many))].into();
    let status = view.to_api();
    assert_eq!(
        (status.peers.len(), status.peers_omitted),
        (api::MAX_PEERS, 3)
    );
}

#[test]
fn what_happened_is_told_with_cause_and_who_it_was() {
    let address = address(1);
    let interface = || "eth0".to_owned();
    let mac = MacAddr(2, 0, 0, 0, 0, 9);
    let cases = [
        (
            Event::Owned {
                address,
                epoch: 9,
                cause: Cause::OwnerSilent,
                from: Some("n2".to_owned()),
                interface: interface(),
            },
            (api::Change::Owned, Some("OwnerSilent"), Some("n2")),
        ),
        (
            Event::Lost {
                address,
                cause: Cause::HigherClaim,
                to: Some("n3".to_owned()),
                interface: interface(),
            },
            (api::Change::Lost, Some("HigherClaim"), Some("n3")),
        ),
        (
            Event::Blocked {
                address,
                mac,
                interface: interface(),
            },
            (api::Change::Blocked, None, Some("02:00:00:00:00:09")),
        ),
        (
            Event::ForeignClaim {
                address,
                mac,
                interface: interface(),
            },
            (api::Change::ForeignClaim, None, Some("02:00:00:00:00:09")),
        ),
        (
            Event::Unblocked {
                address,
                interface: interface(),
            },
            (api::Change::Unblocked, None, None),
        ),
        (
            Event::HelloFiltered {
                address,
                node: "n2".to_owned(),
                interface: interface(),
            },
            (api::Change::HelloFiltered, None, Some("n2")),
        ),
    ];
    let mut history = History::default();
    for (second, (event, _)) in (0..).zip(&cases) {
        history.take(event, Timestamp::from_second(second).unwrap());
    }
    let mut view = View::starting("n1");
    view.history = Arc::new(history);
    let mut told = view.to_api().transitions;
    told.reverse();
    assert_eq!(told.len(), cases.len());
    for (second, (told, (event, (change, cause, other)))) in (0..).zip(told.iter().zip(&cases)) {
        assert_eq!(told.address, "192.0.2.1", "{event:?}");
        assert_eq!(told.interface, "eth0", "{event:?}");
        assert_eq!(told.time.0.as_second(), second, "{event:?}");
        assert_eq!(
            (told.change, told.cause.as_deref(), told.other.as_deref()),
            (*change, *cause, *other),
            "{event:?}"
        );
    }
}

#[test]
fn of_what_happened_only_the_latest_is_written() {
    let mut history = History::default();
    for n in 0..=u8::MAX {
        for second in [0, 1_000] {
            let event = Event::Lost {
                address: address(n),
                cause: Cause::Shutdown,
                to: Some(format!("n{second}")),
                interface: "eth0".to_owned(),
            };
            let at = Timestamp::from_second(second + i64::from(n)).unwrap();
            history.take(&event, at);
        }
    }
    let mut view = View::starting("n1");
    view.history = Arc::new(history);
    let told = view.to_api().transitions;
    assert_eq!(told.len(), api::MAX_TRANSITIONS);
    let (newest, oldest) = (told.first().unwrap(), told.last().unwrap());
    assert_eq!(newest.time.0.as_second(), 1_255);
    assert_eq!(oldest.time.0.as_second(), 1_000);
}
