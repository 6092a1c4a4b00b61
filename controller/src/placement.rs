//! Placement: on which node of the local segment an address should live, and who comes next.
//!
//! - **Balanced**: a new address goes to the candidate that has the fewest; its first successor is
//!   the one that would have the fewest if that node died, counting what it would inherit; each
//!   later successor is the one that stands at that place least often. So a node's death spreads
//!   its addresses over all others.
//! - **Preferred**: a higher weight comes before any balance.
//! - **Sticky**: the node stays while it is a candidate, whatever comes or goes; when it is not,
//!   the first successor that is one takes its place, because that is who answers by then.
//! - **Deterministic**: the same history gives the same placement; ties go by name.
//!
//! The speakers decide who answers; this is only what the cluster would like.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Successors that a placement names at most: enough for any plausible series of failures, and
/// bounded, because every VirtualIP carries the list.
pub const MAX_SUCCESSORS: usize = 8;

/// A node that may answer for an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The node's name.
    pub node: String,
    /// Sum of the weights of the preferences that match it; higher comes first.
    pub weight: u32,
}

/// A node and those who take over, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// The node that should answer.
    pub node: String,
    /// Who takes over, in order; at most [`MAX_SUCCESSORS`].
    pub successors: Vec<String>,
}

/// All placements, with the counts that keep them even.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    choices: BTreeMap<IpAddr, Choice>,
    /// Addresses by desired node.
    desired: BTreeMap<String, u32>,
    /// Desired node -> for each place in the list: successor -> addresses.
    successors: BTreeMap<String, [BTreeMap<String, u32>; MAX_SUCCESSORS]>,
}

impl Placement {
    /// No placement yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where `ip` is placed.
    #[must_use]
    pub fn get(&self, ip: IpAddr) -> Option<&Choice> {
        self.choices.get(&ip)
    }

    /// Addresses whose desired node is `node`.
    #[must_use]
    pub fn desired_count(&self, node: &str) -> u32 {
        self.desired.get(node).copied().unwrap_or(0)
    }

    /// Notes a placement that exists, such as one that a VirtualIP carries.
    pub fn set(&mut self, ip: IpAddr, choice: Choice) {
        self.remove(ip);
        *self.desired.entry(choice.node.clone()).or_default() += 1;
        if !choice.successors.is_empty() {
            let places = self.successors.entry(choice.node.clone()).or_default();
            for (counts, successor) in places.iter_mut().zip(&choice.successors) {
                *counts.entry(successor.clone()).or_default() += 1;
            }
        }
        self.choices.insert(ip, choice);
    }

    /// Forgets `ip`.
    pub fn remove(&mut self, ip: IpAddr) {
        let Some(choice) = self.choices.remove(&ip) else {
            return;
        };
        decrement(&mut self.desired, &choice.node);
        if let Some(places) = self.successors.get_mut(&choice.node) {
            for (counts, successor) in places.iter_mut().zip(&choice.successors) {
                decrement(counts, successor);
            }
            if places.iter().all(BTreeMap::is_empty) {
                self.successors.remove(&choice.node);
            }
        }
    }

    /// Places `ip` on one of `candidates`, keeping as much of its present placement as they
    /// allow, and returns the choice; `None` (and forgotten) without candidates.
    pub fn place(&mut self, ip: IpAddr, candidates: &[Candidate]) -> Option<&Choice> {
        if candidates.is_empty() {
            self.remove(ip);
            return None;
        }
        let is_candidate = |node: &String| candidates.iter().any(|c| c.node == *node);
        let wanted = MAX_SUCCESSORS.min(candidates.len() - 1);
        let present = self.choices.get(&ip);
        if let Some(choice) = present
            && is_candidate(&choice.node)
            && choice.successors.len() == wanted
            && choice.successors.iter().all(is_candidate)
        {
            return self.choices.get(&ip);
        }
        let present = present.cloned().unwrap_or_default();
        // Not counted against itself while it is placed anew.
        self.remove(ip);
        let mut kept: Vec<String> = std::iter::once(present.node)
            .chain(present.successors)
            .filter(is_candidate)
            .collect();
        let node = if kept.is_empty() {
            self.least_loaded(candidates)?
        } else {
            kept.remove(0)
        };
        kept.truncate(wanted);
        let mut successors = kept;
        while successors.len() < wanted {
            let place = successors.len();
            let free = candidates
                .iter()
                .filter(|c| c.node != node && !successors.contains(&c.node));
            let next = free.min_by_key(|c| {
                let at_this_place = self.count(&node, place, &c.node);
                let load = if place == 0 {
                    self.desired_count(&c.node) + at_this_place
                } else {
                    at_this_place
                };
                (
                    std::cmp::Reverse(c.weight),
                    load,
                    at_this_place,
                    self.desired_count(&c.node),
                    &c.node,
                )
            })?;
            successors.push(next.node.clone());
        }
        self.set(ip, Choice { node, successors });
        self.choices.get(&ip)
    }

