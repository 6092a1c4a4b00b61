//! What happened on the segments since the speaker started: the last
//! transitions of each address, and sums of all. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use bellrock_arp::{Cause, Event};
use k8s_openapi::jiff::Timestamp;

/// Transitions of an address that are kept.
const LAST: usize = 8;
/// Addresses whose transitions are kept; those that changed last.
const MOST: usize = 2048;

/// The last transitions and the sums.
#[derive(Debug, Clone, Default)]
pub struct History {
    transitions: BTreeMap<IpAddr, VecDeque<Transition>>,
    changes: BTreeMap<(Change, Cause), u64>,
    /// By interface.
    foreign_claims: BTreeMap<String, u64>,
    hello_filtered: BTreeMap<String, u64>,
    peers_silent: BTreeMap<String, u64>,
}

/// A change of an address, and when it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// What; it is about the address.
    pub event: Event,
}

/// Which way ownership went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// To this node.
    Owned,
    /// From this node.
    Lost,
}

impl Change {
    /// A metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owned => "owned",
            Self::Lost => "lost",
        }
    }
}

impl History {
    /// Takes in what the segment tells.
    pub fn take(&mut self, event: &Event, at: Timestamp) {
        let mut no_sum = 0;
        let sum = match event {
            Event::Owned { cause, .. } => self.changes.entry((Change::Owned, *cause)).or_default(),
            Event::Lost { cause, .. } => self.changes.entry((Change::Lost, *cause)).or_default(),
            Event::Blocked { interface, .. } | Event::ForeignClaim { interface, .. } => {
                self.foreign_claims.entry(interface.clone()).or_default()
            }
            Event::HelloFiltered { interface, .. } => {
                self.hello_filtered.entry(interface.clone()).or_default()
            }
            Event::PeerSilent { interface, .. } => {
                self.peers_silent.entry(interface.clone()).or_default()
            }
            Event::Unblocked { .. } | Event::PeerHeard { .. } => &mut no_sum,
        };
        *sum = sum.saturating_add(1);
        if let Some(address) = event.address() {
            self.keep(address, event, at);
        }
    }

    fn keep(&mut self, address: IpAddr, event: &Event, at: Timestamp) {
        if self.transitions.len() >= MOST && !self.transitions.contains_key(&address) {
            let oldest = self
                .transitions
                .iter()
                .min_by_key(|(_, last)| last.back().map(|transition| transition.at));
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.transitions.remove(&oldest);
            }
        }
        let last = self.transitions.entry(address).or_default();
        // A foreign host is reported again and again: no change.
        if last.back().is_some_and(|known| known.event == *event) {
            return;
        }
        if last.len() >= LAST {
            last.pop_front();
        }
        let event = event.clone();
        last.push_back(Transition { at, event });
    }

    /// The latest transitions of all addresses, the latest first.
    pub fn latest(&self, most: usize) -> Vec<&Transition> {
        let mut all: Vec<&Transition> = self.transitions.values().flatten().rev().collect();
        all.sort_by_key(|transition| std::cmp::Reverse(transition.at));
        all.truncate(most);
        all
    }

    /// How often ownership changed, by way and cause.
    pub fn changes(&self) -> &BTreeMap<(Change, Cause), u64> {
        &self.changes
    }

    /// How often a foreign host with an address of ours was reported.
    pub fn foreign_claims(&self) -> &BTreeMap<String, u64> {
        &self.foreign_claims
    }

    /// How often it began that a node answered for an address without being
    /// heard.
    pub fn hello_filtered(&self) -> &BTreeMap<String, u64> {
        &self.hello_filtered
    }

    /// How often a node fell silent.
    pub fn peers_silent(&self) -> &BTreeMap<String, u64> {
        &self.peers_silent
    }
}

#[cfg(test)]
mod tests {
    use bellrock_arp::MacAddr;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn address(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        [10, 0, high, low].into()
    }

    fn owned(n: u16, epoch: u64) -> Event {
        Event::Owned {
            address: address(n),
            epoch,
            cause: Cause::OwnerSilent,
            from: None,
            interface: "eth0".to_owned(),
        }
    }

    fn lost(n: u16, cause: Cause) -> Event {
        Event::Lost {
            address: address(n),
            cause,
            to: None,
            interface: "eth0".to_owned(),
        }
    }

    #[test]
    fn of_each_address_the_last_transitions_are_kept_and_the_latest_come_first() {
        let mut history = History::default();
        history.take(&lost(2, Cause::Frozen), at(0));
        for second in 1..=20_u16 {
            history.take(&owned(1, second.into()), at(second.into()));
        }
        let times = |most| -> Vec<i64> {
            let latest = history.latest(most).into_iter();
            latest.map(|transition| transition.at.as_second()).collect()
        };
        assert_eq!(times(100), [20, 19, 18, 17, 16, 15, 14, 13, 0]);
        assert_eq!(times(2), [20, 19]);
        let changes = [
            ((Change::Owned, Cause::OwnerSilent), 20),
            ((Change::Lost, Cause::Frozen), 1),
        ];
        assert_eq!(history.changes(), &changes.into());
    }

    #[test]
    fn two_transitions_of_one_moment_come_in_their_order() {
        let mut history = History::default();
        let events = [lost(1, Cause::Frozen), owned(1, 5)];
        for event in &events {
            history.take(event, at(1));
        }
        let latest = history.latest(9).into_iter().map(|t| t.event.clone());
        assert_eq!(latest.rev().collect::<Vec<_>>(), events);
    }

    #[test]
    fn beyond_the_bound_the_address_that_changed_longest_ago_is_forgotten() {
        let mut history = History::default();
        let most = u16::try_from(MOST).unwrap();
        for n in 0..most {
            history.take(&owned(n, 1), at(n.into()));
        }
        history.take(&owned(0, 2), at(100_000));
        history.take(&owned(most, 1), at(100_001));
        assert_eq!(history.transitions.len(), MOST);
        assert!(!history.transitions.contains_key(&address(1)));
        assert_eq!(history.transitions[&address(0)].len(), 2);
    }

    #[test]
    fn a_foreign_host_that_stays_is_one_transition_and_each_report_is_counted() {
        let mut history = History::default();
        let foreign = |last| Event::ForeignClaim {
            address: address(1),
            mac: MacAddr(2, 0, 0, 0, 0, last),
            interface: "eth0".to_owned(),
        };
        for (second, last) in [(1, 9), (61, 9), (121, 8)] {
            history.take(&foreign(last), at(second));
        }
        assert_eq!(history.latest(9).len(), 2);
        assert_eq!(history.foreign_claims(), &[("eth0".to_owned(), 3)].into());
    }

    #[test]
    fn of_nodes_silence_is_counted_and_no_transition_kept() {
        let mut history = History::default();
        let (node, interface) = ("b".to_owned(), "eth1".to_owned());
        let heard = Event::PeerHeard {
            node: node.clone(),
            interface: interface.clone(),
        };
        let silent = Event::PeerSilent { node, interface };
        for event in [&heard, &silent, &heard] {
            history.take(event, at(1));
        }
        assert_eq!(history.peers_silent(), &[("eth1".to_owned(), 1)].into());
        assert!(history.latest(9).is_empty());
    }
}
