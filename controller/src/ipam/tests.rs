//! The allocator against tables and against a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{AllocationReason, Protocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proptest::prelude::*;

use super::*;

type Labels = BTreeMap<String, String>;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels(key, value)),
        match_expressions: None,
    }
}

fn pool(name: &str, ranges: &[&str]) -> Pool {
    Pool {
        name: name.to_owned(),
        ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        reuse_delay: Duration::ZERO,
        scope: Scope::default(),
    }
}

/// A Service, built up by what a test cares about.
#[derive(Clone)]
struct Ask {
    key: ServiceKey,
    namespace_labels: Labels,
    service_labels: Labels,
    claim: Claim,
    families: Vec<Family>,
    require_both: bool,
    addresses: Vec<IpAddr>,
    pools: Vec<String>,
    before: Vec<IpAddr>,
}

fn ask(name: &str) -> Ask {
    let claim = Claim {
        ports: [(Protocol::Tcp, 80)].into(),
        sharing_key: None,
        backend: Backend::Cluster,
    };
    Ask {
        key: ServiceKey::new("default", name),
        namespace_labels: Labels::new(),
        service_labels: Labels::new(),
        claim,
        families: vec![Family::V4],
        require_both: false,
        addresses: vec![],
        pools: vec![],
        before: vec![],
    }
}

impl Ask {
    fn dual(mut self) -> Self {
        self.families = vec![Family::V4, Family::V6];
        self
    }
    fn both(mut self) -> Self {
        self.require_both = true;
        self.dual()
    }
    fn address(mut self, text: &str) -> Self {
        self.addresses.push(ip(text));
        self
    }
    fn pool(mut self, name: &str) -> Self {
        self.pools.push(name.to_owned());
        self
    }
    fn shares(mut self, key: &str, port: u16) -> Self {
        self.claim.sharing_key = Some(key.to_owned());
        self.claim.ports = [(Protocol::Tcp, port)].into();
        self
    }
    fn namespace(mut self, namespace: &str) -> Self {
        self.key.namespace = namespace.to_owned();
        self
    }

    fn request(&self) -> Request<'_> {
        Request {
            service: &self.key,
            namespace_labels: Some(&self.namespace_labels),
            service_labels: &self.service_labels,
            claim: &self.claim,
            families: &self.families,
            require_both: self.require_both,
            addresses: &self.addresses,
            unreadable: None,
            pools: &self.pools,
            before: &self.before,
        }
    }
}

/// Settles and enters the decision into the book, then checks that a second pass changes nothing.
fn run(book: &mut Allocator, ask: &Ask, now: Duration) -> Settlement {
    let settlement = book.settle(&ask.request(), now);
    for pick in &settlement.take {
        book.claim(pick.address, &ask.key, ask.claim.clone());
    }
    for kept in &settlement.keep {
        book.claim(*kept, &ask.key, ask.claim.clone());
    }
    for gone in &settlement.give_up {
        book.release(*gone, &ask.key, now);
    }
    let again = book.settle(&ask.request(), now);
    assert!(
        again.take.is_empty() && again.give_up.is_empty(),
        "second pass: {again:?}"
    );
    assert_eq!(again.refusal, settlement.refusal, "second pass");
    settlement
}

fn has(book: &Allocator, ask: &Ask) -> Vec<String> {
    book.held_by(&ask.key).map(|ip| ip.to_string()).collect()
}

fn reason(settlement: &Settlement) -> Option<AllocationReason> {
    settlement.refusal.as_ref().map(Refusal::reason)
}

const T0: Duration = Duration::from_secs(1000);

