//! The checker against planted violations, told as the audit log tells them.

use std::collections::BTreeMap;
use std::time::Duration;

use bellrock_api::annotations::SHARING_KEY;
use bellrock_api::virtual_ip_name;
use serde_json::{Value, json};

use super::checker::{Pool, Verdict, Violation, check, open};
use super::churn::{Dice, NAMESPACES, namespace, service};
use super::history::{History, Key};
use crate::audit::Entry;

const REST: Duration = Duration::from_secs(10);

/// A log that is written line by line, a second after the other.
#[derive(Default)]
struct Log {
    history: History,
    second: u32,
    /// How often each name was deleted: what comes after has another uid.
    deaths: BTreeMap<String, u32>,
}

/// Of a name that may have a namespace before it.
fn key(name: &str) -> Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    (namespace.to_owned(), name.to_owned())
}

/// A Service as its owner wants it.
fn wish(changes: &Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{ "port": 80 }],
    });
    for (field, value) in changes.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    spec
}

/// A claim as it is recorded, with `more` fields.
fn claim(name: &str, port: u16, sharing_key: &str, more: &Value) -> Value {
    let (namespace, name) = key(name);
    let mut claim = json!({
        "namespace": namespace, "name": name,
        "ports": [{ "protocol": "TCP", "port": port }],
    });
    if !sharing_key.is_empty() {
        claim["sharingKey"] = json!(sharing_key);
    }
    for (field, value) in more.as_object().into_iter().flatten() {
        claim[field] = value.clone();
    }
    claim
}

impl Log {
    /// A line, answered half a second after it was asked for.
    fn line(&mut self, verb: &str, object: &Value, code: u64, sent: &Value, answer: &Value) {
        self.second += 1;
        let time = |millis: u32| {
            let (minute, second) = (self.second / 60, self.second % 60);
            format!("2026-01-01T00:{minute:02}:{second:02}.{millis:03}Z")
        };
        let line = json!({
            "stage": "ResponseComplete", "verb": verb, "objectRef": object,
            "user": { "username": "someone" }, "responseStatus": { "code": code },
            "requestReceivedTimestamp": time(0), "stageTimestamp": time(500),
            "requestObject": sent, "responseObject": answer,
        });
        self.history.add(&Entry::parse(&line.to_string()).unwrap());
    }

    fn uid(&self, name: &str) -> String {
        let deaths = self.deaths.get(name).copied().unwrap_or(0);
        format!("uid-{name}-{deaths}")
    }

    /// The uid of what is deleted by this.
    fn end_of(&mut self, name: &str) -> String {
        let uid = self.uid(name);
        *self.deaths.entry(name.to_owned()).or_default() += 1;
        uid
    }

    fn version(&self) -> String {
        (100 + self.second).to_string()
    }

