//! Histories by chance, against the rules written the slow way.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The rules of automatic allocation, written the slow way.
fn naive_pick(
    pools: &[Pool],
    busy: &BTreeSet<IpAddr>,
    ask: &Ask,
    family: Family,
) -> Option<IpAddr> {
    let mut ranked: Vec<&Pool> = pools.iter().collect();
    // The lowest number first and none last; pools for some before pools for all.
    ranked.sort_by(|a, b| {
        let number = |p: &Pool| (p.scope.priority == 0, p.scope.priority);
        let for_all = |p: &Pool| p.scope.namespaces.is_empty();
        number(a)
            .cmp(&number(b))
            .then(for_all(a).cmp(&for_all(b)))
            .then(a.name.cmp(&b.name))
    });
    ranked
        .into_iter()
        .filter(|p| naive_serves(p, ask))
        .find_map(|p| {
            let mut candidates: Vec<IpAddr> = p.ranges.iter().flat_map(expand).collect();
            candidates.sort();
            candidates.into_iter().find(|ip| {
                Family::of(*ip) == family
                    && !busy.contains(ip)
                    && !(p.avoid_buggy_ips
                        && matches!(ip, IpAddr::V4(v) if matches!(v.octets()[3], 0 | 255)))
            })
        })
}

fn naive_serves(pool: &Pool, ask: &Ask) -> bool {
    let namespaces = &pool.scope.namespaces;
    pool.auto_assign && (namespaces.is_empty() || namespaces.contains(&ask.key.namespace))
}

/// Who may hold one address, the slow way; all here are `Cluster`.
fn naive_may_share(a: &Ask, b: &Ask) -> bool {
    let key = &a.claim.sharing_key;
    key.is_some()
        && *key == b.claim.sharing_key
        && a.key.namespace == b.key.namespace
        && a.claim
            .ports
            .iter()
            .all(|port| !b.claim.ports.contains(port))
}

/// The lowest address of `family` that the Service may share.
fn naive_join(
    pools: &[Pool],
    holders: &BTreeMap<IpAddr, Vec<Ask>>,
    ask: &Ask,
    family: Family,
) -> Option<IpAddr> {
    let mut all = holders.iter();
    let found = all.find(|(ip, holders)| {
        Family::of(**ip) == family
            && holders.iter().all(|other| naive_may_share(ask, other))
            && pools
                .iter()
                .any(|p| p.contains(**ip) && p.offers(**ip) && naive_serves(p, ask))
    });
    found.map(|(ip, _)| *ip)
}

fn expand(range: &bellrock_api::AddressRange) -> Vec<IpAddr> {
    let family = Family::of(range.start);
    (crate::ipam::pool::bits(range.start)..=crate::ipam::pool::bits(range.end))
        .filter_map(|b| crate::ipam::pool::address(family, b))
        .collect()
}

#[derive(Debug, Clone)]
enum Op {
    /// Service, dual stack, both required.
    Ask(u8, bool, bool),
    /// Service, sharing key, port.
    Share(u8, u8, u16),
    /// Service, address.
    Name(u8, u8),
    Release(u8),
    Wait(u8),
    /// Pools are set again: nothing may change.
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..24, any::<bool>(), any::<bool>()).prop_map(|(s, d, r)| Op::Ask(s, d, r && d)),
        2 => (0u8..24, 0u8..3, 80u16..84).prop_map(|(s, k, p)| Op::Share(s, k, p)),
        2 => (0u8..24, 0u8..40).prop_map(|(s, a)| Op::Name(s, a)),
        3 => (0u8..24).prop_map(Op::Release),
        1 => (1u8..20).prop_map(Op::Wait),
        1 => Just(Op::Reload),
    ]
}

fn pools() -> impl Strategy<Value = Vec<Pool>> {
    let one = (
        0u8..40,
        0u8..12,
        0u32..3,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0u8..3,
    );
    prop::collection::vec(one, 1..5).prop_map(|pools| {
        let mut all = Vec::new();
        for (index, (start, len, priority, auto, buggy, fenced, delay)) in
            pools.into_iter().enumerate()
        {
            let v4 = format!("192.0.2.{start}-192.0.2.{}", start + len);
            let v6 = format!("2001:db8::{start:x}-2001:db8::{:x}", start + len / 2);
            let ranges: Vec<&str> = if len % 3 == 0 {
                vec![&v4]
            } else {
                vec![&v4, &v6]
            };
            let mut p = pool(&format!("p{index}"), &ranges);
            p.auto_assign = auto;
            p.avoid_buggy_ips = buggy;
            p.scope.priority = priority;
            if fenced {
                p.scope.namespaces.insert("n0".into());
            }
            p.reuse_delay = Duration::from_secs(u64::from(delay) * 5);
            all.push(p);
        }
        all
    })
}

