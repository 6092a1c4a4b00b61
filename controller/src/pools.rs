//! Which pools are in force: parsing, overlaps, and the last good version of each.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bellrock_api::{AddressRange, IPAddressPoolSpec, IPAddressPoolStatus, PoolReason};

use crate::ipam::{Pool, Scope};
use crate::view::{Labels, Version};

/// An IPAddressPool as the API has it.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolView {
    /// Version.
    pub version: Version,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Creation, in seconds since the epoch: of two pools that overlap, the older one stands.
    pub created: i64,
    /// Labels, for advertisements.
    pub labels: Labels,
    /// What it says, or why that cannot be read.
    pub spec: Result<IPAddressPoolSpec, String>,
    /// What we last said about it.
    pub status: IPAddressPoolStatus,
}

/// What became of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The reason for its condition.
    pub reason: PoolReason,
    /// The message for its condition.
    pub message: String,
    /// True when an earlier version stays in force instead.
    pub earlier_in_force: bool,
}

/// All pools, and which version of each is in force.
#[derive(Debug, Clone, Default)]
pub struct PoolBook {
    views: BTreeMap<String, PoolView>,
    in_force: BTreeMap<String, Pool>,
    verdicts: BTreeMap<String, Verdict>,
    /// Labels of pools that were deleted while addresses of theirs were in use.
    gone: BTreeMap<String, Labels>,
}

impl PoolBook {
    /// The pools as the API has them.
    pub fn views(&self) -> impl Iterator<Item = (&String, &PoolView)> {
        self.views.iter()
    }

    /// The labels of a pool, or those that it had when it was deleted: by them advertisements go
    /// on covering its addresses.
    #[must_use]
    pub fn labels(&self, name: &str) -> Option<&Labels> {
        let view = self.views.get(name).map(|view| &view.labels);
        view.or_else(|| self.gone.get(name))
    }

    /// Enters that a pool is gone; `in_use`: addresses of it are recorded. True when that changes
    /// which pools are in force, or labels.
    pub fn remove(&mut self, name: &str, in_use: bool) -> bool {
        if let Some(view) = self.views.get(name).filter(|_| in_use) {
            let labels = view.labels.clone();
            self.gone.insert(name.to_owned(), labels);
        }
        self.set(name, None)
    }

    /// The pool of this name as the API has it.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<&PoolView> {
        self.views.get(name)
    }

    /// What became of a pool.
    #[must_use]
    pub fn verdict(&self, name: &str) -> Option<&Verdict> {
        self.verdicts.get(name)
    }

    /// The pools in force.
    pub fn in_force(&self) -> impl Iterator<Item = &Pool> {
        self.in_force.values()
    }

    /// Enters what the API says of a pool, `None` for "it is gone"; true when that changes which
    /// pools are in force, or labels.
    pub fn set(&mut self, name: &str, view: Option<PoolView>) -> bool {
        let labels_before = self.views.get(name).map(|v| v.labels.clone());
        let labels_after = view.as_ref().map(|v| v.labels.clone());
        match view {
            Some(view) => {
                self.gone.remove(name);
                self.views.insert(name.to_owned(), view);
            }
            None => {
                self.views.remove(name);
            }
        }
        let before = std::mem::take(&mut self.in_force);
        self.judge(&before);
        before != self.in_force || labels_before != labels_after
    }

    /// Decides anew, given what was in force. The older pool is looked at first: a newer one must
    /// not take addresses out of it.
    fn judge(&mut self, before: &BTreeMap<String, Pool>) {
        let mut order: Vec<(&String, &PoolView)> = self.views.iter().collect();
        order.sort_by_key(|(name, view)| (view.created, *name));
        let mut taken: BTreeMap<IpAddr, (IpAddr, String)> = BTreeMap::new();
        let mut in_force = BTreeMap::new();
        let mut verdicts = BTreeMap::new();
        for (name, view) in order {
            let parsed = match &view.spec {
                Ok(spec) => parse(name, spec),
                Err(error) => Err((PoolReason::AddressInvalid, error.clone())),
            };
            let parsed = parsed.and_then(|pool| match overlap(&pool, &taken) {
                Some(message) => Err((PoolReason::Overlap, message)),
                None => Ok(pool),
            });
            let (pool, verdict) = match parsed {
                Ok(pool) => (
                    Some(pool),
                    Verdict {
                        reason: PoolReason::Accepted,
                        message: PoolReason::Accepted.sentence().to_owned(),
                        earlier_in_force: false,
                    },
                ),
                Err((reason, message)) => {
                    let earlier = before
                        .get(name)
                        .filter(|pool| overlap(pool, &taken).is_none());
                    let verdict = Verdict {
                        reason,
                        message,
                        earlier_in_force: earlier.is_some(),
                    };
                    (earlier.cloned(), verdict)
                }
            };
            verdicts.insert(name.clone(), verdict);
            if let Some(pool) = pool {
                for range in &pool.ranges {
                    taken.insert(range.start, (range.end, name.clone()));
                }
                in_force.insert(name.clone(), pool);
            }
        }
        self.in_force = in_force;
        self.verdicts = verdicts;
    }
}

