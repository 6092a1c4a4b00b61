//! Random Services, random changes: whatever the way, the table is the same.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::content::Class;
use crate::model::{Endpoint, ExternalPolicy, Port};

pub(crate) type Services = BTreeMap<Arc<ServiceKey>, Arc<Service>>;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &&str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn node() -> Node {
    Node {
        node_port_addresses: [ip("192.0.2.11"), ip("2001:db8::11")].into(),
        pod_networks: ["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/16"]
            .iter()
            .map(net)
            .collect(),
        local_pod_networks: ["10.244.1.0/24", "fd00::/64"].iter().map(net).collect(),
    }
}

/// Few names, addresses and ports, so that Services meet.
fn key() -> impl Strategy<Value = Arc<ServiceKey>> {
    select(vec!["a", "b", "c", "d"]).prop_map(|name| Arc::new(ServiceKey::new("test", name)))
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let all: Vec<Endpoint> = [
        ("10.244.1.1", 8080, true),
        ("10.244.1.2", 8080, true),
        ("10.244.2.1", 8080, false),
        ("10.244.2.2", 8081, false),
        ("10.244.3.1", 8080, false),
        ("fd00::1", 8080, true),
        ("fd00:0:0:1::1", 8080, false),
    ]
    .map(|(address, port, local)| Endpoint {
        address: ip(address),
        port,
        local,
    })
    .into();
    subsequence(all, 0..=7)
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    let node_port = proptest::option::of(select(vec![30_000, 30_001]));
    (protocol, select(vec![80, 81]), node_port, endpoints()).prop_map(
        |(protocol, port, node_port, endpoints)| Port {
            name: String::new(),
            protocol,
            port,
            node_port,
            local_endpoints: endpoints.iter().filter(|e| e.local).copied().collect(),
            endpoints,
        },
    )
}

fn service() -> impl Strategy<Value = Arc<Service>> {
    let addresses = vec!["203.0.113.1", "203.0.113.2", "2001:db8:113::1"];
    let ranges = vec!["10.0.0.0/8", "10.1.0.0/16", "10.128.0.0/9", "2001:db8::/32"];
    (
        btree_set(select(addresses).prop_map(ip), 0..3),
        vec(port(), 0..3),
        select(vec![ExternalPolicy::Cluster, ExternalPolicy::Local]),
        prop::bool::weighted(0.1),
        subsequence(ranges, 0..=4),
    )
        .prop_map(|(addresses, ports, policy, affinity, ranges)| Service {
            addresses,
            ports,
            policy,
            affinity,
            source_ranges: ranges.iter().map(net).collect(),
        })
        .prop_filter("valid", |service| {
            content::refusal(&node(), service).is_none()
        })
        .prop_map(Arc::new)
}

fn services() -> impl Strategy<Value = Services> {
    btree_map(key(), service(), 0..4)
}

/// Some changes at once.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    btree_map(key(), proptest::option::weighted(0.8, service()), 1..3)
        .prop_map(|changes| changes.into_iter().collect())
}

/// A strict table: adds what is absent, deletes what is there.
#[derive(Clone, Debug, Default)]
struct Kernel(BTreeMap<Entry, Value>);

impl Kernel {
    fn batch(&mut self, ops: &[&Op]) {
        let mut ops = ops.to_vec();
        ops.sort_by_key(|op| (op.step(), op.entry));
        for op in ops {
            match op.action {
                Action::Add(value) => {
                    self.no_overlap(&op.entry);
                    assert_eq!(self.0.insert(op.entry, value), None, "added twice: {op:?}");
                }
                Action::Replace(value) => {
                    let was = self.0.insert(op.entry, value);
                    assert!(
                        was.is_some_and(|was| was != value),
                        "{op:?} replaces {was:?}"
                    );
                }
                Action::Delete(_) => {
                    assert!(
                        self.0.remove(&op.entry).is_some(),
                        "deleted what is not: {op:?}"
                    );
                }
            }
        }
    }

    fn no_overlap(&self, new: &Entry) {
        let (scope, range) = match new {
            Entry::Source(front, range) => ((Some(*front), None), range),
            Entry::Network(network, range) => ((None, Some(*network)), range),
            _ => return,
        };
        for entry in self.0.keys() {
            let (other, there) = match entry {
                Entry::Source(front, range) => ((Some(*front), None), range),
                Entry::Network(network, range) => ((None, Some(*network)), range),
                _ => continue,
            };
            let apart = range.last < there.first || there.last < range.first;
            assert!(other != scope || apart, "{new:?} overlaps {entry:?}");
        }
    }