    fn service(&mut self, name: &str, spec: &Value, annotations: &Value, shows: &[&str]) {
        let ingress: Vec<Value> = shows.iter().map(|ip| json!({ "ip": ip })).collect();
        let reason = "Allocated";
        let uid = self.uid(name);
        let (namespace, name) = key(name);
        let object = json!({
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid,
                "resourceVersion": self.version(), "annotations": annotations,
            },
            "spec": wish(spec),
            "status": {
                "loadBalancer": { "ingress": ingress },
                "conditions": [{ "type": "bellrock.dev/LoadBalancer", "reason": reason }],
            },
        });
        let target = json!({ "resource": "services", "namespace": namespace, "name": name });
        self.line("patch", &target, 200, &json!(null), &object);
    }

    /// As `service`, for one that shares.
    fn shares(&mut self, name: &str, port: u16, key: &str, more: &Value, shows: &[&str]) {
        let mut spec = json!({ "ports": [{ "port": port }] });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let annotations = match key {
            "" => json!({}),
            key => json!({ SHARING_KEY: key }),
        };
        self.service(name, &spec, &annotations, shows);
    }

    fn told(&mut self, name: &str, shows: &[&str]) {
        self.service(name, &json!({}), &json!({}), shows);
    }

    /// A status of which nobody knows whether it was written.
    fn perhaps_told(&mut self, name: &str, shows: &[&str]) {
        let ingress: Vec<Value> = shows.iter().map(|ip| json!({ "ip": ip })).collect();
        let target = json!({
            "resource": "services", "subresource": "status", "namespace": "default", "name": name,
        });
        let sent = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        self.line("patch", &target, 504, &sent, &json!(null));
    }

    fn deleted(&mut self, name: &str) {
        let target = json!({ "resource": "services", "namespace": "default", "name": name });
        let uid = self.end_of(name);
        let answer = json!({ "kind": "Status", "details": { "uid": uid } });
        self.line("delete", &target, 200, &json!(null), &answer);
    }

    fn vip(&mut self, ip: &str, claims: &[(&str, u16, &str)]) {
        self.vip_with(ip, claims, &json!({}), 200);
    }

    fn vip_with(&mut self, ip: &str, claims: &[(&str, u16, &str)], notes: &Value, code: u64) {
        let claims: Vec<Value> = claims
            .iter()
            .map(|(name, port, key)| claim(name, *port, key, &json!({})))
            .collect();
        self.vip_of(ip, &claims, notes, code);
    }

    fn vip_of(&mut self, ip: &str, claims: &[Value], notes: &Value, code: u64) {
        let name = virtual_ip_name(ip.parse().unwrap());
        let spec = json!({ "address": ip, "claims": claims });
        let object = json!({
            "metadata": {
                "name": name, "uid": self.uid(ip), "annotations": notes,
                "resourceVersion": self.version(),
            },
            "spec": spec,
        });
        let target = json!({ "resource": "virtualips", "name": name });
        let sent = json!({ "metadata": { "annotations": notes }, "spec": spec });
        let answer = if code < 300 { object } else { json!(null) };
        self.line("patch", &target, code, &sent, &answer);
    }

    /// The last claim goes at this second.
    fn rests(&mut self, ip: &str, by: &str) {
        self.rests_with(ip, by, 200);
    }

    fn rests_with(&mut self, ip: &str, by: &str, code: u64) {
        let at = format!(
            "2026-01-01T00:{:02}:{:02}Z",
            self.second / 60,
            self.second % 60
        );
        let notes = json!({
            "bellrock.dev/released-at": at, "bellrock.dev/released-by": format!("default/{by}"),
        });
        self.vip_with(ip, &[], &notes, code);
    }

    fn vip_deleted(&mut self, ip: &str) {
        let name = virtual_ip_name(ip.parse().unwrap());
        let target = json!({ "resource": "virtualips", "name": name });
        let uid = self.end_of(ip);
        let answer = json!({ "kind": "Status", "details": { "uid": uid } });
        self.line("delete", &target, 200, &json!(null), &answer);
    }

    fn leads(&mut self, name: &str) {
        let target = json!({ "resource": "leases", "namespace": "bellrock-system", "name": "l" });
        let lease = json!({
            "metadata": { "resourceVersion": self.version() }, "spec": { "holderIdentity": name },
        });
        self.line("patch", &target, 200, &json!(null), &lease);
    }

    fn verdict(self) -> Verdict {
        let pools = [("a", "192.0.2.0/25"), ("b", "192.0.2.128/25")].map(|(name, range)| Pool {
            name,
            ranges: vec![range.parse().unwrap()],
        });
        check(&self.history.ordered(), &pools, REST)
    }

    fn violations(self) -> Vec<Violation> {
        let verdict = self.verdict();
        verdict.violations.into_iter().map(|(_, v)| v).collect()
    }
}

const X: &str = "192.0.2.1";
const Y: &str = "192.0.2.200";

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

/// One Service that has an address, as it should be.
fn one() -> Log {
    let mut log = Log::default();
    log.told("web", &[]);
    log.vip(X, &[("web", 80, "")]);
    log.told("web", &[X]);
    log
}

#[test]
fn a_life_as_it_should_be_is_no_violation() {
    let mut log = one();
    log.leads("one");
    log.leads("two");
    log.leads("two");
    // Two share.
    log.vip(Y, &[("dns-udp", 53, "dns")]);
    log.shares("dns-udp", 53, "dns", &json!({}), &[Y]);
    log.vip(Y, &[("dns-udp", 53, "dns"), ("dns-tcp", 54, "dns")]);
    log.shares("dns-tcp", 54, "dns", &json!({}), &[Y]);
    // One goes; its address rests, and goes to another.
    log.deleted("web");
    log.rests(X, "web");
    for _ in 0..12 {
        log.leads("two");
    }
    log.vip_deleted(X);
    log.vip(X, &[("new", 80, "")]);
    log.told("new", &[X]);
    let verdict = log.verdict();
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.allocations, 4);
    assert_eq!(verdict.leader_changes, 1);
    assert_eq!(verdict.holders.len(), 2);
}