#[test]
fn the_lowest_free_address_of_the_best_pool_wins() {
    let mut fenced = pool("z-tenant", &["192.0.2.40"]);
    fenced.scope.namespaces.insert("default".into());
    let mut first = pool("m-first", &["192.0.2.31"]);
    first.scope.priority = 1;
    let mut second = pool("a-second", &["192.0.2.30"]);
    second.scope.priority = 2;
    let mut manual = pool("a-manual", &["192.0.2.1"]);
    manual.auto_assign = false;
    let open_b = pool("b", &["192.0.2.12-192.0.2.13"]);
    let open_a = pool("a", &["192.0.2.21", "192.0.2.20"]);

    let mut book = Allocator::new();
    book.set_pools(vec![open_b, second, manual, fenced, open_a, first]);
    let got: Vec<String> = (0..8)
        .flat_map(|n| {
            let ask = ask(&format!("s{n}"));
            run(&mut book, &ask, T0);
            has(&book, &ask)
        })
        .collect();
    let expected = [31, 30, 40, 20, 21, 12, 13].map(|n| format!("192.0.2.{n}"));
    assert_eq!(got, expected);
}

#[test]
fn what_a_service_asks_for_and_what_it_gets() {
    use AllocationReason as R;
    let mut tenant = pool("tenant", &["198.51.100.0/28", "2001:db8:1::/64"]);
    tenant.scope.namespace_selectors.push(selector("team", "x"));
    let mut manual = pool("manual", &["203.0.113.0/24"]);
    manual.auto_assign = false;
    manual.avoid_buggy_ips = true;
    let mut web_only = pool("web", &["203.0.114.8/29"]);
    web_only
        .scope
        .service_selectors
        .push(selector("app", "web"));
    let six = pool("six", &["2001:db8:6::/64"]);
    let four = pool("four", &["192.0.2.0/30"]);

    let mut book = Allocator::new();
    book.set_pools(vec![tenant, manual, web_only, six, four]);
    let occupant = ask("occupant").address("192.0.2.2");
    run(&mut book, &occupant, T0);

    let mut team_x = ask("x");
    team_x.namespace_labels = labels("team", "x");
    let mut web = ask("web");
    web.service_labels = labels("app", "web");
    let rows: Vec<(Ask, &[&str], Option<R>)> = vec![
        (ask("plain"), &["192.0.2.0"], None),
        (ask("dual").dual(), &["192.0.2.0", "2001:db8:6::"], None),
        (ask("both").both(), &["192.0.2.0", "2001:db8:6::"], None),
        (team_x.clone(), &["198.51.100.0"], None),
        (
            team_x.clone().dual(),
            &["198.51.100.0", "2001:db8:1::"],
            None,
        ),
        (web, &["203.0.114.8"], None),
        (ask("by-pool").pool("manual"), &["203.0.113.1"], None),
        (
            ask("by-address").address("203.0.113.7"),
            &["203.0.113.7"],
            None,
        ),
        (
            ask("pool-and-address")
                .pool("manual")
                .address("203.0.113.7"),
            &["203.0.113.7"],
            None,
        ),
        (
            ask("one-pinned").dual().address("2001:db8:6::9"),
            &["192.0.2.0", "2001:db8:6::9"],
            None,
        ),
        (
            ask("two-pools").dual().pool("four").pool("six"),
            &["192.0.2.0", "2001:db8:6::"],
            None,
        ),
        (ask("no-such-pool").pool("nope"), &[], Some(R::PoolNotFound)),
        (
            ask("fenced-pool").pool("tenant"),
            &[],
            Some(R::PoolNotForService),
        ),
        (
            ask("fenced-address").address("198.51.100.3"),
            &[],
            Some(R::PoolNotForService),
        ),
        (
            ask("not-web").address("203.0.114.9"),
            &[],
            Some(R::PoolNotForService),
        ),
        (
            ask("outside").address("10.0.0.1"),
            &[],
            Some(R::AddressNotInPool),
        ),
        (
            ask("other-pool").pool("four").address("203.0.113.7"),
            &[],
            Some(R::AddressNotInPool),
        ),
        (
            ask("buggy").address("203.0.113.255"),
            &[],
            Some(R::AddressBuggy),
        ),
        (
            ask("taken").address("192.0.2.2"),
            &[],
            Some(R::AddressInUse),
        ),
        (
            ask("taken-share").shares("k", 80).address("192.0.2.2"),
            &[],
            Some(R::SharingConflict),
        ),
        (
            ask("family").address("2001:db8:6::9"),
            &[],
            Some(R::FamilyMismatch),
        ),
        (
            ask("two").address("192.0.2.1").address("192.0.2.3"),
            &[],
            Some(R::AddressInvalid),
        ),
        (
            ask("no-v6").dual().pool("four"),
            &["192.0.2.0"],
            Some(R::FamilyUnavailable),
        ),
        (
            ask("no-v6-both").both().pool("four"),
            &[],
            Some(R::FamilyUnavailable),
        ),
    ];
    for (ask, expected, why) in rows {
        let mut book = book.clone();
        let settlement = run(&mut book, &ask, T0);
        assert_eq!(has(&book, &ask), expected, "{}", ask.key);
        assert_eq!(
            reason(&settlement),
            why,
            "{}: {:?}",
            ask.key,
            settlement.refusal
        );
        if let Some(refusal) = settlement.refusal {
            let text = refusal.to_string();
            assert!(text.len() > 20 && text.len() < 1024, "{text}");
        }
    }
}