    /// Carries out the operations as the driver does, and checks that a packet
    /// that straddles a commit finds its way.
    fn commit(&mut self, ops: &[Op]) {
        let batch = |when| {
            ops.iter()
                .filter(move |op| op.when() == when)
                .collect::<Vec<_>>()
        };
        self.batch(&batch(When::First));
        let before = self.clone();
        self.batch(&batch(When::Now));
        before.whole(&before);
        before.whole(self);
        before.has_chains_of(self);
        let between = self.clone();
        self.batch(&batch(When::Later));
        // No packet is left that saw what was before.
        between.whole(self);
        self.whole(self);
        between.has_chains_of(self);
    }

    /// Whether chains are there before anything leads to them: their rules are
    /// not, for a packet that began before.
    fn has_chains_of(&self, after: &Self) {
        for value in after.0.values() {
            if let Value::Class(class) = value {
                assert!(
                    self.0.contains_key(&Entry::Chain(*class)),
                    "chain too late: {class:?}"
                );
            }
        }
    }

    /// Whether a packet that read its class here finds the chain, and every
    /// slot, there.
    fn whole(&self, there: &Self) {
        for (entry, value) in &self.0 {
            let front = match entry {
                Entry::Ours(front) => {
                    assert!(
                        self.0.contains_key(&Entry::Class(*front)),
                        "no class: {front}"
                    );
                    assert!(
                        there.0.contains_key(&Entry::Class(*front)),
                        "no class: {front}"
                    );
                    continue;
                }
                Entry::Class(front) | Entry::ClassInside(front) => front,
                _ => continue,
            };
            // A front that is no longer served does not lead here.
            if !self.0.contains_key(&Entry::Ours(*front)) {
                continue;
            }
            if let (Entry::ClassInside(_), false) = (entry, there.0.contains_key(entry)) {
                let outside = self.0.get(&Entry::Class(*front));
                assert_eq!(outside, Some(value), "between two classes: {front}");
            }
            let Value::Class(class) = value else {
                panic!("{entry:?} is {value:?}")
            };
            for class in [*class, class.unrestricted()] {
                assert!(
                    there.0.contains_key(&Entry::Chain(class)),
                    "no chain: {class:?}"
                );
            }
            for slot in 0..class.slots {
                let entry = Entry::Endpoint(*front, class.scope, slot);
                assert!(there.0.contains_key(&entry), "no endpoint: {entry:?}");
            }
        }
    }
}

/// The content of a state made at once.
pub(crate) fn scratch(services: &Services) -> BTreeMap<Entry, Value> {
    let mut state = State::new(node());
    let all: Vec<Change> = services
        .iter()
        .map(|(k, s)| (k.clone(), Some(s.clone())))
        .collect();
    state.change(&all, &mut Vec::new());
    state.whole()
}

/// The entries that belong to a Service alone or with others.
fn weight(service: &Service) -> usize {
    content::of_service(&node(), service, |_| true).len()
}