#[test]
fn an_address_that_is_recorded_for_two_services_is_found() {
    let local = |app: &str| json!({ "externalTrafficPolicy": "Local", "selector": { "app": app } });
    let cluster = json!({ "externalTrafficPolicy": "Cluster" });
    let no_pods = json!({ "externalTrafficPolicy": "Local" });
    let (plain, mine, other) = (json!({}), local("mine"), local("other"));
    for (web, thief, lawful) in [
        ((80, "", &plain), ("thief", 81, "", &plain), false),
        ((80, "k", &plain), ("thief", 81, "other", &plain), false),
        ((80, "k", &plain), ("thief", 80, "k", &plain), false),
        ((80, "k", &plain), ("thief", 81, "k", &plain), true),
        ((80, "k", &plain), ("tenant/thief", 81, "k", &plain), false),
        ((80, "k", &cluster), ("thief", 81, "k", &cluster), true),
        ((80, "k", &cluster), ("thief", 81, "k", &mine), false),
        ((80, "k", &mine), ("thief", 81, "k", &mine), true),
        ((80, "k", &mine), ("thief", 81, "k", &other), false),
        ((80, "k", &no_pods), ("thief", 81, "k", &no_pods), false),
    ] {
        let mut log = one();
        let claims = [
            claim("web", web.0, web.1, web.2),
            claim(thief.0, thief.1, thief.2, thief.3),
        ];
        log.vip_of(X, &claims, &json!({}), 200);
        // It does not last, so that it is only the record that tells.
        log.vip(X, &[("web", 80, "")]);
        let found = log.violations();
        let mut both = [key("web"), key(thief.0)];
        both.sort();
        let [first, second] = both;
        let expected = match lawful {
            true => vec![],
            false => vec![Violation::Doubled(ip(X), first, second)],
        };
        assert_eq!(found, expected, "{web:?} {thief:?}");
    }
}

/// Services `web` and another show X, both recorded as lawful sharers. Then their owners want
/// something else, and nobody minds.
fn stale(web: (u16, &str, &Value), thief: (&str, u16, &str, &Value)) -> Log {
    let mut log = Log::default();
    let none = json!({});
    log.shares("web", 80, "k", &none, &[]);
    log.shares("thief", 81, "k", &none, &[]);
    log.vip(X, &[("web", 80, "k"), ("thief", 81, "k")]);
    log.shares("web", 80, "k", &none, &[X]);
    log.shares("thief", 81, "k", &none, &[X]);
    log.shares("web", web.0, web.1, web.2, &[X]);
    log.shares(thief.0, thief.1, thief.2, thief.3, &[X]);
    log
}

#[test]
fn sharers_that_may_not_share_any_more_are_found_in_the_end() {
    let local = |app: &str| json!({ "externalTrafficPolicy": "Local", "selector": { "app": app } });
    let no_pods = json!({ "externalTrafficPolicy": "Local" });
    let another_protocol = json!({ "ports": [{ "port": 80, "protocol": "UDP" }] });
    let (plain, one, other) = (json!({}), local("one"), local("other"));
    // With the policy Cluster the selector is nobody's business.
    let cluster = json!({ "selector": { "app": "one" } });
    for (web, thief, lawful) in [
        ((80, "k", &plain), ("thief", 81, "k", &plain), true),
        ((80, "k", &plain), ("thief", 80, "k", &plain), false),
        (
            (80, "k", &plain),
            ("thief", 80, "k", &another_protocol),
            true,
        ),
        ((80, "k", &plain), ("thief", 81, "other", &plain), false),
        ((80, "k", &plain), ("thief", 81, "", &plain), false),
        ((80, "", &plain), ("thief", 81, "", &plain), false),
        ((80, "k", &plain), ("thief", 81, "k", &cluster), true),
        ((80, "k", &plain), ("thief", 81, "k", &one), false),
        ((80, "k", &one), ("thief", 81, "k", &one), true),
        ((80, "k", &one), ("thief", 81, "k", &other), false),
        ((80, "k", &no_pods), ("thief", 81, "k", &no_pods), false),
    ] {
        let doubled = Violation::Doubled(ip(X), key("thief"), key("web"));
        let expected = match lawful {
            true => vec![],
            false => vec![doubled],
        };
        let log = stale(web, thief);
        assert_eq!(log.violations(), expected, "{web:?} {thief:?}");
    }
}