/// The pool that `spec` describes.
///
/// # Errors
/// The first entry that does not parse, or that overlaps with another of the same pool.
pub(crate) fn parse(name: &str, spec: &IPAddressPoolSpec) -> Result<Pool, (PoolReason, String)> {
    let mut seen: BTreeMap<IpAddr, (IpAddr, String)> = BTreeMap::new();
    let mut ranges: Vec<AddressRange> = Vec::new();
    for text in &spec.addresses {
        let range: AddressRange = text
            .parse()
            .map_err(|error| (PoolReason::AddressInvalid, format!("addresses: {error}")))?;
        if let Some((_, _, other)) = meets(range, &seen) {
            let message = format!("{text} overlaps with {other} of the same pool");
            return Err((PoolReason::Overlap, message));
        }
        seen.insert(range.start, (range.end, text.clone()));
        ranges.push(range);
    }
    if ranges.is_empty() {
        return Err((
            PoolReason::AddressInvalid,
            "addresses: the pool has none".to_owned(),
        ));
    }
    let allocation = spec.service_allocation.clone().unwrap_or_default();
    Ok(Pool {
        name: name.to_owned(),
        ranges,
        auto_assign: spec.auto_assign,
        avoid_buggy_ips: spec.avoid_buggy_ips,
        reuse_delay: spec.reuse_delay.as_std(),
        scope: Scope {
            priority: u32::try_from(allocation.priority).unwrap_or(0),
            namespaces: allocation.namespaces.into_iter().collect(),
            namespace_selectors: allocation.namespace_selectors,
            service_selectors: allocation.service_selectors,
        },
    })
}

/// The first of the disjoint ranges in `taken` (start -> end and a name) that meets `range`.
fn meets(
    range: AddressRange,
    taken: &BTreeMap<IpAddr, (IpAddr, String)>,
) -> Option<(IpAddr, IpAddr, &String)> {
    let (start, (end, name)) = taken.range(..=range.end).next_back()?;
    let other = AddressRange {
        start: *start,
        end: *end,
    };
    other.overlaps(&range).then_some((*start, *end, name))
}

