//! A peer in Demand mode, and one that wants no periodic packets (RFC 5880
//! sections 6.6, 6.8.6 and 6.8.7).

use super::*;

fn demanding() -> Control {
    Control {
        demand: true,
        ..packet(State::Up)
    }
}

#[test]
fn a_peer_in_demand_mode_gets_no_periodic_packets_while_both_are_up() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.receive(demanding());
    assert_eq!(sent(&untimed(bench.run_with(ms(5000), demanding()))), []);
    assert_eq!(bench.session.intervals().transmit, None);
    assert_eq!(bench.session.state(), State::Up, "it is still heard");
    // It leaves Demand mode.
    let outputs = bench.run_with(ms(1000), packet(State::Up));
    assert!(gaps(&outputs).len() >= 18);
}

#[test]
fn demand_counts_for_nothing_unless_both_are_up() {
    let mut bench = Bench::new(settings(50, 50, 3));
    let mut heard = packet(State::Down);
    heard.demand = true;
    let outputs = bench.run_with(ms(5000), heard);
    assert_eq!(bench.session.state(), State::Init);
    assert!(sent(&untimed(outputs)).len() >= 4);
}

#[test]
fn a_change_in_demand_mode_is_polled_until_it_is_answered() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.receive(demanding());
    bench.run_with(ms(1000), demanding());
    bench.configure(settings(70, 50, 3));
    let polls = sent(&untimed(bench.run_with(ms(1000), demanding())));
    assert!(polls.len() >= 10);
    assert!(polls.iter().all(|packet| packet.poll));
    let mut answer = demanding();
    answer.final_answer = true;
    bench.receive(answer);
    assert_eq!(sent(&untimed(bench.run_with(ms(1000), demanding()))), []);
}

#[test]
fn polls_of_a_peer_in_demand_mode_are_answered() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.receive(demanding());
    let mut poll = demanding();
    poll.poll = true;
    assert_eq!(sent(&bench.receive(poll)).len(), 1);
}

#[test]
fn silence_of_a_peer_in_demand_mode_is_noticed() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.receive(demanding());
    let outputs = untimed(bench.run(ms(150)));
    assert_eq!(
        told(&outputs),
        [Change::Down(DownReason::DetectionTimeExpired)]
    );
}

#[test]
fn a_limit_of_zero_stops_periodic_packets_but_not_answers() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let mut heard = packet(State::Up);
    heard.required_min_rx = 0;
    bench.receive(heard);
    assert_eq!(sent(&untimed(bench.run_with(ms(5000), heard))), []);
    heard.poll = true;
    assert_eq!(sent(&bench.receive(heard)).len(), 1);
}
