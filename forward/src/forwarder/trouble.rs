//! What the kernel says when something is in the way: words, another attempt,
//! and nothing lost.

use std::io::Write;
use std::process::Stdio;

use bellrock_e2e::netns::{Netns, as_root, wait_for};

use super::tests::{Meddler, Spoiled, key, service};
use super::*;
use crate::netlink::socket::Socket;

type Services = BTreeMap<ServiceKey, Service>;

fn open(host: &Netns) -> Forwarder {
    host.run(Forwarder::open).unwrap().unwrap()
}

fn services(count: u8) -> Services {
    (1..=count)
        .map(|n| (key(&format!("s{n}")), service(n, 1 + n % 3)))
        .collect()
}

/// What a new process finds to do: nothing.
fn assert_whole(host: &Netns, all: &Services) {
    let report = open(host).sync(&Node::default(), all).unwrap();
    assert_eq!((report.batches, report.programmed), (0, all.len()));
}

#[test]
fn answers_that_the_socket_cannot_hold_cost_nothing() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let socket = host.run(|| Socket::open_with(1, 1)).unwrap().unwrap();
    let mut forwarder = Forwarder::with(Table::with(socket).unwrap());
    let mut all = services(40);
    let report = forwarder.sync(&Node::default(), &all).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (40, 0));
    assert_whole(&host, &all);

    // Each message of the change fails, more than the buffer holds.
    host.sh("nft flush ruleset").unwrap();
    let mut changes = services(60);
    changes.retain(|key, _| !all.contains_key(key));
    all.extend(changes.clone());
    let changes = changes.into_iter().map(|(k, s)| (k, Some(s))).collect();
    let report = forwarder.apply(changes).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (60, 0));
    let why = report.disturbed.unwrap();
    assert!(why.contains("changed by someone else"), "{why}");
    assert_whole(&host, &all);

    // The answer to a change that went through is lost.
    forwarder.table.clog();
    let gone = key("s1");
    all.remove(&gone);
    let report = forwarder.apply([(gone, None)].into()).unwrap();
    assert_eq!((report.programmed, report.disturbed), (59, None));
    assert_whole(&host, &all);
    forwarder.table.clog();
    assert!(!forwarder.check().unwrap());
    forwarder.table.clog();
    let report = forwarder.sync(&Node::default(), &all).unwrap();
    assert_eq!((report.programmed, report.batches), (59, 0));
}

#[test]
fn what_is_busy_is_said_in_words_and_put_right() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let mut all = services(2);
    forwarder.sync(&Node::default(), &all).unwrap();

    // Somebody else's element has the key and another value.
    host.sh("nft add element inet bellrock class4 '{ 203.0.113.9 . tcp . 80 : 1:1 }'")
        .unwrap();
    all.insert(key("s9"), service(9, 1));
    let report = forwarder
        .apply([(key("s9"), Some(service(9, 1)))].into())
        .unwrap();
    assert_eq!((report.programmed, report.refused.len()), (3, 0));
    let why = report.disturbed.unwrap();
    assert!(
        why.contains("is there already, and leads elsewhere") && why.contains("(17"),
        "{why}"
    );
    assert_whole(&host, &all);

    // Somebody else's rule leads to a chain that has to go.
    let sole = service(7, 9);
    all.insert(key("sole"), sole.clone());
    forwarder.apply([(key("sole"), Some(sole))].into()).unwrap();
    host.sh(
        "nft add chain inet bellrock theirs; nft add rule inet bellrock theirs goto cluster4_9",
    )
    .unwrap();
    all.remove(&key("sole"));
    let report = forwarder.apply([(key("sole"), None)].into()).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (3, 0));
    let why = report.disturbed.unwrap();
    assert!(why.contains("in use") && why.contains("(16"), "{why}");
    let why = report.replaced.unwrap();
    assert!(why.contains("\"theirs\""), "{why}");
    assert_whole(&host, &all);
}