fn service(n: u8) -> Ask {
    ask(&format!("s{n}")).namespace(&format!("n{}", n % 2))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn agrees_with_the_naive_model(pools in pools(), ops in prop::collection::vec(op(), 1..80)) {
        let mut book = Allocator::new();
        book.set_pools(pools.clone());
        let mut now = T0;
        // Addresses at rest, by the naive model: when the rest ends.
        let mut rests: BTreeMap<IpAddr, (Duration, ServiceKey)> = BTreeMap::new();
        let mut asks: BTreeMap<ServiceKey, Ask> = BTreeMap::new();
        for op in ops {
            let before: BTreeMap<ServiceKey, Vec<IpAddr>> =
                asks.keys().map(|k| (k.clone(), book.held_by(k).collect())).collect();
            let mut touched = None;
            match op {
                Op::Wait(s) => now += Duration::from_secs(u64::from(s)),
                Op::Reload => book.set_pools(pools.clone()),
                Op::Release(n) => {
                    let key = service(n).key;
                    let held: Vec<IpAddr> = book.held_by(&key).collect();
                    for ip in held {
                        book.release(ip, &key, now);
                    }
                    asks.remove(&key);
                    touched = Some(key);
                }
                Op::Ask(..) | Op::Share(..) | Op::Name(..) => {
                    let ask = match op {
                        Op::Ask(n, false, _) => service(n),
                        Op::Ask(n, true, false) => service(n).dual(),
                        Op::Ask(n, true, true) => service(n).both(),
                        Op::Share(n, key, port) => service(n).shares(&format!("k{key}"), port),
                        Op::Name(n, a) => service(n).address(&format!("192.0.2.{a}")),
                        Op::Release(_) | Op::Wait(_) | Op::Reload => unreachable!(),
                    };
                    let fresh = book.held_by(&ask.key).next().is_none();
                    let left = rests.values().any(|(end, key)| *end > now && key == &ask.key);
                    if fresh && !left && ask.addresses.is_empty() {
                        let busy: BTreeSet<IpAddr> = asks
                            .keys()
                            .flat_map(|k| book.held_by(k).collect::<Vec<_>>())
                            .chain(rests.iter().filter(|(_, (end, _))| *end > now).map(|(ip, _)| *ip))
                            .collect();
                        let mut holders: BTreeMap<IpAddr, Vec<Ask>> = BTreeMap::new();
                        for (key, ask) in &asks {
                            for ip in book.held_by(key) {
                                holders.entry(ip).or_default().push(ask.clone());
                            }
                        }
                        let mut expected: Vec<IpAddr> = ask
                            .families
                            .iter()
                            .filter_map(|f| {
                                naive_join(&pools, &holders, &ask, *f)
                                    .or_else(|| naive_pick(&pools, &busy, &ask, *f))
                            })
                            .collect();
                        if ask.require_both && expected.len() < 2 {
                            expected.clear();
                        }
                        run(&mut book, &ask, now);
                        prop_assert_eq!(book.held_by(&ask.key).collect::<Vec<_>>(), expected);
                    } else {
                        let settlement = run(&mut book, &ask, now);
                        for pick in &settlement.take {
                            let p = pools.iter().find(|p| p.name == pick.pool).unwrap();
                            prop_assert!(p.contains(pick.address) && p.offers(pick.address));
                            prop_assert!(
                                p.scope.namespaces.is_empty()
                                    || p.scope.namespaces.contains(&ask.key.namespace)
                            );
                            if let Some((end, last)) = rests.get(&pick.address) {
                                prop_assert!(*end <= now || *last == ask.key);
                            }
                        }
                    }
                    touched = Some(ask.key.clone());
                    asks.insert(ask.key.clone(), ask);
                }
            }
            // Nobody but the Service concerned is affected.
            for (key, held) in &before {
                if Some(key) != touched.as_ref() {
                    prop_assert_eq!(&book.held_by(key).collect::<Vec<_>>(), held);
                }
            }
            // Rests, the slow way.
            rests.retain(|ip, _| asks.keys().all(|k| book.held_by(k).all(|held| held != *ip)));
            for (key, held) in &before {
                for ip in held {
                    let free = asks.keys().all(|k| book.held_by(k).all(|h| h != *ip));
                    if free {
                        let delay = pools
                            .iter()
                            .filter(|p| p.contains(*ip))
                            .map(|p| p.reuse_delay)
                            .max()
                            .unwrap_or_default();
                        rests.insert(*ip, (now + delay, key.clone()));
                    }
                }
            }
            // No address is held unlawfully, and the counters agree with counting.
            let mut holders: BTreeMap<IpAddr, Vec<&Ask>> = BTreeMap::new();
            for (key, ask) in &asks {
                for ip in book.held_by(key) {
                    holders.entry(ip).or_default().push(ask);
                }
            }
            for (ip, asks) in &holders {
                for (i, a) in asks.iter().enumerate() {
                    for b in &asks[i + 1..] {
                        prop_assert!(naive_may_share(a, b), "{}", ip);
                    }
                }
            }
            for p in &pools {
                let held = holders.keys().filter(|ip| p.contains(**ip) && ip.is_ipv4()).count();
                let usage = book.usage(&p.name, Family::V4).unwrap();
                prop_assert_eq!(usage.assigned, held as u128);
                let all: BTreeSet<IpAddr> =
                    p.ranges.iter().flat_map(expand).filter(|ip| ip.is_ipv4() && p.offers(*ip)).collect();
                let free = all
                    .iter()
                    .filter(|ip| !holders.contains_key(*ip) && book.rest(**ip).is_none())
                    .count();
                prop_assert_eq!(usage.available, free as u128);
            }
        }
    }
}
