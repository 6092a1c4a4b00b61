//! Every state meets every input, and time is a variable.
#![allow(
    clippy::disallowed_methods,
    reason = "an instant to count from; no test waits for one"
)]

mod extensions;
mod timers;

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::config::PeerAsn;
use crate::message::{Capability, Update};

const PEER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn config() -> PeerConfig {
    PeerConfig::new(
        "192.0.2.1".parse().unwrap(),
        64512,
        PeerAsn::Exact(64513),
        Ipv4Addr::new(192, 0, 2, 10),
    )
}

fn open() -> Open {
    Open::new(64513, 90, PEER_ID)
}

fn received(message: Message) -> Input {
    Input::Received(message)
}

/// A machine in a state, what it wanted until then forgotten.
fn machine(config: PeerConfig, state: State, now: Instant) -> Fsm {
    let mut fsm = Fsm::new(config, 1);
    let inputs = match state {
        State::Idle => vec![],
        State::Connect => vec![Input::Start],
        State::Active => vec![Input::Start, Input::TcpFailed(TcpFailure::Refused)],
        State::OpenSent | State::OpenConfirm | State::Established => {
            let connected = Input::TcpConnected("192.0.2.10".parse().unwrap());
            let mut inputs = vec![Input::Start, connected];
            if state >= State::OpenConfirm {
                inputs.push(received(Message::Open(open())));
            }
            if state == State::Established {
                inputs.push(received(Message::Keepalive));
            }
            inputs
        }
    };
    for input in inputs {
        fsm.handle(input, now);
    }
    assert_eq!(fsm.state(), state);
    outputs(&mut fsm);
    fsm
}

fn outputs(fsm: &mut Fsm) -> Vec<Output> {
    std::iter::from_fn(|| fsm.poll_output()).collect()
}

fn in_words(outputs: &[Output]) -> String {
    let words: Vec<_> = outputs
        .iter()
        .map(|output| match output {
            Output::Connect => "connect".to_owned(),
            Output::Send(Message::Open(_)) => "OPEN".to_owned(),
            Output::Send(Message::Keepalive) => "KEEPALIVE".to_owned(),
            Output::Send(Message::Notification(sent)) => format!("{}/{}", sent.code, sent.subcode),
            Output::Send(Message::Update(_) | Message::RouteRefresh(_)) => "never".to_owned(),
            Output::Close => "close".to_owned(),
            Output::Up(_) => "up".to_owned(),
            Output::Down(_) => "down".to_owned(),
            Output::Refresh(family) => format!("refresh {}", family.afi()),
        })
        .collect();
    words.join(" ")
}