#[test]
fn both_families_are_required_only_of_a_service_that_has_both() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("p", &["192.0.2.0/30", "2001:db8::/126"])]);
    let mut single = ask("single");
    single.require_both = true;
    let settlement = run(&mut book, &single, T0);
    assert_eq!(settlement.refusal, Some(Refusal::NeedsBothFamilies));
    // Prefer on a single-stack Service: one family, and it stays one.
    let prefers = ask("prefers");
    assert_eq!(run(&mut book, &prefers, T0).refusal, None);
    assert_eq!(has(&book, &prefers), ["192.0.2.0"]);
}

#[test]
fn without_a_usable_pool_the_reason_says_which_kind_of_pool_is_missing() {
    let mut book = Allocator::new();
    let web = ask("web");
    assert_eq!(
        reason(&run(&mut book, &web, T0)),
        Some(AllocationReason::NoPool)
    );
    let mut manual = pool("manual", &["192.0.2.1"]);
    manual.auto_assign = false;
    book.set_pools(vec![manual.clone()]);
    assert_eq!(
        reason(&run(&mut book, &web, T0)),
        Some(AllocationReason::NoPool)
    );
    let tiny = pool("tiny", &["192.0.2.9"]);
    book.set_pools(vec![manual, tiny]);
    run(&mut book, &ask("first"), T0);
    let settlement = run(&mut book, &web, T0);
    assert_eq!(reason(&settlement), Some(AllocationReason::PoolExhausted));
    assert_eq!(
        settlement.refusal.unwrap().to_string(),
        "no pool has an IPv4 address for this service: manual has autoAssign: false and must be \
         asked for; tiny has no free address"
    );
}

