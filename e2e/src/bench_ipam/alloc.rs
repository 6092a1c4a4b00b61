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

/// Allocations a second in the slowest of three states: an empty /24, a nearly full /24, and a
/// /64 of which 1,000,000 addresses are used in 10,000 runs.
pub(super) fn measure() -> f64 {
    let rates = [
        ("empty /24", Family::V4, book("192.0.2.0/24", &[])),
        (
            "/24 with 250 used",
            Family::V4,
            book(
                "192.0.2.0/24",
                &(0..250)
                    .map(|n| IpAddr::from([192, 0, 2, n]))
                    .collect::<Vec<_>>(),
            ),
        ),
        (
            "/64 with 1,000,000 used",
            Family::V6,
            book("2001:db8::/64", &fragments()),
        ),
    ]
    .map(|(name, family, mut book)| {
        let rate = rate(&mut book, family);
        println!("{name}: {rate:.0} allocations/s");
        rate
    });
    rates.into_iter().fold(f64::MAX, f64::min)
}

/// 10,000 runs of 100 addresses, with 100 free ones after each.
fn fragments() -> Vec<IpAddr> {
    let base = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0));
    (0..10_000u128)
        .flat_map(|run| (0..100).map(move |n| IpAddr::V6((base + run * 200 + n).into())))
        .collect()
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

/// Only giving is timed, not taking back.
fn rate(book: &mut Allocator, family: Family) -> f64 {
    let keys: Vec<ServiceKey> = (0..SERVICES)
        .map(|n| ServiceKey::new("default", format!("new-{n}")))
        .collect();
    let (claim, labels, families) = (claim(), BTreeMap::new(), [family]);
    let now = Duration::from_secs(1);
    let (mut spent, mut given) = (Duration::ZERO, 0u32);
    while spent < FOR {
        // Enough rounds that the clock is not what is measured.
        for _ in 0..1000 {
            let start = Instant::now();
            for key in &keys {
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
                    before: &[],
                };
                let settlement = book.settle(&request, now);
                for pick in &settlement.take {
                    book.claim(pick.address, key, claim.clone());
                    given += 1;
                }
            }
            spent += start.elapsed();
            for key in &keys {
                let held: Vec<IpAddr> = book.held_by(key).collect();
                assert_eq!(held.len(), 1, "each got one");
                for ip in held {
                    book.release(ip, key, now);
                }
            }
        }
    }
    f64::from(given) / spent.as_secs_f64()
}
