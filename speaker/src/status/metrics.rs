//! The picture as OpenMetrics text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bellrock_api::NodeReason;
use bellrock_bgp::{PeerStatus, State};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::View;
use crate::plan::Way;

type Labels = Vec<(String, String)>;

/// Every state of an address.
const STATES: [bellrock_arp::State; 7] = {
    use bellrock_arp::State::{Blocked, Deaf, Give, Idle, Own, Probe, Wait};
    [Idle, Blocked, Wait, Probe, Deaf, Give, Own]
};

impl View {
    /// Every metric of the speaker.
    pub(crate) fn metrics(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("bellrock_speaker");
        let single = |registry: &mut Registry, name: &str, help: &str, value: usize| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        };
        single(
            &mut registry,
            "ready",
            "1 when everything is listed and programmed",
            usize::from(self.ready),
        );
        single(
            &mut registry,
            "services",
            "Services that the forwarding carries",
            self.services,
        );
        single(
            &mut registry,
            "invalid_objects",
            "Objects that cannot be used",
            self.invalid.len(),
        );

        let warnings = Family::<Labels, Gauge>::default();
        for reason in NodeReason::ALL {
            let labels = vec![("reason".to_owned(), reason.as_str().to_owned())];
            let found = self.warnings.iter().filter(|(found, _)| found == reason);
            let count = i64::try_from(found.count()).unwrap_or(i64::MAX);
            warnings.get_or_create(&labels).set(count);
        }
        registry.register(
            "warnings",
            "What was found on the node that may keep traffic from arriving, by reason",
            warnings,
        );

        let mut by_reason: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for (_, verdict) in &self.verdicts {
            let protocol = match verdict.way {
                Way::L2 => "l2",
                Way::Bgp => "bgp",
            };
            *by_reason
                .entry((protocol, self.reason(verdict).as_str()))
                .or_default() += 1;
        }
        let addresses = Family::<Labels, Gauge>::default();
        for ((protocol, reason), count) in by_reason {
            let labels = vec![
                ("protocol".to_owned(), protocol.to_owned()),
                ("reason".to_owned(), reason.to_owned()),
            ];
            addresses.get_or_create(&labels).set(count);
        }
        registry.register("addresses", "Addresses by protocol and reason", addresses);

        self.register_sessions(&mut registry);
        self.register_bfd(&mut registry);

        self.register_segment(&mut registry);

        let frames = Family::<Labels, Counter>::default();
        for (name, count) in &self.segment.counters {
            let labels = vec![("kind".to_owned(), name.clone())];
            frames.get_or_create(&labels).inc_by(*count);
        }
        registry.register(
            "l2_frames",
            "Frames and faults on the segments, by kind",
            frames,
        );

        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn register_segment(&self, registry: &mut Registry) {
        let states = Family::<Labels, Gauge>::default();
        for state in STATES {
            let found = self.segment.addresses.values();
            let found = found.filter(|address| address.state == state).count();
            let labels = vec![("state".to_owned(), state.to_string().to_lowercase())];
            states.get_or_create(&labels).set(number(found));
        }
        registry.register(
            "l2_addresses",
            "Addresses of the segments by where this node stands; it answers in own, give and deaf",
            states,
        );

        let changes = Family::<Labels, Counter>::default();
        for ((change, cause), count) in self.history.changes() {
            let labels = vec![
                ("change".to_owned(), change.as_str().to_owned()),
                ("cause".to_owned(), cause.as_str().to_owned()),
            ];
            changes.get_or_create(&labels).inc_by(*count);
        }
        registry.register(
            "l2_ownership_changes",
            "Addresses that this node began (owned) or ceased (lost) to answer for, by cause",
            changes,
        );

        let peers = Family::<Labels, Gauge>::default();
        for (interface, state) in &self.segment.interfaces {
            let nodes: BTreeSet<&str> = state.peers.iter().map(|p| p.node.as_str()).collect();
            let labels = vec![("interface".to_owned(), interface.clone())];
            peers.get_or_create(&labels).set(number(nodes.len()));
        }
        registry.register("l2_peers", "Nodes that are heard on the segment", peers);

        let sums = [
            (
                "l2_peers_silent",
                "How often a node fell silent on the segment",
                self.history.peers_silent(),
            ),
            (
                "l2_hello_filtered",
                "How often it began that a node answers for an address while its HELLO does not come",
                self.history.hello_filtered(),
            ),
            (
                "l2_foreign_claims",
                "Reports of hosts that are none of ours and use an address of ours",
                self.history.foreign_claims(),
            ),
        ];
        for (name, help, counts) in sums {
            let family = Family::<Labels, Counter>::default();
            // Those that are served begin at 0.
            let served = self.segment.interfaces.keys();
            let interfaces: BTreeSet<&String> = served.chain(counts.keys()).collect();
            for interface in interfaces {
                let labels = vec![("interface".to_owned(), interface.clone())];
                let count = counts.get(interface).copied().unwrap_or_default();
                family.get_or_create(&labels).inc_by(count);
            }
            registry.register(name, help, family);
        }
    }

