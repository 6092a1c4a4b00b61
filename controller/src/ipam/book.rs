//! The book of addresses: pools, free runs, holders and addresses at rest.
//!
//! Only bookkeeping; [`super::settle`] decides. Free addresses are kept per pool and family as
//! runs, holders by address, and the way from an address to its pools is a search in a map of
//! disjoint segments, so that each operation is O(log n), however large the pools are. Pools that
//! overlap (they should not; the controller reports them) are sound too: an address that is taken
//! is taken in all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::claim::{Claim, ServiceKey};
use super::interval::IntervalSet;
use super::pool::{Family, Pool, address, bits, is_buggy};
use super::small::{SmallMap, SmallSet};

/// Who holds an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// The Services that hold it.
    pub claims: SmallMap<ServiceKey, Claim>,
    /// True while a VirtualIP of it exists: without claims, that is a reservation.
    pub recorded: bool,
    /// Who released it last, while a VirtualIP still exists.
    pub last: Option<ServiceKey>,
}

/// Addresses of one family in a pool.
#[derive(Debug, Clone, Default)]
struct FamilyPart {
    /// Free to be handed out, and possibly addresses that `avoidBuggyIPs` keeps back: those are
    /// removed when the search meets them.
    free: IntervalSet,
    /// Free addresses without those kept back.
    free_count: u128,
    /// Held or reserved.
    held: u128,
    /// True when the pool has addresses of this family at all.
    exists: bool,
}

#[derive(Debug, Clone)]
pub(super) struct PoolState {
    pub(super) pool: Pool,
    parts: [FamilyPart; 2],
}

/// A run of addresses that all lie in the same pools.
#[derive(Debug, Clone)]
struct Segment {
    end: u128,
    /// Indices into `pools`, best first.
    pools: Vec<usize>,
}

/// The rest of a released address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// When it is over.
    pub end: Duration,
    /// Who held the address last, and may have it back at once.
    pub last: Option<ServiceKey>,
}

/// Counters of one family in a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses that a VirtualIP or a pending allocation takes.
    pub assigned: u128,
    /// Addresses that could be handed out now.
    pub available: u128,
}

/// What an automatic search in one pool found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Address(IpAddr),
    NoFamily,
    /// All are taken, or rest after release.
    Full {
        /// How long released ones rest.
        reuse_delay: Duration,
    },
}

