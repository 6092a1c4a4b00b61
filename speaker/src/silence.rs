//! Nodes that the segment calls silent, pure.
//!
//! The API takes 40 to 50 s to say that a node is gone (the node lifecycle
//! controller's grace period); the segment says it in tenths of one. Until the
//! API has spoken, endpoints on such nodes are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bellrock_arp::Event;

/// How long the segment's word counts: by then the API has its own.
pub const COUNTS: Duration = Duration::from_secs(60);

/// Who is heard where, and who is not.
#[derive(Debug, Default)]
pub struct Silence {
    /// By node and interface: since when it is silent there; `None`: heard.
    nodes: BTreeMap<String, BTreeMap<String, Option<Duration>>>,
}

impl Silence {
    /// Takes in what the segment tells, at a time of a clock that never goes
    /// back. Whether it was about a node.
    pub fn take(&mut self, event: &Event, now: Duration) -> bool {
        let (node, interface, since) = match event {
            Event::PeerHeard { node, interface } => (node, interface, None),
            Event::PeerSilent { node, interface } => (node, interface, Some(now)),
            _ => return false,
        };
        let at = self.nodes.entry(node.clone()).or_default();
        at.insert(interface.clone(), since);
        true
    }

    /// The nodes that are heard nowhere, and were not long ago.
    pub fn nodes(&self, now: Duration) -> BTreeSet<String> {
        let counts = |since: &Option<Duration>| {
            since.is_some_and(|since| now.saturating_sub(since) < COUNTS)
        };
        let silent = |at: &BTreeMap<String, Option<Duration>>| {
            at.values().all(Option::is_some) && at.values().any(counts)
        };
        self.nodes
            .iter()
            .filter(|(_, at)| silent(at))
            .map(|(node, _)| node.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(node: &str, interface: &str) -> Event {
        let (node, interface) = (node.to_owned(), interface.to_owned());
        Event::PeerHeard { node, interface }
    }

    fn silent(node: &str, interface: &str) -> Event {
        let (node, interface) = (node.to_owned(), interface.to_owned());
        Event::PeerSilent { node, interface }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_is_silent_if_it_is_heard_on_no_interface() {
        let mut silence = Silence::default();
        for event in [heard("a", "eth0"), heard("a", "eth1"), silent("a", "eth0")] {
            assert!(silence.take(&event, at(1)));
            assert!(silence.nodes(at(1)).is_empty());
        }
        silence.take(&silent("a", "eth1"), at(2));
        assert_eq!(silence.nodes(at(2)), ["a".to_owned()].into());
        silence.take(&heard("a", "eth0"), at(3));
        assert!(silence.nodes(at(3)).is_empty());
    }

    #[test]
    fn the_word_counts_until_the_api_has_its_own() {
        let mut silence = Silence::default();
        silence.take(&silent("a", "eth0"), at(10));
        assert_eq!(silence.nodes(at(69)).len(), 1);
        assert!(silence.nodes(at(70)).is_empty());
        silence.take(&heard("a", "eth0"), at(80));
        silence.take(&silent("a", "eth0"), at(90));
        assert_eq!(silence.nodes(at(91)).len(), 1);
    }

    #[test]
    fn what_is_said_of_addresses_is_none_of_its_concern() {
        let event = Event::Unblocked {
            address: [192, 0, 2, 1].into(),
            interface: "eth0".to_owned(),
        };
        assert!(!Silence::default().take(&event, at(1)));
    }
}
