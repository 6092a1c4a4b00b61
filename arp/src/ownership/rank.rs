//! Who comes before whom: the desired node, then the successors in their
//! order, then everybody else by rendezvous hash.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ring::digest;

use crate::types::Assignment;

/// A node's place in the order, before it is known who lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Desired,
    Successor(usize),
    /// Smaller is earlier.
    Other(u64),
}

fn place(assignment: &Assignment, address: IpAddr, node: &str) -> Place {
    if assignment.desired.as_deref() == Some(node) {
        return Place::Desired;
    }
    match assignment
        .successors
        .iter()
        .position(|successor| successor == node)
    {
        Some(index) => Place::Successor(index),
        None => Place::Other(weight(address, node)),
    }
}

fn weight(address: IpAddr, node: &str) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(node.as_bytes());
    context.update(&[0]);
    context.update(address.to_string().as_bytes());
    context
        .finish()
        .as_ref()
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Whether `one` comes before `other`.
pub(super) fn before(assignment: &Assignment, address: IpAddr, one: &str, other: &str) -> bool {
    (place(assignment, address, one), one) < (place(assignment, address, other), other)
}

/// The place of `me` among `me` and `live`: 1 is the first.
pub(super) fn rank(
    assignment: &Assignment,
    address: IpAddr,
    me: &str,
    live: &BTreeSet<Arc<str>>,
) -> usize {
    let mine = place(assignment, address, me);
    let listed = assignment.desired.iter().chain(&assignment.successors);
    let listed_before = match mine {
        Place::Desired => 0,
        Place::Successor(_) | Place::Other(_) => listed
            .take_while(|node| *node != me)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|node| live.contains(node.as_str()))
            .count(),
    };
    let others_before = match mine {
        Place::Desired | Place::Successor(_) => 0,
        Place::Other(_) => live
            .iter()
            .map(|node| (place(assignment, address, node), &**node))
            .filter(|(place, node)| {
                matches!(place, Place::Other(_)) && (*place, *node) < (mine, me)
            })
            .count(),
    };
    listed_before
        .saturating_add(others_before)
        .saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Eligibility;

    fn assignment(desired: Option<&str>, successors: &[&str]) -> Assignment {
        Assignment {
            desired: desired.map(str::to_owned),
            successors: successors.iter().map(|s| (*s).to_owned()).collect(),
            created: 0,
            recorded: None,
            eligibility: Eligibility::Eligible,
            interfaces: None,
        }
    }

    fn live(nodes: &[&str]) -> BTreeSet<Arc<str>> {
        nodes.iter().map(|node| Arc::from(*node)).collect()
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10));

    #[test]
    fn the_desired_node_is_first_and_successors_follow_in_their_order() {
        let a = assignment(Some("c"), &["a", "d", "b"]);
        let all = live(&["a", "b", "c", "d", "x"]);
        let ranks = ["c", "a", "d", "b", "x"].map(|me| rank(&a, ADDRESS, me, &all));
        assert_eq!(ranks, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn only_nodes_that_are_heard_count() {
        let a = assignment(Some("c"), &["a", "d", "b"]);
        assert_eq!(rank(&a, ADDRESS, "b", &live(&[])), 1);
        assert_eq!(rank(&a, ADDRESS, "b", &live(&["d"])), 2);
        assert_eq!(rank(&a, ADDRESS, "d", &live(&["b"])), 1);
        assert_eq!(rank(&a, ADDRESS, "x", &live(&["b"])), 2);
    }

    #[test]
    fn a_node_listed_twice_counts_once() {
        let a = assignment(Some("c"), &["c", "a", "a", "b"]);
        assert_eq!(rank(&a, ADDRESS, "b", &live(&["a", "c"])), 3);
        assert_eq!(rank(&a, ADDRESS, "c", &live(&["a", "b"])), 1);
    }

    #[test]
    fn nodes_in_no_list_have_distinct_ranks_that_agree_with_the_order_of_two() {
        let a = assignment(None, &[]);
        let names = ["n1", "n2", "n3", "n4", "n5"];
        let all = live(&names);
        let mut ranks = names.map(|me| rank(&a, ADDRESS, me, &all));
        for (i, one) in names.iter().enumerate() {
            for (j, other) in names.iter().enumerate() {
                let earlier = ranks.get(i) < ranks.get(j);
                assert_eq!(before(&a, ADDRESS, one, other), earlier, "{one} {other}");
            }
        }
        ranks.sort_unstable();
        assert_eq!(ranks, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn different_addresses_spread_over_unlisted_nodes() {
        let a = assignment(None, &[]);
        let all = live(&["n1", "n2", "n3"]);
        let firsts = (0..=255_u8)
            .map(|i| IpAddr::from([10, 0, i, 1]))
            .filter(|address| rank(&a, *address, "n1", &all) == 1)
            .count();
        assert!((60..=110).contains(&firsts), "{firsts} of 256");
    }
}