    fn register_sessions(&self, registry: &mut Registry) {
        let up = self.of_sessions(|status| i64::from(status.state == State::Established));
        registry.register("bgp_session_up", "1 while the session is Established", up);
        let sent = self.of_sessions(|status| number(status.prefixes_sent));
        registry.register("bgp_prefixes", "Prefixes announced to the peer", sent);
        let pending = self.of_sessions(|status| number(status.prefixes_pending));
        registry.register(
            "bgp_prefixes_pending",
            "Changes of prefixes that wait for the peer to read",
            pending,
        );

        let refused = Family::<Labels, Gauge>::default();
        let messages = Family::<Labels, Counter>::default();
        let malformed = Family::<Labels, Counter>::default();
        for (peer, (_, status)) in &self.sessions {
            let labels = |more: &[(&str, &str)]| -> Labels {
                [("peer", peer.as_str())]
                    .iter()
                    .chain(more)
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect()
            };
            for (reason, count) in &status.prefixes_refused {
                refused
                    .get_or_create(&labels(&[("reason", reason.as_str())]))
                    .set(number(*count));
            }
            let directions = [
                ("sent", &status.messages_sent),
                ("received", &status.messages_received),
            ];
            for (direction, counts) in directions {
                for (kind, count) in counts.by_type() {
                    messages
                        .get_or_create(&labels(&[("direction", direction), ("type", kind)]))
                        .inc_by(count);
                }
            }
            malformed
                .get_or_create(&labels(&[]))
                .inc_by(status.malformed_updates);
        }
        registry.register(
            "bgp_prefixes_refused",
            "Prefixes that cannot be announced to the peer, by reason",
            refused,
        );
        registry.register(
            "bgp_messages",
            "BGP messages, by direction and type, since the session was configured",
            messages,
        );
        registry.register(
            "bgp_malformed_updates",
            "UPDATEs of the peer with errors that a session survives (RFC 7606)",
            malformed,
        );
    }

    fn register_bfd(&self, registry: &mut Registry) {
        let up = Family::<Labels, Gauge>::default();
        let downs = Family::<Labels, Counter>::default();
        let packets = Family::<Labels, Counter>::default();
        for (peer, (_, status)) in &self.bfd.sessions {
            let peer = ("peer".to_owned(), peer.clone());
            let labels = vec![peer.clone()];
            up.get_or_create(&labels)
                .set(i64::from(status.state == bellrock_bfd::State::Up));
            downs.get_or_create(&labels).inc_by(status.counters.downs);
            let counts = [
                ("sent", status.counters.sent),
                ("received", status.counters.received),
            ];
            for (direction, count) in counts {
                let labels = vec![peer.clone(), ("direction".to_owned(), direction.to_owned())];
                packets.get_or_create(&labels).inc_by(count);
            }
        }
        registry.register("bfd_session_up", "1 while the BFD session is Up", up);
        registry.register("bfd_downs", "How often the BFD session went down", downs);
        registry.register("bfd_packets", "BFD control packets, by direction", packets);
        let Some(driver) = &self.bfd.driver else {
            return;
        };
        let discards = Family::<Labels, Counter>::default();
        for (reason, count) in &driver.discards {
            let labels = vec![("reason".to_owned(), reason.as_str().to_owned())];
            discards.get_or_create(&labels).inc_by(*count);
        }
        registry.register(
            "bfd_discards",
            "BFD datagrams that were discarded, by reason",
            discards,
        );
        let real_time = Gauge::<i64>::default();
        real_time.set(i64::from(driver.no_real_time.is_none()));
        registry.register(
            "bfd_real_time",
            "1 if BFD has real-time priority; else it may be late on a busy node",
            real_time,
        );
    }

