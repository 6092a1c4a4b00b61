//! What the configuration asks for, in the attributes that a peer receives.

use super::*;
use crate::message::MAX_EXTENDED_LEN;

fn first(session: RibSession, prefix: IpNet, attributes: Attributes) -> Result<Update, Refusal> {
    let mut rib = AdjRibOut::default();
    rib.announce(prefix, attributes);
    rib.open(session);
    let update = all(&mut rib).remove(0);
    match rib.refused().into_keys().next() {
        None => Ok(update),
        Some(refusal) => Err(refusal),
    }
}

fn inside(internal: bool) -> RibSession {
    let context = Context {
        internal,
        ..EXTERNAL
    };
    RibSession {
        context,
        ..session()
    }
}

#[test]
fn the_own_as_is_prepended_outside_it_and_never_inside() {
    let prepended = Attributes {
        prepend: 2,
        ..Attributes::default()
    };
    let path = |internal| {
        let update = first(inside(internal), v4(1), prepended.clone()).unwrap();
        let path = update.attributes.as_path.unwrap();
        path.into_iter().flat_map(|s| s.asns).collect::<Vec<_>>()
    };
    assert_eq!(path(false), [64512, 64512, 64512]);
    assert_eq!(path(true), [0; 0]);
}

#[test]
fn a_weight_is_a_link_bandwidth_that_the_other_as_may_keep() {
    let weighted = Attributes {
        weight: Some(3),
        ..Attributes::default()
    };
    for (internal, kind) in [(false, 0x00), (true, 0x40)] {
        let update = first(inside(internal), v4(1), weighted.clone()).unwrap();
        // 375,000 octets a second as an IEEE 754 number.
        let expected = [kind, 4, 0xfc, 0x00, 0x48, 0xb7, 0x1b, 0x00];
        assert_eq!(update.attributes.extended_communities, [expected]);
    }
    let mut wide = session();
    wide.local_asn = 4_200_000_001;
    let update = first(wide, v4(1), weighted).unwrap();
    let asn = &update.attributes.extended_communities[0][2..4];
    assert_eq!(asn, AS_TRANS.to_be_bytes(), "a wide AS number does not fit");
}

#[test]
fn the_next_hop_of_the_other_family_is_the_configured_one_or_there_is_none() {
    let plain = Attributes::default;
    let four = session();
    assert_eq!(first(four.clone(), v6(1), plain()), Err(Refusal::NoNextHop));
    let both = RibSession {
        next_hop_v6: Some("2001:db8::10".parse().unwrap()),
        ..four
    };
    let update = first(both, v6(1), plain()).unwrap();
    assert_eq!(update.reach.unwrap().next_hop.to_string(), "2001:db8::10");

    let six = RibSession {
        local: "2001:db8::10".parse().unwrap(),
        peer: "2001:db8::1".parse().unwrap(),
        ..session()
    };
    assert_eq!(first(six.clone(), v4(1), plain()), Err(Refusal::NoNextHop));
    let both = RibSession {
        next_hop_v4: Some("192.0.2.10".parse().unwrap()),
        ..six.clone()
    };
    let update = first(both, v4(1), plain()).unwrap();
    assert_eq!(update.nlri.len(), 1);
    assert_eq!(
        update.attributes.next_hop,
        Some("192.0.2.10".parse().unwrap())
    );

    // RFC 8950, once the peer has agreed.
    let mut agreed = six;
    agreed.context.ipv6_next_hop = true;
    let context = agreed.context;
    let update = first(agreed, v4(1), plain()).unwrap();
    assert_eq!((update.nlri.len(), update.attributes.next_hop), (0, None));
    let mut octets = Vec::new();
    let message = Message::Update(update);
    message.encode(context, &mut octets).unwrap();
    assert_eq!(Message::decode(&octets, context), Ok(message));
    let reset = Message::decode(&octets, EXTERNAL).unwrap_err();
    assert_eq!((reset.code, reset.subcode), (3, 9), "not negotiated");
}

#[test]
fn routes_to_customers_and_peers_are_marked_and_others_are_not() {
    for (role, mark) in [
        (None, None),
        (Some(Role::Provider), Some(64512)),
        (Some(Role::Peer), Some(64512)),
        (Some(Role::RouteServer), Some(64512)),
        (Some(Role::Customer), None),
        (Some(Role::RouteServerClient), None),
    ] {
        let update = first(
            RibSession { role, ..session() },
            v4(1),
            Attributes::default(),
        );
        let marked = update.unwrap().attributes.only_to_customer;
        assert_eq!(marked, mark, "{role:?}");
    }
}

#[test]
fn graceful_shutdown_marks_every_route_and_takes_the_mark_off_again() {
    for internal in [false, true] {
        let mut rib = AdjRibOut::default();
        for n in 0..3 {
            rib.announce(v4(n), Attributes::default());
        }
        rib.open(inside(internal));
        all(&mut rib);
        for (on, communities, preference) in [(true, vec![0xffff_0000], 0), (false, vec![], 100)] {
            rib.set_graceful_shutdown(on);
            rib.set_graceful_shutdown(on);
            let updates = all(&mut rib);
            assert_eq!((updates.len(), updates[0].nlri.len()), (1, 3));
            assert_eq!(updates[0].attributes.communities, communities);
            let preference = internal.then_some(preference);
            assert_eq!(updates[0].attributes.local_pref, preference);
        }
    }
}

#[test]
fn an_enhanced_refresh_is_framed_and_never_begins_before_the_end_of_rib() {
    let mut rib = AdjRibOut::default();
    rib.announce(v4(1), Attributes::default());
    rib.announce(v6(1), via("2001:db8::10"));
    rib.open(RibSession {
        enhanced_refresh: true,
        ..session()
    });
    // Asked for before anything was sent.
    rib.refresh(Family::Ipv4Unicast);
    let mut messages = std::iter::from_fn(|| rib.next_message())
        .map(|message| match message {
            Message::RouteRefresh(refresh) => format!("{}/{}", refresh.afi, refresh.subtype),
            Message::Update(update) if update == Update::end_of_rib(Family::Ipv4Unicast) => {
                "EoR".to_owned()
            }
            Message::Update(update) => format!("{} routes", kinds(&update)),
            other => panic!("{other:?}"),
        })
        .collect::<Vec<_>>();
    let six = messages.split_off(5);
    assert_eq!(messages, ["1 routes", "1 routes", "EoR", "1/1", "1 routes"]);
    assert_eq!(six, ["1 routes", "1/2"], "End-of-RIB of IPv6, then the end");
}

#[test]
fn longer_messages_carry_more_once_both_sides_take_them() {
    let mut context = EXTERNAL;
    context.extended = true;
    let mut rib = AdjRibOut::default();
    for n in 0..20_000 {
        rib.announce(v4(n), Attributes::default());
    }
    rib.open(RibSession {
        context,
        ..session()
    });
    let lengths: Vec<_> = all(&mut rib)
        .into_iter()
        .map(|update| {
            let mut octets = Vec::new();
            let message = Message::Update(update);
            message.encode(context, &mut octets).unwrap();
            octets.len()
        })
        .collect();
    assert_eq!(lengths.len(), 4, "two of routes, two End-of-RIB");
    assert!(lengths[0] > MAX_EXTENDED_LEN - 5 && lengths[0] <= MAX_EXTENDED_LEN);
}
