//! The table's fixed part: sets, maps, chains and rules that every node has,
//! whatever its Services; and the chains of classes, made on demand.
//!
//! ```text
//! prerouting -101  inbound    ours -> from a pod ? inside : outside;  echo request -> the node
//! output     -101  from_host  ours -> inside;                         echo request -> the node
//!                  outside    priority = class[front];                          chain_of[priority]
//!                  inside     priority = class[front], then class_in[front];    chain_of[priority]
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
//! - Echo requests to an external address are answered by the node that gets
//!   them.

use std::sync::LazyLock;

use crate::content::{Class, Entry, Network, Pick, Scope};
use crate::family::Family;
use crate::model::Protocol;
use crate::netlink::expr::{Ct, Expr, Found, Header, Meta, Register, Verdict};

/// The table's name.
pub(crate) const TABLE: &str = "bellrock";
/// The chain that rejects what no Service has; its last rule drops the rest.
pub(crate) const UNSERVED: &str = "unserved";
/// `NFPROTO_INET`.
pub(crate) const INET: u8 = 1;
/// The seed of the client hash, the same on every node.
const SEED: u32 = 0x6265_6c6c;

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    Ours(Family),
    Class(Family),
    ClassInside(Family),
    Endpoints(Family, Scope),
    Sources(Family),
    Addresses(Family),
    Local(Family),
    Hairpin(Family),
    Networks(Family, Network),
    ChainOf,
}

/// nftables' own numbers for the types of keys and data; `nft` prints by them.
#[derive(Clone, Copy)]
enum Type {
    Address(Family),
    Protocol,
    Port,
    /// A number in host order.
    Mark,
    Class,
}

impl Type {
    const fn number(self) -> u32 {
        match self {
            Self::Address(Family::V4) => 7,
            Self::Address(Family::V6) => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Class => 23,
        }
    }

    /// Bytes, padded to whole registers as in a concatenation.
    const fn width(self) -> u32 {
        match self {
            Self::Address(family) => family.width() as u32,
            _ => 4,
        }
    }
}

/// What a map's keys lead to.
pub(crate) enum Data {
    None,
    Verdict,
    Value { kind: u32, width: u32 },
}