#[test]
fn a_held_address_moves_only_when_its_service_asks() {
    let mut book = Allocator::new();
    let (a, b) = (
        pool("a", &["192.0.2.0/30"]),
        pool("b", &["198.51.100.0/30"]),
    );
    book.set_pools(vec![a.clone(), b.clone()]);
    let web = ask("web");
    run(&mut book, &web, T0);
    let current = |book: &Allocator| has(book, &web);
    assert_eq!(current(&book), ["192.0.2.0"]);

    // The pool shrinks, is fenced, or goes: nothing moves.
    book.set_pools(vec![pool("a", &["192.0.2.3"]), b.clone()]);
    assert!(run(&mut book, &web, T0).is_settled());
    let mut fenced = a.clone();
    fenced.scope.namespaces.insert("other".into());
    book.set_pools(vec![fenced, b.clone()]);
    assert!(run(&mut book, &web, T0).is_settled());
    book.set_pools(vec![b.clone()]);
    assert!(run(&mut book, &web, T0).is_settled());
    book.set_pools(vec![a, b]);

    // It asks for what cannot be had: nothing moves, and the reason is told.
    for (wish, why) in [
        (web.clone().pool("none"), AllocationReason::PoolNotFound),
        (
            web.clone().address("10.0.0.1"),
            AllocationReason::AddressNotInPool,
        ),
        (
            web.clone().pool("b").address("192.0.2.1"),
            AllocationReason::AddressNotInPool,
        ),
    ] {
        let settlement = run(&mut book, &wish, T0);
        assert_eq!(reason(&settlement), Some(why));
        assert_eq!(current(&book), ["192.0.2.0"]);
    }
    // It asks for what can be had: it moves.
    run(&mut book, &web.clone().pool("b"), T0);
    assert_eq!(current(&book), ["198.51.100.0"]);
    run(&mut book, &web.clone().address("192.0.2.2"), T0);
    assert_eq!(current(&book), ["192.0.2.2"]);
    // The wish is withdrawn: it stays.
    assert!(run(&mut book, &web, T0).is_settled());
    // Families come and go.
    book.set_pools(vec![
        pool("a", &["192.0.2.0/30"]),
        pool("six", &["2001:db8::/64"]),
    ]);
    run(&mut book, &web.clone().dual(), T0);
    assert_eq!(current(&book), ["192.0.2.2", "2001:db8::"]);
    run(&mut book, &web, T0);
    assert_eq!(current(&book), ["192.0.2.2"]);
}

#[test]
fn a_service_that_cannot_have_its_second_family_any_more_keeps_its_first() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("four", &["192.0.2.0/30"])]);
    run(&mut book, &ask("web"), T0);
    let both = ask("web").both();
    let settlement = run(&mut book, &both, T0);
    assert_eq!(
        reason(&settlement),
        Some(AllocationReason::FamilyUnavailable)
    );
    assert_eq!(has(&book, &both), ["192.0.2.0"]);
}

#[test]
fn sharers_join_the_shared_address_even_when_a_lower_one_is_free() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("p", &["192.0.2.0/29"])]);
    run(&mut book, &ask("low"), T0);
    let tcp = ask("tcp").shares("dns", 53);
    run(&mut book, &tcp, T0);
    assert_eq!(has(&book, &tcp), ["192.0.2.1"]);
    book.release(ip("192.0.2.0"), &ask("low").key, T0);
    let udp = ask("udp").shares("dns", 54);
    run(&mut book, &udp, T0);
    assert_eq!(has(&book, &udp), ["192.0.2.1"]);
    // The same port, another key, another namespace: an address of their own.
    for (other, expected) in [
        (ask("same-port").shares("dns", 53), "192.0.2.0"),
        (ask("other-key").shares("web", 80), "192.0.2.2"),
        (
            ask("foreign").shares("dns", 99).namespace("elsewhere"),
            "192.0.2.3",
        ),
    ] {
        run(&mut book, &other, T0);
        assert_eq!(has(&book, &other), [expected], "{}", other.key);
    }
}

#[test]
fn a_sharer_that_takes_a_port_of_another_moves_away() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("p", &["192.0.2.0/29"])]);
    let (one, two) = (ask("one").shares("k", 80), ask("two").shares("k", 81));
    run(&mut book, &one, T0);
    run(&mut book, &two, T0);
    assert_eq!(has(&book, &two), ["192.0.2.0"]);
    let changed = ask("two").shares("k", 80);
    run(&mut book, &changed, T0);
    assert_eq!(has(&book, &two), ["192.0.2.1"]);
    // Alone on its address, it changes ports and key as it likes.
    assert!(run(&mut book, &ask("two").shares("l", 443), T0).is_settled());
    // Bound to an address that it may not share, it has none rather than one unlawfully.
    let bound = ask("three").shares("k", 81).address("192.0.2.0");
    run(&mut book, &bound, T0);
    let clash = ask("three").shares("k", 80).address("192.0.2.0");
    assert_eq!(
        reason(&run(&mut book, &clash, T0)),
        Some(AllocationReason::SharingConflict)
    );
    assert!(has(&book, &clash).is_empty());
}

