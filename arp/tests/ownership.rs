//! Several nodes' state machines on one segment, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests fail loudly"
)]

#[allow(dead_code, reason = "the bus serves other tests too")]
mod bus;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bellrock_arp::frame::{self, Arp, Body, Ethernet, Message};
use bellrock_arp::ownership::Input;
use bellrock_arp::{Assignment, Cause, Eligibility, Event, Instant, MacAddr, State};
use bus::{BOUND, Bus, CREATED, STRANGER, arp_of, assignment, mac, ms, name, recorded, v4, vip};

const V: fn() -> IpAddr = || vip(1);
const BASE: u64 = CREATED << 20;

fn body_of(frame: &[u8]) -> Option<Body> {
    let ethernet = Ethernet::decode(frame).unwrap();
    let own = ethernet.ethertype == frame::ETHERTYPE;
    let decode = || Message::decode(&Bus::credentials(), ethernet.source, ethernet.payload);
    own.then(|| decode().unwrap().body)
}

#[test]
fn a_node_alone_claims_after_listening_and_stays_owner() {
    let mut bus = Bus::new(1, 1);
    bus.start(0);
    bus.assign(0, V(), assignment(&[0]));
    bus.run(ms(319));
    assert_eq!(
        bus.state(0, V()),
        State::Idle,
        "it must hear whether somebody has it first"
    );
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(V()) == [0])
        .unwrap();
    assert!(took < ms(50), "{took:?}");
    assert_eq!(bus.view(0, V()).epoch, BASE + 1);
    bus.run(Duration::from_secs(600));
    assert_eq!(bus.owners(V()), [0]);
    let owned = Event::Owned {
        address: V(),
        epoch: BASE + 1,
        cause: Cause::FirstClaim,
        from: None,
        interface: "eth0".to_owned(),
    };
    assert_eq!(bus.events_of(0, Instant(0)), [owned]);
}

#[test]
fn the_desired_node_claims_first_also_when_it_learns_of_the_address_last() {
    for late in [ms(0), ms(100), ms(600)] {
        let mut bus = Bus::new(3, 2);
        for index in 0..3 {
            bus.start(index);
        }
        bus.run(ms(1_000));
        for index in [2, 1] {
            bus.assign(index, V(), assignment(&[0, 1, 2]));
        }
        bus.run(late);
        bus.assign(0, V(), assignment(&[0, 1, 2]));
        bus.run(ms(3_000));
        assert_eq!(bus.owners(V()), [0], "told {late:?} after the others");
        assert!(!bus.ever_two_owners());
    }
}

#[test]
fn if_the_desired_node_never_learns_of_it_the_next_claims_after_the_grace() {
    let mut bus = Bus::new(3, 3);
    for index in 0..3 {
        bus.start(index);
    }
    bus.run(ms(1_000));
    bus.assign(1, V(), assignment(&[0, 1, 2]));
    bus.assign(2, V(), assignment(&[0, 1, 2]));
    let took = bus
        .run_until(ms(5_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    assert!((ms(1_060)..ms(1_150)).contains(&took), "{took:?}");
}

#[test]
fn when_the_owner_dies_exactly_one_successor_claims_within_the_bound() {
    let mut worst = Duration::ZERO;
    for seed in 0..200 {
        let mut bus = Bus::settled(5, seed);
        bus.run(Duration::from_micros(seed * 500));
        let killed = bus.now;
        bus.kill(0);
        let took = bus
            .run_until(ms(1_000), |bus| !bus.owners(V()).is_empty())
            .unwrap();
        assert!(took <= BOUND, "seed {seed}: {took:?}");
        assert!(
            took >= ms(220),
            "seed {seed}: nobody may be sure after {took:?}"
        );
        worst = worst.max(took);
        bus.run(ms(3_000));
        assert_eq!(bus.owners(V()), [1], "seed {seed}");
        assert!(!bus.ever_two_owners(), "seed {seed}");
        let events = bus.events_of(1, killed);
        assert!(
            matches!(
                &events[..],
                [Event::Owned { cause: Cause::OwnerSilent, epoch, from: Some(from), .. }]
                    if *epoch == BASE + 2 && *from == bus::name(0)
            ),
            "{events:?}"
        );
    }
    println!("worst of 200: {worst:?}");
}

#[test]
fn when_owner_and_first_successor_die_together_the_second_is_as_fast() {
    for seed in 0..50 {
        let mut bus = Bus::settled(4, seed);
        bus.kill(0);
        bus.kill(1);
        let took = bus
            .run_until(ms(1_000), |bus| !bus.owners(V()).is_empty())
            .unwrap();
        // The two may be missed in different rounds: one stagger more.
        assert!(took <= BOUND + ms(60), "seed {seed}: {took:?}");
        bus.run(ms(2_000));
        assert_eq!(bus.owners(V()), [2]);
        assert!(!bus.ever_two_owners());
    }
}

#[test]
fn a_first_successor_that_may_not_costs_one_stagger() {
    let mut bus = Bus::settled(4, 4);
    let mut not = assignment(&[0, 1, 2, 3]);
    not.eligibility = Eligibility::Ineligible;
    bus.assign(1, V(), not);
    bus.kill(0);
    let took = bus
        .run_until(ms(1_000), |bus| !bus.owners(V()).is_empty())
        .unwrap();
    assert!(took <= BOUND + ms(60), "{took:?}");
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()), [2]);
}