fn slot(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The allocator's state. `now` in its methods is any monotonic time, the same in all calls.
#[derive(Debug, Clone, Default)]
pub struct Allocator {
    /// Best first.
    pools: Vec<PoolState>,
    by_name: BTreeMap<String, usize>,
    segments: [BTreeMap<u128, Segment>; 2],
    holdings: BTreeMap<IpAddr, Holding>,
    held_by: BTreeMap<ServiceKey, SmallSet<IpAddr>>,
    /// Namespace and sharing key -> addresses.
    shared: BTreeMap<(String, String), BTreeSet<IpAddr>>,
    resting: BTreeMap<IpAddr, Rest>,
    rest_ends: BTreeSet<(Duration, IpAddr)>,
    left_by: BTreeMap<ServiceKey, BTreeSet<IpAddr>>,
    /// Addresses of nodes, never handed out -> the nodes.
    of_nodes: BTreeMap<IpAddr, BTreeSet<String>>,
}

impl Allocator {
    /// An allocator without pools.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the pools. Holders stay, whether a pool has their address or not.
    pub fn set_pools(&mut self, mut pools: Vec<Pool>) {
        pools.sort_by(|a, b| a.rank().cmp(&b.rank()));
        self.by_name = pools
            .iter()
            .enumerate()
            .map(|(index, pool)| (pool.name.clone(), index))
            .collect();
        self.segments = Family::BOTH.map(|family| segments(&pools, family));
        self.pools = pools.into_iter().map(PoolState::new).collect();
        for (&ip, holding) in &self.holdings {
            debug_assert!(holding.recorded || !holding.claims.is_empty());
            for &index in pools_at(&self.segments, ip) {
                self.pools[index].take(ip);
                self.pools[index].parts[slot(Family::of(ip))].held += 1;
            }
        }
        for &ip in self.resting.keys() {
            for &index in pools_at(&self.segments, ip) {
                self.pools[index].take(ip);
            }
        }
        for &ip in self.of_nodes.keys() {
            for &index in pools_at(&self.segments, ip) {
                self.pools[index].take(ip);
            }
        }
    }

    /// Notes that `ip` is an address of `node`: it is handed out no more, and who holds it keeps it.
    pub fn node_has(&mut self, ip: IpAddr, node: &str) {
        self.of_nodes.entry(ip).or_default().insert(node.to_owned());
        for &index in pools_at(&self.segments, ip) {
            self.pools[index].take(ip);
        }
    }

    /// Notes that `ip` is no address of `node` any more.
    pub fn node_has_not(&mut self, ip: IpAddr, node: &str) {
        let Some(nodes) = self.of_nodes.get_mut(&ip) else {
            return;
        };
        nodes.remove(node);
        if nodes.is_empty() {
            self.of_nodes.remove(&ip);
            if !self.holdings.contains_key(&ip) && !self.resting.contains_key(&ip) {
                self.put_free(ip);
            }
        }
    }

    /// The node that `ip` belongs to, if it does; the first by name if several claim it.
    #[must_use]
    pub fn node_of(&self, ip: IpAddr) -> Option<&str> {
        let nodes = self.of_nodes.get(&ip)?;
        nodes.first().map(String::as_str)
    }

    /// The pools, best first.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().map(|state| &state.pool)
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|&index| &self.pools[index].pool)
    }

    /// The pools that `ip` lies in, best first.
    pub fn pools_of(&self, ip: IpAddr) -> impl Iterator<Item = &Pool> {
        pools_at(&self.segments, ip)
            .iter()
            .map(|&index| &self.pools[index].pool)
    }

    /// Who holds `ip`.
    #[must_use]
    pub fn holding(&self, ip: IpAddr) -> Option<&Holding> {
        self.holdings.get(&ip)
    }

    /// The addresses that are held or reserved, in order.
    pub fn held_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.holdings.keys().copied()
    }

    /// The addresses that `service` holds, in order.
    pub fn held_by(&self, service: &ServiceKey) -> impl Iterator<Item = IpAddr> + '_ {
        let held = self.held_by.get(service);
        held.into_iter().flat_map(SmallSet::iter).copied()
    }

    /// Counters of `pool`, or `None` when there is no such pool.
    #[must_use]
    pub fn usage(&self, pool: &str, family: Family) -> Option<Usage> {
        let part = &self.pools[*self.by_name.get(pool)?].parts[slot(family)];
        Some(Usage {
            assigned: part.held,
            available: part.free_count,
        })
    }

    /// When the next address at rest becomes free.
    #[must_use]
    pub fn next_rest_end(&self) -> Option<Duration> {
        self.rest_ends.first().map(|(end, _)| *end)
    }

    /// Frees the addresses whose rest is over, and names them.
    pub fn end_rests(&mut self, now: Duration) -> Vec<IpAddr> {
        let mut ended = Vec::new();
        while let Some(&(end, ip)) = self.rest_ends.first()
            && end <= now
        {
            self.end_rest(ip);
            self.put_free(ip);
            ended.push(ip);
        }
        ended
    }

    /// How long `ip` rests when it is released.
    #[must_use]
    pub fn reuse_delay(&self, ip: IpAddr) -> Duration {
        let delays = self.pools_of(ip).map(|pool| pool.reuse_delay);
        delays.max().unwrap_or_default()
    }

    /// Notes that `ip` was released at `since` by `last`, and that nothing else is recorded of it:
    /// it rests until the `reuseDelay` of its pool is over. Its holders, if any, keep it.
    pub fn lay_to_rest(
        &mut self,
        ip: IpAddr,
        since: Duration,
        last: Option<ServiceKey>,
        now: Duration,
    ) {
        match self.holdings.get_mut(&ip) {
            Some(holding) if !holding.claims.is_empty() => {
                holding.recorded = true;
                return;
            }
            Some(_) => {
                self.holdings.remove(&ip);
                for &index in pools_at(&self.segments, ip) {
                    self.pools[index].parts[slot(Family::of(ip))].held -= 1;
                }
            }
            None => self.end_rest(ip),
        }
        // Clocks of several machines may differ: nothing rests longer than it should from now.
        let end = since.min(now).saturating_add(self.reuse_delay(ip));
        if end <= now {
            self.put_free(ip);
            return;
        }
        if let Some(last) = &last {
            self.left_by.entry(last.clone()).or_default().insert(ip);
        }
        self.resting.insert(ip, Rest { end, last });
        self.rest_ends.insert((end, ip));
        for &index in pools_at(&self.segments, ip) {
            self.pools[index].take(ip);
        }
    }

    /// Notes that a VirtualIP of `ip` exists.
    pub fn record(&mut self, ip: IpAddr) {
        self.occupy(ip).recorded = true;
    }

    /// Notes that no VirtualIP of `ip` exists any more. Its holders, if any, keep it.
    pub fn unrecord(&mut self, ip: IpAddr, now: Duration) {
        if let Some(holding) = self.holdings.get_mut(&ip) {
            holding.recorded = false;
            let last = holding.last.clone();
            self.vacate_if_empty(ip, last, now);
        }
    }

    /// Gives `ip` to `service`, or changes the terms on which it has it; false when it has it on
    /// these terms already. Whether it may is [`super::settle`]'s business.
    pub fn claim(&mut self, ip: IpAddr, service: &ServiceKey, claim: Claim) -> bool {
        if self.holdings.get(&ip).and_then(|h| h.claims.get(service)) == Some(&claim) {
            return false;
        }
        let new_key = claim.sharing_key.clone();
        let old = self.occupy(ip).claims.insert(service.clone(), claim);
        if let Some(old_key) = old.and_then(|c| c.sharing_key)
            && new_key.as_ref() != Some(&old_key)
        {
            self.unshare(ip, service, old_key);
        }
        if let Some(key) = new_key {
            self.shared
                .entry((service.namespace.clone(), key))
                .or_default()
                .insert(ip);
        }
        match self.held_by.get_mut(service) {
            Some(held) => {
                held.insert(ip);
            }
            None => {
                self.held_by
                    .insert(service.clone(), [ip].into_iter().collect());
            }
        }
        true
    }

    /// Takes `ip` from `service`. It begins its rest when nobody holds it and no VirtualIP
    /// records it.
    pub fn release(&mut self, ip: IpAddr, service: &ServiceKey, now: Duration) {
        let Some(claim) = self
            .holdings
            .get_mut(&ip)
            .and_then(|holding| holding.claims.remove(service))
        else {
            return;
        };
        if let Some(key) = claim.sharing_key {
            self.unshare(ip, service, key);
        }
        if let Some(held) = self.held_by.get_mut(service) {
            held.remove(&ip);
            if held.is_empty() {
                self.held_by.remove(service);
            }
        }
        if let Some(holding) = self.holdings.get_mut(&ip) {
            holding.last = Some(service.clone());
        }
        self.vacate_if_empty(ip, Some(service.clone()), now);
    }

    fn unshare(&mut self, ip: IpAddr, service: &ServiceKey, key: String) {
        let others = self.holdings.get(&ip).is_some_and(|holding| {
            holding.claims.iter().any(|(other, claim)| {
                other.namespace == service.namespace && claim.sharing_key.as_ref() == Some(&key)
            })
        });
        if others {
            return;
        }
        let index = (service.namespace.clone(), key);
        if let Some(set) = self.shared.get_mut(&index) {
            set.remove(&ip);
            if set.is_empty() {
                self.shared.remove(&index);
            }
        }
    }

    /// The holding of `ip`, made if there is none.
    fn occupy(&mut self, ip: IpAddr) -> &mut Holding {
        if !self.holdings.contains_key(&ip) {
            self.end_rest(ip);
            for &index in pools_at(&self.segments, ip) {
                self.pools[index].take(ip);
                self.pools[index].parts[slot(Family::of(ip))].held += 1;
            }
        }
        self.holdings.entry(ip).or_default()
    }

    fn vacate_if_empty(&mut self, ip: IpAddr, last: Option<ServiceKey>, now: Duration) {
        match self.holdings.get(&ip) {
            Some(holding) if !holding.recorded && holding.claims.is_empty() => {}
            Some(_) | None => return,
        }
        self.lay_to_rest(ip, now, last, now);
    }

    /// Ends the rest of `ip` without freeing it.
    fn end_rest(&mut self, ip: IpAddr) {
        let Some(Rest { end, last }) = self.resting.remove(&ip) else {
            return;
        };
        self.rest_ends.remove(&(end, ip));
        if let Some(last) = last
            && let Some(set) = self.left_by.get_mut(&last)
        {
            set.remove(&ip);
            if set.is_empty() {
                self.left_by.remove(&last);
            }
        }
    }

    fn put_free(&mut self, ip: IpAddr) {
        if self.of_nodes.contains_key(&ip) {
            return;
        }
        for &index in pools_at(&self.segments, ip) {
            self.pools[index].put(ip);
        }
    }

    pub(super) fn states(&mut self) -> impl Iterator<Item = &mut PoolState> {
        self.pools.iter_mut()
    }

    /// Addresses held under `key` in `namespace`, in order.
    pub(super) fn shared_under(
        &self,
        namespace: &str,
        key: &str,
        family: Family,
    ) -> impl Iterator<Item = IpAddr> + '_ {
        self.shared
            .get(&(namespace.to_owned(), key.to_owned()))
            .into_iter()
            .flatten()
            .copied()
            .filter(move |ip| Family::of(*ip) == family)
    }

    /// The rest of `ip`, if it was released a moment ago.
    #[must_use]
    pub fn rest(&self, ip: IpAddr) -> Option<&Rest> {
        self.resting.get(&ip)
    }

    /// The addresses at rest whose last holder was `service`, in order.
    pub(super) fn left_by(&self, service: &ServiceKey) -> impl Iterator<Item = IpAddr> + '_ {
        let held = self.left_by.get(service);
        held.into_iter().flatten().copied()
    }

    /// True when nobody holds `ip`, it belongs to no node, and it is at rest for nobody but
    /// `service`.
    pub(super) fn is_free_for(&self, ip: IpAddr, service: &ServiceKey) -> bool {
        !self.of_nodes.contains_key(&ip)
            && !self.holdings.contains_key(&ip)
            && self
                .resting
                .get(&ip)
                .is_none_or(|rest| rest.last.as_ref() == Some(service))
    }
}

