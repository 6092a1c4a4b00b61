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
fn the_segment_is_told_rank_hearing_and_what_happened() {
    let text = render(&ask(DUMP, "192.0.2.10"));
    for line in [
        "  2026-01-01T00:00:02.000Z n2 does not claim it (n4 answers, but its HELLO does not come) on eth0",
        "  2026-01-01T00:00:01.250Z n1 owns it (OwnerSilent, after n2) on eth0",
        "  2025-12-31T23:59:00.000Z n2 lost it (LinkChange) on eth0",
        "n1 holds 1 address and is heard by all others on the segment",
        "n2 holds 3 addresses and is heard by all others on the segment",
        "n4 holds 0 addresses and is heard on the segment by n2, not by n1",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line:?} is missing in:\n{text}"
        );
    }
    assert!(text.contains("Standby, rank 1"), "{text}");
    assert!(!text.contains("FirstClaim"), "of another address:\n{text}");
    // Nobody hears n1 any more.
    let alone = DUMP.replace(
        "{ node: n1, interface: eth0, holds: 1 }",
        "{ node: n4, interface: eth1, holds: 2 }",
    );
    assert_ne!(alone, DUMP);
    let text = render(&ask(&alone, "192.0.2.10"));
    for line in [
        "n1 is heard by no other node on the segment",
        "n4 holds 2 addresses and is heard on the segment by n2, not by n1",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line:?} is missing in:\n{text}"
        );
    }
}

#[test]
fn the_rank_is_that_of_the_order_or_what_the_speaker_says_while_it_counts() {
    let ranks = |dump: &str| -> Vec<Option<u32>> {
        let explanation = ask(dump, "svc/web");
        let nodes = &explanation.services[0].addresses[0].nodes;
        nodes.iter().map(|node| node.rank).collect()
    };
    // n1 owns it, n3 is excluded.
    assert_eq!(ranks(DUMP), [None, Some(1), None]);
    let included = DUMP.replace(
        "      labels: { node.kubernetes.io/exclude-from-external-load-balancers: \"\" }\n",
        "",
    );
    assert_ne!(included, DUMP);
    // No speaker reports from n3.
    assert_eq!(ranks(&included), [None, Some(1), None]);
    let status = "{ apiVersion: bellrock.dev/v1beta1, kind: SpeakerStatus, metadata: { name: n3 }, status: { node: n3 } }";
    let three = format!("{included}\n---\n{status}\n");
    assert_eq!(ranks(&three), [None, Some(1), Some(2)]);
    let reversed = three.replace("successors: [n2, n3]", "successors: [n3, n2]");
    assert_eq!(ranks(&reversed), [None, Some(2), Some(1)]);
    let waits = three.replacen(
        "status: { node: n3 }",
        "status: { node: n3, addresses: [{ address: 192.0.2.10, state: Wait, epoch: 7, rank: 3 }] }",
        1,
    );
    assert_eq!(ranks(&waits), [None, Some(1), Some(3)]);
}