#[test]
fn every_state_answers_every_input_as_the_table_says() {
    use State::{Active, Connect, Established, Idle, OpenConfirm, OpenSent};
    let states = [Idle, Connect, Active, OpenSent, OpenConfirm, Established];
    type Row = (&'static str, Input, [(State, &'static str); 6]);
    let bye = "6/2 close down";
    let table: Vec<Row> = vec![
        (
            "Start",
            Input::Start,
            [
                (Connect, "connect"),
                (Connect, ""),
                (Active, ""),
                (OpenSent, ""),
                (OpenConfirm, ""),
                (Established, ""),
            ],
        ),
        (
            "Stop",
            Input::Stop(StopReason::AdministrativeShutdown(None)),
            [
                (Idle, "close down"),
                (Idle, "close down"),
                (Idle, "close down"),
                (Idle, bye),
                (Idle, bye),
                (Idle, bye),
            ],
        ),
        (
            "Stop, de-configured",
            Input::Stop(StopReason::PeerDeconfigured),
            [
                (Idle, "close down"),
                (Idle, "close down"),
                (Idle, "close down"),
                (Idle, "6/3 close down"),
                (Idle, "6/3 close down"),
                (Idle, "6/3 close down"),
            ],
        ),
        (
            "TCP up",
            Input::TcpConnected("192.0.2.10".parse().unwrap()),
            [
                (Idle, ""),
                (OpenSent, "OPEN"),
                (Active, ""),
                (OpenSent, ""),
                (OpenConfirm, ""),
                (Established, ""),
            ],
        ),
        (
            "TCP fails",
            Input::TcpFailed(TcpFailure::Reset),
            [
                (Idle, ""),
                (Active, "down"),
                (Active, ""),
                (Active, "close down"),
                (Idle, "close down"),
                (Idle, "close down"),
            ],
        ),
        (
            "OPEN",
            received(Message::Open(open())),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (OpenConfirm, "KEEPALIVE"),
                (Idle, "5/2 close down"),
                (Idle, "5/3 close down"),
            ],
        ),
        (
            "OPEN of a wrong AS",
            received(Message::Open(Open::new(64999, 90, PEER_ID))),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "2/2 close down"),
                (Idle, "5/2 close down"),
                (Idle, "5/3 close down"),
            ],
        ),
        (
            "KEEPALIVE",
            received(Message::Keepalive),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "5/1 close down"),
                (Established, "up"),
                (Established, ""),
            ],
        ),
        (
            "UPDATE",
            received(Message::Update(Update::default())),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "5/1 close down"),
                (Idle, "5/2 close down"),
                (Established, ""),
            ],
        ),
        (
            "ROUTE-REFRESH",
            received(Message::RouteRefresh(RouteRefresh {
                afi: 1,
                subtype: 0,
                safi: 1,
            })),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "5/1 close down"),
                (Idle, "5/2 close down"),
                (Established, "refresh 1"),
            ],
        ),
        (
            "ROUTE-REFRESH of another family",
            received(Message::RouteRefresh(RouteRefresh {
                afi: 1,
                subtype: 0,
                safi: 2,
            })),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "5/1 close down"),
                (Idle, "5/2 close down"),
                (Established, ""),
            ],
        ),
        (
            "ROUTE-REFRESH with a subtype",
            received(Message::RouteRefresh(RouteRefresh {
                afi: 1,
                subtype: 1,
                safi: 1,
            })),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "5/1 close down"),
                (Idle, "5/2 close down"),
                (Established, ""),
            ],
        ),
        // Never answered with another one.
        (
            "NOTIFICATION",
            received(Message::Notification(Notification::new(6, 4))),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "close down"),
                (Idle, "close down"),
                (Idle, "close down"),
            ],
        ),
        (
            "malformed",
            Input::Malformed(Notification::new(1, 3)),
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (Idle, "1/3 close down"),
                (Idle, "1/3 close down"),
                (Idle, "1/3 close down"),
            ],
        ),
        (
            "written",
            Input::Written,
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (OpenSent, ""),
                (OpenConfirm, ""),
                (Established, ""),
            ],
        ),
        (
            "tick too early",
            Input::Tick,
            [
                (Idle, ""),
                (Connect, ""),
                (Active, ""),
                (OpenSent, ""),
                (OpenConfirm, ""),
                (Established, ""),
            ],
        ),
    ];
    let now = Instant::now();
    for (name, input, row) in table {
        for (state, (after, expected)) in states.into_iter().zip(row) {
            let mut fsm = machine(config(), state, now);
            fsm.handle(input.clone(), now);
            let did = in_words(&outputs(&mut fsm));
            assert_eq!(
                (fsm.state(), did.as_str()),
                (after, expected),
                "{name} in {state}"
            );
        }
    }
}

#[test]
fn an_open_is_checked_against_the_configuration() {
    let ours = Ipv4Addr::new(192, 0, 2, 10);
    let local = 64512;
    let cases = [
        (PeerAsn::Exact(64513), 64513, PEER_ID, Ok(false)),
        (PeerAsn::Exact(64513), 64512, PEER_ID, Err((2, 2))),
        (
            PeerAsn::Exact(4_200_000_001),
            4_200_000_001,
            PEER_ID,
            Ok(false),
        ),
        (PeerAsn::Exact(23456), 4_200_000_001, PEER_ID, Err((2, 2))),
        (PeerAsn::Exact(local), local, PEER_ID, Ok(true)),
        (PeerAsn::Internal, local, PEER_ID, Ok(true)),
        (PeerAsn::Internal, 64513, PEER_ID, Err((2, 2))),
        (PeerAsn::External, 64513, PEER_ID, Ok(false)),
        (PeerAsn::External, local, PEER_ID, Err((2, 2))),
        // RFC 6286: the identifier is unique within an AS only.
        (PeerAsn::Internal, local, ours, Err((2, 3))),
        (PeerAsn::External, 64513, ours, Ok(false)),
    ];
    for (expected, asn, id, result) in cases {
        let now = Instant::now();
        let mut config = config();
        config.peer_asn = expected;
        let mut fsm = machine(config, State::OpenSent, now);
        fsm.handle(received(Message::Open(Open::new(asn, 90, id))), now);
        let did = outputs(&mut fsm);
        match result {
            Ok(internal) => assert_eq!(fsm.session().unwrap().context.internal, internal),
            Err((code, subcode)) => {
                let expected = format!("{code}/{subcode} close down");
                assert_eq!(in_words(&did), expected, "{expected:?} {asn}");
            }
        }
    }
}