impl PoolState {
    fn new(pool: Pool) -> Self {
        let mut parts = [FamilyPart::default(), FamilyPart::default()];
        for range in &pool.ranges {
            let part = &mut parts[slot(Family::of(range.start))];
            part.free.insert_range(bits(range.start), bits(range.end));
            part.exists = true;
        }
        for (part, family) in parts.iter_mut().zip(Family::BOTH) {
            let runs = part.free.runs();
            part.free_count = if family == Family::V4 && pool.avoid_buggy_ips {
                runs.map(|(s, e)| e - s + 1 - buggy_in(s, e)).sum()
            } else {
                runs.fold(0u128, |sum, (s, e)| {
                    sum.saturating_add((e - s).saturating_add(1))
                })
            };
        }
        Self { pool, parts }
    }

    fn take(&mut self, ip: IpAddr) {
        let offers = self.pool.offers(ip);
        let part = &mut self.parts[slot(Family::of(ip))];
        if part.free.remove(bits(ip)) && offers {
            part.free_count = part.free_count.saturating_sub(1);
        }
    }

    fn put(&mut self, ip: IpAddr) {
        let offers = self.pool.offers(ip);
        let part = &mut self.parts[slot(Family::of(ip))];
        if offers && !part.free.contains(bits(ip)) {
            part.free.insert(bits(ip));
            part.free_count = part.free_count.saturating_add(1);
        }
    }