#[test]
fn who_shows_the_address_of_another_namespace_is_found_twice() {
    // One key, no port in common, and a controller that looks at nothing else. Both wishes are
    // judged, though the address is recorded for one of them only.
    let mut log = Log::default();
    log.vip(X, &[("web", 80, "k")]);
    log.shares("web", 80, "k", &json!({}), &[X]);
    log.shares("tenant/web", 81, "k", &json!({}), &[X]);
    assert_eq!(
        log.violations(),
        [
            Violation::NotHeld(ip(X), key("tenant/web")),
            Violation::Doubled(ip(X), key("web"), key("tenant/web")),
        ]
    );
}

#[test]
fn all_is_not_quiet_while_the_end_would_be_a_violation() {
    let status = |shows: &[&str]| {
        let ingress: Vec<Value> = shows.iter().map(|ip| json!({ "ip": ip })).collect();
        let condition = json!({ "type": "bellrock.dev/LoadBalancer", "reason": "Allocated" });
        json!({ "loadBalancer": { "ingress": ingress }, "conditions": [condition] })
    };
    let service = |name: &str, version: &str, port: u16, shows: &[&str]| {
        json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "resourceVersion": version,
                "annotations": { SHARING_KEY: "k" },
            },
            "spec": wish(&json!({ "ports": [{ "port": port }] })), "status": status(shows),
        })
    };
    let vip = |claims: &[Value]| {
        json!({
            "metadata": {
                "name": virtual_ip_name(ip(X)), "uid": "x", "resourceVersion": "2",
            },
            "spec": { "address": X, "claims": claims },
        })
    };
    let (a, b) = (
        claim("a", 80, "k", &json!({})),
        claim("b", 81, "k", &json!({})),
    );
    let both = vip(&[a.clone(), b]);
    let held = |name| Violation::NotHeld(ip(X), key(name));
    for (services, vips, expected) in [
        // Whatever was written last.
        (
            vec![service("a", "1", 80, &[X]), service("b", "3", 81, &[X])],
            vec![both.clone()],
            vec![],
        ),
        (
            vec![service("a", "1", 80, &[X]), service("b", "3", 80, &[X])],
            vec![both.clone()],
            vec![Violation::Doubled(ip(X), key("a"), key("b"))],
        ),
        (
            vec![service("a", "1", 80, &[X]), service("b", "3", 81, &[X])],
            vec![vip(std::slice::from_ref(&a))],
            vec![held("b")],
        ),
        (vec![service("a", "1", 80, &[X])], vec![], vec![held("a")]),
        (
            vec![service("a", "1", 80, &[])],
            vec![vip(&[a])],
            vec![Violation::Leaked(ip(X), Some(key("a")))],
        ),
        (vec![], vec![vip(&[])], vec![Violation::Leaked(ip(X), None)]),
    ] {
        let mut now = History::default();
        now.close(&services, &vips);
        assert_eq!(open(&now.ordered()), expected);
    }
}

#[test]
fn two_tenants_with_the_same_keys_churn_in_all_policies() {
    let mut dice = Dice::new(1);
    let mut met: BTreeMap<(String, String), u32> = BTreeMap::new();
    for n in 0..500 {
        let service = service(n, &mut dice);
        let spec = &service["spec"];
        let policy = spec["externalTrafficPolicy"].as_str().unwrap();
        let app = spec["selector"]["app"].as_str().unwrap_or("none");
        let sharing = service["metadata"]["annotations"][SHARING_KEY].as_str();
        for what in [
            format!("{policy} {app}"),
            sharing.unwrap_or("no key").to_owned(),
        ] {
            *met.entry((namespace(n).to_owned(), what)).or_default() += 1;
        }
    }
    for tenant in NAMESPACES {
        let of = |what: &str| met.get(&(tenant.to_owned(), what.to_owned())).copied();
        for key in 0..12 {
            assert!(of(&format!("key-{key}")) > Some(0), "{tenant} key-{key}");
        }
        for policy in ["Cluster", "Local"] {
            for app in ["none", "main", "other"] {
                assert!(
                    of(&format!("{policy} {app}")) > Some(0),
                    "{tenant} {policy} {app}"
                );
            }
        }
    }
}

