//! A peer that believes what it is told ends up with what it should have.

mod policy;

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::message::MAX_LEN;

const EXTERNAL: Context = Context {
    four_octet_as: true,
    internal: false,
    ..Context::BEFORE_OPEN
};

fn session() -> RibSession {
    RibSession {
        local: "192.0.2.10".parse().unwrap(),
        peer: "192.0.2.1".parse().unwrap(),
        local_asn: 64512,
        families: Family::ALL.to_vec(),
        context: EXTERNAL,
        enhanced_refresh: false,
        next_hop_v4: None,
        next_hop_v6: None,
        role: None,
    }
}

fn v4(n: u32) -> IpNet {
    IpNet::V4(Ipv4Net::new((0x0a00_0000 + n).into(), 32).unwrap())
}

fn v6(n: u32) -> IpNet {
    format!("2001:db8::{:x}:{:x}/128", n >> 16, n & 0xffff)
        .parse()
        .unwrap()
}

fn via(next_hop: &str) -> Attributes {
    Attributes {
        next_hop: Some(next_hop.parse().unwrap()),
        ..Attributes::default()
    }
}

fn all(rib: &mut AdjRibOut) -> Vec<Update> {
    std::iter::from_fn(|| rib.next_update()).collect()
}

fn encode(update: &Update) -> Vec<u8> {
    let mut octets = Vec::new();
    Message::Update(update.clone())
        .encode(EXTERNAL, &mut octets)
        .unwrap();
    octets
}

/// What a peer makes of the octets: prefix to next hop and communities.
#[derive(Default)]
struct Believer {
    routes: BTreeMap<IpNet, (IpAddr, Vec<u32>)>,
}

impl Believer {
    fn take(&mut self, update: &Update) {
        let octets = encode(update);
        assert!(octets.len() <= MAX_LEN);
        let Ok(Message::Update(update)) = Message::decode(&octets, EXTERNAL) else {
            panic!()
        };
        assert_eq!(update.faults, [], "{update:?}");
        let gone = update.withdrawn.iter().map(|net| IpNet::V4(*net));
        let gone6 = update.unreach.iter().flat_map(|unreach| &unreach.prefixes);
        for prefix in gone.chain(gone6.map(|net| IpNet::V6(*net))) {
            assert!(
                self.routes.remove(&prefix).is_some(),
                "{prefix} was not there"
            );
        }
        let communities = &update.attributes.communities;
        for prefix in &update.nlri {
            let next_hop = update.attributes.next_hop.unwrap().into();
            self.routes
                .insert(IpNet::V4(*prefix), (next_hop, communities.clone()));
        }
        if let Some(reach) = &update.reach {
            for prefix in &reach.prefixes {
                let route = (reach.next_hop.into(), communities.clone());
                self.routes.insert(IpNet::V6(*prefix), route);
            }
        }
    }
}

/// What kinds of route an UPDATE holds (RFC 7606 section 5.1 allows one).
fn kinds(update: &Update) -> usize {
    usize::from(!update.withdrawn.is_empty())
        + usize::from(!update.nlri.is_empty())
        + usize::from(update.reach.is_some())
        + usize::from(update.unreach.is_some())
}

/// The update without its prefixes, and their number of octets.
fn group(update: &Update) -> (Update, Vec<usize>) {
    let mut empty = update.clone();
    let mut sizes: Vec<usize> = Vec::new();
    let v4 = std::mem::take(&mut empty.withdrawn)
        .into_iter()
        .chain(std::mem::take(&mut empty.nlri));
    sizes.extend(v4.map(|net| wire_len(net.prefix_len())));
    let lists = empty.reach.iter_mut().map(|reach| &mut reach.prefixes);
    for list in lists.chain(
        empty
            .unreach
            .iter_mut()
            .map(|unreach| &mut unreach.prefixes),
    ) {
        sizes.extend(
            std::mem::take(list)
                .iter()
                .map(|net| wire_len(net.prefix_len())),
        );
    }
    (empty, sizes)
}

