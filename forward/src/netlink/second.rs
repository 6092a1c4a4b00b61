//! Second chances: tables of their own, since the kernel copies packets
//! (`dup`) in the families `ip` and `ip6` only.
//!
//! ```text
//! table ip bellrock {
//!     map previous { type ipv4_addr . iface_index : ipv4_addr; flags timeout; }
//!     chain second_chance {
//!         type filter hook prerouting priority -150;
//!         ct state new tcp flags ! syn,rst ip ttl & 0xfe != 0 dup to ip daddr . iif map @previous device iif counter drop
//!     }
//! }
//! ```
//!
//! The hook is after connection tracking, which says whether the connection is
//! known here, and before any translation. A copy has one hop less to live, which
//! ends what goes round between nodes that name each other: the kernel itself
//! would count on from 0 to 255. Elements end by themselves, also
//! when no one is left to remove them.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use crate::family::{Family, push_address};
use crate::netlink::abi::{
    ATTR_ELEM_DATA, ATTR_ELEM_KEY, ATTR_ELEM_TIMEOUT, ATTR_LIST_ELEMENTS, ATTR_LIST_SET,
    ATTR_LIST_TABLE, ATTR_SET_DATA_LEN, ATTR_SET_DATA_TYPE, ATTR_SET_FLAGS, ATTR_SET_ID,
    ATTR_SET_KEY_LEN, ATTR_SET_KEY_TYPE, ATTR_SET_NAME, ATTR_SET_TABLE, DATA_VALUE, Kind,
    LIST_ELEM,
};
use crate::netlink::encode::{Batch, Encoder};
use crate::netlink::expr::{Ct, Expr, Found, Header, Meta, Verdict};
use crate::netlink::layout::{self, Chain, Hook, PREROUTING, Rule, TABLE, at, words};
use crate::netlink::sets::{Type, concat};
use crate::netlink::wire::{Attributes, Message, NLM_F_CREATE, Writer};

/// The map of previous owners.
pub(crate) const PREVIOUS: &str = "previous";
const COMMENT: &str = "bellrock second chances of connections to moved addresses";
/// Elements of one message, IPv6 with room to spare.
const LIST: usize = 400;

/// An element: packets to this address that come in by this interface go to
/// the previous owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chance {
    pub(crate) address: IpAddr,
    pub(crate) interface: u32,
    pub(crate) previous: IpAddr,
}

/// The chain of a family's table.
pub(crate) fn chain(family: Family) -> &'static Chain<'static> {
    static CHAINS: LazyLock<[Chain<'static>; 2]> = LazyLock::new(|| {
        Family::ALL.map(|family| Chain {
            name: "second_chance",
            hook: Some(Hook {
                kind: "filter",
                number: PREROUTING,
                priority: -150,
            }),
            rules: vec![copy(family)],
        })
    });
    let [v4, v6] = &*CHAINS;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn copy(family: Family) -> Rule {
    const NEW: u32 = 0x8;
    const SYN_OR_RST: u8 = 0x6;
    const TCP: u8 = 6;
    // The byte of `ttl` or `hop limit`.
    let hops = match family {
        Family::V4 => 8,
        Family::V6 => 7,
    };
    layout::rule([
        vec![
            Expr::LoadCt(Ct::State, at(0)),
            Expr::And(at(0), NEW),
            Expr::NotEqual(at(0), vec![0; 4]),
        ],
        layout::protocol_is(TCP),
        vec![
            Expr::Payload {
                header: Header::Transport,
                offset: 13,
                len: 1,
                to: at(0),
            },
            Expr::AndByte(at(0), SYN_OR_RST),
            Expr::Equal(at(0), vec![0]),
            Expr::Payload {
                header: Header::Network,
                offset: hops,
                len: 1,
                to: at(0),
            },
            Expr::AndByte(at(0), !1),
            Expr::NotEqual(at(0), vec![0]),
            layout::destination(family, at(0)),
            Expr::LoadMeta(Meta::Iif, at(words(family))),
            Expr::Lookup {
                set: PREVIOUS,
                key: at(0),
                found: Found::Data(at(0)),
            },
            Expr::LoadMeta(Meta::Iif, at(4)),
            Expr::Dup {
                address: at(0),
                device: at(4),
            },
            Expr::Counter,
            Expr::Verdict(Verdict::Drop),
        ],
    ])
}

