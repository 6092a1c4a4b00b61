//! What one Service means for one node, as tables.

mod bgp;
mod forwarding;

use std::net::IpAddr;

use bellrock_api::CommunityValue;
use bellrock_api::reason::AnnouncementReason as Reason;
use bellrock_bgp::PeerAsn;
use bellrock_forward::{Protocol, ServiceKey};

use super::*;
use crate::cluster::{
    BgpAdvertisement, Change, CommunityName, Dirty, Endpoint, L2Advertisement, Node, Peer,
    ServicePort, Slice,
};

const ADDRESS: &str = "192.0.2.10";

fn key() -> ServiceKey {
    ServiceKey {
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn endpoint(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        node: Some(node.into()),
        ready: true,
        serving_terminating: false,
        hints: None,
    }
}

fn terminating(address: &str, node: &str) -> Endpoint {
    Endpoint {
        ready: false,
        serving_terminating: true,
        ..endpoint(address, node)
    }
}

fn slice(ports: BTreeMap<(String, Protocol), u16>, endpoints: Vec<Endpoint>) -> Slice {
    Slice {
        ports,
        endpoints,
        names: false,
    }
}

struct Fixture(Cluster);

impl Fixture {
    /// Nodes n1 to n3, a pod on each of the first two, one address, one
    /// advertisement of each way, one peer.
    fn new() -> Self {
        let mut fixture = Self(Cluster::default());
        for n in 1..=3 {
            let node = Node {
                labels: [("name".to_owned(), format!("n{n}"))].into(),
                addresses: [format!("10.0.0.{n}").parse().unwrap()].into(),
                primary: [format!("10.0.0.{n}").parse().unwrap()].into(),
                pod_networks: vec![format!("10.244.{n}.0/24").parse().unwrap()],
                ..Node::default()
            };
            fixture.apply(Change::Node(format!("n{n}"), Some(node)));
        }
        fixture.apply(Change::Pool(
            "main".into(),
            Some([("tier".into(), "gold".into())].into()),
        ));
        fixture.apply(Change::L2Advertisement(
            "l2".into(),
            Some(L2Advertisement::default()),
        ));
        fixture.apply(Change::BgpAdvertisement(
            "bgp".into(),
            Some(BgpAdvertisement { ..host_routes() }),
        ));
        fixture.apply(Change::Peer("tor".into(), Some(peer())));
        fixture.apply(Change::Service(
            key(),
            Some(service(TrafficPolicy::Cluster)),
        ));
        fixture.endpoints(vec![
            endpoint("10.244.1.5", "n1"),
            endpoint("10.244.2.5", "n2"),
        ]);
        fixture.apply(Change::VirtualIp(ADDRESS.parse().unwrap(), Some(vip())));
        fixture
    }

    fn apply(&mut self, change: Change) -> Dirty {
        let mut dirty = Dirty::default();
        self.0.apply(change, "n1", &mut dirty);
        dirty
    }

    fn endpoints(&mut self, endpoints: Vec<Endpoint>) {
        let ports = [((String::new(), Protocol::Tcp), 8080)].into();
        self.apply(Change::Slice(
            ServiceKey::new("default", "web-1"),
            Some((key(), slice(ports, endpoints))),
        ));
    }

    fn node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let mut node = self.0.nodes[name].clone();
        change(&mut node);
        self.apply(Change::Node(name.into(), Some(node)));
    }

    fn plan(&self, node: &str) -> ServicePlan {
        plan_service(&self.0, node, &key(), &Settings::default(), false)
    }

    fn refusals(&self, node: &str) -> [Option<Reason>; 2] {
        let verdicts = self.plan(node).verdicts;
        [Way::L2, Way::Bgp].map(|way| verdicts.iter().find(|v| v.way == way).unwrap().refused)
    }
}

fn host_routes() -> BgpAdvertisement {
    BgpAdvertisement {
        aggregation_length: 32,
        aggregation_length_v6: 128,
        ..BgpAdvertisement::default()
    }
}