#[test]
fn ten_thousand_addresses_fit_thirteen_ipv4_or_forty_three_ipv6_updates() {
    for (prefix, local, most) in [
        (v4 as fn(u32) -> IpNet, "192.0.2.10", 13),
        (v6, "2001:db8::10", 43),
    ] {
        let mut rib = AdjRibOut::default();
        (0..10_000).for_each(|n| rib.announce(prefix(n), Attributes::default()));
        rib.open(RibSession {
            local: local.parse().unwrap(),
            ..session()
        });
        let mut believer = Believer::default();
        let updates = all(&mut rib);
        updates.iter().for_each(|update| believer.take(update));
        assert_eq!(believer.routes.len(), 10_000);
        assert!(
            updates.len() - 2 <= most,
            "{} announcements",
            updates.len() - 2
        );

        (0..10_000).for_each(|n| rib.withdraw(prefix(n)));
        let updates = all(&mut rib);
        updates.iter().for_each(|update| believer.take(update));
        assert_eq!((believer.routes.len(), rib.sent()), (0, 0));
        assert!(updates.len() <= most, "{} withdrawals", updates.len());
    }
}

#[test]
fn end_of_rib_follows_the_routes_of_a_new_session_even_if_there_are_none() {
    let mut rib = AdjRibOut::default();
    rib.open(session());
    let both: Vec<_> = Family::ALL.into_iter().map(Update::end_of_rib).collect();
    assert_eq!(all(&mut rib), both);
    rib.announce(v4(1), Attributes::default());
    assert_eq!(all(&mut rib).len(), 1);
    rib.open(RibSession {
        families: vec![Family::Ipv4Unicast],
        ..session()
    });
    let again = all(&mut rib);
    assert_eq!(again.len(), 2);
    assert_eq!(again[1], Update::end_of_rib(Family::Ipv4Unicast));
}

#[test]
fn a_change_that_is_taken_back_before_it_is_sent_is_not_sent() {
    let mut rib = AdjRibOut::default();
    rib.announce(v4(1), Attributes::default());
    rib.open(session());
    all(&mut rib);
    rib.withdraw(v4(1));
    rib.announce(v4(1), Attributes::default());
    rib.announce(v4(2), Attributes::default());
    rib.withdraw(v4(2));
    rib.announce(v4(1), via("192.0.2.9"));
    rib.announce(v4(1), Attributes::default());
    rib.withdraw(v4(3));
    assert_eq!((rib.pending(), all(&mut rib)), (0, vec![]));
}

#[test]
fn without_a_session_nothing_is_built_and_a_new_one_starts_from_nothing() {
    let mut rib = AdjRibOut::default();
    rib.announce(v4(1), Attributes::default());
    assert_eq!(rib.next_update(), None);
    rib.open(session());
    let first = all(&mut rib);
    rib.withdraw(v4(1));
    rib.close();
    assert_eq!((rib.next_update(), rib.sent(), rib.pending()), (None, 0, 0));
    rib.announce(v4(1), Attributes::default());
    rib.open(session());
    assert_eq!(all(&mut rib), first);
}

#[test]
fn host_bits_are_dropped() {
    let mut rib = AdjRibOut::default();
    rib.open(session());
    all(&mut rib);
    rib.announce("198.51.100.7/24".parse().unwrap(), Attributes::default());
    assert_eq!(all(&mut rib)[0].nlri[0].to_string(), "198.51.100.0/24");
    rib.withdraw("198.51.100.9/24".parse().unwrap());
    assert_eq!(all(&mut rib)[0].withdrawn[0].to_string(), "198.51.100.0/24");
}

#[test]
fn local_preference_stays_inside_the_own_as_and_the_own_as_outside() {
    let preferred = Attributes {
        local_pref: Some(200),
        ..Attributes::default()
    };
    for (internal, preference, asns) in [
        (false, [None, None], vec![64512]),
        (true, [Some(100), Some(200)], vec![]),
    ] {
        let mut rib = AdjRibOut::default();
        rib.announce(v4(1), Attributes::default());
        rib.announce(v4(2), preferred.clone());
        rib.open(RibSession {
            context: Context {
                internal,
                ..EXTERNAL
            },
            ..session()
        });
        let updates = all(&mut rib);
        let sent = [&updates[0].attributes, &updates[1].attributes];
        assert_eq!(sent.map(|attributes| attributes.local_pref), preference);
        let path = sent[0]
            .as_path
            .iter()
            .flatten()
            .flat_map(|segment| segment.asns.clone());
        assert_eq!(path.collect::<Vec<_>>(), asns);
    }
}

