//! Intervals, jitter, detection and Poll Sequences (RFC 5880 sections 6.5,
//! 6.8.2 to 6.8.4 and 6.8.7).

use super::*;

#[test]
fn while_it_is_not_up_no_more_than_a_packet_a_second_is_wished_for() {
    for state in [State::AdminDown, State::Down, State::Init] {
        let mut bench = Bench::in_state(state, settings(10, 10, 3));
        let heard = packet(State::Down);
        let outputs = match state {
            State::Init => bench.run_with(ms(10_000), heard),
            State::AdminDown | State::Down | State::Up => bench.run(ms(10_000)),
        };
        for packet in sent(&untimed(outputs.clone())) {
            assert_eq!(packet.desired_min_tx, 1_000_000, "{state}");
            assert_eq!(packet.required_min_rx, 10_000, "{state}");
        }
        let gaps = gaps(&outputs);
        assert!(gaps.len() >= 8, "{state}: {gaps:?}");
        assert!(
            gaps.iter().all(|gap| (ms(750)..=ms(1000)).contains(gap)),
            "{gaps:?}"
        );
    }
    // A slower wish stays as it is.
    let mut bench = Bench::new(settings(5000, 10, 3));
    assert_eq!(
        sent(&untimed(bench.run(ms(1))))[0].desired_min_tx,
        5_000_000
    );
}

#[test]
fn up_it_sends_at_the_slower_of_both_wishes_jittered_by_a_quarter() {
    for (wish, limit, negotiated) in [(50, 20, 50), (50, 200, 200)] {
        let mut bench = Bench::in_state(State::Up, settings(wish, 50, 3));
        let mut heard = packet(State::Up);
        heard.required_min_rx = limit * 1000;
        bench.receive(heard);
        let gaps = gaps(&bench.run_with(ms(200_000), heard));
        let (low, high) = (ms(negotiated * 3 / 4), ms(negotiated));
        assert!(
            gaps.iter().all(|gap| (low..=high).contains(gap)),
            "{wish} {limit}"
        );
        let mean = gaps.iter().sum::<Duration>() / u32::try_from(gaps.len()).unwrap();
        let share = mean.as_secs_f64() / high.as_secs_f64();
        assert!((0.865..0.885).contains(&share), "{wish} {limit}: {share}");
        // All of the range is used.
        let (shortest, longest) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!(*shortest < high * 77 / 100 && *longest > high * 98 / 100);
    }
}

#[test]
fn with_multiplier_1_it_sends_at_75_to_90_percent() {
    let mut bench = Bench::in_state(State::Up, settings(100, 50, 1));
    let gaps = gaps(&bench.run_with(ms(200_000), packet(State::Up)));
    assert!(gaps.iter().all(|gap| (ms(75)..=ms(90)).contains(gap)));
    assert!(gaps.iter().any(|gap| *gap > ms(89)) && gaps.iter().any(|gap| *gap < ms(76)));
}

#[test]
fn the_detection_time_is_the_peers_multiplier_times_the_slower_of_its_wish_and_our_limit() {
    for (limit, wish, multiplier, expected) in [
        (50, 20, 3, 150),
        (50, 100, 5, 500),
        (300, 20, 1, 300),
        (10, 10, 255, 2550),
    ] {
        // Our own multiplier and wish say nothing about it.
        let mut bench = Bench::in_state(State::Up, settings(1000, limit, 17));
        let mut heard = packet(State::Up);
        heard.desired_min_tx = wish * 1000;
        heard.multiplier = NonZeroU8::new(multiplier).unwrap();
        bench.receive(heard);
        assert_eq!(bench.session.intervals().detection, Some(ms(expected)));
        bench.run(ms(expected) - Duration::from_nanos(1));
        assert_eq!(bench.session.state(), State::Up);
        bench.run(Duration::from_nanos(1));
        assert_eq!(bench.session.state(), State::Down);
        assert_eq!(
            bench.session.diagnostic(),
            Diagnostic::ControlDetectionTimeExpired
        );
    }
}

#[test]
fn going_up_polls_since_the_wish_changes_and_the_answer_ends_it() {
    let mut bench = Bench::new(settings(50, 50, 3));
    bench.run(ms(1));
    bench.receive(packet(State::Down));
    let outputs = bench.receive(packet(State::Init));
    let up = sent(&outputs)[0];
    assert_eq!(
        (up.state, up.poll, up.desired_min_tx),
        (State::Up, true, 50_000)
    );
    // Every packet polls until the answer comes.
    let outputs = bench.run_with(ms(1000), packet(State::Up));
    assert!(sent(&untimed(outputs)).iter().all(|packet| packet.poll));
    let mut answer = packet(State::Up);
    answer.final_answer = true;
    bench.receive(answer);
    assert!(!bench.session.polls());
    let outputs = bench.run_with(ms(1000), packet(State::Up));
    assert!(sent(&untimed(outputs)).iter().all(|packet| !packet.poll));
}

#[test]
fn an_answer_to_nothing_ends_nothing() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let mut answer = packet(State::Up);
    answer.final_answer = true;
    bench.configure(settings(500, 50, 3));
    // It left before our first packet with P.
    bench.receive(answer);
    assert!(bench.session.polls());
    assert_eq!(bench.session.intervals().transmit, Some(ms(50)));
}

#[test]
fn a_poll_rides_on_scheduled_packets_and_sends_none_of_its_own() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let due = bench.session.next_deadline();
    assert_eq!(bench.configure(settings(500, 50, 3)), []);
    assert_eq!(bench.session.next_deadline(), due);
    let next = sent(&untimed(bench.run(ms(50))))[0];
    assert_eq!((next.poll, next.desired_min_tx), (true, 500_000));
}