fn service(policy: TrafficPolicy) -> Service {
    Service {
        kind: ServiceKind::LoadBalancer,
        labels: [("app".to_owned(), "web".to_owned())].into(),
        policy,
        affinity: false,
        source_ranges: Some(vec![]),
        health_check_port: None,
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
        }],
    }
}

fn vip() -> VirtualIp {
    VirtualIp {
        pool: Some("main".into()),
        claims: [key()].into(),
        desired: Some("n1".into()),
        successors: vec!["n2".into(), "n3".into()],
        created: 1_700_000_000,
        recorded: None,
    }
}

fn peer() -> Peer {
    Peer::new("10.0.0.254".parse().unwrap(), 64512, PeerAsn::Exact(64513))
}

fn name_selector(name: &str) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
        match_labels: Some([("name".to_owned(), name.to_owned())].into()),
        match_expressions: None,
    }
}

#[test]
fn policy_cluster_announces_from_every_node() {
    let fixture = Fixture::new();
    for node in ["n1", "n2", "n3"] {
        assert_eq!(fixture.refusals(node), [None, None], "{node}");
    }
    let plan = fixture.plan("n3");
    let prefix: IpNet = "192.0.2.10/32".parse().unwrap();
    assert!(plan.routes["tor"].contains_key(&prefix));
    let forward = plan.forward.unwrap();
    assert_eq!(forward.ports[0].endpoints.len(), 2);
    assert!(
        forward.ports[0]
            .endpoints
            .iter()
            .all(|e| !e.local && e.port == 8080)
    );
    assert_eq!(
        forward.addresses,
        [ADDRESS.parse::<IpAddr>().unwrap()].into()
    );
}

#[test]
fn an_address_in_a_subnet_of_other_nodes_is_not_answered_for_elsewhere() {
    let mut fixture = Fixture::new();
    let here: IpAddr = "192.0.2.1".parse().unwrap();
    fixture.node("n2", |node| node.addresses = [here].into());
    let refused = |fixture: &Fixture, subnets: &[&str]| -> [Option<Reason>; 2] {
        let mut settings = Settings::default();
        settings.surroundings.subnets = subnets.iter().map(|s| s.parse().unwrap()).collect();
        let plan = plan_service(&fixture.0, "n1", &key(), &settings, false);
        [0, 1].map(|way| plan.verdicts[way].refused)
    };
    // Routers are told of it all the same.
    let elsewhere = [Some(Reason::NoInterface), None];
    assert_eq!(refused(&fixture, &["10.0.0.1/24"]), elsewhere);
    let cases: [&[&str]; 5] = [
        // Here too, or the other node's address is.
        &["10.0.0.1/24", "192.0.2.7/24"],
        &["10.0.0.1/24", "192.0.2.2/30"],
        // The other node's subnet is too short to have it.
        &["10.0.0.1/30"],
        // Of the other family.
        &["2001:db8::1/64"],
        // Not looked yet.
        &[],
    ];
    for subnets in cases {
        assert_eq!(refused(&fixture, subnets), [None, None], "{subnets:?}");
    }
    // An interface is named: whoever did so knows.
    let named = L2Advertisement {
        interfaces: ["eth1".to_owned()].into(),
        ..L2Advertisement::default()
    };
    fixture.apply(Change::L2Advertisement("l2".into(), Some(named)));
    assert_eq!(refused(&fixture, &["10.0.0.1/24"]), [None, None]);
}

#[test]
fn policy_local_announces_only_beside_a_ready_endpoint() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    assert_eq!(fixture.refusals("n1"), [None, None]);
    assert_eq!(fixture.refusals("n3"), [Some(Reason::NoLocalEndpoint); 2]);
    assert_eq!(
        fixture.plan("n1").forward.unwrap().ports[0]
            .local_endpoints
            .len(),
        1
    );
    assert!(
        fixture.plan("n3").forward.unwrap().ports[0]
            .local_endpoints
            .is_empty()
    );
}

