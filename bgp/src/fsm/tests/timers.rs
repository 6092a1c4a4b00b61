//! Timers, with the clock in the hand.

use super::*;

#[test]
fn the_first_timer_of_each_state_does_what_the_rfc_says() {
    let start = Instant::now();
    let seconds = Duration::from_secs;
    for (state, after, did, least, most) in [
        (
            State::Connect,
            State::Connect,
            "close down connect",
            seconds(5),
            seconds(5),
        ),
        (
            State::Active,
            State::Connect,
            "connect",
            Duration::from_millis(3750),
            seconds(5),
        ),
        (
            State::OpenSent,
            State::Idle,
            "4/0 close down",
            seconds(240),
            seconds(240),
        ),
        (
            State::OpenConfirm,
            State::OpenConfirm,
            "KEEPALIVE",
            Duration::from_millis(22500),
            seconds(30),
        ),
        (
            State::Established,
            State::Established,
            "KEEPALIVE",
            Duration::from_millis(22500),
            seconds(30),
        ),
    ] {
        let mut fsm = machine(config(), state, start);
        let at = fsm.next_deadline().unwrap();
        assert!(
            (least..=most).contains(&(at - start)),
            "{state}: {:?}",
            at - start
        );
        fsm.handle(Input::Tick, at);
        assert_eq!(
            (fsm.state(), in_words(&outputs(&mut fsm)).as_str()),
            (after, did),
            "{state}"
        );
    }
    assert_eq!(machine(config(), State::Idle, start).next_deadline(), None);
}

/// Lets timers run until the machine leaves `state`; when it did, and what it
/// sent on the way.
fn run_out(fsm: &mut Fsm, start: Instant) -> (Duration, Vec<Output>) {
    let state = fsm.state();
    let mut did = Vec::new();
    loop {
        let at = fsm.next_deadline().expect("a timer");
        fsm.handle(Input::Tick, at);
        did.extend(outputs(fsm));
        if fsm.state() != state {
            return (at - start, did);
        }
    }
}

#[test]
fn a_silent_peer_is_dropped_at_the_smaller_hold_time() {
    for (ours, theirs, negotiated) in [(90, 9, 9), (3, 90, 3), (180, 240, 180)] {
        for state in [State::OpenConfirm, State::Established] {
            let now = Instant::now();
            let mut config = config();
            config.hold_time = Duration::from_secs(ours);
            let mut fsm = machine(config, State::OpenSent, now);
            fsm.handle(
                received(Message::Open(Open {
                    hold_time: theirs,
                    ..open()
                })),
                now,
            );
            if state == State::Established {
                fsm.handle(received(Message::Keepalive), now);
            }
            assert_eq!(
                fsm.session().unwrap().hold_time,
                Some(Duration::from_secs(negotiated))
            );
            outputs(&mut fsm);
            let (after, did) = run_out(&mut fsm, now);
            assert_eq!(after, Duration::from_secs(negotiated));
            let reason = DownReason::HoldTimerExpired(Duration::from_secs(negotiated));
            let expected = [
                Output::Send(Message::Notification(Notification::hold_timer_expired())),
                Output::Close,
                Output::Down(reason),
            ];
            assert_eq!(did[did.len() - 3..], expected);
        }
    }
}

#[test]
fn each_message_of_the_peer_restarts_the_hold_timer() {
    for message in [
        Message::Keepalive,
        Message::Update(Update::default()),
        Message::RouteRefresh(RouteRefresh {
            afi: 1,
            subtype: 0,
            safi: 1,
        }),
    ] {
        let start = Instant::now();
        let mut fsm = machine(config(), State::Established, start);
        let later = start + Duration::from_secs(89);
        fsm.handle(received(message), later);
        fsm.handle(Input::Tick, start + Duration::from_secs(90));
        assert_eq!(fsm.state(), State::Established);
        let (after, _) = run_out(&mut fsm, later);
        assert_eq!(after, Duration::from_secs(90));
    }
}

#[test]
fn a_hold_time_of_zero_turns_keepalives_and_the_hold_timer_off() {
    for (ours, theirs) in [(0, 90), (90, 0)] {
        let now = Instant::now();
        let mut config = config();
        config.hold_time = Duration::from_secs(ours);
        config.keepalive_time = Some(Duration::from_secs(10));
        let mut fsm = machine(config, State::OpenSent, now);
        fsm.handle(
            received(Message::Open(Open {
                hold_time: theirs,
                ..open()
            })),
            now,
        );
        assert_eq!(fsm.next_deadline(), None);
        fsm.handle(received(Message::Keepalive), now);
        assert_eq!(fsm.session().unwrap().hold_time, None);
        // Only the send hold timer is left.
        assert_eq!(fsm.next_deadline(), Some(now + Duration::from_secs(480)));
    }
}

