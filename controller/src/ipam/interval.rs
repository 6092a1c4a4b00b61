//! A set of unsigned 128-bit numbers, held as disjoint runs.
//!
//! Free addresses of a pool are such a set: a fresh /64 is one run, and each
//! address taken out of the middle splits a run in two. Every operation costs
//! O(log r) for r runs, whatever the number of members, so that an IPv6 /64 is
//! as cheap as a /30.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent runs `start -> end`, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IntervalSet {
    runs: BTreeMap<u128, u128>,
}

impl IntervalSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when the set has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The lowest member.
    #[must_use]
    pub fn first(&self) -> Option<u128> {
        self.runs.keys().next().copied()
    }

    /// True when `value` is a member.
    #[must_use]
    pub fn contains(&self, value: u128) -> bool {
        self.runs
            .range(..=value)
            .next_back()
            .is_some_and(|(_, end)| value <= *end)
    }

    /// Adds all of `start..=end`; nothing when `start > end`.
    pub fn insert_range(&mut self, start: u128, end: u128) {
        if start > end {
            return;
        }
        let (mut start, mut end) = (start, end);
        // A run that begins at or before `start` and reaches or touches it.
        if let Some((&s, &e)) = self.runs.range(..=start).next_back()
            && e >= start.saturating_sub(1)
        {
            start = s;
            end = end.max(e);
        }
        // Runs that begin inside the new one, or right after it.
        while let Some((&s, &e)) = self.runs.range(start..=end.saturating_add(1)).next() {
            self.runs.remove(&s);
            end = end.max(e);
        }
        self.runs.insert(start, end);
    }

    /// Adds one member.
    pub fn insert(&mut self, value: u128) {
        self.insert_range(value, value);
    }

    /// Removes one member; true when it was there.
    pub fn remove(&mut self, value: u128) -> bool {
        let Some((&start, &end)) = self.runs.range(..=value).next_back() else {
            return false;
        };
        if value > end {
            return false;
        }
        self.runs.remove(&start);
        if start < value {
            self.runs.insert(start, value - 1);
        }
        if value < end {
            self.runs.insert(value + 1, end);
        }
        true
    }

    /// The runs in ascending order, both ends included.
    pub fn runs(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.runs.iter().map(|(s, e)| (*s, *e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u8, u8),
        Remove(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (any::<u8>(), 0u8..20).prop_map(|(a, n)| Op::Insert(a, n)),
            any::<u8>().prop_map(Op::Remove),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_plain_set(
            base in prop_oneof![Just(0u128), Just(u128::MAX - 255)],
            ops in prop::collection::vec(op(), 0..120),
        ) {
            let mut ours = IntervalSet::new();
            let mut plain = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert(a, n) => {
                        let end = a.saturating_add(n);
                        ours.insert_range(base + u128::from(a), base + u128::from(end));
                        plain.extend((a..=end).map(|v| base + u128::from(v)));
                    }
                    Op::Remove(a) => {
                        let value = base + u128::from(a);
                        prop_assert_eq!(ours.remove(value), plain.remove(&value));
                    }
                }
                prop_assert_eq!(ours.first(), plain.first().copied());
                let members: Vec<u128> = ours.runs().flat_map(|(s, e)| s..=e).collect();
                prop_assert_eq!(members, plain.iter().copied().collect::<Vec<_>>());
                // Runs are disjoint and not adjacent.
                let runs: Vec<_> = ours.runs().collect();
                for pair in runs.windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0 - 1);
                }
            }
            for v in 0..=255u128 {
                prop_assert_eq!(ours.contains(base + v), plain.contains(&(base + v)));
            }
        }
    }

    #[test]
    fn the_whole_address_space_is_one_run() {
        let mut set = IntervalSet::new();
        set.insert_range(0, u128::MAX);
        assert!(set.remove(0));
        assert!(set.remove(u128::MAX));
        assert_eq!(set.runs().collect::<Vec<_>>(), [(1, u128::MAX - 1)]);
        set.insert(0);
        set.insert(u128::MAX);
        assert_eq!(set.runs().collect::<Vec<_>>(), [(0, u128::MAX)]);
    }
}
