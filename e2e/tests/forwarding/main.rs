//! Forwarding in the lab: the same list of cases with real traffic beside
//! kube-proxy in both modes, without it, and, as a control, by kube-proxy
//! alone in either mode. Addresses are IPv4, as the lab's segment is; `forward`'s own
//! tests send the same over IPv6.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

mod cases;
mod node;
mod objects;
mod world;

use std::time::Instant;

use bellrock_e2e::cluster::KubeProxy;
use cases::CASES;
use world::{Forwarding, World};

#[test]
fn every_case_holds_beside_kube_proxy_in_nftables_mode() {
    run(KubeProxy::Nftables, Forwarding::Nftables);
}

#[test]
fn every_case_holds_beside_kube_proxy_in_iptables_mode() {
    run(KubeProxy::Iptables, Forwarding::Nftables);
}

#[test]
fn every_case_holds_without_kube_proxy() {
    run(KubeProxy::None, Forwarding::Nftables);
}

#[test]
fn kube_proxy_alone_does_what_the_table_says() {
    run(KubeProxy::Nftables, Forwarding::KubeProxy);
}

#[test]
fn kube_proxy_alone_does_what_the_table_says_in_iptables_mode_too() {
    run(KubeProxy::Iptables, Forwarding::KubeProxy);
}

#[test]
fn the_book_has_every_difference() {
    let book = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/forwarding.md");
    let book = std::fs::read_to_string(book).unwrap();
    for case in CASES {
        if let Some(theirs) = &case.theirs {
            let row = format!("| {} | {} | {} |", case.name, theirs.does, theirs.why);
            assert!(book.contains(&row), "docs/forwarding.md lacks: {row}");
        }
    }
}

/// Runs all cases; one that fails hides no other.
fn run(kube_proxy: KubeProxy, forwarding: Forwarding) {
    let world = World::up(kube_proxy, forwarding).unwrap();
    let mut failures = Vec::new();
    for case in CASES {
        let check = match forwarding {
            Forwarding::KubeProxy => case.of_kube_proxy(kube_proxy),
            Forwarding::Nftables => case.ours,
        };
        let start = Instant::now();
        let result = check(&world);
        let took = start.elapsed().as_secs_f32();
        let verdict = if result.is_ok() { "holds" } else { "FAILS" };
        eprintln!("{verdict} {took:5.1} s  {}", case.name);
        if let Err(error) = result {
            failures.push(format!("{}: {error:#}", case.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
