//! The picture as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt;

use bellrock_api::NodeReason;
use bellrock_bgp::State;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::View;
use crate::plan::Way;

type Labels = Vec<(String, String)>;

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

        let (up, prefixes) = (
            Family::<Labels, Gauge>::default(),
            Family::<Labels, Gauge>::default(),
        );
        for (peer, (_, status)) in &self.sessions {
            let labels = vec![("peer".to_owned(), peer.clone())];
            up.get_or_create(&labels)
                .set(i64::from(status.state == State::Established));
            prefixes
                .get_or_create(&labels)
                .set(i64::try_from(status.prefixes_sent).unwrap_or(i64::MAX));
        }
        registry.register("bgp_session_up", "1 while the session is Established", up);
        registry.register("bgp_prefixes", "Prefixes announced to the peer", prefixes);

        let frames = Family::<Labels, Gauge>::default();
        for (name, count) in &self.segment.counters {
            let labels = vec![("kind".to_owned(), name.clone())];
            frames
                .get_or_create(&labels)
                .set(i64::try_from(*count).unwrap_or(i64::MAX));
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
}
