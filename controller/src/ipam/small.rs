//! Maps and sets of very few members. An address has one holder as a rule, and a Service one or
//! two addresses: a `BTreeMap` of one has room for eleven, and of these there is one for each
//! Service.

/// A map in the order of its keys, as a sorted list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallMap<K, V>(Vec<(K, V)>);

impl<K: Ord, V> SmallMap<K, V> {
    /// True when it has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = self.find(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// True when `key` is a member.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Sets the value of `key`; the one before, if there was one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                if self.0.len() < 4 {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at).1)
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(present, _)| present.cmp(key))
    }
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A set in order, as a sorted list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallSet<T>(SmallMap<T, ()>);

impl<T: Ord> SmallSet<T> {
    /// True when it has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when `value` is a member.
    #[must_use]
    pub fn contains(&self, value: &T) -> bool {
        self.0.contains_key(value)
    }

    /// Adds a member; false when it was one already.
    pub fn insert(&mut self, value: T) -> bool {
        self.0.insert(value, ()).is_none()
    }

    /// Takes a member out; false when it was none.
    pub fn remove(&mut self, value: &T) -> bool {
        self.0.remove(value).is_some()
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }
}

impl<T> Default for SmallSet<T> {
    fn default() -> Self {
        Self(SmallMap::default())
    }
}

impl<T: Ord> FromIterator<T> for SmallSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut set = Self::default();
        for member in members {
            set.insert(member);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_tree(ops in prop::collection::vec((any::<bool>(), 0u8..12, any::<u8>()), 0..60)) {
            let (mut ours, mut tree) = (SmallMap::default(), BTreeMap::new());
            for (insert, key, value) in ops {
                if insert {
                    prop_assert_eq!(ours.insert(key, value), tree.insert(key, value));
                } else {
                    prop_assert_eq!(ours.remove(&key), tree.remove(&key));
                }
                prop_assert_eq!(ours.get(&key), tree.get(&key));
                prop_assert_eq!(ours.contains_key(&key), tree.contains_key(&key));
                prop_assert_eq!(ours.is_empty(), tree.is_empty());
                prop_assert!(ours.iter().eq(tree.iter()));
                prop_assert!(ours.keys().eq(tree.keys()));
            }
        }
    }

    #[test]
    fn a_set_has_each_member_once_and_in_order() {
        let mut set: SmallSet<u8> = [3, 1, 3, 2].into_iter().collect();
        assert!(set.iter().eq(&[1, 2, 3]));
        assert!(!set.insert(2) && set.insert(0));
        assert!(set.remove(&3) && !set.remove(&3));
        assert!(set.contains(&0) && !set.contains(&3));
        assert!(set.iter().eq(&[0, 1, 2]));
    }
}