#[test]
fn what_no_count_shows_is_read_for_after_a_while() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let all = services(3);
    forwarder.sync(&Node::default(), &all).unwrap();
    let slot = "203.0.113.2 . tcp . 80 . 0";
    host.sh(&format!(
        "nft 'delete element inet bellrock endpoints4 {{ {slot} }}; \
              add element inet bellrock endpoints4 {{ {slot} : 10.9.9.9 . 1 }}'"
    ))
    .unwrap();
    let start = now();
    let mut look = |seconds| {
        let at = start + std::time::Duration::from_secs(seconds);
        forwarder.table.changed_by_other(at).unwrap()
    };
    assert!(!look(0));
    assert!(!look(50));
    assert!(look(600));
    // Read by this; then there is no reason to any more.
    forwarder.synced = Synced::Unsure;
    let report = forwarder.apply([].into()).unwrap();
    assert_eq!((report.elements_added, report.elements_deleted), (1, 1));
    let later = start + std::time::Duration::from_secs(6_000);
    assert!(!forwarder.table.changed_by_other(later).unwrap());
    assert_whole(&host, &all);
}

#[test]
fn what_nobody_else_can_be_blamed_for_is_refused_of_its_service() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = open(&host);
    let mut all = services(5);
    forwarder.spoiled = Spoiled::overlapping(key("s3"));
    let refused = |report: Report, programmed| {
        assert_eq!((report.programmed, report.disturbed), (programmed, None));
        assert_eq!(report.refused.keys().collect::<Vec<_>>(), [&key("s3")]);
        let why = &report.refused[&key("s3")];
        assert!(
            why.contains("\"sources4\"") && why.contains("there already"),
            "{why}"
        );
    };
    refused(forwarder.sync(&Node::default(), &all).unwrap(), 4);
    // With another's change beside it.
    let changes = [("s3", service(3, 2)), ("s6", service(6, 2))]
        .map(|(name, service)| (key(name), Some(service)));
    refused(forwarder.apply(changes.into()).unwrap(), 5);
    all.remove(&key("s3"));
    all.insert(key("s6"), service(6, 2));
    assert_whole(&host, &all);
}

#[test]
fn a_table_that_someone_owns_is_said_so_and_taken_when_it_is_free() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut owner = host
        .command("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deed = "add table inet bellrock { flags owner; }\n";
    let stdin = owner.stdin.as_mut().unwrap();
    stdin.write_all(deed.as_bytes()).unwrap();
    stdin.flush().unwrap();
    wait_for(
        "the owner's table",
        std::time::Duration::from_secs(20),
        || {
            host.sh("nft list table inet bellrock")?;
            Ok(())
        },
    );
    let mut forwarder = open(&host);
    let all = services(3);
    let error = forwarder.sync(&Node::default(), &all).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("nobody else may own the table"), "{text}");
    // Its table goes with it.
    drop(owner.stdin.take());
    owner.wait().unwrap();
    let report = forwarder.sync(&Node::default(), &all).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (3, 0));
    assert_whole(&host, &all);
}

#[test]
fn a_flush_while_all_is_being_loaded_costs_another_attempt_and_no_service() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let all: Services = (0..12_u8)
        .flat_map(|k| (1..=200).map(move |n| (k, n)))
        .map(|(k, n)| {
            let mut service = service(n, 2);
            service.ports[0].port = 80 + u16::from(k);
            (key(&format!("s{k}-{n}")), service)
        })
        .collect();
    for flushed_before in [1, 2, 3] {
        let mut forwarder = open(&host);
        let path = host.path();
        forwarder.meddler = Some(Meddler::new(flushed_before, move || {
            let flush = std::process::Command::new("nsenter")
                .arg(format!("--net={}", path.display()))
                .args(["nft", "flush", "ruleset"])
                .status();
            assert!(flush.unwrap().success());
        }));
        let report = forwarder.sync(&Node::default(), &all).unwrap();
        assert!(forwarder.meddler.is_none(), "nobody meddled");
        assert_eq!((report.programmed, report.refused.len()), (2_400, 0));
        assert!(!forwarder.check().unwrap());
        assert_whole(&host, &all);
        host.run(Forwarder::remove_table).unwrap().unwrap();
    }
}