#[test]
fn a_terminating_local_endpoint_serves_and_is_not_announced() {
    let mut fixture = Fixture::new();
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    fixture.endpoints(vec![
        terminating("10.244.1.5", "n1"),
        endpoint("10.244.2.5", "n2"),
    ]);
    assert_eq!(fixture.refusals("n1"), [Some(Reason::NoLocalEndpoint); 2]);
    assert_eq!(
        fixture.plan("n1").forward.unwrap().ports[0]
            .local_endpoints
            .len(),
        1
    );
}

#[test]
fn terminating_endpoints_serve_only_while_none_is_ready() {
    let mut fixture = Fixture::new();
    fixture.endpoints(vec![
        terminating("10.244.1.5", "n1"),
        endpoint("10.244.2.5", "n2"),
    ]);
    let addresses = |fixture: &Fixture| -> Vec<String> {
        let forward = fixture.plan("n1").forward.unwrap();
        forward.ports[0]
            .endpoints
            .iter()
            .map(|e| e.address.to_string())
            .collect()
    };
    assert_eq!(addresses(&fixture), ["10.244.2.5"]);
    fixture.endpoints(vec![terminating("10.244.1.5", "n1")]);
    assert_eq!(addresses(&fixture), ["10.244.1.5"]);
    assert_eq!(fixture.refusals("n1"), [None, None]);
}

#[test]
fn without_endpoints_nothing_is_announced_and_the_port_is_still_ours() {
    let mut fixture = Fixture::new();
    fixture.endpoints(vec![]);
    assert_eq!(fixture.refusals("n1"), [Some(Reason::NoEndpoint); 2]);
    assert_eq!(fixture.plan("n1").forward.unwrap().ports.len(), 1);
    assert!(fixture.plan("n1").routes.is_empty());
}

#[test]
fn each_state_of_the_node_that_forbids_announcing_has_its_reason() {
    type Case = (fn(&mut Node), Option<Reason>);
    let exclude = |node: &mut Node, value: &str| {
        node.labels.insert(
            "node.kubernetes.io/exclude-from-external-load-balancers".into(),
            value.into(),
        );
    };
    let cases: [Case; 8] = [
        (
            |node| node.network_unavailable = true,
            Some(Reason::NodeNetworkUnavailable),
        ),
        (
            |node| {
                node.taints
                    .insert("node.kubernetes.io/out-of-service".into());
            },
            Some(Reason::NodeOutOfService),
        ),
        (
            |node| {
                node.taints.insert("ToBeDeletedByClusterAutoscaler".into());
            },
            Some(Reason::NodeBeingDeleted),
        ),
        (|node| node.deleting = true, Some(Reason::NodeBeingDeleted)),
        (|node| node.drained = true, Some(Reason::NodeDrained)),
        // A cordoned node keeps its pods and its traffic.
        (
            |node| {
                node.taints
                    .insert("node.kubernetes.io/unschedulable".into());
            },
            None,
        ),
        (
            |node| {
                node.taints.insert("node.kubernetes.io/not-ready".into());
            },
            None,
        ),
        (|_| {}, None),
    ];
    for (change, reason) in cases {
        let mut fixture = Fixture::new();
        fixture.node("n1", change);
        assert_eq!(fixture.refusals("n1"), [reason; 2]);
        assert_eq!(fixture.refusals("n2"), [None; 2]);
    }
    for (value, reason) in [
        ("", Some(Reason::NodeExcluded)),
        ("true", Some(Reason::NodeExcluded)),
        ("false", None),
    ] {
        let mut fixture = Fixture::new();
        fixture.node("n1", |node| exclude(node, value));
        assert_eq!(fixture.refusals("n1"), [reason; 2], "label {value:?}");
        let settings = Settings {
            ignore_exclude_label: true,
            ..Settings::default()
        };
        let plan = plan_service(&fixture.0, "n1", &key(), &settings, false);
        assert!(plan.verdicts.iter().all(|v| v.refused.is_none()));
    }
}

#[test]
fn a_node_that_nobody_has_heard_of_announces_nothing() {
    assert_eq!(
        Fixture::new().refusals("n9"),
        [Some(Reason::NodeUnknown); 2]
    );
}