/// The most operations that changes may cost: twice the entries of the Services
/// that change, before and after, and of those that they share a front with.
pub(crate) fn bound(state: &State, services: &Services, changes: &[Change]) -> usize {
    let concerned = || {
        changes
            .iter()
            .flat_map(|(key, new)| new.iter().chain(services.get(key)))
    };
    let fronts: BTreeSet<Front> = concerned()
        .flat_map(|service| state.fronts(service))
        .collect();
    let neighbours = services
        .values()
        .filter(|service| state.fronts(service).iter().any(|f| fronts.contains(f)));
    concerned()
        .chain(neighbours)
        .map(|service| 2 * weight(service))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_way_leads_to_the_same_content_by_batches_in_proportion(
        steps in vec(changes(), 1..12)
    ) {
        let mut state = State::new(node());
        let mut ops = Vec::new();
        diff::of_node(&Vec::new(), &content::of_node(&node()), &mut ops);
        let mut kernel = Kernel::default();
        kernel.commit(&ops);
        let mut services = Services::new();
        for changes in steps {
            let bound = bound(&state, &services, &changes);
            let mut ops = Vec::new();
            let undo = state.change(&changes, &mut ops);
            prop_assert!(ops.len() <= bound, "{} operations, {bound} at most", ops.len());
            kernel.commit(&ops);
            prop_assert_eq!(&kernel.0, &state.whole());

            // A refused batch is taken back as if it had never been.
            state.change(&undo, &mut Vec::new());
            prop_assert_eq!(state.whole(), scratch(&services));
            state.change(&changes, &mut Vec::new());

            for (key, service) in changes {
                match service {
                    Some(service) => services.insert(key, service),
                    None => services.remove(&key),
                };
            }
            prop_assert_eq!(&kernel.0, &scratch(&services));
            let lost: usize = state.lost.values().map(BTreeSet::len).sum();
            let others: usize = state.claims.values().map(|c| c.others.len()).sum();
            prop_assert_eq!(lost, others);
        }
        let all: Vec<Change> = services.into_keys().map(|key| (key, None)).collect();
        let mut ops = Vec::new();
        state.change(&all, &mut ops);
        kernel.commit(&ops);
        prop_assert_eq!(kernel.0, content::of_node(&node()).into_iter().collect());
        prop_assert!(state.shared.is_empty() && state.claims.is_empty());
    }

    #[test]
    fn what_is_there_is_adopted_and_only_the_difference_written(
        old in services(), new in services()
    ) {
        let there = scratch(&old);
        let mut left = there.clone();
        let mut kernel = Kernel(there.clone());
        left.retain(|entry, _| !matches!(entry, Entry::Network(..)));
        let mut state = State::new(node());
        // In small batches, as the driver does with large ones.
        for (key, service) in &new {
            let mut ops = Vec::new();
            state.change(&[(key.clone(), Some(service.clone()))], &mut ops);
            let (ops, used) = adopt(ops, &left);
            kernel.commit(&ops);
            for entry in used {
                left.remove(&entry);
            }
        }
        kernel.commit(&leftovers(&left));
        prop_assert_eq!(&kernel.0, &scratch(&new));
        // Once more: nothing is left to do.
        let mut state = State::new(node());
        for (key, service) in &new {
            let mut ops = Vec::new();
            state.change(&[(key.clone(), Some(service.clone()))], &mut ops);
            let (ops, _) = adopt(ops, &kernel.0);
            prop_assert!(ops.is_empty(), "{:?}", ops);
        }
    }
}

#[test]
fn a_front_of_two_services_goes_to_the_first_by_name_and_then_to_the_next() {
    let key = |name| Arc::new(ServiceKey::new("test", name));
    let service = |endpoint: &str| {
        let endpoint = Endpoint {
            address: ip(endpoint),
            port: 8080,
            local: false,
        };
        Arc::new(Service {
            addresses: [ip("203.0.113.1")].into(),
            ports: vec![Port {
                name: "web".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                endpoints: vec![endpoint],
                local_endpoints: vec![],
            }],
            ..Service::default()
        })
    };
    let mut state = State::new(Node::default());
    let change = |state: &mut State, name, service| {
        state.change(&[(key(name), service)], &mut Vec::new());
        let to = state
            .whole()
            .into_iter()
            .find_map(|(entry, value)| match (entry, value) {
                (Entry::Endpoint(..), Value::Endpoint(address, _)) => Some(address.to_string()),
                _ => None,
            });
        let lost: Vec<String> = state
            .conflicts()
            .map(|(k, why)| format!("{k}: {why}"))
            .collect();
        (to.unwrap_or_default(), lost.join(" "))
    };
    let lost = "203.0.113.1 port 80/tcp belongs to Service test/a.";
    let b = change(&mut state, "b", Some(service("10.0.0.2")));
    assert_eq!(b, ("10.0.0.2".into(), String::new()));
    let a = change(&mut state, "a", Some(service("10.0.0.1")));
    assert_eq!(a, ("10.0.0.1".into(), format!("test/b: {lost}")));
    let c = change(&mut state, "c", Some(service("10.0.0.3")));
    assert_eq!(
        c,
        ("10.0.0.1".into(), format!("test/b: {lost} test/c: {lost}"))
    );
    let (to, _) = change(&mut state, "a", None);
    assert_eq!(to, "10.0.0.2");
    let (to, lost) = change(&mut state, "b", None);
    assert_eq!((to.as_str(), lost.as_str()), ("10.0.0.3", ""));
}

#[test]
fn a_class_survives_its_number() {
    let mut seen = BTreeSet::new();
    for bits in 0..16 {
        for slots in [0, 1, 2, 64, Class::MAX_SLOTS] {
            let id = 0xbe00_0000 | bits << 20 | slots;
            let class = Class::from_id(id).unwrap();
            assert_eq!(class.id(), id);
            assert!(
                seen.insert(class.chain()),
                "{} names two classes",
                class.chain()
            );
        }
    }
    assert_eq!(Class::from_id(0), None);
}