#[test]
fn a_returning_owner_does_not_take_it_back() {
    let mut bus = Bus::settled(3, 5);
    bus.kill(0);
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [1]);
    for record in [None, recorded(0, BASE + 1), recorded(1, BASE + 2)] {
        let mut told = assignment(&[0, 1, 2]);
        told.recorded = record;
        bus.nodes[0].told.insert(V(), told);
        bus.start(0);
        bus.run(ms(3_000));
        assert_eq!(bus.owners(V()), [1]);
        assert_eq!(bus.view(0, V()).owner, Some(name(1)));
        bus.kill(0);
        bus.run(ms(1_000));
    }
    assert!(!bus.ever_two_owners());
}

#[test]
fn a_restarted_owner_goes_on_with_its_epoch() {
    let mut bus = Bus::settled(3, 6);
    let before = bus.now;
    let mut told = assignment(&[0, 1, 2]);
    told.recorded = recorded(0, BASE + 1);
    bus.nodes[0].told.insert(V(), told);
    bus.kill(0);
    bus.run(ms(50));
    bus.start(0);
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(V()) == [0])
        .unwrap();
    assert!(took < ms(60), "{took:?}");
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [0]);
    assert_eq!(bus.view(0, V()).epoch, BASE + 1);
    assert_eq!(bus.events_of(1, before), []);
    assert_eq!(bus.events_of(2, before), []);
    assert!(matches!(
        bus.events_of(0, before)[..],
        [Event::Owned {
            cause: Cause::Restart,
            ..
        }]
    ));
}

#[test]
fn when_the_owner_says_goodbye_the_successor_claims_after_its_probes() {
    let mut bus = Bus::settled(3, 7);
    let start = bus.now;
    bus.feed(0, Input::Shutdown);
    assert!(
        bus.owners(V()).is_empty(),
        "it answers for nothing any more"
    );
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    assert!(took <= ms(45), "{took:?}");
    assert!(matches!(
        bus.events_of(1, start)[..],
        [Event::Owned {
            cause: Cause::OwnerLeft,
            ..
        }]
    ));
    assert!(matches!(
        bus.events_of(0, start)[..],
        [Event::Lost {
            cause: Cause::Shutdown,
            ..
        }]
    ));
}

#[test]
fn an_ineligible_owner_hands_over_to_the_next() {
    let mut bus = Bus::settled(3, 8);
    let start = bus.now;
    let mut not = assignment(&[0, 1, 2]);
    not.eligibility = Eligibility::Ineligible;
    bus.assign(0, V(), not);
    // The old owner is still heard, and of better rank.
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    assert!(took <= ms(105), "{took:?}");
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()), [1]);
    assert!(matches!(
        bus.events_of(0, start)[..],
        [Event::Lost {
            cause: Cause::HandedOver,
            ..
        }]
    ));
}

#[test]
fn nobody_claims_an_address_whose_owner_removed_it_though_they_learn_it_later() {
    let mut bus = Bus::settled(3, 9);
    let start = bus.now;
    bus.remove(0, V());
    bus.run(ms(1_500));
    bus.remove(1, V());
    bus.remove(2, V());
    bus.run(ms(5_000));
    assert_eq!(bus.events_of(1, start), []);
    assert_eq!(bus.events_of(2, start), []);
}