    /// A gauge for each session.
    fn of_sessions(&self, value: impl Fn(&PeerStatus) -> i64) -> Family<Labels, Gauge> {
        let gauges = Family::<Labels, Gauge>::default();
        for (peer, (_, status)) in &self.sessions {
            let labels = vec![("peer".to_owned(), peer.clone())];
            gauges.get_or_create(&labels).set(value(status));
        }
        gauges
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::SystemTime;

    use bellrock_api::reason::AnnouncementReason as Reason;
    use bellrock_arp::{Cause, Event, MacAddr};
    use bellrock_bgp::{MessageCounts, Refusal};
    use bellrock_e2e::metrics::{documented, rows};
    use bellrock_forward::ServiceKey;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::history::History;
    use crate::plan::Verdict;

    /// One of everything.
    fn view() -> View {
        let mut view = View::starting("n1");
        let status = PeerStatus {
            state: State::Established,
            since: SystemTime::UNIX_EPOCH,
            last_error: None,
            peer_router_id: None,
            peer_asn: None,
            hold_time: None,
            families: Vec::new(),
            graceful_restart: false,
            prefixes_wanted: 9,
            prefixes_sent: 7,
            prefixes_pending: 1,
            prefixes_refused: [(Refusal::NoNextHop, 2)].into(),
            messages_sent: MessageCounts {
                update: 3,
                ..MessageCounts::default()
            },
            messages_received: MessageCounts::default(),
            malformed_updates: 4,
        };
        let peer = "192.0.2.1".parse().unwrap();
        view.sessions.insert("tor1".to_owned(), (peer, status));
        let verdict = Verdict {
            address: None,
            way: Way::Bgp,
            refused: Some(Reason::NoEndpoint),
            peers: BTreeSet::new(),
            detail: None,
        };
        let service = ServiceKey {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        view.verdicts.push((service, verdict));
        let mut engine = bellrock_bfd::Engine::new(|| 1);
        let (id, start) = (
            bellrock_bfd::SessionId::new(1),
            bellrock_bfd::Instant::from_start(std::time::Duration::ZERO),
        );
        engine.add(
            id,
            bellrock_bfd::Path::single(peer),
            None,
            bellrock_bfd::Settings::default(),
            start,
        );
        let watched = engine.status(start).remove(&id).unwrap();
        let watched = (SystemTime::UNIX_EPOCH, watched);
        view.bfd.sessions.insert("tor1".to_owned(), watched);
        view.bfd.driver = Some(bellrock_bfd::Snapshot {
            discards: [(bellrock_bfd::Discard::HopLimit, 6)].into(),
            ..bellrock_bfd::Snapshot::default()
        });
        view.segment.counters.insert("arp_reply".to_owned(), 5);
        view.segment = segment(view.segment);
        view.history = Arc::new(history());
        view
    }

    /// Two stations of one node, and one of another.
    fn segment(mut segment: bellrock_arp::Snapshot) -> bellrock_arp::Snapshot {
        let peer = |node: &str, last| bellrock_arp::PeerState {
            node: node.to_owned(),
            mac: MacAddr(2, 0, 0, 0, 0, last),
            heard: std::time::Duration::ZERO,
            holds: 1,
        };
        let interface = bellrock_arp::InterfaceState {
            name: "eth0".to_owned(),
            index: 2,
            mac: MacAddr(2, 0, 0, 0, 0, 1),
            carrier: true,
            addresses: Vec::new(),
            peers: vec![peer("n2", 2), peer("n2", 3), peer("n3", 4)],
        };
        segment.interfaces.insert("eth0".to_owned(), interface);
        for (last, state) in [
            (1, bellrock_arp::State::Own),
            (2, bellrock_arp::State::Own),
            (3, bellrock_arp::State::Deaf),
        ] {
            let address = bellrock_arp::AddressState {
                state,
                epoch: 1,
                owner: None,
                rank: None,
                since: SystemTime::UNIX_EPOCH,
                cause: None,
                foreign: None,
                filtered: None,
                interfaces: Vec::new(),
            };
            segment.addresses.insert([192, 0, 2, last].into(), address);
        }
        segment
    }

    fn history() -> History {
        let mut history = History::default();
        let address = [192, 0, 2, 1].into();
        let interface = || "eth0".to_owned();
        let mac = MacAddr(2, 0, 0, 0, 0, 9);
        let node = || "n3".to_owned();
        let (cause, interface_gone) = (Cause::OwnerSilent, "eth7".to_owned());
        let events = [
            Event::Owned {
                address,
                epoch: 1,
                cause,
                from: None,
                interface: interface(),
            },
            Event::Lost {
                address,
                cause: Cause::HandedOver,
                to: None,
                interface: interface(),
            },
            Event::Blocked {
                address,
                mac,
                interface: interface(),
            },
            Event::ForeignClaim {
                address,
                mac,
                interface: interface(),
            },
            Event::HelloFiltered {
                address,
                node: node(),
                interface: interface(),
            },
            Event::PeerSilent {
                node: node(),
                interface: interface_gone,
            },
        ];
        for event in &events {
            history.take(event, Timestamp::UNIX_EPOCH);
        }
        history
    }

    #[test]
    fn the_segment_is_counted_by_interface_and_cause_and_names_no_address() {
        let text = view().metrics().unwrap();
        for line in [
            r#"bellrock_speaker_l2_addresses{state="own"} 2"#,
            r#"bellrock_speaker_l2_addresses{state="deaf"} 1"#,
            r#"bellrock_speaker_l2_addresses{state="blocked"} 0"#,
            r#"bellrock_speaker_l2_ownership_changes_total{change="owned",cause="OwnerSilent"} 1"#,
            r#"bellrock_speaker_l2_ownership_changes_total{change="lost",cause="HandedOver"} 1"#,
            r#"bellrock_speaker_l2_foreign_claims_total{interface="eth0"} 2"#,
            r#"bellrock_speaker_l2_hello_filtered_total{interface="eth0"} 1"#,
            r#"bellrock_speaker_l2_peers{interface="eth0"} 2"#,
            r#"bellrock_speaker_l2_peers_silent_total{interface="eth0"} 0"#,
            r#"bellrock_speaker_l2_peers_silent_total{interface="eth7"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        for unbounded in ["02:00:00:00:00:09", "192.0.2.1\"", "n3"] {
            let of_segment = text.lines().filter(|line| line.contains("_l2_"));
            assert!(
                !of_segment.collect::<String>().contains(unbounded),
                "{text}"
            );
        }
    }

    #[test]
    fn sessions_are_counted_and_measured() {
        let text = view().metrics().unwrap();
        for line in [
            r#"bellrock_speaker_bgp_session_up{peer="tor1"} 1"#,
            r#"bellrock_speaker_bgp_prefixes{peer="tor1"} 7"#,
            r#"bellrock_speaker_bgp_prefixes_pending{peer="tor1"} 1"#,
            r#"bellrock_speaker_bgp_prefixes_refused{peer="tor1",reason="NoNextHop"} 2"#,
            r#"bellrock_speaker_bgp_messages_total{peer="tor1",direction="sent",type="update"} 3"#,
            r#"bellrock_speaker_bgp_messages_total{peer="tor1",direction="received",type="open"} 0"#,
            r#"bellrock_speaker_bgp_malformed_updates_total{peer="tor1"} 4"#,
            r#"bellrock_speaker_bfd_session_up{peer="tor1"} 0"#,
            r#"bellrock_speaker_bfd_packets_total{peer="tor1",direction="received"} 0"#,
            r#"bellrock_speaker_bfd_discards_total{reason="hop_limit"} 6"#,
            r#"bellrock_speaker_bfd_real_time 1"#,
            r#"bellrock_speaker_l2_frames_total{kind="arp_reply"} 5"#,
            r#"bellrock_speaker_addresses{protocol="bgp",reason="NoEndpoint"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_book_has_every_metric() {
        let page = include_str!("../../../docs/metrics.md");
        assert_eq!(
            rows(&view().metrics().unwrap()),
            documented(page, "bellrock_speaker")
        );
    }
}
