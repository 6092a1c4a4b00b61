//! Turns with a kernel that confirms, refuses and fails.

use bellrock_bgp::PeerAsn;
use bellrock_forward::Protocol;

use super::*;
use crate::cluster::{
    BgpAdvertisement, Endpoint, L2Advertisement, Node, Peer, ServiceKind, ServicePort, Slice,
    TrafficPolicy, VirtualIp,
};
use crate::plan::Way;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

struct World(Turn);

impl World {
    fn new() -> Self {
        let mut turn = Turn::new("n1".into(), Settings::default());
        let node = Node {
            addresses: [IpAddr::from([10, 0, 0, 1])].into(),
            ..Node::default()
        };
        turn.take(Change::Node("n1".into(), Some(node)));
        turn.take(Change::L2Advertisement(
            "l2".into(),
            Some(L2Advertisement::default()),
        ));
        let ad = BgpAdvertisement {
            aggregation_length: 32,
            aggregation_length_v6: 128,
            ..BgpAdvertisement::default()
        };
        turn.take(Change::BgpAdvertisement("bgp".into(), Some(ad)));
        let peer = Peer::new([10, 0, 0, 254].into(), 64512, PeerAsn::Exact(64513));
        turn.take(Change::Peer("tor".into(), Some(peer)));
        Self(turn)
    }

    fn service(&mut self, name: &str, last: u8) {
        let service = crate::cluster::Service {
            kind: ServiceKind::LoadBalancer,
            labels: BTreeMap::new(),
            policy: TrafficPolicy::Cluster,
            affinity: false,
            source_ranges: Some(vec![]),
            health_check_port: None,
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
        };
        self.0.take(Change::Service(key(name), Some(service)));
        self.claim(name, last);
    }

    fn claim(&mut self, name: &str, last: u8) {
        let vip = VirtualIp {
            pool: None,
            claims: [key(name)].into(),
            desired: None,
            successors: vec![],
            created: 0,
            recorded: None,
        };
        self.0.take(Change::VirtualIp(address(last), Some(vip)));
    }

    fn endpoints(&mut self, name: &str, pods: &[u8]) {
        let endpoints = pods.iter().map(|pod| Endpoint {
            address: IpAddr::from([10, 244, 1, *pod]),
            node: Some("n1".into()),
            ready: true,
            serving_terminating: false,
            hints: None,
        });
        let slice = Slice {
            ports: [((String::new(), Protocol::Tcp), 8080)].into(),
            endpoints: endpoints.collect(),
            names: false,
        };
        self.0
            .take(Change::Slice(key(name), Some((key(name), slice))));
    }

    /// A turn in which the kernel takes everything.
    fn settle(&mut self) -> (Begun, Vec<Step>) {
        let begun = self.0.begin();
        let steps = self.0.confirm(begun.forward.clone(), Ok(&BTreeMap::new()));
        (begun, steps)
    }

    /// What is announced: (name, way).
    fn announced(&self) -> Vec<(String, Way)> {
        let verdicts = self.0.verdicts().into_iter();
        verdicts
            .filter(|(_, v)| v.refused.is_none())
            .map(|(key, v)| (key.name, v.way))
            .collect()
    }

    fn reason(&self, name: &str) -> Option<Reason> {
        let verdicts = self.0.verdicts();
        verdicts
            .iter()
            .find(|(k, v)| *k == key(name) && v.way == Way::L2)?
            .1
            .refused
    }
}

fn both(name: &str) -> Vec<(String, Way)> {
    vec![(name.to_owned(), Way::L2), (name.to_owned(), Way::Bgp)]
}

#[test]
fn nothing_is_announced_before_the_kernel_carries_it() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    let begun = world.0.begin();
    assert!(begun.forward.whole && begun.forward.services[&key("web")].is_some());
    assert!(begun.forward.node.is_some());
    assert_eq!(world.announced(), []);
    assert_eq!(world.reason("web"), Some(Reason::ForwardingNotReady));
    assert!(begun.steps.iter().all(|step| step.now.routes.is_empty()));
    let steps = world.0.confirm(begun.forward, Ok(&BTreeMap::new()));
    assert_eq!(world.announced(), both("web"));
    assert_eq!(steps[0].now.routes["tor"].len(), 1);
    assert!(!world.0.is_due());
}

