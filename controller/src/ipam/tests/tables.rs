//! Case by case.

use std::collections::BTreeSet;

use super::*;

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
         asked for; tiny has no free address; add addresses to a pool, or delete services that need \
         none"
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
fn an_address_takes_as_many_sharers_and_ports_as_one_object_can_record() {
    let port = |n: usize| u16::try_from(n).unwrap();
    let small = |n: usize| ask(&format!("s{n:03}")).shares("k", port(n + 1));
    let large = |n: usize| {
        let mut ask = small(n);
        ask.claim.ports = (0..1024)
            .map(|p| (Protocol::Tcp, port(n * 1024 + p)))
            .collect();
        ask
    };
    let cases: [(usize, &dyn Fn(usize) -> Ask); 2] =
        [(MAX_CLAIMS, &small), (MAX_TERMS / 1024, &large)];
    for (fit, sharer) in cases {
        let mut book = Allocator::new();
        book.set_pools(vec![pool("p", &["192.0.2.0/30"])]);
        for n in 0..fit {
            let ask = sharer(n);
            assert!(run(&mut book, &ask, T0).refusal.is_none());
            assert_eq!(has(&book, &ask), ["192.0.2.0"], "{n}");
        }
        // One more gets a fresh one, or nothing if it is bound to the full one.
        let bound = sharer(fit).address("192.0.2.0");
        let refusal = run(&mut book, &bound, T0).refusal.unwrap();
        assert_eq!(refusal.reason(), AllocationReason::SharingConflict);
        let text = refusal.to_string();
        assert!(
            text.contains("as many services or ports as one address may have"),
            "{text}"
        );
        run(&mut book, &sharer(fit), T0);
        assert_eq!(has(&book, &sharer(fit)), ["192.0.2.1"]);
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

#[test]
fn addresses_of_nodes_are_skipped_refused_and_free_again_when_the_node_is_gone() {
    let mut book = Allocator::new();
    book.node_has(ip("192.0.2.0"), "n1");
    book.set_pools(vec![pool("p", &["192.0.2.0/30"])]);
    book.node_has(ip("192.0.2.2"), "n2");
    book.node_has(ip("192.0.2.2"), "n3");
    let available = |book: &Allocator| book.usage("p", Family::V4).unwrap().available;
    assert_eq!(available(&book), 2);
    for (name, expected) in [("a", "192.0.2.1"), ("b", "192.0.2.3")] {
        run(&mut book, &ask(name), T0);
        assert_eq!(has(&book, &ask(name)), [expected]);
    }
    let full = run(&mut book, &ask("c"), T0);
    assert_eq!(reason(&full), Some(AllocationReason::PoolExhausted));
    for (address, node) in [("192.0.2.0", "n1"), ("192.0.2.2", "n2")] {
        let by_name = run(&mut book, &ask("d").address(address), T0);
        assert_eq!(reason(&by_name), Some(AllocationReason::AddressOfNode));
        let told = by_name.refusal.unwrap().to_string();
        assert!(told.contains(&format!("node {node} ")), "{told}");
    }
    // A status that names it, as after a restore, is no way to it either.
    let mut before = ask("e");
    before.before = vec![ip("192.0.2.2")];
    assert_eq!(run(&mut book, &before, T0).take, []);
    // Two nodes said that it is theirs; both must go.
    book.node_has_not(ip("192.0.2.2"), "n2");
    assert_eq!(available(&book), 0);
    book.node_has_not(ip("192.0.2.2"), "n3");
    book.node_has_not(ip("192.0.2.2"), "n3");
    assert_eq!(available(&book), 1);
    run(&mut book, &ask("c"), T0);
    assert_eq!(has(&book, &ask("c")), ["192.0.2.2"]);
}

#[test]
fn an_address_that_a_node_came_by_is_kept_and_told_but_neither_shared_nor_given_again() {
    let mut book = Allocator::new();
    book.set_pools(vec![pool("p", &["192.0.2.0/30"])]);
    let mut web = ask("web").shares("k", 80);
    run(&mut book, &web, T0);
    web.before = vec![ip("192.0.2.0")];
    book.node_has(ip("192.0.2.0"), "n1");
    let kept = run(&mut book, &web, T0);
    assert_eq!(kept.keep, [ip("192.0.2.0")]);
    assert_eq!(reason(&kept), Some(AllocationReason::AddressOfNode));
    let other = ask("other").shares("k", 81);
    run(&mut book, &other, T0);
    assert_eq!(has(&book, &other), ["192.0.2.1"]);
    book.release(ip("192.0.2.0"), &web.key, T0);
    web.before = vec![];
    run(&mut book, &web, T0);
    assert_eq!(has(&book, &web), ["192.0.2.1"]);
    assert_eq!(book.usage("p", Family::V4).unwrap().available, 2);
}
