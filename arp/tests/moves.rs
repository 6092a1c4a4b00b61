//! Planned moves: nobody notices.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail loudly")]
#![allow(dead_code, reason = "the bus serves other tests too")]

mod bus;

use std::net::IpAddr;
use std::time::Duration;

use bellrock_arp::frame::Arp;
use bellrock_arp::ownership::Input;
use bellrock_arp::{Cause, Eligibility, Event, Instant, Recorded, State};
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

/// The process is replaced by another that it leaves what it holds to.
#[test]
fn a_process_that_goes_on_for_another_is_the_same_speaker_to_all() {
    for recorded in [true, false] {
        let mut bus = Bus::settled(3, 35);
        let epoch = bus.view(0, V()).epoch;
        let start = bus.now;
        let mut told = assignment(&[0, 1, 2]);
        if recorded {
            let owner = bus::name(0);
            told.recorded = Some(Recorded { owner, epoch });
        }
        bus.replace(0, ms(20), &[(V(), told)]);
        assert_eq!(bus.owners(V()), [0], "it answers at once");
        let sent = bus.sent.len();
        bus.record_sent = true;
        bus.run(ms(3_000));
        assert_eq!((bus.owners(V()), bus.view(0, V()).epoch), (vec![0], epoch));
        for other in [1, 2] {
            assert_eq!(bus.events_of(other, start), [], "{other} notices nothing");
            assert_eq!(bus.counter(other, "replay"), 0);
        }
        let owned = bus.events_of(0, start);
        assert_eq!(owned.is_empty(), recorded, "what no record says: {owned:?}");
        let mut times = Vec::new();
        for (at, from, frame) in bus.sent.iter().skip(sent) {
            if let Some(arp) = arp_of(frame) {
                assert_eq!((*from, arp.sender), (0, v4(V())), "no probe");
                times.push(at.since(start).as_millis());
            }
        }
        assert!(times.len() <= 4 && times.last() > Some(&2_000), "{times:?}");
    }
}

/// What it is not told of, or only later, it does not go on with.
#[test]
fn a_process_goes_on_only_with_what_it_may_hold() {
    let mut bus = Bus::settled(3, 36);
    let mut told = assignment(&[0, 1, 2]);
    told.eligibility = Eligibility::Ineligible;
    bus.replace(0, ms(20), &[(V(), told)]);
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [1]);

    let mut bus = Bus::settled(3, 37);
    bus.replace(0, ms(20), &[]);
    bus.run(ms(1_000));
    bus.assign(0, V(), assignment(&[0, 1, 2]));
    assert_eq!(bus.owners(V()), [1]);
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [1]);
}

/// One that is made for a younger object of the address claims anew.
#[test]
fn a_process_goes_on_with_a_claim_of_this_object_only() {
    let mut bus = Bus::settled(2, 38);
    let before = bus.view(0, V()).epoch;
    let mut younger = assignment(&[0, 1]);
    younger.created += 10;
    bus.assign(1, V(), younger.clone());
    bus.replace(0, ms(20), &[(V(), younger)]);
    assert_eq!(bus.owners(V()), Vec::<usize>::new(), "unverified");
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()).len(), 1);
    let owner = bus.owners(V())[0];
    assert!(bus.view(owner, V()).epoch > before + (10 << 20) - (1 << 20));
}