#[test]
fn a_route_that_cannot_be_sent_is_refused_with_its_reason_and_taken_from_the_peer() {
    let many = Attributes {
        communities: (0..1013).collect(),
        ..Attributes::default()
    };
    let fits = Attributes {
        communities: (0..1011).collect(),
        ..Attributes::default()
    };
    for (prefix, attributes, refusal) in [
        (v6(1), via("2001:db8::10"), Refusal::FamilyNotNegotiated),
        (v4(1), via("2001:db8::10"), Refusal::NoNextHop),
        (v4(1), via("192.0.2.1"), Refusal::NextHopIsPeer),
        (v4(1), many, Refusal::AttributesTooLong),
    ] {
        let mut rib = AdjRibOut::default();
        rib.open(RibSession {
            families: vec![Family::Ipv4Unicast],
            ..session()
        });
        rib.announce(v4(1), fits.clone());
        let mut believer = Believer::default();
        all(&mut rib)
            .iter()
            .for_each(|update| believer.take(update));
        assert_eq!(believer.routes.len(), 1);

        rib.announce(prefix, attributes.clone());
        all(&mut rib)
            .iter()
            .for_each(|update| believer.take(update));
        assert_eq!(rib.refused(), BTreeMap::from([(refusal, 1)]));
        assert!(!believer.routes.contains_key(&prefix), "{refusal}");

        // Back before the withdrawal is out: nothing happens.
        rib.announce(v4(1), fits.clone());
        all(&mut rib)
            .iter()
            .for_each(|update| believer.take(update));
        rib.announce(v4(1), via("192.0.2.1"));
        rib.announce(v4(1), fits.clone());
        all(&mut rib)
            .iter()
            .for_each(|update| believer.take(update));
        assert!(believer.routes.contains_key(&v4(1)));
    }
}

#[test]
fn a_refresh_sends_one_family_again_and_still_withdraws() {
    let mut rib = AdjRibOut::default();
    for n in 0..3 {
        rib.announce(v4(n), Attributes::default());
        rib.announce(v6(n), via("2001:db8::10"));
    }
    rib.open(session());
    let mut believer = Believer::default();
    all(&mut rib)
        .iter()
        .for_each(|update| believer.take(update));
    rib.withdraw(v4(0));
    rib.announce(v4(1), via("192.0.2.9"));
    rib.refresh(Family::Ipv4Unicast);
    let updates = all(&mut rib);
    assert_eq!(updates[0].withdrawn.len(), 1);
    let announced: usize = updates.iter().map(|update| update.nlri.len()).sum();
    assert_eq!(announced, 2);
    assert!(updates.iter().all(|update| update.reach.is_none()));
    updates.iter().for_each(|update| believer.take(update));
    assert_eq!(believer.routes.len(), 5);
}