#[test]
fn lost_hellos_below_the_limit_move_nothing() {
    fn lose_hellos(frame: &[u8]) -> bool {
        matches!(body_of(frame), Some(Body::Hello { .. }))
    }
    for seed in 0..50 {
        let mut bus = Bus::settled(3, seed);
        let start = bus.now;
        for _ in 0..10 {
            bus.drop = Some(lose_hellos);
            bus.run(ms(200));
            bus.drop = None;
            bus.run(ms(110));
        }
        let events: Vec<_> = bus.events.iter().filter(|(at, _, _)| *at > start).collect();
        assert!(events.is_empty(), "seed {seed}: {events:?}");
    }
}

#[test]
fn after_a_heal_one_owner_is_left_within_an_interval() {
    for seed in 0..100 {
        let mut bus = Bus::settled(4, seed);
        for index in 2..4 {
            bus.nodes[index].part = 1;
        }
        bus.run(ms(1_000));
        assert_eq!(bus.owners(V()), [0, 2], "one in each part");
        assert!(!bus.ever_two_owners());
        let healed = bus.now;
        for node in &mut bus.nodes {
            node.part = 0;
        }
        bus.run(ms(2_000));
        assert_eq!(
            bus.owners(V()),
            [2],
            "the higher epoch stays: clients of it are many"
        );
        assert!(bus.overlap <= ms(120), "seed {seed}: {:?}", bus.overlap);
        assert!(matches!(
            &bus.events_of(0, healed)[..],
            [Event::Lost { cause: Cause::HigherClaim, to: Some(to), .. }] if *to == name(2)
        ));
        assert_eq!(bus.events_of(2, healed), []);
    }
}

#[test]
fn a_frozen_owner_answers_nobody_before_it_has_looked() {
    let mut bus = Bus::settled(3, 10);
    bus.freeze(0);
    bus.run(ms(5_000));
    assert_eq!(bus.owners(V()), [1]);
    // A client's question waits in its socket.
    let question = Arp {
        sender: Ipv4Addr::new(10, 0, 9, 9),
        ..Arp::probe(STRANGER, v4(V()))
    };
    bus.record_sent = true;
    bus.nodes[1].part = 7;
    bus.feed(0, Input::Frame(question.frame()));
    assert!(bus.sent.iter().all(|(_, of, frame)| {
        *of != 0 || arp_of(frame).is_none_or(|arp| arp.operation == frame::Operation::Request)
    }));
    bus.nodes[1].part = 0;
    bus.thaw(0);
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [1]);
    assert!(!bus.ever_two_owners());
    assert_eq!(bus.counter(0, "late"), 1);
}

#[test]
fn a_short_standstill_of_the_owner_is_verified_and_nothing_moves() {
    for pause in [170, 200, 250] {
        let mut bus = Bus::settled(3, pause);
        let start = bus.now;
        bus.freeze(0);
        bus.run(ms(pause));
        bus.thaw(0);
        bus.run(ms(2_000));
        assert_eq!(bus.owners(V()), [0], "{pause} ms");
        assert_eq!(bus.view(0, V()).epoch, BASE + 1, "{pause} ms");
        assert_eq!(bus.events_of(1, start), [], "{pause} ms");
    }
}

#[test]
fn an_observer_that_stood_still_calls_nobody_silent() {
    let mut bus = Bus::settled(3, 11);
    let start = bus.now;
    for _ in 0..5 {
        bus.freeze(1);
        bus.run(ms(1_000));
        // Its backlog is lost, as by a full socket: it heard nothing at all.
        bus.nodes[1].part = 9;
        bus.thaw(1);
        bus.run(ms(1));
        bus.nodes[1].part = 0;
        bus.run(ms(400));
    }
    assert_eq!(bus.events_of(1, start), []);
    assert_eq!(bus.owners(V()), [0]);
}

#[test]
fn a_lost_carrier_gives_the_address_up_and_its_return_asks_first() {
    let mut bus = Bus::settled(3, 12);
    let start = bus.now;
    bus.link(0, false);
    assert!(bus.owners(V()).is_empty());
    let took = bus
        .run_until(ms(1_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    assert!(took <= BOUND);
    bus.link(0, true);
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [1]);
    assert!(matches!(
        bus.events_of(0, start)[..],
        [Event::Lost {
            cause: Cause::LinkChange,
            ..
        }]
    ));

    // A flap that is shorter than the dead time moves nothing.
    let start = bus.now;
    bus.link(1, false);
    bus.run(ms(100));
    bus.link(1, true);
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()), [1]);
    assert_eq!(bus.events_of(2, start), []);
    assert!(!bus.ever_two_owners());
}

