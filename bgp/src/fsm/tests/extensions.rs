//! What the two OPENs settle beyond RFC 4271.

use super::*;
use crate::config::Restart;
use crate::message::{RestartFamily, Role};

fn sent_open(fsm: &mut Fsm) -> Open {
    let opens = outputs(fsm).into_iter().find_map(|output| match output {
        Output::Send(Message::Open(open)) => Some(open),
        _ => None,
    });
    opens.expect("an OPEN")
}

/// Connects and returns what the machine says about itself.
fn connect(fsm: &mut Fsm, now: Instant) -> Open {
    fsm.handle(Input::Start, now);
    fsm.handle(Input::TcpConnected("192.0.2.10".parse().unwrap()), now);
    sent_open(fsm)
}

fn with(capability: Capability) -> Open {
    let mut open = open();
    open.capabilities.push(capability);
    open
}

fn restart(notification: bool) -> Capability {
    Capability::GracefulRestart(GracefulRestart {
        restarted: false,
        notification,
        time: 120,
        families: vec![],
    })
}

fn up(config: PeerConfig, theirs: Open, now: Instant) -> Fsm {
    let mut fsm = Fsm::new(config, 1);
    connect(&mut fsm, now);
    fsm.handle(received(Message::Open(theirs)), now);
    fsm.handle(received(Message::Keepalive), now);
    assert_eq!(fsm.state(), State::Established);
    outputs(&mut fsm);
    fsm
}

#[test]
fn the_restart_bits_say_what_is_true() {
    let now = Instant::now();
    for resumed in [false, true] {
        let mut config = config();
        config.restart = Some(Restart {
            time: Duration::from_secs(120),
            resumed,
        });
        let mut fsm = Fsm::new(config, 1);
        let open = connect(&mut fsm, now);
        let said = open.graceful_restart().unwrap().clone();
        let forwarding = |open: &Open| -> Vec<bool> {
            let families = &open.graceful_restart().unwrap().families;
            families
                .iter()
                .map(|f: &RestartFamily| f.forwarding)
                .collect()
        };
        assert_eq!(
            (said.restarted, said.notification, said.time),
            (resumed, true, 120)
        );
        assert_eq!(forwarding(&open), [resumed, resumed]);

        // The session fails, this process does not.
        fsm.handle(received(Message::Open(self::open())), now);
        fsm.handle(received(Message::Keepalive), now);
        fsm.handle(Input::TcpFailed(TcpFailure::Reset), now);
        fsm.handle(Input::Tick, now + Duration::from_secs(2));
        let open = connect(&mut fsm, now + Duration::from_secs(2));
        assert!(!open.graceful_restart().unwrap().restarted);
        assert_eq!(forwarding(&open), [true, true]);
    }
    let open = connect(&mut Fsm::new(config(), 1), now);
    assert_eq!(open.graceful_restart(), None, "not asked for");
}

#[test]
fn an_end_is_hard_or_soft_as_the_reason_and_the_peer_have_it() {
    let shutdown = || StopReason::AdministrativeShutdown(None);
    let kept = Some(restart(true));
    let dropped = Some(restart(false));
    for (ours, theirs, reason, told) in [
        (true, &kept, shutdown(), "6/9 close down"),
        (true, &kept, StopReason::PeerDeconfigured, "6/9 close down"),
        (
            true,
            &kept,
            StopReason::ConfigurationChange,
            "6/6 close down",
        ),
        (true, &kept, StopReason::Restart, "close down"),
        (true, &dropped, shutdown(), "6/2 close down"),
        (true, &dropped, StopReason::Restart, "close down"),
        (true, &None, StopReason::Restart, "6/2 close down"),
        (false, &kept, shutdown(), "6/2 close down"),
        (false, &kept, StopReason::Restart, "6/2 close down"),
    ] {
        let now = Instant::now();
        let mut config = config();
        config.restart = ours.then_some(Restart {
            time: Duration::from_secs(120),
            resumed: false,
        });
        let theirs = theirs.clone().map_or(open(), with);
        let mut fsm = up(config, theirs, now);
        fsm.handle(Input::Stop(reason.clone()), now);
        assert_eq!(in_words(&outputs(&mut fsm)), told, "{reason:?} {ours}");
    }
}