#[test]
fn where_no_advertisement_puts_an_address_on_the_segment_nothing_is_told_of_it() {
    let routed = DUMP.replace("kind: L2Advertisement", "kind: Other");
    let explanation = ask(&routed, "svc/web");
    assert_eq!(reasons(&explanation)[0].1, "NoAdvertisement");
    assert_eq!(explanation.segment, []);
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
    let filtered = DUMP.replace("reason: Placeholder", "reason: HelloFiltered");
    let explanation = ask(&filtered, "svc/web");
    assert_eq!(reasons(&explanation)[1].1, "HelloFiltered");
    assert!(render(&explanation).contains(AnnouncementReason::HelloFiltered.sentence()));
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
fn a_service_that_no_controller_looks_at_is_told_from_one_that_waits() {
    let dump = format!(
        "{DUMP}\n---\n{}",
        r#"apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Service
    metadata: { namespace: default, name: inside }
    spec: { type: ClusterIP, ports: [{ port: 80 }] }
  - apiVersion: v1
    kind: Service
    metadata: { namespace: default, name: foreign }
    spec: { type: LoadBalancer, loadBalancerClass: example.com/other, ports: [{ port: 80 }] }
"#
    );
    for (target, reason, part) in [
        (
            "svc/inside",
            "NotLoadBalancer",
            "The Service is not of type LoadBalancer",
        ),
        (
            "svc/foreign",
            "NotSeen",
            "The controller has not looked at this Service",
        ),
    ] {
        let explanation = ask(&dump, target);
        assert_eq!(explanation.services[0].allocation.reason, reason);
        let text = render(&explanation);
        assert!(text.contains(&format!("  {reason}: {part}")), "{text}");
    }
}

#[test]
fn what_is_not_there_is_said_so() {
    let nothing = ask(DUMP, "svc/nowhere");
    assert_eq!(nothing.notes, ["there is no Service default/nowhere"]);
}

#[test]
fn an_address_that_no_service_has_is_told_as_what_it_is() {
    let dump = format!(
        "{DUMP}\n---\n{}",
        r#"apiVersion: bellrock.dev/v1beta1
kind: VirtualIPList
items:
  - metadata:
      name: 192.0.2.20
      labels: { app.kubernetes.io/managed-by: bellrock }
      annotations:
        bellrock.dev/released-at: "2026-01-01T00:59:30.250Z"
        bellrock.dev/released-by: default/gone
    spec: { address: 192.0.2.20, pool: main }
  - metadata:
      name: 192.0.2.21
      labels: { app.kubernetes.io/managed-by: bellrock }
      annotations:
        bellrock.dev/released-at: "2026-01-01T00:30:00Z"
        bellrock.dev/released-by: default/gone
    spec: { address: 192.0.2.21, pool: main }
  - metadata:
      name: 192.0.2.22
      labels: { app.kubernetes.io/managed-by: bellrock }
    spec: { address: 192.0.2.22, pool: main }
  - metadata:
      name: 192.0.2.23
      labels: { app.kubernetes.io/managed-by: bellrock }
    spec:
      address: 192.0.2.23
      pool: main
      claims: [{ namespace: default, name: gone, uid: a }]
  # The annotations stay where its label was taken off while it rested.
  - metadata:
      name: 192.0.2.40
      annotations: { bellrock.dev/released-at: "2026-01-01T00:59:30Z" }
    spec: { address: 192.0.2.40 }
  - metadata:
      name: 192.0.2.42
      labels: { app.kubernetes.io/managed-by: Helm }
    spec: { address: 192.0.2.42, claims: [{ namespace: shop, name: api }] }
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Node
    metadata: { name: n4 }
    status:
      addresses:
        - { type: Hostname, address: n4 }
        - { type: InternalIP, address: 192.0.2.4 }
        - { type: ExternalIP, address: 203.0.113.4 }
  - apiVersion: bellrock.dev/v1beta1
    kind: IPAddressPool
    metadata: { namespace: bellrock-system, name: careful, generation: 2 }
    spec: { addresses: [198.51.100.0/24], avoidBuggyIPs: true }
    status:
      conditions:
        - type: Accepted
          status: "True"
          reason: Accepted
          message: The pool is in force.
          observedGeneration: 2
          lastTransitionTime: "2026-01-01T00:00:00Z"
  - apiVersion: bellrock.dev/v1beta1
    kind: IPAddressPool
    metadata: { namespace: bellrock-system, name: new }
    spec: { addresses: [203.0.113.128/28] }
  - apiVersion: bellrock.dev/v1beta1
    kind: IPAddressPool
    metadata: { namespace: bellrock-system, name: edited, generation: 2 }
    spec: { addresses: [203.0.113.144/28] }
    status:
      conditions:
        - type: Accepted
          status: "True"
          reason: Accepted
          message: The pool is in force.
          observedGeneration: 1
          lastTransitionTime: "2026-01-01T00:00:00Z"
  - apiVersion: bellrock.dev/v1beta1
    kind: IPAddressPool
    metadata: { namespace: bellrock-system, name: all }
    spec: { addresses: [192.0.2.0/24, 203.0.113.64/28] }
    status:
      conditions:
        - type: Accepted
          status: "False"
          reason: Overlap
          message: 192.0.2.0-192.0.2.255 overlaps with pool main; the pool is not in force
          lastTransitionTime: "2026-01-01T00:00:00Z"
"#
    );
    for (address, expected) in [
        ("192.0.2.77", "is free: no Service has it (pool main)"),
        ("192.0.2.255", "is free: no Service has it (pool main)"),
        (
            "203.0.113.1",
            "is in no IPAddressPool and no Service has it",
        ),
        (
            "192.0.2.20",
            "rests until 2026-01-01T01:00:30Z: default/gone released it at 2026-01-01T00:59:30Z, and nobody else may have it before",
        ),
        (
            "192.0.2.21",
            "has rested since default/gone released it at 2026-01-01T00:30:00Z: it is about to be free",
        ),
        (
            "192.0.2.22",
            "has a VirtualIP that no Service claims: it is about to be free",
        ),
        (
            "192.0.2.23",
            "was given to default/gone, and there is no such Service any more: the controller releases it when it sees that",
        ),
        (
            "192.0.2.40",
            "is reserved by a VirtualIP that no Service claims",
        ),
        (
            "192.0.2.42",
            "is reserved for shop/api by its VirtualIP, and there is no such Service now",
        ),
        ("192.0.2.4", "is an address of node n4: no Service gets it"),
        (
            "203.0.113.4",
            "is an address of node n4: no Service gets it",
        ),
        (
            "198.51.100.0",
            "ends in .0 or .255: no Service gets it, pool careful has avoidBuggyIPs",
        ),
        (
            "198.51.100.255",
            "ends in .0 or .255: no Service gets it, pool careful has avoidBuggyIPs",
        ),
        ("198.51.100.1", "is free: no Service has it (pool careful)"),
        (
            "203.0.113.130",
            "is in pool new, which the controller has not looked at: is it running?",
        ),
        (
            "203.0.113.150",
            "is in pool edited, which the controller has not looked at: is it running?",
        ),
        (
            "203.0.113.70",
            "is in pool all, which is not accepted as it is written (Overlap: 192.0.2.0-192.0.2.255 overlaps with pool main; the pool is not in force)",
        ),
    ] {
        let explanation = ask(&dump, address);
        assert_eq!(explanation.services, [], "{address}");
        assert_eq!(explanation.notes, [format!("{address} {expected}")]);
    }
    // Of two Services that an address is kept for, one is there.
    let shared = DUMP.replace(
        "claims: [{ namespace: default, name: web, ",
        "claims: [{ namespace: default, name: later }, { namespace: default, name: web, ",
    );
    assert_ne!(shared, DUMP);
    let explanation = ask(&shared, "192.0.2.10");
    assert_eq!(reasons(&explanation)[0].1, "Announced");
    assert_eq!(
        explanation.notes,
        [
            "192.0.2.10 is reserved for default/later by its VirtualIP, and there is no such Service now"
        ]
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