#[test]
fn an_address_that_a_foreign_host_has_is_not_claimed_until_it_is_free() {
    let mut bus = Bus::new(2, 13);
    bus.record_sent = true;
    bus.stranger = Some(v4(V()));
    for index in 0..2 {
        bus.start(index);
        bus.assign(index, V(), assignment(&[0, 1]));
    }
    bus.run(ms(30_000));
    assert!(bus.owners(V()).is_empty());
    assert_eq!(bus.state(0, V()), State::Blocked);
    let blocked = |events: &[Event]| matches!(events, [Event::Blocked { mac: STRANGER, address, .. }] if *address == V());
    assert!(blocked(&bus.events_of(0, Instant(0))), "{:?}", bus.events);
    let announced = bus
        .sent
        .iter()
        .any(|(_, _, frame)| arp_of(frame).is_some_and(|arp| arp.sender == v4(V())));
    assert!(!announced, "nothing may disturb the host");

    bus.stranger = None;
    let free = bus.now;
    bus.run(ms(70_000));
    assert_eq!(bus.owners(V()).len(), 1);
    let events: Vec<Event> = (0..2)
        .flat_map(|index| bus.events_of(index, free))
        .collect();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Unblocked { .. })),
        "{events:?}"
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Owned { .. })),
        "{events:?}"
    );
}

#[test]
fn a_foreign_host_cannot_take_a_held_address() {
    let mut bus = Bus::settled(2, 14);
    let start = bus.now;
    bus.record_sent = true;
    for _ in 0..100 {
        let claim = Arp::announcement(STRANGER, v4(V())).frame();
        for index in 0..2 {
            bus.feed(index, Input::Frame(claim.clone()));
        }
        bus.run(ms(99));
    }
    assert_eq!(bus.owners(V()), [0]);
    assert_eq!(bus.view(0, V()).foreign, Some(STRANGER));
    for index in 0..2 {
        assert!(
            matches!(
                bus.events_of(index, start)[..],
                [Event::ForeignClaim { mac: STRANGER, .. }]
            ),
            "reported once by {index}"
        );
    }
    let defences = bus
        .sent
        .iter()
        .filter(|(at, _, frame)| {
            *at > start + ms(300) && arp_of(frame) == Some(Arp::announcement(mac(0), v4(V())))
        })
        .count();
    // One at once is within the first 300 ms; one after 10 s is not.
    assert!(defences <= 3, "{defences}");
}

#[test]
fn a_takeover_waits_while_a_foreign_host_answers_and_goes_on_when_it_stops() {
    let mut bus = Bus::settled(2, 15);
    bus.stranger = Some(v4(V()));
    let start = bus.now;
    bus.kill(0);
    bus.run(ms(5_000));
    assert!(bus.owners(V()).is_empty());
    assert!(matches!(
        bus.events_of(1, start)[..],
        [Event::ForeignClaim { mac: STRANGER, .. }]
    ));
    bus.stranger = None;
    let took = bus
        .run_until(ms(5_000), |bus| bus.owners(V()) == [1])
        .unwrap();
    assert!(took <= ms(1_100), "{took:?}");
}

#[test]
fn the_owner_alone_answers_clients_and_probes_by_unicast() {
    let mut bus = Bus::settled(3, 16);
    bus.record_sent = true;
    let client = Ipv4Addr::new(10, 0, 9, 9);
    let question = Arp {
        sender: client,
        ..Arp::probe(STRANGER, v4(V()))
    };
    let probe = Arp::probe(STRANGER, v4(V()));
    for index in 0..3 {
        bus.feed(index, Input::Frame(question.frame()));
        bus.feed(index, Input::Frame(probe.frame()));
        // Not a question to us: another address, a reply.
        let other = Arp {
            sender: client,
            ..Arp::probe(STRANGER, v4(vip(2)))
        };
        bus.feed(index, Input::Frame(other.frame()));
        let reply = Arp {
            operation: frame::Operation::Reply,
            ..question
        };
        bus.feed(index, Input::Frame(reply.frame()));
    }
    let answers: Vec<_> = bus
        .sent
        .iter()
        .filter_map(|(_, of, f)| Some((of, arp_of(f)?)))
        .collect();
    assert_eq!(
        answers,
        [(&0, question.answer(mac(0))), (&0, probe.answer(mac(0)))]
    );
    let first = Ethernet::decode(&bus.sent[0].2).unwrap();
    assert_eq!(first.destination, STRANGER);
    assert_eq!(first.source, mac(0));
}

