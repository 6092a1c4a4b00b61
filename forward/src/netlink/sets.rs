//! The sets and maps of the table, with nftables' types for keys and data.

use crate::content::{Entry, Network, Scope};
use crate::family::Family;

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
pub(super) enum Type {
    Address(Family),
    Protocol,
    Port,
    /// A number in host order.
    Mark,
    Interface,
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
            Self::Interface => 20,
            Self::Class => 23,
        }
    }

    /// Bytes, padded to whole registers as in a concatenation.
    pub(super) const fn width(self) -> u32 {
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
            Type::Address(_) | Type::Mark | Type::Interface | Type::Class => t.width(),
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
pub(super) fn concat(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, t| all << 6 | t.number())
}