impl Set {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let families = Family::ALL.into_iter().flat_map(|f| {
            [
                Self::Ours(f),
                Self::Class(f),
                Self::ClassInside(f),
                Self::Endpoints(f, Scope::Cluster),
                Self::Endpoints(f, Scope::Local),
                Self::Sources(f),
                Self::Addresses(f),
                Self::Local(f),
                Self::Hairpin(f),
                Self::Networks(f, Network::Pods),
                Self::Networks(f, Network::LocalPods),
            ]
        });
        families.chain([Self::ChainOf])
    }

    /// Where an entry lives.
    pub(crate) fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Ours(front) => Self::Ours(Family::of(front.address)),
            Entry::Class(front) => Self::Class(Family::of(front.address)),
            Entry::ClassInside(front) => Self::ClassInside(Family::of(front.address)),
            Entry::Endpoint(front, scope, _) => Self::Endpoints(Family::of(front.address), *scope),
            Entry::Source(front, _) => Self::Sources(Family::of(front.address)),
            Entry::Address(address) => Self::Addresses(Family::of(*address)),
            Entry::Local(address) => Self::Local(Family::of(*address)),
            Entry::Hairpin(address) => Self::Hairpin(Family::of(*address)),
            Entry::Network(network, range) => Self::Networks(Family::of(range.first), *network),
            Entry::Chain(_) => Self::ChainOf,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        const fn by(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
            match family {
                Family::V4 => v4,
                Family::V6 => v6,
            }
        }
        match self {
            Self::Ours(f) => by(f, "ours4", "ours6"),
            Self::Class(f) => by(f, "class4", "class6"),
            Self::ClassInside(f) => by(f, "class_in4", "class_in6"),
            Self::Endpoints(f, Scope::Cluster) => by(f, "endpoints4", "endpoints6"),
            Self::Endpoints(f, Scope::Local) => by(f, "endpoints_local4", "endpoints_local6"),
            Self::Sources(f) => by(f, "sources4", "sources6"),
            Self::Addresses(f) => by(f, "addresses4", "addresses6"),
            Self::Local(f) => by(f, "local4", "local6"),
            Self::Hairpin(f) => by(f, "hairpin4", "hairpin6"),
            Self::Networks(f, Network::Pods) => by(f, "pods4", "pods6"),
            Self::Networks(f, Network::LocalPods) => by(f, "local_pods4", "local_pods6"),
            Self::ChainOf => "chain_of",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().find(|set| set.name() == name)
    }

    fn key(self) -> Vec<Type> {
        let front = |f| vec![Type::Address(f), Type::Protocol, Type::Port];
        match self {
            Self::Ours(f) | Self::Class(f) | Self::ClassInside(f) => front(f),
            Self::Endpoints(f, _) => [front(f), vec![Type::Mark]].concat(),
            Self::Sources(f) => [front(f), vec![Type::Address(f)]].concat(),
            Self::Addresses(f) | Self::Local(f) | Self::Networks(f, _) => vec![Type::Address(f)],
            Self::Hairpin(f) => vec![Type::Address(f); 2],
            Self::ChainOf => vec![Type::Class],
        }
    }

    pub(crate) fn key_type(self) -> u32 {
        concat(&self.key())
    }

    pub(crate) fn key_width(self) -> u32 {
        self.key().iter().map(|t| t.width()).sum()
    }

    /// The widths of the key's fields, without padding, for a concatenation
    /// with a range.
    pub(crate) fn fields(self) -> Option<Vec<u32>> {
        let width = |t: &Type| match t {
            Type::Protocol => 1,
            Type::Port => 2,
            Type::Address(_) | Type::Mark | Type::Class => t.width(),
        };
        matches!(self, Self::Sources(_)).then(|| self.key().iter().map(width).collect())
    }

    /// Whether elements are ranges with a start and an end element each.
    pub(crate) fn is_interval(self) -> bool {
        matches!(self, Self::Networks(..))
    }

    pub(crate) fn data(self) -> Data {
        let value = |types: &[Type]| Data::Value {
            kind: concat(types),
            width: types.iter().map(|t| t.width()).sum(),
        };
        match self {
            Self::Class(_) | Self::ClassInside(_) => value(&[Type::Class]),
            Self::Endpoints(f, _) => value(&[Type::Address(f), Type::Port]),
            Self::ChainOf => Data::Verdict,
            Self::Ours(_)
            | Self::Sources(_)
            | Self::Addresses(_)
            | Self::Local(_)
            | Self::Hairpin(_)
            | Self::Networks(..) => Data::None,
        }
    }

    /// `NFTA_SET_FLAGS`.
    pub(crate) fn flags(self) -> u32 {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const CONCAT: u32 = 0x80;
        match (self.data(), self.fields()) {
            (_, Some(_)) => INTERVAL | CONCAT,
            (Data::None, None) if self.is_interval() => INTERVAL,
            (Data::None, None) => 0,
            (Data::Verdict | Data::Value { .. }, None) => MAP,
        }
    }
}

/// Types of a concatenation in one number, six bits each.
fn concat(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, t| all << 6 | t.number())
}

/// Where a chain hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

type Rule = Vec<Expr<'static>>;

/// A chain with its rules.
#[derive(Clone, Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) name: &'a str,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Vec<Expr<'a>>>,
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
fn words(family: Family) -> u32 {
    u32::from(family.width()) / 4
}

fn at(word: u32) -> Register {
    Register::word(word)
}

fn family_is(family: Family) -> Rule {
    vec![
        Expr::LoadMeta(Meta::Nfproto, at(0)),
        Expr::Equal(at(0), vec![family.nfproto()]),
    ]
}

fn protocol_is(number: u8) -> Rule {
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

fn destination(family: Family, to: Register) -> Expr<'static> {
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

fn rule<'a>(parts: impl IntoIterator<Item = Vec<Expr<'a>>>) -> Vec<Expr<'a>> {
    parts.into_iter().flatten().collect()
}

fn outside(family: Family) -> Vec<Rule> {
    vec![class_to_priority(Set::Class(family), family), by_priority()]
}

fn inside(family: Family) -> Vec<Rule> {
    vec![
        class_to_priority(Set::Class(family), family),
        // Without an element of its own the front keeps its class.
        class_to_priority(Set::ClassInside(family), family),
        by_priority(),
    ]
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
    rules.extend(guard_host());
    rules
}

fn guard_host() -> Vec<Rule> {
    Family::ALL
        .map(|f| rule([to_address_of_ours(f), vec![goto(UNSERVED)]]))
        .into()
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
    rules.push(vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]);
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
    rules.push(vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]);
    rules
}