/// Makes a family's table anew with these elements, or only removes it where
/// there are none. `there`: one is there.
pub(crate) fn replace(family: Family, there: bool, chances: &[(Chance, Duration)]) -> Batch {
    let mut e = Encoder::begin(family.nfproto(), 1024 + chances.len() * 112);
    if there {
        e.delete_table();
    }
    if !chances.is_empty() {
        e.table(COMMENT);
        map(&mut e, family);
        e.chain(chain(family));
        e.rules(chain(family));
        add(&mut e, chances);
    }
    e.finish()
}

/// Changes the elements of a family's table.
pub(crate) fn update(family: Family, gone: &[Chance], new: &[(Chance, Duration)]) -> Batch {
    let mut e = Encoder::begin(family.nfproto(), 256 + (gone.len() + new.len()) * 112);
    for part in gone.chunks(LIST) {
        let elements: Vec<_> = part.iter().map(|chance| (*chance, None)).collect();
        list(&mut e, Kind::DelSetElem, 0, &elements);
    }
    add(&mut e, new);
    e.finish()
}

fn add(e: &mut Encoder, chances: &[(Chance, Duration)]) {
    for part in chances.chunks(LIST) {
        let elements: Vec<_> = part.iter().map(|(c, lasts)| (*c, Some(*lasts))).collect();
        list(e, Kind::NewSetElem, NLM_F_CREATE, &elements);
    }
}

fn map(e: &mut Encoder, family: Family) {
    const MAP: u32 = 0x8;
    const TIMEOUT: u32 = 0x10;
    let key = [Type::Address(family), Type::Interface];
    let m = e.start(Kind::NewSet, NLM_F_CREATE);
    e.w.string(ATTR_SET_TABLE, TABLE);
    e.w.string(ATTR_SET_NAME, PREVIOUS);
    e.w.be32(ATTR_SET_FLAGS, MAP | TIMEOUT);
    e.w.be32(ATTR_SET_KEY_TYPE, concat(&key));
    e.w.be32(ATTR_SET_KEY_LEN, key.iter().map(|t| t.width()).sum());
    e.w.be32(ATTR_SET_DATA_TYPE, concat(&[Type::Address(family)]));
    e.w.be32(ATTR_SET_DATA_LEN, family.width().into());
    e.w.be32(ATTR_SET_ID, 1);
    e.w.end_message(m);
}

fn list(e: &mut Encoder, kind: Kind, flags: u16, elements: &[(Chance, Option<Duration>)]) {
    let value = |w: &mut Writer, kind: u16, bytes: &[u8]| {
        let nest = w.nest(kind);
        w.raw(DATA_VALUE, bytes);
        w.end(nest);
    };
    let m = e.start(kind, flags);
    e.w.string(ATTR_LIST_TABLE, TABLE);
    e.w.string(ATTR_LIST_SET, PREVIOUS);
    let list = e.w.nest(ATTR_LIST_ELEMENTS);
    for (chance, lasts) in elements {
        let element = e.w.nest(LIST_ELEM);
        let mut bytes = Vec::with_capacity(20);
        push_address(&mut bytes, chance.address);
        bytes.extend_from_slice(&chance.interface.to_ne_bytes());
        value(&mut e.w, ATTR_ELEM_KEY, &bytes);
        if let Some(lasts) = lasts {
            bytes.clear();
            push_address(&mut bytes, chance.previous);
            value(&mut e.w, ATTR_ELEM_DATA, &bytes);
            let milliseconds = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            // None at all would last for ever.
            e.w.raw(ATTR_ELEM_TIMEOUT, &milliseconds.max(1).to_be_bytes());
        }
        e.w.end(element);
    }
    e.w.end(list);
    e.w.end_message(m);
}

/// Reads the elements of a message of a dump; none for what is not ours.
pub(crate) fn read(family: Family, message: &Message<'_>) -> Vec<Option<Chance>> {
    let Some(list) = message.attributes().nested(ATTR_LIST_ELEMENTS) else {
        return Vec::new();
    };
    list.filter(|(kind, _)| *kind == LIST_ELEM)
        .map(|(_, element)| chance(family, &Attributes(element)))
        .collect()
}

fn chance(family: Family, element: &Attributes<'_>) -> Option<Chance> {
    let key = element.nested(ATTR_ELEM_KEY)?.get(DATA_VALUE)?;
    let data = element.nested(ATTR_ELEM_DATA)?.get(DATA_VALUE)?;
    let (address, interface) = key.split_at_checked(family.width().into())?;
    Some(Chance {
        address: family.address(address)?,
        interface: u32::from_ne_bytes(interface.try_into().ok()?),
        previous: family.address(data)?,
    })
}
