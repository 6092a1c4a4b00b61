//! Routes: families, attributes, and advertisements that disagree.

use super::*;
use crate::cluster::CommunityName;

pub(super) const ADDRESS_V6: &str = "2001:db8:5::10";

impl Fixture {
    /// With a Service that has an IPv6 address and endpoints of that family.
    pub(super) fn six() -> Self {
        let mut fixture = Self::new();
        fixture.apply(Change::VirtualIp(ADDRESS.parse().unwrap(), None));
        fixture.apply(Change::VirtualIp(ADDRESS_V6.parse().unwrap(), Some(vip())));
        fixture.endpoints(vec![endpoint("2001:db8:1::5", "n1")]);
        fixture
    }

    fn peer(&mut self, name: &str, change: impl FnOnce(&mut Peer)) {
        let mut peer = peer();
        change(&mut peer);
        self.apply(Change::Peer(name.into(), Some(peer)));
    }

    fn ad(&mut self, name: &str, change: impl FnOnce(&mut BgpAdvertisement)) {
        let mut ad = host_routes();
        change(&mut ad);
        self.apply(Change::BgpAdvertisement(name.into(), Some(ad)));
    }

    fn bgp(&self, node: &str) -> Verdict {
        let verdicts = self.plan(node).verdicts;
        verdicts.into_iter().find(|v| v.way == Way::Bgp).unwrap()
    }

    fn attributes(&self) -> Attributes {
        let plan = self.plan("n1");
        plan.routes["tor"].values().next().unwrap().clone()
    }
}

#[test]
fn an_ipv6_address_goes_over_ipv6_sessions_at_its_own_length() {
    let mut fixture = Fixture::six();
    fixture.peer("tor", |peer| {
        peer.address = "2001:db8::1".parse().unwrap();
    });
    assert_eq!(fixture.bgp("n1").refused, None);
    let prefixes = |fixture: &Fixture| -> Vec<String> {
        let plan = fixture.plan("n1");
        plan.routes["tor"].keys().map(IpNet::to_string).collect()
    };
    assert_eq!(prefixes(&fixture), ["2001:db8:5::10/128"]);
    fixture.ad("bgp", |ad| ad.aggregation_length_v6 = 64);
    assert_eq!(prefixes(&fixture), ["2001:db8:5::/64"]);
}

#[test]
fn the_other_family_needs_a_dual_stack_session_and_a_next_hop() {
    let mut fixture = Fixture::six();
    let unsupported = Some(Reason::FamilyUnsupported);
    assert_eq!(fixture.bgp("n1").refused, unsupported, "an IPv4 session");
    fixture.peer("tor", |peer| peer.dual_stack = true);
    assert_eq!(fixture.bgp("n1").refused, unsupported, "no next hop");
    fixture.node("n1", |node| {
        node.addresses.insert("2001:db8::11".parse().unwrap());
    });
    assert_eq!(fixture.bgp("n1").refused, None);

    // The other way round the peer may take an IPv6 next hop (RFC 8950).
    let mut fixture = Fixture::new();
    let six = |peer: &mut Peer| peer.address = "2001:db8::1".parse().unwrap();
    fixture.peer("tor", six);
    assert_eq!(fixture.bgp("n1").refused, unsupported);
    fixture.peer("tor", |peer| {
        six(peer);
        peer.dual_stack = true;
    });
    assert_eq!(fixture.bgp("n1").refused, None);
}

#[test]
fn a_peer_of_the_other_family_does_not_keep_the_route_from_one_that_fits() {
    let mut fixture = Fixture::six();
    fixture.peer("six", |peer| {
        peer.address = "2001:db8::1".parse().unwrap();
    });
    let plan = fixture.plan("n1");
    assert_eq!(plan.routes.keys().collect::<Vec<_>>(), ["six"]);
    assert_eq!(fixture.bgp("n1").peers, ["six".to_owned()].into());
}