#[test]
fn what_the_peer_can_do_decides_families_and_octets() {
    let multi = |afi, safi| Capability::MultiProtocol { afi, safi };
    let (four, six) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    for (capabilities, families, four_octet_as) in [
        (vec![], vec![four], false),
        (vec![Capability::RouteRefresh], vec![four], false),
        (vec![multi(2, 1)], vec![six], false),
        (
            vec![multi(1, 1), multi(2, 1), Capability::FourOctetAs(64513)],
            vec![four, six],
            true,
        ),
        (vec![multi(25, 70), multi(1, 2)], vec![], false),
    ] {
        let now = Instant::now();
        let mut fsm = machine(config(), State::OpenSent, now);
        fsm.handle(
            received(Message::Open(Open {
                capabilities,
                ..open()
            })),
            now,
        );
        let session = fsm.session().unwrap();
        assert_eq!(session.families, families);
        assert_eq!(
            fsm.context(),
            Context {
                four_octet_as,
                internal: false,
                ..Context::BEFORE_OPEN
            }
        );
    }
}

#[test]
fn a_reason_reads_well() {
    for (reason, words) in [
        (DownReason::Tcp(TcpFailure::Refused), "connection refused"),
        (
            DownReason::NotificationReceived(Notification::administrative_shutdown(Some("bye"))),
            "the peer ended the session: Cease: Administrative Shutdown (code 6, subcode 2), saying \"bye\"",
        ),
        (
            DownReason::ProtocolError(Notification::new(1, 1)),
            "the peer broke the protocol: Message Header Error: Connection Not Synchronized (code 1, subcode 1)",
        ),
        (
            DownReason::BadPeerAs {
                got: 1,
                expected: PeerAsn::External,
            },
            "bad peer AS: it is 1, configured is any but our own",
        ),
    ] {
        assert_eq!(reason.to_string(), words);
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    prop::sample::select(vec![
        Input::Start,
        Input::Stop(StopReason::AdministrativeShutdown(None)),
        Input::TcpConnected("192.0.2.10".parse().unwrap()),
        Input::TcpFailed(TcpFailure::Closed),
        received(Message::Open(open())),
        received(Message::Open(Open::new(64512, 0, PEER_ID))),
        received(Message::Keepalive),
        received(Message::Update(Update::default())),
        received(Message::Notification(Notification::new(6, 0))),
        received(Message::RouteRefresh(RouteRefresh {
            afi: 2,
            subtype: 0,
            safi: 1,
        })),
        Input::Malformed(Notification::new(3, 1)),
        Input::Written,
        Input::Tick,
    ])
}

proptest! {
    /// Whatever comes in whatever order: what is sent is sent on a connection,
    /// up and down alternate, and a started machine always has a next step.
    #[test]
    fn no_order_of_inputs_breaks_the_contract(
        steps in proptest::collection::vec((any_input(), 0..120_000_u64), 0..80), seed: u64,
    ) {
        let mut now = Instant::now();
        let mut fsm = Fsm::new(config(), seed);
        let (mut connecting, mut connected, mut up, mut started) = (false, false, false, false);
        for (input, pause) in steps {
            // Inputs that cannot happen: connections nobody opened.
            match &input {
                Input::TcpConnected(_) if !connecting => continue,
                Input::TcpConnected(_) => (connecting, connected) = (false, true),
                Input::TcpFailed(_) if !connecting && !connected => continue,
                Input::TcpFailed(_) => (connecting, connected) = (false, false),
                Input::Received(_) | Input::Malformed(_) | Input::Written if !connected => continue,
                Input::Start => started = true,
                Input::Stop(_) => started = false,
                Input::Received(_) | Input::Malformed(_) | Input::Written | Input::Tick => {}
            }
            now += Duration::from_millis(pause);
            let failed = matches!(input, Input::TcpFailed(_));
            let recorded = serde_json::to_string(&input).unwrap();
            fsm.handle(serde_json::from_str(&recorded).unwrap(), now);
            for output in outputs(&mut fsm) {
                match output {
                    Output::Connect => {
                        prop_assert!(!connecting && !connected);
                        connecting = true;
                    }
                    Output::Send(_) => prop_assert!(connected && !failed),
                    Output::Close => (connecting, connected) = (false, false),
                    Output::Up(_) => {
                        prop_assert!(!up);
                        up = true;
                    }
                    Output::Down(_) => up = false,
                    Output::Refresh(_) => prop_assert!(up),
                }
            }
            prop_assert_eq!(up, fsm.state() == State::Established);
            prop_assert_eq!(connected, fsm.state() >= State::OpenSent);
            prop_assert_eq!(connecting, fsm.state() == State::Connect);
            prop_assert_eq!(started, fsm.state() != State::Idle || fsm.next_deadline().is_some());
        }
    }
}
