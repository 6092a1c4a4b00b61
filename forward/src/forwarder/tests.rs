//! What happens when the kernel, the real one, refuses a Service's elements.

use bellrock_e2e::netns::{Netns, as_root};

use super::*;
use crate::content::{Entry, Front, Range, Value};
use crate::diff::{Action, Op};
use crate::model::{Endpoint, Port, Protocol};

/// What is added to a Service's operations, so that the kernel refuses them.
#[derive(Debug)]
pub(super) struct Spoiled {
    service: ServiceKey,
    ranges: &'static [(&'static str, &'static str)],
}

impl Spoiled {
    /// A range whose end is before its start.
    pub(super) fn backwards(service: ServiceKey) -> Option<Self> {
        let ranges = &[("10.0.0.2", "10.0.0.1")];
        Some(Self { service, ranges })
    }

    /// Two ranges that overlap: refused in the way of a table that somebody
    /// else has changed.
    pub(super) fn overlapping(service: ServiceKey) -> Option<Self> {
        let ranges = &[("10.0.0.1", "10.0.0.5"), ("10.0.0.3", "10.0.0.9")];
        Some(Self { service, ranges })
    }
}

pub(super) fn spoil(mut ops: Vec<Op>, spoiled: Option<&Spoiled>) -> Vec<Op> {
    let Some(Spoiled { service, ranges }) = spoiled else {
        return ops;
    };
    let added =
        |op: &&Op| matches!(op.action, Action::Add(_)) && op.owner.as_deref() == Some(service);
    if let Some(owner) = ops.iter().find(added).and_then(|op| op.owner.clone()) {
        let front = Front {
            address: "203.0.113.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        ops.extend(ranges.iter().map(|(first, last)| {
            let range = Range {
                first: first.parse().unwrap(),
                last: last.parse().unwrap(),
            };
            Op {
                entry: Entry::Source(front, range),
                action: Action::Add(Value::Member),
                owner: Some(owner.clone()),
            }
        }));
    }
    ops
}

/// Somebody else, who does something before a commit, once.
pub(super) struct Meddler {
    commits: usize,
    deed: Box<dyn FnOnce() + Send>,
}

impl Meddler {
    /// `before`: counts commits from 0.
    pub(super) fn new(before: usize, deed: impl FnOnce() + Send + 'static) -> Self {
        Self {
            commits: before,
            deed: Box::new(deed),
        }
    }
}

impl std::fmt::Debug for Meddler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meddler").finish_non_exhaustive()
    }
}

pub(super) fn meddle(meddler: &mut Option<Meddler>) {
    match meddler {
        Some(waiting) if waiting.commits > 0 => waiting.commits -= 1,
        _ => {
            if let Some(meddler) = meddler.take() {
                (meddler.deed)();
            }
        }
    }
}

pub(super) fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

pub(super) fn service(last: u8, endpoints: u8) -> Service {
    let endpoints: Vec<Endpoint> = (1..=endpoints)
        .map(|n| Endpoint {
            address: [10, 244, last, n].into(),
            port: 8080,
            local: false,
        })
        .collect();
    Service {
        addresses: [[203, 0, 113, last].into()].into(),
        ports: vec![Port {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            endpoints,
            local_endpoints: vec![],
        }],
        ..Service::default()
    }
}

fn endpoints(host: &Netns) -> String {
    host.sh("nft list map inet bellrock endpoints4").unwrap()
}

#[test]
fn a_service_that_the_kernel_refuses_is_named_and_the_others_are_in_force() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();
    forwarder.spoiled = Spoiled::backwards(key("b"));
    let all: BTreeMap<ServiceKey, Service> = [("a", 1), ("b", 2), ("c", 3)]
        .map(|(name, n)| (key(name), service(n, 2)))
        .into();
    let node = Node::default();
    let check = |report: &Report, forwarder: &mut Forwarder| {
        assert_eq!(report.programmed, 2);
        assert_eq!(report.refused.keys().collect::<Vec<_>>(), [&key("b")]);
        let why = &report.refused[&key("b")];
        assert!(
            why.contains("\"sources4\"") && why.contains("(error 22"),
            "{why}"
        );
        let listed = endpoints(&host);
        assert!(
            listed.contains("203.0.113.1 ") && listed.contains("203.0.113.3 "),
            "{listed}"
        );
        assert!(!listed.contains("203.0.113.2 "), "{listed}");
        assert!(!forwarder.check().unwrap());
    };
    // In its own batches, and in the one that replaces a table.
    let report = forwarder.sync(&node, &all).unwrap();
    check(&report, &mut forwarder);
    host.sh("nft flush ruleset; nft add table inet bellrock")
        .unwrap();
    let report = forwarder.sync(&node, &all).unwrap();
    check(&report, &mut forwarder);
    // Together with changes of others.
    let changes: BTreeMap<_, _> = all
        .iter()
        .map(|(key, service)| (key.clone(), Some(service.clone())))
        .collect();
    let report = forwarder.apply(changes.clone()).unwrap();
    check(&report, &mut forwarder);

    forwarder.spoiled = None;
    let report = forwarder.apply(changes).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (3, 0));
    assert!(endpoints(&host).contains("203.0.113.2 "));
}

#[test]
fn what_was_in_force_of_a_refused_service_stays_in_force() {
    if !as_root() {
        return;
    }
    let host = Netns::new("node").unwrap();
    let mut forwarder = host.run(Forwarder::open).unwrap().unwrap();
    let node = Node::default();
    let all: BTreeMap<ServiceKey, Service> = [("a", 1), ("b", 2)]
        .map(|(name, n)| (key(name), service(n, 2)))
        .into();
    forwarder.sync(&node, &all).unwrap();
    let before = endpoints(&host);

    forwarder.spoiled = Spoiled::backwards(key("b"));
    let report = forwarder
        .apply([(key("b"), Some(service(2, 3)))].into())
        .unwrap();
    assert_eq!((report.programmed, report.refused.len()), (1, 1));
    assert_eq!(endpoints(&host), before);
    // Through a synchronisation, too: only the new elements are refused.
    let more = [(key("a"), service(1, 2)), (key("b"), service(2, 3))].into();
    let report = forwarder.sync(&node, &more).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (1, 1));
    assert_eq!(endpoints(&host), before);

    let report = forwarder.apply([(key("b"), None)].into()).unwrap();
    assert_eq!((report.programmed, report.refused.len()), (1, 0));
    assert!(!endpoints(&host).contains("203.0.113.2 "));
}

#[test]
fn an_error_says_in_words_what_the_kernel_said() {
    let denied = Error::Kernel {
        doing: "read the table",
        errno: 1,
        text: None,
    };
    assert_eq!(
        denied.to_string(),
        "cannot read the table: not permitted: nftables needs CAP_NET_ADMIN, \
         and nobody else may own the table (1)"
    );
    let text = Some("No such set".to_owned());
    let missing = Error::Kernel {
        doing: "change the table",
        errno: 2,
        text,
    };
    assert!(
        missing.to_string().ends_with("(2: No such set)"),
        "{missing}"
    );
}