#[test]
fn frames_that_are_not_sound_are_counted_by_kind_and_change_nothing() {
    let mut bus = Bus::settled(2, 17);
    let start = bus.now;
    let hello = |cluster: &str, key: &[u8], incarnation| {
        let message = Message {
            node: name(9),
            incarnation,
            seq: 1,
            body: Body::Claim(vec![(V(), u64::MAX)]),
        };
        let credentials = frame::Credentials::new(cluster, key);
        message.frame(&credentials, frame::ETHERTYPE, mac(9), frame::GROUP)
    };
    let key = b"0123456789abcdef";
    let good = Arp::probe(STRANGER, v4(V())).frame();
    let mut tagged = good.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let mut token_ring = good.clone();
    token_ring[15] = 6;
    let own = Arp::announcement(mac(0), v4(V())).frame();
    let cases = [
        ("other_cluster", hello("other", key, 1)),
        ("tag", hello("test", b"a guess of a key", 1)),
        ("truncated", hello("test", key, 1)[..50].to_vec()),
        ("truncated", good[..30].to_vec()),
        ("truncated", vec![0; 5]),
        ("ethertype", tagged),
        ("arp_format", token_ring),
        ("looped", own),
    ];
    for (kind, frame) in cases {
        let before = bus.counter(0, kind);
        bus.feed(0, Input::Frame(frame));
        assert_eq!(bus.counter(0, kind), before + 1, "{kind}");
    }
    assert_eq!(bus.owners(V()), [0]);
    assert_eq!(bus.events_of(0, start), []);
    let peers = bus.nodes[0].segment.as_ref().unwrap().peers(bus.now);
    assert_eq!(peers.len(), 1, "a forged frame makes no peer");
}

#[test]
fn replayed_frames_do_not_keep_a_dead_node_alive() {
    let mut bus = Bus::settled(2, 18);
    bus.record_sent = true;
    bus.run(ms(500));
    let replay: Vec<Vec<u8>> = bus
        .sent
        .iter()
        .filter(|(_, of, frame)| *of == 0 && body_of(frame).is_some())
        .map(|(_, _, frame)| frame.clone())
        .collect();
    assert!(replay.len() >= 4);
    bus.kill(0);
    let before = bus.counter(1, "replay");
    let killed = bus.now;
    let mut count = 0;
    while bus.owners(V()).is_empty() && bus.now.since(killed) < ms(1_000) {
        for frame in &replay {
            bus.inject(0, frame);
            count += 1;
        }
        bus.run(ms(50));
    }
    assert_eq!(bus.owners(V()), [1]);
    assert!(bus.now.since(killed) <= BOUND + ms(50));
    assert!(bus.counter(1, "replay") >= before + count - replay.len() as u64);
}

#[test]
fn frames_of_an_earlier_life_revive_no_dead_node() {
    let mut bus = Bus::settled(2, 24);
    bus.record_sent = true;
    bus.run(ms(500));
    let earlier: Vec<Vec<u8>> = bus
        .sent
        .iter()
        .filter(|(_, of, frame)| *of == 0 && body_of(frame).is_some())
        .map(|(_, _, frame)| frame.clone())
        .collect();
    bus.kill(0);
    bus.start(0);
    bus.run(ms(2_000));
    bus.kill(0);
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()), [1]);
    for frame in &earlier {
        bus.inject(0, frame);
    }
    bus.run(ms(10));
    let peers = bus.nodes[1].segment.as_ref().unwrap().peers(bus.now);
    assert_eq!(peers, []);
    assert!(bus.counter(1, "replay") >= earlier.len() as u64);
}

#[test]
fn a_node_whose_clock_was_set_back_is_told_and_heard_again_at_once() {
    let mut bus = Bus::settled(2, 25);
    bus.kill(0);
    bus.run(ms(2_000));
    bus.nodes[0].starts = 9;
    bus.start(0);
    bus.run(ms(50));
    bus.kill(0);
    bus.nodes[0].starts = 3;
    bus.start(0);
    bus.run(ms(50));
    let peers = bus.nodes[1].segment.as_ref().unwrap().peers(bus.now);
    assert_eq!(peers.len(), 1);
    assert_eq!(bus.counter(0, "reincarnated"), 1);
}