#[test]
fn a_first_endpoint_is_in_the_kernel_before_the_address_is_announced() {
    let mut world = World::new();
    world.service("web", 10);
    world.settle();
    assert_eq!(world.reason("web"), Some(Reason::NoEndpoint));
    world.endpoints("web", &[1]);
    let begun = world.0.begin();
    assert_eq!(world.reason("web"), Some(Reason::ForwardingNotReady));
    assert_eq!(world.announced(), []);
    world.0.confirm(begun.forward, Ok(&BTreeMap::new()));
    assert_eq!(world.announced(), both("web"));
}

#[test]
fn what_is_carried_stays_announced_while_its_endpoints_change() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    world.endpoints("web", &[1, 2]);
    let begun = world.0.begin();
    assert_eq!(begun.forward.services.len(), 1);
    assert_eq!(world.announced(), both("web"));
    // The kernel fails: what it had still serves, and it is tried again.
    assert!(world.0.confirm(begun.forward, Err(())).is_empty());
    assert_eq!(world.announced(), both("web"));
    assert!(world.0.is_due());
    let again = world.0.begin();
    assert_eq!(
        again.forward.services[&key("web")].as_ref().unwrap().ports[0]
            .endpoints
            .len(),
        2
    );
    world.0.confirm(again.forward, Ok(&BTreeMap::new()));
    assert!(!world.0.is_due());
}

#[test]
fn a_second_address_waits_for_the_kernel_and_the_first_does_not() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    world.claim("web", 11);
    let begun = world.0.begin();
    let now = &begun
        .steps
        .iter()
        .find(|step| step.service == key("web"))
        .unwrap()
        .now;
    assert!(now.l2[&address(10)].eligible && !now.l2[&address(11)].eligible);
    assert_eq!(now.routes["tor"].len(), 1);
    let steps = world.0.confirm(begun.forward, Ok(&BTreeMap::new()));
    assert_eq!(steps[0].now.routes["tor"].len(), 2);
}

#[test]
fn what_has_no_endpoint_left_is_withdrawn_before_the_kernel_is_asked() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    world.endpoints("web", &[]);
    let begun = world.0.begin();
    assert!(begun.steps[0].now.routes.is_empty());
    assert_eq!(world.reason("web"), Some(Reason::NoEndpoint));
}

#[test]
fn a_deleted_service_leaves_the_kernel_even_if_that_fails_at_first() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    world.0.take(Change::Service(key("web"), None));
    let begun = world.0.begin();
    assert_eq!(begun.forward.services, [(key("web"), None)].into());
    assert!(begun.steps[0].now.l2.is_empty());
    world.0.confirm(begun.forward, Err(()));
    // Meanwhile everything else becomes due.
    world.0.take(Change::L2Advertisement("l2".into(), None));
    let again = world.0.begin();
    assert_eq!(again.forward.services, [(key("web"), None)].into());
    world.0.confirm(again.forward, Ok(&BTreeMap::new()));
    assert_eq!(world.0.carried(), 0);
    assert!(!world.0.is_due());
}

#[test]
fn a_refused_service_is_not_announced_and_comes_back_when_the_kernel_takes_it() {
    let mut world = World::new();
    for (name, last) in [("a", 10), ("b", 11)] {
        world.service(name, last);
        world.endpoints(name, &[1]);
    }
    let begun = world.0.begin();
    let refused: BTreeMap<_, _> = [(key("b"), "taken by a".to_owned())].into();
    world.0.confirm(begun.forward, Ok(&refused));
    assert_eq!(world.announced(), both("a"));
    assert_eq!(world.reason("b"), Some(Reason::ForwardingRefused));
    // `a` goes, and with its change the kernel takes `b`.
    world.0.take(Change::Service(key("a"), None));
    let begun = world.0.begin();
    assert!(!begun.forward.services.contains_key(&key("b")));
    world.0.confirm(begun.forward, Ok(&BTreeMap::new()));
    assert_eq!(world.announced(), both("b"));
    // One that is refused later, by somebody else's change, is withdrawn.
    let refused: BTreeMap<_, _> = [(key("b"), "gone wrong".to_owned())].into();
    let steps = world.0.confirm(Forward::default(), Ok(&refused));
    assert_eq!(steps.len(), 1);
    assert_eq!(world.announced(), []);
    // And it is tried again from time to time.
    world.0.retry();
    assert!(world.0.is_due());
    world.settle();
    assert_eq!(world.announced(), both("b"));
}

