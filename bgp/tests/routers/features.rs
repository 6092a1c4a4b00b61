//! One test for each router and feature.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bellrock_bgp::message::Family;
use bellrock_bgp::{Attributes, Listener, Password, Refusal, Restart, State, StopReason};
use bellrock_e2e::netns::{as_root, wait_for};

use crate::kind::{Kind, LONG, Session};
use crate::setup::*;

const FOUR: &str = "198.51.100.1";
const SIX: &str = "2001:db8:1::1";

/// Makes `mod FEATURE { #[test] fn frr() ... }` with a test for each router
/// named. `table` has the reason why one is not.
macro_rules! features {
    (@kind frr) => { crate::kind::Kind::Frr };
    (@kind bird) => { crate::kind::Kind::Bird };
    (@kind gobgp) => { crate::kind::Kind::Gobgp };
    (@kind openbgpd) => { crate::kind::Kind::OpenBgpd };
    (@kind exabgp) => { crate::kind::Kind::Exabgp };
    ($($feature:ident: $($router:ident)+),+ $(,)?) => {
        /// The features, and the routers that are led through each.
        pub(crate) const FEATURES: &[(&str, &[Kind])] =
            &[$((stringify!($feature), &[$(features!(@kind $router)),+])),+];
        $(mod $feature {
            $(#[test]
            fn $router() {
                super::run(features!(@kind $router), super::steps::$feature);
            })+
        })+
    };
}

features! {
    ipv4: frr bird gobgp openbgpd exabgp,
    ipv6_over_ipv6: frr bird gobgp openbgpd exabgp,
    both_over_ipv4: frr bird gobgp openbgpd exabgp,
    ipv4_over_ipv6_with_an_ipv6_next_hop: frr bird gobgp exabgp,
    md5: frr bird gobgp openbgpd exabgp,
    md5_over_ipv6: frr bird gobgp openbgpd exabgp,
    md5_with_a_wrong_password: frr bird gobgp openbgpd exabgp,
    ttl_security: frr bird gobgp openbgpd,
    refresh: frr bird openbgpd exabgp,
    communities_and_path: frr bird gobgp openbgpd exabgp,
    graceful_shutdown: frr bird gobgp openbgpd exabgp,
    graceful_restart: frr bird gobgp openbgpd,
    hard_reset: frr bird gobgp openbgpd exabgp,
    hold_timer_against_silence: frr bird gobgp openbgpd exabgp,
    shutdown_communication: frr bird gobgp openbgpd,
    extended_messages: frr bird gobgp exabgp,
    a_connection_of_the_router: frr bird gobgp openbgpd exabgp,
    both_connect_at_once: frr bird gobgp openbgpd exabgp,
}

fn run(kind: Kind, steps: fn(Kind)) {
    if as_root() {
        steps(kind);
    }
}

mod steps {
    use super::*;

    pub(super) fn ipv4(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let peer = lab.spawn(config(&Session::PLAIN), routes(&["198.51.100.1/32"]));
        let status = wait_established(&peer);
        assert_eq!(status.peer_asn, Some(64513));
        lab.wait_installed("the route", &[FOUR]);
        lab.runtime
            .block_on(peer.announce(net("198.51.100.0/28"), Attributes::default()));
        lab.wait_installed("one more", &[FOUR, "198.51.100.0/28"]);
        lab.runtime.block_on(peer.withdraw(net("198.51.100.1/32")));
        lab.wait_installed("one less", &["198.51.100.0/28"]);
        lab.runtime
            .block_on(peer.stop(StopReason::PeerDeconfigured));
        lab.wait_installed("none", &[]);
    }

