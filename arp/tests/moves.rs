//! Planned moves: nobody notices.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(dead_code, reason = "the bus serves other tests too")]

mod bus;

use std::net::IpAddr;
use std::time::Duration;

use bellrock_arp::frame::Arp;
use bellrock_arp::ownership::Input;
use bellrock_arp::{Cause, Eligibility, Event, Instant, State};
use bus::{Bus, arp_of, assignment, mac, ms, v4, vip};

const V: fn() -> IpAddr = || vip(1);

#[test]
fn an_address_is_handed_over_without_a_gap() {
    type Why = fn(&mut Bus);
    let yields: Why = |bus| {
        let mut told = assignment(&[0, 1, 2]);
        told.eligibility = Eligibility::Yielding;
        bus.assign(0, V(), told);
    };
    let wanted: Why = |bus| {
        for index in 0..3 {
            bus.assign(index, V(), assignment(&[1, 2, 0]));
        }
    };
    let leaves: Why = |bus| bus.feed(0, Input::Drain);
    for (name, why) in [("yields", yields), ("wanted", wanted), ("leaves", leaves)] {
        let mut bus = Bus::settled(3, 32);
        let start = bus.now;
        why(&mut bus);
        let mut waited = Duration::ZERO;
        while bus.owners(V()) != [1] {
            assert!(!bus.owners(V()).is_empty(), "{name}: a gap");
            assert!(waited < ms(200), "{name}: {:?} own it", bus.owners(V()));
            bus.run(Duration::from_micros(100));
            waited += Duration::from_micros(100);
        }
        assert!(matches!(
            bus.events_of(1, start)[..],
            [Event::Owned {
                cause: Cause::HandedOver,
                ..
            }]
        ));
        bus.run(ms(3_000));
        assert_eq!(bus.owners(V()), [1], "{name}");
    }
}

#[test]
fn a_second_planned_move_waits_five_seconds() {
    let mut bus = Bus::settled(3, 33);
    let wish = |bus: &mut Bus, order: [usize; 3]| {
        for index in 0..3 {
            bus.assign(index, V(), assignment(&order));
        }
    };
    wish(&mut bus, [1, 2, 0]);
    bus.run(ms(200));
    assert_eq!(bus.owners(V()), [1]);
    wish(&mut bus, [2, 1, 0]);
    bus.run(ms(4_500));
    assert_eq!(bus.owners(V()), [1]);
    bus.run(ms(700));
    assert_eq!(bus.owners(V()), [2]);
}

#[test]
fn a_successor_that_may_not_is_passed_over_and_nothing_is_lost() {
    let mut bus = Bus::settled(3, 34);
    let told = |eligibility| {
        let mut told = assignment(&[0, 1, 2]);
        told.eligibility = eligibility;
        told
    };
    bus.assign(1, V(), told(Eligibility::Ineligible));
    bus.assign(0, V(), told(Eligibility::Yielding));
    bus.run(ms(900));
    assert_eq!(bus.state(0, V()), State::Give);
    bus.run(ms(200));
    assert_eq!(bus.owners(V()), [2]);

    // And where nobody may, it stays.
    let mut bus = Bus::settled(2, 35);
    bus.assign(1, V(), told(Eligibility::Ineligible));
    bus.assign(0, V(), told(Eligibility::Yielding));
    bus.run(ms(20_000));
    assert_eq!(bus.owners(V()), [0]);
}

#[test]
fn an_owner_that_nobody_relieves_goes_on_announcing_where_it_stopped() {
    let mut bus = Bus::settled(3, 36);
    let order = [1, 2, 0];
    let mut cannot = assignment(&order);
    cannot.eligibility = Eligibility::Ineligible;
    for index in 1..3 {
        bus.assign(index, V(), cannot.clone());
    }
    // A claim, and a wish for another node right after it.
    bus.record_sent = true;
    bus.kill(0);
    bus.run(ms(2_000));
    bus.start(0);
    let back = bus.run_until(ms(2_000), |bus| bus.state(0, V()) == State::Own);
    assert!(back.is_some());
    let claimed = bus.now;
    bus.assign(0, V(), assignment(&order));
    assert_eq!(bus.state(0, V()), State::Give);
    bus.run(ms(3_000));
    assert_eq!(bus.state(0, V()), State::Own);
    let announcement = Arp::announcement(mac(0), v4(V()));
    let mine = |(at, _, frame): &(Instant, usize, Vec<u8>)| {
        (*at >= claimed && arp_of(frame) == Some(announcement)).then(|| at.since(claimed))
    };
    let times: Vec<Duration> = bus.sent.iter().filter_map(mine).collect();
    let in_time = |at: u64| {
        times
            .iter()
            .any(|time| *time >= ms(at - 10) && *time < ms(at + 10))
    };
    assert!(in_time(1_100) && in_time(2_200), "{times:?}");
}