#[test]
fn an_address_that_somebody_uses_is_neither_announced_nor_forwarded() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    for taken in [true, false] {
        world.0.protect(if taken {
            [address(10)].into()
        } else {
            BTreeSet::new()
        });
        let (begun, _) = world.settle();
        let forward = begun.forward.services[&key("web")].as_ref().unwrap();
        assert_eq!(forward.addresses.is_empty(), taken);
        assert_eq!(world.reason("web"), taken.then_some(Reason::AddressTaken));
    }
    let node = Node {
        addresses: [address(10)].into(),
        ..Node::default()
    };
    world.0.take(Change::Node("n2".into(), Some(node)));
    world.settle();
    assert_eq!(world.reason("web"), Some(Reason::AddressTaken));
}

#[test]
fn a_table_in_doubt_is_made_whole_and_what_is_announced_stays_so() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    assert_eq!(world.announced(), both("web"));
    world.0.doubt();
    let begun = world.0.begin();
    assert!(begun.forward.whole && begun.forward.node.is_some());
    let services: Vec<_> = begun.forward.services.keys().cloned().collect();
    assert_eq!(services, [key("web")]);
    assert_eq!(world.announced(), both("web"));
    // The kernel fails: all of it once more.
    assert!(world.0.confirm(begun.forward, Err(())).is_empty());
    assert_eq!(world.announced(), both("web"));
    let begun = world.0.begin();
    assert!(begun.forward.whole && begun.forward.services.len() == 1);
    let refused = BTreeMap::new();
    world.0.confirm(begun.forward, Ok(&refused));
    assert_eq!(world.announced(), both("web"));
    assert!(!world.0.is_due());
}

#[test]
fn without_a_change_a_turn_has_nothing_to_do() {
    let mut world = World::new();
    world.service("web", 10);
    world.endpoints("web", &[1]);
    world.settle();
    assert_eq!(world.0.begin(), Begun::default());
}

#[test]
fn silent_nodes_concern_only_the_services_that_have_endpoints_there() {
    let mut world = World::new();
    world.service("web", 10);
    world.service("db", 11);
    world.endpoints("web", &[1]);
    world.endpoints("db", &[2]);
    let elsewhere = |pod: u8| Endpoint {
        address: IpAddr::from([10, 244, 2, pod]),
        node: Some("n2".into()),
        ready: true,
        serving_terminating: false,
        hints: None,
    };
    let slice = Slice {
        ports: [((String::new(), Protocol::Tcp), 8080)].into(),
        endpoints: vec![elsewhere(3)],
        names: false,
    };
    world
        .0
        .take(Change::Slice(key("web-2"), Some((key("web"), slice))));
    world.settle();
    let endpoints = |begun: &Begun| {
        let service = begun.forward.services[&key("web")].clone().unwrap();
        service.ports[0].endpoints.len()
    };

    world.0.hush(["n2".to_owned()].into());
    let (begun, _) = world.settle();
    assert_eq!(begun.forward.services.len(), 1);
    assert_eq!(endpoints(&begun), 1);
    assert_eq!(world.announced().len(), 4, "nothing is withdrawn for it");
    world.0.hush(["n2".to_owned()].into());
    assert!(!world.0.is_due());
    world.0.hush(BTreeSet::new());
    let (begun, _) = world.settle();
    assert_eq!(endpoints(&begun), 2);
}