#[test]
fn an_ipv6_address_is_announced_on_the_segment_as_an_ipv4_address_is() {
    let fixture = Fixture::six();
    let intent = fixture.plan("n1").l2[&bgp::ADDRESS_V6.parse().unwrap()].clone();
    assert!(intent.eligible);
    assert_eq!(fixture.refusals("n1")[0], None);
}

#[test]
fn what_the_kernel_refuses_is_not_announced() {
    let fixture = Fixture::new();
    let plan = plan_service(&fixture.0, "n1", &key(), &Settings::default(), true);
    let reason = Some(Reason::ForwardingRefused);
    assert!(plan.verdicts.iter().all(|v| v.refused == reason));
    assert!(!plan.l2[&ADDRESS.parse().unwrap()].eligible);
    assert!(plan.routes.is_empty());
    assert!(plan.forward.is_some());
}

#[test]
fn source_ranges_that_do_not_parse_let_nobody_in() {
    let mut fixture = Fixture::new();
    let service = Service {
        source_ranges: None,
        ..service(TrafficPolicy::Cluster)
    };
    fixture.apply(Change::Service(key(), Some(service)));
    assert_eq!(
        fixture.refusals("n1"),
        [Some(Reason::SourceRangesInvalid); 2]
    );
    assert_eq!(fixture.plan("n1").forward, None);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_first() {
    let mut fixture = Fixture::new();
    let other = ServiceKey::new("default", "other");
    let ports = [((String::new(), Protocol::Tcp), 8080)].into();
    let slice = slice(ports, vec![endpoint("10.244.1.5", "n1")]);
    let name = ServiceKey::new("default", "web-1");
    let dirty = fixture.apply(Change::Slice(name, Some((other, slice))));
    assert_eq!(dirty.services, [key()].into());
    assert_eq!(fixture.refusals("n1"), [Some(Reason::NoEndpoint); 2]);
}

#[test]
fn an_advertisement_speaks_for_its_pools_services_and_nodes_only() {
    type Case = (fn(&mut crate::cluster::Scope), [Option<Reason>; 2]);
    let no = Some(Reason::NoAdvertisement);
    let elsewhere = Some(Reason::NodeNotSelected);
    // Reason on n1, reason on n2.
    let cases: [Case; 6] = [
        (
            |scope| scope.pools = ["main".to_owned()].into(),
            [None, None],
        ),
        (|scope| scope.pools = ["other".to_owned()].into(), [no, no]),
        (
            |scope| {
                let mut selector = name_selector("");
                selector.match_labels = Some([("tier".to_owned(), "gold".to_owned())].into());
                scope.pool_selectors = vec![selector];
            },
            [None, None],
        ),
        (
            |scope| scope.pool_selectors = vec![name_selector("x")],
            [no, no],
        ),
        (
            |scope| scope.service_selectors = vec![name_selector("x")],
            [no, no],
        ),
        (
            |scope| scope.node_selectors = vec![name_selector("n1")],
            [None, elsewhere],
        ),
    ];
    for (change, reasons) in cases {
        let mut fixture = Fixture::new();
        let mut l2 = fixture.0.l2_advertisements["l2"].clone();
        let mut bgp = fixture.0.bgp_advertisements["bgp"].clone();
        change(&mut l2.scope);
        change(&mut bgp.scope);
        fixture.apply(Change::L2Advertisement("l2".into(), Some(l2)));
        fixture.apply(Change::BgpAdvertisement("bgp".into(), Some(bgp)));
        for pool in ["is there", "was deleted"] {
            assert_eq!(fixture.refusals("n1"), [reasons[0]; 2], "{pool}");
            assert_eq!(fixture.refusals("n2"), [reasons[1]; 2], "{pool}");
            fixture.apply(Change::Pool("main".into(), None));
        }
    }
}

#[test]
fn a_community_alias_that_nobody_defines_keeps_the_route_back() {
    let mut fixture = Fixture::new();
    let ad = BgpAdvertisement {
        communities: [CommunityName::Alias("no-transit".into())].into(),
        ..host_routes()
    };
    fixture.apply(Change::BgpAdvertisement("bgp".into(), Some(ad)));
    assert_eq!(
        fixture.refusals("n1"),
        [None, Some(Reason::CommunityUnknown)]
    );
    assert!(fixture.plan("n1").routes.is_empty());
    let aliases = [("no-transit".to_owned(), CommunityValue::Standard(0, 7))].into();
    assert!(
        fixture
            .apply(Change::Community("names".into(), Some(aliases)))
            .all
    );
    assert_eq!(
        fixture.plan("n1").routes["tor"]
            .values()
            .next()
            .unwrap()
            .communities,
        [7].into()
    );
}

#[test]
fn an_aggregate_is_announced_in_place_of_the_address() {
    let mut fixture = Fixture::new();
    let ad = BgpAdvertisement {
        aggregation_length: 24,
        ..host_routes()
    };
    fixture.apply(Change::BgpAdvertisement("bgp".into(), Some(ad)));
    let prefix: IpNet = "192.0.2.0/24".parse().unwrap();
    assert_eq!(
        fixture.plan("n1").routes["tor"].keys().collect::<Vec<_>>(),
        [&prefix]
    );
}

#[test]
fn without_a_session_on_this_node_the_reason_is_no_peer() {
    let mut fixture = Fixture::new();
    let tor = Peer {
        node_selectors: vec![name_selector("n2")],
        ..peer()
    };
    fixture.apply(Change::Peer("tor".into(), Some(tor)));
    assert_eq!(fixture.refusals("n1"), [None, Some(Reason::NoPeer)]);
    assert_eq!(fixture.refusals("n2"), [None, None]);
}

#[test]
fn interfaces_of_matching_advertisements_add_up_and_none_means_all() {
    let mut fixture = Fixture::new();
    let on = |name: &str| L2Advertisement {
        interfaces: [name.to_owned()].into(),
        ..L2Advertisement::default()
    };
    let intent = |fixture: &Fixture| fixture.plan("n1").l2[&ADDRESS.parse().unwrap()].clone();
    assert_eq!(intent(&fixture).interfaces, None);
    fixture.apply(Change::L2Advertisement("l2".into(), Some(on("eth1"))));
    fixture.apply(Change::L2Advertisement("more".into(), Some(on("eth2"))));
    assert_eq!(
        intent(&fixture).interfaces,
        Some(["eth1".into(), "eth2".into()].into())
    );
    fixture.apply(Change::L2Advertisement(
        "all".into(),
        Some(L2Advertisement::default()),
    ));
    assert_eq!(intent(&fixture).interfaces, None);
}

#[test]
fn a_change_dirties_only_the_services_that_it_concerns() {
    let mut fixture = Fixture::new();
    let other = ServiceKey {
        namespace: "default".into(),
        name: "other".into(),
    };
    fixture.apply(Change::Service(
        other.clone(),
        Some(service(TrafficPolicy::Cluster)),
    ));
    let slice = slice(BTreeMap::new(), vec![endpoint("10.244.1.9", "n1")]);
    let dirty = fixture.apply(Change::Slice(
        ServiceKey::new("default", "o-1"),
        Some((other.clone(), slice.clone())),
    ));
    assert_eq!(
        dirty,
        Dirty {
            services: [other.clone()].into(),
            ..Dirty::default()
        }
    );
    let again = fixture.apply(Change::Slice(
        ServiceKey::new("default", "o-1"),
        Some((other, slice)),
    ));
    assert!(again.is_empty(), "the same object again changes nothing");
    // Another node's heartbeat or label is not our business; its pod network is.
    let mut node = fixture.0.nodes["n2"].clone();
    node.labels.insert("x".into(), "y".into());
    assert!(
        fixture
            .apply(Change::Node("n2".into(), Some(node.clone())))
            .is_empty()
    );
    node.pod_networks = vec!["10.244.22.0/24".parse().unwrap()];
    let dirty = fixture.apply(Change::Node("n2".into(), Some(node)));
    assert_eq!(
        dirty,
        Dirty {
            node: true,
            ..Dirty::default()
        }
    );
}