    /// The lowest free address of `family`. Addresses that the pool keeps back leave the free
    /// runs for good when met, so that each is met once.
    pub(super) fn lowest(&mut self, family: Family) -> Found {
        let avoid = self.pool.avoid_buggy_ips;
        let part = &mut self.parts[slot(family)];
        if !part.exists {
            return Found::NoFamily;
        }
        while let Some(ip) = part.free.first().and_then(|b| address(family, b)) {
            if !(avoid && is_buggy(ip)) {
                return Found::Address(ip);
            }
            part.free.remove(bits(ip));
        }
        Found::Full {
            reuse_delay: self.pool.reuse_delay,
        }
    }
}

/// How many numbers of `start..=end` end in .0 or .255 as IPv4 addresses.
fn buggy_in(start: u128, end: u128) -> u128 {
    // Up to and including n: n/256 + 1 that end in .0, (n+1)/256 that end in .255.
    let upto = |n: u128| n / 256 + 1 + (n + 1) / 256;
    upto(end) - start.checked_sub(1).map_or(0, upto)
}

fn pools_at(segments: &[BTreeMap<u128, Segment>; 2], ip: IpAddr) -> &[usize] {
    segments[slot(Family::of(ip))]
        .range(..=bits(ip))
        .next_back()
        .filter(|(_, segment)| bits(ip) <= segment.end)
        .map_or(&[], |(_, segment)| &segment.pools)
}