    pub(super) fn ipv6_over_ipv6(kind: Kind) {
        let session = Session {
            over_v6: true,
            ipv4: false,
            ipv6: true,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let mut config = config(&session);
        config.families = [Family::Ipv6Unicast].into();
        let peer = lab.spawn(config, routes(&["2001:db8:1::1/128", "2001:db8:2::/48"]));
        lab.wait_installed("both routes", &[SIX, "2001:db8:2::/48"]);
        lab.runtime.block_on(peer.withdraw(net("2001:db8:2::/48")));
        lab.wait_installed("one less", &[SIX]);
    }

    pub(super) fn both_over_ipv4(kind: Kind) {
        let session = Session {
            ipv6: true,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let all = || routes(&["198.51.100.1/32", "2001:db8:1::1/128"]);
        let peer = lab.spawn(config(&session), all());
        let status = wait_status(&peer, "a refusal", |s| !s.prefixes_refused.is_empty());
        assert_eq!(status.prefixes_refused[&Refusal::NoNextHop], 1);
        assert_eq!(status.families, [Family::Ipv4Unicast]);
        lab.wait_installed("only IPv4 without a next hop", &[FOUR]);
        lab.runtime
            .block_on(peer.stop(StopReason::ConfigurationChange));
        let mut config = config(&session);
        config.next_hop_v6 = Some(NODE_V6.parse().unwrap());
        let peer = lab.spawn(config, all());
        lab.wait_installed("both families", &[FOUR, SIX]);
        let status = peer.status().borrow().clone();
        assert_eq!(status.families, Family::ALL);
    }

    pub(super) fn ipv4_over_ipv6_with_an_ipv6_next_hop(kind: Kind) {
        let session = Session {
            over_v6: true,
            ipv6: true,
            ipv6_next_hop: true,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let peer = lab.spawn(
            config(&session),
            routes(&["198.51.100.1/32", "2001:db8:1::1/128"]),
        );
        lab.wait_installed("both families", &[FOUR, SIX]);
        if kind.has_kernel() {
            let route = lab.ground.sh(&format!("ip route show {FOUR}")).unwrap();
            assert!(route.contains(&format!("via inet6 {NODE_V6}")), "{route}");
        } else {
            let said = lab.router.route("198.51.100.1/32").unwrap();
            assert!(said.contains(NODE_V6), "{said}");
        }
        lab.runtime.block_on(peer.withdraw(net("198.51.100.1/32")));
        lab.wait_installed("IPv4 gone", &[SIX]);
    }

    pub(super) fn md5(kind: Kind) {
        with_password(kind, Session::PLAIN);
    }

    pub(super) fn md5_over_ipv6(kind: Kind) {
        let session = Session {
            over_v6: true,
            ..Session::PLAIN
        };
        with_password(kind, session);
    }

    fn with_password(kind: Kind, session: Session) {
        let session = Session {
            password: Some("correct"),
            ..session
        };
        let lab = Lab::new(kind, &session);
        let mut config = config(&session);
        config.next_hop_v4 = Some(NODE.parse().unwrap());
        config.password = Some(Password::new("correct"));
        let _peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
    }

    pub(super) fn md5_with_a_wrong_password(kind: Kind) {
        let session = Session {
            password: Some("correct"),
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let mut config = config(&session);
        config.password = Some(Password::new("wrong"));
        let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
        let status = wait_status(&peer, "a reason", |status| status.last_error.is_some());
        let reason = status.last_error.unwrap();
        assert!(reason.contains("password"), "{reason}");
        assert!(!reason.contains("wrong"), "{reason}");
        assert_eq!(status.messages_sent.open, 0, "no connection came up");
    }

    pub(super) fn ttl_security(kind: Kind) {
        let session = Session {
            ttl_security: true,
            ..Session::PLAIN
        };
        let mut config = config(&session);
        config.ttl_security = Some(1);
        let lab = Lab::new(kind, &session);
        let _peer = lab.spawn(config.clone(), routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        // A router that does not send with a TTL of 255 may be anywhere.
        let lab = Lab::new(kind, &Session::PLAIN);
        let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
        wait_for("our kernel to drop what comes from afar", LONG, || {
            let counters = lab.node.sh("grep ^TcpExt: /proc/net/netstat")?;
            let mut lines = counters.lines().map(str::split_whitespace);
            let (names, values) = (lines.next(), lines.next());
            let mut all = names
                .into_iter()
                .flatten()
                .zip(values.into_iter().flatten());
            let dropped = all.find(|(name, _)| *name == "TCPMinTTLDrop");
            ensure!(
                dropped.is_some_and(|(_, count)| count != "0"),
                "{dropped:?}"
            );
            Ok(())
        });
        let status = peer.status().borrow().clone();
        assert_ne!(status.state, State::Established);
        assert_eq!(status.messages_received.open, 0);
    }

    pub(super) fn refresh(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let peer = lab.spawn(config(&Session::PLAIN), routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        let before = wait_established(&peer).messages_sent;
        lab.router.refresh();
        let after = wait_status(&peer, "a refresh", |status| {
            status.messages_sent.update > before.update
                && (status.messages_sent.route_refresh - before.route_refresh).is_multiple_of(2)
        });
        assert!(after.messages_received.route_refresh >= 1);
        // Both take the enhanced form: its beginning and its end.
        assert!(after.messages_sent.route_refresh >= 2, "{after:?}");
        lab.wait_installed("the route is still there", &[FOUR]);
    }

    pub(super) fn communities_and_path(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let attributes = Attributes {
            communities: [64512 << 16 | 7].into(),
            large_communities: [[64512, 8, 9]].into(),
            extended_communities: [[0, 2, 0xfc, 0, 0, 0, 0, 10]].into(),
            prepend: 2,
            ..Attributes::default()
        };
        let wanted = [(net("198.51.100.1/32"), attributes)].into();
        let _peer = lab.spawn(config(&Session::PLAIN), wanted);
        lab.wait_installed("the route", &[FOUR]);
        let said = lab.router.route("198.51.100.1/32").unwrap();
        let expected = match kind {
            Kind::Frr => [
                "Community: 64512:7",
                "Large Community: 64512:8:9",
                "Extended Community: RT:64512:10",
                "64512 64512 64512",
            ],
            Kind::Bird => [
                "BGP.community: (64512,7)",
                "BGP.large_community: (64512, 8, 9)",
                "BGP.ext_community: (rt, 64512, 10)",
                "BGP.as_path: 64512 64512 64512",
            ],
            Kind::Gobgp => [
                "{Communities: 64512:7}",
                "{LargeCommunity: [ 64512:8:9]}",
                "{Extcomms: [64512:10]}",
                "64512 64512 64512",
            ],
            Kind::OpenBgpd => [
                "Communities: 64512:7",
                "Large Communities: 64512:8:9",
                "Ext. Communities: rt 64512:10",
                "64512 64512 64512",
            ],
            Kind::Exabgp => [
                r#""community":[[64512,7]]"#,
                r#""large-community":[[64512,8,9]]"#,
                "target:64512:10",
                r#""as-path":[64512,64512,64512]"#,
            ],
        };
        for words in expected {
            assert!(said.contains(words), "{words} in {said}");
        }
    }

    pub(super) fn graceful_shutdown(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let peer = lab.spawn(config(&Session::PLAIN), routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        let wait = Duration::from_secs(5);
        let start = Instant::now();
        lab.runtime.block_on(async {
            peer.drain(wait).await;
            peer.withdraw(net("198.51.100.1/32")).await;
        });
        let mark = match kind {
            Kind::Frr => "graceful-shutdown",
            Kind::Bird => "(65535,0)",
            Kind::Gobgp => "planned-shut",
            Kind::OpenBgpd => "GRACEFUL_SHUTDOWN",
            Kind::Exabgp => "[65535,0]",
        };
        wait_for("the mark on the route", LONG, || {
            let said = lab.router.route("198.51.100.1/32")?;
            ensure!(said.contains(mark), "{said}");
            Ok(())
        });
        lab.wait_installed("the withdrawal", &[]);
        assert!(start.elapsed() >= wait, "{:?}", start.elapsed());
    }

    pub(super) fn graceful_restart(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let restarting = |resumed| {
            let mut config = config(&Session::PLAIN);
            config.restart = Some(Restart {
                time: Duration::from_secs(60),
                resumed,
            });
            config
        };
        let peer = lab.spawn(
            restarting(false),
            routes(&["198.51.100.1/32", "198.51.100.2/32"]),
        );
        lab.wait_installed("both routes", &[FOUR, "198.51.100.2"]);
        wait_status(&peer, "the capability", |status| status.graceful_restart);
        lab.runtime.block_on(peer.stop(StopReason::Restart));
        wait_for("the end of the session at the router", LONG, || {
            let said = lab.router.route("198.51.100.1/32")?;
            let stale = match kind {
                Kind::Frr => said.contains("stale"),
                Kind::Bird => {
                    let all = lab.router.session()?;
                    all.contains("Neighbor graceful restart active")
                        || all.contains("neighbor: graceful restart")
                        || all.contains("graceful restart")
                }
                Kind::Gobgp => said.contains("S*>"),
                Kind::OpenBgpd => said.contains("stale"),
                Kind::Exabgp => bail!("keeps nothing"),
            };
            ensure!(stale, "{said}");
            Ok(())
        });
        let kept = lab.installed().unwrap();
        assert_eq!(
            kept.len(),
            2,
            "routes stay while the speaker is away: {kept:?}"
        );
        // One of them is no longer wanted after the restart.
        let peer = lab.spawn(restarting(true), routes(&["198.51.100.1/32"]));
        wait_established(&peer);
        lab.wait_installed("End-of-RIB took the stale one", &[FOUR]);
    }

    pub(super) fn hard_reset(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let mut config = config(&Session::PLAIN);
        config.restart = Some(Restart {
            time: Duration::from_secs(60),
            resumed: false,
        });
        let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        wait_status(&peer, "the capability", |status| status.graceful_restart);
        let start = Instant::now();
        lab.runtime
            .block_on(peer.stop(StopReason::AdministrativeShutdown(None)));
        lab.wait_installed("no route", &[]);
        assert!(
            start.elapsed() < Duration::from_secs(50),
            "it waited for us"
        );
        let said = lab.router.session().unwrap();
        let words = match kind {
            Kind::Frr => "\"lastNotificationHardReset\":true",
            Kind::Bird => "Administrative shutdown",
            Kind::Gobgp => "\"Code\":6,\"Subcode\":9",
            Kind::OpenBgpd => "administratively down",
            Kind::Exabgp => "Administrative Shutdown",
        };
        assert!(said.contains(words), "{words} in {said}");
    }

    pub(super) fn hold_timer_against_silence(kind: Kind) {
        let session = Session {
            hold: 3,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let peer = lab.spawn(config(&session), routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        assert_eq!(
            wait_established(&peer).hold_time,
            Some(Duration::from_secs(3))
        );
        lab.node
            .sh("nft add table inet cut
                 nft add chain inet cut in '{ type filter hook input priority 0; }'
                 nft add rule inet cut in tcp sport 179 drop
                 nft add chain inet cut out '{ type filter hook output priority 0; }'
                 nft add rule inet cut out tcp dport 179 drop")
            .unwrap();
        let status = wait_status(&peer, "the end", |s| s.state != State::Established);
        let reason = status.last_error.unwrap();
        assert!(reason.contains("hold timer expired"), "{reason}");
        lab.wait_installed("its hold timer too", &[]);
    }

    pub(super) fn shutdown_communication(kind: Kind) {
        let lab = Lab::new(kind, &Session::PLAIN);
        let peer = lab.spawn(config(&Session::PLAIN), routes(&["198.51.100.1/32"]));
        lab.wait_installed("the route", &[FOUR]);
        let text = Some("node n1 is drained".to_owned());
        lab.runtime
            .block_on(peer.stop(StopReason::AdministrativeShutdown(text)));
        wait_for("the text", LONG, || {
            let said = lab.router.session()?;
            ensure!(said.contains("node n1 is drained"), "{said}");
            Ok(())
        });
    }

    /// Listens in the node.
    fn listen(lab: &Lab) -> Listener {
        let bind = async { Listener::bind("0.0.0.0:179".parse().unwrap()) };
        let bound = lab.runtime.block_on(lab.runtime.spawn(bind));
        bound.unwrap().unwrap()
    }

    pub(super) fn a_connection_of_the_router(kind: Kind) {
        let session = Session {
            connects: true,
            password: Some("correct"),
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let listener = listen(&lab);
        let mut config = config(&session);
        // Nobody listens there: only the router's own connection can do it.
        config.port = 1;
        config.password = Some(Password::new("correct"));
        let peer = lab.spawn(config, routes(&["198.51.100.1/32"]));
        listener.attach(&peer).unwrap();
        lab.wait_installed("the route", &[FOUR]);
        listener.detach(session.router().parse().unwrap());
        lab.runtime
            .block_on(peer.stop(StopReason::PeerDeconfigured));
        lab.wait_installed("none", &[]);
    }

    pub(super) fn both_connect_at_once(kind: Kind) {
        let session = Session {
            connects: true,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let listener = listen(&lab);
        for round in 0..5 {
            let peer = lab.spawn(config(&session), routes(&["198.51.100.1/32"]));
            listener.attach(&peer).unwrap();
            wait_established(&peer);
            lab.wait_installed(&format!("the route in round {round}"), &[FOUR]);
            lab.runtime
                .block_on(peer.stop(StopReason::ConfigurationChange));
            lab.wait_installed("none", &[]);
            lab.router.end_pause();
        }
    }

    pub(super) fn extended_messages(kind: Kind) {
        let session = Session {
            extended: true,
            ..Session::PLAIN
        };
        let lab = Lab::new(kind, &session);
        let prefixes: Vec<_> = (0..2000_u32)
            .map(|n| net(&format!("10.0.{}.{}/32", n / 250, n % 250)))
            .collect();
        let all = prefixes.iter().map(|p| (*p, Attributes::default()));
        let peer = lab.spawn(config(&session), all.collect());
        wait_status(&peer, "all sent", |status| status.prefixes_sent == 2000);
        wait_for("all in the router's kernel", LONG, || {
            let count = lab.installed()?.len();
            ensure!(count == 2000, "{count}");
            Ok(())
        });
        let updates = peer.status().borrow().messages_sent.update;
        // Two with routes' worth of 65535 octets at most, and End-of-RIB.
        assert!(updates <= 3, "{updates} UPDATEs");
    }
}
