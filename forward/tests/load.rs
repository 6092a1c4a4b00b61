//! What a large load costs. Prints its figures; the limits are those of a
//! busy machine and a build without optimisation.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a test: it fails loudly, measures time and prints it"
)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bellrock_e2e::netns::{Netns, as_root};
use bellrock_forward::{Forwarder, Report};
use common::{key, many, node};

fn timed(work: impl FnOnce() -> Report) -> (Duration, Report) {
    let start = Instant::now();
    let report = work();
    (start.elapsed(), report)
}

/// Resident memory of this process, in kB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_services_load_and_are_adopted_at_once() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut services = many(10_001);
    let (_, one) = services.pop_last().unwrap();
    let before = resident();
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();

    let (load, report) = timed(|| forwarder.sync(&node(), &services).unwrap());
    assert_eq!((report.programmed, report.batches), (10_000, 12));
    let memory = resident() - before;
    println!("bench: forward.load_10k_s {:.3} s", load.as_secs_f64());
    println!("bench: forward.rss_10k_mb {:.1} MB", memory as f64 / 1024.0);

    let mut more = Vec::new();
    for n in 0..100 {
        let mut service = one.clone();
        service.addresses = [[203, 0, 200, n].into()].into();
        let name = key(&format!("more{n}"));
        let (time, report) = timed(|| forwarder.apply([(name, Some(service))].into()).unwrap());
        assert!(
            report.batches == 1 && report.elements_added < 12,
            "{report:?}"
        );
        more.push(time);
    }
    more.sort();
    println!(
        "bench: forward.one_more_10k_ms {:.3} ms",
        more[50].as_secs_f64() * 1e3
    );
    println!(
        "bench: forward.one_more_10k_worst_ms {:.3} ms",
        more[99].as_secs_f64() * 1e3
    );

    let (check, changed) = {
        host.sh("nft add table ip other").unwrap();
        let start = Instant::now();
        let changed = forwarder.check().unwrap();
        (start.elapsed(), changed)
    };
    assert!(!changed);
    println!(
        "bench: forward.check_10k_ms {:.3} ms",
        check.as_secs_f64() * 1e3
    );

    let gone = (0..100).map(|n| (key(&format!("more{n}")), None)).collect();
    forwarder.apply(gone).unwrap();
    drop(forwarder);
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();
    let (adopt, report) = timed(|| forwarder.sync(&node(), &services).unwrap());
    assert_eq!((report.batches, report.programmed), (0, 10_000));
    println!("bench: forward.adopt_10k_s {:.3} s", adopt.as_secs_f64());

    let all: BTreeMap<_, _> = services.keys().map(|key| (key.clone(), None)).collect();
    let (unload, report) = timed(|| forwarder.apply(all).unwrap());
    assert_eq!(report.programmed, 0);
    println!("bench: forward.unload_10k_s {:.3} s", unload.as_secs_f64());

    assert!(load < Duration::from_secs(30), "{load:?}");
    assert!(adopt < Duration::from_secs(30), "{adopt:?}");
    assert!(more[50] < Duration::from_millis(50), "{:?}", more[50]);
}