#[test]
fn a_hard_reset_carries_its_reason() {
    let mut config = config();
    config.restart = Some(Restart {
        time: Duration::from_secs(120),
        resumed: false,
    });
    let now = Instant::now();
    let mut fsm = up(config, with(restart(true)), now);
    let text = Some("drained".to_owned());
    fsm.handle(Input::Stop(StopReason::AdministrativeShutdown(text)), now);
    let sent = outputs(&mut fsm).remove(0);
    let data = b"\x06\x02\x07drained";
    let expected = Message::Notification(Notification::with_data(6, 9, *data));
    assert_eq!(sent, Output::Send(expected));
}

#[test]
fn roles_must_go_together() {
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    let all = [Provider, RouteServer, RouteServerClient, Customer, Peer];
    let pairs = [
        (Provider, Customer),
        (Customer, Provider),
        (RouteServer, RouteServerClient),
        (RouteServerClient, RouteServer),
        (Peer, Peer),
    ];
    let open_with = |config: PeerConfig, theirs: Open| {
        let now = Instant::now();
        let mut fsm = machine(config, State::OpenSent, now);
        fsm.handle(received(Message::Open(theirs)), now);
        in_words(&outputs(&mut fsm))
    };
    for ours in all {
        let mut config = config();
        config.role = Some(ours);
        for theirs in all {
            let good = pairs.contains(&(ours, theirs));
            let did = open_with(config.clone(), with(Capability::Role(theirs.code())));
            let expected = if good { "KEEPALIVE" } else { "2/11 close down" };
            assert_eq!(did, expected, "{ours:?} {theirs:?}");
        }
        assert_eq!(open_with(config.clone(), open()), "KEEPALIVE", "not strict");
    }
    let mut two = with(Capability::Role(3));
    two.capabilities.push(Capability::Role(3));
    assert_eq!(open_with(config(), two.clone()), "KEEPALIVE");
    two.capabilities.push(Capability::Role(0));
    assert_eq!(open_with(config(), two), "2/11 close down");
}

#[test]
fn what_only_one_side_offers_is_not_used() {
    let now = Instant::now();
    let fsm = up(config(), open(), now);
    let session = fsm.session().unwrap();
    assert!(!session.context.extended && !session.enhanced_refresh);
    let mut theirs = with(Capability::ExtendedMessage);
    theirs.capabilities.push(Capability::EnhancedRouteRefresh);
    let session = up(config(), theirs.clone(), now).session().unwrap().clone();
    assert!(session.context.extended && session.enhanced_refresh);
    assert!(!session.context.ipv6_next_hop);
    let mut short = config();
    short.extended_messages = false;
    let session = up(short, theirs, now).session().unwrap().clone();
    assert!(!session.context.extended);
}

#[test]
fn ipv6_next_hops_are_offered_over_ipv6_only() {
    let now = Instant::now();
    assert!(!connect(&mut Fsm::new(config(), 1), now).has_ipv6_next_hop());
    let mut six = config();
    six.address = "2001:db8::1".parse().unwrap();
    assert!(connect(&mut Fsm::new(six.clone(), 1), now).has_ipv6_next_hop());
    let theirs = with(Capability::ExtendedNextHop(vec![(2, 1, 2), (1, 1, 2)]));
    assert!(up(six, theirs, now).context().ipv6_next_hop);
}

#[test]
fn only_the_configured_families_are_offered_and_used() {
    let now = Instant::now();
    let mut config = config();
    config.families = [Family::Ipv6Unicast].into();
    let open = connect(&mut Fsm::new(config.clone(), 1), now);
    assert!(open.has_family(Family::Ipv6Unicast) && !open.has_family(Family::Ipv4Unicast));
    let fsm = up(config, self::open(), now);
    assert_eq!(fsm.session().unwrap().families, [Family::Ipv6Unicast]);
}

#[test]
fn a_peer_that_knows_no_optional_parameters_gets_an_open_without_any() {
    let now = Instant::now();
    let mut fsm = Fsm::new(config(), 1);
    assert!(!connect(&mut fsm, now).capabilities.is_empty());
    let refused = Notification::new(2, 4);
    fsm.handle(received(Message::Notification(refused)), now);
    let later = now + Duration::from_secs(2);
    fsm.handle(Input::Tick, later);
    assert_eq!(connect(&mut fsm, later).capabilities, []);
    // It says what it can do all the same: what we did not offer is not used.
    fsm.handle(received(Message::Open(open())), later);
    let session = fsm.session().unwrap();
    assert_eq!(session.families, [Family::Ipv4Unicast]);
    assert!(!session.context.four_octet_as);
}
