//! The answers of `bellrock why` on a dump.

use bellrock_api::AnnouncementReason;

use super::*;

const DUMP: &str = include_str!("dump.yaml");

fn source() -> Source {
    Source {
        filename: None,
        kubeconfig: None,
        context: None,
        bellrock_namespace: "bellrock-system".to_owned(),
    }
}

fn ask(dump: &str, target: &str) -> Explanation {
    let dump = source().parse(dump).unwrap();
    explain(
        &dump,
        &parse(target).unwrap(),
        "default",
        &Settings::default(),
    )
}

fn reasons(explanation: &Explanation) -> Vec<(&str, &str, &str)> {
    explanation.services[0].addresses[0]
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node.l2.reason, node.bgp.reason))
        .collect()
}

#[test]
fn targets_are_addresses_or_services() {
    let service = |namespace: Option<&str>, name: &str| Target::Service {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    };
    for (text, target) in [
        ("192.0.2.10", Target::Address("192.0.2.10".parse().unwrap())),
        (
            "2001:db8::1",
            Target::Address("2001:db8::1".parse().unwrap()),
        ),
        ("svc/web", service(None, "web")),
        ("service/web", service(None, "web")),
        ("web", service(None, "web")),
        ("svc/shop/web", service(Some("shop"), "web")),
    ] {
        assert_eq!(parse(text).unwrap(), target, "{text}");
    }
    for text in ["", "svc/", "svc/a/b/c", "svc//web"] {
        assert!(parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn the_owner_announces_and_each_other_node_has_its_reason() {
    let explanation = ask(DUMP, "svc/web");
    assert_eq!(
        reasons(&explanation),
        [
            ("n1", "Announced", "Announced"),
            ("n2", "Standby", "SessionDown"),
            ("n3", "NodeExcluded", "NodeExcluded"),
        ]
    );
    assert_eq!(
        explanation,
        ask(DUMP, "192.0.2.10"),
        "the address leads to the same answer"
    );
    let text = render(&explanation);
    for part in [
        "Service default/web",
        "192.0.2.10 from pool main, answered on the segment by n1 since",
        "(first claim)",
        "SessionDown (tor: connection refused)",
        AnnouncementReason::NodeExcluded.sentence(),
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn policy_local_names_the_nodes_without_endpoint() {
    let local = DUMP.replace(
        "externalTrafficPolicy: Cluster",
        "externalTrafficPolicy: Local",
    );
    let explanation = ask(&local, "svc/web");
    assert_eq!(
        reasons(&explanation)[1],
        ("n2", "NoLocalEndpoint", "NoLocalEndpoint")
    );
}

#[test]
fn what_only_the_speaker_knows_comes_from_its_status() {
    let held = DUMP.replace("reason: Placeholder", "reason: HeldByForeignHost");
    let explanation = ask(&held, "svc/web");
    assert_eq!(reasons(&explanation)[1].1, "HeldByForeignHost");
    let silent = DUMP.replace("kind: SpeakerStatus", "kind: Other");
    assert_eq!(reasons(&ask(&silent, "svc/web"))[0].1, "SpeakerSilent");
}

#[test]
fn a_service_without_address_tells_what_the_controller_said() {
    let explanation = ask(DUMP, "svc/waits");
    let service = &explanation.services[0];
    assert_eq!(service.allocation.reason, "PoolExhausted");
    assert!(service.addresses.is_empty());
    assert!(render(&explanation).contains("PoolExhausted: pool main has no free address"));
}

#[test]
fn what_is_not_there_is_said_so() {
    let nothing = ask(DUMP, "svc/nowhere");
    assert_eq!(nothing.notes, ["there is no Service default/nowhere"]);
    let free = ask(DUMP, "192.0.2.77");
    assert_eq!(
        free.notes,
        ["192.0.2.77 is free: no Service has it (pool main)"]
    );
    let foreign = ask(DUMP, "203.0.113.1");
    assert_eq!(
        foreign.notes,
        ["203.0.113.1 is in no IPAddressPool and no Service has it"]
    );
}

#[test]
fn a_peer_that_asks_for_more_than_this_release_does_is_noted() {
    let vrf = DUMP.replace("peerASN: 64513", "peerASN: 64513\n      vrf: red");
    let explanation = ask(&vrf, "svc/web");
    assert_eq!(
        explanation.notes,
        ["refused by the speakers: BGPPeer tor: vrf is not supported by this release"]
    );
    assert_eq!(reasons(&explanation)[0].2, "NoPeer");
}

#[test]
fn a_speaker_that_has_not_reported_for_minutes_is_silent() {
    let old = DUMP.replacen(
        "renewed: \"2026-01-01T01:00:00Z\"",
        "renewed: \"2026-01-01T00:00:00Z\"",
        1,
    );
    assert_ne!(old, DUMP);
    let explanation = ask(&old, "svc/web");
    assert_eq!(
        reasons(&explanation)[0],
        ("n1", "SpeakerSilent", "SpeakerSilent")
    );
    assert!(render(&explanation).contains("SpeakerSilent (for 3600 s)"));
}

#[test]
fn an_object_that_does_not_parse_is_noted_and_hides_no_other() {
    let pool = DUMP.replace(
        "addresses: [192.0.2.0/24]",
        "addresses: [192.0.2.0/24], reuseDelay: 9999999h",
    );
    assert_ne!(pool, DUMP);
    let explanation = ask(&pool, "svc/web");
    assert_eq!(reasons(&explanation)[0].1, "Announced");
    assert!(
        explanation.notes[0].contains("IPAddressPool main does not parse"),
        "{:?}",
        explanation.notes
    );
    assert!(source().parse("{").is_err());
}

#[test]
fn what_is_found_on_a_node_is_noted_with_table_and_chain() {
    let forwarding = r#"forwarding:
        ready: true
        warnings:
          - { reason: ForwardPolicyDrop, message: "chain FORWARD of table ip filter has the policy drop" }
          - { reason: Newer, message: "of another version" }"#;
    let warned = DUMP.replacen(
        "version: 0.1.0",
        &format!("version: 0.1.0\n      {forwarding}"),
        1,
    );
    assert_ne!(warned, DUMP);
    let text = "chain FORWARD of table ip filter has the policy drop";
    assert_eq!(
        ask(&warned, "svc/web").notes,
        [
            format!(
                "n1: ForwardPolicyDrop ({text}): {}",
                bellrock_api::NodeReason::ForwardPolicyDrop.sentence()
            ),
            "n1: Newer (of another version)".to_owned(),
        ]
    );
}

#[test]
fn endpoints_that_are_names_are_told_from_none() {
    let names = DUMP
        .replace("addressType: IPv4", "addressType: FQDN")
        .replace("addresses: [10.244.1.5]", "addresses: [web.example.com]");
    let explanation = ask(&names, "svc/web");
    let outcome = &explanation.services[0].addresses[0].nodes[0].l2;
    assert_eq!(outcome.reason, "NoEndpoint");
    assert!(outcome.detail.contains("FQDN"), "{}", outcome.detail);
}