/// Cuts the ranges of `pools` (sorted, best first) into disjoint segments.
fn segments(pools: &[Pool], family: Family) -> BTreeMap<u128, Segment> {
    // Where each pool begins and (one after) ends to cover, with its overlaps removed.
    let mut edges: BTreeMap<u128, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    let mut to_the_end = Vec::new();
    for (index, pool) in pools.iter().enumerate() {
        let mut covered = IntervalSet::new();
        for range in &pool.ranges {
            if Family::of(range.start) == family {
                covered.insert_range(bits(range.start), bits(range.end));
            }
        }
        for (start, end) in covered.runs() {
            edges.entry(start).or_default().0.push(index);
            match end.checked_add(1) {
                Some(after) => edges.entry(after).or_default().1.push(index),
                None => to_the_end.push(index),
            }
        }
    }
    let mut segments = BTreeMap::new();
    let mut active: BTreeSet<usize> = BTreeSet::new();
    let mut from = 0u128;
    for (at, (begin, end)) in edges {
        if !active.is_empty() {
            let pools = active.iter().copied().collect();
            segments.insert(from, Segment { end: at - 1, pools });
        }
        for index in end {
            active.remove(&index);
        }
        active.extend(begin);
        from = at;
    }
    debug_assert!(active.iter().eq(to_the_end.iter().collect::<BTreeSet<_>>()));
    if !active.is_empty() {
        let pools = active.into_iter().collect();
        segments.insert(
            from,
            Segment {
                end: u128::MAX,
                pools,
            },
        );
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_buggy_addresses_agrees_with_looking_at_each() {
        for (start, end) in [
            (0u128, 0),
            (0, 255),
            (1, 254),
            (255, 256),
            (5, 1030),
            (256, 511),
            (510, 513),
        ] {
            let slow = (start..=end).filter(|n| matches!(n % 256, 0 | 255)).count();
            assert_eq!(buggy_in(start, end), slow as u128, "{start}..={end}");
        }
    }
}
