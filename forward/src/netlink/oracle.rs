//! Our bytes, read by someone else: `netlink-packet-netfilter`.

use std::collections::BTreeMap;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, DataAttribute, ExpressionAttribute, Hook, HookNumber, InetHookNumber,
    ListAttribute, NfTablesMessage, RuleAttribute, SetAttribute, SetElementAttribute,
    SetElementList, SetFlags, TableAttribute, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};

use crate::content::{Class, Entry, Front, Network, Pick, Range, Scope, Value};
use crate::diff::{Action, Op, When};
use crate::family::Family;
use crate::model::Protocol;
use crate::netlink::encode::{Prelude, batch, layout_comment};
use crate::netlink::layout::{CHAINS, UNSERVED};
use crate::netlink::sets::Set;

fn decode(bytes: &[u8]) -> Vec<NfTablesMessage> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).unwrap();
        rest = &rest[(message.header.length as usize).next_multiple_of(4)..];
        if let NetlinkPayload::InnerMessage(message) = message.payload
            && let NetfilterMessageInner::NfTables(message) = message.inner
        {
            all.push(message);
        }
    }
    all
}

/// The set, and its elements' attributes.
fn elements(attributes: &[SetElementList]) -> (&str, Vec<&[SetElementAttribute]>) {
    let mut name = "";
    let mut all = Vec::new();
    for attribute in attributes {
        match attribute {
            SetElementList::Table(table) => assert_eq!(table, "bellrock"),
            SetElementList::Set(set) => name = set,
            SetElementList::Elements(list) => {
                all.extend(list.iter().map(|element| match element {
                    ListAttribute::Element(attributes) => attributes.as_slice(),
                    other => panic!("{other:?}"),
                }));
            }
            other => panic!("{other:?}"),
        }
    }
    (name, all)
}

fn key(bytes: &[u8]) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(bytes.to_vec()))
}

fn data(bytes: &[u8]) -> SetElementAttribute {
    SetElementAttribute::Data(DataAttribute::Value(bytes.to_vec()))
}

fn op(entry: Entry, action: Action) -> Op {
    Op {
        entry,
        action,
        owner: None,
    }
}

const CLASS: Class = Class {
    restricted: false,
    family: Family::V4,
    scope: Scope::Cluster,
    pick: Pick::Random,
    slots: 2,
};

fn front() -> Front {
    Front {
        address: "203.0.113.10".parse().unwrap(),
        protocol: Protocol::Udp,
        port: 53,
    }
}