#[test]
fn a_live_owner_of_a_lower_claim_does_not_keep_the_next_in_line_from_claiming() {
    let mut bus = Bus::settled(3, 26);
    // The owner is cut off; the next claims, and dies as the cut heals.
    bus.nodes[0].part = 1;
    bus.run(ms(2_000));
    assert_eq!(bus.owners(V()), [0, 1]);
    bus.kill(1);
    bus.nodes[0].part = 0;
    let start = bus.now;
    bus.run(ms(2_000));
    // Clients have the dead node's hardware address: somebody must announce.
    assert_eq!(bus.owners(V()), [2]);
    assert_eq!(bus.view(2, V()).epoch, BASE + 3);
    assert!(matches!(
        bus.events_of(0, start).last(),
        Some(Event::Lost { cause: Cause::HigherClaim, to: Some(to), .. }) if *to == name(2)
    ));
}

#[test]
fn an_owner_that_reads_of_a_later_claim_of_a_dead_node_claims_anew_and_announces() {
    let mut bus = Bus::settled(3, 27);
    bus.kill(1);
    bus.run(ms(1_000));
    bus.record_sent = true;
    let mut told = assignment(&[0, 1]);
    told.recorded = recorded(1, BASE + 7);
    bus.assign(0, V(), told);
    assert_eq!(bus.owners(V()), [0]);
    assert_eq!(bus.view(0, V()).epoch, BASE + 8);
    let arps: Vec<_> = bus.sent.iter().filter_map(|(_, _, f)| arp_of(f)).collect();
    assert_eq!(arps, [Arp::announcement(mac(0), v4(V()))]);
}

#[test]
fn a_lost_claim_is_repaired_by_the_next_hello() {
    fn lose_claims(frame: &[u8]) -> bool {
        matches!(body_of(frame), Some(Body::Claim(_)))
    }
    let mut bus = Bus::new(3, 19);
    bus.drop = Some(lose_claims);
    for index in 0..3 {
        bus.start(index);
        bus.assign(index, V(), assignment(&[0, 1, 2]));
    }
    bus.run_until(ms(2_000), |bus| bus.owners(V()) == [0])
        .unwrap();
    bus.run(ms(120));
    for index in 1..3 {
        assert_eq!(bus.view(index, V()).owner, Some(name(0)));
        assert_eq!(bus.counter(index, "sync"), 1);
    }
}

#[test]
fn a_recreated_object_never_goes_to_a_stale_owner() {
    let mut bus = Bus::settled(3, 20);
    // Node 0 holds the old object and does not learn of the new one; its
    // claims of the old one have risen.
    let mut new = assignment(&[1, 2, 0]);
    new.created = CREATED + 10;
    bus.assign(1, V(), new.clone());
    bus.assign(2, V(), new.clone());
    bus.run(ms(3_000));
    assert_eq!(bus.owners(V()), [1]);
    assert_eq!(bus.view(1, V()).epoch, ((CREATED + 10) << 20) + 1);
    // It learns at last, and follows.
    bus.assign(0, V(), new);
    bus.run(ms(1_000));
    assert_eq!(bus.owners(V()), [1]);
    assert_eq!(bus.view(0, V()).owner, Some(name(1)));
}

#[test]
fn a_thousand_addresses_cost_no_more_frames_in_peace_and_move_within_two_seconds() {
    let mut bus = Bus::new(3, 21);
    for index in 0..3 {
        bus.start(index);
    }
    bus.run(ms(1_000));
    for n in 0..1_000 {
        let order = if n % 2 == 0 { [0, 1, 2] } else { [0, 2, 1] };
        for index in 0..3 {
            bus.assign(index, vip(n), assignment(&order));
        }
    }
    bus.run(ms(10_000));
    for n in 0..1_000 {
        assert_eq!(bus.owners(vip(n)), [0]);
    }
    let before = bus.count_sent;
    bus.run(ms(10_000));
    assert_eq!(
        bus.count_sent - before,
        300,
        "three nodes' HELLOs, nothing else"
    );

    bus.kill(0);
    bus.tick = ms(20);
    let all = |bus: &Bus| (0..1_000).all(|n| !bus.owners(vip(n)).is_empty());
    let took = bus.run_until(ms(3_000), all).unwrap();
    assert!(took <= ms(1_500), "{took:?}");
    let share = (0..1_000).filter(|n| bus.owners(vip(*n)) == [1]).count();
    assert_eq!(share, 500, "each successor takes its own");
    assert!(!bus.ever_two_owners());

    // A newcomer learns the whole list, in parts.
    let order = [0, 1, 2];
    for n in 0..1_000 {
        bus.nodes[0].told.insert(vip(n), assignment(&order));
    }
    bus.start(0);
    bus.run(ms(1_000));
    for n in 0..1_000 {
        let owner = if n % 2 == 0 { 1 } else { 2 };
        assert_eq!(bus.view(0, vip(n)).owner, Some(name(owner)));
        assert_eq!(bus.owners(vip(n)), [owner]);
    }
}

