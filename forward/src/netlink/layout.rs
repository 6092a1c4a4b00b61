//! The table's fixed part: sets, maps, chains and rules that every node has,
//! whatever its Services; and the chains of classes, made on demand.
//!
//! ```text
//! prerouting -101  inbound    ours -> from a pod ? inside : outside;  echo request -> the node
//! output     -101  from_host  ours -> inside;                         echo request -> the node
//!                  outside    priority = class[front];                          chain_of[priority]; drop
//!                  inside     priority = class[front], then class_in[front];    chain_of[priority]; drop
//!                  cluster4_2 dnat to endpoints[front . random mod 2]; drop
//! prerouting  -99  guard      an address of ours that was not translated: reject
//! output      -99  guard_host likewise
//! postrouting  99  outbound   masquerade where the reply would not come back
//! ```
//!
//! - -101 is before kube-proxy's hooks, which then never see the connection.
//! - The packet's priority is the scratch register between the two lookups: a
//!   lookup that feeds the key of the next in one rule crashes `nft list`.
//! - A packet of a connection that conntrack holds invalid is not translated.
//!   The guard drops it: a reset would end a connection that may yet recover.
//! - What connection tracking was told to leave alone passes the node's own
//!   guard: so do the copies of a second chance ([`super::second`]).
//! - Echo requests to an external address are answered by the node that gets
//!   them.

use std::sync::LazyLock;

use crate::content::{Class, Network, Pick};
use crate::family::Family;
use crate::model::Protocol;
use crate::netlink::expr::{Ct, Expr, Found, Header, Meta, Register, Verdict};
use crate::netlink::sets::Set;

/// The table's name.
pub(crate) const TABLE: &str = "bellrock";
/// The chain that rejects what no Service has; its last rule drops the rest.
pub(crate) const UNSERVED: &str = "unserved";
/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// The seed of the client hash, the same on every node.
const SEED: u32 = 0x6265_6c6c;

/// Where a chain hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

pub(super) const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

pub(super) type Rule = Vec<Expr<'static>>;

/// A chain with its rules.
#[derive(Clone, Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) name: &'a str,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Vec<Expr<'a>>>,
}

impl Chain<'_> {
    /// Whether packets come to it before they are routed, or sent.
    pub(crate) fn is_early(&self) -> bool {
        self.hook.is_some_and(|hook| hook.number != POSTROUTING)
    }
}

/// The fixed chains. Those that others go to come first.
pub(crate) static CHAINS: LazyLock<Vec<Chain<'static>>> = LazyLock::new(|| {
    let chain = |name, rules| Chain {
        name,
        hook: None,
        rules,
    };
    let base = |name, kind, number, priority, rules| Chain {
        name,
        hook: Some(Hook {
            kind,
            number,
            priority,
        }),
        rules,
    };
    let (v4, v6) = (Family::V4, Family::V6);
    vec![
        chain(UNSERVED, unserved()),
        chain("outside4", outside(v4)),
        chain("outside6", outside(v6)),
        chain("inside4", inside(v4)),
        chain("inside6", inside(v6)),
        base("inbound", "nat", PREROUTING, -101, inbound()),
        base("from_host", "nat", OUTPUT, -101, from_host()),
        base("guard", "filter", PREROUTING, -99, guard()),
        base("guard_host", "filter", OUTPUT, -99, guard_host()),
        base("outbound", "nat", POSTROUTING, 99, outbound()),
    ]
});

/// Words of the register space that an address takes.
pub(super) fn words(family: Family) -> u32 {
    u32::from(family.width()) / 4
}

pub(super) fn at(word: u32) -> Register {
    Register::word(word)
}

fn family_is(family: Family) -> Rule {
    vec![
        Expr::LoadMeta(Meta::Nfproto, at(0)),
        Expr::Equal(at(0), vec![family.nfproto()]),
    ]
}

pub(super) fn protocol_is(number: u8) -> Rule {
    vec![
        Expr::LoadMeta(Meta::L4proto, at(0)),
        Expr::Equal(at(0), vec![number]),
    ]
}

fn source(family: Family, to: Register) -> Expr<'static> {
    let offset = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    Expr::Payload {
        header: Header::Network,
        offset,
        len: family.width().into(),
        to,
    }
}