#[test]
fn what_several_advertisements_say_of_a_prefix_adds_up() {
    let mut fixture = Fixture::new();
    let named = |text: &str| CommunityName::Value(text.parse().unwrap());
    fixture.ad("a", |ad| {
        ad.communities = ["64512:1", "large:64512:1:2", "rt:64512:3"]
            .map(named)
            .into();
        ad.local_pref = Some(200);
    });
    fixture.ad("b", |ad| {
        ad.communities = ["64512:2", "soo:4200000001:4"].map(named).into();
        ad.prepend = 3;
        ad.local_pref = Some(200);
    });
    let attributes = fixture.attributes();
    assert_eq!(
        attributes.communities,
        [64512 << 16 | 1, 64512 << 16 | 2].into()
    );
    assert_eq!(attributes.large_communities, [[64512, 1, 2]].into());
    let target = [0x00, 2, 0xfc, 0x00, 0, 0, 0, 3];
    let site = [0x02, 3, 0xfa, 0x56, 0xea, 0x01, 0, 4];
    assert_eq!(attributes.extended_communities, [target, site].into());
    assert_eq!(attributes.local_pref, Some(200));
    assert_eq!((attributes.prepend, attributes.weight), (3, None));
}

#[test]
fn advertisements_that_disagree_are_named_and_nothing_is_chosen() {
    let mut fixture = Fixture::new();
    fixture.ad("a", |ad| ad.local_pref = Some(200));
    fixture.ad("b", |ad| ad.local_pref = Some(300));
    let verdict = fixture.bgp("n1");
    assert_eq!(verdict.refused, Some(Reason::ConflictingAdvertisements));
    let said = verdict.detail.unwrap();
    assert_eq!(
        said,
        "192.0.2.10/32 to tor: a wants localPref 200, b wants 300"
    );
    assert!(fixture.plan("n1").routes.is_empty());

    // Not on another prefix, not toward another peer.
    fixture.ad("b", |ad| {
        ad.local_pref = Some(300);
        ad.aggregation_length = 24;
    });
    assert_eq!(fixture.plan("n1").routes["tor"].len(), 2);
    fixture.peer("other", |_| {});
    for (name, peer, local_pref) in [("a", "tor", 200), ("b", "other", 300), ("bgp", "tor", 200)] {
        fixture.ad(name, |ad| {
            ad.peers = [peer.to_owned()].into();
            ad.local_pref = Some(local_pref);
        });
    }
    assert_eq!(fixture.plan("n1").routes.len(), 2);

    fixture.ad("a", |ad| ad.prepend = 1);
    fixture.ad("b", |ad| ad.prepend = 2);
    let said = fixture.bgp("n1").detail.unwrap();
    assert!(
        said.contains("a wants asPathPrepend 1, b wants 2"),
        "{said}"
    );
}

#[test]
fn a_weight_counts_the_ready_endpoints_of_this_node_under_policy_local() {
    let mut fixture = Fixture::new();
    fixture.ad("bgp", |ad| ad.weight_by_endpoints = true);
    assert_eq!(fixture.attributes().weight, None, "policy Cluster");
    fixture.apply(Change::Service(key(), Some(service(TrafficPolicy::Local))));
    assert_eq!(fixture.attributes().weight, Some(1));
    fixture.endpoints(vec![
        endpoint("10.244.1.5", "n1"),
        endpoint("10.244.1.6", "n1"),
        endpoint("2001:db8:1::5", "n1"),
        terminating("10.244.1.7", "n1"),
        endpoint("10.244.2.5", "n2"),
    ]);
    assert_eq!(fixture.attributes().weight, Some(2));
    fixture.ad("bgp", |_| {});
    assert_eq!(fixture.attributes().weight, None);
}

#[test]
fn services_in_one_prefix_share_its_attributes() {
    let one = Attributes {
        local_pref: Some(200),
        prepend: 2,
        weight: Some(3),
        communities: [1].into(),
        large_communities: [[1, 1, 1]].into(),
        ..Attributes::default()
    };
    let mut both = one.clone();
    merge_services(
        &mut both,
        &Attributes {
            prepend: 1,
            weight: Some(4),
            communities: [2].into(),
            extended_communities: [[0; 8]].into(),
            ..Attributes::default()
        },
    );
    let expected = Attributes {
        prepend: 1,
        weight: Some(7),
        communities: [1, 2].into(),
        extended_communities: [[0; 8]].into(),
        ..one
    };
    assert_eq!(both, expected);
}