#[test]
fn keepalives_come_at_a_third_of_the_hold_time_or_as_configured_jittered_never_twice_a_second() {
    for (hold, configured, longest) in [
        (90, None, 30),
        (90, Some(10), 10),
        (90, Some(60), 30),
        (3, None, 1),
        (6, Some(1), 1),
    ] {
        let mut now = Instant::now();
        let mut config = config();
        config.hold_time = Duration::from_secs(hold);
        config.keepalive_time = configured.map(Duration::from_secs);
        let mut fsm = machine(config, State::Established, now);
        let longest = Duration::from_secs(longest);
        let shortest = (longest * 3 / 4).max(Duration::from_secs(1));
        let mut gaps = Vec::new();
        for _ in 0..200 {
            let at = fsm.next_deadline().unwrap();
            fsm.handle(Input::Tick, at);
            fsm.handle(received(Message::Keepalive), at);
            fsm.handle(Input::Written, at);
            assert_eq!(in_words(&outputs(&mut fsm)), "KEEPALIVE");
            gaps.push(at - now);
            now = at;
        }
        assert!(
            gaps.iter().all(|gap| (shortest..=longest).contains(gap)),
            "{gaps:?}"
        );
        if shortest < longest {
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(
                *most - *least > (longest - shortest) * 8 / 10,
                "jitter uses its range"
            );
        }
    }
}

#[test]
fn a_peer_that_reads_nothing_is_dropped_after_eight_minutes() {
    let start = Instant::now();
    let mut fsm = machine(config(), State::Established, start);
    let mut now = start;
    while fsm.state() == State::Established {
        now = fsm.next_deadline().unwrap();
        fsm.handle(received(Message::Keepalive), now);
        fsm.handle(Input::Tick, now);
    }
    assert_eq!(now - start, Duration::from_secs(480));
    assert!(in_words(&outputs(&mut fsm)).ends_with("8/0 close down"));
    // With progress it stays.
    let mut fsm = machine(config(), State::Established, start);
    for minute in 1..30 {
        let now = start + Duration::from_secs(minute * 60);
        fsm.handle(Input::Written, now);
        fsm.handle(received(Message::Keepalive), now);
        fsm.handle(Input::Tick, now);
        assert_eq!(fsm.state(), State::Established);
    }
}

#[test]
fn sessions_that_fail_pause_longer_each_time_and_a_stable_one_clears_the_record() {
    let mut now = Instant::now();
    let mut fsm = Fsm::new(config(), 7);
    let mut pauses = Vec::new();
    fsm.handle(Input::Start, now);
    let connect = |fsm: &mut Fsm, now| {
        fsm.handle(Input::TcpConnected("192.0.2.10".parse().unwrap()), now);
        fsm.handle(received(Message::Open(open())), now);
        fsm.handle(received(Message::Keepalive), now);
        assert_eq!(fsm.state(), State::Established);
    };
    for _ in 0..9 {
        connect(&mut fsm, now);
        fsm.handle(Input::TcpFailed(TcpFailure::Reset), now);
        assert_eq!(fsm.state(), State::Idle);
        let again = fsm.next_deadline().unwrap();
        pauses.push(again - now);
        now = again;
        fsm.handle(Input::Tick, now);
        assert_eq!(fsm.state(), State::Connect);
    }
    for (pause, full) in pauses.iter().zip([1, 2, 4, 8, 16, 32, 60, 60, 60]) {
        let full = Duration::from_secs(full);
        assert!((full * 3 / 4..=full).contains(pause), "{pauses:?}");
    }
    connect(&mut fsm, now);
    now += Duration::from_secs(61);
    fsm.handle(Input::TcpFailed(TcpFailure::Reset), now);
    assert!(fsm.next_deadline().unwrap() - now <= Duration::from_secs(1));
}

#[test]
fn a_stopped_machine_has_no_timer_and_starts_again_when_told() {
    let now = Instant::now();
    for state in [
        State::Idle,
        State::Connect,
        State::Active,
        State::OpenSent,
        State::Established,
    ] {
        let mut fsm = machine(config(), state, now);
        fsm.handle(Input::Stop(StopReason::PeerDeconfigured), now);
        assert_eq!((fsm.state(), fsm.next_deadline()), (State::Idle, None));
        outputs(&mut fsm);
        fsm.handle(Input::Tick, now + Duration::from_secs(3600));
        assert_eq!(in_words(&outputs(&mut fsm)), "");
        fsm.handle(Input::Start, now);
        assert_eq!(fsm.state(), State::Connect);
    }
}
