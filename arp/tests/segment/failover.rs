//! The address moves when its owner is gone, and only then.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use bellrock_arp::{Cause, Config, Event, Handle, Recorded, State};
use bellrock_e2e::netns::{as_root, wait_for};

use super::lab::{Lab, PATIENCE, V4, V6, assignment, config};

#[test]
fn a_pulled_cable_moves_the_address_and_its_return_does_not_move_it_back() {
    if as_root() {
        pull_and_plug(V4);
    }
}

#[test]
fn a_pulled_cable_moves_an_ipv6_address_too() {
    if as_root() {
        pull_and_plug(V6);
    }
}

fn pull_and_plug(vip: IpAddr) {
    let lab = Lab::settled(vip, 3);
    let mut owner = 0;
    let mut outages = Vec::new();
    for _ in 0..6 {
        let prober = lab.prober();
        lab.cable(owner, false);
        let next = lab.wait_successor(owner);
        lab.answered(&prober, 50);
        lab.wait_neighbour(&lab.nodes[next].mac);
        let report = prober.stop().unwrap();
        outages.push(report.longest_ms());

        // Plugged in again: the old owner yields, and nothing is lost.
        let prober = lab.prober();
        lab.cable(owner, true);
        lab.wait_owner(next);
        lab.answered(&prober, 50);
        lab.wait_neighbour(&lab.nodes[next].mac);
        let report = prober.stop().unwrap();
        let lost: usize = report.outages.iter().map(|outage| outage.lost).sum();
        println!("heal, {vip}: {lost} of {} lost", report.sent);
        owner = next;
    }
    outages.sort_by(f64::total_cmp);
    println!(
        "cable pull, {vip}: p50 {:.0} ms, max {:.0} ms of {outages:.0?}",
        outages[outages.len() / 2],
        outages[outages.len() - 1]
    );
    assert!(
        outages[0] > 100.0,
        "a pull that nobody noticed is none: {outages:?}"
    );
    assert!(outages[outages.len() - 1] <= 2_000.0, "{outages:?}");
}

#[test]
fn a_node_that_leaves_hands_over_at_once() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::settled(V4, 3);
    let prober = lab.prober();
    // Longer than the others listen after their start.
    lab.answered(&prober, 100);
    // What leaves serves no more either.
    lab.nodes[0]
        .ns
        .sh(&format!("ip addr del {V4}/32 dev lo"))
        .unwrap();
    lab.nodes[0]
        .handle
        .shutdown(Duration::from_secs(10))
        .unwrap();
    wait_for("the successor", PATIENCE, || {
        let state = lab.nodes[1].state(V4)?;
        ensure!(state.state == State::Own, "{state:?}");
        Ok(())
    });
    lab.answered(&prober, 50);
    let report = prober.stop().unwrap();
    println!("leaving: {:.0} ms", report.longest_ms());
    assert!(report.longest_ms() <= 2_000.0, "{report:?}");
    assert!(matches!(lab.nodes[0].event(), Event::Owned { .. }));
    assert!(matches!(
        lab.nodes[0].event(),
        Event::Lost {
            cause: Cause::HandedOver,
            ..
        }
    ));
    let event = lab.nodes[1].event();
    assert!(
        matches!(
            event,
            Event::Owned {
                cause: Cause::HandedOver,
                ..
            }
        ),
        "{event:?}"
    );
    assert_eq!(
        lab.nodes[0].handle.snapshot().addresses.len(),
        0,
        "it has ended"
    );
}

#[test]
fn a_lost_carrier_moves_the_address_too() {
    if as_root() {
        lose_the_carrier(V4);
        lose_the_carrier(V6);
    }
}

