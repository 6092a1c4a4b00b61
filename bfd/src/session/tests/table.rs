//! Every state against every event, and the order of RFC 5880 section 6.8.6.

use super::*;

#[derive(Debug, Clone, Copy)]
enum Happens {
    Hears(State),
    HearsNothing,
    Disabled,
    Enabled,
}

/// RFC 5880 sections 6.2, 6.8.4, 6.8.6 and 6.8.16: from, event, to, diagnostic,
/// what the owner is told. Written from the text, not from the code.
#[test]
fn every_state_answers_every_event_as_the_table_says() {
    use Diagnostic as D;
    use Happens::{Disabled, Enabled, Hears, HearsNothing};
    use State::{AdminDown, Down, Init, Up};
    let by_peer = Some(Change::Down(DownReason::PeerDown(D::None)));
    let by_peers_admin = Some(Change::Down(DownReason::PeerAdminDown(D::None)));
    let silence = Some(Change::Down(DownReason::DetectionTimeExpired));
    let by_us = Some(Change::Down(DownReason::AdminDown));
    #[rustfmt::skip]
    let table = [
        (AdminDown, Hears(AdminDown), AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Hears(Down),      AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Hears(Init),      AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Hears(Up),        AdminDown, D::AdministrativelyDown, None),
        (AdminDown, HearsNothing,     AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Disabled,         AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Enabled,          Down,      D::AdministrativelyDown, None),
        (Down,      Hears(AdminDown), Down,      D::None,                 Some(Change::PeerAdminDown)),
        (Down,      Hears(Down),      Init,      D::None,                 None),
        (Down,      Hears(Init),      Up,        D::None,                 Some(Change::Up)),
        (Down,      Hears(Up),        Down,      D::None,                 None),
        (Down,      HearsNothing,     Down,      D::None,                 None),
        (Down,      Disabled,         AdminDown, D::AdministrativelyDown, None),
        (Down,      Enabled,          Down,      D::None,                 None),
        (Init,      Hears(AdminDown), Down,      D::NeighborSignaledSessionDown, by_peers_admin),
        (Init,      Hears(Down),      Init,      D::None,                 None),
        (Init,      Hears(Init),      Up,        D::None,                 Some(Change::Up)),
        (Init,      Hears(Up),        Up,        D::None,                 Some(Change::Up)),
        (Init,      HearsNothing,     Down,      D::ControlDetectionTimeExpired, silence),
        (Init,      Disabled,         AdminDown, D::AdministrativelyDown, by_us),
        (Init,      Enabled,          Init,      D::None,                 None),
        (Up,        Hears(AdminDown), Down,      D::NeighborSignaledSessionDown, by_peers_admin),
        (Up,        Hears(Down),      Down,      D::NeighborSignaledSessionDown, by_peer),
        (Up,        Hears(Init),      Up,        D::None,                 None),
        (Up,        Hears(Up),        Up,        D::None,                 None),
        (Up,        HearsNothing,     Down,      D::ControlDetectionTimeExpired, silence),
        (Up,        Disabled,         AdminDown, D::AdministrativelyDown, by_us),
        (Up,        Enabled,          Up,        D::None,                 None),
    ];
    assert_eq!(table.len(), 4 * 7, "it is complete");
    let settings = settings(50, 50, 3);
    for (from, event, to, diagnostic, change) in table {
        let mut bench = Bench::in_state(from, settings);
        let outputs = match event {
            Hears(state) => bench.receive(packet(state)),
            HearsNothing => untimed(bench.run(ms(10_000))),
            Disabled => bench.configure(Settings {
                enabled: false,
                ..settings
            }),
            Enabled => bench.configure(settings),
        };
        let row = format!("{from} {event:?}");
        assert_eq!(bench.session.state(), to, "{row}");
        assert_eq!(bench.session.diagnostic(), diagnostic, "{row}");
        let mut changes = told(&outputs);
        // The peer's slower packets are another matter.
        changes.retain(|change| !matches!(change, Change::Intervals(_)));
        assert_eq!(changes, Vec::from_iter(change), "{row}");
        // A change of state is told the peer at once (section 6.8.7).
        if from != to {
            let packets = sent(&outputs);
            let last = packets
                .last()
                .map(|packet| (packet.state, packet.diagnostic));
            assert_eq!(last, Some((to, diagnostic)), "{row}");
        }
    }
}

#[test]
fn the_last_failure_is_told_until_the_session_is_up_again() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    bench.run(ms(200));
    assert_eq!(
        bench.session.diagnostic(),
        Diagnostic::ControlDetectionTimeExpired
    );
    bench.receive(packet(State::Down));
    assert_eq!(bench.session.state(), State::Init);
    assert_eq!(
        bench.session.diagnostic(),
        Diagnostic::ControlDetectionTimeExpired
    );
    bench.receive(packet(State::Init));
    assert_eq!(bench.session.diagnostic(), Diagnostic::None);
}

