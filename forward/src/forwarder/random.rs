//! Random sequences of changes, in the kernel: whatever the way, the table is
//! the one that would be made from scratch.

use bellrock_e2e::netns::{Netns, as_root};
use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value as Json;

use super::*;
use crate::state::tests::{self as strategies, Services};

/// What `nft` lists, without what differs from one table to the next of the
/// same content: handles, counters, and the order of elements and chains. Each
/// chain keeps the order of its rules.
fn listed(host: &Netns) -> BTreeMap<String, Vec<Json>> {
    host.sh("nft list ruleset").unwrap();
    let text = host.sh("nft -j list table inet bellrock").unwrap();
    let json: Json = serde_json::from_str(&text).unwrap();
    let mut all: BTreeMap<String, Vec<Json>> = BTreeMap::new();
    for item in json["nftables"].as_array().unwrap() {
        let (kind, value) = item.as_object().unwrap().iter().next().unwrap();
        let mut value = value.clone();
        strip(&mut value);
        let of = if kind == "rule" { "chain" } else { "name" };
        let name = value[of].as_str().unwrap_or_default();
        all.entry(format!("{kind} {name}")).or_default().push(value);
    }
    all
}

fn strip(value: &mut Json) {
    match value {
        Json::Object(fields) => {
            fields.remove("handle");
            for count in ["packets", "bytes"] {
                fields.remove(count);
            }
            for (name, field) in fields.iter_mut() {
                strip(field);
                if let (true, Some(elements)) = (name == "elem", field.as_array_mut()) {
                    elements.sort_by_key(Json::to_string);
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn asked(services: &Services) -> BTreeMap<ServiceKey, Service> {
    services
        .iter()
        .map(|(key, service)| (key.as_ref().clone(), service.as_ref().clone()))
        .collect()
}

fn open(host: &Netns) -> Forwarder {
    host.run(Forwarder::open).unwrap().unwrap()
}

/// Goes through the changes on one host, and after each makes the table from
/// scratch on another.
fn goes_there(steps: Vec<Vec<Change>>, host: &Netns, scratch: &Netns) -> Result<(), TestCaseError> {
    use proptest::{prop_assert, prop_assert_eq};

    let node = strategies::node();
    let mut services = Services::new();
    let mut forwarder = open(host);
    host.run(Forwarder::remove_table).unwrap().unwrap();
    forwarder.sync(&node, &BTreeMap::new()).unwrap();
    for changes in steps {
        let bound = strategies::bound(&forwarder.state, &services, &changes);
        for (key, service) in &changes {
            match service {
                Some(service) => services.insert(key.clone(), service.clone()),
                None => services.remove(key),
            };
        }
        let changes = changes
            .iter()
            .map(|(key, service)| (key.as_ref().clone(), service.as_deref().cloned()))
            .collect();
        let report = forwarder.apply(changes).unwrap();
        prop_assert!(report.batches <= 3, "{:?}", report);
        prop_assert!(report.elements_added <= bound, "{:?}, {}", report, bound);
        prop_assert!(report.elements_deleted <= bound, "{:?}, {}", report, bound);

        let There::Ours(content) = host.run(Table::open).unwrap().unwrap().read().unwrap() else {
            return Err(TestCaseError::fail("not our table"));
        };
        prop_assert_eq!(content, strategies::scratch(&services));
        scratch.run(Forwarder::remove_table).unwrap().unwrap();
        open(scratch).sync(&node, &asked(&services)).unwrap();
        prop_assert_eq!(listed(host), listed(scratch));
        // And nobody sees a foreign hand in it.
        prop_assert!(!forwarder.check().unwrap());
    }
    Ok(())
}

#[test]
fn any_sequence_of_changes_leaves_the_table_that_is_made_from_scratch() {
    if !as_root() {
        return;
    }
    let (host, scratch) = (Netns::new("node").unwrap(), Netns::new("scratch").unwrap());
    let mut runner = TestRunner::new(Config::with_cases(16));
    runner
        .run(&vec(strategies::changes(), 1..10), |steps| {
            goes_there(steps, &host, &scratch)
        })
        .unwrap();
}