#[test]
fn an_address_that_is_told_but_not_recorded_is_found() {
    // Never recorded for it.
    let mut log = one();
    log.told("thief", &[X]);
    let doubled = Violation::Doubled(ip(X), key("thief"), key("web"));
    assert_eq!(
        log.violations(),
        [Violation::NotHeld(ip(X), key("thief")), doubled]
    );
    // Recorded no more.
    let mut log = one();
    log.vip_deleted(X);
    assert_eq!(log.violations(), [Violation::NotHeld(ip(X), key("web"))]);
    // A write of which nobody knows may have recorded it.
    let mut log = one();
    log.vip_with(Y, &[("late", 80, "")], &json!({}), 504);
    log.told("late", &[Y]);
    log.vip(Y, &[("late", 80, "")]);
    let verdict = log.verdict();
    assert_eq!((verdict.violations, verdict.perhaps), (vec![], 1));
    // But if it never was, that is no excuse in the end.
    let mut log = one();
    log.vip_with(Y, &[("late", 80, "")], &json!({}), 504);
    log.told("late", &[Y]);
    assert_eq!(log.violations(), [Violation::NotHeld(ip(Y), key("late"))]);
}

#[test]
fn an_address_that_is_perhaps_not_told_any_more_may_be_given_up() {
    let left = json!({ "type": "ClusterIP" });
    let released = |shows: &[&str]| {
        let mut log = one();
        log.service("web", &left, &json!({}), &[X]);
        log.perhaps_told("web", shows);
        log.vip_deleted(X);
        log
    };
    let mut log = released(&[]);
    log.service("web", &left, &json!({}), &[]);
    let verdict = log.verdict();
    assert_eq!((verdict.violations, verdict.perhaps), (vec![], 1));
    // It was not made; or it left the address there.
    let not_held = [Violation::NotHeld(ip(X), key("web"))];
    assert_eq!(released(&[]).violations(), not_held);
    let mut log = released(&[X]);
    log.service("web", &left, &json!({}), &[]);
    assert_eq!(log.violations(), not_held);
}

#[test]
fn an_address_that_moves_is_found_unless_the_service_asked_for_it() {
    let annotated = |name: &str, value: &str| json!({ format!("bellrock.dev/{name}"): value });
    for (spec, annotations, asked) in [
        (json!({}), json!({}), false),
        // Other ports are no reason to move one that does not share.
        (json!({ "ports": [{ "port": 443 }] }), json!({}), false),
        (json!({}), annotated("address-pool", "a"), false),
        (json!({}), annotated("load-balancer-ips", X), false),
        (
            json!({ "loadBalancerClass": "bellrock.dev/bellrock" }),
            json!({}),
            false,
        ),
        (json!({}), annotated("address-pool", "b"), true),
        (json!({}), annotated("load-balancer-ips", Y), true),
        (json!({}), annotated("sharing-key", "k"), true),
        // Nor is another policy.
        (
            json!({ "externalTrafficPolicy": "Local" }),
            json!({}),
            false,
        ),
        (
            json!({ "loadBalancerClass": "example.com/other" }),
            json!({}),
            true,
        ),
        (json!({ "type": "ClusterIP" }), json!({}), true),
        (json!({ "ipFamilies": ["IPv6"] }), json!({}), true),
    ] {
        let mut log = one();
        log.service("web", &spec, &annotations, &[X]);
        log.vip(Y, &[("web", 80, "")]);
        log.service("web", &spec, &annotations, &[Y]);
        log.vip_deleted(X);
        let moved = log
            .violations()
            .contains(&Violation::Moved(ip(X), key("web")));
        assert_eq!(moved, !asked, "{spec} {annotations}");
    }
}