pub(super) fn destination(family: Family, to: Register) -> Expr<'static> {
    let offset = match family {
        Family::V4 => 16,
        Family::V6 => 24,
    };
    Expr::Payload {
        header: Header::Network,
        offset,
        len: family.width().into(),
        to,
    }
}

/// Loads `destination . protocol . destination port` at word 0, if the packet
/// is of the family.
fn front(family: Family) -> Rule {
    let next = words(family);
    let mut rule = family_is(family);
    rule.extend([
        destination(family, at(0)),
        Expr::LoadMeta(Meta::L4proto, at(next)),
        Expr::Payload {
            header: Header::Transport,
            offset: 2,
            len: 2,
            to: at(next + 1),
        },
    ]);
    rule
}

fn lookup(set: Set, found: Found) -> Expr<'static> {
    Expr::Lookup {
        set: set.name(),
        key: at(0),
        found,
    }
}

fn goto(chain: &str) -> Expr<'_> {
    Expr::Verdict(Verdict::Goto(chain))
}

pub(super) fn rule<'a>(parts: impl IntoIterator<Item = Vec<Expr<'a>>>) -> Vec<Expr<'a>> {
    parts.into_iter().flatten().collect()
}

fn outside(family: Family) -> Vec<Rule> {
    vec![
        class_to_priority(Set::Class(family), family),
        by_priority(),
        drop_counted(),
    ]
}

fn inside(family: Family) -> Vec<Rule> {
    vec![
        class_to_priority(Set::Class(family), family),
        // Without an element of its own the front keeps its class.
        class_to_priority(Set::ClassInside(family), family),
        by_priority(),
        drop_counted(),
    ]
}

/// The end of every chain that leads on: a packet that finds no way is lost,
/// which its sender makes good, but never remembered without a translation,
/// which nobody could.
pub(super) fn drop_counted() -> Rule {
    vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]
}

fn class_to_priority(set: Set, family: Family) -> Rule {
    rule([
        front(family),
        vec![lookup(set, Found::Data(at(0))), Expr::SetPriority(at(0))],
    ])
}

fn by_priority() -> Rule {
    vec![
        Expr::LoadMeta(Meta::Priority, at(0)),
        lookup(Set::ChainOf, Found::Verdict),
    ]
}

fn chain_name(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn inbound() -> Vec<Rule> {
    let mut rules = Vec::new();
    for f in Family::ALL {
        let ours = || rule([front(f), vec![lookup(Set::Ours(f), Found::Member)]]);
        rules.push(rule([
            ours(),
            vec![
                source(f, at(0)),
                lookup(Set::Networks(f, Network::Pods), Found::Member),
                goto(chain_name(f, "inside4", "inside6")),
            ],
        ]));
        rules.push(rule([
            ours(),
            vec![goto(chain_name(f, "outside4", "outside6"))],
        ]));
    }
    rules.extend(Family::ALL.map(echo));
    rules
}

fn from_host() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .map(|f| {
            rule([
                front(f),
                vec![
                    lookup(Set::Ours(f), Found::Member),
                    goto(chain_name(f, "inside4", "inside6")),
                ],
            ])
        })
        .into();
    rules.extend(Family::ALL.map(echo));
    rules
}

/// Echo requests to an external address go to the node itself.
fn echo(family: Family) -> Rule {
    let (protocol, request) = match family {
        Family::V4 => (1, 8),
        Family::V6 => (58, 128),
    };
    rule([
        to_address_of_ours(family),
        protocol_is(protocol),
        vec![
            Expr::Payload {
                header: Header::Transport,
                offset: 0,
                len: 1,
                to: at(0),
            },
            Expr::Equal(at(0), vec![request]),
            Expr::Counter,
            Expr::Redirect,
        ],
    ])
}

fn to_address_of_ours(family: Family) -> Rule {
    rule([
        family_is(family),
        vec![
            destination(family, at(0)),
            lookup(Set::Addresses(family), Found::Member),
        ],
    ])
}

fn guard() -> Vec<Rule> {
    const INVALID: u32 = 1;
    let mut rules: Vec<Rule> = Family::ALL
        .map(|f| {
            rule([
                vec![
                    Expr::LoadCt(Ct::State, at(0)),
                    Expr::And(at(0), INVALID),
                    Expr::NotEqual(at(0), vec![0; 4]),
                ],
                front(f),
                vec![
                    lookup(Set::Ours(f), Found::Member),
                    Expr::Counter,
                    Expr::Verdict(Verdict::Drop),
                ],
            ])
        })
        .into();
    rules.extend(reject_rest());
    rules
}