#[test]
fn a_released_address_rests_for_everyone_but_its_last_holder() {
    let mut book = Allocator::new();
    let mut p = pool("p", &["192.0.2.0/30"]);
    p.reuse_delay = Duration::from_secs(60);
    book.set_pools(vec![p.clone()]);
    let (old, new) = (ask("old"), ask("new"));
    run(&mut book, &old, T0);
    book.release(ip("192.0.2.0"), &old.key, T0);
    assert_eq!(book.next_rest_end(), Some(T0 + Duration::from_secs(60)));
    assert_eq!(
        book.usage("p", Family::V4),
        Some(Usage {
            assigned: 0,
            available: 3
        })
    );
    // A pool edit does not end the rest.
    book.set_pools(vec![p]);
    let just_before = T0 + Duration::from_secs(59);
    run(&mut book, &new, just_before);
    assert_eq!(has(&book, &new), ["192.0.2.1"]);
    let wish = ask("wish").address("192.0.2.0");
    assert_eq!(
        reason(&run(&mut book, &wish, just_before)),
        Some(AllocationReason::AddressResting)
    );
    let mut again = book.clone();
    run(&mut again, &old, just_before);
    assert_eq!(
        has(&again, &old),
        ["192.0.2.0"],
        "its last holder has it back at once"
    );
    run(&mut book, &wish, T0 + Duration::from_secs(60));
    assert_eq!(has(&book, &wish), ["192.0.2.0"]);
}

#[test]
fn a_recorded_address_is_reserved() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("p", &["192.0.2.0/30"])]);
    // Reserved for whoever names it, and for one Service that is not there yet.
    book.record(ip("192.0.2.0"));
    let awaited = ask("awaited");
    book.record(ip("192.0.2.1"));
    book.claim(ip("192.0.2.1"), &awaited.key, Claim::default());
    let passer_by = ask("passer-by");
    run(&mut book, &passer_by, T0);
    assert_eq!(has(&book, &passer_by), ["192.0.2.2"]);
    let thief = ask("thief").address("192.0.2.1");
    assert_eq!(
        reason(&run(&mut book, &thief, T0)),
        Some(AllocationReason::AddressReserved)
    );
    run(&mut book, &awaited, T0);
    assert_eq!(has(&book, &awaited), ["192.0.2.1"]);
    let by_name = ask("by-name").address("192.0.2.0");
    run(&mut book, &by_name, T0);
    assert_eq!(has(&book, &by_name), ["192.0.2.0"]);
    // Released, it stays recorded, and free only when the record goes.
    book.release(ip("192.0.2.0"), &by_name.key, T0);
    assert_eq!(
        book.usage("p", Family::V4),
        Some(Usage {
            assigned: 3,
            available: 1
        })
    );
    book.unrecord(ip("192.0.2.0"), T0);
    assert_eq!(
        book.usage("p", Family::V4),
        Some(Usage {
            assigned: 2,
            available: 2
        })
    );
}

#[test]
fn what_a_service_had_before_it_gets_again_if_it_would_get_it_today() {
    let mut book = Allocator::new();
    let mut manual = pool("manual", &["203.0.113.0/30"]);
    manual.auto_assign = false;
    book.set_pools(vec![pool("p", &["192.0.2.0/29"]), manual]);
    let mut web = ask("web");
    web.before = vec![ip("192.0.2.5")];
    run(&mut book, &web, T0);
    assert_eq!(has(&book, &web), ["192.0.2.5"]);
    // A status is no way into a pool that must be asked for, nor onto somebody's address.
    for (name, before, expected) in [
        ("a", "203.0.113.1", "192.0.2.0"),
        ("b", "192.0.2.5", "192.0.2.1"),
    ] {
        let mut sly = ask(name);
        sly.before = vec![ip(before)];
        run(&mut book, &sly, T0);
        assert_eq!(has(&book, &sly), [expected]);
    }
}