#[test]
fn who_shares_may_be_moved_for_another_port_or_policy() {
    let local = json!({ "externalTrafficPolicy": "Local", "selector": { "app": "web" } });
    let relabelled = json!({ "selector": { "app": "web" } });
    for (port, more, asked) in [
        (80, &relabelled, false),
        (81, &json!({}), true),
        (80, &local, true),
    ] {
        let mut log = Log::default();
        log.vip(X, &[("web", 80, "k")]);
        log.shares("web", 80, "k", &json!({}), &[X]);
        log.shares("web", port, "k", more, &[X]);
        log.vip(Y, &[("web", port, "k")]);
        log.shares("web", port, "k", more, &[Y]);
        log.vip_deleted(X);
        let moved = Violation::Moved(ip(X), key("web"));
        assert_eq!(log.violations().contains(&moved), !asked, "{port} {more}");
    }
}

#[test]
fn who_is_told_an_address_while_asking_for_another_may_lose_it_to_that() {
    let wants_y = json!({ "bellrock.dev/load-balancer-ips": Y });
    let mut log = Log::default();
    log.vip(X, &[("web", 80, "")]);
    log.service("web", &json!({}), &wants_y, &[X]);
    log.vip(Y, &[("web", 80, "")]);
    log.service("web", &json!({}), &wants_y, &[Y]);
    log.vip_deleted(X);
    assert_eq!(log.violations(), []);
}

#[test]
fn an_address_that_is_given_before_its_rest_is_over_is_found() {
    for (name, code, deleted, pause, early) in [
        ("new", 200, false, 2, true),
        ("new", 200, true, 2, true),
        ("new", 200, true, 12, false),
        // It may come back to who had it.
        ("web", 200, true, 2, false),
        // The release may not have been made, but the deletion shows that it was.
        ("new", 504, true, 2, true),
        ("new", 504, true, 12, false),
    ] {
        let mut log = one();
        log.deleted("web");
        log.rests_with(X, "web", code);
        for _ in 0..pause {
            log.leads("one");
        }
        if deleted {
            log.vip_deleted(X);
        }
        log.vip(X, &[(name, 80, "")]);
        log.told(name, &[X]);
        let expected = if early {
            vec![Violation::RestCutShort(ip(X), key(name))]
        } else {
            vec![]
        };
        assert_eq!(log.violations(), expected, "{name} after {pause} s");
    }
}

#[test]
fn an_address_that_is_left_behind_is_found() {
    // Its Service is gone.
    let mut log = one();
    log.deleted("web");
    let leaked = Violation::Leaked(ip(X), Some(key("web")));
    assert_eq!(log.violations(), [leaked]);
    // Its Service was never told.
    let mut log = one();
    log.vip(Y, &[("web", 80, "")]);
    let leaked = Violation::Leaked(ip(Y), Some(key("web")));
    assert_eq!(log.violations(), [leaked]);
    // It rests for ever.
    let mut log = one();
    log.deleted("web");
    log.rests(X, "web");
    assert_eq!(log.violations(), [Violation::Leaked(ip(X), None)]);
}

#[test]
fn a_service_that_nobody_looked_at_is_found() {
    let mut log = one();
    let target = json!({ "resource": "services", "namespace": "default", "name": "new" });
    let object = json!({
        "metadata": { "name": "new", "uid": "u", "resourceVersion": log.version() },
        "spec": wish(&json!({})), "status": {},
    });
    log.line("create", &target, 201, &json!(null), &object);
    assert_eq!(log.violations(), [Violation::Forgotten(key("new"))]);
}

#[test]
fn versions_not_lines_make_the_order_and_what_is_listed_closes_it() {
    // The line of the status comes before that of the record.
    let mut log = one();
    log.second += 1;
    log.told("late", &[Y]);
    log.second -= 2;
    log.vip(Y, &[("late", 80, "")]);
    assert_eq!(log.violations(), []);
    // Nobody told of the last write.
    let mut log = one();
    let status = json!({ "loadBalancer": { "ingress": [] } });
    let listed = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "uid-web-0", "resourceVersion": "999" },
        "spec": wish(&json!({})), "status": status,
    });
    assert_eq!(log.history.close(&[listed], &[]), 1);
    assert!(
        log.violations()
            .contains(&Violation::Moved(ip(X), key("web")))
    );
}