#[test]
fn a_longer_transmit_interval_waits_for_the_answer() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.configure(settings(500, 50, 3));
    let gaps_before = gaps(&bench.run_with(ms(2000), packet(State::Up)));
    assert!(gaps_before.iter().all(|gap| *gap <= ms(50)));
    let mut answer = packet(State::Up);
    answer.final_answer = true;
    let outputs = bench.receive(answer);
    let intervals = bench.session.intervals();
    assert_eq!(intervals.transmit, Some(ms(500)));
    assert_eq!(told(&outputs), [Change::Intervals(intervals)]);
    let gaps_after = gaps(&bench.run_with(ms(5000), packet(State::Up)));
    assert!(
        gaps_after
            .iter()
            .all(|gap| (ms(375)..=ms(500)).contains(gap))
    );
}

#[test]
fn a_shorter_transmit_interval_is_used_at_once() {
    let mut bench = Bench::in_state(State::Up, settings(500, 50, 3));
    let mut heard = packet(State::Up);
    heard.required_min_rx = 10_000;
    bench.receive(heard);
    bench.configure(settings(20, 50, 3));
    assert_eq!(bench.session.intervals().transmit, Some(ms(20)));
    // It has passed already.
    let outputs = bench.run(Duration::ZERO);
    assert_eq!(sent(&untimed(outputs)).len(), 1);
}

#[test]
fn a_shorter_receive_interval_is_not_used_for_detection_before_the_answer() {
    let mut bench = Bench::in_state(State::Up, settings(50, 500, 3));
    assert_eq!(bench.session.intervals().detection, Some(ms(1500)));
    bench.configure(settings(50, 50, 3));
    bench.run(ms(40));
    assert_eq!(bench.session.intervals().detection, Some(ms(1500)));
    let mut answer = packet(State::Up);
    answer.final_answer = true;
    bench.receive(answer);
    assert_eq!(bench.session.intervals().detection, Some(ms(150)));
}

#[test]
fn a_longer_receive_interval_is_used_for_detection_at_once() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.configure(settings(50, 500, 3));
    assert_eq!(bench.session.intervals().detection, Some(ms(1500)));
    assert!(bench.session.polls());
}

#[test]
fn a_smaller_limit_of_the_peer_is_honoured_immediately() {
    let mut bench = Bench::in_state(State::Up, settings(20, 50, 3));
    let mut heard = packet(State::Up);
    heard.required_min_rx = 1_000_000;
    bench.receive(heard);
    bench.run_with(ms(2000), heard);
    let last = bench.now;
    // Some time into the long interval the peer allows short ones.
    while sent(&untimed(bench.run_with(ms(20), heard))).is_empty() {}
    bench.run_with(ms(200), heard);
    heard.required_min_rx = 20_000;
    let before = bench.now;
    bench.receive(heard);
    let outputs = bench.run(Duration::ZERO);
    assert_eq!(
        sent(&untimed(outputs)).len(),
        1,
        "the new interval has passed already"
    );
    assert!(bench.now == before && before > last);
}

#[test]
fn a_changed_multiplier_polls_too() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.configure(settings(50, 50, 9));
    let next = sent(&untimed(bench.run(ms(50))))[0];
    assert_eq!((next.poll, next.multiplier.get()), (true, 9));
}

#[test]
fn a_change_during_a_poll_has_a_poll_of_its_own_after_a_packet_without_final() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let (mut answer, plain) = (packet(State::Up), packet(State::Up));
    answer.final_answer = true;
    bench.configure(settings(500, 50, 3));
    bench.run(ms(50));
    bench.configure(settings(5000, 50, 3));
    // This may answer a packet that said 500 ms: neither is used.
    bench.receive(answer);
    assert!(!bench.session.polls());
    assert_eq!(bench.session.intervals().transmit, Some(ms(50)));
    // Another late answer does not begin the next sequence, nor end it.
    bench.receive(answer);
    assert!(!bench.session.polls());
    bench.receive(plain);
    assert!(bench.session.polls());
    bench.receive(answer);
    assert!(bench.session.polls(), "no packet has asked yet");
    bench.run(ms(50));
    bench.receive(answer);
    assert!(!bench.session.polls());
    assert_eq!(bench.session.intervals().transmit, Some(ms(5000)));
}

#[test]
fn changes_made_before_the_first_poll_leaves_go_in_one_packet() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.configure(settings(500, 50, 3));
    bench.configure(settings(700, 80, 4));
    bench.run(ms(50));
    let mut answer = packet(State::Up);
    answer.final_answer = true;
    bench.receive(answer);
    bench.receive(packet(State::Up));
    assert!(!bench.session.polls());
    assert_eq!(bench.session.intervals().transmit, Some(ms(700)));
}

#[test]
fn going_down_ends_what_a_poll_held_back() {
    let mut bench = Bench::in_state(State::Up, settings(50, 500, 3));
    bench.configure(settings(50, 50, 3));
    bench.receive(packet(State::Down));
    assert_eq!(bench.session.state(), State::Down);
    let intervals = bench.session.intervals();
    assert_eq!(intervals.transmit, Some(ms(1000)));
    assert_eq!(intervals.detection, Some(ms(3000)));
}

#[test]
fn a_peer_that_is_not_heard_is_not_polled() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let outputs = bench.run(ms(10_000));
    assert_eq!(bench.session.state(), State::Down);
    let after = sent(&untimed(outputs));
    let down = after.iter().filter(|packet| packet.state == State::Down);
    assert!(down.clone().count() >= 8);
    assert!(down.clone().all(|packet| !packet.poll));
}