#[test]
fn a_route_that_goes_after_a_refresh_was_asked_for_is_withdrawn() {
    let mut rib = AdjRibOut::default();
    rib.announce(v4(0), Attributes::default());
    rib.announce(v4(1), Attributes::default());
    rib.open(session());
    let mut believer = Believer::default();
    all(&mut rib)
        .iter()
        .for_each(|update| believer.take(update));
    rib.refresh(Family::Ipv4Unicast);
    rib.withdraw(v4(0));
    rib.announce(v4(1), via("192.0.2.1"));
    all(&mut rib)
        .iter()
        .for_each(|update| believer.take(update));
    assert!(believer.routes.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Announce(IpNet, u8),
    Withdraw(IpNet),
    Send(usize),
    Refresh(Family),
    Reopen,
}

/// Few prefixes and few attributes, so that changes meet.
fn prefix() -> impl Strategy<Value = IpNet> {
    (0..24_u32, 8..=32_u8, any::<bool>()).prop_map(|(n, bits, six)| {
        let IpNet::V4(net) = v4(n) else {
            unreachable!()
        };
        if six {
            v6(n)
        } else {
            IpNet::V4(Ipv4Net::new(net.addr(), bits).unwrap().trunc())
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (prefix(), 0..5_u8).prop_map(|(prefix, kind)| Step::Announce(prefix, kind)),
        4 => prefix().prop_map(Step::Withdraw),
        3 => (1..4_usize).prop_map(Step::Send),
        1 => prop::sample::select(Family::ALL.to_vec()).prop_map(Step::Refresh),
        1 => Just(Step::Reopen),
    ]
}

fn of_kind(kind: u8) -> Attributes {
    match kind {
        0 => Attributes::default(),
        1 => via("192.0.2.9"),
        2 => via("2001:db8::9"),
        3 => via("192.0.2.1"),
        _ => Attributes {
            communities: [7, 8].into(),
            ..via("192.0.2.10")
        },
    }
}

/// What the peer should have of a route, by the rules, not by our code.
fn expected(prefix: &IpNet, attributes: &Attributes) -> Option<(IpAddr, Vec<u32>)> {
    let next_hop = attributes.next_hop.unwrap_or("192.0.2.10".parse().unwrap());
    let same_family = next_hop.is_ipv4() == matches!(prefix, IpNet::V4(_));
    let allowed = same_family && next_hop != IpAddr::from([192, 0, 2, 1]);
    allowed.then(|| (next_hop, attributes.communities.iter().copied().collect()))
}

proptest! {
    #[test]
    fn whatever_happens_the_peer_ends_up_with_what_it_should_have(steps in vec(step(), 0..60)) {
        let mut rib = AdjRibOut::default();
        let mut wanted = BTreeMap::new();
        let mut believer = Believer::default();
        rib.open(session());
        for step in steps {
            match step {
                Step::Announce(prefix, kind) => {
                    rib.announce(prefix, of_kind(kind));
                    wanted.insert(prefix, of_kind(kind));
                }
                Step::Withdraw(prefix) => {
                    rib.withdraw(prefix);
                    wanted.remove(&prefix);
                }
                Step::Send(count) => {
                    for _ in 0..count {
                        if let Some(update) = rib.next_update() {
                            believer.take(&update);
                        }
                    }
                }
                Step::Refresh(family) => rib.refresh(family),
                Step::Reopen => {
                    rib.open(session());
                    believer = Believer::default();
                }
            }
        }
        for update in all(&mut rib) {
            prop_assert!(kinds(&update) <= 1);
            believer.take(&update);
        }
        let should: BTreeMap<_, _> = wanted
            .iter()
            .filter_map(|(prefix, attributes)| Some((*prefix, expected(prefix, attributes)?)))
            .collect();
        prop_assert_eq!(&believer.routes, &should);
        prop_assert_eq!((rib.wanted(), rib.sent(), rib.pending()), (wanted.len(), should.len(), 0));
        let refused: usize = rib.refused().values().sum();
        prop_assert_eq!(refused, wanted.len() - should.len());
        // Nothing is kept for routes that are gone.
        wanted.keys().for_each(|prefix| rib.withdraw(*prefix));
        all(&mut rib);
        prop_assert!(rib.interned.is_empty() && rib.sent.is_empty());
        prop_assert!(rib.refused.is_empty() && rib.again.is_empty());
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_message_is_as_full_as_the_next_prefix_allows(
        prefixes in btree_set(any::<(u32, u8)>().prop_map(|(address, bits)| {
            IpNet::V4(Ipv4Net::new(address.into(), bits % 33).unwrap().trunc())
        }), 0..3000),
        communities in btree_set(any::<u32>(), 0..100),
    ) {
        let mut rib = AdjRibOut::default();
        rib.open(session());
        all(&mut rib);
        for prefix in &prefixes {
            rib.announce(*prefix, Attributes { communities: communities.clone(), ..Attributes::default() });
        }
        let announced = all(&mut rib);
        prefixes.iter().for_each(|prefix| rib.withdraw(*prefix));
        let withdrawn = all(&mut rib);
        for updates in [announced, withdrawn] {
            for pair in updates.windows(2) {
                let ((first, _), (second, sizes)) = (group(&pair[0]), group(&pair[1]));
                prop_assert_eq!(first, second);
                prop_assert!(encode(&pair[0]).len() + sizes[0] > MAX_LEN);
            }
        }
    }

    #[test]
    fn the_same_history_gives_the_same_octets(steps in vec(step(), 0..40)) {
        let run = || {
            let mut rib = AdjRibOut::default();
            rib.open(session());
            let mut octets = Vec::new();
            for step in &steps {
                match step {
                    Step::Announce(prefix, kind) => rib.announce(*prefix, of_kind(*kind)),
                    Step::Withdraw(prefix) => rib.withdraw(*prefix),
                    Step::Send(_) => octets.extend(rib.next_update().iter().flat_map(encode)),
                    Step::Refresh(family) => rib.refresh(*family),
                    Step::Reopen => rib.open(session()),
                }
            }
            octets.extend(all(&mut rib).iter().flat_map(encode));
            octets
        };
        prop_assert_eq!(run(), run());
    }
}