    fn least_loaded(&self, candidates: &[Candidate]) -> Option<String> {
        candidates
            .iter()
            .min_by_key(|c| {
                (
                    std::cmp::Reverse(c.weight),
                    self.desired_count(&c.node),
                    &c.node,
                )
            })
            .map(|c| c.node.clone())
    }

    fn count(&self, node: &str, place: usize, successor: &str) -> u32 {
        self.successors
            .get(node)
            .and_then(|places| places.get(place)?.get(successor))
            .copied()
            .unwrap_or(0)
    }
}

fn decrement(counts: &mut BTreeMap<String, u32>, key: &String) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xC000_0200 + n).into()
    }

    fn nodes(names: &[&str]) -> Vec<Candidate> {
        names
            .iter()
            .map(|n| Candidate {
                node: (*n).to_owned(),
                weight: 0,
            })
            .collect()
    }

    fn choice(node: &str, successors: &[&str]) -> Choice {
        Choice {
            node: node.to_owned(),
            successors: successors.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn three_nodes_share_six_addresses_and_each_others_deaths() {
        let mut placement = Placement::new();
        let all = nodes(&["a", "b", "c"]);
        let got: Vec<Choice> = (0..6)
            .map(|n| placement.place(ip(n), &all).unwrap().clone())
            .collect();
        let expected = [
            choice("a", &["b", "c"]),
            choice("b", &["c", "a"]),
            choice("c", &["a", "b"]),
            choice("a", &["c", "b"]),
            choice("b", &["a", "c"]),
            choice("c", &["b", "a"]),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn what_is_placed_stays_until_its_node_is_no_candidate() {
        let mut placement = Placement::new();
        let place = |p: &mut Placement, names: &[&str]| p.place(ip(1), &nodes(names)).cloned();
        assert_eq!(
            place(&mut placement, &["b", "c"]),
            Some(choice("b", &["c"]))
        );
        // A new node is appended as a successor, nothing else moves.
        assert_eq!(
            place(&mut placement, &["a", "b", "c"]),
            Some(choice("b", &["c", "a"]))
        );
        // Its node goes: the first successor takes over.
        assert_eq!(
            place(&mut placement, &["a", "c"]),
            Some(choice("c", &["a"]))
        );
        // The node returns: no flap-back.
        assert_eq!(
            place(&mut placement, &["a", "b", "c"]),
            Some(choice("c", &["a", "b"]))
        );
        assert_eq!(place(&mut placement, &[]), None);
        assert_eq!(placement.get(ip(1)), None);
    }

    #[test]
    fn preference_comes_before_balance() {
        let mut placement = Placement::new();
        let mut all = nodes(&["a", "b", "c", "d"]);
        all[1].weight = 10;
        all[3].weight = 10;
        let mut on: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..10 {
            let choice = placement.place(ip(n), &all).unwrap();
            *on.entry(choice.node.clone()).or_default() += 1;
            assert!(
                ["b", "d"].contains(&choice.successors[0].as_str()),
                "{choice:?}"
            );
        }
        assert_eq!(on, [("b".to_owned(), 5), ("d".to_owned(), 5)].into());
    }

    #[test]
    fn a_list_of_successors_is_bounded() {
        let names: Vec<String> = (0..50).map(|n| format!("n{n:02}")).collect();
        let all: Vec<Candidate> = names
            .iter()
            .map(|n| Candidate {
                node: n.clone(),
                weight: 0,
            })
            .collect();
        let mut placement = Placement::new();
        let choice = placement.place(ip(0), &all).unwrap();
        assert_eq!(choice.successors.len(), MAX_SUCCESSORS);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Place(u8),
        Remove(u8),
        Toggle(u8),
    }

    proptest! {
        #[test]
        fn loads_are_even_and_stay_so_after_any_one_death(count in 2usize..9, addresses in 1u32..120) {
            let names: Vec<String> = (0..count).map(|n| format!("n{n}")).collect();
            let all: Vec<Candidate> =
                names.iter().map(|n| Candidate { node: n.clone(), weight: 0 }).collect();
            let mut placement = Placement::new();
            for n in 0..addresses {
                placement.place(ip(n), &all);
            }
            let count = u32::try_from(count).unwrap();
            for name in &names {
                prop_assert!(placement.desired_count(name) <= addresses.div_ceil(count));
            }
            for dead in &names {
                let mut load: BTreeMap<&str, u32> = BTreeMap::new();
                for n in 0..addresses {
                    let choice = placement.get(ip(n)).unwrap();
                    let heir = if choice.node == *dead { &choice.successors[0] } else { &choice.node };
                    *load.entry(heir).or_default() += 1;
                }
                let share = addresses.div_ceil(count - 1);
                for (node, load) in load {
                    prop_assert!(load <= share + 1, "{} dies, {} has {} > {} + 1", dead, node, load, share);
                }
            }
        }

        #[test]
        fn nothing_moves_without_need_and_every_list_is_sound(
            ops in prop::collection::vec(
                prop_oneof![
                    (0u8..40).prop_map(Op::Place),
                    (0u8..40).prop_map(Op::Remove),
                    (0u8..12).prop_map(Op::Toggle),
                ],
                1..120,
            )
        ) {
            let mut up: BTreeSet<String> = ["n0", "n1", "n2"].map(str::to_owned).into();
            let mut placement = Placement::new();
            for op in ops {
                let before = placement.choices.clone();
                match op {
                    Op::Remove(n) => placement.remove(ip(n.into())),
                    Op::Toggle(n) => {
                        let name = format!("n{n}");
                        if !up.remove(&name) {
                            up.insert(name);
                        }
                    }
                    Op::Place(n) => {
                        let all: Vec<Candidate> =
                            up.iter().map(|n| Candidate { node: n.clone(), weight: 0 }).collect();
                        let got = placement.place(ip(n.into()), &all).cloned();
                        prop_assert_eq!(placement.place(ip(n.into()), &all).cloned(), got.clone());
                        prop_assert_eq!(got.is_none(), up.is_empty());
                        if let Some(choice) = got {
                            if let Some(old) = before.get(&ip(n.into())) {
                                if up.contains(&old.node) {
                                    prop_assert_eq!(&choice.node, &old.node);
                                } else if let Some(heir) = old.successors.iter().find(|s| up.contains(*s)) {
                                    prop_assert_eq!(&choice.node, heir);
                                }
                            }
                            let mut line: BTreeSet<&String> = choice.successors.iter().collect();
                            line.insert(&choice.node);
                            prop_assert_eq!(line.len(), choice.successors.len() + 1);
                            prop_assert!(line.iter().all(|n| up.contains(*n)));
                            prop_assert_eq!(choice.successors.len(), MAX_SUCCESSORS.min(up.len() - 1));
                        }
                    }
                }
                for (ip, old) in before {
                    if let Op::Place(n) | Op::Remove(n) = op && ip == self::ip(n.into()) {
                        continue;
                    }
                    prop_assert_eq!(placement.get(ip), Some(&old));
                }
                // The counts are those of the choices.
                let mut recount = Placement::new();
                for (ip, choice) in &placement.choices {
                    recount.set(*ip, choice.clone());
                }
                prop_assert_eq!(&recount.desired, &placement.desired);
                prop_assert_eq!(&recount.successors, &placement.successors);
            }
        }
    }
}