fn guard_host() -> Vec<Rule> {
    const UNTRACKED: u32 = 0x40;
    let mut rules = vec![vec![
        Expr::LoadCt(Ct::State, at(0)),
        Expr::And(at(0), UNTRACKED),
        Expr::NotEqual(at(0), vec![0; 4]),
        Expr::Verdict(Verdict::Return),
    ]];
    rules.extend(reject_rest());
    rules
}

fn reject_rest() -> [Rule; 2] {
    Family::ALL.map(|f| rule([to_address_of_ours(f), vec![goto(UNSERVED)]]))
}

fn unserved() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Protocol::ALL
        .map(|protocol| {
            let reject = match protocol {
                Protocol::Tcp => Expr::RejectReset,
                Protocol::Udp | Protocol::Sctp => Expr::RejectPort,
            };
            rule([protocol_is(protocol.number()), vec![Expr::Counter, reject]])
        })
        .into();
    rules.push(drop_counted());
    rules
}

fn outbound() -> Vec<Rule> {
    const TRANSLATED: u32 = 0x20;
    let mut rules = vec![vec![
        Expr::LoadCt(Ct::Status, at(0)),
        Expr::And(at(0), TRANSLATED),
        Expr::Equal(at(0), vec![0; 4]),
        Expr::Verdict(Verdict::Return),
    ]];
    for f in Family::ALL {
        // A pod that reached itself must not see its own address.
        rules.push(rule([
            family_is(f),
            vec![
                source(f, at(0)),
                destination(f, at(words(f))),
                lookup(Set::Hairpin(f), Found::Member),
                Expr::Counter,
                Expr::Masquerade {
                    fully_random: false,
                },
            ],
        ]));
    }
    for f in Family::ALL {
        // Replies to our own pods pass here.
        rules.push(rule([
            family_is(f),
            vec![
                source(f, at(0)),
                lookup(Set::Networks(f, Network::LocalPods), Found::Member),
                Expr::Verdict(Verdict::Return),
            ],
        ]));
    }
    for f in Family::ALL {
        for protocol in Protocol::ALL {
            // So do replies from our own pods.
            rules.push(rule([
                protocol_is(protocol.number()),
                vec![
                    Expr::LoadCt(Ct::OriginalAddress(f), at(0)),
                    Expr::LoadMeta(Meta::L4proto, at(words(f))),
                    Expr::LoadCt(Ct::OriginalPort, at(words(f) + 1)),
                    lookup(Set::Ours(f), Found::Member),
                ],
                family_is(f),
                vec![
                    destination(f, at(0)),
                    lookup(Set::Local(f), Found::Absent),
                    Expr::Counter,
                    Expr::Masquerade { fully_random: true },
                ],
            ]));
        }
    }
    rules
}

/// The rules of a class's chain; `base` is the name of the chain of the class
/// without source ranges.
pub(crate) fn class_rules(class: Class, base: &str) -> Vec<Vec<Expr<'_>>> {
    let f = class.family;
    let next = words(f) + 2;
    let mut rules = Vec::new();
    if class.restricted {
        rules.push(rule([
            front(f),
            vec![
                source(f, at(next)),
                lookup(Set::Sources(f), Found::Member),
                goto(base),
            ],
        ]));
    } else if class.slots > 0 {
        let pick = match class.pick {
            Pick::Random => vec![Expr::Random {
                modulus: class.slots,
                to: at(next),
            }],
            Pick::Client => {
                // Where `nft` puts it: clear of the key.
                let hashed = match f {
                    Family::V4 => at(8),
                    Family::V6 => at(11),
                };
                vec![
                    source(f, hashed),
                    Expr::Jhash {
                        from: hashed,
                        len: f.width().into(),
                        modulus: class.slots,
                        seed: SEED,
                        to: at(next),
                    },
                ]
            }
        };
        rules.push(rule([
            front(f),
            pick,
            vec![
                lookup(Set::Endpoints(f, class.scope), Found::Data(at(0))),
                Expr::Dnat {
                    family: f,
                    address: at(0),
                    port: at(words(f)),
                },
            ],
        ]));
    }
    rules.push(drop_counted());
    rules
}