#[test]
fn what_a_packet_says_of_the_peer_is_known_even_in_admin_down() {
    let mut bench = Bench::in_state(State::AdminDown, settings(50, 50, 3));
    let mut heard = packet(State::Up);
    heard.control_plane_independent = true;
    heard.poll = true;
    // The packet is discarded after the variables are set and before the poll
    // is answered.
    let outputs = bench.receive(heard);
    let remote = *bench.session.remote();
    assert_eq!(remote.discriminator, NonZeroU32::new(THEIRS));
    assert_eq!(remote.state, State::Up);
    assert!(remote.control_plane_independent);
    assert!(sent(&outputs).iter().all(|packet| !packet.final_answer));
}

#[test]
fn a_poll_is_answered_at_once_in_every_other_state() {
    for state in [State::Down, State::Init, State::Up] {
        let mut bench = Bench::in_state(state, settings(50, 50, 3));
        let heard = if state == State::Up {
            State::Up
        } else {
            State::Down
        };
        let mut poll = packet(heard);
        poll.poll = true;
        let outputs = bench.receive(poll);
        let answers: Vec<_> = sent(&outputs)
            .into_iter()
            .filter(|p| p.final_answer)
            .collect();
        assert_eq!(answers.len(), 1, "{state}");
        assert!(!answers[0].poll, "never both");
        assert_eq!(
            answers[0].state,
            bench.session.state(),
            "with the new state"
        );
        assert_eq!(answers[0].your_discriminator, NonZeroU32::new(THEIRS));
    }
}

#[test]
fn an_answer_does_not_move_the_transmission_timer() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let due = bench.session.next_deadline();
    let mut poll = packet(State::Up);
    poll.poll = true;
    for _ in 0..5 {
        bench.now = bench.now + ms(1);
        bench.receive(poll);
    }
    assert_eq!(bench.session.next_deadline(), due);
}

#[test]
fn we_never_set_what_we_do_not_have() {
    for state in State::ALL {
        let mut bench = Bench::in_state(state, settings(50, 50, 3));
        let mut outputs = untimed(bench.run(ms(5000)));
        let mut heard = packet(State::Up);
        heard.poll = true;
        heard.demand = true;
        outputs.extend(bench.receive(heard));
        for packet in sent(&outputs) {
            assert!(!packet.control_plane_independent && !packet.demand);
            assert_eq!(packet.required_min_echo_rx, 0);
            assert!(!(packet.poll && packet.final_answer));
        }
    }
}

#[test]
fn the_peers_discriminator_is_forgotten_after_a_detection_time_of_silence_in_every_state() {
    for state in State::ALL {
        let mut bench = Bench::in_state(state, settings(50, 50, 3));
        let heard = if state == State::Down {
            State::Up
        } else {
            state
        };
        let mut last = packet(heard);
        // No periodic packets wanted: that is forgotten too (section 6.8.18).
        last.required_min_rx = 0;
        bench.receive(last);
        let detection = bench.session.intervals().detection.unwrap();
        bench.run(detection - ms(1));
        assert!(bench.session.remote().discriminator.is_some(), "{state}");
        bench.run(ms(1));
        assert_eq!(bench.session.remote(), &Remote::UNHEARD, "{state}");
        let outputs = untimed(bench.run(ms(2000)));
        let last = sent(&outputs).last().copied().unwrap();
        assert_eq!(last.your_discriminator, None, "{state}");
    }
}

#[test]
fn an_active_end_begins_and_a_passive_one_waits() {
    let mut active = Bench::new(settings(50, 50, 3));
    assert!(!sent(&untimed(active.run(ms(5000)))).is_empty());

    let passive = Settings {
        role: Role::Passive,
        ..settings(50, 50, 3)
    };
    let mut bench = Bench::new(passive);
    assert_eq!(bench.run(ms(60_000)), []);
    bench.receive(packet(State::Down));
    assert_eq!(sent(&untimed(bench.run(ms(1)))).len(), 1);
    bench.receive(packet(State::Init));
    assert_eq!(bench.session.state(), State::Up);
    // Once the peer is silent, so is the passive end: after nothing but the
    // Detection Time's own packets.
    bench.run(ms(3000));
    assert_eq!(bench.session.state(), State::Down);
    assert_eq!(bench.run(ms(60_000)), []);
}

#[test]
fn held_down_on_purpose_it_goes_on_saying_so() {
    let mut bench = Bench::in_state(State::Up, settings(50, 50, 3));
    let off = Settings {
        enabled: false,
        ..settings(50, 50, 3)
    };
    let first = sent(&bench.configure(off));
    assert_eq!(first.len(), 1, "at once");
    assert_eq!(first[0].state, State::AdminDown);
    assert_eq!(first[0].diagnostic, Diagnostic::AdministrativelyDown);
    let later = sent(&untimed(bench.run_with(ms(10_000), packet(State::Down))));
    assert!((9..=14).contains(&later.len()), "{}", later.len());
    assert!(later.iter().all(|packet| packet.state == State::AdminDown));
}

#[test]
fn admin_down_of_either_side_is_no_failure_and_the_rest_is() {
    let (none, failures) = (
        Diagnostic::None,
        [
            DownReason::DetectionTimeExpired,
            DownReason::PeerDown(Diagnostic::PathDown),
        ],
    );
    assert!(failures.iter().all(|reason| reason.is_failure()));
    let planned = [DownReason::PeerAdminDown(none), DownReason::AdminDown];
    assert!(!planned.iter().any(|reason| reason.is_failure()));
}