fn overlap(pool: &Pool, taken: &BTreeMap<IpAddr, (IpAddr, String)>) -> Option<String> {
    pool.ranges.iter().find_map(|range| {
        let (start, end, name) = meets(*range, taken)?;
        let other = AddressRange { start, end };
        Some(format!(
            "{range} overlaps with {other} of pool {name}, which is older"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(created: i64, addresses: &[&str]) -> Option<PoolView> {
        let spec = serde_json::from_value(serde_json::json!({ "addresses": addresses })).unwrap();
        Some(PoolView {
            version: Version::default(),
            generation: Some(1),
            created,
            labels: Labels::new(),
            spec: Ok(spec),
            status: IPAddressPoolStatus::default(),
        })
    }

    fn ranges(book: &PoolBook, name: &str) -> Vec<String> {
        let pool = book.in_force().find(|p| p.name == name);
        pool.map(|p| p.ranges.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    #[test]
    fn a_pool_that_does_not_parse_leaves_its_last_good_version_and_the_others_in_force() {
        let mut book = PoolBook::default();
        assert!(book.set("a", view(1, &["192.0.2.0/30"])));
        assert!(book.set("b", view(2, &["198.51.100.1"])));
        let broken = view(1, &["192.0.2.0/30", "192.0.2.9-192.0.2.5"]);
        assert!(
            !book.set("a", broken.clone()),
            "nothing in force has changed"
        );
        assert_eq!(ranges(&book, "a"), ["192.0.2.0-192.0.2.3"]);
        assert_eq!(ranges(&book, "b"), ["198.51.100.1"]);
        let verdict = book.verdict("a").unwrap();
        assert_eq!(verdict.reason, PoolReason::AddressInvalid);
        assert!(
            verdict.message.contains("192.0.2.9-192.0.2.5"),
            "{}",
            verdict.message
        );
        assert!(verdict.earlier_in_force);
        // Broken from the start: not in force, and it says so.
        book.set("c", broken);
        assert_eq!(ranges(&book, "c"), Vec::<String>::new());
        assert!(!book.verdict("c").unwrap().earlier_in_force);
        // What serde cannot read is no different.
        let mut unreadable = view(2, &[]).unwrap();
        unreadable.spec = Err("spec.reuseDelay: invalid duration".to_owned());
        book.set("b", Some(unreadable));
        assert_eq!(ranges(&book, "b"), ["198.51.100.1"]);
        assert!(book.set("a", None));
        assert_eq!(ranges(&book, "a"), Vec::<String>::new());
    }

    #[test]
    fn of_two_pools_that_overlap_the_older_one_stands() {
        let mut book = PoolBook::default();
        book.set("young", view(9, &["192.0.2.8-192.0.2.20"]));
        assert_eq!(ranges(&book, "young").len(), 1);
        book.set("old", view(1, &["192.0.2.0/28"]));
        assert_eq!(ranges(&book, "old").len(), 1);
        assert_eq!(ranges(&book, "young"), Vec::<String>::new());
        let verdict = book.verdict("young").unwrap();
        assert_eq!(verdict.reason, PoolReason::Overlap);
        assert!(verdict.message.contains("pool old"), "{}", verdict.message);
        // When the older one goes, the younger one comes into force.
        assert!(book.set("old", None));
        assert_eq!(ranges(&book, "young").len(), 1);
        // An edit that would overlap keeps the version before it.
        book.set("other", view(10, &["203.0.113.0/24"]));
        book.set("other", view(10, &["203.0.113.0/24", "192.0.2.20"]));
        assert_eq!(ranges(&book, "other"), ["203.0.113.0-203.0.113.255"]);
        assert!(book.verdict("other").unwrap().earlier_in_force);
    }

    #[test]
    fn entries_of_one_pool_may_not_overlap_either() {
        for (addresses, good) in [
            (vec!["192.0.2.0/25", "192.0.2.128/25"], true),
            (vec!["192.0.2.0/24", "192.0.2.7"], false),
            (vec!["192.0.2.7", "192.0.2.0/24"], false),
            (vec!["192.0.2.0/24", "2001:db8::/64"], true),
        ] {
            let mut book = PoolBook::default();
            book.set("a", view(1, &addresses));
            assert_eq!(
                book.verdict("a").unwrap().reason == PoolReason::Accepted,
                good,
                "{addresses:?}"
            );
        }
    }
}
