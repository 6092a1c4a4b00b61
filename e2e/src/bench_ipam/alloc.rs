//! The allocator alone, no API: how many addresses it gives in a second.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use bellrock_api::Protocol;
use bellrock_controller::ipam::{
    Allocator, Backend, Claim, Family, Pool, Request, Scope, ServiceKey,
};

/// Services that get an address and lose it again, over and over.
const SERVICES: u8 = 4;

/// How long each state of the book is measured.
const FOR: Duration = Duration::from_secs(2);

/// Runs of used addresses in the /64, as many addresses in each, and as many free ones after each.
const RUNS: u128 = 10_000;
const RUN: u128 = 100;

/// Allocations a second.
pub(super) struct Rates {
    /// In the slowest of three states where the allocator chooses the address: an empty /24, a
    /// nearly full /24, and a /64 of which 1,000,000 addresses are used in 10,000 runs.
    pub(super) slowest: f64,
    /// How many times as fast the fastest of the three is.
    pub(super) ratio: f64,
    /// In that /64, of Services that come back to the addresses that they had. The lowest free
    /// address always lies in the first gap; these lie in gaps all over.
    pub(super) scattered: f64,
}

pub(super) fn measure() -> Rates {
    let lowest = |_, _| None;
    let mut empty = book("192.0.2.0/24", &[]);
    let used: Vec<IpAddr> = (0..250).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let mut full = book("192.0.2.0/24", &used);
    let mut large = book("2001:db8::/64", &fragments());
    let told = |name: &str, rate: f64| {
        println!("{name}: {rate:.0} allocations/s");
        rate
    };
    let rates = [
        told("empty /24", rate(&mut empty, Family::V4, lowest)),
        told("/24 with 250 used", rate(&mut full, Family::V4, lowest)),
        told(
            "/64 with 1,000,000 used",
            rate(&mut large, Family::V6, lowest),
        ),
    ];
    let back = |round, service| Some(scattered(round, service));
    let slowest = rates.into_iter().fold(f64::MAX, f64::min);
    Rates {
        slowest,
        ratio: rates.into_iter().fold(0.0, f64::max) / slowest,
        scattered: told(
            "/64 with 1,000,000 used, scattered",
            rate(&mut large, Family::V6, back),
        ),
    }
}

const BASE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);

fn fragments() -> Vec<IpAddr> {
    let base = u128::from(BASE);
    (0..RUNS)
        .flat_map(|run| (0..RUN).map(move |n| IpAddr::V6((base + run * 2 * RUN + n).into())))
        .collect()
}

/// A free address: each in another gap, far from the one before, and another one for each Service.
fn scattered(round: u32, service: u8) -> IpAddr {
    let services = u128::from(SERVICES);
    let turn = u128::from(round) * services + u128::from(service);
    // A prime that does not divide the number of gaps, so that all of them have their turn.
    let gap = turn * 6_211 % RUNS;
    let place = u128::from(round) * services % RUN + u128::from(service);
    IpAddr::V6((u128::from(BASE) + gap * 2 * RUN + RUN + place).into())
}

fn book(range: &str, used: &[IpAddr]) -> Allocator {
    let mut book = Allocator::new();
    book.set_pools(vec![Pool {
        name: "main".to_owned(),
        ranges: range.parse().into_iter().collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        reuse_delay: Duration::ZERO,
        scope: Scope::default(),
    }]);
    for (n, ip) in used.iter().enumerate() {
        let key = ServiceKey::new("default", format!("used-{n}"));
        book.record(*ip);
        book.claim(*ip, &key, claim());
    }
    book
}

fn claim() -> Claim {
    Claim {
        ports: [(Protocol::Tcp, 80)].into(),
        sharing_key: None,
        backend: Backend::Cluster,
    }
}

/// Only giving is timed, not taking back. `had` is the address that a Service had before, if it is
/// to come back to one, by round and Service.
fn rate(book: &mut Allocator, family: Family, had: impl Fn(u32, u8) -> Option<IpAddr>) -> f64 {
    let keys: Vec<ServiceKey> = (0..SERVICES)
        .map(|n| ServiceKey::new("default", format!("new-{n}")))
        .collect();
    let (claim, labels, families) = (claim(), BTreeMap::new(), [family]);
    let now = Duration::from_secs(1);
    let (mut spent, mut given, mut round) = (Duration::ZERO, 0u32, 0u32);
    while spent < FOR {
        // Enough rounds that the clock is not what is measured.
        for _ in 0..1000 {
            round += 1;
            let had: Vec<Option<IpAddr>> = (0..SERVICES).map(|n| had(round, n)).collect();
            let start = Instant::now();
            for (key, had) in keys.iter().zip(&had) {
                let request = Request {
                    service: key,
                    namespace_labels: None,
                    service_labels: &labels,
                    claim: &claim,
                    families: &families,
                    require_both: false,
                    addresses: &[],
                    unreadable: None,
                    pools: &[],
                    before: had.as_slice(),
                };
                let settlement = book.settle(&request, now);
                for pick in &settlement.take {
                    book.claim(pick.address, key, claim.clone());
                    given += 1;
                }
            }
            spent += start.elapsed();
            for (key, had) in keys.iter().zip(&had) {
                let held: Vec<IpAddr> = book.held_by(key).collect();
                assert_eq!(held.len(), 1, "each got one");
                assert!(had.is_none_or(|had| held == [had]), "each got its own");
                for ip in held {
                    book.release(ip, key, now);
                }
            }
        }
    }
    f64::from(given) / spent.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scattered_addresses_are_free_ones_of_all_gaps() {
        let used: BTreeSet<IpAddr> = fragments().into_iter().collect();
        assert_eq!(used.len(), 1_000_000);
        let mut gaps = BTreeSet::new();
        for round in 0..2_500 {
            let these: BTreeSet<IpAddr> = (0..SERVICES).map(|n| scattered(round, n)).collect();
            assert_eq!(these.len(), usize::from(SERVICES));
            assert!(these.is_disjoint(&used), "{these:?}");
            gaps.extend(these.into_iter().map(|ip| match ip {
                IpAddr::V6(ip) => (u128::from(ip) - u128::from(BASE)) / (2 * RUN),
                IpAddr::V4(ip) => panic!("{ip}"),
            }));
        }
        assert_eq!(gaps.len(), 10_000);
    }
}
