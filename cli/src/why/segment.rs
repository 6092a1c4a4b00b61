//! What speakers tell of the segment: who takes over next, who is heard, and
//! what happened to an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use bellrock_api::{AnnouncementReason as Reason, Change, Transition};
use bellrock_speaker::cluster::VirtualIp;
use kube::ResourceExt;
use serde::Serialize;

use super::NodeExplanation;
use crate::dump::Dump;

/// Changes of an address that are told.
const LAST: usize = 8;

/// A node, and who hears it.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Heard {
    node: String,
    /// How many addresses it holds, as it says to those that hear it; absent:
    /// nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<u32>,
    heard_by: BTreeSet<String>,
    /// The other nodes whose speakers report.
    not_heard_by: BTreeSet<String>,
}

/// A change of an address.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Changed {
    time: String,
    node: String,
    interface: String,
    change: Change,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<String>,
}

/// The nodes that are on a segment: those that hear others or are heard.
pub(super) fn heard(dump: &Dump) -> Vec<Heard> {
    let reports: BTreeMap<String, BTreeMap<&str, u32>> = dump
        .speakers
        .iter()
        .filter_map(|speaker| {
            let mut peers: BTreeMap<&str, u32> = BTreeMap::new();
            for peer in &speaker.status.as_ref()?.peers {
                let holds = peers.entry(&peer.node).or_default();
                *holds = holds.saturating_add(peer.holds);
            }
            Some((speaker.name_any(), peers))
        })
        .collect();
    let hearing = reports.iter().filter(|(_, peers)| !peers.is_empty());
    let mut nodes: BTreeSet<&str> = hearing.map(|(node, _)| node.as_str()).collect();
    nodes.extend(reports.values().flat_map(BTreeMap::keys));
    nodes
        .into_iter()
        .map(|node| {
            let others = reports.iter().filter(|(other, _)| *other != node);
            let (by, not_by): (Vec<_>, Vec<_>) =
                others.partition(|(_, peers)| peers.contains_key(node));
            let names = |nodes: &[(&String, _)]| nodes.iter().map(|(n, _)| (*n).clone()).collect();
            Heard {
                node: node.to_owned(),
                holds: by
                    .iter()
                    .filter_map(|(_, peers)| peers.get(node).copied())
                    .max(),
                heard_by: names(&by),
                not_heard_by: names(&not_by),
            }
        })
        .collect()
}

/// What happened last to an address, as the speakers saw it.
pub(super) fn changes(dump: &Dump, address: IpAddr) -> Vec<Changed> {
    let mut all: Vec<(String, &Transition)> = dump
        .speakers
        .iter()
        .flat_map(|speaker| {
            let transitions = speaker.status.iter().flat_map(|s| &s.transitions);
            transitions.map(|transition| (speaker.name_any(), transition))
        })
        .filter(|(_, transition)| transition.address.parse() == Ok(address))
        .collect();
    all.sort_by_key(|(_, transition)| std::cmp::Reverse(transition.time.0));
    let last = all.into_iter().take(LAST);
    last.map(|(node, transition)| Changed {
        time: format!("{:.3}", transition.time.0),
        node,
        interface: transition.interface.clone(),
        change: transition.change,
        cause: transition.cause.clone(),
        other: transition.other.clone(),
    })
    .collect()
}

/// Numbers those that stand by, in the order in which they take over. Which
/// nodes hear each other then, only they know: they say it while they do.
pub(super) fn line_up(nodes: &mut [NodeExplanation], vip: &VirtualIp) {
    let mut rank = 0;
    for name in vip.desired.iter().chain(&vip.successors) {
        let waits = |node: &&mut NodeExplanation| {
            node.node == *name && node.l2.reason == Reason::Standby.as_str()
        };
        if let Some(node) = nodes.iter_mut().find(waits) {
            rank += 1;
            node.rank.get_or_insert(rank);
        }
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &BTreeSet<String>| {
            let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
            nodes.join(", ")
        };
        write!(f, "{}", self.node)?;
        if let Some(holds) = self.holds {
            let plural = if holds == 1 { "" } else { "es" };
            write!(f, " holds {holds} address{plural} and")?;
        }
        if self.heard_by.is_empty() {
            return write!(f, " is heard by no other node on the segment");
        }
        if self.not_heard_by.is_empty() {
            return write!(f, " is heard by all others on the segment");
        }
        let (by, not_by) = (&self.heard_by, &self.not_heard_by);
        write!(
            f,
            " is heard on the segment by {}, not by {}",
            list(by),
            list(not_by)
        )
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = self.other.as_deref();
        let (what, other) = match self.change {
            Change::Owned => ("owns it", other.map(|other| format!("after {other}"))),
            Change::Lost => ("lost it", other.map(|other| format!("to {other}"))),
            Change::Blocked => (
                "does not claim it",
                other.map(|other| format!("a foreign host has it: {other}")),
            ),
            Change::Unblocked => ("sees that the foreign host is gone", None),
            Change::ForeignClaim => ("sees a foreign host use it", other.map(ToOwned::to_owned)),
            Change::HelloFiltered => (
                "does not claim it",
                other.map(|other| format!("{other} answers, but its HELLO does not come")),
            ),
        };
        let more: Vec<String> = self.cause.iter().cloned().chain(other).collect();
        write!(f, "{} {} {what}", self.time, self.node)?;
        if !more.is_empty() {
            write!(f, " ({})", more.join(", "))?;
        }
        write!(f, " on {}", self.interface)
    }
}