fn lose_the_carrier(vip: IpAddr) {
    let mut lab = Lab::settled(vip, 2);
    lab.nodes[0].event();
    let port = lab.nodes[0].port.clone();
    lab.switch.sh(&format!("ip link set {port} down")).unwrap();
    wait_for("the successor", PATIENCE, || {
        let state = lab.nodes[1].state(vip)?;
        ensure!(state.state == State::Own, "{state:?}");
        Ok(())
    });
    let event = lab.nodes[0].event();
    assert!(
        matches!(
            event,
            Event::Lost {
                cause: Cause::LinkChange,
                ..
            }
        ),
        "{event:?}"
    );
    assert!(!lab.nodes[0].handle.snapshot().interfaces["eth1"].carrier);
    lab.switch.sh(&format!("ip link set {port} up")).unwrap();
    lab.wait_owner(1);
    lab.nodes[0].no_event();
}

#[test]
fn a_recorded_owner_goes_on_after_its_restart_and_nobody_else_moves() {
    if !as_root() {
        return;
    }
    let mut lab = Lab::settled(V4, 2);
    let epoch = lab.nodes[0].state(V4).unwrap().epoch;
    // Cut off, so that its goodbye is not heard, as if it had crashed.
    lab.cable(0, false);
    lab.nodes[0]
        .handle
        .shutdown(Duration::from_secs(10))
        .unwrap();
    let (handle, events) = lab.nodes[0]
        .ns
        .run(|| Handle::start(config("node-1")))
        .unwrap()
        .unwrap();
    lab.nodes[0].handle = handle;
    lab.nodes[0].events = events;
    let mut told = assignment(&["node-1", "node-2"]);
    told.recorded = Some(Recorded {
        owner: "node-1".to_owned(),
        epoch,
    });
    lab.nodes[0].handle.assign(V4, told);
    let event = lab.nodes[0].event();
    let Event::Owned {
        epoch: new, cause, ..
    } = event
    else {
        panic!("{event:?}")
    };
    assert_eq!((new, cause), (epoch, Cause::Restart));
}

#[test]
fn a_process_that_waits_for_another_goes_on_with_what_that_one_holds() {
    if !as_root() {
        return;
    }
    for vip in [V4, V6] {
        go_on(vip);
    }
}

fn go_on(vip: IpAddr) {
    let mut lab = Lab::settled(vip, 2);
    let epoch = lab.nodes[0].state(vip).unwrap().epoch;
    let waits = Config {
        standby: true,
        ..config("node-1")
    };
    let (next, events) = lab.nodes[0]
        .ns
        .run(|| Handle::start(waits))
        .unwrap()
        .unwrap();
    let mut told = assignment(&["node-1", "node-2"]);
    told.recorded = Some(Recorded {
        owner: "node-1".to_owned(),
        epoch,
    });
    next.assign(vip, told);
    // It is on standby: the one that it waits for still is the speaker.
    let snapshot = next.snapshot();
    assert!(
        snapshot.interfaces.contains_key("eth1") && snapshot.addresses[&vip].state == State::Idle
    );
    assert_eq!(next.bequeath(Duration::from_millis(200)), None);
    let before = std::mem::replace(&mut lab.nodes[0].handle, next);
    lab.nodes[0].events = events;
    let estate = before.bequeath(Duration::from_secs(10)).unwrap();
    let held: Vec<_> = estate.values().flat_map(|held| &held.claims).collect();
    assert_eq!(held, [(&vip, &epoch)]);
    lab.nodes[0].handle.begin(Some(estate));
    lab.nodes[0].wait_state(vip, State::Own, &["eth1"]);
    before.shutdown(Duration::from_secs(10)).unwrap();
    // After two seconds; a node is called silent and relieved in less than half of one.
    wait_for("late announcements", PATIENCE, || {
        let counters = lab.nodes[0].handle.snapshot().counters;
        ensure!(counters.get("announcements") >= Some(&2), "{counters:?}");
        Ok(())
    });
    assert_eq!(lab.nodes[0].state(vip).unwrap().epoch, epoch);
    for node in &mut lab.nodes {
        node.no_event();
    }
}