#[test]
fn overlapping_pools_never_give_an_address_twice() {
    let mut book = Allocator::new();
    book.set_pools(vec![
        pool("a", &["192.0.2.0-192.0.2.2"]),
        pool("b", &["192.0.2.1-192.0.2.3", "192.0.2.2-192.0.2.3"]),
    ]);
    let got: BTreeSet<String> = (0..6)
        .flat_map(|n| {
            let ask = ask(&format!("s{n}"));
            run(&mut book, &ask, T0);
            has(&book, &ask)
        })
        .collect();
    assert_eq!(got.len(), 4);
    assert_eq!(
        book.usage("a", Family::V4),
        Some(Usage {
            assigned: 3,
            available: 0
        })
    );
    assert_eq!(
        book.usage("b", Family::V4),
        Some(Usage {
            assigned: 3,
            available: 0
        })
    );
}

#[test]
fn the_largest_pools_are_counted_without_overflow() {
    let mut book = Allocator::new();
    let mut all4 = pool("all4", &["0.0.0.0/0"]);
    all4.avoid_buggy_ips = true;
    book.set_pools(vec![pool("all6", &["::/0"]), all4]);
    assert_eq!(book.usage("all6", Family::V6).unwrap().available, u128::MAX);
    assert_eq!(
        book.usage("all4", Family::V4).unwrap().available,
        (1 << 32) - (1 << 25)
    );
    let mut six = ask("six");
    six.families = vec![Family::V6];
    run(&mut book, &six, T0);
    assert_eq!(has(&book, &six), ["::"]);
    run(&mut book, &ask("four"), T0);
    assert_eq!(has(&book, &ask("four")), ["0.0.0.1"]);
}

/// The rules of automatic allocation, written the slow way.
fn naive_pick(
    pools: &[Pool],
    busy: &BTreeSet<IpAddr>,
    ask: &Ask,
    family: Family,
) -> Option<IpAddr> {
    let mut ranked: Vec<&Pool> = pools.iter().collect();
    ranked.sort_by_key(|p| p.rank());
    ranked
        .into_iter()
        .filter(|p| p.auto_assign)
        .filter(|p| {
            p.scope.namespaces.is_empty() || p.scope.namespaces.contains(&ask.key.namespace)
        })
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

fn expand(range: &bellrock_api::AddressRange) -> Vec<IpAddr> {
    let family = Family::of(range.start);
    (super::pool::bits(range.start)..=super::pool::bits(range.end))
        .filter_map(|b| super::pool::address(family, b))
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
                    if fresh && !left && ask.addresses.is_empty() && ask.claim.sharing_key.is_none() {
                        let busy: BTreeSet<IpAddr> = asks
                            .keys()
                            .flat_map(|k| book.held_by(k).collect::<Vec<_>>())
                            .chain(rests.iter().filter(|(_, (end, _))| *end > now).map(|(ip, _)| *ip))
                            .collect();
                        let mut expected: Vec<IpAddr> = ask
                            .families
                            .iter()
                            .filter_map(|f| naive_pick(&pools, &busy, &ask, *f))
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
            let holders: BTreeMap<IpAddr, Vec<(&ServiceKey, &Claim)>> = {
                let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for key in asks.keys() {
                    for ip in book.held_by(key) {
                        map.entry(ip).or_default().push((key, &book.holding(ip).unwrap().claims[key]));
                    }
                }
                map
            };
            for (ip, claims) in &holders {
                for (i, a) in claims.iter().enumerate() {
                    for b in &claims[i + 1..] {
                        prop_assert_eq!(may_share(*a, *b), Ok(()), "{}", ip);
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
