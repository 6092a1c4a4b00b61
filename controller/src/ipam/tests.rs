//! The allocator against tables and against a naive model: what both use.

mod model;
mod tables;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bellrock_api::{AllocationReason, MAX_CLAIMS, Protocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::*;

type Labels = BTreeMap<String, String>;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(key: &str, value: &str) -> Labels {
    [(key.to_owned(), value.to_owned())].into()
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels(key, value)),
        match_expressions: None,
    }
}

fn pool(name: &str, ranges: &[&str]) -> Pool {
    Pool {
        name: name.to_owned(),
        ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
        auto_assign: true,
        avoid_buggy_ips: false,
        reuse_delay: Duration::ZERO,
        scope: Scope::default(),
    }
}

/// A Service, built up by what a test cares about.
#[derive(Clone)]
struct Ask {
    key: ServiceKey,
    namespace_labels: Labels,
    service_labels: Labels,
    claim: Claim,
    families: Vec<Family>,
    require_both: bool,
    addresses: Vec<IpAddr>,
    pools: Vec<String>,
    before: Vec<IpAddr>,
}

fn ask(name: &str) -> Ask {
    let claim = Claim {
        ports: [(Protocol::Tcp, 80)].into(),
        sharing_key: None,
        backend: Backend::Cluster,
    };
    Ask {
        key: ServiceKey::new("default", name),
        namespace_labels: Labels::new(),
        service_labels: Labels::new(),
        claim,
        families: vec![Family::V4],
        require_both: false,
        addresses: vec![],
        pools: vec![],
        before: vec![],
    }
}

impl Ask {
    fn dual(mut self) -> Self {
        self.families = vec![Family::V4, Family::V6];
        self
    }
    fn both(mut self) -> Self {
        self.require_both = true;
        self.dual()
    }
    fn address(mut self, text: &str) -> Self {
        self.addresses.push(ip(text));
        self
    }
    fn pool(mut self, name: &str) -> Self {
        self.pools.push(name.to_owned());
        self
    }
    fn shares(mut self, key: &str, port: u16) -> Self {
        self.claim.sharing_key = Some(key.to_owned());
        self.claim.ports = [(Protocol::Tcp, port)].into();
        self
    }
    fn namespace(mut self, namespace: &str) -> Self {
        self.key = ServiceKey::new(namespace, &*self.key.name);
        self
    }

    fn request(&self) -> Request<'_> {
        Request {
            service: &self.key,
            namespace_labels: Some(&self.namespace_labels),
            service_labels: &self.service_labels,
            claim: &self.claim,
            families: &self.families,
            require_both: self.require_both,
            addresses: &self.addresses,
            unreadable: None,
            pools: &self.pools,
            before: &self.before,
        }
    }
}

/// Settles and enters the decision into the book, then checks that a second pass changes nothing.
fn run(book: &mut Allocator, ask: &Ask, now: Duration) -> Settlement {
    let settlement = book.settle(&ask.request(), now);
    for pick in &settlement.take {
        book.claim(pick.address, &ask.key, ask.claim.clone());
    }
    for kept in &settlement.keep {
        book.claim(*kept, &ask.key, ask.claim.clone());
    }
    for gone in &settlement.give_up {
        book.release(*gone, &ask.key, now);
    }
    let again = book.settle(&ask.request(), now);
    assert!(
        again.take.is_empty() && again.give_up.is_empty(),
        "second pass: {again:?}"
    );
    assert_eq!(again.refusal, settlement.refusal, "second pass");
    settlement
}

fn has(book: &Allocator, ask: &Ask) -> Vec<String> {
    book.held_by(&ask.key).map(|ip| ip.to_string()).collect()
}

fn reason(settlement: &Settlement) -> Option<AllocationReason> {
    settlement.refusal.as_ref().map(Refusal::reason)
}

const T0: Duration = Duration::from_secs(1000);
