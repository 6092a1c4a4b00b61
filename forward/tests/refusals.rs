//! What the kernel refuses of the whole table: said in words, and no loss.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: it fails loudly and reads its environment"
)]

mod common;

use std::process::Command;

use bellrock_e2e::netns::{Netns, as_root};
use bellrock_forward::{ExternalPolicy, Forwarder};
use common::lab::Addresses;
use common::{ip, key, node, service, shapes};

/// Set in the process that has lost its rights.
const BARE: &str = "BELLROCK_TEST_BARE";

#[test]
fn without_the_right_the_error_names_the_capability() {
    if std::env::var_os(BARE).is_some() {
        for error in [
            Forwarder::open().unwrap_err(),
            Forwarder::remove_table().unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        }
        return;
    }
    if !as_root() {
        return;
    }
    let test = std::thread::current().name().unwrap().to_owned();
    let output = Command::new("setpriv")
        .args(["--inh-caps", "-all", "--bounding-set", "-all", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &test])
        .env(BARE, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn foreign_elements_in_the_way_of_a_change_are_put_right_with_it() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();
    let mut services = shapes();
    forwarder.sync(&node(), &services).unwrap();
    let a = Addresses {
        vip: ip("203.0.113.200"),
        ..Addresses::v4()
    };
    for deed in [
        // Leads elsewhere: busy. A member twice: no error. An element that the
        // change deletes or replaces is not there.
        "add element inet bellrock endpoints4 '{ 203.0.113.200 . udp . 80 . 0 : 10.9.9.9 . 1 }'",
        "add element inet bellrock class4 '{ 203.0.113.200 . tcp . 80 : 1:1 }'",
        "add element inet bellrock ours4 '{ 203.0.113.200 . tcp . 80 }'",
        "delete element inet bellrock endpoints4 '{ 203.0.113.2 . tcp . 80 . 0 }'",
        "flush map inet bellrock chain_of",
    ] {
        let web = service(&a, ExternalPolicy::Cluster, &[a.pod_a(), a.pod_c()]);
        services.insert(key("web"), web.clone());
        host.sh(&format!("nft {deed}")).unwrap();
        let report = forwarder
            .apply([(key("web"), Some(web))].into())
            .unwrap_or_else(|error| panic!("{deed}: {error}"));
        assert!(report.refused.is_empty(), "{deed}: {report:?}");
        assert_eq!(report.programmed, services.len());
        if forwarder.check().unwrap() {
            // What no message of the change met; as the speaker does each second.
            forwarder.apply([].into()).unwrap();
        }
        // Exactly this is there.
        let mut fresh = host.run(Forwarder::open).unwrap().unwrap();
        let report = fresh.sync(&node(), &services).unwrap();
        let done = (report.batches, report.replaced);
        assert_eq!(done, (0, None), "{deed}");
        services.remove(&key("web"));
        fresh.sync(&node(), &services).unwrap();
        forwarder.sync(&node(), &services).unwrap();
    }
}