#[test]
fn probes_and_announcements_are_paced() {
    let mut bus = Bus::new(1, 22);
    bus.record_sent = true;
    bus.start(0);
    for n in 0..1_000 {
        bus.assign(0, vip(n), assignment(&[0]));
    }
    bus.run(ms(10_000));
    let times: Vec<Instant> = bus
        .sent
        .iter()
        .filter(|(_, _, frame)| arp_of(frame).is_some())
        .map(|(at, _, _)| *at)
        .collect();
    assert_eq!(times.len(), 1_000 * (2 + 5));
    for window in times.windows(300) {
        let spread = window[299].since(window[0]);
        assert!(spread >= ms(100), "300 frames in {spread:?}");
    }
}

#[test]
fn a_change_of_the_hardware_address_is_verified_and_announced() {
    let mut bus = Bus::settled(1, 23);
    bus.record_sent = true;
    let new = MacAddr(2, 0, 0, 0, 1, 1);
    bus.feed(
        0,
        Input::Link {
            up: true,
            mac: new,
            local: [new].into(),
        },
    );
    assert_eq!(bus.state(0, V()), State::Probe);
    bus.run(ms(100));
    assert_eq!(bus.owners(V()), [0]);
    let arps: Vec<Arp> = bus
        .sent
        .iter()
        .filter_map(|(_, _, frame)| arp_of(frame))
        .collect();
    let probe = Arp::probe(new, v4(V()));
    let announcement = Arp::announcement(new, v4(V()));
    assert_eq!(arps, [probe, probe, announcement, announcement]);
}

#[test]
fn inputs_survive_recording() {
    let inputs = [
        Input::Frame(vec![1, 2, 3]),
        Input::Assign {
            address: V(),
            assignment: assignment(&[0, 1]),
        },
        Input::Remove { address: V() },
        Input::Link {
            up: true,
            mac: mac(0),
            local: [mac(0), mac(1)].into(),
        },
        Input::Timeout,
        Input::Shutdown,
    ];
    for input in inputs {
        let line = serde_json::to_string(&input).unwrap();
        assert_eq!(
            serde_json::from_str::<Input>(&line).unwrap(),
            input,
            "{line}"
        );
    }
}

/// A node that was not told of the new object knows the Service behind the old
/// one: the address is not for it.
#[test]
fn who_knows_only_an_older_object_takes_no_address_of_the_newer_one() {
    let mut bus = Bus::new(3, 90);
    for index in 0..3 {
        bus.start(index);
        bus.assign(index, vip(1), assignment(&[0, 1, 2]));
    }
    bus.run(ms(3_000));
    assert_eq!(bus.owners(vip(1)), [0]);
    let newer = |order: &[usize]| Assignment {
        created: CREATED + 60,
        ..assignment(order)
    };
    bus.kill(0);
    for index in 1..3 {
        bus.remove(index, vip(1));
    }
    bus.assign(1, vip(1), assignment(&[0, 1, 2]));
    bus.assign(2, vip(1), newer(&[2, 1]));
    bus.run(ms(4_000));
    assert_eq!(bus.owners(vip(1)), [2]);
    // Neither by a planned move ...
    bus.assign(2, vip(1), newer(&[1, 2]));
    bus.run(ms(10_000));
    assert_eq!(bus.owners(vip(1)), [2]);
    // ... nor when the owner dies, before it is told.
    bus.kill(2);
    bus.run(ms(3_000));
    assert!(bus.owners(vip(1)).is_empty());
    bus.assign(1, vip(1), newer(&[1, 2]));
    let took = bus.run_until(ms(1_000), |bus| bus.owners(vip(1)) == [1]);
    assert!(took.is_some());
}
