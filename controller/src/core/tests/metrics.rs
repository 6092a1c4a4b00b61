//! What the metrics say of pools and refusals.

use bellrock_e2e::metrics::{documented, rows};
use serde_json::json;

use super::cluster::{cluster, in_pool, ips};
use super::runner::run;
use crate::metrics::Metrics;
use crate::write::Call;

#[test]
fn pools_are_counted_by_family_and_refusals_by_reason_and_the_book_has_every_metric() {
    let mut cluster = cluster();
    let two = json!({ "addresses": ["198.51.100.0/31", "2001:db8::/64"], "reuseDelay": "60s" });
    cluster.put_pool("two", two);
    let mut controller = run(&mut cluster);
    let metrics = Metrics::new();
    let gone = cluster.put_service("gone", json!({}), in_pool("two"));
    cluster.put_service("web", json!({}), in_pool("two"));
    controller.settle(&mut cluster);
    cluster.delete_service(&gone);
    for name in ["full-1", "full-2"] {
        cluster.put_service(name, json!({}), in_pool("two"));
    }
    cluster.put_service("lost", json!({}), ips("203.0.113.1"));
    controller.settle(&mut cluster);
    for _ in 0..2 {
        // Counted once, however often it is looked at.
        metrics.count(&mut controller.core);
        metrics.measure(&controller.core);
    }
    let text = metrics.text().unwrap();
    let of = |name: &str, pool: &str, family: &str| {
        format!("bellrock_controller_{name}{{pool=\"{pool}\",family=\"{family}\"}}")
    };
    let by =
        |name: &str, reason: &str| format!("bellrock_controller_{name}{{reason=\"{reason}\"}}");
    for (name, value) in [
        (of("pool_addresses", "main", "IPv4"), "8"),
        (of("pool_addresses", "two", "IPv4"), "2"),
        // More than a gauge holds.
        (of("pool_addresses", "two", "IPv6"), "9223372036854775807"),
        (of("pool_addresses_assigned", "two", "IPv4"), "1"),
        // The other one rests.
        (of("pool_addresses_available", "two", "IPv4"), "0"),
        (of("pool_addresses_assigned", "two", "IPv6"), "0"),
        (by("refusals_total", "PoolExhausted"), "2"),
        (by("refusals_total", "AddressNotInPool"), "1"),
        (by("services_refused", "PoolExhausted"), "2"),
        ("bellrock_controller_allocations_total".to_owned(), "2"),
        ("bellrock_controller_services".to_owned(), "4"),
    ] {
        let line = format!("{name} {value}");
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    // One of everything else.
    metrics.write(
        Call {
            verb: "create",
            resource: "virtualips",
        },
        true,
    );
    metrics.watch_error("Service");
    let page = include_str!("../../../../docs/metrics.md");
    assert_eq!(
        rows(&metrics.text().unwrap()),
        documented(page, "bellrock_controller")
    );
}