#[test]
fn another_reader_finds_every_set_chain_and_rule() {
    let ops = [op(Entry::Chain(CLASS), Action::Add(Value::Member))];
    let mut sets = BTreeMap::new();
    let mut chains = BTreeMap::new();
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for message in decode(&batch(Prelude::Replace, &ops, false).bytes) {
        match message {
            NfTablesMessage::DeleteTable(m) => {
                assert_eq!(m.attributes, [TableAttribute::Name("bellrock".into())]);
            }
            NfTablesMessage::NewTable(m) => {
                let comment = m.attributes.iter().find_map(|a| match a {
                    TableAttribute::UserData(bytes) => Some(bytes[2..bytes.len() - 1].to_vec()),
                    _ => None,
                });
                assert_eq!(comment, Some(layout_comment().into_bytes()));
            }
            NfTablesMessage::NewSet(m) => {
                let name = m.attributes.iter().find_map(|a| match a {
                    SetAttribute::Name(name) => Some(name.clone()),
                    _ => None,
                });
                sets.insert(name.unwrap(), m.attributes);
            }
            NfTablesMessage::NewChain(m) => {
                let name = m.attributes.iter().find_map(|a| match a {
                    ChainAttribute::Name(name) => Some(name.clone()),
                    _ => None,
                });
                chains.insert(name.unwrap(), m.attributes);
            }
            NfTablesMessage::NewRule(m) => {
                let chain = m.attributes.iter().find_map(|a| match a {
                    RuleAttribute::Chain(chain) => Some(chain.clone()),
                    _ => None,
                });
                for attribute in &m.attributes {
                    if let RuleAttribute::Expressions(list) = attribute {
                        let named = list.iter().all(|e| match e {
                            ListAttribute::Element(e) => {
                                matches!(e.first(), Some(ExpressionAttribute::Name(_)))
                            }
                            _ => false,
                        });
                        assert!(named && !list.is_empty(), "{list:?}");
                    }
                }
                *rules.entry(chain.unwrap()).or_default() += 1;
            }
            NfTablesMessage::NewSetElement(m) => {
                let (set, elements) = elements(&m.attributes);
                let verdict = DataAttribute::Verdict(vec![
                    VerdictAttribute::Code(Verdict::Goto),
                    VerdictAttribute::Chain("cluster4_2".into()),
                ]);
                let element = [
                    key(&0xbe00_0002_u32.to_ne_bytes()),
                    SetElementAttribute::Data(verdict),
                ];
                assert_eq!((set, elements), ("chain_of", vec![element.as_slice()]));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sets.len(), Set::all().count());
    // 7, 12, 13 are nft's numbers of the types; 19 is a mark.
    let endpoints = &sets["endpoints4"];
    for expected in [
        SetAttribute::Table("bellrock".into()),
        SetAttribute::Flags(SetFlags::Map),
        SetAttribute::KeyType(((7 << 6 | 12) << 6 | 13) << 6 | 19),
        SetAttribute::KeyLen(16),
        SetAttribute::DataType(7 << 6 | 13),
        SetAttribute::DataLen(8),
    ] {
        assert!(
            endpoints.contains(&expected),
            "{expected:?} in {endpoints:?}"
        );
    }
    assert_eq!(chains.len(), CHAINS.len() + 1);
    let hook = |chain: &str| {
        chains[chain].iter().find_map(|a| match a {
            ChainAttribute::Hook(hook) => Some(hook.clone()),
            _ => None,
        })
    };
    let at = |number, priority: i32| {
        Some(vec![
            Hook::Number(HookNumber::Inet(number)),
            Hook::Priority(u32::from_ne_bytes(priority.to_ne_bytes())),
        ])
    };
    assert_eq!(hook("inbound"), at(InetHookNumber::PreRouting, -101));
    assert_eq!(hook("from_host"), at(InetHookNumber::LocalOut, -101));
    assert_eq!(hook("guard"), at(InetHookNumber::PreRouting, -99));
    assert_eq!(hook("outbound"), at(InetHookNumber::PostRouting, 99));
    assert_eq!(hook("outside4"), None);
    for chain in CHAINS.iter() {
        // The rejects come in a batch of their own.
        let count = if chain.name == UNSERVED {
            1
        } else {
            chain.rules.len()
        };
        assert_eq!(rules[chain.name], count, "{}", chain.name);
    }
    assert_eq!(rules["cluster4_2"], 2);
}

#[test]
fn another_reader_finds_every_element_in_the_right_order() {
    let to = Value::Endpoint("10.244.1.5".parse().unwrap(), 5353);
    let network = Range {
        first: "10.244.0.0".parse().unwrap(),
        last: "10.244.255.255".parse().unwrap(),
    };
    let source = Range {
        first: "10.0.0.0".parse().unwrap(),
        last: "10.255.255.255".parse().unwrap(),
    };
    let ops = [
        op(Entry::Ours(front()), Action::Add(Value::Member)),
        op(Entry::Class(front()), Action::Replace(Value::Class(CLASS))),
        op(Entry::Endpoint(front(), Scope::Cluster, 1), Action::Add(to)),
        op(Entry::Source(front(), source), Action::Delete(When::Now)),
        op(
            Entry::Network(Network::Pods, network),
            Action::Add(Value::Member),
        ),
    ];
    let front = [203, 0, 113, 10, 17, 0, 0, 0, 0, 53, 0, 0];
    let with = |rest: &[u8]| [&front[..], rest].concat();
    let class = 0xbe00_0002_u32.to_ne_bytes();

    let batch = batch(Prelude::None, &ops, false);
    assert_eq!((batch.added, batch.deleted), (4, 2));
    let seen: Vec<(bool, String, Vec<Vec<SetElementAttribute>>)> = decode(&batch.bytes)
        .iter()
        .map(|message| {
            let (added, attributes) = match message {
                NfTablesMessage::NewSetElement(m) => (true, &m.attributes),
                NfTablesMessage::DeleteSetElement(m) => (false, &m.attributes),
                other => panic!("{other:?}"),
            };
            let (set, elements) = elements(attributes);
            (
                added,
                set.to_owned(),
                elements.into_iter().map(<[_]>::to_vec).collect(),
            )
        })
        .collect();

    let (sources, rest) = seen.split_first().unwrap();
    assert_eq!((sources.0, sources.1.as_str()), (false, "sources4"));
    assert_eq!(sources.2[0][0], key(&with(&[10, 0, 0, 0])));
    let SetElementAttribute::KeyEnd(end) = &sources.2[0][1] else {
        panic!("{sources:?}")
    };
    let end: Vec<u8> = end
        .iter()
        .flat_map(|nla| {
            let mut value = vec![0; netlink_packet_core::Nla::value_len(nla)];
            netlink_packet_core::Nla::emit_value(nla, &mut value);
            value
        })
        .collect();
    assert_eq!(end, with(&[10, 255, 255, 255]));

    let expected = [
        (
            true,
            "pods4",
            vec![
                vec![key(&[10, 244, 0, 0])],
                vec![
                    key(&[10, 245, 0, 0]),
                    SetElementAttribute::Flags(
                        netlink_packet_netfilter::nftables::SetElementFlags::IntervalEnd,
                    ),
                ],
            ],
        ),
        (
            true,
            "endpoints4",
            vec![vec![
                key(&with(&1_u32.to_ne_bytes())),
                data(&[10, 244, 1, 5, 0x14, 0xe9, 0, 0]),
            ]],
        ),
        (false, "class4", vec![vec![key(&front)]]),
        (true, "class4", vec![vec![key(&front), data(&class)]]),
        (true, "ours4", vec![vec![key(&front)]]),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(added, set, e)| (added, set.to_owned(), e))
        .collect();
    assert_eq!(rest, expected);
}

#[test]
fn marks_change_no_byte() {
    let ops = [
        op(Entry::Chain(CLASS), Action::Add(Value::Member)),
        op(Entry::Ours(front()), Action::Add(Value::Member)),
    ];
    let plain = batch(Prelude::Create, &ops, false);
    let marked = batch(Prelude::Create, &ops, true);
    assert_eq!(plain.bytes, marked.bytes);
    assert!(plain.marks.is_empty() && marked.marks.len() >= 2);
}

#[test]
fn a_list_of_elements_never_outgrows_its_length_field() {
    let ops: Vec<Op> = (0..3_000)
        .map(|slot| {
            let to = Value::Endpoint("10.244.1.5".parse().unwrap(), 1);
            op(
                Entry::Endpoint(front(), Scope::Cluster, slot),
                Action::Add(to),
            )
        })
        .collect();
    let batch = batch(Prelude::None, &ops, false);
    let seen: usize = decode(&batch.bytes)
        .iter()
        .map(|message| match message {
            NfTablesMessage::NewSetElement(m) => elements(&m.attributes).1.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(seen, 3_000);
}
